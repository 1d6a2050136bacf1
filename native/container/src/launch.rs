//! A process on its way: from clone to ready, or to execve.
use crate::error::Result;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// A process that is being made. Its pid exists from the beginning: watch for its exit before anything else, because
/// reaping is the caller's. Dropped unfinished, it is killed.
///
/// Event loop: when the descriptor is readable call `advance`; blocking callers use `wait`.
pub struct Pending<T> {
    socket: OwnedFd,
    pid: i32,
    done: PhantomData<T>,
}

impl<T> Pending<T> {
    /// In the caller's pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Does not block. None: nothing yet, wait until the descriptor is readable.
    pub fn advance(&mut self) -> Result<Option<T>> {
        todo!()
    }

    /// Blocks until it is done; ETIMEDOUT (and the process is killed) after `timeout`.
    pub fn wait(self, _timeout: Duration) -> Result<T> {
        todo!()
    }
}

impl<T> AsFd for Pending<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
