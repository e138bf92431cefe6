//! Root directories that were deleted while a process lived there: with its working directory, with a deleted directory below
//! as that, and with one outside.
use std::fs::{File, create_dir_all, metadata, read_link, remove_dir};
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write, pipe};
use std::os::unix::fs::{MetadataExt, chroot};

/// Answers what a process finds in its deleted root directory, whenever asked.
fn prisoner(root: &str, cwd: &str, mut question: PipeReader, mut answer: PipeWriter) -> i32 {
    zoo::must(chroot(root));
    zoo::must(std::env::set_current_dir(cwd));
    loop {
        zoo::must(answer.write_all(b"?"));
        let mut byte = [0];
        zoo::must(question.read_exact(&mut byte));
        if byte == *b"q" {
            return 0;
        }
        let nothing = |e: std::io::Error| e.kind() == ErrorKind::NotFound;
        let gone = metadata("/").is_ok_and(|m| m.is_dir() && m.nlink() == 0);
        let empty = File::create("/new").is_err_and(nothing) && metadata("/proc").is_err_and(nothing);
        zoo::must(answer.write_all(if gone && empty { b"y" } else { b"n" }));
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let cages = [("one", "/", "one"), ("two", "/below", "two/below"), ("three", ".", "")];
    let mut prisoners = Vec::new();
    for (root, cwd, _) in cages {
        zoo::must(create_dir_all(format!("{root}/below")));
        let ((question, ask), (mut hear, answer)) = (zoo::must(pipe()), zoo::must(pipe()));
        let pid =
            zoo::sys::fork(|| prisoner(root, cwd, zoo::must(question.try_clone()), zoo::must(answer.try_clone())));
        drop((question, answer));
        zoo::must(hear.read_exact(&mut [0]));
        zoo::must(remove_dir(format!("{root}/below")));
        zoo::must(remove_dir(root));
        prisoners.push((pid, ask, hear));
    }
    while zoo.gap() {
        for ((root, _, cwd), (pid, ask, hear)) in cages.iter().zip(&mut prisoners) {
            for (link, dir) in [("root", root), ("cwd", cwd)] {
                let end = if dir.is_empty() { String::new() } else { format!("/{dir} (deleted)") };
                let found = zoo::must(read_link(format!("/proc/{pid}/{link}"))).display().to_string();
                zoo.ok(&format!("{root}: {link} is {found}"), found.ends_with(&end));
                zoo.eq(&found, found.contains("(deleted)"), !dir.is_empty());
            }
            let mut answer = [0; 2];
            zoo.ok("asked", ask.write_all(b"c").is_ok() && hear.read_exact(&mut answer).is_ok());
            zoo.ok(&format!("{root}: nothing is there: {answer:?}"), answer == *b"y?");
            zoo.ok("nothing is left", metadata(root).is_err());
        }
    }
    for (pid, mut ask, _hear) in prisoners {
        zoo::must(ask.write_all(b"q"));
        zoo.eq("it ended well", zoo::sys::waitpid(pid).ok(), Some(0));
    }
}
