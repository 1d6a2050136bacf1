//! The shared directory: host paths and images' layers appear below `<dir>/shared`, in the keeper's mount namespace only.
//!
//! `shared/` is a mount with shared propagation, so that virtiofsd, in a slave namespace of its own, sees what comes later.
use crate::failure;
use crate::spawn::is_name;
use crate::sys;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::share_request::What;
use kata_protocol::keeper::{HostPath, LayeredRootfs, ShareRequest, ShareResponse};
use kata_protocol::ttrpc::{status, Code};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const MAX_SHARES: usize = 1024;
/// overlayfs stacks at most 500 lower layers; images have 127.
const MAX_LAYERS: usize = 128;

pub struct Shares {
    /// `<dir>/shared`.
    root: PathBuf,
    /// Where layers are mounted while their overlay is made: outside of what the guest sees.
    staging: PathBuf,
    active: BTreeMap<String, (What, bool)>,
}

impl Shares {
    pub fn new(dir: &Path) -> Self {
        Shares { root: dir.join("shared"), staging: dir.join("layers"), active: BTreeMap::new() }
    }

    pub fn names(&self) -> Vec<String> {
        self.active.keys().cloned().collect()
    }

    /// See `Share` in proto/keeper.proto. Errors: ALREADY_EXISTS when the id names something else.
    pub fn add(&mut self, request: ShareRequest) -> Result<ShareResponse, Status> {
        let Some(what) = request.what else { return Err(status(Code::InvalidArgument, "share: nothing to share")) };
        if !is_name(&request.id) {
            return Err(status(Code::InvalidArgument, format!("share id {:?}", request.id)));
        }
        if let Some((present, is_directory)) = self.active.get(&request.id) {
            return match *present == what {
                true => Ok(ShareResponse { is_directory: *is_directory }),
                false => Err(status(Code::AlreadyExists, format!("share {} names something else", request.id))),
            };
        }
        if self.active.len() >= MAX_SHARES {
            return Err(status(Code::ResourceExhausted, format!("{MAX_SHARES} shares exist")));
        }
        let target = self.root.join(&request.id);
        let is_directory = match &what {
            What::HostPath(host_path) => share_host_path(host_path, &target)?,
            What::Mounted(_) => return Err(status(Code::Unimplemented, "share: mounted root file systems")),
            What::Layered(layered) => self.share_layers(layered, &request.id, &target).map(|()| true)?,
        };
        self.active.insert(request.id, (what, is_directory));
        Ok(ShareResponse { is_directory })
    }

    /// Takes a share away; an unknown id is fine.
    pub fn remove(&mut self, id: &str) -> Result<(), Status> {
        if self.active.contains_key(id) {
            self.detach(id).map_err(|error| failure::from_io(&format!("unshare {id}"), &error))?;
            self.active.remove(id);
        }
        Ok(())
    }

    /// Takes every share away and gives what went wrong.
    pub fn remove_all(&mut self) -> Vec<String> {
        let problems = self.names().into_iter().filter_map(|id| self.remove(&id).err());
        let problems = problems.map(|refusal| refusal.message).collect();
        self.active.clear();
        problems
    }

    fn detach(&self, id: &str) -> io::Result<()> {
        let target = self.root.join(id);
        match sys::unmount(&target, libc::MNT_DETACH) {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) && error.raw_os_error() != Some(libc::ENOENT) => {
                Err(error)
            }
            _ => remove_mount_point(&target),
        }
    }

    fn share_layers(&self, layered: &LayeredRootfs, id: &str, target: &Path) -> Result<(), Status> {
        let count = layered.layers.len();
        if count == 0 || count > MAX_LAYERS || layered.upper_dir.is_empty() != layered.work_dir.is_empty() {
            let text = format!("share {id}: {count} layers (1 to {MAX_LAYERS}), upper and work directory both or none");
            return Err(status(Code::InvalidArgument, text));
        }
        let staging = self.staging.join(id);
        let result = make_mount_point(target, true).and_then(|()| match (count, layered.upper_dir.is_empty()) {
            (1, true) => mount_layer(Path::new(&layered.layers[0]), target),
            _ => stack(layered, &staging, target),
        });
        // The overlay holds its layers by itself; their own mounts are needed no more, after a failure even less.
        for number in 0..count {
            let _ = sys::unmount(&staging.join(number.to_string()), libc::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(&staging);
        result.map_err(|error| {
            let _ = remove_mount_point(target);
            failure::from_io(&format!("share {id} of {count} layers"), &error)
        })
    }
}

fn share_host_path(host_path: &HostPath, target: &Path) -> Result<bool, Status> {
    let describe = |error: io::Error| failure::from_io(&format!("share of {}", host_path.source), &error);
    if !host_path.source.starts_with('/') {
        return Err(status(Code::InvalidArgument, format!("share of {:?}: not an absolute path", host_path.source)));
    }
    // Everything below goes by this descriptor: what the path names later does not matter.
    let source = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&host_path.source).map_err(describe)?;
    let metadata = source.metadata().map_err(describe)?;
    if !metadata.is_dir() && !metadata.is_file() {
        let text = format!("share of {}: neither a directory nor a regular file", host_path.source);
        return Err(status(Code::InvalidArgument, text));
    }
    make_mount_point(target, metadata.is_dir()).map_err(describe)?;
    let attach = || -> io::Result<()> {
        let tree = sys::clone_tree(source.as_fd())?;
        // Private: mounts that the host makes below the source later are not the guest's business.
        sys::set_tree_attributes(tree.as_fd(), host_path.read_only, libc::MS_PRIVATE)?;
        sys::attach_tree(tree.as_fd(), target)
    };
    attach().map_err(|error| {
        let _ = remove_mount_point(target);
        describe(error)
    })?;
    Ok(metadata.is_dir())
}

