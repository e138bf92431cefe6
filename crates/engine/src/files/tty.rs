//! Terminals: pty pairs of the tree with modes, size, session and what waits in them (see `tty_data`), and terminals that
//! come from outside (`--shell-job`, `--external tty[..]`), whose bytes stay where they are.
use super::look::FdView;
use super::regular;
use super::restore::{FileImages, Opener};
use super::table::{FileTable, Records};
use super::{FdKind, tty_data};
use crate::events::{Event, Events};
use crate::{Error, Kind, Object, Options, Result, ResultExt};
use crust_image::proto::{
    FdTypes, FileEntry, TermiosEntry, TtyDataEntry, TtyFileEntry, TtyInfoEntry, TtyPtyEntry, TtyType, WinsizeEntry,
};
use crust_kernel::tty::{self, Termios, Winsize};
use rustix::fs::{Mode, OFlags, major, minor};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

pub(super) static KIND: FdKind = FdKind {
    name: "terminal",
    fd_type: FdTypes::Tty,
    recognise: |v| v.file_type() == libc::S_IFCHR && !v.is_o_path() && Line::of(v.stat.st_rdev).is_some(),
    dump,
    group,
    open,
};

/// Which terminal a device number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Master,
    Slave(u32),
    /// `/dev/tty`
    Controlling,
    Console,
    Virtual(u32),
    Serial(u32),
}

impl Line {
    fn of(rdev: u64) -> Option<Self> {
        let (major, minor) = (major(rdev), minor(rdev));
        Some(match (major, minor) {
            (5, 0) => Self::Controlling,
            (5, 1) => Self::Console,
            (5, 2) => Self::Master,
            (136..=143, n) => Self::Slave((major - 136) * 256 + n),
            (4, n @ 0..64) => Self::Virtual(n),
            (4, n) | (204, n) => Self::Serial(n),
            _ => return None,
        })
    }

    fn kind(self) -> TtyType {
        match self {
            Self::Master | Self::Slave(_) => TtyType::Pty,
            Self::Controlling => TtyType::Ctty,
            Self::Console => TtyType::Console,
            Self::Virtual(_) => TtyType::Vt,
            Self::Serial(_) => TtyType::Serial,
        }
    }
}

/// What the kernel sets in each file opened by a 64-bit program's open(2).
const O_LARGEFILE: u32 = 0o100_000;
/// CRIU's numbers for tty_info records go up to here; those of ptys up to 2001.
const IDS: u32 = 2176;
const PTY_IDS: u32 = 2001;
/// Where numbers are that CRIU has no room for.
const BEYOND: u32 = 1 << 24;

/// Number of the tty_info record of a pty, by index and side.
fn pty_id(index: u32, is_master: bool) -> u32 {
    let id = index << 1 | u32::from(is_master);
    if id > PTY_IDS { BEYOND + id } else { id }
}

/// Number of the tty_info record of another terminal: CRIU's for the first of its sort, then what is free. `/dev/tty` is
/// one for each session.
fn other_id(line: Line, rdev: u64, sid: u32, known: &mut HashMap<(u64, u32), u32>) -> u32 {
    if let Some(id) = known.get(&(rdev, sid)) {
        return *id;
    }
    let usual = match line {
        Line::Console => 1002 << 1,
        Line::Virtual(_) => 1004 << 1,
        Line::Controlling => 1006 << 1,
        _ => 1010 << 1,
    };
    let is_free = |id: &u32| !known.values().any(|v| v == id);
    let all = std::iter::once(usual).chain((1012 << 1..=IDS).step_by(2)).chain((BEYOND * 2..).step_by(2));
    let id = all.take(1 << 20).find(is_free).unwrap_or(BEYOND);
    known.insert((rdev, sid), id);
    id
}

fn external_key(v: &FdView<'_>) -> String {
    format!("tty[{:x}:{:x}]", v.stat.st_rdev, v.stat.st_dev)
}

