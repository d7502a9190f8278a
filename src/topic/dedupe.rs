//! Idempotency keys of one topic, for as long as their window and a bound.
//!
//! Pure data: time comes in as an argument.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

/// Most keys that one topic remembers.
pub const KEYS_MAX: usize = 100_000;

/// Bytes that a key costs beside its text: two references, its count, its times, its bucket.
const KEY_COST_BYTES: u64 = 80;

/// Which event a key stands for.
#[derive(Debug, Default)]
pub struct Dedupe {
    seqs: HashMap<Arc<str>, u64>,
    bytes: u64,
    /// Oldest first, with the time each was remembered.
    order: VecDeque<(u64, Arc<str>)>,
}

/// How long keys are remembered, and when that is asked. The time is monotonic: a wall clock that
/// is set lengthens or shortens no window.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub uptime_ms: u64,
    pub length_ms: u64,
}

impl Dedupe {
    /// The sequence that `key` got, if it was remembered less than the window's length ago.
    pub fn find(&mut self, key: &str, window: Window) -> Option<u64> {
        self.expire(window);
        self.seqs.get(key).copied()
    }

    /// Forgets the keys that were remembered the window's length ago or earlier.
    pub fn expire(&mut self, window: Window) {
        while let Some((time_ms, _)) = self.order.front()
            && time_ms.saturating_add(window.length_ms) <= window.uptime_ms
        {
            self.forget_oldest();
        }
    }

    /// Remembers `key`. Returns how many younger than their window had to go for it.
    pub fn remember(&mut self, key: &str, seq: u64, uptime_ms: u64) -> u64 {
        let mut evicted = 0;
        while KEYS_MAX <= self.order.len() {
            self.forget_oldest();
            evicted += 1;
        }
        // The store may have a key twice: one that made room for others, and came once more.
        if self.seqs.contains_key(key) {
            self.forget(key);
        }
        // Publishers read the clock before they take turns.
        let uptime_ms = self.order.back().map_or(0, |(newest_ms, _)| *newest_ms).max(uptime_ms);
        let key: Arc<str> = key.into();
        self.bytes += cost(&key);
        self.order.push_back((uptime_ms, Arc::clone(&key)));
        self.seqs.insert(key, seq);
        evicted
    }

    /// The sequence that the oldest key stands for.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.order.front().and_then(|(_, key)| self.seqs.get(key).copied())
    }

    /// Forgets `key`, if it is among the newest.
    pub fn forget(&mut self, key: &str) {
        self.seqs.remove(key);
        if let Some(index) = self.order.iter().rposition(|(_, known)| **known == *key) {
            self.bytes -= cost(key);
            self.order.remove(index);
        }
    }

    /// Forgets the oldest key.
    pub fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.bytes -= cost(&key);
            self.seqs.remove(&key);
        }
        if self.order.is_empty() {
            *self = Dedupe::default();
        }
    }

    /// Memory that the keys take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

fn cost(key: &str) -> u64 {
    key.len() as u64 + KEY_COST_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(uptime_ms: u64) -> Window {
        Window { uptime_ms, length_ms: 100 }
    }

    #[test]
    fn a_key_is_known_inside_its_window_and_new_after_it() {
        let mut dedupe = Dedupe::default();
        assert_eq!(dedupe.find("a", at(1_000)), None);
        dedupe.remember("a", 7, 1_000);
        assert_eq!(dedupe.find("a", at(1_099)), Some(7));
        assert_eq!(dedupe.find("a", at(1_100)), None);
        assert!(dedupe.is_empty());
    }

    #[test]
    fn keys_go_in_the_order_in_which_they_came_whatever_their_clocks_said() {
        let mut dedupe = Dedupe::default();
        dedupe.remember("a", 1, 50);
        dedupe.remember("bcd", 2, 40);
        assert_eq!((dedupe.len(), dedupe.is_empty(), dedupe.bytes()), (2, false, 164));
        dedupe.expire(at(149));
        assert_eq!(dedupe.len(), 2);
        dedupe.forget_oldest();
        assert_eq!((dedupe.len(), dedupe.bytes()), (1, 83));
        dedupe.expire(at(150));
        assert!(dedupe.is_empty(), "one was remembered before the other");
        for (key, seq) in [("a", 1), ("b", 2), ("c", 3)] {
            dedupe.remember(key, seq, 0);
        }
        dedupe.forget("b");
        dedupe.forget("never");
        assert_eq!((dedupe.len(), dedupe.bytes(), dedupe.oldest()), (2, 162, Some(1)));
        assert_eq!(["a", "b", "c"].map(|key| dedupe.find(key, at(0))), [Some(1), None, Some(3)]);
    }

    /// It went with the older of the two, before its window had ended.
    #[test]
    fn a_key_that_is_remembered_twice_counts_once_and_from_the_second_time() {
        let mut dedupe = Dedupe::default();
        for (key, seq, uptime_ms) in [("a", 1, 0), ("b", 2, 10), ("a", 9, 50)] {
            dedupe.remember(key, seq, uptime_ms);
        }
        assert_eq!((dedupe.len(), dedupe.oldest()), (2, Some(2)));
        assert_eq!(dedupe.find("a", at(149)), Some(9));
        assert_eq!(dedupe.find("a", at(150)), None);
        assert_eq!(dedupe.bytes(), 0);
    }

    #[test]
    fn the_oldest_key_goes_when_there_is_no_room_and_is_counted() {
        let mut dedupe = Dedupe::default();
        for seq in 0..KEYS_MAX as u64 {
            assert_eq!(dedupe.remember(&seq.to_string(), seq, 1), 0);
        }
        assert_eq!(dedupe.remember("one more", 0, 1), 1);
        assert_eq!(dedupe.find("0", at(1)), None);
        assert_eq!(dedupe.find("1", at(1)), Some(1));
        assert_eq!(dedupe.len(), KEYS_MAX);
        while dedupe.oldest().is_some() {
            dedupe.forget_oldest();
        }
        assert_eq!(dedupe.bytes(), 0);
    }
}
