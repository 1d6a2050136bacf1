//! Resource limits (setrlimit(2)) by name.
use crate::error::{ContainerError, Result, Step};
use crate::sys::check;
use kata_protocol::grpc::PosixRlimit;

/// By number (asm-generic/resource.h).
const NAMES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

/// Sets the limits of this process. All names are checked before the first is set.
pub(crate) fn apply(limits: &[PosixRlimit]) -> Result<()> {
    let numbers = limits.iter().map(number).collect::<Result<Vec<_>>>()?;
    for (limit, number) in limits.iter().zip(numbers) {
        let value = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
        // SAFETY: the structure outlives the call; no old value is asked for.
        check(unsafe {
            libc::syscall(libc::SYS_prlimit64, 0, number, &raw const value, std::ptr::null_mut::<libc::rlimit64>())
        })
        .map_err(|errno| {
            ContainerError::new(Step::Rlimit, errno, &limit.r#type, format!("set to {}:{}", limit.soft, limit.hard))
        })?;
    }
    Ok(())
}

fn number(limit: &PosixRlimit) -> Result<usize> {
    NAMES
        .iter()
        .position(|name| *name == limit.r#type)
        .ok_or_else(|| ContainerError::invalid(Step::Rlimit, &limit.r#type, "unknown resource limit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_numbers() {
        for (name, expected) in [
            ("RLIMIT_CPU", libc::RLIMIT_CPU),
            ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE),
            ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME),
        ] {
            let limit = PosixRlimit { r#type: name.into(), hard: 1, soft: 1 };
            assert_eq!(number(&limit).unwrap() as u64, u64::from(expected));
        }
        let unknown = PosixRlimit { r#type: "NOFILE".into(), hard: 1, soft: 1 };
        assert_eq!(apply(&[unknown]).unwrap_err().step, Step::Rlimit);
    }
}
