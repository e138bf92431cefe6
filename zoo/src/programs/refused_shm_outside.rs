//! Refused: a System V shared memory segment that a process outside of the tree has attached too.
use zoo::mem::{Map, PAGE};

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let Ok((_, map)) = Map::sysv(PAGE) else { zoo.skip("no System V shared memory") };
    // A grandchild falls to init, and so out of the tree. It ends when the pipe to us is closed.
    let Ok((reader, writer)) = rustix::pipe::pipe() else { return };
    let end = std::cell::Cell::new(Some(writer));
    let child = zoo::sys::fork(|| {
        zoo::sys::fork(|| {
            drop(end.take());
            i32::from(rustix::io::read(&reader, &mut [0; 1]).is_err())
        });
        0
    });
    zoo.eq("child", zoo::sys::waitpid(child).ok(), Some(0));
    zoo.tell(
        "names",
        &format!("task {}\nmapping {:#x}\nattached|doesn't live in IPC ns", zoo::sys::getpid(), map.addr()),
    );
    while zoo.gap() {}
}
