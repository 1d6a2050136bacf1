//! What runs in a new process before the container's command: a copy of the caller, with one thread.
mod command;
mod exec;
mod finish;
pub(crate) mod holder;
mod init;
mod terminal;

pub(crate) use exec::ExecPlan;
pub(crate) use finish::Finish;
pub(crate) use init::InitPlan;

use crate::error::{ContainerError, Result, Step};
use crate::sys::process::{close_range, move_fd};
use crate::sys::{check, open_at, write_once};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Descriptors of the standard streams, none of them in the place of another.
pub(crate) type Streams = [OwnedFd; 3];

fn namespace_failure(errno: i32, what: &str) -> ContainerError {
    ContainerError::new(Step::Namespace, errno, "", what)
}

fn raise_streams(streams: Streams) -> Result<Streams> {
    let [input, output, error] = streams.map(|fd| if fd.as_raw_fd() < 3 { move_fd(fd, 3) } else { Ok(fd) });
    let moved =
        |fd: std::result::Result<OwnedFd, i32>| fd.map_err(|errno| namespace_failure(errno, "move a descriptor"));
    Ok([moved(input)?, moved(output)?, moved(error)?])
}

/// Closes every descriptor from 3 on but these: what the agent holds must not be seen from inside a container.
fn close_others(keep: &[RawFd]) -> Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd >= 3).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            // SAFETY: what is closed belongs to structures of the caller that this copy never uses or drops.
            unsafe { close_range(first, fd - 1) }.map_err(|errno| namespace_failure(errno, "close_range"))?;
        }
        first = fd + 1;
    }
    // SAFETY: as above.
    unsafe { close_range(first, u32::MAX) }.map_err(|errno| namespace_failure(errno, "close_range"))
}

fn new_session() -> Result<()> {
    // SAFETY: takes no memory; a process that has just been cloned leads no group.
    check(libc::c_long::from(unsafe { libc::setsid() })).map(drop).map_err(|errno| namespace_failure(errno, "setsid"))
}

/// A session keyring of its own keeps a container from the guest's keys; all its processes share it (keyrings(7)).
/// Kernels without keys, and quotas that are used up, leave the one that is there.
fn join_keyring(id: &str) {
    const JOIN_SESSION_KEYRING: i32 = 1;
    let Ok(name) = crate::sys::c_string(format!("_ses.{id}")) else { return };
    // SAFETY: the name outlives the call.
    unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr(), 0, 0, 0) };
}

/// Written always: the agent's own protection from the OOM killer must not be inherited.
fn set_oom_score(proc_dir: BorrowedFd<'_>, adjustment: i64) -> Result<()> {
    let name = "self/oom_score_adj";
    open_at(proc_dir, name, libc::O_WRONLY, 0)
        .and_then(|file| write_once(file.as_fd(), adjustment.to_string().as_bytes()))
        .map_err(|errno| ContainerError::new(Step::Rlimit, errno, adjustment.to_string(), "oom_score_adj"))
}

/// Root of the user namespace: its ids are mapped, but this process still has the ones it came with.
fn become_namespace_root() -> Result<()> {
    // SAFETY: take no memory.
    unsafe {
        check(libc::syscall(libc::SYS_setresgid, 0, 0, 0))
            .and_then(|_| check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>())))
            .and_then(|_| check(libc::syscall(libc::SYS_setresuid, 0, 0, 0)))
            .map(drop)
            .map_err(|errno| namespace_failure(errno, "become root of the user namespace"))
    }
}
