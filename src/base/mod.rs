//! What everything else stands on: locks, lanes, threads, time, randomness, hard limits.
//!
//! # Place
//!
//! The lowest layer. Nothing here knows what a topic or a connection is.

pub mod backoff;
pub mod clock;
#[cfg(test)]
pub mod docs;
pub mod fault;
pub mod flag;
pub mod interest;
pub mod lane;
pub mod lifecycle;
pub mod limits;
pub mod lock;
#[cfg(all(test, shuttle))]
mod models;
#[cfg(all(test, loom))]
mod orderings;
pub mod pause;
pub mod random;
pub mod sync;
