//! The task socket: what containerd calls is held here until an engine answers (docs/ARCHITECTURE.md, "The containerd door").
mod calls;

use crate::accept;
use crate::keeper::Keeper;
use crate::shim::places::{self, Lock};
use crate::shutdown::{self, ORPHAN_BOUND};
use crate::sys;
use calls::Calls;
use kata_protocol::envelope::{Request, Status};
use kata_protocol::keeper::{AnswerCallRequest, NextCallsResponse, ShutdownRequest};
use kata_protocol::ttrpc::{self, status, Code, Handler, HandlerFuture, Limits, MAX_MESSAGE_BYTES};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;

pub use calls::Seat;

const SERVICES: [&str; 3] =
    ["containerd.task.v2.Task", "containerd.task.v3.Task", "containerd.runtime.sandbox.v1.Sandbox"];
/// containerd keeps one connection for each task.
const MAX_CONNECTIONS: usize = 1024;
const LOCK_BOUND: Duration = Duration::from_secs(5);
const MAX_METHOD_BYTES: usize = 64;
const LIMITS: Limits = Limits { calls: calls::MAX_CALLS, request_bytes: 4 * MAX_MESSAGE_BYTES };
pub const MAX_POLL: Duration = Duration::from_secs(60);

pub struct Door {
    calls: Rc<Calls>,
    /// How many calls ever came.
    pub came: watch::Sender<u64>,
    pub connections: watch::Sender<usize>,
    /// Nobody is served any more: the sandbox was shut down.
    pub closed: Cell<bool>,
    /// Why no engine is there, as far as it is known.
    pub trouble: RefCell<String>,
}

impl Door {
    pub fn new() -> Self {
        Door {
            calls: Calls::new(),
            came: watch::Sender::new(0),
            connections: watch::Sender::new(0),
            closed: Cell::new(false),
            trouble: RefCell::default(),
        }
    }

    pub fn seat(&self) -> Seat {
        self.calls.seat()
    }

    pub fn answer(&self, request: AnswerCallRequest) {
        self.calls.answer(request);
    }
}

/// The door of a keeper that has one; an engine asks no other for calls.
pub fn of(keeper: &Keeper) -> Result<&Door, Status> {
    keeper.door.as_ref().ok_or_else(|| status(Code::FailedPrecondition, "this sandbox has no task socket"))
}

pub async fn next(seat: Rc<Seat>, wait_ms: u32) -> NextCallsResponse {
    seat.next(Duration::from_millis(u64::from(wait_ms)).min(MAX_POLL)).await
}

pub async fn serve(keeper: Rc<Keeper>, listener: UnixListener) {
    accept::roots(keeper, "t.sock", listener, MAX_CONNECTIONS, serve_connection).await;
}

async fn serve_connection(keeper: Rc<Keeper>, stream: UnixStream) {
    let Ok(door) = of(&keeper) else { return };
    door.connections.send_modify(|connections| *connections += 1);
    follow_caller(&keeper, &stream);
    let handler = Rc::new(ContainerdHandler { keeper: Rc::clone(&keeper) });
    if let Err(error) = ttrpc::serve(stream, handler, LIMITS).await {
        keeper.note(&format!("t.sock: {error}"));
    }
    door.connections.send_modify(|connections| *connections -= 1);
}

/// What is mounted later in a containerd that was started again, with a mount namespace of its own, is seen there alone.
fn follow_caller(keeper: &Keeper, stream: &UnixStream) {
    let opened = sys::peer(stream.as_fd()).and_then(|(pid, _)| File::open(format!("/proc/{pid}/ns/mnt")));
    match opened {
        Ok(namespace) => drop(keeper.host_mounts.replace(namespace.into())),
        Err(error) => keeper.note(&format!("t.sock: the caller's mount namespace: {error}")),
    }
}

struct ContainerdHandler {
    keeper: Rc<Keeper>,
}

impl Handler for ContainerdHandler {
    fn call(&self, request: Request) -> HandlerFuture {
        let keeper = Rc::clone(&self.keeper);
        Box::pin(async move { hold(&keeper, request).await })
    }
}

async fn hold(keeper: &Keeper, request: Request) -> Result<Vec<u8>, Status> {
    let door = of(keeper)?;
    let Request { service, method, payload, .. } = request;
    let named =
        (1..=MAX_METHOD_BYTES).contains(&method.len()) && method.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !SERVICES.contains(&service.as_str()) || !named {
        let text = format!("{:.64}/{method:.64} is none of this sandbox's calls", service);
        return Err(status(Code::Unimplemented, text));
    }
    if door.closed.get() {
        return Err(status(Code::Unavailable, format!("{method}: the sandbox {} was shut down", keeper.config.uid)));
    }
    let caller = door.calls.open(service, method.clone(), payload)?;
    door.came.send_modify(|came| *came += 1);
    caller.answer().await.unwrap_or_else(|| Err(status(Code::Unavailable, no_engine(keeper, door, &method))))
}

/// Ends a keeper behind whose door nothing ever began: containerd's start failed after ours, or its call found no engine.
pub async fn watch_use(keeper: Rc<Keeper>) {
    let Ok(door) = of(&keeper) else { return };
    let mut connections = door.connections.subscribe();
    loop {
        if connections.wait_for(|connections| *connections == 0).await.is_err() {
            return;
        }
        if timeout(ORPHAN_BOUND, connections.wait_for(|connections| *connections > 0)).await.is_ok() {
            continue;
        }
        let unused = keeper.spawned.borrow().is_empty() && keeper.spawning.borrow().is_empty();
        let uncalled = *door.came.borrow() == 0;
        if unused && (uncalled || *keeper.engines.borrow() == 0) {
            keeper.note("nobody called for this sandbox");
            let _ = shutdown::run(&keeper, ShutdownRequest::default()).await;
            // Nobody else knows of it: containerd asks for no clean-up after a start that failed.
            if let Err(error) = forget(&keeper) {
                keeper.note(&format!("what is left of the sandbox: {error}"));
            }
            return;
        }
    }
}

fn forget(keeper: &Keeper) -> io::Result<()> {
    let _lock = Lock::take(&keeper.dir, LOCK_BOUND)?;
    // The keeper's own mounts are not the host's: there the directory holds mount points alone.
    let dir = keeper.dir.clone();
    sys::in_mount_namespace(keeper.host_mounts.borrow().as_fd(), move || places::forget(&dir))
        .and_then(|forgotten| forgotten)
}

/// What a person needs to get an engine again.
fn no_engine(keeper: &Keeper, door: &Door, method: &str) -> String {
    let engine = &keeper.engine.borrow().argv;
    let log = engine.iter().position(|word| word == "--log").and_then(|at| engine.get(at + 1));
    let trouble = door.trouble.borrow();
    let mut text = format!("{method}: no engine (katad) took the call in time");
    if !trouble.is_empty() {
        text.push_str(&format!(": {trouble}"));
    }
    text.push_str(&format!("; its socket is {}", keeper.config.engine_socket.display()));
    match log {
        Some(log) => text.push_str(&format!(", its log {log}")),
        None => text.push_str(", and this sandbox starts none"),
    }
    text
}
