//! Pipes with pages that are no pipe's own: spliced from a file, in parts that end inside of pages, and the same ones again
//! in a second pipe (tee).
use rustix::io::{Errno, ioctl_fionread, read, write};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice, tee};
use std::fs::File;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let flags = PipeFlags::NONBLOCK | PipeFlags::CLOEXEC;
    let [(out, to), (copy_out, copy_to)] = [(); 2].map(|()| zoo::must(pipe_with(flags)));
    let mut bytes = vec![0; 40_000];
    zoo::mem::fill(&mut bytes, 7);
    zoo::must(std::fs::write("source", &bytes));
    let file = zoo::must(File::open("source"));
    loop {
        // From the middle of one page to the middle of another.
        let mut at = 100;
        let mut wanted = b"in front".to_vec();
        zoo.eq("write", write(&to, b"in front"), Ok(8));
        for part in [5000_usize, 1, 12_000] {
            let from = at as usize;
            zoo.eq("splice", splice(&file, Some(&mut at), &to, None, part, SpliceFlags::empty()), Ok(part));
            wanted.extend_from_slice(&bytes[from..from + part]);
        }
        zoo.eq("write", write(&to, b"behind"), Ok(6));
        wanted.extend_from_slice(b"behind");
        zoo.eq("tee", tee(&out, &copy_to, 1 << 20, SpliceFlags::empty()), Ok(wanted.len()));
        let on = zoo.gap();
        for from in [&out, &copy_out] {
            zoo.eq("bytes inside", ioctl_fionread(from), Ok(wanted.len() as u64));
            let mut got = vec![0; 40_000];
            let len = read(from, &mut got).unwrap_or(0);
            zoo.ok("content", got.get(..len) == Some(&wanted[..]));
            zoo.eq("no more", read(from, &mut got), Err(Errno::AGAIN));
        }
        if !on {
            return;
        }
    }
}
