//! ApplyNetwork: makes the guest's network what the pod's namespace holds on the host.
use super::links::{address_family_is_off, set_link, wait_for_links};
use crate::agent::Agent;
use crate::failure::{invalid, Context, Result};
use kata_protocol::agent_ext::{ApplyNetworkRequest, ApplyNetworkResponse};
use kata_protocol::netlink::address::{family, octets, parse_mac};
use kata_protocol::netlink::state::{self, parse_prefix};
use kata_protocol::netlink::{push_attribute, Netlink, Request};
use kata_protocol::network::{Address, Neighbour, NetworkState, Prefix, RouteEntry, Rule};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// Bounds of what the host may ask for.
const MAX_OBJECTS: usize = 4096;
const MAX_TIMEOUT: Duration = Duration::from_secs(120);
/// linux/rtnetlink.h, linux/if_addr.h, linux/neighbour.h
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const IFA_F_NODAD: u32 = 2;
/// What the kernel says of an address and nobody sets: dadfailed, tentative, deprecated, permanent.
const IFA_F_KERNELS: u32 = 0x08 | 0x40 | 0x20 | 0x80;
const NUD_PERMANENT: u16 = 0x80;
const RT_TABLE_LOCAL: u32 = 255;
const RTPROT_KERNEL: u32 = 2;
const FIRST_RULES: [u32; 3] = [0, 32_766, 32_767];

/// Guest link numbers by the host's, with the guest's loopback for the host's.
type Numbers = BTreeMap<u32, u32>;

pub async fn apply_network(agent: Rc<Agent>, request: ApplyNetworkRequest) -> Result<ApplyNetworkResponse> {
    let wanted = request.state.unwrap_or_default();
    let counts =
        [wanted.links.len(), wanted.addresses.len(), wanted.routes.len(), wanted.neighbours.len(), wanted.rules.len()];
    if counts.iter().any(|count| *count > MAX_OBJECTS) {
        return Err(invalid(format!("network: {counts:?} objects, at most {MAX_OBJECTS} of a kind")));
    }
    let timeout = Duration::from_millis(u64::from(request.timeout_ms)).min(MAX_TIMEOUT);
    let macs: Vec<[u8; 6]> = wanted
        .links
        .iter()
        .map(|link| {
            parse_mac(&link.mac).ok_or_else(|| invalid(format!("network: {:?} is no hardware address", link.mac)))
        })
        .collect::<Result<_>>()?;
    if !macs.is_empty() {
        // Cards are there or coming; a guest without any does without the driver.
        crate::modules::load_on_demand("virtio_net")?;
    }
    let found = wait_for_links(&agent, &macs, timeout).await?;
    let numbers: Numbers = wanted.links.iter().map(|link| link.index).zip(found).collect();
    for link in &wanted.links {
        set_link(link, numbers[&link.index])?;
    }
    let what = || "network: open netlink".to_owned();
    let mut netlink = Netlink::open().context(what)?;
    let now = state::read(&mut netlink).context(what)?;
    apply_addresses(&mut netlink, &wanted, &now, &numbers)?;
    apply_rules(&mut netlink, &wanted.rules, &now.rules)?;
    apply_routes(&mut netlink, &wanted, &numbers)?;
    for neighbour in &wanted.neighbours {
        add_neighbour(&mut netlink, neighbour, &numbers)?;
    }
    let after = state::read(&mut netlink).context(what)?;
    Ok(ApplyNetworkResponse { state: Some(renumber(after, &numbers)) })
}

/// An address on a link that the request does not have is the loopback's.
fn link_of(link: u32, numbers: &Numbers) -> u32 {
    numbers.get(&link).copied().unwrap_or(1)
}

