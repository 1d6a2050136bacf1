//! ttrpc (containerd/ttrpc, PROTOCOL.md): unary calls multiplexed over one stream socket.
//!
//! Everything here runs on one thread: call it inside a `tokio::task::LocalSet`. The stream type is tokio's `UnixStream`
//! for every socket family; an AF_VSOCK stream socket is wrapped by `std::os::unix::net::UnixStream::from(fd)`, which
//! reads, writes and shuts down any stream socket.
mod client;
mod frame;
mod server;
mod status;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use frame::MAX_MESSAGE_BYTES;
pub use server::{serve, Handler, HandlerFuture, Limits};
pub use status::{decode, status, status_with_detail, Code};
