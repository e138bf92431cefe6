//! Registers on x86_64: the kernel's register sets to CRIU's `thread_info_x86` and back.
//!
//! The XSAVE area is in the standard format of NT_X86_XSTATE; where each component lies is the CPU's to say (CPUID leaf 13).
use super::{compat, tiles, wait};
use crate::{Error, Kind, Result};
use crust_image::proto::core_entry::March;
use crust_image::proto::{
    ThreadInfoX86, UserX86CetEntry, UserX86FpregsEntry, UserX86RegsEntry, UserX86RegsMode, UserX86XsaveEntry,
};
use crust_inject::arch::regs::{self as inject, Regs, is_32bit};
use crust_kernel::ptrace_x86::Segment;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// The architecture, as core images have it.
pub const MTYPE: i32 = March::X8664 as i32;

const LEGACY_BYTES: usize = 512;
const HEADER_AT: usize = 512;
const SW_FEATURES_AT: usize = 464;
/// Components that CRIU's format has a place for: x87, SSE, AVX, MPX ×2, AVX-512 ×3, protection keys.
const KNOWN: u64 = 0b10_1111_1111 & !(1 << 8);

/// The upper halves of the vector registers.
const AVX: u32 = 2;
/// The protection keys' register.
const PKRU: u32 = 9;

/// AMX: how the tiles are configured, and what is in them. Fields of ours hold them.
const TILE_CONFIG: u32 = 17;
const TILE_DATA: u32 = 18;
const TILES: u64 = 1 << TILE_CONFIG | 1 << TILE_DATA;

/// (component number, offset, bytes) of the extended components that the format and we know and this machine has. Asked once:
/// under a hypervisor every CPUID is a trap.
fn components() -> &'static [(u32, usize, usize)] {
    static FOUND: OnceLock<Vec<(u32, usize, usize)>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let of = |i: u32| {
            let leaf = __cpuid_count(13, i);
            (leaf.eax != 0 && leaf.ecx & 1 == 0).then_some((i, leaf.ebx as usize, leaf.eax as usize))
        };
        let amx = [TILE_CONFIG, TILE_DATA].into_iter().filter(|_| tiles::are_here());
        [2u32, 3, 4, 5, 6, 7, 9].into_iter().chain(amx).filter_map(of).collect()
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn words32(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|c| u32_at(c, 0)).collect()
}

fn words64(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|c| u64_at(c, 0)).collect()
}

/// The part of an XSAVE area that [`to_image`] looks at: all of it, if AMX tiles are in use, or what no image has a place for.
pub fn in_use(area: &[u8]) -> &[u8] {
    let known = components()
        .iter()
        .filter(|c| 1 << c.0 & KNOWN != 0)
        .map(|&(_, at, len)| at + len)
        .max()
        .unwrap_or(0)
        .max(HEADER_AT + 64);
    if u64_at(area, HEADER_AT) & !KNOWN == 0 { area.get(..known).unwrap_or(area) } else { area }
}

