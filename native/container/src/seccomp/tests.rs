//! Programs are run by an interpreter of classic BPF and compared with the profile read literally.
use super::*;
use crate::testing::Random;
use kata_protocol::grpc::LinuxSyscall;

fn number(arch: Arch, name: &str) -> Option<u32> {
    thread_local!(static TABLES: [BTreeMap<&'static str, u32>; 3] = [index(Arch::X86_64), index(Arch::X86), index(Arch::X32)]);
    TABLES.with(|tables| tables[arch as usize].get(name).copied())
}

/// struct seccomp_data (linux/seccomp.h).
struct Call {
    arch: u32,
    number: u32,
    args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            16..=60 => {
                let (argument, upper) = ((offset - 16) / 8, (offset - 16) % 8 == 4);
                (self.args[argument as usize] >> if upper { 32 } else { 0 }) as u32
            }
            other => panic!("load at {other}"),
        }
    }
}

/// The subset of linux/filter.h that seccomp allows and this crate emits; anything else is a panic, as is running over.
fn run(code: &[libc::sock_filter], call: &Call) -> u32 {
    let (mut at, mut accumulator) = (0_usize, 0_u32);
    loop {
        let one = code[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { one.jt } else { one.jf });
        match one.code {
            0x20 => accumulator = call.word(one.k),
            0x54 => accumulator &= one.k,
            0x05 => at += one.k as usize,
            0x15 => at += jump(accumulator == one.k),
            0x25 => at += jump(accumulator > one.k),
            0x35 => at += jump(accumulator >= one.k),
            0x06 => return one.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn holds(arg: &LinuxSeccompArg, call: &Call, wide: bool) -> bool {
    let cut = |value: u64| if wide { value } else { value & 0xffff_ffff };
    let (actual, value, second) = (cut(call.args[arg.index as usize]), cut(arg.value), cut(arg.value_two));
    match arg.op.as_str() {
        "SCMP_CMP_NE" => actual != value,
        "SCMP_CMP_LT" => actual < value,
        "SCMP_CMP_LE" => actual <= value,
        "SCMP_CMP_EQ" => actual == value,
        "SCMP_CMP_GE" => actual >= value,
        "SCMP_CMP_GT" => actual > value,
        "SCMP_CMP_MASKED_EQ" => actual & value == second,
        _ => unreachable!(),
    }
}

/// The profile, read word by word.
fn evaluate(profile: &LinuxSeccomp, call: &Call) -> u32 {
    let has = |name: &str| profile.architectures.iter().any(|arch| arch == name);
    let arch = match call.arch {
        AUDIT_ARCH_X86_64 if call.number & X32_BIT == 0 && call.number < X32_BIT => Arch::X86_64,
        AUDIT_ARCH_X86_64 if has("SCMP_ARCH_X32") => Arch::X32,
        AUDIT_ARCH_I386 if has("SCMP_ARCH_X86") => Arch::X86,
        _ => return KILL_PROCESS,
    };
    let default = action(&profile.default_action, None).unwrap();
    let mut conditional = None;
    let mut newest = None;
    for entry in &profile.syscalls {
        let numbers: Vec<u32> = entry.names.iter().filter_map(|name| number(arch, name)).collect();
        newest = newest.max(numbers.iter().copied().max());
        let what = action(&entry.action, entry.errno_ret.map(|ErrnoRet::Errnoret(errno)| errno)).unwrap();
        if what == default || !numbers.contains(&call.number) {
            continue;
        }
        if entry.args.is_empty() {
            return what;
        }
        let mut indices: Vec<u64> = entry.args.iter().map(|arg| arg.index).collect();
        indices.sort_unstable();
        indices.dedup();
        let mut matches = entry.args.iter().map(|arg| holds(arg, call, arch != Arch::X86));
        let matched = if indices.len() == entry.args.len() { matches.all(|one| one) } else { matches.any(|one| one) };
        if matched {
            conditional = conditional.or(Some(what));
        }
    }
    let lenient = matches!(default, ALLOW | LOG) || default & !DATA_MASK == TRACE;
    conditional.unwrap_or(match newest {
        Some(newest) if call.number > newest && !lenient => ERRNO | libc::ENOSYS as u32,
        _ => default,
    })
}

const NAMES: &[&str] = &[
    "read",
    "write",
    "open",
    "close",
    "clone",
    "clone3",
    "personality",
    "socket",
    "socketcall",
    "execve",
    "ioctl",
    "mount",
    "ptrace",
    "openat2",
    "statx",
    "fchmodat2",
    "mseal",
    "clock_gettime64",
    "uselib",
    "not_a_call",
    "futex_waitv",
    "waitid",
    "preadv2",
    "rseq",
    "keyctl",
    "bpf",
];
const ACTIONS: &[&str] = &[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_LOG",
];
const OPS: &[&str] =
    &["SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ"];
const VALUES: &[u64] =
    &[0, 1, 2, 38, 40, 0x7e02_0000, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, u64::MAX - 1, u64::MAX, 1 << 63];

fn random_profile(random: &mut Random) -> LinuxSeccomp {
    let mut profile = LinuxSeccomp { default_action: (*random.pick(ACTIONS)).into(), ..Default::default() };
    for arch in ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"] {
        if random.below(2) == 0 {
            profile.architectures.push(arch.into());
        }
    }
    for _ in 0..random.below(9) {
        let names = (0..1 + random.below(4)).map(|_| (*random.pick(NAMES)).to_owned()).collect();
        let args = (0..random.below(4))
            .map(|_| LinuxSeccompArg {
                index: random.below(6),
                value: *random.pick(VALUES),
                value_two: *random.pick(VALUES),
                op: (*random.pick(OPS)).into(),
            })
            .collect();
        let errno_ret = (random.below(2) == 0).then(|| ErrnoRet::Errnoret(random.below(130) as u32));
        profile.syscalls.push(LinuxSyscall { names, action: (*random.pick(ACTIONS)).into(), args, errno_ret });
    }
    profile
}

fn random_call(random: &mut Random) -> Call {
    let arch = *random.pick(&[AUDIT_ARCH_X86_64, AUDIT_ARCH_X86_64, AUDIT_ARCH_I386, 0xc000_00b7]);
    let set = *random.pick(&[Arch::X86_64, Arch::X86, Arch::X32]);
    let name: &str = random.pick::<&str>(NAMES);
    let known = number(set, name).unwrap_or(600);
    let number = match random.below(8) {
        0 => random.next() as u32,
        1 => known.wrapping_add(1),
        2 => known.wrapping_sub(1),
        _ => known,
    };
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = match random.below(3) {
            0 => random.next(),
            1 => random.pick(VALUES).wrapping_add(random.below(3)).wrapping_sub(1),
            _ => *random.pick(VALUES),
        };
    }
    Call { arch, number, args }
}

#[test]
fn programs_do_what_profiles_say() {
    let mut random = Random::new(1);
    for round in 0..1500 {
        let profile = random_profile(&mut random);
        let program = Program::compile(&profile).unwrap();
        for _ in 0..80 {
            let call = random_call(&mut random);
            let (actual, expected) = (run(&program.code, &call), evaluate(&profile, &call));
            assert_eq!(
                actual, expected,
                "round {round}: arch {:#x} number {:#x} args {:x?}\n{profile:#?}",
                call.arch, call.number, call.args
            );
        }
    }
}

/// A profile of Docker's size: every call of every table, so that jumps go beyond 255 instructions.
#[test]
fn large_profiles_compile_and_run() {
    let mut random = Random::new(5);
    let mut profile = random_profile(&mut random);
    profile.default_action = "SCMP_ACT_ERRNO".into();
    profile.architectures = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"].map(str::to_owned).to_vec();
    profile.syscalls.clear();
    for (at, name) in NAMES.iter().cycle().take(NAMES.len() * 4).enumerate() {
        let arg =
            LinuxSeccompArg { index: at as u64 % 6, value: at as u64, value_two: 0, op: OPS[at % OPS.len()].into() };
        profile.syscalls.push(LinuxSyscall {
            names: vec![(*name).into()],
            action: "SCMP_ACT_ALLOW".into(),
            args: vec![arg],
            errno_ret: None,
        });
    }
    let program = Program::compile(&profile).unwrap();
    assert!(program.code.len() > 600, "{}", program.code.len());
    for _ in 0..20_000 {
        let call = random_call(&mut random);
        assert_eq!(run(&program.code, &call), evaluate(&profile, &call));
    }
}

#[test]
fn words_that_are_not_understood_are_refused() {
    let profile = |default: &str, flag: &str, op: &str, index: u64| LinuxSeccomp {
        default_action: default.into(),
        flags: vec![flag.into()],
        syscalls: vec![LinuxSyscall {
            names: vec!["read".into()],
            action: "SCMP_ACT_ERRNO".into(),
            args: vec![LinuxSeccompArg { index, op: op.into(), ..Default::default() }],
            errno_ret: None,
        }],
        ..Default::default()
    };
    let (flag, op) = ("SECCOMP_FILTER_FLAG_LOG", "SCMP_CMP_EQ");
    assert_eq!(Program::compile(&profile("SCMP_ACT_ALLOW", flag, op, 5)).unwrap().flags, 2);
    for (default, flag, op, index) in [
        ("SCMP_ACT_MAYBE", flag, op, 0),
        ("SCMP_ACT_NOTIFY", flag, op, 0),
        ("SCMP_ACT_ALLOW", "SECCOMP_FILTER_FLAG_X", op, 0),
        ("SCMP_ACT_ALLOW", flag, "SCMP_CMP_ABOUT", 0),
        ("SCMP_ACT_ALLOW", flag, op, 6),
    ] {
        assert_eq!(
            Program::compile(&profile(default, flag, op, index)).err().map(|error| error.step),
            Some(Step::Seccomp)
        );
    }
}
