//! The VMM and its helpers: started with a parent-death signal, watched by pidfd, recorded in `pids.json`.
use crate::bounded_file::BoundedFile;
use crate::card;
use crate::failure;
use crate::json::Writer;
use crate::keeper::Keeper;
use crate::netns;
use crate::network;
use crate::ready_socket;
use crate::sys;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::{CreateMemoryRequest, SignalSpawnedRequest, SpawnRequest, SpawnResponse};
use kata_protocol::ttrpc::{status, Code};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// The name of the VMM among the spawned processes.
pub const VMM: &str = "vmm";
/// The memory name under which a child inherits the kernel's vsock device.
const VHOST_VSOCK: &str = "vhost-vsock";
/// What the name of a tap's device begins with; no memory's does.
const TAP: &str = "tap:";
const STDERR_BYTES: u64 = 256 * 1024;
const MAX_SPAWNED: usize = 64;
const MAX_MEMORIES: usize = 16;
/// Inherited descriptors get numbers below this; the keeper's copies of them are made above.
const FIRST_FREE_FD: RawFd = 256;

pub struct Spawned {
    pub name: String,
    pub pid: i32,
    pub start_time_ticks: u64,
    pub essential: bool,
    pub started: Instant,
    pidfd: OwnedFd,
    /// Its output came to its end.
    pub silent: Rc<watch::Sender<bool>>,
    /// The waitpid status once it ended.
    pub ended: watch::Sender<Option<i32>>,
}

impl Spawned {
    pub fn runs(&self) -> bool {
        self.ended.borrow().is_none()
    }

    pub fn signal(&self, signal: i32) -> io::Result<()> {
        sys::pidfd_send_signal(self.pidfd.as_fd(), signal)
    }

    pub async fn wait(&self) -> i32 {
        let mut ended = self.ended.subscribe();
        let status = ended.wait_for(Option::is_some).await;
        // The sender lives as long as this process: the value is there.
        status.ok().and_then(|status| *status).unwrap_or_default()
    }
}

/// "exited with code 1" or "killed by signal 9", for people.
pub fn describe_wait_status(wait_status: i32) -> String {
    if libc::WIFSIGNALED(wait_status) {
        format!("killed by signal {}", libc::WTERMSIG(wait_status))
    } else {
        format!("exited with code {}", libc::WEXITSTATUS(wait_status))
    }
}

/// `[A-Za-z0-9][A-Za-z0-9_.-]{0,127}`: a name that is safe as a file name.
pub fn is_name(text: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.len() <= 128 && text.bytes().all(safe) && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

pub fn create_memory(keeper: &Keeper, request: CreateMemoryRequest) -> Result<(), Status> {
    let mut memory = keeper.memory.borrow_mut();
    if !is_name(&request.name) || request.name == VHOST_VSOCK || request.size_bytes > i64::MAX as u64 {
        return Err(status(
            Code::InvalidArgument,
            format!("memory {:?} of {} bytes", request.name, request.size_bytes),
        ));
    }
    if memory.contains_key(&request.name) {
        return Err(status(Code::AlreadyExists, format!("memory {} exists", request.name)));
    }
    if memory.len() >= MAX_MEMORIES {
        return Err(status(Code::ResourceExhausted, format!("{MAX_MEMORIES} memories exist")));
    }
    let fd = sys::memfd(&request.name, request.size_bytes).map_err(|error| {
        failure::from_io(&format!("memfd {} of {} bytes", request.name, request.size_bytes), &error)
    })?;
    memory.insert(request.name, fd);
    Ok(())
}

pub fn signal_spawned(keeper: &Keeper, request: SignalSpawnedRequest) -> Result<(), Status> {
    let gone = || status(Code::NotFound, format!("no process {:?} runs", request.name));
    let process = keeper.find_spawned(&request.name).filter(|process| process.runs()).ok_or_else(gone)?;
    match process.signal(request.signal as i32) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(gone()),
        result => {
            result.map_err(|error| failure::from_io(&format!("signal {} to {}", request.signal, request.name), &error))
        }
    }
}

/// Starts a process and answers when it is ready (see `SpawnRequest`). A process that does not become ready is killed.
pub async fn spawn(keeper: &Rc<Keeper>, request: SpawnRequest) -> Result<SpawnResponse, Status> {
    check(keeper, &request)?;
    keeper.spawning.borrow_mut().insert(request.name.clone());
    let result = start(keeper, &request);
    keeper.spawning.borrow_mut().remove(&request.name);
    let process = result?;
    keeper.note(&format!("spawned {} as pid {}", process.name, process.pid));
    tokio::task::spawn_local(crate::ending::watch_process(Rc::clone(keeper), Rc::clone(&process)));
    if let Err(error) = write_pids(keeper) {
        // Without its record a helper could outlive a killed keeper unseen.
        let _ = process.signal(libc::SIGKILL);
        return Err(failure::from_io("pids.json", &error));
    }
    if !request.ready_socket.is_empty() {
        let timeout = Duration::from_millis(u64::from(request.ready_timeout_ms.clamp(1, 600_000)));
        ready_socket::wait(keeper, &process, Path::new(&request.ready_socket), timeout).await?;
    }
    Ok(SpawnResponse { pid: process.pid, start_time_ticks: process.start_time_ticks })
}

