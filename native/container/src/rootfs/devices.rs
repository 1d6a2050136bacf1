//! Device nodes and links of /dev, and the devices that every container has (config-linux.md, "Default Devices").
use super::resolve::{open_or_create, Kind};
use crate::error::{ContainerError, Result, Step};
use crate::sys::mount::{attach, clone_tree};
use crate::sys::{self, chmod_at, chown_fd, file_type, mknod_at, open_at, stat_fd, symlink_at, unlink_at};
use kata_protocol::grpc::LinuxDevice;
use std::os::fd::{AsFd, BorrowedFd};

const DEFAULT_DEVICES: [(&str, i64, i64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];
const DEFAULT_MODE: u32 = 0o666;

/// How nodes are made: in a user namespace mknod(2) is refused, there the guest's node is bound.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nodes {
    Make,
    Bind,
}

fn failure(path: &str, errno: i32, what: &str) -> ContainerError {
    ContainerError::new(Step::Device, errno, path, what)
}

/// Makes the default devices, those of the spec (which win when they name the same path), and the links of /dev.
pub(crate) fn create(root: BorrowedFd<'_>, devices: &[LinuxDevice], nodes: Nodes) -> Result<()> {
    for (path, major, minor) in DEFAULT_DEVICES {
        if devices.iter().any(|device| device.path == path) {
            continue;
        }
        let device = LinuxDevice {
            path: path.into(),
            r#type: "c".into(),
            major,
            minor,
            file_mode: DEFAULT_MODE,
            uid: 0,
            gid: 0,
        };
        create_one(root, &device, nodes)?;
    }
    for device in devices {
        create_one(root, device, nodes)?;
    }
    let dev = open_or_create(root, "/dev", Kind::Directory).map_err(|errno| failure("/dev", errno, "open"))?;
    for (target, name) in LINKS {
        if name == "ptmx" {
            // Whatever the image has there: the pseudo terminals of a container are those of its own devpts.
            let _ = unlink_at(dev.as_fd(), name);
        }
        match symlink_at(target.as_bytes(), dev.as_fd(), name) {
            Ok(()) | Err(libc::EEXIST) => {}
            Err(errno) => return Err(failure(&format!("/dev/{name}"), errno, "make the link")),
        }
    }
    Ok(())
}

fn mode_of_type(kind: &str) -> Option<u32> {
    Some(match kind {
        "c" | "u" => libc::S_IFCHR,
        "b" => libc::S_IFBLK,
        "p" => libc::S_IFIFO,
        _ => return None,
    })
}

fn create_one(root: BorrowedFd<'_>, device: &LinuxDevice, nodes: Nodes) -> Result<()> {
    let path = device.path.as_str();
    let Some(kind) = mode_of_type(&device.r#type) else {
        return Err(failure(path, libc::EINVAL, &format!("device type {:?} of", device.r#type)));
    };
    let (Ok(major), Ok(minor)) = (u32::try_from(device.major), u32::try_from(device.minor)) else {
        return Err(failure(path, libc::EINVAL, "device number out of range of"));
    };
    if nodes == Nodes::Bind {
        return bind(root, path);
    }
    let (parent, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
    if matches!(name, "" | "." | "..") {
        return Err(failure(path, libc::EINVAL, "no path of a device:"));
    }
    let parent =
        open_or_create(root, parent, Kind::Directory).map_err(|errno| failure(path, errno, "make the directory of"))?;
    let number = if kind == libc::S_IFIFO { 0 } else { libc::makedev(major, minor) };
    let mode = if device.file_mode == 0 { DEFAULT_MODE } else { device.file_mode & 0o7777 };
    if mknod_at(parent.as_fd(), name, kind | mode, number).is_err() {
        match existing(parent.as_fd(), name) {
            Ok(stat) if file_type(&stat) == kind && stat.st_rdev == number => {}
            // An image's own /dev/null may be anything; it is replaced, not trusted (CVE-2025-31133).
            _ => unlink_at(parent.as_fd(), name)
                .and_then(|()| mknod_at(parent.as_fd(), name, kind | mode, number))
                .map_err(|errno| failure(path, errno, "make the node"))?,
        }
    }
    // A fixed umask aside, mknod gives the mode; chmod makes it certain for nodes that were there.
    chmod_at(parent.as_fd(), name, mode).map_err(|errno| failure(path, errno, "mode of"))?;
    let node = open_at(parent.as_fd(), name, libc::O_PATH | libc::O_NOFOLLOW, 0)
        .map_err(|errno| failure(path, errno, "open"))?;
    chown_fd(node.as_fd(), device.uid, device.gid).map_err(|errno| failure(path, errno, "owner of"))
}

fn existing(parent: BorrowedFd<'_>, name: &str) -> std::result::Result<libc::stat, i32> {
    stat_fd(open_at(parent, name, libc::O_PATH | libc::O_NOFOLLOW, 0)?.as_fd())
}

fn bind(root: BorrowedFd<'_>, path: &str) -> Result<()> {
    let source =
        sys::open(path, libc::O_PATH | libc::O_NOFOLLOW).map_err(|errno| failure(path, errno, "the guest's"))?;
    open_or_create(root, path, Kind::File)
        .and_then(|target| attach(clone_tree(source.as_fd(), false)?.as_fd(), target.as_fd()))
        .map_err(|errno| failure(path, errno, "bind"))
}
