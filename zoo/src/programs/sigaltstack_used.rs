//! A signal handler in the middle of its work on an alternate stack, mask and frame included.
use std::sync::Mutex;
use zoo::sys::{altstack, handle, mask, set_altstack, tgkill};

static ZOO: Mutex<Option<zoo::Zoo>> = Mutex::new(None);
static GOES_ON: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(true);

extern "C" fn on_signal(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let Ok(mut zoo) = ZOO.lock() else { return };
    let Some(zoo) = zoo.as_mut() else { return };
    let before = (altstack(), mask(), info as u64);
    let local = std::hint::black_box([zoo.round(); 100]);
    let on = zoo.gap();
    GOES_ON.store(on, std::sync::atomic::Ordering::SeqCst);
    zoo.eq("alternate stack, mask, siginfo", (altstack(), mask(), info as u64), before);
    zoo.eq("on the alternate stack", altstack().1 & libc::SS_ONSTACK, libc::SS_ONSTACK);
    zoo.eq("frame", std::hint::black_box(local), [zoo.round() - 1; 100]);
}

pub(super) fn main() {
    let stack = Box::leak(vec![0; 128 << 10].into_boxed_slice());
    let size = stack.len();
    set_altstack(stack);
    handle(libc::SIGUSR1, libc::SA_ONSTACK, on_signal);
    if let Ok(mut zoo) = ZOO.lock() {
        *zoo = Some(zoo::Zoo::start());
    }
    while GOES_ON.load(std::sync::atomic::Ordering::SeqCst) {
        let (before, local) = (mask(), std::hint::black_box([7_u64; 50]));
        let sent = tgkill(zoo::sys::gettid(), libc::SIGUSR1);
        if let Ok(mut zoo) = ZOO.lock()
            && let Some(zoo) = zoo.as_mut()
        {
            zoo.ok("sent", sent.is_ok());
            zoo.eq("mask after the handler", mask(), before);
            zoo.eq("frame below the handler", std::hint::black_box(local), [7; 50]);
            zoo.eq("alternate stack afterwards", (altstack().1, altstack().2), (0, size));
        }
    }
}
