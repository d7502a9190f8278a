//! The log of a memory topic: appends, every way in which events go, and readers that stall.

use std::time::Duration;

use landline::{
    config::Policy,
    topic::{Copied, Evictions, Log},
    wire::codes::GapReason,
};
use landline_fuzz::Script;

use crate::{Events, Keys, bytes, check_start, draft, event, forget, key_bytes, known, name, read};

struct Model {
    events: Events,
    first: u64,
    keys: Keys,
    policy: Policy,
    /// Why the last event that went did.
    reason: GapReason,
}

const OPERATIONS_MAX: usize = 200;

pub fn run(mut script: Script<'_>) {
    let policy = self::policy(&mut script);
    let mut log = Log::new(&name(), crate::EPOCH, policy.clone());
    let mut model =
        Model { events: Vec::new(), first: 1, keys: Vec::new(), policy, reason: GapReason::Slow };
    let mut cursors = [0; 3];
    let (mut now_ms, mut uptime_ms) = (0, 0);
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = script.next() else { break };
        now_ms += script.number(16);
        uptime_ms += script.number(16);
        match operation % 12 {
            0..5 => model.append(&mut log, &mut script, (now_ms, uptime_ms)),
            5 => {
                let gone = log.evict(now_ms);
                assert_eq!(gone, model.evict(now_ms));
            }
            6 => {
                let (bytes, steps) = (script.number(256) * 8, script.number(8));
                assert_eq!(log.shrink(bytes, steps), model.shrink(bytes, steps));
            }
            7 => {
                model.policy = self::policy(&mut script);
                let gone = log.set_policy(model.policy.clone(), now_ms);
                assert_eq!(gone, model.evict(now_ms));
            }
            8 => {
                log.forget_keys(crate::window(uptime_ms));
                forget(&mut model.keys, uptime_ms);
            }
            9 => {
                // The wall clock is set back, which no event shows.
                now_ms = now_ms.saturating_sub(script.number(64));
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

fn policy(script: &mut Script<'_>) -> Policy {
    let max_age = script.pick(&[None, Some(0), Some(20), Some(200)]);
    Policy {
        max_events: 1 + script.number(40),
        max_bytes: script.pick(&[1, 300, 3_000, 70_000, u64::MAX]),
        max_age: max_age.map(Duration::from_millis),
        ..Policy::default()
    }
}

impl Model {
    fn tail(&self) -> u64 {
        self.events.len() as u64
    }

    fn bytes(&self) -> u64 {
        bytes(&self.events, self.first..=self.tail())
    }

    fn append(&mut self, log: &mut Log, script: &mut Script<'_>, (now_ms, uptime_ms): (u64, u64)) {
        let newest_ms = self.events.last().map_or(0, |event| event.time_ms);
        let event = event(script, now_ms.max(newest_ms));
        let (appended, gone) = log.append(&draft(&event), now_ms, crate::window(uptime_ms));
        if let Some(seq) = known(&mut self.keys, event.key, uptime_ms) {
            assert_eq!((appended.seq, appended.duplicate, appended.bytes), (seq, true, 0));
            assert_eq!(gone, Evictions::default());
            return;
        }
        let now_ms = event.time_ms;
        let seq = self.tail() + 1;
        let len = event.frame(seq).len() as u64;
        assert_eq!((appended.seq, appended.duplicate, appended.bytes), (seq, false, len));
        self.keys.extend(event.key.map(|key| (key, seq, uptime_ms)));
        self.events.push(event);
        assert_eq!(gone, self.evict(now_ms));
    }

    fn pop(&mut self, reason: GapReason) -> u64 {
        self.first += 1;
        self.reason = reason;
        1
    }

    /// Retention, as `docs/config.md` has it.
    fn evict(&mut self, now_ms: u64) -> Evictions {
        let mut gone = Evictions::default();
        while self.policy.max_events < self.tail() + 1 - self.first {
            gone.count += self.pop(GapReason::Slow);
        }
        while self.policy.max_bytes < self.bytes() && self.first < self.tail() {
            gone.bytes += self.pop(GapReason::Slow);
        }
        let Some(age) = self.policy.max_age else { return gone };
        let age_ms = age.as_millis() as u64;
        while self.first <= self.tail()
            && self.events[self.first as usize - 1].time_ms + age_ms < now_ms
        {
            gone.age += self.pop(GapReason::Retention);
        }
        gone
    }

    fn shrink(&mut self, bytes: u64, steps: u64) -> Evictions {
        let mut gone = Evictions::default();
        while bytes < self.bytes() + key_bytes(&self.keys) && gone.memory + gone.keys < steps {
            if self.keys.first().is_some_and(|(_, seq, _)| *seq < self.first) {
                self.keys.remove(0);
                gone.keys += 1;
            } else if self.tail() < self.first {
                break;
            } else {
                gone.memory += self.pop(GapReason::Retention);
            }
        }
        gone
    }

    /// A reader goes on: it gets every event once, or is told exactly which are gone, and why.
    fn follow(&self, log: &Log, cursor: &mut u64, script: &mut Script<'_>) {
        match read(log, &self.events, *cursor, script) {
            Copied::UpTo(to) => {
                assert!(self.first <= *cursor + 1, "{cursor} lost events and was not told");
                *cursor = to;
            }
            Copied::Lost { first, reason } => {
                assert!(*cursor + 1 < first, "{cursor} has lost nothing before {first}");
                assert_eq!((first, reason), (self.first, self.reason));
                *cursor = first - 1;
            }
            Copied::Stored => panic!("nothing is on disk"),
        }
    }

    fn compare(&self, log: &Log) {
        let (first, tail) = (self.first, self.tail());
        assert_eq!((log.first(), log.tail(), log.appended()), (first, tail, tail));
        assert_eq!((log.len(), log.is_empty()), (tail + 1 - first, tail < first));
        assert_eq!(log.bytes(), self.bytes());
        assert_eq!(log.memory(), self.bytes() + key_bytes(&self.keys));
        assert_eq!(log.is_forgettable(), tail < first && self.keys.is_empty());
        for seq in [first - 1, first, tail, tail + 1] {
            let is_there = (first..=tail).contains(&seq);
            let expected = is_there.then(|| self.events[seq as usize - 1].time_ms);
            assert_eq!(log.time_of(seq), expected, "the time of {seq}");
        }
    }
}
