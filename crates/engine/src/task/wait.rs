//! System calls that wait for a time: what limits them, and what a stop does to them.
//!
//! Three sorts. Some the kernel goes on with after a stop (poll, sleeps, futexes). Some it ends with EINTR at every stop
//! (signal(7)) although no signal came; of these some have their limit in a register, and some elsewhere: in the caller's
//! memory, or as an option of the socket. All others begin again with what they had, as absolute times and times that the kernel
//! counts down in place allow.
use super::compat;
use crust_inject::arch::compat as arch;
use crust_inject::arch::regs::{Regs, is_32bit, syscall_args};
use crust_kernel::remote_mem::process_vm_read;
use crust_kernel::{HostTid, VirtAddr};
use std::time::Duration;

/// A system call of a thread, and from where it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Of the call itself, also where that was interrupted once and goes on by restart_syscall(2).
    pub nr: i64,
    /// All of its arguments.
    pub args: [u64; 6],
    /// Where the stack is.
    pub sp: u64,
    /// Behind the instruction that makes it.
    pub ip: u64,
    /// Its number is one of i386.
    pub in_32bit_code: bool,
}

/// A limit of a call that counts from the call on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Milliseconds, in that argument.
    Ms(usize, u64),
    /// What that argument points to.
    Time(usize, Timespec),
    /// An option of the socket.
    Socket(SocketLimit),
}

/// A `struct timespec` of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timespec {
    /// Where it is.
    pub at: u64,
    /// Its fields have 32 bits.
    pub is_narrow: bool,
}

/// The time that a socket may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketLimit {
    /// The descriptor of the socket.
    pub fd: u32,
    /// Of sending, not of receiving.
    pub sends: bool,
}

/// How a wait goes on after a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The kernel itself knows when it ends, and goes on with it.
    Renewed,
    /// It is made again, with what is left in the register of its limit.
    Again,
    /// It is made again, with what is left lent to where its limit is.
    Lent,
}

/// What is left of a wait that is over by now, but was not when its thread was stopped: no limit is to become none at all.
pub const LEAST: Duration = Duration::from_micros(1);

const FUTEX_COMMAND: u64 = 0x7f;
const FUTEX_WAIT: u64 = 0;
const FUTEX_WAIT_BITSET: u64 = 9;

impl Call {
    /// Reads the line of a thread's `syscall` file; `None` for one that is in no call.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let nr = words.next()?.parse().ok().filter(|&nr| nr >= 0)?;
        let mut hex = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        let args = [hex()?, hex()?, hex()?, hex()?, hex()?, hex()?];
        let (sp, ip) = (hex()?, hex()?);
        // What is taken for the other sort of code is no thread's call once that stands still.
        Some(Self { nr, args, sp, ip, in_32bit_code: sp.max(ip) < arch::END })
    }

    /// The call that a stopped thread is in.
    pub fn of(regs: &Regs) -> Self {
        let (args, in_32bit_code) = (syscall_args(regs), is_32bit(regs));
        Self { nr: regs.orig_rax as i64, args, sp: regs.rsp, ip: regs.rip, in_32bit_code }
    }

    /// The call that a thread is about to make with these registers.
    pub fn begun_by(regs: &Regs) -> Self {
        const SYSCALL_INSN_BYTES: u64 = 2;
        Self { nr: regs.rax as i64, ip: regs.rip.wrapping_add(SYSCALL_INSN_BYTES), ..Self::of(regs) }
    }

    /// The same call from the same place, whatever its number.
    pub fn is_made_as(&self, other: &Self) -> bool {
        let place = |c: &Self| (c.args, c.sp, c.ip, c.in_32bit_code);
        place(self) == place(other)
    }

    /// It goes on with another call, interrupted before.
    pub fn goes_on(&self) -> bool {
        self.nr == if self.in_32bit_code { 0 } else { libc::SYS_restart_syscall }
    }

    /// Its number on x86_64, and whether its times have 32 bits.
    fn native(&self) -> Option<(i64, bool)> {
        if self.in_32bit_code { arch::as_native(self.nr) } else { Some((self.nr, false)) }
    }

    /// What limits it. `None`: nothing, or a time that does not count from the call on. A socket may have no limit.
    pub fn limit(&self) -> Option<Limit> {
        let (nr, is_narrow) = self.native()?;
        let ms = |i: usize| u64::try_from(self.args[i] as i32).ok().filter(|&ms| ms > 0).map(|ms| Limit::Ms(i, ms));
        let time = |i: usize| (self.args[i] != 0).then(|| Limit::Time(i, Timespec { at: self.args[i], is_narrow }));
        let socket = |sends| {
            let fd = self.args[0] as u32;
            (fd <= i32::MAX as u32).then_some(Limit::Socket(SocketLimit { fd, sends }))
        };
        match nr {
            libc::SYS_poll => ms(2),
            libc::SYS_nanosleep => time(0),
            libc::SYS_clock_nanosleep => time(2).filter(|_| self.args[1] & libc::TIMER_ABSTIME as u64 == 0),
            libc::SYS_futex => time(3).filter(|_| self.args[1] & FUTEX_COMMAND == FUTEX_WAIT),
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => ms(3),
            libc::SYS_rt_sigtimedwait => time(2),
            libc::SYS_semtimedop | libc::SYS_epoll_pwait2 => time(3),
            libc::SYS_io_getevents => time(4),
            nr if receives(nr) => socket(false),
            nr if sends(nr) => socket(true),
            _ => None,
        }
    }

    /// False for sleeps by the time that processors take.
    pub fn is_by_a_clock_that_runs(&self) -> bool {
        let runs = [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_TAI];
        !matches!(self.native(), Some((libc::SYS_clock_nanosleep, _))) || runs.contains(&(self.args[0] as i32))
    }

    /// How it goes on after a stop with its limit, if it has one.
    pub fn after_stop(&self) -> Option<After> {
        Some(match (self.native()?.0, self.limit()?) {
            (libc::SYS_epoll_wait | libc::SYS_epoll_pwait, _) => After::Again,
            (libc::SYS_poll | libc::SYS_nanosleep | libc::SYS_clock_nanosleep | libc::SYS_futex, _) => After::Renewed,
            _ => After::Lent,
        })
    }

    /// Request and place for the rest of a sleep.
    pub fn sleep(&self) -> Option<(Timespec, Timespec)> {
        let (nr, is_narrow) = self.native()?;
        let at = |at| Timespec { at, is_narrow };
        match nr {
            libc::SYS_nanosleep => Some((at(self.args[0]), at(self.args[1]))),
            libc::SYS_clock_nanosleep if self.args[1] & libc::TIMER_ABSTIME as u64 == 0 => {
                Some((at(self.args[2]), at(self.args[3])))
            }
            _ => None,
        }
    }
}

