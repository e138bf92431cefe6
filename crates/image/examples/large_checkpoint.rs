//! Writes a large checkpoint that holds nothing, to measure readers on: `large_checkpoint DIR [PROCESSES]`.
//!
//! Each process (1000 by default) has 100 descriptors on files of its own, 100 mappings and 100 runs of pages, as many as a
//! server has. `pages-*.img` are empty files of the right length.
use crust_image::proto::{
    CoreEntry, FdTypes, FdinfoEntry, FileEntry, FsEntry, InventoryEntry, MmEntry, PagemapEntry, PagemapHead,
    PstreeEntry, RegFileEntry, TaskCoreEntry, TaskKobjIdsEntry, VmaEntry, core_entry,
};
use crust_image::{ImageKind, Writer, encode_all, encode_one};
use std::error::Error;
use std::path::Path;

const EACH: u32 = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: large_checkpoint DIR [PROCESSES]")?;
    let dir = Path::new(&dir);
    let processes: u32 = args.next().map_or(Ok(1000), |n| n.parse())?;
    std::fs::create_dir_all(dir)?;
    let put = |kind: ImageKind, id: u32, bytes: Vec<u8>| std::fs::write(dir.join(kind.file_name(id.into())), bytes);

    let file = |id: u32| FileEntry {
        r#type: FdTypes::Reg as i32,
        id,
        reg: Some(Box::new(RegFileEntry {
            id,
            flags: 0o100_002,
            name: format!("/srv/data/shard-{}/segment-{id:08}.log", id % 64).into_bytes(),
            size: Some(4096),
            mode: Some(0o100_644),
            ..Default::default()
        })),
        ..Default::default()
    };
    let files: Vec<FileEntry> = (1..=processes * EACH).map(file).collect();
    put(ImageKind::Files, 0, encode_all(ImageKind::Files, &files)?)?;

    let mut tree = Vec::new();
    for n in 0..processes {
        let (pid, first) = (n + 100, n * EACH + 1);
        // Ten children each.
        let ppid = if n == 0 { 0 } else { 100 + (n - 1) / 10 };
        tree.push(PstreeEntry { pid, ppid, pgid: 100, sid: 100, threads: vec![pid] });
        let tc = TaskCoreEntry { task_state: 1, comm: format!("worker-{n}").into_bytes(), ..Default::default() };
        let core = CoreEntry { mtype: core_entry::March::X8664 as i32, tc: Some(Box::new(tc)), ..Default::default() };
        put(ImageKind::Core, pid, encode_one(ImageKind::Core, &core)?)?;
        let ids =
            TaskKobjIdsEntry { vm_id: n + 1, files_id: n + 1, fs_id: n + 1, sighand_id: n + 1, ..Default::default() };
        put(ImageKind::Ids, pid, encode_one(ImageKind::Ids, &ids)?)?;
        let fds: Vec<FdinfoEntry> = (0..EACH)
            .map(|fd| FdinfoEntry { id: first + fd, flags: 0, r#type: FdTypes::Reg as i32, fd, ..Default::default() })
            .collect();
        put(ImageKind::Fdinfo, n + 1, encode_all(ImageKind::Fdinfo, &fds)?)?;
        put(
            ImageKind::Fs,
            pid,
            encode_one(ImageKind::Fs, &FsEntry { cwd_id: first, root_id: first, umask: Some(18) })?,
        )?;
        let place = |v: u32| 0x7f00_0000_0000 + u64::from(v) * 0x10_0000;
        let vma = |v: u32| VmaEntry {
            start: place(v),
            end: place(v) + 0x8_0000,
            prot: 3,
            flags: 0x22,
            status: 1 << 0 | 1 << 9,
            fd: -1,
            ..Default::default()
        };
        let mm = MmEntry { exe_file_id: first, vmas: (0..EACH).map(vma).collect(), ..Default::default() };
        put(ImageKind::Mm, pid, encode_one(ImageKind::Mm, &mm)?)?;
        let mut pagemap = Writer::new(Vec::new(), ImageKind::Pagemap)?;
        pagemap.entry(&PagemapHead { pages_id: n + 1 })?;
        for v in 0..EACH {
            let run = PagemapEntry { vaddr: place(v), nr_pages: Some(8), flags: Some(4), ..Default::default() };
            pagemap.entry(&run)?;
        }
        put(ImageKind::Pagemap, pid, pagemap.into_inner())?;
        let pages = std::fs::File::create(dir.join(ImageKind::Pages.file_name((n + 1).into())))?;
        pages.set_len(u64::from(EACH) * 8 * 4096)?;
    }
    put(ImageKind::Pstree, 0, encode_all(ImageKind::Pstree, &tree)?)?;
    let inventory = InventoryEntry { img_version: 2, fdinfo_per_id: Some(true), ..Default::default() };
    put(ImageKind::Inventory, 0, encode_one(ImageKind::Inventory, &inventory)?)?;
    Ok(())
}
