//! Mutexes with a documented order.
//!
//! A thread may take a lock only if its rank is higher than every rank it already holds; breaking
//! the rule panics in every build, on the first try, without needing the other thread to race.
//! Values are reached through closures, so a lock cannot outlive the decision it protects.

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::base::sync::{Condvar, Mutex, thread_local};

/// Lock order, outermost first. Adding a lock means adding a line here and in `ARCHITECTURE.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rank {
    /// `client`: links, subscriptions and publishes of one client.
    Client = 5,
    /// `client`: the inbox of one subscription.
    Inbox = 8,
    /// `server::settings`: the settings in force, swapped by a reload.
    Settings = 10,
    /// `server::roster`: who is connected.
    Roster = 20,
    /// `topic::registry`: which topics and patterns exist.
    Registry = 30,
    /// `server::vault`: whether the store can be written.
    Vault = 33,
    /// `store`: the open database, to copy a reference or count a reader.
    Store = 35,
    /// `topic::topic`: one log.
    Log = 40,
    /// `server::presence`: who is where.
    Presence = 42,
    /// `server::sys`: what the relay last said about itself.
    Sys = 43,
    /// `state::space`: one state.
    State = 45,
    /// `server::outbox`: frames waiting for one connection. Taken to enqueue, never kept.
    Outbox = 50,
    /// `state::store`: who is subscribed within the process, and how far each has come.
    Handlers = 51,
    /// `bus::event_bus`: who is subscribed to one bus.
    Bus = 52,
    /// `bus::pool`: whether a pool takes jobs.
    Pool = 54,
    /// `base::lifecycle`: who still runs. Innermost.
    Crew = 60,
}

impl Rank {
    /// Every rank, outermost first.
    pub const ALL: &[Rank] = &[
        Rank::Client,
        Rank::Inbox,
        Rank::Settings,
        Rank::Roster,
        Rank::Registry,
        Rank::Vault,
        Rank::Store,
        Rank::Log,
        Rank::Presence,
        Rank::Sys,
        Rank::State,
        Rank::Outbox,
        Rank::Handlers,
        Rank::Bus,
        Rank::Pool,
        Rank::Crew,
    ];
}

/// A value behind a mutex that knows its place in the lock order.
pub struct Ranked<T> {
    rank: Rank,
    torn: AtomicBool,
    value: Mutex<T>,
}

impl<T> Ranked<T> {
    pub fn new(rank: Rank, value: T) -> Self {
        Self { rank, torn: AtomicBool::new(false), value: Mutex::new(value) }
    }

    /// Runs `decide` on the locked value and returns its verdict.
    ///
    /// # Panics
    ///
    /// If the calling thread holds this rank or a higher one, or if an earlier `decide` panicked
    /// and left the value half-changed (`parking_lot` does not poison, so this type does).
    #[track_caller]
    pub fn with<R>(&self, decide: impl FnOnce(&mut T) -> R) -> R {
        let _held = Held::enter(self.rank);
        let mut value = self.value.lock();
        self.assert_whole();
        let _torn = TornOnUnwind::watch(&self.torn);
        decide(&mut value)
    }

    /// Runs `decide` until it returns a verdict, waiting for `changed` in between, at most `limit`.
    ///
    /// Returns `None` when the limit passed without a verdict.
    ///
    /// # Blocking
    ///
    /// Up to `limit`. No other ranked lock may be held.
    #[track_caller]
    pub fn wait<R>(
        &self,
        changed: &Condvar,
        limit: Duration,
        mut decide: impl FnMut(&mut T) -> Option<R>,
    ) -> Option<R> {
        assert_none_held();
        let _held = Held::enter(self.rank);
        let mut value = self.value.lock();
        loop {
            self.assert_whole();
            let verdict = {
                let _torn = TornOnUnwind::watch(&self.torn);
                decide(&mut value)
            };
            if verdict.is_some() {
                return verdict;
            }
            if changed.wait_for(&mut value, limit).timed_out() {
                let _torn = TornOnUnwind::watch(&self.torn);
                return decide(&mut value);
            }
        }
    }

