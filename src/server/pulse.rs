//! When a client last answered a ping, and how long that took.
//!
//! # Threads
//!
//! The keeper asks, the connection's reader notes the answer, whoever lists connections looks.

use crate::base::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The answers to one connection's pings. Times are milliseconds since the relay's start.
pub(crate) struct Pulse {
    /// A ping was sent that is not answered yet.
    is_asked: AtomicBool,
    ponged_ms: AtomicU64,
    rtt_ms: AtomicU64,
}

/// What never happened.
const NEVER: u64 = u64::MAX;

impl Default for Pulse {
    fn default() -> Self {
        Self {
            is_asked: AtomicBool::new(false),
            ponged_ms: AtomicU64::new(NEVER),
            rtt_ms: AtomicU64::new(NEVER),
        }
    }
}

impl Pulse {
    /// Notes that a ping is about to be sent.
    pub(crate) fn ask(&self) {
        // Relaxed here and below: each value stands alone and is only shown.
        self.is_asked.store(true, Ordering::Relaxed);
    }

    /// Notes that a pong came at `now_ms`. If it answers a ping, the first one that waited for an
    /// answer was sent at `asked_ms`; a client may also send pongs that nobody asked for.
    pub(crate) fn answer(&self, now_ms: u64, asked_ms: u64) {
        self.ponged_ms.store(now_ms, Ordering::Relaxed);
        if self.is_asked.swap(false, Ordering::Relaxed) {
            self.rtt_ms.store(now_ms.saturating_sub(asked_ms), Ordering::Relaxed);
        }
    }

    /// When the last pong came.
    pub(crate) fn ponged_ms(&self) -> Option<u64> {
        known(&self.ponged_ms)
    }

    /// The time from a ping to its pong, the last time that there was one.
    pub(crate) fn rtt_ms(&self) -> Option<u64> {
        known(&self.rtt_ms)
    }
}

fn known(value: &AtomicU64) -> Option<u64> {
    Some(value.load(Ordering::Relaxed)).filter(|value| *value != NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_a_pong_is_that_to_the_first_one_after_a_ping() {
        let pulse = Pulse::default();
        assert_eq!((pulse.ponged_ms(), pulse.rtt_ms()), (None, None));
        // Nobody has asked.
        pulse.answer(50, 10);
        assert_eq!((pulse.ponged_ms(), pulse.rtt_ms()), (Some(50), None));
        pulse.ask();
        pulse.answer(107, 100);
        assert_eq!((pulse.ponged_ms(), pulse.rtt_ms()), (Some(107), Some(7)));
        pulse.answer(900, 100);
        assert_eq!((pulse.ponged_ms(), pulse.rtt_ms()), (Some(900), Some(7)));
    }
}
