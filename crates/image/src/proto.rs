//! The records, generated from `proto/*.proto` at build time. Names and numbers are CRIU's; required fields that are
//! absent read as their default, as CRIU's older images need it.
#![allow(
    missing_docs,
    clippy::doc_markdown,
    clippy::doc_lazy_continuation,
    reason = "generated code; the schemas hold the documentation"
)]
include!(concat!(env!("OUT_DIR"), "/records.rs"));
