//! The same file opened three times: three positions.
use std::io::{Seek, SeekFrom};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    zoo::must(std::fs::write("data", [7; 5000]));
    let open = || std::fs::OpenOptions::new().read(true).write(true).open("data");
    let mut files: Vec<_> = (0..3).filter_map(|_| open().ok()).collect();
    zoo.eq("files", files.len(), 3);
    loop {
        for (file, at) in files.iter_mut().zip([10_u64, 200, 3000]) {
            zoo::must(file.seek(SeekFrom::Start(at + u64::from(zoo.round()))));
        }
        let want = [10, 200, 3000].map(|at: u64| Some(at + u64::from(zoo.round())));
        let on = zoo.gap();
        let got: Vec<_> = files.iter_mut().map(|f| f.stream_position().ok()).collect();
        zoo.eq("positions", got, want.to_vec());
        if !on {
            return;
        }
    }
}
