#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate::fuzz::state_load(data));