/// Registers of a stopped thread as they go into the image. An interrupted system call is wound back: the image holds the
/// registers with which the call is made again, or `EINTR` where a signal that is `handled` after the restore ends it, or
/// where only the kernel's lost restart block would know how to go on.
///
/// # Errors
/// `Unsupported` for live state that the format has no place for (shadow stacks).
pub fn to_image(
    regs: &Regs,
    segments: &[Segment],
    xstate: &[u8],
    clear_tid_addr: u64,
    handled: Option<Handled>,
) -> Result<ThreadInfoX86> {
    let mut r = *regs;
    if let Some(begins_again) = ends(regs, handled) {
        if begins_again {
            r.rax = r.orig_rax;
            r.rip = r.rip.wrapping_sub(2);
        } else {
            r.rax = -i64::from(libc::EINTR) as u64;
        }
    }
    let mode = if is_32bit(regs) { UserX86RegsMode::Compat } else { UserX86RegsMode::Native };
    if mode == UserX86RegsMode::Compat {
        r = low(&r);
    }
    Ok(ThreadInfoX86 {
        clear_tid_addr,
        gpregs: UserX86RegsEntry {
            r15: r.r15,
            r14: r.r14,
            r13: r.r13,
            r12: r.r12,
            bp: r.rbp,
            bx: r.rbx,
            r11: r.r11,
            r10: r.r10,
            r9: r.r9,
            r8: r.r8,
            ax: r.rax,
            cx: r.rcx,
            dx: r.rdx,
            si: r.rsi,
            di: r.rdi,
            orig_ax: r.orig_rax,
            ip: r.rip,
            cs: r.cs,
            flags: r.eflags,
            sp: r.rsp,
            ss: r.ss,
            fs_base: r.fs_base,
            gs_base: r.gs_base,
            ds: r.ds,
            es: r.es,
            fs: r.fs,
            gs: r.gs,
            mode: Some(mode as i32),
        },
        fpregs: fpregs(xstate)?,
        tls: compat::descriptors(segments),
    })
}

/// Whether an interrupted call begins again; if not, it ends with `EINTR`. `None`: none was interrupted.
fn ends(r: &Regs, handled: Option<Handled>) -> Option<bool> {
    const NO_CALL: u64 = u64::MAX;
    if r.orig_rax == NO_CALL {
        return None;
    }
    match -(r.rax as i64) {
        // ERESTARTSYS
        512 => Some(handled != Some(Handled::EndsCalls)),
        // ERESTARTNOINTR
        513 => Some(true),
        // ERESTARTNOHAND
        514 => Some(handled.is_none()),
        // ERESTART_RESTARTBLOCK
        516 => Some(handled.is_none() && compat::call(r).is_some_and(wait::waits_for_a_time)),
        // Some calls answer EINTR by themselves when they are merely stopped.
        _ if handled.is_none() && wait::ended_by_stop(r) => Some(true),
        _ => None,
    }
}

/// What 32-bit code sees of the registers.
fn low(r: &Regs) -> Regs {
    let word = |w: u64| w & u64::from(u32::MAX);
    Regs {
        rax: word(r.rax),
        rbx: word(r.rbx),
        rcx: word(r.rcx),
        rdx: word(r.rdx),
        rsi: word(r.rsi),
        rdi: word(r.rdi),
        rbp: word(r.rbp),
        rsp: word(r.rsp),
        rip: word(r.rip),
        eflags: word(r.eflags),
        orig_rax: word(r.orig_rax),
        cs: r.cs,
        ss: r.ss,
        ds: r.ds,
        es: r.es,
        fs: r.fs,
        gs: r.gs,
        ..inject::zeroed()
    }
}

/// What a pending signal does to the call it meets, if it has a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// SA_RESTART: calls that can begin again do.
    RestartsCalls,
    /// They end with EINTR.
    EndsCalls,
}

/// Components that are in use, but whose content the record does not hold. CRIU writes the bits as they were, and of AMX tiles
/// nothing else.
fn lacking(x: &UserX86XsaveEntry) -> u64 {
    let config = x.crust_tile_config.as_ref().map_or(0, |_| 1 << TILE_CONFIG);
    let data = x.crust_tile_data.as_ref().map_or(0, |_| 1 << TILE_DATA);
    x.xstate_bv & !(KNOWN | config | data)
}

/// Whether the record holds something that is in AMX tiles.
pub fn has_tiles(info: &ThreadInfoX86) -> bool {
    info.fpregs.xsave.as_ref().is_some_and(|x| x.crust_tile_data.is_some() && x.xstate_bv & (1 << TILE_DATA) != 0)
}

