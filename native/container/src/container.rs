//! A container and its processes, as their owner sees them.
use crate::error::Result;
use crate::launch::Pending;
use kata_protocol::grpc;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a process's standard streams go.
pub enum Stdio {
    /// standard input, output, error; closed in the caller when the call returns.
    Streams([OwnedFd; 3]),
    /// A pseudo terminal of the container's own devpts; `Process::master` is its other side.
    Terminal,
}

pub struct CreateParams {
    pub id: String,
    /// Directory that becomes the container's root.
    pub rootfs: PathBuf,
    pub spec: grpc::Spec,
    /// Who runs the process by name, resolved in the container's own /etc/passwd; wins over `spec.process.user`.
    pub string_user: Option<grpc::StringUser>,
    /// cgroup v2 directory in which the container's cgroup `<id>` is made.
    pub cgroup_parent: PathBuf,
    /// Whether the kernel ends every process of the container when its memory is used up (memory.oom.group).
    pub oom_group: bool,
    pub stdio: Stdio,
}

pub struct Process {
    /// In the caller's pid namespace.
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Master side of the terminal; take it.
    pub master: Option<OwnedFd>,
}

impl Process {
    /// ESRCH when it has ended.
    pub fn signal(&self, _signal: i32) -> Result<()> {
        todo!()
    }
}

pub struct Container {
    /// The first process.
    pub init: Process,
}

impl Container {
    /// Makes the container's first process, which sets everything up and then waits for `start`.
    pub fn create(params: CreateParams) -> Result<Pending<Self>> {
        let _ = params;
        todo!()
    }

    /// Lets the first process execute its command; done when it has, an error when it could not.
    pub fn start(&mut self) -> Result<Pending<()>> {
        todo!()
    }

    /// Runs one more process in the container.
    pub fn exec(&self, _process: &grpc::Process, _string_user: Option<&grpc::StringUser>, _stdio: Stdio) -> Result<Pending<Process>> {
        todo!()
    }

    /// SIGKILL to every process of the cgroup.
    pub fn kill_all(&self) -> Result<()> {
        todo!()
    }

    pub fn pause(&mut self, _timeout: Duration) -> Result<()> {
        todo!()
    }

    pub fn resume(&mut self, _timeout: Duration) -> Result<()> {
        todo!()
    }

    pub fn update(&mut self, _resources: &grpc::LinuxResources) -> Result<()> {
        todo!()
    }

    pub fn stats(&self) -> Result<grpc::CgroupStats> {
        todo!()
    }

    /// Every process of the container, in the caller's pid namespace.
    pub fn pids(&self) -> Result<Vec<i32>> {
        todo!()
    }

    /// How often the kernel's OOM killer ended a process of this container.
    pub fn oom_kills(&self) -> u64 {
        todo!()
    }

    /// The file whose POLLPRI says that `oom_kills` may have changed.
    pub fn memory_events(&self) -> PathBuf {
        todo!()
    }

    pub fn cgroup(&self) -> &Path {
        todo!()
    }

    /// Kills what is left and removes the cgroup; EBUSY when processes are still there after `timeout`: call again.
    pub fn destroy(&mut self, _timeout: Duration) -> Result<()> {
        todo!()
    }
}
