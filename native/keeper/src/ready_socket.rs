//! Waiting for a helper's unix socket without polling: inotify(7) tells when it is made.
use crate::failure;
use crate::keeper::Keeper;
use crate::spawn::{describe_wait_status, Spawned, VMM};
use crate::sys;
use kata_protocol::envelope::Status;
use kata_protocol::ttrpc::Code;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Answers when `socket` listens. Errors: FAILED_PRECONDITION when the process ends first, DEADLINE_EXCEEDED after
/// `timeout` (the process is killed), both with a BootFailure that holds the process's last lines.
pub async fn wait(keeper: &Keeper, process: &Spawned, socket: &Path, timeout: Duration) -> Result<(), Status> {
    let name = process.name.as_str();
    let failed = tokio::select! {
        result = appears(socket, process.pid) => match result {
            Ok(()) => return Ok(()),
            Err(error) => failure::from_io(&format!("watch for {}", socket.display()), &error),
        },
        wait_status = process.wait() => {
            let text = format!("{name} {} before its socket {} appeared", describe_wait_status(wait_status), socket.display());
            let cause = if name == VMM { "vmm-exited" } else { "helper-exited" };
            failure::boot(keeper, Code::FailedPrecondition, cause, name, wait_status, &text)
        }
        () = tokio::time::sleep(timeout) => {
            let text = format!("{name} did not make {} within {} ms", socket.display(), timeout.as_millis());
            failure::boot(keeper, Code::DeadlineExceeded, "timeout", name, 0, &text)
        }
    };
    let _ = process.signal(libc::SIGKILL);
    Err(failed)
}

async fn appears(socket: &Path, pid: i32) -> io::Result<()> {
    let (Some(directory), Some(_)) = (socket.parent(), socket.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let fd = sys::check(unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) } as libc::c_long)?;
    // SAFETY: the kernel just returned this descriptor.
    let events = sys::watch(unsafe { OwnedFd::from_raw_fd(fd as i32) })?;
    let path = sys::c_path(directory)?;
    let mask = libc::IN_CREATE | libc::IN_MOVED_TO;
    sys::check(unsafe { libc::inotify_add_watch(events.as_raw_fd(), path.as_ptr(), mask) } as libc::c_long)?;
    // The watch stands before the first look: nothing is missed between the two.
    while std::fs::symlink_metadata(socket).is_err() {
        let mut guard = events.readable().await?;
        // Which name it was is of no interest: the loop looks again.
        let mut buffer = [0u8; 4096];
        while unsafe { libc::read(events.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) } > 0 {}
        guard.clear_ready();
    }
    // bind(2) makes the file, listen(2) comes a moment later and tells nobody.
    while !listens(socket, pid)? {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Whether a socket bound to `path` accepts connections, without connecting: a vhost-user back end takes one client only.
/// The table is that of the process's network namespace; an ended process has none.
fn listens(path: &Path, pid: i32) -> io::Result<bool> {
    const ACCEPTS: &str = "00010000";
    let table = match std::fs::read(format!("/proc/{pid}/net/unix")) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EINVAL)) => {
            return Err(error)
        }
        table => table.unwrap_or_default(),
    };
    Ok(table.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        let accepts = fields.nth(3) == Some(ACCEPTS.as_bytes());
        accepts && fields.nth(3).is_some_and(|name| name == path.as_os_str().as_bytes())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use std::os::unix::net::UnixListener;

    #[test]
    fn tells_when_a_socket_listens() {
        let dir = TempDir::new();
        let path = dir.path().join("a.sock");
        let own = std::process::id() as i32;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let make = async {
                tokio::task::yield_now().await;
                std::fs::write(dir.path().join("other"), "").unwrap();
                tokio::task::yield_now().await;
                UnixListener::bind(&path).unwrap()
            };
            let (appeared, listener) = tokio::join!(appears(&path, own), make);
            appeared.unwrap();
            assert!(listens(&path, own).unwrap());
            drop(listener);
            assert!(!listens(&path, own).unwrap());
        });
    }
}
