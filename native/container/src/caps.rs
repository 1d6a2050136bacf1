//! Capabilities (capabilities(7)) by name.
use crate::error::{ContainerError, Result, Step};
use crate::sys::check;
use crate::sys::process::prctl;
use kata_protocol::grpc::LinuxCapabilities;

/// By number (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
pub(crate) const SYS_ADMIN: u64 = 1 << 21;
const VERSION_3: u32 = 0x2008_0522;
const AMBIENT_RAISE: u64 = 2;
const AMBIENT_CLEAR_ALL: u64 = 4;

/// The five sets as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

fn failure(errno: i32, name: &str, what: &str) -> ContainerError {
    ContainerError::new(Step::Capabilities, errno, name, what)
}

fn bits(names: &[String]) -> Result<u64> {
    names.iter().try_fold(0, |bits, name| {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let number = NAMES.iter().position(|known| *known == short);
        number.map(|number| bits | 1 << number).ok_or_else(|| failure(libc::EINVAL, name, "unknown capability"))
    })
}

impl Sets {
    /// A missing message is empty sets, as in the OCI runtime spec.
    pub(crate) fn parse(capabilities: Option<&LinuxCapabilities>) -> Result<Self> {
        let Some(names) = capabilities else {
            return Ok(Self::default());
        };
        Ok(Self {
            bounding: bits(&names.bounding)?,
            effective: bits(&names.effective)?,
            inheritable: bits(&names.inheritable)?,
            permitted: bits(&names.permitted)?,
            ambient: bits(&names.ambient)?,
        })
    }

    /// Drops what the bounding set lacks; before the user changes, since it needs CAP_SETPCAP.
    pub(crate) fn limit_bounding(&self) -> Result<()> {
        for (number, name) in NAMES.iter().enumerate().filter(|(number, _)| self.bounding >> number & 1 == 0) {
            match prctl(libc::PR_CAPBSET_DROP, number as u64) {
                // A kernel older than the capability has nothing to drop.
                Ok(()) | Err(libc::EINVAL) => {}
                Err(errno) => return Err(failure(errno, name, "drop from the bounding set")),
            }
        }
        // What this kernel has beyond the names known here is dropped as well, until it says that there is no more.
        for number in NAMES.len() as u64..64 {
            if prctl(libc::PR_CAPBSET_DROP, number).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Sets everything but keeps `kept` permitted and effective until `finish`.
    pub(crate) fn apply(&self, kept: u64) -> Result<()> {
        let supported = supported();
        let sets = self.supported(supported);
        set(sets.effective | kept, sets.permitted | kept, sets.inheritable)
            .map_err(|errno| failure(errno, "", "set capabilities"))?;
        let _ = libc_ambient(AMBIENT_CLEAR_ALL, 0);
        for number in (0..NAMES.len()).filter(|number| sets.ambient >> number & 1 == 1) {
            // EPERM unless it is permitted and inheritable too: a spec that contradicts itself is refused.
            libc_ambient(AMBIENT_RAISE, number as u64)
                .map_err(|errno| failure(errno, NAMES[number], "raise in the ambient set"))?;
        }
        Ok(())
    }

    /// Gives up what `apply` kept.
    pub(crate) fn finish(&self) -> Result<()> {
        let sets = self.supported(supported());
        set(sets.effective, sets.permitted, sets.inheritable).map_err(|errno| failure(errno, "", "set capabilities"))
    }

    /// capset(2) refuses bits that this process lacks; what the bounding set lost or the kernel lacks cannot be had.
    fn supported(&self, mask: u64) -> Self {
        Self {
            bounding: self.bounding & mask,
            effective: self.effective & mask,
            inheritable: self.inheritable & mask,
            permitted: self.permitted & mask,
            ambient: self.ambient & mask,
        }
    }
}

/// The capabilities that this process is permitted now.
fn supported() -> u64 {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 takes two data structures (capget(2)); both outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    if done < 0 {
        return 0;
    }
    u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn set(effective: u64, permitted: u64, inheritable: u64) -> std::result::Result<(), i32> {
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 takes two data structures (capset(2)); both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

fn libc_ambient(operation: u64, capability: u64) -> std::result::Result<(), i32> {
    // SAFETY: takes numbers only.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, operation, capability, 0, 0) })).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_numbers() {
        let names = |names: &[&str]| bits(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&["CAP_CHOWN", "cap_sys_admin"]).unwrap(), 1 | SYS_ADMIN);
        assert_eq!(names(&["CHECKPOINT_RESTORE"]).unwrap(), 1 << 40);
        assert_eq!(names(&["CAP_NET_ADMIN", "CAP_MKNOD"]).unwrap(), 1 << 12 | 1 << 27);
        let error = names(&["CAP_FLY"]).unwrap_err();
        assert_eq!((error.step, error.errno, error.path.as_str()), (Step::Capabilities, libc::EINVAL, "CAP_FLY"));
    }
}
