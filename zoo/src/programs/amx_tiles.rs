//! AMX tiles with content: in threads that multiply them all the time, in one that blocks, below a signal handler, in a child;
//! a configuration without content in a process that may have none.
#![allow(unsafe_code, reason = "tile instructions, and calls without a wrapper")]
use std::arch::asm;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;

const ARCH_GET_XCOMP_SUPP: i32 = 0x1021;
const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
const ARCH_GET_XCOMP_GUEST_PERM: i32 = 0x1024;
const ARCH_REQ_XCOMP_GUEST_PERM: i32 = 0x1025;
/// The content of tiles, among the components of CPU state.
const TILES: u64 = 1 << 18;
const TILE_BYTES: usize = 1024;
const ROW: usize = 64;

/// A configuration as LDTILECFG takes it, and the content of eight tiles, a row in each 64 bytes.
#[repr(C, align(64))]
#[derive(Clone, PartialEq, Debug)]
struct Tiles {
    config: [u8; 64],
    data: [u8; 8 * TILE_BYTES],
}

impl Tiles {
    /// Tiles of so many rows and bytes a row, filled by `seed`.
    fn new(shapes: &[(u8, u8)], seed: u64) -> Self {
        let mut tiles = Self { config: [0; 64], data: [0; 8 * TILE_BYTES] };
        tiles.config[0] = 1;
        let mut noise = [0; 8 * TILE_BYTES];
        zoo::mem::fill(&mut noise, seed);
        for (i, &(rows, row_bytes)) in shapes.iter().enumerate() {
            (tiles.config[16 + 2 * i], tiles.config[48 + i]) = (row_bytes, rows);
            for row in 0..usize::from(rows) {
                let at = i * TILE_BYTES + row * ROW;
                let range = at..at + usize::from(row_bytes);
                tiles.data[range.clone()].copy_from_slice(&noise[range]);
            }
        }
        tiles
    }

    /// Eight full tiles.
    fn full(seed: u64) -> Self {
        Self::new(&[(16, 64); 8], seed)
    }

    fn load(&self) {
        // SAFETY: reads the configuration, and of each tile at most the bytes that it has here; no compiler has anything in tiles.
        unsafe {
            asm!(
                "ldtilecfg [{c}]",
                ".irp i,0,1,2",
                "tileloadd tmm\\i, [{p} + {stride}*1 + 1024*\\i]",
                ".endr",
                "cmp byte ptr [{c} + 55], 0", // are there eight?
                "je 2f",
                ".irp i,3,4,5,6,7",
                "tileloadd tmm\\i, [{p} + {stride}*1 + 1024*\\i]",
                ".endr",
                "2:",
                c = in(reg) self.config.as_ptr(), p = in(reg) self.data.as_ptr(), stride = in(reg) ROW,
            );
        }
    }

    /// What is in the tiles of this thread now, and releases them.
    fn take() -> Self {
        let mut found = Self { config: [0; 64], data: [0; 8 * TILE_BYTES] };
        // SAFETY: writes 64 bytes of configuration, and no more of each tile than the kilobyte that it has here.
        unsafe {
            asm!(
                "sttilecfg [{c}]",
                "cmp byte ptr [{c}], 0", // none at all: storing would be an error
                "je 3f",
                ".irp i,0,1,2",
                "tilestored [{p} + {stride}*1 + 1024*\\i], tmm\\i",
                ".endr",
                "cmp byte ptr [{c} + 55], 0",
                "je 2f",
                ".irp i,3,4,5,6,7",
                "tilestored [{p} + {stride}*1 + 1024*\\i], tmm\\i",
                ".endr",
                "2: tilerelease",
                "3:",
                c = in(reg) found.config.as_mut_ptr(), p = in(reg) found.data.as_mut_ptr(), stride = in(reg) ROW,
            );
        }
        found
    }

