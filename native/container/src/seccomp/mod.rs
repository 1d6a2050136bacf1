//! Seccomp profiles of the OCI runtime spec as classic BPF, with the meaning that libseccomp and runc give them:
//! an unconditional rule wins over conditional ones of the same call, rules that say what the default says count for
//! nothing, names that no table has are ignored, other instruction sets end the process, and calls newer than any that
//! the profile names get ENOSYS, so that C libraries fall back (runc, "patchbpf").
mod bpf;
mod names;
#[cfg(test)]
mod tests;

use crate::error::{ContainerError, Result, Step};
use crate::sys::check;
use bpf::{branch, load, ret, rule, Block, Compare, Condition, ARCH_OFFSET, EQ, GE, NUMBER_OFFSET};
use kata_protocol::grpc::linux_syscall::ErrnoRet;
use kata_protocol::grpc::{LinuxSeccomp, LinuxSeccompArg};
use names::{index, Arch, X32_BIT};
use std::collections::BTreeMap;

const KILL_THREAD: u32 = 0;
const KILL_PROCESS: u32 = 0x8000_0000;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;
const DATA_MASK: u32 = 0xffff;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;

const SET_MODE_FILTER: u32 = 1;
/// Instructions that the kernel takes (BPF_MAXINSNS).
const PROGRAM_LIMIT: usize = 4096;

/// A compiled profile.
#[derive(Clone)]
pub(crate) struct Program {
    code: Block,
    flags: u32,
}

fn invalid(value: &str, what: &str) -> ContainerError {
    ContainerError::invalid(Step::Seccomp, value, what)
}

fn action(name: &str, errno: Option<u32>) -> Result<u32> {
    let data = errno.unwrap_or(libc::EPERM as u32) & DATA_MASK;
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_ERRNO" => ERRNO | data,
        "SCMP_ACT_TRACE" => TRACE | data,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_NOTIFY" => {
            return Err(ContainerError::new(
                Step::Seccomp,
                libc::ENOTSUP,
                name,
                "nobody in the guest answers the action",
            ))
        }
        _ => return Err(invalid(name, "unknown action")),
    })
}

fn filter_flags(names: &[String]) -> Result<u32> {
    names.iter().try_fold(0, |flags, name| {
        Ok(flags
            | match name.as_str() {
                "SECCOMP_FILTER_FLAG_TSYNC" => 1,
                "SECCOMP_FILTER_FLAG_LOG" => 2,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 4,
                // Only says how long a listener is waited for, and there is none.
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => 0,
                _ => return Err(invalid(name, "unknown filter flag")),
            })
    })
}

fn condition(argument: &LinuxSeccompArg) -> Result<Condition> {
    let compare = match argument.op.as_str() {
        "SCMP_CMP_NE" => Compare::NotEqual,
        "SCMP_CMP_LT" => Compare::Less,
        "SCMP_CMP_LE" => Compare::LessOrEqual,
        "SCMP_CMP_EQ" => Compare::Equal,
        "SCMP_CMP_GE" => Compare::GreaterOrEqual,
        "SCMP_CMP_GT" => Compare::Greater,
        "SCMP_CMP_MASKED_EQ" => Compare::MaskedEqual,
        other => return Err(invalid(other, "unknown comparison")),
    };
    match u32::try_from(argument.index) {
        Ok(index @ 0..=5) => {
            Ok(Condition { argument: index, compare, value: argument.value, second: argument.value_two })
        }
        _ => Err(invalid(&argument.index.to_string(), "argument index beyond 5:")),
    }
}

