//! What is asked for, built step by step.
use crust_rpc::{InheritFd, Opts};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

/// How much goes into the log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Log {
    /// Errors only.
    Error,
    /// And warnings, the default.
    Warning,
    /// And what happens.
    Info,
    /// And what each step found.
    Debug,
}

/// What a dump and a restore have in common.
#[derive(Clone, Debug)]
struct Common<'a> {
    images: BorrowedFd<'a>,
    work_dir: Option<BorrowedFd<'a>>,
    opts: Opts,
}

impl<'a> Common<'a> {
    fn new(images: BorrowedFd<'a>) -> Self {
        Self { images, work_dir: None, opts: Opts::default() }
    }

    fn opts(&self, notices: bool) -> Opts {
        Opts {
            images_dir_fd: Some(self.images.as_raw_fd()),
            work_dir_fd: self.work_dir.map(|fd| fd.as_raw_fd()),
            notify_scripts: notices.then_some(true),
            ..self.opts.clone()
        }
    }
}

macro_rules! common {
    ($name:ident) => {
        impl<'a> $name<'a> {
            /// Directory of the log file and the statistics, if that is not the images' one.
            #[must_use]
            pub fn work_dir(mut self, dir: &'a impl AsFd) -> Self {
                self.common.work_dir = Some(dir.as_fd());
                self
            }

            /// Name of the log file within its directory, and how much goes into it.
            #[must_use]
            pub fn log(mut self, name: &str, level: Log) -> Self {
                self.common.opts.log_file = Some(name.as_bytes().to_vec());
                self.common.opts.log_level = Some(match level {
                    Log::Error => 1,
                    Log::Warning => 2,
                    Log::Info => 3,
                    Log::Debug => 4,
                });
                self
            }

            /// The tree belongs to a session or terminal from outside of it, as a shell's job does.
            #[must_use]
            pub fn shell_job(mut self, on: bool) -> Self {
                self.common.opts.shell_job = Some(on);
                self
            }

            /// The tree holds established TCP connections.
            #[must_use]
            pub fn tcp_established(mut self, on: bool) -> Self {
                self.common.opts.tcp_established = Some(on);
                self
            }

            /// The tree holds file locks.
            #[must_use]
            pub fn file_locks(mut self, on: bool) -> Self {
                self.common.opts.file_locks = Some(on);
                self
            }

            /// The tree holds unix sockets whose other end is outside of it.
            #[must_use]
            pub fn external_unix_sockets(mut self, on: bool) -> Self {
                self.common.opts.ext_unix_sk = Some(on);
                self
            }

            /// A resource that is somebody else's, in CRIU's words: `tty[…]`, `file[…]`, `unix[…]`, `mnt[…]:…`.
            #[must_use]
            pub fn external(mut self, resource: impl Into<String>) -> Self {
                self.common.opts.external.push(resource.into());
                self
            }

            /// A plugin that is asked for what the server cannot save or restore: the absolute path of its socket, or `@` and an
            /// abstract name. For crust's server only (docs/plugins.md).
            #[must_use]
            pub fn plugin(mut self, socket: impl Into<String>) -> Self {
                self.common.opts.crust_plugins.push(socket.into());
                self
            }

            /// A configuration file of the server's that goes before everything said here. For root only.
            #[must_use]
            pub fn config_file(mut self, file: impl AsRef<Path>) -> Self {
                self.common.opts.config_file = Some(file.as_ref().as_os_str().as_encoded_bytes().to_vec());
                self
            }

            /// Fields of the protocol that have no method here.
            #[must_use]
            pub fn fields(mut self, set: impl FnOnce(&mut Opts)) -> Self {
                set(&mut self.common.opts);
                self
            }

            pub(crate) fn opts(&self, notices: bool) -> Opts {
                self.common.opts(notices)
            }
        }
    };
}

/// A checkpoint to be made.
#[derive(Clone, Debug)]
pub struct Dump<'a> {
    common: Common<'a>,
}

common!(Dump);

impl<'a> Dump<'a> {
    /// Of the tree below `pid`, into the directory `images`.
    pub fn of(pid: i32, images: &'a impl AsFd) -> Self {
        let mut common = Common::new(images.as_fd());
        common.opts.pid = Some(pid);
        Self { common }
    }

    /// Of this very process and its children. Only a service can do that. The call returns in the restored copy, with
    /// [`Dumped::Restored`](crate::Dumped::Restored); here it returns only if the tree runs on.
    pub fn of_caller(images: &'a impl AsFd) -> Self {
        Self { common: Common::new(images.as_fd()) }
    }

    /// Let the tree run on afterwards.
    #[must_use]
    pub fn leave_running(mut self, on: bool) -> Self {
        self.common.opts.leave_running = Some(on);
        self
    }

    /// Leave the tree stopped (SIGSTOP) afterwards.
    #[must_use]
    pub fn leave_stopped(mut self, on: bool) -> Self {
        self.common.opts.leave_stopped = Some(on);
        self
    }

    /// Link files that have lost their name to a new one.
    #[must_use]
    pub fn link_remap(mut self, on: bool) -> Self {
        self.common.opts.link_remap = Some(on);
        self
    }

    /// The largest deleted file whose content goes into the images, in bytes.
    #[must_use]
    pub fn ghost_limit(mut self, bytes: u32) -> Self {
        self.common.opts.ghost_limit = Some(bytes);
        self
    }

    /// How many seconds stopping the tree may take.
    #[must_use]
    pub fn freeze_within(mut self, seconds: u32) -> Self {
        self.common.opts.timeout = Some(seconds);
        self
    }
}

/// A tree to be brought back.
#[derive(Clone, Debug)]
pub struct Restore<'a> {
    common: Common<'a>,
}

common!(Restore);

impl<'a> Restore<'a> {
    /// From the directory `images`.
    pub fn from(images: &'a impl AsFd) -> Self {
        Self { common: Common::new(images.as_fd()) }
    }

    /// With an own worker: the root task becomes a child of this process instead of the worker's.
    #[must_use]
    pub fn sibling(mut self) -> Self {
        self.common.opts.rst_sibling = Some(true);
        self
    }

    /// With an own worker: the resource `key` of the tree is the descriptor that the *worker* has as `number`, inherited
    /// from this process.
    #[must_use]
    pub fn inherit_fd(mut self, key: impl Into<String>, number: i32) -> Self {
        self.common.opts.inherit_fd.push(InheritFd { key: key.into(), fd: number });
        self
    }

    /// A new root directory, which is a mount point.
    #[must_use]
    pub fn root(mut self, root: impl AsRef<Path>) -> Self {
        self.common.opts.root = Some(root.as_ref().as_os_str().as_encoded_bytes().to_vec());
        self
    }

    /// TCP connections come back closed.
    #[must_use]
    pub fn tcp_close(mut self, on: bool) -> Self {
        self.common.opts.tcp_close = Some(on);
        self
    }

    /// Ask for the masters of terminals whose slaves the tree holds
    /// ([`Notice::OrphanPtyMaster`](crate::Notice::OrphanPtyMaster)).
    #[must_use]
    pub fn orphan_pty_master(mut self, on: bool) -> Self {
        self.common.opts.orphan_pts_master = Some(on);
        self
    }
}
