//! ApplyNetwork: makes the guest's network what the pod's namespace holds on the host. What containers add of their own stays: only
//! what an earlier call put there is taken away.
use super::links::{ipv6_is_off, retire, set_link, wait_for_cards};
use super::requests::{address_request, neighbour_request, route_request, rule_request, summary};
use crate::agent::Agent;
use crate::failure::{invalid, Context, Result};
use kata_protocol::agent_ext::{ApplyNetworkRequest, ApplyNetworkResponse};
use kata_protocol::netlink::address::parse_mac;
use kata_protocol::netlink::state;
use kata_protocol::netlink::{Netlink, Request};
use kata_protocol::network::{Address, NetworkState};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Bounds of what the host may ask for.
const MAX_OBJECTS: usize = 4096;
const MAX_TIMEOUT: Duration = Duration::from_secs(120);
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
/// The loopback's number in every namespace.
const LOOPBACK: u32 = 1;

/// Guest link numbers by the host's.
type Numbers = BTreeMap<u32, u32>;

pub async fn apply_network(agent: Rc<Agent>, request: ApplyNetworkRequest) -> Result<ApplyNetworkResponse> {
    let wanted = request.state.unwrap_or_default();
    let counts =
        [wanted.links.len(), wanted.addresses.len(), wanted.routes.len(), wanted.neighbours.len(), wanted.rules.len()];
    if counts.iter().any(|count| *count > MAX_OBJECTS) {
        return Err(invalid(format!("network: {counts:?} objects, at most {MAX_OBJECTS} of a kind")));
    }
    let timeout = Duration::from_millis(u64::from(request.timeout_ms)).min(MAX_TIMEOUT);
    let cards = wanted.links.iter().map(card_of).collect::<Result<Vec<_>>>()?;
    if !cards.is_empty() {
        // Cards are there or coming; a guest without any does without the driver.
        crate::modules::load_on_demand("virtio_net")?;
    }
    let found = wait_for_cards(&agent, &cards, timeout).await?;
    let numbers: Numbers = wanted.links.iter().map(|link| link.index).zip(found).collect();
    let back: Numbers = numbers.iter().map(|(host, guest)| (*guest, *host)).collect();
    let wanted = renumber(wanted, |host| link_of(host, &numbers));
    let earlier = agent.network.borrow().clone();
    // After a failure the next call finds what this one may have put there.
    *agent.network.borrow_mut() = both(&earlier, &wanted);
    let state = apply(&earlier, &wanted)?;
    *agent.network.borrow_mut() = wanted;
    let host = |guest: u32| back.get(&guest).copied().unwrap_or(if guest == LOOPBACK { LOOPBACK } else { 0 });
    Ok(ApplyNetworkResponse { state: Some(renumber(state, host)) })
}

fn card_of(link: &kata_protocol::network::Link) -> Result<[u8; 6]> {
    let text = if link.card.is_empty() { &link.mac } else { &link.card };
    parse_mac(text).ok_or_else(|| invalid(format!("network: {text:?} is no hardware address")))
}

/// A link that the request does not have is the loopback; 0 is none.
fn link_of(link: u32, numbers: &Numbers) -> u32 {
    if link == 0 {
        return 0;
    }
    numbers.get(&link).copied().unwrap_or(LOOPBACK)
}

fn both(earlier: &NetworkState, wanted: &NetworkState) -> NetworkState {
    let mut all = earlier.clone();
    all.links.extend_from_slice(&wanted.links);
    all.addresses.extend_from_slice(&wanted.addresses);
    all.routes.extend_from_slice(&wanted.routes);
    all.neighbours.extend_from_slice(&wanted.neighbours);
    all.rules.extend_from_slice(&wanted.rules);
    all
}

/// What is there afterwards.
fn apply(earlier: &NetworkState, wanted: &NetworkState) -> Result<NetworkState> {
    for old in &earlier.links {
        if !wanted.links.iter().any(|link| link.index == old.index) {
            retire(old.index)?;
        }
    }
    for link in &wanted.links {
        set_link(link, link.index)?;
    }
    let what = || "network: list what is there".to_owned();
    let mut netlink = Netlink::open().context(what)?;
    apply_addresses(&mut netlink, earlier, wanted)?;
    apply_rules(&mut netlink, earlier, wanted)?;
    apply_routes(&mut netlink, earlier, wanted)?;
    apply_neighbours(&mut netlink, earlier, wanted)?;
    state::read(&mut netlink).context(what)
}

