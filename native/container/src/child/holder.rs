//! The first process of a pid namespace that no container owns: it reaps, and does nothing else.
use crate::caps::Sets;
use crate::error::{ContainerError, Result, Step};
use crate::launch::Channel;
use crate::rootfs::enter_nothing;
use crate::sys::process::{close_range, prctl, reset_signals};
use std::convert::Infallible;

/// Whoever may trace it, as root with CAP_SYS_PTRACE may, finds an empty file system and no privilege.
pub(crate) fn run(channel: &Channel) -> Result<Infallible> {
    enter_nothing().map_err(|errno| ContainerError::new(Step::Rootfs, errno, "/", "empty root"))?;
    let none = Sets::default();
    none.limit_bounding()?;
    none.apply(0)?;
    let failed = |errno| ContainerError::new(Step::Namespace, errno, "", "hold the pid namespace:");
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(failed)?;
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64).map_err(failed)?;
    reset_signals();
    // SAFETY: a constant name; the rest takes no memory. A SIGCHLD that is ignored means that the kernel itself reaps (sigaction(2)); no
    // other signal from inside ends the first process of a pid namespace.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"pause".as_ptr());
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
    }
    channel.ready(None)?;
    // SAFETY: nothing of this copy of the caller is used again, and nothing is dropped: it never returns.
    unsafe {
        let _ = close_range(0, u32::MAX);
        loop {
            libc::pause();
        }
    }
}
