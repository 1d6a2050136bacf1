//! One output of a process: the reading side of its pipe, or its terminal's master.
//!
//! What the process itself wrote is known exactly at the moment it is reaped: what has been taken from the descriptor so
//! far, plus what is still inside. A pipe tells that number without being read. A terminal does not: its line discipline
//! passes bytes on in the background, and a read that would block is the proof that nothing is left (n_tty_read flushes
//! that work first), so it is read dry into memory. What descendants write afterwards comes after those bytes.
#[cfg(test)]
mod tests;

use crate::log;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// One read, and one packet of vsock at most.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Larger than the kernel's 64 KiB: fewer wake-ups for a process that writes much.
pub const PIPE_BYTES: usize = 256 << 10;
/// A terminal that descendants keep writing to is read dry up to here when the process ends.
const MAX_TERMINAL_BACKLOG_BYTES: usize = 1 << 20;
/// How long bytes of a removed container wait for a host that does not read.
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);

thread_local! {
    static CHUNK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends a buffer of `CHUNK_BYTES`. The agent has one thread: no two reads overlap, so all streams share it. One of their
/// own would be mapped, touched page by page and unmapped again for each read.
pub fn with_chunk<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    CHUNK.with_borrow_mut(|chunk| {
        chunk.resize(CHUNK_BYTES, 0);
        work(chunk)
    })
}

pub type Descriptor = Rc<AsyncFd<OwnedFd>>;

pub struct Output {
    descriptor: Descriptor,
    terminal: bool,
    /// Taken from the descriptor so far.
    taken_bytes: Cell<u64>,
    /// Fixed when the process is reaped.
    own_bytes: Cell<Option<u64>>,
    /// Every writer is gone and everything has been taken.
    ended: Cell<bool>,
    /// Taken and not delivered yet.
    backlog: RefCell<VecDeque<u8>>,
    delivered_bytes: Cell<u64>,
    changed: Notify,
}

impl Output {
    pub fn new(descriptor: Descriptor, terminal: bool) -> Rc<Self> {
        Rc::new(Self {
            descriptor,
            terminal,
            taken_bytes: Cell::new(0),
            own_bytes: Cell::new(None),
            ended: Cell::new(false),
            backlog: RefCell::default(),
            delivered_bytes: Cell::new(0),
            changed: Notify::new(),
        })
    }

    /// To be called when the process has been reaped; gives the number of bytes that are its own.
    pub fn fix_own_bytes(&self) -> u64 {
        if self.terminal {
            self.read_dry();
        }
        let inside = if self.terminal { 0 } else { unread_bytes(self.descriptor.as_raw_fd()) };
        let own = self.taken_bytes.get() + inside;
        self.own_bytes.set(Some(own));
        self.changed.notify_waiters();
        own
    }

    fn read_dry(&self) {
        while self.backlog.borrow().len() < MAX_TERMINAL_BACKLOG_BYTES {
            let taken = self.take(CHUNK_BYTES, |bytes| self.backlog.borrow_mut().extend(bytes));
            match taken {
                Ok(count) if count > 0 => {}
                _ => return,
            }
        }
    }

