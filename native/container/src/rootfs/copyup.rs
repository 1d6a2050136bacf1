//! `tmpcopyup`: a tmpfs that begins with what the image has at its place.
use crate::sys::{
    chown_fd, errno_of, fchmod, file_type, list, mkdir_at, mknod_at, open_at, read_link_at, stat_fd, symlink_at,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

const DEPTH_LIMIT: u32 = 64;
const ENTRY_LIMIT: usize = 65_536;

/// Copies directories, regular files, symbolic links and fifos with owner and mode; devices and sockets are left out.
pub(crate) fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), i32> {
    let mut left = ENTRY_LIMIT;
    copy_directory(from, to, 0, &mut left)
}

fn copy_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32, left: &mut usize) -> Result<(), i32> {
    if depth > DEPTH_LIMIT {
        return Err(libc::ENAMETOOLONG);
    }
    let from = open_at(from, ".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let stat = stat_fd(from.as_fd())?;
    for name in list(from.as_fd(), *left)? {
        *left = left.checked_sub(1).ok_or(libc::E2BIG)?;
        copy_entry(from.as_fd(), to, &name, depth, left)?;
    }
    let to = open_at(to, ".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    chown_fd(to.as_fd(), stat.st_uid, stat.st_gid)?;
    fchmod(to.as_fd(), stat.st_mode & 0o7777)
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &str, depth: u32, left: &mut usize) -> Result<(), i32> {
    let source = open_at(from, name, libc::O_PATH | libc::O_NOFOLLOW, 0)?;
    let stat = stat_fd(source.as_fd())?;
    let no_follow = libc::O_NOFOLLOW;
    match file_type(&stat) {
        libc::S_IFDIR => {
            mkdir_at(to, name, 0o700)?;
            let target = open_at(to, name, libc::O_PATH | libc::O_DIRECTORY | no_follow, 0)?;
            return copy_directory(source.as_fd(), target.as_fd(), depth + 1, left);
        }
        libc::S_IFREG => {
            let mut reader = File::from(open_at(from, name, libc::O_RDONLY | libc::O_NONBLOCK | no_follow, 0)?);
            let mut writer =
                File::from(open_at(to, name, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | no_follow, 0o600)?);
            io::copy(&mut reader, &mut writer).map_err(|error| errno_of(&error))?;
            chown_fd(writer.as_fd(), stat.st_uid, stat.st_gid)?;
            return fchmod(writer.as_fd(), stat.st_mode & 0o7777);
        }
        libc::S_IFLNK => symlink_at(&read_link_at(source.as_fd(), "")?, to, name)?,
        libc::S_IFIFO => mknod_at(to, name, stat.st_mode & (libc::S_IFMT | 0o7777), 0)?,
        _ => return Ok(()),
    }
    let target = open_at(to, name, libc::O_PATH | no_follow, 0)?;
    chown_fd(target.as_fd(), stat.st_uid, stat.st_gid)
}
