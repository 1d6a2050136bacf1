//! The end of a sandbox: why it ended (the first death seen, or the panic that the console told), the rest killed in order,
//! every exit journaled with that cause, everything given back.
use crate::failure;
use crate::keeper::{Agent, AgentState, End, Keeper};
use crate::network;
use crate::spawn::{self, describe_wait_status, Spawned, VMM};
use kata_protocol::grpc::{CheckRequest, HealthCheckResponse};
use kata_protocol::keeper::JournalEntry;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a helper's regular exit waits for the VMM's: helpers leave by themselves when the VMM is gone.
const HELPER_GRACE: Duration = Duration::from_millis(200);
/// How long the console may take to deliver what a dead VMM wrote.
const CONSOLE_GRACE: Duration = Duration::from_millis(500);
/// The same for the output of any process.
const OUTPUT_GRACE: Duration = Duration::from_millis(100);
/// A panicked guest's VMM ends by itself (panic=-1); one that stays up longer is asked and then killed.
const PANIC_GRACE: Duration = Duration::from_secs(2);
/// How long a lost agent connection waits for the death that explains it.
const AGENT_GRACE: Duration = Duration::from_secs(5);
const KILL_BOUND: Duration = Duration::from_secs(5);
/// Draining the last bytes and journaling the exits of all processes.
const EXITS_BOUND: Duration = Duration::from_secs(5);

/// Watches one spawned process to its end. The task of `spawn`.
pub async fn watch_process(keeper: Rc<Keeper>, process: Rc<Spawned>) {
    let wait_status = match spawn::reap(&process).await {
        Ok(wait_status) => wait_status,
        Err(error) => {
            keeper.note(&format!("wait for {}: {error}", process.name));
            0
        }
    };
    // Its last words are the evidence; a descendant may keep the pipe open.
    let mut silent = process.silent.subscribe();
    let _ = timeout(OUTPUT_GRACE, silent.wait_for(|silent| *silent)).await;
    process.ended.send_replace(Some(wait_status));
    keeper.note(&format!("{} (pid {}) {}", process.name, process.pid, describe_wait_status(wait_status)));
    if let Err(error) = spawn::write_pids(&keeper) {
        keeper.note(&format!("pids.json: {error}"));
    }
    if keeper.end_now().is_some() {
        return;
    }
    let entry =
        JournalEntry { kind: "spawned-exit".into(), process: process.name.clone(), wait_status, ..Default::default() };
    keeper.record(entry);
    if process.essential {
        let end = explain(&keeper, &process, wait_status).await;
        begin(&keeper, end);
    }
}

/// The primary cause behind the death of an essential process.
async fn explain(keeper: &Keeper, process: &Spawned, wait_status: i32) -> End {
    let mut culprit = (process.name.clone(), wait_status);
    if process.name != VMM {
        if let Some(vmm) = keeper.find_spawned(VMM) {
            let signalled = libc::WIFSIGNALED(wait_status);
            let grace = if signalled { Duration::ZERO } else { HELPER_GRACE };
            // A helper that left by itself follows a VMM that died; a signalled helper follows only a signalled VMM.
            if let Ok(vmm_status) = timeout(grace, vmm.wait()).await {
                if !signalled || libc::WIFSIGNALED(vmm_status) {
                    culprit = (vmm.name.clone(), vmm_status);
                }
            }
        }
    }
    if culprit.0 == VMM {
        // A console that was connected in this very moment is accepted first.
        tokio::time::sleep(Duration::from_millis(5)).await;
        let mut open = keeper.console_open.subscribe();
        let _ = timeout(CONSOLE_GRACE, open.wait_for(|open| !open)).await;
    }
    let (process, wait_status) = culprit;
    let mut facts = format!("{process} {} (wait status {wait_status})", describe_wait_status(wait_status));
    if libc::WIFSIGNALED(wait_status) && libc::WTERMSIG(wait_status) == libc::SIGKILL {
        facts.extend(keeper.cgroups.borrow().iter().filter_map(|cgroup| host_oom(cgroup)));
    }
    let panic = keeper.panic.borrow().clone();
    let (cause, evidence) = match panic {
        Some(line) => ("guest-panic", format!("console: {line}; {facts}")),
        None if process != VMM => ("helper-exited", facts),
        None if libc::WIFSIGNALED(wait_status) => ("vmm-killed", facts),
        None => ("vmm-exited", facts),
    };
    End { cause: cause.to_owned(), evidence, process, wait_status }
}

