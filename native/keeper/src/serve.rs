//! `kata-keeper serve`: from katad's child to the sandbox's keeper (docs/ARCHITECTURE.md, "katad and the keeper").
use crate::arguments::Arguments;
use crate::bounded_file::BoundedFile;
use crate::config::{self, Config};
use crate::door::{self, Door};
use crate::journal::Journal;
use crate::keeper::{AgentState, Keeper};
use crate::network::Network;
use crate::operations::Operations;
use crate::share::Shares;
use crate::tokens::Tokens;
use crate::vsock::GuestVsock;
use crate::{agent, cgroups, console, data, engine, service, shutdown, sys};
use std::cell::{Cell, RefCell};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use tokio::net::UnixListener;
use tokio::sync::watch;

/// katad reads `ready\n` or an error from it.
pub const READY_FD: i32 = 3;
const LOG_BYTES: u64 = 256 * 1024;
/// Marks the second execution, which already runs in the cgroups.
const ENTERED: &str = "--entered";

pub fn run(mut arguments: Arguments) -> Result<(), String> {
    // Nothing has been opened yet: what is at this number came from the caller, what is above it leaked from there.
    sys::close_from(READY_FD + 1);
    let mut ready = sys::set_cloexec(READY_FD, true).is_ok().then(|| unsafe { File::from_raw_fd(READY_FD) });
    let result = serve(&mut arguments, &mut ready);
    if let (Err(problem), Some(pipe)) = (&result, &mut ready) {
        let _ = writeln!(pipe, "{}", problem.replace('\n', " "));
    }
    result
}

fn serve(arguments: &mut Arguments, ready: &mut Option<File>) -> Result<(), String> {
    let dir = PathBuf::from(arguments.value("--dir")?);
    let uid = arguments.value("--uid")?;
    let config_path = arguments.value("--config")?;
    let entered = arguments.flag(ENTERED);
    arguments.end()?;
    let config = config::load(Path::new(&config_path))?;
    if config.uid != uid || !dir.is_absolute() {
        return Err(format!("--uid {uid} and the configuration's {} differ, or --dir is not absolute", config.uid));
    }
    if !entered {
        cgroups::leave();
        for cgroup in &config.cgroups {
            cgroups::enter(cgroup).map_err(|error| format!("enter cgroup {}: {error}", cgroup.display()))?;
        }
        let problem = Command::new("/proc/self/exe")
            .arg0("kata-keeper")
            .args(["serve", "--dir"])
            .arg(&dir)
            .args(["--uid", &uid, "--config", &config_path, ENTERED])
            .keep_ready_fd(ready.is_some())
            .exec();
        return Err(format!("re-execute: {problem}"));
    }
    let host_mounts = isolate(&dir).map_err(|(step, error)| format!("{step}: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("runtime: {error}"))?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let mut stop = start(config, dir, host_mounts).map_err(|(step, error)| format!("{step}: {error}"))?;
        if let Some(mut pipe) = ready.take() {
            pipe.write_all(b"ready\n").map_err(|error| format!("ready pipe: {error}"))?;
        }
        leave_stdio();
        let _ = stop.wait_for(|stop| *stop).await;
        Ok(())
    })
}

trait KeepReadyFd {
    fn keep_ready_fd(&mut self, present: bool) -> &mut Self;
}

impl KeepReadyFd for Command {
    fn keep_ready_fd(&mut self, present: bool) -> &mut Self {
        if present {
            let _ = sys::set_cloexec(READY_FD, false);
        }
        self
    }
}

type Step<T> = Result<T, (String, io::Error)>;

fn step<T>(what: &str, result: io::Result<T>) -> Step<T> {
    result.map_err(|error| (what.to_owned(), error))
}

/// Own session, own mount namespace, the shared directory. Gives the namespace that the keeper came from.
fn isolate(dir: &Path) -> Step<OwnedFd> {
    unsafe {
        libc::umask(0o077);
        // Fails only when the keeper already leads a session.
        libc::setsid();
    }
    step("working directory", std::env::set_current_dir("/"))?;
    step("RLIMIT_NOFILE", sys::raise_open_files())?;
    step("permissions of the directory", fs::set_permissions(dir, Permissions::from_mode(0o700)))?;
    let host_mounts = step("mount namespace", File::open("/proc/self/ns/mnt"))?;
    step("unshare", sys::unshare_mounts())?;
    step("make / a slave", sys::mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_SLAVE, None))?;
    let shared = dir.join("shared");
    let mut builder = fs::DirBuilder::new();
    // Every container's user walks through it in the guest; on the host the directory above is closed.
    step("shared directory", builder.recursive(true).mode(0o755).create(&shared))?;
    step("shared directory", fs::set_permissions(&shared, Permissions::from_mode(0o755)))?;
    step("bind the shared directory", sys::mount(Some(&shared), &shared, None, libc::MS_BIND, None))?;
    // Private first: a bind mount is in its source's peer group, and what is shared here must not reach the host.
    step("private shared directory", sys::mount(None, &shared, None, libc::MS_PRIVATE, None))?;
    step("shared propagation", sys::mount(None, &shared, None, libc::MS_SHARED, None))?;
    Ok(host_mounts.into())
}

