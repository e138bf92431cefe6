//! Notification over vsock on machines without a vsock peer: a child's calls are answered by this program (seccomp user
//! notification) and written down, for libsystemd and for us.
#![allow(unsafe_code, reason = "seccomp, ioctl and reading the memory of a child")]
use crate::api::{Api, Library};
use crate::environments::set_var;
use crate::report::Findings;
use crate::rust_api::RustApi;
use std::ffi::{CStr, c_void};
use std::os::fd::RawFd;

/// How the kernel is played.
#[derive(Clone, Copy, Debug)]
struct Kernel {
    /// Socket types it has.
    types: &'static [i32],
    /// Privileged ports in use, from 1023 down, or the errno of every bind.
    taken: u64,
    bind_errno: i32,
    /// How many bytes one sendmsg takes.
    room: usize,
    /// What the other end says at the end: 0 bytes, or more.
    farewell: i64,
}

const CALLS: [i64; 8] = [
    libc::SYS_socket,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_recvfrom,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
];
const RECV: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;

/// Filters the calls above into a descriptor.
fn install() -> RawFd {
    let stmt = |code: u32, k: u32, jt: u8| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    let mut program = vec![stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (i, nr) in CALLS.iter().enumerate() {
        program.push(stmt(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *nr as u32, (CALLS.len() - i) as u8));
    }
    program.push(stmt(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0));
    program.push(stmt(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_USER_NOTIF, 0));
    let fprog = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program lives through the call, which copies it; it concerns this (child) process only.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let flag = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flag, &raw const fprog) as RawFd
    }
}

fn peek(pid: u32, at: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0u8; len];
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: len };
    let remote = libc::iovec { iov_base: at as *mut c_void, iov_len: len };
    // SAFETY: writes into `buf` only; a bad address in the child gives an error.
    let n = unsafe { libc::process_vm_readv(pid as i32, &raw const local, 1, &raw const remote, 1, 0) };
    buf.truncate(usize::try_from(n).unwrap_or(0));
    buf
}

fn word(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|w| w.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn vm(pid: u32, at: u64) -> String {
    let a = peek(pid, at, 16);
    let half = |i: usize| a.get(i..i + 4).and_then(|w| w.try_into().ok()).map_or(0, u32::from_ne_bytes);
    format!("family {} port {} cid {}", half(0) & 0xffff, half(4), half(8))
}

/// Runs `ask` in a child whose socket calls are answered by `kernel`; what it asked for, and its answer.
fn played(kernel: Kernel, ask: &dyn Fn() -> i32) -> Result<(Vec<String>, i32), String> {
    let mut pair = [0; 2];
    // SAFETY: one thread: the child may do anything and ends by _exit. 500 to 502 are spare numbers for its "sockets".
    unsafe {
        libc::pipe2(pair.as_mut_ptr(), libc::O_CLOEXEC);
        let child = libc::fork();
        if child == 0 {
            for fd in 500..503 {
                libc::dup2(2, fd);
            }
            let listener = install();
            libc::write(pair[1], (&raw const listener).cast(), 4);
            let r = if listener < 0 { 99 } else { -ask() };
            libc::_exit(r)
        }
        let mut number: RawFd = -1;
        libc::read(pair[0], (&raw mut number).cast(), 4);
        let pidfd = libc::syscall(libc::SYS_pidfd_open, child, 0) as RawFd;
        let listener = libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0) as RawFd;
        let mut log = Vec::new();
        if listener >= 0 {
            answer_all(listener, kernel, &mut log);
        }
        let mut status = 0;
        if listener < 0 {
            libc::kill(child, libc::SIGKILL);
        }
        libc::waitpid(child, &raw mut status, 0);
        for fd in [pair[0], pair[1], pidfd, listener] {
            libc::close(fd);
        }
        if listener < 0 || libc::WEXITSTATUS(status) == 99 {
            return Err("no seccomp user notification here".into());
        }
        Ok((log, -(libc::WEXITSTATUS(status) as i8 as i32)))
    }
}

