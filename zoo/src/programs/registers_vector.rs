//! A thread spinning with every vector register live, as wide as this processor has them (SSE, AVX or AVX-512).
#![allow(unsafe_code, reason = "leaf functions that the compiler cannot be asked for")]
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const REGISTER: usize = 64;
const MASKS_AT: usize = 2048;

unsafe extern "C" {
    fn zoo_spin_sse(flags: *const [AtomicU64; 2], load: *const u8, store: *mut u8);
    fn zoo_spin_avx(flags: *const [AtomicU64; 2], load: *const u8, store: *mut u8);
    fn zoo_spin_avx512(flags: *const [AtomicU64; 2], load: *const u8, store: *mut u8);
}

// rdi: the flags; rsi: 64 bytes per register to load, then the mask registers; rdx: where to store them.
std::arch::global_asm!(
    ".globl zoo_spin_sse",
    "zoo_spin_sse:",
    "movups xmm0, [rsi+0]; movups xmm1, [rsi+64]; movups xmm2, [rsi+128]; movups xmm3, [rsi+192]",
    "movups xmm4, [rsi+256]; movups xmm5, [rsi+320]; movups xmm6, [rsi+384]; movups xmm7, [rsi+448]",
    "movups xmm8, [rsi+512]; movups xmm9, [rsi+576]; movups xmm10, [rsi+640]; movups xmm11, [rsi+704]",
    "movups xmm12, [rsi+768]; movups xmm13, [rsi+832]; movups xmm14, [rsi+896]; movups xmm15, [rsi+960]",
    "mov qword ptr [rdi+8], 1",
    "2: pause",
    "cmp qword ptr [rdi], 0",
    "je 2b",
    "movups [rdx+0], xmm0; movups [rdx+64], xmm1; movups [rdx+128], xmm2; movups [rdx+192], xmm3",
    "movups [rdx+256], xmm4; movups [rdx+320], xmm5; movups [rdx+384], xmm6; movups [rdx+448], xmm7",
    "movups [rdx+512], xmm8; movups [rdx+576], xmm9; movups [rdx+640], xmm10; movups [rdx+704], xmm11",
    "movups [rdx+768], xmm12; movups [rdx+832], xmm13; movups [rdx+896], xmm14; movups [rdx+960], xmm15",
    "ret",
    ".globl zoo_spin_avx",
    "zoo_spin_avx:",
    "vmovdqu ymm0, [rsi+0]; vmovdqu ymm1, [rsi+64]; vmovdqu ymm2, [rsi+128]; vmovdqu ymm3, [rsi+192]",
    "vmovdqu ymm4, [rsi+256]; vmovdqu ymm5, [rsi+320]; vmovdqu ymm6, [rsi+384]; vmovdqu ymm7, [rsi+448]",
    "vmovdqu ymm8, [rsi+512]; vmovdqu ymm9, [rsi+576]; vmovdqu ymm10, [rsi+640]; vmovdqu ymm11, [rsi+704]",
    "vmovdqu ymm12, [rsi+768]; vmovdqu ymm13, [rsi+832]; vmovdqu ymm14, [rsi+896]; vmovdqu ymm15, [rsi+960]",
    "mov qword ptr [rdi+8], 1",
    "2: pause",
    "cmp qword ptr [rdi], 0",
    "je 2b",
    "vmovdqu [rdx+0], ymm0; vmovdqu [rdx+64], ymm1; vmovdqu [rdx+128], ymm2; vmovdqu [rdx+192], ymm3",
    "vmovdqu [rdx+256], ymm4; vmovdqu [rdx+320], ymm5; vmovdqu [rdx+384], ymm6; vmovdqu [rdx+448], ymm7",
    "vmovdqu [rdx+512], ymm8; vmovdqu [rdx+576], ymm9; vmovdqu [rdx+640], ymm10; vmovdqu [rdx+704], ymm11",
    "vmovdqu [rdx+768], ymm12; vmovdqu [rdx+832], ymm13; vmovdqu [rdx+896], ymm14; vmovdqu [rdx+960], ymm15",
    "vzeroupper",
    "ret",
    ".globl zoo_spin_avx512",
    "zoo_spin_avx512:",
    "vmovdqu64 zmm0, [rsi+0]; vmovdqu64 zmm1, [rsi+64]; vmovdqu64 zmm2, [rsi+128]; vmovdqu64 zmm3, [rsi+192]",
    "vmovdqu64 zmm4, [rsi+256]; vmovdqu64 zmm5, [rsi+320]; vmovdqu64 zmm6, [rsi+384]; vmovdqu64 zmm7, [rsi+448]",
    "vmovdqu64 zmm8, [rsi+512]; vmovdqu64 zmm9, [rsi+576]; vmovdqu64 zmm10, [rsi+640]; vmovdqu64 zmm11, [rsi+704]",
    "vmovdqu64 zmm12, [rsi+768]; vmovdqu64 zmm13, [rsi+832]; vmovdqu64 zmm14, [rsi+896]; vmovdqu64 zmm15, [rsi+960]",
    "vmovdqu64 zmm16, [rsi+1024]; vmovdqu64 zmm17, [rsi+1088]; vmovdqu64 zmm18, [rsi+1152]; vmovdqu64 zmm19, [rsi+1216]",
    "vmovdqu64 zmm20, [rsi+1280]; vmovdqu64 zmm21, [rsi+1344]; vmovdqu64 zmm22, [rsi+1408]; vmovdqu64 zmm23, [rsi+1472]",
    "vmovdqu64 zmm24, [rsi+1536]; vmovdqu64 zmm25, [rsi+1600]; vmovdqu64 zmm26, [rsi+1664]; vmovdqu64 zmm27, [rsi+1728]",
    "vmovdqu64 zmm28, [rsi+1792]; vmovdqu64 zmm29, [rsi+1856]; vmovdqu64 zmm30, [rsi+1920]; vmovdqu64 zmm31, [rsi+1984]",
    "kmovw k0, [rsi+2048]; kmovw k1, [rsi+2056]; kmovw k2, [rsi+2064]; kmovw k3, [rsi+2072]",
    "kmovw k4, [rsi+2080]; kmovw k5, [rsi+2088]; kmovw k6, [rsi+2096]; kmovw k7, [rsi+2104]",
    "mov qword ptr [rdi+8], 1",
    "2: pause",
    "cmp qword ptr [rdi], 0",
    "je 2b",
    "vmovdqu64 [rdx+0], zmm0; vmovdqu64 [rdx+64], zmm1; vmovdqu64 [rdx+128], zmm2; vmovdqu64 [rdx+192], zmm3",
    "vmovdqu64 [rdx+256], zmm4; vmovdqu64 [rdx+320], zmm5; vmovdqu64 [rdx+384], zmm6; vmovdqu64 [rdx+448], zmm7",
    "vmovdqu64 [rdx+512], zmm8; vmovdqu64 [rdx+576], zmm9; vmovdqu64 [rdx+640], zmm10; vmovdqu64 [rdx+704], zmm11",
    "vmovdqu64 [rdx+768], zmm12; vmovdqu64 [rdx+832], zmm13; vmovdqu64 [rdx+896], zmm14; vmovdqu64 [rdx+960], zmm15",
    "vmovdqu64 [rdx+1024], zmm16; vmovdqu64 [rdx+1088], zmm17; vmovdqu64 [rdx+1152], zmm18; vmovdqu64 [rdx+1216], zmm19",
    "vmovdqu64 [rdx+1280], zmm20; vmovdqu64 [rdx+1344], zmm21; vmovdqu64 [rdx+1408], zmm22; vmovdqu64 [rdx+1472], zmm23",
    "vmovdqu64 [rdx+1536], zmm24; vmovdqu64 [rdx+1600], zmm25; vmovdqu64 [rdx+1664], zmm26; vmovdqu64 [rdx+1728], zmm27",
    "vmovdqu64 [rdx+1792], zmm28; vmovdqu64 [rdx+1856], zmm29; vmovdqu64 [rdx+1920], zmm30; vmovdqu64 [rdx+1984], zmm31",
    "kmovw [rdx+2048], k0; kmovw [rdx+2056], k1; kmovw [rdx+2064], k2; kmovw [rdx+2072], k3",
    "kmovw [rdx+2080], k4; kmovw [rdx+2088], k5; kmovw [rdx+2096], k6; kmovw [rdx+2104], k7",
    "vzeroupper",
    "ret",
);

