//! System calls by descriptor. libc's path wrappers are avoided where a path of the container could be swapped under us.
pub(crate) mod mount;
pub(crate) mod process;
pub mod xattr;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::mem::{size_of, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub const RESOLVE_BENEATH: u64 = 0x08;
pub const RESOLVE_IN_ROOT: u64 = 0x10;

pub fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// errno of an error of the standard library; EINVAL when it carries none (a NUL byte in a path).
pub fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EINVAL)
}

/// Turns the -1 of a system call into its errno.
pub fn check(result: libc::c_long) -> Result<libc::c_long, i32> {
    if result < 0 {
        Err(errno())
    } else {
        Ok(result)
    }
}

pub fn check_fd(result: libc::c_long) -> Result<OwnedFd, i32> {
    let fd = check(result)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A NUL-terminated copy; EINVAL when the text has a NUL inside.
pub fn c_string(text: impl Into<Vec<u8>>) -> Result<CString, i32> {
    CString::new(text).map_err(|_| libc::EINVAL)
}

/// openat2(2): resolves as `resolve` says, never further.
pub fn open_at2(root: BorrowedFd<'_>, path: impl Into<Vec<u8>>, flags: i32, resolve: u64) -> Result<OwnedFd, i32> {
    let path = path.into();
    let path = c_string(if path.is_empty() { b".".to_vec() } else { path })?;
    // SAFETY: an all-zero open_how is valid: no flags, no mode, no restrictions.
    let mut how: libc::open_how = unsafe { MaybeUninit::zeroed().assume_init() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.resolve = resolve;
    // SAFETY: path and how outlive the call; the size is that of how.
    check_fd(unsafe {
        libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &raw const how, size_of::<libc::open_how>())
    })
}

/// O_PATH descriptor of what `path` is below `root`; `..` and symbolic links stay inside, magic links are refused.
pub fn open_in_root(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, i32> {
    open_at2(root, path, libc::O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
}

pub fn open_at(directory: BorrowedFd<'_>, path: impl Into<Vec<u8>>, flags: i32, mode: u32) -> Result<OwnedFd, i32> {
    let path = c_string(path)?;
    // SAFETY: path outlives the call.
    check_fd(libc::c_long::from(unsafe {
        libc::openat(directory.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC, mode)
    }))
}

/// A path that is what the descriptor is, for the calls that take no O_PATH descriptor.
pub fn itself(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

pub fn cwd() -> BorrowedFd<'static> {
    // SAFETY: AT_FDCWD is no descriptor that could be closed; the system calls used here accept it.
    unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }
}

pub fn open(path: &str, flags: i32) -> Result<OwnedFd, i32> {
    open_at(cwd(), path, flags, 0)
}

pub fn mkdir_at(directory: BorrowedFd<'_>, name: impl Into<Vec<u8>>, mode: u32) -> Result<(), i32> {
    let name = c_string(name)?;
    // SAFETY: name outlives the call.
    check(libc::c_long::from(unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), mode) })).map(drop)
}

pub fn mknod_at(directory: BorrowedFd<'_>, name: impl Into<Vec<u8>>, mode: u32, device: u64) -> Result<(), i32> {
    let name = c_string(name)?;
    // SAFETY: name outlives the call.
    check(libc::c_long::from(unsafe { libc::mknodat(directory.as_raw_fd(), name.as_ptr(), mode, device) })).map(drop)
}

pub fn symlink_at(target: &[u8], directory: BorrowedFd<'_>, name: impl Into<Vec<u8>>) -> Result<(), i32> {
    let (target, name) = (c_string(target)?, c_string(name)?);
    // SAFETY: both strings outlive the call.
    check(libc::c_long::from(unsafe { libc::symlinkat(target.as_ptr(), directory.as_raw_fd(), name.as_ptr()) }))
        .map(drop)
}

/// Gives what the descriptor is one more name. An O_PATH descriptor will do.
pub fn link_fd(fd: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: impl Into<Vec<u8>>) -> Result<(), i32> {
    let name = c_string(name)?;
    // SAFETY: both strings outlive the call.
    check(libc::c_long::from(unsafe {
        libc::linkat(fd.as_raw_fd(), c"".as_ptr(), directory.as_raw_fd(), name.as_ptr(), libc::AT_EMPTY_PATH)
    }))
    .map(drop)
}

