//! Time, injected: the one place that reads the system's clocks.
//!
//! Order and resume never depend on the wall clock; it stamps events and bounds their age. All
//! time-outs use the monotonic one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A source of monotonic and wall-clock time. Cloning yields another handle to the same source.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    start: Instant,
}

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    start: Instant,
    start_unix_ms: u64,
    elapsed_ms: AtomicU64,
}

impl Default for Clock {
    /// The system's clocks.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
    fn default() -> Self {
        Clock { source: Source::System, start: Instant::now() }
    }
}

impl Clock {
    /// A clock that stands still until [`Clock::advance`] moves it, for tests.
    #[must_use]
    pub fn manual(start_unix_ms: u64) -> Clock {
        let start = Clock::default().now();
        let elapsed_ms = AtomicU64::new(0);
        let source = Source::Manual(Arc::new(Manual { start, start_unix_ms, elapsed_ms }));
        Clock { source, start }
    }

    /// Monotonic time.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
    pub fn now(&self) -> Instant {
        match &self.source {
            Source::System => Instant::now(),
            Source::Manual(manual) => manual.start + manual.elapsed(),
        }
    }

    /// Milliseconds of monotonic time since this clock was made. Its clones agree.
    #[must_use]
    pub fn uptime_ms(&self) -> u64 {
        u64::try_from((self.now() - self.start).as_millis()).unwrap_or(u64::MAX)
    }

    /// Wall-clock time in milliseconds since 1970-01-01 UTC; 0 on a clock set before that.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn unix_ms(&self) -> u64 {
        match &self.source {
            Source::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
            Source::Manual(manual) => {
                let elapsed = manual.elapsed().as_millis();
                manual.start_unix_ms + u64::try_from(elapsed).unwrap_or(u64::MAX)
            }
        }
    }

    /// Moves a manual clock forward.
    ///
    /// # Panics
    ///
    /// On the system's clock, which nobody moves.
    pub fn advance(&self, by: Duration) {
        match &self.source {
            Source::System => unreachable!("only a manual clock can be advanced"),
            Source::Manual(manual) => {
                let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
                // Relaxed: a test moves the clock, and orders what it reads by other means.
                manual.elapsed_ms.fetch_add(by, Ordering::Relaxed);
            }
        }
    }
}

/// Notices that the wall clock was set, by the monotonic one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaps {
    /// By how much the wall clock was ahead of the monotonic one when somebody last looked.
    ahead_ms: u64,
}

/// Less than this is no leap: clocks that are kept right are now and then set by a little.
const LEAP_MS: u64 = 60_000;

impl Leaps {
    #[must_use]
    pub fn new(clock: &Clock) -> Leaps {
        Leaps { ahead_ms: clock.unix_ms().saturating_sub(clock.uptime_ms()) }
    }

    /// By how much the wall clock was set ahead since the last look; 0 if it was not, or was set
    /// back. A machine that slept looks the same.
    pub fn ahead_ms(&mut self, unix_ms: u64, uptime_ms: u64) -> u64 {
        let ahead_ms = unix_ms.saturating_sub(uptime_ms);
        let before_ms = std::mem::replace(&mut self.ahead_ms, ahead_ms);
        let leap_ms = ahead_ms.saturating_sub(before_ms);
        if leap_ms < LEAP_MS { 0 } else { leap_ms }
    }
}

impl Manual {
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_is_set_ahead_is_noticed_once() {
        const HOUR_MS: u64 = 3_600_000;
        let mut leaps = Leaps::new(&Clock::manual(HOUR_MS));
        assert_eq!(leaps.ahead_ms(HOUR_MS + 5_000, 4_000), 0, "a second is no leap");
        assert_eq!(leaps.ahead_ms(3 * HOUR_MS + 5_000, 4_000), 2 * HOUR_MS);
        assert_eq!(leaps.ahead_ms(3 * HOUR_MS + 6_000, 5_000), 0);
        assert_eq!(leaps.ahead_ms(0, 6_000), 0, "back to the beginning of time");
        assert_eq!(leaps.ahead_ms(HOUR_MS + 7_000, 7_000), HOUR_MS);
    }

    #[test]
    fn a_manual_clock_moves_both_times_together() {
        let clock = Clock::manual(1_000);
        let before = clock.now();
        clock.advance(Duration::from_millis(250));
        assert_eq!(clock.unix_ms(), 1_250);
        assert_eq!(clock.now() - before, Duration::from_millis(250));
    }
}
