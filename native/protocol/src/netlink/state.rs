//! What a network namespace holds, as proto/network.proto describes it.
use super::address::{format_mac, from_octets, FAMILY_4, FAMILY_6};
use super::{attributes, u32_at, Netlink};
use crate::network::{Address, Link, Metric, Neighbour, NetworkState, NextHop, Prefix, RouteEntry, Rule};
use std::io;
use std::net::IpAddr;

pub const IFINFO_BYTES: usize = 16;
pub const IFADDR_BYTES: usize = 8;
pub const RTMSG_BYTES: usize = 12;
pub const NDMSG_BYTES: usize = 12;
pub const FIB_RULE_BYTES: usize = 12;
/// Nested attributes have this bit in their kind.
const KIND: u16 = 0x3fff;
pub const IFLA_NUM_TX_QUEUES: u16 = 31;
pub const IFLA_PERM_ADDRESS: u16 = 54;
pub const IFA_RT_PRIORITY: u16 = 9;
const RTA_SRC: u16 = 2;
pub const RTA_METRICS: u16 = 8;
pub const RTA_MULTIPATH: u16 = 9;
pub const RTA_TABLE: u16 = 15;
pub const RTA_VIA: u16 = 18;
pub const RTA_PREF: u16 = 20;
const RTA_ENCAP: u16 = 22;
pub const RTAX_MTU: u16 = 2;
/// A name, where the others are numbers.
const RTAX_CC_ALGO: u16 = 16;
pub const RTM_GETRULE: u16 = 34;
pub const RTM_F_CLONED: u32 = 0x200;
/// linux/fib_rules.h
pub const FRA_DST: u16 = 1;
pub const FRA_SRC: u16 = 2;
pub const FRA_IIFNAME: u16 = 3;
pub const FRA_PRIORITY: u16 = 6;
pub const FRA_FWMARK: u16 = 10;
pub const FRA_TABLE: u16 = 15;
pub const FRA_FWMASK: u16 = 16;
pub const FRA_OIFNAME: u16 = 17;
pub const FIB_RULE_INVERT: u32 = 2;
const FRA_PAD: u16 = 18;
const MAX_RAW_BYTES: usize = 64;
const RTNEXTHOP_BYTES: usize = 8;

