//! Addresses in the text of requests.
use crate::failure::{invalid, Result};
use kata_protocol::netlink::address;
pub use kata_protocol::netlink::address::{bits, family, format_mac, from_octets, octets};
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

pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    address::parse_mac(text).ok_or_else(|| invalid(format!("network: {text:?} is no hardware address")))
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
        assert!(parse_mac("02:42").is_err());
    }
}
