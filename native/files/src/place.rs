//! Where a copy goes, by docker's rules: into a directory that exists, else to that very name.
use crate::{at, fail, shown, Kind, Result};
use kata_container::sys::{file_type, open_at2, read_link_at, stat_fd, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// As many as the kernel follows (path_resolution(7)).
const LINK_LIMIT: usize = 40;

/// A directory that exists, and the name that the copied thing gets in it; an empty name: it is the directory itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    pub directory: Vec<u8>,
    pub name: Vec<u8>,
}

pub fn find(root: BorrowedFd<'_>, path: &[u8], follow: bool) -> std::result::Result<OwnedFd, i32> {
    let flags = libc::O_PATH | if follow { 0 } else { libc::O_NOFOLLOW };
    open_at2(root, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
}

fn kind_of(root: BorrowedFd<'_>, path: &[u8]) -> std::result::Result<u32, i32> {
    Ok(file_type(&stat_fd(find(root, path, true)?.as_fd())?))
}

/// `contents`: of a directory what is in it goes, not itself.
pub fn decide(root: BorrowedFd<'_>, to: &[u8], base: &[u8], contents: bool, is_directory: bool) -> Result<Place> {
    let wants_directory = to.ends_with(b"/") || to.ends_with(b"/.");
    match kind_of(root, to) {
        Ok(libc::S_IFDIR) => {
            let name = if (contents && is_directory) || base.is_empty() { Vec::new() } else { base.to_vec() };
            Ok(Place { directory: to.to_vec(), name })
        }
        Ok(_) if is_directory => fail(Kind::Refused, format!("{}: cannot copy a directory to a file", shown(to))),
        Ok(_) => split(&resolved(root, to)?),
        Err(libc::ENOTDIR) => fail(Kind::Refused, format!("{}: not a directory", shown(to))),
        Err(libc::ENOENT) if wants_directory && !is_directory => {
            fail(Kind::Missing, format!("{}: no such directory", shown(to)))
        }
        Err(libc::ENOENT) => {
            let place = split(&resolved(root, trimmed(to))?)?;
            match kind_of(root, &place.directory) {
                Ok(libc::S_IFDIR) => Ok(place),
                Ok(_) | Err(libc::ENOTDIR) => {
                    fail(Kind::Refused, format!("{}: not a directory", shown(&place.directory)))
                }
                Err(libc::ENOENT) => fail(Kind::Missing, format!("{}: no such directory", shown(&place.directory))),
                Err(errno) => Err(at(&place.directory, errno)),
            }
        }
        Err(errno) => Err(at(to, errno)),
    }
}

/// Without slashes at the end.
fn trimmed(path: &[u8]) -> &[u8] {
    let path = path.strip_suffix(b"/.").unwrap_or(path);
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    &path[..end]
}

fn split(path: &[u8]) -> Result<Place> {
    let path = trimmed(path);
    let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..=slash], &path[slash + 1..]),
        None => (b"/".as_slice(), path),
    };
    if name.is_empty() || name == b"." || name == b".." {
        return fail(Kind::Refused, format!("{}: it names no file", shown(path)));
    }
    Ok(Place { directory: directory.to_vec(), name: name.to_vec() })
}

/// What the path's last component points to while it is a symbolic link: a copy goes there and leaves the link.
fn resolved(root: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<u8>> {
    let mut path = path.to_vec();
    for _ in 0..LINK_LIMIT {
        let Ok(entry) = find(root, &path, false) else { return Ok(path) };
        let Ok(target) = read_link_at(entry.as_fd(), "") else { return Ok(path) };
        path = if target.starts_with(b"/") { target } else { [split(&path)?.directory, target].concat() };
    }
    Err(at(&path, libc::ELOOP))
}