fn dump(v: &FdView<'_>, id: u32, out: &mut Records<'_>) -> Result<FileEntry> {
    let line = Line::of(v.stat.st_rdev).ok_or_else(|| Error::new(Kind::Internal, "no terminal"))?;
    let index = match line {
        Line::Master => tty::pty_index(v.copy()?).during("asking for a pty's number")?,
        Line::Slave(n) => n,
        _ => 0,
    };
    let tty_info_id = match line {
        Line::Master | Line::Slave(_) => pty_id(index, line == Line::Master),
        _ => {
            let sid = if line == Line::Controlling { session(v, line, index)?.0 } else { 0 };
            other_id(line, v.stat.st_rdev, sid, &mut out.tty_others)
        }
    };
    let external = out.opts.external.iter().any(|e| *e == external_key(v));
    let mut regf_id = None;
    if !external {
        let reg_id = out.new_id();
        let mut entry = regular::dump(v, reg_id, out)?;
        entry.r#type = FdTypes::Reg as i32;
        entry.id = reg_id;
        out.files.push(entry);
        regf_id = Some(reg_id);
    }
    if !out.tty_info.iter().any(|i| i.id == tty_info_id) {
        let info = look(v, line, index, tty_info_id, external)?;
        if !external && info.termios.is_some() && matches!(line, Line::Master | Line::Slave(_)) {
            let copy = v.copy()?.try_clone_to_owned().during("copying a descriptor")?;
            out.tty_ends.insert(tty_info_id, (copy, v.object()));
        }
        out.tty_info.push(info);
        out.tty_seen.push((tty_info_id, v.object(), v.name()));
    }
    let tty = TtyFileEntry { id, tty_info_id, flags: v.info.flags, fown: v.fown()?, regf_id };
    Ok(FileEntry { tty: Some(Box::new(tty)), ..FileEntry::default() })
}

fn look(v: &FdView<'_>, line: Line, index: u32, id: u32, external: bool) -> Result<TtyInfoEntry> {
    let (sid, pgrp) = session(v, line, index)?;
    let mut info = TtyInfoEntry {
        id,
        r#type: if external { TtyType::ExtTty as i32 } else { line.kind() as i32 },
        sid,
        pgrp,
        rdev: super::ghost::encode_dev(v.stat.st_rdev),
        dev: Some(super::ghost::encode_dev(v.stat.st_dev)),
        uid: Some(v.stat.st_uid),
        gid: Some(v.stat.st_gid),
        pty: (!external && matches!(line, Line::Master | Line::Slave(_))).then_some(TtyPtyEntry { index }),
        ..TtyInfoEntry::default()
    };
    let modes = match tty::termios(v.copy()?) {
        Ok(modes) => modes,
        Err(Errno::IO) => return Ok(info), // hung up: there is nothing more to know
        Err(e) => return Err(Error::kernel("asking for a terminal's modes failed", e)),
    };
    info.termios = Some(to_record(&modes));
    info.termios_locked =
        Some(to_record(&tty::termios_locked(v.copy()?).during("asking for a terminal's locked modes")?));
    let size = tty::winsize(v.copy()?).during("asking for a terminal's size")?;
    info.winsize = Some(WinsizeEntry {
        ws_row: size.rows.into(),
        ws_col: size.cols.into(),
        ws_xpixel: size.xpixel.into(),
        ws_ypixel: size.ypixel.into(),
    });
    info.exclusive = tty::exclusive(v.copy()?).during("asking whether a terminal is exclusive")?;
    if line == Line::Master {
        info.locked = tty::pty_locked(v.copy()?).during("asking whether a pty is locked")?;
        info.packet_mode = tty::packet_mode(v.copy()?).during("asking for a pty's packet mode")?;
        info.crust_closed = tty_data::slave_was_closed(v.copy()?)?.then_some(true);
    }
    Ok(info)
}

/// Session and foreground group of a terminal: of a master's whatever it is, else if it is the controlling terminal of the
/// task that has it open.
/// Ids are those the task sees only while it shares our pid namespace; in another one the session leader's own id is used.
fn session(v: &FdView<'_>, line: Line, index: u32) -> Result<(u32, u32)> {
    let inner = |id: i32| if id > 0 { v.inner_id(id).unwrap_or(0) } else { 0 };
    if line == Line::Master
        && let Ok((session, foreground)) = tty::master_session(v.copy()?)
    {
        return Ok((inner(session), inner(foreground)));
    }
    let text = v.target.proc.read("stat").during("reading the task's stat")?;
    let Some(stat) = crust_kernel::procfs::Stat::parse(&text) else {
        return Err(Error::new(Kind::Internal, "stat has an unknown form"));
    };
    let rdev = match line {
        Line::Master | Line::Slave(_) => rustix::fs::makedev(136 + index / 256, index % 256),
        _ => v.stat.st_rdev,
    };
    let is_controlling =
        stat.tty_nr != 0 && (line == Line::Controlling || stat.tty_nr == super::ghost::encode_dev(rdev));
    if !is_controlling {
        return Ok((0, 0));
    }
    let after_name = text.iter().rposition(|b| *b == b')').map_or(0, |p| p + 1);
    let fields = String::from_utf8_lossy(text.get(after_name..).unwrap_or_default()).into_owned();
    // Field 8 of stat, the sixth behind the name.
    let foreground: i32 = fields.split_ascii_whitespace().nth(5).and_then(|f| f.parse().ok()).unwrap_or(0);
    Ok((inner(stat.session), inner(foreground)))
}

