//! Writes a tree to the standard output. Every entry is opened by descriptor, no link is followed on the way: a name that is swapped
//! meanwhile is packed as what it is then, and leads nowhere.
use crate::arguments::Arguments;
use crate::tape::{self, kind, Attributes, Entry, BLOCK};
use crate::{at, fail, on_stream, shown, sparse, Kind, Result};
use kata_container::sys::xattr::{get_xattr, list_xattrs};
use kata_container::sys::{
    errno_of, file_type, fs_magic, itself, open, open_at, open_at2, read_bounded, read_link_at, stat_fd,
    RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS,
};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Stdout, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// Every level holds a descriptor.
const DEPTH_LIMIT: usize = 512;
const BUFFER_BYTES: usize = 256 * 1024;
/// Files of /proc and /sys tell a size of 0.
const MAX_GENERATED_BYTES: usize = 4 << 20;

/// File systems whose content is the kernel's, or devices'.
const KERNEL_FILE_SYSTEMS: [i64; 6] = [0x9fa0, 0x6265_6572, 0x6367_7270, 0x1cd1, 0x1980_0202, 0x6462_6720];
const TMPFS: i64 = 0x0102_1994;

pub struct Packer<W: Write> {
    out: BufWriter<W>,
    /// Holes, and times finer than a second: for a reader of ours.
    exact: bool,
    /// The name of a file with several names that was packed first, by device and inode.
    links: BTreeMap<(libc::dev_t, libc::ino_t), Vec<u8>>,
    buffer: Vec<u8>,
}

