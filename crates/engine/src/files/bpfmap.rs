//! BPF maps (bpf(2)): hashes, arrays and prefix trees with their content, name and whether they are frozen.
//!
//! A map that a loaded program uses is refused: the program would go on with the old one. Programs are no kind of ours.
use super::FdKind;
use super::look::FdView;
use super::restore::{FileImages, Opener};
use super::table::Records;
use crate::images::{Partial, Source};
use crate::{Error, Result, ResultExt};
use crust_image::proto::{BpfmapDataEntry, BpfmapFileEntry, FdTypes, FileEntry};
use crust_image::{ImageKind, Reader, Writer};
use crust_kernel::bpf::{self, Entries, Map};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;

pub(super) static KIND: FdKind = FdKind {
    name: "BPF map",
    fd_type: FdTypes::Bpfmap,
    recognise: |v| v.is_anon("bpf-map"),
    dump,
    group: |e: &FileEntry, _: &FileImages| e.bpf.as_ref().map(|m| u64::from(m.map_id)),
    open,
};

/// Maps of the tree, once each, to be read when all was looked at; and those that loaded programs use.
#[derive(Debug, Default)]
pub(super) struct Maps {
    seen: BTreeSet<u32>,
    held: Vec<(Map, OwnedFd)>,
    in_use: Option<BTreeSet<u32>>,
}

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let map = bpf::map(v.copy()?).during("asking what a BPF map is")?;
    let refused = |what: &str| {
        Error::unsupported(
            format!("the BPF map {:?} (number {}, type {}) {what}", map.name, map.id, map.kind),
            "close it before the dump",
        )
    };
    if !matches!(map.kind, bpf::HASH | bpf::ARRAY | bpf::LPM_TRIE) {
        return Err(refused("is of a type that cannot be saved; hashes, arrays and prefix trees can"));
    }
    if map.btf != 0 {
        return Err(refused("describes its content by types (BTF), which cannot be saved"));
    }
    if map.flags & bpf::F_NUMA_NODE != 0 {
        return Err(refused("lies on a memory node of its own, and the kernel does not say on which"));
    }
    let maps = &mut out.bpf_maps;
    if maps.in_use.is_none() {
        maps.in_use = Some(match bpf::maps_of_programs() {
            Ok(ids) => ids,
            Err(Errno::PERM) => {
                log::warn!("whether loaded BPF programs use the tree's maps cannot be seen without CAP_SYS_ADMIN");
                BTreeSet::new()
            }
            Err(e) => return Err(Error::kernel("asking which maps BPF programs use failed", e)),
        });
    }
    if maps.in_use.as_ref().is_some_and(|ids| ids.contains(&map.id)) {
        return Err(refused("is used by a loaded program, which would not use the restored one"));
    }
    let number = |key: &str| v.info.number::<u64>(key).unwrap_or(0);
    let entry = BpfmapFileEntry {
        id,
        flags: v.info.flags,
        pos: 0,
        fown: v.fown()?,
        map_type: map.kind,
        key_size: map.key_size,
        value_size: map.value_size,
        map_id: map.id,
        max_entries: map.max_entries,
        map_flags: map.flags,
        memlock: number("memlock"),
        frozen: number("frozen") != 0,
        map_name: map.name.clone(),
        ifindex: map.ifindex,
        mnt_id: None,
        map_extra: (map.extra != 0).then_some(map.extra),
    };
    if maps.seen.insert(map.id) {
        let readable = match bpf::map_by_id(map.id, libc::O_RDONLY as u32) {
            Err(Errno::PERM) if v.info.flags & libc::O_ACCMODE as u32 != libc::O_WRONLY as u32 => {
                v.copy()?.try_clone_to_owned().during("copying a descriptor")?
            }
            other => other.during("opening a BPF map to read it").map_err(|e| e.help("this needs CAP_SYS_ADMIN"))?,
        };
        maps.held.push((map, readable));
    }
    Ok(FileEntry { bpf: Some(entry.into()), ..FileEntry::default() })
}