pub(super) fn to_record(t: &Termios) -> TermiosEntry {
    // CRIU keeps the bytes of c_cc packed into the first words of a list of 19.
    let mut c_cc: Vec<u32> = t.cc.chunks(4).map(|c| c.iter().rev().fold(0u32, |w, b| w << 8 | u32::from(*b))).collect();
    c_cc.resize(19, 0);
    TermiosEntry {
        c_iflag: t.iflag,
        c_oflag: t.oflag,
        c_cflag: t.cflag,
        c_lflag: t.lflag,
        c_line: t.line.into(),
        c_cc,
        ..TermiosEntry::default()
    }
}

pub(super) fn from_record(t: &TermiosEntry) -> Termios {
    let mut cc = [0; 19];
    for (to, from) in cc.iter_mut().zip(t.c_cc.iter().flat_map(|w| w.to_le_bytes())) {
        *to = from;
    }
    Termios { iflag: t.c_iflag, oflag: t.c_oflag, cflag: t.c_cflag, lflag: t.c_lflag, line: t.c_line as u8, cc }
}

impl FileTable<'_> {
    /// Terminals whose other side is outside of the tree need a flag that says where restore gets them from.
    pub(super) fn check_ttys(&mut self) -> Vec<Error> {
        let r = self.records();
        let pty = |i: &TtyInfoEntry| i.r#type == TtyType::Pty as i32;
        let masters: BTreeSet<u32> = r.tty_info.iter().filter(|i| pty(i) && i.id & 1 == 1).map(|i| i.id >> 1).collect();
        let mut errors = Vec::new();
        if r.opts.shell_job || r.opts.orphan_pts_master {
            return errors;
        }
        for (id, object, name) in &r.tty_seen {
            let Some(info) = r.tty_info.iter().find(|i| i.id == *id) else { continue };
            // Those of the machine are opened again by their names.
            let machine = [TtyType::Console, TtyType::Vt, TtyType::Serial].map(|t| t as i32).contains(&info.r#type);
            // Whatever stands behind /dev/tty is somebody's pty, or comes from outside.
            let ours = |i: &TtyInfoEntry| {
                let comes_back = pty(i) && masters.contains(&(i.id >> 1)) || i.r#type == TtyType::ExtTty as i32;
                i.sid == info.sid && comes_back
            };
            let is_alias = info.r#type == TtyType::Ctty as i32 && info.sid != 0 && r.tty_info.iter().any(ours);
            let inside = machine
                || is_alias
                || info.r#type == TtyType::ExtTty as i32
                || info.termios.is_none()
                || pty(info) && (id & 1 == 1 || masters.contains(&(id >> 1)));
            if !inside {
                errors.push(
                    Error::unsupported(
                        format!("the terminal {name} belongs to somebody outside of the tree"),
                        "pass `--shell-job` (-j) to let restore put its own terminal in its place, or redirect the \
                         program's input and output before the dump",
                    )
                    .on(object.clone()),
                );
            }
        }
        errors
    }
}

fn group(e: &FileEntry, images: &FileImages) -> Option<u64> {
    let info = images.tty_info.get(&e.tty.as_ref()?.tty_info_id)?;
    info.pty.as_ref().map(|p| u64::from(p.index))
}

