//! CRIU's RPC, and what is spoken with plugins: the schemas, SEQPACKET framing, and a blocking client that speaks it field by field. Programs that want to
//! checkpoint and restore use `crust-client`, which is made of this.
//!
//! One packet is one message; there is no length in front. A server reads [`Request`]s and writes [`Response`]s:
//! ```no_run
//! use crust_rpc::{Client, Opts};
//! let mut client = Client::connect("/run/criu-service.socket".as_ref())?;
//! let version = client.version()?;
//! println!("{}.{}", version.major_number, version.minor_number);
//! # Ok::<(), crust_rpc::Error>(())
//! ```
#![forbid(unsafe_code)]

pub mod client;
pub mod conn;

pub use client::{Ack, Client, Error, Failure, Notification};
pub use conn::{Connection, Packet};
pub use schema::*;

/// Messages and enums as `proto/rpc.proto` declares them.
#[allow(missing_docs, unreachable_pub, clippy::allow_attributes_without_reason, reason = "generated; see rpc.proto")]
mod schema {
    include!(concat!(env!("OUT_DIR"), "/crust.rpc.rs"));
}

/// What crust and plugins say to each other, as `proto/plugin.proto` declares it; told in docs/plugins.md.
#[allow(missing_docs, unreachable_pub, clippy::allow_attributes_without_reason, reason = "generated; see plugin.proto")]
pub mod plugin {
    include!(concat!(env!("OUT_DIR"), "/crust.plugin.rs"));
}

/// Largest packet either side accepts. CRIU has no limit; its largest known request is a few KiB, and a kernel socket
/// buffer bounds a packet to some hundred KiB anyway.
pub const MAX_PACKET_BYTES: usize = 1 << 20;

/// What a reply must stay below: CRIU's own tests read into 1024 bytes.
pub const MAX_REPLY_BYTES: usize = 1023;
