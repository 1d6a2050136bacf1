//! The card of a sandbox that is on a network of the engine's: a tap in the host's network namespace to which the host routes the
//! guest's addresses, one DNS server on it, and the ports that the host publishes for it. Nothing of it outlives keeper and VMM.
mod dns;
mod names;
mod netfilter;
mod ports;
mod refusals;
mod resolver;

use crate::bounded_file::BoundedFile;
use crate::failure;
use crate::keeper::Keeper;
use crate::sys;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::{CardAddress, OpenCardRequest, OpenCardResponse};
use kata_protocol::netlink::address::{bits, family, octets, parse_mac};
use kata_protocol::netlink::state::{IFADDR_BYTES, IFINFO_BYTES, NDMSG_BYTES, RTMSG_BYTES};
use kata_protocol::netlink::{Netlink, Request};
use kata_protocol::ttrpc::{status, Code};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use tokio::task::JoinHandle;

const LOG_BYTES: u64 = 1024 * 1024;
const MTU: std::ops::RangeInclusive<u32> = 576..=65_535;
const MAX_PORTS: usize = 1024;
const MAX_NAMES: usize = 256;
const IFA_F_NODAD: u8 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// What ends with the sandbox.
pub struct Card {
    tap: String,
    device: OwnedFd,
    answer: OpenCardResponse,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Card {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The device of the card's tap, for the VMM to inherit.
pub fn device(keeper: &Keeper, tap: &str) -> Option<i32> {
    keeper.card.borrow().as_ref().filter(|card| card.tap == tap).map(|card| card.device.as_raw_fd())
}

struct Wish {
    mac: [u8; 6],
    /// (the gateway's, the guest's)
    addresses: Vec<(IpAddr, IpAddr)>,
    gateway: Ipv4Addr,
    guest: Ipv4Addr,
}

/// See `OpenCard` in proto/keeper.proto.
pub async fn open(keeper: &Rc<Keeper>, request: OpenCardRequest) -> Result<OpenCardResponse, Status> {
    if let Some(card) = &*keeper.card.borrow() {
        return match card.tap == request.tap {
            true => Ok(card.answer.clone()),
            false => Err(status(Code::FailedPrecondition, format!("the sandbox has the card {}", card.tap))),
        };
    }
    let wish = check(&request)?;
    let mut tasks = Vec::new();
    // Ports come first: where one is taken, nothing else was made.
    let published = ports::open(&request.ports, wish.guest)?;
    let chosen = published.iter().map(|port| port.chosen.clone()).collect();
    let describe = |error: io::Error| failure::from_io(&format!("network: {}", request.tap), &error);
    let device = make(&request, &wish).map_err(|error| match error.raw_os_error() {
        // Another state root's network, or an administrator's, has the same addresses.
        Some(libc::EEXIST) => status(
            Code::FailedPrecondition,
            format!("{} has an address on this host that somebody else has: {error}", request.tap),
        ),
        _ => describe(error),
    })?;
    let log = Rc::new(refusals::Log::new(BoundedFile::new(keeper.dir.join("network.log"), LOG_BYTES)));
    let resolver = Rc::new(resolver::Resolver::new(&request, Rc::clone(&log))?);
    let (udp, tcp, dns_port) = resolver::bind(wish.gateway).await.map_err(describe)?;
    tasks.push(tokio::task::spawn_local(Rc::clone(&resolver).serve_udp(udp)));
    tasks.push(tokio::task::spawn_local(Rc::clone(&resolver).serve_tcp(tcp)));
    let log_group = match refusals::open() {
        Ok((socket, group)) => {
            tasks.push(tokio::task::spawn_local(refusals::follow(socket, log, resolver)));
            group
        }
        Err(error) => {
            keeper.note(&format!("what the packet filter refuses is not logged: {error}"));
            0
        }
    };
    for port in published {
        tasks.push(tokio::task::spawn_local(port.relay()));
    }
    let answer = OpenCardResponse { dns_port: dns_port.into(), log_group: log_group.into(), ports: chosen };
    *keeper.card.borrow_mut() = Some(Card { tap: request.tap, device, answer: answer.clone(), tasks });
    Ok(answer)
}

fn check(request: &OpenCardRequest) -> Result<Wish, Status> {
    let invalid = |what: String| status(Code::InvalidArgument, what);
    let name_ok = (1..=15).contains(&request.tap.len())
        && request.tap.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if !name_ok || !MTU.contains(&request.mtu) {
        return Err(invalid(format!("tap {:?} with packets of {}", request.tap, request.mtu)));
    }
    if request.ports.len() > MAX_PORTS || request.names.len() > MAX_NAMES {
        return Err(invalid(format!("over {MAX_PORTS} ports or {MAX_NAMES} names")));
    }
    let mac = parse_mac(&request.mac).ok_or_else(|| invalid(format!("{:?} is no hardware address", request.mac)))?;
    let addresses = request.addresses.iter().map(pair).collect::<Option<Vec<_>>>();
    let addresses = addresses.ok_or_else(|| invalid("an address is none, or a pair is of two families".to_owned()))?;
    match addresses[..] {
        [(IpAddr::V4(gateway), IpAddr::V4(guest))] | [(IpAddr::V4(gateway), IpAddr::V4(guest)), (IpAddr::V6(_), _)] => {
            Ok(Wish { mac, addresses, gateway, guest })
        }
        _ => Err(invalid("a card has one IPv4 address, and one of IPv6 or none".to_owned())),
    }
}

fn pair(address: &CardAddress) -> Option<(IpAddr, IpAddr)> {
    let (gateway, guest): (IpAddr, IpAddr) = (address.gateway.parse().ok()?, address.guest.parse().ok()?);
    (gateway.is_ipv4() == guest.is_ipv4()).then_some((gateway, guest))
}

/// The tap ends with its descriptor, and with it the addresses and routes.
fn make(request: &OpenCardRequest, wish: &Wish) -> io::Result<OwnedFd> {
    let device = sys::new_tap(&request.tap).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::Unsupported, "/dev/net/tun is not there"),
        _ => error,
    })?;
    let has_v6 = wish.addresses.iter().any(|(_, guest)| guest.is_ipv6());
    harden(&request.tap, has_v6)?;
    forward(has_v6)?;
    let link = sys::link_number(&request.tap)?;
    let mut netlink = Netlink::open()?;
    let mut up = [0; IFINFO_BYTES];
    up[4..8].copy_from_slice(&link.to_ne_bytes());
    up[8..12].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    up[12..16].copy_from_slice(&(libc::IFF_UP as u32).to_ne_bytes());
    let mtu = request.mtu.to_ne_bytes();
    netlink.execute(Request::new(libc::RTM_NEWLINK, 0, &up).attribute(libc::IFLA_MTU, &mtu))?;
    for (gateway, guest) in &wish.addresses {
        let mut structure = [0; IFADDR_BYTES];
        structure[0] = family(gateway);
        structure[1] = bits(gateway);
        structure[2] = if gateway.is_ipv6() { IFA_F_NODAD } else { 0 };
        structure[4..8].copy_from_slice(&link.to_ne_bytes());
        let request = Request::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &structure);
        let own = octets(gateway);
        netlink.execute(request.attribute(libc::IFA_LOCAL, &own).attribute(libc::IFA_ADDRESS, &own))?;
        // Not the address's peer: the kernel would not answer ARP for its own side of the two.
        let mut structure = [0; RTMSG_BYTES];
        structure[0] = family(guest);
        structure[1] = bits(guest);
        structure[4] = libc::RT_TABLE_MAIN;
        structure[5] = libc::RTPROT_STATIC;
        structure[6] = if guest.is_ipv4() { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
        structure[7] = libc::RTN_UNICAST;
        let request = Request::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &structure)
            .attribute(libc::RTA_DST, &octets(guest))
            .attribute(libc::RTA_OIF, &link.to_ne_bytes())
            .attribute(libc::RTA_PREFSRC, &own);
        netlink.execute(request)?;
        // The guest need not be asked for what is known.
        let mut structure = [0; NDMSG_BYTES];
        structure[0] = family(guest);
        structure[4..8].copy_from_slice(&link.to_ne_bytes());
        structure[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        let request = Request::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &structure);
        let request = request.attribute(libc::NDA_DST, &octets(guest)).attribute(libc::NDA_LLADDR, &wish.mac);
        netlink.execute(request)?;
    }
    Ok(device)
}

