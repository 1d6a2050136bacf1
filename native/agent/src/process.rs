//! A process of a container as its callers see it: streams, exit, terminal.
use crate::failure::{Context, Result};
use crate::input::Input;
use crate::output::{Output, PIPE_BYTES};
use crate::poll::watch_both;
use crate::reaper::Ending;
use kata_container::Stdio;
use kata_protocol::clock;
use kata_protocol::ttrpc::{status, Code};
use rustix::pipe::{pipe_with, PipeFlags};
use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{watch, Notify};

/// How a process ended, and which bytes of its streams are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    pub ending: Ending,
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
    pub oom_killed: bool,
    pub at_unix_nanos: i64,
}

/// Host connections of a process: standard input, output, error.
pub type Connections = [Option<UnixStream>; 3];

#[derive(Default)]
struct Streams {
    input: Option<Rc<Input>>,
    output: Option<Rc<Output>>,
    error: Option<Rc<Output>>,
    terminal: Option<Rc<AsyncFd<OwnedFd>>>,
}

pub struct Process {
    pub pid: Cell<i32>,
    streams: RefCell<Streams>,
    exit: watch::Sender<Option<Exit>>,
    /// Its container is being removed.
    removed: Rc<Notify>,
    /// Somebody got the exit: the entry may be forgotten.
    pub reported: Cell<bool>,
}

/// The agent's ends of a process's pipes, before the process exists.
pub struct Prepared {
    pub stdio: Stdio,
    streams: Streams,
}

/// Makes the pipes of a process, or asks for a terminal.
pub fn prepare(terminal: bool, wants_input: bool) -> Result<Prepared> {
    if terminal {
        return Ok(Prepared { stdio: Stdio::Terminal, streams: Streams::default() });
    }
    let context = || "stdio: make pipes".to_owned();
    let (stdin, input) = if wants_input {
        let (read, write) = make_pipe().context(context)?;
        (read, Some(nonblocking(write).context(context)?))
    } else {
        (OwnedFd::from(fs::File::open("/dev/null").context(|| "stdio: open /dev/null".to_owned())?), None)
    };
    let (output, stdout) = make_pipe().context(context)?;
    let (error, stderr) = make_pipe().context(context)?;
    let output = Output::new(nonblocking(output).context(context)?, false);
    let error = Output::new(nonblocking(error).context(context)?, false);
    let streams =
        Streams { input: Some(Input::new(input, false)), output: Some(output), error: Some(error), terminal: None };
    Ok(Prepared { stdio: Stdio::Streams([stdin, stdout, stderr]), streams })
}

fn make_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Over the user's limit the kernel's default stays.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE_BYTES);
    Ok((read, write))
}

/// Only the agent's end must not block; the process's own end is another file description.
fn nonblocking(fd: OwnedFd) -> io::Result<Rc<AsyncFd<OwnedFd>>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(Rc::new(watch_both(fd)?))
}

impl Process {
    pub fn new(streams: PreparedStreams) -> Rc<Self> {
        Rc::new(Self {
            pid: Cell::new(0),
            streams: RefCell::new(streams.0),
            exit: watch::Sender::new(None),
            removed: Rc::new(Notify::new()),
            reported: Cell::new(false),
        })
    }

    /// Takes the terminal's master once the process has one.
    pub fn adopt_terminal(&self, master: OwnedFd) -> Result<()> {
        let master = nonblocking(master).context(|| "stdio: terminal".to_owned())?;
        let mut streams = self.streams.borrow_mut();
        streams.input = Some(Input::new(Some(Rc::clone(&master)), true));
        let output = Output::new(Rc::clone(&master), true);
        // A process that ended before its terminal was adopted.
        let exited = *self.exit.borrow();
        if let Some(exit) = exited {
            let stdout_bytes = output.fix_own_bytes();
            self.exit.send_replace(Some(Exit { stdout_bytes, ..exit }));
        }
        streams.output = Some(output);
        streams.terminal = Some(master);
        Ok(())
    }

    /// Starts passing bytes between the process and its connections; streams without one wait for calls.
    pub fn connect(&self, [stdin, stdout, stderr]: Connections) {
        let streams = self.streams.borrow();
        if let (Some(input), Some(stream)) = (&streams.input, stdin) {
            let input = Rc::clone(input);
            let mut exit = self.exit.subscribe();
            tokio::task::spawn_local(async move {
                tokio::select! {
                    () = input.pump(stream) => {}
                    _ = exit.wait_for(Option::is_some) => {}
                }
            });
        }
        for (output, stream) in [(&streams.output, stdout), (&streams.error, stderr)] {
            let Some(output) = output.clone() else { continue };
            let removed = Rc::clone(&self.removed);
            tokio::task::spawn_local(async move {
                match stream {
                    Some(stream) => output.pump(stream, removed).await,
                    None => tokio::select! {
                        () = output.discard_after_own() => {}
                        () = removed.notified() => {}
                    },
                }
            });
        }
    }

    /// To be called by the reaper.
    pub fn note_exit(&self, ending: Ending, oom_killed: bool) {
        let streams = self.streams.borrow();
        if let Some(input) = &streams.input {
            input.discard();
        }
        let count = |output: &Option<Rc<Output>>| output.as_ref().map_or(0, |output| output.fix_own_bytes());
        let exit = Exit {
            ending,
            stdout_bytes: count(&streams.output),
            stderr_bytes: count(&streams.error),
            oom_killed,
            at_unix_nanos: clock::unix_nanos(),
        };
        self.exit.send_replace(Some(exit));
    }

    pub fn exited(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for the exit, for ever if need be.
    pub async fn wait(&self) -> Result<Exit> {
        let mut exit = self.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        exit.ok_or_else(|| status(Code::Aborted, "process: it was never created"))
    }

    /// Its container goes: connections that the host does not read are closed after a while.
    pub fn note_removed(&self) {
        self.removed.notify_waiters();
    }

    pub fn input(&self) -> Result<Rc<Input>> {
        self.streams
            .borrow()
            .input
            .clone()
            .ok_or_else(|| status(Code::Unavailable, "stdio: the process is being created"))
    }

    /// Standard output, or standard error, which a terminal does not have.
    pub fn output(&self, error: bool) -> Option<Rc<Output>> {
        let streams = self.streams.borrow();
        if error {
            streams.error.clone()
        } else {
            streams.output.clone()
        }
    }

    /// Errors: UNAVAILABLE when it has no terminal.
    pub fn resize_terminal(&self, rows: u32, columns: u32) -> Result<()> {
        let terminal = self.streams.borrow().terminal.clone();
        let terminal = terminal.ok_or_else(|| status(Code::Unavailable, "stdio: no tty"))?;
        let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let size = libc::winsize { ws_row: cells(rows), ws_col: cells(columns), ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the structure outlives the call.
        let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) };
        if done < 0 {
            return Err(io::Error::last_os_error()).context(|| "stdio: resize terminal".to_owned());
        }
        Ok(())
    }
}

/// The agent's side of prepared streams; made by `Prepared::split`.
pub struct PreparedStreams(Streams);

impl Prepared {
    /// The process's side, and the agent's.
    pub fn split(self) -> (Stdio, PreparedStreams) {
        (self.stdio, PreparedStreams(self.streams))
    }
}
