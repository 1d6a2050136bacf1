//! What the calls about containers do, from creation to removal.
use crate::agent::Agent;
use crate::container::{status_of, watch_oom, watch_process, Container, Phase};
use crate::devices::add_devices;
use crate::events::WatchedFile;
use crate::failure::{invalid, Context, Result};
use crate::log;
use crate::mount_namespace::MountNamespace;
use crate::poll::watch;
use crate::process::{prepare, Process};
use kata_container::{CreateParams, Pending};
use kata_protocol::grpc::{CreateContainerRequest, ExecProcessRequest, LinuxNamespace, Spec};
use kata_protocol::ttrpc::{status, Code};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;

/// For the preparation of a process inside the guest; the host's own deadline is usually shorter.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(60);
/// With volumes to fill.
const FILL_TIMEOUT: Duration = Duration::from_secs(600);
const REMOVE_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_CONTAINERS: usize = 1024;
const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";

/// Waits for a process on its way without blocking the agent.
async fn finish<T>(mut pending: Pending<T>, timeout: Duration) -> Result<T> {
    let waiting = async {
        loop {
            if let Some(done) = pending.advance().map_err(|error| status_of(&error))? {
                return Ok(done);
            }
            // Registered anew each time: epoll then reports what is there already.
            let socket = pending.as_fd().try_clone_to_owned();
            let ready =
                socket.and_then(|socket| watch(socket, Interest::READABLE)).context(|| "process: wait".to_owned())?;
            ready.readable().await.context(|| "process: wait".to_owned())?.retain_ready();
        }
    };
    tokio::time::timeout(timeout, waiting).await.unwrap_or_else(|_| {
        let seconds = timeout.as_secs();
        Err(status(Code::DeadlineExceeded, format!("process: not ready after {seconds} s, killed")))
    })
}

/// A request that names streams but no input among them means a process that reads /dev/null; one that names none is
/// from a host that uses WriteStdin.
fn wants_input(ports: [u32; 3]) -> bool {
    ports[0] != 0 || ports == [0; 3]
}

fn check_id(id: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let starts_well = id.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    if starts_well && (1..=128).contains(&id.len()) && id.bytes().all(plain) {
        return Ok(());
    }
    Err(invalid(format!("container: id {id:?} is not [A-Za-z0-9][A-Za-z0-9_.-]* of at most 128 bytes")))
}

/// CreateContainer.
pub async fn create(agent: Rc<Agent>, mut request: CreateContainerRequest) -> Result<()> {
    check_id(&request.container_id)?;
    let spec = request.oci.take().ok_or_else(|| invalid("container: the request has no OCI spec"))?;
    if !request.shared_mounts.is_empty() {
        return Err(status(Code::Unimplemented, "container: shared_mounts are not supported"));
    }
    let rootfs = spec.root.as_ref().map(|root| PathBuf::from(&root.path)).filter(|path| path.is_absolute());
    let rootfs = rootfs.ok_or_else(|| invalid("container: the spec's Root.Path is not an absolute path"))?;
    let termination_log = spec.annotations.get(TERMINATION_PATH).cloned();
    let container = Container::new(&request.container_id, rootfs, termination_log, request.sandbox_pidns);
    {
        let mut containers = agent.containers.borrow_mut();
        if containers.contains_key(&container.id) {
            return Err(status(Code::AlreadyExists, format!("container: {:?} exists already", container.id)));
        }
        if containers.len() >= MAX_CONTAINERS {
            return Err(status(Code::ResourceExhausted, format!("container: {MAX_CONTAINERS} exist")));
        }
        containers.insert(container.id.clone(), Rc::clone(&container));
    }
    let outcome = create_reserved(&agent, &container, request, spec).await;
    match &outcome {
        Ok(()) => container.phase.set(Phase::Created),
        Err(_) => {
            agent.containers.borrow_mut().remove(&container.id);
            agent.storages.release_all(&container.storages.take());
            remove_directories(&agent, &container.id);
        }
    }
    outcome
}

