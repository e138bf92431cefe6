//! Classic BPF as seccomp runs it: the subset the kernel admits, over the words of `struct seccomp_data`.
use crust_kernel::ptrace::BpfInsn;

/// What a filter sees of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// Number of the call.
    pub nr: i32,
    /// AUDIT_ARCH_* of the calling code.
    pub arch: u32,
    /// Address of the instruction behind the syscall.
    pub ip: u64,
    /// The arguments.
    pub args: [u64; 6],
}

/// What a filter decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The call is made.
    Allow,
    /// It is made and logged.
    Log,
    /// A tracer, listener, signal or errno answers instead.
    Other(u32),
    /// The thread or the process is killed.
    Kill(u32),
}

const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const ACTION_MASK: u32 = 0xffff_0000;
const MEMWORDS: usize = 16;
const DATA_BYTES: u32 = 64;

impl Action {
    fn from_return(value: u32) -> Self {
        match value & ACTION_MASK {
            RET_ALLOW => Self::Allow,
            RET_LOG => Self::Log,
            RET_KILL_PROCESS | RET_KILL_THREAD => Self::Kill(value),
            _ => Self::Other(value),
        }
    }
}

fn load(data: &Data, offset: u32) -> Option<u32> {
    let word = |value: u64, high: bool| if high { (value >> 32) as u32 } else { value as u32 };
    match offset {
        _ if !offset.is_multiple_of(4) => None,
        0 => Some(data.nr as u32),
        4 => Some(data.arch),
        8 | 12 => Some(word(data.ip, offset == 12)),
        16..DATA_BYTES => {
            let at = (offset - 16) as usize;
            Some(word(*data.args.get(at / 8)?, at % 8 == 4))
        }
        _ => None,
    }
}

/// Runs one filter. `None`: it is no program the kernel would have taken.
pub fn run(filter: &[BpfInsn], data: &Data) -> Option<u32> {
    let (mut a, mut x) = (0u32, 0u32);
    let mut mem = [0u32; MEMWORDS];
    let mut pc = 0usize;
    // Jumps only go forward, so every program ends.
    loop {
        let BpfInsn { code, jt, jf, k } = *filter.get(pc)?;
        pc += 1;
        let cell = k as usize;
        match code {
            0x00 => a = k,                      // ld #k
            0x20 => a = load(data, k)?,         // ld [k]
            0x60 => a = *mem.get(cell)?,        // ld M[k]
            0x80 => a = DATA_BYTES,             // ld len
            0x01 => x = k,                      // ldx #k
            0x61 => x = *mem.get(cell)?,        // ldx M[k]
            0x81 => x = DATA_BYTES,             // ldx len
            0x02 => *mem.get_mut(cell)? = a,    // st
            0x03 => *mem.get_mut(cell)? = x,    // stx
            0x07 => x = a,                      // tax
            0x87 => a = x,                      // txa
            0x06 => return Some(k),             // ret #k
            0x16 => return Some(a),             // ret a
            0x05 => pc = pc.checked_add(cell)?, // ja
            // jeq, jgt, jge, jset with #k or x
            0x15 | 0x25 | 0x35 | 0x45 | 0x1d | 0x2d | 0x3d | 0x4d => {
                let right = if code & 0x08 == 0 { k } else { x };
                let holds = match code & 0xf0 {
                    0x10 => a == right,
                    0x20 => a > right,
                    0x30 => a >= right,
                    _ => a & right != 0,
                };
                pc += usize::from(if holds { jt } else { jf });
            }
            0x84 => a = a.wrapping_neg(),
            _ if code & 0x07 == 0x04 => {
                let right = if code & 0x08 == 0 { k } else { x };
                a = match code & 0xf0 {
                    0x00 => a.wrapping_add(right),
                    0x10 => a.wrapping_sub(right),
                    0x20 => a.wrapping_mul(right),
                    // The kernel ends the filter with 0 on a division by zero.
                    0x30 => match a.checked_div(right) {
                        Some(quotient) => quotient,
                        None => return Some(0),
                    },
                    0x40 => a | right,
                    0x50 => a & right,
                    0x60 => a.checked_shl(right).unwrap_or(0),
                    0x70 => a.checked_shr(right).unwrap_or(0),
                    0xa0 => a ^ right,
                    _ => return None,
                };
            }
            _ => return None,
        }
    }
}

