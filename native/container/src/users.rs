//! Users of a container, from its own /etc/passwd and /etc/group (passwd(5), group(5)).
//!
//! The files come from an image: they are opened beneath the root, must be regular, and are read up to a limit; lines
//! that make no sense are skipped, as the C library does.
use crate::error::{ContainerError, Result, Step};
use crate::sys::{file_type, open_at2, read_bounded, stat_fd, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS};
use kata_protocol::grpc;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

const FILE_LIMIT_BYTES: usize = 4 << 20;
/// Supplementary groups that the kernel takes (NGROUPS_MAX).
const GROUP_LIMIT: usize = 65_536;
/// The largest id that Docker and containerd take by number.
const ID_LIMIT: u32 = i32::MAX as u32;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    /// Home directory, when the user is listed.
    pub home: Option<String>,
}

fn failure(errno: i32, path: &str, what: impl Into<String>) -> ContainerError {
    ContainerError::new(Step::User, errno, path, what)
}

/// Finds `user[:group]`, each a name or a number, in the file system below `root`, with the rules of Docker: a user that
/// is listed brings its group and the groups that list it; a number that is not listed has group 0; a group that is given
/// replaces both. The two parts may come in `uid` alone, or in `uid` and `gid`.
///
/// Errors (step user): ENOENT for a name that is not listed, ERANGE for a number beyond 2^31-1, EFBIG for a file over 4 MiB.
pub fn find_user(root: BorrowedFd<'_>, user: &grpc::StringUser) -> Result<Identity> {
    let (name, group) = match user.uid.split_once(':') {
        Some((name, group)) if user.gid.is_empty() => (name, group),
        _ => (user.uid.as_str(), user.gid.as_str()),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = parse_id(name)?;
    let passwd = read(root, "/etc/passwd")?;
    let listed = entries(&passwd).filter_map(PasswdEntry::parse).find(|entry| match number {
        Some(uid) => entry.uid == uid,
        None => entry.name == name,
    });
    let mut found = match (&listed, number) {
        (Some(entry), _) => {
            Identity { uid: entry.uid, gid: entry.gid, home: Some(entry.home.to_owned()), ..Identity::default() }
        }
        (None, Some(uid)) => Identity { uid, ..Identity::default() },
        (None, None) => return Err(failure(libc::ENOENT, name, "no such user in the container's /etc/passwd:")),
    };
    let wanted: Vec<&str> = user.additional_gids.iter().map(String::as_str).collect();
    if group.is_empty() && wanted.is_empty() && listed.is_none() {
        return Ok(found);
    }
    let groups = read(root, "/etc/group")?;
    if !group.is_empty() {
        found.gid = find_group(&groups, group)?;
    } else if let Some(entry) = &listed {
        let member = entries(&groups)
            .filter_map(GroupEntry::parse)
            .filter(|group| group.members.split(',').any(|member| member == entry.name));
        found.additional_gids = member.map(|group| group.gid).take(GROUP_LIMIT).collect();
    }
    for group in wanted.into_iter().take(GROUP_LIMIT) {
        let gid = find_group(&groups, group)?;
        if !found.additional_gids.contains(&gid) {
            found.additional_gids.push(gid);
        }
    }
    Ok(found)
}

/// Home directory of a number, when /etc/passwd lists one; a file that cannot be read lists nothing.
pub(crate) fn find_home(root: BorrowedFd<'_>, uid: u32) -> Option<String> {
    let passwd = read(root, "/etc/passwd").ok()?;
    let home = entries(&passwd)
        .filter_map(PasswdEntry::parse)
        .find(|entry| entry.uid == uid)
        .map(|entry| entry.home.to_owned());
    home.filter(|home| !home.is_empty())
}

/// Names by number, as /etc/passwd lists them; a file that cannot be read lists nothing.
pub fn user_names(root: BorrowedFd<'_>) -> BTreeMap<u32, String> {
    let passwd = read(root, "/etc/passwd").unwrap_or_default();
    let mut names = BTreeMap::new();
    for entry in entries(&passwd).filter_map(PasswdEntry::parse) {
        names.entry(entry.uid).or_insert_with(|| entry.name.to_owned());
    }
    names
}

/// A number in range, None for what is no number.
fn parse_id(text: &str) -> Result<Option<u32>> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= ID_LIMIT => Ok(Some(id)),
        _ => Err(failure(libc::ERANGE, text, "user and group ids are at most 2147483647, not")),
    }
}

fn find_group(groups: &str, wanted: &str) -> Result<u32> {
    if let Some(gid) = parse_id(wanted)? {
        return Ok(gid);
    }
    let found = entries(groups).filter_map(GroupEntry::parse).find(|group| group.name == wanted);
    found
        .map(|group| group.gid)
        .ok_or_else(|| failure(libc::ENOENT, wanted, "no such group in the container's /etc/group:"))
}