fn listen(path: &Path) -> Step<UnixListener> {
    let what = path.display().to_string();
    if let Err(error) = fs::remove_file(path) {
        if error.kind() != io::ErrorKind::NotFound {
            return Err((what, error));
        }
    }
    let listener = step(&what, UnixListener::bind(path))?;
    step(&what, fs::set_permissions(path, Permissions::from_mode(0o600)))?;
    Ok(listener)
}

/// Opens every socket, then starts the tasks.
fn start(config: Config, dir: PathBuf, host_mounts: OwnedFd) -> Step<watch::Receiver<bool>> {
    let (vsock, ready_listener) = step("vsock", GuestVsock::open(&config.vsock))?;
    let journal = step("journal.jsonl", Journal::create(dir.join("journal.jsonl")))?;
    let console_listener = listen(&dir.join("console.sock"))?;
    let data_listener = listen(&dir.join("d.sock"))?;
    let control_listener = listen(&dir.join("k.sock"))?;
    let task_listener = config.task_socket.as_deref().map(listen).transpose()?;
    let log = BoundedFile::new(dir.join("keeper.log"), LOG_BYTES);
    let keeper = Rc::new(Keeper {
        shares: RefCell::new(Shares::new(&dir)),
        cgroups: RefCell::new(config.cgroups.clone()),
        engine: RefCell::new(config.engine.clone()),
        netns: RefCell::default(),
        network: Network::default(),
        card: RefCell::default(),
        door: config.task_socket.is_some().then(Door::new),
        operations: Operations::default(),
        config,
        dir,
        host_mounts: RefCell::new(host_mounts),
        log: RefCell::new(log),
        journal: RefCell::new(journal),
        vsock,
        spawned: RefCell::default(),
        spawning: RefCell::default(),
        memory: RefCell::default(),
        processes: RefCell::default(),
        creating: RefCell::default(),
        tokens: RefCell::new(Tokens::default()),
        clients: Cell::new(0),
        oom: RefCell::default(),
        agent: watch::Sender::new(AgentState::Waiting),
        ready: RefCell::default(),
        panic: watch::Sender::new(None),
        console_open: watch::Sender::new(false),
        end: watch::Sender::new(None),
        released: watch::Sender::new(false),
        engines: watch::Sender::new(0),
        stop: watch::Sender::new(false),
    });
    let stop = keeper.stop.subscribe();
    keeper.note(&format!("kata-keeper {} serves sandbox {}", env!("CARGO_PKG_VERSION"), keeper.config.uid));
    tokio::task::spawn_local(agent::await_ready(Rc::clone(&keeper), ready_listener));
    tokio::task::spawn_local(console::serve(Rc::clone(&keeper), console_listener));
    tokio::task::spawn_local(data::serve(Rc::clone(&keeper), data_listener));
    tokio::task::spawn_local(service::serve(Rc::clone(&keeper), control_listener));
    if let Some(listener) = task_listener {
        tokio::task::spawn_local(door::serve(Rc::clone(&keeper), listener));
    }
    tokio::task::spawn_local(engine::watch(Rc::clone(&keeper)));
    tokio::task::spawn_local(shutdown::watch_signals(Rc::clone(&keeper)));
    if keeper.door.is_some() {
        tokio::task::spawn_local(door::watch_use(keeper));
    } else {
        tokio::task::spawn_local(shutdown::watch_orphan(keeper));
    }
    Ok(stop)
}

/// The caller's terminal or log is not the keeper's: it writes `keeper.log`, and a panic's text goes there, too.
fn leave_stdio() {
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        use std::os::fd::AsRawFd;
        for number in 0..=1 {
            unsafe { libc::dup2(null.as_raw_fd(), number) };
        }
    }
}
