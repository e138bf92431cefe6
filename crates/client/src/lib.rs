//! Checkpoint and restore processes from Rust: through the service of `crust` (or `criu`), or a worker of one's own.
//!
//! Calls block; there is no runtime. Each request uses a connection of its own.
//! ```no_run
//! use crust_client::{Crust, Dump, Restore};
//! use std::fs::File;
//! use std::time::Duration;
//!
//! let crust = Crust::service().limit(Duration::from_secs(60));
//! let images = File::open("/var/lib/job/images")?;
//! crust.dump(&Dump::of(4711, &images).shell_job(true))?;
//! // … and later, or after a restart:
//! let pid = crust.restore(&Restore::from(&images).shell_job(true))?;
//! println!("back as {pid}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! Descriptors travel as CRIU's protocol has it: the request holds their numbers, and the server fetches them from the
//! process that connected, with that process's rights. A [`Dump`] or [`Restore`] therefore borrows what it names, and must
//! be sent by the process that has it open.
#![forbid(unsafe_code)]

mod error;
mod notice;
mod request;

pub use crust_rpc::Opts;
pub use error::{Error, Kind, Refusal};
pub use notice::{Answer, Notice};
pub use request::{Dump, Log, Restore};

use crust_rpc::client::request as message;
use crust_rpc::{Client, Features as Asked, RequestType};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// Where a distribution's service listens.
pub const SERVICE_SOCKET: &str = "/run/criu-service.socket";

/// How long a worker of our own may take to end after its reply.
const WORKER_END: Duration = Duration::from_secs(10);

/// Where requests go, and how long each may take. Cheap to clone; opens nothing before it is asked.
#[derive(Clone, Debug)]
pub struct Crust {
    server: Server,
    limit: Option<Duration>,
}

#[derive(Clone, Debug)]
enum Server {
    Service(PathBuf),
    Swrk(PathBuf),
}

/// A version of the server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// `4` of 4.2.
    pub major: i32,
    /// `2` of 4.2.
    pub minor: i32,
    /// Third number; 0 if there is none.
    pub sublevel: i32,
    /// Commit of a development build.
    pub git: Option<String>,
}

/// What the kernel offers of what later versions will use; a server may refuse it still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// Incremental dumps.
    pub mem_track: bool,
    /// Restores that load memory when it is touched.
    pub lazy_pages: bool,
    /// Tasks recognised from one pre-dump to the next.
    pub pidfd_store: bool,
}

/// Who reads the result of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dumped {
    /// The process that asked: the images are there.
    Done,
    /// The copy of it that was restored from them ([`Dump::of_caller`]).
    Restored,
}

impl Crust {
    /// The service at [`SERVICE_SOCKET`].
    pub fn service() -> Self {
        Self::service_at(SERVICE_SOCKET)
    }

    /// A service elsewhere.
    pub fn service_at(socket: impl Into<PathBuf>) -> Self {
        Self { server: Server::Service(socket.into()), limit: None }
    }

    /// A worker of our own for each request, started as `binary swrk FD`. It has the rights of this process, and
    /// restored trees are children of it or of us ([`Restore::sibling`]).
    pub fn worker(binary: impl Into<PathBuf>) -> Self {
        Self { server: Server::Swrk(binary.into()), limit: None }
    }

