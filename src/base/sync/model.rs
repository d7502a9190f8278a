//! What the facade hands out under shuttle: the same interfaces, with every step scheduled.
//!
//! A wait never times out here. What makes progress only because a time-out looks again shows as a
//! deadlock, which is what a model is to find.

pub mod channel;
pub mod check;

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::PoisonError,
    time::{Duration, Instant},
};

use shuttle::sync;

use crate::base::fault::Fault;

/// As parking_lot's: no poisoning.
#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

/// `None` only while a [`Condvar`] has it.
pub struct MutexGuard<'a, T>(Option<sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
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
    pub const fn new() -> Self {
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
