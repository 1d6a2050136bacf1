//! The shared directory: host paths and images' layers appear below `<dir>/shared`, in the keeper's mount namespace only.
//!
//! `shared/` is a mount with shared propagation, so that virtiofsd, in a slave namespace of its own, sees what comes later. Sources are
//! looked up as the keeper's caller sees them: what is mounted in its namespace later may not reach the keeper's own.
use crate::disk;
use crate::failure;
use crate::loop_device::loop_device;
use crate::snapshot::{is_bind, is_known, mount_options, relative_layers};
use crate::spawn::is_name;
use crate::sys;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::share_request::What;
use kata_protocol::keeper::{
    HostDisk, HostPath, LayeredRootfs, MountedRootfs, RootfsMount, ShareRequest, ShareResponse,
};
use kata_protocol::ttrpc::{status, Code};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAX_SHARES: usize = 1024;
/// overlayfs stacks at most 500 lower layers; images have 127.
const MAX_LAYERS: usize = 128;

pub struct Shares {
    /// `<dir>/shared`.
    root: PathBuf,
    /// Where layers are mounted while their overlay is made: outside of what the guest sees.
    staging: PathBuf,
    /// What only the VMM sees.
    disks: PathBuf,
    active: BTreeMap<String, (What, bool)>,
}

impl Shares {
    pub fn new(dir: &Path) -> Self {
        let [root, staging, disks] = ["shared", "layers", "disks"].map(|name| dir.join(name));
        Shares { root, staging, disks, active: BTreeMap::new() }
    }

    pub fn names(&self) -> Vec<String> {
        self.active.keys().cloned().collect()
    }

