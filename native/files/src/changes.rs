//! What a container's writable layer has that its image has not: as a list, and as a layer of an image.
use crate::arguments::Arguments;
use crate::pack::{names, Packer};
use crate::tape::kind;
use crate::{at, fail, on_stream, shown, Kind, Result};
use kata_container::sys::xattr::{get_xattr, list_xattrs};
use kata_container::sys::{file_type, itself, open, open_at, open_at2, stat_fd, RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS};
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const DEPTH_LIMIT: usize = 512;
const OPAQUE: &CStr = c"trusted.overlay.opaque";
/// What overlay writes where it moves directories or copies no content; the guest's kernel is asked for neither.
const FOREIGN: [&[u8]; 2] = [b"trusted.overlay.redirect", b"trusted.overlay.metacopy"];

struct Layers {
    upper: OwnedFd,
    /// The topmost first.
    lower: Vec<OwnedFd>,
    /// Where something is mounted in the container: what stands there in the writable layer was made for that.
    mounted: BTreeSet<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Added,
    Changed,
    Deleted,
}

/// `--image=DIR [--mounted=PATH …]`: DIR has the layers `l0` (lowest) to `lN` and the writable one, `rw/upper`.
fn open_layers(mut arguments: Arguments) -> Result<Layers> {
    let image = arguments.value("image")?;
    let trim = |path: String| path.trim_matches('/').as_bytes().to_vec();
    let mounted = arguments.all("mounted").into_iter().map(trim).collect();
    arguments.end()?;
    let directory =
        |path: String| open(&path, libc::O_RDONLY | libc::O_DIRECTORY).map_err(|errno| at(path.as_bytes(), errno));
    let Ok(upper) = directory(format!("{image}/rw/upper")) else {
        return fail(Kind::Failed, "the container's writable layer is not in the guest");
    };
    let mut lower = Vec::new();
    while let Ok(layer) = directory(format!("{image}/l{}", lower.len())) {
        lower.push(layer);
    }
    lower.reverse();
    Ok(Layers { upper, lower, mounted })
}

/// Writes `A/path`, `C/path` and `D/path`, each with a NUL at its end.
pub fn list(arguments: Arguments) -> Result<()> {
    let layers = open_layers(arguments)?;
    let mut out = BufWriter::new(std::io::stdout());
    let mut found = Vec::new();
    let top = layers.upper.try_clone().map_err(|error| on_stream(&error))?;
    layers.changes(top.as_fd(), b"", 0, &mut found)?;
    for (change, path) in found {
        let letter = match change {
            Change::Added => b'A',
            Change::Changed => b'C',
            Change::Deleted => b'D',
        };
        let line = [&[letter, b'/'], path.as_slice(), &[0]].concat();
        out.write_all(&line).map_err(|error| on_stream(&error))?;
    }
    out.flush().map_err(|error| on_stream(&error))
}

/// Writes the writable layer as a tar stream with OCI's whiteouts.
pub fn layer(arguments: Arguments) -> Result<()> {
    let layers = open_layers(arguments)?;
    let mut packer = Packer::new(std::io::stdout(), false);
    let top = layers.upper.try_clone().map_err(|error| on_stream(&error))?;
    layers.pack(&mut packer, top.as_fd(), b"", 0)?;
    packer.finish()
}

/// A name in the writable layer.
struct Found {
    fd: OwnedFd,
    stat: libc::stat,
    path: Vec<u8>,
    name: Vec<u8>,
}

impl Found {
    fn is_directory(&self) -> bool {
        file_type(&self.stat) == libc::S_IFDIR
    }

    fn is_whiteout(&self) -> bool {
        is_whiteout(&self.stat)
    }
}

fn is_whiteout(stat: &libc::stat) -> bool {
    file_type(stat) == libc::S_IFCHR && stat.st_rdev == 0
}

fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    get_xattr(&itself(directory), OPAQUE).is_ok_and(|value| value == b"y")
}

impl Layers {
    fn entries(&self, directory: BorrowedFd<'_>, path: &[u8], depth: usize) -> Result<Vec<Found>> {
        if depth > DEPTH_LIMIT {
            return fail(Kind::Failed, format!("{}: more than {DEPTH_LIMIT} directories in one another", shown(path)));
        }
        let mut entries = Vec::new();
        for name in names(directory).map_err(|errno| at(path, errno))? {
            let path = if path.is_empty() { name.clone() } else { [path, b"/", name.as_slice()].concat() };
            let fd = match open_at(directory, name.as_slice(), libc::O_PATH | libc::O_NOFOLLOW, 0) {
                Ok(fd) => fd,
                Err(libc::ENOENT) => continue,
                Err(errno) => return Err(at(&path, errno)),
            };
            let stat = stat_fd(fd.as_fd()).map_err(|errno| at(&path, errno))?;
            if !matches!(file_type(&stat), libc::S_IFLNK | libc::S_IFSOCK) {
                let attributes = list_xattrs(&itself(fd.as_fd())).map_err(|errno| at(&path, errno))?;
                if attributes.iter().any(|name| FOREIGN.contains(&name.to_bytes())) {
                    return fail(Kind::Failed, format!("{}: overlay moved it, which is not understood", shown(&path)));
                }
            }
            entries.push(Found { fd, stat, path, name });
        }
        Ok(entries)
    }

