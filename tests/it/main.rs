//! Integration tests, over real sockets.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that fails should say so at once")]

mod cli;
mod client;
mod client_support;
