//! The container's first process: makes the container around itself.
use super::finish::{finish, Finish, Io};
use super::{
    become_namespace_root, close_others, join_keyring, namespace_failure, new_session, raise_streams, set_oom_score,
    terminal, Streams,
};
use crate::error::{ContainerError, Result, Step};
use crate::launch::Channel;
use crate::namespaces::{self, Namespaces};
use crate::rootfs::{Rootfs, PROC_MAGIC};
use crate::sys::process::{set_ns, unshare};
use crate::sys::{self, check, fs_magic};
use crate::sysctl;
use kata_protocol::grpc;
use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub(crate) struct InitPlan<'a> {
    pub id: &'a str,
    pub rootfs: &'a Path,
    pub spec: &'a grpc::Spec,
    pub linux: &'a grpc::Linux,
    pub namespaces: &'a Namespaces,
    /// None: a terminal.
    pub streams: Option<Streams>,
    pub finish: Finish<'a>,
}

impl InitPlan<'_> {
    pub(crate) fn run(mut self, channel: &Channel) -> Result<Infallible> {
        // SAFETY: takes a number. Modes are said in full until the command gets its own umask.
        unsafe { libc::umask(0) };
        let streams = self.streams.take().map(raise_streams).transpose()?;
        let mut keep: Vec<i32> = streams.iter().flatten().map(AsRawFd::as_raw_fd).collect();
        keep.push(channel.socket().as_raw_fd());
        keep.extend(self.namespaces.joined.iter().map(|(_, fd)| fd.as_raw_fd()));
        close_others(&keep)?;
        new_session()?;
        let proc_dir = guest_proc()?;
        set_oom_score(proc_dir.as_fd(), self.finish.process.oom_score_adj)?;
        if self.namespaces.has(namespaces::USER) {
            channel.wait_for_go();
            become_namespace_root()?;
        }
        self.enter_namespaces()?;
        join_keyring(self.id);
        let terminal = if self.namespaces.has_joined(namespaces::MOUNT) {
            None
        } else {
            self.build(proc_dir.as_fd(), streams.is_none())?
        };
        drop(proc_dir);
        let io = match terminal {
            Some((master, slave)) => Io::Terminal { master, slave },
            // In somebody else's mount namespace the devpts is there already.
            None => Io::of(streams, self.finish.process)?,
        };
        finish(self.finish, io, channel, true)
    }

    fn enter_namespaces(&self) -> Result<()> {
        // Mounts last: until then the guest's files are at hand.
        let (mounts, others): (Vec<_>, Vec<_>) =
            self.namespaces.joined.iter().partition(|(flag, _)| *flag == namespaces::MOUNT);
        for (flag, namespace) in others.into_iter().chain(mounts) {
            set_ns(namespace.as_fd(), *flag)
                .map_err(|errno| namespace_failure(errno, "join a namespace given by path"))?;
        }
        if self.namespaces.new_cgroup {
            unshare(namespaces::CGROUP).map_err(|errno| namespace_failure(errno, "make the cgroup namespace"))?;
        }
        if self.spec.hostname.is_empty() || !self.namespaces.has(namespaces::UTS) {
            return Ok(());
        }
        let name = self.spec.hostname.as_bytes();
        // SAFETY: the name is as long as said.
        check(libc::c_long::from(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }))
            .map(drop)
            .map_err(|errno| ContainerError::new(Step::Namespace, errno, &self.spec.hostname, "set the host name"))
    }

    /// The file system and what is written into it; leaves the guest's. Returns the terminal when one is wanted.
    fn build(&self, proc_dir: BorrowedFd<'_>, want_terminal: bool) -> Result<Option<(OwnedFd, OwnedFd)>> {
        let rootfs = Rootfs::open(self.rootfs, self.spec, self.linux)?;
        rootfs.populate(proc_dir, self.namespaces.has(namespaces::USER))?;
        let scope =
            sysctl::Scope { ipc: self.namespaces.has(namespaces::IPC), uts: self.namespaces.has(namespaces::UTS) };
        sysctl::apply(proc_dir, &self.linux.sysctl, scope)?;
        let terminal = match want_terminal {
            true => {
                let (master, slave) = terminal::open(rootfs.root(), self.finish.process.console_size.as_ref())?;
                rootfs.bind_console(slave.as_fd())?;
                Some((master, slave))
            }
            false => None,
        };
        rootfs.protect()?;
        rootfs.enter()?;
        Ok(terminal)
    }
}

/// The guest's /proc, certain to be one: what is written through it decides over the container.
pub(super) fn guest_proc() -> Result<OwnedFd> {
    let failure = |errno| ContainerError::new(Step::Rootfs, errno, "/proc", "the guest's procfs");
    let opened = sys::open("/proc", libc::O_PATH | libc::O_DIRECTORY).map_err(failure)?;
    match fs_magic(opened.as_fd()) {
        Ok(PROC_MAGIC) => Ok(opened),
        Ok(_) => Err(failure(libc::ENODEV)),
        Err(errno) => Err(failure(errno)),
    }
}
