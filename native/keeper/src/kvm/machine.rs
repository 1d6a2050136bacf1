//! One machine with one vCPU on /dev/kvm (Linux, Documentation/virt/kvm/api.rst).
use super::guest;
use crate::sys;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const KVM_GET_API_VERSION: u64 = 0xae00;
const KVM_CREATE_VM: u64 = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: u64 = 0xae04;
const KVM_GET_SUPPORTED_CPUID: u64 = 0xc008_ae05;
const KVM_CREATE_VCPU: u64 = 0xae41;
const KVM_SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const KVM_SET_TSS_ADDR: u64 = 0xae47;
const KVM_RUN: u64 = 0xae80;
const KVM_SET_REGS: u64 = 0x4090_ae82;
const KVM_GET_SREGS: u64 = 0x8138_ae83;
const KVM_SET_SREGS: u64 = 0x4138_ae84;
const KVM_SET_CPUID2: u64 = 0x4008_ae90;

const KVM_EXIT_IO: u32 = 2;
const KVM_EXIT_HLT: u32 = 5;
const KVM_EXIT_SHUTDOWN: u32 = 8;
const KVM_EXIT_FAIL_ENTRY: u32 = 9;
const KVM_EXIT_INTR: u32 = 10;
const KVM_EXIT_INTERNAL_ERROR: u32 = 17;

/// Offsets in `struct kvm_run`.
const EXIT_REASON: usize = 8;
const EXIT_DATA: usize = 32;
const MAX_EXITS: usize = 1000;
const MAX_CPUID_ENTRIES: usize = 256;

#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_address: u64,
    bytes: u64,
    host_address: u64,
}

fn ioctl(what: &str, fd: RawFd, request: u64, argument: u64) -> Result<i32, String> {
    let result = unsafe { libc::ioctl(fd, request as _, argument) };
    sys::check(result as libc::c_long).map(|value| value as i32).map_err(|error| format!("{what}: {error}"))
}

fn map(what: &str, bytes: usize, flags: i32, fd: RawFd) -> Result<*mut u8, String> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let address = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, 0) };
    if address == libc::MAP_FAILED {
        return Err(format!("{what}: {}", io::Error::last_os_error()));
    }
    Ok(address.cast())
}

/// Runs the probe's guest to its end. The error is a reason that a person can act on.
pub fn run() -> Result<(), String> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no /dev/kvm: the CPU's virtualisation is off or the kvm module is not loaded".to_owned()
        }
        _ => format!("/dev/kvm: {error}"),
    })?;
    let version = ioctl("KVM_GET_API_VERSION", kvm.as_raw_fd(), KVM_GET_API_VERSION, 0)?;
    if version != 12 {
        return Err(format!("/dev/kvm speaks API version {version}, not 12"));
    }
    let owned = |fd: i32| unsafe { OwnedFd::from_raw_fd(fd) };
    let vm = owned(ioctl("KVM_CREATE_VM", kvm.as_raw_fd(), KVM_CREATE_VM, 0)?);
    // Intel's real mode needs three pages that the guest does not use; other vendors ignore the call.
    let _ = ioctl("KVM_SET_TSS_ADDR", vm.as_raw_fd(), KVM_SET_TSS_ADDR, 0xfffb_d000);
    let memory = map("guest memory", guest::MEMORY_BYTES, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    // SAFETY: the mapping is this large, zeroed, and the guest does not run yet.
    let image = unsafe { std::slice::from_raw_parts_mut(memory, guest::MEMORY_BYTES) };
    guest::load(image).ok_or("this build has no probe guest for the CPU's architecture")?;
    let region = MemoryRegion {
        slot: 0,
        flags: 0,
        guest_address: 0,
        bytes: guest::MEMORY_BYTES as u64,
        host_address: memory as u64,
    };
    ioctl("KVM_SET_USER_MEMORY_REGION", vm.as_raw_fd(), KVM_SET_USER_MEMORY_REGION, &raw const region as u64)?;
    let vcpu = owned(ioctl("KVM_CREATE_VCPU", vm.as_raw_fd(), KVM_CREATE_VCPU, 0)?);
    let run_bytes = ioctl("KVM_GET_VCPU_MMAP_SIZE", kvm.as_raw_fd(), KVM_GET_VCPU_MMAP_SIZE, 0)?;
    let run = map("vCPU", run_bytes as usize, libc::MAP_SHARED, vcpu.as_raw_fd())?;
    prepare(kvm.as_raw_fd(), vcpu.as_raw_fd())?;
    let mut steps = 0;
    for _ in 0..MAX_EXITS {
        let result = ioctl("KVM_RUN", vcpu.as_raw_fd(), KVM_RUN, 0);
        result.map_err(|error| format!("{error} while {}", doing(steps)))?;
        // SAFETY: KVM wrote the exit into the mapping and the vCPU stands still.
        match unsafe { exit(run) } {
            Exit::Halted if steps == guest::STEPS.len() => return Ok(()),
            Exit::Halted => return Err(format!("the guest halted while {}", doing(steps))),
            Exit::Step(letter) if guest::STEPS.get(steps).is_some_and(|(expected, _)| *expected == letter) => {
                steps += 1
            }
            Exit::Step(guest::WRONG) => {
                return Err(format!("an instruction gave a wrong result while {}", doing(steps)))
            }
            Exit::Step(letter) => return Err(format!("unexpected step {letter:#x} while {}", doing(steps))),
            Exit::Again => {}
            Exit::Failed(reason) => return Err(format!("{reason} while {}", doing(steps))),
        }
    }
    Err("the guest exits without end".to_owned())
}

