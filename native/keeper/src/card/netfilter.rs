//! Elements of the packet filter's sets (nf_tables), which change while the guest runs: what its names mean.
use crate::sys;
use kata_protocol::netlink::{push_attribute, u32_at, Request};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

/// linux/netfilter/nfnetlink.h and nf_tables.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
const NEWSETELEM: u16 = NFTABLES << 8 | 12;
const DELSETELEM: u16 = NFTABLES << 8 | 14;
const INET: u8 = 1;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_TIMEOUT: u16 = 4;
const DATA_VALUE: u16 = 1;
const NESTED: u16 = 0x8000;
const ACK: libc::c_int = libc::NLM_F_ACK;

/// Puts addresses of one family into a set for so long; for one that is there the time begins anew.
pub fn insert(table: &str, set: &str, addresses: &[(IpAddr, Duration)]) -> io::Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let socket = sys::netfilter_socket()?;
    let list = |with_time: bool| {
        let mut elements = Vec::new();
        for (address, time) in addresses {
            let mut key = Vec::new();
            push_attribute(&mut key, DATA_VALUE, &kata_protocol::netlink::address::octets(address));
            let mut element = Vec::new();
            push_attribute(&mut element, ELEM_KEY | NESTED, &key);
            if with_time {
                push_attribute(&mut element, ELEM_TIMEOUT, &(time.as_millis() as u64).to_be_bytes());
            }
            push_attribute(&mut elements, LIST_ELEM | NESTED, &element);
        }
        elements
    };
    let text = |name: &str| [name.as_bytes(), b"\0"].concat();
    let message = |kind: u16, flags: libc::c_int, with_time: bool| {
        Request::new(kind, flags, &[INET, 0, 0, 0])
            .attribute(LIST_TABLE, &text(table))
            .attribute(LIST_SET, &text(set))
            .attribute(LIST_ELEMENTS | NESTED, &list(with_time))
    };
    let edge = |kind: u16| Request::new(kind, 0, &[0, 0, 0, NFTABLES as u8]);
    // An element's time is set when it is made and by nothing else: what is there, or not, is there, gone, and there anew.
    let batch = [
        edge(BATCH_BEGIN),
        message(NEWSETELEM, libc::NLM_F_CREATE | ACK, true),
        message(DELSETELEM, ACK, false),
        message(NEWSETELEM, libc::NLM_F_CREATE | ACK, true),
        edge(BATCH_END),
    ];
    let bytes: Vec<u8> =
        batch.into_iter().enumerate().flat_map(|(number, request)| request.finish(number as u32)).collect();
    sys::write(&socket, &bytes)?;
    acknowledged(&socket, 3)
}

fn acknowledged(socket: &std::os::fd::OwnedFd, mut awaited: usize) -> io::Result<()> {
    let mut buffer = vec![0; 8192];
    while awaited > 0 {
        let count = sys::read(socket, &mut buffer)?;
        let mut rest = &buffer[..count];
        while let Some(length) = u32_at(rest, 0).map(|length| length as usize).filter(|length| *length >= 20) {
            if rest.get(4..6) == Some(&(libc::NLMSG_ERROR as u16).to_ne_bytes()) {
                match u32_at(rest, 16).unwrap_or(0) as i32 {
                    0 => awaited -= 1,
                    errno => return Err(io::Error::from_raw_os_error(-errno)),
                }
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
    Ok(())
}
