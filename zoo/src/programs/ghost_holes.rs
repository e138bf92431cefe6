//! Deleted files with holes: at the start, in the middle, at the end; small and large; one that is all hole.
use rustix::fs::{SeekFrom, ftruncate, seek};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

const BLOCK: u64 = 4096;

/// Where the filesystem says that there is data.
fn data(file: &File) -> Vec<(u64, u64)> {
    let (mut found, mut at) = (Vec::new(), 0);
    loop {
        match seek(file, SeekFrom::Data(at)) {
            Ok(start) => {
                at = zoo::must(seek(file, SeekFrom::Hole(start)));
                found.push((start, at));
            }
            Err(Errno::NXIO) => break,
            Err(e) => panic!("{e}"),
        }
    }
    zoo::must(seek(file, SeekFrom::Start(0)));
    found
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut files = Vec::new();
    for (name, blocks, filled) in [
        ("two", 2, &[1][..]),
        ("middle", 3, &[0, 2]),
        ("head", 4, &[1, 3]),
        ("tail", 4, &[0, 2]),
        ("many", 64, &[3, 4, 9, 30, 61]),
        ("large", 2000, &[0, 700, 1500]),
        ("nothing", 5, &[]),
        ("one", 1, &[0]),
    ] {
        let file = File::options().create_new(true).read(true).write(true).open(name);
        let file = zoo::must(file);
        let mut want = vec![0; (blocks * BLOCK) as usize];
        for &block in filled {
            let at = block * BLOCK;
            let part = &mut want[at as usize..][..BLOCK as usize];
            zoo::mem::fill(part, block + 1);
            zoo::must(file.write_all_at(part, at));
        }
        zoo::must(ftruncate(&file, blocks * BLOCK));
        zoo::must(rustix::fs::fsync(&file));
        zoo::must(std::fs::remove_file(name));
        let places = data(&file);
        files.push((name, file, want, places));
    }
    while zoo.gap() {
        for (name, file, want, places) in &files {
            zoo.eq(&format!("{name}: size"), file.metadata().map(|m| m.size()).ok(), Some(want.len() as u64));
            zoo.eq(&format!("{name}: where it has data"), data(file), places.clone());
            let mut got = vec![0; want.len()];
            zoo.ok(name, file.read_exact_at(&mut got, 0).is_ok());
            zoo.ok(&format!("{name}: content"), got == *want);
        }
    }
}
