//! Control groups that the keeper, or an engine that it starts, moves into.
use crate::failure;
use crate::keeper::Keeper;
use crate::look;
use crate::sys;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::EnterCgroupsRequest;
use kata_protocol::ttrpc::{status, Code};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MAX_GROUPS: usize = 32;
const BUSY_TICK: Duration = Duration::from_millis(2);

/// Moves this process into the group.
pub fn enter(group: &Path) -> io::Result<()> {
    // Never created: the group's own file is there, or this is no group.
    fs::OpenOptions::new().write(true).open(group.join("cgroup.procs")).and_then(|mut file| {
        use io::Write;
        file.write_all(b"0")
    })
}

/// Moves this process to the top of every hierarchy, out of the groups that it was started in: they are a service's or a session's,
/// and end with that. Gives what the host does not let it leave.
pub fn leave() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let tops = tops(&mounts);
    tops.iter().filter_map(|top| enter(top).err().map(|error| format!("{}: {error}", top.display()))).collect()
}

/// Where each hierarchy is mounted (proc_pid_mountinfo(5)). A bind mount of one of its groups does not count beside the whole of it.
fn tops(mountinfo: &str) -> Vec<PathBuf> {
    let mut found: Vec<(&str, bool, PathBuf)> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let [_, _, device, root, point] = left.split(' ').take(5).collect::<Vec<_>>()[..] else { continue };
        if !matches!(right.split(' ').next(), Some("cgroup" | "cgroup2")) {
            continue;
        }
        let (whole, point) = (root == "/", look::mount_point(point.as_bytes()));
        match found.iter_mut().find(|(other, ..)| *other == device) {
            Some(known) if whole && !known.1 => *known = (device, whole, point),
            Some(_) => {}
            None => found.push((device, whole, point)),
        }
    }
    found.into_iter().map(|(.., point)| point).collect()
}

/// Ends every process of a sandbox's own group and removes it, with the groups below. Processes that were killed may still be
/// leaving it: until `deadline` it is tried again.
pub fn remove(group: &Path, deadline: Instant) -> io::Result<()> {
    let directory = match fs::File::open(group) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !sys::is_cgroup(directory.as_fd()) {
        return Err(io::Error::other("it is no control group"));
    }
    for pid in fs::read_to_string(group.join("cgroup.procs"))?.lines().filter_map(|line| line.parse().ok()) {
        // Whoever is in the group now is in it by the sandbox's doing; 0 stands for a process of another pid namespace.
        if pid > 1 && pid != std::process::id() as i32 {
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path(), deadline)?;
        }
    }
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(BUSY_TICK);
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(()),
        }
    }
}

/// See `EnterCgroups` in proto/keeper.proto. After a failure the keeper stays in the groups before the one that is named.
pub fn enter_asked(keeper: &Keeper, request: EnterCgroupsRequest) -> Result<(), Status> {
    let groups: Vec<PathBuf> = request.directories.iter().map(PathBuf::from).collect();
    if groups.len() > MAX_GROUPS || !groups.iter().all(|group| group.is_absolute()) {
        return Err(status(Code::InvalidArgument, format!("at most {MAX_GROUPS} cgroups, by absolute paths")));
    }
    for group in &groups {
        enter(group).map_err(|error| failure::from_io(&format!("enter cgroup {}", group.display()), &error))?;
    }
    *keeper.cgroups.borrow_mut() = groups;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::tops;
    use std::path::PathBuf;

    #[test]
    fn finds_the_top_of_each_hierarchy() {
        let mounts = "\
            30 25 0:26 /user.slice/a /mnt/bound rw - cgroup cgroup rw,cpu,cpuacct\n\
            31 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            32 25 0:26 / /sys/fs/cgroup/again rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 25 0:27 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd\n\
            34 25 0:28 / /a\\040place/unified rw - cgroup2 cgroup2 rw\n\
            35 25 8:1 / / rw - ext4 /dev/root rw\n\
            nonsense - cgroup\n";
        let expected = ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/systemd", "/a place/unified"];
        assert_eq!(tops(mounts), expected.map(PathBuf::from));
    }
}