    /// Adds the product of the second and third tile, of signed bytes, `times` times to the first, of 32-bit numbers.
    fn multiplied(mut self, times: u64) -> Self {
        let (rows, columns) = (usize::from(self.config[48]), usize::from(self.config[16]) / 4);
        let depth = usize::from(self.config[50]);
        let byte =
            |tile: usize, row: usize, column: usize| i32::from(self.data[tile * TILE_BYTES + row * ROW + column] as i8);
        let product = |row, column: usize| -> i32 {
            (0..depth * 4).map(|k| byte(1, row, k) * byte(2, k / 4, 4 * column + k % 4)).sum()
        };
        let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
        let products: Vec<_> = places.map(|(row, column)| (row * ROW + 4 * column, product(row, column))).collect();
        for (at, product) in products {
            let old = i32::from_le_bytes(std::array::from_fn(|i| self.data[at + i]));
            let new = old.wrapping_add(product.wrapping_mul(times as i32));
            self.data[at..at + 4].copy_from_slice(&new.to_le_bytes());
        }
        self
    }

    fn check(&self, found: &Self, what: &str, mut note: impl FnMut(&str, bool)) {
        note(&format!("{what}: configuration"), self.config == found.config);
        for i in 0..8 {
            let tile = i * TILE_BYTES..(i + 1) * TILE_BYTES;
            note(&format!("{what}: tile {i}"), self.data[tile.clone()] == found.data[tile]);
        }
    }
}

/// Two threads that multiply: one that ends them, and for each whether it has begun.
static STOP: AtomicU64 = AtomicU64::new(0);
static BEGUN: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

/// A thread that multiplies until it is told to stop: what it began with, how often it did, what it has then.
fn multiplier(which: usize, round: u32) -> JoinHandle<(Tiles, u64, Tiles)> {
    let (rows, columns, depth) = if which == 0 { (16, 64, 16) } else { (5, 36, 11) };
    let first =
        Tiles::new(&[(rows, columns), (rows, depth * 4), (depth, columns)], u64::from(round) * 2 + which as u64);
    std::thread::spawn(move || {
        let mut times = 0_u64;
        first.load();
        BEGUN[which].store(true, SeqCst);
        // SAFETY: computes in tiles that were configured above; reads one live word.
        unsafe {
            asm!(
                "2: tdpbssd tmm0, tmm1, tmm2",
                "inc {n}",
                "cmp qword ptr [{stop}], 0",
                "je 2b",
                n = inout(reg) times, stop = in(reg) &raw const STOP,
            );
        }
        let found = Tiles::take();
        (first, times, found)
    })
}

/// The place of the thread that waits in its signal handler.
static SEAT: AtomicPtr<zoo::Seat> = AtomicPtr::new(std::ptr::null_mut());
static GOES_ON: AtomicBool = AtomicBool::new(false);

extern "C" fn wait_in_handler(_: i32) {
    // SAFETY: points to the seat of this very thread, which raised the signal and waits for this function to come back.
    let seat = unsafe { &mut *SEAT.load(SeqCst) };
    // A handler begins without tiles, and has its own.
    seat.ok("no tiles at first", Tiles::take().config == [0; 64]);
    GOES_ON.store(seat.gap(), SeqCst);
}

fn below_a_handler(seat: &mut zoo::Seat) {
    // SAFETY: a zeroed sigaction has no flags and an empty mask; the handler touches nothing that this thread has at hand.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = wait_in_handler as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
    SEAT.store(std::ptr::from_mut(seat), SeqCst);
    for seed in 100.. {
        let want = Tiles::full(seed);
        let mut wide = [seed as f64, 0.5, 0.25, 0.125];
        want.load();
        // SAFETY: raises a signal that is handled before the call returns, with a vector register at work.
        unsafe {
            let (pid, tid) = (libc::getpid(), libc::gettid());
            asm!(
                "vmovupd ymm5, [{w}]", "syscall", "vmovupd [{w}], ymm5",
                w = in(reg) wide.as_mut_ptr(), inout("rax") libc::SYS_tgkill => _, in("rdi") pid, in("rsi") tid,
                in("rdx") libc::SIGUSR1, out("rcx") _, out("r11") _, out("ymm5") _,
            );
        }
        let found = Tiles::take();
        // SAFETY: as in the handler, which has come back.
        let seat = unsafe { &mut *SEAT.load(SeqCst) };
        want.check(&found, "below a handler", |what, good| seat.ok(what, good));
        seat.eq("a vector register", wide, [seed as f64, 0.5, 0.25, 0.125]);
        if !GOES_ON.load(SeqCst) {
            return;
        }
    }
}

