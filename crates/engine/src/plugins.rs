//! Plugins: programs of the user's that save and bring back what crust cannot. They run by themselves and listen at a unix
//! socket; each request connects to them, asks one hook after the other, and waits for each answer for a limited time. What
//! they say is taken for nothing but data. The protocol is told in docs/plugins.md.
use crate::error::ResultExt;
use crate::{Error, Kind, Object, Result, Watch};
use crust_kernel::Deadline;
use crust_rpc::plugin::{Reply, Request};
use crust_rpc::{Connection, Packet};
use rustix::fs::{SealFlags, fcntl_get_seals};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use crust_rpc::plugin::{Hook, Stage};

const VERSION: u32 = 1;
/// One answer may take so long.
const LIMIT: Duration = Duration::from_secs(10);
/// How often who waits for one looks whether the request was cancelled.
const TICK: Duration = Duration::from_millis(50);
const MAX_REPLY_BYTES: usize = 1 << 16;
const MAX_NAME_BYTES: usize = 32;

/// All plugins of a request.
#[derive(Debug)]
pub struct Plugins {
    all: Mutex<Vec<Plugin>>,
    until: Until,
}

/// How long a plugin may be waited for, beside its own limit.
#[derive(Clone, Debug)]
pub(crate) struct Until {
    pub(crate) deadline: Deadline,
    pub(crate) watch: Watch,
}

#[derive(Debug)]
struct Plugin {
    name: String,
    hooks: Vec<i32>,
    connection: Connection,
    /// It said nothing, or nothing that could be understood: it is asked no more.
    broken: bool,
}

/// What a plugin took.
#[derive(Debug)]
pub struct Saved {
    /// The plugin's name.
    pub plugin: String,
    /// What it will want back, with its length: a file in memory that nobody can change.
    pub data: Option<(OwnedFd, u64)>,
}

impl Plugins {
    /// None at all.
    pub fn none() -> Self {
        Self { all: Mutex::default(), until: Until { deadline: Deadline::after(LIMIT), watch: Watch::default() } }
    }

