#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edgeweld_fuzz::pack::check(data));
