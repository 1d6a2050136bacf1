//! The device filter of a group: rules with the meaning that cgroup v1's devices controller gave them
//! (security/device_cgroup.c), as an eBPF program that the kernel asks at every mknod and open of a device.
use crate::error::{ContainerError, Result, Step};
use crate::sys::{check, check_fd};
use kata_protocol::grpc::{LinuxDevice, LinuxDeviceCgroup};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

// Of bpf_cgroup_dev_ctx (linux/bpf.h).
const BLOCK: u32 = 1;
const CHAR: u32 = 2;
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL_ACCESS: u32 = MKNOD | READ | WRITE;

const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
/// A container's own manager may attach filters below; all must agree.
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;
/// Instructions per rule are at most eight, and the kernel takes 4096 from everybody.
const RULE_LIMIT: usize = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exception {
    kind: u32,
    /// None: every number.
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

/// What every container may use: any node may be made, few can be opened (runc, "AllowedDevices").
const DEFAULT: [(u32, Option<u32>, Option<u32>, u32); 11] = [
    (CHAR, None, None, MKNOD),
    (BLOCK, None, None, MKNOD),
    (CHAR, Some(1), Some(3), ALL_ACCESS),
    (CHAR, Some(1), Some(5), ALL_ACCESS),
    (CHAR, Some(1), Some(7), ALL_ACCESS),
    (CHAR, Some(1), Some(8), ALL_ACCESS),
    (CHAR, Some(1), Some(9), ALL_ACCESS),
    (CHAR, Some(5), Some(0), ALL_ACCESS),
    (CHAR, Some(5), Some(1), ALL_ACCESS),
    (CHAR, Some(5), Some(2), ALL_ACCESS),
    (CHAR, Some(136), None, ALL_ACCESS),
];

/// A default and the exceptions from it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filter {
    allow: bool,
    exceptions: Vec<Exception>,
}

fn failure(errno: i32, value: impl Into<String>, what: &str) -> ContainerError {
    ContainerError::new(Step::Device, errno, value, what)
}

fn access_of(text: &str) -> Result<u32> {
    // Without a word about it, everything is meant.
    if text.is_empty() {
        return Ok(ALL_ACCESS);
    }
    text.chars().try_fold(0, |access, c| {
        Ok(access
            | match c {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return Err(failure(libc::EINVAL, text, "access of a device rule is made of r, w and m, not")),
            })
    })
}

fn number_of(number: i64) -> Result<Option<u32>> {
    match number {
        -1 => Ok(None),
        number => {
            u32::try_from(number).map(Some).map_err(|_| failure(libc::EINVAL, number.to_string(), "device number"))
        }
    }
}

