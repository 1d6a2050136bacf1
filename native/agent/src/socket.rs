//! Listening and connecting over AF_VSOCK, or over unix sockets when the agent runs on a host for tests.
use crate::options::Address;
use crate::poll::watch;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

const HOST_CID: u32 = 2;
const BACKLOG: i32 = 128;
/// Bytes that the peer may send ahead of the agent's reading, per connection. The kernel takes it for the other direction's
/// limit, too, and the host's device waits for three quarters of its own 256 KiB before it tells of free space: not less.
const RECEIVE_WINDOW_BYTES: u64 = 256 << 10;

pub enum Listener {
    Vsock(AsyncFd<OwnedFd>),
    Unix(UnixListener),
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: sockaddr_vm is plain data; zero is valid for every field.
    let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

const VSOCK_ADDRESS_BYTES: libc::socklen_t = mem::size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn vsock_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is passed; the descriptor is owned by nobody else.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, kind, 0))?)) }
}

/// A stream socket of any family as tokio's stream: it reads, writes and shuts down all the same.
fn stream_of(socket: OwnedFd) -> io::Result<UnixStream> {
    UnixStream::from_std(StdUnixStream::from(socket))
}

impl Listener {
    /// Listens on a port of the given address. For unix a stale socket of that name is replaced.
    pub fn bind(address: &Address, port: u32) -> io::Result<Self> {
        let Address::Unix(directory) = address else { return Self::bind_vsock(port) };
        let path = directory.join(format!("{port}.sock"));
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).map(Self::Unix)
    }

    fn bind_vsock(port: u32) -> io::Result<Self> {
        let socket = vsock_socket()?;
        let address = vsock_address(libc::VMADDR_CID_ANY, port);
        // SAFETY: address outlives the calls and its size is the one given.
        unsafe {
            check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), VSOCK_ADDRESS_BYTES))?;
            let window = RECEIVE_WINDOW_BYTES;
            check(libc::setsockopt(
                socket.as_raw_fd(),
                libc::AF_VSOCK,
                0, // SO_VM_SOCKETS_BUFFER_SIZE; accepted sockets inherit it
                (&raw const window).cast(),
                mem::size_of::<u64>() as libc::socklen_t,
            ))?;
            check(libc::listen(socket.as_raw_fd(), BACKLOG))?;
        }
        watch(socket, Interest::READABLE).map(Self::Vsock)
    }

    /// The next connection and the peer's port. Only the host's connections are let in.
    pub async fn accept(&self) -> io::Result<(UnixStream, u32)> {
        match self {
            Self::Unix(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((stream, peer.as_pathname().map_or(0, port_of_path)))
            }
            Self::Vsock(listener) => loop {
                let mut ready = listener.readable().await?;
                let Ok(accepted) = ready.try_io(|listener| accept_vsock(listener.as_raw_fd())) else { continue };
                let (socket, peer) = accepted?;
                if peer.svm_cid != HOST_CID {
                    crate::log::warning!("vsock", "connection from CID {} refused: only the host may", peer.svm_cid);
                    continue;
                }
                return Ok((stream_of(socket)?, peer.svm_port));
            },
        }
    }
}

fn accept_vsock(listener: RawFd) -> io::Result<(OwnedFd, libc::sockaddr_vm)> {
    let mut peer = vsock_address(0, 0);
    let mut length = VSOCK_ADDRESS_BYTES;
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    loop {
        // SAFETY: peer and length outlive the call and describe one buffer.
        let accepted = unsafe { check(libc::accept4(listener, (&raw mut peer).cast(), &raw mut length, flags)) };
        match accepted {
            // AF_VSOCK gives up on any pending signal, non-blocking or not; SIGCHLD is pending often.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // SAFETY: the descriptor is new.
            accepted => return accepted.map(|fd| (unsafe { OwnedFd::from_raw_fd(fd) }, peer)),
        }
    }
}

/// In tests a client's "port" is the number that ends the name its socket is bound to.
fn port_of_path(path: &Path) -> u32 {
    let name = path.as_os_str().as_bytes();
    let digits = name.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&name[name.len() - digits..]).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Connects to a port of the host.
pub async fn connect_host(address: &Address, port: u32, timeout: Duration) -> io::Result<UnixStream> {
    let connecting = async {
        match address {
            Address::Unix(directory) => UnixStream::connect(directory.join(format!("{port}.sock"))).await,
            Address::Vsock => connect_vsock(port).await,
        }
    };
    tokio::time::timeout(timeout, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn connect_vsock(port: u32) -> io::Result<UnixStream> {
    let socket = vsock_socket()?;
    let address = vsock_address(HOST_CID, port);
    // SAFETY: address outlives the call and its size is the one given.
    let started = unsafe { check(libc::connect(socket.as_raw_fd(), (&raw const address).cast(), VSOCK_ADDRESS_BYTES)) };
    match started {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let stream = stream_of(socket)?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_clients_port_is_the_end_of_its_name() {
        for (path, port) in [("/tmp/x/p5001", 5001), ("/tmp/9/p", 0), ("/7", 7), ("/99999999999999", 0)] {
            assert_eq!(port_of_path(Path::new(path)), port);
        }
    }
}
