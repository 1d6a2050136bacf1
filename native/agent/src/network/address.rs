//! Addresses in text and as the kernel holds them.
use crate::failure::{invalid, Result};
use std::net::IpAddr;

pub fn parse_ip(text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| invalid(format!("network: {text:?} is no IP address")))
}

/// `10.0.0.0/8`; without a length the whole address counts.
pub fn parse_prefix(text: &str) -> Result<(IpAddr, u8)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (parse_ip(address)?, length.parse().ok()),
        None => {
            let address = parse_ip(text)?;
            (address, Some(bits(&address)))
        }
    };
    let length = length.filter(|length| *length <= bits(&address));
    length.map(|length| (address, length)).ok_or_else(|| invalid(format!("network: {text:?} is no address/length")))
}

pub fn bits(address: &IpAddr) -> u8 {
    if address.is_ipv4() {
        32
    } else {
        128
    }
}

pub fn family(address: &IpAddr) -> u8 {
    if address.is_ipv4() {
        libc::AF_INET as u8
    } else {
        libc::AF_INET6 as u8
    }
}

pub fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub fn from_octets(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// `02:42:ac:11:00:02`
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts
            .next()
            .filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|part| u8::from_str_radix(part, 16).ok());
        *byte = part.ok_or_else(|| invalid(format!("network: {text:?} is no hardware address")))?;
    }
    match parts.next() {
        None => Ok(mac),
        Some(_) => Err(invalid(format!("network: {text:?} is no hardware address"))),
    }
}

pub fn format_mac(mac: &[u8]) -> String {
    let parts: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_or_are_refused() {
        assert_eq!(parse_prefix("10.1.0.0/16").unwrap().1, 16);
        assert_eq!(parse_prefix("fe80::1").unwrap().1, 128);
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/129", "x/1", "1.2.3.4/", "1.2.3.4/-1"] {
            assert!(parse_prefix(bad).is_err(), "{bad}");
        }
        assert_eq!(format_mac(&parse_mac("02:42:AC:11:00:02").unwrap()), "02:42:ac:11:00:02");
        for bad in ["", "02:42", "02:42:ac:11:00:02:03", "02:42:ac:11:00:0g", "2:42:ac:11:00:02", "02:42:ac:11:00:+1"] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }
}
