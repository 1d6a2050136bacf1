//! The last steps of every process: streams, user, privileges, command.
use super::command::Command;
use super::{close_others, terminal, Streams};
use crate::caps::{Sets, SYS_ADMIN};
use crate::error::{ContainerError, Result, Step};
use crate::launch::Channel;
use crate::rlimits;
use crate::seccomp::Program;
use crate::sys::process::{close_on_exec_from, dup_onto, prctl, reset_signals};
use crate::sys::{self, c_string, check, chown_fd, file_type, stat_fd};
use crate::users::{find_home, find_user, Identity};
use kata_protocol::grpc;
use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const UMASK: u32 = 0o022;

/// Where a process's standard streams are.
pub(crate) enum Io {
    Streams(Streams),
    Terminal { master: OwnedFd, slave: OwnedFd },
}

impl Io {
    /// The streams that were given; without any a new terminal of the devpts that is mounted here.
    pub(crate) fn of(streams: Option<Streams>, process: &grpc::Process) -> Result<Self> {
        if let Some(streams) = streams {
            return Ok(Self::Streams(streams));
        }
        let (master, slave) = terminal::open(root_directory()?.as_fd(), process.console_size.as_ref())?;
        Ok(Self::Terminal { master, slave })
    }
}

/// What the last steps need to know of every process, the first one and those that join it.
pub(crate) struct Finish<'a> {
    pub process: &'a grpc::Process,
    pub string_user: Option<&'a grpc::StringUser>,
    pub capabilities: Sets,
    pub seccomp: Option<&'a Program>,
}

fn root_directory() -> Result<OwnedFd> {
    sys::open("/", libc::O_PATH | libc::O_DIRECTORY)
        .map_err(|errno| ContainerError::new(Step::Rootfs, errno, "/", "open"))
}

fn user_failure(errno: i32, value: impl ToString, what: &str) -> ContainerError {
    ContainerError::new(Step::User, errno, value.to_string(), what)
}

/// Does them. The root directory is the container's by now. `wait`: for a word before the command is executed.
pub(crate) fn finish(plan: Finish<'_>, io: Io, channel: &Channel, wait: bool) -> Result<Infallible> {
    let process = plan.process;
    let root = root_directory()?;
    let identity = identify(root.as_fd(), process, plan.string_user)?;
    let home =
        identity.home.clone().or_else(|| find_home(root.as_fd(), identity.uid)).unwrap_or_else(|| "/".to_owned());
    drop(root);
    let master = connect(io, identity.uid)?;
    let keep = [Some(channel.socket().as_raw_fd()), master.as_ref().map(AsRawFd::as_raw_fd)];
    close_others(&keep.into_iter().flatten().collect::<Vec<_>>())?;
    close_on_exec_from(3).map_err(|errno| ContainerError::new(Step::Exec, errno, "", "close descriptors on exec"))?;

    // As root first: a directory that only root may enter is a fine working directory for somebody else (runc).
    let entered = change_directory(process);
    plan.capabilities.limit_bounding()?;
    rlimits::apply(&process.rlimits)?;
    // Without no_new_privs a filter can only be loaded with CAP_SYS_ADMIN: it stays until then, unused.
    let late = if plan.seccomp.is_some() && !process.no_new_privileges { SYS_ADMIN } else { 0 };
    become_user(&identity)?;
    plan.capabilities.apply(late)?;
    if process.no_new_privileges {
        prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
            .map_err(|errno| ContainerError::new(Step::Capabilities, errno, "", "no_new_privs"))?;
    }
    match entered {
        Err(error) if error.errno == libc::EACCES => change_directory(process)?,
        other => other?,
    }
    check_directory(process)?;
    let command = Command::find(process, &home)?;
    // SAFETY: takes a number.
    unsafe { libc::umask(UMASK) };
    reset_signals();
    if wait || master.is_some() {
        channel.ready(master.as_ref().map(AsFd::as_fd))?;
    }
    drop(master);
    if wait {
        channel.wait_for_go();
    }
    if let Some(program) = plan.seccomp {
        program.load()?;
    }
    if late != 0 {
        plan.capabilities.finish()?;
    }
    command.execute()
}

