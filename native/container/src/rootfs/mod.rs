//! The container's file system: everything below its root, made before the guest's own is left.
mod copyup;
mod devices;
mod masks;
mod mounts;
mod options;
mod resolve;

use crate::error::{ContainerError, Result, Step};
use crate::sys::mount::{attach, clone_tree, pivot_here, set_attributes, set_root_propagation, ATTR_RDONLY};
use crate::sys::{self, check};
use devices::Nodes;
use kata_protocol::grpc;
use mounts::Place;
use resolve::{open_or_create, Kind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub(crate) use mounts::{wants_fill, PROC_MAGIC};

fn failure(path: &str, errno: i32, what: &str) -> ContainerError {
    ContainerError::new(Step::Rootfs, errno, path, what)
}

/// The container's root as a mount of its own in this process's mount namespace.
pub(crate) struct Rootfs<'a> {
    root: OwnedFd,
    spec: &'a grpc::Spec,
    linux: &'a grpc::Linux,
    propagation: Option<libc::c_ulong>,
}

impl<'a> Rootfs<'a> {
    /// Takes the mount namespace out of the guest's propagation and mounts the root onto itself.
    pub(crate) fn open(path: &Path, spec: &'a grpc::Spec, linux: &'a grpc::Linux) -> Result<Self> {
        let name = path.to_string_lossy();
        let propagation = match linux.rootfs_propagation.as_str() {
            "" => None,
            text => Some(options::parse_propagation(text).ok_or_else(|| {
                failure(text, libc::EINVAL, "rootfsPropagation is one of shared, slave, private, unbindable, not")
            })?),
        };
        // Unbindable would forbid the bind of the root itself; it is applied at the end.
        let first = propagation.map_or(libc::MS_SLAVE, |flags| flags & !libc::MS_UNBINDABLE & !libc::MS_REC);
        let first = if first == 0 { libc::MS_PRIVATE } else { first };
        set_root_propagation(first | libc::MS_REC).map_err(|errno| failure("/", errno, "propagation of"))?;
        if first == libc::MS_SHARED {
            make_parent_private(path)?;
        }
        let directory =
            sys::open(&name, libc::O_PATH | libc::O_DIRECTORY).map_err(|errno| failure(&name, errno, "open"))?;
        let root = clone_tree(directory.as_fd(), true).map_err(|errno| failure(&name, errno, "bind"))?;
        attach(root.as_fd(), directory.as_fd()).map_err(|errno| failure(&name, errno, "attach"))?;
        Ok(Self { root, spec, linux, propagation })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Mounts, devices and the working directory.
    pub(crate) fn populate(&self, proc_dir: BorrowedFd<'_>, user_namespace: bool) -> Result<()> {
        let place = Place { root: self.root(), proc_dir };
        for entry in &self.spec.mounts {
            mounts::fill(&place, entry)?;
        }
        for entry in &self.spec.mounts {
            mounts::mount(&place, entry)?;
        }
        if !self.dev_is_bound() {
            devices::create(self.root(), &self.linux.devices, if user_namespace { Nodes::Bind } else { Nodes::Make })?;
        }
        let cwd = self.spec.process.as_ref().map_or("", |process| process.cwd.as_str());
        if !cwd.is_empty() {
            // A read-only root without it: chdir says so later.
            let _ = open_or_create(self.root(), cwd, Kind::Directory);
        }
        Ok(())
    }

    /// A /dev that was bound belongs to somebody else: nothing is made in it.
    fn dev_is_bound(&self) -> bool {
        self.spec.mounts.iter().any(|entry| {
            let bind =
                entry.r#type == "bind" || entry.options.iter().any(|option| option == "bind" || option == "rbind");
            bind && entry.destination.trim_end_matches('/') == "/dev"
        })
    }

    /// Binds the terminal over /dev/console.
    pub(crate) fn bind_console(&self, terminal: BorrowedFd<'_>) -> Result<()> {
        open_or_create(self.root(), "/dev/console", Kind::File)
            .and_then(|target| attach(clone_tree(terminal, false)?.as_fd(), target.as_fd()))
            .map_err(|errno| ContainerError::new(Step::Device, errno, "/dev/console", "bind the terminal over"))
    }

    /// Hides and protects what the spec says; nothing below the root is changed after this.
    pub(crate) fn protect(&self) -> Result<()> {
        masks::make_read_only(self.root(), &self.linux.readonly_paths)?;
        masks::mask(self.root(), &self.linux.masked_paths)?;
        if self.spec.root.as_ref().is_some_and(|root| root.readonly) {
            set_attributes(self.root(), ATTR_RDONLY, 0, false)
                .map_err(|errno| failure("/", errno, "make read-only"))?;
        }
        Ok(())
    }

    /// Leaves the guest's file system for good.
    pub(crate) fn enter(self) -> Result<()> {
        // SAFETY: takes no memory.
        check(libc::c_long::from(unsafe { libc::fchdir(self.root.as_raw_fd()) }))
            .map_err(|errno| failure("/", errno, "enter"))?;
        pivot_here().map_err(|errno| {
            let hint = if errno == libc::EINVAL {
                " (the guest's root is an initramfs: make_root_pivotable was not called)"
            } else {
                ""
            };
            failure("/", errno, &format!("pivot_root{hint}"))
        })?;
        match self.propagation {
            Some(flags) => set_root_propagation(flags).map_err(|errno| failure("/", errno, "propagation of")),
            None => Ok(()),
        }
    }
}

/// pivot_root(2) refuses a new root whose parent mount is shared: the nearest mount above the path becomes private.
fn make_parent_private(path: &Path) -> Result<()> {
    for ancestor in path.ancestors() {
        let name =
            sys::c_string(ancestor.to_string_lossy().as_bytes()).map_err(|errno| failure("", errno, "rootfs path"))?;
        // SAFETY: the path outlives the call; the other pointers are not read for a change of propagation.
        let done = unsafe {
            libc::mount(c"none".as_ptr(), name.as_ptr(), std::ptr::null(), libc::MS_PRIVATE, std::ptr::null())
        };
        match check(libc::c_long::from(done)) {
            Ok(_) => return Ok(()),
            Err(libc::EINVAL) => {}
            Err(errno) => return Err(failure(&ancestor.to_string_lossy(), errno, "make private")),
        }
    }
    Ok(())
}

/// Leaves for an empty, read-only root; in a mount namespace of its own.
pub(crate) fn enter_nothing() -> std::result::Result<(), i32> {
    set_root_propagation(libc::MS_PRIVATE | libc::MS_REC)?;
    let nothing = masks::empty_directory()?;
    attach(nothing.as_fd(), sys::open("/", libc::O_PATH | libc::O_DIRECTORY)?.as_fd())?;
    // SAFETY: takes no memory.
    check(libc::c_long::from(unsafe { libc::fchdir(nothing.as_raw_fd()) }))?;
    pivot_here()
}

/// Mounts a bind of the root over itself and moves into it: see `make_root_pivotable`.
pub(crate) fn cover_root() -> std::result::Result<(), i32> {
    let root = sys::open("/", libc::O_PATH | libc::O_DIRECTORY)?;
    let cover = clone_tree(root.as_fd(), true)?;
    attach(cover.as_fd(), root.as_fd())?;
    // SAFETY: constant path.
    unsafe {
        check(libc::c_long::from(libc::fchdir(cover.as_raw_fd())))?;
        check(libc::c_long::from(libc::chroot(c".".as_ptr())))?;
        check(libc::c_long::from(libc::chdir(c"/".as_ptr()))).map(drop)
    }
}