/// What was deleted with something else is gone already.
fn delete(netlink: &mut Netlink, request: Request) -> io::Result<()> {
    const GONE: [i32; 5] = [libc::ENOENT, libc::ESRCH, libc::ENODEV, libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT];
    match netlink.execute(request) {
        Err(error) if error.raw_os_error().is_some_and(|code| GONE.contains(&code)) => Ok(()),
        other => other,
    }
}

/// What another call, or the kernel, made the same is there.
fn add(netlink: &mut Netlink, request: Request) -> io::Result<()> {
    match netlink.execute(request) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

fn is_v6(address: &Address) -> bool {
    address.prefix.as_ref().is_some_and(|prefix| prefix.address.contains(':'))
}

fn apply_addresses(netlink: &mut Netlink, earlier: &NetworkState, wanted: &NetworkState) -> Result<()> {
    for old in earlier.addresses.iter().filter(|old| !wanted.addresses.contains(old)) {
        let request = address_request(libc::RTM_DELADDR, 0, old)?;
        delete(netlink, request).context(|| format!("network: delete address {:?}", old.prefix))?;
    }
    // The kernel lists the newest IPv6 address first, and prefers it; the first IPv4 address of a network is its primary one.
    let (v6, v4): (Vec<&Address>, Vec<&Address>) = wanted.addresses.iter().partition(|address| is_v6(address));
    let v6 = if ipv6_is_off() { Vec::new() } else { v6 };
    for new in v4.into_iter().chain(v6.into_iter().rev()) {
        let request = address_request(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, new)?;
        netlink.execute(request).context(|| format!("network: add address {:?}", new.prefix))?;
    }
    Ok(())
}

/// Routes without a gateway come first, because a gateway must be reachable when its route is added.
fn apply_routes(netlink: &mut Netlink, earlier: &NetworkState, wanted: &NetworkState) -> Result<()> {
    for old in earlier.routes.iter().filter(|old| !wanted.routes.contains(old)) {
        let request = route_request(libc::RTM_DELROUTE, 0, old)?;
        delete(netlink, request).context(|| format!("network: delete route {}", summary(old)))?;
    }
    let now = state::read(netlink).context(|| "network: list routes".to_owned())?;
    let mut missing: Vec<_> = wanted.routes.iter().filter(|route| !now.routes.contains(route)).collect();
    missing.sort_by_key(|route| !route.gateway.is_empty() || !route.hops.is_empty());
    for route in missing {
        // Of equal IPv4 routes the first counts; IPv6 ones to append would be merged into one of several hops.
        let flags = if route.family == 6 { libc::NLM_F_CREATE } else { libc::NLM_F_CREATE | libc::NLM_F_APPEND };
        let request = route_request(libc::RTM_NEWROUTE, flags, route)?;
        add(netlink, request).context(|| format!("network: add route {}", summary(route)))?;
    }
    Ok(())
}

fn apply_neighbours(netlink: &mut Netlink, earlier: &NetworkState, wanted: &NetworkState) -> Result<()> {
    for old in earlier.neighbours.iter().filter(|old| !wanted.neighbours.contains(old)) {
        let request = neighbour_request(libc::RTM_DELNEIGH, 0, old)?;
        delete(netlink, request).context(|| format!("network: delete neighbour {}", old.address))?;
    }
    for new in &wanted.neighbours {
        let request = neighbour_request(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, new)?;
        netlink.execute(request).context(|| format!("network: add neighbour {}", new.address))?;
    }
    Ok(())
}

fn apply_rules(netlink: &mut Netlink, earlier: &NetworkState, wanted: &NetworkState) -> Result<()> {
    for old in earlier.rules.iter().filter(|old| !wanted.rules.contains(old)) {
        let request = rule_request(RTM_DELRULE, 0, old)?;
        delete(netlink, request).context(|| format!("network: delete rule {}", old.priority))?;
    }
    let now = state::read(netlink).context(|| "network: list rules".to_owned())?.rules;
    for rule in wanted.rules.iter().filter(|rule| !now.contains(rule)) {
        let request = rule_request(RTM_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, rule)?;
        add(netlink, request).context(|| format!("network: add rule {}", rule.priority))?;
    }
    Ok(())
}

/// Other numbers for the links.
fn renumber(mut state: NetworkState, number: impl Fn(u32) -> u32) -> NetworkState {
    state.links.iter_mut().for_each(|link| link.index = number(link.index));
    state.addresses.iter_mut().for_each(|address| address.link = number(address.link));
    for route in &mut state.routes {
        route.link = number(route.link);
        route.hops.iter_mut().for_each(|hop| hop.link = number(hop.link));
    }
    state.neighbours.iter_mut().for_each(|neighbour| neighbour.link = number(neighbour.link));
    state
}
