//! A shell on the debug console port, only when the kernel's command line asks for it.
use crate::agent::Agent;
use crate::log;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use tokio::net::UnixStream;
use tokio::sync::Notify;

const SHELLS: [&str; 3] = ["/run/kata-extensions/devkit/bin/devkit-sh", "/bin/bash", "/bin/sh"];

/// Serves one connection: a shell of its own on a new terminal, until either side ends.
pub fn serve(agent: &Rc<Agent>, stream: UnixStream) {
    let Some(shell) = SHELLS.into_iter().find(|path| Path::new(path).exists()) else {
        return log::warning!("debug", "no shell in the guest's image");
    };
    match start(shell) {
        Ok((master, pid)) => {
            agent.reaper.watch(pid, move |ending| log::info!("debug", "shell ended with status {}", ending.status()));
            if let Err(error) = connect(master, stream) {
                log::warning!("debug", "terminal: {error}");
            }
        }
        Err(error) => log::warning!("debug", "{shell}: {error}"),
    }
}

fn start(shell: &str) -> io::Result<(OwnedFd, i32)> {
    spawn_on_terminal(Command::new(shell))
}

/// Starts a program as the leader of a session on a new terminal. Answers the terminal's other end.
pub fn spawn_on_terminal(mut command: Command) -> io::Result<(OwnedFd, i32)> {
    use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = File::options().read(true).write(true).open(name.to_string_lossy().as_ref())?;
    command.stdin(Stdio::from(slave.try_clone()?)).stdout(Stdio::from(slave.try_clone()?)).stderr(Stdio::from(slave));
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY as _, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Ok((master, command.spawn()?.id() as i32))
}

fn connect(master: OwnedFd, stream: UnixStream) -> io::Result<()> {
    // One connection, two directions: a second descriptor of the same socket.
    let other = rustix::io::dup(rustix::fd::AsFd::as_fd(&stream))?;
    rustix::io::ioctl_fionbio(&master, true)?;
    let other = UnixStream::from_std(std::os::unix::net::UnixStream::from(other))?;
    log::info!("debug", "shell on terminal descriptor {}", master.as_raw_fd());
    let master = Rc::new(crate::poll::watch_both(master)?);
    let input = crate::input::Input::new(Some(Rc::clone(&master)), true);
    let output = crate::output::Output::new(master, true);
    tokio::task::spawn_local(async move {
        tokio::select! {
            // The host has gone: dropping both ends hangs the terminal up.
            () = input.pump(other) => {}
            () = output.pump(stream, Rc::new(Notify::new())) => {}
        }
    });
    Ok(())
}
