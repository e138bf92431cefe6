//! A 32-bit program as an ELF file, for machines without a compiler or a C library for such. It checks all that it holds over
//! and over, and counts on a page that it shares with whoever started it: `FILE MODE [PROGRAM ARGUMENT ARGUMENT]`.
//!
//! Modes: `c` counts with all registers live; `s` sleeps, calling through the vDSO; `a` counts while a timer's signals are
//! handled on another stack; `z` has threads for all of that, a list of robust futexes, and starts PROGRAM as its child;
//! `w` waits in threads for [`WAIT_SECONDS`].
//! The page has words of 64 bits. All numbers of calls are those of i386.
#![allow(unsafe_code, reason = "the program is assembly")]

/// Word of the page: how many threads and handlers count, once all are at work.
pub const READY: usize = 0;
/// What was found wrong; 0 for nothing.
pub const CORRUPT: usize = 1;
/// Calls that were interrupted.
pub const EINTR: usize = 2;
/// A wish: SIGUSR2, which waits, is to be taken.
pub const GO: usize = 5;
/// The last wish that was fulfilled.
pub const ANSWERED: usize = 7;
/// From here on, what each has counted. In mode `z`: main thread, sleeper, counter, handlers of SIGALRM and SIGUSR1, PROGRAM.
pub const LANES: usize = 16;
/// Of the main thread.
pub const COUNT_MAIN: usize = LANES;
/// Of the handler of SIGUSR1.
pub const COUNT_USR1: usize = LANES + 4;
/// Of PROGRAM.
pub const COUNT_CHILD: usize = LANES + 5;
/// What comes with SIGUSR2.
pub const VALUE: u64 = 0x1234_5678;
/// Who waits in mode `w`: each counts once when its wait is over.
pub const WAITS: [&str; 7] = [
    "nanosleep",
    "nanosleep with a place for the rest",
    "poll",
    "futex",
    "futex, 64-bit time",
    "epoll_wait",
    "rt_sigtimedwait",
];
/// How long.
pub const WAIT_SECONDS: u64 = 16;

