//! Kernels that lack an interface, as far as a filter for system calls can play one: what newer kernels brought, or what a
//! kernel may be built without, says that it is not there. Then dump and restore work nevertheless, or say in one error what
//! to do, and the program runs on.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "the filter is installed between fork and exec")]
mod common;
#[path = "../../../zoo/src/i386.rs"]
#[allow(dead_code, unreachable_pub, reason = "the zoo, whose it is, uses more of it")]
mod i386;

use common::{CRUST, Dir, inside, output_text};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What one interface's absence leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Everything works without.
    Works,
    /// The dump says no.
    NoDump,
    /// The restore says no.
    NoRestore,
}
use Then::{NoDump, NoRestore, Works};

/// A call, or only one request of it (argument, value), and how an older kernel refuses it.
struct Lack {
    name: &'static str,
    call: libc::c_long,
    only: Option<(u32, u32)>,
    errno: i32,
    then: Then,
}

const fn call(name: &'static str, call: libc::c_long, then: Then) -> Lack {
    Lack { name, call, only: None, errno: libc::ENOSYS, then }
}

const fn request(name: &'static str, call: libc::c_long, argument: u32, value: u32, errno: i32, then: Then) -> Lack {
    Lack { name, call, only: Some((argument, value)), errno, then }
}

#[rustfmt::skip]
const LACKS: &[Lack] = &[
    call("clone3", libc::SYS_clone3, NoRestore),
    call("openat2", libc::SYS_openat2, Works),
    call("pidfd_open", libc::SYS_pidfd_open, NoDump),
    call("pidfd_getfd", libc::SYS_pidfd_getfd, NoDump),
    call("pidfd_send_signal", libc::SYS_pidfd_send_signal, Works),
    call("kcmp", libc::SYS_kcmp, NoDump),
    call("process_vm_readv", libc::SYS_process_vm_readv, NoDump),
    call("process_vm_writev", libc::SYS_process_vm_writev, Works),
    call("process_madvise", libc::SYS_process_madvise, Works),
    call("memfd_create", libc::SYS_memfd_create, Works),
    call("membarrier", libc::SYS_membarrier, Works),
    call("rseq", libc::SYS_rseq, NoRestore),
    call("mseal", 462, Works),
    call("userfaultfd", libc::SYS_userfaultfd, Works),
    call("copy_file_range", libc::SYS_copy_file_range, Works),
    call("close_range", libc::SYS_close_range, NoRestore),
    call("io_setup", libc::SYS_io_setup, Works),
    call("mlock2", libc::SYS_mlock2, Works),
    call("statx", libc::SYS_statx, Works),
    call("sched_getattr", libc::SYS_sched_getattr, NoDump),
    call("get_robust_list", libc::SYS_get_robust_list, NoDump),
    call("get_mempolicy", libc::SYS_get_mempolicy, Works),
    call("sched_setaffinity", libc::SYS_sched_setaffinity, Works),
    call("preadv2", libc::SYS_preadv2, Works),
    call("sync_file_range", libc::SYS_sync_file_range, Works),
    request("PAGEMAP_SCAN", libc::SYS_ioctl, 1, 0xc060_6610, libc::ENOTTY, Works),
    request("PROCMAP_QUERY", libc::SYS_ioctl, 1, 0xc068_6611, libc::ENOTTY, Works),
    request("netlink sockets", libc::SYS_socket, 0, 16, libc::EAFNOSUPPORT, Works),
    request("PR_TIMER_CREATE_RESTORE_IDS", libc::SYS_prctl, 0, 77, libc::EINVAL, Works),
    request("PR_SET_MM", libc::SYS_prctl, 0, 35, libc::EINVAL, NoRestore),
    request("time namespaces", libc::SYS_unshare, 0, 0x80, libc::EINVAL, Works),
    request("PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG", libc::SYS_ptrace, 0, 0x4211, libc::EIO, Works),
    request("PTRACE_SECCOMP_GET_FILTER", libc::SYS_ptrace, 0, 0x420c, libc::EIO, Works),
    request("PTRACE_SEIZE", libc::SYS_ptrace, 0, 0x4206, libc::EIO, NoDump),
    request("PTRACE_GETSIGMASK", libc::SYS_ptrace, 0, 0x420a, libc::EIO, NoDump),
];

impl Lack {
    fn filter(&self) -> Vec<libc::sock_filter> {
        const LOAD: u16 = 0x20;
        const EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        let op = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
        let mut all = vec![op(LOAD, 0, 0), op(EQUAL, if self.only.is_some() { 3 } else { 1 }, self.call as u32)];
        if let Some((argument, value)) = self.only {
            all.extend([op(LOAD, 0, 16 + 8 * argument), op(EQUAL, 1, value)]);
        }
        all.extend([op(RETURN, 0, 0x0005_0000 | self.errno as u32), op(RETURN, 0, 0x7fff_0000)]);
        all
    }

    /// crust, on such a kernel.
    fn crust(&self, dir: &Dir, args: &[&str]) -> Output {
        let mut command = crust(dir, args);
        let filter = self.filter();
        let install = move || {
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
            // SAFETY: the program and its instructions live through the call, which only reads them. Async-signal-safe.
            let done = unsafe { libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program) };
            if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: a system call is all that happens in there.
        unsafe { command.pre_exec(install) };
        ended(command.spawn().unwrap(), self.name)
    }
}

