//! The processor of a dump and of a restore: cpuinfo.img, and what lacks here of what was there.
use crate::images::Source;
use crate::{Error, Result, ResultExt};
use crust_image::ImageKind;
use crust_image::proto::{CpuinfoEntry, CpuinfoX86Entry, cpuinfo_x86_entry::Vendor};
use crust_kernel::cpuid::leaf;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};

/// `--cpu-cap`: compare floating point and vector state.
pub const FPU: u32 = 1;
/// Compare everything.
pub const ALL_BITS: u32 = 1 << 1;
/// Compare what instructions there are.
pub const INSTRUCTIONS: u32 = 1 << 2;
/// Write, or read, cpuinfo.img.
pub const IMAGE: u32 = 1 << 3;

/// Words of capabilities in version 2 of the record.
const WORDS: usize = 19;
/// In version 1.
const OLD_WORDS: usize = 12;

/// Bits that a program may have found and relies on: word, bit, name as in /proc/cpuinfo.
#[rustfmt::skip]
const SEEN_BY_PROGRAMS: &[(usize, u32, &str)] = &[
    (0, 0, "fpu"), (0, 4, "tsc"), (0, 8, "cx8"), (0, 11, "sep"), (0, 15, "cmov"), (0, 19, "clflush"), (0, 23, "mmx"),
    (0, 24, "fxsr"), (0, 25, "sse"), (0, 26, "sse2"),
    (1, 11, "syscall"), (1, 22, "mmxext"), (1, 27, "rdtscp"), (1, 30, "3dnowext"), (1, 31, "3dnow"),
    (4, 0, "sse3"), (4, 1, "pclmulqdq"), (4, 9, "ssse3"), (4, 12, "fma"), (4, 13, "cx16"), (4, 19, "sse4_1"),
    (4, 20, "sse4_2"), (4, 22, "movbe"), (4, 23, "popcnt"), (4, 25, "aes"), (4, 26, "xsave"), (4, 27, "osxsave"),
    (4, 28, "avx"), (4, 29, "f16c"), (4, 30, "rdrand"),
    (6, 5, "abm"), (6, 6, "sse4a"), (6, 7, "misalignsse"), (6, 8, "3dnowprefetch"), (6, 11, "xop"), (6, 16, "fma4"), (6, 21, "tbm"),
    (9, 0, "fsgsbase"), (9, 3, "bmi1"), (9, 4, "hle"), (9, 5, "avx2"), (9, 8, "bmi2"), (9, 9, "erms"), (9, 11, "rtm"),
    (9, 14, "mpx"), (9, 16, "avx512f"), (9, 17, "avx512dq"), (9, 18, "rdseed"), (9, 19, "adx"), (9, 21, "avx512ifma"),
    (9, 23, "clflushopt"), (9, 24, "clwb"), (9, 26, "avx512pf"), (9, 27, "avx512er"), (9, 28, "avx512cd"), (9, 29, "sha_ni"),
    (9, 30, "avx512bw"), (9, 31, "avx512vl"),
    (10, 0, "xsaveopt"), (10, 1, "xsavec"), (10, 2, "xgetbv1"),
    (11, 1, "avx512vbmi"), (11, 4, "ospke"), (11, 5, "waitpkg"), (11, 6, "avx512_vbmi2"), (11, 8, "gfni"), (11, 9, "vaes"), (11, 10, "vpclmulqdq"),
    (11, 11, "avx512_vnni"), (11, 12, "avx512_bitalg"), (11, 14, "avx512_vpopcntdq"), (11, 22, "rdpid"), (11, 25, "cldemote"),
    (11, 27, "movdiri"), (11, 28, "movdir64b"), (11, 29, "enqcmd"),
    (13, 0, "clzero"),
    (18, 2, "avx512_4vnniw"), (18, 3, "avx512_4fmaps"), (18, 8, "avx512_vp2intersect"), (18, 14, "serialize"), (18, 16, "tsxldtrk"),
    (18, 22, "amx_bf16"), (18, 23, "avx512_fp16"), (18, 24, "amx_tile"), (18, 25, "amx_int8"),
];
/// Bits that decide about the shape of saved registers.
const STATE: [(usize, u32, &str); 4] = [(0, 0, "fpu"), (0, 24, "fxsr"), (4, 27, "osxsave"), (10, 3, "xsaves")];