/// A file that is missing is empty.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String> {
    // Non-blocking: a fifo in its place must not hold us.
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match open_at2(root, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS) {
        Ok(file) => file,
        Err(libc::ENOENT | libc::ENOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(failure(errno, path, "open")),
    };
    let stat = stat_fd(file.as_fd()).map_err(|errno| failure(errno, path, "stat"))?;
    if file_type(&stat) != libc::S_IFREG {
        return Err(failure(libc::EINVAL, path, "not a regular file:"));
    }
    let content = read_bounded(file, FILE_LIMIT_BYTES).map_err(|errno| failure(errno, path, "read"))?;
    Ok(String::from_utf8(content).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

fn entries(content: &str) -> impl Iterator<Item = &str> {
    content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Self { name, uid, gid, home: fields.nth(1).unwrap_or("") })
    }
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some(Self { name, gid: fields.nth(1)?.parse().ok()?, members: fields.next().unwrap_or("") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn with_files<T>(passwd: &[u8], group: &[u8], test: impl FnOnce(&Path, BorrowedFd<'_>) -> T) -> T {
        let base = std::env::temp_dir().join(format!("kata-users-{}-{:p}", std::process::id(), &passwd));
        fs::create_dir_all(base.join("etc")).unwrap();
        fs::write(base.join("etc/passwd"), passwd).unwrap();
        fs::write(base.join("etc/group"), group).unwrap();
        let root = fs::File::open(&base).unwrap();
        let result = test(&base, root.as_fd());
        fs::remove_dir_all(base).unwrap();
        result
    }

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# a comment\n\nbad:line\nnobody:x:65534:65533::/nowhere:/bin/false\nweb:x:1000:1001:Web,,,:/srv/web:/bin/sh\n";
    const GROUP: &[u8] = b"root:x:0:\nvideo:x:44:web,root\naudio:x:29:nobody,web\nweb:x:1001:\nbroken:x:abc:web\n";

    fn find(text: &str) -> Result<Identity> {
        with_files(PASSWD, GROUP, |_, root| {
            find_user(root, &grpc::StringUser { uid: text.into(), ..Default::default() })
        })
    }

    fn identity(uid: u32, gid: u32, additional: &[u32], home: Option<&str>) -> Identity {
        Identity { uid, gid, additional_gids: additional.to_vec(), home: home.map(str::to_owned) }
    }

    #[test]
    fn follows_dockers_rules() {
        assert_eq!(find("web").unwrap(), identity(1000, 1001, &[44, 29], Some("/srv/web")));
        assert_eq!(find("1000").unwrap(), identity(1000, 1001, &[44, 29], Some("/srv/web")));
        assert_eq!(find("web:video").unwrap(), identity(1000, 44, &[], Some("/srv/web")));
        assert_eq!(find("web:77").unwrap(), identity(1000, 77, &[], Some("/srv/web")));
        assert_eq!(find("4242").unwrap(), identity(4242, 0, &[], None));
        assert_eq!(find("4242:audio").unwrap(), identity(4242, 29, &[], None));
        assert_eq!(find("").unwrap(), identity(0, 0, &[44], Some("/root")));
        assert_eq!(find(":audio").unwrap(), identity(0, 29, &[], Some("/root")));
        assert_eq!(find("nope").unwrap_err().errno, libc::ENOENT);
        assert_eq!(find("web:nope").unwrap_err().errno, libc::ENOENT);
        assert_eq!(find("2147483648").unwrap_err().errno, libc::ERANGE);
        assert_eq!(find("99999999999999999999").unwrap_err().errno, libc::ERANGE);
        assert_eq!(find("-1").unwrap_err().errno, libc::ENOENT);
    }

    #[test]
    fn additional_groups_are_names_or_numbers() {
        let user = grpc::StringUser {
            uid: "web".into(),
            gid: String::new(),
            additional_gids: vec!["audio".into(), "7".into()],
        };
        let found = with_files(PASSWD, GROUP, |_, root| find_user(root, &user)).unwrap();
        assert_eq!(found.additional_gids, [44, 29, 7]);
    }

    #[test]
    fn hostile_files_are_refused() {
        with_files(PASSWD, GROUP, |base, root| {
            let root_user = grpc::StringUser { uid: "web".into(), ..Default::default() };
            let swap = |make: &dyn Fn(&Path)| {
                fs::remove_file(base.join("etc/passwd")).unwrap();
                make(&base.join("etc/passwd"));
                find_user(root, &root_user).unwrap_err().errno
            };
            assert_eq!(swap(&|path| drop(fs::write(path, vec![b'x'; FILE_LIMIT_BYTES + 1]))), libc::EFBIG);
            // The host's own /etc/passwd does not answer for the container's.
            assert_eq!(swap(&|path| symlink("../../../../../../etc/passwd", path).unwrap()), libc::ELOOP);
            let fifo = |path: &Path| {
                let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
                assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o666) }, 0);
            };
            assert_eq!(swap(&fifo), libc::EINVAL);
            assert_eq!(swap(&|path| symlink("/proc/self/exe", path).unwrap()), libc::ENOENT);
        });
    }

    #[test]
    fn any_bytes_are_read_without_panic() {
        let mut random = Random::new(3);
        for _ in 0..300 {
            let mut noise =
                |length: u64| (0..length).map(|_| *random.pick(b"web:0194967295,\n\0\xff-x# ")).collect::<Vec<u8>>();
            let (passwd, group) = (noise(200), noise(200));
            let _ = with_files(&passwd, &group, |_, root| {
                find_user(root, &grpc::StringUser { uid: "web".into(), ..Default::default() })
            });
        }
    }
}