/// Everything of the namespace that the socket belongs to. What the kernel only caches is left out.
pub fn read(netlink: &mut Netlink) -> io::Result<NetworkState> {
    let links = netlink.dump(libc::RTM_GETLINK, &[0; IFINFO_BYTES])?;
    let addresses = netlink.dump(libc::RTM_GETADDR, &[0; IFADDR_BYTES])?;
    let mut state = NetworkState {
        links: links.iter().filter_map(|message| link(message)).collect(),
        addresses: addresses.iter().filter_map(|message| address(message)).collect(),
        ..NetworkState::default()
    };
    for family in [FAMILY_4, FAMILY_6] {
        let structure = |bytes: usize| {
            let mut structure = vec![0; bytes];
            structure[0] = family;
            structure
        };
        let asked = [
            (libc::RTM_GETROUTE, structure(RTMSG_BYTES)),
            (libc::RTM_GETNEIGH, structure(NDMSG_BYTES)),
            (RTM_GETRULE, structure(FIB_RULE_BYTES)),
        ];
        for (kind, structure) in asked {
            let messages = match netlink.dump(kind, &structure) {
                // A kernel without IPv6, or without policy routing.
                Err(_) if family == FAMILY_6 || kind == RTM_GETRULE => continue,
                other => other?,
            };
            for message in &messages {
                match kind {
                    libc::RTM_GETROUTE => state.routes.extend(route(message)),
                    libc::RTM_GETNEIGH => state.neighbours.extend(neighbour(message)),
                    _ => state.rules.extend(rule(message)),
                }
            }
        }
    }
    Ok(state)
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

fn ip(value: &[u8]) -> String {
    from_octets(value).map(|address| address.to_string()).unwrap_or_default()
}

fn prefix(value: &[u8], bits: u8) -> Option<Prefix> {
    from_octets(value).map(|address| Prefix { address: address.to_string(), bits: u32::from(bits) })
}

fn link(message: &[u8]) -> Option<Link> {
    let mut link = Link { index: u32_at(message, 4)?, flags: u32_at(message, 8)?, ..Link::default() };
    for (kind, value) in attributes(message.get(IFINFO_BYTES..)?) {
        match kind & KIND {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_ADDRESS => link.mac = format_mac(value),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_PERM_ADDRESS => link.card = format_mac(value),
            IFLA_NUM_TX_QUEUES => link.queues = u32_at(value, 0)?,
            libc::IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

fn address(message: &[u8]) -> Option<Address> {
    let bits = *message.get(1)?;
    let mut found = Address {
        link: u32_at(message, 4)?,
        scope: u32::from(*message.get(3)?),
        flags: u32::from(*message.get(2)?),
        ..Address::default()
    };
    let (mut local, mut other) = (None, None);
    for (kind, value) in attributes(message.get(IFADDR_BYTES..)?) {
        match kind {
            libc::IFA_LOCAL => local = Some(value.to_vec()),
            libc::IFA_ADDRESS => other = Some(value.to_vec()),
            libc::IFA_BROADCAST => found.broadcast = ip(value),
            libc::IFA_FLAGS => found.flags = u32_at(value, 0)?,
            IFA_RT_PRIORITY => found.metric = u32_at(value, 0)?,
            _ => {}
        }
    }
    // IFA_LOCAL is the link's own address on point-to-point links, where IFA_ADDRESS is the peer's.
    if let (Some(local), Some(other)) = (&local, &other) {
        if local != other {
            found.peer = ip(other);
        }
    }
    found.prefix = prefix(&local.or(other)?, bits);
    Some(found)
}

fn route(message: &[u8]) -> Option<RouteEntry> {
    let byte = |at: usize| message.get(at).copied();
    let (family, bits, flags) = (byte(0)?, byte(1)?, u32_at(message, 8)?);
    if flags & RTM_F_CLONED != 0 {
        return None;
    }
    let mut route = RouteEntry {
        family: if family == FAMILY_4 { 4 } else { 6 },
        tos: u32::from(byte(3)?),
        table: u32::from(byte(4)?),
        protocol: u32::from(byte(5)?),
        scope: u32::from(byte(6)?),
        r#type: u32::from(byte(7)?),
        // The rest is the kernel's own (RTNH_F_LINKDOWN and the like).
        flags: flags & 4,
        ..RouteEntry::default()
    };
    for (kind, value) in attributes(message.get(RTMSG_BYTES..)?) {
        match kind & KIND {
            libc::RTA_DST => route.destination = prefix(value, bits),
            libc::RTA_GATEWAY | RTA_VIA => route.gateway = gateway(kind, value),
            libc::RTA_PREFSRC => route.source = ip(value),
            libc::RTA_OIF => route.link = u32_at(value, 0)?,
            libc::RTA_PRIORITY => route.metric = u32_at(value, 0)?,
            RTA_TABLE => route.table = u32_at(value, 0)?,
            RTA_PREF => route.preference = u32::from(*value.first()?),
            RTA_METRICS => {
                for (kind, value) in attributes(value).filter(|(kind, _)| *kind != RTAX_CC_ALGO) {
                    match (kind, u32_at(value, 0)?) {
                        (RTAX_MTU, mtu) => route.mtu = mtu,
                        (kind, value) => route.metrics.push(Metric { kind: u32::from(kind), value }),
                    }
                }
            }
            RTA_MULTIPATH => route.hops = hops(value),
            RTA_SRC => route.unsupported = "a source prefix".to_owned(),
            RTA_ENCAP => route.unsupported = "an encapsulation".to_owned(),
            _ => {}
        }
    }
    Some(route)
}

/// `struct rtvia` has the address after its family.
fn gateway(kind: u16, value: &[u8]) -> String {
    ip(if kind == RTA_VIA { value.get(2..).unwrap_or_default() } else { value })
}

/// `struct rtnexthop` with its attributes, one after the other.
fn hops(mut bytes: &[u8]) -> Vec<NextHop> {
    let mut hops = Vec::new();
    while let Some(header) = bytes.get(..RTNEXTHOP_BYTES) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let Some(rest) = bytes.get(RTNEXTHOP_BYTES..length) else { break };
        let via = attributes(rest).find(|(kind, _)| matches!(*kind, libc::RTA_GATEWAY | RTA_VIA));
        hops.push(NextHop {
            gateway: via.map(|(kind, value)| gateway(kind, value)).unwrap_or_default(),
            link: u32_at(header, 4).unwrap_or(0),
            weight: u32::from(header[3]) + 1,
            flags: u32::from(header[2]) & 4,
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

fn neighbour(message: &[u8]) -> Option<Neighbour> {
    let mut found = Neighbour {
        link: u32_at(message, 4)?,
        state: u32::from(u16::from_ne_bytes(message.get(8..10)?.try_into().ok()?)),
        flags: u32::from(*message.get(10)?),
        ..Neighbour::default()
    };
    for (kind, value) in attributes(message.get(NDMSG_BYTES..)?) {
        match kind {
            libc::NDA_DST => found.address = ip(value),
            libc::NDA_LLADDR => found.mac = format_mac(value),
            _ => {}
        }
    }
    (!found.address.is_empty()).then_some(found)
}

fn rule(message: &[u8]) -> Option<Rule> {
    let byte = |at: usize| message.get(at).copied();
    let mut rule = Rule {
        family: if byte(0)? == FAMILY_4 { 4 } else { 6 },
        tos: u32::from(byte(3)?),
        table: u32::from(byte(4)?),
        action: u32::from(byte(7)?),
        invert: u32_at(message, 8)? & FIB_RULE_INVERT != 0,
        ..Rule::default()
    };
    let (destination, source) = (byte(1)?, byte(2)?);
    for (kind, value) in attributes(message.get(FIB_RULE_BYTES..)?) {
        match kind {
            FRA_DST => rule.destination = prefix(value, destination),
            FRA_SRC => rule.source = prefix(value, source),
            FRA_IIFNAME => rule.input = text(value),
            FRA_OIFNAME => rule.output = text(value),
            FRA_PRIORITY => rule.priority = u32_at(value, 0)?,
            FRA_FWMARK => rule.mark = u32_at(value, 0)?,
            FRA_FWMASK => rule.mask = u32_at(value, 0)?,
            FRA_TABLE => rule.table = u32_at(value, 0)?,
            FRA_PAD => {}
            _ => rule.others.push(raw(kind, value)),
        }
    }
    rule.others.sort();
    Some(rule)
}

fn raw(kind: u16, value: &[u8]) -> String {
    let digits: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{kind}:{digits}")
}

/// The other way; `None`: it is no such text.
pub fn parse_raw(text: &str) -> Option<(u16, Vec<u8>)> {
    let (kind, digits) = text.split_once(':')?;
    let pair = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    let value = (0..digits.len()).step_by(2).map(pair).collect::<Option<Vec<u8>>>()?;
    (value.len() <= MAX_RAW_BYTES).then_some((kind.parse().ok()?, value))
}

/// The prefix as the kernel takes it. `None`: it is no address with a length.
pub fn parse_prefix(prefix: &Prefix) -> Option<(IpAddr, u8)> {
    let address: IpAddr = prefix.address.parse().ok()?;
    let bits = u8::try_from(prefix.bits).ok().filter(|bits| *bits <= super::address::bits(&address))?;
    Some((address, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_messages_are_nothing() {
        let message: Vec<u8> = (0..96).collect();
        for length in 0..message.len() {
            let bytes = &message[..length];
            let _ = (link(bytes), address(bytes), route(bytes), neighbour(bytes), rule(bytes), hops(bytes));
        }
    }

    #[test]
    fn an_attribute_without_a_name_of_its_own_survives() {
        assert_eq!(parse_raw(&raw(14, &[0, 0, 0, 0xff])), Some((14, vec![0, 0, 0, 0xff])));
        assert_eq!(parse_raw(&raw(22, &[])), Some((22, vec![])));
        for bad in ["", ":", "x:00", "1:0", "1:é", "1:zz", "70000:00", &format!("1:{}", "0".repeat(130))] {
            assert_eq!(parse_raw(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_namespace_is_read() {
        // Every namespace has loopback, its address and the first rules.
        let state = read(&mut Netlink::open().unwrap()).unwrap();
        let loopback = state.links.iter().find(|link| link.name == "lo").expect("lo");
        assert_eq!(loopback.mac, "00:00:00:00:00:00");
        assert!(state.rules.iter().any(|rule| rule.priority == 32_766 && rule.table == 254));
        for prefix in state.addresses.iter().filter_map(|address| address.prefix.as_ref()) {
            assert!(parse_prefix(prefix).is_some());
        }
    }
}