fn receives(nr: i64) -> bool {
    matches!(
        nr,
        libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg
            | libc::SYS_read
            | libc::SYS_readv
    )
}

fn sends(nr: i64) -> bool {
    matches!(
        nr,
        libc::SYS_connect
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_sendmmsg
            | libc::SYS_write
            | libc::SYS_writev
    )
}

/// True for a call that answered EINTR because a stop interrupted it, as signal(7) lists them, and that had done nothing until
/// then: waits on epoll, for signals, semaphores and AIO, and on sockets with a time limit.
pub fn ended_by_stop(r: &Regs) -> bool {
    let listed = |nr: i64| {
        let waits = matches!(
            nr,
            libc::SYS_epoll_wait
                | libc::SYS_epoll_pwait
                | libc::SYS_epoll_pwait2
                | libc::SYS_rt_sigtimedwait
                | libc::SYS_semop
                | libc::SYS_semtimedop
                | libc::SYS_io_getevents
        );
        waits || receives(nr) || sends(nr)
    };
    r.rax as i64 == -i64::from(libc::EINTR) && compat::call(r).is_some_and(|(nr, _)| listed(nr))
}

/// Calls that wait for a time and can be made again with the arguments they had. How much of the time was left only the kernel
/// knew, except for sleeps that count down in place (the rest is stored where the request is) and futex waits until an absolute
/// time; the others wait for the whole time again. All of these may wait longer than asked for, none may end early.
pub(super) fn waits_for_a_time((nr, args): (i64, [u64; 6])) -> bool {
    match nr {
        libc::SYS_poll | libc::SYS_nanosleep | libc::SYS_clock_nanosleep => true,
        libc::SYS_futex => matches!(args[1] & FUTEX_COMMAND, FUTEX_WAIT | FUTEX_WAIT_BITSET),
        _ => false,
    }
}

impl Timespec {
    /// Its length in bytes.
    pub fn bytes_len(self) -> usize {
        if self.is_narrow { 8 } else { 16 }
    }

