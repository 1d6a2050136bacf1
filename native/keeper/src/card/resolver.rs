//! The sandbox's DNS server: answers for the members of its network, asks the host's servers for the rest, and gives the packet filter
//! the addresses of the names that rules are about before the guest gets them. Every guest has one of its own, in its keeper: what
//! it asks costs nobody else, and it goes on without the engine.
use super::dns;
use super::names::Names;
use super::netfilter;
use super::refusals::Log;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::{CardName, OpenCardRequest};
use kata_protocol::ttrpc::{status, Code};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

const MAX_SERVERS: usize = 3;
const MAX_QUERIES: usize = 256;
const MAX_CONNECTIONS: usize = 16;
const QUERY_BYTES: usize = 4096;
const ANSWER_BYTES: usize = 65_535;
const ASK_BOUND: Duration = Duration::from_secs(3);
const CONNECTION_BOUND: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);
const MEMBER_TTL: u32 = 5;
/// How long an address counts as its name's, at least and at most: programs hold on to addresses for a while.
const LEARNT_SECONDS: std::ops::RangeInclusive<u32> = 300..=86_400;
/// For the log: names of the addresses that were told last.
const MAX_TOLD: usize = 1024;
const PORT: u16 = 53;
const BIND_ATTEMPTS: usize = 32;

pub struct Resolver {
    members: Names,
    /// Empty: the host's.
    servers: Vec<SocketAddr>,
    table: String,
    rules: Vec<CardName>,
    named_only: bool,
    told: RefCell<VecDeque<(IpAddr, String)>>,
    log: Rc<Log>,
    open: Cell<usize>,
}

