//! The kernel's messages for what proto/network.proto describes.
use crate::failure::{invalid, Result};
use kata_protocol::netlink::address::{family, octets, parse_mac};
use kata_protocol::netlink::state::{self, parse_prefix, parse_raw};
use kata_protocol::netlink::{push_attribute, Request};
use kata_protocol::network::{Address, Neighbour, Prefix, RouteEntry, Rule};
use std::net::IpAddr;

/// linux/if_addr.h, linux/neighbour.h
const IFA_F_NODAD: u32 = 2;
/// What the kernel says of an address and nobody sets: dadfailed, tentative, deprecated, permanent.
const IFA_F_KERNELS: u32 = 0x08 | 0x40 | 0x20 | 0x80;
const NUD_PERMANENT: u16 = 0x80;

pub(super) fn address_request(kind: u16, flags: libc::c_int, address: &Address) -> Result<Request> {
    let (own, bits) = required(address.prefix.as_ref())?;
    let other = if address.peer.is_empty() { own } else { parse_ip(&address.peer)? };
    let mut structure = [0; state::IFADDR_BYTES];
    structure[0] = family(&own);
    structure[1] = bits;
    structure[3] = address.scope as u8;
    structure[4..8].copy_from_slice(&address.link.to_ne_bytes());
    // The host has had this address until now: nobody else can have it, and it must work at once.
    let no_check = if own.is_ipv6() { IFA_F_NODAD } else { 0 };
    let flag_bits = (address.flags & !IFA_F_KERNELS) | no_check;
    let mut request = Request::new(kind, flags, &structure)
        .attribute(libc::IFA_LOCAL, &octets(&own))
        .attribute(libc::IFA_ADDRESS, &octets(&other))
        .attribute(libc::IFA_FLAGS, &flag_bits.to_ne_bytes());
    if !address.broadcast.is_empty() {
        request = request.attribute(libc::IFA_BROADCAST, &octets(&parse_ip(&address.broadcast)?));
    }
    if address.metric != 0 {
        request = request.attribute(state::IFA_RT_PRIORITY, &address.metric.to_ne_bytes());
    }
    Ok(request)
}

/// For people.
pub(super) fn summary(route: &RouteEntry) -> String {
    let destination = route.destination.as_ref();
    let destination = destination.map_or("default".to_owned(), |prefix| format!("{}/{}", prefix.address, prefix.bits));
    format!("{destination} via {:?} link {} table {} metric {}", route.gateway, route.link, route.table, route.metric)
}

pub(super) fn route_request(kind: u16, flags: libc::c_int, route: &RouteEntry) -> Result<Request> {
    let destination = route.destination.as_ref().map(|prefix| required(Some(prefix))).transpose()?;
    let mut structure = [0; state::RTMSG_BYTES];
    structure[0] = if route.family == 6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    structure[1] = destination.map_or(0, |(_, bits)| bits);
    structure[3] = route.tos as u8;
    // The attribute holds the number when it is over a byte (RT_TABLE_COMPAT).
    structure[4] = u8::try_from(route.table).unwrap_or(252);
    structure[5] = route.protocol as u8;
    structure[6] = route.scope as u8;
    structure[7] = route.r#type as u8;
    structure[8..12].copy_from_slice(&(route.flags & 4).to_ne_bytes());
    let mut request = Request::new(kind, flags, &structure).attribute(state::RTA_TABLE, &route.table.to_ne_bytes());
    if let Some((address, _)) = destination {
        request = request.attribute(libc::RTA_DST, &octets(&address));
    }
    if !route.gateway.is_empty() {
        let (kind, value) = gateway(&route.gateway, route.family)?;
        request = request.attribute(kind, &value);
    }
    if !route.source.is_empty() {
        request = request.attribute(libc::RTA_PREFSRC, &octets(&parse_ip(&route.source)?));
    }
    if route.link != 0 {
        request = request.attribute(libc::RTA_OIF, &route.link.to_ne_bytes());
    }
    if route.metric != 0 {
        request = request.attribute(libc::RTA_PRIORITY, &route.metric.to_ne_bytes());
    }
    if route.preference != 0 {
        request = request.attribute(state::RTA_PREF, &[route.preference as u8]);
    }
    let mut metrics = Vec::new();
    if route.mtu != 0 {
        push_attribute(&mut metrics, state::RTAX_MTU, &route.mtu.to_ne_bytes());
    }
    for metric in &route.metrics {
        let kind = u16::try_from(metric.kind).map_err(|_| invalid(format!("network: metric {}", metric.kind)))?;
        push_attribute(&mut metrics, kind, &metric.value.to_ne_bytes());
    }
    if !metrics.is_empty() {
        request = request.attribute(state::RTA_METRICS, &metrics);
    }
    if !route.hops.is_empty() {
        request = request.attribute(state::RTA_MULTIPATH, &hops(route)?);
    }
    Ok(request)
}

