//! What the sandbox was refused: packets that the filter's rules log (nflog), and names that the resolver did not answer for. One JSON
//! object a line in network.log.
use super::resolver::Resolver;
use crate::bounded_file::BoundedFile;
use crate::json::Writer;
use crate::sys;
use crate::text;
use kata_protocol::clock;
use kata_protocol::netlink::{attributes, u32_at, Request};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;
use tokio::io::unix::AsyncFd;

/// linux/netfilter/nfnetlink_log.h
const ULOG: u16 = 4;
const PACKET: u16 = ULOG << 8;
const CONFIG: u16 = ULOG << 8 | 1;
const CFG_CMD: u16 = 1;
const CFG_MODE: u16 = 2;
const CFG_TIMEOUT: u16 = 4;
const CMD_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
/// The headers up to the ports.
const COPY_BYTES: u32 = 64;
/// Hundredths of a second until a packet that was logged alone is told.
const TELL_AFTER: u32 = 10;
const NFGENMSG: usize = 4;
const ATTEMPTS: usize = 64;
/// Lines that come at once, and lines a second from then on.
const BURST: f64 = 40.0;
const RATE: f64 = 20.0;

/// network.log, bounded in size and in lines a second.
pub struct Log {
    file: RefCell<BoundedFile>,
    allowance: Cell<(f64, Instant)>,
}

impl Log {
    pub fn new(file: BoundedFile) -> Self {
        Log { file: RefCell::new(file), allowance: Cell::new((BURST, Instant::now())) }
    }

    /// `what` is what the line has beside its time and rule.
    pub fn write(&self, rule: &str, what: impl FnOnce(Writer) -> Writer) {
        let (left, at) = self.allowance.get();
        let now = Instant::now();
        let left = (left + now.duration_since(at).as_secs_f64() * RATE).min(BURST);
        self.allowance.set(((left - 1.0).max(left.min(0.0)), now));
        if left < 1.0 {
            return;
        }
        let time = clock::rfc3339(clock::unix_nanos());
        let line = Writer::object().string("time", &String::from_utf8_lossy(&time)).string("rule", rule);
        self.file.borrow_mut().write(format!("{}\n", what(line).end()).as_bytes());
    }
}

/// Listens to a group that nobody else has.
pub fn open() -> io::Result<(AsyncFd<OwnedFd>, u16)> {
    for _ in 0..ATTEMPTS {
        let group = u16::from_ne_bytes(sys::random_bytes()?).max(2);
        let socket = sys::netfilter_socket()?;
        match bind(&socket, group) {
            Ok(()) => return Ok((sys::watch(socket)?, group)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST | libc::EPERM)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

fn bind(socket: &OwnedFd, group: u16) -> io::Result<()> {
    let [high, low] = group.to_be_bytes();
    let request = || Request::new(CONFIG, libc::NLM_F_ACK, &[0, 0, high, low]);
    let mut mode = COPY_BYTES.to_be_bytes().to_vec();
    mode.extend_from_slice(&[COPY_PACKET, 0]);
    execute(socket, request().attribute(CFG_CMD, &[CMD_BIND]))?;
    execute(socket, request().attribute(CFG_MODE, &mode).attribute(CFG_TIMEOUT, &TELL_AFTER.to_be_bytes()))
}

fn execute(socket: &OwnedFd, request: Request) -> io::Result<()> {
    sys::write(socket, &request.finish(1))?;
    let mut buffer = [0; 4096];
    let count = sys::read(socket, &mut buffer)?;
    match u32_at(&buffer[..count], 16).map(|errno| errno as i32) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

pub async fn follow(socket: AsyncFd<OwnedFd>, log: Rc<Log>, resolver: Rc<Resolver>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(mut ready) = socket.readable().await {
        match ready.try_io(|fd| sys::read(fd.get_ref(), &mut buffer)) {
            // Some were lost.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Ok(Err(_)) => return,
            Ok(Ok(count)) => tell(&buffer[..count], &log, &resolver),
            Err(_) => {}
        }
    }
}

fn tell(mut bytes: &[u8], log: &Log, resolver: &Resolver) {
    while let Some(length) = u32_at(bytes, 0).map(|length| length as usize).filter(|length| *length >= 16) {
        let Some(message) = bytes.get(..length) else { return };
        if message[4..6] == PACKET.to_ne_bytes() {
            packet(message.get(16 + NFGENMSG..).unwrap_or_default(), log, resolver);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

fn packet(message: &[u8], log: &Log, resolver: &Resolver) {
    let (mut rule, mut target) = (String::new(), None);
    for (kind, value) in attributes(message) {
        match kind {
            PREFIX => rule = text::escape(value.split(|byte| *byte == 0).next().unwrap_or_default()),
            PAYLOAD => target = destination(value),
            _ => {}
        }
    }
    let Some(Destination { address, protocol, port }) = target else { return };
    log.write(&rule, |line| {
        let line = line.string("address", &address.to_string()).string("protocol", &protocol);
        let line = match port {
            Some(port) => line.raw("port", port),
            None => line,
        };
        match resolver.name_of(&address) {
            Some(name) => line.string("name", &name),
            None => line,
        }
    });
}

struct Destination {
    address: IpAddr,
    protocol: String,
    port: Option<u16>,
}

/// Where a packet was to go. The guest wrote it.
fn destination(packet: &[u8]) -> Option<Destination> {
    let (address, number, rest): (IpAddr, u8, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            (<[u8; 4]>::try_from(packet.get(16..20)?).ok()?.into(), packet[9], packet.get(header..).unwrap_or_default())
        }
        6 => (<[u8; 16]>::try_from(packet.get(24..40)?).ok()?.into(), packet[6], &packet[40..]),
        _ => return None,
    };
    let protocol = match number {
        1 | 58 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        other => other.to_string(),
    };
    let has_ports = matches!(number, 6 | 17);
    let port = rest.get(2..4).filter(|_| has_ports).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    Some(Destination { address, protocol, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn the_destination_of_any_packet_is_read_within_bounds() {
        let mut v4 = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, 192, 0, 2, 1];
        v4.extend_from_slice(&[0x80, 0, 1, 0xbb]);
        let found = destination(&v4).unwrap();
        assert_eq!(
            (found.address.to_string(), found.protocol.as_str(), found.port),
            ("192.0.2.1".into(), "tcp", Some(443))
        );
        for cut in 0..v4.len() {
            let _ = destination(&v4[..cut]);
        }
        for first in 0..=255 {
            let mut packet = vec![0xff; 44];
            packet[0] = first;
            let _ = destination(&packet);
        }
    }

    #[test]
    fn lines_are_bounded() {
        let dir = TempDir::new();
        let path = dir.path().join("network.log");
        let log = Log::new(BoundedFile::new(path.clone(), 1 << 20));
        for _ in 0..1000 {
            log.write("r", |line| line.raw("port", 1));
        }
        let lines = std::fs::read_to_string(path).unwrap().lines().count();
        assert!((40..80).contains(&lines), "{lines}");
    }

    #[test]
    fn a_group_is_ones_own() {
        // Without the privilege, or in a kernel without nflog, there is nothing to see.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let Ok((_socket, group)) = open() else { return };
            let other = sys::netfilter_socket().unwrap();
            assert!(bind(&other, group).is_err());
        });
    }
}
