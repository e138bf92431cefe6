//! Children without a vDSO: they unmapped it, as if their kernel had given them none.
#![allow(unsafe_code, reason = "unmaps what the kernel mapped")]

/// What the kernel maps for quick calls.
fn given() -> Vec<zoo::mem::Vma> {
    zoo::mem::vmas().into_iter().filter(|v| v.name == "[vdso]" || v.name.starts_with("[vvar")).collect()
}

fn without(mut zoo: zoo::Zoo) {
    for vma in given() {
        // SAFETY: nothing below asks for the time, which is all that the C library calls the vDSO for.
        let done = unsafe { libc::munmap(vma.start as *mut libc::c_void, (vma.end - vma.start) as usize) };
        zoo.eq("unmapped", done, 0);
    }
    while zoo.gap() {
        zoo.eq("mapped by the kernel", given().len(), 0);
    }
}

pub(super) fn main() {
    let mut zoo = zoo::Zoo::start();
    // As many alike that they are built as twins.
    for i in 0..9 {
        zoo.fork(&format!("child{i}"), without);
    }
    while zoo.gap() {
        zoo.ok("a vDSO", !given().is_empty());
    }
}
