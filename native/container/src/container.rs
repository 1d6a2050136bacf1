//! A container and its processes, as their owner sees them.
use crate::caps::Sets;
use crate::cgroup::Cgroup;
use crate::child::{ExecPlan, Finish, InitPlan};
use crate::error::{ContainerError, Result, Step};
use crate::launch::{go, launch, Finished, Goal, Pending};
use crate::namespaces::{self, Namespaces};
use crate::seccomp::Program;
use crate::sys::process::pidfd_signal;
use kata_protocol::grpc;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the cgroup of a container that could not be made is waited for; its one process is dying.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(500);

/// Where a process's standard streams go.
pub enum Stdio {
    /// standard input, output, error; closed in the caller when the call returns.
    Streams([OwnedFd; 3]),
    /// A pseudo terminal of the container's own devpts; `Process::master` is its other side.
    Terminal,
}

impl Stdio {
    fn into_streams(self) -> Option<[OwnedFd; 3]> {
        match self {
            Self::Streams(streams) => Some(streams),
            Self::Terminal => None,
        }
    }
}

pub struct CreateParams {
    /// Letters, digits, `_`, `.` and `-`; becomes the name of a cgroup.
    pub id: String,
    /// Directory that becomes the container's root.
    pub rootfs: PathBuf,
    pub spec: grpc::Spec,
    /// Who runs the process by name, resolved in the container's own /etc/passwd; wins over `spec.process.user`.
    pub string_user: Option<grpc::StringUser>,
    /// cgroup v2 directory in which the container's cgroup `<id>` is made; made if missing.
    pub cgroup_parent: PathBuf,
    /// Whether the kernel ends every process of the container when its memory is used up (memory.oom.group).
    pub oom_group: bool,
    pub stdio: Stdio,
}

pub struct Process {
    /// In the caller's pid namespace.
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Master side of the terminal, non-blocking; take it.
    pub master: Option<OwnedFd>,
}

impl Process {
    fn of(pid: i32, finished: Finished) -> Result<(Self, OwnedFd)> {
        let pidfd = finished
            .pidfd
            .ok_or_else(|| ContainerError::new(Step::Namespace, libc::EBADF, "", "the process has no descriptor"))?;
        Ok((Self { pid, pidfd, master: finished.master }, finished.socket))
    }

    /// ESRCH when it has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        pidfd_signal(self.pidfd.as_fd(), signal)
            .map_err(|errno| ContainerError::new(Step::Namespace, errno, signal.to_string(), "send signal"))
    }
}

pub struct Container {
    /// The first process.
    pub init: Process,
    id: String,
    cgroup: Cgroup,
    /// To the first process, until it is started.
    waiting: Option<OwnedFd>,
    namespaces: u64,
    capabilities: Sets,
    seccomp: Option<Program>,
    devices: Vec<grpc::LinuxDevice>,
    paused: bool,
}

/// A cgroup that nobody owns yet: removed when its container does not come to be.
struct Provisional(Option<Cgroup>);

impl Provisional {
    fn get(&mut self) -> Result<&mut Cgroup> {
        self.0.as_mut().ok_or_else(|| ContainerError::new(Step::Cgroup, libc::ENODEV, "", "the cgroup is gone"))
    }

    fn keep(mut self) -> Result<Cgroup> {
        self.0.take().ok_or_else(|| ContainerError::new(Step::Cgroup, libc::ENODEV, "", "the cgroup is gone"))
    }
}

impl Drop for Provisional {
    fn drop(&mut self) {
        if let Some(cgroup) = self.0.take() {
            // Best effort: whoever makes the container again is told that the cgroup exists.
            let _ = cgroup.remove(DISCARD_TIMEOUT);
        }
    }
}

impl Container {
    /// Makes the container's first process, which sets everything up, finds its command and then waits for `start`.
    pub fn create(params: CreateParams) -> Result<Pending<Self>> {
        let CreateParams { id, rootfs, spec, string_user, cgroup_parent, oom_group, stdio } = params;
        let no_linux = grpc::Linux::default();
        let linux = spec.linux.as_ref().unwrap_or(&no_linux);
        let process = spec
            .process
            .as_ref()
            .ok_or_else(|| ContainerError::invalid(Step::Lookup, "", "the spec has no process"))?;
        let namespaces = Namespaces::parse(&linux.namespaces)?;
        let capabilities = Sets::parse(process.capabilities.as_ref())?;
        let seccomp = linux.seccomp.as_ref().map(Program::compile).transpose()?;
        let mut cgroup = Provisional(Some(Cgroup::create(&cgroup_parent, &id)?));
        let group = cgroup.get()?;
        if let Some(resources) = &linux.resources {
            group.apply(resources)?;
        }
        if oom_group {
            group.set_oom_group()?;
        }
        let plan = InitPlan {
            id: &id,
            rootfs: &rootfs,
            spec: &spec,
            linux,
            namespaces: &namespaces,
            streams: stdio.into_streams(),
            finish: Finish { process, string_user: string_user.as_ref(), capabilities, seccomp: seccomp.as_ref() },
        };
        let joined_pid = namespaces.joined_pid.as_ref().map(AsFd::as_fd);
        let launched = launch(namespaces.new, joined_pid, Some(group.directory()), |channel| plan.run(channel))?;
        if namespaces.has(namespaces::USER) {
            let mapped = namespaces::write_mappings(launched.pid, linux)
                .and_then(|()| namespaces::set_oom_score(launched.pid, process.oom_score_adj))
                .and_then(|()| release(&launched.socket));
            if let Err(error) = mapped {
                let _ = pidfd_signal(launched.pidfd.as_fd(), libc::SIGKILL);
                return Err(error);
            }
        }
        let rules = linux.resources.as_ref().map_or_else(Vec::new, |resources| resources.devices.clone());
        let devices = linux.devices.clone();
        let (entered, pid) = (namespaces.all(), launched.pid);
        let finish = move |finished: Finished| {
            let mut cgroup = cgroup;
            // Only now: setting up may mount block devices that the command must not open.
            cgroup.get()?.restrict_devices(&rules, &devices)?;
            let (init, waiting) = Process::of(pid, finished)?;
            Ok(Self {
                init,
                id,
                cgroup: cgroup.keep()?,
                waiting: Some(waiting),
                namespaces: entered,
                capabilities,
                seccomp,
                devices,
                paused: false,
            })
        };
        Ok(Pending::new(launched, Goal::Ready, Box::new(finish)))
    }

