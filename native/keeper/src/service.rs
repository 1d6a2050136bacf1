//! The control socket: the Keeper service of proto/keeper.proto, and the agent's services passed through.
use crate::accept;
use crate::agent::{self, AGENT_SERVICE, EXTENSION_SERVICE};
use crate::card;
use crate::cgroups;
use crate::create;
use crate::door;
use crate::engine;
use crate::failure;
use crate::keeper::{Agent, AgentState, Keeper};
use crate::look;
use crate::netns;
use crate::network;
use crate::operations;
use crate::shutdown;
use crate::spawn;
use crate::stdio;
use crate::supervise;
use crate::sys;
use kata_protocol::envelope::{Request, Status};
use kata_protocol::grpc::RemoveContainerRequest;
use kata_protocol::keeper::*;
use kata_protocol::ttrpc::{self, decode, status, Code, Handler, HandlerFuture, Limits};
use prost::Message;
use std::cell::{Cell, OnceCell};
use std::future::Future;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

const KEEPER_SERVICE: &str = "kata.keeper.v1.Keeper";
const PROTOCOL_VERSION: u32 = 1;
const MAX_CONNECTIONS: usize = 32;
const MAX_POLL: Duration = Duration::from_secs(60);
const MAX_TAIL_LINES: usize = 1000;
/// For a call that is passed through without a bound of its own.
const PASS_BOUND: Duration = Duration::from_secs(120);
/// Calls that the keeper alone makes.
const RESERVED: [&str; 7] =
    ["WaitProcess", "GetOOMEvent", "NextEvent", "WriteStdin", "ReadStdout", "ReadStderr", "CloseStdin"];

pub async fn serve(keeper: Rc<Keeper>, listener: UnixListener) {
    accept::roots(keeper, "k.sock", listener, MAX_CONNECTIONS, serve_connection).await;
}

async fn serve_connection(keeper: Rc<Keeper>, stream: UnixStream) {
    let greeted = Rc::new(Cell::new(false));
    let handler =
        Rc::new(EngineHandler { keeper: Rc::clone(&keeper), greeted: Rc::clone(&greeted), seat: OnceCell::new() });
    if let Err(error) = ttrpc::serve(stream, handler, Limits::default()).await {
        keeper.note(&format!("k.sock: {error}"));
    }
    if greeted.get() {
        keeper.engines.send_modify(|engines| *engines -= 1);
    }
}

struct EngineHandler {
    keeper: Rc<Keeper>,
    /// Whether this connection said Hello and agreed on a version.
    greeted: Rc<Cell<bool>>,
    /// This connection's place at the door, from its first NextCalls on.
    seat: OnceCell<Rc<door::Seat>>,
}

impl Handler for EngineHandler {
    fn call(&self, request: Request) -> HandlerFuture {
        let own = request.service == KEEPER_SERVICE;
        let hello = own && request.method == "Hello";
        if !self.greeted.get() && !hello {
            return refuse(status(Code::FailedPrecondition, "the first call of a connection is Keeper/Hello"));
        }
        if hello {
            let answer = decode(&request.payload).and_then(|hello| self.hello(hello));
            return Box::pin(std::future::ready(answer.map(|answer| answer.encode_to_vec())));
        }
        match request.service.as_str() {
            KEEPER_SERVICE if request.method == "NextCalls" => self.next_calls(&request.payload),
            KEEPER_SERVICE => own_call(Rc::clone(&self.keeper), &request.method, &request.payload),
            AGENT_SERVICE | EXTENSION_SERVICE | "grpc.Health" => detached(pass(Rc::clone(&self.keeper), request)),
            other => refuse(status(Code::Unimplemented, format!("service {other:?}"))),
        }
    }
}

impl EngineHandler {
    fn hello(&self, request: HelloRequest) -> Result<HelloResponse, Status> {
        let meets = (request.min_version..=request.max_version).contains(&PROTOCOL_VERSION);
        if meets && !self.greeted.replace(true) {
            engine::learn(&self.keeper, &request);
            self.keeper.engines.send_modify(|engines| *engines += 1);
            self.keeper.note(&format!("engine {} (pid {}) connected", request.engine_version, request.engine_pid));
        }
        let pid = std::process::id() as i32;
        let start_time_ticks =
            sys::start_time_ticks(pid).map_err(|error| failure::from_io("/proc/self/stat", &error))?;
        Ok(HelloResponse {
            version: if meets { PROTOCOL_VERSION } else { 0 },
            keeper_version: env!("CARGO_PKG_VERSION").to_owned(),
            sandbox_uid: self.keeper.config.uid.clone(),
            pid,
            start_time_ticks,
            guest_cid: self.keeper.vsock.cid(),
        })
    }
}