fn answer_all(listener: RawFd, kernel: Kernel, log: &mut Vec<String>) {
    let (mut made, mut bound) = (0, 0);
    loop {
        let mut poll = libc::pollfd { fd: listener, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd; then the kernel writes one notification and reads one answer, both of their own types.
        unsafe {
            if libc::poll(&raw mut poll, 1, 60_000) <= 0 || poll.revents & libc::POLLIN == 0 {
                return;
            }
            let mut n: libc::seccomp_notif = std::mem::zeroed();
            if libc::ioctl(listener, RECV, &raw mut n) != 0 {
                return;
            }
            let (pid, a) = (n.pid, n.data.args);
            let (val, errno): (i64, i32) = match i64::from(n.data.nr) {
                libc::SYS_socket => {
                    log.push(format!("socket({}, {:#x})", a[0], a[1]));
                    let kind = a[1] as i32 & 0xf;
                    made += 1;
                    if kernel.types.contains(&kind) {
                        (499 + made, 0)
                    } else {
                        (0, if made > 1 { libc::ESOCKTNOSUPPORT } else { libc::ENODEV })
                    }
                }
                libc::SYS_bind => {
                    log.push(format!("bind({})", vm(pid, a[1])));
                    bound += 1;
                    (0, if bound <= kernel.taken { libc::EADDRINUSE } else { kernel.bind_errno })
                }
                libc::SYS_connect => {
                    log.push(format!("connect({}, {})", vm(pid, a[1]), a[2]));
                    (0, 0)
                }
                libc::SYS_sendmsg => {
                    let m = peek(pid, a[1], 56);
                    let iov = peek(pid, word(&m, 16), 16);
                    let data = peek(pid, word(&iov, 0), word(&iov, 8) as usize);
                    let name = if word(&m, 0) != 0 { vm(pid, word(&m, 0)) } else { "-".into() };
                    let control = peek(pid, word(&m, 32), word(&m, 40) as usize);
                    log.push(format!(
                        "sendmsg({name}, {:?}, {control:?}, {:#x})",
                        String::from_utf8_lossy(&data),
                        a[2]
                    ));
                    (data.len().min(kernel.room) as i64, 0)
                }
                libc::SYS_shutdown => {
                    log.push(format!("shutdown({})", a[1]));
                    (0, 0)
                }
                libc::SYS_recvfrom => {
                    log.push(format!("recv({})", a[2]));
                    (kernel.farewell, 0)
                }
                // Buffer sizes and time limits: each side as it likes.
                _ => (0, 0),
            };
            let mut r: libc::seccomp_notif_resp = std::mem::zeroed();
            r.id = n.id;
            r.val = val;
            r.error = -errno;
            libc::ioctl(listener, SEND, &raw const r);
        }
    }
}

/// Every scheme over every kind of kernel.
pub(crate) fn delivery(theirs: &Library, found: &mut Findings) -> Result<(), String> {
    const D: i32 = libc::SOCK_DGRAM;
    const S: i32 = libc::SOCK_STREAM;
    const P: i32 = libc::SOCK_SEQPACKET;
    let plain = Kernel { types: &[D, S, P], taken: 0, bind_errno: 0, room: usize::MAX, farewell: 0 };
    let kernels = [
        plain,
        Kernel { types: &[S, P], ..plain },
        Kernel { types: &[S], ..plain },
        Kernel { types: &[], ..plain },
        Kernel { taken: 5, ..plain },
        Kernel { bind_errno: libc::EACCES, ..plain },
        Kernel { bind_errno: libc::ENOMEM, ..plain },
        Kernel { room: 4, ..plain },
        Kernel { types: &[S], room: 4, ..plain },
        Kernel { types: &[S, P], farewell: 1, ..plain },
    ];
    set_var("NOTIFY_SOCKET", Some(b"vsock-stream:2:99999999999"));
    let knows = theirs.notify(false, c"READY=1") == -libc::ERANGE;
    let state: &CStr = c"READY=1\nSTATUS=over vsock";
    for kernel in kernels {
        for address in ["vsock:2:9999", "vsock-stream:host:1", "vsock-seqpacket:7:0x10", "vsock-dgram:local:0"] {
            set_var("NOTIFY_SOCKET", Some(address.as_bytes()));
            let got = played(kernel, &|| RustApi.notify(false, state))?;
            if knows {
                let want = played(kernel, &|| theirs.notify(false, state))?;
                let sends = |log: &[String]| log.iter().filter(|l| l.starts_with("sendmsg")).count();
                if kernel.room < 10 && want.1 == 1 && sends(&want.0) == 1 && sends(&got.0) > 1 {
                    found.explain("a stream that takes a part: this libsystemd (257) never sends the rest");
                    continue;
                }
                found.same(|| format!("{address} on {kernel:?}"), &want, &got);
            }
        }
    }
    if !knows {
        found.explain("vsock addresses: this libsystemd is older than them (253); expected calls instead");
    }
    // What is expected anyway, by sd_notify(3): packets where there are no datagrams, from a privileged port.
    set_var("NOTIFY_SOCKET", Some(b"vsock:2:9999"));
    let got = played(Kernel { types: &[S, P], taken: 1, ..plain }, &|| RustApi.notify(false, c"READY=1"))?;
    let want = [
        "socket(40, 0x80002)",
        "socket(40, 0x80005)",
        "bind(family 40 port 1023 cid 4294967295)",
        "bind(family 40 port 1022 cid 4294967295)",
        "connect(family 40 port 9999 cid 2, 16)",
        "sendmsg(-, \"READY=1\", [], 0x4000)",
        "shutdown(1)",
        "recv(1)",
    ];
    found.same(|| "packets to vsock:2:9999".into(), &(want.map(String::from).to_vec(), 1), &got);
    set_var("NOTIFY_SOCKET", None);
    Ok(())
}
