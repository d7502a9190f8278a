//! Events within the process: a fixed pool of workers, and buses that hand events to handlers.
//!
//! A [`Pool`] runs jobs, those of one key in the order in which it took them. An [`EventBus`]
//! turns each published event into one job: its handlers, one after the other, on the worker of
//! the event's key. Any number of buses share a pool.
//!
//! # Place
//!
//! Above `base` and `name`. What an event means, and who publishes it, is not known here.
//!
//! # Threads
//!
//! `bus-N`, a fixed number per pool. Publishing and submitting may be done from any thread, also
//! from a handler; whoever does it says how long it may wait when the worker is behind.
//!
//! # Locks
//!
//! `Rank::Bus` around the list of one bus's handlers, `Rank::Pool` around a pool's way in. Neither
//! is held while a handler runs or a lane is waited for.

mod event_bus;
mod pool;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use self::{
    event_bus::{Event, EventBus, SubscriptionId},
    pool::{Pool, PoolSettings, PoolStats, Report, StartError},
};

/// Why a job or an event was not taken. Nothing of it has run, and nothing will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The worker's lane had no room within the limit.
    #[error("the worker is behind: its lane had no room in time")]
    Full,
    /// The pool has been stopped.
    #[error("the pool has been stopped")]
    Stopped,
    /// Only from [`Pool::submit_to`].
    #[error("there is no worker {worker}, the pool has {workers}")]
    NoWorker { worker: usize, workers: usize },
}

/// Runs `work` and returns whether it came to its end without a panic, which goes no further.
///
/// The panic hook has said the message by then; the caller says whose it was.
pub(crate) fn contained(work: impl FnOnce()) -> bool {
    let Err(payload) = catch_unwind(AssertUnwindSafe(work)) else { return true };
    // What was thrown is a value like any other, and its destructor may panic too.
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
    false
}
