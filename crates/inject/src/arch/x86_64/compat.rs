//! 32-bit code on a 64-bit kernel (i386 emulation): numbers of its system calls, and the vDSO that the kernel has for it.
//!
//! A thread in 32-bit code is borrowed as any other: it makes our calls in 64-bit code, which every thread may enter, and
//! its landing leads back into 32-bit code. What must lie where 32 bits reach it is mapped below 4 GiB.
#![allow(unsafe_code, reason = "a child of ours changes its vDSO, and tries a call of 32-bit code")]
use crust_kernel::maps;
use crust_kernel::procfs::ProcDir;
use crust_kernel::remote_mem::RemoteMem;
use crust_kernel::{HostTid, VirtAddr};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

/// Where the addresses end that 32-bit code reaches.
pub const END: u64 = 1 << 32;
/// Calls as i386 numbers them.
pub const NR_EXIT: u32 = 1;
/// See [`NR_EXIT`].
pub const NR_MUNMAP: u32 = 91;
/// See [`NR_EXIT`].
pub const NR_NANOSLEEP: u32 = 162;
/// See [`NR_EXIT`].
pub const NR_POLL: u32 = 168;
/// See [`NR_EXIT`].
pub const NR_RT_SIGACTION: u32 = 174;
/// See [`NR_EXIT`].
pub const NR_SET_ROBUST_LIST: u32 = 311;
/// See [`NR_EXIT`].
pub const NR_GET_ROBUST_LIST: u32 = 312;
const NR_GETPID: u64 = 20;

/// What i386 calls `nr`, as x86_64 numbers it, if that is a call that may wait for long or answers EINTR to a stop, and
/// whether it takes times in 32 bits. The arguments of those that are told apart have the same order in both.
pub fn as_native(nr: i64) -> Option<(i64, bool)> {
    Some(match nr {
        0 => (libc::SYS_restart_syscall, false),
        3 => (libc::SYS_read, false),
        4 => (libc::SYS_write, false),
        145 => (libc::SYS_readv, false),
        146 => (libc::SYS_writev, false),
        162 => (libc::SYS_nanosleep, true),
        168 => (libc::SYS_poll, false),
        177 => (libc::SYS_rt_sigtimedwait, true),
        240 => (libc::SYS_futex, true),
        247 => (libc::SYS_io_getevents, true),
        256 => (libc::SYS_epoll_wait, false),
        267 => (libc::SYS_clock_nanosleep, true),
        319 => (libc::SYS_epoll_pwait, false),
        337 => (libc::SYS_recvmmsg, false),
        345 => (libc::SYS_sendmmsg, false),
        362 => (libc::SYS_connect, false),
        364 => (libc::SYS_accept4, false),
        369 => (libc::SYS_sendto, false),
        370 => (libc::SYS_sendmsg, false),
        371 => (libc::SYS_recvfrom, false),
        372 => (libc::SYS_recvmsg, false),
        407 => (libc::SYS_clock_nanosleep, false),
        417 => (libc::SYS_recvmmsg, false),
        420 => (libc::SYS_semtimedop, false),
        421 => (libc::SYS_rt_sigtimedwait, false),
        422 => (libc::SYS_futex, false),
        441 => (libc::SYS_epoll_pwait2, false),
        120 => (libc::SYS_clone, false),
        190 => (libc::SYS_vfork, false),
        435 => (libc::SYS_clone3, false),
        // Calls in one: its first argument says which.
        102 => (SOCKETCALL, false),
        117 => (IPC, true),
        _ => return None,
    })
}

/// socketcall(2), for [`as_native`]: no number of a call.
pub const SOCKETCALL: i64 = -102;
/// ipc(2), likewise.
pub const IPC: i64 = -117;

/// Offset of the first `int 0x80` in machine code.
pub fn find_int80(code: &[u8]) -> Option<usize> {
    code.windows(2).position(|w| w == [0xcd, 0x80])
}

/// The vDSO of 32-bit programs under this kernel, as it lies where the kernel puts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vdso {
    /// Its data, in address order.
    pub vvar: Vec<(u64, u64)>,
    /// Its code.
    pub vdso: (u64, u64),
    /// The bytes of the code.
    pub code: Vec<u8>,
}

