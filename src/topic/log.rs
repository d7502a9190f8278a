//! The log of one topic: numbered events, what is retained of them, and where a reader starts.
//!
//! Pure data: no clock, no lock, no thread. Callers pass the time in and hold whatever lock guards
//! the value. `topic::topic` keeps one behind its lock.

mod marks;

use self::marks::Marks;
pub use self::marks::Pending;
use crate::{
    config::Policy,
    metrics::labels::Evicted,
    name::Name,
    store::Key,
    topic::{
        dedupe::{Dedupe, Window},
        frames::{Frames, SLOT_BYTES},
    },
    wire::{
        codes::GapReason,
        frame, json,
        position::{Epoch, From, Mode, Position, Reason, Recovery},
    },
};

/// An event before it has a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// The publisher's user name as a JSON string, quotes included.
    pub user: Option<&'a [u8]>,
    /// The event's name as a JSON string, quotes included.
    pub name: Option<&'a [u8]>,
    /// The payload: JSON text, passed through as it is.
    pub data: &'a str,
    pub key: Option<&'a str>,
}

/// What became of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub seq: u64,
    pub duplicate: bool,
    /// Bytes of its frame; 0 for a duplicate.
    pub bytes: u64,
}

/// How many events went, by the bound that removed them, and how many keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evictions {
    pub count: u64,
    pub bytes: u64,
    pub age: u64,
    pub memory: u64,
    /// Idempotency keys that had to go before their window ended.
    pub keys: u64,
    /// Events that went from memory alone: they are on disk.
    pub cached: u64,
}

/// Where a reader starts, and whether that is what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    pub seq: u64,
    /// Set where the request named a position.
    pub recovery: Option<Recovery>,
}

/// What a reader got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Events up to this one; the reader's own cursor if there were none.
    UpTo(u64),
    /// The next events are on disk alone.
    Stored,
    /// The events from the cursor to before `first` are gone, for this reason.
    Lost { first: u64, reason: GapReason },
}

/// Events of one topic, oldest first.
///
/// Invariants:
///
/// 1. Contiguous: the frame at index `i` is the event with sequence `first + i`.
/// 2. `first` never decreases, so no sequence is ever given out twice.
/// 3. At most the policy's events and bytes are retained, except that the newest event stays.
///
/// Of a durable topic's events only the newest are here; `marks` has its invariants.
#[derive(Debug)]
pub struct Log {
    epoch: Epoch,
    /// What every event of the topic begins with, up to the sequence.
    prefix: Box<[u8]>,
    policy: Policy,
    /// Sequence of the oldest event in memory; one after the newest if there is none.
    kept: u64,
    frames: Frames,
    /// Set for a durable topic.
    marks: Option<Marks>,
    newest_ms: u64,
    /// The bound that removed the last event that went.
    last_evicted: Option<Evicted>,
    dedupe: Dedupe,
    rate: Rate,
}

