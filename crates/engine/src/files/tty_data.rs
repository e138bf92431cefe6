//! Bytes that wait inside the tree's ptys: what was typed and what programs wrote.
//!
//! The kernel shows them to readers only. So, with every task stopped, they are taken and put back at once, the terminal
//! being quiet meanwhile: each byte stands for itself, and its echo says that it has arrived. Lines stay lines, an end of
//! file typed at a terminal stays one, and half a line stays half a line. The restore puts them in the same way.
use super::restore::Opener;
use super::table::Records;
use super::tty::from_record;
use crate::{Error, Kind, Object, Result, ResultExt};
use crust_image::proto::{TtyDataEntry, TtyInfoEntry};
use crust_kernel::tty::{self, Termios};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

const ICANON: u32 = 0o2;
const ECHO: u32 = 0o10;
const IEXTEN: u32 = 0o100_000;
const EXTPROC: u32 = 0o200_000;
const VEOF: usize = 4;
const VTIME: usize = 5;
const VMIN: usize = 6;
const VEOL: usize = 11;
const VEOL2: usize = 16;
/// Beyond this the kernel may hold back more than it shows, and lines may have been cut.
const LIMIT: usize = 4000;
/// How much is written before its echo is waited for.
const CHUNK: usize = 128;
const PATIENCE: Duration = Duration::from_secs(10);

/// What was typed: lines as a program reads them, and what is no line yet.
#[derive(Debug, Default, PartialEq, Eq)]
struct Typed {
    data: Vec<u8>,
    /// How many bytes stand before each end of file.
    ends: Vec<usize>,
}

fn ready(fd: BorrowedFd<'_>, want: PollFlags, limit: Duration) -> Result<PollFlags> {
    let mut fds = [PollFd::from_borrowed_fd(fd, want)];
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
    rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit))).during("asking what a terminal is ready for")?;
    Ok(fds.first().map_or(PollFlags::empty(), PollFd::revents))
}

/// True if a master's slave had been open and is no more: reading gives an error then, after what waits.
pub(super) fn slave_was_closed(master: BorrowedFd<'_>) -> Result<bool> {
    Ok(ready(master, PollFlags::IN, Duration::ZERO)?.contains(PollFlags::HUP))
}

/// Modes in which every byte stands for itself and is echoed, with lines if `modes` has them.
fn quiet(modes: &Termios, end: u8) -> Termios {
    let mut cc = [0; 19];
    cc[VMIN] = 1;
    cc[VTIME] = 0;
    cc[VEOF] = end;
    cc[VEOL] = modes.cc[VEOL];
    cc[VEOL2] = modes.cc[VEOL2];
    Termios { iflag: 0, oflag: 0, lflag: modes.lflag & (ICANON | IEXTEN) | ECHO, cc, ..*modes }
}

fn set(slave: &OwnedFd, modes: &Termios) -> Result<()> {
    tty::without_sigttou(|| tty::set_termios(slave, modes)).during("setting a terminal's modes")
}

/// Everything that waits in the tree's ptys.
pub(super) fn dump(records: &Records<'_>) -> Result<Vec<TtyDataEntry>> {
    let mut found = Vec::new();
    for (id, (master, object)) in records.tty_ends.iter().filter(|(id, _)| *id & 1 == 1) {
        let slave = records.tty_ends.get(&(id & !1)).map(|(fd, _)| fd);
        let (output, typed) = look(master, slave, records.opts.tcp_skip_in_flight).map_err(|e| e.on(object.clone()))?;
        if !output.is_empty() {
            found.push(TtyDataEntry { tty_id: *id, data: output, crust_ends: Vec::new() });
        }
        if !typed.data.is_empty() || !typed.ends.is_empty() {
            let crust_ends = typed.ends.iter().map(|n| *n as u32).collect();
            found.push(TtyDataEntry { tty_id: id & !1, data: typed.data, crust_ends });
        }
    }
    Ok(found)
}