    /// As [`Ranked::wait`], until a moment rather than for a while, however often it is woken.
    /// `None` as `deadline` waits without end.
    ///
    /// # Blocking
    ///
    /// Until `deadline`. No other ranked lock may be held.
    #[track_caller]
    pub fn wait_until<R>(
        &self,
        changed: &Condvar,
        deadline: Option<Instant>,
        mut decide: impl FnMut(&mut T) -> Option<R>,
    ) -> Option<R> {
        assert_none_held();
        let _held = Held::enter(self.rank);
        let mut value = self.value.lock();
        let mut late = false;
        loop {
            self.assert_whole();
            let verdict = {
                let _torn = TornOnUnwind::watch(&self.torn);
                decide(&mut value)
            };
            if verdict.is_some() || late {
                return verdict;
            }
            match deadline {
                Some(deadline) => late = changed.wait_until(&mut value, deadline).timed_out(),
                None => changed.wait(&mut value),
            }
        }
    }

    #[track_caller]
    fn assert_whole(&self) {
        // Relaxed: written and read only with the mutex held.
        assert!(!self.torn.load(Ordering::Relaxed), "{:?} is torn by an earlier panic", self.rank);
    }
}

/// Call first in every function that touches a socket, a file or a child process.
///
/// # Panics
///
/// If the calling thread holds any ranked lock.
#[track_caller]
pub fn assert_none_held() {
    let rank = HIGHEST.with(Cell::get);
    assert!(rank == 0, "I/O with a lock of rank {rank} held");
}

thread_local! {
    static HIGHEST: Cell<u8> = const { Cell::new(0) };
}

struct Held {
    outer: u8,
}

impl Held {
    #[track_caller]
    fn enter(rank: Rank) -> Held {
        let outer = HIGHEST.with(Cell::get);
        assert!(outer < rank as u8, "lock order: {rank:?} taken while holding rank {outer}");
        HIGHEST.with(|highest| highest.set(rank as u8));
        Held { outer }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HIGHEST.with(|highest| highest.set(self.outer));
    }
}

/// Marks a value as torn if a panic begins while it is changed. A destructor that takes a lock
/// while its thread unwinds already tears nothing.
struct TornOnUnwind<'a> {
    torn: &'a AtomicBool,
    unwinding_before: bool,
}

impl<'a> TornOnUnwind<'a> {
    fn watch(torn: &'a AtomicBool) -> Self {
        Self { torn, unwinding_before: thread::panicking() }
    }
}

impl Drop for TornOnUnwind<'_> {
    fn drop(&mut self) {
        if thread::panicking() && !self.unwinding_before {
            self.torn.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::base::clock::Clock;

    #[test]
    fn a_lower_rank_inside_a_higher_one_panics() {
        let roster = Ranked::new(Rank::Roster, ());
        let log = Ranked::new(Rank::Log, ());
        roster.with(|()| log.with(|()| ()));
        let wrong = catch_unwind(AssertUnwindSafe(|| log.with(|()| roster.with(|()| ()))));
        assert!(wrong.is_err());
        assert_none_held();
    }

    #[test]
    fn io_under_a_lock_panics() {
        let log = Ranked::new(Rank::Log, ());
        assert!(catch_unwind(AssertUnwindSafe(|| log.with(|()| assert_none_held()))).is_err());
    }

    #[test]
    fn a_value_torn_by_a_panic_is_not_handed_out_again() {
        let log = Ranked::new(Rank::Log, 1);
        let torn = catch_unwind(AssertUnwindSafe(|| log.with(|_| panic!("half-way"))));
        assert!(torn.is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| log.with(|value| *value))).is_err());
    }

    #[test]
    fn a_destructor_that_takes_a_lock_while_unwinding_tears_nothing() {
        struct Counts<'a>(&'a Ranked<u32>);
        impl Drop for Counts<'_> {
            fn drop(&mut self) {
                self.0.with(|count| *count += 1);
            }
        }
        let log = Ranked::new(Rank::Log, 1);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _counts = Counts(&log);
            panic!("elsewhere");
        }));
        assert!(panicked.is_err());
        assert_eq!(log.with(|count| *count), 2);
    }

    #[test]
    fn a_wait_gives_up_at_its_limit() {
        let value = Ranked::new(Rank::Outbox, 0);
        let changed = Condvar::new();
        let verdict = value.wait(&changed, Duration::from_millis(5), |_| None::<()>);
        assert!(verdict.is_none());
    }

    #[test]
    fn a_wait_until_a_moment_that_has_passed_looks_once_more() {
        let value = Ranked::new(Rank::Outbox, 0);
        let changed = Condvar::new();
        let deadline = Some(Clock::default().now());
        let verdict = value.wait_until(&changed, deadline, |looks| {
            *looks += 1;
            (*looks == 2).then_some(())
        });
        assert!(verdict.is_some());
    }
}
