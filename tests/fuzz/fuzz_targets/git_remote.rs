//! See `fuzz::git_remote`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::git_remote(input));
