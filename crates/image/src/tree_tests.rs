//! Tests of the views for people: a small checkpoint whose names are as hostile as names can be.
#![allow(clippy::unwrap_used, reason = "test code")]
use super::{html, tree, tree_json};
use crate::proto::{
    BpfmapFileEntry, CoreEntry, CrustMqueue, ExtFileEntry, FdTypes, FdinfoEntry, FileEntry, InetSkEntry,
    InventoryEntry, MmEntry, PagemapEntry, PagemapHead, PipeEntry, PstreeEntry, RegFileEntry, TaskCoreEntry,
    TaskKobjIdsEntry, UnixSkEntry, VmaEntry, core_entry,
};
use crate::{ImageKind, Writer, encode_all, encode_one};
use std::collections::BTreeMap;

/// A name that would end an attribute, begin a script, and turn a terminal red.
const NASTY: &str = "\"><script>alert(1)</script>\x1b[31m";

type Set = BTreeMap<String, Vec<u8>>;

fn core(comm: &str, state: u32) -> Vec<u8> {
    let tc = TaskCoreEntry { task_state: state, comm: comm.into(), ..Default::default() };
    let core = CoreEntry { mtype: core_entry::March::X8664 as i32, tc: Some(Box::new(tc)), ..Default::default() };
    encode_one(ImageKind::Core, &core).unwrap()
}

