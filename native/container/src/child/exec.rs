//! One more process of a container: enters what the first one made.
use super::finish::{finish, Finish, Io};
use super::init::guest_proc;
use super::{
    become_namespace_root, close_others, join_keyring, namespace_failure, new_session, raise_streams, set_oom_score,
    Streams,
};
use crate::error::Result;
use crate::launch::Channel;
use crate::namespaces;
use crate::sys::process::set_ns;
use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

pub(crate) struct ExecPlan<'a> {
    pub id: &'a str,
    /// The container's first process.
    pub init: BorrowedFd<'a>,
    /// CLONE_NEW* of the namespaces to enter.
    pub namespaces: u64,
    /// None: a terminal.
    pub streams: Option<Streams>,
    pub finish: Finish<'a>,
}

impl ExecPlan<'_> {
    pub(crate) fn run(self, channel: &Channel) -> Result<Infallible> {
        // SAFETY: takes a number.
        unsafe { libc::umask(0) };
        let streams = self.streams.map(raise_streams).transpose()?;
        let mut keep: Vec<i32> = streams.iter().flatten().map(AsRawFd::as_raw_fd).collect();
        keep.extend([channel.socket().as_raw_fd(), self.init.as_raw_fd()]);
        close_others(&keep)?;
        new_session()?;
        set_oom_score(guest_proc()?.as_fd(), self.finish.process.oom_score_adj)?;
        // The pid namespace is entered by being born in it. All at once: the kernel gets the order right.
        set_ns(self.init, self.namespaces & !namespaces::PID)
            .map_err(|errno| namespace_failure(errno, "join the container"))?;
        if self.namespaces & namespaces::USER != 0 {
            become_namespace_root()?;
        }
        join_keyring(self.id);
        let io = Io::of(streams, self.finish.process)?;
        finish(self.finish, io, channel, false)
    }
}
