//! Connected unix sockets with bytes under way: a stream, datagrams, records.
use rustix::io::{read, write};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let kinds = [SocketType::STREAM, SocketType::DGRAM, SocketType::SEQPACKET];
    let pairs: Vec<_> = kinds
        .into_iter()
        .filter_map(|kind| socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).ok())
        .collect();
    zoo.eq("pairs", pairs.len(), 3);
    loop {
        for (a, b) in &pairs {
            zoo.eq("write", write(a, b"forth"), Ok(5));
            zoo.eq("write", write(b, b"back and"), Ok(8));
            zoo.eq("write", write(b, b" on"), Ok(3));
        }
        let on = zoo.gap();
        for (i, (a, b)) in pairs.iter().enumerate() {
            let mut got = [0; 64];
            zoo.eq("forth", read(b, &mut got), Ok(5));
            zoo.eq("forth", &got[..5], b"forth");
            zoo.eq("back", read(a, &mut got), Ok(if i == 0 { 11 } else { 8 }));
            zoo.eq("back", &got[..8], b"back and");
            if i > 0 {
                zoo.eq("second packet", read(a, &mut got), Ok(3));
            }
        }
        if !on {
            return;
        }
    }
}