fn doing(steps: usize) -> &'static str {
    steps.checked_sub(1).and_then(|last| guest::STEPS.get(last)).map_or("starting in real mode", |(_, what)| what)
}

/// Host CPU features for the guest, and the vCPU in real mode at the code.
fn prepare(kvm: RawFd, vcpu: RawFd) -> Result<(), String> {
    // struct kvm_cpuid2: u32 count, u32 padding, entries of 40 bytes.
    let mut cpuid = vec![0u64; 1 + MAX_CPUID_ENTRIES * 5];
    cpuid[0] = MAX_CPUID_ENTRIES as u64;
    ioctl("KVM_GET_SUPPORTED_CPUID", kvm, KVM_GET_SUPPORTED_CPUID, cpuid.as_mut_ptr() as u64)?;
    ioctl("KVM_SET_CPUID2", vcpu, KVM_SET_CPUID2, cpuid.as_ptr() as u64)?;
    // struct kvm_sregs begins with the code segment: u64 base, u32 limit, u16 selector.
    let mut special = [0u64; 0x138 / 8];
    ioctl("KVM_GET_SREGS", vcpu, KVM_GET_SREGS, special.as_mut_ptr() as u64)?;
    special[0] = 0;
    special[1] &= !(0xffff << 32);
    ioctl("KVM_SET_SREGS", vcpu, KVM_SET_SREGS, special.as_ptr() as u64)?;
    // struct kvm_regs: sixteen general registers, rip, rflags (bit 1 is always set).
    let mut registers = [0u64; 0x90 / 8];
    registers[16] = guest::CODE as u64;
    registers[17] = 2;
    ioctl("KVM_SET_REGS", vcpu, KVM_SET_REGS, registers.as_ptr() as u64).map(drop)
}

enum Exit {
    Halted,
    Step(u8),
    Again,
    Failed(String),
}

/// Reads the exit that KVM wrote to `struct kvm_run`.
unsafe fn exit(run: *const u8) -> Exit {
    let word = |offset: usize| unsafe { run.add(offset).cast::<u32>().read_volatile() };
    match word(EXIT_REASON) {
        KVM_EXIT_IO => {
            // u8 direction, u8 size, u16 port, u32 count, u64 data_offset.
            let port = word(EXIT_DATA) >> 16;
            let data = word(EXIT_DATA + 8) as usize;
            match port == u32::from(guest::STEP_PORT) {
                true => Exit::Step(unsafe { run.add(data).read_volatile() }),
                false => Exit::Failed(format!("I/O on port {port:#x}")),
            }
        }
        KVM_EXIT_HLT => Exit::Halted,
        KVM_EXIT_INTR => Exit::Again,
        KVM_EXIT_SHUTDOWN => Exit::Failed("the guest's CPU shut down (triple fault)".to_owned()),
        KVM_EXIT_FAIL_ENTRY => {
            Exit::Failed(format!("KVM failed to enter the guest (hardware reason {:#x})", word(EXIT_DATA)))
        }
        KVM_EXIT_INTERNAL_ERROR if word(EXIT_DATA) == 1 => {
            Exit::Failed("KVM internal error: emulation failure".to_owned())
        }
        KVM_EXIT_INTERNAL_ERROR => Exit::Failed(format!("KVM internal error {}", word(EXIT_DATA))),
        reason => Exit::Failed(format!("KVM exit {reason}")),
    }
}
