//! Pieces of classic BPF programs over `struct seccomp_data` (seccomp(2), linux/filter.h). Every block ends in a return.
use libc::sock_filter;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub(crate) const EQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const GT: u16 = 0x25;
pub(crate) const GE: u16 = 0x35;
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

pub(crate) const NUMBER_OFFSET: u32 = 0;
pub(crate) const ARCH_OFFSET: u32 = 4;
const ARGS_OFFSET: u32 = 16;

/// Stands for "this rule does not match" until the rule's length is known; real offsets inside a rule are smaller.
const FAIL: u8 = u8::MAX;

pub(crate) type Block = Vec<sock_filter>;

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

pub(crate) fn load(offset: u32) -> sock_filter {
    instruction(LOAD, 0, 0, offset)
}

pub(crate) fn ret(value: u32) -> Block {
    vec![instruction(RETURN, 0, 0, value)]
}

/// `if (accumulator <test> k) then else otherwise`. Conditional jumps reach 255 instructions; beyond, one that has no
/// such limit stands between.
pub(crate) fn branch(test: u16, k: u32, then: Block, otherwise: Block) -> Block {
    let mut block = Block::with_capacity(then.len() + otherwise.len() + 2);
    match u8::try_from(then.len()) {
        Ok(length) => block.push(instruction(test, 0, length, k)),
        Err(_) => {
            block.push(instruction(test, 1, 0, k));
            block.push(instruction(JUMP, 0, 0, then.len() as u32));
        }
    }
    block.extend(then);
    block.extend(otherwise);
    block
}

/// How an argument is compared with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// `(argument & value) == second value`
    MaskedEqual,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Condition {
    /// 0 to 5.
    pub argument: u32,
    pub compare: Compare,
    pub value: u64,
    pub second: u64,
}

/// Returns `action` when every condition holds, else continues with `next`. `wide`: arguments are 64 bits, not 32.
pub(crate) fn rule(conditions: &[Condition], wide: bool, action: u32, next: Block) -> Block {
    let mut block = Block::new();
    for condition in conditions {
        if wide {
            compare_wide(condition, &mut block);
        } else {
            compare_word(condition, 0, &mut block);
        }
    }
    block.extend(ret(action));
    let end = block.len();
    for (at, one) in block.iter_mut().enumerate() {
        let to_end = (end - at - 1) as u8;
        if one.code == EQ || one.code == GT || one.code == GE {
            one.jt = if one.jt == FAIL { to_end } else { one.jt };
            one.jf = if one.jf == FAIL { to_end } else { one.jf };
        }
    }
    block.extend(next);
    block
}

/// The lower (`shift` 0) or upper (32) half, which decides alone.
fn compare_word(condition: &Condition, shift: u32, block: &mut Block) {
    let (value, second) = ((condition.value >> shift) as u32, (condition.second >> shift) as u32);
    block.push(load(ARGS_OFFSET + 8 * condition.argument + shift / 8));
    if condition.compare == Compare::MaskedEqual {
        block.push(instruction(AND, 0, 0, value));
    }
    block.push(match condition.compare {
        Compare::NotEqual => instruction(EQ, FAIL, 0, value),
        Compare::Equal => instruction(EQ, 0, FAIL, value),
        Compare::Less => instruction(GE, FAIL, 0, value),
        Compare::LessOrEqual => instruction(GT, FAIL, 0, value),
        Compare::GreaterOrEqual => instruction(GE, 0, FAIL, value),
        Compare::Greater => instruction(GT, 0, FAIL, value),
        Compare::MaskedEqual => instruction(EQ, 0, FAIL, second),
    });
}

/// Upper half first; the lower decides when the upper halves are equal.
fn compare_wide(condition: &Condition, block: &mut Block) {
    let upper = (condition.value >> 32) as u32;
    match condition.compare {
        Compare::Equal | Compare::MaskedEqual => compare_word(condition, 32, block),
        Compare::NotEqual => {
            block.push(load(ARGS_OFFSET + 8 * condition.argument + 4));
            block.push(instruction(EQ, 0, 2, upper));
        }
        Compare::Greater | Compare::GreaterOrEqual => {
            block.push(load(ARGS_OFFSET + 8 * condition.argument + 4));
            block.push(instruction(GT, 3, 0, upper));
            block.push(instruction(EQ, 0, FAIL, upper));
        }
        Compare::Less | Compare::LessOrEqual => {
            block.push(load(ARGS_OFFSET + 8 * condition.argument + 4));
            block.push(instruction(GT, FAIL, 0, upper));
            block.push(instruction(EQ, 0, 2, upper));
        }
    }
    compare_word(condition, 0, block);
}
