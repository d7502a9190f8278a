//! Waiting with a limit and a name: the only place where a test pauses.

use std::time::{Duration, Instant};

/// How long anything that must happen may take. Generous, because a failure is what it costs.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Time between two looks at a condition.
const STEP: Duration = Duration::from_millis(10);

/// Waits for `condition`.
///
/// # Panics
///
/// If it does not come to hold within `limit`; the message says what was awaited.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || condition().then_some(()));
}

/// Waits until `attempt` has a value, and returns it.
///
/// # Panics
///
/// If it has none within `limit`; the message says what was awaited.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Deadline::after(limit);
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(!deadline.is_over(), "waited {limit:?} in vain for: {what}");
        pause(STEP);
    }
}

/// Lets `time` pass, by waiting for a message that never comes.
pub fn pause(time: Duration) {
    _ = crossbeam::channel::never::<()>().recv_timeout(time);
}

/// A point in time by which something must have happened.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    #[must_use]
    pub fn after(limit: Duration) -> Deadline {
        Deadline(Instant::now() + limit)
    }

    #[must_use]
    pub fn is_over(self) -> bool {
        self.left().is_zero()
    }

    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Measures how long something took.
#[derive(Clone, Copy, Debug)]
pub struct Watch(Instant);

impl Watch {
    #[must_use]
    pub fn start() -> Watch {
        Watch(Instant::now())
    }

    #[must_use]
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

#[test]
fn a_wait_that_is_in_vain_names_what_it_waited_for() {
    let failure = std::panic::catch_unwind(|| {
        wait_until("pigs to fly", Duration::from_millis(30), || false);
    });

    let message = failure.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("pigs to fly"), "{message}");
}