fn fpregs(x: &[u8]) -> Result<UserX86FpregsEntry> {
    if x.len() < LEGACY_BYTES {
        return Err(Error::new(Kind::Internal, "the kernel gave no floating point state"));
    }
    let xsave = (x.len() >= HEADER_AT + 64).then(|| -> Result<_> {
        let xstate_bv = u64_at(x, HEADER_AT);
        let mut entry =
            UserX86XsaveEntry { xstate_bv, cet: Some(UserX86CetEntry { cet: 0, ssp: 0 }), ..Default::default() };
        for &(component, at, len) in components() {
            // Of a component in its initial state there is nothing to keep, and CRIU looks at the bit as well. Not so the
            // protection keys' register, which the kernel keeps elsewhere. CRIU's core dumps want the second in any case.
            let is_kept = matches!(component, AVX | PKRU) || xstate_bv & (1 << component) != 0;
            let Some(bytes) = x.get(at..at + len).filter(|_| is_kept) else { continue };
            match component {
                AVX => entry.ymmh_space = words32(bytes),
                3 => entry.bndreg_state = words64(bytes),
                4 => entry.bndcsr_state = words64(bytes),
                5 => entry.opmask_reg = words64(bytes),
                6 => entry.zmm_upper = words64(bytes),
                7 => entry.hi16_zmm = words64(bytes),
                TILE_CONFIG => entry.crust_tile_config = Some(bytes.to_vec()),
                TILE_DATA => entry.crust_tile_data = Some(bytes.to_vec()),
                _ => entry.pkru = words32(bytes),
            }
        }
        let lost = lacking(&entry);
        if lost != 0 {
            let what = format!("has CPU state that the image format has no place for (XSAVE components {lost:#x})");
            let help = "dump it while that is not in use, or run it with the feature masked (shadow stacks: \
                        without GLIBC_TUNABLES=glibc.cpu.x86_shstk=on)";
            return Err(Error::unsupported(what, help));
        }
        Ok(entry)
    });
    Ok(UserX86FpregsEntry {
        cwd: u32_at(x, 0) & 0xffff,
        swd: u32_at(x, 2) & 0xffff,
        twd: u32_at(x, 4) & 0xffff,
        fop: u32_at(x, 6) & 0xffff,
        rip: u64_at(x, 8),
        rdp: u64_at(x, 16),
        mxcsr: u32_at(x, 24),
        mxcsr_mask: u32_at(x, 28),
        st_space: words32(&x[32..160]),
        xmm_space: words32(&x[160..416]),
        padding: Vec::new(),
        xsave: xsave.transpose()?,
    })
}

/// General registers for PTRACE_SETREGSET. `orig_rax` is -1: the call, if any, was wound back at the dump.
///
/// # Errors
/// `BadImage` for code segments that are not the kernel's.
pub fn general(info: &ThreadInfoX86) -> Result<Regs> {
    const USER_CS: u64 = 0x33;
    const USER_CS_32: u64 = 0x23;
    let g = &info.gpregs;
    let cs = if g.mode == Some(UserX86RegsMode::Compat as i32) { USER_CS_32 } else { USER_CS };
    // Zero in images of old.
    if g.cs != cs && (g.cs != 0 || cs != USER_CS) {
        return Err(Error::new(Kind::BadImage, format!("code segment {:#x} is none of the kernel's", g.cs)));
    }
    // The kernel takes both, and CRIU saves none of a 32-bit thread.
    let base = |selector, saved| compat::base_of(selector, &info.tls).unwrap_or(saved);
    Ok(Regs {
        r15: g.r15,
        r14: g.r14,
        r13: g.r13,
        r12: g.r12,
        rbp: g.bp,
        rbx: g.bx,
        r11: g.r11,
        r10: g.r10,
        r9: g.r9,
        r8: g.r8,
        rax: g.ax,
        rcx: g.cx,
        rdx: g.dx,
        rsi: g.si,
        rdi: g.di,
        orig_rax: u64::MAX,
        rip: g.ip,
        cs: g.cs,
        eflags: g.flags,
        rsp: g.sp,
        ss: g.ss,
        fs_base: base(g.fs, g.fs_base),
        gs_base: base(g.gs, g.gs_base),
        ds: g.ds,
        es: g.es,
        fs: g.fs,
        gs: g.gs,
    })
}

