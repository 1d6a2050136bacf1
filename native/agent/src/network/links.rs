//! Links and their addresses.
use super::address::{bits, family, format_mac, from_octets, octets, parse_ip, parse_mac};
use crate::agent::Agent;
use crate::device::DeviceRoots;
use crate::failure::{invalid, not_found, Context, Result};
use kata_protocol::netlink::state::{IFINFO_BYTES, IFLA_PERM_ADDRESS};
use kata_protocol::netlink::{attributes, u32_at, Netlink, Request};
use kata_protocol::types::{Interface, IpAddress, IpFamily};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

const IFADDR_BYTES: usize = 8;
/// IFNAMSIZ with its NUL.
const MAX_NAME_BYTES: usize = 15;
/// The host has had this address until now: nobody else can have it, and it must work at once.
const IFA_F_NODAD: u8 = 2;

#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Vec<u8>,
    /// The one that the card was made with; empty for what is no card.
    pub card: Vec<u8>,
    pub mtu: u32,
    pub flags: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    index: u32,
    address: IpAddr,
    length: u8,
}

/// `struct ifinfomsg`
fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; IFINFO_BYTES] {
    let mut structure = [0; IFINFO_BYTES];
    structure[4..8].copy_from_slice(&index.to_ne_bytes());
    structure[8..12].copy_from_slice(&flags.to_ne_bytes());
    structure[12..16].copy_from_slice(&change.to_ne_bytes());
    structure
}

pub(super) fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let parse = |message: &Vec<u8>| {
        let mut link = Link { index: u32_at(message, 4)?, flags: u32_at(message, 8)?, ..Link::default() };
        for (kind, value) in attributes(message.get(IFINFO_BYTES..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
                libc::IFLA_ADDRESS => link.mac = value.to_vec(),
                libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
                IFLA_PERM_ADDRESS => link.card = value.to_vec(),
                _ => {}
            }
        }
        Some(link)
    };
    Ok(netlink.dump(libc::RTM_GETLINK, &ifinfo(0, 0, 0))?.iter().filter_map(parse).collect())
}

fn addresses(netlink: &mut Netlink) -> io::Result<Vec<Address>> {
    let parse = |message: &Vec<u8>| {
        let (length, index) = (*message.get(1)?, u32_at(message, 4)?);
        let mut address = None;
        for (kind, value) in attributes(message.get(IFADDR_BYTES..)?) {
            // IFA_LOCAL is the interface's own address on point-to-point links, where IFA_ADDRESS is the peer's.
            if kind == libc::IFA_LOCAL || (kind == libc::IFA_ADDRESS && address.is_none()) {
                address = from_octets(value);
            }
        }
        Some(Address { index, address: address?, length })
    };
    Ok(netlink.dump(libc::RTM_GETADDR, &[0; IFADDR_BYTES])?.iter().filter_map(parse).collect())
}

fn address_request(kind: u16, flags: libc::c_int, address: &Address) -> Request {
    let mut structure = [0; IFADDR_BYTES];
    structure[0] = family(&address.address);
    structure[1] = address.length;
    structure[2] = if address.address.is_ipv6() { IFA_F_NODAD } else { 0 };
    structure[4..8].copy_from_slice(&address.index.to_ne_bytes());
    let octets = octets(&address.address);
    Request::new(kind, flags, &structure).attribute(libc::IFA_LOCAL, &octets).attribute(libc::IFA_ADDRESS, &octets)
}

fn set_up(netlink: &mut Netlink, index: u32, up: bool) -> io::Result<()> {
    let flag = libc::IFF_UP as u32;
    netlink.execute(Request::new(libc::RTM_NEWLINK, 0, &ifinfo(index, if up { flag } else { 0 }, flag)))
}

fn rename(netlink: &mut Netlink, index: u32, name: &str) -> io::Result<()> {
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    netlink.execute(Request::new(libc::RTM_NEWLINK, 0, &ifinfo(index, 0, 0)).attribute(libc::IFLA_IFNAME, &text))
}

pub fn loopback_up() -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let loopback = links(&mut netlink)?.into_iter().find(|link| link.flags & libc::IFF_LOOPBACK as u32 != 0);
    set_up(&mut netlink, loopback.map_or(1, |link| link.index), true)
}

/// ListInterfaces.
pub fn list_interfaces() -> Result<Vec<Interface>> {
    let what = || "network: list interfaces".to_owned();
    let mut netlink = Netlink::open().context(what)?;
    let all = addresses(&mut netlink).context(what)?;
    let links = links(&mut netlink).context(what)?;
    Ok(links.iter().map(|link| describe(link, &all)).collect())
}

