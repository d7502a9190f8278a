//! Log lines that a peer can cause, limited so that nobody floods the log from outside.

use crate::base::sync::atomic::{AtomicU64, Ordering};

/// Lines of one kind that may be written in one window.
const LINES_PER_WINDOW: u64 = 20;
const WINDOW_MS: u64 = 10_000;

/// Counts lines of one kind.
#[derive(Default)]
pub(crate) struct Limiter {
    window: AtomicU64,
    lines: AtomicU64,
    suppressed: AtomicU64,
}

impl Limiter {
    /// Whether a line may be written at `now_ms` of uptime; if so, how many were suppressed since
    /// the last one.
    pub(crate) fn allow(&self, now_ms: u64) -> Option<u64> {
        // Relaxed: a line too many or too few at the turn of a window does no harm.
        let window = now_ms / WINDOW_MS;
        if self.window.swap(window, Ordering::Relaxed) != window {
            self.lines.store(0, Ordering::Relaxed);
        }
        if self.lines.fetch_add(1, Ordering::Relaxed) < LINES_PER_WINDOW {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted_and_told_later() {
        let limiter = Limiter::default();
        let written = (0..50).filter(|_| limiter.allow(1).is_some()).count();
        assert_eq!(written as u64, LINES_PER_WINDOW);
        assert_eq!(limiter.allow(WINDOW_MS), Some(30));
        assert_eq!(limiter.allow(WINDOW_MS), Some(0));
    }
}
