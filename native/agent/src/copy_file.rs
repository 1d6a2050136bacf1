//! CopyFile: files that the host sends piece by piece, only below the shared directory.
//!
//! Every path is opened beneath a descriptor of that directory with openat2(2), without following any link: what is
//! already inside, and what changes while the copy runs, cannot lead out of it.
use crate::failure::{internal, invalid, Result};
use kata_protocol::grpc::CopyFileRequest;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

const MAX_FILE_BYTES: i64 = 1 << 32;
const MAX_DEPTH: usize = 64;
const TEMPORARY_SUFFIX: &str = ".kata-copy";

/// The path below `base` of an absolute request path. Errors: INVALID_ARGUMENT when it is not below.
fn relative(base: &Path, path: &str) -> Result<PathBuf> {
    let refuse = || invalid(format!("copy: {path:?} is not below {}", base.display()));
    let below = Path::new(path).strip_prefix(base).map_err(|_| refuse())?;
    let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    let depth = below.components().count();
    if !plain || depth == 0 || depth > MAX_DEPTH || path.contains('\0') {
        return Err(refuse());
    }
    Ok(below.to_owned())
}

fn failed(path: &str, step: &'static str) -> impl Fn(Errno) -> kata_protocol::envelope::Status {
    let path = path.to_owned();
    move |error| internal(format!("copy: {path:?}: {step}: {error}"))
}

fn open_beneath(directory: &OwnedFd, name: &OsStr, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    fs::openat2(directory, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, mode, resolve)
}

/// Opens the parent of `below`, making what is missing with `dir_mode`.
fn open_parent(base: &Path, below: &Path, dir_mode: u32, path: &str) -> Result<OwnedFd> {
    let mut directory = fs::open(base, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed(path, "open the shared directory"))?;
    let mode = if dir_mode & 0o7777 == 0 { Mode::from_raw_mode(0o755) } else { Mode::from_raw_mode(dir_mode & 0o7777) };
    for part in below.parent().into_iter().flat_map(Path::components) {
        let name = part.as_os_str();
        match fs::mkdirat(&directory, name, mode) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(path, "create a directory on the way")(error)),
        }
        directory = open_beneath(&directory, name, OFlags::DIRECTORY | OFlags::PATH, Mode::empty())
            .map_err(failed(path, "open a directory on the way"))?;
    }
    Ok(directory)
}

/// Writes one piece. The file appears under its name, whole, with the piece that completes it.
pub fn copy_file(base: &Path, request: &CopyFileRequest) -> Result<()> {
    let path = request.path.as_str();
    let below = relative(base, path)?;
    let name = below.file_name().ok_or_else(|| invalid(format!("copy: {path:?} has no name")))?;
    let parent = open_parent(base, &below, request.dir_mode, path)?;
    let owner = Owner::of(request)?;
    match request.file_mode & libc::S_IFMT {
        libc::S_IFDIR => copy_directory(&parent, name, request, &owner),
        libc::S_IFLNK => copy_link(&parent, name, request, &owner),
        // Hosts that send no type mean a regular file.
        libc::S_IFREG | 0 => copy_regular(&parent, name, request, &owner),
        other => Err(invalid(format!("copy: {path:?}: file type {other:#o} cannot be copied"))),
    }
}

struct Owner {
    user: fs::Uid,
    group: fs::Gid,
}

impl Owner {
    fn of(request: &CopyFileRequest) -> Result<Self> {
        let id = |id: i32| u32::try_from(id).map_err(|_| invalid(format!("copy: {id} is no user or group id")));
        Ok(Self { user: fs::Uid::from_raw(id(request.uid)?), group: fs::Gid::from_raw(id(request.gid)?) })
    }

    fn give(&self, directory: &OwnedFd, name: &OsStr, path: &str) -> Result<()> {
        fs::chownat(directory, name, Some(self.user), Some(self.group), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed(path, "change its owner"))
    }
}

