//! Sending one stopped thread away to do something for us, and bringing it home.
//!
//! The order of the steps is what makes a dead tracer harmless (measured over tens of thousands of kills):
//! away: the landing is written first, then the registers, then the signal mask. Home: interrupt and continue, so that the
//! thread stops inside get_signal() without reaching user mode; then the mask, then the registers with `orig_rax`, so that
//! the kernel itself restarts the call it was in. Straight from a syscall-exit stop that would not happen and the program
//! would see -512.
use crate::arch::regs::{self, Regs};
use crate::error::{During, Error, Kind, Result};
use crate::seize::SeizedThread;
use crust_kernel::Deadline;
use crust_kernel::ptrace::{self, Stop, Waited};
use rustix::io::Errno;

/// Every signal blocked; the kernel leaves SIGKILL and SIGSTOP out itself.
pub(crate) const ALL_SIGNALS: u64 = u64::MAX;

/// What is to be put back when a thread comes home.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Away {
    /// The mask it has now.
    mask: u64,
}

impl SeizedThread {
    /// Puts other registers and another mask into a stopped thread, whose landing must be written already.
    pub(crate) fn send(&mut self, to: &Regs, mask: u64) -> Result<()> {
        regs::write(self.tid, to).during(self.tid, "setting its registers")?;
        let has = self.away.get_or_insert(Away { mask: self.sigmask });
        if has.mask != mask {
            ptrace::set_sigmask(self.tid, mask).during(self.tid, "blocking its signals")?;
            has.mask = mask;
        }
        Ok(())
    }

    /// Lets it run; the next stop is awaited with [`SeizedThread::poll_stop`] or [`SeizedThread::wait_stop`].
    pub(crate) fn go(&mut self, to_syscall: bool, signal: i32) -> Result<()> {
        self.stopped = None;
        let resumed =
            if to_syscall { ptrace::resume_to_syscall(self.tid, signal) } else { ptrace::resume(self.tid, signal) };
        resumed.during(self.tid, "letting it run")
    }

    fn note(&mut self, news: Waited) -> Result<Stop> {
        match news {
            Waited::Stopped(stop) => {
                self.stopped = Some(stop);
                Ok(stop)
            }
            Waited::Exited(status) => {
                self.gone = true;
                Err(Error::new(Kind::Died, self.tid, format!("it ended with status {status} while we held it")))
            }
            Waited::Killed(signal) => {
                self.gone = true;
                Err(Error::new(Kind::Died, self.tid, format!("it was killed by signal {signal} while we held it")))
            }
        }
    }

    pub(crate) fn poll_stop(&mut self) -> Result<Option<Stop>> {
        match ptrace::poll_wait(self.tid).during(self.tid, "waiting for it")? {
            Some(news) => self.note(news).map(Some),
            None => Ok(None),
        }
    }

    pub(crate) fn wait_stop(&mut self, deadline: Deadline) -> Result<Stop> {
        let news = ptrace::wait(self.tid, deadline).during(self.tid, "waiting for it to come back")?;
        self.note(news)
    }

    /// What to do about a stop that is not the one we wait for: the signal to resume with.
    pub(crate) fn pass_by(&self, stop: Stop) -> Result<i32> {
        match stop {
            // Cannot be blocked; the process stops once we let go.
            Stop::Signal(libc::SIGSTOP) => Ok(libc::SIGSTOP),
            Stop::Signal(
                signal @ (libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP | libc::SIGSYS),
            ) => {
                let what = format!("borrowed code got signal {signal}");
                Err(Error::new(Kind::Unexpected, self.tid, what))
            }
            Stop::Signal(signal) => {
                log::debug!("thread {}: signal {signal} came past a full mask and is dropped", self.tid);
                Ok(0)
            }
            Stop::Syscall | Stop::Interrupted | Stop::GroupStop(_) | Stop::Event(_) => Ok(0),
        }
    }

    /// Runs to the next entry to or exit from a system call.
    pub(crate) fn next_syscall_stop(&mut self, deadline: Deadline) -> Result<()> {
        let mut signal = 0;
        loop {
            self.go(true, signal)?;
            match self.wait_stop(deadline)? {
                Stop::Syscall => return Ok(()),
                other => signal = self.pass_by(other)?,
            }
        }
    }

    /// Makes one system call with the syscall instruction of the landing at `at`, all signals blocked.
    pub(crate) fn call_at(&mut self, at: u64, nr: u64, args: [u64; 6], deadline: Deadline) -> Result<i64> {
        loop {
            let there = regs::with_syscall(&self.regs, at, nr, args);
            self.send(&there, ALL_SIGNALS)?;
            self.next_syscall_stop(deadline)?;
            self.next_syscall_stop(deadline)?;
            let after = regs::read(self.tid).during(self.tid, "reading the result")?;
            let value = regs::result(&after);
            // Only a SIGSTOP can interrupt the call; it is passed on and the call made again.
            if !regs::wants_restart(value) {
                return Ok(value);
            }
        }
    }

    /// Stops it inside get_signal(), wherever it is, and gives it back its mask and registers.
    pub(crate) fn bring_home(&mut self, deadline: Deadline) -> Result<()> {
        if self.away.is_none() {
            return Ok(());
        }
        loop {
            match self.stopped {
                // Cannot be blocked, must not be lost: it is delivered now, and the process stops for good once we let go.
                Some(stop @ (Stop::Syscall | Stop::Event(_) | Stop::Signal(libc::SIGSTOP))) => {
                    ptrace::interrupt(self.tid).during(self.tid, "interrupting it")?;
                    let signal = if stop == Stop::Signal(libc::SIGSTOP) { libc::SIGSTOP } else { 0 };
                    self.go(false, signal)?;
                }
                Some(Stop::Interrupted | Stop::GroupStop(_) | Stop::Signal(_)) => break,
                None => match ptrace::interrupt(self.tid) {
                    Ok(()) => {}
                    Err(Errno::SRCH) => self.gone = true,
                    Err(errno) => return Err(Error::call(self.tid, "interrupting it", errno)),
                },
            }
            self.wait_stop(deadline)?;
        }
        ptrace::set_sigmask(self.tid, self.sigmask).during(self.tid, "giving it back its signal mask")?;
        regs::write(self.tid, &self.regs).during(self.tid, "giving it back its registers")?;
        self.away = None;
        if let Some(Stop::Signal(_)) = self.stopped {
            // Our own mark, or a fault of borrowed code: it ends here.
            self.stopped = Some(Stop::Interrupted);
        }
        Ok(())
    }
}
