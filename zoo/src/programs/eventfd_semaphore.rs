//! An event counter in semaphore mode: each read takes one.
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let event = zoo::must(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE));
    let take = || {
        let mut value = [0; 8];
        read(&event, &mut value).map(|_| u64::from_ne_bytes(value))
    };
    let mut on = true;
    while on {
        zoo.eq("write", write(&event, &2_u64.to_ne_bytes()), Ok(8));
        on = zoo.gap();
        zoo.eq("takes", [take(), take(), take()], [Ok(1), Ok(1), Err(Errno::AGAIN)]);
    }
}
