//! System calls that std and tokio have no name for. Every function returns the errno of the failed call.
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;
use tokio::io::unix::AsyncFd;

/// Turns the `-1` convention into a result.
pub fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The descriptor that a system call has just returned.
pub fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    // SAFETY: the kernel just returned this descriptor and nobody else knows its number.
    check(result).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A descriptor that becomes readable when the process ends (pidfd_open(2)); close-on-exec.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

pub fn pidfd_send_signal(pidfd: BorrowedFd, signal: i32) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null, 0) }).map(drop)
}

/// Registers a descriptor with the runtime, to be awaited.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the value owns its descriptor and hands it to nobody: it stays open as long as the registration.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// waitpid(2) without blocking: the wait status of an ended child, `None` while it runs.
pub fn reap(pid: i32) -> io::Result<Option<i32>> {
    let mut status = 0;
    let result = check(unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } as libc::c_long)?;
    Ok((result == pid as libc::c_long).then_some(status))
}

/// Whether an own child has ended, leaving it to be reaped.
pub fn has_ended(pid: i32) -> bool {
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` outlives the call; si_pid is valid after success.
    unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, flags) == 0 && info.si_pid() == pid }
}

pub fn memfd(name: &str, size: u64) -> io::Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let fd = owned(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) } as libc::c_long)?;
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) } as libc::c_long)?;
    Ok(fd)
}

/// Field 22 of `/proc/PID/stat`: when the process started, in clock ticks since boot.
pub fn start_time_ticks(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADMSG))
}

/// The command's name may hold spaces and parentheses: fields are counted after the last `)`.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let text = std::str::from_utf8(&stat[after..]).ok()?;
    text.split_ascii_whitespace().nth(19)?.parse().ok()
}

pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let got = check(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) } as libc::c_long)?;
    if got as usize == N {
        Ok(bytes)
    } else {
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
}

pub fn read(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    let count = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    check(count as libc::c_long).map(|count| count as usize)
}

pub fn write(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let count = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    check(count as libc::c_long).map(|count| count as usize)
}

/// (read end, write end); close-on-exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } as libc::c_long)?;
    // SAFETY: the kernel just returned these descriptors and nobody else knows their numbers.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// A copy of the descriptor with a number of at least `first`; close-on-exec.
pub fn duplicate_above(fd: &OwnedFd, first: RawFd) -> io::Result<OwnedFd> {
    owned(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, first) } as libc::c_long)
}

pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) } as libc::c_long)?;
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags as i32 | libc::O_NONBLOCK) } as libc::c_long)
        .map(drop)
}

/// Runs `work` on a thread of its own: what it changes of itself (namespaces, directory) is gone with it.
fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(64 * 1024).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

/// Runs work in another mount namespace.
pub fn in_mount_namespace<T: Send>(namespace: BorrowedFd, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(|| {
        // A thread that shares its root and working directory with others may not change the namespace.
        check(unsafe { libc::unshare(libc::CLONE_FS) } as libc::c_long)?;
        check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) } as libc::c_long)?;
        Ok(work())
    })
}

/// Runs work in another network namespace.
pub fn in_network_namespace<T: Send>(
    namespace: BorrowedFd,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    on_thread(|| {
        check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } as libc::c_long)?;
        work()
    })
}

/// Makes a tap of the calling thread's network namespace that stays when nobody has it open (tun(4)).
pub fn make_tap(name: &str, queues: u32) -> io::Result<()> {
    const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
    let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let device = open_tap(name, several)?;
    check(unsafe { libc::ioctl(device.as_raw_fd(), TUNSETPERSIST as _, 1) } as libc::c_long).map(drop)
}

/// Makes a tap of the calling thread's network namespace that ends with its last descriptor. EBUSY: the name is taken.
pub fn new_tap(name: &str) -> io::Result<OwnedFd> {
    open_tap(name, libc::IFF_TUN_EXCL)
}

fn open_tap(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags) as libc::c_short;
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    check(unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF as _, &raw mut request) } as libc::c_long)?;
    Ok(device.into())
}

/// A socket of the netfilter subsystem (netlink(7)). A request's answers are there when it was written; a read never waits.
pub fn netfilter_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    owned(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_NETFILTER) }.into())
}

/// The number of a link of the calling thread's network namespace.
pub fn link_number(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        number => Ok(number),
    }
}

/// (pid, uid) of a unix socket's peer (SO_PEERCRED).
pub fn peer(socket: BorrowedFd) -> io::Result<(i32, u32)> {
    let mut cred = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut size = std::mem::size_of::<libc::ucred>() as libc::socklen_t;
    let pointer = (&raw mut cred).cast();
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, pointer, &mut size) }
        as libc::c_long)?;
    Ok((cred.pid, cred.uid))
}

/// Own mount namespace, as `/proc/self/ns/mnt`.
pub fn unshare_mounts() -> io::Result<()> {
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) } as libc::c_long).map(drop)
}

/// A network namespace that lives as long as the file, or a process in it.
pub fn new_netns() -> io::Result<File> {
    on_thread(|| {
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) } as libc::c_long)?;
        File::open("/proc/thread-self/ns/net")
    })
}

/// Whether the file is a network namespace and no other file (ioctl_ns(2)).
pub fn is_netns(file: BorrowedFd) -> bool {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    let mut system: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `system` outlives the call; the ioctl takes no argument, and only a namespace's file is asked.
    unsafe {
        libc::fstatfs(file.as_raw_fd(), &mut system) == 0
            && system.f_type as u64 == libc::NSFS_MAGIC as u64
            && libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE as _) == libc::CLONE_NEWNET
    }
}

pub fn mount(
    source: Option<&Path>,
    target: &Path,
    fstype: Option<&CStr>,
    flags: libc::c_ulong,
    data: Option<&CStr>,
) -> io::Result<()> {
    let source = source.map(c_path).transpose()?;
    let target = c_path(target)?;
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    let result = unsafe {
        libc::mount(pointer(source.as_deref()), target.as_ptr(), pointer(fstype), flags, pointer(data).cast())
    };
    check(result as libc::c_long).map(drop)
}

/// umount2(2); the target is never followed when it is a symbolic link.
pub fn unmount(target: &Path, flags: i32) -> io::Result<()> {
    let target = c_path(target)?;
    check(unsafe { libc::umount2(target.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) } as libc::c_long).map(drop)
}

/// What the path names, without opening it: a socket or a FIFO will do, and nothing waits (open(2), O_PATH). std's OpenOptions
/// drop that flag with musl, which counts it to the access modes.
pub fn open_path(path: &Path, flags: i32) -> io::Result<std::fs::File> {
    let path = c_path(path)?;
    owned(unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC | flags) }.into()).map(Into::into)
}

/// A detached copy of the mount tree at `path` with everything below it (open_tree(2), OPEN_TREE_CLONE).
pub fn clone_tree(at: BorrowedFd) -> io::Result<OwnedFd> {
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | (libc::AT_RECURSIVE | libc::AT_EMPTY_PATH) as libc::c_uint;
    owned(unsafe { libc::syscall(libc::SYS_open_tree, at.as_raw_fd(), c"".as_ptr(), flags) })
}

/// The node of a block device, for root alone.
pub fn make_block_device(path: &Path, major: u32, minor: u32) -> io::Result<()> {
    let path = c_path(path)?;
    let device = libc::makedev(major, minor);
    check(unsafe { libc::mknod(path.as_ptr(), libc::S_IFBLK | 0o600, device) } as libc::c_long).map(drop)
}

/// Size of the tmpfs on which the path is; `None`: it is on another file system.
pub fn tmpfs_bytes(path: &Path) -> io::Result<Option<u64>> {
    let path = c_path(path)?;
    let mut facts: libc::statfs = unsafe { std::mem::zeroed() };
    check(unsafe { libc::statfs(path.as_ptr(), &mut facts) } as libc::c_long)?;
    let is_tmpfs = facts.f_type as u64 == libc::TMPFS_MAGIC as u64;
    Ok(is_tmpfs.then(|| facts.f_blocks.saturating_mul(facts.f_bsize as u64)))
}

/// Layout of `struct mount_attr` (mount_setattr(2)).
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Makes a whole detached mount tree read-only, `propagation` being one of MS_PRIVATE, MS_SLAVE or 0.
pub fn set_tree_attributes(tree: BorrowedFd, read_only: bool, propagation: u64) -> io::Result<()> {
    let set = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attributes = MountAttributes { set, clear: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    let size = std::mem::size_of::<MountAttributes>();
    check(unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), flags, &raw const attributes, size)
    })
    .map(drop)
}

/// Makes the topmost mount of a detached tree read-only; those below it stay as they are.
pub fn set_top_read_only(tree: BorrowedFd) -> io::Result<()> {
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, userns_fd: 0 };
    let size = std::mem::size_of::<MountAttributes>();
    let (fd, flags) = (tree.as_raw_fd(), libc::AT_EMPTY_PATH);
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const attributes, size) })
        .map(drop)
}

/// Attaches a detached mount tree at `target` (move_mount(2)).
pub fn attach_tree(tree: BorrowedFd, target: &Path) -> io::Result<()> {
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    let target = c_path(target)?;
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check(result).map(drop)
}

/// Takes the whole-file write record lock (fcntl(2) F_SETLK): kept across exec, not inherited by children.
/// `false`: another process holds it.
pub fn record_lock(file: BorrowedFd) -> io::Result<bool> {
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &lock) } as libc::c_long) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EAGAIN)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes the file's own lock (flock(2)), which ends with the last copy of this descriptor. `false`: another holds it.
pub fn file_lock(file: BorrowedFd) -> io::Result<bool> {
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } as libc::c_long) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Blocks until the descriptor has something to read (for a pidfd: until the process has ended). `false`: the deadline passed.
pub fn wait_readable(fd: RawFd, deadline: Instant) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let milliseconds = left.as_micros().div_ceil(1000).min(60_000) as i32;
        // An interrupted wait looks at the clock again.
        if unsafe { libc::poll(&mut poll, 1, milliseconds) } > 0 {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}

/// Whether the directory is a control group.
pub fn is_cgroup(directory: BorrowedFd) -> bool {
    let mut system: libc::statfs = unsafe { std::mem::zeroed() };
    let known = check(unsafe { libc::fstatfs(directory.as_raw_fd(), &mut system) } as libc::c_long).is_ok();
    let magics = [libc::CGROUP_SUPER_MAGIC as u64, libc::CGROUP2_SUPER_MAGIC as u64];
    known && magics.contains(&(system.f_type as u64))
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: RawFd) {
    unsafe { libc::syscall(libc::SYS_close_range, first as libc::c_uint, libc::c_uint::MAX, 0) };
}

pub fn set_cloexec(fd: RawFd, on: bool) -> io::Result<()> {
    let flag = if on { libc::FD_CLOEXEC } else { 0 };
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, flag) } as libc::c_long).map(drop)
}

/// Raises the soft limit of open files to the hard one, which needs no privilege.
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } as libc::c_long)?;
    limit.rlim_cur = limit.rlim_max;
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } as libc::c_long).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn tells_a_network_namespace_from_other_files() {
        let own = |kind: &str| File::open(format!("/proc/self/ns/{kind}")).unwrap();
        assert!(is_netns(own("net").as_fd()));
        assert!(!is_netns(own("mnt").as_fd()) && !is_netns(File::open("/proc/self/stat").unwrap().as_fd()));
    }

    #[test]
    fn start_time_ignores_the_command_name() {
        let stat = b"12 (a) b) (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time(b"12 S"), None);
        assert!(start_time_ticks(std::process::id() as i32).unwrap() > 0);
    }

    #[test]
    fn record_lock_is_free_for_its_holder() {
        let file = File::from(memfd("lock", 1).unwrap());
        assert!(record_lock(file.as_fd()).unwrap());
        assert!(record_lock(file.as_fd()).unwrap());
    }
}
