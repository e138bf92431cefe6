//! A room for one test: pid 1 of a fresh pid namespace with its own /proc, run by commands on stdin.
//!
//! The harness has threads and must not fork, so this small process does. Fields of a line are parted by tabs; each
//! command gets one line back. When stdin closes, it leaves, and the kernel ends everything that is left inside.
//!
//! `spawn LOG N ENV.. ARG..` → `pid P` (own session, stdin /dev/null) · `start LOG N ENV.. ARG..` → the same without a
//! new session · `wait P MS` → `exit N`, `signal N` or `timeout` · `kill P SIG` → `ok` · `ps` → one field per process ·
//! `look` → all that a dump must leave alone, as text.
#![allow(unsafe_code, reason = "fork and exec hooks")]
use rustix::process::{Pid, Signal, WaitOptions};
use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn main() -> io::Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    zoo::sys::close_from(3);
    zoo::sys::default_signals();
    // SAFETY: no descriptor table is unshared and this process has no other threads.
    unsafe { unshare_unsafe(UnshareFlags::NEWPID | UnshareFlags::NEWNS)? };
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let inner = zoo::sys::fork(|| {
        let served = rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(io::Error::from)
            .and_then(|()| Ok(mount("proc", "/proc", "proc", MountFlags::empty(), None)?))
            .and_then(|()| serve_with_terminals());
        i32::from(served.is_err())
    });
    zoo::sys::waitpid(inner).map(|_| ())
}

/// What became of the processes that pid 1 has reaped.
type Ended = HashMap<i32, String>;

/// Serves with pseudo-terminals of the room's own, so that the number of one that is dumped stays free.
fn serve_with_terminals() -> io::Result<()> {
    use rustix::mount::{MountFlags, mount, mount_bind};
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("devpts", "/dev/pts", "devpts", flags, Some(c"newinstance,ptmxmode=0666,mode=620"))?;
    mount_bind("/dev/pts/ptmx", "/dev/ptmx")?;
    serve()
}

fn serve() -> io::Result<()> {
    let (mut ended, mut line, mut out) = (Ended::new(), Vec::new(), io::stdout());
    loop {
        reap(&mut ended)?;
        if !read_line(&mut line)? {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            continue;
        }
        line.pop();
        let text = String::from_utf8_lossy(&line).into_owned();
        line.clear();
        let fields: Vec<&str> = text.split('\t').collect();
        let reply = command(&fields, &mut ended).unwrap_or_else(|e| format!("error {e}"));
        writeln!(out, "{reply}")?;
        out.flush()?;
    }
}

/// Takes what stdin has, one byte at a time so that nothing after the newline is lost; false at its end.
fn read_line(line: &mut Vec<u8>) -> io::Result<bool> {
    if !zoo::sys::readable(rustix::stdio::stdin(), Duration::from_millis(20))? {
        return Ok(true);
    }
    let mut byte = [0];
    loop {
        if rustix::io::read(rustix::stdio::stdin(), &mut byte)? == 0 {
            return Ok(false);
        }
        line.push(byte[0]);
        if byte[0] == b'\n' {
            return Ok(true);
        }
    }
}

fn command(fields: &[&str], ended: &mut Ended) -> io::Result<String> {
    let number = |i: usize| fields.get(i).and_then(|f| f.parse::<i32>().ok()).ok_or(io::ErrorKind::InvalidInput);
    match fields[0] {
        "spawn" | "start" => {
            let (envs, argv) = fields[3..].split_at(number(2)?.unsigned_abs() as usize);
            let log = std::fs::OpenOptions::new().create(true).append(true).open(fields[1])?;
            let argv: Vec<String> = argv.iter().map(|arg| arg.replace(zoo::LINE_BREAK, "\n")).collect();
            let mut command = Command::new(&argv[0]);
            command.args(&argv[1..]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            command.envs(envs.iter().filter_map(|e| e.split_once('=')));
            if fields[0] == "spawn" {
                // SAFETY: setsid is one system call, safe between fork and exec.
                unsafe { command.pre_exec(|| Ok(rustix::process::setsid().map(|_| ())?)) };
            }
            let pid = command.spawn()?.id().cast_signed();
            ended.remove(&pid);
            Ok(format!("pid {pid}"))
        }
        "wait" => {
            let (pid, end) = (number(1)?, Instant::now() + Duration::from_millis(number(2)?.unsigned_abs().into()));
            loop {
                reap(ended)?;
                if let Some(how) = ended.remove(&pid) {
                    return Ok(how);
                }
                if Instant::now() >= end {
                    return Ok("timeout".to_owned());
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        "kill" => {
            zoo::sys::kill(number(1)?, number(2)?)?;
            Ok("ok".to_owned())
        }
        "ps" => Ok(zoo::proc::all()?.into_iter().filter(|p| p.pid != 1).map(|p| format!("\t{p}")).collect()),
        "look" => {
            let all = zoo::proc::all()?.into_iter().filter(|p| p.pid != 1);
            Ok(all.map(|p| zoo::proc::snapshot(p.pid)).collect::<String>().replace('\n', zoo::LINE_BREAK))
        }
        other => Ok(format!("error unknown command {other}")),
    }
}

fn reap(ended: &mut Ended) -> io::Result<()> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let how = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => format!("exit {code}"),
                    (_, Some(signal)) => format!("signal {signal}"),
                    _ => continue,
                };
                ended.insert(Pid::as_raw(Some(pid)), how);
            }
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
