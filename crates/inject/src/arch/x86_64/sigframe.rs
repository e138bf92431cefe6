//! An rt_sigframe built by hand: what rt_sigreturn(2) needs to give a thread all its registers and its signal mask.
//! Layout: arch/x86/include/uapi/asm/{sigcontext,ucontext}.h.

/// Where XSAVE's legacy area keeps the words reserved for software.
const SW_RESERVED: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
/// UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS.
const UC_FLAGS: u64 = 7;
/// ucontext: flags, link, stack, sigcontext (256 bytes), mask.
const UCONTEXT_BYTES: usize = 8 + 8 + 24 + 256 + 8;
const SIGCONTEXT: usize = 40;

/// A frame as bytes for one address.
#[derive(Debug)]
pub struct SigFrame {
    /// To be copied to the address given to [`build`].
    pub bytes: Vec<u8>,
    /// What rsp must be when rt_sigreturn is called.
    pub ucontext: u64,
}

/// Bytes that a frame for `xstate_len` bytes of XSAVE area takes at most.
pub fn frame_len(xstate_len: usize) -> usize {
    UCONTEXT_BYTES + 128 + xstate_len + 4 + 64
}

/// Builds the frame for the address `at` (aligned to 64). `xstate` is an NT_X86_XSTATE area (standard format) or, on CPUs
/// without XSAVE, 512 bytes of FXSAVE. The alternate stack is left as it is: a zero `uc_stack` is refused and so ignored
/// by the kernel.
pub fn build(at: u64, regs: &libc::user_regs_struct, xstate: &[u8], mask: u64) -> SigFrame {
    let fp_at = (UCONTEXT_BYTES + 128).next_multiple_of(64);
    let mut bytes = vec![0u8; fp_at];
    let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0, UC_FLAGS);
    let words = [
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        regs.rdi,
        regs.rsi,
        regs.rbp,
        regs.rbx,
        regs.rdx,
        regs.rax,
        regs.rcx,
        regs.rsp,
        regs.rip,
        regs.eflags,
    ];
    for (i, word) in words.into_iter().enumerate() {
        put(SIGCONTEXT + 8 * i, word);
    }
    // cs, gs, fs, ss in one word; gs and fs are not used by the kernel here.
    put(SIGCONTEXT + 8 * 18, (regs.cs & 0xffff) | (regs.ss & 0xffff) << 48);
    put(SIGCONTEXT + 8 * 23, if xstate.is_empty() { 0 } else { at + fp_at as u64 });
    put(SIGCONTEXT + 256, mask);
    bytes.extend_from_slice(xstate);
    if xstate.len() > 576 {
        let fp = &mut bytes[fp_at..];
        // XSTATE_BV and the features the kernel enabled; the latter stand where the kernel's own NT_X86_XSTATE puts them.
        let enabled: [u8; 8] = fp[SW_RESERVED..SW_RESERVED + 8].try_into().unwrap_or_default();
        fp[SW_RESERVED..SW_RESERVED + 4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
        fp[SW_RESERVED + 4..SW_RESERVED + 8].copy_from_slice(&(xstate.len() as u32 + 4).to_le_bytes());
        fp[SW_RESERVED + 8..SW_RESERVED + 16].copy_from_slice(&enabled);
        fp[SW_RESERVED + 16..SW_RESERVED + 20].copy_from_slice(&(xstate.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&FP_XSTATE_MAGIC2.to_le_bytes());
    }
    SigFrame { bytes, ucontext: at }
}
