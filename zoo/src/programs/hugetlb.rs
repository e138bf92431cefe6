//! Huge pages of hugetlbfs: private, shared with a child, and a memfd with a shared and a private mapping.
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::{AsFd, OwnedFd};
use zoo::mem::{Map, PAGE, fill, holds, vmas_of};

/// Pages of the pool that the program and its restore take, with some to spare.
const NEEDED: u64 = 14;

/// The size of the pool's pages and how many are free.
fn pool() -> Option<(usize, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let number = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let free = number("HugePages_Free:")?.checked_sub(number("HugePages_Rsvd:")?)?;
    Some((number("Hugepagesize:")? as usize * 1024, free))
}

fn page(map: &Map, at: usize) -> &[u8] {
    &map.bytes()[at..at + PAGE]
}

struct Memory {
    huge: usize,
    private: Map,
    shared: Map,
    file: OwnedFd,
    of_file: Map,
    copy: Map,
}

impl Memory {
    fn new(huge: usize) -> std::io::Result<Self> {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        let anonymous = libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
        let file = rustix::fs::memfd_create("huge zoo", MemfdFlags::HUGETLB | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, 2 * huge as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK)?;
        let mut m = Self {
            huge,
            private: Map::new(2 * huge, rw, libc::MAP_PRIVATE | anonymous, None),
            shared: Map::new(2 * huge, rw, libc::MAP_SHARED | anonymous, None),
            of_file: Map::new(2 * huge, rw, libc::MAP_SHARED, Some((file.as_fd(), 0))),
            copy: Map::new(2 * huge, rw, libc::MAP_PRIVATE, Some((file.as_fd(), 0))),
            file,
        };
        fill(&mut m.private.bytes_mut()[..huge], 1);
        fill(&mut m.private.bytes_mut()[2 * huge - PAGE..], 2);
        fill(&mut m.shared.bytes_mut()[huge - PAGE..huge], 3);
        fill(&mut m.of_file.bytes_mut()[..PAGE], 4);
        fill(&mut m.of_file.bytes_mut()[huge..huge + PAGE], 5);
        fill(&mut m.copy.bytes_mut()[..PAGE], 6);
        m.private.protect(0, huge, libc::PROT_READ);
        Ok(m)
    }

    /// `last`: what the last page of the private memory holds here.
    fn check(&self, zoo: &mut zoo::Zoo, last: u64) {
        let huge = self.huge;
        zoo.ok("private", holds(&self.private.bytes()[..huge], 1));
        zoo.ok("private, last page", holds(page(&self.private, 2 * huge - PAGE), last));
        zoo.ok("private, the rest", self.private.bytes()[huge..2 * huge - PAGE].iter().all(|&b| b == 0));
        zoo.ok("shared", holds(page(&self.shared, huge - PAGE), 3));
        zoo.ok("shared, the rest", self.shared.bytes()[..huge - PAGE].iter().all(|&b| b == 0));
        zoo.ok("memfd", holds(page(&self.of_file, 0), 4) && holds(page(&self.of_file, huge), 5));
        zoo.ok("its copy", holds(page(&self.copy, 0), 6) && holds(page(&self.copy, huge), 5));
        for map in [&self.private, &self.shared, &self.of_file, &self.copy] {
            let vmas = vmas_of(map);
            zoo.ok("huge pages", !vmas.is_empty() && vmas.iter().all(|v| v.flags.split(' ').any(|f| f == "ht")));
        }
        let perms: Vec<String> = vmas_of(&self.private).into_iter().map(|v| v.perms).collect();
        zoo.eq("protection", perms.join(" ").as_str(), "r--p rw-p");
        let stat = rustix::fs::fstat(&self.file);
        zoo.eq("size", stat.map(|s| s.st_size as usize), Ok(2 * huge));
        zoo.eq("seals", rustix::fs::fcntl_get_seals(&self.file), Ok(SealFlags::SHRINK));
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Some((huge, free)) = pool() else { zoo.skip("this kernel has no huge pages") };
    if free < NEEDED {
        zoo.skip(&format!("{free} huge pages are free and {NEEDED} are needed (/proc/sys/vm/nr_hugepages)"));
    }
    let mut m = zoo::must(Memory::new(huge));
    zoo.fork("child", |mut zoo| {
        fill(&mut m.private.bytes_mut()[2 * huge - PAGE..], 20);
        while zoo.gap() {
            m.check(&mut zoo, 20);
            let n = zoo.round();
            zoo.ok("the parent writes", zoo.hear(&format!("written.{n}")).is_some());
            zoo.ok("what it wrote is here", holds(page(&m.shared, huge), 100 + u64::from(n)));
        }
    });
    while zoo.gap() {
        m.check(&mut zoo, 2);
        let n = zoo.round();
        fill(&mut m.shared.bytes_mut()[huge..huge + PAGE], 100 + u64::from(n));
        zoo.tell(&format!("written.{n}"), "");
    }
}