/// `--root=DIR --path=PATH --name=NAME [--follow] [--exact]`: what PATH is beneath DIR, as NAME and NAME/…; a directory
/// without a NAME is what it holds.
pub fn run(mut arguments: Arguments) -> Result<()> {
    let root = arguments.value("root")?;
    let path = arguments.value("path")?;
    let name = arguments.value("name")?;
    let (follow, exact) = (arguments.flag("follow"), arguments.flag("exact"));
    arguments.end()?;
    let root = open(&root, libc::O_PATH | libc::O_DIRECTORY).map_err(|errno| at(root.as_bytes(), errno))?;
    let flags = libc::O_PATH | if follow { 0 } else { libc::O_NOFOLLOW };
    let top = open_at2(root.as_fd(), path.as_str(), flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
    let top = top.map_err(|errno| at(path.as_bytes(), errno))?;
    let mut packer = Packer::new(std::io::stdout(), exact);
    packer.entry(top, name.into_bytes(), 0, None)?;
    packer.finish()
}

impl Packer<Stdout> {
    /// Writes the archive's end.
    pub fn finish(self) -> Result<()> {
        let Self { mut out, .. } = self;
        out.write_all(&[0; 2 * BLOCK]).and_then(|()| out.flush()).map_err(|error| on_stream(&error))
    }
}

impl<W: Write> Packer<W> {
    pub fn new(out: W, exact: bool) -> Self {
        let out = BufWriter::with_capacity(BUFFER_BYTES, out);
        Self { out, exact, links: BTreeMap::new(), buffer: vec![0; BUFFER_BYTES] }
    }

    /// Packs what the descriptor is, with everything below. `parent`: the device that the directory above is on.
    pub fn entry(&mut self, fd: OwnedFd, name: Vec<u8>, depth: usize, parent: Option<libc::dev_t>) -> Result<()> {
        let fd = fd.as_fd();
        let stat = stat_fd(fd).map_err(|errno| at(&name, errno))?;
        match file_type(&stat) {
            libc::S_IFDIR => self.directory(fd, &stat, name, depth, parent),
            // There is no socket without whoever listens at it.
            libc::S_IFSOCK => Ok(()),
            _ => self.other(fd, &stat, name),
        }
    }

    fn directory(
        &mut self,
        fd: BorrowedFd<'_>,
        stat: &libc::stat,
        mut name: Vec<u8>,
        depth: usize,
        parent: Option<libc::dev_t>,
    ) -> Result<()> {
        if depth > DEPTH_LIMIT {
            return fail(Kind::Failed, format!("{}: more than {DEPTH_LIMIT} directories in one another", shown(&name)));
        }
        if !name.is_empty() {
            name.push(b'/');
            self.header(kind::DIRECTORY, stat, &name, &[], Some(fd), &[])?;
        }
        if parent.is_some_and(|parent| parent != stat.st_dev) && is_the_kernels(fd, &name) {
            return Ok(());
        }
        let readable = open_at(fd, ".", libc::O_RDONLY | libc::O_DIRECTORY, 0).map_err(|errno| at(&name, errno))?;
        for child in names(readable.as_fd()).map_err(|errno| at(&name, errno))? {
            let path = [name.as_slice(), &child].concat();
            match open_at(readable.as_fd(), child, libc::O_PATH | libc::O_NOFOLLOW, 0) {
                Ok(entry) => self.entry(entry, path, depth + 1, Some(stat.st_dev))?,
                // It went since the directory was read.
                Err(libc::ENOENT) => {}
                Err(errno) => return Err(at(&path, errno)),
            }
        }
        Ok(())
    }

    pub fn other(&mut self, fd: BorrowedFd<'_>, stat: &libc::stat, name: Vec<u8>) -> Result<()> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned() {
                return self.header(kind::LINK, stat, &name, &first, None, &[]);
            }
            self.links.insert((stat.st_dev, stat.st_ino), name.clone());
        }
        match file_type(stat) {
            libc::S_IFREG => self.file(fd, stat, &name),
            libc::S_IFLNK => {
                let target = read_link_at(fd, "").map_err(|errno| at(&name, errno))?;
                self.header(kind::SYMLINK, stat, &name, &target, None, &[])
            }
            libc::S_IFIFO => self.header(kind::FIFO, stat, &name, &[], Some(fd), &[]),
            libc::S_IFCHR => self.header(kind::CHARACTER, stat, &name, &[], Some(fd), &[]),
            libc::S_IFBLK => self.header(kind::BLOCK, stat, &name, &[], Some(fd), &[]),
            _ => Ok(()),
        }
    }

    fn file(&mut self, fd: BorrowedFd<'_>, stat: &libc::stat, name: &[u8]) -> Result<()> {
        let failed = |errno| at(name, errno);
        let mut file = File::from(open(&itself(fd), libc::O_RDONLY | libc::O_NONBLOCK).map_err(failed)?);
        let size = stat.st_size as u64;
        if size == 0 && fs_magic(fd).is_ok_and(|magic| KERNEL_FILE_SYSTEMS.contains(&magic)) {
            let content = read_bounded(file.into(), MAX_GENERATED_BYTES).map_err(failed)?;
            self.sized(stat, name, Some(fd), &[], content.len() as u64)?;
            return self.raw(&content).and_then(|()| self.pad(content.len() as u64));
        }
        let holes =
            if self.exact && (stat.st_blocks as u64) * 512 < size { sparse::extents(&file, size) } else { None };
        let Some(extents) = holes else {
            self.sized(stat, name, Some(fd), &[], size)?;
            self.copy(&mut file, size, name)?;
            return self.pad(size);
        };
        let list = sparse::encode(&extents);
        let stored = list.len() as u64 + extents.iter().map(|(_, length)| length).sum::<u64>();
        let real = size.to_string();
        let marks: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", name),
            ("GNU.sparse.realsize", real.as_bytes()),
        ];
        self.sized(stat, name, Some(fd), &marks, stored)?;
        self.raw(&list)?;
        for (offset, length) in extents {
            file.seek(SeekFrom::Start(offset)).map_err(|error| failed(errno_of(&error)))?;
            self.copy(&mut file, length, name)?;
        }
        self.pad(stored)
    }

    /// Exactly so many bytes, whatever the file has become meanwhile.
    fn copy(&mut self, file: &mut File, size: u64, name: &[u8]) -> Result<()> {
        let mut left = size;
        while left > 0 {
            let wanted = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = file.read(&mut self.buffer[..wanted]).map_err(|error| at(name, errno_of(&error)))?;
            let count = if count == 0 {
                self.buffer[..wanted].fill(0);
                wanted
            } else {
                count
            };
            self.out.write_all(&self.buffer[..count]).map_err(|error| on_stream(&error))?;
            left -= count as u64;
        }
        Ok(())
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|error| on_stream(&error))
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        let padding = [0_u8; 512];
        self.raw(&padding[..(size.next_multiple_of(512) - size) as usize])
    }

    /// An empty regular file that only its name says something by.
    pub fn mark(&mut self, stat: &libc::stat, name: &[u8]) -> Result<()> {
        self.sized(stat, name, None, &[], 0)
    }

    fn sized(
        &mut self,
        stat: &libc::stat,
        name: &[u8],
        attributes_of: Option<BorrowedFd<'_>>,
        extra: &[(&str, &[u8])],
        size: u64,
    ) -> Result<()> {
        let mut stat = *stat;
        stat.st_size = size as libc::off_t;
        self.header(kind::FILE, &stat, name, &[], attributes_of, extra)
    }

    pub fn header(
        &mut self,
        kind: u8,
        stat: &libc::stat,
        name: &[u8],
        link: &[u8],
        attributes_of: Option<BorrowedFd<'_>>,
        extra: &[(&str, &[u8])],
    ) -> Result<()> {
        let attributes = match attributes_of {
            Some(fd) => attributes(fd).map_err(|errno| at(name, errno))?,
            None => Vec::new(),
        };
        let is_device = matches!(kind, kind::CHARACTER | kind::BLOCK);
        let entry = Entry {
            kind,
            name: name.to_vec(),
            link: link.to_vec(),
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            size: if kind == kind::FILE { stat.st_size as u64 } else { 0 },
            mtime: (stat.st_mtime, if self.exact { stat.st_mtime_nsec } else { 0 }),
            device: if is_device { (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)) } else { (0, 0) },
            attributes,
            sparse_bytes: None,
        };
        self.raw(&tape::header(&entry, extra))
    }
}