impl Log {
    #[must_use]
    pub fn new(topic: &Name, epoch: Epoch, policy: Policy) -> Self {
        let mut prefix = b"{\"type\":\"event\",\"topic\":".to_vec();
        json::push_string(&mut prefix, topic.as_str());
        prefix.extend_from_slice(b",\"seq\":");
        Self {
            epoch,
            prefix: prefix.into(),
            policy,
            kept: 1,
            frames: Frames::default(),
            marks: None,
            newest_ms: 0,
            last_evicted: None,
            dedupe: Dedupe::default(),
            rate: Rate::default(),
        }
    }

    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Sequence of the oldest retained event; one after the tail if none is.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.marks.as_ref().map_or(self.kept, |marks| marks.first)
    }

    /// Sequence of the newest event that may be seen; 0 before the first.
    #[must_use]
    pub fn tail(&self) -> u64 {
        self.marks.as_ref().map_or(self.appended(), |marks| marks.visible)
    }

    /// Sequence of the newest event ever appended; on a durable topic it may not be seen yet.
    #[must_use]
    pub fn appended(&self) -> u64 {
        self.kept + self.frames.len() as u64 - 1
    }

    /// Events that are retained and may be seen.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.tail() + 1 - self.first()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory that events take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.frames.bytes() + self.frames.len() as u64 * SLOT_BYTES
    }

    /// Memory that events and idempotency keys take.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.bytes() + self.dedupe.bytes()
    }

    /// Events per second, lately.
    #[must_use]
    pub fn rate(&self, now_ms: u64) -> f64 {
        self.rate.at(now_ms)
    }

    /// Whether anything here would be missed: events, or keys that still stand for one.
    #[must_use]
    pub fn is_forgettable(&self) -> bool {
        self.is_empty() && self.frames.is_empty() && self.dedupe.is_empty()
    }

    /// Appends `draft`, unless its key is remembered, and evicts what no longer fits. Without a key
    /// the time of `window` does not matter.
    pub fn append(
        &mut self,
        draft: &Draft<'_>,
        now_ms: u64,
        window: Window,
    ) -> (Appended, Evictions) {
        if let Some(key) = draft.key
            && let Some(seq) = self.dedupe.find(key, window)
        {
            let appended = Appended { seq, duplicate: true, bytes: 0 };
            return (appended, Evictions::default());
        }
        // The wall clock may be set back; the times of a log never go back with it.
        let now_ms = now_ms.max(self.newest_ms);
        self.newest_ms = now_ms;
        let seq = self.appended() + 1;
        let bytes = self.write(draft, seq, now_ms);
        self.rate.count(now_ms);
        let keys = draft.key.map_or(0, |key| self.dedupe.remember(key, seq, window.uptime_ms));
        if let (Some(marks), Some(key)) = (&mut self.marks, draft.key) {
            marks.keys.push_back(Key { seq, time_ms: now_ms, text: key.into() });
        }
        (Appended { seq, duplicate: false, bytes }, Evictions { keys, ..self.evict(now_ms) })
    }

    fn write(&mut self, draft: &Draft<'_>, seq: u64, now_ms: u64) -> u64 {
        const TIME: &[u8] = b",\"time\":";
        const USER: &[u8] = b",\"user\":";
        const NAME: &[u8] = b",\"name\":";
        const DATA: &[u8] = b",\"data\":";
        let optional = |key: &[u8], value: Option<&[u8]>| value.map_or(0, |v| key.len() + v.len());
        let payload = self.prefix.len()
            + json::digits(seq)
            + TIME.len()
            + json::digits(now_ms)
            + optional(USER, draft.user)
            + optional(NAME, draft.name)
            + DATA.len()
            + draft.data.len()
            + 1;
        let header = match payload {
            0..126 => 2,
            126..65_536 => 4,
            _ => 10,
        };
        let prefix = &self.prefix;
        self.frames.push(now_ms, header + payload, |out| {
            frame::push_text_header(out, payload);
            out.extend_from_slice(prefix);
            json::push_number(out, seq);
            out.extend_from_slice(TIME);
            json::push_number(out, now_ms);
            for (key, value) in [(USER, draft.user), (NAME, draft.name)] {
                if let Some(value) = value {
                    out.extend_from_slice(key);
                    out.extend_from_slice(value);
                }
            }
            out.extend_from_slice(DATA);
            out.extend_from_slice(draft.data.as_bytes());
            out.push(b'}');
        });
        (header + payload) as u64
    }

    /// Removes what the policy no longer keeps at `now_ms`.
    pub fn evict(&mut self, now_ms: u64) -> Evictions {
        let mut gone = Evictions::default();
        let Policy { max_events, max_bytes, max_age, .. } = self.policy;
        if self.marks.is_some() {
            // What is on disk is kept there as the policy says; memory keeps the newest of it.
            self.trim_tail(self.policy.max_tail, u64::MAX);
            return gone;
        }
        while max_events < self.len() && 1 < self.len() {
            gone.count += self.pop(Evicted::Count);
        }
        while max_bytes < self.bytes() && 1 < self.len() {
            gone.bytes += self.pop(Evicted::Bytes);
        }
        if let Some(age) = max_age {
            let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            let is_old = |time_ms: u64| time_ms.saturating_add(age_ms) < now_ms;
            while self.frames.time_ms(0).is_some_and(is_old) {
                gone.age += self.pop(Evicted::Age);
            }
        }
        gone
    }

    /// Forgets the idempotency keys whose window has ended.
    pub fn forget_keys(&mut self, window: Window) {
        self.dedupe.expire(window);
    }

    /// Makes room for other logs: removes the oldest events, and the keys of events that are gone,
    /// until at most `bytes` of memory are kept or `steps` of them went.
    pub fn shrink(&mut self, bytes: u64, steps: u64) -> Evictions {
        let mut gone = Evictions::default();
        while bytes < self.memory() && gone.memory + gone.keys < steps {
            let event_is_gone = self.dedupe.oldest().is_some_and(|seq| seq < self.kept);
            if event_is_gone {
                self.dedupe.forget_oldest();
                gone.keys += 1;
            } else if self.marks.is_some() {
                // Nothing is lost: it is on disk as well.
                gone.cached = self.trim_tail(bytes.saturating_sub(self.dedupe.bytes()), steps);
                break;
            } else if self.is_empty() {
                break;
            } else {
                gone.memory += self.pop(Evicted::Memory);
            }
        }
        gone
    }

    fn pop(&mut self, reason: Evicted) -> u64 {
        if self.frames.pop().is_none() {
            return 0;
        }
        self.kept += 1;
        self.last_evicted = Some(reason);
        1
    }

    /// Replaces the policy and removes what it no longer keeps.
    pub fn set_policy(&mut self, policy: Policy, now_ms: u64) -> Evictions {
        self.policy = policy;
        self.evict(now_ms)
    }

    /// Where a reader that asks for `from` starts.
    #[must_use]
    pub fn start(&self, from: &From) -> Start {
        let oldest = self.first() - 1;
        let at = |seq| Start { seq, recovery: None };
        match from {
            From::Live => at(self.tail()),
            From::Start => at(oldest),
            From::Last(count) => at(self.tail().saturating_sub(*count).max(oldest)),
            From::Since(time_ms) => {
                at((self.kept - 1 + self.frames.since(*time_ms) as u64).min(self.tail()))
            }
            From::After(position) => self.resume(*position),
            // A topic that the list does not name: everything since its beginning.
            From::Positions(_) => self.resume(Position { epoch: self.epoch, seq: 0 }),
        }
    }

    fn resume(&self, Position { epoch, seq }: Position) -> Start {
        let oldest = self.first() - 1;
        let reset = |reason| {
            let missing = (1 <= oldest).then_some((1, oldest));
            let recovery = Recovery { mode: Mode::Reset, missing, reason: Some(reason) };
            Start { seq: oldest, recovery: Some(recovery) }
        };
        if epoch != self.epoch {
            return reset(Reason::EpochChanged);
        }
        if self.tail() < seq {
            return reset(Reason::Ahead);
        }
        if seq < oldest {
            let (missing, reason) = (Some((seq + 1, oldest)), Some(Reason::Truncated));
            let recovery = Recovery { mode: Mode::Partial, missing, reason };
            return Start { seq: oldest, recovery: Some(recovery) };
        }
        Start { seq, recovery: Some(Recovery::COMPLETE) }
    }

    /// Appends the frames after `cursor` up to `upto` to `out`, as many as fit into `bytes_max` but
    /// at least one.
    pub fn copy_after(
        &self,
        cursor: u64,
        upto: u64,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Copied {
        let first = self.first();
        if cursor + 1 < first {
            let reason = match self.last_evicted {
                Some(Evicted::Age | Evicted::Memory) => GapReason::Retention,
                Some(Evicted::Count | Evicted::Bytes) | None => GapReason::Slow,
            };
            return Copied::Lost { first, reason };
        }
        let upto = upto.min(self.tail());
        let Some(from) = (cursor + 1).checked_sub(self.kept) else {
            return if cursor < upto { Copied::Stored } else { Copied::UpTo(cursor) };
        };
        let index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let to = index(upto.saturating_add(1).saturating_sub(self.kept));
        let from = index(from);
        let end = if from < to { self.frames.copy(from, to, bytes_max, out) } else { from };
        Copied::UpTo(cursor + (end - from) as u64)
    }

    /// When the event `seq` was appended, if it is in memory.
    #[must_use]
    pub fn time_of(&self, seq: u64) -> Option<u64> {
        self.frames.time_ms(usize::try_from(seq.checked_sub(self.kept)?).ok()?)
    }
}

