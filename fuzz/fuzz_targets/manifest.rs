//! Fuzzes crust_fuzz::manifest.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| crust_fuzz::manifest(data));