    /// Lets the first process execute its command; done when it has, an error when it could not. EALREADY a second time.
    pub fn start(&mut self) -> Result<Pending<()>> {
        self.refuse_paused()?;
        let socket = self
            .waiting
            .take()
            .ok_or_else(|| ContainerError::new(Step::Exec, libc::EALREADY, &self.id, "started before:"))?;
        release(&socket)?;
        Ok(Pending::of_existing(self.init.pid, socket, Box::new(|_| Ok(()))))
    }

    /// Runs one more process in the container. Without capabilities of its own it gets those of the first process.
    pub fn exec(
        &self,
        process: &grpc::Process,
        string_user: Option<&grpc::StringUser>,
        stdio: Stdio,
    ) -> Result<Pending<Process>> {
        self.refuse_paused()?;
        if self.waiting.is_some() {
            return Err(ContainerError::new(Step::Exec, libc::EAGAIN, &self.id, "not started yet:"));
        }
        let capabilities = match &process.capabilities {
            Some(own) => Sets::parse(Some(own))?,
            None => self.capabilities,
        };
        let mut streams = stdio.into_streams();
        let init = self.init.pidfd.as_fd();
        let pid_namespace = (self.namespaces & namespaces::PID != 0).then_some(init);
        let attempt = |cgroup| {
            let streams = streams.as_ref().map(duplicate).transpose()?;
            let plan = ExecPlan {
                id: &self.id,
                init,
                namespaces: self.namespaces,
                streams,
                finish: Finish { process, string_user, capabilities, seccomp: self.seccomp.as_ref() },
            };
            launch(0, pid_namespace, Some(cgroup), |channel| plan.run(channel))
        };
        let launched = match attempt(self.cgroup.directory()) {
            // A container that manages cgroups itself has moved its processes out of this one.
            Err(error) if error.errno == libc::EBUSY => match self.cgroup.of_process(self.init.pid) {
                Ok(group) => attempt(group.as_fd())?,
                Err(_) => return Err(error),
            },
            launched => launched?,
        };
        streams.take();
        let pid = launched.pid;
        Ok(Pending::new(
            launched,
            Goal::Exec,
            Box::new(move |finished| Process::of(pid, finished).map(|(process, _)| process)),
        ))
    }

    /// A process cannot be made in a frozen cgroup: it would wait without end.
    fn refuse_paused(&self) -> Result<()> {
        if self.paused {
            return Err(ContainerError::new(Step::Cgroup, libc::EAGAIN, &self.id, "the container is paused:"));
        }
        Ok(())
    }

    /// SIGKILL to every process of the cgroup.
    pub fn kill_all(&self) -> Result<()> {
        self.cgroup.kill()
    }

    /// ETIMEDOUT when not every process has stopped in time; they are then thawed again.
    pub fn pause(&mut self, timeout: Duration) -> Result<()> {
        if let Err(error) = self.cgroup.freeze(true, timeout) {
            let _ = self.cgroup.freeze(false, Duration::ZERO);
            return Err(error);
        }
        self.paused = true;
        Ok(())
    }

    pub fn resume(&mut self, timeout: Duration) -> Result<()> {
        self.cgroup.freeze(false, timeout)?;
        self.paused = false;
        Ok(())
    }

    /// Changes limits; device rules, when there are any, replace those that hold.
    pub fn update(&mut self, resources: &grpc::LinuxResources) -> Result<()> {
        self.cgroup.apply(resources)?;
        if resources.devices.is_empty() {
            return Ok(());
        }
        self.cgroup.restrict_devices(&resources.devices, &self.devices)
    }

    pub fn stats(&self) -> Result<grpc::CgroupStats> {
        self.cgroup.stats()
    }

    /// Every process of the container, in the caller's pid namespace.
    pub fn pids(&self) -> Result<Vec<i32>> {
        self.cgroup.pids()
    }

    /// How often the kernel's OOM killer ended a process of this container.
    pub fn oom_kills(&self) -> u64 {
        self.cgroup.oom_kills()
    }

    /// The file whose POLLPRI says that `oom_kills` may have changed.
    pub fn memory_events(&self) -> PathBuf {
        self.cgroup.path().join("memory.events")
    }

    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// Kills what is left and removes the cgroup; EBUSY when processes are still there after `timeout`: call again.
    pub fn destroy(&mut self, timeout: Duration) -> Result<()> {
        self.waiting = None;
        self.cgroup.remove(timeout)
    }
}

fn release(socket: &OwnedFd) -> Result<()> {
    go(socket.as_fd()).map_err(|errno| ContainerError::new(Step::Exec, errno, "", "the first process is gone"))
}

fn duplicate(streams: &[OwnedFd; 3]) -> Result<[OwnedFd; 3]> {
    let clone = |fd: &OwnedFd| {
        fd.try_clone().map_err(|error| ContainerError::new(Step::Device, crate::sys::errno_of(&error), "", "dup"))
    };
    Ok([clone(&streams[0])?, clone(&streams[1])?, clone(&streams[2])?])
}
