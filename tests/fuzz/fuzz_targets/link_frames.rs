//! See `fuzz::link_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::link_frames(input));