std::arch::global_asm!(
    r#"
    .pushsection .rodata.zoo_i386, "a", @progbits
    .code32
    .set I386_BASE, 0x08048080
    .set PAGE, 0x20000000
    .set LANE, PAGE + 128
    .macro at label reg
        movl $(\label - zoo_i386 + I386_BASE), \reg
    .endm
    .macro call32 nr
        movl $\nr, %eax
        int $0x80
    .endm
    .macro count lane
        lock incl (LANE + 8 * \lane)
    .endm
    .macro wrong code
        movl $\code, (PAGE + 8)
    .endm
    .macro must code
        cmpl $-4096, %eax
        jb 99f
        wrong \code
    99:
    .endm
    # Segment of its own: its first word is its address. Clobbers eax.
    .macro check_tls number
        movl %gs:4, %eax
        cmpl $\number, %eax
        je 98f
        wrong 100 + \number
    98:
    .endm
zoo_i386:
    movl %esp, %ebp
    # The page.
    movl 8(%ebp), %ebx
    movl $2, %ecx
    xorl %edx, %edx
    call32 5
    must 1
    movl %eax, %edi
    pushl %ebp
    movl $PAGE, %ebx
    movl $4096, %ecx
    movl $3, %edx
    movl $0x11, %esi
    xorl %ebp, %ebp
    call32 192
    popl %ebp
    cmpl $PAGE, %eax
    je 1f
    movl $9, %ebx
    call32 1
1:  movl %edi, %ebx
    call32 6
    # AT_SYSINFO, behind arguments and environment.
    movl %ebp, %esi
    addl $4, %esi
2:  addl $4, %esi
    cmpl $0, -4(%esi)
    jne 2b
2:  addl $4, %esi
    cmpl $0, -4(%esi)
    jne 2b
    at i_vsyscall, %edi
2:  cmpl $32, (%esi)
    jne 3f
    movl 4(%esi), %eax
    movl %eax, (%edi)
3:  addl $8, %esi
    cmpl $0, -8(%esi)
    jne 2b
    cmpl $0, (%edi)
    jne 2f
    wrong 2
2:
    # A segment of its own, in gs.
    at i_tls_main, %ebx
    call32 243
    must 3
    movl (%ebx), %eax
    at i_tls_second, %ecx
    movl %eax, (%ecx)
    at i_tls_third, %ecx
    movl %eax, (%ecx)
    leal 3(,%eax,8), %eax
    movw %ax, %gs
    check_tls 1
    # Handlers, an alternate stack, a list of robust futexes.
    movl $10, %ebx
    at i_act_usr1, %ecx
    xorl %edx, %edx
    movl $8, %esi
    call32 174
    must 4
    movl $14, %ebx
    at i_act_alarm, %ecx
    call32 174
    must 5
    at i_altstack, %ebx
    xorl %ecx, %ecx
    call32 186
    must 6
    at i_robust_main, %ebx
    movl $12, %ecx
    call32 311
    must 7
    movl 12(%ebp), %eax
    movb (%eax), %al
    cmpb $'c', %al
    je i_mode_c
    cmpb $'s', %al
    je i_mode_s
    cmpb $'a', %al
    je i_mode_a
    cmpb $'w', %al
    je i_mode_w

    # Mode z: threads, the child, and checks of what the kernel has.
    call i_block_usr2
    at i_stack_second, %ecx
    at i_tls_second, %esi
    call i_thread
    testl %eax, %eax
    jz i_second
    at i_stack_third, %ecx
    at i_tls_third, %esi
    call i_thread
    testl %eax, %eax
    jz i_third
    cmpl $4, (%ebp)
    jb 1f
    call32 2
    testl %eax, %eax
    jnz 1f
    movl 16(%ebp), %ebx
    leal 16(%ebp), %ecx
    xorl %edx, %edx
    call32 11
    movl $8, %ebx
    call32 252
1:  movl $10000, %ecx
    call i_timer
    movl $6, (PAGE)
i_main:
    count 0
    check_tls 1
    call i_check_robust
    xorl %ebx, %ebx
    at i_found, %ecx
    call32 186
    at i_found, %esi
    at i_altstack, %edi
    movl $3, %ecx
    repe cmpsl
    je 1f
    wrong 10
1:  movl $10, %ebx
    xorl %ecx, %ecx
    at i_found, %edx
    movl $8, %esi
    call32 174
    must 11
    at i_found, %esi
    at i_act_usr1, %edi
    movl $5, %ecx
    repe cmpsl
    je 1f
    wrong 12
1:  # The queued signal, when asked for.
    movl (PAGE + 40), %eax
    cmpl (PAGE + 56), %eax
    je 1f
    at i_set_usr2, %ebx
    at i_found, %ecx
    at i_no_time, %edx
    movl $8, %esi
    call32 177
    cmpl $12, %eax
    je 2f
    wrong 13
2:  at i_found, %ecx
    cmpl $0x12345678, 20(%ecx)
    je 2f
    wrong 14
2:  movl (PAGE + 40), %eax
    movl %eax, (PAGE + 56)
1:  at i_one_ms, %ebx
    xorl %ecx, %ecx
    call32 162
    jmp i_main

    # ecx: stack, esi: segment. As clone: 0 in the thread.
i_thread:
    popl %edi
    movl $0xd0f00, %ebx
    xorl %edx, %edx
    pushl %edi
    xorl %edi, %edi
    movl (%esp), %eax
    subl $4, %ecx
    movl %eax, (%ecx)
    call32 120
    ret

i_second:
    at i_robust_second, %ebx
    movl $12, %ecx
    call32 311
    call i_block_all
1:  count 1
    check_tls 2
    at i_robust_second, %edi
    call i_check_robust_at
    call i_sleep
    jmp 1b

i_third:
    at i_robust_third, %ebx
    movl $12, %ecx
    call32 311
1:  count 2
    check_tls 3
    at i_robust_third, %edi
    call i_check_robust_at
    call i_spin
    jmp 1b

i_mode_c:
    movl $1, (PAGE)
1:  count 0
    check_tls 1
    call i_check_robust
    call i_spin
    jmp 1b

i_mode_s:
    movl $1, (PAGE)
1:  count 0
    check_tls 1
    call i_sleep
    jmp 1b

i_mode_a:
    movl $300, %ecx
    call i_timer
1:  cmpl $0, (LANE + 8 * 3)
    je 1b
    movl $4, (PAGE)
1:  count 0
    count 1
    count 2
    check_tls 1
    call i_spin
    jmp 1b

    # Mode w: threads, each in one wait.
i_mode_w:
    at i_stack_second, %ecx
    at i_tls_second, %esi
    call i_thread
    testl %eax, %eax
    jnz 1f
    at i_wait, %ebx
    xorl %ecx, %ecx
    call32 162
    call i_waited
    count 0
    jmp i_stay
1:  at i_stack_third, %ecx
    at i_tls_third, %esi
    call i_thread
    testl %eax, %eax
    jnz 1f
    at i_wait, %ebx
    at i_found, %ecx
    call32 162
    call i_waited
    count 1
    jmp i_stay
1:  at i_stack_fourth, %ecx
    at i_tls_second, %esi
    call i_thread
    testl %eax, %eax
    jnz 1f
    xorl %ebx, %ebx
    xorl %ecx, %ecx
    movl $16000, %edx
    call32 168
    call i_waited
    count 2
    jmp i_stay
1:  at i_stack_fifth, %ecx
    at i_tls_second, %esi
    call i_thread
    testl %eax, %eax
    jnz 1f
    at i_wait, %esi
    movl $240, %eax
    call i_futex
    count 3
    jmp i_stay
1:  at i_stack_sixth, %ecx
    at i_tls_second, %esi
    call i_thread
    testl %eax, %eax
    jnz 1f
    at i_wait64, %esi
    movl $422, %eax
    call i_futex
    count 4
    jmp i_stay
1:  at i_stack_seventh, %ecx
    at i_tls_second, %esi
    call i_thread
    testl %eax, %eax
    jnz 1f
    xorl %ebx, %ebx
    call32 329
    movl %eax, %ebx
    at i_event, %ecx
    movl $1, %edx
    movl $16000, %esi
    call32 256
    call i_waited
    count 5
    jmp i_stay
1:  at i_stack_eighth, %ecx
    at i_tls_second, %esi
    call i_thread
    testl %eax, %eax
    jnz 1f
    at i_set_usr2, %ebx
    xorl %ecx, %ecx
    at i_wait, %edx
    movl $8, %esi
    call32 177
    addl $11, %eax
    call i_waited
    count 6
    jmp i_stay
1:  movl $1, (PAGE)
1:  at i_one_ms, %ebx
    xorl %ecx, %ecx
    call32 162
    jmp 1b
i_futex:
    at i_no_time, %ebx
    movl $128, %ecx
    xorl %edx, %edx
    int $0x80
    cmpl $-110, %eax
    jne i_waited
    xorl %eax, %eax
i_waited:
    testl %eax, %eax
    jz 1f
    lock incl (PAGE + 16)
1:  ret
i_stay:
    call32 29
    jmp i_stay

    # Two milliseconds, called through the vDSO.
i_sleep:
    at i_two_ms, %ebx
    xorl %ecx, %ecx
    movl $0x55aa55aa, %ebp
    movl $0x66bb66bb, %esi
    movl $0x77cc77cc, %edi
    movl $0x33dd33dd, %edx
    movl $162, %eax
    call *(i_vsyscall - zoo_i386 + I386_BASE)
    testl %eax, %eax
    jz 1f
    lock incl (PAGE + 16)
1:  cmpl $0x55aa55aa, %ebp
    jne 2f
    cmpl $0x66bb66bb, %esi
    jne 2f
    cmpl $0x77cc77cc, %edi
    jne 2f
    cmpl $0x33dd33dd, %edx
    jne 2f
    ret
2:  wrong 20
    ret

    # All registers live for a while.
i_spin:
    finit
    fldpi
    fld1
    fldl2e
    movl $0x3fc90fdb, %eax
    movd %eax, %xmm7
    pshufd $0, %xmm7, %xmm7
    movl $0x11111111, %eax
    movl $0x22222222, %ebx
    movl $0x44444444, %edx
    movl $0x55555555, %esi
    movl $0x66666666, %edi
    movl $0x77777777, %ebp
    movl $20000, %ecx
    pushl $0x5eed5eed
    stc
1:  jnc 2f
    decl %ecx
    jnz 1b
    jnc 2f
    cmpl $0x11111111, %eax
    jne 2f
    cmpl $0x22222222, %ebx
    jne 2f
    cmpl $0x44444444, %edx
    jne 2f
    cmpl $0x55555555, %esi
    jne 2f
    cmpl $0x66666666, %edi
    jne 2f
    cmpl $0x77777777, %ebp
    jne 2f
    cmpl $0x5eed5eed, (%esp)
    jne 2f
    pshufd $0x4e, %xmm7, %xmm6
    movd %xmm6, %eax
    cmpl $0x3fc90fdb, %eax
    jne 2f
    fldl2e
    fcomip %st(1), %st
    jne 2f
    fstp %st(0)
    fld1
    fcomip %st(1), %st
    jne 2f
    fstp %st(0)
    fldpi
    fcomip %st(1), %st
    jne 2f
    fstp %st(0)
    popl %eax
    ret
2:  wrong 21
    popl %eax
    ret

i_check_robust:
    at i_robust_main, %edi
i_check_robust_at:
    subl $8, %esp
    xorl %ebx, %ebx
    movl %esp, %ecx
    leal 4(%esp), %edx
    call32 312
    must 22
    cmpl %edi, (%esp)
    jne 1f
    cmpl $12, 4(%esp)
    je 2f
1:  wrong 23
2:  addl $8, %esp
    ret

i_block_usr2:
    at i_set_usr2, %ecx
    jmp 1f
i_block_all:
    at i_set_all, %ecx
1:  xorl %ebx, %ebx
    xorl %edx, %edx
    movl $8, %esi
    call32 175
    must 24
    ret

    # ecx: microseconds between alarms.
i_timer:
    subl $16, %esp
    movl $0, (%esp)
    movl %ecx, 4(%esp)
    movl $0, 8(%esp)
    movl %ecx, 12(%esp)
    xorl %ebx, %ebx
    movl %esp, %ecx
    xorl %edx, %edx
    call32 104
    must 25
    addl $16, %esp
    ret

    # Comes with information, on the alternate stack where there is one.
i_on_usr1:
    cmpl $10, 4(%esp)
    jne 1f
    movl 8(%esp), %eax
    cmpl $10, (%eax)
    jne 1f
    count 4
    ret
1:  wrong 30
    ret

    # Returns through the vDSO: it has no restorer.
i_on_alarm:
    cmpl $14, 4(%esp)
    je 1f
    wrong 31
1:  finit
    pxor %xmm7, %xmm7
    count 3
    ret

i_restorer:
    call32 173

    .balign 16
i_vsyscall: .long 0
i_tls_main:
    .long -1, i_tls_words - zoo_i386 + I386_BASE, 0xfffff, 0x51
i_tls_second:
    .long 0, i_tls_words - zoo_i386 + I386_BASE + 8, 0xfffff, 0x51
i_tls_third:
    .long 0, i_tls_words - zoo_i386 + I386_BASE + 16, 0xfffff, 0x51
i_tls_words: .long 0, 1, 0, 2, 0, 3
i_act_usr1: .long i_on_usr1 - zoo_i386 + I386_BASE, 0x1c000004, i_restorer - zoo_i386 + I386_BASE, 0x1000, 2
i_act_alarm: .long i_on_alarm - zoo_i386 + I386_BASE, 0x18000000, 0, 0, 0
i_altstack: .long i_stack_signals - zoo_i386 + I386_BASE - 8192, 0, 8192
i_robust_main: .long i_robust_main - zoo_i386 + I386_BASE, 0, 0
i_robust_second: .long i_robust_second - zoo_i386 + I386_BASE, 0, 0
i_robust_third: .long i_robust_third - zoo_i386 + I386_BASE, 0, 0
i_set_usr2: .long 0x800, 0
i_set_all: .long -1, -1
i_no_time: .long 0, 0
i_one_ms: .long 0, 1000000
i_two_ms: .long 0, 2000000
i_wait: .long 16, 0
i_wait64: .quad 16, 0
i_event: .long 0, 0, 0
    .balign 16
i_found: .fill 128, 1, 0
    # Behind the file's end.
    .set i_stack_second, i_end + 0x4000
    .set i_stack_third, i_end + 0x8000
    .set i_stack_fourth, i_end + 0xa000
    .set i_stack_fifth, i_end + 0xc000
    .set i_stack_sixth, i_end + 0xe000
    .set i_stack_signals, i_end + 0x12000
    .set i_stack_seventh, i_end + 0x14000
    .set i_stack_eighth, i_end + 0x16000
i_end:
    .globl zoo_i386_bytes
    .balign 4
zoo_i386_bytes: .long i_end - zoo_i386
    .globl zoo_i386
    .code64
    .popsection
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static zoo_i386: u8;
    static zoo_i386_bytes: u32;
}

/// The program as a file. Its one segment is readable, writable and executable; the stack is not.
pub fn file() -> Vec<u8> {
    const HEADERS: u32 = 0x80;
    const BASE: u32 = 0x0804_8000;
    const BEHIND: u32 = 0x17000;
    // SAFETY: the assembly above defines both, and that many bytes from the label on.
    let code = unsafe { std::slice::from_raw_parts(&raw const zoo_i386, zoo_i386_bytes as usize) };
    let len = HEADERS + code.len() as u32;
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let word = |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    // An executable for i386.
    half(&mut file, &[2, 3]);
    word(&mut file, &[1, BASE + HEADERS, 52, 0, 0]);
    half(&mut file, &[52, 32, 2, 0, 0, 0]);
    // PT_LOAD, PT_GNU_STACK.
    word(&mut file, &[1, 0, BASE, BASE, len, len + BEHIND, 7, 4096]);
    word(&mut file, &[0x6474_e551, 0, 0, 0, 0, 0, 6, 16]);
    file.resize(HEADERS as usize, 0);
    file.extend_from_slice(code);
    file
}