fn xstate(which: i32) -> u64 {
    let mut mask = 0_u64;
    // SAFETY: one live u64.
    unsafe { libc::syscall(libc::SYS_arch_prctl, which, &raw mut mask) };
    mask
}

fn ask_for_tiles(zoo: &mut zoo::Zoo, which: i32) {
    // SAFETY: takes numbers only.
    zoo.eq("permission for tiles", unsafe { libc::syscall(libc::SYS_arch_prctl, which, 18) }, 0);
}

/// Tiles held over every gap.
fn hold(zoo: &mut zoo::Zoo, from: u64) {
    let mut running = true;
    let mut seed = from;
    while running {
        let want = Tiles::full(seed);
        want.load();
        running = zoo.gap();
        let found = Tiles::take();
        want.check(&found, "held", |what, good| zoo.ok(what, good));
        seed += 1;
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    if xstate(ARCH_GET_XCOMP_SUPP) & TILES == 0 || std::arch::x86_64::__cpuid_count(7, 0).edx & 1 << 25 == 0 {
        zoo.skip("no AMX tiles of bytes here");
    }
    zoo.fork("configured only", |mut zoo| {
        let mut want = Tiles::full(1);
        want.data.fill(0);
        let mut running = true;
        while running {
            // SAFETY: reads 64 bytes; no compiler has anything in tiles.
            unsafe { asm!("ldtilecfg [{c}]", c = in(reg) want.config.as_ptr()) };
            running = zoo.gap();
            let mut found = [0_u8; 64];
            // SAFETY: writes 64 bytes.
            unsafe { asm!("sttilecfg [{c}]", "tilerelease", c = in(reg) found.as_mut_ptr()) };
            zoo.eq("configuration", found, want.config);
        }
    });
    ask_for_tiles(&mut zoo, ARCH_REQ_XCOMP_PERM);
    // Of virtual machines; a kernel without it has none of the others either.
    let guest = xstate(ARCH_GET_XCOMP_GUEST_PERM) != 0;
    if guest {
        ask_for_tiles(&mut zoo, ARCH_REQ_XCOMP_GUEST_PERM);
    }
    for (i, name) in ["child", "its brother"].into_iter().enumerate() {
        zoo.fork(name, move |mut zoo| hold(&mut zoo, 1000 + 10 * i as u64));
    }
    zoo.thread("blocked", |seat| {
        for seed in 200.. {
            let want = Tiles::new(&[(3, 4), (16, 64), (1, 12), (2, 8), (4, 16), (5, 20), (6, 24), (16, 4)], seed);
            want.load();
            let goes_on = seat.gap();
            want.check(&Tiles::take(), "blocked", |what, good| seat.ok(what, good));
            if !goes_on {
                return;
            }
        }
    });
    zoo.thread("below a handler", below_a_handler);
    let mut running = true;
    while running {
        STOP.store(0, SeqCst);
        let round = zoo.round();
        let threads = [0, 1].map(|i| {
            BEGUN[i].store(false, SeqCst);
            multiplier(i, round)
        });
        while !BEGUN.iter().all(|b| b.load(SeqCst)) {
            std::thread::yield_now();
        }
        running = zoo.gap();
        STOP.store(1, SeqCst);
        for (i, thread) in threads.into_iter().enumerate() {
            let Ok((first, times, found)) = thread.join() else {
                zoo.ok("a thread that multiplies", false);
                continue;
            };
            let want = first.multiplied(times);
            want.check(&found, &format!("multiplied by thread {i}"), |what, good| zoo.ok(what, good));
        }
        if guest {
            zoo.eq("permission for guests", xstate(ARCH_GET_XCOMP_GUEST_PERM) & TILES, TILES);
        }
    }
}
