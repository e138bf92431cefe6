//! A pipe in packet mode (`O_DIRECT`): reads end where writes ended.
use rustix::io::{read, write};
use rustix::pipe::{PipeFlags, pipe_with};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok((reader, writer)) = pipe_with(PipeFlags::DIRECT | PipeFlags::NONBLOCK) else { return };
    let packets: [&[u8]; 3] = [b"one", b"second", b"the third packet"];
    let mut on = true;
    while on {
        for packet in packets {
            zoo.eq("write", write(&writer, packet), Ok(packet.len()));
        }
        on = zoo.gap();
        for packet in packets {
            let mut got = [0; 100];
            let len = read(&reader, &mut got).unwrap_or(0);
            zoo.eq("packet", &got[..len], packet);
        }
    }
}
