#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| quorate::fuzz::watch_hub(data));
