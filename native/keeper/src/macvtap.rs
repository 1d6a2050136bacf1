//! A macvtap (macvtap of ip-link(8)) in place of a tap and a redirection: its kernel device takes everything that arrives at the link.
use crate::sys;
use kata_protocol::netlink::state::IFINFO_BYTES;
use kata_protocol::netlink::{push_attribute, Netlink, Request};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

const IFLA_MACVLAN_MODE: u16 = 1;
/// One for the whole link: every frame is the guest's, and the link's hardware address is the macvtap's.
const MACVLAN_MODE_PASSTHRU: u32 = 8;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// Makes the link `name` on the link number `link` of the calling thread's network namespace.
pub fn make(netlink: &mut Netlink, name: &str, link: u32) -> io::Result<()> {
    let mut options = Vec::new();
    push_attribute(&mut options, IFLA_MACVLAN_MODE, &MACVLAN_MODE_PASSTHRU.to_ne_bytes());
    let mut info = Vec::new();
    push_attribute(&mut info, libc::IFLA_INFO_KIND, b"macvtap\0");
    push_attribute(&mut info, libc::IFLA_INFO_DATA, &options);
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    let request = Request::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &[0; IFINFO_BYTES])
        .attribute(libc::IFLA_IFNAME, &text)
        .attribute(libc::IFLA_LINK, &link.to_ne_bytes())
        .attribute(libc::IFLA_LINKINFO, &info);
    netlink.execute(request).map_err(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => io::Error::new(io::ErrorKind::Unsupported, "the kernel has no macvtap"),
        Some(libc::EBUSY | libc::EINVAL) => io::Error::other(format!(
            "the link takes no macvtap ({error}): it is part of a bridge, or a macvlan itself"
        )),
        _ => error,
    })
}

/// Opens the device of the macvtap `name` with the number `index`. Its node in /dev is not used: other namespaces have links of the
/// same number. Its number is in the namespace's own sysfs, which is not mounted anywhere.
pub fn open(name: &str, index: u32) -> io::Result<OwnedFd> {
    let sysfs = mount(c"sysfs")?;
    let mut number = String::new();
    beneath(&sysfs, &format!("class/net/{name}/tap{index}/dev"), libc::O_RDONLY)?.read_to_string(&mut number)?;
    let parts: Vec<u32> = number.trim().split(':').filter_map(|part| part.parse().ok()).collect();
    let [major, minor] = parts[..] else { return Err(io::ErrorKind::InvalidData.into()) };
    // /run, where everything else of the sandbox is, may be without devices.
    let nodes = mount(c"tmpfs")?;
    let (node, mode) = (c"tap", libc::S_IFCHR | 0o600);
    sys::check(
        unsafe { libc::mknodat(nodes.as_raw_fd(), node.as_ptr(), mode, libc::makedev(major, minor)) } as libc::c_long
    )?;
    Ok(beneath(&nodes, "tap", libc::O_RDWR | libc::O_NONBLOCK)?.into())
}

/// A file system of this kind that is attached nowhere (fsopen(2)).
fn mount(kind: &CStr) -> io::Result<OwnedFd> {
    let null = std::ptr::null::<libc::c_char>();
    let context = sys::owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    sys::check(unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, null, null, 0 as libc::c_int)
    })?;
    sys::owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0 as libc::c_uint) })
}

fn beneath(directory: &OwnedFd, path: &str, flags: libc::c_int) -> io::Result<File> {
    let path = sys::c_path(path.as_ref())?;
    let fd = unsafe { libc::openat(directory.as_raw_fd(), path.as_ptr(), flags | libc::O_CLOEXEC) };
    sys::owned(fd as libc::c_long).map(File::from)
}