    /// How long each request may take as a whole, notifications included. A request that takes longer is cancelled: the
    /// tree of a dump runs on, that of a restore is gone. Without a limit it takes as long as the server allows.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Who is there. Compare with what you need; crust answers with the version of CRIU that it stands in for.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn version(&self) -> Result<Version, Error> {
        let reply = self.ask(message(RequestType::Version, None), |_| Answer::Go)?;
        let v = reply.version.ok_or_else(|| Error::Protocol("no version in the reply".to_owned()))?;
        Ok(Version {
            major: v.major_number,
            minor: v.minor_number,
            sublevel: v.sublevel.unwrap_or(0),
            git: v.gitid.filter(|id| !id.is_empty()),
        })
    }

    /// Whether the kernel offers what is needed.
    ///
    /// # Errors
    /// The first thing that is missing, as [`Error::Refused`].
    pub fn check(&self) -> Result<(), Error> {
        self.ask(message(RequestType::Check, None), |_| Answer::Go).map(drop)
    }

    /// What the kernel offers besides.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn features(&self) -> Result<Features, Error> {
        let mut request = message(RequestType::FeatureCheck, None);
        request.features = Some(Asked { mem_track: Some(true), lazy_pages: Some(true), pidfd_store: Some(true) });
        let f = self.ask(request, |_| Answer::Go)?.features.unwrap_or_default();
        let has = |feature: Option<bool>| feature == Some(true);
        Ok(Features { mem_track: has(f.mem_track), lazy_pages: has(f.lazy_pages), pidfd_store: has(f.pidfd_store) })
    }

    /// Checkpoints a tree. On success it is gone, unless it was to run on.
    ///
    /// # Errors
    /// The server's reason. The tree runs on, and no images were made.
    pub fn dump(&self, dump: &Dump<'_>) -> Result<Dumped, Error> {
        self.dumped(dump.opts(false), |_| Answer::Go)
    }

    /// The same; `notices` is told of each step before it is taken, and may say no.
    ///
    /// # Errors
    /// As there.
    pub fn dump_with(&self, dump: &Dump<'_>, notices: impl FnMut(Notice) -> Answer) -> Result<Dumped, Error> {
        self.dumped(dump.opts(true), notices)
    }

    fn dumped(&self, opts: Opts, notices: impl FnMut(Notice) -> Answer) -> Result<Dumped, Error> {
        let reply = self.ask(message(RequestType::Dump, Some(opts)), notices)?;
        let restored = reply.dump.and_then(|d| d.restored).unwrap_or(false);
        Ok(if restored { Dumped::Restored } else { Dumped::Done })
    }

    /// Brings a tree back; the pid of its root task.
    ///
    /// # Errors
    /// The server's reason. Nothing of the tree is left then.
    pub fn restore(&self, restore: &Restore<'_>) -> Result<i32, Error> {
        self.restored(restore.opts(false), |_| Answer::Go)
    }

    /// The same; `notices` is told of each step before it is taken, and may say no until the tree runs.
    ///
    /// # Errors
    /// As there.
    pub fn restore_with(&self, restore: &Restore<'_>, notices: impl FnMut(Notice) -> Answer) -> Result<i32, Error> {
        self.restored(restore.opts(true), notices)
    }

    fn restored(&self, opts: Opts, notices: impl FnMut(Notice) -> Answer) -> Result<i32, Error> {
        let reply = self.ask(message(RequestType::Restore, Some(opts)), notices)?;
        let pid = reply.restore.map(|r| r.pid).filter(|pid| *pid > 0);
        pid.ok_or_else(|| Error::Protocol("no pid in the reply to a restore".to_owned()))
    }

    fn connect(&self) -> Result<Client, Error> {
        match (&self.server, self.limit) {
            (Server::Service(path), Some(limit)) => {
                Client::connect_within(path, limit).map_err(|e| unreachable_at(path, e))
            }
            (Server::Service(path), None) => Client::connect(path).map_err(|e| unreachable_at(path, e)),
            (Server::Swrk(binary), limit) => {
                let mut client = Client::spawn_swrk(binary).map_err(|e| unreachable_at(binary, e))?;
                client.set_limit(limit)?;
                Ok(client)
            }
        }
    }

    fn ask(
        &self,
        request: crust_rpc::Request,
        mut notices: impl FnMut(Notice) -> Answer,
    ) -> Result<crust_rpc::Response, Error> {
        let mut client = self.connect()?;
        let outcome = client.call_with(request, |n| notices(Notice::from(n)).into());
        // The connection is closed here: what still runs is cancelled, and a worker ends.
        if let Some(child) = client.into_swrk() {
            reap(child);
        }
        outcome.map_err(Error::from)
    }
}

fn unreachable_at(path: &Path, e: crust_rpc::Error) -> Error {
    match e {
        crust_rpc::Error::Io(source) => Error::Unreachable { path: path.to_owned(), source },
        other => other.into(),
    }
}

