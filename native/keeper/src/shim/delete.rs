//! `delete`: containerd runs it after the end of every task, and when a task's connection broke. It needs no engine and no
//! keeper, ends what nobody else will end, and tells how the task ended as far as that is known.
use super::bundle::{self, Role};
use super::flags::Flags;
use super::places::{self, Lock, Places, MAX_STATE_BYTES};
use super::Settings;
use crate::json::{self, Value};
use crate::{cgroups, cleanup, config, sys};
use kata_protocol::clock;
use kata_protocol::containerd::{DeleteResponse, Timestamp};
use kata_protocol::keeper::{HelloRequest, HelloResponse, ShutdownRequest};
use kata_protocol::ttrpc::Client;
use prost::Message;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// containerd kills this program after 5 s; these are parts of 3.
const LOCK_BOUND: Duration = Duration::from_millis(1000);
const SHUTDOWN_BOUND: Duration = Duration::from_millis(1000);
const EXIT_BOUND: Duration = Duration::from_millis(300);
const KILL_BOUND: Duration = Duration::from_millis(500);
const CGROUP_BOUND: Duration = Duration::from_millis(500);
const KILLED: u32 = 137;
/// A root file system is one mount; some callers left several.
const MAX_UNMOUNTS: usize = 16;

/// The serialised DeleteResponse. What could not be cleaned up is told on stderr, which containerd logs as warnings.
pub fn run(flags: &Flags, settings: &Settings, name: &str) -> Vec<u8> {
    let bundle = match flags.bundle.as_str() {
        "" => std::env::current_dir().unwrap_or_default(),
        path => PathBuf::from(path),
    };
    let mut warnings = Vec::new();
    let places = Places { run: settings.run.clone() };
    let response = match locate(&places, flags, &bundle) {
        Ok(Some((dir, own))) => {
            let response = how_it_ended(&dir, &flags.id);
            if let Err(problems) = end(&dir, own, flags, settings) {
                warnings.extend(problems);
            }
            response
        }
        Ok(None) => killed_now(),
        Err(problem) => {
            warnings.push(problem);
            killed_now()
        }
    };
    if bundle.is_absolute() {
        unmount_rootfs(&bundle.join("rootfs"), &mut warnings);
    }
    for warning in warnings {
        eprintln!("{name} delete: {warning}");
    }
    response.encode_to_vec()
}

/// The sandbox's directory, and whether the id is the sandbox's own.
fn locate(places: &Places, flags: &Flags, bundle: &Path) -> Result<Option<(PathBuf, bool)>, String> {
    let find = |id: &str| {
        let key = places.key(&flags.address, &flags.namespace, id);
        places.find(&key).map_err(|error| format!("{}: {error}", key.path().display()))
    };
    if let Some(dir) = find(&flags.id)? {
        return Ok(Some((dir, true)));
    }
    match bundle::role(bundle)? {
        Some(Role::Container { sandbox_id }) => Ok(find(&sandbox_id)?.map(|dir| (dir, false))),
        _ => Ok(None),
    }
}

