//! Encoded frames of one topic, oldest first, in large pieces of memory.
//!
//! Pure data. An event costs one copy into the newest piece and 16 bytes of index; a run of events
//! is copied out piece by piece, not event by event. Finding the n-th is one index access.
//!
//! A piece is about as large as what the log holds when the piece is begun, so that a log of one
//! event takes little more than that event.

use std::{collections::VecDeque, ops::Range};

use crate::{base::limits::SEGMENT_BYTES, wire::frame};

/// Bytes that one event costs beside its frame.
pub const SLOT_BYTES: u64 = size_of::<Slot>() as u64;

/// Least bytes of a segment that is not the first of its log: some events, even of a log of one.
const SEGMENT_BYTES_MIN: usize = 1024;

/// Unused bytes of the first segment that are not worth a copy.
const WASTE_BYTES: u64 = 4 * 1024;

/// Slots that are kept although hardly any is in use.
const SLOTS_KEPT: usize = 64;

/// A queue of frames.
///
/// Invariants, asserted by `check` in debug builds:
///
/// 1. Slots are in order: by segment, then by start; times never decrease.
/// 2. Every segment but the last is referred to by at least one slot.
/// 3. `bytes` is the sum of the frames' lengths.
/// 4. The first segment wastes at most as much as all frames take, or `WASTE_BYTES`.
#[derive(Debug, Default)]
pub struct Frames {
    slots: VecDeque<Slot>,
    segments: VecDeque<Vec<u8>>,
    /// Number of the first segment; slots count from when the queue was last empty.
    segment_first: u32,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    time_ms: u64,
    segment: u32,
    start: u32,
}

