//! The primitives that threads meet at, behind one facade.
//!
//! Everything whose correctness depends on interleaving (outbox, wake flags, logs, stop) takes its
//! mutex, condvar and atomics from here, so that a model checker can swap them in one place.

pub use std::sync::{Arc, atomic};

pub use parking_lot::{Condvar, Mutex, MutexGuard};
