//! rtnetlink (rtnetlink(7)): building requests, reading answers. Requests are answered by the kernel at once.
pub mod address;
pub mod state;

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const HEADER_BYTES: usize = 16;
const RECEIVE_BYTES: usize = 32 << 10;
/// A guest has a handful of links and routes; an answer beyond this is cut off with an error.
const MAX_DUMP_MESSAGES: usize = 16_384;

pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A request: header, the family's structure, attributes.
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// `structure` is the kernel's struct of this message type (ifinfomsg, ifaddrmsg, rtmsg, ndmsg).
    pub fn new(kind: u16, flags: libc::c_int, structure: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(structure);
        Self { bytes }
    }

    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        push_attribute(&mut self.bytes, kind, value);
        self
    }

    /// What follows the header; a dump's answers have the same layout.
    pub fn into_payload(self) -> Vec<u8> {
        self.bytes[HEADER_BYTES..].to_vec()
    }

    /// The whole message under this number.
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Appends one attribute with its padding to a multiple of four.
pub fn push_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attributes of a message after its structure; stops at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A fixed-size integer of the kernel's at an offset.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

struct Received<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = u32_at(bytes, 8)?;
        let payload = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Received { kind, sequence, payload })
    })
}

fn error_of(payload: &[u8]) -> io::Result<()> {
    match u32_at(payload, 0).map(|code| code as i32) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

impl Netlink {
    /// Of the network namespace that the calling thread is in.
    pub fn open() -> io::Result<Self> {
        // SAFETY: no memory is passed; the descriptor is new.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and waits for its acknowledgement. Errors: the kernel's.
    pub fn execute(&mut self, request: Request) -> io::Result<()> {
        let mut request = request;
        request.bytes[6] |= libc::NLM_F_ACK as u8;
        let sequence = self.send(request)?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let count = self.receive(&mut buffer)?;
            for message in messages(&buffer[..count]).filter(|message| message.sequence == sequence) {
                if message.kind == libc::NLMSG_ERROR as u16 {
                    return error_of(message.payload);
                }
            }
        }
    }

    /// Asks for all objects of a kind and gives the payloads (structure and attributes) of the answers.
    pub fn dump(&mut self, kind: u16, structure: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let sequence = self.send(Request::new(kind, libc::NLM_F_DUMP, structure))?;
        let mut found = Vec::new();
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            let count = self.receive(&mut buffer)?;
            for message in messages(&buffer[..count]).filter(|message| message.sequence == sequence) {
                if message.kind == libc::NLMSG_DONE as u16 {
                    return Ok(found);
                }
                if message.kind == libc::NLMSG_ERROR as u16 {
                    error_of(message.payload)?;
                    return Ok(found);
                }
                if found.len() >= MAX_DUMP_MESSAGES {
                    return Err(io::Error::other(format!("over {MAX_DUMP_MESSAGES} network objects")));
                }
                found.push(message.payload.to_vec());
            }
        }
    }

    fn send(&mut self, request: Request) -> io::Result<u32> {
        self.sequence += 1;
        let bytes = request.finish(self.sequence);
        // SAFETY: pointer and length are those of one vector.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(self.sequence)
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // SAFETY: sockaddr_nl is plain data; the kernel writes at most the lengths given.
            let (count, sender) = unsafe {
                let mut sender: libc::sockaddr_nl = mem::zeroed();
                let mut length = mem::size_of::<libc::sockaddr_nl>() as libc::socklen_t;
                let (data, size) = (buffer.as_mut_ptr().cast(), buffer.len());
                let fd = self.socket.as_raw_fd();
                let count = libc::recvfrom(fd, data, size, 0, (&raw mut sender).cast(), &raw mut length);
                (count, sender)
            };
            let Ok(count) = usize::try_from(count) else { return Err(io::Error::last_os_error()) };
            // Port 0 is the kernel; nobody else may answer.
            if sender.nl_pid == 0 {
                return Ok(count);
            }
        }
    }
}

/// Told changes of links, neighbours, addresses, routes and rules: RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE,
/// _IPV6_IFADDR, _IPV6_ROUTE of linux/rtnetlink.h, and RTNLGRP_IPV6_RULE, which has no such name.
const CHANGES: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18;

/// A socket that becomes readable when something of the calling thread's network namespace changes. What it reads says less
/// than a new look: it is only to be emptied.
pub fn changes() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: sockaddr_nl is plain data and outlives the call with the size given; the descriptor is new.
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_nl = mem::zeroed();
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = CHANGES;
        let length = mem::size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        if libc::bind(fd, (&raw const address).cast(), length) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_and_messages_survive_malformed_lengths() {
        let mut bytes = Vec::new();
        push_attribute(&mut bytes, 3, b"eth0\0");
        push_attribute(&mut bytes, 4, &1500_u32.to_ne_bytes());
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found, [(3, b"eth0\0".as_slice()), (4, 1500_u32.to_ne_bytes().as_slice())]);
        for cut in 0..bytes.len() {
            assert!(attributes(&bytes[..cut]).count() <= 2);
            assert_eq!(messages(&bytes[..cut]).count(), 0);
        }
        for length in [0_u16, 1, 3, 5, 0xffff] {
            let mut broken = bytes.clone();
            broken[..2].copy_from_slice(&length.to_ne_bytes());
            assert!(attributes(&broken).count() <= bytes.len());
        }
    }
}
