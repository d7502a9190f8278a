//! Topics: append-only, bounded, numbered logs, and who is to be woken for them.
//!
//! # Place
//!
//! Above `name`, `wire`, `config` and `metrics`; below everything that delivers.
//!
//! # Not here
//!
//! Cursors that move (`server::writer`); sockets of any kind.

pub mod consumers;
pub mod dedupe;
pub mod frames;
mod largest;
pub mod log;
pub mod registry;
#[expect(clippy::module_inception, reason = "the topic is what this module is about")]
pub mod topic;
pub mod trie;

pub use log::{Appended, Copied, Draft, Evictions, Log, Start};
pub use registry::{Follower, Registry, RegistryError, Swept};
pub use topic::{Asked, Confirm, Publication, Saver, Taken, Told, Topic, Unstored};
