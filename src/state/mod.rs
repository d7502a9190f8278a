//! Shared state: keys with values, one version counter, and watchers that are cursors.
//!
//! A watcher's position is the version it was sent last. What lies behind it is each key that has
//! changed since, once, at its newest: a slow watcher conflates by construction.
//!
//! # Place
//!
//! Beside `topic`, which has everything that happened; this has how things are now.
//!
//! # Threads
//!
//! None of its own: whoever changes something does it here, whoever watches looks here.
//!
//! # Not here
//!
//! What a watcher's client is told (`server::writer`), who is present (`presence`).

mod entry;
mod map;
mod space;
mod store;

pub use entry::{Entry, Expiry, Now, version_in};
pub use map::{
    ANY_VERSION, Applied, Change, ChangeError, Copied, Limits, Map, Page, Pending, Wanted,
};
pub use space::{Asked, Settle, Settled, Space, Unsaved};
pub(crate) use store::{Changer, NotChanged};
pub use store::{StateError, StateStore, Update, Value};
