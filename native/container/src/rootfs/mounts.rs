//! The mounts of the spec, in order, each attached by descriptor to a place beneath the container's root.
use super::copyup::{copy_tree, is_empty, CopyError};
use super::options::{self, MountOptions};
use super::resolve::{open_or_create, Kind};
use crate::error::{ContainerError, Result, Step};
use crate::sys::mount::{attach, clone_tree, set_attributes, set_propagation, FsContext, ATTR_RDONLY};
use crate::sys::{
    self, file_type, fs_magic, open_at2, open_in_root, read_link_at, stat_fd, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
};
use kata_protocol::grpc::Mount;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

pub(crate) const PROC_MAGIC: i64 = 0x9fa0;
/// Files of /proc that a runtime may replace (lxcfs does); anything else there could fool what the agent and tools read.
const PROC_REPLACEABLE: [&str; 9] =
    ["cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "net/dev", "slabinfo"];
/// Their superblock is shared or has no read-only state of its own: `ro` belongs to the mount alone.
const PSEUDO: [&str; 6] = ["proc", "sysfs", "cgroup2", "mqueue", "devpts", "tmpfs"];

/// Where mounts are made.
pub(crate) struct Place<'a> {
    /// The root mount of the container.
    pub root: BorrowedFd<'a>,
    /// The guest's own /proc.
    pub proc_dir: BorrowedFd<'a>,
}

fn failure(mount: &Mount, errno: i32, what: &str) -> ContainerError {
    let source = if mount.source.is_empty() { "" } else { " of " };
    ContainerError::new(
        Step::Mount,
        errno,
        &mount.destination,
        format!("{what}: {}{source}{} on", mount.r#type, mount.source),
    )
}

fn copy_failure(mount: &Mount, error: &CopyError) -> ContainerError {
    failure(mount, error.errno, &format!("copy {} of the image", error.path))
}

/// Whether the mount asks for `fill`.
pub(crate) fn wants_fill(entry: &Mount) -> bool {
    options::parse(&entry.options).fill.is_some()
}

/// Puts what the image has at the mount's destination into the volume that is mounted there later, when the volume is
/// empty. To be done before anything covers the image. A destination that the image does not have is no error.
pub(crate) fn fill(place: &Place<'_>, entry: &Mount) -> Result<()> {
    let Some(directory) = options::parse(&entry.options).fill else { return Ok(()) };
    let source = match open_in_root(place.root, &entry.destination) {
        Err(libc::ENOENT) => return Ok(()),
        opened => opened.map_err(|errno| failure(entry, errno, "the image's content"))?,
    };
    let stat = stat_fd(source.as_fd()).map_err(|errno| failure(entry, errno, "stat the image's content"))?;
    if file_type(&stat) != libc::S_IFDIR {
        return Err(failure(entry, libc::ENOTDIR, "a volume covers no file of the image"));
    }
    let volume = sys::open(&directory, libc::O_RDONLY | libc::O_DIRECTORY)
        .map_err(|errno| ContainerError::new(Step::Mount, errno, &directory, "volume to be filled"))?;
    if is_empty(volume.as_fd()).map_err(|errno| failure(entry, errno, "read the volume"))? {
        copy_tree(source.as_fd(), volume.as_fd()).map_err(|error| copy_failure(entry, &error))?;
    }
    Ok(())
}

pub(crate) fn mount(place: &Place<'_>, entry: &Mount) -> Result<()> {
    let options = options::parse(&entry.options);
    let kind = match entry.r#type.as_str() {
        // Guests have the unified hierarchy only; the cgroup namespace shows the container its own part.
        "cgroup" => "cgroup2",
        kind => kind,
    };
    let result = if options.remount {
        remount(place, entry, &options)
    } else if options.bind || kind == "bind" {
        bind(place, entry, &options)
    } else {
        make(place, entry, kind, &options)
    };
    let mounted = result?;
    for flag in &options.propagation {
        let kind = flag & !libc::MS_REC;
        set_propagation(mounted.as_fd(), kind, flag & libc::MS_REC != 0)
            .map_err(|errno| failure(entry, errno, "propagation"))?;
    }
    Ok(())
}

fn apply_attributes(mount: BorrowedFd<'_>, entry: &Mount, options: &MountOptions) -> Result<()> {
    for (attributes, recursive) in [(options.attributes, false), (options.recursive_attributes, true)] {
        if !attributes.is_empty() {
            set_attributes(mount, attributes.set, attributes.clear, recursive)
                .map_err(|errno| failure(entry, errno, "attributes"))?;
        }
    }
    Ok(())
}

fn bind(place: &Place<'_>, entry: &Mount, options: &MountOptions) -> Result<OwnedFd> {
    let source = sys::open(&entry.source, libc::O_PATH)
        .map_err(|errno| ContainerError::new(Step::Mount, errno, &entry.source, "source of a bind mount"))?;
    let stat = stat_fd(source.as_fd()).map_err(|errno| failure(entry, errno, "stat the source"))?;
    let kind = if file_type(&stat) == libc::S_IFDIR { Kind::Directory } else { Kind::File };
    let target = target(place, entry, kind)?;
    refuse_proc_target(place, entry, target.as_fd(), Some(source.as_fd()))?;
    let tree = clone_tree(source.as_fd(), options.recursive).map_err(|errno| failure(entry, errno, "bind"))?;
    let mut wanted = options.clone();
    // A source that the guest mounted read-only stays so: `rw` is merely the default that runtimes write out.
    wanted.attributes.clear &= !ATTR_RDONLY;
    apply_attributes(tree.as_fd(), entry, &wanted)?;
    attach(tree.as_fd(), target.as_fd()).map_err(|errno| failure(entry, errno, "attach"))?;
    Ok(tree)
}