/// A flag that ends the loop, and one that says that it spins.
static FLAGS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (spin, registers, bytes, masks): (unsafe extern "C" fn(_, _, _), _, _, _) =
        if std::arch::is_x86_feature_detected!("avx512f") {
            (zoo_spin_avx512, 32, 64, 8)
        } else if std::arch::is_x86_feature_detected!("avx") {
            (zoo_spin_avx, 16, 32, 0)
        } else {
            (zoo_spin_sse, 16, 16, 0)
        };
    let mut running = true;
    while running {
        FLAGS[0].store(0, SeqCst);
        FLAGS[1].store(0, SeqCst);
        let mut values = vec![0; MASKS_AT + 64];
        zoo::mem::fill(&mut values, u64::from(zoo.round()));
        let load = values.clone();
        let spinner = std::thread::spawn(move || {
            let mut store = vec![0; MASKS_AT + 64];
            // SAFETY: both buffers hold 32 registers and 8 masks; the function follows the C calling convention.
            unsafe { spin(&raw const FLAGS, load.as_ptr(), store.as_mut_ptr()) };
            store
        });
        while FLAGS[1].load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        running = zoo.gap();
        FLAGS[0].store(1, SeqCst);
        let found = spinner.join().unwrap_or_default();
        zoo.eq("size of what came back", found.len(), values.len());
        let same = |at: usize, len| found.get(at..at + len) == values.get(at..at + len);
        for i in 0..registers {
            zoo.ok(&format!("vector register {i}"), same(i * REGISTER, bytes));
        }
        for i in 0..masks {
            zoo.ok(&format!("mask register {i}"), same(MASKS_AT + i * 8, 2));
        }
    }
}