    /// Connects to plugins by their sockets' names, and asks who they are. `until` bounds everything they do.
    ///
    /// # Errors
    /// A plugin that is not there, somebody else's, or does not answer as it should.
    pub(crate) fn connect(addresses: &[String], stage: Stage, until: Until) -> Result<Self> {
        let mut all: Vec<Plugin> = Vec::with_capacity(addresses.len());
        for address in addresses {
            let help = "start the plugin before crust, as the same user or root, and let it listen there";
            let plugin = Plugin::connect(address, stage, &until);
            let plugin = plugin.map_err(|e| e.on(Object::Path(address.clone())).help(help))?;
            if all.iter().any(|p| p.name == plugin.name) {
                return Err(Error::new(Kind::BadRequest, format!("two plugins are called {}", plugin.name))
                    .help("name each of them once"));
            }
            all.push(plugin);
        }
        Ok(Self { all: Mutex::new(all), until })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Plugin>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if there is a plugin of this name.
    pub fn has(&self, name: &str) -> bool {
        self.lock().iter().any(|p| p.name == name)
    }

    /// Offers a descriptor to one plugin after the other; `None` if none takes it.
    ///
    /// # Errors
    /// A plugin that fails.
    pub fn offer(&self, request: &Request, fd: BorrowedFd<'_>) -> Result<Option<Saved>> {
        for plugin in self.lock().iter_mut().filter(|p| p.wants(request.hook)) {
            let Some(data) = plugin.ask(request, Some(fd), &self.until)? else { continue };
            let data = data.into_iter().next().map(|fd| plugin.sealed(fd, request.hook)).transpose()?;
            return Ok(Some(Saved { plugin: plugin.name.clone(), data }));
        }
        Ok(None)
    }

    /// A descriptor from the plugin that saved it, which gets back what it had given.
    ///
    /// # Errors
    /// A plugin that fails, or gives none.
    pub fn bring(&self, name: &str, request: &Request, data: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
        let mut all = self.lock();
        let plugin = all.iter_mut().find(|p| p.name == name);
        let plugin = plugin.ok_or_else(|| missing(Some(name)))?;
        let given = plugin.ask(request, data, &self.until)?.and_then(|fds| fds.into_iter().next());
        given.ok_or_else(|| plugin.fault(request.hook, "gave no descriptor back"))
    }

    /// Tells all that want to know that it is time for `hook`.
    ///
    /// # Errors
    /// A plugin that fails.
    pub(crate) fn tell(&self, hook: Hook, pid: i32) -> Result<()> {
        let request = Request { hook: hook.into(), pid: Some(pid), ..Request::default() };
        for plugin in self.lock().iter_mut().filter(|p| p.wants(request.hook)) {
            plugin.ask(&request, None, &self.until)?;
        }
        Ok(())
    }

    /// Says how the request ended. Nobody waits for an answer; who only loses the connection knows that it failed.
    pub(crate) fn end(&self, success: bool) {
        let request = Request { hook: Hook::Exit.into(), success: Some(success), ..Request::default() };
        for plugin in self.lock().iter().filter(|p| !p.broken) {
            if let Err(e) = plugin.connection.send(&request, None) {
                log::warn!("plugin {} does not hear how it ended: {e}", plugin.name);
            }
        }
    }
}

/// The error for something that no plugin here saved.
pub fn missing(name: Option<&str>) -> Error {
    let (what, help) = match name {
        Some(name) => {
            (format!("was saved by the plugin {name}"), "start that plugin and name its socket with --plugin")
        }
        None => ("was saved by a plugin of CRIU's".to_owned(), "restore it with the tool that saved it"),
    };
    Error::unsupported(what, help)
}

impl Plugin {
    fn connect(address: &str, stage: Stage, until: &Until) -> Result<Self> {
        let name = match address.strip_prefix('@') {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
            None => SocketAddrUnix::new(address),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).during("socket")?;
        connect(&socket, &name.during("the plugin's address")?).during("connecting to a plugin")?;
        // What it is shown is the program's: nobody gets it who could not look into the program as well.
        let peer = sockopt::socket_peercred(&socket).during("asking who the plugin is")?;
        let own = rustix::process::geteuid();
        if !peer.uid.is_root() && peer.uid != own {
            return Err(Error::new(
                Kind::Permission,
                format!("the plugin runs as user {}, and crust as {}", peer.uid.as_raw(), own.as_raw()),
            ));
        }
        let connection = Connection::new(socket);
        let mut plugin = Self { name: address.to_owned(), hooks: Vec::new(), connection, broken: false };
        let request = Request {
            hook: Hook::Init.into(),
            version: Some(VERSION),
            stage: Some(stage.into()),
            ..Request::default()
        };
        let (reply, _) = plugin.exchange(&request, None, until)?;
        plugin.check(&reply, Hook::Init.into())?;
        let said = reply.name.unwrap_or_default();
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if said.is_empty() || said.len() > MAX_NAME_BYTES || !said.bytes().all(good) {
            return Err(plugin.fault(Hook::Init.into(), "gave no name as plugins have them"));
        }
        if reply.version != Some(VERSION) {
            let what = format!("speaks version {:?} of the protocol, and crust version {VERSION}", reply.version);
            return Err(plugin.fault(Hook::Init.into(), &what));
        }
        (plugin.name, plugin.hooks) = (said, reply.hooks);
        Ok(plugin)
    }

    fn wants(&self, hook: i32) -> bool {
        !self.broken && self.hooks.contains(&hook)
    }

