//! A container's mounts outlive its processes.
//!
//! A process that is killed while the kernel reads ahead for it leaves files of a share busy until the host has answered. Where
//! its death also takes away the last mount of a directory that is a file system of its own on the host (a submount, which
//! virtiofs makes on access), the kernel finds busy files in it and stops: its virtiofs waits for nothing there
//! (fs/fuse/virtio_fs.c, virtio_kill_sb). So the agent holds the namespace of a container's mounts until the container is
//! removed, has the host answer all that is under way, and lets go then.
use crate::log;
use std::fs::{self, File};
use std::io;
use tokio::sync::oneshot;

/// Of the thread that lets go: the end of a file system may wait for the host's disks, and the agent for nobody.
const STACK_BYTES: usize = 64 << 10;
/// A read that was under way, and the release of its file, which the kernel asks for after it.
const ROUNDS: usize = 2;

pub struct MountNamespace {
    /// Held open, never read.
    _descriptor: File,
}

impl MountNamespace {
    /// Of a process that is alive.
    pub fn of(pid: i32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/ns/mnt")).map(|_descriptor| Self { _descriptor })
    }

    /// Gives the namespace up. To be called when the container has no process any more.
    pub async fn release(self) {
        let (done, released) = oneshot::channel();
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            for _ in 0..ROUNDS {
                settle_shares();
            }
            drop(self);
            let _ = done.send(());
        });
        match thread {
            Ok(_) => drop(released.await),
            Err(error) => log::warning!("storage", "mounts of a container end without a look at its shares: {error}"),
        }
    }
}

/// The host answers in the order in which it is asked, and what a share's file system holds is never known here.
fn settle_shares() {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for path in shares(&table) {
        if let Err(error) = rustix::fs::statfs(path) {
            log::warning!("storage", "{path}: {error}");
        }
    }
}

/// Where virtiofs is mounted (proc(5), mountinfo). The agent's mount points have no character that would be escaped.
fn shares(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter(|line| line.contains(" - virtiofs ")).filter_map(|line| line.split(' ').nth(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_found_by_their_type() {
        let table = "22 28 0:20 / /proc rw,relatime - proc proc rw\n\
            31 28 0:28 / /run/shared rw,relatime - virtiofs kataShared rw\n\
            32 31 0:29 / /run/shared/c/rootfs rw,relatime shared:1 - virtiofs kataShared rw\n\
            33 28 0:30 / /run/virtiofs rw - tmpfs - virtiofs\n";
        assert_eq!(shares(table).collect::<Vec<_>>(), ["/run/shared", "/run/shared/c/rootfs"]);
    }

    #[test]
    fn a_namespace_is_held_and_given_up() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("epoll works");
        let held = MountNamespace::of(std::process::id() as i32).expect("this process is alive");
        runtime.block_on(held.release());
        assert!(MountNamespace::of(i32::MAX).is_err());
    }
}
