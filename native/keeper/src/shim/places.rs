//! Where a door's sandbox lies: its directory, the key that leads to it, the lock that its clean-up takes.
use super::sha256;
use crate::json::{self, Value};
use crate::spawn::is_name;
use crate::{config, sys};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{symlink, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// So long that every socket below it still has a place in sockaddr_un.
pub const MAX_RUN_BYTES: usize = 60;
pub const MAX_STATE_BYTES: u64 = 4 * 1024 * 1024;
const LOCK_TICK: Duration = Duration::from_millis(5);
/// Each other remover that looks for the lock meanwhile makes one once, or removes a file before this one does.
const MAX_ROUNDS: usize = 1000;

pub fn is_identifier(text: &str) -> bool {
    is_name(text)
}

/// `<run>`.
pub struct Places {
    pub run: PathBuf,
}

/// The link of one containerd's one task or sandbox.
pub struct Key(PathBuf);

impl Places {
    pub fn sandboxes(&self) -> PathBuf {
        self.run.join("s")
    }

    pub fn keys(&self) -> PathBuf {
        self.run.join("k")
    }

    /// `containerd` is the address of its GRPC socket.
    pub fn key(&self, containerd: &str, namespace: &str, id: &str) -> Key {
        let name = sha256::hex(format!("{containerd}\0{namespace}\0{id}").as_bytes());
        Key(self.keys().join(name))
    }

    /// The directory of the sandbox that the key leads to. `InvalidData`: the key is no link of ours.
    pub fn find(&self, key: &Key) -> io::Result<Option<PathBuf>> {
        let target = match fs::read_link(&key.0) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let uid = target.to_str().and_then(|target| target.strip_prefix("../s/")).filter(|uid| is_uid(uid));
        match uid {
            Some(uid) => Ok(Some(self.sandboxes().join(uid))),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, format!("it leads to {}", target.display()))),
        }
    }
}

pub fn is_uid(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Key {
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Points the key to a sandbox; `AlreadyExists` when it points somewhere.
    pub fn point(&self, uid: &str) -> io::Result<()> {
        symlink(format!("../s/{uid}"), &self.0)
    }

    /// Removes the key if it leads to this directory. The caller holds the directory's lock, so nobody else removes it.
    pub fn release(&self, dir: &Path) -> io::Result<()> {
        let ours = fs::read_link(&self.0).is_ok_and(|target| target.file_name() == dir.file_name());
        if ours {
            ignore_missing(fs::remove_file(&self.0))
        } else {
            Ok(())
        }
    }
}

pub fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Whether a keeper listens in the directory.
pub fn lives(dir: &Path) -> bool {
    UnixStream::connect(dir.join("k.sock")).is_ok()
}

/// The lock of a sandbox's directory, held until the value is dropped.
pub struct Lock(#[expect(dead_code, reason = "held for its lock")] File);

impl Lock {
    /// `None`: the directory is gone. `TimedOut`: somebody else holds the lock longer than `bound`.
    pub fn take(dir: &Path, bound: Duration) -> io::Result<Option<Self>> {
        let path = dir.join("lock");
        let deadline = Instant::now() + bound;
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            let file = match options.open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            if sys::file_lock(file.as_fd())? {
                // Whoever held it may have removed the directory meanwhile, and another lock may have its name.
                match fs::metadata(&path) {
                    Ok(now) if now.ino() == file.metadata()?.ino() => return Ok(Some(Lock(file))),
                    _ => continue,
                }
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another clean-up holds its lock"));
            }
            std::thread::sleep(LOCK_TICK);
        }
    }
}

/// The key of the door that `door.json` describes.
pub fn key_of(dir: &Path) -> Option<Key> {
    let text = config::read_bounded(&dir.join("door.json"), MAX_STATE_BYTES).ok()?;
    let string = |name: &str| match json::member(&text, name) {
        Ok(Some(Value::String(text))) => Some(text),
        _ => None,
    };
    let places = Places { run: dir.parent()?.parent()?.to_owned() };
    Some(places.key(&string("containerd")?, &string("namespace")?, &string("id")?))
}

/// Removes a sandbox's directory. What is below `shared/` are mount points: they are removed and never looked into.
pub fn remove_directory(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir.join("shared")).into_iter().flatten().flatten() {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let path = entry.path();
        ignore_missing(if is_directory { fs::remove_dir(path) } else { fs::remove_file(path) })?;
    }
    let mut rounds = 0;
    loop {
        let error = match fs::remove_dir_all(dir) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let is_shared = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTEMPTY));
        match dir.try_exists() {
            Ok(false) => return Ok(()),
            Ok(true) if is_shared && rounds < MAX_ROUNDS => rounds += 1,
            _ => return Err(error),
        }
    }
}

