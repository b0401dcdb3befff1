//! The `bornite` binary.
fn main() {}