/// True for a pair that somebody's session hangs on: it must exist before that session's leader forks.
pub(super) fn must_be_early(e: &FileEntry, images: &FileImages) -> bool {
    let info = e.tty.as_ref().and_then(|t| images.tty_info.get(&t.tty_info_id));
    info.is_some_and(|i| i.sid != 0 && i.r#type == TtyType::Pty as i32)
}

/// True for `/dev/tty`, which only members of its session can open: each table for itself.
pub(super) fn must_be_late(e: &FileEntry, images: &FileImages) -> bool {
    let info = e.tty.as_ref().and_then(|t| images.tty_info.get(&t.tty_info_id));
    info.is_some_and(|i| i.r#type == TtyType::Ctty as i32)
}

/// Which of our own descriptors is a terminal, for programs that get ours.
fn own_terminal() -> Option<i32> {
    (0..3).find(|n| rustix::termios::isatty(crust_kernel::fd::borrow_placed(*n)))
}

/// Key under which our own terminal is kept.
pub(super) const OWN: &str = "our terminal";

impl FileImages {
    /// True if a pair's master is among the images.
    fn has_master(&self, index: u32) -> bool {
        self.tty_info.values().any(|i| {
            i.r#type == TtyType::Pty as i32 && i.id & 1 == 1 && i.pty.as_ref().is_some_and(|p| p.index == index)
        })
    }

    /// What was typed at the slave of a pair and waits.
    pub(super) fn tty_data_of_slave(&self, index: u32) -> Option<&TtyDataEntry> {
        let is_slave = |i: &&TtyInfoEntry| {
            i.r#type == TtyType::Pty as i32 && i.id & 1 == 0 && i.pty.as_ref().is_some_and(|p| p.index == index)
        };
        let info = self.tty_info.values().find(is_slave)?;
        self.tty_data.get(&info.id)
    }

    /// True if a terminal is to be replaced by ours.
    fn is_ours(&self, info: &TtyInfoEntry) -> bool {
        let slave = info.id & 1 == 0;
        info.r#type == TtyType::Pty as i32
            && slave
            && info.termios.is_some()
            && info.pty.as_ref().is_some_and(|p| !self.has_master(p.index) && !self.orphans.contains(&p.index))
    }

    /// Makes masters for terminals whose masters were outside of the tree, and gives each away by an event. Whoever listens
    /// has it then, the tree opens its end, and the list returned is to be kept until it has. Where nobody listens it is as
    /// under `--shell-job`.
    ///
    /// # Errors
    /// The terminal's number is in use; the listener said no; nobody takes it and there is no other terminal to be had.
    pub fn offer_masters(&mut self, opts: &Options, events: &mut dyn Events) -> Result<Vec<OwnedFd>> {
        let mut kept = Vec::new();
        if !opts.orphan_pts_master {
            return Ok(kept);
        }
        let given = |i: &TtyInfoEntry| opts.inherit_fds.iter().any(|g| g.key == key_of(i));
        let mut orphans: Vec<TtyInfoEntry> =
            self.files_with_tty().map(|(_, i)| i).filter(|i| self.is_ours(i) && !given(i)).cloned().collect();
        orphans.sort_by_key(|i| i.id);
        orphans.dedup_by_key(|i| i.id);
        for info in orphans {
            let Some(index) = info.pty.as_ref().map(|p| p.index) else { continue };
            let master = open_master(None, index, self)?;
            set_modes(&master, &info, true)?;
            tty::set_pty_locked(&master, false).during("unlocking a pty")?;
            let master =
                rustix::io::fcntl_dupfd_cloexec(&master, self.first_service_fd()).during("keeping a pty master")?;
            if events.notify(Event::OrphanPtsMaster, None, Some(master.as_fd()))?.taken {
                self.orphans.insert(index);
                kept.push(master);
            } else if let Some(e) = self.without_terminal(opts) {
                return Err(e);
            }
        }
        Ok(kept)
    }

    /// What keeps a terminal from being replaced by ours.
    fn without_terminal(&self, opts: &Options) -> Option<Error> {
        if !opts.shell_job && !opts.orphan_pts_master {
            return Some(
                Error::new(Kind::BadRequest, "the program had a terminal from outside of its tree")
                    .help("pass `--shell-job` (-j) to give it the terminal of this command"),
            );
        }
        own_terminal().is_none().then(|| {
            Error::new(Kind::BadRequest, "the program is to get our terminal, and we have none")
                .help("run restore from a terminal, or under script(1)")
        })
    }

    /// What keeps terminals from being restored.
    pub(super) fn check_ttys(&self, opts: &Options) -> Vec<Error> {
        let mut errors = Vec::new();
        for info in self.tty_info.values() {
            if info.r#type == TtyType::ExtTty as i32 {
                let key = key_of(info);
                if !opts.inherit_fds.iter().any(|i| i.key == key) {
                    errors.push(regular::missing_external(&key));
                }
            } else if self.is_ours(info) && !opts.inherit_fds.iter().any(|i| i.key == key_of(info)) {
                // Who is asked for it by an event has not been asked yet.
                if !opts.orphan_pts_master {
                    errors.extend(self.without_terminal(opts));
                }
            }
        }
        errors
    }

    /// Makes the terminal that the session of `pid` had its controlling one. Call it in the leader of a restored session,
    /// after setsid(2) and before it forks: children inherit it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn take_controlling_tty(&mut self, pid: i32) -> Result<()> {
        let Some((_, info)) = self.files_with_tty().find(|(_, info)| self.is_own_of(info, pid)) else { return Ok(()) };
        if let Some(given) = self.given(&key_of(info)) {
            return tty::set_controlling(given).during("taking the session's controlling terminal").map_err(|e| {
                e.on(Object::Path(key_of(info))).help(
                    "give --inherit-fd a terminal that is no other session's controlling one, for instance a new pty",
                )
            });
        }
        let Some(index) = info.pty.as_ref().map(|p| p.index) else { return Ok(()) };
        let path = format!("/dev/pts/{index}");
        let slave = rustix::fs::open(&path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
            .during("opening the session's terminal")
            .map_err(|e| e.on(Object::Path(path.clone())))?;
        tty::set_controlling(&slave)
            .during("taking the session's controlling terminal")
            .map_err(|e| e.on(Object::Path(path)))
    }

    /// True if a terminal is the controlling one of the session `pid` leads, and comes back as such: the tree's own, or one
    /// that the caller gave us for it. Under `--shell-job` the session is ours, and has a terminal.
    fn is_own_of(&self, info: &TtyInfoEntry, pid: i32) -> bool {
        let comes_back = info.r#type == TtyType::Pty as i32 && !self.is_ours(info);
        info.sid == pid.unsigned_abs() && (comes_back || self.given(&key_of(info)).is_some())
    }

    /// Puts foreground groups back: of the terminals that sessions of the tree had, and of ours under `--shell-job`, where
    /// the tree's group replaces the command's. Call it in session leader or root task when all groups exist.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_foreground(&self, pid: i32, opts: &Options) -> Result<()> {
        let ours = self.files_with_tty().any(|(_, info)| self.is_ours(info));
        let own = self.files_with_tty().find(|(_, i)| self.is_own_of(i, pid) && i.pgrp != 0);
        let group = match own {
            Some((_, info)) => i32::try_from(info.pgrp).unwrap_or(0),
            None if ours && opts.shell_job => rustix::process::getpgrp().as_raw_nonzero().get(),
            None => return Ok(()),
        };
        let Ok(tty) = rustix::fs::open("/dev/tty", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) else {
            return Ok(());
        };
        match tty::without_sigttou(|| tty::set_foreground(&tty, group)) {
            Ok(()) | Err(Errno::NOTTY) => Ok(()),
            // The group that was in front is gone, as it may have been at the dump.
            Err(Errno::SRCH | Errno::PERM) => Ok(()),
            other => other.during("putting the tree's process group in front of its terminal"),
        }
    }
}