async fn create_reserved(
    agent: &Rc<Agent>,
    container: &Rc<Container>,
    request: CreateContainerRequest,
    mut spec: Spec,
) -> Result<()> {
    let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
    let connections = agent.streams.claim_all(ports).await?;
    add_devices(agent, &request.devices, &mut spec).await?;
    for mount in &spec.mounts {
        crate::modules::load_on_demand(&mount.r#type)?;
    }
    *container.storages.borrow_mut() = agent.storages.add_all(&request.storages).await?;
    let pid_namespace_path = crate::sandbox::pid_namespace_path(agent, request.sandbox_pidns)?;
    set_namespaces(agent, &mut spec, pid_namespace_path);
    let terminal = spec.process.as_ref().is_some_and(|process| process.terminal);
    let (stdio, streams) = prepare(terminal, wants_input(ports))?.split();
    let process = Process::new(streams);
    container.processes.borrow_mut().insert(String::new(), Rc::clone(&process));
    let timeout = if kata_container::fills_volumes(&spec) { FILL_TIMEOUT } else { LAUNCH_TIMEOUT };
    let params = CreateParams {
        id: container.id.clone(),
        rootfs: container.rootfs.clone(),
        spec,
        string_user: request.string_user,
        cgroup_parent: agent.cgroup_parent.clone(),
        oom_group: false,
        stdio,
    };
    let began = Instant::now();
    let pending = kata_container::Container::create(params).map_err(|error| status_of(&error))?;
    let cloned_us = began.elapsed().as_micros();
    watch_process(agent, container, &process, pending.pid());
    let mut made = finish(pending, timeout).await?;
    // One that was killed meanwhile has not run its command: no file of a share is busy.
    *container.mounts.borrow_mut() = MountNamespace::of(made.init.pid).ok();
    log::debug!(
        "container",
        "{}: cloned after {cloned_us} us, set up after {} us",
        container.id,
        began.elapsed().as_micros()
    );
    if let Some(master) = made.init.master.take() {
        process.adopt_terminal(master)?;
    }
    process.connect(connections);
    // An immediate end is no error here: whoever waits for the process learns it.
    if process.exited().is_none() {
        if let Err(error) = agent.sandbox.borrow_mut().note_container(&container.id, made.init.pid) {
            log::warning!("container", "pid namespace of {}: {error}", container.id);
        }
    }
    watch_oom(agent, container, made.memory_events());
    *container.inner.borrow_mut() = Some(made);
    Ok(())
}

/// Namespaces as Kata means them: a pid entry is the agent's business whether the host sends one or not (every entry of
/// that kind is replaced by one), ipc and uts are the sandbox's, the network is the machine's.
fn set_namespaces(agent: &Agent, spec: &mut Spec, pid_path: String) {
    let linux = spec.linux.get_or_insert_with(Default::default);
    let mut kept: Vec<LinuxNamespace> = Vec::new();
    for mut entry in std::mem::take(&mut linux.namespaces) {
        if matches!(entry.r#type.as_str(), "pid" | "network" | "time")
            || kept.iter().any(|other| other.r#type == entry.r#type)
        {
            continue;
        }
        if let Some(path) = agent.sandbox.borrow().pinned_namespace(&entry.r#type) {
            entry.path = path;
        }
        kept.push(entry);
    }
    kept.push(LinuxNamespace { r#type: "pid".into(), path: pid_path });
    linux.namespaces = kept;
}

/// StartContainer. A second call is refused at once, whatever the first one is doing.
pub async fn start(container: Rc<Container>) -> Result<()> {
    match container.phase.get() {
        Phase::Created => {}
        phase => {
            let text = format!("container: {:?} cannot be started: it is {phase:?}", container.id);
            return Err(status(Code::FailedPrecondition, text));
        }
    }
    container.phase.set(Phase::Starting);
    let pending = container.with(kata_container::Container::start)?;
    let outcome = finish(pending, LAUNCH_TIMEOUT).await;
    if container.phase.get() == Phase::Starting {
        container.phase.set(Phase::Started);
    }
    outcome
}

/// ExecProcess.
pub async fn exec(agent: Rc<Agent>, container: Rc<Container>, request: ExecProcessRequest) -> Result<()> {
    let wanted = request.process.ok_or_else(|| invalid("process: the request has no Process"))?;
    let exec_id = request.exec_id;
    if exec_id.is_empty() || exec_id == container.id || exec_id.len() > 256 {
        return Err(invalid(format!("process: exec id {exec_id:?} is empty, too long, or the container's")));
    }
    let running = container.phase.get() == Phase::Started && container.process("")?.exited().is_none();
    if !running || container.paused.get() {
        let state = if container.paused.get() { "paused" } else { "not running" };
        return Err(status(Code::FailedPrecondition, format!("process: container {:?} is {state}", container.id)));
    }
    container.forget_reported();
    let ports = [request.stdin_port, request.stdout_port, request.stderr_port];
    let (stdio, streams) = prepare(wanted.terminal, wants_input(ports))?.split();
    let process = Process::new(streams);
    container.reserve(&exec_id, &process)?;
    let outcome = async {
        let connections = agent.streams.claim_all(ports).await?;
        let string_user = request.string_user.as_ref();
        let pending = container.with(|inner| inner.exec(&wanted, string_user, stdio))?;
        watch_process(&agent, &container, &process, pending.pid());
        let mut made = finish(pending, LAUNCH_TIMEOUT).await?;
        if let Some(master) = made.master.take() {
            process.adopt_terminal(master)?;
        }
        process.connect(connections);
        Ok(())
    }
    .await;
    if outcome.is_err() {
        container.processes.borrow_mut().remove(&exec_id);
    }
    outcome
}

/// RemoveContainer: ends every process, then gives up the container's storages. `timeout` zero: the agent's own bound.
pub async fn remove(agent: Rc<Agent>, container: Rc<Container>, timeout: Duration) -> Result<()> {
    if matches!(container.phase.get(), Phase::Creating | Phase::Removing) {
        let text = format!("container: {:?} cannot be removed: it is {:?}", container.id, container.phase.get());
        return Err(status(Code::FailedPrecondition, text));
    }
    let before = container.phase.replace(Phase::Removing);
    let bound = if timeout.is_zero() { REMOVE_TIMEOUT } else { timeout };
    let emptying = async {
        crate::tools::end(&container).await;
        empty(&container).await
    };
    let emptied = tokio::time::timeout(bound, emptying).await.unwrap_or_else(|_| {
        let text = format!("container: {:?} still has processes or mounts after {} s", container.id, bound.as_secs());
        Err(status(Code::DeadlineExceeded, text))
    });
    if let Err(error) = emptied {
        container.phase.set(before);
        return Err(error);
    }
    if let Some(watch) = container.oom_watch.take() {
        watch.abort();
    }
    container.report_oom(&agent);
    if let Err(error) = container.with(|inner| inner.destroy(Duration::ZERO)) {
        container.phase.set(before);
        return Err(error);
    }
    container.inner.borrow_mut().take();
    for process in container.processes.take().into_values() {
        process.note_removed();
    }
    agent.containers.borrow_mut().remove(&container.id);
    agent.storages.release_all(&container.storages.take());
    remove_directories(&agent, &container.id);
    Ok(())
}

/// Kills until the cgroup is empty and the first process is reaped; then the mounts go.
async fn empty(container: &Container) -> Result<()> {
    kill_until_empty(container).await?;
    let mounts = container.mounts.take();
    if let Some(mounts) = mounts {
        mounts.release().await;
    }
    Ok(())
}

async fn kill_until_empty(container: &Container) -> Result<()> {
    let cgroup = container.with(|inner| Ok(inner.cgroup().to_owned()))?;
    let events = WatchedFile::open(&cgroup.join("cgroup.events")).ok();
    container.kill_all();
    container.process("")?.wait().await?;
    let Some(events) = events else { return Ok(()) };
    while events.read().is_ok_and(|text| text.contains("populated 1")) {
        container.kill_all();
        if events.changed().await.is_err() {
            break;
        }
    }
    Ok(())
}

fn remove_directories(agent: &Agent, id: &str) {
    let _ = std::fs::remove_dir_all(agent.options.run_dir.join("secrets").join(id));
    // Only empty ones: anything inside belongs to somebody.
    for directory in [agent.options.run_dir.join(id), agent.options.run_dir.join("image").join(id)] {
        let _ = std::fs::remove_dir(directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_ids_are_checked() {
        for good in ["a", "ab", "a1_.-", &"x".repeat(128)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", "-ab", "a/b", "..", "a b", "é1", "a\0b", &"x".repeat(129)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }
}