/// Conditions that must all hold. libseccomp takes each argument once per rule; when one comes twice, runc makes a rule
/// of every condition: any of them is enough.
fn alternatives(arguments: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>> {
    let conditions = arguments.iter().map(condition).collect::<Result<Vec<_>>>()?;
    let repeated = conditions
        .iter()
        .enumerate()
        .any(|(at, one)| conditions[..at].iter().any(|other| other.argument == one.argument));
    Ok(if repeated { conditions.into_iter().map(|one| vec![one]).collect() } else { vec![conditions] })
}

/// What happens to one call: an action, or conditional actions before the default.
#[derive(Default)]
struct Calls {
    unconditional: Option<u32>,
    conditional: Vec<(Vec<Condition>, u32)>,
}

/// The profile as it applies to one instruction set.
struct Table {
    calls: BTreeMap<u32, Calls>,
    /// The highest number that the profile names.
    last: Option<u32>,
}

fn table(profile: &LinuxSeccomp, arch: Arch, default: u32) -> Result<Table> {
    let mut table = Table { calls: BTreeMap::new(), last: None };
    let index = index(arch);
    for entry in &profile.syscalls {
        let errno = entry.errno_ret.map(|ErrnoRet::Errnoret(errno)| errno);
        let action = action(&entry.action, errno)?;
        let alternatives = alternatives(&entry.args)?;
        for number in entry.names.iter().filter_map(|name| index.get(name.as_str()).copied()) {
            table.last = table.last.max(Some(number));
            if action == default {
                continue;
            }
            let calls = table.calls.entry(number).or_default();
            if entry.args.is_empty() {
                calls.unconditional.get_or_insert(action);
            } else {
                calls.conditional.extend(alternatives.iter().map(|conditions| (conditions.clone(), action)));
            }
        }
    }
    Ok(table)
}

/// A range of call numbers up to the next range's start.
enum Leaf {
    Action(u32),
    Rules(Block),
}

/// A binary search over the ranges, so that a call costs as many steps as the logarithm of their number.
fn search(mut ranges: Vec<(u32, Leaf)>) -> Block {
    if ranges.len() > 1 {
        let upper = ranges.split_off(ranges.len() / 2);
        let start = upper[0].0;
        return branch(GE, start, search(upper), search(ranges));
    }
    match ranges.pop() {
        Some((_, Leaf::Rules(block))) => block,
        Some((_, Leaf::Action(action))) => ret(action),
        None => ret(KILL_PROCESS),
    }
}

/// The part of the program for one instruction set; the call's number is in the accumulator.
fn section(table: Table, arch: Arch, default: u32) -> Block {
    let first = if arch == Arch::X32 { X32_BIT } else { 0 };
    let newer = match default {
        // What allows, or asks a tracer, says so for calls of the future too.
        ALLOW | LOG => default,
        other if other & !DATA_MASK == TRACE => default,
        _ => ERRNO | libc::ENOSYS as u32,
    };
    let mut ranges: Vec<(u32, Leaf)> = vec![(first, Leaf::Action(default))];
    let mut add = |start: u32, leaf: Leaf| {
        if ranges.last().is_some_and(|last| last.0 == start) {
            ranges.pop();
        }
        match (ranges.last(), &leaf) {
            (Some((_, Leaf::Action(before))), Leaf::Action(now)) if before == now => {}
            _ => ranges.push((start, leaf)),
        }
    };
    for (number, calls) in table.calls {
        add(
            number,
            match calls.unconditional {
                Some(action) => Leaf::Action(action),
                None => {
                    let wide = arch != Arch::X86;
                    let rules = calls.conditional.iter().rev();
                    Leaf::Rules(
                        rules.fold(ret(default), |next, (conditions, action)| rule(conditions, wide, *action, next)),
                    )
                }
            },
        );
        add(number + 1, Leaf::Action(default));
    }
    if let Some(last) = table.last {
        add(last + 1, Leaf::Action(newer));
    }
    search(ranges)
}

impl Program {
    /// Errors (step seccomp): EINVAL for a word that is not understood, E2BIG for a profile beyond what the kernel takes.
    pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Self> {
        let default = action(&profile.default_action, None)?;
        let has = |name: &str| profile.architectures.iter().any(|arch| arch == name);
        let part = |arch| table(profile, arch, default).map(|table| section(table, arch, default));
        let x32 = if has("SCMP_ARCH_X32") { part(Arch::X32)? } else { ret(KILL_PROCESS) };
        let with_number = |body: Block| {
            let mut block = vec![load(NUMBER_OFFSET)];
            block.extend(body);
            block
        };
        // The kernel's own instruction set is always there, as with libseccomp, and asked first: it is the usual one.
        let native = with_number(branch(GE, X32_BIT, x32, part(Arch::X86_64)?));
        let others = match has("SCMP_ARCH_X86") {
            true => branch(EQ, AUDIT_ARCH_I386, with_number(part(Arch::X86)?), ret(KILL_PROCESS)),
            false => ret(KILL_PROCESS),
        };
        let mut code = vec![load(ARCH_OFFSET)];
        code.extend(branch(EQ, AUDIT_ARCH_X86_64, native, others));
        if code.len() > PROGRAM_LIMIT {
            return Err(ContainerError::new(
                Step::Seccomp,
                libc::E2BIG,
                "",
                format!("profile of {} instructions", code.len()),
            ));
        }
        Ok(Self { code, flags: filter_flags(&profile.flags)? })
    }

    /// Applies to this process and to what it executes, for ever. Needs no_new_privs or CAP_SYS_ADMIN.
    pub(crate) fn load(&self) -> Result<()> {
        let program = libc::sock_fprog { len: self.code.len() as u16, filter: self.code.as_ptr().cast_mut() };
        // SAFETY: the program outlives the call, which only reads it.
        check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, self.flags, &raw const program) })
            .map(drop)
            .map_err(|errno| ContainerError::new(Step::Seccomp, errno, "", "load the filter"))
    }
}
