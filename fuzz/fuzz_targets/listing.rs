//! See `listing` in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bornite_fuzz::listing(data));
