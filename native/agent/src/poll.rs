//! Descriptors in the runtime's event loop.
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;

/// Watches a descriptor that is non-blocking already.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is valid, stays the same descriptor, and nobody else closes it.
    unsafe { Ok(AsyncFd::register_with_interest(fd, interest)?) }
}

/// Watches a descriptor for both directions.
pub fn watch_both(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watch(fd, Interest::READABLE | Interest::WRITABLE)
}
