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

    /// Waits for the end of a call that it was sent off to make.
    pub(crate) fn finish_call(&mut self, mut call: Call, deadline: Deadline) -> Result<i64> {
        loop {
            let stop = self.wait_stop(deadline)?;
            if let Some(value) = call.step(self, stop)? {
                return Ok(value);
            }
        }
    }

    /// Stops it inside get_signal(), wherever it is, and gives it back its mask and registers.
    pub(crate) fn bring_home(&mut self, deadline: Deadline) -> Result<()> {
        while !self.step_home()? {
            self.wait_stop(deadline)?;
        }
        Ok(())
    }

    /// One step on the way home from wherever it stands; true once it is there. Otherwise its next stop is to be awaited.
    pub(crate) fn step_home(&mut self) -> Result<bool> {
        if self.away.is_none() {
            return Ok(true);
        }
        match self.stopped {
            // Cannot be blocked, must not be lost: it is delivered now, and the process stops for good once we let go.
            Some(stop @ (Stop::Syscall | Stop::Event(_) | Stop::Signal(libc::SIGSTOP))) => {
                ptrace::interrupt(self.tid).during(self.tid, "interrupting it")?;
                let signal = if stop == Stop::Signal(libc::SIGSTOP) { libc::SIGSTOP } else { 0 };
                self.go(false, signal)?;
                return Ok(false);
            }
            Some(Stop::Interrupted | Stop::GroupStop(_) | Stop::Signal(_)) => {}
            None => {
                match ptrace::interrupt(self.tid) {
                    Ok(()) => {}
                    Err(Errno::SRCH) => self.gone = true,
                    Err(errno) => return Err(Error::call(self.tid, "interrupting it", errno)),
                }
                return Ok(false);
            }
        }
        ptrace::set_sigmask(self.tid, self.sigmask).during(self.tid, "giving it back its signal mask")?;
        regs::write(self.tid, &self.regs).during(self.tid, "giving it back its registers")?;
        self.away = None;
        if let Some(Stop::Signal(_)) = self.stopped {
            // Our own mark, or a fault of borrowed code: it ends here.
            self.stopped = Some(Stop::Interrupted);
        }
        Ok(true)
    }
}

/// One system call on its way through a landing, from stop to stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// Where the landing lies.
    at: u64,
    nr: u64,
    args: [u64; 6],
    /// The stop at its entry has been.
    entered: bool,
}

impl Call {
    /// Sends a thread off, all signals blocked, to make the call with the syscall instruction of the landing at `at`. It
    /// must not stand at the entry of another call.
    pub(crate) fn start(thread: &mut SeizedThread, at: u64, nr: u64, args: [u64; 6]) -> Result<Self> {
        let there = regs::with_syscall(&thread.regs, at, nr, args);
        thread.send(&there, ALL_SIGNALS)?;
        thread.go(true, 0)?;
        Ok(Self { at, nr, args, entered: false })
    }

    /// Goes on from a stop: the result, or `None` if there is another stop to come.
    pub(crate) fn step(&mut self, thread: &mut SeizedThread, stop: Stop) -> Result<Option<i64>> {
        if stop != Stop::Syscall {
            let signal = thread.pass_by(stop)?;
            thread.go(true, signal)?;
            return Ok(None);
        }
        if !self.entered {
            self.entered = true;
            thread.go(true, 0)?;
            return Ok(None);
        }
        let after = regs::read(thread.tid).during(thread.tid, "reading the result")?;
        let value = regs::result(&after);
        // Only a SIGSTOP can interrupt the call; it is passed on and the call made again.
        if regs::wants_restart(value) {
            *self = Self::start(thread, self.at, self.nr, self.args)?;
            return Ok(None);
        }
        Ok(Some(value))
    }
}