/// Removes a sandbox without processes: the key that leads to it and its directory.
pub fn forget(dir: &Path) -> io::Result<()> {
    if let Some(key) = key_of(dir) {
        key.release(dir)?;
    }
    remove_directory(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    fn places() -> (TempDir, Places) {
        let temp = TempDir::new();
        let places = Places { run: temp.path().to_owned() };
        for dir in [places.keys(), places.sandboxes().join("0123456789ab/shared/mounted")] {
            fs::create_dir_all(dir).unwrap();
        }
        (temp, places)
    }

    #[test]
    fn keys_differ_by_each_of_their_parts() {
        let (_temp, places) = places();
        let key = places.key("/run/c.sock", "ns", "a");
        for other in [("/run/d.sock", "ns", "a"), ("/run/c.sock", "n", "sa"), ("/run/c.sock", "ns", "b")] {
            assert_ne!(key.path(), places.key(other.0, other.1, other.2).path());
        }
        // printf '/run/c.sock\0ns\0a' | sha256sum
        assert!(key.path().ends_with("d4d93a1da460efa4e2ee898b7aecec1566955d1ea75716db1966865ea085a0b2"));
    }

    #[test]
    fn a_key_leads_to_one_sandbox_until_that_is_forgotten() {
        let (_temp, places) = places();
        let dir = places.sandboxes().join("0123456789ab");
        let key = places.key("c", "ns", "a");
        assert_eq!(places.find(&key).unwrap(), None);
        key.point("0123456789ab").unwrap();
        assert_eq!(key.point("ba9876543210").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(places.find(&key).unwrap(), Some(dir.clone()));
        key.release(&places.sandboxes().join("ba9876543210")).unwrap();
        assert!(!lives(&dir) && places.find(&key).unwrap().is_some());
        fs::write(dir.join("door.json"), r#"{"containerd":"c","namespace":"ns","id":"a"}"#).unwrap();
        forget(&dir).unwrap();
        assert!(!dir.exists() && places.find(&key).unwrap().is_none());
        forget(&dir).unwrap();
        symlink("/etc", key.path()).unwrap();
        assert_eq!(places.find(&key).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn removes_no_file_below_a_mount_point() {
        let (_temp, places) = places();
        let dir = places.sandboxes().join("0123456789ab");
        fs::write(dir.join("shared/mounted/volume-file"), "kept").unwrap();
        assert!(remove_directory(&dir).is_err());
        assert!(dir.join("shared/mounted/volume-file").exists());
    }

    #[test]
    fn a_directory_is_removed_also_when_others_take_its_lock_meanwhile() {
        let (_temp, places) = places();
        for round in 0..200 {
            let dir = places.sandboxes().join(format!("{round:012x}"));
            fs::create_dir_all(dir.join("shared")).unwrap();
            fs::write(dir.join("door.json"), "{}").unwrap();
            let remove = || {
                if Lock::take(&dir, Duration::from_secs(60)).unwrap().is_some() {
                    remove_directory(&dir).unwrap();
                }
            };
            std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(remove))));
            assert!(!dir.exists());
        }
    }

    #[test]
    fn a_lock_is_held_once_and_gone_with_its_directory() {
        let (_temp, places) = places();
        let dir = places.sandboxes().join("0123456789ab");
        let lock = Lock::take(&dir, Duration::ZERO).unwrap();
        assert!(lock.is_some());
        let refused = Lock::take(&dir, Duration::from_millis(20)).err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        drop(lock);
        assert!(Lock::take(&dir, Duration::ZERO).unwrap().is_some());
        fs::remove_dir_all(&dir).unwrap();
        assert!(Lock::take(&dir, Duration::ZERO).unwrap().is_none());
    }
}
