//! Starts an engine again when the sandbox lives and none is connected. A sandbox with a door tells the engine that it is there.
use crate::config::{self, EngineStart};
use crate::daemon::LOCKED;
use crate::keeper::Keeper;
use crate::spawn::describe_wait_status;
use crate::sys;
use kata_protocol::keeper::HelloRequest;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
const MAX_STARTS: u32 = 20;
/// An engine that stayed connected so long is well: the next loss starts from the beginning.
const HEALTHY: Duration = Duration::from_secs(60);
/// An engine has so long from its start, or from the keeper's, to say Hello.
const FIRST_HELLO: Duration = Duration::from_secs(10);
/// How often the socket of an engine that is coming up is tried, when containerd waits.
const LISTEN_TICK: Duration = Duration::from_millis(10);
/// An engine that recovers may answer late; it says Hello before.
const ANNOUNCE_BOUND: Duration = Duration::from_secs(30);
const MAX_ANSWER_BYTES: u64 = 4096;

type Engines = watch::Receiver<usize>;

pub async fn watch(keeper: Rc<Keeper>) {
    let mut engines = keeper.engines.subscribe();
    let mut delay = Duration::ZERO;
    // The engine that started this keeper connects by itself; behind a door nobody knows of it yet.
    if keeper.door.is_none() {
        let _ = timeout(FIRST_HELLO, engines.wait_for(|engines| *engines > 0)).await;
        delay = FIRST_DELAY;
    }
    let mut starts = 0;
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
        delay = (delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY);
        // A living engine takes the sandbox up by itself; a second one would only lose the lock.
        if !keeper.lives() || reach(&keeper, &mut engines).await || keeper.engine.borrow().argv.is_empty() {
            continue;
        }
        if starts == MAX_STARTS {
            keeper.note(&format!(
                "the engine did not come back after {MAX_STARTS} starts; the sandbox goes on without one"
            ));
            wait_for_reason(&keeper, &mut engines).await;
            // One start for each call that comes.
            starts -= 1;
            continue;
        }
        starts += 1;
        match start(&keeper) {
            Ok(pid) => {
                keeper.note(&format!("engine started as pid {pid}, start {starts} of {MAX_STARTS}"));
                if come_up(&keeper, &mut engines, pid).await {
                    delay = Duration::ZERO;
                }
            }
            Err(error) => trouble(&keeper, format!("the engine cannot be started: {error}{}", absent(&keeper))),
        }
    }
}

/// Notes why there is no engine; a call that waits in vain is refused with it.
fn trouble(keeper: &Keeper, text: String) {
    keeper.note(&text);
    if let Some(door) = &keeper.door {
        *door.trouble.borrow_mut() = text;
    }
}

/// Whether an engine listens. Behind a door it is told of this sandbox, and has a while to connect.
async fn reach(keeper: &Keeper, engines: &mut Engines) -> bool {
    let Ok(stream) = UnixStream::connect(&keeper.config.engine_socket).await else { return false };
    if keeper.door.is_none() {
        return true;
    }
    let announced = timeout(ANNOUNCE_BOUND, announce(keeper, stream));
    let answer = tokio::select! {
        answer = announced => answer.unwrap_or_else(|error| Err(error.into())),
        _ = engines.wait_for(|engines| *engines > 0) => Ok(200),
    };
    let problem = match answer {
        Ok(200) => {
            let _ = timeout(FIRST_HELLO, engines.wait_for(|engines| *engines > 0)).await;
            return true;
        }
        Ok(status) => format!("HTTP status {status}"),
        Err(error) => error.to_string(),
    };
    let socket = keeper.config.engine_socket.display();
    trouble(keeper, format!("the engine at {socket} does not take this sandbox: {problem}"));
    true
}