/// Runs all filters of a thread; the strictest answer counts, as in the kernel.
pub fn run_all(filters: &[Vec<BpfInsn>], data: &Data) -> Option<Action> {
    let mut strictest = RET_ALLOW;
    for filter in filters {
        let answer = run(filter, data)?;
        // Signed comparison: KILL_PROCESS is negative and wins over all.
        if ((answer & ACTION_MASK) as i32) < ((strictest & ACTION_MASK) as i32) {
            strictest = answer;
        }
    }
    Some(Action::from_return(strictest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insn(code: u16, jt: u8, jf: u8, k: u32) -> BpfInsn {
        BpfInsn { code, jt, jf, k }
    }

    fn call(nr: i32) -> Data {
        Data { nr, arch: AUDIT, ip: 0x1_0000_0002, args: [0xaaaa_bbbb_cccc_dddd, 1, 2, 3, 4, 0x77] }
    }

    const AUDIT: u32 = 0xc000_003e;

    fn allow_only(nr: u32) -> Vec<BpfInsn> {
        vec![
            insn(0x20, 0, 0, 4),
            insn(0x15, 1, 0, AUDIT),
            insn(0x06, 0, 0, RET_KILL_PROCESS),
            insn(0x20, 0, 0, 0),
            insn(0x15, 0, 1, nr),
            insn(0x06, 0, 0, RET_ALLOW),
            insn(0x06, 0, 0, 0x0005_0001),
        ]
    }

    #[test]
    fn usual_filters() {
        let filter = vec![allow_only(14)];
        assert_eq!(run_all(&filter, &call(14)), Some(Action::Allow));
        assert_eq!(run_all(&filter, &call(9)), Some(Action::Other(0x0005_0001)));
        assert_eq!(run_all(&filter, &Data { arch: 3, ..call(14) }), Some(Action::Kill(RET_KILL_PROCESS)));
        assert_eq!(run_all(&[], &call(1)), Some(Action::Allow));
    }

    #[test]
    fn the_strictest_wins() {
        let ret = |k| vec![insn(0x06, 0, 0, k)];
        let all = |a, b| run_all(&[ret(a), ret(b)], &call(0));
        assert_eq!(all(RET_ALLOW, RET_LOG), Some(Action::Log));
        assert_eq!(all(RET_KILL_PROCESS, RET_KILL_THREAD), Some(Action::Kill(RET_KILL_PROCESS)));
        assert_eq!(all(0x0005_0026, RET_KILL_THREAD), Some(Action::Kill(RET_KILL_THREAD)));
    }

    #[test]
    fn arguments_and_arithmetic() {
        let a_of = |program: &[BpfInsn]| run(&[program, &[insn(0x16, 0, 0, 0)]].concat(), &call(5));
        assert_eq!(a_of(&[insn(0x20, 0, 0, 16)]), Some(0xcccc_dddd));
        assert_eq!(a_of(&[insn(0x20, 0, 0, 20)]), Some(0xaaaa_bbbb));
        assert_eq!(a_of(&[insn(0x20, 0, 0, 12)]), Some(1));
        assert_eq!(a_of(&[insn(0x20, 0, 0, 56)]), Some(0x77));
        assert_eq!(
            a_of(&[insn(0x80, 0, 0, 0), insn(0x02, 0, 0, 3), insn(0x61, 0, 0, 3), insn(0x0c, 0, 0, 0)]),
            Some(128)
        );
        assert_eq!(a_of(&[insn(0x00, 0, 0, 6), insn(0x54, 0, 0, 3), insn(0x64, 0, 0, 4)]), Some(32));
        assert_eq!(a_of(&[insn(0x00, 0, 0, 6), insn(0x84, 0, 0, 0)]), Some(6u32.wrapping_neg()));
        assert_eq!(a_of(&[insn(0x34, 0, 0, 0)]), Some(0));
    }

    #[test]
    fn nonsense_is_no_answer() {
        assert_eq!(run(&[], &call(1)), None);
        assert_eq!(run(&[insn(0x20, 0, 0, 2)], &call(1)), None);
        assert_eq!(run(&[insn(0x20, 0, 0, 64)], &call(1)), None);
        assert_eq!(run(&[insn(0x60, 0, 0, 16)], &call(1)), None);
        assert_eq!(run(&[insn(0x05, 0, 0, u32::MAX)], &call(1)), None);
        assert_eq!(run(&[insn(0xffff, 0, 0, 0)], &call(1)), None);
    }
}
