//! The programs that are dumped while their tracer is killed. Each checks itself and counts on a shared page.
use crate::shared::{Page, Word};
use std::arch::asm;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub(crate) fn run(name: &str, path: &Path) -> ! {
    let page: &'static Page = Box::leak(Box::new(Page::open(path)));
    let ready = |lanes: u64| page.set(Word::Ready, lanes);
    match name {
        "counter" => {
            ready(1);
            counter(page, 0)
        }
        "sleep" => {
            ready(1);
            sleeper(page, 0)
        }
        "read" => {
            ready(1);
            reader(page)
        }
        "vector" => {
            ready(1);
            vector(page, 0)
        }
        "tiles" => tiles(page),
        "novdso" => without_vdso(page, ready),
        "altstack" => altstack(page),
        "smallstack" => {
            ready(1);
            small_stack(page)
        }
        "threads" => threads(page),
        "vfork" => vfork(page),
        "churn" => churn(page),
        "exec" => exec(page, path),
        "many" => many(page),
        "headless" => headless(page),
        "catchall" => catch_all(page),
        "filtered" => filtered(page),
        "suspended" => suspended(page),
        "handler" => in_handler(page),
        "tight" => tight(page),
        other => panic!("no target {other}"),
    }
}

const MUL: u64 = 6_364_136_223_846_793_005;
const ADD: u64 = 1_442_695_040_888_963_407;

/// The state after `n` steps from 1, in log n.
fn jump(mut n: u64) -> u64 {
    let (mut mul, mut add) = (1u64, 0u64);
    let (mut m, mut a) = (MUL, ADD);
    while n > 0 {
        if n & 1 == 1 {
            add = add.wrapping_mul(m).wrapping_add(a);
            mul = mul.wrapping_mul(m);
        }
        a = a.wrapping_mul(m).wrapping_add(a);
        m = m.wrapping_mul(m);
        n >>= 1;
    }
    mul.wrapping_add(add)
}

/// A running checksum that cannot be right if a single step was lost or done twice.
fn counter(page: &Page, lane: usize) -> ! {
    let (mut x, mut n) = (1u64, 0u64);
    loop {
        for _ in 0..100_000 {
            x = std::hint::black_box(x.wrapping_mul(MUL).wrapping_add(ADD));
            n += 1;
        }
        if x != jump(n) {
            page.add(Word::Corrupt, 1);
        }
        page.step(lane);
    }
}

/// Without its vDSO, so that nothing here may ask for the time.
fn without_vdso(page: &'static Page, ready: impl Fn(u64)) -> ! {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    for line in maps.lines().filter(|l| l.ends_with("[vdso]") || l.contains("[vvar")) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let at = |text: &str| usize::from_str_radix(text, 16).unwrap();
        // SAFETY: the kernel's code and data for quick calls: nothing is called from here on that uses them.
        assert_eq!(unsafe { libc::munmap(at(start) as *mut libc::c_void, at(end) - at(start)) }, 0);
    }
    std::thread::spawn(|| counter(page, 0));
    ready(2);
    vector(page, 1)
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn sleeper(page: &Page, lane: usize) -> ! {
    let nap = Duration::from_millis(15);
    loop {
        let start = Instant::now();
        let ts = libc::timespec { tv_sec: 0, tv_nsec: nap.as_nanos() as i64 };
        // SAFETY: plain call with a timespec of ours and no remainder asked for.
        let ret = unsafe { libc::nanosleep(&ts, std::ptr::null_mut()) };
        let slept = start.elapsed();
        if ret != 0 {
            page.add(Word::Eintr, u64::from(errno() == libc::EINTR));
            page.add(Word::Corrupt, u64::from(errno() != libc::EINTR));
        } else if slept < nap {
            page.add(Word::Corrupt, 1);
        } else {
            page.max(Word::Oversleep, (slept - nap).as_micros() as u64);
        }
        page.step(lane);
    }
}

