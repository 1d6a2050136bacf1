//! Routes and neighbours.
use super::address::{family, format_mac, from_octets, octets, parse_ip, parse_mac, parse_prefix};
use super::links::{links, Link};
use crate::failure::{invalid, not_found, Context, Result};
use kata_protocol::netlink::{attributes, push_attribute, u32_at, Netlink, Request};
use kata_protocol::types::{ArpNeighbor, IpFamily, Route};
use std::io;
use std::net::IpAddr;

const RTMSG_BYTES: usize = 12;
const NDMSG_BYTES: usize = 12;
const MAX_ROUTES: usize = 1024;
const RTNH_F_ONLINK: u32 = 4;
const NUD_PERMANENT: u16 = 0x80;
const RTPROT_KERNEL: u8 = 2;
const RTPROT_BOOT: u8 = 3;
const RTAX_MTU: u16 = 2;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct KernelRoute {
    family: u8,
    destination: Option<IpAddr>,
    length: u8,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    index: u32,
    scope: u8,
    protocol: u8,
    flags: u32,
    mtu: u32,
    priority: Option<u32>,
    multipath: bool,
}

fn parse(message: &[u8]) -> Option<KernelRoute> {
    let (table, kind) = (*message.get(4)?, *message.get(7)?);
    let mut route = KernelRoute {
        family: *message.first()?,
        length: *message.get(1)?,
        protocol: *message.get(5)?,
        scope: *message.get(6)?,
        flags: u32_at(message, 8)?,
        ..KernelRoute::default()
    };
    if table != libc::RT_TABLE_MAIN || kind != libc::RTN_UNICAST {
        return None;
    }
    for (kind, value) in attributes(message.get(RTMSG_BYTES..)?) {
        match kind {
            libc::RTA_DST => route.destination = from_octets(value),
            libc::RTA_GATEWAY => route.gateway = from_octets(value),
            libc::RTA_PREFSRC => route.source = from_octets(value),
            libc::RTA_OIF => route.index = u32_at(value, 0)?,
            libc::RTA_PRIORITY => route.priority = u32_at(value, 0),
            RTA_METRICS => {
                let mtu = attributes(value).find(|(kind, _)| *kind == RTAX_MTU);
                route.mtu = mtu.and_then(|(_, value)| u32_at(value, 0)).unwrap_or(0);
            }
            RTA_MULTIPATH => route.multipath = true,
            _ => {}
        }
    }
    Some(route)
}

fn request(kind: u16, flags: libc::c_int, route: &KernelRoute) -> Request {
    let mut structure = [0; RTMSG_BYTES];
    structure[0] = route.family;
    structure[1] = route.length;
    structure[4] = libc::RT_TABLE_MAIN;
    structure[5] = route.protocol;
    structure[6] = route.scope;
    structure[7] = libc::RTN_UNICAST;
    structure[8..12].copy_from_slice(&(route.flags & RTNH_F_ONLINK).to_ne_bytes());
    let mut request = Request::new(kind, flags, &structure);
    let addresses =
        [(libc::RTA_DST, &route.destination), (libc::RTA_GATEWAY, &route.gateway), (libc::RTA_PREFSRC, &route.source)];
    for (kind, address) in addresses {
        if let Some(address) = address {
            request = request.attribute(kind, &octets(address));
        }
    }
    if route.index != 0 {
        request = request.attribute(libc::RTA_OIF, &route.index.to_ne_bytes());
    }
    if let Some(priority) = route.priority {
        request = request.attribute(libc::RTA_PRIORITY, &priority.to_ne_bytes());
    }
    if route.mtu != 0 {
        let mut metrics = Vec::new();
        push_attribute(&mut metrics, RTAX_MTU, &route.mtu.to_ne_bytes());
        request = request.attribute(RTA_METRICS, &metrics);
    }
    request
}

/// Routes that are about hosts and networks: not the loopback's, not multicast, not IPv6's link-local ones.
fn is_visible(route: &KernelRoute, links: &[Link]) -> bool {
    let loopback = links.iter().any(|link| link.index == route.index && link.name == "lo");
    let special = route.destination.is_some_and(|address| match address {
        IpAddr::V4(address) => address.is_multicast(),
        IpAddr::V6(address) => address.is_multicast() || address.segments()[0] & 0xffc0 == 0xfe80,
    });
    !loopback && !special
}

fn kernel_routes(netlink: &mut Netlink, links: &[Link]) -> io::Result<Vec<KernelRoute>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut structure = [0; RTMSG_BYTES];
        structure[0] = family as u8;
        let messages = match netlink.dump(libc::RTM_GETROUTE, &structure) {
            // A kernel without IPv6.
            Err(_) if family == libc::AF_INET6 => continue,
            other => other?,
        };
        found.extend(messages.iter().filter_map(|message| parse(message)).filter(|route| is_visible(route, links)));
    }
    Ok(found)
}

