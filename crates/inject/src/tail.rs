//! Room for landings in a program without a vDSO: what lies behind the code of a program file in its last page.
//!
//! The kernel maps whole pages. What of the last one lies behind the segment belongs to none of the program's sections,
//! so nobody runs it or reads it. A write there makes a private copy of the page, as in the vDSO.
//! Only bytes that are zero, or left by one of us, are taken: the file may have other contents in that place.
use crate::arch::landing;
use crate::site::{MAGIC, REGISTRY_BYTES, half, word};
use crust_kernel::VirtAddr;
use crust_kernel::maps::{self, Mapping};
use crust_kernel::procfs::ProcDir;
use crust_kernel::remote_mem::RemoteMem;

const PAGE: u64 = crust_kernel::ids::PAGE_SIZE;
/// How much of a file is looked at for its program headers.
const HEAD_BYTES: usize = 4096;

/// The room behind the code of one file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The room to use: that with a registry of ours, else the first with a free place. The program's own file mostly lies
/// lowest, and unlike a library it stays.
pub(crate) fn find(dir: &ProcDir, mem: &RemoteMem) -> rustix::io::Result<Option<Tail>> {
    let all = maps::read_maps(dir)?;
    let mut tails: Vec<Tail> = all.iter().filter(|m| holds_code(m)).filter_map(|m| tail_of(m, &all, mem)).collect();
    let known = tails.iter().position(|t| registry(&t.bytes).is_some_and(|r| r != 0));
    let free = |t: &Tail| places(&t.bytes).any(|p| p.iter().all(|&b| b == 0));
    Ok(known.or_else(|| tails.iter().position(free)).map(|i| tails.swap_remove(i)))
}

fn holds_code(m: &Mapping) -> bool {
    m.read && m.exec && !m.write && !m.shared && m.inode != 0
}

fn tail_of(m: &Mapping, all: &[Mapping], mem: &RemoteMem) -> Option<Tail> {
    let first = all.iter().find(|f| f.read && f.offset == 0 && f.inode == m.inode && f.dev == m.dev)?;
    let mut head = vec![0; HEAD_BYTES];
    mem.read(VirtAddr(first.start), &mut head).ok()?;
    let used = segment_end(&head, m.offset, m.end - m.start)?;
    let start = m.start.checked_add(used)?.next_multiple_of(16);
    let needed = landing::COMPACT_BYTES as u64 + REGISTRY_BYTES;
    (start.checked_add(needed)? <= m.end).then_some(())?;
    let mut bytes = vec![0; usize::try_from(m.end - start).ok()?];
    mem.read(VirtAddr(start), &mut bytes).ok()?;
    is_ours(&bytes).then_some(Tail { start, end: m.end, bytes })
}

/// Where in a mapping of `len` bytes from `offset` on the segment ends that is mapped there, if it ends in the last page.
fn segment_end(head: &[u8], offset: u64, len: u64) -> Option<u64> {
    const PT_LOAD: u64 = 1;
    const HEADER_BYTES: u64 = 56;
    // 64 bits, little endian
    (head.get(..6)? == b"\x7fELF\x02\x01" && half(head, 54)? == HEADER_BYTES).then_some(())?;
    let (phoff, phnum) = (word(head, 32)?, half(head, 56)?);
    let ends = (0..phnum).filter_map(|i| {
        let at = usize::try_from(phoff.checked_add(i * HEADER_BYTES)?).ok()?;
        (word(head, at)? & u64::from(u32::MAX) == PT_LOAD).then_some(())?;
        let (from, filesz, memsz) = (word(head, at + 8)?, word(head, at + 32)?, word(head, at + 40)?);
        let used = from.checked_add(filesz)?.checked_sub(offset)?;
        (filesz == memsz && from.checked_add(filesz)? > offset && used <= len && len - used < PAGE).then_some(used)
    });
    // Segments may share a page.
    ends.max()
}

fn places(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes[..bytes.len() - REGISTRY_BYTES as usize].chunks_exact(landing::COMPACT_BYTES)
}

/// The first word of the registry, if it is nothing or ours.
fn registry(bytes: &[u8]) -> Option<u64> {
    let at = bytes.len().checked_sub(REGISTRY_BYTES as usize)?;
    let (magic, area) = (word(bytes, at)?, word(bytes, at + 8)?);
    (magic == MAGIC || magic == 0 && area == 0).then_some(magic)
}

/// True if there is nothing but landings and a registry of ours.
fn is_ours(bytes: &[u8]) -> bool {
    let mut places = places(bytes);
    registry(bytes).is_some() && places.all(|p| p.starts_with(&landing::COMPACT_BEGINS) || p.iter().all(|&b| b == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_kernel::HostTid;

    #[test]
    fn there_is_room_behind_our_own_code() {
        let me = HostTid::new(i32::try_from(std::process::id()).unwrap()).unwrap();
        let mem = RemoteMem::open_read_only(me).unwrap();
        let tail = find(&ProcDir::open(me).unwrap(), &mem).unwrap().unwrap();
        assert!(tail.end.is_multiple_of(PAGE) && tail.end - tail.start < PAGE);
        assert!(tail.bytes.iter().all(|&b| b == 0));
    }

    /// A file with one segment of code, of `filesz` bytes from `from` on.
    fn head(from: u64, filesz: u64, memsz: u64) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[54..58].copy_from_slice(&[56, 0, 1, 0]);
        for (at, value) in [(32, 64), (64, 1), (72, from), (96, filesz), (104, memsz)] {
            head[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        }
        head
    }

    #[test]
    fn room_begins_where_the_segment_ends() {
        assert_eq!(segment_end(&head(0x1000, 0x1234, 0x1234), 0x1000, 0x2000), Some(0x1234));
        assert_eq!(segment_end(&head(0x1040, 0x1234, 0x1234), 0x1000, 0x2000), Some(0x1274));
        // What is mapped ends elsewhere, the kernel made zeros of what follows, no file of a program.
        assert_eq!(segment_end(&head(0x1000, 0x1234, 0x1234), 0x1000, 0x3000), None);
        assert_eq!(segment_end(&head(0x1000, 0x1234, 0x1234), 0x1000, 0x1000), None);
        assert_eq!(segment_end(&head(0x1000, 0x1234, 0x1300), 0x1000, 0x2000), None);
        assert_eq!(segment_end(&head(u64::MAX, 0x1234, 0x1234), 0x1000, 0x2000), None);
        assert_eq!(segment_end(&[0; HEAD_BYTES], 0x1000, 0x2000), None);
    }

    #[test]
    fn bytes_of_others_are_left_alone() {
        let mut bytes = vec![0; 2 * landing::COMPACT_BYTES + REGISTRY_BYTES as usize];
        assert!(is_ours(&bytes));
        bytes[..7].copy_from_slice(&landing::COMPACT_BEGINS);
        bytes[100] = 1;
        assert!(is_ours(&bytes));
        bytes[150] = 1;
        assert!(!is_ours(&bytes));
        bytes[150] = 0;
        *bytes.last_mut().unwrap() = 1;
        assert!(!is_ours(&bytes));
        let at = bytes.len() - 16;
        bytes[at..at + 8].copy_from_slice(&MAGIC.to_le_bytes());
        assert!(is_ours(&bytes));
    }
}