fn apply_addresses(netlink: &mut Netlink, wanted: &NetworkState, now: &NetworkState, numbers: &Numbers) -> Result<()> {
    let key = |address: &Address, link: u32| (link, address.prefix.clone(), address.peer.clone());
    let kept: Vec<_> = wanted.addresses.iter().map(|address| key(address, link_of(address.link, numbers))).collect();
    for old in &now.addresses {
        let is_ours = numbers.values().any(|link| *link == old.link);
        let is_link_local = old.scope == u32::from(libc::RT_SCOPE_LINK) && old.peer.is_empty();
        if is_ours && !is_link_local && !kept.contains(&key(old, old.link)) {
            match netlink.execute(address_request(libc::RTM_DELADDR, 0, old, old.link)?) {
                // Deleting a first address takes those of the same network with it.
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                other => other.context(|| format!("network: delete address {:?}", old.prefix))?,
            }
        }
    }
    for new in &wanted.addresses {
        if address_family_is_off(new.prefix.as_ref().is_some_and(|prefix| prefix.address.contains(':'))) {
            continue;
        }
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let request = address_request(libc::RTM_NEWADDR, flags, new, link_of(new.link, numbers))?;
        netlink.execute(request).context(|| format!("network: add address {:?}", new.prefix))?;
    }
    Ok(())
}

fn address_request(kind: u16, flags: libc::c_int, address: &Address, link: u32) -> Result<Request> {
    let (own, bits) = required(address.prefix.as_ref())?;
    let other = if address.peer.is_empty() { own } else { parse_ip(&address.peer)? };
    let mut structure = [0; state::IFADDR_BYTES];
    structure[0] = family(&own);
    structure[1] = bits;
    structure[3] = address.scope as u8;
    structure[4..8].copy_from_slice(&link.to_ne_bytes());
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
    Ok(request)
}

/// Routes without a gateway come first, because a gateway must be reachable when its route is added.
fn apply_routes(netlink: &mut Netlink, wanted: &NetworkState, numbers: &Numbers) -> Result<()> {
    let what = || "network: list routes".to_owned();
    // Adding addresses made routes of the kernel's; what an earlier call left is replaced or deleted.
    let now = state::read(netlink).context(what)?;
    let mut routes: Vec<RouteEntry> = Vec::new();
    for route in &wanted.routes {
        let mut route = route.clone();
        route.link = if route.link == 0 { 0 } else { link_of(route.link, numbers) };
        for hop in &mut route.hops {
            hop.link = link_of(hop.link, numbers);
        }
        routes.push(route);
    }
    routes.sort_by_key(|route| !route.gateway.is_empty() || !route.hops.is_empty());
    for old in now.routes.iter().filter(|old| is_configured(old) && !routes.contains(old)) {
        match netlink.execute(route_request(libc::RTM_DELROUTE, 0, old)?) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            other => other.context(|| format!("network: delete route {}", summary(old)))?,
        }
    }
    for route in &routes {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        netlink
            .execute(route_request(libc::RTM_NEWROUTE, flags, route)?)
            .context(|| format!("network: add route {}", summary(route)))?;
    }
    Ok(())
}

fn is_configured(route: &RouteEntry) -> bool {
    route.protocol != RTPROT_KERNEL && route.table != RT_TABLE_LOCAL && route.link != 1
}

fn summary(route: &RouteEntry) -> String {
    let destination = route.destination.as_ref();
    let destination = destination.map_or("default".to_owned(), |prefix| format!("{}/{}", prefix.address, prefix.bits));
    format!("{destination} via {:?} link {} table {} metric {}", route.gateway, route.link, route.table, route.metric)
}

