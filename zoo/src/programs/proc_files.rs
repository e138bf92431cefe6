//! Files of /proc: our own, a child's, those of a process that is gone (one is the working directory), and namespaces.
use rustix::fs::{AtFlags, fstat, statat};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let base = zoo::must(std::env::current_dir());
    zoo.base_is(&base);
    let lives = zoo.fork("lives", |mut zoo| while zoo.gap() {});
    let gone = zoo::sys::fork(|| {
        zoo::sys::take_signal(zoo::sys::bit(libc::SIGUSR1), std::time::Duration::from_secs(600));
        0
    });
    let open = |name: String| zoo::must(File::open(name));
    let own = open("/proc/self/comm".into());
    let other = open(format!("/proc/{lives}/comm"));
    let dead = [open(format!("/proc/{gone}")), open(format!("/proc/{gone}/stat"))];
    let spaces = ["net", "mnt", "ipc", "uts", "pid", "user", "cgroup", "time"];
    let spaces: Vec<_> = spaces.iter().map(|n| (*n, open(format!("/proc/self/ns/{n}")))).collect();
    zoo::must(std::env::set_current_dir(format!("/proc/{gone}")));
    zoo::must(zoo::sys::kill(gone, libc::SIGKILL));
    zoo::must(zoo::sys::waitpid(gone));
    while zoo.gap() {
        for (what, mut file) in [("own", &own), ("the child's", &other)] {
            let mut text = String::new();
            zoo.eq(&format!("{what}: rewind"), rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0)), Ok(0));
            zoo.ok(&format!("{what}: read"), file.read_to_string(&mut text).is_ok());
            zoo.eq(what, text.as_str(), "zoo-program\n");
        }
        for file in &dead {
            let link = zoo::proc::fd_link(file.as_raw_fd());
            zoo.ok(&format!("name of what is gone: {link}"), link.starts_with(&format!("/proc/{gone}")));
        }
        let mut text = String::new();
        let read = (&dead[1]).read_to_string(&mut text).err().and_then(|e| e.raw_os_error());
        zoo.eq("its stat file", read, Some(libc::ESRCH));
        zoo.ok("its number is free", !std::path::Path::new(&format!("/proc/{gone}")).exists());
        let cwd = std::env::current_dir().err().map(|e| e.kind());
        zoo.eq("the working directory is gone", cwd, Some(std::io::ErrorKind::NotFound));
        for (name, file) in &spaces {
            let now = statat(rustix::fs::CWD, format!("/proc/self/ns/{name}"), AtFlags::empty());
            zoo.eq(name, fstat(file).map(|s| s.st_ino), now.map(|s| s.st_ino));
        }
    }
    zoo::must(zoo::sys::waitpid(lives));
}
