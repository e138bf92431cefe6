//! Refused: a thread that confined itself with Landlock; the others of its process are free.
#![allow(unsafe_code, reason = "landlock has no safe wrapper")]

/// Denies the calling thread all TCP ports (Linux 6.7).
pub(super) fn confine() -> Result<(), String> {
    let bind_tcp = [0_u64, 1];
    // SAFETY: the attributes are 16 bytes as told, the kernel only reads them; the other calls take numbers.
    let done = unsafe {
        let rules = libc::syscall(libc::SYS_landlock_create_ruleset, bind_tcp.as_ptr(), 16, 0);
        if rules < 0 {
            return Err("this kernel has no Landlock, or none for ports".to_owned());
        }
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let done = libc::syscall(libc::SYS_landlock_restrict_self, rules, 0);
        libc::close(rules as i32);
        done
    };
    if done == 0 { Ok(()) } else { Err("Landlock confines nobody here".to_owned()) }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let (tell, told) = std::sync::mpsc::channel();
    zoo.thread("confined", move |seat| {
        // SAFETY: takes nothing.
        let tid = unsafe { libc::gettid() };
        let failed = tell.send(confine().map(|()| tid)).is_err();
        seat.ok("told", !failed);
        while seat.gap() {
            let bound = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(|e| e.raw_os_error());
            seat.eq("a port", bound.err(), Some(Some(libc::EACCES)));
        }
    });
    match zoo::must(told.recv()) {
        Ok(tid) => zoo.tell("names", &format!("task {}\nthread {tid} \nLandlock", zoo::sys::getpid())),
        Err(why) => zoo.skip(&why),
    }
    while zoo.gap() {
        zoo.ok("a port for others", std::net::TcpListener::bind(("127.0.0.1", 0)).is_ok());
    }
}