/// Messages come from the harness, numbered; between them the read is blocked.
fn reader(page: &Page) -> ! {
    let mut expected = 0u64;
    loop {
        let mut buf = [0u8; 8];
        // SAFETY: reads at most the buffer's eight bytes.
        let got = unsafe { libc::read(0, buf.as_mut_ptr().cast(), 8) };
        match got {
            8 if u64::from_le_bytes(buf) == expected => expected += 1,
            0 => std::process::exit(0),
            -1 if errno() == libc::EINTR => page.add(Word::Eintr, 1),
            _ => page.add(Word::Corrupt, 1),
        }
        page.set(Word::Messages, expected);
        page.step(0);
    }
}

#[repr(C, align(64))]
struct Wide([u64; 8 * 32]);

/// Vector, mask, general and x87 registers and the red zone, live over a busy loop.
fn vector(page: &Page, lane: usize) -> ! {
    let wide512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    let wide256 = is_x86_feature_detected!("avx2");
    let mut round = 0u64;
    loop {
        round += 1;
        let mut pattern = Wide([0; 256]);
        for (i, w) in pattern.0.iter_mut().enumerate() {
            *w = jump(round * 1000 + i as u64);
        }
        let mut out = Wide([0; 256]);
        let good = if wide512 {
            vector_512(&pattern, &mut out);
            out.0 == pattern.0
        } else if wide256 {
            vector_256(&pattern, &mut out);
            out.0[..64] == pattern.0[..64]
        } else {
            true
        };
        if !good || !general(round) {
            page.add(Word::Corrupt, 1);
        }
        page.step(lane);
    }
}

fn vector_256(pattern: &Wide, out: &mut Wide) {
    // SAFETY: loads 16 × 32 bytes from `pattern`, stores as many to `out` (both hold 2048), and names every register it
    // changes; AVX2 was detected by the caller.
    unsafe {
        asm!(
            "vmovdqu ymm0, [{p}]", "vmovdqu ymm1, [{p}+32]", "vmovdqu ymm2, [{p}+64]", "vmovdqu ymm3, [{p}+96]",
            "vmovdqu ymm4, [{p}+128]", "vmovdqu ymm5, [{p}+160]", "vmovdqu ymm6, [{p}+192]", "vmovdqu ymm7, [{p}+224]",
            "vmovdqu ymm8, [{p}+256]", "vmovdqu ymm9, [{p}+288]", "vmovdqu ymm10, [{p}+320]", "vmovdqu ymm11, [{p}+352]",
            "vmovdqu ymm12, [{p}+384]", "vmovdqu ymm13, [{p}+416]", "vmovdqu ymm14, [{p}+448]", "vmovdqu ymm15, [{p}+480]",
            "2:", "dec {n}", "jnz 2b",
            "vmovdqu [{o}], ymm0", "vmovdqu [{o}+32], ymm1", "vmovdqu [{o}+64], ymm2", "vmovdqu [{o}+96], ymm3",
            "vmovdqu [{o}+128], ymm4", "vmovdqu [{o}+160], ymm5", "vmovdqu [{o}+192], ymm6", "vmovdqu [{o}+224], ymm7",
            "vmovdqu [{o}+256], ymm8", "vmovdqu [{o}+288], ymm9", "vmovdqu [{o}+320], ymm10", "vmovdqu [{o}+352], ymm11",
            "vmovdqu [{o}+384], ymm12", "vmovdqu [{o}+416], ymm13", "vmovdqu [{o}+448], ymm14", "vmovdqu [{o}+480], ymm15",
            p = in(reg) pattern.0.as_ptr(), o = in(reg) out.0.as_mut_ptr(), n = inout(reg) 400_000u64 => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _,
            out("ymm7") _, out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _,
            out("ymm14") _, out("ymm15") _,
        );
    }
}