impl Frames {
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes of all frames.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a frame of exactly `len` bytes, which `write` appends to the buffer it is given.
    ///
    /// # Panics
    ///
    /// If `write` appends another number of bytes.
    pub fn push(&mut self, time_ms: u64, len: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let full = self.segments.back().is_none_or(|last| last.capacity() - last.len() < len);
        if full {
            // Most topics that have one event never get another. Beyond that, a log that evicts as
            // much as it takes then keeps two or three segments, of which at most one is dead.
            let held = usize::try_from(self.bytes).unwrap_or(usize::MAX);
            let room = if self.segments.is_empty() {
                len
            } else {
                held.clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES).max(len)
            };
            self.segments.push_back(Vec::with_capacity(room));
        }
        let count = u32::try_from(self.segments.len()).expect("a log has far fewer segments");
        let segment = self.segment_first.wrapping_add(count - 1);
        let last = self.segments.back_mut().expect("one was pushed if there was none");
        let start = u32::try_from(last.len()).expect("a segment is far below 4 GiB");
        write(last);
        assert!(last.len() == start as usize + len, "the frame's length was computed wrongly");
        self.slots.push_back(Slot { time_ms, segment, start });
        self.bytes += len as u64;
    }

    /// Removes the oldest frame and returns its length.
    pub fn pop(&mut self) -> Option<u64> {
        let len = self.range(0)?.len() as u64;
        self.slots.pop_front()?;
        self.bytes -= len;
        let Some(&oldest) = self.slots.front() else {
            // A quiet topic keeps nothing that a burst once filled.
            *self = Self::default();
            return Some(len);
        };
        // No segment wastes more than its size; a larger log looks only when one is gone.
        if oldest.segment != self.segment_first || self.bytes < SEGMENT_BYTES as u64 {
            self.tidy(oldest);
        }
        Some(len)
    }

    /// Removes the newest frames until `len` are left.
    pub fn truncate(&mut self, len: usize) {
        let Some(last) = len.checked_sub(1) else {
            *self = Self::default();
            return;
        };
        if self.slots.len() <= len {
            return;
        }
        let end = self.range(last).expect("the index is in range").end;
        let gone: u64 = (len..self.slots.len())
            .map(|index| self.range(index).expect("the index is in range").len() as u64)
            .sum();
        let segment = self.segment_index(self.slots[last]);
        self.slots.truncate(len);
        self.segments.truncate(segment + 1);
        self.segments[segment].truncate(end);
        self.bytes -= gone;
        if self.bytes.max(WASTE_BYTES) < self.waste() {
            self.compact();
        }
    }

    /// Gives back memory that is no longer of use, now that `oldest` is the first slot.
    fn tidy(&mut self, oldest: Slot) {
        while oldest.segment != self.segment_first {
            self.segments.pop_front();
            self.segment_first = self.segment_first.wrapping_add(1);
        }
        if self.bytes.max(WASTE_BYTES) < self.waste() {
            self.compact();
        }
        if SLOTS_KEPT < self.slots.capacity() && self.slots.len() < self.slots.capacity() / 4 {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }

    /// Bytes of the first segment that no frame uses: those of frames that are gone, and the end.
    fn waste(&self) -> u64 {
        let (Some(slot), Some(segment)) = (self.slots.front(), self.segments.front()) else {
            return 0;
        };
        (segment.capacity() - segment.len()) as u64 + u64::from(slot.start)
    }

    /// Moves what is left of the first segment into one that it fills.
    ///
    /// Constant work per frame popped: a segment is begun no larger than what the log holds, so
    /// before more than half of it is waste at least as many bytes went as are copied.
    #[cold]
    fn compact(&mut self) {
        let (Some(front), Some(segment)) = (self.slots.front(), self.segments.front_mut()) else {
            return;
        };
        let (number, dead) = (front.segment, front.start);
        *segment = segment[dead as usize..].to_vec();
        for slot in self.slots.iter_mut().take_while(|slot| slot.segment == number) {
            slot.start -= dead;
        }
    }

    /// When the frame at `index` was appended.
    #[must_use]
    pub fn time_ms(&self, index: usize) -> Option<u64> {
        self.slots.get(index).map(|slot| slot.time_ms)
    }

    /// Index of the first frame appended at `time_ms` or later.
    #[must_use]
    pub fn since(&self, time_ms: u64) -> usize {
        self.slots.partition_point(|slot| slot.time_ms < time_ms)
    }

    /// The frame at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let range = self.range(index)?;
        let slot = self.slots.get(index)?;
        self.segments.get(self.segment_index(*slot)).map(|segment| &segment[range])
    }

    /// Appends frames from `from` to before `to` to `out`, as many as fit into `bytes_max` but at
    /// least one. Returns the index after the last one copied.
    pub fn copy(&self, from: usize, to: usize, bytes_max: usize, out: &mut Vec<u8>) -> usize {
        let to = to.min(self.slots.len());
        let mut left = bytes_max;
        let mut at = from;
        while at < to {
            let end = self.run_end(at, to, left, at == from);
            if end == at {
                break;
            }
            let first = self.slots[at];
            let start = first.start as usize;
            let stop = self.range(end - 1).expect("the index is in range").end;
            out.extend_from_slice(&self.segments[self.segment_index(first)][start..stop]);
            left = left.saturating_sub(stop - start);
            at = end;
        }
        at
    }

    /// The end of the run that starts at `at`, lies in one segment and has at most `left` bytes; at
    /// least one frame if `forced`.
    fn run_end(&self, at: usize, to: usize, left: usize, forced: bool) -> usize {
        let Slot { segment, start, .. } = self.slots[at];
        let limit = (start as usize).saturating_add(left);
        // Most runs are short; look at the end of the segment only by halves.
        let in_run = |index: usize| {
            let slot = self.slots[index];
            slot.segment == segment && self.range(index).is_some_and(|range| range.end <= limit)
        };
        let (mut low, mut high) = (at, to);
        while low < high {
            let middle = low + (high - low) / 2;
            if in_run(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low == at && forced { at + 1 } else { low }
    }

    fn range(&self, index: usize) -> Option<Range<usize>> {
        let slot = *self.slots.get(index)?;
        let end = match self.slots.get(index + 1) {
            Some(next) if next.segment == slot.segment => next.start as usize,
            _ => self.segments.get(self.segment_index(slot))?.len(),
        };
        Some(slot.start as usize..end)
    }

    fn segment_index(&self, slot: Slot) -> usize {
        slot.segment.wrapping_sub(self.segment_first) as usize
    }

    /// Asserts the invariants, in debug builds. The work is linear: for tests.
    pub fn check(&self) {
        let frames = (0..self.len()).map(|index| self.get(index).expect("every slot has a frame"));
        let sum: usize = frames
            .inspect(|bytes| debug_assert_eq!(frame::length(bytes), bytes.len()))
            .map(<[u8]>::len)
            .sum();
        debug_assert_eq!(sum as u64, self.bytes);
        debug_assert!(self.slots.iter().is_sorted_by_key(|slot| slot.time_ms));
        let used =
            self.slots.iter().map(|slot| slot.segment).collect::<std::collections::BTreeSet<_>>();
        debug_assert!(self.segments.len() <= used.len().max(1));
        debug_assert!(self.waste() <= self.bytes.max(WASTE_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random;

    fn push(frames: &mut Frames, time_ms: u64, payload: usize) {
        let mut bytes = Vec::new();
        frame::push_text(&mut bytes, &vec![b'x'; payload]);
        frames.push(time_ms, bytes.len(), |out| out.extend_from_slice(&bytes));
    }

    #[test]
    fn random_pushes_and_pops_agree_with_a_plain_queue() {
        let mut frames = Frames::default();
        let mut model: VecDeque<Vec<u8>> = VecDeque::new();
        for step in 0..20_000_u64 {
            if random::below(5) < 3 {
                let payload = match random::below(20) {
                    0 => 30_000,
                    1 => SEGMENT_BYTES + 5,
                    _ => usize::try_from(random::below(300)).unwrap(),
                };
                let mut bytes = Vec::new();
                frame::push_text(&mut bytes, &vec![(step % 251) as u8; payload]);
                frames.push(step, bytes.len(), |out| out.extend_from_slice(&bytes));
                model.push_back(bytes);
            } else if random::below(10) == 0 {
                let len = usize::try_from(random::below(model.len() as u64 + 1)).unwrap();
                frames.truncate(len);
                model.truncate(len);
            } else {
                assert_eq!(frames.pop(), model.pop_front().map(|bytes| bytes.len() as u64));
            }
            while 200 < model.len() {
                model.pop_front();
                frames.pop();
            }
            assert_eq!((frames.len(), frames.is_empty()), (model.len(), model.is_empty()));
            if step % 100 == 0 {
                frames.check();
                let from = usize::try_from(random::below(model.len() as u64 + 1)).unwrap();
                let max = usize::try_from(random::below(100_000)).unwrap();
                let mut out = Vec::new();
                let end = frames.copy(from, usize::MAX, max, &mut out);
                let expected: Vec<u8> = model.range(from..end).flatten().copied().collect();
                assert_eq!(out, expected);
                assert!(end == model.len() || max < out.len() + model[end].len());
                assert!(out.len() <= max || end == from + 1);
            }
        }
    }

    #[test]
    fn an_empty_log_keeps_no_memory_and_a_quiet_one_little() {
        let mut frames = Frames::default();
        push(&mut frames, 1, 20);
        assert!(frames.segments[0].capacity() < 64);
        (0..5_000).for_each(|time| push(&mut frames, 1 + time, 100));
        while frames.pop().is_some() {}
        assert_eq!(frames.segments.len(), 0);
        assert_eq!(frames.bytes(), 0);
        push(&mut frames, 6_000, 20);
        frames.check();
    }

    /// Memory behind the log, used or not.
    fn held(frames: &Frames) -> usize {
        let segments: usize = frames.segments.iter().map(Vec::capacity).sum();
        segments + frames.slots.capacity() * size_of::<Slot>()
    }

    #[test]
    fn a_log_of_its_last_event_takes_little_more_than_that_event() {
        let mut frames = Frames::default();
        for time in 0..2_000 {
            push(&mut frames, time, 100);
            while 1 < frames.len() {
                frames.pop();
            }
            frames.check();
            assert!(held(&frames) <= 2_500, "{} bytes for one event", held(&frames));
        }
    }

    #[test]
    fn a_log_that_shrank_gives_back_what_it_held() {
        for left in [1, 3, 10, 100] {
            let mut frames = Frames::default();
            (0..5_000).for_each(|time| push(&mut frames, time, 100));
            while left < frames.len() {
                frames.pop();
            }
            let used = usize::try_from(frames.bytes()).unwrap() + left * size_of::<Slot>();
            assert!(held(&frames) <= 4 * used + 6_000, "{} for {used}", held(&frames));
            frames.check();
        }
    }

    #[test]
    fn a_large_event_leaves_no_large_segment_behind() {
        let mut frames = Frames::default();
        push(&mut frames, 0, 300_000);
        for time in 1..100 {
            push(&mut frames, time, 100);
            while 1 < frames.len() {
                frames.pop();
            }
            assert!(held(&frames) <= 8_000, "{} bytes for one event", held(&frames));
        }
        frames.check();
    }

    #[test]
    fn waste_is_given_back_when_it_is_worth_a_copy() {
        for (large, left) in [(4 * 1024 + 12, 4 * 1024 + 12), (4 * 1024 + 13, 12)] {
            // The second segment is as large as the first, and has frames of 12 bytes.
            let mut popped = Frames::default();
            push(&mut popped, 0, large - 4);
            push(&mut popped, 1, 10);
            popped.pop();
            assert_eq!(popped.segments[0].capacity(), left);

            let mut truncated = Frames::default();
            push(&mut truncated, 0, large - 4);
            (1..3).for_each(|time| push(&mut truncated, time, 10));
            truncated.pop();
            assert_eq!(truncated.segments[0].capacity(), large);
            truncated.truncate(1);
            assert_eq!(truncated.segments[0].capacity(), left);
            truncated.check();
        }
    }

    #[test]
    fn slots_are_given_back_by_halves_down_to_a_few() {
        let mut frames = Frames::default();
        (0..2_000).for_each(|time| push(&mut frames, time, 1));
        assert_eq!(frames.slots.capacity(), 2_048);
        let mut shrunk = Vec::new();
        while 1 < frames.len() {
            let before = frames.slots.capacity();
            frames.pop();
            if frames.slots.capacity() != before {
                shrunk.push((frames.len(), frames.slots.capacity()));
            }
        }
        assert_eq!(shrunk, [(511, 1_022), (254, 508), (126, 252), (62, 124), (30, 60)]);

        let mut few = Frames::default();
        (0..SLOTS_KEPT as u64).for_each(|time| push(&mut few, time, 1));
        while 1 < few.len() {
            few.pop();
        }
        assert_eq!(few.slots.capacity(), SLOTS_KEPT);
    }

    #[test]
    fn as_many_frames_are_copied_as_fit_but_at_least_one() {
        let mut frames = Frames::default();
        // Of 12 bytes each; the first has a segment of its own.
        (0..4).for_each(|time| push(&mut frames, time, 10));
        assert_eq!(frames.segments.len(), 2);
        let copied = |from, to, bytes_max| {
            let mut out = Vec::new();
            (frames.copy(from, to, bytes_max, &mut out), out.len())
        };
        for (bytes_max, count) in [(0, 1), (12, 1), (23, 1), (24, 2), (35, 2), (36, 3), (99, 4)] {
            assert_eq!(copied(0, 4, bytes_max), (count, 12 * count), "{bytes_max}");
        }
        for (bytes_max, count) in [(0, 1), (23, 1), (24, 2), (36, 3)] {
            assert_eq!(copied(1, 9, bytes_max), (1 + count, 12 * count), "{bytes_max}");
        }
        assert_eq!(copied(0, 3, usize::MAX), (3, 36));
        assert_eq!(copied(4, 4, usize::MAX), (4, 0));
    }

    #[test]
    fn a_log_keeps_its_frames_however_often_it_is_compacted() {
        let (mut frames, mut model) = (Frames::default(), VecDeque::new());
        for step in 0..30_000_u64 {
            let mut bytes = Vec::new();
            let payload = if random::below(50) == 0 { 20_000 } else { random::below(300) };
            frame::push_text(
                &mut bytes,
                &vec![(step % 251) as u8; usize::try_from(payload).unwrap()],
            );
            frames.push(step, bytes.len(), |out| out.extend_from_slice(&bytes));
            model.push_back(bytes);
            let kept = if step % 1_000 < 300 { 400 } else { step % 7 };
            while kept < model.len() as u64 {
                assert_eq!(frames.pop(), model.pop_front().map(|bytes| bytes.len() as u64));
            }
            for index in [0, model.len() / 2, model.len().saturating_sub(1)] {
                assert_eq!(frames.get(index), model.get(index).map(Vec::as_slice));
            }
            if step % 50 == 0 {
                frames.check();
            }
        }
    }

    #[test]
    fn a_segment_is_filled_to_its_last_byte() {
        let mut frames = Frames::default();
        // One of its own, and four of 256 bytes in the least that a further one has.
        (0..5).for_each(|time| push(&mut frames, time, 252));
        assert_eq!(frames.segments.len(), 2);
        push(&mut frames, 5, 0);
        assert_eq!(frames.segments.len(), 3);
        assert_eq!((frames.time_ms(5), frames.time_ms(6)), (Some(5), None));
    }

    #[test]
    fn the_first_frame_since_a_time_is_found() {
        let mut frames = Frames::default();
        for time in [10, 20, 20, 30] {
            push(&mut frames, time, 1);
        }
        assert_eq!([5, 10, 15, 20, 21, 31].map(|time| frames.since(time)), [0, 0, 1, 1, 3, 4]);
    }
}
