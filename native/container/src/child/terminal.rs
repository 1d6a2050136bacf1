//! The pseudo terminal of a process, from the container's own devpts.
use crate::error::{ContainerError, Result, Step};
use crate::sys::{check, check_fd, file_type, fs_magic, open_at2, stat_fd, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS};
use kata_protocol::grpc;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const DEVPTS_MAGIC: i64 = 0x1cd1;
const PTMX: &str = "/dev/pts/ptmx";

fn failure(errno: i32, what: &str) -> ContainerError {
    ContainerError::new(Step::Device, errno, PTMX, what)
}

/// Master (non-blocking) and slave. What is opened is checked to be a terminal multiplexer, since a container can put
/// anything in its place; the slave comes from the master itself, by no path (ioctl_tty(2), TIOCGPTPEER).
pub(crate) fn open(root: BorrowedFd<'_>, size: Option<&grpc::Box>) -> Result<(OwnedFd, OwnedFd)> {
    // Non-blocking: a fifo there must not hold us.
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let master =
        open_at2(root, PTMX, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS).map_err(|errno| failure(errno, "open"))?;
    let stat = stat_fd(master.as_fd()).map_err(|errno| failure(errno, "stat"))?;
    if file_type(&stat) != libc::S_IFCHR
        || stat.st_rdev != libc::makedev(5, 2)
        || fs_magic(master.as_fd()) != Ok(DEVPTS_MAGIC)
    {
        return Err(failure(libc::ENOTTY, "not the multiplexer of a devpts:"));
    }
    let locked: libc::c_int = 0;
    // SAFETY: the integer outlives the call; TIOCGPTPEER takes flags.
    let slave = unsafe {
        check(libc::c_long::from(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked)))
            .map_err(|errno| failure(errno, "unlock"))?;
        check_fd(libc::c_long::from(libc::ioctl(
            master.as_raw_fd(),
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )))
        .map_err(|errno| failure(errno, "open the slave of"))?
    };
    if let Some(size) = size.filter(|size| size.height != 0 || size.width != 0) {
        let cells = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
        let size = libc::winsize { ws_row: cells(size.height), ws_col: cells(size.width), ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the structure outlives the call.
        check(libc::c_long::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }))
            .map_err(|errno| failure(errno, "size"))?;
    }
    Ok((master, slave))
}

/// Makes the terminal the one that controls this process's session.
pub(crate) fn take_control(slave: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes a number.
    check(libc::c_long::from(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) }))
        .map(drop)
        .map_err(|errno| failure(errno, "control"))
}