fn vector_512(pattern: &Wide, out: &mut Wide) {
    // SAFETY: the two .rept blocks load and store 32 × 64 bytes, the size of both arrays; AVX-512 was detected by the
    // caller, and all vector and mask registers are declared as changed.
    unsafe {
        asm!(
            ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "vmovdqu64 zmm\\i, [{p} + 64*\\i]",
            ".endr",
            ".irp i,1,2,3,4,5,6,7",
            "kmovq k\\i, [{p} + 8*\\i]",
            ".endr",
            "2:", "dec {n}", "jnz 2b",
            ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
            "vmovdqu64 [{o} + 64*\\i], zmm\\i",
            ".endr",
            // Word 0 of the first vector stays from zmm0; the masks overwrite words 1 to 7 with what they should hold anyway.
            ".irp i,1,2,3,4,5,6,7",
            "kmovq [{o} + 8*\\i], k\\i",
            ".endr",
            p = in(reg) pattern.0.as_ptr(), o = in(reg) out.0.as_mut_ptr(), n = inout(reg) 400_000u64 => _,
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _,
            out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _,
            out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _, out("zmm20") _,
            out("zmm21") _, out("zmm22") _, out("zmm23") _, out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
            out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
            out("k1") _, out("k2") _, out("k3") _, out("k4") _, out("k5") _, out("k6") _, out("k7") _,
        );
    }
}

/// Palette 1, as LDTILECFG takes it, and the content of eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Tiles {
    config: [u8; 64],
    rows: [u64; 1024],
}

/// Full tiles of numbers that `seed` determines.
fn tiles_of(seed: u64) -> Tiles {
    let mut tiles = Tiles { config: [0; 64], rows: std::array::from_fn(|i| jump(seed * 1024 + i as u64)) };
    tiles.config[0] = 1;
    for tile in 0..8 {
        (tiles.config[16 + 2 * tile], tiles.config[48 + tile]) = (64, 16);
    }
    tiles
}

fn load_tiles(from: &Tiles) {
    // SAFETY: reads the configuration and eight times 1024 bytes of `from`; no compiler keeps anything in tiles.
    unsafe {
        asm!(
            "ldtilecfg [{c}]",
            ".irp i,0,1,2,3,4,5,6,7",
            "tileloadd tmm\\i, [{p} + {stride}*1 + 1024*\\i]",
            ".endr",
            c = in(reg) from.config.as_ptr(), p = in(reg) from.rows.as_ptr(), stride = in(reg) 64_u64,
        );
    }
}

/// Whether the tiles are still as loaded; releases them.
fn are_tiles(want: &Tiles) -> bool {
    let mut now = Tiles { config: [0; 64], rows: [0; 1024] };
    // SAFETY: writes 64 bytes of configuration and eight times 1024 bytes, the sizes of both fields.
    unsafe {
        asm!(
            "sttilecfg [{c}]",
            ".irp i,0,1,2,3,4,5,6,7",
            "tilestored [{p} + {stride}*1 + 1024*\\i], tmm\\i",
            ".endr",
            "tilerelease",
            c = in(reg) now.config.as_mut_ptr(), p = in(reg) now.rows.as_mut_ptr(), stride = in(reg) 64_u64,
        );
    }
    now.config == want.config && now.rows == want.rows
}

/// AMX tiles, live over a busy loop in one thread and over a blocking call in the other.
fn tiles(page: &'static Page) -> ! {
    const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
    // SAFETY: takes numbers only.
    assert_eq!(unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, 18) }, 0);
    let hold = move |lane: usize, meanwhile: fn(&Page)| -> ! {
        for seed in lane as u64.. {
            let want = tiles_of(seed);
            load_tiles(&want);
            meanwhile(page);
            if !are_tiles(&want) {
                page.add(Word::Corrupt, 1);
            }
            page.step(lane);
        }
        unreachable!()
    };
    std::thread::spawn(move || {
        hold(1, |page| {
            let ts = libc::timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            // SAFETY: plain call with a timespec of ours and no remainder asked for.
            let ret = unsafe { libc::nanosleep(&ts, std::ptr::null_mut()) };
            page.add(Word::Eintr, u64::from(ret != 0));
        })
    });
    page.set(Word::Ready, 2);
    hold(0, |_| {
        for i in 0..400_000 {
            std::hint::black_box(i);
        }
    })
}

