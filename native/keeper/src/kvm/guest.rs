//! The probe's guest: machine code for guest-physical 0x1000 and the tables that it needs to enter long mode.
use std::arch::global_asm;

/// Guest-physical addresses.
pub const CODE: usize = 0x1000;
const PAGE_TABLES: usize = 0x2000;
const GDT: usize = 0x5000;
const GDT_POINTER: usize = 0x5100;
pub const MEMORY_BYTES: usize = 0x10000;

/// The port on which the guest tells its steps, a letter each.
pub const STEP_PORT: u16 = 0x10;

/// The letters in order and what the guest does until it sends the next one.
pub const STEPS: [(u8, &str); 5] = [
    (b'R', "entering long mode"),
    (b'L', "SSE instructions"),
    (b'S', "cmpxchg16b"),
    (b'C', "XSAVE and XRSTOR"),
    (b'X', "halting"),
];

/// What the guest sends when an instruction ran and gave a wrong result.
pub const WRONG: u8 = b'!';

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .rodata.kvm_probe_guest, \"a\"",
    ".global kvm_probe_guest_start",
    ".global kvm_probe_guest_end",
    "kvm_probe_guest_start:",
    ".code16",
    "cli",
    "xor %ax, %ax",
    "mov %ax, %ds",
    "mov $'R', %al",
    "out %al, $0x10",
    // lgdt (0x5100)
    ".byte 0x0f, 0x01, 0x16, 0x00, 0x51",
    // CR4: PAE, OSFXSR, OSXMMEXCPT
    "mov $0x620, %eax",
    "mov %eax, %cr4",
    "mov $0x2000, %eax",
    "mov %eax, %cr3",
    // EFER.LME
    "mov $0xc0000080, %ecx",
    "rdmsr",
    "or $0x100, %eax",
    "wrmsr",
    // CR0: PG, NE, MP, PE
    "mov $0x80000023, %eax",
    "mov %eax, %cr0",
    // ljmpl $8, $long_mode
    ".byte 0x66, 0xea",
    ".long 2f - kvm_probe_guest_start + 0x1000",
    ".word 8",
    ".code64",
    "2:",
    "mov $0x10, %ax",
    "mov %ax, %ss",
    "mov %ax, %ds",
    "mov %ax, %es",
    "mov $0x8000, %esp",
    "mov $'L', %al",
    "out %al, $0x10",
    // SSE: 3 + 4, stored aligned and read back
    "mov $3, %eax",
    "cvtsi2ss %eax, %xmm0",
    "mov $4, %eax",
    "cvtsi2ss %eax, %xmm1",
    "addps %xmm1, %xmm0",
    "movaps %xmm0, 0x7000",
    "cvttss2si 0x7000, %eax",
    "cmp $7, %eax",
    "jne 9f",
    "mov $'S', %al",
    "out %al, $0x10",
    // cmpxchg16b on zeroed memory
    "xor %eax, %eax",
    "xor %edx, %edx",
    "mov $5, %ebx",
    "mov $6, %ecx",
    "lock cmpxchg16b 0x7100",
    "jne 9f",
    "cmpq $6, 0x7108",
    "jne 9f",
    "mov $'C', %al",
    "out %al, $0x10",
    // XSAVE where the CPU has it
    "mov $1, %eax",
    "xor %ecx, %ecx",
    "cpuid",
    "bt $26, %ecx",
    "jnc 3f",
    "mov %cr4, %rax",
    "bts $18, %rax",
    "mov %rax, %cr4",
    "mov $3, %eax",
    "xor %edx, %edx",
    "xor %ecx, %ecx",
    "xsetbv",
    "mov $3, %eax",
    "xor %edx, %edx",
    "xsave64 0x9000",
    "xorps %xmm0, %xmm0",
    "mov $3, %eax",
    "xor %edx, %edx",
    "xrstor64 0x9000",
    "cvttss2si %xmm0, %eax",
    "cmp $7, %eax",
    "jne 9f",
    "3:",
    "mov $'X', %al",
    "out %al, $0x10",
    "4:",
    "hlt",
    "jmp 4b",
    "9:",
    "mov $'!', %al",
    "out %al, $0x10",
    "jmp 4b",
    "kvm_probe_guest_end:",
    ".popsection",
    options(att_syntax)
);

#[cfg(target_arch = "x86_64")]
fn code() -> &'static [u8] {
    unsafe extern "C" {
        static kvm_probe_guest_start: u8;
        static kvm_probe_guest_end: u8;
    }
    // SAFETY: both symbols bound the constant bytes that the assembler put between them.
    unsafe {
        let (start, end) = (&raw const kvm_probe_guest_start, &raw const kvm_probe_guest_end);
        std::slice::from_raw_parts(start, end as usize - start as usize)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn code() -> &'static [u8] {
    &[]
}

/// Writes code, page tables (the first 2 MiB mapped one to one) and descriptors; `None` on an architecture without code.
pub fn load(memory: &mut [u8]) -> Option<()> {
    let code = code();
    if code.is_empty() || code.len() > PAGE_TABLES - CODE {
        return None;
    }
    memory[CODE..CODE + code.len()].copy_from_slice(code);
    let mut put = |at: usize, value: u64| memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(PAGE_TABLES, PAGE_TABLES as u64 + 0x1000 + 3);
    put(PAGE_TABLES + 0x1000, PAGE_TABLES as u64 + 0x2000 + 3);
    // Present, writable, 2 MiB.
    put(PAGE_TABLES + 0x2000, 0x83);
    // Null, 64-bit code, data.
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    put(GDT + 16, 0x00cf_9300_0000_ffff);
    put(GDT_POINTER, 23 | (GDT as u64) << 16);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_fits_below_its_tables() {
        let mut memory = vec![0; MEMORY_BYTES];
        load(&mut memory).unwrap();
        assert_eq!(memory[CODE], 0xfa, "cli");
        assert_eq!(&memory[GDT_POINTER..GDT_POINTER + 6], [23, 0, 0, 0x50, 0, 0]);
    }
}