fn check(keeper: &Keeper, request: &SpawnRequest) -> Result<(), Status> {
    if keeper.end_now().is_some() {
        return Err(status(Code::FailedPrecondition, "the sandbox has ended"));
    }
    if !is_name(&request.name) || request.argv.is_empty() || !request.argv[0].starts_with('/') {
        return Err(status(
            Code::InvalidArgument,
            format!("process {:?} needs a name and an absolute program", request.name),
        ));
    }
    let texts = request.argv.iter().chain(&request.env);
    if texts.clone().any(|text| text.contains('\0')) || request.env.iter().any(|pair| !pair.contains('=')) {
        return Err(status(Code::InvalidArgument, "argv and env hold no NUL, env holds NAME=VALUE"));
    }
    if keeper.spawning.borrow().contains(&request.name)
        || keeper.find_spawned(&request.name).is_some_and(|old| old.runs())
    {
        return Err(status(Code::AlreadyExists, format!("a process {:?} runs", request.name)));
    }
    if keeper.spawned.borrow().len() >= MAX_SPAWNED {
        return Err(status(Code::ResourceExhausted, format!("{MAX_SPAWNED} processes were started")));
    }
    Ok(())
}

fn start(keeper: &Rc<Keeper>, request: &SpawnRequest) -> Result<Rc<Spawned>, Status> {
    let describe =
        |error: &io::Error| failure::from_io(&format!("exec {} for {}", request.argv[0], request.name), error);
    let inherited = inherited_fds(keeper, request)?;
    let netns = request.in_netns.then(|| netns::raw_fd(keeper)).transpose()?;
    let placeholders = Placeholders::occupy(&inherited).map_err(|error| describe(&error))?;
    let (output_end, reading_end) = pipe::pipe().map_err(|error| describe(&error))?;
    let mut file = BoundedFile::new(stderr_path(keeper, &request.name), STDERR_BYTES);
    file.write(format!("--- {} started\n", request.name).as_bytes());
    let output = output_end.into_blocking_fd().map_err(|error| describe(&error))?;
    let errors = output.try_clone().map_err(|error| describe(&error))?;
    let mut command = Command::new(&request.argv[0]);
    command.args(&request.argv[1..]).env_clear().stdin(Stdio::null()).stdout(output).stderr(errors);
    command.envs(request.env.iter().filter_map(|pair| pair.split_once('=')));
    let parent = std::process::id() as libc::pid_t;
    // SAFETY: the closure makes system calls only and allocates nothing.
    unsafe { command.pre_exec(move || prepare_child(parent, netns, &inherited)) };
    let started = Instant::now();
    let child = command.spawn();
    drop((command, placeholders));
    let pid = child.map_err(|error| describe(&error))?.id() as i32;
    let silent = Rc::new(watch::Sender::new(false));
    tokio::task::spawn_local(collect_output(reading_end, file, Rc::clone(&silent)));
    let pidfd = sys::pidfd_open(pid).map_err(|error| describe(&error))?;
    let start_time_ticks = sys::start_time_ticks(pid).map_err(|error| describe(&error))?;
    let process = Rc::new(Spawned {
        name: request.name.clone(),
        pid,
        start_time_ticks,
        essential: request.essential,
        started,
        pidfd,
        silent,
        ended: watch::Sender::new(None),
    });
    let mut spawned = keeper.spawned.borrow_mut();
    spawned.retain(|old| old.name != request.name || old.runs());
    spawned.push(Rc::clone(&process));
    Ok(process)
}

/// Runs in the child between fork and exec.
fn prepare_child(parent: libc::pid_t, netns: Option<RawFd>, inherited: &[(RawFd, RawFd)]) -> io::Result<()> {
    if let Some(netns) = netns {
        netns::enter(netns)?;
    }
    // The main thread forks, so the signal comes when the keeper ends and not when some thread of it does (prctl(2)).
    sys::check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } as libc::c_long)?;
    if unsafe { libc::getppid() } != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    sys::check(unsafe { libc::setsid() } as libc::c_long)?;
    // All copies are made before the first target is overwritten: a target may be another memory's number.
    let mut copies = [0; MAX_MEMORIES];
    for (copy, (source, _)) in copies.iter_mut().zip(inherited) {
        *copy =
            sys::check(unsafe { libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, FIRST_FREE_FD) } as libc::c_long)? as RawFd;
    }
    for (copy, (_, target)) in copies.iter().zip(inherited) {
        sys::check(unsafe { libc::dup2(*copy, *target) } as libc::c_long)?;
    }
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    unsafe { libc::sigemptyset(&mut none) };
    sys::check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) } as libc::c_long).map(drop)
}