/// Whether this CPU can hold the floating point state; called before anything is created.
///
/// # Errors
/// `Unsupported` naming the component.
pub fn check_fpu(f: &UserX86FpregsEntry) -> Result<()> {
    check_fpu_on(f, components())
}

fn check_tiles(x: &UserX86XsaveEntry, have: &[(u32, usize, usize)]) -> Result<()> {
    for (component, content) in [(TILE_CONFIG, &x.crust_tile_config), (TILE_DATA, &x.crust_tile_data)] {
        let Some(content) = content.as_ref().filter(|_| x.xstate_bv & (1 << component) != 0) else { continue };
        let Some(&(_, _, len)) = have.iter().find(|c| c.0 == component) else { return Err(tiles::not_here()) };
        if content.len() != len {
            let what = format!("the image has {} bytes of AMX tiles where this CPU has {len}", content.len());
            return Err(Error::new(Kind::BadImage, what));
        }
    }
    Ok(())
}

fn check_fpu_on(f: &UserX86FpregsEntry, have: &[(u32, usize, usize)]) -> Result<()> {
    const NAMES: [(u64, &str); 7] = [
        (2, "AVX"),
        (3, "MPX bounds"),
        (4, "MPX configuration"),
        (5, "AVX-512 masks"),
        (6, "AVX-512 upper halves"),
        (7, "AVX-512 zmm16-31"),
        (9, "protection keys"),
    ];
    let Some(x) = &f.xsave else { return Ok(()) };
    let lost = lacking(x);
    if lost != 0 {
        let what =
            format!("the image says that CPU state was in use whose content it lacks (XSAVE components {lost:#x})");
        return Err(Error::unsupported(what, "AMX tiles: dump it with crust, or release them before the dump"));
    }
    if x.xstate_bv & TILES != 0 {
        check_tiles(x, have)?;
    }
    for (component, name) in NAMES {
        if x.xstate_bv & (1 << component) != 0 && !have.iter().any(|&(c, _, _)| u64::from(c) == component) {
            let what = format!("the image holds {name} state, which this CPU does not have");
            return Err(Error::unsupported(what, "restore on a CPU with that feature, or dump with it masked"));
        }
    }
    Ok(())
}

/// Fills an XSAVE area for PTRACE_SETREGSET; `template` is the area of the very thread, whose size and software words stay.
pub fn xstate(f: &UserX86FpregsEntry, template: &[u8]) -> Vec<u8> {
    let mut x = vec![0u8; template.len()];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(to) = x.get_mut(at..at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
    };
    put(0, &(f.cwd as u16).to_le_bytes());
    put(2, &(f.swd as u16).to_le_bytes());
    put(4, &(f.twd as u16).to_le_bytes());
    put(6, &(f.fop as u16).to_le_bytes());
    put(8, &f.rip.to_le_bytes());
    put(16, &f.rdp.to_le_bytes());
    put(24, &f.mxcsr.to_le_bytes());
    put(28, &f.mxcsr_mask.to_le_bytes());
    let bytes32 = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let bytes64 = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    put(32, &bytes32(&f.st_space)[..f.st_space.len().min(32) * 4]);
    put(160, &bytes32(&f.xmm_space)[..f.xmm_space.len().min(64) * 4]);
    if let Some(words) = template.get(SW_FEATURES_AT..LEGACY_BYTES) {
        put(SW_FEATURES_AT, words);
    }
    if template.len() > HEADER_AT {
        // Without extended state in the image: x87 and SSE are live.
        let bv = f.xsave.as_ref().map_or(3, |e| e.xstate_bv & (KNOWN | TILES));
        put(HEADER_AT, &bv.to_le_bytes());
        if let Some(e) = &f.xsave {
            for &(component, at, len) in components() {
                let bytes = match component {
                    AVX => bytes32(&e.ymmh_space),
                    3 => bytes64(&e.bndreg_state),
                    4 => bytes64(&e.bndcsr_state),
                    5 => bytes64(&e.opmask_reg),
                    6 => bytes64(&e.zmm_upper),
                    7 => bytes64(&e.hi16_zmm),
                    TILE_CONFIG => e.crust_tile_config().to_vec(),
                    TILE_DATA => e.crust_tile_data().to_vec(),
                    _ => bytes32(&e.pkru),
                };
                put(at, &bytes[..bytes.len().min(len)]);
            }
        }
    }
    x
}

