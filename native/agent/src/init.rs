//! kata-init: PID 1 of a container that was created with `--init`. The guest image has this program under that name
//! (/sbin/kata-init), so it takes no memory of its own.
//!
//! It runs the command in a foreground process group, hands every signal on to it, reaps orphans, and ends as the command
//! ended: its exit code, or 128 + the signal. 127 and 126: the command was not found, or cannot be executed.
use std::ffi::{c_int, CStr, CString};
use std::io;

/// Signals that tell of a fault of this process itself, or that the terminal sends to whoever is in the background.
const NOT_HANDED_ON: [c_int; 9] = [
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// Whether the program was started under the name of the init.
pub fn is_asked_for(program: &CStr) -> bool {
    program.to_bytes().rsplit(|byte| *byte == b'/').next() == Some(b"kata-init".as_slice())
}

/// Runs `kata-init [--] COMMAND [ARG...]` to its end and answers its exit code.
pub fn run(mut words: Vec<CString>) -> c_int {
    if words.first().is_some_and(|word| word.as_bytes() == b"--") {
        words.remove(0);
    }
    if words.is_empty() {
        eprintln!("kata-init: usage: kata-init [--] COMMAND [ARG...]");
        return 125;
    }
    let signals = handed_on();
    // SAFETY: a zeroed set is a valid place for the old mask.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: both sets are valid; this process has one thread. Blocked signals wait until they are asked for. The terminal's
    // two are ignored: this process may write to a terminal whose foreground is the command.
    unsafe {
        libc::sigprocmask(libc::SIG_SETMASK, &raw const signals, &raw mut before);
        libc::signal(libc::SIGTTIN, libc::SIG_IGN);
        libc::signal(libc::SIGTTOU, libc::SIG_IGN);
    }
    // SAFETY: one thread; the child only makes system calls until it executes the command.
    match unsafe { libc::fork() } {
        -1 => {
            eprintln!("kata-init: fork: {}", io::Error::last_os_error());
            126
        }
        0 => execute(&words, &before),
        child => supervise(child, &signals),
    }
}

fn handed_on() -> libc::sigset_t {
    // SAFETY: sigfillset makes the zeroed set whole before it is read.
    unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut signals);
        for signal in NOT_HANDED_ON {
            libc::sigdelset(&raw mut signals, signal);
        }
        signals
    }
}

/// In the child: becomes the command.
fn execute(words: &[CString], mask: &libc::sigset_t) -> ! {
    let mut pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: `pointers` ends with NULL and its strings live on; the group and terminal calls take plain numbers. SIGTTOU is
    // still ignored when the terminal is taken from a group in the background.
    let error = unsafe {
        libc::setpgid(0, 0);
        libc::tcsetpgrp(0, libc::getpid());
        libc::signal(libc::SIGTTIN, libc::SIG_DFL);
        libc::signal(libc::SIGTTOU, libc::SIG_DFL);
        libc::sigprocmask(libc::SIG_SETMASK, mask, std::ptr::null_mut());
        libc::execvp(pointers[0], pointers.as_ptr());
        io::Error::last_os_error()
    };
    eprintln!("kata-init: {}: {error}", words[0].to_string_lossy());
    let code = if error.raw_os_error() == Some(libc::ENOENT) { 127 } else { 126 };
    // SAFETY: ends the child without the parent's cleanups.
    unsafe { libc::_exit(code) }
}

/// In PID 1: hands signals on and reaps until the command has ended.
fn supervise(command: libc::pid_t, signals: &libc::sigset_t) -> c_int {
    loop {
        // SAFETY: the set is valid; no information is asked for.
        let signal = unsafe { libc::sigwaitinfo(signals, std::ptr::null_mut()) };
        if signal == libc::SIGCHLD {
            if let Some(code) = reap(command) {
                return code;
            }
        } else if signal > 0 {
            // SAFETY: a command that ended meanwhile is still a zombie of this process, so the number is nobody else's.
            unsafe { libc::kill(command, signal) };
        }
    }
}

/// Reaps all that have ended; answers the command's exit code when it is among them.
fn reap(command: libc::pid_t) -> Option<c_int> {
    let mut ended = None;
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid for writing.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return ended;
        }
        if pid == command {
            let killed = libc::WIFSIGNALED(status);
            ended = Some(if killed { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) });
        }
    }
}
