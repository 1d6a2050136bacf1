//! `kata-keeper daemon`: starts the engine under its lock, away from whoever asked for it.
use crate::arguments::Arguments;
use crate::cgroups;
use crate::sys;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// Another engine holds the lock (EX_TEMPFAIL of sysexits.h).
pub const LOCKED: i32 = 75;
/// Well before the first keeper that lost its engine starts one again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Replaces this process by ARGV; returns only when that failed. `Ok` is the exit code then.
pub fn run(mut arguments: Arguments) -> Result<i32, String> {
    let lock_path = arguments.value("--lock")?;
    let log_path = arguments.value("--log")?;
    let wait_ms = arguments.optional("--wait-ms")?.map_or(Ok(0), |text| text.parse());
    let patience = Duration::from_millis(wait_ms.map_err(|error| format!("--wait-ms: {error}"))?);
    arguments.end()?;
    let Some((program, rest)) = arguments.command.split_first() else { return Err("no command after --".to_owned()) };
    unsafe { libc::umask(0o077) };
    // Nothing has been opened yet; everything opened from here on but the lock is closed by exec.
    sys::close_from(3);
    let private = |options: &mut OpenOptions, path: &str| {
        options
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(|error| format!("{path}: {error}"))
    };
    let lock = private(OpenOptions::new().read(true).write(true), &lock_path)?;
    let asked = Instant::now();
    while !sys::record_lock(lock.as_fd()).map_err(|error| format!("{lock_path}: {error}"))? {
        if asked.elapsed() >= patience {
            return Ok(LOCKED);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    let log = private(OpenOptions::new().append(true), &log_path)?;
    cgroups::leave();
    let null = OpenOptions::new().read(true).open("/dev/null").map_err(|error| format!("/dev/null: {error}"))?;
    // The lock lives as long as its descriptor: closing any other descriptor of the file would give it up, too.
    sys::set_cloexec(lock.as_raw_fd(), false).map_err(|error| format!("{lock_path}: {error}"))?;
    std::env::set_current_dir("/").map_err(|error| format!("/: {error}"))?;
    // Fails only for a process that already leads a session.
    unsafe { libc::setsid() };
    let errors = log.try_clone().map_err(|error| format!("{log_path}: {error}"))?;
    let problem = Command::new(program).args(rest).stdin(null).stdout(log).stderr(errors).exec();
    Err(format!("exec {program}: {problem}"))
}
