//! Traffic control (tc(8)): what arrives at one link goes out at another.
use kata_protocol::netlink::{push_attribute, Netlink, Request};
use std::io;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;
/// linux/pkt_sched.h: where the ingress discipline hangs, and its handle.
const TC_H_INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_MATCHALL_ACT: u16 = 2;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: u32 = 1;
const TC_ACT_STOLEN: u32 = 4;
const TC_U32_TERMINAL: u8 = 1;
const ETH_P_ALL: u16 = 3;
const PRIORITY: u32 = 1;

/// `struct tcmsg`
fn tcmsg(link: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut structure = [0; 20];
    structure[4..8].copy_from_slice(&link.to_ne_bytes());
    structure[8..12].copy_from_slice(&handle.to_ne_bytes());
    structure[12..16].copy_from_slice(&parent.to_ne_bytes());
    structure[16..20].copy_from_slice(&info.to_ne_bytes());
    structure
}

/// Sends everything that arrives at `from` out at `to`. `from` must have no such redirection yet.
pub fn redirect(netlink: &mut Netlink, from: u32, to: u32) -> io::Result<()> {
    let qdisc = Request::new(
        RTM_NEWQDISC,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        &tcmsg(from, INGRESS_HANDLE, TC_H_INGRESS, 0),
    );
    netlink.execute(qdisc.attribute(TCA_KIND, b"ingress\0"))?;
    let info = PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
    let filter = |kind: &[u8], options: &[u8]| {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        Request::new(RTM_NEWTFILTER, flags, &tcmsg(from, 0, INGRESS_HANDLE, info))
            .attribute(TCA_KIND, kind)
            .attribute(TCA_OPTIONS, options)
    };
    // Kernels are built with one of the two, or with both.
    match netlink.execute(filter(b"matchall\0", &nested(TCA_MATCHALL_ACT, &mirred(to)))) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            let mut options = nested(TCA_U32_SEL, &match_everything());
            push_attribute(&mut options, TCA_U32_ACT, &mirred(to));
            netlink.execute(filter(b"u32\0", &options))
        }
        other => other,
    }
}

/// Takes the redirection of a link away; one that is not there is fine.
pub fn restore(netlink: &mut Netlink, link: u32) -> io::Result<()> {
    let request = Request::new(RTM_DELQDISC, 0, &tcmsg(link, INGRESS_HANDLE, TC_H_INGRESS, 0));
    match netlink.execute(request.attribute(TCA_KIND, b"ingress\0")) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(()),
        other => other,
    }
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_attribute(&mut bytes, kind, value);
    bytes
}

/// `struct tc_u32_sel` with one `struct tc_u32_key` whose mask is empty.
fn match_everything() -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[0] = TC_U32_TERMINAL;
    bytes[2] = 1;
    bytes
}

/// One action: `struct tc_mirred`, the packet leaves at `link` and is gone here.
fn mirred(link: u32) -> Vec<u8> {
    let numbers = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, link];
    let parameters: Vec<u8> = numbers.iter().flat_map(|number: &u32| number.to_ne_bytes()).collect();
    let mut action = nested(TCA_ACT_KIND, b"mirred\0");
    push_attribute(&mut action, TCA_ACT_OPTIONS, &nested(TCA_MIRRED_PARMS, &parameters));
    // Actions are numbered from 1.
    nested(1, &action)
}