fn end(dir: &Path, own: bool, flags: &Flags, settings: &Settings) -> Result<(), Vec<String>> {
    let describe = |problem: String| vec![format!("sandbox {} (task {}): {problem}", dir.display(), flags.id)];
    // An engine that is at work here needs no help.
    if own && is_ending(dir) && UnixStream::connect(&settings.engine_socket).is_ok() {
        return Ok(());
    }
    let lives = places::lives(dir);
    if lives && !own {
        return Ok(());
    }
    let lock = Lock::take(dir, LOCK_BOUND).map_err(|error| describe(error.to_string()))?;
    if lock.is_none() {
        return Ok(());
    }
    let mut problems = Vec::new();
    if !lives && own && !is_ending(dir) {
        // Nobody else may be left to say it: containerd only sees that a connection ended.
        problems.push("its keeper died, and with it its virtual machine and containers".to_owned());
    }
    if lives {
        if let Err(problem) = end_keeper(dir) {
            problems.push(problem);
        }
    }
    problems.extend(end_dead(dir));
    // The sandbox's own end comes last or first; the others' exits are known from its directory until then.
    if own {
        if let Err(error) = places::forget(dir) {
            problems.push(error.to_string());
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(describe(problems.join("; "))),
    }
}

/// Whether the engine's record says that it ends this sandbox.
fn is_ending(dir: &Path) -> bool {
    let Ok(text) = config::read_bounded(&dir.join("sandbox.json"), MAX_STATE_BYTES) else { return false };
    match json::member(&text, "state") {
        Ok(Some(Value::Object(state))) => {
            state.iter().any(|(name, value)| name == "status" && *value == Value::String("ending".to_owned()))
        }
        _ => false,
    }
}

/// Asks the keeper to end its sandbox and itself; one that does not is killed.
fn end_keeper(dir: &Path) -> Result<(), String> {
    let describe = |error: io::Error| format!("keeper: {error}");
    let Ok(stream) = UnixStream::connect(dir.join("k.sock")) else { return Ok(()) };
    let (pid, _) = sys::peer(stream.as_fd()).map_err(describe)?;
    let Ok(pidfd) = sys::pidfd_open(pid) else { return Ok(()) };
    let asked = shut_down(stream);
    let exited = |bound: Duration| sys::wait_readable(std::os::fd::AsRawFd::as_raw_fd(&pidfd), Instant::now() + bound);
    if !exited(EXIT_BOUND) {
        let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        if !exited(KILL_BOUND) {
            return Err(format!("keeper (pid {pid}) does not end after SIGKILL"));
        }
        return asked;
    }
    Ok(())
}

fn shut_down(stream: UnixStream) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("runtime: {error}"))?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        stream.set_nonblocking(true).map_err(|error| format!("k.sock: {error}"))?;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(|error| format!("k.sock: {error}"))?;
        let client = Client::new(stream);
        let hello = HelloRequest {
            min_version: 1,
            max_version: 1,
            engine_version: "containerd's delete".to_owned(),
            engine_pid: std::process::id() as i32,
            ..Default::default()
        };
        let service = "kata.keeper.v1.Keeper";
        let shutdown = async {
            client.call::<_, HelloResponse>(service, "Hello", &hello, None).await?;
            let request = ShutdownRequest { cause: "shutdown".to_owned() };
            client.call_raw(service, "Shutdown", request.encode_to_vec(), None).await
        };
        match tokio::time::timeout(SHUTDOWN_BOUND, shutdown).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(refusal)) => Err(format!("keeper: {}", refusal.message)),
            Err(_) => Err(format!("the keeper did not end its sandbox within {} ms", SHUTDOWN_BOUND.as_millis())),
        }
    })
}

/// Ends the processes of a dead keeper and removes the sandbox's cgroups. Gives what did not work.
pub fn end_dead(dir: &Path) -> Vec<String> {
    let mut problems = cleanup::end_processes(dir, KILL_BOUND);
    let deadline = Instant::now() + CGROUP_BOUND;
    for group in recorded_cgroups(dir) {
        if let Err(error) = cgroups::remove(&group, deadline) {
            problems.push(format!("cgroup {}: {error}", group.display()));
        }
    }
    problems
}

fn recorded_cgroups(dir: &Path) -> Vec<PathBuf> {
    let Ok(text) = config::read_bounded(&dir.join("sandbox.json"), MAX_STATE_BYTES) else { return Vec::new() };
    let Ok(Some(Value::Array(groups))) = json::member(&text, "cgroups") else { return Vec::new() };
    let path = |group: Value| match group {
        Value::String(path) if path.starts_with('/') => Some(PathBuf::from(path)),
        _ => None,
    };
    groups.into_iter().filter_map(path).collect()
}

