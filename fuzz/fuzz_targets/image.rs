//! Fuzzes crust_fuzz::image.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| crust_fuzz::image(data));
