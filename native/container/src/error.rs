//! The one error of this crate: which step failed, with which errno, on what.
use std::fmt;

/// The step that failed; the names are those of `kata.agent.v1.ExecFailure.step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    Lookup,
    Exec,
    Chdir,
    User,
    Rootfs,
    Mount,
    Namespace,
    Cgroup,
    Seccomp,
    Capabilities,
    Rlimit,
    Sysctl,
    Device,
}

impl Step {
    const ALL: [Self; 13] = [
        Self::Lookup,
        Self::Exec,
        Self::Chdir,
        Self::User,
        Self::Rootfs,
        Self::Mount,
        Self::Namespace,
        Self::Cgroup,
        Self::Seccomp,
        Self::Capabilities,
        Self::Rlimit,
        Self::Sysctl,
        Self::Device,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Exec => "exec",
            Self::Chdir => "chdir",
            Self::User => "user",
            Self::Rootfs => "rootfs",
            Self::Mount => "mount",
            Self::Namespace => "namespace",
            Self::Cgroup => "cgroup",
            Self::Seccomp => "seccomp",
            Self::Capabilities => "capabilities",
            Self::Rlimit => "rlimit",
            Self::Sysctl => "sysctl",
            Self::Device => "device",
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerError {
    pub step: Step,
    /// errno of the failing call, or the one that says it best (EINVAL for a value that cannot be understood).
    pub errno: i32,
    /// The file, name or value at fault; may be empty.
    pub path: String,
    /// What was tried.
    pub message: String,
}

pub type Result<T> = std::result::Result<T, ContainerError>;

impl ContainerError {
    pub fn new(step: Step, errno: i32, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { step, errno, path: path.into(), message: message.into() }
    }

    /// The errno of the system call that has just failed.
    pub(crate) fn last(step: Step, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(step, crate::sys::errno(), path, message)
    }

    pub(crate) fn invalid(step: Step, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(step, libc::EINVAL, path, message)
    }

    /// The exit code that shells and Docker give such a failure: 127 when the command is not there, 126 when it cannot
    /// be executed, 128 for everything else.
    pub fn exit_code(&self) -> i32 {
        match (self.step, self.errno) {
            (Step::Lookup | Step::Exec, libc::ENOENT) => 127,
            (Step::Lookup | Step::Exec, _) => 126,
            _ => 128,
        }
    }
}

impl fmt::Display for ContainerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step.as_str(), self.message)?;
        if !self.path.is_empty() {
            write!(f, " {:?}", self.path)?;
        }
        write!(f, ": {}", std::io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for ContainerError {}