fn describe(route: &KernelRoute, links: &[Link]) -> Route {
    let text = |address: &Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let device = links.iter().find(|link| link.index == route.index);
    Route {
        dest: route.destination.map(|address| format!("{address}/{}", route.length)).unwrap_or_default(),
        gateway: text(&route.gateway),
        device: device.map(|link| link.name.clone()).unwrap_or_default(),
        source: text(&route.source),
        scope: u32::from(route.scope),
        family: if i32::from(route.family) == libc::AF_INET { IpFamily::V4 } else { IpFamily::V6 } as i32,
        flags: route.flags,
        mtu: route.mtu,
    }
}

fn index_of(name: &str, links: &[Link]) -> Result<u32> {
    let found = links.iter().find(|link| link.name == name).map(|link| link.index);
    found.ok_or_else(|| not_found(format!("network: there is no interface {name:?}")))
}

fn wanted(route: &Route, links: &[Link]) -> Result<KernelRoute> {
    let destination = if route.dest.is_empty() { None } else { Some(parse_prefix(&route.dest)?) };
    // 0.0.0.0/0 is the default route, which the kernel wants without a destination.
    let destination = destination.filter(|(_, length)| *length > 0);
    let optional = |text: &str| if text.is_empty() { Ok(None) } else { parse_ip(text).map(Some) };
    let (gateway, source) = (optional(&route.gateway)?, optional(&route.source)?);
    let stated = if route.family == IpFamily::V6 as i32 { libc::AF_INET6 } else { libc::AF_INET } as u8;
    let families: Vec<u8> =
        [destination.map(|(address, _)| address), gateway, source].iter().flatten().map(family).collect();
    let known = families.first().copied().unwrap_or(stated);
    if families.iter().any(|family| *family != known) {
        return Err(invalid(format!("network: route to {:?} mixes IPv4 and IPv6", route.dest)));
    }
    let scope =
        u8::try_from(route.scope).map_err(|_| invalid(format!("network: scope {} is no scope", route.scope)))?;
    // As ip(8) does: an IPv4 network without a gateway is on the link, or no gateway in it would count as reachable.
    let on_link = scope == 0 && gateway.is_none() && i32::from(known) == libc::AF_INET;
    Ok(KernelRoute {
        family: known,
        destination: destination.map(|(address, _)| address),
        length: destination.map_or(0, |(_, length)| length),
        gateway,
        source,
        index: index_of(&route.device, links)?,
        scope: if on_link { libc::RT_SCOPE_LINK } else { scope },
        protocol: RTPROT_BOOT,
        flags: route.flags,
        mtu: route.mtu,
        ..KernelRoute::default()
    })
}

/// UpdateRoutes: replaces every route that is not the kernel's own, those without a gateway first because a gateway must
/// be reachable when its route is added. Gives the routes that there are then.
pub fn update_routes(routes: &[Route]) -> Result<Vec<Route>> {
    if routes.len() > MAX_ROUTES {
        return Err(invalid(format!("network: {} routes are over {MAX_ROUTES}", routes.len())));
    }
    let what = || "network: list routes".to_owned();
    let mut netlink = Netlink::open().context(what)?;
    let links = links(&mut netlink).context(what)?;
    let mut new: Vec<KernelRoute> = routes.iter().map(|route| wanted(route, &links)).collect::<Result<_>>()?;
    new.retain(|route| is_visible(route, &links));
    new.sort_by_key(|route| route.gateway.is_some());
    for old in kernel_routes(&mut netlink, &links).context(what)? {
        if old.protocol == RTPROT_KERNEL || old.multipath {
            continue;
        }
        match netlink.execute(request(libc::RTM_DELROUTE, 0, &old)) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            other => other.context(|| format!("network: delete route {:?}", describe(&old, &links)))?,
        }
    }
    for route in &new {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        netlink
            .execute(request(libc::RTM_NEWROUTE, flags, route))
            .context(|| format!("network: add route {}", summary(&describe(route, &links))))?;
    }
    list_routes()
}

fn summary(route: &Route) -> String {
    let destination = if route.dest.is_empty() { "default" } else { &route.dest };
    format!("{destination} via {:?} device {} source {:?}", route.gateway, route.device, route.source)
}

/// ListRoutes.
pub fn list_routes() -> Result<Vec<Route>> {
    let what = || "network: list routes".to_owned();
    let mut netlink = Netlink::open().context(what)?;
    let links = links(&mut netlink).context(what)?;
    let routes = kernel_routes(&mut netlink, &links).context(what)?;
    Ok(routes.iter().map(|route| describe(route, &links)).collect())
}

