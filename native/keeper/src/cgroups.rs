//! Control groups that the keeper, or an engine that it starts, moves into.
use crate::failure;
use crate::keeper::Keeper;
use crate::sys;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::EnterCgroupsRequest;
use kata_protocol::ttrpc::{status, Code};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
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

/// The same, for a group that may have to be made in its parent first.
pub fn enter_or_make(group: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => enter(group),
    }
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