fn make_mount_point(target: &Path, is_directory: bool) -> io::Result<()> {
    if is_directory {
        fs::create_dir(target)
    } else {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(target).map(drop)
    }
}

/// Never removes recursively: a mount that is still there must keep its content.
fn remove_mount_point(target: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(target) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir(target),
        Ok(_) => fs::remove_file(target),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Mounts every layer and an overlay of them on `target`.
fn stack(layered: &LayeredRootfs, staging: &Path, target: &Path) -> io::Result<()> {
    let mut lower = String::new();
    for (number, layer) in layered.layers.iter().enumerate() {
        let place = staging.join(number.to_string());
        fs::create_dir_all(&place)?;
        mount_layer(Path::new(layer), &place)?;
        // Topmost first for overlayfs. Relative names: 128 absolute ones are longer than mount(2)'s page of options.
        lower = if number == 0 { number.to_string() } else { format!("{number}:{lower}") };
    }
    let open_dir = |path: &str| {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        OpenOptions::new().read(true).custom_flags(flags).open(path)
    };
    let mut options = format!("lowerdir={lower}");
    // By descriptor: a path may hold the characters that separate options.
    let writable = match layered.upper_dir.is_empty() {
        true => None,
        false => Some((open_dir(&layered.upper_dir)?, open_dir(&layered.work_dir)?)),
    };
    if let Some((upper, work)) = &writable {
        options += &format!(",upperdir=/proc/self/fd/{},workdir=/proc/self/fd/{}", upper.as_raw_fd(), work.as_raw_fd());
    }
    let options = CString::new(options).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // The only thread stands in the staging directory for this one call.
    std::env::set_current_dir(staging)?;
    let flags = if writable.is_some() { 0 } else { libc::MS_RDONLY };
    let mounted = sys::mount(Some(Path::new("overlay")), target, Some(c"overlay"), flags, Some(&options));
    std::env::set_current_dir("/")?;
    mounted
}

/// Mounts an EROFS image read-only: the file itself from Linux 6.12 on, else through a loop device that goes with the mount.
fn mount_layer(image: &Path, target: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(image)?;
    if !image.is_absolute() || !file.metadata()?.is_file() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    match sys::mount(Some(image), target, Some(c"erofs"), libc::MS_RDONLY, None) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTBLK) => {}
        other => return other,
    }
    let (device, path) = loop_device(&file)?;
    let mounted = sys::mount(Some(&path), target, Some(c"erofs"), libc::MS_RDONLY, None);
    // Autoclear takes effect when the last user, the mount, goes.
    drop(device);
    mounted
}

/// Layout of `struct loop_config` (linux/loop.h); only these fields are used.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

#[repr(C)]
struct LoopInfo {
    device_to_limit: [u64; 5],
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names_and_key: [u8; 64 + 64 + 32],
    init: [u64; 2],
}

fn loop_device(image: &File) -> io::Result<(File, PathBuf)> {
    const LOOP_CTL_GET_FREE: u64 = 0x4c82;
    const LOOP_CONFIGURE: u64 = 0x4c0a;
    const FLAGS: u32 = 1 | 4; // LO_FLAGS_READ_ONLY, LO_FLAGS_AUTOCLEAR
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    let info = LoopInfo {
        device_to_limit: [0; 5],
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: FLAGS,
        names_and_key: [0; 160],
        init: [0; 2],
    };
    let config = LoopConfig { fd: image.as_raw_fd() as u32, block_size: 0, info, reserved: [0; 8] };
    for _ in 0..16 {
        let number = sys::check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) } as libc::c_long)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).open(&path)?;
        let configured = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
        match sys::check(configured as libc::c_long) {
            Ok(_) => return Ok((device, path)),
            // Another process took the device between the two calls.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loop_structures_have_the_kernels_sizes() {
        assert_eq!(std::mem::size_of::<LoopInfo>(), 232);
        assert_eq!(std::mem::size_of::<LoopConfig>(), 304);
    }

    #[test]
    fn refuses_bad_requests() {
        let dir = crate::testing::TempDir::new();
        let mut shares = Shares::new(dir.path());
        let host = |source: &str| Some(What::HostPath(HostPath { source: source.into(), read_only: true }));
        for (id, what, code) in [
            ("ok", None, Code::InvalidArgument),
            ("../x", host("/tmp"), Code::InvalidArgument),
            ("ok", host("tmp"), Code::InvalidArgument),
            ("ok", host("/nonexistent-path"), Code::NotFound),
            ("ok", host("/dev/null"), Code::InvalidArgument),
            ("ok", Some(What::Layered(LayeredRootfs::default())), Code::InvalidArgument),
        ] {
            let refused = shares.add(ShareRequest { id: id.into(), what }).unwrap_err();
            assert_eq!(refused.code, code as i32, "{}", refused.message);
        }
        assert!(shares.names().is_empty() && shares.remove("nothing").is_ok());
    }
}
