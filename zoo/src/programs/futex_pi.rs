//! A mutex with priority inheritance, held by one thread and waited for by another: the owner is still the owner.
#![allow(unsafe_code, reason = "pthread mutexes of a protocol have no safe wrapper")]
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

static STEP: AtomicU32 = AtomicU32::new(0);

fn mutex() -> usize {
    let mutex = Box::leak(Box::new(libc::PTHREAD_MUTEX_INITIALIZER));
    // SAFETY: the attribute is initialised before its use, and the mutex is leaked: it lives for good.
    unsafe {
        let mut attr = std::mem::zeroed();
        libc::pthread_mutexattr_init(&raw mut attr);
        libc::pthread_mutexattr_setprotocol(&raw mut attr, libc::PTHREAD_PRIO_INHERIT);
        libc::pthread_mutex_init(mutex, &raw const attr);
    }
    std::ptr::from_mut(mutex) as usize
}

fn call(f: unsafe extern "C" fn(*mut libc::pthread_mutex_t) -> i32, mutex: usize) -> i32 {
    // SAFETY: the mutex lives for good.
    unsafe { f(mutex as *mut libc::pthread_mutex_t) }
}

/// True once the thread sleeps in futex(2).
fn waits(tid: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).unwrap_or_default();
    text.split(' ').next() == Some("202")
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mutex = mutex();
    let mut running = true;
    while running {
        zoo.eq("lock", call(libc::pthread_mutex_lock, mutex), 0);
        STEP.store(0, SeqCst);
        let (tell, hear) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            tell.send(zoo::sys::gettid()).unwrap_or_default();
            let got = call(libc::pthread_mutex_lock, mutex);
            let step = STEP.load(SeqCst);
            (got, step, call(libc::pthread_mutex_unlock, mutex))
        });
        let tid = hear.recv().unwrap_or(0);
        while !waits(tid) {
            std::thread::yield_now();
        }
        running = zoo.gap();
        zoo.eq("it is ours", call(libc::pthread_mutex_trylock, mutex), libc::EBUSY);
        STEP.store(1, SeqCst);
        zoo.eq("unlock", call(libc::pthread_mutex_unlock, mutex), 0);
        zoo.eq("the waiter", waiter.join().unwrap_or_default(), (0, 1, 0));
    }
}