fn describe(link: &Link, addresses: &[Address]) -> Interface {
    let addresses = addresses.iter().filter(|address| address.index == link.index).map(|found| {
        let family = if found.address.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 };
        IpAddress { family: family as i32, address: found.address.to_string(), mask: found.length.to_string() }
    });
    Interface {
        device: link.name.clone(),
        name: link.name.clone(),
        ip_addresses: addresses.collect(),
        mtu: u64::from(link.mtu),
        hw_addr: format_mac(&link.mac),
        ..Interface::default()
    }
}

fn wanted_addresses(wanted: &Interface, index: u32) -> Result<Vec<Address>> {
    let parse = |entry: &IpAddress| {
        let address = parse_ip(&entry.address)?;
        let length = if entry.mask.is_empty() { Some(bits(&address)) } else { entry.mask.parse().ok() };
        let length = length.filter(|length| *length <= bits(&address));
        let length = length.ok_or_else(|| invalid(format!("network: {:?} is no prefix length", entry.mask)))?;
        Ok(Address { index, address, length })
    };
    wanted.ip_addresses.iter().map(parse).collect()
}

pub(super) fn ipv6_is_off() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").map_or(true, |text| text.trim() == "1")
}

/// UpdateInterface: waits for the device when its PCI path is given, finds it by hardware address, else by name, and
/// gives it name, addresses, size and flags.
pub async fn update_interface(agent: &Agent, wanted: Interface) -> Result<Interface> {
    let mac = parse_mac(&wanted.hw_addr)?;
    if wanted.name.is_empty() || wanted.name.len() > MAX_NAME_BYTES || wanted.name.contains(['/', '\0', ' ']) {
        return Err(invalid(format!("network: {:?} is no interface name", wanted.name)));
    }
    if !wanted.device_path.is_empty() {
        crate::modules::load_on_demand("virtio_net")?;
        let around = agent.storages.surroundings();
        let roots: &DeviceRoots = &around.roots;
        roots.wait_for_interface(&wanted.device_path, &around.uevents, around.hotplug_timeout).await?;
    }
    apply(&wanted, mac)
}

fn apply(wanted: &Interface, mac: [u8; 6]) -> Result<Interface> {
    let what = |step: &str| format!("network: interface {}: {step}", wanted.name);
    let mut netlink = Netlink::open().context(|| what("open netlink"))?;
    let all = links(&mut netlink).context(|| what("list"))?;
    let by_mac = all.iter().find(|link| link.mac == mac && link.flags & libc::IFF_LOOPBACK as u32 == 0);
    let link = by_mac.or_else(|| all.iter().find(|link| link.name == wanted.name));
    let link = link.ok_or_else(|| {
        let found: Vec<String> = all.iter().map(|link| format!("{} {}", link.name, format_mac(&link.mac))).collect();
        not_found(format!("network: no interface has the hardware address {}; there are {found:?}", wanted.hw_addr))
    })?;
    let addresses_wanted = wanted_addresses(wanted, link.index)?;
    set_up(&mut netlink, link.index, false).context(|| what("set down"))?;
    if link.mac != mac {
        let request = Request::new(libc::RTM_NEWLINK, 0, &ifinfo(link.index, 0, 0)).attribute(libc::IFLA_ADDRESS, &mac);
        netlink.execute(request).context(|| what("set hardware address"))?;
    }
    take_name(&mut netlink, link, &wanted.name, &all).context(|| what("rename"))?;
    replace_addresses(&mut netlink, link.index, &addresses_wanted).context(|| what("set addresses"))?;
    if let Ok(mtu) = u32::try_from(wanted.mtu) {
        if mtu > 0 {
            let request = Request::new(libc::RTM_NEWLINK, 0, &ifinfo(link.index, 0, 0));
            netlink.execute(request.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes())).context(|| what("set MTU"))?;
        }
    }
    let no_arp = libc::IFF_NOARP as u32;
    let up = libc::IFF_UP as u32;
    let request = Request::new(libc::RTM_NEWLINK, 0, &ifinfo(link.index, up | wanted.raw_flags & no_arp, up | no_arp));
    netlink.execute(request).context(|| what("set up"))?;
    let now = links(&mut netlink).context(|| what("list"))?;
    let all = addresses(&mut netlink).context(|| what("list"))?;
    let link = now.iter().find(|other| other.index == link.index).ok_or_else(|| not_found(what("is gone")))?;
    Ok(Interface { device: wanted.device.clone(), ..describe(link, &all) })
}

