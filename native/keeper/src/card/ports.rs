//! Published ports: held on the host as long as the sandbox lives, so that nobody else gets them. What comes from outside is sent to the
//! guest by the packet filter, before it gets here; what the host itself sends to the port is relayed.
use crate::failure;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::CardPort;
use kata_protocol::ttrpc::{status, Code};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

const MAX_CONNECTIONS: usize = 1024;
/// Each way of each connection.
const BUFFER_BYTES: usize = 64 * 1024;
const CONNECT_BOUND: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
const MAX_SESSIONS: usize = 256;
/// Without a packet either way.
const SESSION_BOUND: Duration = Duration::from_secs(60);
const PACKET_BYTES: usize = 65_535;
const BACKLOG: i32 = 1024;

enum Held {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

pub struct Port {
    held: Held,
    guest: SocketAddr,
    /// With the number that was chosen where the request left it open.
    pub chosen: CardPort,
}

/// Takes all of them or none.
pub fn open(wishes: &[CardPort], guest: Ipv4Addr) -> Result<Vec<Port>, Status> {
    wishes.iter().map(|wish| hold(wish, guest)).collect()
}

fn hold(wish: &CardPort, guest: Ipv4Addr) -> Result<Port, Status> {
    let number = |port: u32| u16::try_from(port).ok();
    let (Some(host_port), Some(guest_port @ 1..)) = (number(wish.host_port), number(wish.guest_port)) else {
        return Err(status(Code::InvalidArgument, format!("port {} to {}", wish.host_port, wish.guest_port)));
    };
    let hosts: Vec<IpAddr> = match wish.host_address.as_str() {
        // The second one where the host has no IPv6.
        "" => vec![Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()],
        text => vec![text.parse().map_err(|_| status(Code::InvalidArgument, format!("{text:?} is no address")))?],
    };
    let mut bound = Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
    for host in hosts {
        bound = bind(&wish.protocol, SocketAddr::new(host, host_port));
        match &bound {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {}
            _ => break,
        }
    }
    let (held, host_port) = bound.map_err(|error| {
        let what = format!("{}:{host_port}/{}", wish.host_address, wish.protocol);
        match error.raw_os_error() {
            Some(libc::EADDRINUSE) => status(Code::AlreadyExists, format!("port {what} of the host is in use")),
            Some(libc::EADDRNOTAVAIL) => {
                status(Code::InvalidArgument, format!("port {what}: the host does not have this address"))
            }
            _ => failure::from_io(&format!("port {what}"), &error),
        }
    })?;
    let chosen = CardPort { host_port: host_port.into(), ..wish.clone() };
    Ok(Port { held, guest: SocketAddr::new(guest.into(), guest_port), chosen })
}

fn bind(protocol: &str, address: SocketAddr) -> io::Result<(Held, u16)> {
    match protocol {
        "tcp" => {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            deepen(&listener)?;
            let port = listener.local_addr()?.port();
            Ok((Held::Tcp(TcpListener::from_std(listener)?), port))
        }
        "udp" => {
            let socket = std::net::UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            let port = socket.local_addr()?.port();
            Ok((Held::Udp(UdpSocket::from_std(socket)?), port))
        }
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// std's queue of connections holds 128.
fn deepen(listener: &std::net::TcpListener) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    crate::sys::check(unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) }.into()).map(drop)
}

impl Port {
    pub async fn relay(self) {
        match self.held {
            Held::Tcp(listener) => accept(listener, self.guest).await,
            Held::Udp(socket) => pass(Rc::new(socket), self.guest).await,
        }
    }
}

