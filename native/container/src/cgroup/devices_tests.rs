//! Filters are run by an interpreter of the emitted instructions and compared with the rules read as the kernel's
//! devices controller did.
use super::*;
use crate::testing::Random;

fn run(code: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> u32 {
    let mut registers = [0_u32; 6];
    let mut at = 0_usize;
    loop {
        let one = code[at];
        at += 1;
        let (to, from) = (usize::from(one.registers & 15), usize::from(one.registers >> 4));
        let immediate = one.immediate as u32;
        let mut jump = |taken: bool| {
            if taken {
                at += usize::try_from(one.offset).unwrap()
            }
        };
        match one.code {
            0x61 => registers[to] = [access << 16 | kind, major, minor][one.offset as usize / 4],
            0x54 => registers[to] &= immediate,
            0x74 => registers[to] >>= immediate,
            0xbc => registers[to] = registers[from],
            0xb4 => registers[to] = immediate,
            0x56 => jump(registers[to] != immediate),
            0x16 => jump(registers[to] == immediate),
            0x5e => jump(registers[to] != registers[from]),
            0x95 => return registers[0],
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> LinuxDeviceCgroup {
    LinuxDeviceCgroup { allow, r#type: kind.into(), major, minor, access: access.into() }
}

fn allowed(rules: &[LinuxDeviceCgroup], kind: u32, access: u32, major: u32, minor: u32) -> bool {
    run(&Filter::new(rules, &[]).unwrap().program(), kind, access, major, minor) == 1
}

#[test]
fn a_container_has_the_usual_devices_only() {
    for rules in [vec![], vec![rule(false, "a", -1, -1, "rwm")]] {
        assert!(allowed(&rules, CHAR, READ | WRITE, 1, 3), "/dev/null");
        assert!(allowed(&rules, CHAR, READ | WRITE, 136, 7), "/dev/pts/7");
        assert!(allowed(&rules, BLOCK, MKNOD, 254, 0), "mknod of a disk");
        assert!(!allowed(&rules, BLOCK, READ, 254, 0), "reading a disk");
        assert!(!allowed(&rules, CHAR, READ, 1, 1), "/dev/mem");
        assert!(!allowed(&rules, CHAR, READ, 10, 229), "/dev/fuse");
    }
}

#[test]
fn rules_and_own_devices_add_up() {
    let rules = [
        rule(false, "a", 0, 0, "rwm"),
        rule(true, "b", 8, 16, "r"),
        rule(true, "b", 8, 16, "w"),
        rule(true, "c", 10, -1, ""),
    ];
    assert!(allowed(&rules, BLOCK, READ | WRITE, 8, 16));
    assert!(!allowed(&rules, BLOCK, READ, 8, 17));
    assert!(allowed(&rules, CHAR, READ | WRITE | MKNOD, 10, 229));
    let own =
        [LinuxDevice { path: "/dev/vdb".into(), r#type: "b".into(), major: 254, minor: 16, ..Default::default() }];
    let program = Filter::new(&[], &own).unwrap().program();
    assert_eq!(run(&program, BLOCK, READ | WRITE, 254, 16), 1);
    assert_eq!(run(&program, BLOCK, READ, 254, 0), 0);
}

#[test]
fn a_privileged_container_needs_no_filter() {
    assert!(Filter::new(&[rule(true, "a", -1, -1, "rwm")], &[]).unwrap().allows_all());
    let mostly = [rule(true, "a", -1, -1, "rwm"), rule(false, "c", 10, 200, "w")];
    assert!(!Filter::new(&mostly, &[]).unwrap().allows_all());
    assert!(!allowed(&mostly, CHAR, READ | WRITE, 10, 200));
    assert!(allowed(&mostly, CHAR, READ, 10, 200));
}

#[test]
fn rules_that_are_not_understood_are_refused() {
    for bad in [
        rule(true, "x", 1, 1, "r"),
        rule(true, "c", 1, 1, "rx"),
        rule(true, "c", -2, 1, "r"),
        rule(true, "c", 1, 1 << 40, "r"),
    ] {
        assert_eq!(Filter::new(std::slice::from_ref(&bad), &[]).unwrap_err().errno, libc::EINVAL, "{bad:?}");
    }
}

/// The program against the state that it is made from, for any rules.
#[test]
fn programs_do_what_filters_say() {
    let mut random = Random::new(11);
    for _ in 0..2000 {
        let rules: Vec<_> = (0..random.below(8))
            .map(|_| {
                let kind = *random.pick(&["a", "b", "c", "c", "b"]);
                let number = |random: &mut Random| random.below(4) as i64 - 1;
                let (major, minor) = (number(&mut random), number(&mut random));
                let access = *random.pick(&["r", "w", "m", "rw", "rwm", "wm"]);
                rule(random.below(2) == 0, kind, major, minor, access)
            })
            .collect();
        let filter = Filter::new(&rules, &[]).unwrap();
        let program = filter.program();
        for _ in 0..40 {
            let (kind, access) = (*random.pick(&[BLOCK, CHAR]), 1 + random.below(7) as u32);
            let (major, minor) = (random.below(4) as u32, random.below(4) as u32);
            let fits = |one: &Exception| {
                one.kind == kind
                    && one.major.is_none_or(|other| other == major)
                    && one.minor.is_none_or(|other| other == minor)
            };
            let excepted = filter.exceptions.iter().filter(|one| fits(one)).any(|one| match filter.allow {
                true => access & one.access != 0,
                false => access & !one.access == 0,
            });
            let expected = u32::from(filter.allow != excepted);
            assert_eq!(
                run(&program, kind, access, major, minor),
                expected,
                "{rules:?} {kind} {access} {major}:{minor}"
            );
        }
    }
}