/// Offset of the first `syscall` instruction in machine code.
pub fn find_syscall(code: &[u8]) -> Option<usize> {
    code.windows(2).position(|w| w == [0x0f, 0x05])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let end = components().iter().map(|&(_, at, len)| at + len).max().unwrap_or(576).max(576);
        let mut x: Vec<u8> = (0..end).map(|i| (i % 251) as u8).collect();
        x[416..].fill(0);
        x[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        let mut live = 3u64;
        for &(component, at, len) in components() {
            live |= 1 << component;
            x[at..at + len].fill(0x5a);
        }
        x[512..520].copy_from_slice(&live.to_le_bytes());
        x[5] = 0; // the tag word is one byte
        x
    }

    #[test]
    fn xstate_round_trip() {
        let x = sample();
        let back = xstate(&fpregs(&x).expect("converts"), &x);
        assert_eq!(back.len(), x.len());
        assert_eq!(back[..416], x[..416]);
        assert_eq!(back[512..], x[512..]);
    }

    #[test]
    fn a_component_in_its_initial_state_takes_no_room() {
        let mut x = sample();
        x[512..520].copy_from_slice(&3u64.to_le_bytes());
        for &(_, at, len) in components().iter().filter(|c| c.0 == AVX) {
            x[at..at + len].fill(0); // as the kernel shows a component in its initial state
        }
        let entry = fpregs(&x).expect("converts");
        let kept = entry.xsave.as_ref().expect("extended state");
        assert_eq!((kept.xstate_bv, kept.opmask_reg.len(), kept.zmm_upper.len()), (3, 0, 0));
        // But `crit core-dump` asks for these whatever their state is.
        let avx = components().iter().find(|c| c.0 == AVX).map_or(0, |c| c.2 / 4);
        assert_eq!(kept.ymmh_space, vec![0; avx]);
        let back = xstate(&entry, &x);
        assert_eq!(back[512..520], 3u64.to_le_bytes());
        for &(component, at, len) in components().iter().filter(|c| c.0 != PKRU) {
            assert!(back[at..at + len].iter().all(|&b| b == 0), "component {component}");
        }
    }

    /// Instruction pointer and result of a call stopped at 0x1000 with this error.
    fn wound(call: i64, error: i64, handled: Option<Handled>) -> (u64, i64) {
        let mut regs = general(&ThreadInfoX86::default()).expect("zeros");
        (regs.cs, regs.rip, regs.orig_rax, regs.rax) = (0x33, 0x1000, call as u64, -error as u64);
        let info = to_image(&regs, &[], &sample(), 0, handled).expect("converts");
        (info.gpregs.ip, info.gpregs.ax as i64)
    }

    #[test]
    fn interrupted_calls_are_wound_back() {
        const READ: i64 = libc::SYS_read;
        assert_eq!(wound(READ, 512, None), (0xffe, READ));
        for call in [libc::SYS_nanosleep, libc::SYS_poll, libc::SYS_futex, libc::SYS_clock_nanosleep] {
            assert_eq!(wound(call, 516, None), (0xffe, call));
        }
        assert_eq!(wound(libc::SYS_restart_syscall, 516, None), (0x1000, -4), "which call it was is not known");
        assert_eq!(wound(libc::SYS_epoll_wait, 4, None), (0xffe, libc::SYS_epoll_wait));
        assert_eq!(wound(READ, 4, None), (0xffe, READ), "a socket's time limit");
        assert_eq!(wound(libc::SYS_ioctl, 4, None), (0x1000, -4), "its own answer");
        assert_eq!(wound(-1, 512, None), (0x1000, -512), "no call at all");
    }

    #[test]
    fn a_signal_that_is_handled_next_ends_a_call() {
        use Handled::{EndsCalls, RestartsCalls};
        let ended = (0x1000, -4);
        assert_eq!(wound(libc::SYS_pause, 514, Some(RestartsCalls)), ended);
        assert_eq!(wound(libc::SYS_read, 512, Some(EndsCalls)), ended);
        assert_eq!(wound(libc::SYS_read, 512, Some(RestartsCalls)), (0xffe, libc::SYS_read));
        assert_eq!(wound(libc::SYS_read, 513, Some(EndsCalls)), (0xffe, libc::SYS_read));
        assert_eq!(wound(libc::SYS_poll, 516, Some(RestartsCalls)), ended);
        assert_eq!(wound(libc::SYS_epoll_wait, 4, Some(RestartsCalls)), ended);
    }

    #[test]
    fn unknown_components_are_refused() {
        let mut x = sample();
        x[512..520].copy_from_slice(&(1u64 << 19 | 7).to_le_bytes());
        assert_eq!(fpregs(&x).expect_err("APX").kind(), Kind::Unsupported);
        x.resize(12_000, 7);
        assert_eq!(in_use(&x).len(), x.len(), "it is looked at");
        // More than the area holds.
        x[512..520].copy_from_slice(&(1u64 << 18 | 7).to_le_bytes());
        x.truncate(2800);
        assert_eq!(fpregs(&x).expect_err("tiles that are not there").kind(), Kind::Unsupported);
    }

    #[test]
    fn images_without_the_content_of_live_tiles_are_refused() {
        let mut entry = fpregs(&sample()).expect("converts");
        assert!(check_fpu(&entry).is_ok());
        let x = entry.xsave.as_mut().expect("extended state");
        (x.xstate_bv, x.crust_tile_data) = (x.xstate_bv | 1 << 18, None);
        let e = check_fpu(&entry).expect_err("tiles");
        assert!(e.kind() == Kind::Unsupported && e.to_string().contains("lacks"), "{e}");
    }

    #[test]
    fn tiles_want_a_processor_that_has_them() {
        let mut entry = fpregs(&sample()).expect("converts");
        let x = entry.xsave.as_mut().expect("extended state");
        x.xstate_bv = 3 | 1 << 17 | 1 << 18;
        (x.crust_tile_config, x.crust_tile_data) = (Some(vec![1; 64]), Some(vec![2; 8192]));
        let have = [(17, 2752, 64), (18, 2816, 8192)];
        assert!(check_fpu_on(&entry, &have).is_ok());
        let e = check_fpu_on(&entry, &[]).expect_err("no tiles");
        assert!(e.kind() == Kind::Unsupported && e.to_string().contains("AMX tiles"), "{e}");
        entry.xsave.as_mut().expect("extended state").crust_tile_config = Some(vec![1; 63]);
        assert_eq!(check_fpu_on(&entry, &have).expect_err("too short").kind(), Kind::BadImage);
    }

    #[test]
    fn what_is_not_in_use_is_not_kept() {
        let mut x = sample();
        let known = components().iter().filter(|c| c.0 < TILE_CONFIG).map(|&(_, at, len)| at + len).max();
        x.truncate(known.unwrap_or(576).max(576));
        let live = u64_at(&x, HEADER_AT) & KNOWN;
        x[512..520].copy_from_slice(&live.to_le_bytes());
        let mut with_room_for_tiles = x.clone();
        with_room_for_tiles.resize(11_008, 0);
        assert_eq!(in_use(&with_room_for_tiles), x);
        assert_eq!(in_use(&x[..512]).len(), 512, "without XSAVE");
    }
}
