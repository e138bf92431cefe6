//! Fuzzes crust_fuzz::checkpoint.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| crust_fuzz::checkpoint(data));
