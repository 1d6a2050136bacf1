//! Kernel parameters of a container: only those that a namespace of its own holds.
use crate::error::{ContainerError, Result, Step};
use crate::sys::{open_at2, write_once, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

/// The namespaces that the container has for itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    pub ipc: bool,
    pub uts: bool,
}

/// Writes each value below the guest's /proc/sys: with namespaces entered, that is the container's own parameter.
pub(crate) fn apply(proc_dir: BorrowedFd<'_>, sysctl: &BTreeMap<String, String>, scope: Scope) -> Result<()> {
    for (name, value) in sysctl {
        let path = path_of(name, scope)?;
        let failure = |errno| ContainerError::new(Step::Sysctl, errno, name, format!("write {value:?} to"));
        let file =
            open_at2(proc_dir, format!("sys/{path}"), libc::O_WRONLY, RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
                .map_err(failure)?;
        write_once(file.as_fd(), value.as_bytes()).map_err(failure)?;
    }
    Ok(())
}

/// Path below /proc/sys. As sysctl(8) has it, the first separator decides: in `net/ipv4/conf/eth0.1/forwarding` the dot
/// is part of a name, in `net.ipv4.conf.eth0/1.forwarding` the slash stands for one.
fn path_of(name: &str, scope: Scope) -> Result<String> {
    let slashes = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
    let path = if slashes {
        name.to_owned()
    } else {
        name.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect()
    };
    let refuse = |errno, why: &str| Err(ContainerError::new(Step::Sysctl, errno, name, why));
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return refuse(libc::EINVAL, "no name of a kernel parameter:");
    }
    let ipc = ["kernel/shm", "kernel/msg", "fs/mqueue/"].iter().any(|prefix| path.starts_with(prefix))
        || path == "kernel/sem";
    let uts = path == "kernel/domainname" || path == "kernel/hostname";
    match () {
        () if ipc && !scope.ipc => refuse(libc::EPERM, "the container has no IPC namespace of its own for"),
        () if uts && !scope.uts => refuse(libc::EPERM, "the container has no UTS namespace of its own for"),
        () if ipc || uts || path.starts_with("net/") => Ok(path),
        () => refuse(libc::EPERM, "not a parameter of a namespace:"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Scope = Scope { ipc: true, uts: true };

    #[test]
    fn namespaced_parameters_pass() {
        for (name, path) in [
            ("kernel.shmmax", "kernel/shmmax"),
            ("kernel/msgmni", "kernel/msgmni"),
            ("kernel.sem", "kernel/sem"),
            ("fs.mqueue.queues_max", "fs/mqueue/queues_max"),
            ("net.ipv4.ip_local_port_range", "net/ipv4/ip_local_port_range"),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("kernel.domainname", "kernel/domainname"),
        ] {
            assert_eq!(path_of(name, ALL).unwrap(), path);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for name in [
            "kernel.core_pattern",
            "vm.overcommit_memory",
            "kernel.semx",
            "fs.mqueue",
            "net",
            "",
            "net..x",
            "net/../kernel/modprobe",
            "net.ipv4./",
            "kernel.sem\n",
            "user.max_user_namespaces",
        ] {
            assert_eq!(path_of(name, ALL).unwrap_err().step, Step::Sysctl, "{name}");
        }
        assert!(path_of("kernel.shmmax", Scope { ipc: false, uts: true }).is_err());
        assert!(path_of("kernel.hostname", Scope { ipc: true, uts: false }).is_err());
    }
}
