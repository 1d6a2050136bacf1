//! One process in the guest: its streams, its log, its clients, its exit.
use crate::client::Client;
use crate::container_log::{ContainerLog, Stream};
use crate::stdio::Sink;
use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{watch, Mutex, Notify};

/// A client that took no byte for so long is stalled: the exit no longer waits for it.
const STALL: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessKey {
    pub container_id: String,
    /// Empty for the container's init process.
    pub exec_id: String,
}

impl std::fmt::Display for ProcessKey {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self.exec_id.as_str() {
            "" => write!(out, "container {}", self.container_id),
            exec_id => write!(out, "process {exec_id} of container {}", self.container_id),
        }
    }
}

/// How a process ended, as the journal and the exit frame tell it.
#[derive(Debug, Clone, Default)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub code: i32,
    pub signal: u32,
    pub oom: bool,
    pub cause: String,
    pub evidence: String,
}

/// One output stream on its way from the guest.
pub struct Output {
    /// Bytes read from the guest, and bytes logged and handed to every client.
    pub read: Cell<u64>,
    pub delivered: Cell<u64>,
    /// The guest closed it, or it never was opened.
    pub ended: Cell<bool>,
    /// When the write to a client began that is under way.
    pub blocked_since: Cell<Option<Instant>>,
    /// Bytes that the agent announced for the process itself; a descendant's may follow.
    announced: Cell<Option<u64>>,
}

impl Output {
    fn new(open: bool) -> Self {
        Output {
            read: Cell::new(0),
            delivered: Cell::new(0),
            ended: Cell::new(!open),
            blocked_since: Cell::new(None),
            announced: Cell::new(None),
        }
    }

    /// From the exit on: how many bytes belong to the process. `u64::MAX`: everything up to the stream's end.
    pub fn announce(&self, bytes: u64) {
        self.announced.set(Some(bytes));
    }

    /// Every byte of the process is logged and with its clients.
    pub fn is_settled(&self) -> bool {
        self.ended.get() || self.announced.get().is_some_and(|announced| self.delivered.get() >= announced)
    }

    pub fn is_stalled(&self) -> bool {
        self.blocked_since.get().is_some_and(|since| since.elapsed() >= STALL)
    }
}

pub struct Process {
    pub key: ProcessKey,
    pub outputs: [Output; 2],
    /// The guest's end of stdin; `None` once closed or without stdin.
    stdin: Mutex<Option<OwnedWriteHalf>>,
    pub has_stdin: bool,
    pub stdin_once: bool,
    pub log: RefCell<Option<ContainerLog>>,
    pub clients: RefCell<Vec<Rc<Client>>>,
    /// containerd's ends of the outputs; closed when every byte is written and the process, or the stream, has ended.
    sinks: [RefCell<Option<Rc<Sink>>>; 2],
    /// What holds containerd's input open until it is closed.
    pub input_keep: RefCell<Option<Rc<RefCell<Option<OwnedFd>>>>>,
    /// Whether output waits for the first client.
    pub held: watch::Sender<bool>,
    /// Something moved: bytes were delivered, a stream ended.
    pub progress: Notify,
    pub exit: watch::Sender<Option<Rc<Exit>>>,
    pub exited_at: Cell<Option<Instant>>,
    /// The number of the exit's journal entry.
    pub exit_sequence: Cell<u64>,
    /// The container was removed: an agent that no longer knows the process is right.
    pub removed: Cell<bool>,
}

/// What CreateProcess decided about a process.
pub struct Options {
    pub stdin: Option<OwnedWriteHalf>,
    pub stdin_once: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub log: Option<ContainerLog>,
    pub hold: bool,
    pub sinks: [Option<Sink>; 2],
}

impl Process {
    pub fn new(key: ProcessKey, options: Options) -> Rc<Self> {
        Rc::new(Process {
            key,
            outputs: [Output::new(options.stdout), Output::new(options.stderr)],
            has_stdin: options.stdin.is_some(),
            stdin: Mutex::new(options.stdin),
            stdin_once: options.stdin_once,
            log: RefCell::new(options.log),
            clients: RefCell::new(Vec::new()),
            sinks: options.sinks.map(|sink| RefCell::new(sink.map(Rc::new))),
            input_keep: RefCell::default(),
            held: watch::Sender::new(options.hold),
            progress: Notify::new(),
            exit: watch::Sender::new(None),
            exited_at: Cell::new(None),
            exit_sequence: Cell::new(0),
            removed: Cell::new(false),
        })
    }

    #[cfg(test)]
    pub fn for_test() -> Rc<Self> {
        let key = ProcessKey { container_id: "c".into(), exec_id: String::new() };
        Process::new(
            key,
            Options {
                stdin: None,
                stdin_once: false,
                stdout: true,
                stderr: true,
                log: None,
                hold: false,
                sinks: [None, None],
            },
        )
    }

    pub fn output(&self, stream: Stream) -> &Output {
        &self.outputs[stream as usize]
    }

    pub fn sink(&self, stream: Stream) -> Option<Rc<Sink>> {
        self.sinks[stream as usize].borrow().clone()
    }

    /// The other side sees the stream's end when the last writer has let go, too.
    pub fn close_sink(&self, stream: Stream) {
        *self.sinks[stream as usize].borrow_mut() = None;
    }

    pub fn dropped_lines(&self) -> u64 {
        self.log.borrow().as_ref().map_or(0, ContainerLog::dropped_lines)
    }

    pub fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Completes when the exit is journaled.
    pub async fn wait_exit(&self) {
        let mut exit = self.exit.subscribe();
        let _ = exit.wait_for(Option::is_some).await;
    }

    /// Writes to the process's stdin; bytes for a closed one are dropped, as a closed pipe's are.
    pub async fn write_stdin(&self, bytes: &[u8]) {
        let mut stdin = self.stdin.lock().await;
        if let Some(stream) = stdin.as_mut() {
            if stream.write_all(bytes).await.is_err() {
                *stdin = None;
            }
        }
    }

    /// Ends the process's stdin; dropping the write half shuts the stream down in that direction.
    pub async fn close_stdin(&self) {
        *self.stdin.lock().await = None;
    }

    /// Sends the exit to every client whose streams are complete and lets it go.
    pub fn dismiss_clients(&self) {
        let Some(exit) = self.exit.borrow().clone() else { return };
        self.clients.borrow_mut().retain(|client| {
            let complete =
                Stream::BOTH.iter().all(|stream| !client.wants(*stream) || self.output(*stream).is_settled());
            if complete {
                client.finish(Rc::clone(&exit));
            }
            !complete
        });
    }

    /// A byte went on, a stream ended, or the exit is known.
    pub fn moved(&self) {
        self.progress.notify_waiters();
        self.dismiss_clients();
        for stream in Stream::BOTH {
            let output = self.output(stream);
            if output.ended.get() || (self.has_exited() && output.is_settled()) {
                self.close_sink(stream);
            }
        }
    }
}