    fn below(&self, entry: &Found) -> Result<OwnedFd> {
        open_at(entry.fd.as_fd(), ".", libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(|errno| at(&entry.path, errno))
    }

    /// An empty file or directory that was made to mount something on. Directories that are only on the way to one count, too.
    fn is_stub(&self, entry: &Found, depth: usize) -> Result<bool> {
        if self.mounted.contains(&entry.path) {
            return match file_type(&entry.stat) {
                libc::S_IFREG => Ok(entry.stat.st_size == 0),
                libc::S_IFDIR => {
                    Ok(names(self.below(entry)?.as_fd()).map_err(|errno| at(&entry.path, errno))?.is_empty())
                }
                _ => Ok(false),
            };
        }
        let way = [entry.path.as_slice(), b"/"].concat();
        if !entry.is_directory() || !self.mounted.iter().any(|mounted| mounted.starts_with(&way)) {
            return Ok(false);
        }
        for child in self.entries(self.below(entry)?.as_fd(), &entry.path, depth + 1)? {
            if !self.is_stub(&child, depth + 1)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn changes(
        &self,
        directory: BorrowedFd<'_>,
        path: &[u8],
        depth: usize,
        out: &mut Vec<(Change, Vec<u8>)>,
    ) -> Result<()> {
        for entry in self.entries(directory, path, depth)? {
            if self.is_stub(&entry, depth)? {
                continue;
            }
            let before = self.lower_of(&entry.path);
            if entry.is_whiteout() {
                if before.is_some() {
                    out.push((Change::Deleted, entry.path));
                }
                continue;
            }
            let change = if before.is_some() { Change::Changed } else { Change::Added };
            let at = out.len();
            out.push((change, entry.path.clone()));
            if entry.is_directory() {
                self.changes(self.below(&entry)?.as_fd(), &entry.path, depth + 1, out)?;
            }
            // A directory that only has what was made to mount on: its time alone is another.
            let unchanged = before.is_some_and(|old| entry.is_directory() && same_access(&old, &entry.stat));
            if unchanged && out.len() == at + 1 && !is_opaque(entry.fd.as_fd()) && self.holds_stub(&entry.path) {
                out.truncate(at);
            }
        }
        Ok(())
    }

    fn holds_stub(&self, path: &[u8]) -> bool {
        let way = [path, b"/"].concat();
        self.mounted.iter().any(|mounted| mounted.starts_with(&way))
    }

    /// What the image has at a path.
    fn lower_of(&self, path: &[u8]) -> Option<libc::stat> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
        for layer in &self.lower {
            let find = |path: &[u8]| {
                open_at2(layer.as_fd(), path, flags, resolve).and_then(|fd| Ok((stat_fd(fd.as_fd())?, fd)))
            };
            match find(path) {
                Ok((stat, _)) if is_whiteout(&stat) => return None,
                Ok((stat, _)) => return Some(stat),
                Err(_) => {}
            }
            // A layer that hides a directory on the way hides what is below it in the layers under it.
            let ways = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| &path[..end]);
            for way in ways {
                let Ok((stat, fd)) = find(way) else { break };
                if file_type(&stat) != libc::S_IFDIR || is_opaque(fd.as_fd()) {
                    return None;
                }
            }
        }
        None
    }

    fn pack<W: Write>(
        &self,
        packer: &mut Packer<W>,
        directory: BorrowedFd<'_>,
        path: &[u8],
        depth: usize,
    ) -> Result<()> {
        for entry in self.entries(directory, path, depth)? {
            if self.is_stub(&entry, depth)? {
                continue;
            }
            if entry.is_whiteout() {
                let above = entry.path.len() - entry.name.len();
                packer.mark(&blank(&entry.stat), &[&entry.path[..above], b".wh.", &entry.name].concat())?;
                continue;
            }
            if !entry.is_directory() {
                if file_type(&entry.stat) != libc::S_IFSOCK {
                    packer.other(entry.fd.as_fd(), &entry.stat, entry.path)?;
                }
                continue;
            }
            let name = [entry.path.as_slice(), b"/"].concat();
            packer.header(kind::DIRECTORY, &entry.stat, &name, &[], Some(entry.fd.as_fd()), &[])?;
            if is_opaque(entry.fd.as_fd()) {
                packer.mark(&blank(&entry.stat), &[name.as_slice(), b".wh..wh..opq"].concat())?;
            }
            self.pack(packer, self.below(&entry)?.as_fd(), &entry.path, depth + 1)?;
        }
        Ok(())
    }
}

fn same_access(old: &libc::stat, new: &libc::stat) -> bool {
    (old.st_mode, old.st_uid, old.st_gid) == (new.st_mode, new.st_uid, new.st_gid)
}

/// Of a whiteout nothing but the name means anything.
fn blank(stat: &libc::stat) -> libc::stat {
    let mut blank = *stat;
    (blank.st_mode, blank.st_uid, blank.st_gid) = (libc::S_IFREG, 0, 0);
    blank
}
