//! The interpreter run for real: in a forked child, from a copied code area, with threads, results and failures.
#![allow(unsafe_code, reason = "forks a child that leaves Rust for the interpreter")]
#![allow(clippy::unwrap_used, reason = "a test")]
use crust_inject::arch::interp;
use crust_inject::plan::{Arg, Expect, Failure, HEADER_BYTES, PlanId, Program};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

const CODE: u64 = 4096;

/// Runs the program's first plan in a child; gives the wait status and the shared memory as the child left it.
fn run(program: &Program, words: u64) -> (i32, Vec<u8>, u64) {
    let len = (CODE as usize + program.linked_len()).next_multiple_of(4096);
    // SAFETY: new anonymous memory at an address of the kernel's choice.
    let area = unsafe {
        let prot = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
        mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::SHARED).unwrap()
    };
    let base = area as u64;
    let linked = program.link(base + CODE);
    // SAFETY: both areas lie inside the mapping made above; the child only enters the copied interpreter.
    let status = unsafe {
        std::ptr::copy_nonoverlapping(interp::code().as_ptr(), area.cast(), interp::code().len());
        std::ptr::copy_nonoverlapping(linked.bytes.as_ptr(), (base + CODE) as *mut u8, linked.bytes.len());
        let pid = libc::fork();
        if pid == 0 {
            interp::enter(base, linked.headers[0]);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status
    };
    // SAFETY: the mapping is `len` bytes and nobody writes any more.
    let bytes = unsafe { std::slice::from_raw_parts(area.cast::<u8>(), len) }.to_vec();
    (status, bytes, linked.headers[0] - base + words * 8)
}

fn exit_with(p: &mut Program, plan: PlanId, code: impl Into<Arg>) {
    p.syscall(plan, "exit_group", libc::SYS_exit_group, &[code.into()]);
}

#[test]
fn results_feed_later_calls() {
    let mut p = Program::new();
    let main = p.plan("main");
    let fd = p.syscall_slot(main, "dup", libc::SYS_dup, &[2.into()], Expect::Ok);
    p.syscall(main, "close", libc::SYS_close, &[fd.into()]);
    let again =
        p.syscall_slot(main, "close again", libc::SYS_close, &[Arg::Result(fd, 0)], Expect::Equals(-9i64 as u64));
    // -EBADF + 50 = 41
    exit_with(&mut p, main, Arg::Result(again, 50));
    let (status, _, _) = run(&p, 0);
    assert_eq!(status, 41 << 8);
}

#[test]
fn unexpected_result_names_the_record() {
    let mut p = Program::new();
    let main = p.plan("main");
    p.syscall(main, "getpid", libc::SYS_getpid, &[]);
    p.syscall(main, "close nothing", libc::SYS_close, &[9999.into()]);
    exit_with(&mut p, main, 0);
    let (status, bytes, header) = run(&p, 0);
    assert_eq!(status, 112 << 8);
    let failure = Failure::parse_header(&bytes[header as usize..][..HEADER_BYTES]).unwrap();
    assert_eq!(failure.value, -i64::from(libc::EBADF));
}

#[test]
fn error_path_sees_the_failed_record() {
    let mut p = Program::new();
    let main = p.plan("main");
    let copy = p.reserve(72);
    p.syscall(main, "close nothing", libc::SYS_close, &[9999.into()]);
    exit_with(&mut p, main, 0);
    p.error_path(main);
    p.copy(main, copy, Arg::FailedRecord, 72);
    exit_with(&mut p, main, 33);
    let (status, bytes, header) = run(&p, 0);
    assert_eq!(status, 33 << 8);
    // The copied record ends with the distance to its label, counted from the original.
    let failure = Failure::parse_header(&bytes[header as usize..][..HEADER_BYTES]).unwrap();
    let at = bytes.windows(13).position(|w| w == b"close nothing").unwrap() as u64;
    let record = (failure.record & 0xfff) + (header & !0xfff);
    let distance = Failure::label_distance(&bytes[record as usize..][..72]).unwrap();
    assert_eq!(record + u64::from(distance), at);
}

#[test]
fn threads_meet_at_a_barrier() {
    let mut p = Program::new();
    let main = p.plan("main");
    let threads: Vec<PlanId> = (0..20).map(|_| p.plan("thread")).collect();
    // Absolute addresses are needed for barriers, so the words live at a fixed place of their own.
    // SAFETY: new shared memory; only the child's barrier words live there.
    let shared = unsafe {
        mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED).unwrap() as u64
    };
    for &t in &threads {
        // clone_args: flags VM|FS|FILES|SIGHAND|THREAD|SYSVSEM, no stack: the interpreter needs none.
        let args = p.data(&[&0x0005_0f00u64.to_le_bytes()[..], &[0u8; 80]].concat());
        p.thread(main, args, 88, t);
        p.barrier(t, shared, 21, shared + 4, 0);
        p.syscall(t, "exit", libc::SYS_exit, &[0.into()]);
    }
    p.barrier(main, shared, 21, shared + 4, 0);
    p.syscall(main, "yield", libc::SYS_sched_yield, &[]);
    p.wake_all(main, shared, 0);
    p.syscall(main, "exit", libc::SYS_exit, &[0.into()]);
    let (status, _, _) = run(&p, 0);
    assert_eq!(status, 0);
    // SAFETY: the mapping made above; the child is gone.
    assert_eq!(unsafe { (shared as *const u32).read_volatile() }, 21);
}

#[test]
fn tiles_get_room_where_they_are_allowed() {
    const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
    if crust_kernel::ptrace_x86::supported_xstate().unwrap_or(0) & (1 << 18) == 0 {
        return;
    }
    for allowed in [true, false] {
        let mut p = Program::new();
        let main = p.plan("main");
        if allowed {
            let args = [ARCH_REQ_XCOMP_PERM.into(), 18.into()];
            p.syscall(main, "ARCH_REQ_XCOMP_PERM", libc::SYS_arch_prctl, &args);
        }
        p.tile_room(main);
        exit_with(&mut p, main, 7);
        let (status, _, _) = run(&p, 0);
        // A core may have been dumped: bit 7.
        assert_eq!(status & !0x80, if allowed { 7 << 8 } else { libc::SIGILL }, "allowed: {allowed}");
    }
}