impl EngineHandler {
    /// Not detached: a poll ends with its connection, and so does its place at the door.
    fn next_calls(&self, payload: &[u8]) -> HandlerFuture {
        let seat = || door::of(&self.keeper).map(|door| Rc::clone(self.seat.get_or_init(|| Rc::new(door.seat()))));
        match decode::<NextCallsRequest>(payload).and_then(|request| Ok((request, seat()?))) {
            Ok((request, seat)) => Box::pin(async move { Ok(door::next(seat, request.wait_ms).await.encode_to_vec()) }),
            Err(refusal) => refuse(refusal),
        }
    }
}

fn refuse(refusal: Status) -> HandlerFuture {
    Box::pin(std::future::ready(Err(refusal)))
}

/// Runs work that must not stop half way when the engine goes: only its answer is lost then.
fn detached(work: impl Future<Output = Result<Vec<u8>, Status>> + 'static) -> HandlerFuture {
    let task = tokio::task::spawn_local(work);
    Box::pin(async move { task.await.unwrap_or_else(|_| Err(status(Code::Internal, "the call was dropped"))) })
}

/// Decodes, works, encodes.
fn answer<Q, R, F>(payload: &[u8], work: impl FnOnce(Q) -> F) -> HandlerFuture
where
    Q: Message + Default,
    R: Message,
    F: Future<Output = Result<R, Status>> + 'static,
{
    match decode(payload) {
        Ok(request) => {
            let work = work(request);
            detached(async move { work.await.map(|answer| answer.encode_to_vec()) })
        }
        Err(refusal) => refuse(refusal),
    }
}

/// The same for work that waits for nothing.
fn at_once<Q: Message + Default, R: Message>(
    payload: &[u8],
    work: impl FnOnce(Q) -> Result<R, Status>,
) -> HandlerFuture {
    let result = decode(payload).and_then(work);
    Box::pin(std::future::ready(result.map(|answer| answer.encode_to_vec())))
}

fn own_call(keeper: Rc<Keeper>, method: &str, payload: &[u8]) -> HandlerFuture {
    match method {
        "State" => at_once(payload, |_: StateRequest| Ok(state(&keeper))),
        "CreateMemory" => {
            at_once(payload, |request| spawn::create_memory(&keeper, request).map(|()| CreateMemoryResponse {}))
        }
        "Spawn" => answer(payload, |request| async move { spawn::spawn(&keeper, request).await }),
        "SignalSpawned" => at_once(payload, |request| spawn::signal_spawned(&keeper, request).map(|()| Empty {})),
        "Share" => at_once(payload, |request| share(&keeper, request)),
        "Unshare" => at_once(payload, |request: UnshareRequest| {
            keeper.shares.borrow_mut().remove(&request.id).map(|()| Empty {})
        }),
        "Look" => at_once(payload, |request| look::look(keeper.host_mounts.borrow().as_fd(), &request)),
        "AwaitAgent" => answer(payload, |request| async move { agent::await_agent(&keeper, request).await }),
        "CreateProcess" => answer(payload, |request| async move {
            create::create_process(&keeper, request).await.map(|()| CreateProcessResponse {})
        }),
        "ReadNetwork" => match decode(payload) {
            // Not detached: a poll ends with its connection.
            Ok(request) => {
                Box::pin(async move { network::read(&keeper, request).await.map(|answer| answer.encode_to_vec()) })
            }
            Err(refusal) => refuse(refusal),
        },
        "AttachTap" => at_once(payload, |request| network::attach(&keeper, request).map(|()| Empty {})),
        "DetachTap" => {
            at_once(payload, |request: DetachTapRequest| network::detach(&keeper, &request.tap).map(|()| Empty {}))
        }
        "OpenCard" => answer(payload, |request| async move { card::open(&keeper, request).await }),
        "CloseStdin" => answer(payload, |request: CloseStdinRequest| async move {
            stdio::close_stdin(&keeper, request.container_id, request.exec_id).await.map(|()| Empty {})
        }),
        "OpenStream" => at_once(payload, |request| create::open_token(&keeper, request)),
        "NextEntries" => match decode(payload) {
            // Not detached: a poll ends with its connection.
            Ok(request) => Box::pin(async move { Ok(next_entries(&keeper, request).await.encode_to_vec()) }),
            Err(refusal) => refuse(refusal),
        },
        "AckEntries" => at_once(payload, |request: AckEntriesRequest| {
            let written = keeper.journal.borrow_mut().acknowledge(request.sequence);
            supervise::sweep(&keeper);
            written.map(|()| Empty {}).map_err(|error| failure::from_io("journal.jsonl", &error))
        }),
        "AnswerCall" => {
            at_once(payload, |request| door::of(&keeper).map(|door| door.answer(request)).map(|()| Empty {}))
        }
        "EnterCgroups" => at_once(payload, |request| cgroups::enter_asked(&keeper, request).map(|()| Empty {})),
        "UseNetns" => at_once(payload, |request| netns::use_netns(&keeper, request)),
        "Tail" => at_once(payload, |request: TailRequest| {
            let lines = (request.max_lines as usize).clamp(1, MAX_TAIL_LINES);
            let text = failure::tail(&keeper, &request.source, lines);
            text.map(|text| TailResponse { text })
                .ok_or_else(|| failure::not_found(format!("source {:?}", request.source)))
        }),
        "Shutdown" => {
            answer(payload, |request| async move { shutdown::run(&keeper, request).await.map(|()| Empty {}) })
        }
        other => refuse(status(Code::Unimplemented, format!("{KEEPER_SERVICE}/{other}"))),
    }
}