/// What a cgroup tells about out-of-memory kills on the host: `memory.events` (cgroup v2) or `memory.oom_control` (v1).
fn host_oom(cgroup: &Path) -> Option<String> {
    let text =
        ["memory.events", "memory.oom_control"].iter().find_map(|name| fs::read_to_string(cgroup.join(name)).ok())?;
    let kills: u64 = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()?;
    (kills > 0).then(|| format!("; the host's OOM killer ended {kills} processes of {}", cgroup.display()))
}

/// Called once, when the console told a kernel panic. Anything in the guest that may write to the console can forge the
/// line, so a VMM that goes on running is ended only when the agent does not answer.
pub async fn watch_panic(keeper: Rc<Keeper>, line: String) {
    tokio::select! {
        _ = keeper.wait_end() => return,
        () = tokio::time::sleep(PANIC_GRACE) => {}
    }
    let agent = match &*keeper.agent.borrow() {
        AgentState::Connected(agent) => Some(agent.clone()),
        _ => None,
    };
    if let Some(Agent { client, .. }) = agent {
        let request = CheckRequest::default();
        let check = client.call::<_, HealthCheckResponse>("grpc.Health", "Check", &request, Some(PANIC_GRACE)).await;
        if check.is_ok() {
            keeper.note("the console told a kernel panic, but the agent answers: the line is not believed");
            keeper.panic.send_replace(None);
            return;
        }
    }
    begin(&keeper, End { cause: "guest-panic".into(), evidence: format!("console: {line}"), ..Default::default() });
}

/// Watches the connection to the agent; its loss without another death ends the sandbox.
pub async fn watch_agent(keeper: Rc<Keeper>, agent: Agent) {
    let reason = agent.client.closed().await;
    if timeout(AGENT_GRACE, keeper.wait_end()).await.is_ok() {
        return;
    }
    let evidence = format!("connection to the guest agent: {reason}");
    keeper.record(JournalEntry { kind: "agent-lost".into(), evidence: evidence.clone(), ..Default::default() });
    begin(&keeper, End { cause: "agent-lost".into(), evidence, ..Default::default() });
}

/// Ends the sandbox once; later causes are consequences of the first.
pub fn begin(keeper: &Rc<Keeper>, end: End) {
    let first = keeper.end.send_if_modified(|current| {
        let first = current.is_none();
        if first {
            *current = Some(Rc::new(end.clone()));
        }
        first
    });
    if first {
        keeper.note(&format!("the sandbox ends: {} ({})", end.cause, end.evidence));
        tokio::task::spawn_local(finish(Rc::clone(keeper)));
    }
}

async fn finish(keeper: Rc<Keeper>) {
    let mut order = keeper.spawned.borrow().clone();
    // The VMM first: a helper that dies under a running VMM could make the guest write nonsense.
    order.reverse();
    order.sort_by_key(|process| process.name != VMM);
    for process in order {
        if process.runs() {
            let _ = process.signal(libc::SIGKILL);
            if timeout(KILL_BOUND, process.wait()).await.is_err() {
                keeper.note(&format!("{} (pid {}) does not end after SIGKILL", process.name, process.pid));
            }
        }
    }
    let processes: Vec<_> = keeper.processes.borrow().values().cloned().collect();
    let exits = async {
        for process in processes {
            process.wait_exit().await;
        }
    };
    if timeout(EXITS_BOUND, exits).await.is_err() {
        keeper.note("some exits could not be journaled in time");
    }
    release(&keeper);
    keeper.released.send_replace(true);
}

/// Gives everything back but the control socket and the journal, which the engine still reads.
fn release(keeper: &Keeper) {
    keeper.agent.send_replace(AgentState::Failed("the sandbox has ended".to_owned()));
    keeper.memory.borrow_mut().clear();
    for problem in keeper.shares.borrow_mut().remove_all() {
        keeper.note(&problem);
    }
    network::detach_all(keeper);
    keeper.card.borrow_mut().take();
    if let Err(error) = spawn::write_pids(keeper) {
        keeper.note(&failure::from_io("pids.json", &error).message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_out_of_memory_kills_of_both_cgroup_versions() {
        let dir = crate::testing::TempDir::new();
        assert_eq!(host_oom(dir.path()), None);
        fs::write(dir.path().join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n").unwrap();
        assert!(host_oom(dir.path()).unwrap().contains("ended 2 processes"));
        fs::write(dir.path().join("memory.events"), "low 0\nmax 7\noom 0\noom_kill 0\n").unwrap();
        assert_eq!(host_oom(dir.path()), None);
    }
}
