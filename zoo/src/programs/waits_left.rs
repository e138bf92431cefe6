//! Threads whose waits are half over: poll, nanosleep with and without a place for the rest, a futex, pselect, ppoll, epoll,
//! signals, semaphores, AIO, and sockets with a time limit. Each ends when it would have, neither at once nor after its whole time
//! again, and the limit stays what it was.
#![allow(unsafe_code, reason = "raw calls: the C library hides interruptions of some")]
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_timeout};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

const WHOLE: Duration = Duration::from_secs(16);
/// Slept before the gap.
const BEFORE: Duration = Duration::from_secs(8);

fn timespec() -> libc::timespec {
    libc::timespec { tv_sec: WHOLE.as_secs() as i64, tv_nsec: 0 }
}

fn poll() -> i64 {
    // SAFETY: no descriptors, so no array of them is read.
    unsafe { libc::syscall(libc::SYS_poll, 0, 0, WHOLE.as_millis() as i64) }
}

fn sleep() -> i64 {
    // SAFETY: the request lives to the end of the statement; no place for the rest is given.
    unsafe { libc::syscall(libc::SYS_nanosleep, &raw const *Box::new(timespec()), 0) }
}

fn sleep_with_rest() -> i64 {
    let (request, mut rest) = (timespec(), timespec());
    // SAFETY: both live through the call.
    unsafe { libc::syscall(libc::SYS_clock_nanosleep, 1, 0, &raw const request, &raw mut rest) }
}

fn futex() -> i64 {
    let (word, time) = (0_u32, timespec());
    // SAFETY: the word and the time live through the call. 128: private.
    unsafe { libc::syscall(libc::SYS_futex, &raw const word, 128, 0, &raw const time, 0, 0) }
}

fn select() -> i64 {
    let mut time = timespec();
    // SAFETY: no sets; the time lives through the call.
    unsafe { libc::syscall(libc::SYS_pselect6, 0, 0, 0, 0, &raw mut time, 0) }
}

fn ppoll() -> i64 {
    let mut time = timespec();
    // SAFETY: no descriptors; the time lives through the call.
    unsafe { libc::syscall(libc::SYS_ppoll, 0, 0, &raw mut time, 0, 8) }
}

/// The limit is the fourth argument, and no signal mask is given.
fn epoll(nr: i64) -> i64 {
    let Ok(epoll) = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC) else { return -1 };
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the room for one event lives through the call.
    unsafe { libc::syscall(nr, epoll.as_raw_fd(), &raw mut event, 1, WHOLE.as_millis() as i32, 0, 8) }
}

fn epoll_pwait2() -> i64 {
    let Ok(epoll) = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC) else { return -1 };
    let (mut event, limit) = (libc::epoll_event { events: 0, u64: 0 }, timespec());
    // SAFETY: the room for one event and the limit live through the call; no signal mask is given.
    let got =
        unsafe { libc::syscall(libc::SYS_epoll_pwait2, epoll.as_raw_fd(), &raw mut event, 1, &raw const limit, 0, 8) };
    unchanged(limit, got)
}

fn signal() -> i64 {
    let (set, limit) = (1_u64 << 50, timespec());
    // SAFETY: set and limit live through the call; no siginfo is asked for.
    let got = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const set, 0, &raw const limit, 8) };
    unchanged(limit, got)
}

/// The limit is a constant of the program, in memory that it cannot write.
fn signal_with_a_constant() -> i64 {
    static LIMIT: libc::timespec = libc::timespec { tv_sec: WHOLE.as_secs() as i64, tv_nsec: 0 };
    let set = 1_u64 << 51;
    // SAFETY: the set lives through the call, the limit for ever; no siginfo is asked for.
    let got = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const set, 0, &raw const LIMIT, 8) };
    unchanged(LIMIT, got)
}

/// The set of semaphores in use. They are the machine's.
static SEMAPHORES: AtomicI32 = AtomicI32::new(-1);

fn remove_semaphores() {
    // SAFETY: takes numbers only; -1 is no set.
    unsafe { libc::semctl(SEMAPHORES.swap(-1, SeqCst), 0, libc::IPC_RMID) };
}

fn semaphore() -> i64 {
    let mut down = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
    let limit = timespec();
    // SAFETY: operation and limit live through the calls.
    let got = unsafe {
        SEMAPHORES.store(libc::semget(libc::IPC_PRIVATE, 1, 0o600), SeqCst);
        libc::syscall(libc::SYS_semtimedop, SEMAPHORES.load(SeqCst), &raw mut down, 1, &raw const limit)
    };
    let got = unchanged(limit, got);
    keep_errno(remove_semaphores);
    got
}

fn aio() -> i64 {
    let (mut context, mut event, limit) = (0_u64, [0_u64; 4], timespec());
    // SAFETY: context, event and limit live through the calls.
    let got = unsafe {
        libc::syscall(libc::SYS_io_setup, 1, &raw mut context);
        libc::syscall(libc::SYS_io_getevents, context, 1, 1, event.as_mut_ptr(), &raw const limit)
    };
    let got = unchanged(limit, got);
    // SAFETY: nobody uses the context any more.
    keep_errno(|| _ = unsafe { libc::syscall(libc::SYS_io_destroy, context) });
    got
}

