//! Directories and files below directories that are deleted as well, in two processes; the working directory is one of them.
use std::fs::{File, create_dir_all, remove_dir, remove_file};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

fn check(zoo: &mut zoo::Zoo, what: &str, file: &File, name: &str) {
    let stat = zoo::must(file.metadata());
    zoo.eq(&format!("{what}: names left"), stat.nlink(), 0);
    let link = zoo::proc::fd_link(file.as_raw_fd());
    zoo.ok(&format!("{what}: {link}"), link.ends_with(&format!("/{name} (deleted)")));
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let base = zoo::must(std::env::current_dir());
    zoo.base_is(&base);
    zoo::must(create_dir_all("upper/lower/lowest"));
    let lowest = zoo::must(File::open("upper/lower/lowest"));
    let file = zoo::must(File::options().create_new(true).read(true).write(true).open("upper/lower/file"));
    zoo::must(file.write_all_at(b"inside", 0));
    let child = zoo.fork("child", |mut zoo| {
        // Opened by this process alone, so each process makes its own below the same deleted directory.
        let own = File::options().create_new(true).read(true).write(true).open("upper/lower/own");
        let own = zoo::must(own);
        zoo::must(own.write_all_at(b"of the child", 0));
        zoo::must(remove_file("upper/lower/own"));
        zoo.tell("opened", "");
        while zoo.gap() {
            check(&mut zoo, "the child's file", &own, "upper/lower/own");
            let mut got = [0; 12];
            zoo.ok("read", own.read_exact_at(&mut got, 0).is_ok());
            zoo.eq("content", &got, b"of the child");
        }
    });
    zoo.hear("opened");
    zoo::must(std::env::set_current_dir("upper"));
    zoo::must(remove_file("lower/file"));
    for dir in ["upper/lower/lowest", "upper/lower", "upper"] {
        zoo::must(remove_dir(base.join(dir)));
    }
    while zoo.gap() {
        check(&mut zoo, "directory", &lowest, "upper/lower/lowest");
        zoo.ok("is one", lowest.metadata().is_ok_and(|m| m.is_dir()));
        check(&mut zoo, "file", &file, "upper/lower/file");
        let mut got = [0; 6];
        zoo.ok("read", file.read_exact_at(&mut got, 0).is_ok());
        zoo.eq("content", &got, b"inside");
        let gone = std::env::current_dir().err().map(|e| e.kind());
        zoo.eq("the working directory is gone", gone, Some(std::io::ErrorKind::NotFound));
        let cwd = zoo::must(std::fs::read_link("/proc/self/cwd"));
        zoo.ok(
            &format!("its name: {}", cwd.display()),
            cwd.as_os_str().as_encoded_bytes().ends_with(b"/upper (deleted)"),
        );
        zoo.ok("nothing is left of it", !Path::new(&base).join("upper").exists());
    }
    zoo::must(zoo::sys::waitpid(child));
}
