//! Single system calls made by a borrowed thread, and the area of ours in the target that they need.
use crate::arch::{landing, regs};
use crate::error::{During, Error, Kind, Result};
use crate::home::Call;
use crate::seccomp;
use crate::seize::{GRACE, SeizedProcess};
use crate::site::Site;
use crust_kernel::procfs::ProcDir;
use crust_kernel::ptrace::{self, Stop, StopWaiter};
use crust_kernel::remote_mem::RemoteMem;
use crust_kernel::{Deadline, HostTid, VirtAddr};
use rustix::io::Errno;
use std::sync::Arc;

/// One borrowed thread. [`Remote::finish`] gives it back; dropping it leaves that to the process's release.
#[derive(Debug)]
pub struct Remote<'a> {
    process: &'a mut SeizedProcess,
    tid: HostTid,
}

impl SeizedProcess {
    /// The target's memory, readable and writable whatever the protections.
    ///
    /// # Errors
    /// `Permission` or `Died`.
    pub fn memory(&mut self) -> Result<&RemoteMem> {
        if self.mem.is_none() {
            self.mem = Some(RemoteMem::open(self.living()).during(self.pid, "opening its memory")?);
        }
        self.mem.as_ref().ok_or_else(|| Error::new(Kind::Unexpected, self.pid, "no memory file"))
    }

    /// A thread through which memory and mappings can be seen: a leader that has ended shows none.
    pub(crate) fn living(&self) -> HostTid {
        self.threads.iter().find(|t| !t.gone).map_or(self.pid, |t| t.tid)
    }

    pub(crate) fn index_of(&self, tid: HostTid) -> Result<usize> {
        let found = self.threads.iter().position(|t| t.tid == tid && !t.gone);
        found.ok_or_else(|| Error::new(Kind::Died, tid, format!("it is no stopped thread of process {}", self.pid)))
    }

    /// Places of several threads. Who asks for all asks in order, which makes it one walk.
    pub(crate) fn indices_of(&self, tids: impl Iterator<Item = HostTid>) -> Result<Vec<usize>> {
        let mut next = 0;
        tids.map(|tid| {
            let here = self.threads.get(next).is_some_and(|t| t.tid == tid && !t.gone);
            let index = if here { next } else { self.index_of(tid)? };
            next = index + 1;
            Ok(index)
        })
        .collect()
    }

    pub(crate) fn find_site(&mut self) -> Result<()> {
        self.memory()?;
        if self.site.is_some() {
            return Ok(());
        }
        let living = self.living();
        // A leader that has ended shows no mappings.
        let dir = if living == self.pid {
            self.dir()?
        } else {
            Arc::new(ProcDir::open(living).during(living, "opening its /proc directory")?)
        };
        if let Some(mem) = &self.mem {
            self.site = Some(Site::find(living, &dir, mem)?);
        }
        Ok(())
    }

    pub(crate) fn parts(&mut self) -> Result<(&mut Site, &RemoteMem, &mut Vec<crate::SeizedThread>)> {
        match (&mut self.site, &self.mem) {
            (Some(site), Some(mem)) => Ok((site, mem, &mut self.threads)),
            _ => Err(Error::new(Kind::Unexpected, self.pid, "no place for landings looked for yet")),
        }
    }

    /// True for a 32-bit program.
    ///
    /// # Errors
    /// `Unsupported`: it runs code of the other sort than the kernel made it for, which says how its signals are handled.
    pub fn is_32bit(&mut self) -> Result<bool> {
        self.find_site()?;
        let (site, _, threads) = self.parts()?;
        let made_for = site.is_low();
        match threads.iter().find(|t| regs::is_32bit(&t.regs) != made_for) {
            None => Ok(made_for),
            Some(t) if made_for => Err(Error::new(Kind::Unsupported, t.tid, "it runs 64-bit code in a 32-bit program")),
            Some(t) => Err(Error::new(Kind::Unsupported, t.tid, "it runs 32-bit code in a 64-bit program")),
        }
    }