/// The processor here.
pub fn here() -> CpuinfoX86Entry {
    let (vendor, one, seven, state) = (leaf(0, 0), leaf(1, 0), leaf(7, 0), leaf(0xd, 0));
    let (extended, monitor) = (leaf(0x8000_0001, 0), leaf(0xf, 0));
    let name: Vec<u8> = [vendor.ebx, vendor.edx, vendor.ecx].iter().flat_map(|w| w.to_le_bytes()).collect();
    let vendor = match name.as_slice() {
        b"GenuineIntel" => Vendor::Intel,
        _ => Vendor::Amd,
    };
    let base = one.eax >> 8 & 0xf;
    let family = if base == 0xf { base + (one.eax >> 20 & 0xff) } else { base };
    let model = (one.eax >> 4 & 0xf) | if family >= 6 { (one.eax >> 16 & 0xf) << 4 } else { 0 };
    let mut words = [0; WORDS];
    words[0] = one.edx;
    words[1] = extended.edx;
    // Linux's own word: fast string operations, and the long no-operation that every 64-bit processor has.
    words[LINUX_WORD] = 1 << 16 | 1 << 20;
    if vendor == Vendor::Amd {
        words[LINUX_WORD] |= 1 << 25; // fences order the time stamp counter
    }
    words[4] = one.ecx;
    words[6] = extended.ecx;
    words[9] = seven.ebx;
    words[10] = leaf(0xd, 1).eax;
    words[11] = seven.ecx;
    words[12] = leaf(0xf, 1).edx;
    words[13] = leaf(0x8000_0008, 0).ebx;
    words[14] = leaf(6, 0).eax;
    words[15] = leaf(0x8000_000a, 0).edx;
    words[16] = monitor.edx;
    words[17] = leaf(0x8000_0007, 0).ebx;
    words[18] = seven.edx;
    let text = (0x8000_0002..=0x8000_0004).map(|n| leaf(n, 0)).flat_map(|l| [l.eax, l.ebx, l.ecx, l.edx]);
    let text: Vec<u8> = text.flat_map(u32::to_le_bytes).take_while(|&b| b != 0).collect();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    CpuinfoX86Entry {
        vendor_id: vendor as i32,
        cpu_family: family,
        model,
        stepping: one.eax & 0xf,
        capability_ver: 2,
        capability: words.to_vec(),
        model_id: (!text.is_empty()).then_some(text),
        xfeatures_mask: Some((u64::from(state.edx) << 32 | u64::from(state.eax)) & USER_STATE),
        xsave_size: Some(state.ebx),
        xsave_size_max: Some(state.ecx),
    }
}

/// Components of XSAVE that CRIU's images name: x87, AVX, MPX (2), AVX-512 (3), PKRU. SSE it leaves out.
const USER_STATE: u64 = 0x2fd;
/// Notes of the kernel's own, not of the processor.
const LINUX_WORD: usize = 3;

/// The record of cpuinfo.img.
pub fn record() -> CpuinfoEntry {
    CpuinfoEntry { x86_entry: vec![here()], ..Default::default() }
}

/// What of `there` lacks `here`, in words; empty if an image from there can run here as far as `caps` asks.
pub fn lacks(there: &CpuinfoX86Entry, here: &CpuinfoX86Entry, caps: u32) -> Vec<String> {
    let mut found = Vec::new();
    let of = |c: &CpuinfoX86Entry, word: usize| c.capability.get(word).copied();
    // A word that the image does not have asks for nothing.
    let misses = |word: usize, bit: u32| of(there, word).unwrap_or(0) & !of(here, word).unwrap_or(0) & 1 << bit != 0;
    let mut named: Vec<&str> = Vec::new();
    if caps & FPU != 0 {
        named.extend(STATE.iter().filter(|&&(w, b, _)| misses(w, b)).map(|&(.., name)| name));
    }
    if caps & INSTRUCTIONS != 0 {
        named.extend(SEEN_BY_PROGRAMS.iter().filter(|&&(w, b, _)| misses(w, b)).map(|&(.., name)| name));
    }
    named.dedup();
    if !named.is_empty() {
        found.push(format!("features that the program may use are missing: {}", named.join(" ")));
    }
    if caps & FPU != 0 {
        let state = |c: &CpuinfoX86Entry| c.xfeatures_mask.unwrap_or(0);
        let missing = state(there) & !state(here);
        if missing != 0 {
            found.push(format!("register sets are missing (XSAVE components {missing:#x})"));
        }
        let sizes =
            [("in use", there.xsave_size, here.xsave_size), ("at most", there.xsave_size_max, here.xsave_size_max)];
        for (what, was, is) in sizes {
            if let (Some(was), Some(is)) = (was, is)
                && was != is
            {
                found.push(format!(
                    "the XSAVE area has {is} bytes {what}, at the dump it had {was}: programs may have kept the number"
                ));
            }
        }
    }
    if caps & ALL_BITS != 0 && there.capability != here.capability {
        let words = (0..WORDS).filter(|&w| w != LINUX_WORD);
        let differ = words.filter(|&w| of(there, w).is_some_and(|word| Some(word) != of(here, w)));
        let words: Vec<String> = differ
            .map(|w| format!("{w}: {:#010x} there, {:#010x} here", of(there, w).unwrap_or(0), of(here, w).unwrap_or(0)))
            .collect();
        if !words.is_empty() {
            found.push(format!("it is not the same processor (capability words {})", words.join("; ")));
        }
    }
    found
}