/// A link that has the wanted name already gets this one's name in exchange.
fn take_name(netlink: &mut Netlink, link: &Link, name: &str, all: &[Link]) -> io::Result<()> {
    if link.name == name {
        return Ok(());
    }
    let Some(holder) = all.iter().find(|other| other.name == name) else { return rename(netlink, link.index, name) };
    set_up(netlink, holder.index, false)?;
    rename(netlink, holder.index, &format!("kt_temp{}", holder.index))?;
    rename(netlink, link.index, name)?;
    rename(netlink, holder.index, &link.name)
}

fn replace_addresses(netlink: &mut Netlink, index: u32, wanted: &[Address]) -> io::Result<()> {
    for old in addresses(netlink)?.iter().filter(|old| old.index == index && !wanted.contains(old)) {
        match netlink.execute(address_request(libc::RTM_DELADDR, 0, old)) {
            // Deleting a first address takes those of the same network with it.
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
            other => other?,
        }
    }
    let without_ipv6 = ipv6_is_off();
    for new in wanted.iter().filter(|new| new.address.is_ipv4() || !without_ipv6) {
        netlink.execute(address_request(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, new))?;
    }
    Ok(())
}

/// Waits until every card, told by the hardware address that it was made with, is there and gives the cards' numbers in that order.
pub(super) async fn wait_for_cards(agent: &Agent, macs: &[[u8; 6]], timeout: Duration) -> Result<Vec<u32>> {
    let what = || "network: list interfaces".to_owned();
    let around = agent.storages.surroundings();
    let mut netlink = Netlink::open().context(what)?;
    let names: Vec<String> = macs.iter().map(|mac| format_mac(mac)).collect();
    let look = || {
        let all = links(&mut netlink).context(what)?;
        let is = |link: &&Link, mac: &[u8; 6]| {
            *mac == *(if link.card.is_empty() { &link.mac } else { &link.card }).as_slice()
        };
        let of = |mac: &[u8; 6]| all.iter().find(|link| is(link, mac)).map(|link| link.index);
        Ok(macs.iter().map(of).collect::<Option<Vec<u32>>>())
    };
    around.uevents.wait_for(&format!("a card for each of {names:?}"), timeout, look).await
}

/// Gives a card its name, hardware address, size and flags.
pub(super) fn set_link(wanted: &kata_protocol::network::Link, index: u32) -> Result<()> {
    let what = |step: &str| format!("network: interface {}: {step}", wanted.name);
    if wanted.name.is_empty() || wanted.name.len() > MAX_NAME_BYTES || wanted.name.contains(['/', '\0', ' ']) {
        return Err(invalid(format!("network: {:?} is no interface name", wanted.name)));
    }
    let mac = parse_mac(&wanted.mac)?;
    let mut netlink = Netlink::open().context(|| what("open netlink"))?;
    let all = links(&mut netlink).context(|| what("list"))?;
    let link = all.iter().find(|link| link.index == index).ok_or_else(|| not_found(what("is gone")))?;
    if link.name != wanted.name {
        // A link that is up keeps its name.
        set_up(&mut netlink, index, false).context(|| what("set down"))?;
        take_name(&mut netlink, link, &wanted.name, &all).context(|| what("rename"))?;
    }
    let change = || Request::new(libc::RTM_NEWLINK, 0, &ifinfo(index, 0, 0));
    if link.mac != mac {
        netlink.execute(change().attribute(libc::IFLA_ADDRESS, &mac)).context(|| what("set hardware address"))?;
    }
    if wanted.mtu != 0 && wanted.mtu != link.mtu {
        let request = change().attribute(libc::IFLA_MTU, &wanted.mtu.to_ne_bytes());
        netlink.execute(request).context(|| what("set MTU"))?;
    }
    let up = wanted.flags & libc::IFF_UP as u32 != 0;
    set_up(&mut netlink, index, up).context(|| what("set up"))
}

/// Takes a card whose link is gone on the host out of use: the machine may keep it. One that was unplugged is gone already.
pub(super) fn retire(index: u32) -> Result<()> {
    let what = || format!("network: interface number {index}, whose link is gone");
    let mut netlink = Netlink::open().context(what)?;
    if !links(&mut netlink).context(what)?.iter().any(|link| link.index == index) {
        return Ok(());
    }
    set_up(&mut netlink, index, false).context(what)
}
