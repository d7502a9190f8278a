//! The JSON protocol, version 1: what stands in a message, what bytes stand on the socket.
//!
//! # Place
//!
//! Above `name`, below everything that delivers. Pure data: no clock, lock, thread or socket.
//!
//! # Not here
//!
//! What a request does (`server`), where an event is kept (`topic`).

pub mod codes;
pub mod frame;
pub mod json;
pub mod marks;
pub mod position;
pub mod reply;
pub mod request;
pub mod state;
pub mod stream;
