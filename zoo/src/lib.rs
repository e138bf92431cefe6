//! The zoo: tiny programs that hold one kernel resource each and check themselves after restore.
//!
//! A program ([`Zoo`]) owns a private directory and talks through files in it, so that it needs neither sockets nor
//! living stdio: it writes `ready.N`, waits for `go.N`, checks itself, writes `ok.N` or `fail.N`, and goes round again
//! until there is a file `quit`. Dump and restore happen between `ready.N` and `go.N`. The other side is [`harness`].
pub mod bpf;
pub mod bpf_maps;
pub mod calls;
pub mod cgroups;
pub mod harness;
pub mod i386;
pub mod mem;
pub mod net;
pub mod overlay;
pub mod proc;
pub mod queues;
pub mod rights;
pub mod storms;
pub mod sys;
mod table;
pub mod tuns;
pub mod watches;
mod zoo;
pub use zoo::{Seat, Zoo};

/// Stands for a newline inside the fields of a line that goes to the box.
pub const LINE_BREAK: &str = "\u{1e}";

/// How many of something a program has: what the variable `name` says, or else `few`, so that all tests together stay short.
pub fn size(name: &str, few: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(few)
}

/// The value, or the end of a program that could not set up its state: the panic is in the log that the harness shows.
pub fn must<T, E: std::fmt::Debug>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|e| panic!("{e:?}"))
}