fn key_of(info: &TtyInfoEntry) -> String {
    format!("tty[{:x}:{:x}]", info.rdev, info.dev.unwrap_or(0))
}

fn open(entries: &[&FileEntry], cx: &mut Opener<'_>) -> Result<Vec<(u32, OwnedFd)>> {
    let mut parts: Vec<(&TtyFileEntry, &TtyInfoEntry)> = Vec::new();
    for e in entries {
        let t = cx.body(e, e.tty.as_ref())?;
        let info = cx
            .images
            .tty_info
            .get(&t.tty_info_id)
            .ok_or_else(|| Error::bad_image("tty-info.img", format!("terminal {} is missing", t.tty_info_id)))?;
        parts.push((t, info));
    }
    let mut opened = Vec::new();
    // The master first: slaves exist only with it.
    parts.sort_by_key(|(_, info)| info.id & 1 == 0);
    let mut master: Option<(OwnedFd, bool)> = None;
    let mut settled = false;
    for (t, info) in parts {
        let given = match cx.inherited(&key_of(info))? {
            Some(fd) => Some(fd),
            None if cx.images.is_ours(info) => cx.inherited(OWN)?,
            None => None,
        };
        let fd = if let Some(given) = given {
            let fd = cx.reopen(&given, t.flags).or_else(|_| given.try_clone().during("copying our terminal"))?;
            // The window is what it is now; the modes are the program's.
            if !settled && info.r#type != TtyType::ExtTty as i32 {
                set_modes(&fd, info, false)?;
                settled = true;
            }
            fd
        } else if info.r#type == TtyType::ExtTty as i32 {
            return Err(regular::missing_external(&key_of(info)));
        } else if let Some(pty) = &info.pty {
            let is_master = info.id & 1 == 1;
            if is_master {
                let fd = open_master(Some(t), pty.index, cx.images)?;
                set_modes(&fd, info, true)?;
                tty::set_pty_locked(&fd, false).during("unlocking a pty")?;
                tty_data::restore(&fd, pty.index, info, cx)?;
                if info.packet_mode {
                    tty::set_packet_mode(&fd, true).during("setting packet mode")?;
                }
                master = Some((fd.try_clone().during("copying a descriptor")?, info.locked));
                fd
            } else {
                if master.is_none() && !cx.images.orphans.contains(&pty.index) {
                    if info.termios.is_some() {
                        return Err(Error::new(
                            Kind::BadRequest,
                            "the program had a terminal from outside of its tree",
                        )
                        .help("pass `--shell-job` (-j) to give it the terminal of this command"));
                    }
                    // Hung up: a slave whose master is gone again when we return.
                    let fd = open_master(None, pty.index, cx.images)?;
                    tty::set_pty_locked(&fd, false).during("unlocking a pty")?;
                    master = Some((fd, false));
                }
                let fd = open_slave(t, pty.index, master.as_ref().map(|(fd, _)| fd), cx)?;
                own(&fd, info)?;
                fd
            }
        } else {
            let reg = cx.images.regular(t.regf_id.unwrap_or(0))?;
            let fd = regular::open_entry(reg, Some(t.flags), cx)?;
            set_modes(&fd, info, false)?;
            fd
        };
        if info.exclusive {
            tty::set_exclusive(&fd).during("making a terminal exclusive")?;
        }
        cx.settle(&fd, t.flags, &t.fown)?;
        opened.push((t.id, fd));
    }
    if let Some((fd, true)) = master {
        tty::set_pty_locked(&fd, true).during("locking a pty")?;
    }
    Ok(opened)
}