    /// See `Share` in proto/keeper.proto. Errors: ALREADY_EXISTS when the id names something else.
    pub fn add(&mut self, request: ShareRequest, host_mounts: BorrowedFd) -> Result<ShareResponse, Status> {
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
            What::HostPath(host_path) => share_host_path(host_path, &target, host_mounts)?,
            What::Mounted(mounted) => share_mounts(mounted, &target, host_mounts).map(|()| true)?,
            What::Layered(layered) => self.share_layers(layered, &request.id, &target).map(|()| true)?,
            What::Disk(host_disk) => disk::add(host_disk, &self.disks, &self.disks.join(&request.id), host_mounts)
                .map(|()| false)
                .map_err(|error| failure::from_io(&format!("disk {}", disk_name(host_disk)), &error))?,
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
        let is_disk = matches!(self.active.get(id), Some((What::Disk(_), _)));
        let target = if is_disk { &self.disks } else { &self.root }.join(id);
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

/// Whether it is a directory.
fn share_host_path(host_path: &HostPath, target: &Path, host_mounts: BorrowedFd) -> Result<bool, Status> {
    let HostPath { source, read_only, slave, top_only } = host_path;
    let describe = |error: io::Error| failure::from_io(&format!("share of {source}"), &error);
    if !source.starts_with('/') {
        return Err(status(Code::InvalidArgument, format!("share of {source:?}: not an absolute path")));
    }
    // Everything below goes by descriptors: what the path names later does not matter.
    let opened = sys::in_mount_namespace(host_mounts, || -> io::Result<_> {
        let file = sys::open_path(Path::new(source), 0)?;
        let tree = sys::clone_tree(file.as_fd())?;
        Ok((file.metadata()?, tree))
    });
    let (metadata, tree) = opened.and_then(|opened| opened).map_err(describe)?;
    let kind = metadata.file_type();
    if kind.is_block_device() || kind.is_char_device() || kind.is_symlink() {
        return Err(status(Code::InvalidArgument, format!("share of {source}: it is a device")));
    }
    make_mount_point(target, metadata.is_dir()).map_err(describe)?;
    let attach = || -> io::Result<()> {
        let propagation = if *slave { libc::MS_SLAVE } else { libc::MS_PRIVATE };
        sys::set_tree_attributes(tree.as_fd(), *read_only && !*top_only, propagation)?;
        if *read_only && *top_only {
            sys::set_top_read_only(tree.as_fd())?;
        }
        sys::attach_tree(tree.as_fd(), target)
    };
    attach().map_err(|error| {
        let _ = remove_mount_point(target);
        describe(error)
    })?;
    Ok(metadata.is_dir())
}

fn share_mounts(mounted: &MountedRootfs, target: &Path, host_mounts: BorrowedFd) -> Result<(), Status> {
    let mounts = &mounted.mounts;
    if mounts.is_empty() || mounts.len() > MAX_LAYERS {
        return Err(status(Code::InvalidArgument, format!("share: {} mounts", mounts.len())));
    }
    if let Some(bad) = mounts.iter().find(|mount| !is_known(mount) || !matches!(mount.target.as_str(), "" | "/")) {
        let text = format!("share: a mount of type {:?} at {:?} is no root file system", bad.r#type, bad.target);
        return Err(status(Code::InvalidArgument, text));
    }
    make_mount_point(target, true).map_err(|error| failure::from_io("share", &error))?;
    for (done, mount) in mounts.iter().enumerate() {
        if let Err(error) = mount_rootfs(mount, target, host_mounts) {
            for _ in 0..done {
                let _ = sys::unmount(target, libc::MNT_DETACH);
            }
            let _ = remove_mount_point(target);
            return Err(failure::from_io(&format!("mount {} of type {}", mount.source, mount.r#type), &error));
        }
    }
    Ok(())
}

fn mount_rootfs(mount: &RootfsMount, target: &Path, host_mounts: BorrowedFd) -> io::Result<()> {
    let (flags, data, is_loop) = mount_options(&mount.options);
    let source = Path::new(&mount.source);
    let open_tree = |path: &Path| {
        let place = sys::open_path(path, 0)?;
        sys::clone_tree(place.as_fd())
    };
    let tree = sys::in_mount_namespace(host_mounts, || -> io::Result<OwnedFd> {
        if is_bind(mount) {
            return open_tree(source);
        }
        let fstype = CString::new(mount.r#type.as_str())?;
        // In a copy of the caller's namespace that ends with this thread: nobody else sees the mount.
        sys::unshare_mounts()?;
        sys::mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_SLAVE, None)?;
        if is_loop {
            let read_only = flags & libc::MS_RDONLY != 0;
            let image = OpenOptions::new().read(true).write(!read_only).custom_flags(libc::O_NOFOLLOW).open(source)?;
            // Autoclear takes effect when the last user, the mount, goes.
            let (_device, path) = loop_device(&image, read_only)?;
            let data = CString::new(data.join(","))?;
            sys::mount(Some(&path), target, Some(&fstype), flags, Some(&data))?;
        } else {
            let (base, data) = relative_layers(data);
            let data = CString::new(data.join(","))?;
            // The working directory is this thread's alone.
            std::env::set_current_dir(base)?;
            sys::mount(Some(source), target, Some(&fstype), flags, Some(&data))?;
        }
        open_tree(target)
    })??;
    sys::set_tree_attributes(tree.as_fd(), is_bind(mount) && flags & libc::MS_RDONLY != 0, libc::MS_PRIVATE)?;
    sys::attach_tree(tree.as_fd(), target)
}

fn disk_name(HostDisk { source, major, minor, .. }: &HostDisk) -> String {
    if source.is_empty() {
        return format!("{major}:{minor}");
    }
    source.clone()
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
    let open_dir = |path: &str| sys::open_path(Path::new(path), libc::O_DIRECTORY);
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
    let (device, path) = loop_device(&file, true)?;
    let mounted = sys::mount(Some(&path), target, Some(c"erofs"), libc::MS_RDONLY, None);
    // Autoclear takes effect when the last user, the mount, goes.
    drop(device);
    mounted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn refuses_bad_requests() {
        let dir = crate::testing::TempDir::new();
        let namespace = File::open("/proc/self/ns/mnt").unwrap();
        let mut shares = Shares::new(dir.path());
        let host = |source: &str| Some(What::HostPath(HostPath { source: source.into(), ..Default::default() }));
        let disk = |source: &str| Some(What::Disk(HostDisk { source: source.into(), ..Default::default() }));
        let mounts = |fstype: &str, target: &str| {
            let mount = RootfsMount { r#type: fstype.into(), target: target.into(), ..Default::default() };
            Some(What::Mounted(MountedRootfs { mounts: vec![mount] }))
        };
        for (id, what, code) in [
            ("ok", None, Code::InvalidArgument),
            ("../x", host("/tmp"), Code::InvalidArgument),
            ("ok", host("tmp"), Code::InvalidArgument),
            ("ok", host("/nonexistent-path"), Code::NotFound),
            ("ok", host("/dev/null"), Code::InvalidArgument),
            ("ok", Some(What::Layered(LayeredRootfs::default())), Code::InvalidArgument),
            ("ok", Some(What::Mounted(MountedRootfs::default())), Code::InvalidArgument),
            ("ok", disk("/dev/null"), Code::InvalidArgument),
            ("ok", disk("/nonexistent-path"), Code::NotFound),
            ("ok", mounts("proc", ""), Code::InvalidArgument),
            ("ok", mounts("overlay", "/etc"), Code::InvalidArgument),
        ] {
            let refused = shares.add(ShareRequest { id: id.into(), what }, namespace.as_fd()).unwrap_err();
            assert_eq!(refused.code, code as i32, "{}", refused.message);
        }
        assert!(shares.names().is_empty() && shares.remove("nothing").is_ok());
    }
}