/// What waits in a pair. Where nothing can, nothing is touched.
fn look(master: &OwnedFd, slave: Option<&OwnedFd>, give_up: bool) -> Result<(Vec<u8>, Typed)> {
    let modes = tty::termios(master).during("asking for a terminal's modes")?;
    let waits = |fd: &OwnedFd| -> Result<bool> {
        let events = ready(fd.as_fd(), PollFlags::IN, Duration::ZERO)?;
        Ok(events.contains(PollFlags::IN) && (!events.contains(PollFlags::HUP) || readable(fd) > 0))
    };
    let has_output = readable(master) > 0 || waits(master)?;
    let has_input = slave.is_some_and(|s| readable(s) > 0) || slave.map_or(Ok(false), waits)?;
    // Half a line shows to nobody.
    let may_hide = slave.is_some() && modes.lflag & (ICANON | EXTPROC) == ICANON;
    if !has_output && !has_input && !may_hide {
        return Ok(Default::default());
    }
    let refuse = |what: &str| {
        if !has_output && !has_input || give_up {
            log::warn!("what waits in a terminal is lost: {what}");
            return Ok(Default::default());
        }
        Err(Error::unsupported(
            format!("bytes wait in a terminal, and they cannot be saved: {what}"),
            "try again when the program has taken them, or pass `--skip-in-flight` to lose them",
        ))
    };
    if slave.is_some_and(|s| readable(s) > LIMIT) {
        return refuse("there is more than the terminal shows");
    }
    if modes.lflag & EXTPROC != 0 && has_input {
        return refuse("they are processed elsewhere (EXTPROC)");
    }
    let packets = tty::packet_mode(master).during("asking for a pty's packet mode")?;
    if packets && ready(master.as_fd(), PollFlags::PRI, Duration::ZERO)?.contains(PollFlags::PRI) {
        return refuse("a change of the terminal's state waits with them (packet mode)");
    }
    let locked = tty::pty_locked(master).during("asking whether a pty is locked")?;
    if locked {
        tty::set_pty_locked(master, false).during("unlocking a pty")?;
    }
    let own = tty::open_slave(master).during("opening a terminal");
    if locked {
        tty::set_pty_locked(master, true).during("locking a pty")?;
    }
    let own = own?;
    if !has_output && !ready(own.as_fd(), PollFlags::OUT, Duration::ZERO)?.contains(PollFlags::OUT) {
        return refuse("the terminal is stopped (Ctrl-S)");
    }
    if packets {
        tty::set_packet_mode(master, false).during("setting packet mode")?;
    }
    let taken = take(master, slave.is_some(), &own, &modes);
    let back = match &taken {
        Ok((output, typed)) => put(master, &own, &modes, typed, output),
        Err(_) => set(&own, &modes),
    };
    if packets {
        tty::set_packet_mode(master, true).during("setting packet mode")?;
    }
    back?;
    taken
}

/// Bytes that reading gives now.
fn readable(fd: &OwnedFd) -> usize {
    rustix::io::ioctl_fionread(fd).unwrap_or(0) as usize
}

/// Takes everything out of a pair. The master never waits: it is read only when there is something.
fn take(master: &OwnedFd, input: bool, own: &OwnedFd, modes: &Termios) -> Result<(Vec<u8>, Typed)> {
    let mut output = Vec::new();
    // To be asked by poll makes the kernel bring over what is under way.
    while ready(master.as_fd(), PollFlags::IN, Duration::ZERO)?.contains(PollFlags::IN) {
        let mut buf = [0; 4096];
        match rustix::io::read(master, &mut buf) {
            Ok(0) | Err(Errno::IO) => break,
            Ok(n) => output.extend_from_slice(buf.get(..n).unwrap_or_default()),
            Err(e) => return Err(Error::kernel("reading what waits in a terminal failed", e)),
        }
    }
    let mut typed = Typed::default();
    if !input {
        return Ok((output, typed));
    }
    let ends_line = |b: u8| b == b'\n' || b != 0 && (b == modes.cc[VEOL] || b == modes.cc[VEOL2]);
    let mut lines = modes.lflag & ICANON != 0;
    loop {
        let mut buf = [0; 8192];
        match rustix::io::read(own, &mut buf) {
            Ok(n) => {
                let line = buf.get(..n).unwrap_or_default();
                typed.data.extend_from_slice(line);
                if lines && !line.last().is_some_and(|b| ends_line(*b)) {
                    typed.ends.push(typed.data.len());
                }
                if !lines && n == 0 {
                    break;
                }
            }
            Err(Errno::AGAIN) if lines => {
                lines = false;
                let raw = quiet(modes, 0);
                set(own, &Termios { lflag: raw.lflag & !ICANON, ..raw })?;
            }
            Err(Errno::AGAIN) => break,
            Err(e) => return Err(Error::kernel("reading what waits in a terminal failed", e)),
        }
    }
    Ok((output, typed))
}