fn route_request(kind: u16, flags: libc::c_int, route: &RouteEntry) -> Result<Request> {
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
    for (kind, text) in [(libc::RTA_GATEWAY, &route.gateway), (libc::RTA_PREFSRC, &route.source)] {
        if !text.is_empty() {
            request = request.attribute(kind, &octets(&parse_ip(text)?));
        }
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
    if route.mtu != 0 {
        let mut metrics = Vec::new();
        push_attribute(&mut metrics, state::RTAX_MTU, &route.mtu.to_ne_bytes());
        request = request.attribute(state::RTA_METRICS, &metrics);
    }
    if !route.hops.is_empty() {
        request = request.attribute(state::RTA_MULTIPATH, &hops(route)?);
    }
    Ok(request)
}

fn hops(route: &RouteEntry) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for hop in &route.hops {
        let mut gateway = Vec::new();
        if !hop.gateway.is_empty() {
            push_attribute(&mut gateway, libc::RTA_GATEWAY, &octets(&parse_ip(&hop.gateway)?));
        }
        bytes.extend_from_slice(&(8 + gateway.len() as u16).to_ne_bytes());
        bytes.extend_from_slice(&[(hop.flags & 4) as u8, hop.weight.clamp(1, 256).wrapping_sub(1) as u8]);
        bytes.extend_from_slice(&hop.link.to_ne_bytes());
        bytes.extend_from_slice(&gateway);
    }
    Ok(bytes)
}

fn add_neighbour(netlink: &mut Netlink, neighbour: &Neighbour, numbers: &Numbers) -> Result<()> {
    let address = parse_ip(&neighbour.address)?;
    let mut structure = [0; state::NDMSG_BYTES];
    structure[0] = family(&address);
    structure[4..8].copy_from_slice(&link_of(neighbour.link, numbers).to_ne_bytes());
    structure[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    structure[10] = neighbour.flags as u8;
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let mut request = Request::new(libc::RTM_NEWNEIGH, flags, &structure).attribute(libc::NDA_DST, &octets(&address));
    if !neighbour.mac.is_empty() {
        let mac = parse_mac(&neighbour.mac)
            .ok_or_else(|| invalid(format!("network: {:?} is no hardware address", neighbour.mac)))?;
        request = request.attribute(libc::NDA_LLADDR, &mac);
    }
    netlink.execute(request).context(|| format!("network: add neighbour {address}"))
}

fn apply_rules(netlink: &mut Netlink, wanted: &[Rule], now: &[Rule]) -> Result<()> {
    for old in now.iter().filter(|old| !FIRST_RULES.contains(&old.priority) && !wanted.contains(old)) {
        netlink
            .execute(rule_request(RTM_DELRULE, 0, old)?)
            .context(|| format!("network: delete rule {}", old.priority))?;
    }
    for rule in wanted.iter().filter(|rule| !now.contains(rule)) {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let added: io::Result<()> = netlink.execute(rule_request(RTM_NEWRULE, flags, rule)?);
        match added {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            other => other.context(|| format!("network: add rule {}", rule.priority))?,
        }
    }
    Ok(())
}

fn rule_request(kind: u16, flags: libc::c_int, rule: &Rule) -> Result<Request> {
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
    Ok(request)
}

fn required(prefix: Option<&Prefix>) -> Result<(IpAddr, u8)> {
    prefix.and_then(parse_prefix).ok_or_else(|| invalid(format!("network: {prefix:?} is no address with a length")))
}

fn parse_ip(text: &str) -> Result<IpAddr> {
    super::address::parse_ip(text)
}

/// The guest's state in the request's numbers; what is on a link that the request does not know keeps none.
fn renumber(mut state: NetworkState, numbers: &Numbers) -> NetworkState {
    let back: BTreeMap<u32, u32> = numbers.iter().map(|(host, guest)| (*guest, *host)).collect();
    let host = |guest: u32| back.get(&guest).copied().unwrap_or(if guest == 1 { 1 } else { 0 });
    state.links.iter_mut().for_each(|link| link.index = host(link.index));
    state.addresses.iter_mut().for_each(|address| address.link = host(address.link));
    for route in &mut state.routes {
        route.link = host(route.link);
        route.hops.iter_mut().for_each(|hop| hop.link = host(hop.link));
    }
    state.neighbours.iter_mut().for_each(|neighbour| neighbour.link = host(neighbour.link));
    state
}
