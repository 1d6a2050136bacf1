//! The pod's network namespace, in which the VMM and its helpers run.
use crate::failure;
use crate::keeper::Keeper;
use crate::sys;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::{UseNetnsRequest, UseNetnsResponse};
use kata_protocol::ttrpc::{status, Code};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

pub struct Netns {
    pub file: File,
    /// Empty: a namespace of the sandbox's own.
    path: String,
    device: u64,
    inode: u64,
}

/// See `UseNetns` in proto/keeper.proto.
pub fn use_netns(keeper: &Keeper, request: UseNetnsRequest) -> Result<UseNetnsResponse, Status> {
    let mut current = keeper.netns.borrow_mut();
    if let Some(netns) = current.as_ref().filter(|netns| netns.path == request.path) {
        return describe(netns);
    }
    let netns = open(keeper, request.path)?;
    if let Some(current) = current.as_ref() {
        if (current.device, current.inode) != (netns.device, netns.inode) {
            let text = format!("the sandbox uses the network namespace {:?} already", current.path);
            return Err(status(Code::FailedPrecondition, text));
        }
        return describe(current);
    }
    let answer = describe(&netns)?;
    *current = Some(netns);
    Ok(answer)
}

fn open(keeper: &Keeper, path: String) -> Result<Netns, Status> {
    let file = if path.is_empty() {
        sys::new_netns().map_err(|error| failure::from_io("new network namespace", &error))?
    } else {
        if !path.starts_with('/') {
            return Err(status(Code::InvalidArgument, format!("network namespace {path:?} is no absolute path")));
        }
        // The host's mounts: a namespace that was bound to its name after the keeper's start is seen there alone.
        let opened = PathBuf::from(&path);
        let file = sys::in_mount_namespace(keeper.host_mounts.borrow().as_fd(), move || File::open(opened));
        file.and_then(|file| file).map_err(|error| failure::from_io(&format!("network namespace {path}"), &error))?
    };
    let is_netns = sys::is_netns(file.as_fd());
    let metadata = file.metadata().map_err(|error| failure::from_io(&format!("network namespace {path}"), &error))?;
    if !is_netns {
        return Err(status(Code::InvalidArgument, format!("{path} is no network namespace")));
    }
    Ok(Netns { file, path, device: metadata.dev(), inode: metadata.ino() })
}

fn describe(netns: &Netns) -> Result<UseNetnsResponse, Status> {
    let is_host = netns.is_host().map_err(|error| failure::from_io("/proc/self/ns/net", &error))?;
    Ok(UseNetnsResponse { device: netns.device, inode: netns.inode, is_host })
}

impl Netns {
    /// The keeper's own is the host's.
    fn is_host(&self) -> io::Result<bool> {
        let own = std::fs::metadata("/proc/self/ns/net")?;
        Ok((own.dev(), own.ino()) == (self.device, self.inode))
    }

    /// Whether it was made for a pod, neither for the sandbox alone nor for the host.
    pub fn is_pods(&self) -> io::Result<bool> {
        Ok(!self.path.is_empty() && !self.is_host()?)
    }
}

/// The namespace for a process that asks for it.
pub fn raw_fd(keeper: &Keeper) -> Result<i32, Status> {
    let netns = keeper.netns.borrow();
    let fd = netns.as_ref().map(|netns| netns.file.as_raw_fd());
    fd.ok_or_else(|| status(Code::FailedPrecondition, "the sandbox has no network namespace yet (UseNetns)"))
}

/// Runs in a child between fork and exec.
pub fn enter(fd: i32) -> io::Result<()> {
    sys::check(unsafe { libc::setns(fd, libc::CLONE_NEWNET) } as libc::c_long).map(drop)
}
