//! The connection to the guest agent: its "ready" is awaited, never polled; then its log and its events are read.
use crate::bounded_file::BoundedFile;
use crate::ending;
use crate::failure;
use crate::keeper::{Agent, AgentState, End, Keeper};
use crate::port_forward;
use crate::spawn::{describe_wait_status, VMM};
use crate::text;
use crate::vsock::GuestListener;
use kata_protocol::agent_ext::{NextEventRequest, NextEventResponse, ReadyMessage};
use kata_protocol::envelope::Status;
use kata_protocol::grpc::{GetOomEventRequest, OomEvent};
use kata_protocol::keeper::{AwaitAgentRequest, AwaitAgentResponse, JournalEntry};
use kata_protocol::ttrpc::{status, Client, Code};
use kata_protocol::DIAL_EXTENSION;
use prost::Message;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

pub const AGENT_SERVICE: &str = "grpc.AgentService";
pub const EXTENSION_SERVICE: &str = "kata.agent.v1.AgentExtension";
/// Announces AgentExtension/WaitProcess.
pub const WAIT_EXTENSION: &str = "wait-ext";
const MAX_READY_BYTES: usize = 64 * 1024;
const READY_BOUND: Duration = Duration::from_secs(10);
const CONNECT_BOUND: Duration = Duration::from_secs(10);
const LOG_BYTES: u64 = 1024 * 1024;
const LOG_LINE_BYTES: usize = 8 * 1024;
/// Containers remembered as out of memory; their number is bounded by the guest's containers, an agent may lie.
const MAX_OOM: usize = 1024;

/// Takes the agent's ReadyMessage and connects. The listener stands before the VMM is started.
pub async fn await_ready(keeper: Rc<Keeper>, listener: GuestListener) {
    let message = loop {
        let attempt = async { read_ready(listener.accept().await?).await };
        match attempt.await {
            Ok(message) => break message,
            Err(error) => keeper.note(&format!("ready message: {error}")),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let since_start = keeper.find_spawned(VMM).map_or(0, |vmm| vmm.started.elapsed().as_micros() as u64);
    let state = match ReadyMessage::decode(message.as_slice()) {
        Err(error) => AgentState::Failed(format!("the agent's ready message is malformed: {error}")),
        Ok(ready) if !ready.failure.is_empty() => {
            AgentState::Failed(text::escape(text::cut(&ready.failure, 4096).as_bytes()))
        }
        Ok(ready) => match connect(&keeper, ready).await {
            Ok(agent) => AgentState::Connected(agent),
            Err(error) => AgentState::Failed(format!("connection to the agent: {error}")),
        },
    };
    if keeper.end_now().is_some() {
        return;
    }
    if let AgentState::Connected(agent) = &state {
        keeper.note(&format!("agent {} is ready after {since_start} us", agent.ready.agent_version));
        tokio::task::spawn_local(ending::watch_agent(Rc::clone(&keeper), agent.clone()));
        tokio::task::spawn_local(watch_events(Rc::clone(&keeper), agent.clone()));
        tokio::task::spawn_local(read_log(Rc::clone(&keeper)));
        if agent.ready.extensions.iter().any(|name| name == DIAL_EXTENSION) {
            tokio::task::spawn_local(port_forward::run(Rc::clone(&keeper)));
        }
    }
    *keeper.ready.borrow_mut() = (message, since_start);
    keeper.agent.send_replace(state);
}

async fn read_ready(mut stream: UnixStream) -> io::Result<Vec<u8>> {
    let read = async {
        let length = stream.read_u32().await? as usize;
        if length > MAX_READY_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{length} bytes, at most {MAX_READY_BYTES}"),
            ));
        }
        let mut message = vec![0; length];
        stream.read_exact(&mut message).await?;
        Ok(message)
    };
    timeout(READY_BOUND, read).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn connect(keeper: &Keeper, ready: ReadyMessage) -> io::Result<Agent> {
    let connected = timeout(CONNECT_BOUND, keeper.vsock.connect(keeper.config.agent_port)).await;
    let (stream, _) = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    Ok(Agent { client: Client::new(stream), ready: Rc::new(ready) })
}

/// The connected agent. Errors: FAILED_PRECONDITION before it is ready, UNAVAILABLE after the sandbox's end.
pub fn connected(keeper: &Keeper) -> Result<Agent, Status> {
    if let Some(end) = keeper.end_now() {
        return Err(ended(&end));
    }
    match &*keeper.agent.borrow() {
        AgentState::Connected(agent) => Ok(agent.clone()),
        AgentState::Waiting => Err(status(Code::FailedPrecondition, "the guest agent is not ready yet")),
        AgentState::Failed(reason) => {
            Err(status(Code::FailedPrecondition, format!("the guest agent failed: {reason}")))
        }
    }
}

pub fn ended(end: &End) -> Status {
    status(Code::Unavailable, format!("the sandbox has ended: {} ({})", end.cause, end.evidence))
}

/// A call to the agent. When the sandbox ends under it, or its connection breaks, the refusal says why the sandbox ended.
pub async fn call(
    keeper: &Keeper,
    agent: &Agent,
    (service, method): (&str, &str),
    payload: Vec<u8>,
    bound: Duration,
) -> Result<Vec<u8>, Status> {
    let answer = tokio::select! {
        end = keeper.wait_end() => return Err(ended(&end)),
        answer = agent.client.call_raw(service, method, payload, Some(bound)) => answer,
    };
    match answer {
        Err(refusal) if refusal.code == Code::Unavailable as i32 && agent.client.is_closed() => {
            Err(ended(&*keeper.wait_end().await))
        }
        answer => answer,
    }
}

