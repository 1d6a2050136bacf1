//! Containers and processes.
use super::Empty;
use crate::agent::Agent;
use crate::failure::{invalid, not_found, Result};
use crate::lifecycle;
use crate::process::Exit;
use kata_protocol::agent_ext::{NextEventRequest, NextEventResponse, WaitProcessExtRequest, WaitProcessExtResponse};
use kata_protocol::grpc::{
    ExecProcessRequest, GetDiagnosticDataRequest, GetDiagnosticDataResponse, GetOomEventRequest, OomEvent,
    PauseContainerRequest, RemoveContainerRequest, ResumeContainerRequest, SignalProcessRequest, StartContainerRequest,
    StatsContainerRequest, StatsContainerResponse, UpdateContainerRequest, WaitProcessRequest, WaitProcessResponse,
};
use std::rc::Rc;
use std::time::Duration;

/// Freezing is waited for without leaving the agent's thread: it takes microseconds unless a process sits in the kernel.
const FREEZE_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_SIGNAL: u32 = 64;

pub async fn start(agent: Rc<Agent>, request: StartContainerRequest) -> Result<Empty> {
    lifecycle::start(agent.container(&request.container_id)?).await
}

pub async fn remove(agent: Rc<Agent>, request: RemoveContainerRequest) -> Result<Empty> {
    let found = agent.container(&request.container_id)?;
    lifecycle::remove(agent, found, Duration::from_secs(u64::from(request.timeout))).await
}

pub async fn exec(agent: Rc<Agent>, request: ExecProcessRequest) -> Result<Empty> {
    let found = agent.container(&request.container_id)?;
    lifecycle::exec(agent, found, request).await
}

/// The asked signal, once, to that process alone; SIGKILL to a container's first process ends the whole container. A
/// process that has ended already needs none.
pub fn signal(agent: &Rc<Agent>, request: SignalProcessRequest) -> Result<Empty> {
    let container = agent.container(&request.container_id)?;
    let process = container.process(&request.exec_id)?;
    if request.signal == 0 || request.signal > MAX_SIGNAL {
        return Err(invalid(format!("process: {} is no signal", request.signal)));
    }
    let signal = request.signal as i32;
    let is_init = request.exec_id.is_empty() || request.exec_id == container.id;
    if is_init && signal == libc::SIGKILL {
        return container.with(|inner| inner.kill_all());
    }
    let pid = process.pid.get();
    if pid <= 0 || process.exited().is_some() {
        return Ok(());
    }
    // SAFETY: no memory is passed. The pid is still that process's: it has not been reaped.
    if unsafe { libc::kill(pid, signal) } < 0 {
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ESRCH) {
            return Err(crate::failure::internal(format!("process: signal {signal} to {pid}: {error}")));
        }
    }
    Ok(())
}

async fn exit_of(agent: &Agent, container_id: &str, exec_id: &str) -> Result<Exit> {
    let container = agent.container(container_id)?;
    let process = container.process(exec_id)?;
    drop(container);
    let exit = process.wait().await?;
    process.reported.set(true);
    Ok(exit)
}

pub async fn wait(agent: Rc<Agent>, request: WaitProcessRequest) -> Result<WaitProcessResponse> {
    let exit = exit_of(&agent, &request.container_id, &request.exec_id).await?;
    Ok(WaitProcessResponse { status: exit.ending.status() })
}

pub async fn wait_extended(agent: Rc<Agent>, request: WaitProcessExtRequest) -> Result<WaitProcessExtResponse> {
    let exit = exit_of(&agent, &request.container_id, &request.exec_id).await?;
    Ok(WaitProcessExtResponse {
        status: exit.ending.status(),
        stdout_bytes: exit.stdout_bytes,
        stderr_bytes: exit.stderr_bytes,
        signal: exit.ending.signal.unsigned_abs(),
        oom_killed: exit.oom_killed,
        exited_at_unix_nanos: exit.at_unix_nanos,
    })
}

pub fn update(agent: &Rc<Agent>, request: UpdateContainerRequest) -> Result<Empty> {
    let resources = request.resources.unwrap_or_default();
    agent.container(&request.container_id)?.with(|inner| inner.update(&resources))
}

pub fn stats(agent: &Rc<Agent>, request: StatsContainerRequest) -> Result<StatsContainerResponse> {
    let cgroup_stats = agent.container(&request.container_id)?.with(|inner| inner.stats())?;
    Ok(StatsContainerResponse { cgroup_stats: Some(cgroup_stats), network_stats: crate::stats::network() })
}

pub fn pause(agent: &Rc<Agent>, request: PauseContainerRequest) -> Result<Empty> {
    let container = agent.container(&request.container_id)?;
    container.with(|inner| inner.pause(FREEZE_TIMEOUT))?;
    container.paused.set(true);
    Ok(())
}

pub fn resume(agent: &Rc<Agent>, request: ResumeContainerRequest) -> Result<Empty> {
    let container = agent.container(&request.container_id)?;
    container.with(|inner| inner.resume(FREEZE_TIMEOUT))?;
    container.paused.set(false);
    Ok(())
}

pub fn diagnostics(agent: &Rc<Agent>, request: GetDiagnosticDataRequest) -> Result<GetDiagnosticDataResponse> {
    if request.log_type != "termination_log" {
        return Err(invalid(format!("diagnostics: {:?} is not \"termination_log\"", request.log_type)));
    }
    let container = agent.container(&request.container_id)?;
    let path = container.termination_log.as_deref().ok_or_else(|| {
        not_found(format!("diagnostics: container {:?} names no termination message path", container.id))
    })?;
    Ok(GetDiagnosticDataResponse { data: crate::guest::termination_log(&container.rootfs, path)? })
}

pub async fn oom_event(agent: Rc<Agent>, _: GetOomEventRequest) -> Result<OomEvent> {
    Ok(OomEvent { container_id: agent.events.next_undelivered().await.container_id })
}

pub async fn next_event(agent: Rc<Agent>, request: NextEventRequest) -> Result<NextEventResponse> {
    let event = agent.events.after(request.after_sequence).await;
    Ok(NextEventResponse { sequence: event.sequence, container_id: event.container_id, kind: "oom".to_owned() })
}
