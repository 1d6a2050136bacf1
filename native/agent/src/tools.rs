//! StartTool: programs of the agent's own beside a container. They pack and unpack files for it (`kata-files`, which is this same
//! program), or are a shell in the guest. They have the agent's namespaces and rights, and end with the container.
use crate::agent::Agent;
use crate::container::{watch_process, Container, Phase};
use crate::debug_console::spawn_on_terminal;
use crate::failure::{internal, invalid, Context, Result};
use crate::process::{prepare, Process};
use kata_container::Stdio as Streams;
use kata_protocol::agent_ext::{StartToolRequest, StartToolResponse};
use kata_protocol::ttrpc::{status, Code};
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use tokio::net::UnixStream;

const FILES: &str = "kata-files";
/// The first that the kernel ends when memory runs out.
const OOM_SCORE: &str = "1000";

/// Whether the program was started under the name of the files tool.
pub fn is_files(program: &CStr) -> bool {
    program.to_bytes() == FILES.as_bytes()
}

/// StartTool.
pub async fn start(agent: Rc<Agent>, request: StartToolRequest) -> Result<StartToolResponse> {
    let container = agent.container(&request.container_id)?;
    let exec_id = request.exec_id.clone();
    if exec_id.is_empty() || exec_id == container.id || exec_id.len() > 256 {
        return Err(invalid(format!("tool: exec id {exec_id:?} is empty, too long, or the container's")));
    }
    let command = command(&container, &request)?;
    container.forget_reported();
    let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
    // Without a terminal the tool reads the connection itself, and the agent's thread is spared every byte of it.
    let (stdio, streams) = prepare(request.terminal, request.terminal && ports[0] != 0)?.split();
    let process = Process::new(streams);
    container.reserve(&exec_id, &process)?;
    container.tools.borrow_mut().insert(exec_id.clone());
    let outcome = async {
        let mut connections = agent.streams.claim_all(ports).await?;
        let input = if request.terminal { None } else { connections[0].take().map(blocking).transpose()? };
        spawn(&agent, &container, &process, command, (stdio, input))?;
        process.connect(connections);
        Ok(StartToolResponse {})
    }
    .await;
    if outcome.is_err() {
        container.processes.borrow_mut().remove(&exec_id);
        container.tools.borrow_mut().remove(&exec_id);
    }
    outcome
}

fn command(container: &Container, request: &StartToolRequest) -> Result<Command> {
    let init = require_living(container)?;
    if request.tool == "shell" {
        let Some((program, args)) = request.args.split_first() else {
            return Err(invalid("tool: a shell without a program"));
        };
        if !Path::new(program).is_absolute() {
            return Err(invalid(format!("tool: {program:?} is not an absolute path")));
        }
        let mut command = Command::new(program);
        command.args(args).env_clear().current_dir("/");
        command.envs(request.env.iter().filter_map(|entry| entry.split_once('=')));
        return Ok(command);
    }
    let own_root = format!("--root=/proc/{}/root", init.pid.get());
    let (verb, place) = match request.tool.as_str() {
        tool @ ("pack" | "unpack") => (tool, Some(own_root)),
        "export" => ("pack", Some(format!("--root={}", container.rootfs.display()))),
        tool @ ("changes" | "layer") => (tool, None),
        other => return Err(status(Code::Unimplemented, format!("tool: there is no {other:?}"))),
    };
    let mut command = Command::new("/proc/self/exe");
    command.arg0(FILES).arg(verb).args(place).args(&request.args).env_clear().current_dir("/");
    Ok(command)
}

/// The container's first process.
fn require_living(container: &Container) -> Result<Rc<Process>> {
    let init = container.process("")?;
    if matches!(container.phase.get(), Phase::Created | Phase::Starting | Phase::Started) && init.exited().is_none() {
        return Ok(init);
    }
    Err(status(Code::FailedPrecondition, format!("tool: container {:?} does not run", container.id)))
}

/// A connection as a program expects its standard input.
fn blocking(connection: UnixStream) -> Result<OwnedFd> {
    let connection = connection.into_std().context(|| "tool: standard input".to_owned())?;
    connection.set_nonblocking(false).context(|| "tool: standard input".to_owned())?;
    Ok(connection.into())
}

/// No await until the process is watched: only then can it not have been reaped yet.
fn spawn(
    agent: &Rc<Agent>,
    container: &Rc<Container>,
    process: &Rc<Process>,
    mut command: Command,
    (stdio, input): (Streams, Option<OwnedFd>),
) -> Result<()> {
    // It may have been removed while the streams arrived.
    require_living(container)?;
    let failed = |error: std::io::Error| match error.raw_os_error() {
        Some(libc::ENOENT) => status(Code::NotFound, "tool: the guest has no such program"),
        _ => internal(format!("tool: {error}")),
    };
    let pid = match stdio {
        Streams::Terminal => {
            let (master, pid) = spawn_on_terminal(command).map_err(failed)?;
            watch_process(agent, container, process, pid);
            return process.adopt_terminal(master);
        }
        Streams::Streams([stdin, stdout, stderr]) => {
            command.stdin(Stdio::from(input.unwrap_or(stdin))).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
            command.process_group(0);
            command.spawn().map_err(failed)?.id() as i32
        }
    };
    watch_process(agent, container, process, pid);
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE).context(|| "tool: oom_score_adj".to_owned())
}

/// Ends the tools that run beside a container, and waits for that: what they hold open could not be unmounted.
pub async fn end(container: &Container) {
    let tools: Vec<String> = std::mem::take(&mut *container.tools.borrow_mut()).into_iter().collect();
    for exec_id in tools {
        let Ok(process) = container.process(&exec_id) else { continue };
        let pid = process.pid.get();
        if pid <= 0 || process.exited().is_some() {
            continue;
        }
        // SAFETY: no memory is passed. The pid is still that process's, the leader of its group: it has not been reaped.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
        let _ = process.wait().await;
    }
}