/// See `AwaitAgent` in proto/keeper.proto.
pub async fn await_agent(keeper: &Keeper, request: AwaitAgentRequest) -> Result<AwaitAgentResponse, Status> {
    let bound = Duration::from_millis(u64::from(request.timeout_ms.max(1)));
    let mut agent = keeper.agent.subscribe();
    let mut panic = keeper.panic.subscribe();
    // The branches are looked at in order: an agent that was ready before everything ended is still told as ended.
    tokio::select! {
        biased;
        end = keeper.wait_end() => {
            let (cause, process) = match end.cause.as_str() {
                "vmm-killed" => ("vmm-exited", end.process.as_str()),
                cause @ ("vmm-exited" | "helper-exited" | "guest-panic") => (cause, end.process.as_str()),
                _ => ("agent-failure", ""),
            };
            let text = match end.cause.as_str() {
                "guest-panic" => format!("the guest's kernel panicked: {}", end.evidence),
                _ => format!("the virtual machine ended: {}", end.evidence),
            };
            Err(failure::boot(keeper, Code::FailedPrecondition, cause, process, end.wait_status, &text))
        }
        Ok(line) = panic.wait_for(Option::is_some) => {
            let text = format!("the guest's kernel panicked while booting: {}", line.as_deref().unwrap_or_default());
            drop(line);
            Err(failure::boot(keeper, Code::FailedPrecondition, "guest-panic", "", 0, &text))
        }
        Ok(_) = agent.wait_for(|agent| !matches!(agent, AgentState::Waiting)) => match connected(keeper) {
            Ok(_) => {
                let (ready_message, ready_after_spawn_us) = keeper.ready.borrow().clone();
                Ok(AwaitAgentResponse { ready_message, ready_after_spawn_us })
            }
            Err(refusal) => Err(failure::boot(keeper, Code::FailedPrecondition, "agent-failure", "", 0, &refusal.message)),
        },
        () = tokio::time::sleep(bound) => {
            let vmm = keeper.find_spawned(VMM).and_then(|vmm| *vmm.ended.borrow());
            let vmm = vmm.map_or("runs".to_owned(), describe_wait_status);
            let text = format!("the guest agent did not become ready within {} ms; vmm {vmm}", bound.as_millis());
            Err(failure::boot(keeper, Code::DeadlineExceeded, "timeout", "", 0, &text))
        }
    }
}

/// Journals out-of-memory kills: AgentExtension/NextEvent where the agent has it, else GetOOMEvent.
async fn watch_events(keeper: Rc<Keeper>, agent: Agent) {
    let mut after_sequence = 0;
    let mut extended = !agent.ready.extensions.is_empty();
    loop {
        let event: Result<(u64, String, String), Status> = if extended {
            let request = NextEventRequest { after_sequence };
            let answer =
                agent.client.call::<_, NextEventResponse>(EXTENSION_SERVICE, "NextEvent", &request, None).await;
            answer.map(|event| (event.sequence, event.container_id, event.kind))
        } else {
            let answer =
                agent.client.call::<_, OomEvent>(AGENT_SERVICE, "GetOOMEvent", &GetOomEventRequest {}, None).await;
            answer.map(|event| (0, event.container_id, "oom".to_owned()))
        };
        match event {
            Ok((sequence, container_id, kind)) => {
                after_sequence = after_sequence.max(sequence);
                if kind == "oom" {
                    note_oom(&keeper, &container_id);
                }
            }
            Err(refusal) if refusal.code == Code::Unimplemented as i32 && extended => extended = false,
            Err(refusal) if refusal.code == Code::Unimplemented as i32 => {
                keeper.note("the agent has no events");
                return;
            }
            Err(refusal) if refusal.code == Code::Unavailable as i32 => return,
            Err(refusal) => keeper.note(&format!("events: {}", refusal.message)),
        }
        // An agent that answers at once and for ever costs four journal entries a second at most.
        tokio::time::sleep(Duration::from_millis(if extended && after_sequence == 0 { 1000 } else { 250 })).await;
    }
}

fn note_oom(keeper: &Keeper, container_id: &str) {
    let known = keeper.processes.borrow().keys().any(|key| key.container_id == container_id);
    if !known || keeper.oom.borrow().len() >= MAX_OOM {
        keeper.note(&format!("out of memory in a container that is not known: {}", text::cut(container_id, 128)));
        return;
    }
    keeper.oom.borrow_mut().insert(container_id.to_owned());
    let entry = JournalEntry {
        kind: "oom".into(),
        container_id: container_id.to_owned(),
        oom_killed: true,
        ..Default::default()
    };
    keeper.record(entry);
}

/// Copies the agent's log (vsock port 1025) to `agent.log`, a bounded and escaped line each.
async fn read_log(keeper: Rc<Keeper>) {
    let mut stream = match timeout(CONNECT_BOUND, keeper.vsock.connect(keeper.config.log_port)).await {
        Ok(Ok((stream, _))) => stream,
        _ => return keeper.note("the agent offers no log"),
    };
    let mut file = BoundedFile::new(keeper.dir.join("agent.log"), LOG_BYTES);
    let mut line: Vec<u8> = Vec::new();
    let mut buffer = [0; 2048];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        for byte in &buffer[..count] {
            if *byte == b'\n' || line.len() >= LOG_LINE_BYTES {
                let text = text::escape(&line);
                file.write((text + "\n").as_bytes());
                line.clear();
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
        }
    }
}