/// Events per second over a window, without keeping the events' times.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    window_start_ms: u64,
    count: u64,
    previous: u64,
}

const RATE_WINDOW_MS: u64 = 5_000;

impl Rate {
    fn count(&mut self, now_ms: u64) {
        let windows = now_ms.saturating_sub(self.window_start_ms) / RATE_WINDOW_MS;
        if 0 < windows {
            self.previous = if windows == 1 { self.count } else { 0 };
            self.count = 0;
            self.window_start_ms = now_ms - now_ms % RATE_WINDOW_MS;
        }
        self.count += 1;
    }

    /// The previous window weighs as much as of it still lies in the last five seconds.
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown with one decimal")]
    fn at(&self, now_ms: u64) -> f64 {
        let since = now_ms.saturating_sub(self.window_start_ms);
        let (current, previous, into) = match since / RATE_WINDOW_MS {
            0 => (self.count, self.previous, since),
            1 => (0, self.count, since - RATE_WINDOW_MS),
            _ => return 0.0,
        };
        let left = RATE_WINDOW_MS.saturating_sub(into) as f64 / RATE_WINDOW_MS as f64;
        (current as f64 + previous as f64 * left) * 1_000.0 / RATE_WINDOW_MS as f64
    }
}

#[cfg(test)]
mod tests;
