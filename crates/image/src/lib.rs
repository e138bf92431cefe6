//! CRIU's image format: magics, records, readers, writers, manifest. Makes no syscalls and never panics on any bytes.
//!
//! An image file is a magic number followed by records: a 32-bit length, a protobuf message, and for some kinds raw bytes
//! whose length the message tells. [`ImageKind`] knows every kind of file, [`proto`] every message, [`Reader`] and
//! [`Writer`] the framing.
#![forbid(unsafe_code)]

mod decode;
mod encode;
mod error;
mod frame;
pub mod json;
mod kind;
pub mod manifest;
pub mod pagemap;
pub mod proto;
mod schema;
mod set;
pub mod streamer;
pub mod tar;
mod text;
pub mod tools;
mod tree;
mod view;

pub use decode::{Style, count_records, decode_image};
pub use encode::encode_image;
pub use error::{Error, Result, What};
pub use frame::{MAX_RECORD_BYTES, Reader, Writer, encode_all, encode_one, read_all, read_one};
pub use kind::{Extra, ImageKind};
pub use prost::Message;
pub use set::ImageSet;
