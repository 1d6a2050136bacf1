//! Storages: file systems that the host asks the agent to mount for the sandbox or for a container.
//!
//! A storage is known by its mount point and counted: the second user shares the first one's mount, the last one to go
//! unmounts it. The table is never borrowed across an await; while a mount is being made its place is taken, and a
//! second request for the same mount point waits for the first one's outcome.
mod mounting;

use crate::device::DeviceRoots;
use crate::failure::{internal, invalid, Result};
use crate::log;
use crate::uevent::Uevents;
use kata_protocol::grpc::Storage;
use kata_protocol::ttrpc::{status, Code};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

use mounting::remount_ephemeral;

/// Names of `GetGuestDetails.storage_handlers`.
pub const DRIVERS: [&str; 10] =
    ["blk", "mmioblk", "nvdimm", "virtio-fs", "9p", "ephemeral", "local", "bind", "watchable-bind", "overlayfs"];
/// A host's mistake must not eat the guest: far above what a sandbox of many containers with many layers needs.
const MAX_STORAGES: usize = 4096;

/// What mounting needs to reach.
pub struct Surroundings {
    pub roots: DeviceRoots,
    pub uevents: Rc<Uevents>,
    pub hotplug_timeout: Duration,
    pub reaper: Rc<crate::reaper::Reaper>,
}

struct Entry {
    users: u32,
    ready: bool,
    /// Stays until the sandbox ends whoever uses it.
    shared: bool,
    /// False for a plain directory (driver `local`).
    mounted: bool,
    driver: String,
}

pub struct Storages {
    entries: RefCell<BTreeMap<String, Entry>>,
    changed: Notify,
    surroundings: Surroundings,
}

enum Place {
    Joined,
    Mine,
    Wait,
}

impl Storages {
    pub fn new(surroundings: Surroundings) -> Self {
        Self { entries: RefCell::default(), changed: Notify::new(), surroundings }
    }

    pub fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// Makes storages in order and gives their mount points. When one fails, those of this call are released again.
    pub async fn add_all(&self, storages: &[Storage]) -> Result<Vec<String>> {
        let mut made = Vec::with_capacity(storages.len());
        for storage in storages {
            match self.add(storage).await {
                Ok(mount_point) => made.push(mount_point),
                Err(error) => {
                    self.release_all(&made);
                    return Err(error);
                }
            }
        }
        Ok(made)
    }

    async fn add(&self, storage: &Storage) -> Result<String> {
        let mount_point = checked_mount_point(&storage.mount_point)?;
        loop {
            let changed = self.changed.notified();
            match self.take_place(&mount_point, storage)? {
                Place::Joined => return Ok(mount_point),
                Place::Mine => break,
                Place::Wait => changed.await,
            }
        }
        // The call runs to its end even when the caller is gone (the service spawns it), so the place is always freed.
        let began = Instant::now();
        let outcome = mounting::mount(storage, &mount_point, &self.surroundings).await;
        log::debug!("storage", "{} at {mount_point}: {} us", storage.driver, began.elapsed().as_micros());
        let mut entries = self.entries.borrow_mut();
        match &outcome {
            Ok(mounted) => {
                if let Some(entry) = entries.get_mut(&mount_point) {
                    entry.ready = true;
                    entry.mounted = *mounted;
                }
            }
            Err(_) => {
                entries.remove(&mount_point);
            }
        }
        drop(entries);
        self.changed.notify_waiters();
        outcome.map(|_| mount_point)
    }

    fn take_place(&self, mount_point: &str, storage: &Storage) -> Result<Place> {
        let mut entries = self.entries.borrow_mut();
        if let Some(entry) = entries.get_mut(mount_point) {
            if !entry.ready {
                return Ok(Place::Wait);
            }
            if entry.driver != storage.driver {
                let text = format!("storage: {mount_point} is in use by driver {:?}", entry.driver);
                return Err(status(Code::AlreadyExists, text));
            }
            entry.users += 1;
            return Ok(Place::Joined);
        }
        if entries.len() >= MAX_STORAGES {
            return Err(status(Code::ResourceExhausted, format!("storage: {MAX_STORAGES} are in use")));
        }
        let driver = storage.driver.clone();
        entries.insert(
            mount_point.to_owned(),
            Entry { users: 1, ready: false, shared: storage.shared, mounted: false, driver },
        );
        Ok(Place::Mine)
    }

    /// Gives up one use of each, in reverse order; what nobody uses any more is unmounted.
    pub fn release_all(&self, mount_points: &[String]) {
        for mount_point in mount_points.iter().rev() {
            self.release(mount_point);
        }
    }

    fn release(&self, mount_point: &str) {
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.get_mut(mount_point) else { return };
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 || entry.shared {
            return;
        }
        let mounted = entry.mounted;
        entries.remove(mount_point);
        drop(entries);
        dismantle(mount_point, mounted);
    }

