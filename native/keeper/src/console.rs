//! The guest's serial console: the VMM connects to `<dir>/console.sock` as a client; the keeper writes `console.log`.
use crate::bounded_file::BoundedFile;
use crate::ending;
use crate::keeper::Keeper;
use crate::text;
use kata_protocol::keeper::JournalEntry;
use std::rc::Rc;
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};

const LOG_BYTES: u64 = 1024 * 1024;
/// A panic line's beginning is enough to recognise and show it.
const LINE_BYTES: usize = 512;
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// Takes the VMM's console connection, and a new one when the VMM was started again.
pub async fn serve(keeper: Rc<Keeper>, listener: UnixListener) {
    let mut log = BoundedFile::new(keeper.dir.join("console.log"), LOG_BYTES);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                keeper.console_open.send_replace(true);
                read(&keeper, stream, &mut log).await;
                keeper.console_open.send_replace(false);
            }
            Err(error) => {
                keeper.note(&format!("console.sock: {error}"));
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

async fn read(keeper: &Rc<Keeper>, mut stream: UnixStream, log: &mut BoundedFile) {
    let mut scanner = PanicScanner::default();
    let mut buffer = [0; 2048];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        log.write(&buffer[..count]);
        if let Some(line) = scanner.feed(&buffer[..count]) {
            if keeper.panic.borrow().is_none() && keeper.end_now().is_none() {
                let entry = JournalEntry { kind: "guest-panic".into(), evidence: line.clone(), ..Default::default() };
                keeper.record(entry);
                keeper.panic.send_replace(Some(line.clone()));
                tokio::task::spawn_local(ending::watch_panic(Rc::clone(keeper), line));
            }
        }
    }
}

#[derive(Default)]
struct PanicScanner {
    line: Vec<u8>,
}

impl PanicScanner {
    /// Takes console output as it comes and gives the first panic line, escaped, once it is whole or long enough.
    fn feed(&mut self, bytes: &[u8]) -> Option<String> {
        for byte in bytes {
            if *byte != b'\n' && *byte != b'\r' {
                if self.line.len() < LINE_BYTES {
                    self.line.push(*byte);
                }
                continue;
            }
            let found = self.line.windows(PANIC.len()).any(|window| window == PANIC);
            let line = std::mem::take(&mut self.line);
            if found {
                return Some(text::escape(&line));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_panic_across_reads() {
        let mut scanner = PanicScanner::default();
        assert_eq!(scanner.feed(b"[ 0.1] hello\r\n[ 1.2] Kernel pa"), None);
        let line = scanner.feed(b"nic - not syncing: Attempted to kill init!\x1b[0m\r\n").unwrap();
        assert_eq!(line, "[ 1.2] Kernel panic - not syncing: Attempted to kill init!\\x1b[0m");
        assert_eq!(scanner.feed(b"Kernel panic\n"), None);
        assert_eq!(scanner.feed(&vec![b'x'; 100_000]), None);
        assert!(scanner.line.len() <= LINE_BYTES);
    }
}
