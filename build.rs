//! Version data for the binary.
fn main() {}