    /// Unmounts everything, in reverse order of the names so that what is below another goes first.
    pub fn release_everything(&self) {
        for (mount_point, entry) in std::mem::take(&mut *self.entries.borrow_mut()).into_iter().rev() {
            dismantle(&mount_point, entry.mounted);
        }
    }

    /// Changes the options of an ephemeral storage in use. Errors: NOT_FOUND, INVALID_ARGUMENT.
    pub fn update_ephemeral(&self, storage: &Storage) -> Result<()> {
        let mount_point = checked_mount_point(&storage.mount_point)?;
        match self.entries.borrow().get(&mount_point) {
            None => return Err(crate::failure::not_found(format!("storage: {mount_point} is not in use"))),
            Some(entry) if entry.driver != "ephemeral" || storage.driver != "ephemeral" => {
                return Err(invalid(format!("storage: {mount_point} is not ephemeral")));
            }
            Some(_) => {}
        }
        remount_ephemeral(storage, &mount_point)
    }
}

fn dismantle(mount_point: &str, mounted: bool) {
    let path = Path::new(mount_point);
    if mounted {
        if let Err(error) = unmount(path) {
            return log::warning!("storage", "unmount {mount_point}: {error}");
        }
    }
    // Only ever the empty directory of the mount point: data below a plain directory is the sandbox's.
    let _ = std::fs::remove_dir(path);
}

/// Unmounts; a file system that is still in use is detached and goes when its last user does.
pub fn unmount(path: &Path) -> rustix::io::Result<()> {
    use rustix::mount::{unmount, UnmountFlags};
    match unmount(path, UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::BUSY) => unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW),
        Err(rustix::io::Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// Absolute, without `..`, not the root; trailing slashes do not make a different mount point.
fn checked_mount_point(text: &str) -> Result<String> {
    let path = Path::new(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path.parent().is_none() || text.contains('\0') {
        return Err(invalid(format!("storage: mount point {text:?} is not an absolute path without \"..\"")));
    }
    let clean: std::path::PathBuf = path.components().collect();
    clean.into_os_string().into_string().map_err(|_| internal("storage: mount point is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{run, TempDir};

    fn storages() -> Storages {
        Storages::new(Surroundings {
            roots: DeviceRoots::default(),
            uevents: Rc::new(Uevents::default()),
            hotplug_timeout: Duration::from_millis(10),
            reaper: Rc::default(),
        })
    }

    fn local(path: &Path) -> Storage {
        Storage {
            driver: "local".into(),
            mount_point: path.to_str().unwrap().into(),
            options: vec!["mode=0701".into()],
            ..Default::default()
        }
    }

    #[test]
    fn mount_points_are_checked_and_cleaned() {
        assert_eq!(checked_mount_point("/run//x/./y/").unwrap(), "/run/x/y");
        for bad in ["", "/", "run/x", "/run/../etc", "/a\0b", ".."] {
            assert!(checked_mount_point(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn storages_are_counted_and_failures_release_what_was_made() {
        run(async {
            let dir = TempDir::new();
            let storages = storages();
            let first = local(&dir.path().join("a/b"));
            let twice = [first.clone(), first.clone()];
            let used = storages.add_all(&twice).await.unwrap();
            storages.release_all(&used[..1]);
            assert!(dir.path().join("a/b").is_dir());
            let unknown = Storage { driver: "nope".into(), ..local(&dir.path().join("c")) };
            let error = storages.add_all(&[first.clone(), unknown]).await.unwrap_err();
            assert!(error.message.contains("nope"), "{}", error.message);
            storages.release_all(&used[..1]);
            assert!(!dir.path().join("a/b").exists());
            assert!(storages.entries.borrow().is_empty());
        });
    }

    #[test]
    fn a_shared_storage_stays_until_the_sandbox_ends() {
        run(async {
            let dir = TempDir::new();
            let storages = storages();
            let shared = Storage { shared: true, ..local(&dir.path().join("s")) };
            let used = storages.add_all(&[shared]).await.unwrap();
            storages.release_all(&used);
            assert!(dir.path().join("s").is_dir());
            storages.release_everything();
            assert!(!dir.path().join("s").exists());
        });
    }

    #[test]
    fn a_disk_that_never_comes_is_named() {
        run(async {
            let dir = TempDir::new();
            let disk = Storage {
                driver: "blk".into(),
                source: "1e/1f".into(),
                fstype: "erofs".into(),
                ..local(&dir.path().join("d"))
            };
            let error = storages().add_all(&[disk]).await.unwrap_err();
            assert_eq!(error.code, Code::DeadlineExceeded as i32);
            assert!(error.message.contains("1e/1f"));
        });
    }
}
