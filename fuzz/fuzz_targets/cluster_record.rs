//! See `cluster_record` in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bornite_fuzz::cluster_record(data));