    /// Borrows a thread for single calls. Signals stay blocked in it until it is home.
    ///
    /// # Errors
    /// `Unsupported`: no room for a landing, or a seccomp filter that cannot be suspended.
    pub fn borrow_thread(&mut self, tid: HostTid) -> Result<Remote<'_>> {
        let index = self.index_of(tid)?;
        self.find_site()?;
        seccomp::make_way(self.pid, &mut self.threads[index], self.options)?;
        Ok(Remote { process: self, tid })
    }

    /// Makes one call through a landing in the vDSO padding: works without an area.
    pub(crate) fn call_from_vdso(&mut self, index: usize, nr: i64, args: [u64; 6]) -> Result<i64> {
        self.find_site()?;
        let deadline = self.deadline;
        let call = self.start_from_vdso(index, nr, args)?;
        self.threads[index].finish_call(call, deadline)
    }

    /// Sends a thread off to make one call through a landing in the vDSO padding.
    pub(crate) fn start_from_vdso(&mut self, index: usize, nr: i64, args: [u64; 6]) -> Result<Call> {
        let (site, mem, threads) = self.parts()?;
        let thread = &mut threads[index];
        let home = regs::as_resumed_by_hand(&thread.regs);
        let at = site.vdso_landing(mem, thread.tid, &landing::compact(&home, thread.sigmask))?;
        Call::start(thread, at, nr as u64, args)
    }

    /// Makes one call through a landing in the area.
    fn call_from_area(&mut self, index: usize, nr: i64, args: [u64; 6]) -> Result<i64> {
        let deadline = self.deadline;
        let at = self.write_landings(&[index])?[0];
        let (_, _, threads) = self.parts()?;
        let call = Call::start(&mut threads[index], at, nr as u64, args)?;
        threads[index].finish_call(call, deadline)
    }

    /// Landings in the area for these threads, written before any of them goes there.
    pub(crate) fn write_landings(&mut self, indices: &[usize]) -> Result<Vec<u64>> {
        let pid = self.pid;
        let (site, mem, threads) = self.parts()?;
        let tids: Vec<HostTid> = indices.iter().map(|&i| threads[i].tid).collect();
        let places = site.take_landings(mem, &tids)?;
        // Neighbours are written in one go: places are handed out in order.
        let mut run: Option<(u64, Vec<u8>)> = None;
        for (&(at, new), &index) in places.iter().zip(indices) {
            if !new {
                continue;
            }
            let thread = &threads[index];
            let code = landing::full(at, &regs::as_resumed_by_hand(&thread.regs), thread.sigmask);
            match &mut run {
                Some((start, bytes)) if *start + bytes.len() as u64 == at => bytes.extend_from_slice(&code),
                _ => {
                    if let Some((start, bytes)) = run.replace((at, code.to_vec())) {
                        mem.write(VirtAddr(start), &bytes).during(pid, "writing landings")?;
                    }
                }
            }
        }
        if site.is_unwritten() {
            // Nothing stands in a new area, so that its landings are one piece.
            site.publish(mem, run.as_ref().map(|(at, code)| (*at, code.as_slice())))?;
        } else if let Some((start, bytes)) = run {
            mem.write(VirtAddr(start), &bytes).during(pid, "writing landings")?;
        }
        Ok(places.into_iter().map(|(at, _)| at).collect())
    }

    /// Makes sure that there is an area with room for so many landings and bytes of data. Thread `index` maps it if not.
    pub(crate) fn ensure_area(&mut self, index: usize, landings: usize, data: u64) -> Result<()> {
        self.find_site()?;
        let (site, mem, threads) = self.parts()?;
        if site.has_room(mem, landings, data) {
            return Ok(());
        }
        let from_area = !site.has_vdso_place(threads[index].tid) && site.has_room(mem, 1, 0);
        let call = if from_area { Self::call_from_area } else { Self::call_from_vdso };
        let mut tight = false;
        let (base, len, data_at) = loop {
            let (len, data_at) = Site::plan_area(landings, data, tight);
            let (site, _, _) = self.parts()?;
            let args = if tight { site.map_args_anywhere(len) } else { site.map_args(len) };
            let got = call(self, index, libc::SYS_mmap, args)?;
            match errno_of(got) {
                None => break (got as u64, len, data_at),
                // A limit on address space or locked memory: ask for no more than is needed.
                Some(Errno::NOMEM | Errno::AGAIN) if !tight => tight = true,
                Some(errno) => return Err(Error::call(self.pid, "mapping our area in it", errno)),
            }
        };
        let got = call(self, index, libc::SYS_mprotect, writable_args(base, len, data_at))?;
        if let Some(errno) = errno_of(got) {
            // Without room to write in there is no use for it.
            call(self, index, libc::SYS_munmap, [base, len, 0, 0, 0, 0])?;
            return Err(Error::call(self.pid, "making part of our area writable", errno));
        }
        let (site, mem, _) = self.parts()?;
        site.adopt(base, len, data_at);
        site.publish(mem, None)
    }

    /// Brings all borrowed threads home and removes every trace of ours from the target. Done by release as well.
    ///
    /// # Errors
    /// The first thing that could not be put back.
    pub fn clean_up(&mut self) -> Result<()> {
        let deadline = Deadline::after(self.deadline.remaining().max(GRACE));
        let mut first = None;
        for thread in self.threads.iter_mut().filter(|t| t.away.is_some() && !t.gone) {
            if let Err(e) = thread.bring_home(deadline) {
                first.get_or_insert(e);
            }
        }
        if self.site.is_none() {
            return first.map_or(Ok(()), Err);
        }
        if first.is_none()
            && let Err(e) = self.remove_traces(deadline)
        {
            first = Some(e);
        }
        // Whatever could not be removed stays burnt: nothing of it is ever reused by assumption.
        self.site = None;
        self.mem = None;
        first.map_or(Ok(()), Err)
    }

    fn remove_traces(&mut self, deadline: Deadline) -> Result<()> {
        let request = std::mem::replace(&mut self.deadline, deadline);
        let removed = self.remove_areas();
        self.deadline = request;
        removed?;
        let (site, mem, _) = self.parts()?;
        site.retire_area(mem)?;
        site.retire_vdso(mem)
    }

    fn remove_areas(&mut self) -> Result<()> {
        let deadline = self.deadline;
        let (site, _, threads) = self.parts()?;
        let areas = site.removable_areas();
        if areas.is_empty() {
            return Ok(());
        }
        // The thread that has a place already, or else the first for which there is one. Without one the area stays and
        // is found again through the registry.
        let holder = threads.iter().position(|t| !t.gone && site.has_vdso_place(t.tid));
        let Some(index) = holder else { return Ok(()) };
        let tid = threads[index].tid;
        let mut first = None;
        for (base, len) in areas {
            let got = self.call_from_vdso(index, libc::SYS_munmap, [base, len, 0, 0, 0, 0])?;
            if let Some(errno) = errno_of(got) {
                first.get_or_insert(Error::call(tid, "unmapping our area", errno));
            }
        }
        self.threads[index].bring_home(deadline)?;
        let (site, mem, _) = self.parts()?;
        site.areas_removed(mem)?;
        first.map_or(Ok(()), Err)
    }

    /// Lets threads that wait in a restore plan's barrier run on, up to the exit of their rt_sigreturn; open the barrier
    /// after this, then call [`SeizedProcess::await_sigreturn`].
    ///
    /// # Errors
    /// `Died` if one is gone.
    pub fn start_to_sigreturn(&mut self) -> Result<()> {
        self.threads.iter_mut().try_for_each(|t| t.go(true, 0))
    }

    /// Waits until every thread stands at the exit of rt_sigreturn: it has its own registers and mask, and has run none of
    /// its own code. Those registers are then the ones it goes on with.
    ///
    /// # Errors
    /// `Timeout`, or `Died` if a thread ended, which means that its plan failed.
    pub fn await_sigreturn(&mut self) -> Result<()> {
        let mut entered = vec![false; self.threads.len()];
        let mut done = vec![false; self.threads.len()];
        let mut waiter = StopWaiter::new();
        while done.iter().any(|d| !d) {
            let mut progress = false;
            for (i, thread) in self.threads.iter_mut().enumerate().filter(|(i, _)| !done[*i]).collect::<Vec<_>>() {
                let Some(stop) = thread.poll_stop()? else { continue };
                progress = true;
                let now = regs::read(thread.tid).during(thread.tid, "reading its registers")?;
                if stop != Stop::Syscall {
                    let signal = thread.pass_by(stop)?;
                    thread.go(true, signal)?;
                } else if entered[i] {
                    thread.regs = now;
                    thread.sigmask = ptrace::get_sigmask(thread.tid).during(thread.tid, "reading its signal mask")?;
                    done[i] = true;
                } else {
                    entered[i] = regs::syscall_nr(&now) == libc::SYS_rt_sigreturn as u64;
                    thread.go(true, 0)?;
                }
            }
            if progress {
                waiter.reset();
            } else if !waiter.pause(self.deadline) {
                return Err(Error::new(
                    Kind::Timeout,
                    self.pid,
                    "its threads did not reach the end of their restore plans",
                ));
            }
        }
        Ok(())
    }

    /// True if the kernel tells the process that it has nobody to wait for: no thread of it has a child, living or dead, nor a
    /// tracee. Nobody is waited for, and no zombie goes. For a process whose first thread may make that call.
    ///
    /// # Errors
    /// As [`SeizedProcess::borrow_thread`], or if the call could not be made.
    pub fn has_no_children(&mut self) -> Result<bool> {
        let first = self.living();
        let what = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        let mut remote = self.borrow_thread(first)?;
        let told = remote.syscall(libc::SYS_waitid, [libc::P_ALL.into(), 0, 0, what as u64, 0, 0]);
        remote.finish()?;
        Ok(errno_of(told?) == Some(Errno::CHILD))
    }

    /// Unmaps memory that no thread needs any more, such as a restorer's staging area, through the vDSO.
    ///
    /// # Errors
    /// `Kernel` with munmap's errno; `Unsupported` if there is no place for a landing.
    pub fn munmap_from_outside(&mut self, tid: HostTid, from: VirtAddr, len_bytes: u64) -> Result<()> {
        let index = self.index_of(tid)?;
        seccomp::make_way(self.pid, &mut self.threads[index], self.options)?;
        let got = self.call_from_vdso(index, libc::SYS_munmap, [from.as_raw(), len_bytes, 0, 0, 0, 0])?;
        self.threads[index].bring_home(self.deadline)?;
        let (site, mem, _) = self.parts()?;
        site.retire_vdso(mem)?;
        match errno_of(got) {
            None => Ok(()),
            Some(errno) => Err(Error::call(tid, format!("unmapping {len_bytes:#x} bytes at {from}"), errno)),
        }
    }
}