impl Filter {
    /// The rules in order, then what every container has, then the container's own devices.
    pub(super) fn new(rules: &[LinuxDeviceCgroup], own: &[LinuxDevice]) -> Result<Self> {
        let mut filter = Self { allow: false, exceptions: Vec::new() };
        for rule in rules {
            filter.add(rule)?;
        }
        for (kind, major, minor, access) in DEFAULT {
            filter.except(true, Exception { kind, major, minor, access });
        }
        for device in own {
            let kind = match device.r#type.as_str() {
                "b" => BLOCK,
                "c" | "u" => CHAR,
                _ => continue,
            };
            filter.except(
                true,
                Exception {
                    kind,
                    major: number_of(device.major)?,
                    minor: number_of(device.minor)?,
                    access: ALL_ACCESS,
                },
            );
        }
        if filter.exceptions.len() > RULE_LIMIT {
            return Err(failure(libc::E2BIG, "", &format!("{} device rules", filter.exceptions.len())));
        }
        Ok(filter)
    }

    pub(super) fn allows_all(&self) -> bool {
        self.allow && self.exceptions.is_empty()
    }

    fn add(&mut self, rule: &LinuxDeviceCgroup) -> Result<()> {
        let access = access_of(&rule.access)?;
        let kind = match rule.r#type.as_str() {
            // Everything at once: the rules before count no more.
            "" | "a" => {
                *self = Self { allow: rule.allow, exceptions: Vec::new() };
                return Ok(());
            }
            "b" => BLOCK,
            "c" | "u" => CHAR,
            other => return Err(failure(libc::EINVAL, other, "type of a device rule")),
        };
        self.except(
            rule.allow,
            Exception { kind, major: number_of(rule.major)?, minor: number_of(rule.minor)?, access },
        );
        Ok(())
    }

    /// A rule that says what the default says takes from the exception for the same devices, another adds to it.
    fn except(&mut self, allow: bool, wanted: Exception) {
        let same = |one: &Exception| (one.kind, one.major, one.minor) == (wanted.kind, wanted.major, wanted.minor);
        let found = self.exceptions.iter_mut().find(|one| same(one));
        match (allow == self.allow, found) {
            (false, Some(one)) => one.access |= wanted.access,
            (false, None) => self.exceptions.push(wanted),
            (true, Some(one)) => one.access &= !wanted.access,
            (true, None) => {}
        }
        self.exceptions.retain(|one| one.access != 0);
    }

    /// Returns the program's descriptor: to replace it later. `previous` is the one to be replaced.
    pub(super) fn attach(&self, group: BorrowedFd<'_>, previous: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
        let code = self.program();
        let attributes = LoadAttributes {
            kind: PROG_TYPE_CGROUP_DEVICE,
            count: code.len() as u32,
            code: code.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            ..LoadAttributes::default()
        };
        // SAFETY: code and licence outlive the call; the size is that of the structure, whose rest the kernel takes as zero.
        let program = check_fd(unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>())
        })
        .map_err(|errno| failure(errno, "", "load the device filter"))?;
        let attributes = AttachAttributes {
            target: group.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            kind: ATTACH_TYPE_CGROUP_DEVICE,
            flags: if previous.is_some() { ALLOW_MULTI | REPLACE } else { ALLOW_MULTI },
            replaced: previous.map_or(0, |previous| previous.as_raw_fd() as u32),
        };
        // SAFETY: as above.
        check(unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attributes, size_of::<AttachAttributes>())
        })
        .map_err(|errno| failure(errno, "", "attach the device filter"))?;
        Ok(program)
    }

    /// R2 type, R3 access, R4 major, R5 minor; returns 1 to allow.
    fn program(&self) -> Vec<Instruction> {
        let mut code = vec![
            Instruction::load(2, 0),
            Instruction::and(2, 0xffff),
            Instruction::load(3, 0),
            Instruction::shift_right(3, 16),
            Instruction::load(4, 4),
            Instruction::load(5, 8),
        ];
        for one in &self.exceptions {
            let mut tests = vec![Instruction::jump_not_equal(2, one.kind)];
            if one.access != ALL_ACCESS {
                tests.push(Instruction::copy(1, 3));
                tests.push(Instruction::and(1, one.access));
                // Allowed is what asks for nothing else; denied is what asks for any of it.
                tests.push(if self.allow { Instruction::jump_equal(1, 0) } else { Instruction::jump_differs(1, 3) });
            }
            tests.extend(one.major.map(|major| Instruction::jump_not_equal(4, major)));
            tests.extend(one.minor.map(|minor| Instruction::jump_not_equal(5, minor)));
            tests.push(Instruction::set(0, u32::from(!self.allow)));
            tests.push(Instruction::exit());
            let end = tests.len();
            for (at, test) in tests.iter_mut().enumerate().filter(|(_, test)| test.is_jump()) {
                test.offset = (end - at - 1) as i16;
            }
            code.extend(tests);
        }
        code.push(Instruction::set(0, u32::from(self.allow)));
        code.push(Instruction::exit());
        code
    }
}

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    log: [u32; 4],
    rest: [u32; 2],
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
}

/// struct bpf_insn.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const JNE: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
    const JEQ: u8 = 0x16;
    const JNE_REGISTER: u8 = 0x5e; // BPF_JMP32 | BPF_JNE | BPF_X

    fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> Self {
        Self { code, registers: destination | source << 4, offset, immediate: immediate as i32 }
    }

    /// A word of the context, which is in R1 until the first rule uses it.
    fn load(register: u8, offset: i16) -> Self {
        Self::new(0x61, register, 1, offset, 0) // BPF_LDX | BPF_MEM | BPF_W
    }

    fn and(register: u8, mask: u32) -> Self {
        Self::new(0x54, register, 0, 0, mask) // BPF_ALU | BPF_AND | BPF_K
    }

    fn shift_right(register: u8, bits: u32) -> Self {
        Self::new(0x74, register, 0, 0, bits) // BPF_ALU | BPF_RSH | BPF_K
    }

    fn copy(to: u8, from: u8) -> Self {
        Self::new(0xbc, to, from, 0, 0) // BPF_ALU | BPF_MOV | BPF_X
    }

    fn set(register: u8, value: u32) -> Self {
        Self::new(0xb4, register, 0, 0, value) // BPF_ALU | BPF_MOV | BPF_K
    }

    fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }

    fn jump_not_equal(register: u8, value: u32) -> Self {
        Self::new(Self::JNE, register, 0, 0, value)
    }

    fn jump_equal(register: u8, value: u32) -> Self {
        Self::new(Self::JEQ, register, 0, 0, value)
    }

    fn jump_differs(one: u8, other: u8) -> Self {
        Self::new(Self::JNE_REGISTER, one, other, 0, 0)
    }

    fn is_jump(&self) -> bool {
        matches!(self.code, Self::JNE | Self::JEQ | Self::JNE_REGISTER)
    }
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
