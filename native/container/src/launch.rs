//! A process on its way: from clone to ready, or to execve, over a socket that execve closes.
use crate::error::{ContainerError, Result, Step};
use crate::sys::process::{clone3, exit, pidfd_signal, set_ns, set_undumpable, Cloned};
use crate::sys::{check, check_fd, errno};
use std::convert::Infallible;
use std::mem::{size_of, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

const READY: u8 = b'R';
const FAILED: u8 = b'E';
const GO: u8 = b'G';
/// Longest message; what does not fit of path and text is cut.
const MESSAGE_LIMIT: usize = 4096;
const TEXT_LIMIT: usize = 1900;
/// Exit code of a process that could not be made; nobody takes it for the command's: the error came before.
const FAILED_EXIT: i32 = 70;

fn failure(errno: i32, what: &str) -> ContainerError {
    ContainerError::new(Step::Namespace, errno, "", what)
}

/// The new process's side.
pub(crate) struct Channel(OwnedFd);

impl Channel {
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Out of the way of the standard streams.
    pub(crate) fn raise(self) -> Result<Self> {
        crate::sys::process::move_fd(self.0, 3).map(Self).map_err(|errno| failure(errno, "move a descriptor"))
    }

    pub(crate) fn ready(&self, master: Option<BorrowedFd<'_>>) -> Result<()> {
        send(self.0.as_fd(), &[READY], master).map_err(|errno| failure(errno, "report"))
    }

    fn fail(&self, error: &ContainerError) {
        let cut = |text: &str| text.as_bytes()[..text.len().min(TEXT_LIMIT)].to_vec();
        let (path, message) = (cut(&error.path), cut(&error.message));
        let mut bytes = vec![FAILED, error.step as u8];
        bytes.extend(error.errno.to_le_bytes());
        bytes.extend((path.len() as u16).to_le_bytes());
        bytes.extend(path);
        bytes.extend(message);
        let _ = send(self.0.as_fd(), &bytes, None);
    }

    /// Blocks until the other side says so; when that is gone, so is the reason to live.
    pub(crate) fn wait_for_go(&self) {
        let mut byte = 0_u8;
        loop {
            // SAFETY: one byte, as said.
            let read = unsafe { libc::recv(self.0.as_raw_fd(), (&raw mut byte).cast(), 1, 0) };
            match read {
                1 if byte == GO => return,
                -1 if errno() == libc::EINTR => {}
                _ => exit(FAILED_EXIT),
            }
        }
    }
}

/// Lets the process at the other end of the socket go on.
pub(crate) fn go(socket: BorrowedFd<'_>) -> std::result::Result<(), i32> {
    send(socket, &[GO], None)
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> std::result::Result<(), i32> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control::default();
    // SAFETY: an all-zero msghdr is valid; every pointer put into it outlives the call; the control buffer holds one
    // descriptor, as CMSG_SPACE says.
    unsafe {
        let mut header: libc::msghdr = MaybeUninit::zeroed().assume_init();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if let Some(descriptor) = descriptor {
            header.msg_control = (&raw mut control).cast();
            header.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            (*message).cmsg_level = libc::SOL_SOCKET;
            (*message).cmsg_type = libc::SCM_RIGHTS;
            (*message).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(message).cast::<RawFd>().write_unaligned(descriptor.as_raw_fd());
        }
        check(libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) as libc::c_long).map(drop)
    }
}

/// Room for one descriptor, aligned as control messages must be.
#[repr(C, align(8))]
#[derive(Default)]
struct Control([u8; 32]);

enum Message {
    Nothing,
    Ready(Option<OwnedFd>),
    Failed(ContainerError),
    Closed,
}