/// UDP and TCP on the same free port.
pub async fn bind(gateway: Ipv4Addr) -> io::Result<(UdpSocket, TcpListener, u16)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..BIND_ATTEMPTS {
        let udp = UdpSocket::bind((gateway, 0)).await?;
        let port = udp.local_addr()?.port();
        match TcpListener::bind((gateway, port)).await {
            Ok(tcp) => return Ok((udp, tcp, port)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Resolver {
    pub fn new(request: &OpenCardRequest, log: Rc<Log>) -> Result<Self, Status> {
        let servers: Option<Vec<IpAddr>> = request.dns_servers.iter().map(|text| text.parse().ok()).collect();
        let servers = servers.ok_or_else(|| status(Code::InvalidArgument, "a DNS server is no address"))?;
        Ok(Resolver {
            members: Names::new(&request.names_file),
            servers: servers.into_iter().map(|address| SocketAddr::new(address, PORT)).collect(),
            table: request.table.clone(),
            rules: request.names.clone(),
            named_only: request.named_only,
            told: RefCell::default(),
            log,
            open: Cell::new(0),
        })
    }

    pub async fn serve_udp(self: Rc<Self>, socket: UdpSocket) {
        let socket = Rc::new(socket);
        let mut queries = JoinSet::new();
        let mut buffer = vec![0; QUERY_BYTES];
        loop {
            let Ok((count, client)) = socket.recv_from(&mut buffer).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            while queries.try_join_next().is_some() {}
            // The guest asks again.
            if queries.len() >= MAX_QUERIES {
                continue;
            }
            let (resolver, socket, query) = (Rc::clone(&self), Rc::clone(&socket), buffer[..count].to_vec());
            queries.spawn_local(async move {
                if let Some(answer) = resolver.answer(&query, false).await {
                    let _ = socket.send_to(&answer, client).await;
                }
            });
        }
    }

    pub async fn serve_tcp(self: Rc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            while connections.try_join_next().is_some() {}
            if self.open.get() >= MAX_CONNECTIONS {
                continue;
            }
            self.open.set(self.open.get() + 1);
            let resolver = Rc::clone(&self);
            connections.spawn_local(async move {
                let _ = resolver.converse(stream).await;
                resolver.open.set(resolver.open.get() - 1);
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let Ok(query) = timeout(CONNECTION_BOUND, read_message(&mut stream, QUERY_BYTES)).await else {
                return Ok(());
            };
            let Some(answer) = self.answer(&query?, true).await else { return Ok(()) };
            timeout(CONNECTION_BOUND, write_message(&mut stream, &answer)).await??;
        }
    }

    /// `None`: there is nothing to say.
    async fn answer(&self, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let Some(question) = dns::question(query) else { return dns::refusal(query, dns::FORMAT_ERROR) };
        let members = self.members.find(&question.name).filter(|_| question.is_internet);
        let answer = match members {
            Some(addresses) => dns::reply(query, &question, &addresses, MEMBER_TTL)?,
            None if self.named_only && !self.may_ask(&question.name) => {
                self.log.write("not allowed", |line| line.string("name", &question.name));
                return dns::refusal(query, dns::REFUSED);
            }
            None => match self.ask(query, over_tcp).await {
                Some(answer) => answer,
                None => return dns::refusal(query, dns::SERVER_FAILURE),
            },
        };
        if !self.learn(&question.name, &answer) {
            return dns::refusal(query, dns::SERVER_FAILURE);
        }
        Some(answer)
    }

    fn may_ask(&self, name: &str) -> bool {
        self.rules.iter().any(|rule| rule.allow && fits(&rule.pattern, name))
    }

    /// The name that the guest was told an address for.
    pub fn name_of(&self, address: &IpAddr) -> Option<String> {
        self.told.borrow().iter().rev().find(|(told, _)| told == address).map(|(_, name)| name.clone())
    }

    /// False: the packet filter does not have the addresses, so that they are of no use.
    fn learn(&self, name: &str, answer: &[u8]) -> bool {
        let found = dns::addresses(answer);
        {
            let mut told = self.told.borrow_mut();
            for (address, _) in &found {
                told.retain(|(other, _)| other != address);
                told.push_back((*address, name.to_owned()));
            }
            let over = told.len().saturating_sub(MAX_TOLD);
            told.drain(..over);
        }
        let times: Vec<(IpAddr, Duration)> = found
            .into_iter()
            .map(|(address, ttl)| {
                let seconds = ttl.clamp(*LEARNT_SECONDS.start(), *LEARNT_SECONDS.end());
                (address, Duration::from_secs(seconds.into()))
            })
            .collect();
        let (v4, v6): (Vec<_>, Vec<_>) = times.into_iter().partition(|(address, _)| address.is_ipv4());
        self.rules.iter().filter(|rule| fits(&rule.pattern, name)).all(|rule| {
            [(&rule.set4, &v4), (&rule.set6, &v6)].into_iter().all(|(set, addresses)| {
                let done = netfilter::insert(&self.table, set, addresses);
                if let Err(error) = &done {
                    self.log.write("failure", |line| line.string("name", name).string("error", &error.to_string()));
                }
                done.is_ok()
            })
        })
    }

    async fn ask(&self, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let servers = if self.servers.is_empty() { hosts_servers() } else { self.servers.clone() };
        for server in servers.into_iter().take(MAX_SERVERS) {
            let asked = async {
                match over_tcp {
                    true => ask_tcp(server, query).await,
                    false => ask_udp(server, query).await,
                }
            };
            if let Ok(Ok(answer)) = timeout(ASK_BOUND, asked).await {
                return Some(answer);
            }
        }
        None
    }
}

/// Whether a rule is about this name: itself, or with "*." every name below.
fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
        None => pattern == name,
    }
}

/// Read anew each time: a host may change its place.
fn hosts_servers() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let words = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    words.filter_map(|word| word.trim().parse().ok()).map(|address: IpAddr| SocketAddr::new(address, PORT)).collect()
}

/// With a number and a port of its own, so that whoever does not see the query cannot answer it.
async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let (own, number) = renumbered(query)?;
    socket.send(&own).await?;
    let mut buffer = vec![0; ANSWER_BYTES];
    loop {
        let count = socket.recv(&mut buffer).await?;
        if dns::answers(&own, &buffer[..count]) {
            buffer.truncate(count);
            buffer[..2].copy_from_slice(&number);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let (own, number) = renumbered(query)?;
    write_message(&mut stream, &own).await?;
    let mut answer = read_message(&mut stream, ANSWER_BYTES).await?;
    if !dns::answers(&own, &answer) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    answer[..2].copy_from_slice(&number);
    Ok(answer)
}

/// The query with another number, and its own.
fn renumbered(query: &[u8]) -> io::Result<(Vec<u8>, [u8; 2])> {
    let mut own = query.to_vec();
    let number = [query[0], query[1]];
    own[..2].copy_from_slice(&crate::sys::random_bytes::<2>()?);
    Ok((own, number))
}

async fn read_message(stream: &mut TcpStream, max: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let mut bytes = (message.len() as u16).to_be_bytes().to_vec();
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_labels() {
        for (pattern, name, expected) in [
            ("example.com", "example.com", true),
            ("example.com", "www.example.com", false),
            ("*.example.com", "www.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "badexample.com", false),
            ("example.com", "notexample.com", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }
}
