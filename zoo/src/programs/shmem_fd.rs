//! Anonymous shared memory that has a descriptor too (by /proc/self/map_files), a private mapping of it and a second shared
//! one: all show one segment.
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::SeqCst;
use zoo::mem::{Map, PAGE};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let shared = Map::shared(5 * PAGE);
    let word = |page: usize| page * PAGE / 8;
    for page in 0..3 {
        shared.word(word(page)).store(100 + page as u64, SeqCst);
    }
    let path = format!("/proc/self/map_files/{:x}-{:x}", shared.addr(), shared.addr() + shared.len() as u64);
    let file = match File::options().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(e) => zoo.skip(&format!("{path}: {e}")),
    };
    let (rw, len) = (libc::PROT_READ | libc::PROT_WRITE, 3 * PAGE);
    let private = Map::new(len, rw, libc::MAP_PRIVATE, Some((file.as_fd(), PAGE as i64)));
    private.word(word(1)).store(22, SeqCst);
    let second = Map::new(len, rw, libc::MAP_SHARED, Some((file.as_fd(), 2 * PAGE as i64)));
    let member = zoo.fork("child", |mut zoo| {
        while zoo.gap() {
            let n = u64::from(zoo.round());
            zoo.eq("the child sees what the parent wrote", zoo.hear(&format!("wrote.{n}")).is_some(), true);
            zoo.eq("page 4", shared.word(word(4)).load(SeqCst), 1000 + n);
        }
    });
    while zoo.gap() {
        let n = u64::from(zoo.round());
        shared.word(word(4)).store(1000 + n, SeqCst);
        zoo.tell(&format!("wrote.{n}"), "");
        zoo.eq("page 1 in the private mapping", private.word(word(0)).load(SeqCst), 101);
        zoo.eq("what is the private mapping's own", private.word(word(1)).load(SeqCst), 22);
        let want = if n == 1 { 102 } else { 332 + n };
        zoo.eq("page 2 in the second mapping", second.word(word(0)).load(SeqCst), want);
        second.word(word(0)).store(333 + n, SeqCst);
        zoo.eq("page 2 in the first", shared.word(word(2)).load(SeqCst), 333 + n);
        shared.word(word(3)).store(444 + n, SeqCst);
        zoo.eq("page 3 in the private mapping", private.word(word(2)).load(SeqCst), 444 + n);
        let mut bytes = [0; 8];
        zoo.ok("read", file.read_exact_at(&mut bytes, 3 * PAGE as u64).is_ok());
        zoo.eq("page 3 by the descriptor", u64::from_ne_bytes(bytes), 444 + n);
    }
    zoo::must(zoo::sys::waitpid(member));
}
