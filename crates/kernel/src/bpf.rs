//! bpf(2): maps, as far as their files are saved and made again.
#![allow(unsafe_code, reason = "bpf(2) takes a union that no safe wrapper has")]
use crate::sock_diag::last;
use rustix::io::{Errno, Result};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `BPF_MAP_TYPE_HASH`
pub const HASH: u32 = 1;
/// `BPF_MAP_TYPE_ARRAY`
pub const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_LPM_TRIE`
pub const LPM_TRIE: u32 = 11;
/// `BPF_F_NUMA_NODE`: the map's memory is on a node that nothing tells.
pub const F_NUMA_NODE: u32 = 1 << 2;
/// `BPF_F_RDONLY`, of the descriptor.
const F_RDONLY: u32 = 1 << 3;
/// `BPF_F_WRONLY`, of the descriptor.
const F_WRONLY: u32 = 1 << 4;

const MAP_CREATE: i32 = 0;
const PROG_GET_NEXT_ID: i32 = 11;
const PROG_GET_FD_BY_ID: i32 = 13;
const MAP_GET_FD_BY_ID: i32 = 14;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const MAP_FREEZE: i32 = 22;
const MAP_LOOKUP_BATCH: i32 = 24;
const MAP_UPDATE_BATCH: i32 = 26;

/// What a map is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// `BPF_MAP_TYPE_*`
    pub kind: u32,
    /// The kernel's number of it.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// The most entries.
    pub max_entries: u32,
    /// `BPF_F_*`, without those of a descriptor.
    pub flags: u32,
    /// Up to 15 bytes.
    pub name: String,
    /// The network device that it lies on, 0 for none.
    pub ifindex: u32,
    /// The types (BTF) that it was made with, 0 for none.
    pub btf: u32,
    /// Meaning depends on the kind.
    pub extra: u64,
}

/// Entries of a map: keys one after the other, then as many values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Keys.
    pub keys: Vec<u8>,
    /// Values.
    pub values: Vec<u8>,
    /// How many.
    pub count: u32,
}

/// The words of `union bpf_attr`, all of it that we use.
type Attr = [u64; 16];

fn call(command: i32, attr: &mut Attr) -> Result<libc::c_long> {
    // SAFETY: `attr` lives over the call and is as long as the kernel is told; which pointers it holds is up to the callers
    // below: each points them to buffers of the length that the kernel derives from the map, alive over this call.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<Attr>()) };
    if ret < 0 { Err(last()) } else { Ok(ret) }
}

fn owned(ret: libc::c_long) -> Result<OwnedFd> {
    let raw = RawFd::try_from(ret).map_err(|_| Errno::IO)?;
    // SAFETY: the kernel has just made this descriptor for the calling function, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Two 32-bit words in the order in which they lie in memory.
fn two(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

fn number(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

/// What the kernel tells of an object, in words of 32 bits.
fn info(fd: impl AsFd, room: &mut [u32]) -> Result<()> {
    let mut attr = Attr::default();
    attr[0] = two(number(&fd), size_of_val(room) as u32);
    attr[1] = room.as_mut_ptr() as u64;
    call(OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

/// What a map is.
///
/// # Errors
/// `EINVAL`: no object of bpf(2).
pub fn map(fd: impl AsFd) -> Result<Map> {
    // struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags, name[16], ifindex,
    // btf_vmlinux_value_type_id, netns_dev, netns_ino, btf_id, two types, btf_vmlinux_id, map_extra.
    let mut words = [0u32; 24];
    info(fd, &mut words)?;
    let [kind, id, key_size, value_size, max_entries, flags, n0, n1, n2, n3, ifindex, _, rest @ ..] = words;
    let name: Vec<u8> = [n0, n1, n2, n3].iter().flat_map(|w| w.to_ne_bytes()).take_while(|b| *b != 0).collect();
    let [_, _, _, _, btf, _, _, _, low, high, ..] = rest;
    let name = String::from_utf8_lossy(&name).into_owned();
    let extra = two(low, high);
    Ok(Map { kind, id, key_size, value_size, max_entries, flags, name, ifindex, btf, extra })
}

/// A descriptor of the map with this number, for reading and writing as the flags of open(2) say.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOENT` if there is none.
pub fn map_by_id(id: u32, access: u32) -> Result<OwnedFd> {
    let flags = match access & libc::O_ACCMODE as u32 {
        a if a == libc::O_RDONLY as u32 => F_RDONLY,
        a if a == libc::O_WRONLY as u32 => F_WRONLY,
        _ => 0,
    };
    let mut attr = Attr::default();
    attr[0] = two(id, 0);
    attr[1] = two(flags, 0);
    owned(call(MAP_GET_FD_BY_ID, &mut attr)?)
}

