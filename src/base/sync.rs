//! The primitives that threads meet at, behind one facade.
//!
//! Everything whose correctness depends on interleaving (outbox, wake flags, logs, lanes, stop)
//! takes its mutex, condvar, atomics, threads and channels from here, so that a model checker swaps
//! them in one place: `make models` builds the unit tests with `--cfg shuttle`, `make loom` with
//! `--cfg loom`.
//!
//! What is atomic but orders nothing (counters, a clock's hands) takes its atomics from `std`: a
//! checker has nothing to find there, and would try all orders of it.

pub use std::sync::Arc;

#[cfg(not(all(test, any(loom, shuttle))))]
pub use {
    crossbeam::channel,
    parking_lot::{Condvar, Mutex, MutexGuard},
    std::{sync::atomic, thread, thread_local},
};

#[cfg(all(test, any(loom, shuttle)))]
pub use model::{
    Condvar, Mutex, MutexGuard, channel,
    checker::{sync::atomic, thread, thread_local},
};

#[cfg(all(test, any(loom, shuttle)))]
pub mod model;
