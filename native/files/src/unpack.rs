//! Makes a tree of the stream on the standard input. The stream is hostile: nothing outside of the destination is made, changed,
//! read or linked to, whatever its entries are called and whoever changes the destination meanwhile.
use crate::arguments::Arguments;
use crate::place::{decide, find};
use crate::tape::{kind, Archive, Entry};
use crate::{at, fail, on_stream, pack, shown, sparse, Kind, Result};
use kata_container::sys::xattr::set_xattr;
use kata_container::sys::{
    chmod_at, chown_fd, cwd, errno_of, file_type, itself, mkdir_at, mknod_at, open, open_at, open_at2, set_times,
    stat_fd, symlink_at, unlink_at, RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS,
};
use std::cell::RefCell;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::rc::Rc;

const BUFFER_BYTES: usize = 256 * 1024;
const DEPTH_LIMIT: usize = 512;

type Input = Archive<io::BufReader<File>>;

struct Unpacker {
    /// Where paths are resolved, and how.
    top: OwnedFd,
    resolve: u64,
    /// Whose names these are: in a container's root its own links are followed; on the host none is.
    is_host: bool,
    keep_owner: bool,
    prefix: Vec<Vec<u8>>,
    /// The directory that was last written to.
    parent: RefCell<Option<(Vec<u8>, Rc<OwnedFd>)>>,
    /// Modes and times of directories, set when nothing is written into them any more.
    directories: Vec<(Vec<u8>, Entry)>,
    /// Entries that were left out, and why.
    left_out: Vec<String>,
    buffer: Vec<u8>,
}

/// `--root=DIR --to=PATH [--base=NAME] [--contents] [--extract] [--owner] [--host]`. Without `--extract` the stream has one tree, as
/// `pack --name=.` writes it, and PATH is a copy's destination: its name there is the base. With it PATH is a directory that the
/// entries' names are relative to. `--owner`: ids as in the stream, else the caller's. `--host`: the stream comes from a guest.
pub fn run(mut arguments: Arguments) -> Result<()> {
    let root = arguments.value("root")?;
    let to = arguments.value("to")?.into_bytes();
    let base = arguments.optional("base").unwrap_or_default().into_bytes();
    let (contents, extract) = (arguments.flag("contents"), arguments.flag("extract"));
    let (keep_owner, is_host) = (arguments.flag("owner"), arguments.flag("host"));
    arguments.end()?;
    let root = open(&root, libc::O_PATH | libc::O_DIRECTORY).map_err(|errno| at(root.as_bytes(), errno))?;
    // SAFETY: nobody else has the standard input, and nothing else is at its number later.
    let input = unsafe { File::from_raw_fd(0) };
    let mut archive = Archive::new(io::BufReader::with_capacity(BUFFER_BYTES, input));
    let mut unpacker: Option<Unpacker> = None;
    while let Some(entry) = archive.next()? {
        let names = components(&entry.name)?;
        let unpacker = match &mut unpacker {
            Some(unpacker) => unpacker,
            none => {
                let place = if extract {
                    directory_place(root.as_fd(), &to)?
                } else {
                    let is_directory = entry.kind == kind::DIRECTORY || !names.is_empty();
                    decide(root.as_fd(), &to, &base, contents, is_directory)?
                };
                none.insert(Unpacker::new(root.as_fd(), &place, is_host, keep_owner)?)
            }
        };
        unpacker.entry(entry, &names, &mut archive)?;
    }
    let Some(unpacker) = unpacker else {
        return if extract { Ok(()) } else { fail(Kind::Stream, "the stream ended before its first entry") };
    };
    if archive.is_cut && !extract {
        return fail(Kind::Stream, "the stream ended in the middle");
    }
    // Whoever writes it is not to meet a closed pipe.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|error| on_stream(&error))?;
    unpacker.finish()
}

fn directory_place(root: BorrowedFd<'_>, to: &[u8]) -> Result<crate::place::Place> {
    let found = find(root, to, true).and_then(|fd| stat_fd(fd.as_fd())).map_err(|errno| at(to, errno))?;
    if file_type(&found) != libc::S_IFDIR {
        return fail(Kind::Refused, format!("{}: not a directory", shown(to)));
    }
    Ok(crate::place::Place { directory: to.to_vec(), name: Vec::new() })
}

