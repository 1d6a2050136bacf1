//! Disks that the VMM opens: regular files and block devices of the host below `<dir>/disks`, a small file system of the keeper's mount
//! namespace. What a path of the host names later does not matter, and no word of a path reaches the VMM.
use crate::sys;
use kata_protocol::keeper::HostDisk;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// What a disk is made of.
enum Source {
    Device { major: u32, minor: u32 },
    File(OwnedFd),
}

/// Makes `target`, an entry of `disks`.
pub fn add(disk: &HostDisk, disks: &Path, target: &Path, host_mounts: BorrowedFd) -> io::Result<()> {
    let source = match disk.source.is_empty() {
        true => Source::Device { major: disk.major, minor: disk.minor },
        false => sys::in_mount_namespace(host_mounts, || open(Path::new(&disk.source)))??,
    };
    prepare(disks)?;
    match source {
        Source::Device { major, minor } => sys::make_block_device(target, major, minor),
        Source::File(tree) => {
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
            let attached = sys::set_tree_attributes(tree.as_fd(), disk.read_only, libc::MS_PRIVATE)
                .and_then(|()| sys::attach_tree(tree.as_fd(), target));
            attached.inspect_err(|_| {
                let _ = fs::remove_file(target);
            })
        }
    }
}

fn open(path: &Path) -> io::Result<Source> {
    let file = sys::open_path(path, 0)?;
    let metadata = file.metadata()?;
    match metadata.file_type() {
        kind if kind.is_block_device() => {
            Ok(Source::Device { major: libc::major(metadata.rdev()), minor: libc::minor(metadata.rdev()) })
        }
        kind if kind.is_file() => sys::clone_tree(File::as_fd(&file)).map(Source::File),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// The sandbox's directory may be on a file system whose device nodes cannot be opened.
fn prepare(disks: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(disks) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    let options = c"mode=0700,size=1m";
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    sys::mount(Some(Path::new("disks")), disks, Some(c"tmpfs"), flags, Some(options)).inspect_err(|_| {
        let _ = fs::remove_dir(disks);
    })
}
