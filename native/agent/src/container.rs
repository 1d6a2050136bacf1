//! Containers of the sandbox: their life from creation to removal.
//!
//! No borrow of a container's state is held across an await, so that a call that waits never keeps another from
//! answering: `phase` says who may do what.
use crate::agent::Agent;
use crate::events::WatchedFile;
use crate::failure::{not_found, Result};
use crate::log;
use crate::mount_namespace::MountNamespace;
use crate::process::Process;
use kata_container::{ContainerError, Step};
use kata_protocol::agent_ext::ExecFailure;
use kata_protocol::envelope::Status;
use kata_protocol::ttrpc::{status, status_with_detail, Code};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use tokio::task::AbortHandle;

/// Ended processes whose exit was reported stay for late ReadStdout calls; the oldest go first.
const MAX_PROCESSES: usize = 4096;
const MAX_REPORTED_PROCESSES: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Creating,
    Created,
    Starting,
    Started,
    Removing,
}

pub struct Container {
    pub id: String,
    pub rootfs: PathBuf,
    pub termination_log: Option<String>,
    pub phase: Cell<Phase>,
    pub paused: Cell<bool>,
    pub inner: RefCell<Option<kata_container::Container>>,
    /// By exec id; the first process's is empty.
    pub processes: RefCell<BTreeMap<String, Rc<Process>>>,
    /// Those of `processes` that are tools of the agent's: nothing else ends them when the container goes.
    pub tools: RefCell<BTreeSet<String>>,
    pub storages: RefCell<Vec<String>>,
    pub mounts: RefCell<Option<MountNamespace>>,
    /// The end of the first process does not end the others by itself.
    shares_pid_namespace: bool,
    oom_kills: Cell<u64>,
    pub oom_watch: RefCell<Option<AbortHandle>>,
}

/// Turns a container error into a status with its ExecFailure.
pub fn status_of(error: &ContainerError) -> Status {
    let code = match error.step {
        Step::Lookup | Step::Exec | Step::Chdir | Step::User => Code::FailedPrecondition,
        _ if error.errno == libc::EINVAL => Code::InvalidArgument,
        _ => Code::Internal,
    };
    let detail = ExecFailure { errno: error.errno, step: error.step.as_str().to_owned(), path: error.path.clone() };
    status_with_detail(code, error.to_string(), "kata.agent.v1.ExecFailure", &detail)
}

/// Has the exit recorded when the process is reaped. To be called before any await after the process was made.
pub fn watch_process(agent: &Rc<Agent>, container: &Rc<Container>, process: &Rc<Process>, pid: i32) {
    process.pid.set(pid);
    let kills_before = if container.inner.borrow().is_some() { container.oom_kills_now() } else { 0 };
    let (agent_, container, process) = (Rc::downgrade(agent), Rc::downgrade(container), Rc::clone(process));
    agent.reaper.watch(pid, move |ending| {
        let Some(container) = container.upgrade() else { return process.note_exit(ending, false) };
        process.note_exit(ending, container.oom_kills_now() > kills_before);
        let is_init = container.processes.borrow().get("").is_some_and(|init| Rc::ptr_eq(init, &process));
        if let Some(agent) = agent_.upgrade() {
            container.report_oom(&agent);
            if is_init {
                agent.sandbox.borrow_mut().note_container_end(&container.id);
            }
        }
        if is_init && container.shares_pid_namespace {
            container.kill_all();
        }
    });
}

pub fn watch_oom(agent: &Rc<Agent>, container: &Rc<Container>, path: PathBuf) {
    let (agent, weak) = (Rc::downgrade(agent), Rc::downgrade(container));
    let task = tokio::task::spawn_local(async move {
        let watched = match WatchedFile::open(&path) {
            Ok(watched) => watched,
            Err(error) => return log::warning!("oom", "{}: {error}", path.display()),
        };
        while watched.changed().await.is_ok() && watched.read().is_ok() {
            let (Some(agent), Some(container)) = (agent.upgrade(), weak.upgrade()) else { return };
            container.report_oom(&agent);
        }
    });
    *container.oom_watch.borrow_mut() = Some(task.abort_handle());
}

