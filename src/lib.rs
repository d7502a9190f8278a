//! Landline: a reliable event relay for the LAN.
//!
//! A topic is a numbered, bounded log; a subscription is a cursor into it. Live delivery, replay
//! after an interruption and catching up after a stall are the same thing with a different start,
//! and every loss is announced with its exact range.
//!
//! Run the relay as a process with `landline serve`, or inside a program:
//!
//! ```
//! use landline::{config::Config, server::Server};
//!
//! let config = Config { listen: vec!["127.0.0.1:0".into()], ..Config::default() };
//! let server = Server::start(config)?;
//! println!("listening on http://{}", server.addresses()[0]);
//! let report = server.stop();
//! assert!(report.late.is_empty());
//! # Ok::<(), landline::server::StartError>(())
//! ```
//!
//! Threads only: there is no async runtime, here or below. `ARCHITECTURE.md` lists every thread,
//! lock and queue.

#![forbid(unsafe_code)]

pub mod base;
pub mod bus;
pub mod cli;
pub mod client;
pub mod config;
pub mod http;
pub mod metrics;
pub mod name;
pub mod presence;
pub mod server;
pub mod state;
pub mod store;
pub mod topic;
pub mod wire;
