//! A container's control group (cgroup v2, Documentation/admin-guide/cgroup-v2.rst).
mod devices;
mod limits;
mod stats;

use crate::error::{ContainerError, Result, Step};
use crate::sys::{self, check, open_at, read_bounded, write_once};
use kata_protocol::grpc;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FILE_LIMIT_BYTES: usize = 1 << 20;
/// Groups and depth that a container can make below its own: what destroy has to walk stays bounded.
const DESCENDANT_LIMIT: &str = "1024";
const DEPTH_LIMIT: &str = "32";
const PID_LIMIT: usize = 1 << 20;

pub(crate) struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
    /// The device filter that is attached; a later one replaces it.
    device_filter: Option<OwnedFd>,
}

fn failure(path: impl AsRef<Path>, errno: i32, what: &str) -> ContainerError {
    ContainerError::new(Step::Cgroup, errno, path.as_ref().to_string_lossy(), what)
}

/// An id becomes the name of a directory: one component, of the characters that container ids have.
fn valid_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 255
        && !id.starts_with('.')
        && !id.starts_with("cgroup.")
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

impl Cgroup {
    /// Makes `<parent>/<id>` with every controller that the parent has. EEXIST when it is there.
    pub(crate) fn create(parent: &Path, id: &str) -> Result<Self> {
        if !valid_id(id) {
            return Err(failure(id, libc::EINVAL, "no id of a container:"));
        }
        match fs::create_dir(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failure(parent, sys::errno_of(&error), "make"))
            }
            _ => enable_controllers(parent)?,
        }
        let path = parent.join(id);
        fs::create_dir(&path).map_err(|error| failure(&path, sys::errno_of(&error), "make"))?;
        let directory = sys::open(&path.to_string_lossy(), libc::O_RDONLY | libc::O_DIRECTORY)
            .map_err(|errno| failure(&path, errno, "open"))?;
        let group = Self { path, directory, device_filter: None };
        group.write("cgroup.max.descendants", DESCENDANT_LIMIT)?;
        group.write("cgroup.max.depth", DEPTH_LIMIT)?;
        Ok(group)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        self.try_write(file, value).map_err(|errno| {
            let hint = if errno == libc::ENOENT { " (the guest has no such controller)" } else { "" };
            failure(self.path.join(file), errno, &format!("write {value:?}{hint} to"))
        })
    }

    fn try_write(&self, file: &str, value: &str) -> std::result::Result<(), i32> {
        write_once(open_at(self.directory(), file, libc::O_WRONLY, 0)?.as_fd(), value.as_bytes())
    }

    /// Content of a file of the group; None when there is none (a controller that is off).
    fn read(&self, file: &str) -> Option<String> {
        let content = read_bounded(open_at(self.directory(), file, libc::O_RDONLY, 0).ok()?, FILE_LIMIT_BYTES).ok()?;
        String::from_utf8(content).ok()
    }

    pub(crate) fn apply(&self, resources: &grpc::LinuxResources) -> Result<()> {
        limits::apply(self, resources)
    }

    /// Whether the kernel's OOM killer takes all processes of the group at once.
    pub(crate) fn set_oom_group(&self) -> Result<()> {
        self.write("memory.oom.group", "1")
    }

    /// Restricts the devices that processes of the group may make and open. `own` are those of the spec.
    pub(crate) fn restrict_devices(
        &mut self,
        rules: &[grpc::LinuxDeviceCgroup],
        own: &[grpc::LinuxDevice],
    ) -> Result<()> {
        let filter = devices::Filter::new(rules, own)?;
        if filter.allows_all() && self.device_filter.is_none() {
            return Ok(());
        }
        self.device_filter = Some(filter.attach(self.directory(), self.device_filter.as_ref().map(AsFd::as_fd))?);
        Ok(())
    }

    /// ENODEV when the group is gone.
    pub(crate) fn stats(&self) -> Result<grpc::CgroupStats> {
        if !self.path.exists() {
            return Err(failure(&self.path, libc::ENODEV, "no usage without"));
        }
        Ok(stats::collect(self))
    }

    /// A number of a file of `name number` lines, 0 when it is missing.
    fn keyed(&self, file: &str, key: &str) -> u64 {
        let content = self.read(file).unwrap_or_default();
        let value = content.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == key);
        value.and_then(|(_, number)| number.trim().parse().ok()).unwrap_or(0)
    }

    pub(crate) fn oom_kills(&self) -> u64 {
        self.keyed("memory.events", "oom_kill")
    }

    pub(crate) fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Stops or continues every process; done when the kernel says that all are. ETIMEDOUT when it does not say so in time.
    pub(crate) fn freeze(&self, frozen: bool, timeout: Duration) -> Result<()> {
        let value = if frozen { "1" } else { "0" };
        self.write("cgroup.freeze", value)?;
        let wanted = u64::from(frozen);
        if self.wait_event("frozen", wanted, timeout)? {
            return Ok(());
        }
        Err(failure(&self.path, libc::ETIMEDOUT, if frozen { "freeze" } else { "thaw" }))
    }

    /// Waits until `cgroup.events` has the value; the kernel signals each change with POLLPRI.
    fn wait_event(&self, key: &str, wanted: u64, timeout: Duration) -> Result<bool> {
        let events = open_at(self.directory(), "cgroup.events", libc::O_RDONLY, 0)
            .map_err(|errno| failure(&self.path, errno, "watch"))?;
        let deadline = Instant::now() + timeout;
        loop {
            // Reading through the watched descriptor arms the next notification.
            let mut buffer = [0_u8; 256];
            // SAFETY: the buffer is as long as said.
            let read = unsafe { libc::pread(events.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let length =
                check(read as libc::c_long).map_err(|errno| failure(&self.path, errno, "read cgroup.events of"))?;
            let text = String::from_utf8_lossy(&buffer[..length as usize]).into_owned();
            let value = text.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == key);
            if value.is_some_and(|(_, number)| number.parse() == Ok(wanted)) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut poll = libc::pollfd { fd: events.as_raw_fd(), events: libc::POLLPRI, revents: 0 };
            // SAFETY: one structure, as said; a signal or timeout just leads to another look.
            unsafe { libc::poll(&raw mut poll, 1, left.as_millis().clamp(1, 60_000) as i32) };
        }
    }

    /// Groups of this one and below, parents first.
    fn tree(&self) -> Vec<PathBuf> {
        let mut groups = vec![self.path.clone()];
        let mut next = 0;
        while let Some(path) = groups.get(next).cloned() {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            groups.extend(
                entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
            );
            next += 1;
        }
        groups
    }

    /// Every process of the group and of those below it.
    pub(crate) fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for group in self.tree() {
            let content = match fs::read_to_string(group.join("cgroup.procs")) {
                Ok(content) => content,
                // A group of the container's own may go at any time.
                Err(_) if group != self.path => continue,
                Err(error) => return Err(failure(&group, sys::errno_of(&error), "read the processes of")),
            };
            // 0 stands for a process of another pid namespace.
            pids.extend(content.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 0));
            if pids.len() > PID_LIMIT {
                break;
            }
        }
        Ok(pids)
    }

    /// The group that a process is in: a container may have moved its processes into groups that it made itself.
    pub(crate) fn of_process(&self, pid: i32) -> std::result::Result<OwnedFd, i32> {
        let content = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|error| sys::errno_of(&error))?;
        let relative = content.lines().find_map(|line| line.strip_prefix("0::")).ok_or(libc::ESRCH)?;
        // The path counts from the hierarchy's root; the part below this group is what matters.
        let own = self.path.file_name().and_then(|name| name.to_str()).ok_or(libc::EINVAL)?;
        let (_, below) = relative.split_once(&format!("/{own}/")).ok_or(libc::ESRCH)?;
        open_at(self.directory(), below, libc::O_RDONLY | libc::O_DIRECTORY, 0)
    }

    /// Kills what is left and removes the group with those below. EBUSY: processes are still there after `timeout`.
    pub(crate) fn remove(&self, timeout: Duration) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        self.kill()?;
        // Frozen processes die too, but only a thawed group is certain to let everything end.
        let _ = self.write("cgroup.freeze", "0");
        if !self.wait_event("populated", 0, timeout)? {
            return Err(failure(&self.path, libc::EBUSY, "processes are still in"));
        }
        for path in self.tree().iter().rev() {
            match fs::remove_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failure(path, sys::errno_of(&error), "remove"))
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Hands every controller of the group to the groups below it.
fn enable_controllers(group: &Path) -> Result<()> {
    let read = |file: &str| {
        fs::read_to_string(group.join(file)).map_err(|error| failure(group.join(file), sys::errno_of(&error), "read"))
    };
    let enabled = read("cgroup.subtree_control")?;
    let missing: Vec<String> = read("cgroup.controllers")?
        .split_ascii_whitespace()
        .filter(|name| !enabled.split_ascii_whitespace().any(|other| other == *name))
        .map(|name| format!("+{name}"))
        .collect();
    let control = group.join("cgroup.subtree_control");
    if missing.is_empty() || fs::write(&control, missing.join(" ")).is_ok() {
        return Ok(());
    }
    for controller in missing {
        // One that cannot be handed on is missed where a limit asks for it.
        let _ = fs::write(&control, controller);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_component() {
        for id in ["a", "web-1", "0f3c.b_2"] {
            assert!(valid_id(id), "{id}");
        }
        for id in ["", ".", "..", "a/b", "../x", "cgroup.kill", ".hidden", "a b", "a\n", "ä", &"x".repeat(256)] {
            assert!(!valid_id(id), "{id}");
        }
    }
}
