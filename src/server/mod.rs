//! The relay as a running thing: listeners, readers, writers, keeper.
//!
//! # Place
//!
//! Above everything but `client` and `cli`.
//!
//! # Threads
//!
//! All of `ARCHITECTURE.md`'s table. Readers never write to a socket; writers never block on one.

mod acceptor;
mod committer;
mod connection;
mod deadlines;
mod echo;
mod happening;
mod history;
mod keeper;
mod line;
mod lists;
mod logging;
#[cfg(all(test, shuttle))]
mod models;
#[cfg(all(test, loom))]
mod orderings;
mod outbox;
mod pager;
mod presence;
mod pulse;
mod reader;
mod relay;
mod requests;
mod roster;
mod routes;
mod state;
mod stream;
mod sys;
mod system;
mod vault;
mod websocket;
mod writer;

pub use happening::RelayEvent;
pub use relay::{Server, StartError, StopReport};
