//! What a durable topic's log knows about the disk: how far events may be seen, and how far they
//! are stored.
//!
//! Pure data, like the log.

use std::collections::VecDeque;

use super::{Evictions, Log};
use crate::{
    config::{Policy, SyncPolicy},
    metrics::labels::Evicted,
    store::{Key, RUN_BYTES_MAX, Run, StoredTopic, TopicId},
    topic::frames::SLOT_BYTES,
    wire::{codes::Durability, frame},
};

/// How far the events of a durable topic have come.
///
/// Invariants:
///
/// 1. `first - 1 <= stored <= visible <= appended`, where `appended` is the log's newest event.
/// 2. Memory has every event that is not stored: `kept <= stored + 1`.
/// 3. `keys` are those of the events after `stored`, oldest first.
#[derive(Debug)]
pub(super) struct Marks {
    /// The oldest event that is retained, in memory or on disk.
    pub(super) first: u64,
    /// The newest event that is as safe as the policy asks for.
    pub(super) visible: u64,
    /// The newest event that is in the database.
    pub(super) stored: u64,
    pub(super) keys: VecDeque<Key>,
}

/// Events on their way to the store, in runs.
#[derive(Debug, Default)]
pub struct Pending {
    pub runs: Vec<Run>,
    /// The last event of the last run; the event before the first if there are none.
    pub upto: u64,
    /// There are more behind it.
    pub more: bool,
    /// Bytes of the runs' frames.
    pub bytes: u64,
    /// Events of the runs that nobody has seen yet, and the bytes of their frames.
    pub unseen: (u64, u64),
}

