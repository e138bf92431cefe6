//! A 32-bit program with threads as the child of a 64-bit one, and a 64-bit one as its child: registers, segments, handlers,
//! an alternate stack, lists of robust futexes, a queued signal.
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use zoo::i386::{self as elf, ANSWERED, CORRUPT, COUNT_CHILD, COUNT_MAIN, COUNT_USR1, EINTR, GO, READY, VALUE};
use zoo::mem::{Map, PAGE};

const LIMIT: Duration = Duration::from_secs(60);

/// The 32-bit program and the page that it counts on.
pub(super) struct Program {
    page: Map,
    child: Child,
}

impl Drop for Program {
    fn drop(&mut self) {
        zoo::must(self.child.kill());
        zoo::must(self.child.wait());
    }
}

impl Program {
    /// Starts it, and waits until it is at work.
    pub(super) fn start(zoo: &zoo::Zoo, mode: &str) -> Self {
        let (file, page) = (zoo.path("i386"), zoo.path("page"));
        zoo::must(std::fs::write(&file, elf::file()));
        zoo::must(std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)));
        zoo::must(std::fs::write(&page, [0; PAGE]));
        let me = zoo::must(std::env::current_exe());
        let mut command = Command::new("./i386");
        command.arg(&page).arg(mode).arg(me).args(["i386", "."]).arg(&page);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(e) if e.raw_os_error() == Some(libc::ENOEXEC) => zoo.skip("this kernel runs no 32-bit programs"),
            Err(e) => panic!("the 32-bit program does not start: {e}"),
        };
        let program = Self { page: open(&page), child };
        let end = Instant::now() + LIMIT;
        while program.get(READY) == 0 {
            assert!(Instant::now() < end, "the 32-bit program does not come to work");
            std::thread::sleep(Duration::from_millis(2));
        }
        program
    }

    fn word(&self, i: usize) -> &AtomicU64 {
        self.page.word(i)
    }

    pub(super) fn get(&self, i: usize) -> u64 {
        self.word(i).load(SeqCst)
    }

    fn queue(&self, signal: i32) {
        zoo::must(zoo::sys::queue_to(self.child.id() as i32, signal, VALUE));
    }

    /// Waits until a word is larger than that.
    pub(super) fn exceeds(&self, i: usize, before: u64) -> bool {
        let end = Instant::now() + LIMIT;
        while self.get(i) <= before {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }
}

fn open(page: &std::path::Path) -> Map {
    use std::os::fd::AsFd;
    let file = zoo::must(std::fs::File::options().read(true).write(true).open(page));
    Map::new(PAGE, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, Some((file.as_fd(), 0)))
}

/// The 64-bit program that the 32-bit one starts: it counts, until it is an orphan.
fn grandchild(page: &std::path::Path) {
    let (page, parent) = (open(page), rustix::process::getppid());
    while rustix::process::getppid() == parent {
        page.word(COUNT_CHILD).fetch_add(1, SeqCst);
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(super) fn main() {
    if let Some(page) = std::env::args_os().nth(3) {
        return grandchild(page.as_ref());
    }
    let mut zoo = zoo::Zoo::start();
    let program = Program::start(&zoo, "z");
    // Before that it may not be the other program yet.
    zoo.ok("the 64-bit child comes to work", program.exceeds(COUNT_CHILD, 0));
    loop {
        program.queue(libc::SIGUSR2);
        if !zoo.gap() {
            return;
        }
        program.word(GO).store(u64::from(zoo.round()), SeqCst);
        let before: Vec<u64> = (COUNT_MAIN..=COUNT_CHILD).map(|i| program.get(i)).collect();
        program.queue(libc::SIGUSR1);
        for (i, count) in (COUNT_MAIN..).zip(before) {
            zoo.ok(&format!("{i} goes on"), program.exceeds(i, count));
        }
        zoo.ok("the queued signal was there", program.exceeds(ANSWERED, u64::from(zoo.round()) - 1));
        zoo.eq("what the 32-bit program found wrong", program.get(CORRUPT), 0);
        zoo.eq("interrupted sleeps", program.get(EINTR), 0);
        zoo.eq("handled", program.get(COUNT_USR1), u64::from(zoo.round()));
    }
}