impl Container {
    /// One that is being created: it has no process yet.
    pub fn new(id: &str, rootfs: PathBuf, termination_log: Option<String>, shares_pid_namespace: bool) -> Rc<Self> {
        Rc::new(Self {
            id: id.to_owned(),
            rootfs,
            termination_log,
            phase: Cell::new(Phase::Creating),
            paused: Cell::new(false),
            inner: RefCell::new(None),
            processes: RefCell::default(),
            tools: RefCell::default(),
            storages: RefCell::default(),
            mounts: RefCell::default(),
            shares_pid_namespace,
            oom_kills: Cell::new(0),
            oom_watch: RefCell::default(),
        })
    }

    fn oom_kills_now(&self) -> u64 {
        self.inner.borrow().as_ref().map_or(0, kata_container::Container::oom_kills)
    }

    pub fn report_oom(&self, agent: &Agent) {
        let kills = self.oom_kills_now();
        if kills > self.oom_kills.replace(kills) {
            log::warning!("oom", "container {}: the kernel ended a process: memory used up", self.id);
            agent.events.push_oom(&self.id);
        }
    }

    pub fn kill_all(&self) {
        if let Some(inner) = self.inner.borrow().as_ref() {
            if let Err(error) = inner.kill_all() {
                log::warning!("container", "kill {}: {error}", self.id);
            }
        }
    }

    /// The process of an exec id; upstream's Go host names the first process by the container's id.
    pub fn process(&self, exec_id: &str) -> Result<Rc<Process>> {
        let exec_id = if exec_id == self.id { "" } else { exec_id };
        let found = self.processes.borrow().get(exec_id).cloned();
        found.ok_or_else(|| not_found(format!("process: container {:?} has no process {exec_id:?}", self.id)))
    }

    /// Runs `act` on the container. Errors: FAILED_PRECONDITION while it is being made; `act`'s.
    pub fn with<T>(&self, act: impl FnOnce(&mut kata_container::Container) -> kata_container::Result<T>) -> Result<T> {
        let mut inner = self.inner.borrow_mut();
        let inner = inner.as_mut().ok_or_else(|| {
            status(Code::FailedPrecondition, format!("container: {:?} is not created yet, or being removed", self.id))
        })?;
        act(inner).map_err(|error| status_of(&error))
    }

    /// Takes an exec id; one whose process has ended may be taken again.
    pub fn reserve(&self, exec_id: &str, process: &Rc<Process>) -> Result<()> {
        let mut processes = self.processes.borrow_mut();
        match processes.get(exec_id) {
            Some(other) if other.exited().is_none() => {
                return Err(status(Code::AlreadyExists, format!("process: {exec_id:?} exists already")));
            }
            Some(_) => {}
            None if processes.len() >= MAX_PROCESSES => {
                return Err(status(Code::ResourceExhausted, format!("process: {MAX_PROCESSES} exist")));
            }
            None => {}
        }
        if let Some(ended) = processes.insert(exec_id.to_owned(), Rc::clone(process)) {
            ended.note_removed();
        }
        Ok(())
    }

    /// Forgets ended processes whose exit was reported, beyond the last few.
    pub fn forget_reported(&self) {
        let mut processes = self.processes.borrow_mut();
        let reported: Vec<String> = processes
            .iter()
            .filter(|(id, process)| !id.is_empty() && process.reported.get())
            .map(|(id, _)| id.clone())
            .collect();
        for id in reported.iter().take(reported.len().saturating_sub(MAX_REPORTED_PROCESSES)) {
            self.tools.borrow_mut().remove(id);
            if let Some(process) = processes.remove(id) {
                process.note_removed();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_failures_keep_errno_step_and_path() {
        use prost::Message;
        let error = ContainerError::new(Step::Exec, libc::ENOENT, "nope", "execute");
        let status = status_of(&error);
        assert_eq!(status.code, Code::FailedPrecondition as i32);
        let detail = ExecFailure::decode(status.details[0].value.as_slice()).unwrap();
        assert_eq!((detail.errno, detail.step.as_str(), detail.path.as_str()), (libc::ENOENT, "exec", "nope"));
    }
}