fn receive(socket: BorrowedFd<'_>) -> Result<Message> {
    let mut buffer = [0_u8; MESSAGE_LIMIT];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control::default();
    // SAFETY: as in send; the kernel writes no more than the lengths given, and a descriptor that arrives is ours alone.
    let (length, descriptor) = unsafe {
        let mut header: libc::msghdr = MaybeUninit::zeroed().assume_init();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = size_of::<Control>() as _;
        let length = libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC);
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        let carries = length >= 0 && !message.is_null() && (*message).cmsg_type == libc::SCM_RIGHTS;
        let descriptor =
            carries.then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(message).cast::<RawFd>().read_unaligned()));
        (length, descriptor)
    };
    match check(length as libc::c_long) {
        Ok(0) | Err(libc::ECONNRESET) => Ok(Message::Closed),
        Ok(length) => Ok(parse(&buffer[..length as usize], descriptor)),
        Err(libc::EAGAIN | libc::EINTR) => Ok(Message::Nothing),
        Err(errno) => Err(failure(errno, "receive from the new process")),
    }
}

/// The sender is a copy of this program; a message that is not one of its own counts as a failed step.
fn parse(bytes: &[u8], descriptor: Option<OwnedFd>) -> Message {
    match bytes {
        [READY] => Message::Ready(descriptor),
        [FAILED, step, e0, e1, e2, e3, l0, l1, text @ ..] => {
            let length = usize::from(u16::from_le_bytes([*l0, *l1])).min(text.len());
            let text_of = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let errno = i32::from_le_bytes([*e0, *e1, *e2, *e3]);
            let step = Step::from_code(*step).unwrap_or(Step::Exec);
            Message::Failed(ContainerError::new(step, errno, text_of(&text[..length]), text_of(&text[length..])))
        }
        _ => Message::Failed(failure(libc::EPROTO, "message of the new process")),
    }
}

pub(crate) struct Launched {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub socket: OwnedFd,
}

/// Makes a process that runs `child` in the cgroup (None: the caller's), in the `new` namespaces and in `pid_namespace` (a namespace's or a
/// process's descriptor). errno EBUSY: the cgroup takes no processes because its own groups have controllers.
pub(crate) fn launch(
    new: u64,
    pid_namespace: Option<BorrowedFd<'_>>,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(&Channel) -> Result<Infallible>,
) -> std::result::Result<Launched, ContainerError> {
    let mut pair = [0_i32; 2];
    // SAFETY: two descriptors, as socketpair wants.
    check(libc::c_long::from(unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr())
    }))
    .map_err(|errno| failure(errno, "socketpair"))?;
    // SAFETY: the kernel has just made both.
    let (socket, theirs) = unsafe { (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) };
    set_undumpable();
    // Only children are in the new pid namespace, so the next child is made while it is set.
    let own = pid_namespace.map(|namespace| -> Result<OwnedFd> {
        let own = own_pidfd().map_err(|errno| failure(errno, "pidfd_open"))?;
        set_ns(namespace, libc::CLONE_NEWPID as u64).map_err(|errno| failure(errno, "join the pid namespace"))?;
        Ok(own)
    });
    let own = own.transpose()?;
    // SAFETY: the caller is single-threaded, as this crate demands.
    let cloned = unsafe { clone3(new, cgroup) };
    if let Ok(Cloned::Child) = cloned {
        drop(socket);
        become_child(Channel(theirs), child);
    }
    if let Some(own) = own {
        // Children made from now on would be in the container's namespace: nothing sensible can follow.
        set_ns(own.as_fd(), libc::CLONE_NEWPID as u64).expect("a process can always return to its own pid namespace");
    }
    match cloned {
        Ok(Cloned::Parent { pid, pidfd }) => Ok(Launched { pid, pidfd, socket }),
        // The namespace's first process is gone (pid_namespaces(7)).
        Err(libc::ENOMEM) if pid_namespace.is_some() => Err(failure(libc::ESRCH, "the pid namespace has ended")),
        Err(errno) => Err(failure(errno, "clone3")),
        Ok(Cloned::Child) => unreachable!("the child does not return"),
    }
}

fn own_pidfd() -> std::result::Result<OwnedFd, i32> {
    // SAFETY: takes no memory.
    check_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) })
}

