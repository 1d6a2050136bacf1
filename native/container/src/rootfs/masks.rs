//! Masked and read-only paths.
use crate::error::{ContainerError, Result, Step};
use crate::sys::mount::{
    attach, clone_tree, set_attributes, FsContext, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY,
};
use crate::sys::{self, file_type, open_in_root, stat_fd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

fn failure(path: &str, errno: i32, what: &str) -> ContainerError {
    ContainerError::new(Step::Mount, errno, path, what)
}

/// What is at `path` of the container; None when nothing is.
fn find(root: BorrowedFd<'_>, path: &str) -> Result<Option<OwnedFd>> {
    match open_in_root(root, path) {
        Ok(found) => Ok(Some(found)),
        Err(libc::ENOENT | libc::ENOTDIR) => Ok(None),
        Err(errno) => Err(failure(path, errno, "open")),
    }
}

/// Hides files behind the guest's /dev/null (not the container's, which its image could have made: CVE-2025-31133) and
/// directories behind an empty read-only file system, one for all.
pub(crate) fn mask(root: BorrowedFd<'_>, paths: &[String]) -> Result<()> {
    let mut empty: Option<OwnedFd> = None;
    let mut null: Option<OwnedFd> = None;
    for path in paths {
        let Some(target) = find(root, path)? else { continue };
        let target = target.as_fd();
        let stat = stat_fd(target).map_err(|errno| failure(path, errno, "stat"))?;
        let masked = if file_type(&stat) == libc::S_IFDIR {
            match &empty {
                Some(attached) => bind(attached.as_fd(), target),
                None => empty_directory().and_then(|made| {
                    attach(made.as_fd(), target)?;
                    empty = Some(made);
                    Ok(())
                }),
            }
        } else {
            if null.is_none() {
                null = Some(guest_null()?);
            }
            null.as_ref().map_or(Err(libc::ENODEV), |null| bind(null.as_fd(), target))
        };
        masked.map_err(|errno| failure(path, errno, "mask"))?;
    }
    Ok(())
}

fn bind(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> std::result::Result<(), i32> {
    attach(clone_tree(source, false)?.as_fd(), target)
}

/// A detached mount; once it is attached to the first masked directory, the others get binds of it (only attached mounts
/// can be bound before Linux 6.15).
pub(super) fn empty_directory() -> std::result::Result<OwnedFd, i32> {
    let context = FsContext::open("tmpfs")?;
    context.option("nr_inodes=2")?;
    context.option("mode=0755")?;
    context.mount(ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)
}

fn guest_null() -> Result<OwnedFd> {
    let path = "/dev/null";
    let null = sys::open(path, libc::O_PATH | libc::O_NOFOLLOW).map_err(|errno| failure(path, errno, "the guest's"))?;
    let stat = stat_fd(null.as_fd()).map_err(|errno| failure(path, errno, "the guest's"))?;
    if file_type(&stat) != libc::S_IFCHR || stat.st_rdev != libc::makedev(1, 3) {
        return Err(failure(path, libc::ENODEV, "the guest's is no null device:"));
    }
    Ok(null)
}

pub(crate) fn make_read_only(root: BorrowedFd<'_>, paths: &[String]) -> Result<()> {
    for path in paths {
        let Some(target) = find(root, path)? else { continue };
        clone_tree(target.as_fd(), true)
            .and_then(|tree| {
                set_attributes(tree.as_fd(), ATTR_RDONLY, 0, true)?;
                attach(tree.as_fd(), target.as_fd())
            })
            .map_err(|errno| failure(path, errno, "make read-only"))?;
    }
    Ok(())
}