/// The numbers of all maps that loaded programs use.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn maps_of_programs() -> Result<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    let mut id = 0;
    loop {
        let mut attr = Attr::default();
        attr[0] = two(id, 0);
        match call(PROG_GET_NEXT_ID, &mut attr) {
            Ok(_) => id = (attr[0] >> 32) as u32,
            Err(Errno::NOENT) => return Ok(found),
            Err(e) => return Err(e),
        }
        let mut attr = Attr::default();
        attr[0] = two(id, 0);
        let program = match call(PROG_GET_FD_BY_ID, &mut attr).and_then(owned) {
            Err(Errno::NOENT) => continue, // gone meanwhile
            other => other?,
        };
        // struct bpf_prog_info up to map_ids: how many maps there are, then which.
        let mut words = [0u32; 16];
        info(&program, &mut words)?;
        let count = words[13];
        let mut ids = vec![0u32; count as usize];
        let mut words = [0u32; 16];
        words[13] = count;
        let at = ids.as_mut_ptr() as u64;
        (words[14], words[15]) = (at as u32, (at >> 32) as u32);
        info(&program, &mut words)?;
        found.extend(ids);
    }
}

/// Makes a map; its descriptor is for both, reading and writing.
///
/// # Errors
/// `EPERM` without CAP_BPF where the system asks for it; `EINVAL` if this kernel has no such map.
pub fn create(map: &Map) -> Result<OwnedFd> {
    let mut name = [0u8; 16];
    let bytes = map.name.as_bytes();
    name.get_mut(..bytes.len()).filter(|_| bytes.len() < 16).ok_or(Errno::INVAL)?.copy_from_slice(bytes);
    let [a, b] = [&name[..8], &name[8..]].map(|half| half.iter().rev().fold(0, |w, c| w << 8 | u64::from(*c)));
    let mut attr = Attr::default();
    // map_type, key_size, value_size, max_entries, map_flags, inner_map_fd, numa_node, map_name[16], map_ifindex, btf_fd,
    // two types, btf_vmlinux_value_type_id, then map_extra.
    attr[0] = two(map.kind, map.key_size);
    attr[1] = two(map.value_size, map.max_entries);
    attr[2] = two(map.flags, 0);
    attr[3] = two(0, a as u32);
    attr[4] = two((a >> 32) as u32, b as u32);
    attr[5] = two((b >> 32) as u32, map.ifindex);
    attr[8] = map.extra;
    owned(call(MAP_CREATE, &mut attr)?)
}

/// Nobody can change the map by system calls any more.
///
/// # Errors
/// `EPERM` without the right to write it.
pub fn freeze(fd: impl AsFd) -> Result<()> {
    let mut attr = Attr::default();
    attr[0] = two(number(fd), 0);
    call(MAP_FREEZE, &mut attr).map(drop)
}

/// All entries. The map must be readable by this descriptor, and nobody change it meanwhile.
///
/// # Errors
/// `EPERM` if it may not be read.
pub fn entries(fd: impl AsFd, map: &Map) -> Result<Entries> {
    let (key, value) = (map.key_size as usize, map.value_size as usize);
    let mut all = Entries::default();
    let mut room = map.max_entries.clamp(1, 4096);
    // Where to go on, in a form of the kernel's own: as long as a key, or a word.
    let mut cursor = vec![0u8; key.max(8)];
    let mut is_first = true;
    loop {
        let mut keys = vec![0u8; key * room as usize];
        let mut values = vec![0u8; value * room as usize];
        let mut next = cursor.clone();
        let mut attr = Attr::default();
        // in_batch, out_batch, keys, values, count, map_fd, two flags.
        attr[0] = if is_first { 0 } else { cursor.as_ptr() as u64 };
        attr[1] = next.as_mut_ptr() as u64;
        attr[2] = keys.as_mut_ptr() as u64;
        attr[3] = values.as_mut_ptr() as u64;
        attr[4] = two(room, number(&fd));
        let ret = call(MAP_LOOKUP_BATCH, &mut attr);
        let got = attr[4] as u32 as usize;
        match ret {
            Ok(_) | Err(Errno::NOENT) => {}
            // One bucket of a hash has more than that.
            Err(Errno::NOSPC) if room < map.max_entries => {
                room = room.saturating_mul(2).min(map.max_entries);
                continue;
            }
            Err(e) => return Err(e),
        }
        all.keys.extend_from_slice(keys.get(..got * key).ok_or(Errno::BADMSG)?);
        all.values.extend_from_slice(values.get(..got * value).ok_or(Errno::BADMSG)?);
        all.count += got as u32;
        if ret.is_err() {
            return Ok(all);
        }
        (cursor, is_first) = (next, false);
    }
}