/// `POST /v1/doors/<uid>`; gives the answer's status.
async fn announce(keeper: &Keeper, mut stream: UnixStream) -> io::Result<u16> {
    let uid = &keeper.config.uid;
    let request =
        format!("POST /v1/doors/{uid} HTTP/1.1\r\nhost: katad\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
    parse_status(&answer).ok_or_else(|| io::Error::other("its answer is no HTTP"))
}

/// The code of an HTTP/1 status line.
fn parse_status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

/// Until there is a reason to look for an engine again.
async fn wait_for_reason(keeper: &Keeper, engines: &mut Engines) {
    let call = async {
        match &keeper.door {
            Some(door) => drop(door.came.subscribe().changed().await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = engines.wait_for(|engines| *engines > 0) => {}
        () = call => {}
    }
}

/// Waits for an engine that is starting. `true`: one listens that does not know of this sandbox yet.
async fn come_up(keeper: &Rc<Keeper>, engines: &mut Engines, pid: i32) -> bool {
    let failed = async {
        match tokio::task::spawn_local(reap(pid)).await {
            // Another one holds the lock and is coming up.
            Ok(Ok(status))
                if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == LOCKED && keeper.door.is_some() =>
            {
                std::future::pending().await
            }
            Ok(Ok(status)) => {
                trouble(keeper, format!("the engine {}{}", describe_wait_status(status), absent(keeper)));
            }
            _ => {}
        }
    };
    let listening = async {
        while UnixStream::connect(&keeper.config.engine_socket).await.is_err() {
            sleep(LISTEN_TICK).await;
        }
    };
    tokio::select! {
        biased;
        _ = timeout(FIRST_HELLO, engines.wait_for(|engines| *engines > 0)) => false,
        () = listening, if keeper.door.is_some() => true,
        () = failed => false,
    }
}

/// The engine that connected is the one that is started again: it may be of another build, in another place, than the one that the
/// keeper was started with.
pub fn learn(keeper: &Keeper, hello: &HelloRequest) {
    let (argv, env) = (&hello.engine, &hello.engine_env);
    let known = keeper.engine.borrow().clone();
    let pairs = known.env.iter().map(|(name, value)| format!("{name}={value}"));
    if argv.is_empty() || (known.argv == *argv && pairs.eq(env.iter().cloned())) {
        return;
    }
    match config::replace_engine(&keeper.dir.join("keeper.json"), argv, env) {
        Ok(engine) => {
            keeper.note(&format!("the engine is from now on started by {}", argv.join(" ")));
            keeper.engine.replace(engine);
        }
        Err(error) => keeper.note(&format!("the engine is started as before, for keeper.json: {error}")),
    }
}

/// What of the engine's programs is not there any more, in words: of `kata-keeper daemon … -- PROGRAM [OPTION]… SCRIPT …`.
fn absent(keeper: &Keeper) -> String {
    let argv = &keeper.engine.borrow().argv;
    let command = argv.iter().position(|word| word == "--").map_or(&[][..], |at| &argv[at + 1..]);
    let script = command.iter().skip(1).find(|word| word.starts_with('/'));
    let mut programs = argv.first().into_iter().chain(command.first()).chain(script);
    match programs.find(|path| path.starts_with('/') && !Path::new(path).exists()) {
        Some(path) => format!(": {path} is not there; `kata ps` of a build that is installed starts that one's engine"),
        None => String::new(),
    }
}

/// Starts the engine outside of everything that is the sandbox's: mount namespace, directory, environment, session. Its
/// cgroups are left by `kata-keeper daemon` of the engine's argv.
fn start(keeper: &Keeper) -> io::Result<i32> {
    let EngineStart { argv, env } = &*keeper.engine.borrow();
    let host_mounts = keeper.host_mounts.borrow().as_raw_fd();
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).env_clear().envs(env.iter().map(|(name, value)| (name, value)));
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

pub async fn reap(pid: i32) -> io::Result<i32> {
    let watcher = sys::watch(sys::pidfd_open(pid)?)?;
    loop {
        if let Some(wait_status) = sys::reap(pid)? {
            return Ok(wait_status);
        }
        watcher.readable().await?.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::parse_status;

    #[test]
    fn reads_the_status_of_an_answer() {
        assert_eq!(parse_status(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), Some(200));
        assert_eq!(parse_status(b"HTTP/1.1 404"), Some(404));
        for bad in [&b""[..], b"HTTP/2 200", b"nonsense", b"HTTP/1.1 \xff", b"HTTP/1.1 99999"] {
            assert_eq!(parse_status(bad), None);
        }
    }
}
