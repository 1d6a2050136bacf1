//! CreateProcess: stream connections first, then the creation request with their ports, then the process is the keeper's.
use crate::agent::{self, AGENT_SERVICE, EXTENSION_SERVICE};
use crate::container_log::{ContainerLog, Stream};
use crate::failure;
use crate::keeper::Keeper;
use crate::process::{Options, Process, ProcessKey};
use crate::pump;
use crate::spawn::is_name;
use crate::stdio;
use crate::supervise;
use crate::tokens::{Grant, MAX_TOKENS};
use kata_protocol::envelope::Status;
use kata_protocol::keeper::{CreateProcessRequest, OpenStreamRequest, OpenStreamResponse};
use kata_protocol::ttrpc::{status, Code};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a refused connection waits for the death that explains it.
const DEATH_BOUND: Duration = Duration::from_secs(1);
const CONNECT_BOUND: Duration = Duration::from_secs(10);
const MAX_PROCESSES: usize = 1024;
const DEFAULT_TIMEOUT_MS: u32 = 120_000;

/// Removes a key from `creating` however the creation ends.
struct Reservation<'a> {
    keeper: &'a Keeper,
    key: ProcessKey,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.keeper.creating.borrow_mut().remove(&self.key);
    }
}

/// See `CreateProcess` in proto/keeper.proto. The agent's own refusal comes back unchanged, details included.
pub async fn create_process(keeper: &Rc<Keeper>, request: CreateProcessRequest) -> Result<(), Status> {
    let agent = agent::connected(keeper)?;
    let key = ProcessKey { container_id: request.container_id.clone(), exec_id: request.exec_id.clone() };
    let _reservation = reserve(keeper, &key)?;
    let log = open_log(&request)?;
    let stdio::Streams { input, sinks } = match &request.stdio {
        Some(spec) => stdio::open(spec, request.terminal).await?,
        None => stdio::Streams::default(),
    };
    let (stdin, stdout, stderr) = tokio::join!(
        open_stream(keeper, "stdin", request.stdin),
        open_stream(keeper, "stdout", true),
        open_stream(keeper, "stderr", !request.terminal),
    );
    let (stdin, stdout, stderr) = (stdin?, stdout?, stderr?);
    let ports = [&stdin, &stdout, &stderr].map(|stream| stream.as_ref().map_or(0, |(_, port)| *port));
    // The port fields of grpc.CreateContainerRequest, grpc.ExecProcessRequest and StartToolRequest; fields may come in any order.
    let (method, first_field) = match (request.exec_id.is_empty(), request.tool) {
        (true, _) => ((AGENT_SERVICE, "CreateContainer"), 9),
        (false, false) => ((AGENT_SERVICE, "ExecProcess"), 5),
        (false, true) => ((EXTENSION_SERVICE, "StartTool"), 5),
    };
    let mut payload = request.request;
    for (field, port) in (first_field..).zip(ports) {
        if port != 0 {
            prost::encoding::uint32::encode(field, &port, &mut payload);
        }
    }
    let bound =
        Duration::from_millis(u64::from(if request.timeout_ms == 0 { DEFAULT_TIMEOUT_MS } else { request.timeout_ms }));
    agent::call(keeper, &agent, method, payload, bound).await?;
    let options = Options {
        stdout: true,
        stderr: stderr.is_some(),
        // Only the write half stays: the guest sends nothing on stdin's connection.
        stdin: stdin.map(|(stream, _)| stream.into_split().1),
        stdin_once: request.stdin_once,
        log,
        hold: request.wait_client,
        sinks,
    };
    let process = Process::new(key.clone(), options);
    for (stream, connection) in Stream::BOTH.into_iter().zip([stdout, stderr]) {
        if let Some((connection, _)) = connection {
            tokio::task::spawn_local(pump::run(Rc::clone(&process), stream, connection));
        }
    }
    if let Some(input) = input {
        process.input_keep.replace(Some(input.keep()));
        tokio::task::spawn_local(input.run(Rc::clone(&process)));
    }
    keeper.oom.borrow_mut().remove(&key.container_id);
    keeper.processes.borrow_mut().insert(key, Rc::clone(&process));
    tokio::task::spawn_local(supervise::run(Rc::clone(keeper), process, agent));
    Ok(())
}

fn reserve<'a>(keeper: &'a Keeper, key: &ProcessKey) -> Result<Reservation<'a>, Status> {
    if !is_name(&key.container_id) || !(key.exec_id.is_empty() || is_name(&key.exec_id)) {
        return Err(status(Code::InvalidArgument, format!("{key}: an id is [A-Za-z0-9][A-Za-z0-9_.-]{{0,127}}")));
    }
    supervise::sweep(keeper);
    let runs = keeper.processes.borrow().get(key).is_some_and(|process| !process.has_exited());
    if runs || keeper.creating.borrow().contains(key) {
        return Err(status(Code::AlreadyExists, format!("{key} exists")));
    }
    if keeper.processes.borrow().len() + keeper.creating.borrow().len() >= MAX_PROCESSES {
        return Err(status(Code::ResourceExhausted, format!("the sandbox has {MAX_PROCESSES} processes")));
    }
    keeper.creating.borrow_mut().insert(key.clone());
    Ok(Reservation { keeper, key: key.clone() })
}

fn open_log(request: &CreateProcessRequest) -> Result<Option<ContainerLog>, Status> {
    let Some(spec) = request.log.as_ref().filter(|spec| !spec.path.is_empty()) else { return Ok(None) };
    ContainerLog::open(&spec.path, spec.max_bytes, spec.max_files)
        .map(Some)
        .map_err(|error| failure::from_io(&format!("log {}", spec.path), &error))
}

async fn open_stream(keeper: &Keeper, name: &str, wanted: bool) -> Result<Option<(UnixStream, u32)>, Status> {
    if !wanted {
        return Ok(None);
    }
    let port = keeper.config.stream_port;
    let connected = timeout(CONNECT_BOUND, keeper.vsock.connect(port)).await;
    let error = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(connected) => return Ok(Some(connected)),
        Err(error) => error,
    };
    match timeout(DEATH_BOUND, keeper.wait_end()).await {
        Ok(end) => Err(agent::ended(&end)),
        Err(_) => {
            Err(status(Code::Unavailable, format!("{name}: connection to the guest's stream port {port}: {error}")))
        }
    }
}

/// See `OpenStream` in proto/keeper.proto. A process that has exited is known for a while yet: its client gets the exit.
pub fn open_token(keeper: &Keeper, request: OpenStreamRequest) -> Result<OpenStreamResponse, Status> {
    let key = ProcessKey { container_id: request.container_id, exec_id: request.exec_id };
    let process = keeper.processes.borrow().get(&key).cloned().ok_or_else(|| failure::not_found(&key))?;
    let grant = Grant { process, stdin: request.stdin, outputs: [request.stdout, request.stderr] };
    let token = keeper.tokens.borrow_mut().issue(grant).map_err(|error| failure::from_io("random token", &error))?;
    let token = token.ok_or_else(|| status(Code::ResourceExhausted, format!("{MAX_TOKENS} tokens are unused")))?;
    Ok(OpenStreamResponse { token, socket: keeper.dir.join("d.sock").to_string_lossy().into_owned() })
}
