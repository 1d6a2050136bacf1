//! `kata-keeper cleanup`: ends what a dead keeper left, and nobody else's process.
use crate::arguments::Arguments;
use crate::config;
use crate::json::{self, Value};
use crate::network;
use crate::shim::places::{self, Lock, MAX_STATE_BYTES};
use crate::shutdown::remove_sockets_in;
use crate::sys;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const KILL_BOUND: Duration = Duration::from_secs(5);
const LOCK_BOUND: Duration = Duration::from_secs(5);

struct Recorded {
    name: String,
    pid: i32,
    start_time_ticks: u64,
}

pub fn run(mut arguments: Arguments) -> Result<(), String> {
    let dir = PathBuf::from(arguments.value("--dir")?);
    arguments.end()?;
    let lock = Lock::take(&dir, LOCK_BOUND).map_err(|error| format!("{}: {error}", dir.display()))?;
    if lock.is_none() {
        return Ok(());
    }
    if places::lives(&dir) {
        return Err(format!("a keeper serves {}: it is asked with Shutdown, not cleaned up", dir.display()));
    }
    let problems = end_processes(&dir, KILL_BOUND);
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems.join("; ")),
    }
}

/// Ends the recorded processes, within `bound`, and removes the sockets. Gives what did not work. The caller holds the lock.
pub fn end_processes(dir: &Path, bound: Duration) -> Vec<String> {
    let mut problems = Vec::new();
    match read_pids(&dir.join("pids.json")) {
        Ok(processes) => {
            // All are signalled before the first is waited for.
            let killed: Vec<_> = processes.iter().map(|process| (process, kill(process))).collect();
            let deadline = Instant::now() + bound;
            for (process, killed) in killed {
                match killed {
                    Ok(Some(pidfd)) if !sys::wait_readable(pidfd.as_raw_fd(), deadline) => {
                        problems.push(format!("{} (pid {}) does not end after SIGKILL", process.name, process.pid));
                    }
                    Ok(_) => {}
                    Err(error) => problems.push(format!("{} (pid {}): {error}", process.name, process.pid)),
                }
            }
        }
        Err(problem) => problems.push(problem),
    }
    problems.extend(release_network(dir));
    remove_sockets_in(dir);
    remove_sockets_in(&dir.join("vsock"));
    problems
}

/// Takes the sandbox's taps out of its pod's network namespace, which may live on. One that is gone took them with it.
fn release_network(dir: &Path) -> Option<String> {
    let text = config::read_bounded(&dir.join("sandbox.json"), MAX_STATE_BYTES).ok()?;
    let Ok(Some(Value::String(path))) = json::member(&text, "netns") else { return None };
    let netns = fs::File::open(path).ok().filter(|file| sys::is_netns(file.as_fd()))?;
    network::sweep(&netns).err().map(|error| format!("taps: {error}"))
}

/// The pid that `pids.json` tells for a name, whether the process still runs or not.
pub fn recorded_pid(dir: &Path, name: &str) -> Option<i32> {
    let (_, processes) = parse(&fs::read_to_string(dir.join("pids.json")).ok()?).ok()?;
    processes.iter().find(|process| process.name == name).map(|process| process.pid)
}

/// The recorded processes of this boot. A corrupt record is put aside, so that the next clean-up is not stopped by it.
fn read_pids(path: &Path) -> Result<Vec<Recorded>, String> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let boot_id = sys::boot_id().map_err(|error| format!("boot id: {error}"))?;
    let parsed = String::from_utf8(text).map_err(|_| "not UTF-8".to_owned()).and_then(|text| parse(&text));
    match parsed {
        Ok((recorded_boot, processes)) if recorded_boot == boot_id => Ok(processes),
        Ok(_) => Ok(Vec::new()),
        Err(problem) => {
            let aside = path.with_extension("json.corrupt");
            let _ = fs::rename(path, &aside);
            Err(format!(
                "{} is corrupt ({problem}), so no process was ended: the kernel ended them with their keeper. The file is now {}",
                path.display(),
                aside.display()
            ))
        }
    }
}

fn parse(text: &str) -> Result<(String, Vec<Recorded>), String> {
    let Value::Object(mut members) = json::parse(text)? else { return Err("expected an object".to_owned()) };
    let mut take = |name: &str| {
        let at = members.iter().position(|(other, _)| other == name)?;
        Some(members.swap_remove(at).1)
    };
    let (Some(Value::String(boot_id)), Some(Value::Array(items))) = (take("boot_id"), take("processes")) else {
        return Err("expected boot_id and processes".to_owned());
    };
    let mut processes = Vec::new();
    for item in items {
        let Value::Object(fields) = item else { return Err("expected an object for each process".to_owned()) };
        let find = |name: &str| fields.iter().find(|(other, _)| other == name).map(|(_, value)| value);
        match (find("name"), find("pid"), find("start_time_ticks")) {
            (
                Some(Value::String(name)),
                Some(Value::Integer(pid @ 2..=0x7fff_ffff)),
                Some(Value::Integer(ticks @ 0..)),
            ) => {
                processes.push(Recorded { name: name.clone(), pid: *pid as i32, start_time_ticks: *ticks as u64 });
            }
            _ => return Err("expected name, pid and start_time_ticks of each process".to_owned()),
        }
    }
    Ok((boot_id, processes))
}

/// Kills the process if it still is the recorded one; gives what becomes readable when it is gone.
fn kill(process: &Recorded) -> io::Result<Option<OwnedFd>> {
    let pidfd = match sys::pidfd_open(process.pid) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    // The start time is read after the pidfd was opened: from here on both mean the same process.
    match sys::start_time_ticks(process.pid) {
        Ok(ticks) if ticks == process.start_time_ticks => {}
        _ => return Ok(None),
    }
    // Spawned processes lead a group of their own.
    if unsafe { libc::getpgid(process.pid) } == process.pid {
        unsafe { libc::kill(-process.pid, libc::SIGKILL) };
    }
    match sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(Some(pidfd)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_documented_form_and_refuses_others() {
        let text = r#"{"boot_id":"x","processes":[{"name":"vmm","pid":42,"start_time_ticks":7}]}"#;
        let (boot_id, processes) = parse(text).unwrap();
        assert_eq!((boot_id.as_str(), processes[0].pid, processes[0].start_time_ticks), ("x", 42, 7));
        for bad in ["", "{}", "[]", &text.replace("42", "1"), &text.replace("42", "-1"), &text.replace("42", "\"42\"")]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spares_a_process_with_another_start_time() {
        let own = std::process::id() as i32;
        let ticks = sys::start_time_ticks(own).unwrap();
        let stranger = Recorded { name: "x".into(), pid: own, start_time_ticks: ticks + 1 };
        assert!(kill(&stranger).unwrap().is_none());
    }
}
