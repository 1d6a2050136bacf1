//! The sandbox's journal: what happened, in order, on a file that survives the keeper (docs/ARCHITECTURE.md, "Journal").
//!
//! No fsync: the directory lies on a tmpfs and the journal's reader is another process, not another boot.
use crate::json::Writer;
use kata_protocol::clock;
use kata_protocol::keeper::JournalEntry;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use tokio::sync::watch;

/// The file is rewritten without its acknowledged lines once it is larger than this.
const ROTATE_BYTES: u64 = 256 * 1024;
/// Entries that nobody acknowledged; over it only exits are still taken.
const MAX_ENTRIES: usize = 4096;
/// One answer's size stays far below ttrpc's limit.
const MAX_ANSWER_ENTRIES: usize = 256;

pub struct Journal {
    path: PathBuf,
    file: File,
    size: u64,
    /// A line is missing from the file: the next append writes the file anew.
    behind: bool,
    entries: VecDeque<JournalEntry>,
    last: watch::Sender<u64>,
}

impl Journal {
    pub fn create(path: PathBuf) -> io::Result<Self> {
        let file = open(&path, true)?;
        Ok(Journal { path, file, size: 0, behind: false, entries: VecDeque::new(), last: watch::Sender::new(0) })
    }

    /// Numbers, dates, writes and announces an entry. `Err` says that the file could not take it (it is told all the same).
    pub fn append(&mut self, mut entry: JournalEntry) -> io::Result<()> {
        if self.entries.len() >= MAX_ENTRIES && entry.kind != "exit" {
            return Err(io::Error::other("the engine acknowledges nothing; the entry was dropped"));
        }
        entry.sequence = *self.last.borrow() + 1;
        entry.at_unix_nanos = clock::unix_nanos();
        let sequence = entry.sequence;
        let text = line(&entry);
        self.entries.push_back(entry);
        let written = if self.behind { self.rewrite() } else { self.write_line(&text) };
        self.behind = written.is_err();
        self.last.send_replace(sequence);
        written
    }

    fn write_line(&mut self, text: &str) -> io::Result<()> {
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            self.file.set_len(self.size)?;
            return Err(error);
        }
        self.size += text.len() as u64;
        Ok(())
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let temporary = self.path.with_extension("jsonl.new");
        let mut file = open(&temporary, true)?;
        let text: String = self.entries.iter().map(line).collect();
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, &self.path)?;
        self.size = text.len() as u64;
        self.file = file;
        Ok(())
    }

    /// Forgets the entries up to and including `sequence`.
    pub fn acknowledge(&mut self, sequence: u64) -> io::Result<()> {
        while self.entries.front().is_some_and(|entry| entry.sequence <= sequence) {
            self.entries.pop_front();
        }
        if self.size > ROTATE_BYTES {
            self.rewrite()?;
        }
        Ok(())
    }

    /// The first entries after `sequence`, at most as many as fit an answer.
    pub fn after(&self, sequence: u64) -> Vec<JournalEntry> {
        self.entries.iter().filter(|entry| entry.sequence > sequence).take(MAX_ANSWER_ENTRIES).cloned().collect()
    }

    pub fn last_sequence(&self) -> u64 {
        *self.last.borrow()
    }

    /// The oldest sequence that is not acknowledged, or the next one.
    pub fn first_sequence(&self) -> u64 {
        self.entries.front().map_or(self.last_sequence() + 1, |entry| entry.sequence)
    }

    pub fn is_told(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }
}

fn open(path: &std::path::Path, truncate: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(truncate).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_APPEND);
    options.open(path)
}

fn line(entry: &JournalEntry) -> String {
    let mut writer = Writer::object().string("sequence", &entry.sequence.to_string()).string("kind", &entry.kind);
    writer = writer.string("at_unix_nanos", &entry.at_unix_nanos.to_string());
    for (name, value) in [
        ("container_id", &entry.container_id),
        ("exec_id", &entry.exec_id),
        ("cause", &entry.cause),
        ("evidence", &entry.evidence),
        ("process", &entry.process),
    ] {
        if !value.is_empty() {
            writer = writer.string(name, value);
        }
    }
    for (name, value) in [
        ("status", i64::from(entry.status)),
        ("signal", i64::from(entry.signal)),
        ("wait_status", i64::from(entry.wait_status)),
        ("dropped_lines", entry.dropped_lines as i64),
    ] {
        if value != 0 {
            writer = writer.raw(name, value);
        }
    }
    if entry.oom_killed {
        writer = writer.raw("oom_killed", true);
    }
    writer.end() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(id: &str) -> JournalEntry {
        JournalEntry {
            kind: "exit".into(),
            container_id: id.into(),
            status: 137,
            cause: "oom".into(),
            oom_killed: true,
            ..Default::default()
        }
    }

    #[test]
    fn numbers_writes_and_forgets() {
        let dir = crate::testing::TempDir::new();
        let path = dir.path().join("journal.jsonl");
        let mut journal = Journal::create(path.clone()).unwrap();
        journal.append(exit("a")).unwrap();
        journal.append(exit("b\n")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with("{\"sequence\":\"1\",\"kind\":\"exit\",\"at_unix_nanos\":\"1"), "{text}");
        assert!(text.contains("\"status\":137") && text.contains("\"oom_killed\":true") && !text.contains("signal"));
        assert_eq!(journal.after(1).len(), 1);
        journal.acknowledge(1).unwrap();
        assert_eq!((journal.after(0).len(), journal.last_sequence(), journal.is_told()), (1, 2, false));
        journal.acknowledge(2).unwrap();
        assert!(journal.is_told());
    }

    #[test]
    fn cuts_the_file_when_it_is_large_and_acknowledged() {
        let dir = crate::testing::TempDir::new();
        let path = dir.path().join("journal.jsonl");
        let mut journal = Journal::create(path.clone()).unwrap();
        for _ in 0..3000 {
            journal.append(exit("0123456789")).unwrap();
        }
        assert!(fs::metadata(&path).unwrap().len() > ROTATE_BYTES);
        journal.acknowledge(2999).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
        journal.append(exit("last")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn takes_exits_but_not_events_when_nobody_acknowledges() {
        let dir = crate::testing::TempDir::new();
        let mut journal = Journal::create(dir.path().join("j")).unwrap();
        for _ in 0..MAX_ENTRIES {
            journal.append(exit("x")).unwrap();
        }
        assert!(journal.append(JournalEntry { kind: "oom".into(), ..Default::default() }).is_err());
        journal.append(exit("x")).unwrap();
        assert_eq!(journal.last_sequence(), MAX_ENTRIES as u64 + 1);
    }
}
