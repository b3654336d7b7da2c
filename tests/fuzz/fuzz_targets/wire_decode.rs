#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate::fuzz::wire_decode(data));
