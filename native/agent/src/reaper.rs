//! Reaps every child: those somebody waits for, and the orphans that end up with PID 1.
use crate::log;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use tokio::io::Interest;
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    pub code: i32,
    /// Terminating signal, 0 when it exited by itself.
    pub signal: i32,
}

impl Ending {
    /// Exit code, or 128 + signal.
    pub fn status(self) -> i32 {
        if self.signal == 0 {
            self.code
        } else {
            128 + self.signal
        }
    }

    pub fn of_wait_status(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            return Self { code: 0, signal: libc::WTERMSIG(status) };
        }
        Self { code: libc::WEXITSTATUS(status), signal: 0 }
    }
}

type Callback = Box<dyn FnOnce(Ending)>;

#[derive(Default)]
pub struct Reaper {
    watched: RefCell<BTreeMap<i32, Callback>>,
}

/// Written by the signal handler; -1 until the reaper runs.
static WAKE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_child(_signal: libc::c_int) {
    let one = 1_u64;
    // SAFETY: write(2) and errno's location are async-signal-safe; errno is put back for the code that was interrupted.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(WAKE.load(Ordering::Relaxed), (&raw const one).cast(), 8);
        *libc::__errno_location() = errno;
    }
}

impl Reaper {
    /// Calls back, from the reaper, when the child `pid` has ended. Register before the next await after its creation:
    /// only then can the child not have been reaped yet.
    pub fn watch(&self, pid: i32, callback: impl FnOnce(Ending) + 'static) {
        self.watched.borrow_mut().insert(pid, Box::new(callback));
    }

    /// The ending of a child as a future.
    pub fn ended(&self, pid: i32) -> oneshot::Receiver<Ending> {
        let (sender, receiver) = oneshot::channel();
        self.watch(pid, move |ending| {
            let _ = sender.send(ending);
        });
        receiver
    }

    /// Reaps for ever. Errors: the signal handler or its event descriptor cannot be set up.
    pub async fn run(&self) -> io::Result<()> {
        // SAFETY: eventfd takes no memory; the handler only touches async-signal-safe calls and an atomic.
        let event = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            WAKE.store(fd, Ordering::Relaxed);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_child as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART | libc::SA_NOCLDSTOP;
            if libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut()) < 0 {
                return Err(io::Error::last_os_error());
            }
            crate::poll::watch(OwnedFd::from_raw_fd(fd), Interest::READABLE)?
        };
        loop {
            self.reap_all();
            let mut ready = event.readable().await?;
            let mut count = 0_u64;
            // SAFETY: the buffer is eight bytes, as an event descriptor wants.
            unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), 8) };
            ready.clear_ready();
        }
    }

    /// Takes every child that has ended.
    fn reap_all(&self) {
        loop {
            let mut status = 0;
            // SAFETY: status outlives the call.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
            if pid <= 0 {
                return;
            }
            let callback = self.watched.borrow_mut().remove(&pid);
            let ending = Ending::of_wait_status(status);
            match callback {
                Some(callback) => callback(ending),
                None => log::debug!("reaper", "orphan {pid} ended with status {}", ending.status()),
            }
        }
    }
}
