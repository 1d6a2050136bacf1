//! Diagnostic output that must never grow without bound nor hold anything up: one file and one older generation (`.1`).
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub struct BoundedFile {
    path: PathBuf,
    max_bytes: u64,
    file: Option<File>,
    size: u64,
}

/// `<path>.1`, the older generation.
fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

impl BoundedFile {
    /// Writes to `path` (created with mode 0600 on the first write); at `max_bytes` it becomes `<path>.1`.
    pub fn new(path: PathBuf, max_bytes: u64) -> Self {
        BoundedFile { path, max_bytes, file: None, size: 0 }
    }

    /// Appends; what the file system refuses is lost, since nobody who writes here can wait or fail.
    pub fn write(&mut self, bytes: &[u8]) {
        let keep = bytes.len().min(self.max_bytes as usize);
        let bytes = &bytes[bytes.len() - keep..];
        if self.size + bytes.len() as u64 > self.max_bytes && self.file.is_some() {
            self.file = None;
            let _ = fs::rename(&self.path, older(&self.path));
        }
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            self.file = options.open(&self.path).ok();
            self.size = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
        }
        if let Some(file) = &mut self.file {
            if file.write_all(bytes).is_ok() {
                self.size += bytes.len() as u64;
            }
        }
    }
}

/// The last `max_bytes` bytes of `path` and its older generation; empty when there are none.
pub fn tail(path: &Path, max_bytes: u64) -> Vec<u8> {
    let current = read_end(path, max_bytes);
    let missing = max_bytes - current.len() as u64;
    let mut text = if missing > 0 { read_end(&older(path), missing) } else { Vec::new() };
    text.extend_from_slice(&current);
    text
}

fn read_end(path: &Path, max_bytes: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        let from = size.saturating_sub(max_bytes);
        if file.seek(SeekFrom::Start(from)).is_ok() {
            let _ = file.take(max_bytes).read_to_end(&mut bytes);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_two_generations() {
        let dir = crate::testing::TempDir::new();
        let path = dir.path().join("x.log");
        let mut file = BoundedFile::new(path.clone(), 100);
        for number in 0..100 {
            file.write(format!("line {number:03}\n").as_bytes());
        }
        file.write(&[b'z'; 150]);
        file.write(b"end\n");
        let total: u64 = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(total <= 200, "{total}");
        assert!(tail(&path, 10).ends_with(b"zend\n"));
        assert_eq!(tail(&path, 10).len(), 10);
    }
}
