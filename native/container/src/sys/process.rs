//! System calls about processes: clone3, pidfd, namespaces, signals.
use super::{check, check_fd};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub(crate) const CLONE_NEWTIME: u64 = 0x80;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// struct clone_args of linux/sched.h up to its third version (CLONE_INTO_CGROUP, Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

pub(crate) enum Cloned {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// A copy of this process in new namespaces and in a cgroup (None: that of this process), with signal handlers back to their defaults.
///
/// # Safety
/// The caller has one thread, or the child restricts itself to async-signal-safe calls: a lock that another thread
/// holds at this moment stays locked in the child for ever.
pub(crate) unsafe fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned, i32> {
    let mut pidfd: i32 = -1;
    let args = CloneArgs {
        flags: namespaces | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | cgroup.map_or(0, |_| CLONE_INTO_CGROUP),
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.map_or(0, |cgroup| cgroup.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    match check(libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()))? {
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent { pid: pid as i32, pidfd: OwnedFd::from_raw_fd(pidfd) }),
    }
}

pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends this process at once; no destructor of the copied parent runs.
    unsafe { libc::_exit(code) }
}

pub(crate) fn set_ns(namespace: BorrowedFd<'_>, kinds: u64) -> Result<(), i32> {
    // SAFETY: takes no memory.
    check(libc::c_long::from(unsafe { libc::setns(namespace.as_raw_fd(), kinds as i32) })).map(drop)
}

pub(crate) fn unshare(kinds: u64) -> Result<(), i32> {
    // SAFETY: takes no memory.
    check(libc::c_long::from(unsafe { libc::unshare(kinds as i32) })).map(drop)
}

pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), i32> {
    // SAFETY: a null siginfo asks for the one of kill(2).
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0) })
        .map(drop)
}

/// Every signal back to its default and unblocked. CLONE_CLEAR_SIGHAND leaves those that are ignored (SIGPIPE in Rust).
pub(crate) fn reset_signals() {
    const SIGNALS: i32 = 64;
    // The kernel's struct sigaction and sigset_t, all zero: SIG_DFL, and no signal. libc's calls would leave out the
    // signals that it keeps for itself.
    let zero = [0_u64; 4];
    let none = std::ptr::null_mut::<u64>();
    // SAFETY: both structures are large enough and outlive the calls; KILL and STOP give EINVAL, which is right.
    unsafe {
        for signal in 1..=SIGNALS {
            libc::syscall(libc::SYS_rt_sigaction, signal, zero.as_ptr(), none, size_of::<u64>());
        }
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, zero.as_ptr(), none, size_of::<u64>());
    }
}

/// A process that is not dumpable cannot be traced, nor its memory, descriptors or executable be opened through /proc,
/// by what runs in a container that it enters. execve makes it dumpable again.
pub(crate) fn set_undumpable() {
    // SAFETY: takes no memory; cannot fail with a valid value.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

pub(crate) fn prctl(option: i32, argument: u64) -> Result<(), i32> {
    // SAFETY: only used with options whose arguments are numbers.
    check(libc::c_long::from(unsafe { libc::prctl(option, argument, 0, 0, 0) })).map(drop)
}

/// Moves the descriptor to the lowest free number from `minimum` on.
pub(crate) fn move_fd(fd: OwnedFd, minimum: i32) -> Result<OwnedFd, i32> {
    // SAFETY: takes no memory.
    check_fd(libc::c_long::from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, minimum) }))
}

/// dup2 without close-on-exec.
pub(crate) fn dup_onto(fd: BorrowedFd<'_>, number: i32) -> Result<(), i32> {
    // SAFETY: the standard descriptors are nobody's object in a child.
    check(libc::c_long::from(unsafe { libc::dup2(fd.as_raw_fd(), number) })).map(drop)
}

/// Closes the descriptors of the range, both ends included.
///
/// # Safety
/// No OwnedFd of those descriptors may be used or dropped afterwards.
pub(crate) unsafe fn close_range(first: u32, last: u32) -> Result<(), i32> {
    check(libc::syscall(libc::SYS_close_range, first, last, 0)).map(drop)
}

pub(crate) fn close_on_exec_from(first: u32) -> Result<(), i32> {
    // SAFETY: takes no memory and closes nothing yet.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}