/// mprotect's arguments for its data: writable, and not executable any more.
pub(crate) fn writable_args(base: u64, len: u64, data_at: u64) -> [u64; 6] {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    [base + data_at, len - data_at, prot as u64, 0, 0, 0]
}

/// The error in a syscall's result.
pub(crate) fn errno_of(result: i64) -> Option<Errno> {
    (-4095..0).contains(&result).then(|| Errno::from_raw_os_error(-(result as i32)))
}

impl Remote<'_> {
    /// Makes one system call; the result is the kernel's, `-errno` for a failure of the call itself. A call that blocks
    /// blocks the thread: only the deadline ends that.
    ///
    /// # Errors
    /// If the call could not be made at all.
    pub fn syscall(&mut self, nr: i64, args: [u64; 6]) -> Result<i64> {
        let index = self.process.index_of(self.tid)?;
        if self.process.site.as_ref().is_some_and(|s| s.area.is_some()) {
            let (site, mem, _) = self.process.parts()?;
            if site.has_room(mem, 1, 0) {
                return self.process.call_from_area(index, nr, args);
            }
        }
        self.process.call_from_vdso(index, nr, args)
    }

    /// As [`Remote::syscall`], with a failed call as an error that carries `what` and the errno.
    ///
    /// # Errors
    /// `Kernel` with the call's errno, or as [`Remote::syscall`].
    pub fn syscall_ok(&mut self, what: &str, nr: i64, args: [u64; 6]) -> Result<u64> {
        let got = self.syscall(nr, args)?;
        match errno_of(got) {
            None => Ok(got as u64),
            Some(errno) => Err(Error::call(self.tid, what, errno)),
        }
    }

    /// Scratch memory in the target, aligned to 64 bytes; it goes away with the borrowed process's clean-up.
    ///
    /// # Errors
    /// If no area could be mapped.
    pub fn scratch(&mut self, bytes: usize) -> Result<VirtAddr> {
        let index = self.process.index_of(self.tid)?;
        self.process.ensure_area(index, 1, bytes as u64)?;
        let (site, mem, _) = self.process.parts()?;
        site.take_data(mem, bytes as u64).map(VirtAddr)
    }

    /// Puts bytes into scratch memory.
    ///
    /// # Errors
    /// As [`Remote::scratch`].
    pub fn lend(&mut self, bytes: &[u8]) -> Result<VirtAddr> {
        let at = self.scratch(bytes.len())?;
        self.process.memory()?.write(at, bytes).during(self.tid, "writing scratch memory")?;
        Ok(at)
    }

    /// Reads the target's memory.
    ///
    /// # Errors
    /// `Kernel` with `EIO` where nothing is mapped.
    pub fn read(&mut self, from: VirtAddr, buf: &mut [u8]) -> Result<()> {
        self.process.memory()?.read(from, buf).during(self.tid, "reading its memory")
    }

    /// Gives the thread its registers and mask back; it stays stopped.
    ///
    /// # Errors
    /// What could not be put back.
    pub fn finish(self) -> Result<()> {
        let index = self.process.index_of(self.tid)?;
        let deadline = Deadline::after(self.process.deadline.remaining().max(GRACE));
        self.process.threads[index].bring_home(deadline)
    }
}