    /// Its answer to a hook: the descriptors that came with it, or `None` if it is none of the plugin's.
    fn ask(&mut self, request: &Request, fd: Option<BorrowedFd<'_>>, until: &Until) -> Result<Option<Vec<OwnedFd>>> {
        let (reply, fds) = self.exchange(request, fd, until)?;
        if reply.result == -libc::ENOTSUP && fds.is_empty() {
            return Ok(None);
        }
        self.check(&reply, request.hook)?;
        // Who is told of something by its pid has nothing to give.
        let most = usize::from(request.id.is_some());
        if fds.len() > most {
            self.broken = true;
            return Err(self.fault(request.hook, &format!("answered with {} descriptors", fds.len())));
        }
        Ok(Some(fds))
    }

    fn check(&self, reply: &Reply, hook: i32) -> Result<()> {
        if reply.result == 0 {
            return Ok(());
        }
        let why = reply.error.as_deref().filter(|e| !e.is_empty());
        let errno = Errno::from_raw_os_error(reply.result.saturating_neg().clamp(1, 4095));
        let text = why.map_or_else(|| format!("failed: {errno}"), |why| format!("failed: {}", why.escape_debug()));
        Err(self.fault(hook, &text))
    }

    /// One request and its reply. Whatever goes wrong here, nothing more can be said to this plugin.
    fn exchange(
        &mut self,
        request: &Request,
        fd: Option<BorrowedFd<'_>>,
        until: &Until,
    ) -> Result<(Reply, Vec<OwnedFd>)> {
        let exchanged = self.try_exchange(request, fd, until);
        self.broken |= exchanged.is_err();
        exchanged
    }

    fn try_exchange(
        &self,
        request: &Request,
        fd: Option<BorrowedFd<'_>>,
        until: &Until,
    ) -> Result<(Reply, Vec<OwnedFd>)> {
        let hook = request.hook;
        self.connection.send(request, fd).map_err(|e| self.fault(hook, &format!("cannot be asked: {e}")))?;
        let limit = LIMIT.min(until.deadline.remaining());
        let failed = |e: std::io::Error| self.fault(hook, &format!("cannot be heard: {e}"));
        let end = Instant::now() + limit;
        while !self.connection.readable_until(end.min(Instant::now() + TICK)).map_err(failed)? {
            if until.watch.is_over() {
                let what = format!("the request was cancelled while plugin {} was awaited", self.name);
                return Err(Error::new(Kind::Cancelled, what));
            }
            if Instant::now() >= end {
                let e = self.fault(hook, &format!("did not answer within {:.1} s", limit.as_secs_f32()));
                return Err(e.kind_is(Kind::Timeout));
            }
        }
        let (packet, fds) = self.connection.receive_all::<Reply>(MAX_REPLY_BYTES).map_err(failed)?;
        match packet {
            Packet::Message(reply, _) if reply.hook == hook => Ok((reply, fds)),
            Packet::Message(reply, _) => Err(self.fault(hook, &format!("answered another hook ({})", reply.hook))),
            Packet::Closed => Err(self.fault(hook, "ended, or closed the connection")),
            Packet::Garbage(what) => Err(self.fault(hook, &format!("answered with no message: {what}"))),
        }
    }

    /// A file in memory whose content and length stay: reading it can neither wait nor surprise.
    fn sealed(&mut self, fd: OwnedFd, hook: i32) -> Result<(OwnedFd, u64)> {
        let need = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        if !fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(need)) {
            self.broken = true;
            return Err(self.fault(hook, "gave data in a descriptor that is no memfd sealed against changes"));
        }
        let len = rustix::fs::fstat(fd.as_fd()).during("fstat")?.st_size;
        Ok((fd, len.unsigned_abs()))
    }

    fn fault(&self, hook: i32, what: &str) -> Error {
        let hook = Hook::try_from(hook).map_or("?", |h| h.as_str_name());
        Error::new(Kind::Script, format!("plugin {} {what} ({hook})", self.name))
            .help("see what the plugin itself says; without --plugin it is not asked")
    }
}
