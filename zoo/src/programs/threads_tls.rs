//! Eight threads, each with thread-local values, an FS base and a GS base of its own.
use std::cell::Cell;
use zoo::sys::{fs_base, gettid, gs_base, set_gs_base};

thread_local! {
    static MINE: Cell<u64> = const { Cell::new(0) };
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    for i in 1..=8 {
        zoo.thread(&format!("{i}"), move |seat| {
            MINE.set(i * 1001);
            set_gs_base(i << 20);
            let (base, tid) = (fs_base(), gettid());
            while seat.gap() {
                seat.eq("thread-local", MINE.get(), i * 1001);
                seat.eq("FS base", fs_base(), base);
                seat.eq("GS base", gs_base(), i << 20);
                seat.eq("tid", gettid(), tid);
            }
        });
    }
    while zoo.gap() {}
}
