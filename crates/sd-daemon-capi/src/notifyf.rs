//! `sd_notifyf`, which takes any number of arguments. Rust calls such functions but cannot define them yet, so its first
//! instructions are written by hand: they put the arguments where C's `va_list` wants them and call ordinary Rust.
use std::arch::naked_asm;
use std::ffi::{c_char, c_int, c_void};

unsafe extern "C" {
    /// C's. A `va_list` is passed as a pointer in the x86-64 System V ABI.
    fn vasprintf(to: *mut *mut c_char, format: *const c_char, arguments: *mut c_void) -> c_int;
}

/// `int sd_notifyf(int unset_environment, const char *format, ...)`
///
/// # Safety
/// `format` is NULL or a format for printf, and the arguments are those it asks for. With `unset_environment`, no other
/// thread uses the environment.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn sd_notifyf(unset_environment: c_int, format: *const c_char) -> c_int {
    // System V ABI, AMD64, 3.5.7: below the frame, a register save area of 176 bytes (six integer registers, then eight
    // vector registers, these only if %al says that any is used) and the 24 bytes of the va_list itself:
    //   +0 gp_offset (two named arguments: 16)   +4 fp_offset (48)   +8 overflow_arg_area   +16 reg_save_area
    // 208 bytes keep the stack aligned to 16, as the vector stores and the call demand.
    naked_asm!(
        ".cfi_startproc",
        "endbr64",
        "push rbp",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset rbp, -16",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "sub rsp, 208",
        "mov [rsp + 32 + 16], rdx",
        "mov [rsp + 32 + 24], rcx",
        "mov [rsp + 32 + 32], r8",
        "mov [rsp + 32 + 40], r9",
        "test al, al",
        "je 2f",
        "movaps [rsp + 32 + 48], xmm0",
        "movaps [rsp + 32 + 64], xmm1",
        "movaps [rsp + 32 + 80], xmm2",
        "movaps [rsp + 32 + 96], xmm3",
        "movaps [rsp + 32 + 112], xmm4",
        "movaps [rsp + 32 + 128], xmm5",
        "movaps [rsp + 32 + 144], xmm6",
        "movaps [rsp + 32 + 160], xmm7",
        "2:",
        "mov dword ptr [rsp], 16",
        "mov dword ptr [rsp + 4], 48",
        "lea rax, [rbp + 16]",
        "mov [rsp + 8], rax",
        "lea rax, [rsp + 32]",
        "mov [rsp + 16], rax",
        "mov rdx, rsp",
        "call {with_list}",
        "leave",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
        with_list = sym with_list,
    )
}

/// The rest of `sd_notifyf`: edi, rsi and rdx of the trampoline.
///
/// # Safety
/// As for `sd_notifyf`; `arguments` points to a `va_list`.
unsafe extern "C" fn with_list(unset_environment: c_int, format: *const c_char, arguments: *mut c_void) -> c_int {
    let mut text: *mut c_char = std::ptr::null_mut();
    // SAFETY: format and arguments fit each other by the caller's promise; `text` receives a malloc'd string.
    if !format.is_null() && unsafe { vasprintf(&raw mut text, format, arguments) } < 0 {
        if unset_environment != 0 {
            // SAFETY: the caller's promise.
            unsafe { sd_daemon::unset_notify() };
        }
        return -libc::ENOMEM;
    }
    // SAFETY: `text` is NULL or the string vasprintf just made.
    let r = unsafe { crate::sd_notify(unset_environment, text) };
    // SAFETY: NULL, or malloc'd by vasprintf and not used any more.
    unsafe { libc::free(text.cast()) };
    r
}