/// General registers, flags, x87 and red zone over a busy loop.
fn general(seed: u64) -> bool {
    let (mut a, mut b, mut c, mut d) = (seed ^ 0x11, seed ^ 0x22, seed ^ 0x33, seed ^ 0x44);
    let (mut e, mut f, mut g, mut h) = (seed ^ 0x55, seed ^ 0x66, seed ^ 0x77, seed ^ 0x88);
    let (mut red, mut carry): (u64, u64) = (seed, 0);
    let mut pi = 0f64;
    // SAFETY: touches only named registers, `pi`, and the red zone below rsp, which belongs to this block because it does
    // not claim `nostack`.
    unsafe {
        asm!(
            "fldpi",
            "mov [rsp - 8], {red}", "mov [rsp - 64], {red}", "mov [rsp - 128], {red}",
            "stc",
            "2:", "dec rcx", "jnz 2b", // dec leaves the carry flag alone
            "setc cl",
            "mov {red}, [rsp - 8]", "add {red}, [rsp - 64]", "add {red}, [rsp - 128]",
            "fstp qword ptr [{pi}]",
            red = inout(reg) red, pi = in(reg) &raw mut pi, inout("rcx") 400_000u64 => carry,
            inout("r8") a, inout("r9") b, inout("r10") c, inout("r11") d, inout("r12") e, inout("r13") f,
            inout("r14") g, inout("r15") h,
        );
    }
    red == seed.wrapping_mul(3)
        && carry & 0xff == 1
        && (a, b, c, d) == (seed ^ 0x11, seed ^ 0x22, seed ^ 0x33, seed ^ 0x44)
        && (e, f, g, h) == (seed ^ 0x55, seed ^ 0x66, seed ^ 0x77, seed ^ 0x88)
        && pi == std::f64::consts::PI
}

static ALT: std::sync::OnceLock<(usize, usize, &'static Page)> = std::sync::OnceLock::new();

extern "C" fn on_alarm(_: libc::c_int) {
    let here = 0u8;
    let at = std::hint::black_box(&raw const here) as usize;
    if let Some((start, end, page)) = ALT.get() {
        if at < *start || at >= *end {
            page.add(Word::Corrupt, 1);
        }
        page.step(1);
    }
}

/// A signal every 300 µs, handled on an alternate stack, while the main thread counts.
fn altstack(page: &'static Page) -> ! {
    let stack: &'static mut [u8] = Box::leak(vec![0u8; 64 * 1024].into_boxed_slice());
    let start = stack.as_ptr() as usize;
    ALT.set((start, start + stack.len(), page)).ok().unwrap();
    let ss = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    let every = libc::timeval { tv_sec: 0, tv_usec: 300 };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: the stack is leaked and so lives for ever; the handler is async-signal-safe (atomics only); the structs are
    // fully set or zeroed where zero is a value.
    unsafe {
        assert_eq!(libc::sigaltstack(&ss, std::ptr::null_mut()), 0);
        let mut act: libc::sigaction = std::mem::zeroed();
        act.sa_sigaction = on_alarm as *const () as usize;
        act.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGALRM, &act, std::ptr::null_mut()), 0);
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()), 0);
    }
    page.set(Word::Ready, 2);
    counter(page, 0)
}

/// 1 KiB of stack in the middle of other memory, as goroutines have it: nothing may be written around it.
fn small_stack(page: &Page) -> ! {
    const ALL: usize = 64 * 1024;
    let mut memory = vec![0xa5u8; ALL];
    loop {
        let top = (memory.as_mut_ptr() as usize + ALL / 2) & !63;
        // SAFETY: rsp is moved into `memory`, 1 KiB of which below `top` is used by two pushes, and put back before the
        // block ends; no signal handler of this program runs meanwhile.
        unsafe {
            asm!(
                "mov r12, rsp",
                "mov rsp, {top}",
                "push {n}",
                "2:", "push {n}", "pop {n}", "dec {n}", "jnz 2b",
                "mov rsp, r12",
                top = in(reg) top, n = inout(reg) 300_000u64 => _, out("r12") _,
            );
        }
        let at = top - memory.as_ptr() as usize;
        if memory[..at - 1024].iter().chain(&memory[at..]).any(|&b| b != 0xa5) {
            page.add(Word::Corrupt, 1);
        }
        if memory[at - 1024..at - 16].iter().any(|&b| b != 0xa5) {
            page.add(Word::Corrupt, 1);
        }
        page.step(0);
    }
}

