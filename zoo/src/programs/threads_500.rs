//! Five hundred threads (`ZOO_THREADS` says how many), blocked in futex waits, each with its own value on its stack.
use zoo::sys::gettid;

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    for i in 0..zoo::size("ZOO_THREADS", 500) as i32 {
        zoo.thread(&i.to_string(), move |seat| {
            let (tid, local) = (gettid(), std::hint::black_box([i; 64]));
            while seat.gap() {
                seat.eq("tid", gettid(), tid);
                seat.eq("stack", std::hint::black_box(local), [i; 64]);
            }
        });
    }
    while zoo.gap() {}
}