/// Puts entries into a map.
///
/// # Errors
/// `E2BIG`: more than it may have. `EINVAL`: not as long as the map's keys and values.
pub fn fill(fd: impl AsFd, map: &Map, keys: &[u8], values: &[u8], count: u32) -> Result<()> {
    let long = |bytes: &[u8], size: u32| bytes.len() as u64 == u64::from(size) * u64::from(count);
    if !long(keys, map.key_size) || !long(values, map.value_size) {
        return Err(Errno::INVAL);
    }
    if count == 0 {
        return Ok(());
    }
    let mut attr = Attr::default();
    attr[2] = keys.as_ptr() as u64;
    attr[3] = values.as_ptr() as u64;
    attr[4] = two(count, number(fd));
    call(MAP_UPDATE_BATCH, &mut attr)?;
    if attr[4] as u32 == count { Ok(()) } else { Err(Errno::IO) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(kind: u32, flags: u32, entries: u32) -> Option<(Map, OwnedFd)> {
        let name = "crust_test".to_owned();
        let map = Map { kind, key_size: 8, value_size: 12, max_entries: entries, flags, name, ..Map::default() };
        match create(&map) {
            Ok(fd) => Some((map, fd)),
            Err(Errno::PERM | Errno::NOSYS) => None, // not here, not for us
            Err(e) => panic!("map: {e}"),
        }
    }

    #[test]
    fn all_entries_come_out_as_they_went_in() {
        let many: u32 = 10_000;
        let Some((map, fd)) = sample(HASH, 0, many) else { return };
        let keys: Vec<u8> = (0..u64::from(many)).flat_map(u64::to_ne_bytes).collect();
        let values: Vec<u8> = (0..many).flat_map(|n| [n, !n, 7]).flat_map(u32::to_ne_bytes).collect();
        fill(&fd, &map, &keys, &values, many).expect("filling");
        let seen = super::map(&fd).expect("info");
        assert_eq!(seen, Map { id: seen.id, ..map.clone() });
        let found = entries(&fd, &map).expect("entries");
        assert_eq!(found.count, many);
        let pairs = |keys: &[u8], values: &[u8]| -> BTreeSet<(Vec<u8>, Vec<u8>)> {
            keys.chunks(8).map(<[u8]>::to_vec).zip(values.chunks(12).map(<[u8]>::to_vec)).collect()
        };
        assert_eq!(pairs(&found.keys, &found.values), pairs(&keys, &values));
        assert_eq!(fill(&fd, &map, &keys, &values, many - 1), Err(Errno::INVAL));
    }

    #[test]
    fn an_empty_map_has_no_entries_and_a_trie_has_prefixes() {
        let Some((map, fd)) = sample(HASH, 0, 4) else { return };
        assert_eq!(entries(&fd, &map), Ok(Entries::default()));
        let Some((map, fd)) = sample(LPM_TRIE, 1, 4) else { return };
        assert_eq!(entries(&fd, &map), Ok(Entries::default()));
        let keys = [[8, 0, 0, 0, 10, 0, 0, 0], [16, 0, 0, 0, 10, 1, 0, 0]].concat();
        fill(&fd, &map, &keys, &[5; 24], 2).expect("filling");
        let found = entries(&fd, &map).expect("entries");
        assert_eq!((found.count, found.keys.len(), found.values), (2, 16, vec![5; 24]));
    }
}
