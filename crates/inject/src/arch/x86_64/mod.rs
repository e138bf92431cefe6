//! x86_64: interpreter, landings, registers.
pub mod compat;
pub mod interp;
pub mod landing;
pub mod regs;

/// The `arch` word that seccomp filters see for calls of 64-bit code (AUDIT_ARCH_X86_64).
pub const AUDIT_ARCH: u32 = 0xc000_003e;