fn make(place: &Place<'_>, entry: &Mount, kind: &str, options: &MountOptions) -> Result<OwnedFd> {
    let target = if kind == "proc" || kind == "sysfs" {
        kernel_target(place, entry)?
    } else {
        target(place, entry, Kind::Directory)?
    };
    if kind != "proc" {
        refuse_proc_target(place, entry, target.as_fd(), None)?;
    }
    let context = FsContext::open(kind).map_err(|errno| failure(entry, errno, "file system type"))?;
    let refused = |errno: i32| failure(entry, errno, &format!("mount {}", context.explanation()));
    if !entry.source.is_empty() {
        context.source(&entry.source).map_err(refused)?;
    }
    if kind != "cgroup2" {
        for option in &options.data {
            context
                .option(option)
                .map_err(|errno| failure(entry, errno, &format!("option {option:?} {}", context.explanation())))?;
        }
    }
    for flag in &options.superblock_flags {
        context.option(flag).map_err(refused)?;
    }
    let read_only = (options.attributes.set | options.recursive_attributes.set) & ATTR_RDONLY != 0;
    if read_only && !PSEUDO.contains(&kind) {
        context.option("ro").map_err(refused)?;
    }
    // A new mount has nothing to clear and nothing below it.
    let attributes = options.attributes.set | options.recursive_attributes.set;
    let mounted = if options.copy_up && kind == "tmpfs" {
        let mounted = context.mount(attributes & !ATTR_RDONLY).map_err(refused)?;
        copy_tree(target.as_fd(), mounted.as_fd()).map_err(|error| copy_failure(entry, &error))?;
        set_attributes(mounted.as_fd(), attributes & ATTR_RDONLY, 0, false)
            .map_err(|errno| failure(entry, errno, "attributes"))?;
        mounted
    } else {
        context.mount(attributes).map_err(refused)?
    };
    attach(mounted.as_fd(), target.as_fd()).map_err(|errno| failure(entry, errno, "attach"))?;
    Ok(mounted)
}

fn remount(place: &Place<'_>, entry: &Mount, options: &MountOptions) -> Result<OwnedFd> {
    let target = open_in_root(place.root, &entry.destination).map_err(|errno| failure(entry, errno, "remount"))?;
    if !options.bind && !options.data.is_empty() {
        let context = FsContext::pick(target.as_fd()).map_err(|errno| failure(entry, errno, "remount"))?;
        for option in &options.data {
            context.option(option).map_err(|errno| failure(entry, errno, &format!("option {option:?}")))?;
        }
        context.reconfigure().map_err(|errno| failure(entry, errno, &format!("remount {}", context.explanation())))?;
    }
    apply_attributes(target.as_fd(), entry, options)?;
    Ok(target)
}

fn target(place: &Place<'_>, entry: &Mount, kind: Kind) -> Result<OwnedFd> {
    if entry.destination.split('/').all(|name| name.is_empty() || name == "." || name == "..") {
        return Err(failure(entry, libc::EINVAL, "the container's root cannot be a mount's target"));
    }
    open_or_create(place.root, &entry.destination, kind).map_err(|errno| failure(entry, errno, "target"))
}

/// proc and sysfs go where the image has a plain directory, on a path without symbolic links: elsewhere they would let
/// an image choose which files the runtime writes later (CVE-2019-16884, CVE-2019-19921).
fn kernel_target(place: &Place<'_>, entry: &Mount) -> Result<OwnedFd> {
    let strict = || {
        open_at2(
            place.root,
            entry.destination.as_str(),
            libc::O_PATH,
            RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
        )
    };
    let opened = match strict() {
        Err(libc::ENOENT) => target(place, entry, Kind::Directory)
            .and_then(|_| strict().map_err(|errno| failure(entry, errno, "target"))),
        opened => opened.map_err(|errno| failure(entry, errno, "target (no symbolic link may be on its path)")),
    }?;
    let stat = stat_fd(opened.as_fd()).map_err(|errno| failure(entry, errno, "target"))?;
    if file_type(&stat) != libc::S_IFDIR {
        return Err(failure(entry, libc::ENOTDIR, "the target is not a directory"));
    }
    Ok(opened)
}

/// Nothing may be mounted over /proc or in it, except a procfs on /proc itself and the replaceable files.
fn refuse_proc_target(
    place: &Place<'_>,
    entry: &Mount,
    target: BorrowedFd<'_>,
    source: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let resolved = |fd: BorrowedFd<'_>| -> Result<String> {
        let link = read_link_at(place.proc_dir, format!("self/fd/{}", fd.as_raw_fd()))
            .map_err(|errno| failure(entry, errno, "resolve"))?;
        String::from_utf8(link).map_err(|_| failure(entry, libc::EILSEQ, "resolve"))
    };
    let (root, path) = (resolved(place.root)?, resolved(target)?);
    let inside = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(&path);
    let Some(below) = inside.strip_prefix("/proc") else {
        return Ok(());
    };
    let of_proc = |fd: BorrowedFd<'_>| fs_magic(fd) == Ok(PROC_MAGIC);
    let allowed = match below.strip_prefix('/') {
        Some(name) => PROC_REPLACEABLE.contains(&name),
        None if below.is_empty() => source.is_some_and(of_proc),
        None => true, // a sibling such as /process
    };
    if allowed {
        Ok(())
    } else {
        Err(failure(entry, libc::EPERM, "mounts inside /proc are refused"))
    }
}
