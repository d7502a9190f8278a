//! What the facade hands out under a checker: the same interfaces, with every step scheduled.
//!
//! A wait never times out here. What makes progress only because a time-out looks again shows as a
//! deadlock, which is what a model is to find.

pub mod channel;
#[cfg(shuttle)]
pub mod check;
#[cfg(loom)]
pub mod explore;

#[cfg(shuttle)]
pub use shuttle as checker;
use std::{
    cell::Cell,
    fmt,
    ops::{Deref, DerefMut},
    sync::PoisonError,
    time::{Duration, Instant},
};

#[cfg(loom)]
pub use explore as checker;

use self::checker::sync;
use crate::base::fault::Fault;

std::thread_local! {
    static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// The bug that is to be found. All threads of a model run on the thread of its test.
pub fn fault() -> Option<Fault> {
    FAULT.get()
}

/// Puts a bug back into what this test runs, or takes it out.
fn put_back(fault: Option<Fault>) {
    FAULT.set(fault);
}

/// As parking_lot's: no poisoning.
#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

/// `None` only while a [`Condvar`] has it.
pub struct MutexGuard<'a, T>(Option<sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("the guard holds the lock")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("the guard holds the lock")
    }
}

/// As parking_lot's, except that it never times out.
#[derive(Default)]
pub struct Condvar(sync::Condvar);

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condvar")
    }
}

/// Whether a wait ended because its time was over: never.
pub struct WaitResult;

impl WaitResult {
    pub fn timed_out(&self) -> bool {
        false
    }
}

impl Condvar {
    pub fn new() -> Self {
        Self(sync::Condvar::new())
    }

    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().expect("the guard holds the lock");
        guard.0 = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
    }

    pub fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _limit: Duration) -> WaitResult {
        self.wait(guard);
        WaitResult
    }

    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _deadline: Instant) -> WaitResult {
        self.wait(guard);
        WaitResult
    }

    pub fn notify_one(&self) {
        if !Fault::Unnotified.is_on() {
            self.0.notify_one();
        }
    }

    pub fn notify_all(&self) {
        if !Fault::Unnotified.is_on() {
            self.0.notify_all();
        }
    }
}
