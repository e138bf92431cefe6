//! Regular files: position, flags, append mode.
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let text: Vec<u8> = (0..200).collect();
    zoo::must(std::fs::write("data", &text));
    zoo::must(std::fs::write("log", "start\n"));
    let (Ok(mut reader), Ok(mut both), Ok(mut log)) = (
        std::fs::File::open("data"),
        std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_DSYNC | libc::O_NOATIME).open("data"),
        std::fs::OpenOptions::new().append(true).custom_flags(libc::O_NONBLOCK).open("log"),
    ) else {
        return zoo.tell("fail.0", "open");
    };
    let flags = |f: &std::fs::File| rustix::fs::fcntl_getfl(f).map_or(0, |f| f.bits());
    let before = [&reader, &both, &log].map(flags);
    let mut at = [7_u64, 42];
    zoo::must(reader.seek(SeekFrom::Start(at[0])));
    zoo::must(both.seek(SeekFrom::Start(at[1])));
    let mut written = "start\n".to_owned();
    while zoo.gap() {
        zoo.eq("flags", [&reader, &both, &log].map(flags), before);
        zoo.eq("positions", [reader.stream_position().ok(), both.stream_position().ok()], at.map(Some));
        let mut bytes = [0; 10];
        zoo.ok("read on", reader.read_exact(&mut bytes).is_ok());
        zoo.eq("what was read", &bytes[..], &text[at[0] as usize..][..10]);
        zoo.ok("write on", both.write_all(&text[at[1] as usize..][..3]).is_ok());
        at = [at[0] + 10, at[1] + 3];
        let line = format!("round {}\n", zoo.round());
        zoo.ok("append", log.write_all(line.as_bytes()).is_ok());
        written.push_str(&line);
        zoo.eq("log", std::fs::read_to_string("log").unwrap_or_default(), written.clone());
        zoo.ok("data is whole", std::fs::read("data").is_ok_and(|d| d == text));
    }
}
