//! The mount API by descriptor (fsopen(2), open_tree(2), move_mount(2), mount_setattr(2)): no path is walked twice.
use super::{c_string, check, check_fd};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

pub(crate) const ATTR_RDONLY: u64 = 0x01;
pub(crate) const ATTR_NOSUID: u64 = 0x02;
pub(crate) const ATTR_NODEV: u64 = 0x04;
pub(crate) const ATTR_NOEXEC: u64 = 0x08;
/// The field that holds one of the access-time modes; 0 is relatime.
pub(crate) const ATTR_ATIME: u64 = 0x70;
pub(crate) const ATTR_NOATIME: u64 = 0x10;
pub(crate) const ATTR_STRICTATIME: u64 = 0x20;
pub(crate) const ATTR_NODIRATIME: u64 = 0x80;
pub(crate) const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;
const MOVE_MOUNT_BOTH_EMPTY: u32 = 0x04 | 0x40;
const FSOPEN_CLOEXEC: u32 = 1;
const FSPICK_FLAGS: u32 = 1 | 8; // close-on-exec, empty path
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSCONFIG_CMD_RECONFIGURE: u32 = 7;

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A detached copy of the mount (with everything below it when `recursive`) that the descriptor is on.
pub(crate) fn clone_tree(source: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, i32> {
    let recursion = if recursive { libc::AT_RECURSIVE as u32 } else { 0 };
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32 | recursion;
    // SAFETY: the empty path is a constant.
    check_fd(unsafe { libc::syscall(libc::SYS_open_tree, source.as_raw_fd(), c"".as_ptr(), flags) })
}

/// Attaches a detached mount on what `target` is.
pub(crate) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), i32> {
    // SAFETY: both empty paths are constants.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_BOTH_EMPTY,
        )
    })
    .map(drop)
}

fn set_attr(mount: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> Result<(), i32> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: attr outlives the call; the size is that of attr.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Sets and clears ATTR_* of the mount that the descriptor is the root of.
pub(crate) fn set_attributes(mount: BorrowedFd<'_>, set: u64, clear: u64, recursive: bool) -> Result<(), i32> {
    set_attr(mount, &MountAttr { set, clear, ..MountAttr::default() }, recursive)
}

/// Sets MS_PRIVATE, MS_SLAVE, MS_SHARED or MS_UNBINDABLE.
pub(crate) fn set_propagation(mount: BorrowedFd<'_>, propagation: u64, recursive: bool) -> Result<(), i32> {
    set_attr(mount, &MountAttr { propagation, ..MountAttr::default() }, recursive)
}

/// A file system that is being configured.
pub(crate) struct FsContext(OwnedFd);

impl FsContext {
    /// ENODEV: the kernel does not know the type.
    pub(crate) fn open(kind: &str) -> Result<Self, i32> {
        let kind = c_string(kind)?;
        // SAFETY: kind outlives the call.
        check_fd(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    /// The file system that is mounted at the descriptor, to be reconfigured.
    pub(crate) fn pick(mount: BorrowedFd<'_>) -> Result<Self, i32> {
        // SAFETY: the empty path is a constant.
        check_fd(unsafe { libc::syscall(libc::SYS_fspick, mount.as_raw_fd(), c"".as_ptr(), FSPICK_FLAGS) }).map(Self)
    }

    fn config(&self, command: u32, key: Option<&str>, value: Option<&str>) -> Result<(), i32> {
        let key = key.map(c_string).transpose()?;
        let value = value.map(c_string).transpose()?;
        let pointer = |text: &Option<std::ffi::CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
        // SAFETY: key and value outlive the call; null is what commands without them want.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, pointer(&key), pointer(&value), 0)
        })
        .map(drop)
    }

    /// `key=value`, or a flag without `=`.
    pub(crate) fn option(&self, option: &str) -> Result<(), i32> {
        match option.split_once('=') {
            Some((key, value)) => self.config(FSCONFIG_SET_STRING, Some(key), Some(value)),
            None => self.config(FSCONFIG_SET_FLAG, Some(option), None),
        }
    }

    pub(crate) fn source(&self, source: &str) -> Result<(), i32> {
        self.config(FSCONFIG_SET_STRING, Some("source"), Some(source))
    }

    pub(crate) fn reconfigure(&self) -> Result<(), i32> {
        self.config(FSCONFIG_CMD_RECONFIGURE, None, None)
    }

    /// Makes the file system and a detached mount of it.
    pub(crate) fn mount(&self, attributes: u64) -> Result<OwnedFd, i32> {
        self.config(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: takes no memory.
        check_fd(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
    }

    /// What the file system itself says about its refusal, e.g. `tmpfs: Bad value for 'size'`; empty when it is silent.
    pub(crate) fn explanation(&self) -> String {
        let mut buffer = [0_u8; 256];
        // SAFETY: the buffer is as long as said.
        let length = unsafe { libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        let text = &buffer[..usize::try_from(length).unwrap_or(0)];
        String::from_utf8_lossy(text.strip_prefix(b"e ").unwrap_or(text)).trim().to_owned()
    }
}

/// Mount propagation of everything from the root directory on, through mount(2): the root need not be given by descriptor.
pub(crate) fn set_root_propagation(flags: libc::c_ulong) -> Result<(), i32> {
    // SAFETY: the paths are constants; source, type and data are not read for a change of propagation.
    check(libc::c_long::from(unsafe {
        libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), flags, std::ptr::null())
    }))
    .map(drop)
}

/// pivot_root(".", ".") and away with the old root, which is mounted on top of the new one for a moment (pivot_root(2)).
pub(crate) fn pivot_here() -> Result<(), i32> {
    // SAFETY: constant paths.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        // Now "." is the old root: what is unmounted there must not be unmounted for the guest as well.
        let private = libc::MS_SLAVE | libc::MS_REC;
        check(libc::c_long::from(libc::mount(
            c"none".as_ptr(),
            c".".as_ptr(),
            std::ptr::null(),
            private,
            std::ptr::null(),
        )))?;
        check(libc::c_long::from(libc::umount2(c".".as_ptr(), libc::MNT_DETACH)))?;
        check(libc::c_long::from(libc::chdir(c"/".as_ptr()))).map(drop)
    }
}
