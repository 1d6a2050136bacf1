//! Copies what the image has at a place: into a tmpfs (`tmpcopyup`) or into an empty volume (`kata-ts.copyup=DIR`).
use crate::sys::xattr::{get_xattr, list_xattrs, set_xattr};
use crate::sys::{
    chmod_at, chown_fd, cwd, errno_of, file_type, itself, link_fd, mkdir_at, mknod_at, open_at, open_at2, read_link_at,
    set_times, stat_fd, symlink_at, RESOLVE_IN_ROOT, RESOLVE_NO_SYMLINKS,
};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// An image's path has 4096 bytes at most; every level holds descriptors.
const DEPTH_LIMIT: u32 = 256;
/// As many as a layer may have.
const ENTRY_LIMIT: usize = 1_000_000;
/// What belongs to the files. Everything else belongs to a file system or to a security module.
const ATTRIBUTES: [&[u8]; 3] = [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
const USER_ATTRIBUTES: &[u8] = b"user.";

/// What failed, and at which path below the copied directory.
pub(crate) struct CopyError {
    pub errno: i32,
    pub path: String,
}

/// Copies directories, regular files, symbolic links and fifos with owner, mode, extended attributes and times; files
/// that are one in `from` are one in `to`. Devices and sockets are left out. Nothing that exists is replaced.
pub(crate) fn copy_tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), CopyError> {
    let mut copy = Copy { to, path: Vec::new(), left: ENTRY_LIMIT, links: BTreeMap::new() };
    copy.directory(from, to, 0)
        .map_err(|errno| CopyError { errno, path: format!(".{}", String::from_utf8_lossy(&copy.path)) })
}

pub(crate) fn is_empty(directory: BorrowedFd<'_>) -> Result<bool, i32> {
    Ok(fs::read_dir(itself(directory)).map_err(|error| errno_of(&error))?.next().is_none())
}

struct Copy<'a> {
    to: BorrowedFd<'a>,
    /// Of the entry at work, below `to`; after a failure, of the one that failed.
    path: Vec<u8>,
    left: usize,
    /// Where a file with several names was copied first, by device and inode.
    links: BTreeMap<(libc::dev_t, libc::ino_t), Vec<u8>>,
}

impl Copy<'_> {
    fn directory(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> Result<(), i32> {
        if depth > DEPTH_LIMIT {
            return Err(libc::ENAMETOOLONG);
        }
        let from = open_at(from, ".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let stat = stat_fd(from.as_fd())?;
        copy_access(&stat, to)?;
        for entry in fs::read_dir(itself(from.as_fd())).map_err(|error| errno_of(&error))? {
            let name = entry.map_err(|error| errno_of(&error))?.file_name().into_vec();
            let length = self.path.len();
            self.path.push(b'/');
            self.path.extend(&name);
            self.left = self.left.checked_sub(1).ok_or(libc::E2BIG)?;
            self.entry(from.as_fd(), to, &name, depth)?;
            self.path.truncate(length);
        }
        copy_attributes(&stat, from.as_fd(), to)
    }

    fn entry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8], depth: u32) -> Result<(), i32> {
        let source = open_at(from, name, libc::O_PATH | libc::O_NOFOLLOW, 0)?;
        let stat = stat_fd(source.as_fd())?;
        let made = || open_at(to, name, libc::O_PATH | libc::O_NOFOLLOW, 0);
        let mode = stat.st_mode & 0o7777;
        match file_type(&stat) {
            libc::S_IFDIR => {
                mkdir_at(to, name, mode)?;
                return self.directory(source.as_fd(), made()?.as_fd(), depth + 1);
            }
            libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK => return Ok(()),
            _ if stat.st_nlink > 1 => {
                if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                    return link_fd(self.open_copied(first)?.as_fd(), to, name);
                }
                self.links.insert((stat.st_dev, stat.st_ino), self.path.clone());
            }
            _ => {}
        }
        let target = match file_type(&stat) {
            libc::S_IFREG => return copy_file(from, to, name, &stat),
            libc::S_IFLNK => symlink_at(&read_link_at(source.as_fd(), "")?, to, name).and_then(|()| made())?,
            libc::S_IFIFO => mknod_at(to, name, libc::S_IFIFO | mode, 0).and_then(|()| made())?,
            _ => return Err(libc::EINVAL),
        };
        copy_access(&stat, target.as_fd())?;
        copy_attributes(&stat, source.as_fd(), target.as_fd())
    }

    fn open_copied(&self, path: &[u8]) -> Result<OwnedFd, i32> {
        open_at2(self.to, path, libc::O_PATH | libc::O_NOFOLLOW, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
    }
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8], stat: &libc::stat) -> Result<(), i32> {
    let no_follow = libc::O_NOFOLLOW;
    let mut reader = File::from(open_at(from, name, libc::O_RDONLY | libc::O_NONBLOCK | no_follow, 0)?);
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | no_follow;
    let mut writer = File::from(open_at(to, name, flags, stat.st_mode & 0o7777)?);
    // What is known of a file that was just made need not be asked of the host; after a write it must be.
    copy_access(stat, writer.as_fd())?;
    io::copy(&mut reader, &mut writer).map_err(|error| errno_of(&error))?;
    copy_attributes(stat, reader.as_fd(), writer.as_fd())
}

/// Owner first: a change of owner takes the set-id bits away. What is right already is left alone: on a shared directory
/// every call goes to the host.
fn copy_access(stat: &libc::stat, to: BorrowedFd<'_>) -> Result<(), i32> {
    let made = stat_fd(to)?;
    let owned = (made.st_uid, made.st_gid) == (stat.st_uid, stat.st_gid);
    if !owned {
        chown_fd(to, stat.st_uid, stat.st_gid)?;
    }
    if file_type(stat) != libc::S_IFLNK && (!owned || made.st_mode != stat.st_mode) {
        chmod_at(cwd(), itself(to), stat.st_mode & 0o7777)?;
    }
    Ok(())
}

/// After the content, which takes capabilities away and changes the times.
fn copy_attributes(stat: &libc::stat, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), i32> {
    let source = itself(from);
    for name in list_xattrs(&source)? {
        let of_user = name.to_bytes().starts_with(USER_ATTRIBUTES);
        if !of_user && !ATTRIBUTES.contains(&name.to_bytes()) {
            continue;
        }
        match set_xattr(&itself(to), &name, &get_xattr(&source, &name)?) {
            // Notes of the user's, not rights: a tmpfs of kernels before 6.6 has no place for them.
            Err(libc::EOPNOTSUPP) if of_user => {}
            done => done?,
        }
    }
    set_times(to, stat)
}
