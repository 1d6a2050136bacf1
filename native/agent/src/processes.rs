//! ListProcesses: what runs in a container, from /proc.
use crate::agent::Agent;
use crate::failure::{Context, Result};
use crate::ready::boot_time_us;
use kata_protocol::agent_ext::{ListProcessesRequest, ListProcessesResponse, ProcessInfo};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;

/// Of one answer; a container has as many only by accident.
const MAX_PROCESSES: usize = 8192;
const MAX_ARGUMENTS: usize = 256;
const MAX_TEXT_BYTES: usize = 4096;

/// Users by id, parents by the guest's pid.
struct Container {
    users: BTreeMap<u32, String>,
    pids: BTreeMap<u32, u32>,
}

pub fn list(agent: &Rc<Agent>, request: ListProcessesRequest) -> Result<ListProcessesResponse> {
    let container = agent.container(&request.container_id)?;
    let cgroup = container.with(|inner| Ok(inner.cgroup().to_owned()))?;
    let init = container.process("")?.pid.get();
    let root = fs::File::open(format!("/proc/{init}/root")).context(|| "processes: the container's root".to_owned());
    let users = root.map(|root| kata_container::user_names(std::os::fd::AsFd::as_fd(&root))).unwrap_or_default();
    let mut guest_pids = Vec::new();
    collect(&cgroup, &mut guest_pids);
    guest_pids.sort_unstable();
    guest_pids.truncate(MAX_PROCESSES);
    let pids = guest_pids.iter().filter_map(|pid| Some((*pid, own_pid(*pid)?))).collect();
    let seen = Container { users, pids };
    let processes = guest_pids.iter().filter_map(|pid| seen.describe(*pid)).collect();
    Ok(ListProcessesResponse { processes })
}

fn collect(cgroup: &Path, pids: &mut Vec<u32>) {
    let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    pids.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid > 0));
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if pids.len() < MAX_PROCESSES && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), pids);
        }
    }
}

/// As the innermost namespace calls it.
fn own_pid(pid: u32) -> Option<u32> {
    status_field(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "NSpid:")?
        .split_whitespace()
        .last()?
        .parse()
        .ok()
}

fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

impl Container {
    /// Nothing for a process that has just ended.
    fn describe(&self, pid: u32) -> Option<ProcessInfo> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything.
        let name = stat.get(stat.find('(')? + 1..stat.rfind(')')?)?.to_owned();
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|field| field.parse::<i64>().ok()).unwrap_or(0);
        let micros = |ticks: i64| ticks.max(0) as u64 * 1_000_000 / rustix::param::clock_ticks_per_second();
        let id = |field: &str| -> u32 {
            let ids = status_field(&status, field).unwrap_or_default();
            // Real, effective, saved, file system.
            ids.split_whitespace().nth(1).and_then(|id| id.parse().ok()).unwrap_or(0)
        };
        let kibibytes = |field: &str| -> u64 {
            let text = status_field(&status, field).unwrap_or_default();
            text.split_whitespace().next().and_then(|count| count.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        let uid = id("Uid:");
        Some(ProcessInfo {
            pid: *self.pids.get(&pid)?,
            parent: self.pids.get(&(number(1) as u32)).copied().unwrap_or(0),
            uid,
            gid: id("Gid:"),
            user: self.users.get(&uid).cloned().unwrap_or_default(),
            state: fields.first().copied().unwrap_or("?").to_owned(),
            terminal: terminal(number(4) as u32),
            cpu_micros: micros(number(11) + number(12)),
            started_micros: micros(number(19)),
            now_micros: boot_time_us(),
            virtual_bytes: kibibytes("VmSize:"),
            resident_bytes: kibibytes("VmRSS:"),
            name,
            args: arguments(pid),
            nice: number(16) as i32,
            threads: number(17) as u32,
        })
    }
}

/// "pts/0"; "?" without one. The device's number has its minor in two pieces.
fn terminal(device: u32) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        _ => "console".to_owned(),
    }
}

fn arguments(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = line.strip_suffix(&[0]).unwrap_or(&line);
    if line.is_empty() {
        return Vec::new();
    }
    let line = &line[..line.len().min(MAX_TEXT_BYTES)];
    line.split(|byte| *byte == 0).take(MAX_ARGUMENTS).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_named_by_their_device() {
        assert_eq!(terminal(0), "?");
        assert_eq!(terminal(136 << 8), "pts/0");
        assert_eq!(terminal((136 << 8) | 0x10_0001), "pts/257");
        assert_eq!(terminal((4 << 8) | 1), "tty1");
    }

    #[test]
    fn this_process_is_described() {
        let pid = std::process::id();
        let seen = Container { users: BTreeMap::new(), pids: [(pid, 7)].into() };
        let found = seen.describe(pid).unwrap();
        assert!(found.pid == 7 && found.parent == 0 && found.resident_bytes > 0 && !found.args.is_empty());
    }
}
