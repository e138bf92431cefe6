//! An event counter, larger than 32 bits.
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let event = zoo::must(eventfd(0, EventfdFlags::NONBLOCK));
    let take = || {
        let mut value = [0; 8];
        read(&event, &mut value).map(|_| u64::from_ne_bytes(value))
    };
    let mut on = true;
    while on {
        zoo.eq("write", write(&event, &(1_u64 << 40 | 30).to_ne_bytes()), Ok(8));
        on = zoo.gap();
        zoo.eq("counter", take(), Ok(1 << 40 | 30));
        zoo.eq("counter, again", take(), Err(Errno::AGAIN));
    }
}