/// What belongs to the file and not to a file system or a security module of its host.
pub fn is_kept(attribute: &[u8]) -> bool {
    attribute.starts_with(b"user.")
        || [b"security.capability".as_slice(), b"system.posix_acl_access", b"system.posix_acl_default"]
            .contains(&attribute)
}

fn attributes(fd: BorrowedFd<'_>) -> std::result::Result<Attributes, i32> {
    let path = itself(fd);
    let mut found = Vec::new();
    for name in list_xattrs(&path)? {
        let key = name.to_bytes();
        // A record's key ends at an equals sign.
        if !is_kept(key) || key.contains(&b'=') {
            continue;
        }
        match get_xattr(&path, &name) {
            Ok(value) => found.push((key.to_vec(), value)),
            Err(libc::ENODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

/// Sorted, so that the same tree gives the same stream.
pub fn names(directory: BorrowedFd<'_>) -> std::result::Result<Vec<Vec<u8>>, i32> {
    let entries = fs::read_dir(itself(directory)).map_err(|error| errno_of(&error))?;
    let names: std::io::Result<Vec<Vec<u8>>> = entries.map(|entry| Ok(entry?.file_name().into_vec())).collect();
    let mut names = names.map_err(|error| errno_of(&error))?;
    names.sort_unstable();
    Ok(names)
}

/// A mounted /proc, /sys or /dev: its directory is packed, its content is not.
fn is_the_kernels(directory: BorrowedFd<'_>, name: &[u8]) -> bool {
    let magic = fs_magic(directory).unwrap_or(0);
    let is_dev = name.ends_with(b"/dev/") || name == b"dev/";
    KERNEL_FILE_SYSTEMS.contains(&magic) || (magic == TMPFS && is_dev)
}
