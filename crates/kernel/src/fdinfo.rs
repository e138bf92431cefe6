//! /proc/PID/fdinfo/FD as text: position, flags, mount and the lines each kind of file adds (proc_pid_fdinfo(5)).

/// `O_CLOEXEC`, which the kernel shows among the flags although it belongs to the descriptor.
const CLOEXEC: u32 = libc::O_CLOEXEC as u32;

/// One fdinfo file, its common lines read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// Position of the open file description.
    pub pos: u64,
    /// `O_*` flags of the open file description; `O_CLOEXEC` taken out.
    pub flags: u32,
    /// `FD_CLOEXEC` of the descriptor.
    pub cloexec: bool,
    /// Mount id, as in mountinfo; -1 if not shown.
    pub mnt_id: i32,
    /// Inode number (Linux 5.14+), else 0.
    pub ino: u64,
    text: String,
}

impl FdInfo {
    /// Parses the text; `None` if `pos` or `flags` is missing.
    pub fn parse(text: String) -> Option<Self> {
        let (mut pos, mut flags, mut mnt_id, mut ino) = (None, None, -1, 0);
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key {
                "pos" => pos = value.parse::<i64>().ok().map(|p| p as u64),
                "flags" => flags = u32::from_str_radix(value, 8).ok(),
                "mnt_id" => mnt_id = value.parse().ok()?,
                "ino" => {
                    ino = value.parse().ok()?;
                    break; // the common lines end here
                }
                _ => break,
            }
        }
        let flags = flags?;
        Some(Self { pos: pos?, flags: flags & !CLOEXEC, cloexec: flags & CLOEXEC != 0, mnt_id, ino, text })
    }

    /// The same open file seen through a descriptor with this FD_CLOEXEC.
    pub fn with_cloexec(self, cloexec: bool) -> Self {
        Self { cloexec, ..self }
    }

    /// The first value of `key`, trimmed.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
    }

    /// Every value of `key`, in order, trimmed (`lock`, `tfd`, `inotify wd` …; a key ends at its colon).
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.text.lines().filter_map(move |l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
    }

    /// A decimal value.
    pub fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.get(key)?.parse().ok()
    }

    /// A hexadecimal value.
    pub fn hex(&self, key: &str) -> Option<u64> {
        u64::from_str_radix(self.get(key)?, 16).ok()
    }

    /// All lines, for kinds whose lines have no plain key.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.lines()
    }
}

/// A `tfd:` line: one file watched by an epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpollTarget {
    /// Number the file was added by.
    pub tfd: u32,
    /// `EPOLL*` mask.
    pub events: u32,
    /// User data.
    pub data: u64,
    /// Position of the watched file.
    pub pos: u64,
    /// Inode of the watched file.
    pub ino: u64,
    /// Device of the watched file, in the kernel's own encoding (major << 20 | minor).
    pub sdev: u64,
}

impl EpollTarget {
    /// Parses the whole line; `None` for other lines.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(|c: char| c == ':' || c.is_ascii_whitespace()).filter(|w| !w.is_empty());
        let mut field = |name: &str| if words.next()? == name { words.next() } else { None };
        let hex = |w: &str| u64::from_str_radix(w, 16).ok();
        Some(Self {
            tfd: field("tfd")?.parse().ok()?,
            events: hex(field("events")?)? as u32,
            data: hex(field("data")?)?,
            pos: field("pos")?.parse::<i64>().ok()? as u64,
            ino: hex(field("ino")?)?,
            sdev: hex(field("sdev")?)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_lines_and_cloexec() {
        let i = FdInfo::parse(
            "pos:\t12\nflags:\t02100001\nmnt_id:\t29\nino:\t77\neventfd-count:                1e\n".into(),
        );
        let i = i.expect("parses");
        assert_eq!((i.pos, i.flags, i.cloexec, i.mnt_id, i.ino), (12, 0o100001, true, 29, 77));
        assert_eq!(i.hex("eventfd-count"), Some(30));
        assert_eq!(i.get("lock"), None);
    }

    #[test]
    fn without_ino_line_the_rest_is_still_found() {
        let i = FdInfo::parse("pos:\t0\nflags:\t02\nmnt_id:\t13\nsigmask:\t0000000000000200\n".into()).expect("parses");
        assert_eq!((i.hex("sigmask"), i.ino), (Some(0x200), 0));
    }

    #[test]
    fn negative_position_and_garbage() {
        assert_eq!(FdInfo::parse("pos:\t-1\nflags:\t0\n".into()).map(|i| i.pos), Some(u64::MAX));
        for text in ["", "pos:\t0\n", "flags:\t9\npos:\t1\n", "\u{0}", "pos:\tx\nflags:\t0\n"] {
            assert_eq!(FdInfo::parse(text.into()), None, "{text:?}");
        }
    }

    #[test]
    fn epoll_line() {
        let line = "tfd:        9 events:       19 data:                9  pos:0 ino:25232 sdev:f";
        let want = EpollTarget { tfd: 9, events: 0x19, data: 9, pos: 0, ino: 0x25232, sdev: 0xf };
        assert_eq!(EpollTarget::parse(line), Some(want));
        assert_eq!(EpollTarget::parse("pos:\t0"), None);
        let own = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).expect("epoll");
        let (r, _w) = rustix::pipe::pipe().expect("pipe");
        let data = rustix::event::epoll::EventData::new_u64(u64::MAX);
        rustix::event::epoll::add(&own, &r, data, rustix::event::epoll::EventFlags::IN).expect("add");
        use std::os::fd::AsRawFd;
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", own.as_raw_fd())).expect("fdinfo");
        let info = FdInfo::parse(text).expect("parses");
        let found: Vec<_> = info.lines().filter_map(EpollTarget::parse).collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].tfd, found[0].data), (r.as_raw_fd() as u32, u64::MAX));
    }
}