/// AddARPNeighbors.
pub fn add_neighbours(neighbours: &[ArpNeighbor]) -> Result<()> {
    if neighbours.len() > MAX_ROUTES {
        return Err(invalid(format!("network: {} neighbours are over {MAX_ROUTES}", neighbours.len())));
    }
    let what = || "network: list interfaces".to_owned();
    let mut netlink = Netlink::open().context(what)?;
    let links = links(&mut netlink).context(what)?;
    for neighbour in neighbours {
        let text = neighbour.to_ip_address.as_ref().map(|address| address.address.as_str()).unwrap_or_default();
        // Some hosts send the address with its prefix length.
        let address = parse_ip(text.split('/').next().unwrap_or_default())?;
        let state = u16::try_from(neighbour.state).ok().filter(|state| *state != 0).unwrap_or(NUD_PERMANENT);
        let mut structure = [0; NDMSG_BYTES];
        structure[0] = family(&address);
        structure[4..8].copy_from_slice(&index_of(&neighbour.device, &links)?.to_ne_bytes());
        structure[8..10].copy_from_slice(&state.to_ne_bytes());
        structure[10] = neighbour.flags as u8;
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let mut message =
            Request::new(libc::RTM_NEWNEIGH, flags, &structure).attribute(libc::NDA_DST, &octets(&address));
        let mac = if neighbour.lladdr.is_empty() { None } else { Some(parse_mac(&neighbour.lladdr)?) };
        if let Some(mac) = &mac {
            message = message.attribute(libc::NDA_LLADDR, mac);
        }
        let name = mac.map(|mac| format_mac(&mac)).unwrap_or_default();
        netlink.execute(message).context(|| format!("network: add neighbour {address} {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Vec<Link> {
        vec![
            Link { index: 2, name: "eth0".into(), ..Link::default() },
            Link { index: 1, name: "lo".into(), ..Link::default() },
        ]
    }

    #[test]
    fn routes_are_checked_before_any_is_touched() {
        let route = |dest: &str, gateway: &str| Route {
            dest: dest.into(),
            gateway: gateway.into(),
            device: "eth0".into(),
            ..Default::default()
        };
        let default = wanted(&route("0.0.0.0/0", "10.0.0.1"), &link()).unwrap();
        assert_eq!((default.destination, default.length, default.index), (None, 0, 2));
        assert_eq!(default.scope, 0);
        assert_eq!(wanted(&route("10.0.0.0/8", ""), &link()).unwrap().scope, libc::RT_SCOPE_LINK);
        assert!(wanted(&route("10.0.0.0/8", "fe80::1"), &link()).is_err());
        assert!(wanted(&route("10.0.0.0/40", ""), &link()).is_err());
        let absent = Route { device: "eth9".into(), ..Route::default() };
        assert!(wanted(&absent, &link()).unwrap_err().message.contains("eth9"));
    }

    #[test]
    fn messages_round_trip_through_the_kernels_layout() {
        let route = KernelRoute {
            family: libc::AF_INET as u8,
            destination: Some("10.1.0.0".parse().unwrap()),
            length: 16,
            gateway: Some("10.0.0.1".parse().unwrap()),
            source: Some("10.0.0.2".parse().unwrap()),
            index: 2,
            scope: 253,
            protocol: RTPROT_BOOT,
            flags: RTNH_F_ONLINK,
            mtu: 1400,
            priority: Some(7),
            multipath: false,
        };
        let mut netlink_bytes = Vec::new();
        // The request without its 16-byte header is what a dump gives.
        netlink_bytes.extend_from_slice(&request(libc::RTM_NEWROUTE, 0, &route).into_payload());
        assert_eq!(parse(&netlink_bytes), Some(route.clone()));
        for cut in 0..netlink_bytes.len() {
            let _ = parse(&netlink_bytes[..cut]);
        }
        let described = describe(&route, &link());
        assert_eq!((described.dest.as_str(), described.device.as_str(), described.mtu), ("10.1.0.0/16", "eth0", 1400));
    }

    #[test]
    fn loopback_multicast_and_link_local_routes_are_left_alone() {
        let route = |text: &str, index| KernelRoute {
            destination: Some(text.parse().unwrap()),
            index,
            ..KernelRoute::default()
        };
        assert!(is_visible(&route("10.0.0.0", 2), &link()));
        for (text, index) in [("10.0.0.0", 1), ("224.0.0.0", 2), ("ff00::", 2), ("fe80::", 2)] {
            assert!(!is_visible(&route(text, index), &link()), "{text}");
        }
    }
}