/// Puts bytes into a pair that holds none, and gives it its modes. The master must not be in packet mode.
fn put(master: &OwnedFd, own: &OwnedFd, modes: &Termios, typed: &Typed, output: &[u8]) -> Result<()> {
    let end = (1..=u8::MAX).find(|b| *b != b'\n' && !typed.data.contains(b)).unwrap_or(0);
    let quiet = quiet(modes, if typed.ends.is_empty() { 0 } else { end });
    if typed != &Typed::default() || !output.is_empty() {
        set(own, &quiet)?;
    }
    let mut at = 0;
    let mut pieces: Vec<(&[u8], bool)> = Vec::new();
    for stop in &typed.ends {
        pieces.push((typed.data.get(at..*stop).unwrap_or_default(), true));
        at = *stop;
    }
    pieces.push((typed.data.get(at..).unwrap_or_default(), false));
    for (piece, has_end) in pieces {
        let mut chunks: Vec<Vec<u8>> = piece.chunks(CHUNK).map(Vec::from).collect();
        let echoes: Vec<usize> = chunks.iter().map(Vec::len).collect();
        if has_end {
            match chunks.last_mut() {
                Some(last) => last.push(end),
                None => chunks.push(vec![end]),
            }
        }
        for (n, chunk) in chunks.iter().enumerate() {
            let written = rustix::io::write(master, chunk).during("putting typed bytes into a terminal")?;
            if written != chunk.len() {
                return Err(Error::new(Kind::Internal, "a terminal does not take all that was typed"));
            }
            let echo = echoes.get(n).copied().unwrap_or(0);
            await_echo(master, chunk.get(..echo).unwrap_or_default())?;
        }
        // To be asked makes the kernel bring over an end of file, which has no echo.
        ready(own.as_fd(), PollFlags::IN, Duration::ZERO)?;
    }
    let mut rest = output;
    let deadline = Instant::now() + PATIENCE;
    while !rest.is_empty() {
        match rustix::io::write(own, rest) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(Errno::AGAIN) if Instant::now() < deadline => {
                ready(own.as_fd(), PollFlags::OUT, Duration::from_millis(100))?;
            }
            Err(e) => return Err(Error::kernel("putting a program's output into a terminal failed", e)),
        }
    }
    if tty::termios(own).during("asking for a terminal's modes")? != *modes {
        set(own, modes)?;
    }
    Ok(())
}

/// Takes the echo of what was just typed from the master, and with it the certainty that it has arrived.
fn await_echo(master: &OwnedFd, want: &[u8]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut got = Vec::new();
    while got.len() < want.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        if !ready(master.as_fd(), PollFlags::IN, left)?.contains(PollFlags::IN) {
            return Err(Error::new(Kind::Internal, "a terminal does not echo what is put into it"));
        }
        let mut buf = [0; CHUNK];
        let room = (want.len() - got.len()).min(CHUNK);
        let n =
            rustix::io::read(master, buf.get_mut(..room).unwrap_or_default()).during("reading a terminal's echo")?;
        got.extend_from_slice(buf.get(..n).unwrap_or_default());
    }
    if got != want {
        return Err(Error::new(Kind::Internal, "a terminal echoes something else than what was put into it"));
    }
    Ok(())
}