fn file(id: u32, ty: FdTypes) -> FileEntry {
    FileEntry { r#type: ty as i32, id, ..Default::default() }
}

fn files() -> Vec<FileEntry> {
    let reg = RegFileEntry { id: 1, name: NASTY.into(), ..Default::default() };
    let unix = |name: &[u8], state| UnixSkEntry { ino: 7, r#type: 1, state, name: name.into(), ..Default::default() };
    let inet = |proto, state| InetSkEntry {
        family: 2,
        proto,
        state,
        src_port: 80,
        src_addr: vec![0x0100_007f],
        dst_addr: vec![0],
        ..Default::default()
    };
    let map = BpfmapFileEntry { map_id: 26, map_name: "counts".into(), ..Default::default() };
    let queue = CrustMqueue { path: b"/jobs".into(), ..Default::default() };
    let queue = ExtFileEntry { crust_mqueue: Some(queue), ..Default::default() };
    vec![
        FileEntry { reg: Some(reg.into()), ..file(1, FdTypes::Reg) },
        FileEntry { usk: Some(unix(b"/run/x\0", 10).into()), ..file(2, FdTypes::Unixsk) },
        FileEntry { usk: Some(unix(b"\0hidden", 7).into()), ..file(3, FdTypes::Unixsk) },
        FileEntry { isk: Some(inet(6, 10).into()), ..file(4, FdTypes::Inetsk) },
        FileEntry { isk: Some(inet(17, 7).into()), ..file(5, FdTypes::Inetsk) },
        FileEntry {
            pipe: Some(Box::new(PipeEntry { pipe_id: 9, flags: 0, ..Default::default() })),
            ..file(6, FdTypes::Pipe)
        },
        FileEntry {
            pipe: Some(Box::new(PipeEntry { pipe_id: 9, flags: 1, ..Default::default() })),
            ..file(7, FdTypes::Pipe)
        },
        FileEntry { isk: Some(inet(262, 10).into()), ..file(8, FdTypes::Inetsk) },
        FileEntry { bpf: Some(map.into()), ..file(9, FdTypes::Bpfmap) },
        FileEntry { ext: Some(queue.into()), ..file(10, FdTypes::Ext) },
    ]
}

/// A parent in an IPC namespace of its own, with a child and a zombie.
fn checkpoint() -> Set {
    let mut set = Set::new();
    let mut put = |kind: ImageKind, id: u64, bytes: Vec<u8>| drop(set.insert(kind.file_name(id), bytes));
    let host = TaskKobjIdsEntry { ipc_ns_id: Some(1), net_ns_id: Some(2), ..Default::default() };
    let inventory = InventoryEntry { root_ids: Some(host), ..Default::default() };
    put(ImageKind::Inventory, 0, encode_one(ImageKind::Inventory, &inventory).unwrap());
    let entry = |pid, ppid, threads: &[u32]| PstreeEntry { pid, ppid, pgid: 10, sid: 10, threads: threads.into() };
    let pstree = [entry(10, 0, &[10, 13]), entry(11, 10, &[11]), entry(12, 10, &[12])];
    put(ImageKind::Pstree, 0, encode_all(ImageKind::Pstree, &pstree).unwrap());
    put(ImageKind::Core, 10, core(NASTY, 1));
    put(ImageKind::Core, 11, core("child", 1));
    put(ImageKind::Core, 12, core("gone", 2));
    let ids = TaskKobjIdsEntry { ipc_ns_id: Some(5), files_id: 1, ..host };
    put(ImageKind::Ids, 10, encode_one(ImageKind::Ids, &ids).unwrap());
    put(ImageKind::Files, 0, encode_all(ImageKind::Files, &files()).unwrap());
    let fds: Vec<FdinfoEntry> = files()
        .iter()
        .map(|f| FdinfoEntry { id: f.id, r#type: f.r#type, fd: f.id + 2, ..Default::default() })
        .collect();
    put(ImageKind::Fdinfo, 1, encode_all(ImageKind::Fdinfo, &fds).unwrap());
    let vma = |start, end, flags| VmaEntry { start, end, prot: 3, flags, status: 1, ..Default::default() };
    let vmas = vec![vma(0x1000, 0x5000, 0x22), vma(0x9000, 0xa000, 0x122)];
    let mm = MmEntry { exe_file_id: 1, vmas, ..Default::default() };
    put(ImageKind::Mm, 10, encode_one(ImageKind::Mm, &mm).unwrap());
    let mut pagemap = Writer::new(Vec::new(), ImageKind::Pagemap).unwrap();
    pagemap.entry(&PagemapHead { pages_id: 1 }).unwrap();
    let run = PagemapEntry { vaddr: 0x2000, compat_nr_pages: 1, flags: Some(4), ..Default::default() };
    pagemap.entry(&run).unwrap();
    put(ImageKind::Pagemap, 10, pagemap.into_inner());
    put(ImageKind::Pages, 1, vec![7; 4096]);
    set
}

#[test]
fn text_tells_what_each_thing_is() {
    let plain = tree(&checkpoint(), false).unwrap();
    assert!(plain.starts_with("3 processes, 4 threads, "), "{plain}");
    assert!(!plain.contains('\x1b'), "a checkpoint's names reach no terminal: {plain:?}");
    for line in [
        "2 threads, own namespaces: ipc\n",
        "memory 20 KiB in 2 mappings, 4 KiB saved\n",
        "fd 4   unix stream 7 at /run/x, listening\n",
        "fd 5   unix stream 7 at @hidden\n",
        "fd 6   TCP 127.0.0.1:80 LISTEN\n",
        "fd 7   UDP 127.0.0.1:80\n",
        "fd 8   pipe 9, read end\n",
        "fd 9   pipe 9, write end\n",
        "fd 10  MPTCP 127.0.0.1:80 LISTEN\n",
        "fd 11  BPF map 26 \"counts\"\n",
        "fd 12  message queue /jobs\n",
        "\n  11 child\n",
        "\n  12 gone zombie\n",
    ] {
        assert!(plain.contains(line), "{line:?} is not in\n{plain}");
    }
    let coloured = tree(&checkpoint(), true).unwrap();
    assert!(coloured.contains("\x1b[1;33m10\x1b[0m") && !coloured.contains("\x1b[31m\n"), "{coloured:?}");
}

#[test]
fn json_holds_the_same() {
    let json = tree_json(&checkpoint()).unwrap();
    let processes = json.get("processes").and_then(|p| p.as_array()).unwrap();
    let text = |at: usize, name: &str| processes.get(at).and_then(|p| p.get(name)).unwrap().to_line();
    assert_eq!(processes.len(), 3);
    assert_eq!(
        (text(0, "pid"), text(0, "saved_bytes"), text(2, "state")),
        ("10".into(), "4096".into(), "\"Zombie\"".into())
    );
    assert_eq!(text(0, "namespaces"), "[\"ipc\"]");
    assert!(text(0, "mappings").contains("\"what\": \"[stack]\""), "{}", text(0, "mappings"));
}

#[test]
fn page_needs_nothing_else_and_runs_nothing() {
    let page = html(&checkpoint()).unwrap();
    for outside in ["<script", "src=", "href=", "url(", "http:", "https:", "\x1b"] {
        assert!(!page.contains(outside), "{outside:?} is in {page}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{page}");
    assert_eq!(page.matches("<details").count(), page.matches("</details>").count());
    for part in ["child", "gone</b> <span class=\"dead\">Zombie", "own namespaces: ipc", "2 mappings", "10 descriptors"]
    {
        assert!(page.contains(part), "{part:?} is not in {page}");
    }
    // One mapping of which a quarter is saved, one of which nothing is.
    assert!(page.contains("height=\"11.50\"") && page.contains("height=\"0.00\""), "{page}");
}