/// The parts of a name. A name that goes up is refused, a leading slash means the destination.
fn components(name: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if part == b".." {
            return fail(Kind::Stream, format!("{:?} leads out of the destination", shown(name)));
        }
        parts.push(part.to_vec());
    }
    if parts.len() > DEPTH_LIMIT {
        return fail(Kind::Stream, format!("a name with more than {DEPTH_LIMIT} parts"));
    }
    Ok(parts)
}

impl Unpacker {
    fn new(root: BorrowedFd<'_>, place: &crate::place::Place, is_host: bool, keep_owner: bool) -> Result<Self> {
        let parts = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect()
        };
        let directory = find(root, &place.directory, true).map_err(|errno| at(&place.directory, errno))?;
        // In a container absolute links mean its root, so that everything is looked up from there.
        let (top, resolve, mut prefix) = if is_host {
            (directory, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS, Vec::new())
        } else {
            let top = open(&itself(root), libc::O_PATH).map_err(|errno| at(b"/", errno))?;
            (top, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, parts(&place.directory))
        };
        prefix.extend(parts(&place.name));
        let (directories, left_out) = (Vec::new(), Vec::new());
        let buffer = vec![0; BUFFER_BYTES];
        let parent = RefCell::default();
        Ok(Self { top, resolve, is_host, keep_owner, prefix, parent, directories, left_out, buffer })
    }

    fn entry(&mut self, mut entry: Entry, names: &[Vec<u8>], data: &mut Input) -> Result<()> {
        self.restrict(&mut entry);
        let is_top = names.is_empty();
        let path = self.path_of(names);
        let Some((parent_path, leaf)) = split_last(&path) else {
            // The destination itself, which exists.
            return Ok(());
        };
        let shown_name = path.clone();
        let problem = |errno| at(&shown_name, errno);
        let parent = self.directory(&parent_path)?;
        let parent = parent.as_fd();
        match entry.kind {
            kind::DIRECTORY => {
                let made = self.make_directory(parent, &leaf, &path)?;
                // Of a copied directory's contents the destination is another.
                if made || !is_top {
                    self.directories.push((path, entry));
                }
                Ok(())
            }
            kind::FILE | kind::OLD_FILE | kind::CONTIGUOUS => self.make_file(parent, &leaf, &path, &entry, data),
            kind::SYMLINK => {
                self.replace(parent, &leaf, &path)?;
                symlink_at(&entry.link, parent, leaf.as_slice()).map_err(problem)?;
                self.settle_by_path(parent, &leaf, &path, &entry)
            }
            kind::LINK => self.make_link(parent, &leaf, &path, &components(&entry.link)?),
            kind::FIFO => {
                self.replace(parent, &leaf, &path)?;
                mknod_at(parent, leaf.as_slice(), libc::S_IFIFO | 0o600, 0).map_err(problem)?;
                self.settle_by_path(parent, &leaf, &path, &entry)
            }
            kind::CHARACTER | kind::BLOCK if self.is_host => {
                self.left_out.push(format!("{}: a device of the guest's is not made on the host", shown(&path)));
                Ok(())
            }
            kind::CHARACTER | kind::BLOCK => {
                let device = libc::makedev(entry.device.0, entry.device.1);
                let format = if entry.kind == kind::CHARACTER { libc::S_IFCHR } else { libc::S_IFBLK };
                self.replace(parent, &leaf, &path)?;
                mknod_at(parent, leaf.as_slice(), format | 0o600, device).map_err(problem)?;
                self.settle_by_path(parent, &leaf, &path, &entry)
            }
            other => fail(Kind::Stream, format!("{}: an entry of type {:?}", shown(&path), char::from(other))),
        }
    }

    /// Takes away what a guest's files may not have on the host: rights for whoever runs them, unless their owner is kept, too.
    fn restrict(&self, entry: &mut Entry) {
        let strip = self.is_host && !self.keep_owner;
        if strip {
            entry.mode &= if entry.kind == kind::DIRECTORY { 0o1777 } else { 0o777 };
        }
        entry.attributes.retain(|(name, _)| pack::is_kept(name) && (!strip || name.starts_with(b"user.")));
    }

    fn path_of(&self, names: &[Vec<u8>]) -> Vec<u8> {
        [self.prefix.as_slice(), names].concat().join(&b'/')
    }

    /// A directory below the top; what is missing on the way is made.
    fn directory(&self, path: &[u8]) -> Result<Rc<OwnedFd>> {
        if let Some((known, fd)) = &*self.parent.borrow() {
            if known == path {
                return Ok(Rc::clone(fd));
            }
        }
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let open = |path: &[u8]| open_at2(self.top.as_fd(), path, flags, self.resolve);
        let opened = match open(path) {
            Err(libc::ENOENT) => {
                let Some((above, leaf)) = split_last(path) else { return Err(at(path, libc::ENOENT)) };
                let above = self.directory(&above)?;
                match mkdir_at(above.as_fd(), leaf, 0o755) {
                    Ok(()) | Err(libc::EEXIST) => open(path),
                    Err(errno) => Err(errno),
                }
            }
            opened => opened,
        };
        let fd = Rc::new(opened.map_err(|errno| at(path, errno))?);
        *self.parent.borrow_mut() = Some((path.to_vec(), Rc::clone(&fd)));
        Ok(fd)
    }

    /// False: it was there.
    fn make_directory(&self, parent: BorrowedFd<'_>, leaf: &[u8], path: &[u8]) -> Result<bool> {
        match mkdir_at(parent, leaf, 0o700) {
            Ok(()) => return Ok(true),
            Err(libc::EEXIST) => {}
            Err(errno) => return Err(at(path, errno)),
        }
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        match open_at2(self.top.as_fd(), path, flags, self.resolve) {
            Ok(_) => Ok(false),
            Err(_) => fail(Kind::Refused, format!("{}: cannot put a directory in place of a file", shown(path))),
        }
    }

    /// Makes room for an entry that is no directory.
    fn replace(&self, parent: BorrowedFd<'_>, leaf: &[u8], path: &[u8]) -> Result<()> {
        match unlink_at(parent, leaf) {
            Ok(()) | Err(libc::ENOENT) => Ok(()),
            Err(libc::EISDIR) => {
                fail(Kind::Refused, format!("{}: cannot put a file in place of a directory", shown(path)))
            }
            Err(errno) => Err(at(path, errno)),
        }
    }

    fn make_file(
        &mut self,
        parent: BorrowedFd<'_>,
        leaf: &[u8],
        path: &[u8],
        entry: &Entry,
        data: &mut Input,
    ) -> Result<()> {
        let mut file = self.open_new(parent, leaf, path)?;
        let problem = |error: io::Error| at(path, errno_of(&error));
        match entry.sparse_bytes {
            None => self.write(&mut file, data, entry.size, path)?,
            Some(size) => {
                for (offset, length) in sparse::decode(data)? {
                    file.seek(SeekFrom::Start(offset)).map_err(problem)?;
                    self.write(&mut file, data, length, path)?;
                }
                file.set_len(size).map_err(problem)?;
            }
        }
        self.settle(file.as_fd(), path, entry)
    }

    /// A new file. What is mounted in a container's place of it (its /etc/hosts) cannot be replaced and is written into.
    fn open_new(&self, parent: BorrowedFd<'_>, leaf: &[u8], path: &[u8]) -> Result<File> {
        let new = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        let failed = |errno| at(path, errno);
        match open_at(parent, leaf, new, 0o600) {
            Ok(file) => return Ok(File::from(file)),
            Err(libc::EEXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
        // Unlinking it would take the mount away: this is another mount namespace than the container's.
        if !self.is_host && is_mounted_on(parent, leaf) {
            let in_place = libc::O_WRONLY | libc::O_TRUNC | libc::O_NOFOLLOW | libc::O_NONBLOCK;
            return open_at(parent, leaf, in_place, 0).map(File::from).map_err(failed);
        }
        self.replace(parent, leaf, path)?;
        open_at(parent, leaf, new, 0o600).map(File::from).map_err(failed)
    }

    fn write(&mut self, file: &mut File, data: &mut impl Read, size: u64, path: &[u8]) -> Result<()> {
        let mut left = size;
        while left > 0 {
            let wanted = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = data.read(&mut self.buffer[..wanted]).map_err(|error| on_stream(&error))?;
            if count == 0 {
                return fail(Kind::Stream, "the stream ended in the middle");
            }
            file.write_all(&self.buffer[..count]).map_err(|error| at(path, errno_of(&error)))?;
            left -= count as u64;
        }
        Ok(())
    }

    fn make_link(&self, parent: BorrowedFd<'_>, leaf: &[u8], path: &[u8], target: &[Vec<u8>]) -> Result<()> {
        let target = self.path_of(target);
        if target == path {
            return Ok(());
        }
        let Some((above, name)) = split_last(&target) else { return Err(at(&target, libc::EISDIR)) };
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let above = open_at2(self.top.as_fd(), above, flags, self.resolve).map_err(|errno| at(&target, errno))?;
        self.replace(parent, leaf, path)?;
        let c_string = |text: &[u8]| CString::new(text).map_err(|_| at(path, libc::EINVAL));
        let (name, leaf) = (c_string(&name)?, c_string(leaf)?);
        // SAFETY: both names outlive the call. A symbolic link is linked to itself, not to what it points to.
        let done = unsafe { libc::linkat(above.as_raw_fd(), name.as_ptr(), parent.as_raw_fd(), leaf.as_ptr(), 0) };
        if done < 0 {
            return Err(at(&target, errno_of(&io::Error::last_os_error())));
        }
        Ok(())
    }

    fn settle_by_path(&self, parent: BorrowedFd<'_>, leaf: &[u8], path: &[u8], entry: &Entry) -> Result<()> {
        let made = open_at(parent, leaf, libc::O_PATH | libc::O_NOFOLLOW, 0).map_err(|errno| at(path, errno))?;
        self.settle(made.as_fd(), path, entry)
    }

    /// Owner first: a change of owner takes set-id bits and capabilities away.
    fn settle(&self, fd: BorrowedFd<'_>, path: &[u8], entry: &Entry) -> Result<()> {
        let failed = |errno| at(path, errno);
        let is_link = file_type(&stat_fd(fd).map_err(failed)?) == libc::S_IFLNK;
        if self.keep_owner {
            chown_fd(fd, entry.owner.0, entry.owner.1).map_err(failed)?;
        }
        if !is_link {
            chmod_at(cwd(), itself(fd), entry.mode).map_err(failed)?;
            for (name, value) in &entry.attributes {
                let key = CString::new(name.as_slice()).map_err(|_| at(path, libc::EINVAL))?;
                match set_xattr(&itself(fd), &key, value) {
                    // Notes of the user's: not every file system has a place for them.
                    Err(libc::EOPNOTSUPP | libc::EPERM) if name.starts_with(b"user.") => {}
                    done => done.map_err(failed)?,
                }
            }
        }
        // SAFETY: an all-zero stat is a valid value; the four fields that are read are set.
        let mut times: libc::stat = unsafe { MaybeUninit::zeroed().assume_init() };
        (times.st_atime, times.st_atime_nsec) = (0, libc::UTIME_NOW);
        (times.st_mtime, times.st_mtime_nsec) = entry.mtime;
        set_times(fd, &times).map_err(failed)
    }

    fn finish(self) -> Result<()> {
        for (path, entry) in self.directories.iter().rev() {
            let flags = libc::O_PATH | libc::O_DIRECTORY;
            let directory = open_at2(self.top.as_fd(), path.as_slice(), flags, self.resolve);
            self.settle(directory.map_err(|errno| at(path, errno))?.as_fd(), path, entry)?;
        }
        match self.left_out.len() {
            0 => Ok(()),
            count => {
                let shown: Vec<String> = self.left_out.into_iter().take(10).collect();
                let more =
                    if count > shown.len() { format!("\nand {} more", count - shown.len()) } else { String::new() };
                fail(Kind::Refused, format!("{}{more}", shown.join("\n")))
            }
        }
    }
}

/// Whether something is mounted at that name.
fn is_mounted_on(parent: BorrowedFd<'_>, leaf: &[u8]) -> bool {
    let Ok(leaf) = CString::new(leaf) else { return false };
    // SAFETY: an all-zero statx is valid; the kernel fills it.
    let mut found: libc::statx = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: name and structure outlive the call.
    let done = unsafe {
        libc::statx(parent.as_raw_fd(), leaf.as_ptr(), libc::AT_SYMLINK_NOFOLLOW, libc::STATX_TYPE, &raw mut found)
    };
    done == 0 && found.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0
}

fn split_last(path: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((path[..slash].to_vec(), path[slash + 1..].to_vec())),
        None if path.is_empty() => None,
        None => Some((Vec::new(), path.to_vec())),
    }
}