/// The host believes nothing that the guest says of routers, answers ARP for the gateway alone, and hears it from the guest's own address
/// alone: every other one would take a place in the table of neighbours that all links share.
fn harden(tap: &str, has_v6: bool) -> io::Result<()> {
    for (name, value) in [("arp_ignore", "1"), ("rp_filter", "1"), ("accept_redirects", "0"), ("send_redirects", "0")] {
        set(&format!("/proc/sys/net/ipv4/conf/{tap}/{name}"), value)?;
    }
    let v6 = format!("/proc/sys/net/ipv6/conf/{tap}");
    if !Path::new(&v6).exists() {
        return Ok(());
    }
    for (name, value) in [("accept_ra", "0"), ("accept_redirects", "0"), ("autoconf", "0")] {
        set(&format!("{v6}/{name}"), value)?;
    }
    set(&format!("{v6}/disable_ipv6"), if has_v6 { "0" } else { "1" })
}

/// Lets the host pass packets on. A link on which it listens to routers would stop that then, but for the value 2.
fn forward(has_v6: bool) -> io::Result<()> {
    set("/proc/sys/net/ipv4/ip_forward", "1")?;
    const ALL: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
    if !has_v6 || reads(ALL, "1") {
        return Ok(());
    }
    for entry in fs::read_dir("/proc/sys/net/ipv6/conf")?.flatten() {
        let path = entry.path().join("accept_ra");
        if reads(&path, "1") {
            fs::write(&path, "2")?;
        }
    }
    set(ALL, "1")
}

