//! Addresses as the kernel holds them and as text.
use std::net::IpAddr;

pub fn bits(address: &IpAddr) -> u8 {
    if address.is_ipv4() {
        32
    } else {
        128
    }
}

pub fn family(address: &IpAddr) -> u8 {
    if address.is_ipv4() {
        FAMILY_4
    } else {
        FAMILY_6
    }
}

/// AF_INET, AF_INET6.
pub const FAMILY_4: u8 = 2;
pub const FAMILY_6: u8 = 10;

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
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

pub fn format_mac(mac: &[u8]) -> String {
    let parts: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_parse_or_are_refused() {
        assert_eq!(format_mac(&parse_mac("02:42:AC:11:00:02").unwrap()), "02:42:ac:11:00:02");
        for bad in ["", "02:42", "02:42:ac:11:00:02:03", "02:42:ac:11:00:0g", "2:42:ac:11:00:02", "02:42:ac:11:00:+1"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
