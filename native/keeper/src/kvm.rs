//! `kata-keeper kvm-probe`: whether /dev/kvm runs a guest, found out by running one.
//!
//! A KVM that opens and makes machines may still fail on the first ordinary kernel (nested or paravirtual KVM modules that
//! emulate what hardware would run). So the probe's guest does what a kernel does early: it leaves real mode for long mode
//! and uses SSE, cmpxchg16b and XSAVE, telling each step on an I/O port.
mod guest;
mod machine;

use crate::json::Writer;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::time::Duration;

/// A guest or a kernel that hangs is given up after this; the documented bound is 5 s.
const BOUND: Duration = Duration::from_millis(4500);

/// Prints `{"usable":bool,"reason":"…"}` and gives the exit code, 0 in either case.
pub fn print_probe() -> i32 {
    let reason = probe();
    let usable = reason.is_none();
    let reason =
        reason.unwrap_or_else(|| "a guest ran through real mode, long mode, SSE, cmpxchg16b and XSAVE".to_owned());
    println!("{}", Writer::object().raw("usable", usable).string("reason", &reason).end());
    0
}

/// Why KVM is not usable; `None` when it is. The machine runs in a child of its own: a hanging KVM_RUN cannot be cancelled,
/// only killed.
fn probe() -> Option<String> {
    let mut pipe = [0; 2];
    if unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Some(format!("pipe: {}", std::io::Error::last_os_error()));
    }
    // SAFETY: both descriptors were just made and belong to nobody else.
    let (mut reader, mut writer) =
        unsafe { (std::fs::File::from_raw_fd(pipe[0]), std::fs::File::from_raw_fd(pipe[1])) };
    // SAFETY: this process has one thread; the child may do what it likes.
    match unsafe { libc::fork() } {
        -1 => Some(format!("fork: {}", std::io::Error::last_os_error())),
        0 => {
            let answer = machine::run().map_or_else(|reason| reason, |()| "ok".to_owned());
            let _ = writer.write_all(answer.as_bytes());
            std::process::exit(0)
        }
        child => {
            drop(writer);
            let mut poll = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let ready = unsafe { libc::poll(&mut poll, 1, BOUND.as_millis() as i32) };
            let mut answer = String::new();
            if ready > 0 {
                let _ = reader.read_to_string(&mut answer);
            }
            // A child in the middle of KVM_RUN ends at once; one that hangs in the kernel is left to init.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG);
            }
            match answer.as_str() {
                "ok" => None,
                "" if ready > 0 => Some("the probe's process died while the guest ran".to_owned()),
                "" => Some(format!("the probe's guest did not end within {} ms", BOUND.as_millis())),
                reason => Some(reason.to_owned()),
            }
        }
    }
}
