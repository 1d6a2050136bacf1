//! A container's log file, as docs/ARCHITECTURE.md, "Log files", gives it: the form of Kubernetes' CRI logs.
//!
//! Lines of one chunk of output go out in one write. A full disk costs lines, never the container: they are counted and
//! told by a `system D n` line as soon as writing works again.
use kata_protocol::clock;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const MAX_LINE_BYTES: usize = 16 * 1024;
/// Formatted bytes that are collected before a write.
const BATCH_BYTES: usize = 256 * 1024;

/// The process's output stream that a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

pub struct ContainerLog {
    path: PathBuf,
    max_bytes: u64,
    /// Rotated generations kept beside the file that is written.
    generations: u32,
    file: Option<File>,
    size: u64,
    /// Lines lost since the last `D` line, and in all.
    dropped: u64,
    dropped_total: u64,
}

thread_local! {
    /// One buffer for all logs of the keeper: a log costs no memory while its container is silent.
    static BATCH: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl ContainerLog {
    /// Opens or continues the file. `max_bytes` 0 means 10 MiB; `max_files` is the number of rotated files kept
    /// beside the one that is written, 0 means 4.
    pub fn open(path: &str, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        if !path.starts_with('/') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the log's path is not absolute"));
        }
        let mut log = ContainerLog {
            path: PathBuf::from(path),
            max_bytes: if max_bytes == 0 { 10 << 20 } else { max_bytes },
            generations: if max_files == 0 { 4 } else { max_files.min(1000) },
            file: None,
            size: 0,
            dropped: 0,
            dropped_total: 0,
        };
        log.reopen()?;
        Ok(log)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = options.append(true).create(true).mode(0o600).custom_flags(flags).open(&self.path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the log is not a regular file"));
        }
        self.size = metadata.len();
        self.file = Some(file);
        Ok(())
    }

    /// Lines lost so far.
    pub fn dropped_lines(&self) -> u64 {
        self.dropped_total
    }

    /// Logs bytes that arrived at `unix_nanos`. A rest without newline is written at once as a partial line.
    pub fn write(&mut self, stream: Stream, unix_nanos: i64, bytes: &[u8]) {
        let mut prefix = Vec::with_capacity(48);
        prefix.extend_from_slice(&clock::rfc3339(unix_nanos));
        prefix.push(b' ');
        prefix.extend_from_slice(stream.name().as_bytes());
        BATCH.with_borrow_mut(|batch| {
            let mut rest = bytes;
            while !rest.is_empty() {
                let window = &rest[..rest.len().min(MAX_LINE_BYTES + 1)];
                let (line, tag, used) = match window.iter().position(|byte| *byte == b'\n') {
                    Some(end) => (&rest[..end], b" F ", end + 1),
                    None => (&rest[..window.len().min(MAX_LINE_BYTES)], b" P ", window.len().min(MAX_LINE_BYTES)),
                };
                let length = prefix.len() + 4 + line.len();
                if self.size + (batch.len() + length) as u64 > self.max_bytes {
                    self.flush(batch);
                    self.rotate_if_full(length as u64);
                } else if batch.len() + length > BATCH_BYTES {
                    self.flush(batch);
                }
                batch.extend_from_slice(&prefix);
                batch.extend_from_slice(tag);
                batch.extend_from_slice(line);
                batch.push(b'\n');
                rest = &rest[used..];
            }
            self.flush(batch);
        });
    }

    fn rotate_if_full(&mut self, more: u64) {
        if self.size == 0 || self.size + more <= self.max_bytes {
            return;
        }
        let name = |generation: u32| match generation {
            0 => self.path.clone(),
            _ => numbered(&self.path, generation),
        };
        for generation in (0..self.generations).rev() {
            let _ = fs::rename(name(generation), name(generation + 1));
        }
        self.file = None;
        self.size = 0;
    }

    /// Writes the batch and empties it; whole lines that the disk refuses are counted.
    fn flush(&mut self, batch: &mut Vec<u8>) {
        if batch.is_empty() {
            return;
        }
        let lost = if self.tell_dropped().is_ok() { self.append(batch) } else { batch.as_slice() };
        let lines = lost.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.dropped += lines;
        self.dropped_total += lines;
        batch.clear();
    }

    /// Both streams ended: tells what was dropped and lets the file go. A disk that still is full leaves the count to the
    /// exit's journal entry.
    pub fn close(&mut self) {
        let _ = self.tell_dropped();
        self.file = None;
    }

    /// Writes the `D` line that is due, if any.
    fn tell_dropped(&mut self) -> io::Result<()> {
        if self.dropped == 0 {
            return Ok(());
        }
        let mut line = Vec::with_capacity(64);
        line.extend_from_slice(&clock::rfc3339(clock::unix_nanos()));
        let _ = writeln!(line, " system D {}", self.dropped);
        if !self.append(&line).is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.dropped = 0;
        Ok(())
    }

    /// Appends whole lines and gives back those that did not fit: the file never ends in the middle of a line.
    fn append<'a>(&mut self, lines: &'a [u8]) -> &'a [u8] {
        // A file that is still full after a rotation is one that could not be renamed: it must not grow on.
        if self.file.is_none() && (self.reopen().is_err() || self.size >= self.max_bytes) {
            self.file = None;
            return lines;
        }
        let Some(file) = &mut self.file else { return lines };
        let mut written = 0;
        while written < lines.len() {
            match file.write(&lines[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let mut kept = written;
        if written < lines.len() {
            kept = lines[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if file.set_len(self.size + kept as u64).is_err() {
                self.file = None;
            }
        }
        self.size += kept as u64;
        &lines[kept..]
    }
}

fn numbered(path: &Path, generation: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{generation}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    const TIME: &str = "1970-01-01T00:00:00.000000000Z";

    fn log(dir: &TempDir, max_bytes: u64, max_files: u32) -> (ContainerLog, PathBuf) {
        let path = dir.path().join("container.log");
        (ContainerLog::open(path.to_str().unwrap(), max_bytes, max_files).unwrap(), path)
    }

    #[test]
    fn marks_whole_and_partial_lines() {
        let dir = TempDir::new();
        let (mut log, path) = log(&dir, 0, 0);
        log.write(Stream::Stdout, 0, b"one\n\n$ ");
        log.write(Stream::Stderr, 0, b"ls\n");
        let expected = format!("{TIME} stdout F one\n{TIME} stdout F \n{TIME} stdout P $ \n{TIME} stderr F ls\n");
        assert_eq!(fs::read_to_string(path).unwrap(), expected);
    }

    #[test]
    fn cuts_long_lines_at_16_kib() {
        let dir = TempDir::new();
        let (mut log, path) = log(&dir, 0, 0);
        let mut text = vec![b'x'; 2 * MAX_LINE_BYTES + 5];
        text.push(b'\n');
        log.write(Stream::Stdout, 0, &text);
        let mut exact = vec![b'y'; MAX_LINE_BYTES];
        exact.push(b'\n');
        log.write(Stream::Stdout, 0, &exact);
        let text = fs::read_to_string(path).unwrap();
        let shape: Vec<_> = text.lines().map(|line| (&line[38..39], line.len() - 40)).collect();
        assert_eq!(shape, [("P", MAX_LINE_BYTES), ("P", MAX_LINE_BYTES), ("F", 5), ("F", MAX_LINE_BYTES)]);
    }

    #[test]
    fn rotates_at_line_boundaries_and_keeps_so_many_files() {
        let dir = TempDir::new();
        let (mut log, path) = log(&dir, 1000, 2);
        for number in 0..100 {
            log.write(Stream::Stdout, 0, format!("line {number}\nagain\n").as_bytes());
        }
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["container.log", "container.log.1", "container.log.2"]);
        let newest = fs::read_to_string(&path).unwrap();
        let older = fs::read_to_string(path.with_extension("log.1")).unwrap();
        assert!(newest.len() <= 1000 && older.len() <= 1000 && older.len() > 900);
        assert!(newest.ends_with("again\n") && newest.contains("line 99") && older.starts_with(TIME));
        assert_eq!(log.dropped_lines(), 0);
    }

    #[test]
    fn counts_lines_when_the_directory_is_gone() {
        let dir = TempDir::new();
        let (mut log, path) = log(&dir, 200, 2);
        log.write(Stream::Stdout, 0, &[b"0123456789\n".as_slice(); 3].concat());
        fs::remove_dir_all(dir.path()).unwrap();
        log.write(Stream::Stdout, 0, &[b"0123456789\n".as_slice(); 5].concat());
        assert!(log.dropped_lines() >= 2, "{}", log.dropped_lines());
        fs::create_dir(dir.path()).unwrap();
        log.write(Stream::Stdout, 0, b"back\n");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(" system D ") && text.ends_with(" stdout F back\n"), "{text}");
    }

    #[test]
    fn refuses_what_is_no_regular_file() {
        assert!(ContainerLog::open("relative", 0, 0).is_err());
        assert!(ContainerLog::open("/dev/null", 0, 0).is_err());
    }
}