/// Opens masters until the number comes up; numbers below are free and are given back.
fn open_master(t: Option<&TtyFileEntry>, index: u32, images: &FileImages) -> Result<OwnedFd> {
    let flags = t.map_or(libc::O_RDWR as u32, |t| t.flags);
    let path: &[u8] = match t.and_then(|t| t.regf_id) {
        Some(id) => &images.regular(id)?.name,
        None => b"/dev/ptmx",
    };
    let on = |e: Error| e.on(Object::Path(format!("/dev/pts/{index}")));
    let mut lower = Vec::new();
    loop {
        let fd = rustix::fs::open(path, regular::open_flags(flags), Mode::empty())
            .during("opening a pty master")
            .map_err(on)?;
        let got = tty::pty_index(&fd).during("asking for a pty's number").map_err(on)?;
        if got == index {
            return Ok(fd);
        }
        if got > index || lower.len() > 4096 {
            return Err(on(Error::new(Kind::Taken, format!("the terminal number {index} is in use"))
                .help("close the terminal that has it, or restore with a /dev/pts of its own")));
        }
        lower.push(fd);
    }
}

fn open_slave(t: &TtyFileEntry, index: u32, master: Option<&OwnedFd>, cx: &Opener<'_>) -> Result<OwnedFd> {
    let flags = regular::open_flags(t.flags);
    // openpty(3) has opened it through the master; so the flags are those that were given, while open(2) adds one.
    if let Some(master) = master.filter(|_| t.flags & O_LARGEFILE == 0)
        && let Ok(slave) = tty::open_slave_with(master, flags.difference(OFlags::CLOEXEC).bits() as i32)
    {
        // Given to open, this one would stay among the file's flags, too.
        crust_kernel::fd::set_cloexec(slave.as_raw_fd(), true).during("setting close-on-exec")?;
        return Ok(slave);
    }
    let path = match t.regf_id {
        Some(id) => cx.images.regular(id)?.name.clone(),
        None => format!("/dev/pts/{index}").into_bytes(),
    };
    rustix::fs::open(path.as_slice(), flags, Mode::empty())
        .during("opening a pty")
        .map_err(|e| e.on(Object::Path(String::from_utf8_lossy(&path).into_owned())))
}

