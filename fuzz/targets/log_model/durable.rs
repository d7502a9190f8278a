//! The log of a durable topic beside a disk that commits late, fails, and is opened anew.

use landline::{
    config::Policy,
    metrics::labels::Evicted,
    store::{Key, StoredTopic},
    topic::{Copied, Log},
    wire::codes::GapReason,
};
use landline_fuzz::Script;

use crate::{EPOCH, Event, Events, Keys, check_start, draft, event, known, name, read};

/// What should be, and what the disk has.
#[derive(Default)]
struct Model {
    /// All that were appended and not taken back.
    events: Events,
    first: u64,
    visible: u64,
    stored: u64,
    keys: Keys,
    reason: Option<GapReason>,
    /// Up to which event runs were handed out, and what they were.
    taken: Events,
}

const OPERATIONS_MAX: usize = 200;
const TOPIC: u64 = 3;

pub fn run(mut script: Script<'_>) {
    let max_tail = script.pick(&[0, 200, 2_000, 1_000_000]);
    let policy = Policy { max_tail, durable: true, ..Policy::default() };
    let mut log = Log::new(&name(), EPOCH, policy.clone()).durable();
    let mut model = Model { first: 1, ..Model::default() };
    let mut cursors = [0; 3];
    let (mut now_ms, mut uptime_ms) = (0, 0);
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = script.next() else { break };
        now_ms += script.number(16);
        uptime_ms += script.number(16);
        match operation % 12 {
            0..4 => model.append(&mut log, &mut script, (now_ms, uptime_ms)),
            4 => model.take(&log, &mut script),
            5 | 6 => model.advance(&mut log, &mut script),
            7 => model.trim(&mut log, &mut script),
            8 if script.chance(100) => model.fail(&mut log, &mut script),
            8 => log = model.restart(log, &policy, uptime_ms),
            9 => {
                // What goes from memory alone is on disk.
                let gone = log.shrink(script.number(256) * 8, script.number(8));
                assert_eq!((gone.memory, gone.count, gone.age, gone.bytes), (0, 0, 0, 0));
                model.keys.drain(..gone.keys as usize);
            }
            10 => cursors[script.below(3)] = check_start(&log, &model.events, &mut script),
            _ => {
                let cursor = &mut cursors[script.below(3)];
                model.follow(&log, cursor, &mut script);
            }
        }
        model.compare(&log);
    }
}

impl Model {
    fn tail(&self) -> u64 {
        self.events.len() as u64
    }

    fn append(&mut self, log: &mut Log, script: &mut Script<'_>, (now_ms, uptime_ms): (u64, u64)) {
        // Times go on from what was taken back as well: it may be on disk.
        let mut event = event(script, now_ms);
        let (appended, _) = log.append(&draft(&event), now_ms, crate::window(uptime_ms));
        if let Some(seq) = known(&mut self.keys, event.key, uptime_ms) {
            assert_eq!((appended.seq, appended.duplicate), (seq, true));
            return;
        }
        let seq = self.tail() + 1;
        assert_eq!((appended.seq, appended.duplicate), (seq, false));
        event.time_ms = log.time_of(seq).expect("what is not stored is in memory");
        let newest_ms = self.events.last().map_or(0, |event| event.time_ms);
        assert!(now_ms.max(newest_ms) <= event.time_ms, "times never go back");
        self.keys.extend(event.key.map(|key| (key, seq, uptime_ms)));
        self.events.push(event);
    }

    /// The committer copies what the store lacks.
    fn take(&mut self, log: &Log, script: &mut Script<'_>) {
        let pending = log.pending(TOPIC, self.stored, script.number(256) * 300);
        let mut at = self.stored;
        let (mut bytes, mut unseen) = (0, (0, 0));
        for run in &pending.runs {
            assert_eq!((run.topic, run.first), (TOPIC, at + 1));
            let seqs = run.first..run.first + run.count;
            let mut frames = Vec::new();
            for seq in seqs.clone() {
                let frame = self.events[seq as usize - 1].frame(seq);
                if self.visible < seq {
                    unseen = (unseen.0 + 1, unseen.1 + frame.len() as u64);
                }
                frames.extend(frame);
            }
            assert!(frames == run.frames, "the frames of {seqs:?}");
            let times = [run.first, run.first + run.count - 1].map(|seq| self.time(seq));
            assert_eq!([run.first_ms, run.last_ms], times);
            let event = |seq: u64| (seq, &self.events[seq as usize - 1]);
            let key = |(seq, event): (u64, &Event)| event.key.map(|key| (seq, key.to_owned()));
            let expected: Vec<_> = seqs.map(event).filter_map(key).collect();
            let found = run.keys.iter().map(|key| (key.seq, String::from(key.text.clone())));
            assert_eq!(found.collect::<Vec<_>>(), expected);
            bytes += run.frames.len() as u64;
            at += run.count;
        }
        assert_eq!((pending.upto, pending.bytes, pending.unseen), (at, bytes, unseen));
        assert_eq!(pending.more, at < self.tail());
        assert!(self.stored < at || self.stored == self.tail(), "nothing was taken");
        self.taken = self.events[..at as usize].to_vec();
    }

    fn time(&self, seq: u64) -> u64 {
        self.events[seq as usize - 1].time_ms
    }