fn share(keeper: &Keeper, request: ShareRequest) -> Result<ShareResponse, Status> {
    if keeper.end_now().is_some() {
        return Err(status(Code::FailedPrecondition, "the sandbox has ended"));
    }
    keeper.shares.borrow_mut().add(request, keeper.host_mounts.borrow().as_fd())
}

fn state(keeper: &Keeper) -> StateResponse {
    let spawned = keeper.spawned.borrow();
    let processes = keeper.processes.borrow();
    StateResponse {
        spawned: spawned
            .iter()
            .map(|process| SpawnedProcess {
                name: process.name.clone(),
                pid: process.pid,
                start_time_ticks: process.start_time_ticks,
                running: process.runs(),
                wait_status: process.ended.borrow().unwrap_or_default(),
            })
            .collect(),
        processes: processes
            .iter()
            .map(|(key, process)| ProcessState {
                container_id: key.container_id.clone(),
                exec_id: key.exec_id.clone(),
                exited: process.has_exited(),
                exit_status: process.exit.borrow().as_ref().map_or(0, |exit| exit.code),
                stdout_bytes: process.outputs[0].read.get(),
                stderr_bytes: process.outputs[1].read.get(),
                dropped_lines: process.dropped_lines(),
                attached_clients: process.clients.borrow().len() as u32,
            })
            .collect(),
        shares: keeper.shares.borrow().names(),
        agent_connected: matches!(*keeper.agent.borrow(), AgentState::Connected(_)),
        last_sequence: keeper.journal.borrow().last_sequence(),
        ready_message: keeper.ready.borrow().0.clone(),
    }
}

async fn next_entries(keeper: &Keeper, request: NextEntriesRequest) -> NextEntriesResponse {
    let mut last = keeper.journal.borrow().subscribe();
    let bound = Duration::from_millis(u64::from(request.wait_ms)).min(MAX_POLL);
    let _ = tokio::time::timeout(bound, last.wait_for(|last| *last > request.after_sequence)).await;
    NextEntriesResponse { entries: keeper.journal.borrow().after(request.after_sequence) }
}

/// Passes a call to the agent, once when it has an operation's id.
async fn pass(keeper: Rc<Keeper>, request: Request) -> Result<Vec<u8>, Status> {
    if RESERVED.contains(&request.method.as_str()) {
        let call = format!("{}/{}", request.service, request.method);
        return Err(status(Code::PermissionDenied, format!("{call}: the keeper alone makes this call")));
    }
    let Some(id) = operations::id_of(&request) else {
        return forward(&keeper, agent::connected(&keeper)?, request).await;
    };
    let call = || Ok(forward(&keeper, agent::connected(&keeper)?, request.clone()));
    keeper.operations.once(id, &request, call).await
}

/// Payload and refusal pass untouched.
async fn forward(keeper: &Keeper, agent: Agent, request: Request) -> Result<Vec<u8>, Status> {
    let Request { service, method, payload, timeout_nano, .. } = request;
    let removed = match method.as_str() {
        "RemoveContainer" => {
            RemoveContainerRequest::decode(payload.as_slice()).ok().map(|request| request.container_id)
        }
        _ => None,
    };
    let bound = if timeout_nano > 0 { Duration::from_nanos(timeout_nano as u64) } else { PASS_BOUND };
    if let Some(id) = &removed {
        mark_removed(keeper, id, true);
    }
    let answer = agent::call(keeper, &agent, (&service, &method), payload, bound).await;
    if let (Some(id), Err(_)) = (&removed, &answer) {
        mark_removed(keeper, id, false);
    }
    answer
}

/// The agent answers a pending WaitProcess of a container that never ran before it answers RemoveContainer.
fn mark_removed(keeper: &Keeper, container_id: &str, removed: bool) {
    for (key, process) in keeper.processes.borrow().iter() {
        if key.container_id == container_id {
            process.removed.set(removed);
        }
    }
}
