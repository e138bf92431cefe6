//! The landing: a few dozen instructions, written for one stopped thread, that take it home if its tracer dies.
//!
//! A borrowed thread makes its injected call with the `syscall` at the landing's start. While the tracer lives, it takes
//! control at that call's exit. If it dies, the thread falls through: signal mask back, all registers back, jump to where
//! it was. Nothing is written on the program's stack and no vector register is touched. mov, lea and jmp leave the flags
//! alone; the `syscall` instruction keeps them itself.
use super::regs::{Regs, is_32bit};

/// Bytes of a compact landing: for injected single calls.
pub const COMPACT_BYTES: usize = 144;
/// What every compact landing begins with: its call, and the first argument of the next.
pub const COMPACT_BEGINS: [u8; 7] = [0x0f, 0x05, 0xbf, SIG_SETMASK as u8, 0, 0, 0];
/// Bytes of a full landing: for plans, which also use the flags, rbx, rbp, rsp and r12 to r14.
pub const FULL_BYTES: usize = 256;
/// Where in a full landing a plan's last record jumps to.
pub const FULL_ENTRY: u64 = 2;

const SYSCALL: [u8; 2] = [0x0f, 0x05];
const NR_RT_SIGPROCMASK: u32 = 14;
const SIG_SETMASK: u32 = 2;

struct Code {
    bytes: Vec<u8>,
}

impl Code {
    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }
    /// mov r32, imm32
    fn mov32(&mut self, opcode: &[u8], value: u32) -> &mut Self {
        self.raw(opcode).raw(&value.to_le_bytes())
    }
    /// movabs r64, imm64
    fn mov64(&mut self, opcode: [u8; 2], value: u64) -> &mut Self {
        self.raw(&opcode).raw(&value.to_le_bytes())
    }
    /// A four-byte distance from the end of this instruction to `target` bytes into the landing.
    fn rel32(&mut self, target: usize) -> &mut Self {
        let distance = target as i64 - (self.bytes.len() as i64 + 4);
        self.raw(&(distance as i32).to_le_bytes())
    }
    /// mask back, caller-saved registers back
    fn home(&mut self, regs: &Regs, mask_at: usize, with_saved: bool, rip_at: usize) {
        self.mov32(&[0xbf], SIG_SETMASK); // edi
        self.raw(&[0x48, 0x8d, 0x35]).rel32(mask_at); // lea rsi, [rip + mask]
        self.mov32(&[0xba], 0); // edx
        self.mov32(&[0x41, 0xba], 8); // r10d
        self.mov32(&[0xb8], NR_RT_SIGPROCMASK); // eax
        self.raw(&SYSCALL);
        self.mov64([0x48, 0xb8], regs.rax)
            .mov64([0x48, 0xb9], regs.rcx)
            .mov64([0x48, 0xba], regs.rdx)
            .mov64([0x48, 0xbe], regs.rsi)
            .mov64([0x48, 0xbf], regs.rdi)
            .mov64([0x49, 0xb8], regs.r8)
            .mov64([0x49, 0xb9], regs.r9)
            .mov64([0x49, 0xba], regs.r10)
            .mov64([0x49, 0xbb], regs.r11);
        if with_saved {
            self.mov64([0x48, 0xbb], regs.rbx)
                .mov64([0x48, 0xbd], regs.rbp)
                .mov64([0x49, 0xbc], regs.r12)
                .mov64([0x49, 0xbd], regs.r13)
                .mov64([0x49, 0xbe], regs.r14)
                .mov64([0x49, 0xbf], regs.r15);
        }
        // jmp [rip + home], to 32-bit code with the segment
        self.raw(&[0xff, if is_32bit(regs) { 0x2d } else { 0x25 }]).rel32(rip_at);
    }
}

/// What the last jump reads: an address, or for a jump into another segment 32 bits of it and the selector.
fn home_at(regs: &Regs) -> [u8; 8] {
    let word = if is_32bit(regs) { regs.rip & u64::from(u32::MAX) | regs.cs << 32 } else { regs.rip };
    word.to_le_bytes()
}

