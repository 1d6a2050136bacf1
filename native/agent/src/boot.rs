//! What PID 1 does before it serves: descriptors, pseudo file systems, cgroups, loopback.
use crate::log;
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;

pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Every container's cgroup is below this one; the agent's own leaf is beside it.
pub const CONTAINERS_CGROUP: &str = "/sys/fs/cgroup/containers";
const AGENT_CGROUP: &str = "/sys/fs/cgroup/agent";
/// Memory that reclaim takes from the agent last, in bytes; far above what it uses.
const AGENT_MEMORY_MIN_BYTES: &str = "8388608";
/// Process ids that containers together cannot take.
const RESERVED_PIDS: u64 = 128;
const DESCRIPTOR_LIMIT: u64 = 65_536;

struct PseudoMount {
    kind: &'static str,
    target: &'static str,
    flags: libc::c_ulong,
    data: &'static str,
}

const NO_EXEC: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

const MOUNTS: &[PseudoMount] = &[
    PseudoMount { kind: "proc", target: "/proc", flags: NO_EXEC, data: "" },
    PseudoMount { kind: "sysfs", target: "/sys", flags: NO_EXEC, data: "" },
    PseudoMount {
        kind: "devpts",
        target: "/dev/pts",
        flags: libc::MS_NOSUID | libc::MS_NOEXEC,
        data: "gid=5,mode=620,ptmxmode=666",
    },
    PseudoMount { kind: "tmpfs", target: "/dev/shm", flags: NO_EXEC, data: "mode=1777" },
    PseudoMount { kind: "tmpfs", target: "/run", flags: libc::MS_NOSUID | libc::MS_NODEV, data: "mode=755" },
    PseudoMount { kind: "cgroup2", target: CGROUP_ROOT, flags: NO_EXEC, data: "nsdelegate,memory_recursiveprot" },
];

/// Mounts /dev and makes sure that descriptors 0, 1 and 2 are open: with a console that has no driver, the kernel
/// starts PID 1 without them, and the next files opened would take their place.
pub fn open_console() -> Result<(), String> {
    mount(&PseudoMount { kind: "devtmpfs", target: "/dev", flags: libc::MS_NOSUID, data: "mode=755" })?;
    for wanted in 0..=2 {
        // SAFETY: F_GETFD reads a flag; the paths are NUL-terminated constants.
        unsafe {
            if libc::fcntl(wanted, libc::F_GETFD) >= 0 {
                continue;
            }
            let mut fd = libc::open(c"/dev/console".as_ptr(), libc::O_RDWR | libc::O_NOCTTY);
            if fd < 0 {
                fd = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            }
            if fd != wanted {
                return Err(format!("descriptor {wanted}: cannot open /dev/null: {}", io::Error::last_os_error()));
            }
        }
    }
    Ok(())
}

/// Mounts what the kernel offers. Only /proc, /sys and the rest of `MOUNTS` make a usable guest: each is fatal.
pub fn mount_all() -> Result<(), String> {
    for entry in MOUNTS {
        mount(entry)?;
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(target, link);
    }
    Ok(())
}

fn mount(entry: &PseudoMount) -> Result<(), String> {
    let _ = fs::create_dir_all(entry.target);
    let text = |text: &str| CString::new(text).map_err(|error| error.to_string());
    let (kind, target, data) = (text(entry.kind)?, text(entry.target)?, text(entry.data)?);
    // SAFETY: every pointer is a NUL-terminated string that outlives the call.
    let done = unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), entry.flags, data.as_ptr().cast()) };
    match io::Error::last_os_error() {
        _ if done == 0 => Ok(()),
        // Mounted already by the kernel (CONFIG_DEVTMPFS_MOUNT) or by what started the agent.
        error if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        error => Err(format!("mount {} at {}: {error}", entry.kind, entry.target)),
    }
}

/// Puts the agent in a leaf of its own, protected from what containers do, and opens every controller to containers.
/// A controller that the kernel lacks is said and is no reason to stop: containers that ask for it are refused later.
pub fn set_up_cgroups() -> Result<(), String> {
    for directory in [AGENT_CGROUP, CONTAINERS_CGROUP] {
        match fs::create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(format!("{directory}: {error}")),
            _ => {}
        }
    }
    write(&format!("{AGENT_CGROUP}/cgroup.procs"), "0")?;
    for parent in [CGROUP_ROOT, CONTAINERS_CGROUP] {
        enable_controllers(Path::new(parent))?;
    }
    let protections = [
        (format!("{AGENT_CGROUP}/memory.min"), AGENT_MEMORY_MIN_BYTES.to_owned()),
        (format!("{AGENT_CGROUP}/cpu.weight"), "10000".to_owned()),
        ("/proc/self/oom_score_adj".to_owned(), "-1000".to_owned()),
        (format!("{CONTAINERS_CGROUP}/pids.max"), pids_for_containers().to_string()),
    ];
    for (path, value) in protections {
        if let Err(error) = write(&path, &value) {
            log::warning!("boot", "{error}");
        }
    }
    Ok(())
}

fn enable_controllers(group: &Path) -> Result<(), String> {
    let path = group.join("cgroup.controllers");
    let controllers = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let path = group.join("cgroup.subtree_control");
    let each: Vec<String> = controllers.split_ascii_whitespace().map(|controller| format!("+{controller}")).collect();
    // All at once where the kernel lets it, for it moves every process of the group with each write.
    if fs::write(&path, each.join(" ")).is_ok() {
        return Ok(());
    }
    for controller in each {
        if let Err(error) = fs::write(&path, &controller) {
            log::warning!("boot", "cgroup controller {controller} in {}: {error}", path.display());
        }
    }
    Ok(())
}

fn pids_for_containers() -> u64 {
    let limit = |path| fs::read_to_string(path).ok().and_then(|text: String| text.trim().parse::<u64>().ok());
    let all = [limit("/proc/sys/kernel/pid_max"), limit("/proc/sys/kernel/threads-max")];
    all.into_iter().flatten().min().unwrap_or(32_768).saturating_sub(RESERVED_PIDS).max(RESERVED_PIDS)
}

fn write(path: &str, value: &str) -> Result<(), String> {
    fs::write(path, value).map_err(|error| format!("write {value:?} to {path}: {error}"))
}

/// Room for three descriptors per process of many processes; the hard limit stays what containers may ask for.
pub fn raise_descriptor_limit() {
    let limit = libc::rlimit { rlim_cur: DESCRIPTOR_LIMIT, rlim_max: DESCRIPTOR_LIMIT * 16 };
    // SAFETY: the structure outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } < 0 {
        log::warning!("boot", "limit of open files: {}", io::Error::last_os_error());
    }
}

/// A host name and an environment until the sandbox says more.
pub fn set_defaults() {
    if let Err(error) = rustix::system::sethostname(b"localhost") {
        log::warning!("boot", "host name: {error}");
    }
    // SAFETY: one thread runs, nothing else reads the environment.
    unsafe { std::env::set_var("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin") };
}