pub fn unlink_at(directory: BorrowedFd<'_>, name: impl Into<Vec<u8>>) -> Result<(), i32> {
    let name = c_string(name)?;
    // SAFETY: name outlives the call.
    check(libc::c_long::from(unsafe { libc::unlinkat(directory.as_raw_fd(), name.as_ptr(), 0) })).map(drop)
}

/// Target of a symbolic link; an empty name reads the link that the descriptor is.
pub fn read_link_at(directory: BorrowedFd<'_>, name: impl Into<Vec<u8>>) -> Result<Vec<u8>, i32> {
    let name = c_string(name)?;
    let mut buffer = vec![0_u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer is as long as said; name outlives the call.
    let length = check(unsafe {
        libc::readlinkat(directory.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    } as libc::c_long)?;
    buffer.truncate(length as usize);
    Ok(buffer)
}

/// chown of what the descriptor is, a symbolic link included. An O_PATH descriptor will do.
pub fn chown_fd(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<(), i32> {
    // SAFETY: the empty path is a constant.
    check(libc::c_long::from(unsafe {
        libc::fchownat(fd.as_raw_fd(), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW)
    }))
    .map(drop)
}

pub fn chmod_at(directory: BorrowedFd<'_>, name: impl Into<Vec<u8>>, mode: u32) -> Result<(), i32> {
    let name = c_string(name)?;
    // SAFETY: name outlives the call.
    check(libc::c_long::from(unsafe { libc::fchmodat(directory.as_raw_fd(), name.as_ptr(), mode, 0) })).map(drop)
}

/// Gives what the descriptor is the times of access and modification of `stat`. An O_PATH descriptor will do.
pub fn set_times(fd: BorrowedFd<'_>, stat: &libc::stat) -> Result<(), i32> {
    let time = |seconds, nanoseconds| libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = [time(stat.st_atime, stat.st_atime_nsec), time(stat.st_mtime, stat.st_mtime_nsec)];
    // SAFETY: two times, as utimensat wants; both pointers outlive the call.
    check(libc::c_long::from(unsafe {
        libc::utimensat(fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH)
    }))
    .map(drop)
}

pub fn stat_fd(fd: BorrowedFd<'_>) -> Result<libc::stat, i32> {
    let mut stat = MaybeUninit::uninit();
    // SAFETY: the kernel fills the structure when it returns 0.
    unsafe {
        check(libc::c_long::from(libc::fstatat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            stat.as_mut_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW,
        )))?;
        Ok(stat.assume_init())
    }
}

pub fn file_type(stat: &libc::stat) -> u32 {
    stat.st_mode & libc::S_IFMT
}

/// Magic number of the file system that the descriptor is on.
pub fn fs_magic(fd: BorrowedFd<'_>) -> Result<i64, i32> {
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel fills the structure when it returns 0.
    unsafe {
        check(libc::c_long::from(libc::fstatfs(fd.as_raw_fd(), stat.as_mut_ptr())))?;
        #[allow(clippy::unnecessary_cast)] // musl's field is unsigned
        Ok(stat.assume_init().f_type as i64)
    }
}

/// Reads a whole file, at most `limit` bytes: EFBIG beyond.
pub fn read_bounded(fd: OwnedFd, limit: usize) -> Result<Vec<u8>, i32> {
    let mut content = Vec::new();
    let mut file = File::from(fd).take(limit as u64 + 1);
    file.read_to_end(&mut content).map_err(|error| errno_of(&error))?;
    if content.len() > limit {
        return Err(libc::EFBIG);
    }
    Ok(content)
}

/// One write(2): kernel interfaces (proc, cgroup) take a value whole or not at all.
pub fn write_once(fd: BorrowedFd<'_>, value: &[u8]) -> Result<(), i32> {
    // SAFETY: the buffer is as long as said.
    let written = check(unsafe { libc::write(fd.as_raw_fd(), value.as_ptr().cast(), value.len()) } as libc::c_long)?;
    if written as usize == value.len() {
        Ok(())
    } else {
        Err(libc::EIO)
    }
}