/// A landing for single calls. `regs` are those to go home with ([`super::regs::as_resumed_by_hand`]), `mask` the blocked
/// signals. Position-independent.
pub fn compact(regs: &Regs, mask: u64) -> [u8; COMPACT_BYTES] {
    const MASK_AT: usize = COMPACT_BYTES - 16;
    const RIP_AT: usize = COMPACT_BYTES - 8;
    let mut code = Code { bytes: Vec::with_capacity(COMPACT_BYTES) };
    code.raw(&SYSCALL);
    code.home(regs, MASK_AT, false, RIP_AT);
    let mut out = [0; COMPACT_BYTES];
    out[..code.bytes.len()].copy_from_slice(&code.bytes);
    out[MASK_AT..RIP_AT].copy_from_slice(&mask.to_le_bytes());
    out[RIP_AT..].copy_from_slice(&home_at(regs));
    out
}

/// A landing for plans, to lie at address `at`: the flags are taken with popfq from the landing itself, while all signals
/// are still blocked, so that no stack is needed.
pub fn full(at: u64, regs: &Regs, mask: u64) -> [u8; FULL_BYTES] {
    const FLAGS_AT: usize = FULL_BYTES - 24;
    const MASK_AT: usize = FULL_BYTES - 16;
    const RIP_AT: usize = FULL_BYTES - 8;
    let mut code = Code { bytes: Vec::with_capacity(FULL_BYTES) };
    code.raw(&SYSCALL);
    code.mov64([0x48, 0xbc], at.wrapping_add(FLAGS_AT as u64)); // rsp
    code.raw(&[0x9d]); // popfq
    code.mov64([0x48, 0xbc], regs.rsp);
    code.home(regs, MASK_AT, true, RIP_AT);
    let mut out = [0; FULL_BYTES];
    out[..code.bytes.len()].copy_from_slice(&code.bytes);
    out[FLAGS_AT..MASK_AT].copy_from_slice(&regs.eflags.to_le_bytes());
    out[MASK_AT..RIP_AT].copy_from_slice(&mask.to_le_bytes());
    out[RIP_AT..].copy_from_slice(&home_at(regs));
    out
}

#[cfg(test)]
mod tests {
    use super::super::regs::zeroed;
    use super::*;

    fn regs() -> Regs {
        Regs { rax: 0x1111, rcx: 0x2222, r15: 0x3333, rsp: 0x4444, rip: 0x5555, eflags: 0x8d7, ..zeroed() }
    }

    #[test]
    fn compact_fits_and_points_at_its_literals() {
        let code = compact(&regs(), 0xfeed);
        assert_eq!(code[..7], COMPACT_BEGINS);
        // lea rsi, [rip + mask] at 7..14, jmp [rip + home] at 122..128
        assert_eq!(code[7..10], [0x48, 0x8d, 0x35]);
        assert_eq!(14 + i32::from_le_bytes(code[10..14].try_into().unwrap()), 128);
        assert_eq!(code[122..124], [0xff, 0x25]);
        assert_eq!(128 + i32::from_le_bytes(code[124..128].try_into().unwrap()), 136);
        assert_eq!(code[128..136], 0xfeedu64.to_le_bytes());
        assert_eq!(code[136..], 0x5555u64.to_le_bytes());
        // The first word is never zero, so a used landing is always told from a free one.
        assert_ne!(code[..8], [0; 8]);
    }

    #[test]
    fn back_to_32_bit_code_leads_a_far_jump() {
        let code = compact(&Regs { cs: 0x23, rip: 0xf7f5_95e9, ..regs() }, 0);
        assert_eq!(code[122..124], [0xff, 0x2d]);
        assert_eq!(code[136..], [0xe9, 0x95, 0xf5, 0xf7, 0x23, 0, 0, 0]);
    }

    #[test]
    fn full_takes_flags_from_itself() {
        let code = full(0x7000, &regs(), 1);
        assert_eq!(code[2..4], [0x48, 0xbc]);
        let flags_at = u64::from_le_bytes(code[4..12].try_into().unwrap());
        assert_eq!(flags_at, 0x7000 + 232);
        assert_eq!(code[12], 0x9d);
        assert_eq!(code[232..240], 0x8d7u64.to_le_bytes());
        let jmp = code.windows(2).rposition(|w| w == [0xff, 0x25]).unwrap();
        assert!(jmp + 6 <= 232);
        assert_eq!(jmp as i32 + 6 + i32::from_le_bytes(code[jmp + 2..jmp + 6].try_into().unwrap()), 248);
    }
}