/// Gives a new pair what waited in it, and the state after its last slave was closed. Its modes are set already.
pub(super) fn restore(master: &OwnedFd, index: u32, info: &TtyInfoEntry, cx: &Opener<'_>) -> Result<()> {
    let (output, input) = (cx.images.tty_data.get(&info.id), cx.images.tty_data_of_slave(index));
    if output.is_none() && input.is_none() && info.crust_closed != Some(true) {
        return Ok(());
    }
    let on = |e: Error| e.on(Object::Path(format!("/dev/pts/{index}")));
    // Closed again when we return.
    let own = tty::open_slave(master).during("opening a terminal").map_err(on)?;
    let Some(modes) = info.termios.as_ref().map(from_record) else { return Ok(()) };
    let typed = input.map(|t| Typed {
        data: t.data.clone(),
        ends: t.crust_ends.iter().map(|n| (*n as usize).min(t.data.len())).collect(),
    });
    let output = output.map(|o| o.data.as_slice()).unwrap_or_default();
    put(master, &own, &modes, &typed.unwrap_or_default(), output).map_err(on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, openpt, unlockpt};

    fn pair() -> (OwnedFd, OwnedFd) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("ptmx");
        unlockpt(&master).expect("unlock");
        let slave = tty::open_slave(&master).expect("slave");
        (master, slave)
    }

    /// Waits until a slave shows `n` bytes.
    fn wait(slave: &OwnedFd, n: usize) {
        let end = Instant::now() + Duration::from_secs(60);
        while readable(slave) != n {
            assert!(Instant::now() < end, "typed bytes do not come");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn read_all(fd: &OwnedFd) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut buf = [0; 8192];
        while ready(fd.as_fd(), PollFlags::IN, Duration::ZERO).expect("poll").contains(PollFlags::IN) {
            let n = rustix::io::read(fd, &mut buf).expect("read");
            found.push(buf[..n].to_vec());
        }
        found
    }

    #[test]
    fn looking_leaves_lines_ends_and_half_lines() {
        let (master, slave) = pair();
        let modes = tty::termios(&slave).expect("modes");
        // Ctrl-D ends "two", and the rest is no line.
        rustix::io::write(&master, b"one\ntwo\x04thr").expect("type");
        wait(&slave, 7);
        rustix::io::write(&slave, b"out\n").expect("output");
        for _ in 0..3 {
            let (output, typed) = look(&master, Some(&slave), false).expect("look");
            assert_eq!(typed, Typed { data: b"one\ntwothr".to_vec(), ends: vec![7] });
            assert_eq!(output, b"one\r\ntwothrout\r\n");
            assert_eq!(tty::termios(&slave), Ok(modes));
        }
        assert_eq!(read_all(&slave), [b"one\n".to_vec(), b"two".to_vec()]);
        assert_eq!(read_all(&master).concat(), b"one\r\ntwothrout\r\n");
        rustix::io::write(&master, b"ee\n").expect("type");
        wait(&slave, 6);
        assert_eq!(read_all(&slave), [b"three\n".to_vec()]);
    }

    #[test]
    fn looking_leaves_any_bytes_in_raw_mode_and_packet_mode() {
        let (master, slave) = pair();
        let mut modes = tty::termios(&slave).expect("modes");
        modes.lflag = 0;
        modes.iflag = 0;
        modes.oflag = 0;
        set(&slave, &modes).expect("raw");
        tty::set_packet_mode(&master, true).expect("packet mode");
        let all: Vec<u8> = (0..=255).chain(0..=255).collect();
        rustix::io::write(&master, &all).expect("type");
        wait(&slave, 512);
        rustix::io::write(&slave, &all).expect("output");
        let (output, typed) = look(&master, Some(&slave), false).expect("look");
        assert_eq!((output, typed), (all.clone(), Typed { data: all.clone(), ends: Vec::new() }));
        assert_eq!(tty::packet_mode(&master), Ok(true));
        assert_eq!(read_all(&slave).concat(), all);
        let packets = read_all(&master);
        assert!(packets.iter().all(|p| p.first() == Some(&0)));
        assert_eq!(packets.iter().flat_map(|p| p[1..].to_vec()).collect::<Vec<u8>>(), all);
    }

    #[test]
    fn nothing_is_touched_where_nothing_waits() {
        let (master, slave) = pair();
        assert_eq!(look(&master, Some(&slave), false).expect("look"), Default::default());
        assert!(!slave_was_closed(master.as_fd()).expect("poll"));
        rustix::io::write(&slave, b"last words").expect("output");
        drop(slave);
        assert!(slave_was_closed(master.as_fd()).expect("poll"));
        assert_eq!(look(&master, None, false).expect("look").0, b"last words");
        assert_eq!(read_all_until_error(&master), b"last words");
    }

    fn read_all_until_error(fd: &OwnedFd) -> Vec<u8> {
        let mut found = Vec::new();
        let mut buf = [0; 64];
        while let Ok(n) = rustix::io::read(fd, &mut buf) {
            found.extend_from_slice(&buf[..n]);
        }
        found
    }
}
