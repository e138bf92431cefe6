//! Refused: a process that has unmapped the code of its vDSO, but not the data.
#![allow(unsafe_code, reason = "unmaps what the kernel mapped")]

fn part(mut zoo: zoo::Zoo) {
    if let Some(vdso) = zoo::mem::vmas().iter().find(|v| v.name == "[vdso]") {
        // SAFETY: nothing below asks for the time, which is all that the C library calls the vDSO for.
        let done = unsafe { libc::munmap(vdso.start as *mut libc::c_void, (vdso.end - vdso.start) as usize) };
        zoo.eq("unmapped", done, 0);
    }
    while zoo.gap() {
        zoo.ok("it runs on", true);
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    let child = zoo.fork("child", part);
    zoo.tell("names", &format!("task {child}\nunmapped the code of its vDSO"));
    while zoo.gap() {
        zoo.ok("it runs on", true);
    }
}