fn own(fd: &OwnedFd, info: &TtyInfoEntry) -> Result<()> {
    let (Some(uid), Some(gid)) = (info.uid, info.gid) else { return Ok(()) };
    let stat = rustix::fs::fstat(fd).during("fstat")?;
    if (stat.st_uid, stat.st_gid) != (uid, gid) {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::fchown(fd, Some(uid), Some(gid)).during("giving a terminal to its owner")?;
    }
    Ok(())
}

fn set_modes(fd: &OwnedFd, info: &TtyInfoEntry, size: bool) -> Result<()> {
    tty::without_sigttou(|| {
        if let Some(modes) = &info.termios {
            let now = tty::termios(fd).during("asking for a terminal's modes")?;
            let want = from_record(modes);
            if now != want {
                tty::set_termios(fd, &want).during("setting a terminal's modes")?;
            }
        }
        if let Some(locked) = &info.termios_locked {
            let want = from_record(locked);
            // Needs privilege, and is all zero nearly always.
            if tty::termios_locked(fd).during("asking for a terminal's locked modes")? != want {
                tty::set_termios_locked(fd, &want).during("setting a terminal's locked modes")?;
            }
        }
        if let Some(w) = info.winsize.as_ref().filter(|_| size) {
            let want = Winsize {
                rows: w.ws_row as u16,
                cols: w.ws_col as u16,
                xpixel: w.ws_xpixel as u16,
                ypixel: w.ws_ypixel as u16,
            };
            if tty::winsize(fd).during("asking for a terminal's size")? != want {
                tty::set_winsize(fd, &want).during("setting a terminal's size")?;
            }
        }
        Ok(())
    })
}

/// Keeps our terminal for programs that get it, before low descriptors are closed.
pub(super) fn keep_own(cx: &mut Opener<'_>) -> Result<()> {
    let wanted = cx.images.files_with_tty().any(|(_, info)| cx.images.is_ours(info));
    if wanted
        && (cx.opts.shell_job || cx.opts.orphan_pts_master)
        && let Some(number) = own_terminal()
    {
        let copy =
            cx.hold(crust_kernel::fd::borrow_placed(number).try_clone_to_owned().during("copying our terminal")?)?;
        log::debug!("our terminal is descriptor {number}, kept as {}", copy.as_fd().as_raw_fd());
        cx.state.inherited.insert(OWN.to_owned(), copy);
    }
    Ok(())
}

/// Records of paths that only name terminals: such paths appear with the terminal.
pub(super) fn path_records<'a>(files: impl Iterator<Item = &'a FileEntry>) -> BTreeSet<u32> {
    files.filter_map(|f| f.tty.as_ref()?.regf_id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c_cc_goes_through_criu_words() {
        let mut t = Termios { iflag: 1, oflag: 2, cflag: 3, lflag: 4, line: 5, cc: [0; 19] };
        for (n, c) in t.cc.iter_mut().enumerate() {
            *c = n as u8 + 1;
        }
        let record = to_record(&t);
        assert_eq!((record.c_cc.len(), record.c_cc[0]), (19, 0x0403_0201));
        assert_eq!(from_record(&record), t);
    }

    #[test]
    fn lines_by_number() {
        let dev = rustix::fs::makedev;
        assert_eq!(Line::of(dev(137, 3)), Some(Line::Slave(259)));
        assert_eq!(Line::of(dev(5, 2)), Some(Line::Master));
        assert_eq!(Line::of(dev(1, 3)), None);
        assert_eq!((pty_id(3, true), pty_id(3, false)), (7, 6));
        let mut known = HashMap::new();
        let mut id = |line, rdev, sid| other_id(line, rdev, sid, &mut known);
        assert_eq!((id(Line::Virtual(1), dev(4, 1), 0), id(Line::Virtual(2), dev(4, 2), 0)), (2008, 2024));
        assert_eq!((id(Line::Controlling, dev(5, 0), 7), id(Line::Controlling, dev(5, 0), 8)), (2012, 2026));
        assert_eq!((id(Line::Virtual(1), dev(4, 1), 0), id(Line::Controlling, dev(5, 0), 8)), (2008, 2026));
    }
}
