//! Control groups that the keeper, or an engine that it starts, moves into.
use crate::failure;
use crate::keeper::Keeper;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::EnterCgroupsRequest;
use kata_protocol::ttrpc::{status, Code};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const MAX_GROUPS: usize = 32;

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