impl Log {
    /// Makes an empty log that of a durable topic.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.marks = Some(Marks { first: 1, visible: 0, stored: 0, keys: VecDeque::new() });
        self
    }

    /// Makes the log that of a topic which the store has.
    #[must_use]
    pub fn restored(mut self, topic: &StoredTopic) -> Self {
        let StoredTopic { first, tail, newest_ms, epoch, .. } = *topic;
        self.epoch = epoch;
        self.kept = tail + 1;
        self.newest_ms = newest_ms;
        self.marks = Some(Marks { first, visible: tail, stored: tail, keys: VecDeque::new() });
        self
    }

    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// How safe an event is before it may be seen.
    #[must_use]
    pub fn durability(&self) -> Durability {
        match (&self.marks, self.policy.sync) {
            (None, _) => Durability::Memory,
            (Some(_), SyncPolicy::Always) => Durability::Synced,
            (Some(_), SyncPolicy::Interval | SyncPolicy::Os) => Durability::Written,
        }
    }

    /// The newest event that is in the database; what is in memory alone comes after it.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.marks.as_ref().map_or(0, |marks| marks.stored)
    }

    /// Whether event `seq` is on disk alone.
    #[must_use]
    pub fn is_on_disk(&self, seq: u64) -> bool {
        self.first() <= seq && seq < self.kept && seq <= self.tail()
    }

    /// Whether the events of `time_ms` may begin on disk, before what is in memory.
    #[must_use]
    pub fn begins_on_disk(&self, time_ms: u64) -> bool {
        let is_older = self.frames.time_ms(0).is_none_or(|oldest_ms| time_ms <= oldest_ms);
        self.first() < self.kept && is_older
    }

    /// Remembers a key that the store remembers; `uptime_ms` is when it would have been remembered
    /// if the relay had been up.
    pub fn remember_key(&mut self, key: &Key, uptime_ms: u64) {
        self.dedupe.remember(&key.text, key.seq, uptime_ms);
    }

    /// Copies the events after `after` that are in memory, up to about `bytes_max`, at least one.
    #[must_use]
    pub fn pending(&self, topic: TopicId, after: u64, bytes_max: u64) -> Pending {
        let mut pending = Pending { upto: after, ..Pending::default() };
        let index = |seq: u64| usize::try_from(seq - self.kept).unwrap_or(usize::MAX);
        let newest = self.appended();
        while pending.upto < newest && (pending.bytes == 0 || pending.bytes < bytes_max) {
            let first = pending.upto + 1;
            let mut frames = Vec::new();
            let (from, to) = (index(first), index(newest + 1));
            let end = self.frames.copy(from, to, RUN_BYTES_MAX, &mut frames);
            let count = (end - from) as u64;
            let last = first + count - 1;
            let keys = self.marks.iter().flat_map(|marks| &marks.keys);
            let keys = keys.filter(|key| first <= key.seq && key.seq <= last).cloned().collect();
            pending.bytes += frames.len() as u64;
            let seen = self.tail().clamp(first - 1, last) - (first - 1);
            pending.unseen.0 += count - seen;
            pending.unseen.1 += frame::tail_bytes(&frames, seen);
            pending.upto = last;
            let time_ms = |seq| self.time_of(seq).unwrap_or(self.newest_ms);
            let (first_ms, last_ms) = (time_ms(first), time_ms(last));
            pending.runs.push(Run { topic, first, count, first_ms, last_ms, frames, keys });
        }
        pending.more = pending.upto < newest;
        pending
    }

    /// Events up to `visible` are as safe as they are to be, those up to `stored` in the database.
    pub fn advance(&mut self, visible: u64, stored: u64) {
        let Some(marks) = &mut self.marks else { return };
        marks.visible = marks.visible.max(visible);
        marks.stored = marks.stored.max(stored);
        while marks.keys.front().is_some_and(|key| key.seq <= marks.stored) {
            marks.keys.pop_front();
        }
        self.trim_tail(self.policy.max_tail, u64::MAX);
    }

    /// Events before `first` are gone from the store, for this reason.
    pub fn trimmed(&mut self, first: u64, reason: Evicted) -> Evictions {
        let Some(marks) = &mut self.marks else { return Evictions::default() };
        let gone = first.saturating_sub(marks.first);
        marks.first = marks.first.max(first);
        while self.kept < first && self.frames.pop().is_some() {
            self.kept += 1;
        }
        let mut evictions = Evictions::default();
        if 0 < gone {
            self.last_evicted = Some(reason);
            *match reason {
                Evicted::Count => &mut evictions.count,
                Evicted::Bytes => &mut evictions.bytes,
                Evicted::Age => &mut evictions.age,
                Evicted::Memory => &mut evictions.memory,
            } = gone;
        }
        evictions
    }

    /// Takes back the events that may not be seen yet: they could not be stored. Returns how many,
    /// and their bytes.
    pub fn roll_back(&mut self) -> (u64, u64) {
        let Some(marks) = &mut self.marks else { return (0, 0) };
        let visible = marks.visible;
        let len = usize::try_from((visible + 1).saturating_sub(self.kept)).unwrap_or(usize::MAX);
        let (count, bytes) = (self.frames.len(), self.frames.bytes());
        self.frames.truncate(len);
        while let Some(key) = marks.keys.back().filter(|key| visible < key.seq) {
            self.dedupe.forget(&key.text);
            marks.keys.pop_back();
        }
        ((count - self.frames.len()) as u64, bytes - self.frames.bytes())
    }

    /// Continues with what the store has after it was opened anew. Nothing is pending then. Returns
    /// the events that turned out to be there although that was not confirmed, as a range that may
    /// be empty.
    pub fn reconcile(&mut self, topic: &StoredTopic) -> (u64, u64) {
        let Some(marks) = &mut self.marks else { return (1, 0) };
        let (visible, tail) = (marks.visible, topic.tail);
        if visible < tail {
            self.frames.truncate(0);
            self.kept = tail + 1;
            self.newest_ms = self.newest_ms.max(topic.newest_ms);
            marks.visible = tail;
            marks.stored = tail;
            marks.keys.clear();
        } else {
            // What was only written may have to be written again.
            marks.stored = tail.max(self.kept - 1);
        }
        (visible + 1, tail)
    }

    /// Removes the oldest events from memory that are on disk as well, until at most `bytes` are
    /// kept or `steps` of them went. Returns how many did.
    pub(super) fn trim_tail(&mut self, bytes: u64, steps: u64) -> u64 {
        let Some(marks) = &self.marks else { return 0 };
        for step in 0..steps {
            let held = self.frames.bytes() + self.frames.len() as u64 * SLOT_BYTES;
            if held <= bytes || marks.stored < self.kept || self.frames.pop().is_none() {
                return step;
            }
            self.kept += 1;
        }
        steps
    }
}

#[cfg(test)]
mod tests;
