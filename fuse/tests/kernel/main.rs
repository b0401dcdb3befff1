//! This crate against the real kernel. Everything mounts in temporary directories and cleans up, also when it fails.

mod lifetime;
mod requests;
#[cfg(feature = "static-server")]
mod static_server;
mod support;
