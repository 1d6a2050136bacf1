//! Paths of the container, resolved beneath its root whatever symbolic links its image holds.
use crate::sys::{file_type, mkdir_at, mknod_at, open_at, open_in_root, read_link_at, stat_fd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// As many as the kernel follows (path_resolution(7)).
const LINK_LIMIT: u32 = 40;
const DEPTH_LIMIT: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// O_PATH descriptor of `path` beneath `root`; what is missing is made: directories on the way, a `kind` at the end.
/// A dangling symbolic link (/etc/resolv.conf of many images) is followed, and what it points to is made beneath root.
pub(crate) fn open_or_create(root: BorrowedFd<'_>, path: &str, kind: Kind) -> Result<OwnedFd, i32> {
    match open_in_root(root, path) {
        Err(libc::ENOENT) => walk(root, path, kind),
        opened => opened,
    }
}

fn push_components(path: &str, todo: &mut Vec<String>) -> Result<(), i32> {
    let start = todo.len();
    todo.extend(path.split('/').filter(|name| !name.is_empty() && *name != ".").map(str::to_owned));
    todo[start..].reverse();
    if todo.len() > DEPTH_LIMIT {
        return Err(libc::ENAMETOOLONG);
    }
    Ok(())
}

/// The kernel's walk in user space: each step is taken from a descriptor without following links, so that a name swapped
/// meanwhile leads nowhere else; `..` goes back along the descriptors and never above root.
fn walk(root: BorrowedFd<'_>, path: &str, kind: Kind) -> Result<OwnedFd, i32> {
    let mut todo = Vec::new();
    push_components(path, &mut todo)?;
    let mut trail: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            trail.pop();
            continue;
        }
        let here = trail.last().map_or(root, OwnedFd::as_fd);
        let there = open_or_make(here, &name, if todo.is_empty() { kind } else { Kind::Directory })?;
        if file_type(&stat_fd(there.as_fd())?) == libc::S_IFLNK {
            links += 1;
            if links > LINK_LIMIT {
                return Err(libc::ELOOP);
            }
            let target = String::from_utf8(read_link_at(there.as_fd(), "")?).map_err(|_| libc::EILSEQ)?;
            if target.starts_with('/') {
                trail.clear();
            }
            push_components(&target, &mut todo)?;
            continue;
        }
        trail.push(there);
    }
    match trail.pop() {
        Some(end) => Ok(end),
        None => open_in_root(root, "/"),
    }
}

fn open_or_make(here: BorrowedFd<'_>, name: &str, kind: Kind) -> Result<OwnedFd, i32> {
    let open = || open_at(here, name, libc::O_PATH | libc::O_NOFOLLOW, 0);
    match open() {
        Err(libc::ENOENT) => {}
        opened => return opened,
    }
    let made = match kind {
        Kind::Directory => mkdir_at(here, name, 0o755),
        Kind::File => mknod_at(here, name, libc::S_IFREG | 0o644, 0),
    };
    match made {
        Ok(()) | Err(libc::EEXIST) => open(),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn in_scratch(test: impl FnOnce(&std::path::Path, BorrowedFd<'_>)) {
        let base = std::env::temp_dir().join(format!("kata-resolve-{}-{:p}", std::process::id(), &test));
        fs::create_dir_all(base.join("root")).unwrap();
        let root = fs::File::open(base.join("root")).unwrap();
        test(&base, root.as_fd());
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn a_dangling_link_is_made_inside() {
        in_scratch(|base, root| {
            fs::create_dir(base.join("root/etc")).unwrap();
            symlink("../run/systemd/resolve/stub.conf", base.join("root/etc/resolv.conf")).unwrap();
            open_or_create(root, "/etc/resolv.conf", Kind::File).unwrap();
            assert!(base.join("root/run/systemd/resolve/stub.conf").is_file());
        });
    }

    #[test]
    fn no_link_leads_outside() {
        in_scratch(|base, root| {
            symlink("../../../../../../..", base.join("root/up")).unwrap();
            symlink(base.join("outside"), base.join("root/absolute")).unwrap();
            symlink("up/made", base.join("root/chain")).unwrap();
            for path in ["/up/victim/a", "absolute", "chain/b", "../../escape", "/x/../../../y/../z"] {
                open_or_create(root, path, Kind::Directory).unwrap();
            }
            assert!(!base.join("outside").exists() && !base.join("escape").exists() && !base.join("victim").exists());
            assert!(
                base.join("root/victim/a").is_dir()
                    && base.join("root/made/b").is_dir()
                    && base.join("root/escape").is_dir()
            );
            let inside = base.join("root").join(base.join("outside").strip_prefix("/").unwrap());
            assert!(inside.is_dir());
        });
    }

    #[test]
    fn loops_and_files_on_the_way_are_errors() {
        in_scratch(|base, root| {
            symlink("b", base.join("root/a")).unwrap();
            symlink("a", base.join("root/b")).unwrap();
            fs::write(base.join("root/file"), "").unwrap();
            assert_eq!(open_or_create(root, "/a/x", Kind::File).unwrap_err(), libc::ELOOP);
            assert_eq!(open_or_create(root, "/file/x", Kind::File).unwrap_err(), libc::ENOTDIR);
        });
    }
}