/// Tells its place in a count when it is left.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn one_more(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Counted(Rc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn accept(listener: TcpListener, guest: SocketAddr) {
    let open = Rc::new(Cell::new(0));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) if open.get() >= MAX_CONNECTIONS => drop(stream.set_zero_linger()),
            Ok((stream, _)) => {
                let counted = Counted::one_more(&open);
                connections.spawn_local(async move {
                    serve(stream, guest).await;
                    drop(counted);
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

/// A guest that does not take the connection makes it a reset.
async fn serve(mut stream: TcpStream, guest: SocketAddr) {
    let relayed = async {
        stream.set_nodelay(true)?;
        let connected = timeout(CONNECT_BOUND, TcpStream::connect(guest)).await;
        let mut guest = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        guest.set_nodelay(true)?;
        copy_bidirectional_with_sizes(&mut stream, &mut guest, BUFFER_BYTES, BUFFER_BYTES).await
    };
    let ended: io::Result<(u64, u64)> = relayed.await;
    if ended.is_err() {
        let _ = stream.set_zero_linger();
    }
}

type Sessions = Rc<RefCell<HashMap<SocketAddr, Rc<UdpSocket>>>>;

async fn pass(socket: Rc<UdpSocket>, guest: SocketAddr) {
    let sessions = Sessions::default();
    let mut replies = tokio::task::JoinSet::new();
    let mut buffer = vec![0; PACKET_BYTES];
    loop {
        let Ok((count, client)) = socket.recv_from(&mut buffer).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        while replies.try_join_next().is_some() {}
        let known = sessions.borrow().get(&client).cloned();
        let session = match known {
            Some(session) => session,
            None if sessions.borrow().len() >= MAX_SESSIONS => continue,
            None => {
                let Ok(session) = connect(guest).await else { continue };
                sessions.borrow_mut().insert(client, Rc::clone(&session));
                let (socket, sessions, reader) = (Rc::clone(&socket), Rc::clone(&sessions), Rc::clone(&session));
                replies.spawn_local(async move {
                    answer(&socket, &reader, client).await;
                    sessions.borrow_mut().remove(&client);
                });
                session
            }
        };
        let _ = session.send(&buffer[..count]).await;
    }
}

async fn connect(guest: SocketAddr) -> io::Result<Rc<UdpSocket>> {
    let session = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    session.connect(guest).await?;
    Ok(Rc::new(session))
}

/// Until the guest has been silent for a while.
async fn answer(socket: &UdpSocket, session: &UdpSocket, client: SocketAddr) {
    let mut buffer = vec![0; PACKET_BYTES];
    while let Ok(received) = timeout(SESSION_BOUND, session.recv(&mut buffer)).await {
        // An error is the guest's "nobody listens": the next packet may find somebody.
        if let Ok(count) = received {
            let _ = socket.send_to(&buffer[..count], client).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn wish(host_port: u16, guest_port: u16, protocol: &str) -> CardPort {
        CardPort {
            host_address: "127.0.0.1".to_owned(),
            host_port: host_port.into(),
            protocol: protocol.to_owned(),
            guest_port: guest_port.into(),
        }
    }

    #[test]
    fn what_arrives_is_relayed_and_a_taken_port_is_told() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let guest_udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let (tcp, udp) = (guest.local_addr().unwrap().port(), guest_udp.local_addr().unwrap().port());
            let ports = open(&[wish(0, tcp, "tcp"), wish(0, udp, "udp")], Ipv4Addr::LOCALHOST).unwrap();
            let chosen: Vec<u16> = ports.iter().map(|port| port.chosen.host_port as u16).collect();
            let taken = open(&[wish(chosen[0], 80, "tcp")], Ipv4Addr::LOCALHOST).err().unwrap();
            assert_eq!(taken.code, Code::AlreadyExists as i32);
            assert!(taken.message.contains("is in use"), "{}", taken.message);
            for port in ports {
                tokio::task::spawn_local(port.relay());
            }
            let mut client = TcpStream::connect(("127.0.0.1", chosen[0])).await.unwrap();
            client.write_all(b"ping").await.unwrap();
            client.shutdown().await.unwrap();
            let (mut accepted, _) = guest.accept().await.unwrap();
            let mut text = String::new();
            accepted.read_to_string(&mut text).await.unwrap();
            accepted.write_all(b"pong").await.unwrap();
            drop(accepted);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert_eq!((text.as_str(), answer.as_str()), ("ping", "pong"));
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.connect(("127.0.0.1", chosen[1])).await.unwrap();
            client.send(b"one").await.unwrap();
            let mut buffer = [0; 16];
            let (count, from) = guest_udp.recv_from(&mut buffer).await.unwrap();
            guest_udp.send_to(&buffer[..count], from).await.unwrap();
            assert_eq!(client.recv(&mut buffer).await.unwrap(), 3);
        });
    }
}