fn copy_directory(parent: &OwnedFd, name: &OsStr, request: &CopyFileRequest, owner: &Owner) -> Result<()> {
    let path = request.path.as_str();
    let mode = Mode::from_raw_mode(request.file_mode & 0o7777);
    match fs::mkdirat(parent, name, mode) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let kind = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(path, "look at it"))?;
            if FileType::from_raw_mode(kind.st_mode) != FileType::Directory {
                return Err(invalid(format!("copy: {path:?} exists and is no directory")));
            }
        }
        Err(error) => return Err(failed(path, "create it")(error)),
    }
    let directory = open_beneath(parent, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
        .map_err(failed(path, "open it"))?;
    // After mkdir because the umask takes bits away; by descriptor because a name could be replaced in between.
    fs::fchmod(&directory, mode).map_err(failed(path, "change its mode"))?;
    fs::fchown(&directory, Some(owner.user), Some(owner.group)).map_err(failed(path, "change its owner"))
}

fn copy_link(parent: &OwnedFd, name: &OsStr, request: &CopyFileRequest, owner: &Owner) -> Result<()> {
    let path = request.path.as_str();
    let temporary = temporary_name(name);
    remove(parent, &temporary);
    fs::symlinkat(OsStr::from_bytes(&request.data), parent, &*temporary).map_err(failed(path, "create the link"))?;
    owner.give(parent, &temporary, path)?;
    put_in_place(parent, &temporary, name, path)
}

fn copy_regular(parent: &OwnedFd, name: &OsStr, request: &CopyFileRequest, owner: &Owner) -> Result<()> {
    let path = request.path.as_str();
    let (size, offset, length) = (request.file_size, request.offset, request.data.len() as i64);
    if !(0..=MAX_FILE_BYTES).contains(&size) || !(0..=size).contains(&offset) || length > size - offset {
        let text = format!("copy: {path:?}: {length} bytes at {offset} do not fit into a file of {size} bytes");
        return Err(invalid(text));
    }
    let temporary = temporary_name(name);
    // openat2(2) refuses a mode without O_CREAT.
    let (mut flags, mut mode) = (OFlags::WRONLY, Mode::empty());
    if offset == 0 {
        remove(parent, &temporary);
        flags |= OFlags::CREATE | OFlags::EXCL;
        mode = Mode::from_raw_mode(0o600);
    }
    let file = open_beneath(parent, &temporary, flags, mode).map_err(failed(path, "open its new content"))?;
    let mut written = 0;
    while written < request.data.len() {
        let at = offset as u64 + written as u64;
        match rustix::io::pwrite(&file, &request.data[written..], at) {
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(path, "write")(error)),
        }
    }
    if fs::fstat(&file).map_err(failed(path, "look at it"))?.st_size != size {
        return Ok(());
    }
    fs::fchown(&file, Some(owner.user), Some(owner.group)).map_err(failed(path, "change its owner"))?;
    fs::fchmod(&file, Mode::from_raw_mode(request.file_mode & 0o7777)).map_err(failed(path, "change its mode"))?;
    put_in_place(parent, &temporary, name, path)
}

fn temporary_name(name: &OsStr) -> std::ffi::OsString {
    let mut temporary = name.to_owned();
    temporary.push(TEMPORARY_SUFFIX);
    temporary
}

fn remove(parent: &OwnedFd, name: &OsStr) {
    let _ = fs::unlinkat(parent, name, AtFlags::empty());
}

