//! Fuzzes the decoder of what plugins say.
#![no_main]
#[path = "../src/plugin.rs"]
mod target;
libfuzzer_sys::fuzz_target!(|data: &[u8]| target::reply(data));
