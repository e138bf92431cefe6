//! Fuzzes crust_fuzz::json.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| crust_fuzz::json(data));
