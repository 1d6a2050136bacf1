//! Statuses for what the host's kernel refused, and for a guest that did not come up.
use crate::bounded_file;
use crate::keeper::Keeper;
use crate::spawn;
use crate::text;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::BootFailure;
use kata_protocol::ttrpc::{status, status_with_detail, Code};
use std::io;
use std::path::PathBuf;

const TAIL_BYTES: u64 = 64 * 1024;
const FAILURE_LINES: usize = 40;
/// Bound of one tail inside a status.
const FAILURE_BYTES: usize = 16 * 1024;

/// A status for a failed system call: `what` names the step and its object; the errno follows.
pub fn from_io(what: &str, error: &io::Error) -> Status {
    let code = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => Code::NotFound,
        Some(libc::EEXIST) => Code::AlreadyExists,
        Some(libc::EACCES | libc::EPERM) => Code::PermissionDenied,
        Some(libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN) => {
            Code::ResourceExhausted
        }
        Some(libc::EINVAL | libc::ENAMETOOLONG | libc::ELOOP) => Code::InvalidArgument,
        Some(libc::ECONNREFUSED | libc::ECONNRESET | libc::EPIPE) => Code::Unavailable,
        _ => Code::Internal,
    };
    status(code, format!("{what}: {error}"))
}

/// The last lines of "console" or of a spawned process's stderr, escaped. `None`: there is no such source.
pub fn tail(keeper: &Keeper, source: &str, max_lines: usize) -> Option<String> {
    let path: PathBuf = match source {
        "console" => keeper.dir.join("console.log"),
        "agent" => keeper.dir.join("agent.log"),
        name if spawn::is_name(name) => spawn::stderr_path(keeper, name),
        _ => return None,
    };
    if source != "console" && source != "agent" && !path.exists() {
        return None;
    }
    let bytes = bounded_file::tail(&path, TAIL_BYTES);
    Some(text::escape(text::last_lines(&bytes, max_lines)))
}

/// The status of a boot that failed. `cause` as in `BootFailure`.
pub fn boot(keeper: &Keeper, code: Code, cause: &str, process: &str, wait_status: i32, message: &str) -> Status {
    let tail_of = |source: &str| {
        let text = tail(keeper, source, FAILURE_LINES).unwrap_or_default();
        text::cut_front(&text, FAILURE_BYTES).to_owned()
    };
    let detail = BootFailure {
        cause: cause.to_owned(),
        process: process.to_owned(),
        wait_status,
        console_tail: tail_of("console"),
        stderr_tail: tail_of(if process.is_empty() { spawn::VMM } else { process }),
    };
    status_with_detail(code, message, "kata.keeper.v1.BootFailure", &detail)
}

pub fn not_found(what: impl std::fmt::Display) -> Status {
    status(Code::NotFound, format!("{what} is not known"))
}