    /// Some of what was taken is stored, or at least safe enough to be seen.
    fn advance(&mut self, log: &mut Log, script: &mut Script<'_>) {
        let taken = self.taken.len() as u64;
        let visible = self.visible + script.number(256) % (taken.saturating_sub(self.visible) + 1);
        let stored = self.stored + script.number(256) % (visible.saturating_sub(self.stored) + 1);
        log.advance(visible, stored);
        (self.visible, self.stored) = (self.visible.max(visible), self.stored.max(stored));
    }

    /// Retention removes what is stored.
    fn trim(&mut self, log: &mut Log, script: &mut Script<'_>) {
        if self.stored == 0 {
            return;
        }
        let first = 1 + script.number(256) % (self.stored + 1);
        let (reason, said) = script.pick(&[
            (Evicted::Count, GapReason::Slow),
            (Evicted::Bytes, GapReason::Slow),
            (Evicted::Age, GapReason::Retention),
        ]);
        let gone = log.trimmed(first, reason);
        assert_eq!(gone.count + gone.bytes + gone.age, first.saturating_sub(self.first));
        if self.first < first {
            (self.first, self.reason) = (first, Some(said));
        }
    }

    /// The disk fails: what nobody has seen is taken back. Then it is opened anew, and may have
    /// some of it nevertheless.
    fn fail(&mut self, log: &mut Log, script: &mut Script<'_>) {
        let (count, _) = log.roll_back();
        assert_eq!(count, self.tail() - self.visible);
        let visible = self.visible;
        self.events.truncate(visible as usize);
        self.keys.retain(|(_, seq, _)| *seq <= visible);
        self.compare(log);
        // A commit that failed may be there; what was written before it and not committed is not.
        let lost = self.stored + script.number(256) % (visible - self.stored + 1);
        let taken = self.taken.len() as u64;
        let tail = if script.chance(128) { taken.max(self.stored) } else { lost };
        let newest_ms = self.taken.get(tail as usize - usize::from(0 < tail));
        let newest_ms = newest_ms.map_or(0, |event| event.time_ms);
        let stored = StoredTopic {
            id: TOPIC,
            name: name(),
            epoch: EPOCH,
            first: self.first,
            tail,
            newest_ms,
            bytes: 0,
        };
        let (from, to) = log.reconcile(&stored);
        if visible < tail {
            assert_eq!((from, to), (visible + 1, tail));
            self.events = self.taken[..tail as usize].to_vec();
            (self.visible, self.stored) = (tail, tail);
            for seq in from..=to {
                let Some(text) = self.events[seq as usize - 1].key else { continue };
                let (time_ms, key) = (self.time(seq), text.into());
                log.remember_key(&Key { seq, time_ms, text: key }, 0);
                let newest_ms = self.keys.last().map_or(0, |(.., since_ms)| *since_ms);
                self.keys.push((text, seq, newest_ms));
            }
        } else {
            assert!(to < from, "nothing is new: {from} to {to}");
            self.stored = log.stored();
        }
        self.taken.truncate(self.stored as usize);
    }

    /// The relay is started again, with what is on disk: all that was visible.
    fn restart(&mut self, log: Log, policy: &Policy, uptime_ms: u64) -> Log {
        drop(log);
        let tail = self.visible;
        self.events.truncate(tail as usize);
        let stored = StoredTopic {
            id: TOPIC,
            name: name(),
            epoch: EPOCH,
            first: self.first,
            tail,
            newest_ms: self.events.last().map_or(0, |event| event.time_ms),
            bytes: 0,
        };
        self.stored = tail;
        (self.taken, self.reason) = (self.events.clone(), None);
        let mut log = Log::new(&name(), EPOCH, policy.clone()).restored(&stored);
        // The store may have a key twice: from before its window ended, and from after.
        self.keys.clear();
        for (index, event) in self.events.iter().enumerate() {
            let Some(text) = event.key else { continue };
            let seq = index as u64 + 1;
            log.remember_key(&Key { seq, time_ms: event.time_ms, text: text.into() }, uptime_ms);
            self.keys.retain(|(known, ..)| *known != text);
            self.keys.push((text, seq, uptime_ms));
        }
        log
    }

    fn follow(&self, log: &Log, cursor: &mut u64, script: &mut Script<'_>) {
        match read(log, &self.events, *cursor, script) {
            Copied::UpTo(to) => {
                assert!(self.first <= *cursor + 1, "{cursor} lost events and was not told");
                assert!(to <= self.visible.max(*cursor), "{to} is not to be seen");
                *cursor = to;
            }
            Copied::Stored => {
                let next = *cursor + 1;
                assert!(log.is_on_disk(next) && next <= self.stored, "{next} is not on disk");
                *cursor = next;
            }
            Copied::Lost { first, reason } => {
                assert!(*cursor + 1 < first, "{cursor} has lost nothing before {first}");
                assert_eq!(first, self.first);
                assert_eq!(reason, self.reason.unwrap_or(GapReason::Slow));
                *cursor = first - 1;
            }
        }
    }

    fn compare(&self, log: &Log) {
        assert_eq!((log.first(), log.tail()), (self.first, self.visible));
        assert_eq!((log.appended(), log.stored()), (self.tail(), self.stored));
        for seq in self.stored + 1..=self.tail() {
            assert!(log.time_of(seq).is_some(), "event {seq} is neither stored nor in memory");
        }
        for seq in self.first..=self.visible {
            assert!(log.is_on_disk(seq) || log.time_of(seq) == Some(self.time(seq)), "{seq}");
        }
    }
}
