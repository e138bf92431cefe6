//! Memory of real child processes: what is seen, what is saved, what is refused.
//! A child is this test binary again: the test named by `--exact` plays the part that `CRUST_MEM_CHILD` names.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test speaks on its terminal")]
#![allow(unsafe_code, reason = "tests map and fill memory by hand")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]
use crust_engine::Watch;
use crust_engine::images::{Outlet, Source};
use crust_engine::memory::{self, FileIds, Mm, PagesDump, status};
use crust_engine::memory::{Images, MapFiles, Segments, SharedMemory, StageOptions};
use crust_engine::task::Target;
use crust_image::ImageKind;
use crust_image::proto::PagemapEntry;
use crust_image::proto::VmaEntry;
use crust_inject::plan::Program;
use crust_kernel::maps;
use crust_kernel::maps::Mapping;
use crust_kernel::procfs::ProcDir;
use crust_kernel::{HostTid, NsTid};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const PAGE: usize = 4096;

/// Files by number, as they come.
#[derive(Default)]
struct Ids(Vec<String>);

impl FileIds for Ids {
    fn map_file(&mut self, _: &Target<'_>, mapping: &Mapping) -> crust_engine::Result<u32> {
        self.0.push(String::from_utf8_lossy(&mapping.name).into_owned());
        Ok(self.0.len() as u32)
    }
    fn exe(&mut self, _: &Target<'_>) -> crust_engine::Result<u32> {
        Ok(1000)
    }
}

struct Held {
    child: Child,
    numbers: Vec<u64>,
}

impl Held {
    fn new(part: &str) -> Self {
        let held = Self::running(part, &[]);
        // Tasks are frozen when they are looked at.
        held.stop();
        held
    }