fn identify(root: BorrowedFd<'_>, process: &grpc::Process, named: Option<&grpc::StringUser>) -> Result<Identity> {
    let user = process.user.as_ref();
    let identity = match named.filter(|named| !named.uid.is_empty() || !named.gid.is_empty()) {
        Some(named) => find_user(root, named)?,
        None => Identity {
            uid: user.map_or(0, |user| user.uid),
            gid: user.map_or(0, |user| user.gid),
            additional_gids: user.map_or_else(Vec::new, |user| user.additional_gids.clone()),
            home: None,
        },
    };
    // The kernel takes it for "unchanged" (setresuid(2)).
    if [identity.uid, identity.gid].contains(&u32::MAX) || identity.additional_gids.contains(&u32::MAX) {
        return Err(user_failure(libc::EINVAL, u32::MAX, "no user or group can be"));
    }
    Ok(identity)
}

/// Puts the streams in their places and gives them to the user, so that /dev/stdout can be opened by somebody who is not
/// root. Returns the terminal's master.
fn connect(io: Io, uid: u32) -> Result<Option<OwnedFd>> {
    let failure = |errno| ContainerError::new(Step::Device, errno, "", "standard streams");
    let (streams, master) = match io {
        Io::Streams(streams) => (streams, None),
        Io::Terminal { master, slave } => {
            terminal::take_control(slave.as_fd())?;
            let clone = || slave.try_clone().map_err(|error| failure(sys::errno_of(&error)));
            ([clone()?, clone()?, slave], Some(master))
        }
    };
    for (number, stream) in (0..).zip(&streams) {
        dup_onto(stream.as_fd(), number).map_err(failure)?;
        let Ok(stat) = stat_fd(stream.as_fd()) else { continue };
        let null = file_type(&stat) == libc::S_IFCHR && master.is_none();
        if uid != stat.st_uid && !null {
            // A read-only or foreign file system refuses, and the stream works all the same.
            let _ = chown_fd(stream.as_fd(), uid, u32::MAX);
        }
    }
    Ok(master)
}

fn directory_of(process: &grpc::Process) -> &str {
    if process.cwd.is_empty() {
        "/"
    } else {
        &process.cwd
    }
}

fn change_directory(process: &grpc::Process) -> Result<()> {
    let path = directory_of(process);
    let failure = |errno| ContainerError::new(Step::Chdir, errno, path, "working directory");
    let name = c_string(path).map_err(failure)?;
    // SAFETY: the path outlives the call.
    check(libc::c_long::from(unsafe { libc::chdir(name.as_ptr()) })).map(drop).map_err(failure)
}

/// The kernel says where it really is: "(unreachable)/…" for a directory outside the root (CVE-2024-21626).
fn check_directory(process: &grpc::Process) -> Result<()> {
    let path = directory_of(process);
    let failure =
        |errno| ContainerError::new(Step::Chdir, errno, path, "the working directory is not inside the container:");
    let mut buffer = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer is as long as said. The call itself, because libc's hides the unreachable.
    check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) }).map_err(failure)?;
    if buffer[0] == b'/' {
        Ok(())
    } else {
        Err(failure(libc::EPERM))
    }
}

fn become_user(identity: &Identity) -> Result<()> {
    let groups = &identity.additional_gids;
    prctl(libc::PR_SET_KEEPCAPS, 1).map_err(|errno| user_failure(errno, identity.uid, "keep capabilities for user"))?;
    // SAFETY: the array is as long as said. The calls themselves: libc's also tell other threads, of which there are none.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))
            .map_err(|errno| user_failure(errno, format!("{} groups", groups.len()), "set"))?;
        check(libc::syscall(libc::SYS_setresgid, identity.gid, identity.gid, identity.gid))
            .map_err(|errno| user_failure(errno, identity.gid, "become group"))?;
        check(libc::syscall(libc::SYS_setresuid, identity.uid, identity.uid, identity.uid))
            .map_err(|errno| user_failure(errno, identity.uid, "become user"))?;
    }
    prctl(libc::PR_SET_KEEPCAPS, 0).map_err(|errno| user_failure(errno, identity.uid, "keep no capabilities for user"))
}
