//! The endpoint layer.
