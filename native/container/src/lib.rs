//! OCI containers inside the guest.
//!
//! The caller is a single-threaded process, usually PID 1: the new process is a copy of it that prepares the container
//! and then executes the command, so nothing of the agent is executed a second time.
//!
//! `create` → `Pending<Container>` → `start` → `Pending<()>`; `exec` → `Pending<Process>`. Reaping is the caller's.
//!
//! AppArmor profiles, SELinux labels, Intel RDT and hooks of a spec are not applied: they speak of the host.
mod caps;
mod cgroup;
mod child;
mod container;
mod error;
mod launch;
mod namespaces;
mod rlimits;
mod rootfs;
mod seccomp;
pub mod sys;
mod sysctl;
#[cfg(test)]
mod testing;
mod users;

pub use container::{Container, CreateParams, Process, Stdio};
pub use error::{ContainerError, Result, Step};
pub use launch::Pending;
pub use users::{find_user, user_names, Identity};

use std::fs::File;
use std::os::fd::OwnedFd;

/// Makes the file system root a mount that containers can pivot away from. To be called once, before anything is
/// mounted: an initramfs is not such a mount (pivot_root(2), EINVAL).
pub fn make_root_pivotable() -> Result<()> {
    rootfs::cover_root().map_err(|errno| ContainerError::new(Step::Rootfs, errno, "/", "bind over itself"))
}

/// Whether the creation copies content of the image into volumes, which takes as long as there is content.
pub fn fills_volumes(spec: &kata_protocol::grpc::Spec) -> bool {
    spec.mounts.iter().any(rootfs::wants_fill)
}

/// A new pid namespace that lives until its first process, which only reaps, is killed. The caller, whose child that is, learns of its end by
/// reaping.
pub fn hold_pid_namespace() -> Result<Pending<OwnedFd>> {
    let new = namespaces::PID | namespaces::MOUNT | namespaces::IPC | namespaces::UTS | libc::CLONE_NEWNET as u64;
    let launched = launch::launch(new, None, None, child::holder::run)?;
    let path = format!("/proc/{}/ns/pid", launched.pid);
    let open = move |_| {
        let file = File::open(&path)
            .map_err(|error| ContainerError::new(Step::Namespace, sys::errno_of(&error), &path, "open"))?;
        Ok(file.into())
    };
    Ok(Pending::new(launched, launch::Goal::Ready, Box::new(open)))
}
