//! Fuzzes crust_fuzz::tar.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| crust_fuzz::tar(data));
