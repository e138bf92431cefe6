//! A pipe whose ends are in different processes, with bytes under way.
use rustix::io::{read, write};
use rustix::pipe::pipe;
use std::os::fd::AsRawFd;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (Ok((reader, writer)), Ok((back_reader, back_writer))) = (pipe(), pipe()) else { return };
    let mut reader = Some(reader);
    zoo.fork("reader", |mut zoo| {
        let Some(reader) = reader.take() else { return };
        zoo::sys::close_raw(writer.as_raw_fd());
        while zoo.gap() {
            let want = format!("before {}; after {0}", zoo.round());
            let mut got = vec![0; want.len()];
            let mut at = 0;
            while at < got.len() {
                match read(&reader, &mut got[at..]) {
                    Ok(n) if n > 0 => at += n,
                    _ => break,
                }
            }
            zoo.eq("what came through", String::from_utf8_lossy(&got).into_owned(), want);
            zoo.eq("answer", write(&back_writer, b"got it"), Ok(6));
        }
    });
    drop(reader);
    loop {
        let sent = format!("before {}; ", zoo.round() + 1);
        zoo.eq("write", write(&writer, sent.as_bytes()), Ok(sent.len()));
        if !zoo.gap() {
            return;
        }
        let sent = format!("after {}", zoo.round());
        zoo.eq("write", write(&writer, sent.as_bytes()), Ok(sent.len()));
        let mut got = [0; 6];
        zoo.eq("answer", read(&back_reader, &mut got), Ok(6));
    }
}
