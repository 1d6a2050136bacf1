//! What belongs to the sandbox as a whole: host name, shared namespaces, name servers.
use crate::agent::Agent;
use crate::container::status_of;
use crate::failure::{invalid, Context, Result};
use crate::log;
use kata_protocol::grpc::{CreateSandboxRequest, KernelModule};
use kata_protocol::ttrpc::{status, Code};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

const PINNED: [(&str, libc::c_int); 2] = [("ipc", libc::CLONE_NEWIPC), ("uts", libc::CLONE_NEWUTS)];
/// sethostname(2).
const MAX_HOSTNAME_BYTES: usize = 64;
const MAX_DNS_LINES: usize = 1024;
/// No container's id.
const HOLDER: &str = "";
const HOLDER_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct Sandbox {
    created: bool,
    /// CreateSandbox asked for one pid namespace for all containers.
    shared_pid_namespace: bool,
    /// The oldest living container (HOLDER: none of them) and its pid namespace; a descriptor, because a path with a pid
    /// could come to mean another process.
    pid_namespace: Option<(String, OwnedFd)>,
    namespace_dir: Option<PathBuf>,
    storages: Vec<String>,
}

impl Sandbox {
    /// File of the sandbox's namespace of that kind (`ipc`, `uts`), when it has one.
    pub fn pinned_namespace(&self, kind: &str) -> Option<String> {
        let directory = self.namespace_dir.as_ref()?;
        let known = PINNED.iter().any(|(name, _)| *name == kind);
        known.then(|| directory.join(kind).to_string_lossy().into_owned())
    }

    fn pid_namespace_path(&self, shared: bool) -> String {
        match &self.pid_namespace {
            Some((_, fd)) if shared || self.shared_pid_namespace => format!("/proc/self/fd/{}", fd.as_raw_fd()),
            _ => String::new(),
        }
    }

    /// Remembers the namespace of the sandbox's first container.
    pub fn note_container(&mut self, id: &str, pid: i32) -> io::Result<()> {
        if self.pid_namespace.is_none() {
            self.pid_namespace = Some((id.to_owned(), File::open(format!("/proc/{pid}/ns/pid"))?.into()));
        }
        Ok(())
    }

    /// The first process of a container has ended, and with it a pid namespace that it began: nobody can join it now.
    pub fn note_container_end(&mut self, id: &str) {
        if self.pid_namespace.as_ref().is_some_and(|(owner, _)| owner == id) {
            self.pid_namespace = None;
        }
    }
}

/// Path of the pid namespace that a container joins; empty: a new one. Containers that share one without a container whose it could be get
/// one that outlives each of them.
pub fn pid_namespace_path(agent: &Rc<Agent>, shared: bool) -> Result<String> {
    if shared && agent.sandbox.borrow().pid_namespace.is_none() {
        let pending = kata_container::hold_pid_namespace().map_err(|error| status_of(&error))?;
        let holder = Rc::downgrade(agent);
        agent.reaper.watch(pending.pid(), move |ending| {
            log::warning!("sandbox", "the holder of the pid namespace ended with status {}", ending.status());
            if let Some(agent) = holder.upgrade() {
                agent.sandbox.borrow_mut().note_container_end(HOLDER);
            }
        });
        // Not awaited: another container that is created meanwhile would begin a second one.
        let namespace = pending.wait(HOLDER_TIMEOUT).map_err(|error| status_of(&error))?;
        agent.sandbox.borrow_mut().pid_namespace = Some((HOLDER.to_owned(), namespace));
    }
    Ok(agent.sandbox.borrow().pid_namespace_path(shared))
}

/// CreateSandbox.
pub async fn create(agent: &Agent, request: CreateSandboxRequest) -> Result<()> {
    if agent.sandbox.borrow().created {
        return Err(status(Code::AlreadyExists, "sandbox: it is created already"));
    }
    agent.sandbox.borrow_mut().created = true;
    let outcome = set_up(agent, &request).await;
    if outcome.is_err() {
        let mut sandbox = agent.sandbox.borrow_mut();
        agent.storages.release_all(&sandbox.storages);
        unpin(&sandbox);
        *sandbox = Sandbox::default();
    }
    outcome
}

async fn set_up(agent: &Agent, request: &CreateSandboxRequest) -> Result<()> {
    for module in &request.kernel_modules {
        load_module(agent, module).await?;
    }
    if !request.guest_hook_path.is_empty() {
        log::warning!("sandbox", "guest hooks in {:?} are not run", request.guest_hook_path);
    }
    if agent.is_guest() {
        let hostname = truncated(&request.hostname);
        if !hostname.is_empty() {
            rustix::system::sethostname(hostname.as_bytes()).context(|| format!("sandbox: host name {hostname:?}"))?;
        }
        let directory = agent.options.run_dir.join("sandbox-ns");
        pin_namespaces(&directory, hostname)?;
        agent.sandbox.borrow_mut().namespace_dir = Some(directory);
    }
    let storages = agent.storages.add_all(&request.storages).await?;
    agent.sandbox.borrow_mut().storages = storages;
    agent.sandbox.borrow_mut().shared_pid_namespace = request.sandbox_pidns;
    write_resolv_conf(agent, &request.dns)
}

/// At most what the kernel takes, cut between characters.
fn truncated(hostname: &str) -> &str {
    let mut end = hostname.len().min(MAX_HOSTNAME_BYTES);
    while !hostname.is_char_boundary(end) {
        end -= 1;
    }
    &hostname[..end]
}