fn become_child(channel: Channel, child: impl FnOnce(&Channel) -> Result<Infallible>) -> ! {
    /// A panic must not unwind into the copied parent.
    struct Guard;
    impl Drop for Guard {
        fn drop(&mut self) {
            exit(FAILED_EXIT);
        }
    }
    let _guard = Guard;
    let Ok(channel) = channel.raise() else { exit(FAILED_EXIT) };
    match child(&channel) {
        Err(error) => channel.fail(&error),
        Ok(never) => match never {},
    }
    exit(FAILED_EXIT)
}

/// What ends a Pending.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    Ready,
    Exec,
}

/// What a finished Pending hands over.
pub(crate) struct Finished {
    pub socket: OwnedFd,
    /// None for a process that existed before.
    pub pidfd: Option<OwnedFd>,
    pub master: Option<OwnedFd>,
}

type Finish<T> = Box<dyn FnOnce(Finished) -> Result<T>>;

/// A process that is being made. Its pid exists from the beginning: watch for its exit before anything else, because
/// reaping is the caller's. Dropped unfinished, it is killed (but not what `start` waits for).
///
/// Event loop: when the descriptor is readable call `advance`; blocking callers use `wait`.
pub struct Pending<T> {
    socket: OwnedFd,
    pid: i32,
    goal: Goal,
    master: Option<OwnedFd>,
    /// The process to kill when this is dropped unfinished.
    kill: Option<OwnedFd>,
    finish: Option<Finish<T>>,
}

impl<T> Drop for Pending<T> {
    // Before `finish` is dropped, which removes what was made for the process.
    fn drop(&mut self) {
        if let Some(process) = &self.kill {
            let _ = pidfd_signal(process.as_fd(), libc::SIGKILL);
        }
    }
}

impl<T> Pending<T> {
    pub(crate) fn new(launched: Launched, goal: Goal, finish: Finish<T>) -> Self {
        Self {
            socket: launched.socket,
            pid: launched.pid,
            goal,
            master: None,
            kill: Some(launched.pidfd),
            finish: Some(finish),
        }
    }

    /// For a process that was made before and goes on living whatever becomes of this.
    pub(crate) fn of_existing(pid: i32, socket: OwnedFd, finish: Finish<T>) -> Self {
        Self { socket, pid, goal: Goal::Exec, master: None, kill: None, finish: Some(finish) }
    }

    /// In the caller's pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Does not block. None: nothing yet, wait until the descriptor is readable. Not to be called again after it is done.
    pub fn advance(&mut self) -> Result<Option<T>> {
        loop {
            match receive(self.socket.as_fd())? {
                Message::Nothing => return Ok(None),
                Message::Failed(error) => return Err(error),
                Message::Ready(master) => self.master = master,
                // execve has closed the socket.
                Message::Closed if self.goal == Goal::Exec => return self.finish().map(Some),
                Message::Closed => return Err(failure(libc::ECHILD, "the process ended while it was being set up")),
            }
            if self.goal == Goal::Ready {
                return self.finish().map(Some);
            }
        }
    }

    fn finish(&mut self) -> Result<T> {
        let finish = self.finish.take().ok_or_else(|| failure(libc::EALREADY, "the process was finished before"))?;
        let socket = self.socket.try_clone().map_err(|error| failure(crate::sys::errno_of(&error), "dup"))?;
        let pidfd = self
            .kill
            .as_ref()
            .map(OwnedFd::try_clone)
            .transpose()
            .map_err(|error| failure(crate::sys::errno_of(&error), "dup"))?;
        let done = finish(Finished { socket, pidfd, master: self.master.take() })?;
        self.kill = None;
        Ok(done)
    }

    /// Blocks until it is done; ETIMEDOUT, and the process is killed, after `timeout`.
    pub fn wait(mut self, timeout: Duration) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(done) = self.advance()? {
                return Ok(done);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(failure(libc::ETIMEDOUT, "the process is not ready in time"));
            }
            let mut poll = libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one structure, as said; a signal or timeout just leads to another look.
            unsafe { libc::poll(&raw mut poll, 1, left.as_millis().clamp(1, 60_000) as i32) };
        }
    }
}

impl<T> AsFd for Pending<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
