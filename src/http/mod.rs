//! HTTP/1.1 as a server sees it: bytes to requests, answers to bytes.
//!
//! # Place
//!
//! Above `base`, `wire` and `config::settings`; below `server`, which owns the socket and drives
//! what is here. Pure data: no clock, lock, thread or socket.
//!
//! A request passes through in this order:
//!
//! ```text
//!   bytes -> head::Scanner -> Head -> origin::check -> target::Route -> admit -> BodyReader
//!                                                                    -> upgrade::check
//!   answer, or HttpError -> response -> bytes
//! ```
//!
//! # Not here
//!
//! What a route does, time-outs, and when a connection is closed (`server`). Chunked answers: a
//! body is whole when it is sent, or is a stream that the end of the connection ends. TLS, HTTP/2,
//! compression, ranges.

pub mod authority;
pub mod body;
pub mod condition;
pub mod error;
pub mod field;
pub mod head;
pub mod origin;
pub mod response;
pub mod stream;
pub mod target;
pub mod upgrade;

#[cfg(test)]
mod smuggling;

/// A value as an error message shows it: quoted, and short even if the value is not.
pub(crate) fn shown(value: &str) -> String {
    const CHARS_MAX: usize = 40;
    match value.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{:?}...", &value[..end]),
        None => format!("{value:?}"),
    }
}