    /// What is there.
    pub fn read(self, tid: HostTid) -> Option<Duration> {
        let mut bytes = [0; 16];
        let bytes = &mut bytes[..self.bytes_len()];
        (process_vm_read(tid, VirtAddr(self.at), bytes) == Ok(bytes.len())).then_some(())?;
        let (secs, nanos) = bytes.split_at(self.bytes_len() / 2);
        let [secs, nanos] = [secs, nanos].map(|b| match b.try_into() {
            Ok(wide) => i64::from_ne_bytes(wide),
            Err(_) => b.try_into().map_or(-1, |narrow| i32::from_ne_bytes(narrow).into()),
        });
        Some(Duration::new(secs.try_into().ok()?, nanos.try_into().ok().filter(|&n: &u32| n < 1_000_000_000)?))
    }

    /// `time` as it is written there.
    pub fn bytes(self, time: Duration) -> Vec<u8> {
        if self.is_narrow {
            let secs = i32::try_from(time.as_secs()).unwrap_or(i32::MAX);
            return [secs.to_ne_bytes(), time.subsec_nanos().to_ne_bytes()].concat();
        }
        [time.as_secs().to_ne_bytes(), u64::from(time.subsec_nanos()).to_ne_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_their_limits() {
        let text = "230 0x0 0x0 0x7ffc401fb100 0x7ffc401fb140 0x0 0x0 0x7ffc401fb0e8 0x7ff07b833503\n";
        let call = Call::parse(text).expect("a call");
        assert_eq!((call.nr, call.sp, call.ip), (libc::SYS_clock_nanosleep, 0x7ffc_401f_b0e8, 0x7ff0_7b83_3503));
        assert_eq!(call.sleep().map(|(a, b)| (a.at, b.at)), Some((0x7ffc_401f_b100, 0x7ffc_401f_b140)));
        assert!(call.is_by_a_clock_that_runs());
        let low = Call::parse("162 0xffaf7664 0x0 0x0 0x0 0x0 0x0 0xffaf7630 0xf7f595e9\n").expect("a call");
        let narrow = Timespec { at: 0xffaf_7664, is_narrow: true };
        assert!(low.in_32bit_code && !low.goes_on());
        assert_eq!((low.limit(), low.after_stop()), (Some(Limit::Time(0, narrow)), Some(After::Renewed)));
        for other in ["running", "-1 0x7ffc 0x7ff0", "0 0x1", ""] {
            assert_eq!(Call::parse(other), None, "{other}");
        }
    }

    #[test]
    fn where_limits_are() {
        let call = |nr, args| Call { nr, args, sp: 0, ip: 0, in_32bit_code: false };
        let low = |nr, args| Call { in_32bit_code: true, ..call(nr, args) };
        let wide = |arg, at| Some(Limit::Time(arg, Timespec { at, is_narrow: false }));
        let args = [3, 0x1000, 4, 0x2000, 0, 8];
        assert_eq!(call(libc::SYS_poll, [0, 0, 700, 0, 0, 0]).limit(), Some(Limit::Ms(2, 700)));
        assert_eq!(call(libc::SYS_poll, [0, 0, u64::from(u32::MAX), 0, 0, 0]).limit(), None, "for ever");
        for nr in [libc::SYS_epoll_pwait2, libc::SYS_semtimedop] {
            assert_eq!((call(nr, args).limit(), call(nr, args).after_stop()), (wide(3, 0x2000), Some(After::Lent)));
        }
        assert_eq!(call(libc::SYS_rt_sigtimedwait, [1, 2, 0, 8, 0, 0]).limit(), None, "for ever");
        assert_eq!(call(libc::SYS_futex, [1, 128 | 9, 0, 0x2000, 0, 0]).limit(), None, "absolute");
        let socket = |sends| Some(Limit::Socket(SocketLimit { fd: 3, sends }));
        assert_eq!(call(libc::SYS_read, args).limit(), socket(false));
        assert_eq!(call(libc::SYS_connect, args).limit(), socket(true));
        assert_eq!(call(libc::SYS_read, [u64::MAX; 6]).limit(), None);
        assert_eq!(low(441, args).limit(), wide(3, 0x2000), "i386's epoll_pwait2");
        assert_eq!(low(libc::SYS_read, args).limit(), None, "another call there");
        assert_eq!(low(256, [3, 0, 4, 9, 0, 0]).after_stop(), Some(After::Again), "i386's epoll_wait");
    }

    #[test]
    fn times_as_they_lie_in_memory() {
        let time = Duration::new(7, 8);
        for (is_narrow, len) in [(true, 8), (false, 16)] {
            let bytes = Timespec { at: 0, is_narrow }.bytes(time);
            let here = Timespec { at: bytes.as_ptr() as u64, is_narrow };
            assert_eq!((bytes.len(), here.bytes_len()), (len, len));
            let us = HostTid::new(std::process::id() as i32).expect("an id");
            assert_eq!(here.read(us), Some(time));
        }
    }
}