fn threads(page: &'static Page) -> ! {
    let (mut from, mut to) = std::io::pipe().unwrap();
    std::thread::spawn(move || sleeper(page, 1));
    std::thread::spawn(move || vector(page, 2));
    // poll with a timeout
    std::thread::spawn(move || {
        loop {
            // SAFETY: no descriptors are given.
            let ret = unsafe { libc::poll(std::ptr::null_mut(), 0, 10) };
            page.add(Word::Eintr, u64::from(ret != 0));
            page.step(3);
        }
    });
    // ppoll with a mask
    std::thread::spawn(move || {
        loop {
            let ts = libc::timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            // SAFETY: no descriptors; the mask is zeroed, which is the empty set.
            let ret = unsafe {
                let set: libc::sigset_t = std::mem::zeroed();
                libc::ppoll(std::ptr::null_mut(), 0, &ts, &set)
            };
            page.add(Word::Eintr, u64::from(ret != 0));
            page.step(4);
        }
    });
    // A pipe between two threads: the reader is blocked most of the time.
    std::thread::spawn(move || {
        for n in 0u64.. {
            std::thread::sleep(Duration::from_millis(5));
            to.write_all(&n.to_le_bytes()).unwrap();
            page.step(5);
        }
    });
    std::thread::spawn(move || {
        for n in 0u64.. {
            let mut buf = [0; 8];
            from.read_exact(&mut buf).unwrap();
            if u64::from_le_bytes(buf) != n {
                page.add(Word::Corrupt, 1);
            }
            page.step(6);
        }
    });
    // A condition variable with a timeout: futex.
    let pair = Arc::new((Mutex::new(0u64), Condvar::new()));
    std::thread::spawn(move || {
        loop {
            let guard = pair.0.lock().unwrap();
            let (guard, timeout) = pair.1.wait_timeout(guard, Duration::from_millis(10)).unwrap();
            if *guard != 0 || !timeout.timed_out() {
                // Spurious wake-ups are allowed, values are not.
                page.add(Word::Corrupt, u64::from(*guard != 0));
            }
            page.step(7);
        }
    });
    page.set(Word::Ready, 8);
    counter(page, 0)
}

/// Forks as vfork does, over and over: most of the time it waits in the kernel for its child.
fn vfork(page: &Page) -> ! {
    loop {
        page.set(Word::Ready, 1);
        let flags = (libc::CLONE_VFORK | libc::SIGCHLD) as libc::c_ulong;
        // SAFETY: without CLONE_VM the child has its own copy of everything; it only sleeps and exits, while CLONE_VFORK
        // keeps the parent in the kernel.
        unsafe {
            let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
            if pid == 0 {
                libc::usleep(1_500_000);
                libc::_exit(0);
            }
            libc::waitpid(pid as i32, std::ptr::null_mut(), 0);
        }
        page.step(0);
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// 500 threads, most of them asleep.
fn many(page: &'static Page) -> ! {
    let count = std::env::var("CRUST_MANY").ok().and_then(|v| v.parse().ok()).unwrap_or(500);
    for _ in 1..count {
        std::thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(|| {
                loop {
                    std::thread::sleep(Duration::from_secs(100));
                }
            })
            .unwrap();
    }
    page.set(Word::Ready, 1);
    sleeper(page, 0)
}

/// The main thread ends, another lives on.
fn headless(page: &'static Page) -> ! {
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        page.set(Word::Ready, 1);
        sleeper(page, 0)
    });
    // SAFETY: ends this thread only; nothing of its stack is used by the other.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!()
}

extern "C" fn on_any(_: libc::c_int) {
    // A handler that runs was not asked for by anybody.
    if let Some((.., page)) = ALT.get() {
        page.add(Word::Corrupt, 1);
    }
}

fn handle(signal: i32, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: the handlers use atomics only; a zeroed sigaction has an empty mask and no flags.
    unsafe {
        let mut act: libc::sigaction = std::mem::zeroed();
        act.sa_sigaction = handler as *const () as usize;
        assert_eq!(libc::sigaction(signal, &act, std::ptr::null_mut()), 0);
    }
}

/// As Go does: every signal that could be a mark has a handler.
fn catch_all(page: &'static Page) -> ! {
    ALT.set((0, 0, page)).ok().unwrap();
    for signal in [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD, libc::SIGCONT] {
        handle(signal, on_any);
    }
    page.set(Word::Ready, 1);
    sleeper(page, 0)
}