    fn running(part: &str, env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "plays_a_part", "--nocapture", "--test-threads=1"])
            .env("CRUST_MEM_CHILD", part)
            .envs(env.iter().copied())
            // The test's plan does not unregister rseq, as a real restore does.
            .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        let line = loop {
            let line = lines.next().expect("the child says its addresses").unwrap();
            if let Some(at) = line.find("addresses:") {
                break line[at + 10..].to_owned();
            }
        };
        let numbers = line.split_whitespace().map(|w| w.parse().unwrap()).collect();
        Self { child, numbers }
    }

    fn stop(&self) {
        rustix::process::kill_process(pid_of(&self.child), rustix::process::Signal::STOP).unwrap();
        let pid = HostTid::new(self.child.id() as i32).unwrap();
        let stopped = |tid| {
            let dir = ProcDir::open_thread(pid, tid).unwrap();
            crust_kernel::procfs::Stat::parse(&dir.read("stat").unwrap()).unwrap().state == b'T'
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !proc_of(pid.as_raw()).threads().unwrap().into_iter().all(stopped) {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn with<T>(&self, f: impl FnOnce(&Target<'_>) -> T) -> T {
        let raw = self.child.id() as i32;
        let pid = HostTid::new(raw).unwrap();
        let proc = ProcDir::open(pid).unwrap();
        let pidfd = rustix::process::pidfd_open(pid_of(&self.child), rustix::process::PidfdFlags::empty()).unwrap();
        f(&Target { pid, ns_pid: NsTid::new(raw).unwrap(), proc: &proc, pidfd: pidfd.as_fd() })
    }

    fn collect(&self) -> Mm {
        self.with(|t| memory::collect(t, &mut Ids::default()).unwrap())
    }

    fn dump(&self, mm: &Mm, dir: &str) -> (PagesDump, Vec<u8>) {
        let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
        let file = rustix::fs::open(dir, flags, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let mut out = Outlet::from(std::fs::File::from(file.try_clone().unwrap()));
        let dump = self.with(|t| memory::dump_pages(t.proc, mm, &mut out).unwrap());
        let mut bytes = Vec::new();
        std::fs::File::from(file).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), dump.written as usize * PAGE);
        (dump, bytes)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn pid_of(child: &Child) -> rustix::process::Pid {
    rustix::process::Pid::from_child(child)
}

/// The saved bytes of a page, if it was saved.
fn saved(entries: &[PagemapEntry], bytes: &[u8], addr: u64) -> Option<Vec<u8>> {
    let mut at = 0;
    for e in entries {
        let len = e.nr_pages.unwrap() as usize * PAGE;
        if (e.vaddr..e.vaddr + len as u64).contains(&addr) {
            let from = at + (addr - e.vaddr) as usize;
            return Some(bytes[from..from + PAGE].to_vec());
        }
        at += len;
    }
    None
}

fn map(len: usize, prot: i32, flags: i32, fd: i32) -> *mut u8 {
    // SAFETY: new memory where the kernel likes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANON: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

fn noise(seed: u64) -> impl Iterator<Item = u64> {
    let mut x = seed | 1;
    std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    })
}

fn fill(at: *mut u8, len: usize, seed: u64) {
    // SAFETY: the caller mapped `len` writable bytes at `at`, aligned to pages.
    let words = unsafe { std::slice::from_raw_parts_mut(at.cast::<u64>(), len / 8) };
    words.iter_mut().zip(noise(seed)).for_each(|(w, n)| *w = n);
}

/// Not a test of its own: what the child processes do.
#[test]
fn plays_a_part() {
    let Ok(part) = std::env::var("CRUST_MEM_CHILD") else { return };
    let mut say = Vec::new();
    match part.as_str() {
        "sorts" => {
            let anon = map(16 * PAGE, RW, ANON, -1);
            fill(anon, 2 * PAGE, 1);
            // SAFETY: own memory: page 4 gets zeros, page 6 is only read (the zero page), page 8 loses all permissions.
            unsafe {
                anon.add(4 * PAGE).write(0);
                anon.add(6 * PAGE).read_volatile();
                fill(anon.add(8 * PAGE), PAGE, 8);
                assert_eq!(libc::mprotect(anon.add(8 * PAGE).cast(), PAGE, libc::PROT_NONE), 0);
                assert_eq!(libc::madvise(anon.add(12 * PAGE).cast(), PAGE, libc::MADV_DONTFORK), 0);
            }
            say.push(anon as u64);
            let shared = map(8 * PAGE, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
            fill(shared, PAGE, 3);
            say.push(shared as u64);
            let exe = std::fs::File::open("/proc/self/exe").unwrap();
            let file = map(4 * PAGE, RW, libc::MAP_PRIVATE, std::os::fd::AsRawFd::as_raw_fd(&exe));
            fill(file.wrapping_add(2 * PAGE), PAGE, 5);
            say.push(file as u64);
            let guarded = map(8 * PAGE, RW, ANON, -1);
            fill(guarded, 8 * PAGE, 6);
            // SAFETY: own memory; an old kernel says no, and the test looks at the answer.
            say.push(unsafe { libc::madvise(guarded.add(2 * PAGE).cast(), 2 * PAGE, 102) } as u64);
            say.push(guarded as u64);
            let locked = map(4 * PAGE, RW, ANON, -1);
            fill(locked, PAGE, 9);
            let (named, sealed) = (map(4 * PAGE, RW, ANON, -1), map(4 * PAGE, RW, ANON, -1));
            fill(sealed, PAGE, 10);
            // SAFETY: own memory, which stays as it is. Kernels that lack a call say no: then both processes lack it.
            unsafe {
                libc::syscall(libc::SYS_mlock2, locked, PAGE, libc::MLOCK_ONFAULT);
                libc::mlock(locked.add(2 * PAGE).cast(), PAGE);
                libc::prctl(libc::PR_SET_VMA, libc::PR_SET_VMA_ANON_NAME, named, 2 * PAGE, c"crust test".as_ptr());
                libc::syscall(462, sealed, 2 * PAGE, 0);
            }
        }
        "big" | "holes" => {
            let len = 40 << 20;
            let at = map(len, RW, ANON, -1);
            fill(at, len, 77);
            if part == "holes" {
                for page in (0..len / PAGE).filter(|p| p % 7 == 0 || (p / 600) % 3 == 0) {
                    // SAFETY: own memory, inside the mapping.
                    unsafe { at.add(page * PAGE).write_bytes(0, PAGE) };
                }
            }
            say.push(at as u64);
        }
        "ring" => {
            let mut params = [0u8; 120];
            // SAFETY: io_uring_setup writes its 120 bytes of parameters; the ring is then mapped by its descriptor.
            let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
            say.push(fd as u64);
            if fd >= 0 {
                map(PAGE, RW, libc::MAP_SHARED | libc::MAP_POPULATE, fd as i32);
            }
        }
        "restorer" => {
            let dir = std::env::var("CRUST_MEM_IMAGES").unwrap();
            let park_all = std::env::var_os("CRUST_MEM_PARK").is_some();
            // SAFETY: the child goes on with this thread alone, and ends in the plan.
            match unsafe { libc::fork() } {
                0 => {
                    if let Err(error) = rebuild(&dir, park_all) {
                        eprintln!("{error}");
                    }
                    // SAFETY: nothing of the forked test harness may run on.
                    unsafe { libc::_exit(1) };
                }
                pid => say.push(pid as u64),
            }
        }
        other => panic!("no part {other}"),
    }
    let text: Vec<String> = say.iter().map(u64::to_string).collect();
    writeln!(std::io::stdout(), "addresses: {}", text.join(" ")).unwrap();
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn sees_and_saves_every_sort() {
    let held = Held::new("sorts");
    let mm = held.collect();
    let (dump, bytes) = held.dump(&mm, "/dev/shm");
    let [anon, shared, file, guard_rc, guarded] = held.numbers[..] else { panic!("five numbers") };
    let at = |addr: u64| mm.vmas.iter().find(|v| v.entry.start <= addr && addr < v.entry.end).unwrap();
    let page = |base: u64, n: u64| saved(&dump.entries, &bytes, base + n * PAGE as u64);
    let first = |seed| noise(seed).next().unwrap().to_ne_bytes();

    assert!(at(anon).is(status::REGULAR | status::ANON_PRIVATE));
    assert_eq!(page(anon, 0).unwrap()[..8], first(1));
    assert!(page(anon, 1).is_some() && page(anon, 2).is_none());
    assert_eq!(page(anon, 4), None, "a page of zeros is not saved");
    assert_eq!(page(anon, 6), None, "the zero page is not saved");
    assert!(dump.zero >= 1);
    assert_eq!(at(anon + 8 * PAGE as u64).entry.prot, 0);
    assert_eq!(page(anon, 8).unwrap()[..8], first(8), "memory without permissions is saved too");
    assert_eq!(at(anon + 12 * PAGE as u64).entry.madv, Some(1 << libc::MADV_DONTFORK));

    assert!(at(shared).is(status::REGULAR | status::ANON_SHARED) && at(shared).entry.shmid != 0);
    assert_eq!(page(shared, 0), None, "shared memory is saved once for the whole tree, not here");

    assert!(at(file).is(status::FILE_PRIVATE) && at(file).entry.shmid > 0);
    assert_eq!(page(file, 2).unwrap()[..8], first(5));
    assert!(page(file, 0).is_none() && page(file, 1).is_none(), "only copied pages of a file are saved");

    if guard_rc == 0 {
        assert_eq!(mm.guards, [(guarded + 2 * PAGE as u64, guarded + 4 * PAGE as u64)]);
        assert!(page(guarded, 1).is_some() && page(guarded, 2).is_none() && page(guarded, 4).is_some());
    }

    let record = mm.record();
    assert!(record.vmas.iter().any(|v| v.status & status::VDSO != 0));
    assert_eq!(record.vmas.iter().filter(|v| v.status & status::VVAR != 0).count(), 1);
    assert!(record.vmas.iter().any(|v| v.status & status::HEAP != 0));
    assert!(record.mm_start_stack > record.mm_start_code && record.mm_arg_end > record.mm_arg_start);
    assert!(record.mm_saved_auxv.chunks(2).any(|p| p[0] == 33), "AT_SYSINFO_EHDR");
    assert_eq!((record.exe_file_id, record.thp_disabled), (1000, Some(false)));
    let vdso = record.vmas.iter().find(|v| v.status & status::VDSO != 0).unwrap();
    assert_eq!(saved(&dump.entries, &bytes, vdso.start).unwrap()[..4], *b"\x7fELF");
    assert!(dump.entries.is_sorted_by(|a, b| a.vaddr + a.nr_pages.unwrap() * PAGE as u64 <= b.vaddr));
}

fn whole_content(part: &str, dir: &str) {
    let held = Held::new(part);
    let mm = held.collect();
    let (dump, bytes) = held.dump(&mm, dir);
    let mut expected = noise(77);
    let mut zeros = 0;
    for page in 0..(40u64 << 20) / PAGE as u64 {
        let mut want: Vec<u8> = expected.by_ref().take(PAGE / 8).flat_map(u64::to_ne_bytes).collect();
        if part == "holes" && (page % 7 == 0 || (page / 600) % 3 == 0) {
            want.fill(0);
            zeros += 1;
        }
        let got = saved(&dump.entries, &bytes, held.numbers[0] + page * PAGE as u64);
        if want.iter().all(|&b| b == 0) {
            assert_eq!(got, None, "page {page}");
        } else {
            assert!(got.as_ref() == Some(&want), "page {page}");
        }
    }
    assert!(dump.zero >= zeros);
}

#[test]
fn large_memory_into_tmpfs() {
    whole_content("big", "/dev/shm");
}

#[test]
fn large_memory_into_another_file_system() {
    whole_content("big", env!("CARGO_TARGET_TMPDIR"));
}

#[test]
fn zeros_shift_what_follows_on_tmpfs() {
    whole_content("holes", "/dev/shm");
}

#[test]
fn zeros_shift_what_follows_elsewhere() {
    whole_content("holes", env!("CARGO_TARGET_TMPDIR"));
}

#[test]
fn refuses_what_cannot_come_back_by_name() {
    let held = Held::new("ring");
    if held.numbers[0] as i64 <= 0 {
        return; // this kernel has no io_uring
    }
    let error = held.with(|t| memory::collect(t, &mut Ids::default())).unwrap_err();
    assert_eq!(error.kind(), crust_engine::Kind::Unsupported);
    let text = error.to_string();
    assert!(text.contains("io_uring") && text.contains("mapping 0x") && text.contains("help: close"), "{text}");
}

#[test]
fn pages_of_parents_show_through() {
    use crust_engine::memory::Pages;
    use crust_image::proto::PagemapHead;
    let dir = scratch("parents");
    let write = |at: &Path, entries: &[(u64, u64, u32)], pages: usize| {
        std::fs::create_dir_all(at).unwrap();
        let mut out = crust_image::Writer::new(Vec::new(), ImageKind::Pagemap).unwrap();
        out.entry(&PagemapHead { pages_id: 1 }).unwrap();
        for &(vaddr, nr_pages, flags) in entries {
            let entry = PagemapEntry { vaddr, flags: Some(flags), nr_pages: Some(nr_pages), ..Default::default() };
            out.entry(&entry).unwrap();
        }
        std::fs::write(at.join("pagemap-7.img"), out.into_inner()).unwrap();
        std::fs::write(at.join("pages-1.img"), vec![1; pages * PAGE]).unwrap();
    };
    let open = |at: &Path| {
        Source::open_dir(rustix::fs::open(at, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap())
            .unwrap()
    };
    let (old, middle, new) = (dir.join("old"), dir.join("middle"), dir.join("new"));
    let page = PAGE as u64;
    let (parent, present) = (1, 4);
    write(&old, &[(0x10000, 8, present)], 8);
    write(&middle, &[(0x10000, 2, parent), (0x12000, 1, present), (0x13000, 5, parent)], 1);
    write(&new, &[(0x11000, 3, parent), (0x20000, 1, present)], 1);
    std::os::unix::fs::symlink("../old", middle.join("parent")).unwrap();
    std::os::unix::fs::symlink("../middle", new.join("parent")).unwrap();
    let merged = Pages::read(&open(&new), ImageKind::Pagemap, 7).unwrap();
    // What a page's bytes are: the directory (0 the newest), its place there.
    assert_eq!(
        merged.places(),
        [
            (0x11000, 0x12000, 2, page),
            (0x12000, 0x13000, 1, 0),
            (0x13000, 0x14000, 2, 3 * page),
            (0x20000, 0x21000, 0, 0),
        ]
    );
    assert_eq!(merged.bytes(), 4 * page);

    // A page that the parent should have and does not have.
    write(&new, &[(0x18000, 1, parent)], 0);
    let error = Pages::read(&open(&new), ImageKind::Pagemap, 7).unwrap_err();
    assert!(error.to_string().contains("0x18000 should be in the parent"), "{error}");
    // Overlapping records, too few bytes, no parent at all.
    write(&old, &[(0x10000, 8, present), (0x17000, 1, present)], 9);
    assert!(Pages::read(&open(&old), ImageKind::Pagemap, 7).unwrap_err().to_string().contains("out of order"));
    write(&old, &[(0x10000, 8, present)], 7);
    assert!(Pages::read(&open(&old), ImageKind::Pagemap, 7).unwrap_err().to_string().contains("lists"));
    write(&old, &[(0x10000, 8, parent)], 0);
    assert!(Pages::read(&open(&old), ImageKind::Pagemap, 7).unwrap_err().to_string().contains("no parent link"));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn full_ranges_come_back_as_huge_pages() {
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if !setting.contains("[madvise]") && !setting.contains("[always]") {
        return;
    }
    let held = Held::new("big");
    let huge = round_trip(&held, &scratch("huge"), false);
    // 40 MiB at any address hold 19 whole huge pages. Three are made whatever they cost, more as long as they come cheap; a
    // busy machine may refuse one.
    assert!(huge >= 2 * 2048, "{huge} KiB");
}

/// Opens files by the names that the dump noted.
struct Paths(HashMap<u32, String>);

impl MapFiles for Paths {
    fn open(&mut self, vma: &VmaEntry) -> crust_engine::Result<std::os::fd::OwnedFd> {
        let flags = rustix::fs::OFlags::from_bits_retain(vma.fdflags.unwrap_or(0));
        Ok(rustix::fs::open(&self.0[&(vma.shmid as u32)], flags, rustix::fs::Mode::empty()).unwrap())
    }
    fn exe(&mut self, id: u32) -> crust_engine::Result<std::os::fd::OwnedFd> {
        Ok(rustix::fs::open(&self.0[&id], rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap())
    }
}

/// Becomes the program in `dir`, up to a pause where it would go on.
fn rebuild(dir: &str, park_all: bool) -> crust_engine::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let flags = rustix::fs::OFlags::DIRECTORY;
    let source = Source::open_dir(rustix::fs::open(dir, flags, rustix::fs::Mode::empty()).unwrap())?;
    let images = Images::read(&source, 1)?;
    let names = std::fs::read_to_string(format!("{dir}/names")).unwrap();
    let names = names.lines().map(|l| l.split_once(' ').unwrap()).map(|(n, p)| (n.parse().unwrap(), p.to_owned()));
    let segments = Segments::create(&source, [&images], &Watch::default())?;
    let mut occupied = images.occupied();
    occupied.extend(memory::layout::busy(&memory::layout::own()?));
    let boot_len = 64 << 20;
    let boot = memory::layout::find_hole(&memory::layout::merged(occupied), boot_len, 2 << 20).unwrap();
    let prot = RW | libc::PROT_EXEC;
    // SAFETY: a hole.
    let at = unsafe { libc::mmap(boot as *mut _, boot_len as usize, prot, ANON | libc::MAP_FIXED_NOREPLACE, -1, 0) };
    assert_eq!(at as u64, boot);
    let keep = [(boot, boot + boot_len)];
    let mut paths = Paths(names.collect());
    let held = memory::Held::default();
    let staged = memory::stage(
        &source,
        &images,
        &segments,
        &mut paths,
        &keep,
        &held,
        StageOptions { park_all, ..Default::default() },
    )?;
    let mut program = Program::new();
    let plan = program.plan("task");
    staged.plan(&mut program, plan, &keep);
    for _ in 0..1000 {
        program.syscall_expect(plan, "pause", libc::SYS_pause, &[], crust_inject::plan::Expect::Any);
    }
    let code = crust_inject::arch::interp::code();
    let linked = program.link(boot + 8192);
    assert!(code.len() < 8192 && linked.bytes.len() < boot_len as usize - 8192);
    // SAFETY: the boot area was mapped above for these bytes; this process has one thread and nothing it needs.
    unsafe {
        std::ptr::copy_nonoverlapping(code.as_ptr(), boot as *mut u8, code.len());
        std::ptr::copy_nonoverlapping(linked.bytes.as_ptr(), (boot + 8192) as *mut u8, linked.bytes.len());
        crust_inject::arch::interp::enter(boot, linked.headers[plan.index()])
    }
}

fn proc_of(pid: i32) -> ProcDir {
    ProcDir::open(HostTid::new(pid).unwrap()).unwrap()
}

/// Dumps `pid` into `dir`, rebuilds it in another process, and compares the two from outside. Returns the copy's huge pages,
/// in KiB.
fn round_trip(held: &Held, dir: &Path, park_all: bool) -> u64 {
    let _stale_is_fine = std::fs::remove_dir_all(dir);
    std::fs::create_dir_all(dir).unwrap();
    let pid = held.child.id() as i32;
    let mut ids = Ids::default();
    let mm = held.with(|t| memory::collect(t, &mut ids)).unwrap();
    let create =
        |name: &str| std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(dir.join(name)).unwrap();
    std::fs::write(dir.join("mm-1.img"), crust_image::encode_one(ImageKind::Mm, &mm.record()).unwrap()).unwrap();
    let dump = held.with(|t| memory::dump_pages(t.proc, &mm, &mut Outlet::from(create("pages-1.img")))).unwrap();
    std::fs::write(dir.join("pagemap-1.img"), dump.pagemap(ImageKind::Pagemap, 1).unwrap()).unwrap();
    let mut shared = SharedMemory::default();
    held.with(|t| shared.collect(t, &mm)).unwrap();
    for (n, id) in shared.ids().into_iter().enumerate() {
        let pages_id = n as u32 + 2;
        let dump = shared.dump(id, &mut Outlet::from(create(&format!("pages-{pages_id}.img")))).unwrap();
        let kind = ImageKind::ShmemPagemap;
        std::fs::write(dir.join(kind.file_name(id)), dump.pagemap(kind, pages_id).unwrap()).unwrap();
    }
    let mut names: String = ids.0.iter().enumerate().map(|(i, name)| format!("{} {name}\n", i + 1)).collect();
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    names.push_str(&format!("1000 {}\n", exe.display()));
    std::fs::write(dir.join("names"), names).unwrap();

    let dir_text = dir.to_str().unwrap();
    let mut env = vec![("CRUST_MEM_IMAGES", dir_text)];
    if park_all {
        env.push(("CRUST_MEM_PARK", "1"));
    }
    let restorer = Held::running("restorer", &env);
    let copy = restorer.numbers[0] as i32;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let text = std::fs::read_to_string(format!("/proc/{copy}/syscall")).unwrap_or_default();
        if text.starts_with(&format!("{} ", libc::SYS_pause)) {
            break;
        }
        assert!(Path::new(&format!("/proc/{copy}/mem")).exists() && std::time::Instant::now() < deadline, "{text}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    compare(pid, copy);
    let smaps = maps::read_smaps(&proc_of(copy)).unwrap();
    let huge = smaps.iter().map(|m| m.detail.unwrap().anon_huge_kib).sum();
    assert_eq!(std::fs::read_link(format!("/proc/{copy}/exe")).unwrap(), exe);
    let stat = |pid| crust_kernel::procfs::Stat::parse(&proc_of(pid).read("stat").unwrap()).unwrap();
    let (a, b) = (stat(pid), stat(copy));
    assert_eq!(
        (a.start_code, a.end_data, a.start_stack, a.start_brk),
        (b.start_code, b.end_data, b.start_stack, b.start_brk)
    );
    assert_eq!((a.arg_start, a.env_end), (b.arg_start, b.env_end));
    assert_eq!(proc_of(pid).read("auxv").unwrap(), proc_of(copy).read("auxv").unwrap());
    assert_eq!(proc_of(pid).read("cmdline").unwrap(), proc_of(copy).read("cmdline").unwrap());
    drop(restorer);
    std::fs::remove_dir_all(dir).unwrap();
    huge
}

fn compare(pid: i32, copy: i32) {
    let a = maps::read_smaps(&proc_of(pid)).unwrap();
    let mut b = maps::read_smaps(&proc_of(copy)).unwrap();
    // What the test's plan runs in.
    b.retain(|m| !(m.read && m.write && m.exec));
    let line = |m: &Mapping| {
        // Shared segments are new inodes.
        let inode = if m.name.starts_with(b"/dev/zero") { 0 } else { m.inode };
        let kept = {
            let mut flags = m.detail.unwrap().flags;
            flags.forget(maps::VmFlag::SoftDirty);
            // Sticks to what was once merged with a guarded mapping.
            flags.forget(maps::VmFlag::MaybeGuard);
            flags
        };
        format!(
            "{:x}-{:x} {}{}{}{} {:x} {inode} {} {kept:?}",
            m.start,
            m.end,
            m.read,
            m.write,
            m.exec,
            m.shared,
            m.offset,
            String::from_utf8_lossy(&m.name)
        )
    };
    let (left, right): (Vec<_>, Vec<_>) = (a.iter().map(line).collect(), b.iter().map(line).collect());
    for (l, r) in left.iter().zip(&right) {
        assert_eq!(l, r);
    }
    assert_eq!(left.len(), right.len());
    let (from, to) = (proc_of(pid).open_file("mem").unwrap(), proc_of(copy).open_file("mem").unwrap());
    let mut pages = (vec![0; PAGE], vec![0; PAGE]);
    for m in a.iter().filter(|m| m.end < 1 << 47 && !m.name.starts_with(b"[vvar")) {
        for at in (m.start..m.end).step_by(PAGE) {
            let read = |fd: &std::os::fd::OwnedFd, into: &mut [u8]| crust_kernel::mman::read_mem(fd.as_fd(), at, into);
            let left = read(&from, &mut pages.0);
            assert_eq!(left, read(&to, &mut pages.1), "{at:#x} of {}", String::from_utf8_lossy(&m.name));
            if left.is_ok() {
                assert!(pages.0 == pages.1, "{at:#x} of {}", String::from_utf8_lossy(&m.name));
            }
        }
    }
}

fn scratch(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("memory-{name}-{}", std::process::id()))
}

#[test]
fn every_sort_comes_back_in_place() {
    round_trip(&Held::new("sorts"), &scratch("place"), false);
}

#[test]
fn every_sort_comes_back_parked() {
    round_trip(&Held::new("sorts"), &scratch("parked"), true);
}

#[test]
fn much_memory_comes_back() {
    round_trip(&Held::new("holes"), &scratch("much"), false);
}

#[test]
fn much_memory_comes_back_parked() {
    round_trip(&Held::new("holes"), &scratch("much-parked"), true);
}

#[test]
fn another_executable_comes_back() {
    let child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let pid = child.id() as i32;
    let held = Held { child, numbers: Vec::new() };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !std::fs::read_to_string(format!("/proc/{pid}/syscall"))
        .unwrap()
        .starts_with(&libc::SYS_clock_nanosleep.to_string())
    {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    held.stop();
    round_trip(&held, &scratch("sleep"), false);
    round_trip(&held, &scratch("sleep-parked"), true);
}