/// What a program that has to end said.
fn ended(mut child: Child, name: &str) -> Output {
    const LIMIT: Duration = Duration::from_secs(120);
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("without {name} it does not end: {}", output_text(&child.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn crust(dir: &Dir, args: &[&str]) -> Command {
    let mut command = Command::new(CRUST);
    command.args(args).current_dir(&dir.0).env_clear().stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What is wrong with a refusal: it has to be one error, with a remedy.
fn badly_said(output: &Output) -> Option<String> {
    let text = String::from_utf8_lossy(&output.stderr);
    let good = output.status.code() == Some(1) && text.matches("Error:").count() == 1 && text.contains("help: ");
    (!good).then(|| output_text(output))
}

fn end(pid: i32, child: bool) {
    let pid = Pid::from_raw(pid).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    if child {
        waitpid(Some(pid), WaitOptions::empty()).unwrap();
    } else {
        // A restored tree is no child of ours but of the namespace's first process, which is us.
        while waitpid(Some(pid), WaitOptions::empty()).is_err_and(|e| e == rustix::io::Errno::INTR) {}
    }
}

/// What came of it, and what is wrong with that.
fn try_without(lack: &Lack, faults: &mut Vec<String>) -> Then {
    let dir = Dir::new("lacking");
    let pid = dir.start_sample(&[]);
    let images = dir.path("images");
    let mut bad = |what: &str, output: &Output| {
        if let Some(text) = badly_said(output) {
            faults.push(format!("{} without {}: {text}", what, lack.name));
        }
    };
    let dumped = lack.crust(&dir, &["dump", "-t", &pid.to_string(), "-D", "images", "--shell-job", "-o", "dump.log"]);
    if !dumped.status.success() {
        bad("dump", &dumped);
        let left: Vec<_> = fs::read_dir(&images).unwrap().map(|e| e.unwrap().file_name()).collect();
        let only_log = left.iter().all(|name| name.to_string_lossy().ends_with(".log"));
        dir.sample_goes_on(500);
        end(pid, true);
        if !only_log {
            faults.push(format!("without {} a failed dump left {left:?}", lack.name));
        }
        return NoDump;
    }
    waitpid(Some(Pid::from_raw(pid).unwrap()), WaitOptions::empty()).unwrap();
    let args = ["restore", "-d", "-D", "images", "--shell-job", "-o", "restore.log"];
    let restored = lack.crust(&dir, &args);
    let then = if restored.status.success() {
        Works
    } else {
        bad("restore", &restored);
        assert!(!fs::exists(format!("/proc/{pid}")).unwrap(), "{}: a failed restore leaves nothing", lack.name);
        let again = crust(&dir, &args).output().unwrap();
        assert!(again.status.success(), "{}: {}", lack.name, output_text(&again));
        NoRestore
    };
    dir.sample_goes_on(500);
    end(pid, false);
    then
}

#[test]
fn without_an_interface_it_works_or_says_so() {
    if !inside("without_an_interface_it_works_or_says_so") {
        return;
    }
    let mut faults = Vec::new();
    for lack in LACKS {
        let then = try_without(lack, &mut faults);
        if then != lack.then {
            faults.push(format!("without {}: {then:?}, expected: {:?}", lack.name, lack.then));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Starts a 32-bit program; `None` where that cannot be.
fn start_32bit(dir: &Dir) -> Option<Child> {
    let (file, page) = (dir.path("i386"), dir.path("page"));
    fs::write(&file, i386::file()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&page, [0; 4096]).unwrap();
    let mut command = Command::new(file);
    command.arg(page).arg("c").current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        Err(e) if e.raw_os_error() == Some(libc::ENOEXEC) => None,
        spawned => Some(spawned.unwrap()),
    }
}

/// It counts on, and finds nothing wrong.
fn counts(dir: &Dir) {
    let word = |i: usize| {
        let page = fs::read(dir.path("page")).unwrap();
        u64::from_le_bytes(page[8 * i..8 * i + 8].try_into().unwrap())
    };
    let (from, start) = (word(i386::COUNT_MAIN), Instant::now());
    while word(i386::COUNT_MAIN) < from + 10 {
        assert!(start.elapsed() < Duration::from_secs(120), "the 32-bit program stands still");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(word(i386::CORRUPT), 0);
}

#[test]
fn a_32_bit_program_needs_a_kernel_that_runs_such() {
    if !inside("a_32_bit_program_needs_a_kernel_that_runs_such") {
        return;
    }
    let dir = Dir::new("lacking");
    fs::create_dir(dir.path("images")).unwrap();
    let Some(mut program) = start_32bit(&dir) else { return };
    let pid = program.id().cast_signed();
    counts(&dir);
    let lack = request("ARCH_MAP_VDSO_32", libc::SYS_arch_prctl, 0, 0x2002, libc::EINVAL, NoRestore);
    let asked = ["check", "--feature", "compat_cr"];
    assert_eq!(lack.crust(&dir, &asked).status.code(), Some(1));
    assert!(crust(&dir, &asked).status().unwrap().success());

    let pid_arg = pid.to_string();
    let dumped =
        crust(&dir, &["dump", "-t", &pid_arg, "-D", "images", "--shell-job", "-o", "dump.log"]).output().unwrap();
    assert!(dumped.status.success(), "{}", output_text(&dumped));
    program.wait().unwrap();
    let args = ["restore", "-d", "-D", "images", "--shell-job", "-o", "restore.log"];
    let refused = lack.crust(&dir, &args);
    assert_eq!(badly_said(&refused), None);
    assert!(output_text(&refused).contains("32-bit task"), "{}", output_text(&refused));
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
    let restored = crust(&dir, &args).output().unwrap();
    assert!(restored.status.success(), "{}", output_text(&restored));
    counts(&dir);
    end(pid, false);
}
