//! Robust mutexes: the lists are still registered, and the death of an owner is still told.
#![allow(unsafe_code, reason = "robust pthread mutexes have no safe wrapper")]
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use zoo::sys::robust_list;

struct Robust(libc::pthread_mutex_t);
static HELD: AtomicBool = AtomicBool::new(false);
static LET_GO: AtomicBool = AtomicBool::new(false);

fn robust_mutex() -> *mut libc::pthread_mutex_t {
    let mutex = Box::leak(Box::new(Robust(libc::PTHREAD_MUTEX_INITIALIZER)));
    // SAFETY: the attribute is initialised before its use, and the mutex is leaked: it lives for good.
    unsafe {
        let mut attr = std::mem::zeroed();
        libc::pthread_mutexattr_init(&raw mut attr);
        libc::pthread_mutexattr_setrobust(&raw mut attr, libc::PTHREAD_MUTEX_ROBUST);
        libc::pthread_mutex_init(&raw mut mutex.0, &raw const attr);
    }
    &raw mut mutex.0
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let address = robust_mutex() as usize;
    let lock = move || {
        // SAFETY: the mutex lives for good.
        unsafe { libc::pthread_mutex_lock(address as *mut libc::pthread_mutex_t) }
    };
    let (before, mut running) = (robust_list(), true);
    while running {
        let owner = std::thread::spawn(move || {
            assert_eq!(lock(), 0);
            HELD.store(true, SeqCst);
            while !LET_GO.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        while !HELD.swap(false, SeqCst) {
            std::thread::yield_now();
        }
        running = zoo.gap();
        zoo.eq("robust list", robust_list(), before);
        LET_GO.store(true, SeqCst);
        zoo.ok("the owner ends", owner.join().is_ok());
        zoo.eq("lock after the owner's death", lock(), libc::EOWNERDEAD);
        LET_GO.store(false, SeqCst);
        let mutex = address as *mut libc::pthread_mutex_t;
        // SAFETY: this thread owns the mutex now.
        unsafe {
            libc::pthread_mutex_consistent(mutex);
            libc::pthread_mutex_unlock(mutex);
        }
    }
}
