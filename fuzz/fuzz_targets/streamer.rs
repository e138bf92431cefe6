//! Fuzzes crust_fuzz::streamer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| crust_fuzz::streamer(data));
