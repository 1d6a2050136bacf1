//! The namespaces of a spec: which are made, which are joined.
use crate::error::{ContainerError, Result, Step};
use crate::sys;
use crate::sys::process::CLONE_NEWTIME;
use kata_protocol::grpc::{Linux, LinuxIdMapping, LinuxNamespace};
use std::fs;
use std::os::fd::OwnedFd;

pub(crate) const PID: u64 = libc::CLONE_NEWPID as u64;
pub(crate) const MOUNT: u64 = libc::CLONE_NEWNS as u64;
pub(crate) const IPC: u64 = libc::CLONE_NEWIPC as u64;
pub(crate) const UTS: u64 = libc::CLONE_NEWUTS as u64;
pub(crate) const USER: u64 = libc::CLONE_NEWUSER as u64;
pub(crate) const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
const NET: u64 = libc::CLONE_NEWNET as u64;

pub(crate) struct Namespaces {
    /// Made by clone: everything asked without a path, and always one for mounts.
    pub new: u64,
    /// Joined by the new process, by descriptor; without the pid namespace.
    pub joined: Vec<(u64, OwnedFd)>,
    pub joined_pid: Option<OwnedFd>,
    /// Whether the cgroup namespace is made: after the process is in its cgroup, which becomes the namespace's root.
    pub new_cgroup: bool,
}

fn failure(errno: i32, value: &str, what: &str) -> ContainerError {
    ContainerError::new(Step::Namespace, errno, value, what)
}

fn flag_of(kind: &str) -> Option<u64> {
    Some(match kind {
        "pid" => PID,
        "mount" | "mnt" => MOUNT,
        "ipc" => IPC,
        "uts" => UTS,
        "user" => USER,
        "cgroup" => CGROUP,
        "network" | "net" => NET,
        "time" => CLONE_NEWTIME,
        _ => return None,
    })
}

impl Namespaces {
    /// An entry that comes twice counts once, the one with a path (hosts and agents both add a pid entry). A namespace
    /// for mounts and one for cgroups are always the container's own: without them it would see the guest's.
    pub(crate) fn parse(entries: &[LinuxNamespace]) -> Result<Self> {
        let mut paths: Vec<(u64, &str)> = vec![(MOUNT, ""), (CGROUP, "")];
        for entry in entries {
            let flag =
                flag_of(&entry.r#type).ok_or_else(|| failure(libc::EINVAL, &entry.r#type, "unknown namespace"))?;
            match paths.iter_mut().find(|(other, _)| *other == flag) {
                Some((_, path)) if path.is_empty() => *path = &entry.path,
                Some(_) => {}
                None => paths.push((flag, &entry.path)),
            }
        }
        let mut parsed = Self { new: 0, joined: Vec::new(), joined_pid: None, new_cgroup: false };
        for (flag, path) in paths {
            match (flag, path) {
                (CGROUP, "") => parsed.new_cgroup = true,
                (_, "") => parsed.new |= flag,
                (USER, path) => {
                    return Err(failure(libc::ENOTSUP, path, "a user namespace cannot be joined, only made:"))
                }
                (_, path) => {
                    let opened =
                        sys::open(path, libc::O_RDONLY).map_err(|errno| failure(errno, path, "open the namespace"))?;
                    if flag == PID {
                        parsed.joined_pid = Some(opened);
                    } else {
                        parsed.joined.push((flag, opened));
                    }
                }
            }
        }
        Ok(parsed)
    }

    pub(crate) fn has_joined(&self, flag: u64) -> bool {
        self.joined.iter().any(|(joined, _)| *joined == flag)
    }

    /// Whether the container has a namespace of this kind that is not the guest's.
    pub(crate) fn has(&self, flag: u64) -> bool {
        self.new & flag != 0
            || self.has_joined(flag)
            || (flag == CGROUP && self.new_cgroup)
            || (flag == PID && self.joined_pid.is_some())
    }

    /// Every namespace that a process has to enter to be in the container.
    pub(crate) fn all(&self) -> u64 {
        [PID, MOUNT, IPC, UTS, USER, CGROUP, NET, CLONE_NEWTIME]
            .into_iter()
            .filter(|flag| self.has(*flag))
            .fold(0, |all, flag| all | flag)
    }
}

/// Writes the user and group mappings of a process in a new user namespace (user_namespaces(7)).
pub(crate) fn write_mappings(pid: i32, linux: &Linux) -> Result<()> {
    let text = |mappings: &[LinuxIdMapping]| -> String {
        mappings.iter().map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.size)).collect()
    };
    for (file, mappings) in [("uid_map", &linux.uid_mappings), ("gid_map", &linux.gid_mappings)] {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, text(mappings))
            .map_err(|error| failure(sys::errno_of(&error), &path, "write the mappings"))?;
    }
    Ok(())
}

/// Takes the agent's own protection from the OOM killer from a process in a user namespace, which has not the privilege
/// to give up for good what it inherited: the value written by a privileged process becomes its lowest (proc(5)).
pub(crate) fn set_oom_score(pid: i32, adjustment: i64) -> Result<()> {
    let path = format!("/proc/{pid}/oom_score_adj");
    fs::write(&path, adjustment.to_string()).map_err(|error| failure(sys::errno_of(&error), &path, "write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: &str, path: &str) -> LinuxNamespace {
        LinuxNamespace { r#type: kind.into(), path: path.into() }
    }

    #[test]
    fn two_pid_entries_are_one() {
        for entries in [
            [entry("pid", ""), entry("pid", "/proc/self/ns/pid")],
            [entry("pid", "/proc/self/ns/pid"), entry("pid", "")],
        ] {
            let parsed = Namespaces::parse(&entries).unwrap();
            assert!(parsed.joined_pid.is_some() && parsed.new & PID == 0);
        }
        let parsed = Namespaces::parse(&[entry("pid", ""), entry("pid", "")]).unwrap();
        assert!(parsed.joined_pid.is_none() && parsed.new & PID != 0);
    }

    #[test]
    fn mount_and_cgroup_are_always_own() {
        let parsed = Namespaces::parse(&[entry("uts", ""), entry("ipc", "/proc/self/ns/ipc")]).unwrap();
        assert_eq!(parsed.new, MOUNT | UTS);
        assert!(parsed.new_cgroup && parsed.has_joined(IPC) && !parsed.has(PID));
        assert_eq!(parsed.all(), MOUNT | UTS | IPC | CGROUP);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let errno = |entries: &[LinuxNamespace]| Namespaces::parse(entries).err().map(|error| error.errno);
        assert_eq!(errno(&[entry("weird", "")]), Some(libc::EINVAL));
        assert_eq!(errno(&[entry("ipc", "/nowhere")]), Some(libc::ENOENT));
        assert_eq!(errno(&[entry("user", "/proc/self/ns/user")]), Some(libc::ENOTSUP));
    }
}
