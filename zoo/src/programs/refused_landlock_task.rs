//! Refused: a process that confined itself with Landlock, all of it.

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    if let Err(why) = super::refused_landlock_thread::confine() {
        zoo.skip(&why);
    }
    zoo.tell("names", &format!("task {}\nthread {} \nLandlock", zoo::sys::getpid(), zoo::sys::getpid()));
    while zoo.gap() {
        let bound = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(|e| e.raw_os_error());
        zoo.eq("a port", bound.err(), Some(Some(libc::EACCES)));
    }
}
