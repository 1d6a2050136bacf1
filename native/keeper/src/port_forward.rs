//! Port-forward: whoever connects to a loopback address in the pod's network namespace (containerd does, for `kubectl
//! port-forward`) reaches the guest's own localhost at that port. The guest's traffic passes the namespace by, so every port of
//! its loopback is free for this. See docs/ARCHITECTURE.md, "Port-forward".
use crate::keeper::Keeper;
use crate::network;
use crate::sk_lookup;
use crate::sys;
use kata_protocol::netlink::Netlink;
use kata_protocol::DIAL_PORT;
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener as StdTcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{copy_bidirectional_with_sizes, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

const MAX_CONNECTIONS: usize = 256;
/// Each way of each connection.
const BUFFER_BYTES: usize = 16 * 1024;
/// Longer than the agent's own bound on a connection in the guest.
const DIAL_BOUND: Duration = Duration::from_secs(15);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Listeners {
    /// Closed, it takes the program out of the namespace.
    _link: OwnedFd,
    v4: TcpListener,
    v6: Option<TcpListener>,
}

/// Relays until the sandbox's end, where there is a pod's namespace that is not the host's. The task
/// of an agent that can.
pub async fn run(keeper: Rc<Keeper>) {
    let listeners = match open(&keeper) {
        Ok(Some(listeners)) => listeners,
        Ok(None) => return,
        Err(error) => return keeper.note(&format!("port-forward does not work: {error}")),
    };
    let open = Rc::new(Cell::new(0));
    tokio::select! {
        _ = keeper.wait_end() => {}
        () = accept(&keeper, &listeners.v4, 4, &open) => {}
        () = async {
            match &listeners.v6 {
                Some(v6) => accept(&keeper, v6, 6, &open).await,
                None => std::future::pending().await,
            }
        } => {}
    }
}

fn open(keeper: &Keeper) -> io::Result<Option<Listeners>> {
    // Nobody comes into a namespace of the sandbox's own, and the host's own localhost is nobody's to take.
    let netns = match &*keeper.netns.borrow() {
        Some(netns) if netns.is_pods()? => netns.file.try_clone()?,
        _ => return Ok(None),
    };
    let (link, v4, v6) = attach(&netns)?;
    let watch = |listener: StdTcpListener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    Ok(Some(Listeners { _link: link, v4: watch(v4)?, v6: v6.map(watch).transpose()? }))
}

fn attach(netns: &File) -> io::Result<(OwnedFd, StdTcpListener, Option<StdTcpListener>)> {
    let (v4, v6) = sys::in_network_namespace(netns.as_fd(), || {
        network::loopback_up(&mut Netlink::open()?)?;
        // A namespace without IPv6 has no such address.
        Ok((StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, StdTcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok()))
    })?;
    let link = sk_lookup::attach(netns.as_fd(), &v4, v6.as_ref())?;
    Ok((link, v4, v6))
}

async fn accept(keeper: &Rc<Keeper>, listener: &TcpListener, family: u8, open: &Rc<Cell<usize>>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if open.get() >= MAX_CONNECTIONS => {
                keeper.note(&format!("port-forward: a connection was turned away: {MAX_CONNECTIONS} are open"));
                let _ = stream.set_zero_linger();
            }
            Ok((stream, _)) => {
                open.set(open.get() + 1);
                let (keeper, open) = (Rc::clone(keeper), Rc::clone(open));
                tokio::task::spawn_local(async move {
                    serve(&keeper, stream, family).await;
                    open.set(open.get() - 1);
                });
            }
            Err(error) => {
                keeper.note(&format!("port-forward: accept: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Ends with an orderly close of both sides, or a reset: a port where nobody listens is one as well.
async fn serve(keeper: &Keeper, mut stream: TcpStream, family: u8) {
    let relayed = async {
        stream.set_nodelay(true)?;
        let port = stream.local_addr()?.port();
        let dialled = timeout(DIAL_BOUND, dial(keeper, family, port)).await;
        let mut guest = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        copy_bidirectional_with_sizes(&mut stream, &mut guest, BUFFER_BYTES, BUFFER_BYTES).await
    };
    let orderly = tokio::select! {
        _ = keeper.wait_end() => false,
        relayed = relayed => relayed.is_ok(),
    };
    if !orderly {
        let _ = stream.set_zero_linger();
    }
}

/// Asks the agent for a connection to its localhost. Errors: the guest's errno.
async fn dial(keeper: &Keeper, family: u8, port: u16) -> io::Result<UnixStream> {
    let (mut guest, _) = keeper.vsock.connect(DIAL_PORT).await?;
    let [high, low] = port.to_be_bytes();
    guest.write_all(&[family, high, low]).await?;
    match guest.read_u8().await? {
        0 => Ok(guest),
        errno => Err(io::Error::from_raw_os_error(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::{Shutdown, SocketAddr, TcpStream};

    /// The port that a connection to this address seems to have come in at.
    fn arrives(netns: &File, listener: &StdTcpListener, address: &str) -> SocketAddr {
        let connection = sys::in_network_namespace(netns.as_fd(), || TcpStream::connect(address)).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer, connection.local_addr().unwrap());
        connection.shutdown(Shutdown::Both).unwrap();
        accepted.local_addr().unwrap()
    }

    #[test]
    fn every_port_of_the_loopback_is_taken_and_given_back() {
        // Without the privilege, or in a kernel without BPF, there is nothing to see.
        let Ok(netns) = sys::new_netns() else { return };
        let (link, v4, v6) = match attach(&netns) {
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => return,
            attached => attached.unwrap(),
        };
        for address in ["127.0.0.1:80", "127.0.0.1:65535", "127.9.9.9:1"] {
            assert_eq!(arrives(&netns, &v4, address).to_string(), address);
        }
        if let Some(v6) = &v6 {
            assert_eq!(arrives(&netns, v6, "[::1]:443").to_string(), "[::1]:443");
        }
        drop(link);
        let refused = sys::in_network_namespace(netns.as_fd(), || TcpStream::connect("127.0.0.1:80"));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}