/// Writes bpfmap-data.img.
pub(super) fn write(maps: &Maps, out: &Partial) -> Result<()> {
    if maps.held.is_empty() {
        return Ok(());
    }
    let mut w = Writer::new(Vec::new(), ImageKind::BpfmapData)?;
    for (map, fd) in &maps.held {
        let on = |e: Error| e.on(crate::Object::Path(format!("BPF map {:?}", map.name)));
        let Entries { keys, values, count } = bpf::entries(fd, map).during("reading a BPF map").map_err(on)?;
        let (Ok(keys_bytes), Ok(values_bytes)) = (u32::try_from(keys.len()), u32::try_from(values.len())) else {
            return Err(on(Error::unsupported("a BPF map with more than 4 GiB", "close it before the dump")));
        };
        w.entry(&BpfmapDataEntry { map_id: map.id, keys_bytes, values_bytes, count })?;
        w.extra(&keys)?;
        w.extra(&values)?;
    }
    out.put(&ImageKind::BpfmapData.file_name(0), &w.into_inner())
}

/// The content of each map, by its number.
pub(super) fn read(source: &Source) -> Result<HashMap<u32, Entries>> {
    let mut found = HashMap::new();
    let name = ImageKind::BpfmapData.file_name(0);
    let Some(bytes) = source.read(&name)? else { return Ok(found) };
    let mut reader = Reader::open_named(&name, &bytes, ImageKind::BpfmapData)?;
    while let Some(BpfmapDataEntry { map_id, keys_bytes, values_bytes, count }) = reader.next()? {
        let keys = reader.extra(keys_bytes.into())?.to_vec();
        let values = reader.extra(values_bytes.into())?.to_vec();
        // CRIU has a record for each file of a map; they say the same.
        found.insert(map_id, Entries { keys, values, count });
    }
    Ok(found)
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut opened = Vec::new();
    let mut whole: Option<OwnedFd> = None;
    for e in entries {
        let r = cx.body(e, e.bpf.as_ref())?;
        let on = |err: Error| err.on(crate::Object::Path(format!("BPF map {:?}", r.map_name)));
        let base = match whole.take() {
            Some(base) => base,
            None => make(r, cx).map_err(on)?,
        };
        let access = r.flags & libc::O_ACCMODE as u32;
        let fd = if opened.is_empty() && access == libc::O_RDWR as u32 {
            base.try_clone().during("copying a descriptor")?
        } else {
            let id = bpf::map(&base).during("asking for a BPF map's number").map_err(on)?.id;
            bpf::map_by_id(id, access)
                .during("opening a BPF map again")
                .map_err(on)
                .map_err(|e| e.help("this needs CAP_SYS_ADMIN"))?
        };
        cx.settle_from(&fd, OFlags::from_bits_retain(access), r.flags, &r.fown)?;
        whole = Some(base);
        opened.push((e.id, fd));
    }
    Ok(opened)
}

fn make(r: &BpfmapFileEntry, cx: &Opener<'_>) -> Result<OwnedFd> {
    let map = Map {
        kind: r.map_type,
        id: 0,
        key_size: r.key_size,
        value_size: r.value_size,
        max_entries: r.max_entries,
        flags: r.map_flags,
        name: r.map_name.clone(),
        ifindex: r.ifindex,
        btf: 0,
        extra: r.map_extra.unwrap_or(0),
    };
    let fd = bpf::create(&map).during("making a BPF map").map_err(|e| e.help("BPF maps need CAP_BPF"))?;
    if let Some(data) = cx.images.bpf_data.get(&r.map_id) {
        bpf::fill(&fd, &map, &data.keys, &data.values, data.count).map_err(|errno| match errno {
            Errno::INVAL => Error::bad_image("bpfmap-data.img", "keys and values are not as long as the map's"),
            e => Error::kernel("filling a BPF map failed", e),
        })?;
    }
    if r.frozen {
        bpf::freeze(&fd).during("freezing a BPF map")?;
    }
    Ok(fd)
}