    /// Reads at most `limit` bytes without waiting; 0 is the end.
    fn take(&self, limit: usize, consume: impl FnOnce(&[u8])) -> io::Result<usize> {
        with_chunk(|chunk| {
            let wanted = limit.min(CHUNK_BYTES);
            let count = loop {
                // SAFETY: the buffer has at least `wanted` bytes.
                let count = unsafe { libc::read(self.descriptor.as_raw_fd(), chunk.as_mut_ptr().cast(), wanted) };
                match (usize::try_from(count), io::Error::last_os_error()) {
                    (Ok(count), _) => break count,
                    (Err(_), error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // A terminal whose last user has closed it.
                    (Err(_), error) if error.raw_os_error() == Some(libc::EIO) => break 0,
                    (Err(_), error) => return Err(error),
                }
            };
            if count == 0 {
                self.ended.set(true);
            }
            self.taken_bytes.set(self.taken_bytes.get() + count as u64);
            consume(&chunk[..count]);
            Ok(count)
        })
    }

    /// Waits until there is something to take, the end included, or the output's state changed.
    async fn changed_or_readable(&self) {
        let changed = self.changed.notified();
        tokio::select! {
            () = changed => {}
            _ = self.descriptor.ready(Interest::READABLE) => {}
        }
    }

    /// Runs a read that may have nothing yet, keeping tokio's idea of readiness right.
    fn try_take(&self, limit: usize, consume: impl FnOnce(&[u8])) -> Option<usize> {
        match self.descriptor.try_io(Interest::READABLE, |_| self.take(limit, consume)) {
            Ok(count) => Some(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                log::warning!("stdio", "read: {error}");
                self.ended.set(true);
                Some(0)
            }
        }
    }

    /// ReadStdout and ReadStderr: waits for bytes; empty at the end of the process's own output.
    pub async fn read(&self, limit: usize) -> Vec<u8> {
        loop {
            let changed = self.changed.notified();
            if let Some(bytes) = self.read_now(limit) {
                self.delivered_bytes.set(self.delivered_bytes.get() + bytes.len() as u64);
                self.changed.notify_waiters();
                return bytes;
            }
            tokio::select! {
                () = changed => {}
                _ = self.descriptor.ready(Interest::READABLE) => {}
            }
        }
    }

    fn read_now(&self, limit: usize) -> Option<Vec<u8>> {
        let mut limit = limit;
        if let Some(own) = self.own_bytes.get() {
            let left = own.saturating_sub(self.delivered_bytes.get());
            limit = limit.min(usize::try_from(left).unwrap_or(usize::MAX));
            if limit == 0 {
                return Some(Vec::new());
            }
        }
        let mut backlog = self.backlog.borrow_mut();
        if !backlog.is_empty() {
            let count = limit.min(backlog.len());
            let bytes = backlog.drain(..count).collect();
            if backlog.is_empty() {
                *backlog = VecDeque::new();
            }
            return Some(bytes);
        }
        if self.ended.get() {
            return Some(Vec::new());
        }
        drop(backlog);
        let mut bytes = Vec::new();
        while bytes.len() < limit {
            let taken = self.try_take(limit - bytes.len(), |chunk| {
                if bytes.is_empty() {
                    // Growing step by step would copy, and touch new pages each time.
                    let rest = usize::try_from(unread_bytes(self.descriptor.as_raw_fd())).unwrap_or(0);
                    bytes.reserve_exact((chunk.len() + rest).min(limit));
                }
                bytes.extend_from_slice(chunk);
            });
            match taken {
                Some(count) if count > 0 => {}
                None if bytes.is_empty() => return None,
                _ => break,
            }
        }
        Some(bytes)
    }

    /// Sends everything to the host until the last writer is gone, then half-closes. A host that closes its end does
    /// not stop the process: what it writes from then on is thrown away.
    pub async fn pump(&self, mut stream: UnixStream, removed: Rc<Notify>) {
        let sending = self.send_all(&mut stream);
        tokio::select! {
            result = sending => match result {
                Ok(()) => {
                    let _ = stream.shutdown().await;
                    return;
                }
                Err(error) => log::debug!("stdio", "the host closed a stream: {error}"),
            },
            () = linger(&removed) => return log::warning!("stdio", "stream of a removed container closed: the host does not read"),
        }
        drop(stream);
        tokio::select! {
            () = self.discard() => {}
            () = linger(&removed) => {}
        }
    }

    async fn send_all(&self, stream: &mut UnixStream) -> io::Result<()> {
        loop {
            self.flush_backlog(stream).await?;
            if self.ended.get() {
                return Ok(());
            }
            let mut failure = None;
            let taken = self.try_take(CHUNK_BYTES, |chunk| {
                // What the connection does not take at once waits in memory; nothing more is read until it has gone.
                let sent = match stream.try_write(chunk) {
                    Ok(sent) => sent,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                    Err(error) => {
                        failure = Some(error);
                        return;
                    }
                };
                self.backlog.borrow_mut().extend(&chunk[sent..]);
            });
            match (failure, taken) {
                (Some(error), _) => return Err(error),
                (None, Some(_)) => {}
                (None, None) => self.changed_or_readable().await,
            }
        }
    }

    async fn flush_backlog(&self, stream: &UnixStream) -> io::Result<()> {
        while !self.backlog.borrow().is_empty() {
            stream.writable().await?;
            let mut backlog = self.backlog.borrow_mut();
            match stream.try_write(backlog.as_slices().0) {
                Ok(sent) => {
                    backlog.drain(..sent);
                    if backlog.is_empty() {
                        *backlog = VecDeque::new();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads and throws away until the last writer is gone, so that a writer never blocks on a reader that is not there.
    async fn discard(&self) {
        self.backlog.borrow_mut().clear();
        while !self.ended.get() {
            if self.try_take(CHUNK_BYTES, |_| {}).is_none() {
                self.changed_or_readable().await;
            }
        }
    }

    /// For an output without stream connection: lets descendants of an ended process go on writing once the host has
    /// read all that was the process's own.
    pub async fn discard_after_own(&self) {
        loop {
            let delivered = self.own_bytes.get().is_some_and(|own| self.delivered_bytes.get() >= own);
            if self.ended.get() {
                return;
            }
            if delivered {
                return self.discard().await;
            }
            self.changed.notified().await;
        }
    }
}

async fn linger(removed: &Notify) {
    removed.notified().await;
    tokio::time::sleep(LINGER_TIMEOUT).await;
}

/// FIONREAD: exact for a pipe, what has been processed so far for a terminal.
fn unread_bytes(fd: libc::c_int) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    let done = unsafe { libc::ioctl(fd, libc::FIONREAD as _, &raw mut count) };
    if done < 0 {
        log::warning!("stdio", "FIONREAD: {}", io::Error::last_os_error());
        return 0;
    }
    u64::try_from(count).unwrap_or(0)
}
