//! Delays between attempts: exponential with full jitter.
//!
//! Full jitter (a uniform draw below the exponential bound) spreads a crowd of clients that lost
//! the same relay at the same moment better than a jittered constant does.

use std::time::Duration;

use crate::base::random;

/// The delay before each next attempt, growing from `floor` to `ceiling`.
#[derive(Clone, Debug)]
pub struct Backoff {
    floor: Duration,
    ceiling: Duration,
    attempts: u32,
}

impl Backoff {
    #[must_use]
    pub fn new(floor: Duration, ceiling: Duration) -> Self {
        Self { floor, ceiling, attempts: 0 }
    }

    /// How long to wait now: at least half of `floor`, at most `ceiling`.
    pub fn delay(&mut self) -> Duration {
        let bound = self.floor.saturating_mul(1 << self.attempts.min(16)).min(self.ceiling);
        self.attempts = self.attempts.saturating_add(1);
        let bound_ms = u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(random::below(bound_ms + 1)).max(self.floor / 2)
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_between_half_the_floor_and_the_ceiling() {
        let (floor, ceiling) = (Duration::from_millis(500), Duration::from_secs(20));
        let mut backoff = Backoff::new(floor, ceiling);
        let delays: Vec<_> = (0..200).map(|_| backoff.delay()).collect();
        assert!(delays.iter().all(|delay| (floor / 2..=ceiling).contains(delay)));
        assert!(delays.iter().any(|delay| Duration::from_secs(5) < *delay), "it never grew");
    }

    #[test]
    fn a_success_starts_over() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(20));
        (0..20).for_each(|_| _ = backoff.delay());
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_millis(10));
    }
}
