//! See `fuzz::chat_grammar`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::chat_grammar(input));