/// arch_prctl(2): maps the vDSO of 32-bit programs, if there is none at all.
pub const ARCH_MAP_VDSO_32: u64 = 0x2002;

/// What this kernel has for 32-bit programs; `None` if it runs none. Found out once: a child of ours becomes one, in what
/// matters.
pub fn vdso() -> Option<&'static Vdso> {
    static FOUND: OnceLock<Option<Vdso>> = OnceLock::new();
    FOUND.get_or_init(try_out).as_ref()
}

fn is_special(m: &maps::Mapping) -> bool {
    matches!(m.name.as_slice(), b"[vvar]" | b"[vvar_vclock]" | b"[vdso]")
}

fn try_out() -> Option<Vdso> {
    let ours: Vec<(u64, u64)> =
        maps::read_own_maps().ok()?.iter().filter(|m| is_special(m)).map(|m| (m.start, m.end)).collect();
    let (done, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).ok()?;
    let us = std::process::id();
    // SAFETY: the child makes nothing but plain system calls, so no lock that another thread held can hinder it.
    let child = match unsafe { libc::fork() } {
        0 => become_32bit(us, &ours, tell.as_raw_fd()),
        pid => Child(HostTid::new(pid)?),
    };
    drop(tell);
    child.look(done)
}

/// A child of ours, gone when this is.
struct Child(HostTid);

impl Child {
    fn look(&self, done: OwnedFd) -> Option<Vdso> {
        // It says that byte, or it has died.
        std::fs::File::from(done).read_exact(&mut [0]).ok()?;
        let all = maps::read_maps(&ProcDir::open(self.0).ok()?).ok()?;
        let of = |name: &[u8]| all.iter().filter(|m| m.name == name).map(|m| (m.start, m.end)).collect::<Vec<_>>();
        let [vdso] = of(b"[vdso]")[..] else { return None };
        let vvar = all.iter().filter(|m| is_special(m) && m.start != vdso.0).map(|m| (m.start, m.end)).collect();
        let mut code = vec![0; (vdso.1 - vdso.0) as usize];
        RemoteMem::open_read_only(self.0).ok()?.read(VirtAddr(vdso.0), &mut code).ok()?;
        Some(Vdso { vvar, vdso, code })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(pid) = rustix::process::Pid::from_raw(self.0.as_raw()) else { return };
        let _gone_is_fine = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        let wait = || rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        while matches!(wait(), Err(rustix::io::Errno::INTR)) {}
    }
}

/// The child's side: exchanges the vDSO, tries a call, says so and waits for its end.
fn become_32bit(parent: u32, ours: &[(u64, u64)], tell: i32) -> ! {
    // SAFETY: plain system calls. What is unmapped is the vDSO, which none of them uses; the byte that is written is
    // constant. `int 0x80` changes eax alone; rbx, which the compiler keeps for itself, is no argument of getpid.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if libc::syscall(libc::SYS_getppid) != i64::from(parent) {
            // It died before it could take us with it.
            libc::syscall(libc::SYS_exit_group, 1);
        }
        for &(start, end) in ours {
            libc::syscall(libc::SYS_munmap, start, end - start);
        }
        if libc::syscall(libc::SYS_arch_prctl, ARCH_MAP_VDSO_32, 0) > 0 {
            let said: u64;
            std::arch::asm!("int 0x80", inlateout("rax") NR_GETPID => said,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _);
            if said as i64 == libc::syscall(libc::SYS_getpid) {
                libc::syscall(libc::SYS_write, tell, c"+".as_ptr(), 1);
                libc::syscall(libc::SYS_close, tell);
                loop {
                    libc::syscall(libc::SYS_pause);
                }
            }
        }
        libc::syscall(libc::SYS_exit_group, 1);
    }
    crust_kernel::process::exit_now(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_vdso_for_32_bit_programs() {
        // None: this kernel runs no 32-bit programs.
        let Some(found) = vdso() else { return };
        assert_eq!(found.code[..5], *b"\x7fELF\x01");
        let content = crate::elf_content_len(&found.code).unwrap() as usize;
        assert!(content <= found.code.len() && found.code[content..].iter().all(|&b| b == 0));
        assert!(find_int80(&found.code).is_some_and(|at| at < content));
        assert!(!found.vvar.is_empty());
    }
}
