//! Starts an engine again when the sandbox lives and none is connected.
use crate::keeper::Keeper;
use crate::sys;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::time::timeout;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
const MAX_STARTS: u32 = 20;
/// An engine that stayed connected so long is well: the next loss starts from the beginning.
const HEALTHY: Duration = Duration::from_secs(60);
/// An engine has so long from its start, or from the keeper's, to say Hello.
const FIRST_HELLO: Duration = Duration::from_secs(10);

pub async fn watch(keeper: Rc<Keeper>) {
    if keeper.config.engine.is_empty() {
        return;
    }
    let mut engines = keeper.engines.subscribe();
    let _ = timeout(FIRST_HELLO, engines.wait_for(|engines| *engines > 0)).await;
    let (mut starts, mut delay) = (0, FIRST_DELAY);
    loop {
        let connected = Instant::now();
        if engines.wait_for(|engines| *engines == 0).await.is_err() {
            return;
        }
        if connected.elapsed() >= HEALTHY {
            (starts, delay) = (0, FIRST_DELAY);
        }
        if timeout(delay, engines.wait_for(|engines| *engines > 0)).await.is_ok() {
            continue;
        }
        delay = (delay * 2).min(LONGEST_DELAY);
        // A living engine takes the sandbox up by itself; a second one would only lose the lock.
        if !keeper.lives() || UnixStream::connect(&keeper.config.engine_socket).await.is_ok() {
            continue;
        }
        if starts == MAX_STARTS {
            keeper.note(&format!(
                "the engine did not come back after {MAX_STARTS} starts; the sandbox goes on without one"
            ));
            let _ = engines.wait_for(|engines| *engines > 0).await;
            continue;
        }
        starts += 1;
        match start(&keeper) {
            Ok(pid) => {
                keeper.note(&format!("engine started as pid {pid}, start {starts} of {MAX_STARTS}"));
                // An engine that is starting is left to it; one that ended early (another holds the lock) is not waited for.
                let ended = tokio::task::spawn_local(reap(pid));
                tokio::select! {
                    _ = ended => {}
                    _ = timeout(FIRST_HELLO, engines.wait_for(|engines| *engines > 0)) => {}
                }
            }
            Err(error) => keeper.note(&format!("engine {}: {error}", keeper.config.engine[0])),
        }
    }
}

/// Starts the engine outside of everything that is the sandbox's: mount namespace, directory, environment, session. Its
/// cgroup is entered by `kata-keeper daemon --cgroup` of the engine's argv.
fn start(keeper: &Keeper) -> io::Result<i32> {
    let argv = &keeper.config.engine;
    let host_mounts = keeper.host_mounts.as_raw_fd();
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).env_clear().envs(keeper.config.engine_env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: system calls only.
    unsafe {
        command.pre_exec(move || {
            sys::check(libc::setns(host_mounts, libc::CLONE_NEWNS) as libc::c_long)?;
            sys::check(libc::chdir(c"/".as_ptr()) as libc::c_long)?;
            sys::check(libc::setsid() as libc::c_long)?;
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            sys::check(libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) as libc::c_long).map(drop)
        })
    };
    Ok(command.spawn()?.id() as i32)
}

async fn reap(pid: i32) -> io::Result<()> {
    let watcher = sys::watch(sys::pidfd_open(pid)?)?;
    while sys::reap(pid)?.is_none() {
        watcher.readable().await?.clear_ready();
    }
    Ok(())
}