/// (source, target) descriptor numbers of what the child inherits.
fn inherited_fds(keeper: &Keeper, request: &SpawnRequest) -> Result<Vec<(RawFd, RawFd)>, Status> {
    let memory = keeper.memory.borrow();
    let mut pairs: Vec<(RawFd, RawFd)> = Vec::new();
    for fd in &request.fds {
        let target_is_free =
            (3..FIRST_FREE_FD).contains(&fd.target_fd) && pairs.iter().all(|pair| pair.1 != fd.target_fd);
        if !target_is_free || pairs.len() >= MAX_MEMORIES {
            return Err(status(Code::InvalidArgument, format!("target descriptor {}", fd.target_fd)));
        }
        let source = match fd.memory.as_str() {
            VHOST_VSOCK => keeper.vsock.device().map(AsRawFd::as_raw_fd),
            name => match name.strip_prefix(TAP) {
                Some(tap) => network::device(keeper, tap).or_else(|| card::device(keeper, tap)),
                None => memory.get(name).map(AsRawFd::as_raw_fd),
            },
        };
        let source = source.ok_or_else(|| status(Code::NotFound, format!("no memory {:?}", fd.memory)))?;
        pairs.push((source, fd.target_fd));
    }
    Ok(pairs)
}

/// Keeps the children's target numbers taken in the keeper while it forks, so that the pipe on which std reports a failed
/// exec never has one of them.
struct Placeholders(#[expect(dead_code, reason = "held for its descriptors")] Vec<OwnedFd>);

impl Placeholders {
    fn occupy(inherited: &[(RawFd, RawFd)]) -> io::Result<Self> {
        let mut held = Vec::new();
        for (source, target) in inherited {
            if unsafe { libc::fcntl(*target, libc::F_GETFD) } < 0 {
                sys::check(unsafe { libc::dup3(*source, *target, libc::O_CLOEXEC) } as libc::c_long)?;
                // SAFETY: the number was free and now is this copy.
                held.push(unsafe { OwnedFd::from_raw_fd(*target) });
            }
        }
        Ok(Placeholders(held))
    }
}

pub fn stderr_path(keeper: &Keeper, name: &str) -> PathBuf {
    keeper.dir.join(format!("{name}.stderr"))
}

async fn collect_output(mut output: pipe::Receiver, mut file: BoundedFile, silent: Rc<watch::Sender<bool>>) {
    let mut buffer = [0; 2048];
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        file.write(&buffer[..count]);
    }
    silent.send_replace(true);
}

/// Waits until the process has ended, ends what it left behind, and reaps it.
pub async fn reap(process: &Spawned) -> io::Result<i32> {
    let watcher = sys::watch(process.pidfd.try_clone()?)?;
    loop {
        let mut guard = watcher.readable().await?;
        // What the process started and left behind is in its session's group, whose number is held until it is reaped.
        if sys::has_ended(process.pid) {
            unsafe { libc::kill(-process.pid, libc::SIGKILL) };
        }
        if let Some(wait_status) = sys::reap(process.pid)? {
            return Ok(wait_status);
        }
        guard.clear_ready();
    }
}

/// Writes `pids.json` for `kata-keeper cleanup`.
pub fn write_pids(keeper: &Keeper) -> io::Result<()> {
    let running: Vec<String> = keeper
        .spawned
        .borrow()
        .iter()
        .filter(|process| process.runs())
        .map(|process| {
            let entry = Writer::object().string("name", &process.name).raw("pid", process.pid);
            entry.raw("start_time_ticks", process.start_time_ticks).end()
        })
        .collect();
    let text = Writer::object()
        .raw("version", 1)
        .string("boot_id", &sys::boot_id()?)
        .raw("processes", format!("[{}]", running.join(",")))
        .end();
    let temporary = keeper.dir.join("pids.json.new");
    std::fs::write(&temporary, text + "\n")?;
    std::fs::rename(temporary, keeper.dir.join("pids.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_file_names() {
        assert!(is_name("vmm") && is_name("a.b-c_9"));
        for bad in ["", ".", "..", "-a", "a/b", "a b", "é", &"x".repeat(129)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn describes_wait_statuses() {
        assert_eq!(describe_wait_status(9), "killed by signal 9");
        assert_eq!(describe_wait_status(3 << 8), "exited with code 3");
    }
}
