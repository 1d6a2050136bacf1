//! Takes every TCP connection to a loopback address of one network namespace, whatever its port: a BPF program of the type
//! `sk_lookup` (bpf(2), Linux 5.9), written out here, which hands it to a listener of ours. No port is bound but the listeners' own.
use crate::sys;
use std::ffi::CStr;
use std::io;
use std::mem::size_of_val;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
/// The attach type of that name.
const BPF_SK_LOOKUP: u32 = 36;
const LICENSE: &CStr = c"Apache-2.0";

/// Which listener: the map's keys.
const V4: i32 = 0;
const V6: i32 = 1;

// The starts of the commands' parts of `union bpf_attr`; the kernel takes the rest as zeroes.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: every command here only reads the attributes and what they point to, which outlives the call.
    sys::check(unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of_val(attributes))
    })
}

fn create<T>(what: &str, command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes).map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))?;
    // SAFETY: the kernel just returned this descriptor (all of bpf(2)'s are close-on-exec).
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Hands the namespace's loopback connections to the listeners for as long as the answer is open.
pub fn attach(netns: BorrowedFd, v4: &TcpListener, v6: Option<&TcpListener>) -> io::Result<OwnedFd> {
    let map = MapCreate { map_type: BPF_MAP_TYPE_SOCKMAP, key_size: 4, value_size: 4, max_entries: 2 };
    let map = create("map of sockets", BPF_MAP_CREATE, &map)?;
    for (key, listener) in [(V4, Some(v4)), (V6, v6)] {
        let Some(listener) = listener else { continue };
        let value = listener.as_raw_fd();
        let (key, value) = ((&raw const key) as u64, (&raw const value) as u64);
        bpf(BPF_MAP_UPDATE_ELEM, &MapUpdate { map: map.as_raw_fd() as u32, _padding: 0, key, value, flags: 0 })?;
    }
    let code = program(map.as_raw_fd());
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_SK_LOOKUP,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        attach_type: BPF_SK_LOOKUP,
        ..Default::default()
    };
    let program = create("program", BPF_PROG_LOAD, &load)?;
    let (program, target) = (program.as_raw_fd() as u32, netns.as_raw_fd() as u32);
    create("link", BPF_LINK_CREATE, &LinkCreate { program, target, attach_type: BPF_SK_LOOKUP, flags: 0 })
}

/// One instruction as the kernel's `struct bpf_insn` lies in memory (little-endian: the machines that the keeper is built for).
const fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    code as u64 | (to as u64) << 8 | (from as u64) << 12 | (offset as u16 as u64) << 16 | (value as u32 as u64) << 32
}

/// Offsets in `struct bpf_sk_lookup` of linux/bpf.h; the address is in network order.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;

const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// "A TCP connection to 127.0.0.0/8 or ::1 goes to the map's listener of its family, everything else its usual way." Jumps
/// count from the instruction after them.
fn program(map: i32) -> [u64; 33] {
    const STACK: u8 = 10;
    const KEY: i16 = -4;
    let move_register = |to, from| instruction(0xbf, to, from, 0, 0);
    let set = |to, value| instruction(0xb7, to, 0, 0, value);
    let add = |to, value| instruction(0x07, to, 0, 0, value);
    let load_word = |to, from, offset| instruction(0x61, to, from, offset, 0);
    let load_byte = |to, from, offset| instruction(0x71, to, from, offset, 0);
    let store_word = |to, offset, value| instruction(0x62, to, 0, offset, value);
    let equal = |register, value, jump| instruction(0x15, register, 0, jump, value);
    let unequal = |register, value, jump| instruction(0x55, register, 0, jump, value);
    let jump = |jump| instruction(0x05, 0, 0, jump, 0);
    let call = |function| instruction(0x85, 0, 0, 0, function);
    [
        move_register(6, 1), // 0
        load_word(2, 6, PROTOCOL),
        unequal(2, libc::IPPROTO_TCP, 28), // to 31
        store_word(STACK, KEY, V4),
        load_word(2, 6, FAMILY),
        equal(2, libc::AF_INET6, 3), // to 9
        load_byte(2, 6, LOCAL_IP4),
        unequal(2, 127, 23),        // to 31
        jump(9),                    // to 18
        store_word(STACK, KEY, V6), // 9
        load_word(2, 6, LOCAL_IP6),
        unequal(2, 0, 19), // to 31
        load_word(2, 6, LOCAL_IP6 + 4),
        unequal(2, 0, 17), // to 31
        load_word(2, 6, LOCAL_IP6 + 8),
        unequal(2, 0, 15), // to 31
        load_word(2, 6, LOCAL_IP6 + 12),
        unequal(2, 1i32.to_be(), 13), // to 31
        // The map's address takes two; the kernel puts it in place of the descriptor.
        instruction(0x18, 1, 1, 0, map), // 18
        0,
        move_register(2, STACK),
        add(2, i32::from(KEY)),
        call(MAP_LOOKUP_ELEM),
        equal(0, 0, 7), // to 31
        move_register(7, 0),
        move_register(1, 6),
        move_register(2, 0),
        set(3, 0),
        call(SK_ASSIGN),
        move_register(1, 7),
        call(SK_RELEASE),
        set(0, 1), // 31: SK_PASS
        instruction(0x95, 0, 0, 0, 0),
    ]
}