/// Runs `f`; errno stays that of the wait.
fn keep_errno(f: impl FnOnce()) {
    // SAFETY: errno is this thread's.
    let errno = unsafe { *libc::__errno_location() };
    f();
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

fn unchanged(limit: libc::timespec, got: i64) -> i64 {
    let same = (limit.tv_sec, limit.tv_nsec) == (timespec().tv_sec, timespec().tv_nsec);
    if same { got } else { CHANGED }
}

/// What a wait is said to have returned whose limit is another one afterwards.
const CHANGED: i64 = -1000;

fn with_limit(socket: BorrowedFd<'_>, which: Timeout, call: impl FnOnce(i32) -> i64) -> i64 {
    zoo::must(set_socket_timeout(socket, which, Some(WHOLE)));
    let got = call(socket.as_raw_fd());
    let mut same = false;
    keep_errno(|| same = socket_timeout(socket, which) == Ok(Some(WHOLE)));
    if same { got } else { CHANGED }
}

fn receive() -> i64 {
    let (socket, _peer) = zoo::must(UnixDatagram::pair());
    let mut byte = 0_u8;
    with_limit(socket.as_fd(), Timeout::Recv, |fd| {
        // SAFETY: the byte lives through the call; no sender's address is asked for.
        unsafe { libc::syscall(libc::SYS_recvfrom, fd, &raw mut byte, 1, 0, 0, 0) }
    })
}

fn read() -> i64 {
    let (socket, _peer) = zoo::must(UnixStream::pair());
    let mut byte = 0_u8;
    with_limit(socket.as_fd(), Timeout::Recv, |fd| {
        // SAFETY: the byte lives through the call.
        unsafe { libc::syscall(libc::SYS_read, fd, &raw mut byte, 1) }
    })
}

fn accept() -> i64 {
    let listener = zoo::must(std::net::TcpListener::bind("127.0.0.1:0"));
    with_limit(listener.as_fd(), Timeout::Recv, |fd| {
        // SAFETY: no address is asked for.
        unsafe { libc::syscall(libc::SYS_accept4, fd, 0, 0, 0) }
    })
}

/// No more messages fit than a number that the kernel has.
fn send() -> i64 {
    let (socket, _peer) = zoo::must(UnixDatagram::pair());
    let send = |fd: i32, flags: i32| {
        // SAFETY: the one byte is a constant; no receiver's address is given.
        unsafe { libc::syscall(libc::SYS_sendto, fd, c".".as_ptr(), 1, flags, 0, 0) }
    };
    while send(socket.as_raw_fd(), libc::MSG_DONTWAIT) > 0 {}
    with_limit(socket.as_fd(), Timeout::Send, |fd| send(fd, 0))
}

type Wait = (&'static str, fn() -> i64);

const WAITS: [Wait; 17] = [
    ("poll", poll),
    ("nanosleep", sleep),
    ("clock_nanosleep with a place for the rest", sleep_with_rest),
    ("futex", futex),
    ("pselect", select),
    ("ppoll", ppoll),
    ("epoll_wait", || epoll(libc::SYS_epoll_wait)),
    ("epoll_pwait", || epoll(libc::SYS_epoll_pwait)),
    ("epoll_pwait2", epoll_pwait2),
    ("rt_sigtimedwait", signal),
    ("rt_sigtimedwait with a constant", signal_with_a_constant),
    ("semtimedop", semaphore),
    ("io_getevents", aio),
    ("recvfrom", receive),
    ("read", read),
    ("accept4", accept),
    ("sendto", send),
];

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let mut late_before = Vec::new();
    loop {
        let (begun, ended) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let from = Instant::now();
        let back = std::thread::scope(|scope| {
            for (name, call) in WAITS {
                let (begun, ended) = (&begun, &ended);
                scope.spawn(move || {
                    let from = Instant::now();
                    begun.fetch_add(1, SeqCst);
                    let got = call();
                    let errno = std::io::Error::last_os_error().raw_os_error();
                    let end = (name, got, errno, from.elapsed());
                    ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(end);
                });
            }
            while begun.load(SeqCst) < WAITS.len() || from.elapsed() < BEFORE {
                std::thread::sleep(Duration::from_millis(10));
            }
            if !zoo.gap() {
                // Nobody waits for the rest.
                remove_semaphores();
                std::process::exit(0);
            }
            from.elapsed()
        });
        // The whole time again would be BEFORE too long. On a busy machine the gap itself may be.
        let late = WHOLE.max(back) + BEFORE.mul_f32(0.8);
        let is_over = |got, errno| got == 0 || (got == -1 && matches!(errno, Some(libc::ETIMEDOUT | libc::EAGAIN)));
        let ended = ended.into_inner().unwrap_or_default();
        // How long a thread sleeps already cannot be known if it ran just then: that happens once, not always to one.
        let late_now: Vec<&str> = ended.iter().filter(|end| end.3 > late).map(|end| end.0).collect();
        let faults = ended.into_iter().filter(|&(name, got, errno, took)| {
            !is_over(got, errno) || took < WHOLE || (late_now.contains(&name) && late_before.contains(&name))
        });
        let faults =
            faults.map(|(name, got, errno, took)| format!("{name} returned {got}, errno {errno:?} after {took:?}"));
        let faults: Vec<String> = faults.collect();
        zoo.ok("most of them end in time", late_now.len() <= 1);
        late_before = late_now;
        zoo.eq("waits that did not end in time", faults, Vec::<String>::new());
    }
}
