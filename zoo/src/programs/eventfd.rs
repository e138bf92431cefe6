//! Event counters: a plain one and a semaphore.
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};
use std::os::fd::OwnedFd;

fn take(fd: &OwnedFd) -> Result<u64, Errno> {
    let mut value = [0; 8];
    read(fd, &mut value).map(|_| u64::from_ne_bytes(value))
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (Ok(plain), Ok(semaphore)) =
        (eventfd(0, EventfdFlags::NONBLOCK), eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE))
    else {
        return;
    };
    let mut on = true;
    while on {
        zoo.eq("write", write(&plain, &(1_u64 << 40 | 30).to_ne_bytes()), Ok(8));
        zoo.eq("write", write(&semaphore, &2_u64.to_ne_bytes()), Ok(8));
        on = zoo.gap();
        zoo.eq("counter", take(&plain), Ok(1 << 40 | 30));
        zoo.eq("counter, again", take(&plain), Err(Errno::AGAIN));
        let three = [take(&semaphore), take(&semaphore), take(&semaphore)];
        zoo.eq("semaphore", three, [Ok(1), Ok(1), Err(Errno::AGAIN)]);
    }
}