/// The errors of a restore of these images here, as far as `caps` asks; one for all that lacks.
///
/// # Errors
/// `BadImage` if there is no record of an x86 processor that can be understood.
pub fn check(source: &Source, caps: u32) -> Result<Vec<Error>> {
    let file = ImageKind::Cpuinfo.file_name(0);
    let bad = |what: String| Error::bad_image(&file, what);
    let entry: Option<CpuinfoEntry> = source.read_one_if(ImageKind::Cpuinfo, 0)?;
    let entry = entry
        .ok_or_else(|| bad("the image is missing".to_owned()).help("dump with --cpu-cap, or restore without it"))?;
    let [there] = entry.x86_entry.as_slice() else {
        return Err(bad("is of another architecture than x86".to_owned()).help("restore it on such a machine"));
    };
    let words = match there.capability_ver {
        1 => OLD_WORDS,
        2 => WORDS,
        other => return Err(bad(format!("has version {other}"))),
    };
    if there.capability.len() != words {
        return Err(bad(format!("has {} capability words, not {words}", there.capability.len())));
    }
    let found = lacks(there, &here(), caps);
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let from = there.model_id.as_deref().unwrap_or("an unnamed processor");
    let help =
        "restore on a processor with at least these features, or lower the demand: --cpu-cap=none, --cpu-cap=fpu";
    Ok(vec![Error::unsupported(
        format!("this processor lacks what the dump's had ({from}): {}", found.join("; ")),
        help,
    )])
}

/// Writes cpuinfo.img into a directory, alone.
///
/// # Errors
/// The directory cannot be written to.
pub fn write(dir: BorrowedFd<'_>) -> Result<()> {
    let bytes = crust_image::encode_one(ImageKind::Cpuinfo, &record())?;
    let name = ImageKind::Cpuinfo.file_name(0);
    let flags = rustix::fs::OFlags::WRONLY
        | rustix::fs::OFlags::CREATE
        | rustix::fs::OFlags::TRUNC
        | rustix::fs::OFlags::NOFOLLOW
        | rustix::fs::OFlags::CLOEXEC;
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let fd = rustix::fs::openat(dir, name.as_str(), flags, mode).during("creating cpuinfo.img")?;
    std::fs::File::from(fd).write_all(&bytes).during("writing cpuinfo.img")
}

/// [`check`] for a directory that may hold nothing but cpuinfo.img.
///
/// # Errors
/// As [`check`], with what lacks as an error too.
pub fn check_dir(dir: BorrowedFd<'_>, caps: u32) -> Result<()> {
    let fd = rustix::io::fcntl_dupfd_cloexec(dir.as_fd(), 3).during("dup")?;
    let errors = check(&Source::open_dir(fd)?, caps)?;
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// Errors of a restore that was told to compare processors; nothing otherwise.
pub(crate) fn check_if_asked(source: &Source, caps: u32) -> Vec<Error> {
    if caps & IMAGE == 0 {
        return Vec::new();
    }
    check(source, caps).unwrap_or_else(|e| vec![e]).into_iter().map(|e| e.at(crate::Stage::Check)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_lacks_at_home() {
        let here = here();
        assert_eq!(here.capability.len(), WORDS);
        assert!(lacks(&here, &here, FPU | INSTRUCTIONS | ALL_BITS).is_empty());
    }

    #[test]
    fn what_lacks_is_named() {
        let there = here();
        let mut poor = there.clone();
        poor.capability[4] &= !(1 << 20); // sse4_2
        poor.xfeatures_mask = Some(3);
        poor.xsave_size = there.xsave_size.map(|s| s + 64);
        let said = lacks(&there, &poor, FPU | INSTRUCTIONS).join("\n");
        assert!(said.contains("sse4_2") && said.contains("XSAVE components"), "{said}");
        assert!(said.contains("bytes in use"), "{said}");
        assert!(lacks(&there, &poor, 0).is_empty());
        assert!(lacks(&there, &poor, FPU).iter().all(|l| !l.contains("sse4_2")));
        // More than there was is fine, unless the same processor is asked for.
        let mut rich = there.clone();
        rich.capability[5] = 1;
        assert!(lacks(&there, &rich, FPU | INSTRUCTIONS).is_empty());
        assert_eq!(lacks(&there, &rich, ALL_BITS).len(), 1);
    }
}
