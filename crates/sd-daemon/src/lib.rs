//! systemd's daemon protocol, stand-alone: socket activation, notification, watchdog, log levels, journal.
//!
//! No libsystemd, no threads of its own, no output. The answers are libsystemd's, which the tests show by asking
//! both; where they differ on purpose, `tests/differential.rs` lists the case and the reason.
//!
//! The environment is unset only while the process has one thread, because anything else is undefined behaviour:
//! calls with `unset = true` are refused otherwise. Make them first thing in `main`.
//!
//! ```no_run
//! use sd_daemon::{NotifyState, SocketType, listen_fds_with_names, notify, watchdog_enabled};
//!
//! // First thing in main, while there is one thread: take what was passed, and tell no child about it.
//! let watchdog = watchdog_enabled(true)?;
//! for passed in listen_fds_with_names(true)? {
//!     if sd_daemon::is_socket_unix(&passed.fd, Some(SocketType::SEQPACKET), Some(true), None)? {
//!         println!("listening on {:?}", passed.name);
//!     }
//! }
//! notify(false, &[NotifyState::Ready, NotifyState::status("waiting for requests")])?;
//! # Ok::<(), sd_daemon::Error>(())
//! ```
//!
//! With feature `disable-systemd` everything that speaks to systemd says "not under systemd": no descriptors, no
//! service manager, no watchdog, no journal, not booted. Questions about a descriptor ([`is_socket`] and so on) ask the
//! kernel, not systemd, and keep answering. With `disable-mq`, [`is_mq`] always says no.

mod booted;
mod env;
mod error;
mod journal;
mod level;
mod listen;
mod notify;
mod number;
mod pidfd;
mod query;
mod sys;
mod watchdog;

pub use booted::booted;
pub use env::{unset_listen, unset_notify, unset_watchdog};
pub use error::{Error, Result};
pub use journal::{Journal, entry as journal_entry, is_journal_stream};
pub use level::Level;
pub use listen::{LISTEN_FDS_START, ListenFd, listen_fds, listen_fds_count, listen_fds_with_names};
pub use notify::{MAX_FDS, Notifier, NotifyState, encode, notify, notify_barrier, notify_with_fds};
pub use pidfd::pidfd_inode_id;
pub use query::{
    Family, SocketType, UnixName, is_fifo, is_mq, is_socket, is_socket_inet, is_socket_sockaddr, is_socket_unix,
    is_special, unix_socket_name,
};
pub use watchdog::watchdog_enabled;