fn timestamp(unix_nanos: i64) -> Option<Timestamp> {
    let nanos = unix_nanos.rem_euclid(1_000_000_000) as i32;
    Some(Timestamp { seconds: unix_nanos.div_euclid(1_000_000_000), nanos })
}

fn killed_now() -> DeleteResponse {
    DeleteResponse { pid: 0, exit_status: KILLED, exited_at: timestamp(clock::unix_nanos()) }
}

/// The exit that the sandbox's journal tells, with the pid that containerd knows the task by.
fn how_it_ended(dir: &Path, id: &str) -> DeleteResponse {
    let pid = cleanup::recorded_pid(dir, crate::spawn::VMM).unwrap_or_default() as u32;
    let journal = config::read_bounded(&dir.join("journal.jsonl"), MAX_STATE_BYTES).unwrap_or_default();
    match journal.lines().rev().find_map(|line| exit_in(line, id)) {
        Some((exit_status, at)) => DeleteResponse { pid, exit_status, exited_at: timestamp(at) },
        None => DeleteResponse { pid, ..killed_now() },
    }
}

/// Status and time, when the journal's line is the exit of the container's init process.
fn exit_in(line: &str, id: &str) -> Option<(u32, i64)> {
    let Ok(Value::Object(members)) = json::parse(line) else { return None };
    let find = |name: &str| members.iter().find(|(other, _)| other == name).map(|(_, value)| value);
    let text = |name: &str| match find(name) {
        Some(Value::String(text)) => text.as_str(),
        _ => "",
    };
    if text("kind") != "exit" || text("container_id") != id || !text("exec_id").is_empty() {
        return None;
    }
    let status = match find("status") {
        Some(Value::Integer(status)) => u32::try_from(*status).ok()?,
        _ => 0,
    };
    Some((status, text("at_unix_nanos").parse().ok()?))
}

/// Takes the container's root file system off the bundle, as far as containerd has not.
fn unmount_rootfs(rootfs: &Path, warnings: &mut Vec<String>) {
    for _ in 0..MAX_UNMOUNTS {
        match sys::unmount(rootfs, libc::MNT_DETACH) {
            Ok(()) => {}
            // Not mounted, or not there.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENOTDIR)) => return,
            Err(error) => return warnings.push(format!("unmount {}: {error}", rootfs.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn believes_the_journals_last_exit_of_the_container_itself() {
        let dir = TempDir::new();
        assert_eq!(how_it_ended(dir.path(), "a").exit_status, 137);
        let lines = [
            r#"{"sequence":"1","kind":"exit","at_unix_nanos":"5000000007","container_id":"a","status":3}"#,
            r#"{"sequence":"2","kind":"exit","at_unix_nanos":"6","container_id":"a","exec_id":"e","status":4}"#,
            r#"{"sequence":"3","kind":"exit","at_unix_nanos":"8","container_id":"b"}"#,
            "torn {",
        ];
        std::fs::write(dir.path().join("journal.jsonl"), lines.join("\n")).unwrap();
        let ended = how_it_ended(dir.path(), "a");
        assert_eq!((ended.exit_status, ended.exited_at), (3, Some(Timestamp { seconds: 5, nanos: 7 })));
        assert_eq!(how_it_ended(dir.path(), "b").exit_status, 0);
        assert_eq!(how_it_ended(dir.path(), "c").exit_status, 137);
    }

    #[test]
    fn reads_cgroups_and_state_from_the_engines_record() {
        let dir = TempDir::new();
        assert!(recorded_cgroups(dir.path()).is_empty() && !is_ending(dir.path()));
        let record =
            r#"{"machine":{"x":1.5},"cgroups":["/sys/fs/cgroup/x/y","relative",1],"state":{"status":"ending"}}"#;
        std::fs::write(dir.path().join("sandbox.json"), record).unwrap();
        assert_eq!(recorded_cgroups(dir.path()), [PathBuf::from("/sys/fs/cgroup/x/y")]);
        assert!(is_ending(dir.path()));
    }
}