/// The attribute of a next hop's address, which is RTA_VIA when it is of the other family.
fn gateway(text: &str, route_family: u32) -> Result<(u16, Vec<u8>)> {
    let address = parse_ip(text)?;
    if address.is_ipv6() == (route_family == 6) {
        return Ok((libc::RTA_GATEWAY, octets(&address)));
    }
    let mut value = u16::from(family(&address)).to_ne_bytes().to_vec();
    value.extend(octets(&address));
    Ok((state::RTA_VIA, value))
}

fn hops(route: &RouteEntry) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for hop in &route.hops {
        let mut way = Vec::new();
        if !hop.gateway.is_empty() {
            let (kind, value) = gateway(&hop.gateway, route.family)?;
            push_attribute(&mut way, kind, &value);
        }
        bytes.extend_from_slice(&(8 + way.len() as u16).to_ne_bytes());
        bytes.extend_from_slice(&[(hop.flags & 4) as u8, hop.weight.clamp(1, 256).wrapping_sub(1) as u8]);
        bytes.extend_from_slice(&hop.link.to_ne_bytes());
        bytes.extend_from_slice(&way);
    }
    Ok(bytes)
}

pub(super) fn neighbour_request(kind: u16, flags: libc::c_int, neighbour: &Neighbour) -> Result<Request> {
    let address = parse_ip(&neighbour.address)?;
    let mut structure = [0; state::NDMSG_BYTES];
    structure[0] = family(&address);
    structure[4..8].copy_from_slice(&neighbour.link.to_ne_bytes());
    structure[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    structure[10] = neighbour.flags as u8;
    let request = Request::new(kind, flags, &structure).attribute(libc::NDA_DST, &octets(&address));
    if neighbour.mac.is_empty() {
        return Ok(request);
    }
    let mac = parse_mac(&neighbour.mac);
    let mac = mac.ok_or_else(|| invalid(format!("network: {:?} is no hardware address", neighbour.mac)))?;
    Ok(request.attribute(libc::NDA_LLADDR, &mac))
}

pub(super) fn rule_request(kind: u16, flags: libc::c_int, rule: &Rule) -> Result<Request> {
    let source = rule.source.as_ref().map(|prefix| required(Some(prefix))).transpose()?;
    let destination = rule.destination.as_ref().map(|prefix| required(Some(prefix))).transpose()?;
    let mut structure = [0; state::FIB_RULE_BYTES];
    structure[0] = if rule.family == 6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    structure[1] = destination.map_or(0, |(_, bits)| bits);
    structure[2] = source.map_or(0, |(_, bits)| bits);
    structure[3] = rule.tos as u8;
    structure[4] = u8::try_from(rule.table).unwrap_or(252);
    structure[7] = rule.action as u8;
    let invert = if rule.invert { state::FIB_RULE_INVERT } else { 0 };
    structure[8..12].copy_from_slice(&invert.to_ne_bytes());
    let mut request = Request::new(kind, flags, &structure)
        .attribute(state::FRA_TABLE, &rule.table.to_ne_bytes())
        .attribute(state::FRA_PRIORITY, &rule.priority.to_ne_bytes());
    for (kind, prefix) in [(state::FRA_SRC, source), (state::FRA_DST, destination)] {
        if let Some((address, _)) = prefix {
            request = request.attribute(kind, &octets(&address));
        }
    }
    if rule.mark != 0 || rule.mask != 0 {
        request = request
            .attribute(state::FRA_FWMARK, &rule.mark.to_ne_bytes())
            .attribute(state::FRA_FWMASK, &rule.mask.to_ne_bytes());
    }
    for (kind, name) in [(state::FRA_IIFNAME, &rule.input), (state::FRA_OIFNAME, &rule.output)] {
        if !name.is_empty() {
            let mut bytes = name.as_bytes().to_vec();
            bytes.push(0);
            request = request.attribute(kind, &bytes);
        }
    }
    for text in &rule.others {
        let (kind, value) =
            parse_raw(text).ok_or_else(|| invalid(format!("network: {text:?} of rule {}", rule.priority)))?;
        request = request.attribute(kind, &value);
    }
    Ok(request)
}

fn required(prefix: Option<&Prefix>) -> Result<(IpAddr, u8)> {
    prefix.and_then(parse_prefix).ok_or_else(|| invalid(format!("network: {prefix:?} is no address with a length")))
}

fn parse_ip(text: &str) -> Result<IpAddr> {
    super::address::parse_ip(text)
}