/// Makes ipc and uts namespaces and binds them to files. The agent has one thread: it enters the new namespaces, binds
/// them, and goes back before anything else runs.
fn pin_namespaces(directory: &Path, hostname: &str) -> Result<()> {
    fs::create_dir_all(directory).context(|| format!("sandbox: create {}", directory.display()))?;
    let what = || "sandbox: make ipc and uts namespaces".to_owned();
    let own: Vec<(File, libc::c_int)> = PINNED
        .iter()
        .map(|(name, flag)| Ok((File::open(format!("/proc/self/ns/{name}"))?, *flag)))
        .collect::<io::Result<_>>()
        .context(what)?;
    // SAFETY: no memory is passed.
    if unsafe { libc::unshare(PINNED.iter().fold(0, |flags, (_, flag)| flags | flag)) } < 0 {
        return Err(io::Error::last_os_error()).context(what);
    }
    let pinned = bind_own_namespaces(directory, hostname);
    for (namespace, flag) in own {
        // SAFETY: the descriptor is open.
        if unsafe { libc::setns(namespace.as_raw_fd(), flag) } < 0 {
            // Staying in a container's namespaces would be worse than ending.
            panic!("cannot return to the agent's namespaces: {}", io::Error::last_os_error());
        }
    }
    pinned
}

fn bind_own_namespaces(directory: &Path, hostname: &str) -> Result<()> {
    if !hostname.is_empty() {
        rustix::system::sethostname(hostname.as_bytes()).context(|| format!("sandbox: host name {hostname:?}"))?;
    }
    for (name, _) in PINNED {
        let target = directory.join(name);
        File::create(&target).context(|| format!("sandbox: create {}", target.display()))?;
        rustix::mount::mount_bind(format!("/proc/self/ns/{name}").as_str(), &target)
            .context(|| format!("sandbox: bind {}", target.display()))?;
    }
    Ok(())
}

fn unpin(sandbox: &Sandbox) {
    let Some(directory) = &sandbox.namespace_dir else { return };
    for (name, _) in PINNED {
        let target = directory.join(name);
        if let Err(error) = crate::storage::unmount(&target) {
            log::warning!("sandbox", "unmount {}: {error}", target.display());
        }
        let _ = fs::remove_file(target);
    }
}

/// `/run/kata-containers/sandbox/resolv.conf`, and the guest's own when its image has one.
fn write_resolv_conf(agent: &Agent, lines: &[String]) -> Result<()> {
    if lines.len() > MAX_DNS_LINES {
        return Err(invalid(format!("sandbox: {} lines of name servers are over {MAX_DNS_LINES}", lines.len())));
    }
    if lines.is_empty() {
        return Ok(());
    }
    let directory = agent.options.run_dir.join("sandbox");
    let path = directory.join("resolv.conf");
    let what = || format!("sandbox: write {}", path.display());
    fs::create_dir_all(&directory).context(what)?;
    let mut text = lines.join("\n");
    if !text.ends_with('\n') {
        text.push('\n');
    }
    fs::write(&path, text).context(what)?;
    let own = Path::new("/etc/resolv.conf");
    if agent.is_guest() && own.exists() {
        rustix::mount::mount_bind(&path, own).context(|| "sandbox: bind /etc/resolv.conf".to_owned())?;
    }
    Ok(())
}

/// With the image's modprobe when it has one; a module named by a path is loaded by the agent itself.
async fn load_module(agent: &Agent, module: &KernelModule) -> Result<()> {
    if module.name.starts_with('/') {
        let parameters = module.parameters.join(" ");
        return crate::modules::load(&module.name, &parameters)
            .context(|| format!("sandbox: kernel module {}", module.name));
    }
    let mut argv = vec!["modprobe", "--", module.name.as_str()];
    argv.extend(module.parameters.iter().map(String::as_str));
    crate::command::run(&argv, Vec::new(), &agent.reaper).await.map(|_| ())
}

/// Ends what the sandbox holds, containers first; used before the machine goes off.
pub async fn destroy(agent: &Rc<Agent>) {
    let containers: Vec<_> = agent.containers.borrow().values().cloned().collect();
    for container in containers {
        let id = container.id.clone();
        let removed = crate::lifecycle::remove(agent.clone(), container, Duration::from_secs(5)).await;
        if let Err(error) = removed {
            log::warning!("sandbox", "remove container {id}: {}", error.message);
        }
    }
    agent.storages.release_everything();
    unpin(&agent.sandbox.borrow());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_cut_between_characters() {
        assert_eq!(truncated("pod"), "pod");
        let long = "é".repeat(40);
        assert_eq!(truncated(&long).len(), 64);
        assert_eq!(truncated(&format!("x{long}")).len(), 63);
    }

    #[test]
    fn namespaces_are_the_sandboxes_only_when_pinned() {
        let mut sandbox = Sandbox::default();
        assert_eq!(sandbox.pinned_namespace("ipc"), None);
        sandbox.namespace_dir = Some(PathBuf::from("/run/x"));
        assert_eq!(sandbox.pinned_namespace("uts").unwrap(), "/run/x/uts");
        assert_eq!(sandbox.pinned_namespace("mount"), None);
        assert_eq!(sandbox.pid_namespace_path(true), "");
        let pid = std::process::id() as i32;
        sandbox.note_container("first", pid).unwrap();
        sandbox.note_container("second", pid).unwrap();
        assert!(sandbox.pid_namespace_path(true).starts_with("/proc/self/fd/"));
        assert_eq!(sandbox.pid_namespace_path(false), "");
        sandbox.note_container_end("second");
        assert_ne!(sandbox.pid_namespace_path(true), "");
        sandbox.note_container_end("first");
        assert_eq!(sandbox.pid_namespace_path(true), "");
    }
}