/// Under a filter that kills for everything but nanosleep, clock_gettime and exit.
fn filtered(page: &'static Page) -> ! {
    let insn = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let allow = |nr: i64| [insn(0x15, 0, 1, nr as u32), insn(0x06, 0, 0, 0x7fff_0000)];
    let mut code = vec![insn(0x20, 0, 0, 0)];
    for nr in [libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_clock_gettime, libc::SYS_restart_syscall] {
        code.extend(allow(nr));
    }
    code.push(insn(0x06, 0, 0, 0x8000_0000));
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    // SAFETY: the program lives until the call has copied it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
    page.set(Word::Ready, 1);
    sleeper(page, 0)
}

extern "C" fn on_usr1(_: libc::c_int) {
    if let Some((.., page)) = ALT.get() {
        page.step(0);
    }
}

/// Blocks SIGUSR1 and SIGUSR2 and waits in sigsuspend with only SIGUSR2 blocked.
fn suspended(page: &'static Page) -> ! {
    ALT.set((0, 0, page)).ok().unwrap();
    handle(libc::SIGUSR1, on_usr1);
    // SAFETY: sets are initialised by sigemptyset before use.
    unsafe {
        let (mut outside, mut inside) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigemptyset(&mut outside);
        libc::sigaddset(&mut outside, libc::SIGUSR1);
        libc::sigaddset(&mut outside, libc::SIGUSR2);
        libc::sigprocmask(libc::SIG_BLOCK, &outside, std::ptr::null_mut());
        libc::sigemptyset(&mut inside);
        libc::sigaddset(&mut inside, libc::SIGUSR2);
        page.set(Word::Ready, 1);
        loop {
            libc::sigsuspend(&inside);
            page.add(Word::Messages, 1);
        }
    }
}

extern "C" fn wait_for_go(_: libc::c_int) {
    if let Some((.., page)) = ALT.get() {
        page.set(Word::Ready, 1);
        while page.get(Word::Go) == 0 {
            // SAFETY: plain sleep.
            unsafe { libc::usleep(1000) };
        }
    }
}

/// Sits in a signal handler until told to go; its return is an rt_sigreturn. Then it counts.
fn in_handler(page: &'static Page) -> ! {
    ALT.set((0, 0, page)).ok().unwrap();
    handle(libc::SIGUSR1, wait_for_go);
    let (prot, flags) = (rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::PRIVATE);
    // SAFETY: a new mapping, never touched.
    let area = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), 16384, prot, flags).unwrap() };
    page.set(Word::Messages, area as u64);
    // SAFETY: a signal to ourselves.
    unsafe { libc::raise(libc::SIGUSR1) };
    counter(page, 0)
}

/// Has hardly any address space left.
fn tight(page: &'static Page) -> ! {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').next().unwrap().parse().unwrap();
    let limit = (pages + 20) * 4096;
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: reads one rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    page.set(Word::Ready, 1);
    sleeper(page, 0)
}

/// Threads that start threads and end, as fast as they can.
fn churn(page: &'static Page) -> ! {
    for lane in 1..3 {
        std::thread::spawn(move || {
            loop {
                let one = std::thread::spawn(|| std::hint::black_box(1u64));
                let two = std::thread::spawn(|| std::hint::black_box(2u64));
                if one.join().unwrap() + two.join().unwrap() != 3 {
                    page.add(Word::Corrupt, 1);
                }
                page.step(lane);
            }
        });
    }
    page.set(Word::Ready, 3);
    sleeper(page, 0)
}

/// Becomes itself again every few milliseconds; every other time from a thread that is not the leader.
fn exec(page: &'static Page, path: &Path) -> ! {
    page.step(0);
    page.set(Word::Ready, 1);
    let again = || {
        use std::os::unix::process::CommandExt;
        let me = std::env::current_exe().unwrap();
        panic!("{}", std::process::Command::new(me).args(["target", "exec"]).arg(path).exec());
    };
    std::thread::sleep(Duration::from_millis(1));
    if page.progress()[0].is_multiple_of(2) {
        again()
    }
    std::thread::scope(|scope| {
        scope.spawn(again);
    });
    unreachable!()
}