/// Waits for a worker whose connection is closed. One that does not end is ended: the trees it works on survive that.
fn reap(mut child: Child) {
    let end = Instant::now() + WORKER_END;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() >= end {
            let _gone = child.kill();
            let _reaped = child.wait();
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crust_rpc::{Connection, Packet, Request, Response};
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, socket_with};
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt;

    /// A service that answers one request with `replies`, and what it was asked.
    fn served(replies: Vec<Response>, ask: impl FnOnce(&Crust)) -> Vec<Request> {
        let dir =
            std::env::temp_dir().join(format!("crust-client-{}-{:?}", std::process::id(), std::thread::current().id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("s");
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&socket, 1).unwrap();
        let asked = std::thread::scope(|scope| {
            let server = scope.spawn(move || {
                let connection = Connection::new(accept(&socket).unwrap());
                let mut asked = Vec::new();
                for reply in replies {
                    let Ok(Packet::Message(request, _)) = connection.receive::<Request>() else { break };
                    asked.push(request);
                    connection.send_response(&reply).unwrap();
                }
                asked
            });
            ask(&Crust::service_at(&path));
            server.join().unwrap()
        });
        std::fs::remove_dir_all(&dir).unwrap();
        asked
    }

    fn reply(kind: RequestType, success: bool) -> Response {
        Response { r#type: kind.into(), success, ..Response::default() }
    }

    #[test]
    fn a_dump_says_what_was_built_and_notices_are_answered() {
        let images = File::open("/").unwrap();
        let notice = |script: &str| Response {
            notify: Some(crust_rpc::Notify { script: Some(script.into()), pid: Some(5) }),
            ..reply(RequestType::Notify, true)
        };
        let done =
            Response { dump: Some(crust_rpc::DumpResponse { restored: Some(true) }), ..reply(RequestType::Dump, true) };
        let mut seen = Vec::new();
        let asked = served(vec![notice("query-ext-files"), notice("new-one"), done], |crust| {
            let dump =
                Dump::of(7, &images).leave_running(true).log("x.log", Log::Debug).external("tty[1:2]").plugin("@p");
            let outcome = crust.dump_with(&dump, |notice| {
                let more = matches!(notice, Notice::QueryExternalFiles);
                seen.push(notice);
                if more { Answer::Externals(vec!["file[1:2]".to_owned()]) } else { Answer::Go }
            });
            assert_eq!(outcome.unwrap(), Dumped::Restored);
        });
        assert!(
            matches!(&seen[..], [Notice::QueryExternalFiles, Notice::Other { script, pid: Some(5) }] if script == "new-one")
        );
        let opts = asked[0].opts.as_ref().unwrap();
        assert_eq!((opts.pid, opts.leave_running, opts.notify_scripts), (Some(7), Some(true), Some(true)));
        assert_eq!(opts.images_dir_fd, Some(images.as_raw_fd()));
        assert_eq!((opts.log_file.as_deref(), opts.log_level), (Some(&b"x.log"[..]), Some(4)));
        assert_eq!((&opts.external[..], &opts.crust_plugins[..]), (&["tty[1:2]".into()][..], &["@p".into()][..]));
        assert_eq!(asked[1].opts.as_ref().unwrap().external, ["file[1:2]"]);
        assert_eq!((asked[2].notify_success, &asked[2].opts), (Some(true), &None));
    }

    #[test]
    fn refusals_have_a_kind_and_other_failures_are_told_apart() {
        for (errno, kind) in [
            (Some(Errno::SRCH.raw_os_error()), Kind::NoSuchTask),
            (Some(Errno::EXIST.raw_os_error()), Kind::Taken),
            (Some(Errno::BADRQC.raw_os_error()), Kind::BadRequest),
            (Some(Errno::AGAIN.raw_os_error()), Kind::Busy),
            (None, Kind::Other),
        ] {
            let no = Response { cr_errno: errno, cr_errmsg: Some("why".into()), ..reply(RequestType::Check, false) };
            served(vec![no], |crust| match crust.check() {
                Err(Error::Refused(refusal)) => {
                    assert_eq!((refusal.kind(), refusal.errno(), refusal.message()), (kind, errno, Some("why")));
                }
                other => panic!("{other:?}"),
            });
        }
        served(vec![], |crust| assert!(matches!(crust.version(), Err(Error::Closed | Error::Io(_)))));
        served(vec![reply(RequestType::Check, true)], |crust| {
            assert!(matches!(crust.version(), Err(Error::Protocol(_))));
        });
        let images = File::open("/").unwrap();
        served(vec![reply(RequestType::Restore, true)], |crust| {
            assert!(matches!(crust.restore(&Restore::from(&images)), Err(Error::Protocol(_))));
        });
        let nowhere = Crust::service_at("/nonexistent/socket");
        match nowhere.version() {
            Err(Error::Unreachable { path, .. }) => assert_eq!(path.as_os_str().as_bytes(), b"/nonexistent/socket"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(Crust::worker("/nonexistent/crust").check(), Err(Error::Unreachable { .. })));
    }
}