fn reads(path: impl AsRef<Path>, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
}

/// Nothing is written where the value is there already: the place may be read-only.
fn set(path: &str, value: &str) -> io::Result<()> {
    if reads(path, value) {
        return Ok(());
    }
    fs::write(path, value)
        .map_err(|error| io::Error::new(error.kind(), format!("{path} cannot be set to {value}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_protocol::netlink::state;
    use std::os::fd::AsFd;

    fn request(tap: &str) -> OpenCardRequest {
        let address = |gateway: &str, guest: &str| CardAddress { gateway: gateway.to_owned(), guest: guest.to_owned() };
        OpenCardRequest {
            tap: tap.to_owned(),
            mtu: 1400,
            mac: "02:00:00:00:00:02".to_owned(),
            addresses: vec![address("10.9.0.1", "10.9.0.2"), address("fd00:9::1", "fd00:9::2")],
            ..OpenCardRequest::default()
        }
    }

    #[test]
    fn a_card_is_there_as_long_as_its_descriptor() {
        // Without the privilege there is nothing to see.
        let Ok(netns) = sys::new_netns() else { return };
        let seen = sys::in_network_namespace(netns.as_fd(), || {
            let first = request("kt0");
            let device = make(&first, &check(&first).unwrap())?;
            let found = state::read(&mut Netlink::open()?)?;
            let twin = request("kt1");
            let twice = make(&twin, &check(&twin).unwrap()).err().and_then(|error| error.raw_os_error());
            drop(device);
            Ok((found, twice, state::read(&mut Netlink::open()?)?))
        });
        let (found, twice, left) = match seen {
            Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) => {
                return
            }
            seen => seen.unwrap(),
        };
        let link = found.links.iter().find(|link| link.name == "kt0").unwrap();
        assert_eq!((link.mtu, link.flags & libc::IFF_UP as u32), (1400, libc::IFF_UP as u32));
        for guest in ["10.9.0.2", "fd00:9::2"] {
            let routed = |address: &str| {
                let prefixes = found.routes.iter().filter(|route| route.link == link.index);
                prefixes.filter_map(|route| route.destination.as_ref()).any(|prefix| prefix.address == address)
            };
            assert!(routed(guest), "{guest}");
        }
        assert_eq!(twice, Some(libc::EEXIST));
        assert!(left.links.iter().all(|link| !link.name.starts_with("kt")));
    }

    #[test]
    fn a_malformed_card_is_refused() {
        for change in [
            (|card: &mut OpenCardRequest| card.tap = "a/b".to_owned()) as fn(&mut OpenCardRequest),
            |card| card.mtu = 1,
            |card| card.mac = "x".to_owned(),
            |card| card.addresses.clear(),
            |card| card.addresses.swap(0, 1),
            |card| card.addresses[0].guest = "fd00::1".to_owned(),
        ] {
            let mut card = request("kt0");
            change(&mut card);
            assert_eq!(check(&card).err().map(|refusal| refusal.code), Some(Code::InvalidArgument as i32));
        }
    }
}
