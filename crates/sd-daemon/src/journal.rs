//! Structured messages to the journal, for the case that standard error is connected to it anyway.
use crate::error::During;
use crate::notify::{limit_waits, raise_send_buffer};
use crate::{Error, Level, Result, env, number, sys};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Where journald takes messages in its own protocol.
const SOCKET: &str = "/run/systemd/journal/socket";
/// How long one message may wait for a journald that does not read.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// journald drops fields with longer names.
const MAX_NAME_LEN: usize = 64;

/// Does this descriptor lead to the journal? The service manager tells device and inode of the stream it connected in
/// `JOURNAL_STREAM`; a program whose standard error was redirected since must not log past the redirection.
pub fn is_journal_stream(fd: impl AsFd) -> bool {
    if cfg!(feature = "disable-systemd") {
        return false;
    }
    let Some(value) = env::get("JOURNAL_STREAM") else { return false };
    let mut parts = value.as_bytes().splitn(2, |b| *b == b':').map(number::unsigned);
    let (Some(Ok(dev)), Some(Ok(ino))) = (parts.next(), parts.next()) else { return false };
    sys::fstat(fd.as_fd()).is_ok_and(|st| st.st_dev == dev && st.st_ino == ino)
}

/// The journal's socket, for messages with fields. Addressed anew by each message, so a restarted journald is found.
pub struct Journal {
    socket: OwnedFd,
    to: sys::Address,
    identifier: Vec<u8>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Journal {
    /// The journal, if standard error leads to it; otherwise `None`, and one writes to standard error, with
    /// [`Level::lines`] if one likes.
    ///
    /// # Errors
    /// [`Error::Sys`] if no socket can be made.
    pub fn of_stderr() -> Result<Option<Journal>> {
        if is_journal_stream(std::io::stderr()) { Journal::at(Path::new(SOCKET)).map(Some) } else { Ok(None) }
    }

    /// The journal, wherever standard error leads. Fails on sending, not here, if there is none.
    ///
    /// # Errors
    /// [`Error::Sys`] if no socket can be made or the path is no address.
    pub fn at(path: &Path) -> Result<Journal> {
        let name = path.as_os_str().as_bytes();
        if name.is_empty() || name.len() > 107 || name.contains(&0) {
            return Err(Error::invalid("not a path a socket can have"));
        }
        let socket = sys::socket(libc::AF_UNIX, libc::SOCK_DGRAM).during("making a journal socket")?;
        raise_send_buffer(&socket);
        limit_waits(&socket, SEND_LIMIT)?;
        let program = std::env::args_os().next().unwrap_or_default();
        let identifier = program.as_bytes().rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
        Ok(Journal { socket, to: sys::Address::unix(name), identifier })
    }

    /// Logs one message, which may have several lines, with further fields. `SYSLOG_IDENTIFIER` is the program's name
    /// unless it is among them.
    ///
    /// # Errors
    /// [`Error::Argument`] for a field name that the journal would drop (see [`journal_entry`](crate::journal_entry)), [`Error::Sys`] if the journal
    /// is gone, [`Error::Timeout`] if it did not take the message for five seconds.
    pub fn log(&self, level: Level, message: &str, fields: &[(&str, &[u8])]) -> Result<()> {
        let mut data = entry(level, message, fields)?;
        if !fields.iter().any(|(name, _)| *name == "SYSLOG_IDENTIFIER") {
            field(&mut data, "SYSLOG_IDENTIFIER", &self.identifier)?;
        }
        match sys::send(self.socket.as_fd(), Some(&self.to), &[&data], &[], None) {
            Ok(_) => Ok(()),
            // Too large for a datagram: in a sealed memory file, whose descriptor is all that is sent.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => {
                let memory = sys::memfd(c"journal-data").during("making a memory file for the journal")?;
                let mut file = File::from(memory);
                file.write_all(&data).during("writing a memory file for the journal")?;
                sys::seal(file.as_fd()).during("sealing a memory file for the journal")?;
                match sys::send(self.socket.as_fd(), Some(&self.to), &[], &[file.as_fd()], None) {
                    Ok(_) => Ok(()),
                    Err(e) => Err(crate::notify::waited(e, "sending a memory file to the journal")),
                }
            }
            Err(e) => Err(crate::notify::waited(e, "sending to the journal")),
        }
    }
}

/// An entry in the journal's own protocol: `MESSAGE`, `PRIORITY`, then `fields` in their order.
///
/// # Errors
/// [`Error::Argument`] for a field name the journal would silently drop: names are of `A`–`Z`, `0`–`9` and `_`, begin
/// with a letter (an underscore is for fields that journald itself vouches for) and have at most 64 characters.
pub fn entry(level: Level, message: &str, fields: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut data = Vec::with_capacity(message.len() + 64);
    field(&mut data, "MESSAGE", message.as_bytes())?;
    field(&mut data, "PRIORITY", (level as u8).to_string().as_bytes())?;
    for (name, value) in fields {
        field(&mut data, name, value)?;
    }
    Ok(data)
}

fn field(data: &mut Vec<u8>, name: &str, value: &[u8]) -> Result<()> {
    let good = name.len() <= MAX_NAME_LEN
        && name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    if !good {
        return Err(Error::invalid("a journal field's name is of A-Z, 0-9 and _, begins with a letter, at most 64"));
    }
    data.extend_from_slice(name.as_bytes());
    // A value with newlines is sent with its length.
    if value.contains(&b'\n') {
        data.push(b'\n');
        data.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        data.push(b'=');
    }
    data.extend_from_slice(value);
    data.push(b'\n');
    Ok(())
}
