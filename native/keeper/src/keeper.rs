//! What one keeper knows about its sandbox. One thread: every part borrows briefly and never across an await.
use crate::bounded_file::BoundedFile;
use crate::card::Card;
use crate::config::{Config, EngineStart};
use crate::door::Door;
use crate::journal::Journal;
use crate::netns::Netns;
use crate::network::Network;
use crate::operations::Operations;
use crate::process::{Process, ProcessKey};
use crate::share::Shares;
use crate::spawn::Spawned;
use crate::text;
use crate::tokens::Tokens;
use crate::vsock::GuestVsock;
use kata_protocol::agent_ext::ReadyMessage;
use kata_protocol::clock;
use kata_protocol::keeper::JournalEntry;
use kata_protocol::ttrpc::Client;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use tokio::sync::watch;

/// How the sandbox ended; the first end seen stays.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// As `JournalEntry.cause`.
    pub cause: String,
    pub evidence: String,
    /// The process whose death it was, and its wait status.
    pub process: String,
    pub wait_status: i32,
}

#[derive(Clone)]
pub struct Agent {
    pub client: Client,
    pub ready: Rc<ReadyMessage>,
}

#[derive(Clone)]
pub enum AgentState {
    Waiting,
    Connected(Agent),
    /// The agent said that it could not come up, or what it said was not understood.
    Failed(String),
}

pub struct Keeper {
    pub config: Config,
    pub dir: PathBuf,
    /// The mount namespace of the keeper's caller, in which an engine is started and the host's paths are looked up. containerd's may
    /// be another one after it was started again.
    pub host_mounts: RefCell<OwnedFd>,
    /// As the configuration says, or the newest engine did.
    pub engine: RefCell<EngineStart>,
    /// Where containerd calls; `None` for a sandbox of the engine's own.
    pub door: Option<Door>,
    /// The groups that the keeper is in.
    pub cgroups: RefCell<Vec<PathBuf>>,
    pub netns: RefCell<Option<Netns>>,
    pub log: RefCell<BoundedFile>,
    pub journal: RefCell<Journal>,
    pub vsock: GuestVsock,
    pub spawned: RefCell<Vec<Rc<Spawned>>>,
    /// Names whose spawn is under way.
    pub spawning: RefCell<BTreeSet<String>>,
    pub memory: RefCell<BTreeMap<String, OwnedFd>>,
    pub shares: RefCell<Shares>,
    pub network: Network,
    /// Of a sandbox on a network of the engine's.
    pub card: RefCell<Option<Card>>,
    /// Passed-through calls that are made once.
    pub operations: Operations,
    pub processes: RefCell<BTreeMap<ProcessKey, Rc<Process>>>,
    /// Keys whose creation is under way.
    pub creating: RefCell<BTreeSet<ProcessKey>>,
    pub tokens: RefCell<Tokens>,
    pub clients: Cell<usize>,
    /// Containers whose cgroup reported an out-of-memory kill.
    pub oom: RefCell<BTreeSet<String>>,
    pub agent: watch::Sender<AgentState>,
    /// The serialised ReadyMessage, and microseconds from the VMM's start to its arrival.
    pub ready: RefCell<(Vec<u8>, u64)>,
    /// The console's line that told a kernel panic.
    pub panic: watch::Sender<Option<String>>,
    pub console_open: watch::Sender<bool>,
    pub end: watch::Sender<Option<Rc<End>>>,
    /// Everything of an ended sandbox is given back and its exits are journaled.
    pub released: watch::Sender<bool>,
    /// Live engine connections that agreed on a version.
    pub engines: watch::Sender<usize>,
    pub stop: watch::Sender<bool>,
}

impl Keeper {
    /// A line of `keeper.log`.
    pub fn note(&self, message: &str) {
        let mut line = Vec::with_capacity(message.len() + 40);
        line.extend_from_slice(&clock::rfc3339(clock::unix_nanos()));
        line.push(b' ');
        line.extend_from_slice(text::escape(message.as_bytes()).replace('\n', "\\n").as_bytes());
        line.push(b'\n');
        self.log.borrow_mut().write(&line);
    }

    /// Journals an entry; a full disk is noted, the entry is told from memory all the same.
    pub fn record(&self, entry: JournalEntry) {
        let summary =
            format!("{} {}{} {} {}", entry.kind, entry.container_id, entry.process, entry.cause, entry.evidence);
        if let Err(error) = self.journal.borrow_mut().append(entry) {
            self.note(&format!("journal.jsonl: {error}"));
        }
        self.note(&format!("journal: {summary}"));
    }

    pub fn end_now(&self) -> Option<Rc<End>> {
        self.end.borrow().clone()
    }

    pub async fn wait_end(&self) -> Rc<End> {
        let mut end = self.end.subscribe();
        loop {
            if let Some(end) = end.borrow_and_update().clone() {
                return end;
            }
            if end.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub fn find_spawned(&self, name: &str) -> Option<Rc<Spawned>> {
        self.spawned.borrow().iter().rev().find(|process| process.name == name).cloned()
    }

    /// Whether there is something for an engine to do: containerd may call, or the VMM or a helper that the sandbox needs is
    /// running.
    pub fn lives(&self) -> bool {
        if let Some(door) = &self.door {
            return !door.closed.get();
        }
        self.end.borrow().is_none() && self.spawned.borrow().iter().any(|process| process.essential && process.runs())
    }
}