/// Renames over what has the name; a directory in the way is an error.
fn put_in_place(parent: &OwnedFd, temporary: &OsStr, name: &OsStr, path: &str) -> Result<()> {
    fs::renameat(parent, temporary, parent, name).map_err(|error| {
        remove(parent, temporary);
        failed(path, "put it in place")(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use std::fs as std_fs;
    use std::os::unix::fs::PermissionsExt;

    fn request(base: &Path, name: &str, data: &[u8]) -> CopyFileRequest {
        CopyFileRequest {
            path: format!("{}/{name}", base.display()),
            file_size: data.len() as i64,
            file_mode: libc::S_IFREG | 0o640,
            dir_mode: 0o750,
            uid: rustix::process::getuid().as_raw() as i32,
            gid: rustix::process::getgid().as_raw() as i32,
            offset: 0,
            data: data.to_vec(),
        }
    }

    #[test]
    fn a_file_appears_whole_with_its_last_piece() {
        let dir = TempDir::new();
        let whole = b"hello, world".as_slice();
        let piece = |offset: usize, end: usize| CopyFileRequest {
            offset: offset as i64,
            data: whole[offset..end].to_vec(),
            ..request(dir.path(), "a/b/file", whole)
        };
        copy_file(dir.path(), &piece(0, 5)).unwrap();
        let target = dir.path().join("a/b/file");
        assert!(!target.exists());
        copy_file(dir.path(), &piece(5, whole.len())).unwrap();
        assert_eq!(std_fs::read(&target).unwrap(), whole);
        assert_eq!(std_fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o640);
        copy_file(dir.path(), &request(dir.path(), "a/b/file", b"")).unwrap();
        assert_eq!(std_fs::read(&target).unwrap(), b"");
    }

    #[test]
    fn nothing_outside_is_reached() {
        let dir = TempDir::new();
        let base = dir.path().join("shared");
        let outside = dir.path().join("outside");
        std_fs::create_dir_all(&base).unwrap();
        std_fs::create_dir_all(&outside).unwrap();
        for path in ["", "/", "/etc/x", "shared/x"] {
            let request = CopyFileRequest { path: path.into(), ..request(&base, "x", b"x") };
            assert!(copy_file(&base, &request).is_err(), "{path:?}");
        }
        for name in ["../outside/x", "a/../../outside/x", "", "."] {
            assert!(copy_file(&base, &request(&base, name, b"x")).is_err(), "{name:?}");
        }
        std::os::unix::fs::symlink(&outside, base.join("link")).unwrap();
        assert!(copy_file(&base, &request(&base, "link/x", b"x")).is_err());
        let directory = CopyFileRequest { file_mode: libc::S_IFDIR | 0o777, ..request(&base, "link", b"") };
        assert!(copy_file(&base, &directory).is_err());
        // The link itself is replaced, not followed.
        copy_file(&base, &request(&base, "link", b"mine")).unwrap();
        assert_eq!(std_fs::read(base.join("link")).unwrap(), b"mine");
        assert_eq!(std_fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn sizes_and_ids_are_checked() {
        let dir = TempDir::new();
        let good = request(dir.path(), "f", b"abc");
        let cases = [
            CopyFileRequest { offset: -1, ..good.clone() },
            CopyFileRequest { offset: 1, ..good.clone() },
            CopyFileRequest { file_size: -1, ..good.clone() },
            CopyFileRequest { file_size: i64::MAX, ..good.clone() },
            CopyFileRequest { uid: -5, ..good.clone() },
            CopyFileRequest { file_mode: libc::S_IFBLK | 0o600, ..good.clone() },
        ];
        for case in cases {
            assert!(copy_file(dir.path(), &case).is_err(), "{case:?}");
        }
        assert_eq!(std_fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn directories_keep_their_content_and_links_point_where_asked() {
        let dir = TempDir::new();
        let directory = CopyFileRequest { file_mode: libc::S_IFDIR | 0o1777, ..request(dir.path(), "d", b"") };
        copy_file(dir.path(), &directory).unwrap();
        copy_file(dir.path(), &request(dir.path(), "d/f", b"x")).unwrap();
        copy_file(dir.path(), &directory).unwrap();
        assert_eq!(std_fs::metadata(dir.path().join("d")).unwrap().permissions().mode() & 0o7777, 0o1777);
        let link = CopyFileRequest { file_mode: libc::S_IFLNK | 0o777, ..request(dir.path(), "l", b"d/f") };
        copy_file(dir.path(), &link).unwrap();
        assert_eq!(std_fs::read(dir.path().join("l")).unwrap(), b"x");
        assert!(copy_file(dir.path(), &request(dir.path(), "d", b"over")).is_err());
    }
}
