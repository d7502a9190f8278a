//! A durable topic's log beside a naive one that keeps everything.

use std::collections::BTreeMap;

use super::*;
use crate::{
    base::random,
    name::Name,
    topic::{
        dedupe::Window,
        log::{Appended, Copied, Draft},
    },
    wire::{codes::GapReason, position::Epoch},
};

const NOW: Window = Window { uptime_ms: 0, length_ms: 1_000 };

fn policy(max_tail: u64) -> Policy {
    Policy { max_tail, durable: true, ..Policy::default() }
}

fn empty(policy: Policy) -> Log {
    Log::new(&Name::parse("a").unwrap(), Epoch::from_number(7), policy)
}

fn append(log: &mut Log, size: usize, key: Option<&str>, now_ms: u64) -> Appended {
    let data = "9".repeat(size);
    log.append(&Draft { user: None, name: None, data: &data, key }, now_ms, NOW).0
}

/// A log of `appended` events of a few bytes, appended at 10, 20, ..., of which so many may be seen
/// and so many are stored.
fn log(max_tail: u64, appended: u64, visible: u64, stored: u64) -> Log {
    let mut log = empty(policy(max_tail)).durable();
    (1..=appended).for_each(|seq| _ = append(&mut log, 1, None, seq * 10));
    log.advance(visible, stored);
    log
}

fn stored_topic(first: u64, tail: u64) -> StoredTopic {
    let (name, epoch) = (Name::parse("a").unwrap(), Epoch::from_number(9));
    StoredTopic { id: 3, name, epoch, first, tail, newest_ms: 5_000, bytes: 0 }
}

/// All events, as somebody would keep them who forgets nothing.
#[derive(Default)]
struct Model {
    /// Time, frame's length and key of each.
    events: BTreeMap<u64, (u64, u64, Option<String>)>,
    first: u64,
    visible: u64,
    stored: u64,
    appended: u64,
    /// Which event each key stands for.
    keys: BTreeMap<String, u64>,
}

impl Model {
    fn bytes(&self, from: u64, to: u64) -> u64 {
        let events = self.events.range(from..).take_while(|(seq, _)| **seq <= to);
        events.map(|(_, (_, bytes, _))| bytes).sum()
    }

    fn check(&self, log: &Log) {
        log.frames.check();
        assert_eq!(
            (log.first(), log.tail(), log.stored()),
            (self.first, self.visible, self.stored)
        );
        assert_eq!((log.appended(), log.policy.sync), (self.appended, SyncPolicy::Always));
        let in_memory = |seq: &u64| log.time_of(*seq).is_some();
        let held: Vec<u64> = (0..=self.appended + 1).filter(in_memory).collect();
        assert_eq!(held, (log.kept..=self.appended).collect::<Vec<_>>());
        for seq in 0..=self.appended + 1 {
            let is_there = self.first <= seq && seq <= self.visible;
            assert_eq!(log.is_on_disk(seq), is_there && !in_memory(&seq), "{seq}");
            assert!(seq <= self.stored || self.appended < seq || in_memory(&seq), "{seq}");
        }
        for (seq, (time_ms, ..)) in self.events.range(log.kept..) {
            assert_eq!(log.time_of(*seq), Some(*time_ms));
        }
    }

    /// What is on its way to the store is all that follows, cut where it should be.
    fn check_pending(&self, log: &Log) {
        let after = self.stored + random::below(self.appended - self.stored + 1);
        let max = [1, 100, 40_000, u64::MAX][usize::try_from(random::below(4)).unwrap()];
        let pending = log.pending(5, after, max);
        let (mut at, mut bytes) = (after, 0);
        for run in &pending.runs {
            assert!(bytes == 0 || bytes < max);
            let last = at + run.count;
            assert_eq!((run.topic, run.first), (5, at + 1));
            assert_eq!(run.frames.len() as u64, self.bytes(run.first, last));
            assert_eq!(
                (run.first_ms, run.last_ms),
                (self.events[&run.first].0, self.events[&last].0)
            );
            let keyed = self.events.range(run.first..=last);
            let keyed = keyed.filter_map(|(seq, (time_ms, _, key))| {
                Some(Key { seq: *seq, time_ms: *time_ms, text: key.as_deref()?.into() })
            });
            let own = |key: &Key| (key.seq, key.time_ms, key.text.clone());
            let found: Vec<_> = run.keys.iter().map(own).collect();
            assert_eq!(found, keyed.map(|key| own(&key)).collect::<Vec<_>>());
            let fits = run.frames.len() <= RUN_BYTES_MAX;
            assert!(fits || run.count == 1);
            at = last;
            bytes += run.frames.len() as u64;
        }
        assert_eq!((pending.upto, pending.bytes), (at, bytes));
        assert_eq!(pending.more, at < self.appended);
        assert!(!pending.more || max <= bytes);
        let unseen = self.visible.max(after) + 1;
        let count = (at + 1).saturating_sub(unseen);
        let bytes = if count == 0 { 0 } else { self.bytes(unseen, at) };
        assert_eq!(pending.unseen, (count, bytes));
    }

    fn check_copy(&self, log: &Log) {
        let cursor = random::below(self.visible + 1);
        let upto = cursor + random::below(5);
        let mut out = Vec::new();
        let expected = match log.copy_after(cursor, upto, usize::MAX, &mut out) {
            Copied::Lost { first, .. } => cursor + 1 < self.first && first == self.first,
            Copied::Stored => cursor < upto.min(self.visible) && log.is_on_disk(cursor + 1),
            Copied::UpTo(to) => {
                assert_eq!(out.len() as u64, self.bytes(cursor + 1, to));
                to == cursor || to == upto.min(self.visible)
            }
        };
        assert!(expected, "{cursor} {upto}");
    }
}

/// One thing that happens to a log.
fn step(log: &mut Log, model: &mut Model, now_ms: u64) {
    match random::below(12) {
        0..=4 => {
            let size = [1, 50, 3_000, 40_000][usize::try_from(random::below(4)).unwrap()];
            let key = (random::below(3) == 0).then(|| random::below(40).to_string());
            let known = key.as_ref().and_then(|key| model.keys.get(key).copied());
            let appended = append(log, size, key.as_deref(), now_ms);
            assert_eq!(appended.duplicate, known.is_some());
            assert_eq!(appended.seq, known.unwrap_or(model.appended + 1));
            if known.is_none() {
                model.appended += 1;
                model.keys.extend(key.clone().map(|key| (key, model.appended)));
                model.events.insert(model.appended, (now_ms, appended.bytes, key));
            }
        }
        5..=7 => {
            model.visible += random::below(model.appended - model.visible + 1);
            model.stored += random::below(model.visible - model.stored + 1);
            log.advance(model.visible, model.stored);
            // News that come late change nothing.
            log.advance(model.visible / 2, model.stored / 2);
        }
        8 => {
            let first = model.first + random::below(model.stored + 2 - model.first);
            let gone = log.trimmed(first, Evicted::Age);
            assert_eq!(gone, Evictions { age: first - model.first, ..Evictions::default() });
            model.first = first;
        }
        9 => {
            let count = model.appended - model.visible;
            let bytes = model.bytes(model.visible + 1, u64::MAX);
            assert_eq!(log.roll_back(), (count, bytes));
            model.events.split_off(&(model.visible + 1));
            model.keys.retain(|_, seq| *seq <= model.visible);
            model.appended = model.visible;
        }
        10 => {
            let before = (log.kept, log.memory());
            let gone = log.shrink(before.1 / 2, random::below(4));
            assert_eq!((gone.memory, gone.cached), (0, log.kept - before.0));
            model.keys.retain(|_, seq| log.dedupe.oldest().is_some_and(|oldest| oldest <= *seq));
        }
        _ => model.check_pending(log),
    }
}

#[test]
fn random_appends_commits_and_failures_agree_with_a_log_that_keeps_everything() {
    for _ in 0..100 {
        let max_tail = random::below(60_000);
        let mut log = empty(policy(max_tail)).durable();
        let mut model = Model { first: 1, ..Model::default() };
        for now_ms in 0..150 {
            step(&mut log, &mut model, now_ms);
            model.check(&log);
            model.check_copy(&log);
            assert!(log.bytes() <= max_tail || log.stored() < log.kept, "memory keeps too much");
        }
    }
}

#[test]
fn what_is_stored_leaves_memory_when_its_tail_is_full_and_not_before() {
    let two = log(u64::MAX, 2, 0, 0).bytes();
    let mut log = log(two, 5, 5, 3);
    assert_eq!((log.kept, log.is_on_disk(3), log.is_on_disk(4)), (4, true, false));
    log.advance(5, 5);
    assert_eq!(log.kept, 4, "two fit");
    log.set_policy(policy(two - 1), 0);
    assert_eq!(log.kept, 5);
    assert_eq!((log.trim_tail(0, 0), log.trim_tail(0, 9)), (0, 1));
    assert_eq!((log.kept, log.first(), log.len()), (6, 1, 5));
}

#[test]
fn an_event_is_as_safe_as_its_policy_says() {
    let mut log = empty(policy(100));
    assert_eq!(log.durability(), Durability::Memory);
    log = log.durable();
    for (sync, durability) in [
        (SyncPolicy::Always, Durability::Synced),
        (SyncPolicy::Interval, Durability::Written),
        (SyncPolicy::Os, Durability::Written),
    ] {
        log.set_policy(Policy { sync, ..policy(100) }, 0);
        assert_eq!((log.durability(), log.policy().sync), (durability, sync));
    }
}

#[test]
fn a_log_that_the_store_has_goes_on_where_it_ended() {
    let mut log = empty(policy(1_000)).restored(&stored_topic(3, 8));
    assert_eq!((log.first(), log.tail(), log.stored(), log.epoch().number()), (3, 8, 8, 9));
    assert_eq!(log.copy_after(2, u64::MAX, 100, &mut Vec::new()), Copied::Stored);
    assert_eq!(append(&mut log, 1, None, 10).seq, 9);
    assert_eq!(log.time_of(9), Some(5_000), "times never go back");
    log.remember_key(&Key { seq: 4, time_ms: 0, text: "k".into() }, 0);
    let again = append(&mut log, 1, Some("k"), 10);
    assert_eq!((again.seq, again.duplicate), (4, true));
}

#[test]
fn events_of_a_time_may_begin_on_disk_unless_memory_has_them_all() {
    let all_in_memory = log(u64::MAX, 3, 3, 3);
    assert!(!all_in_memory.begins_on_disk(0));
    let mut log = log(u64::MAX, 3, 3, 3);
    log.trim_tail(0, 2);
    assert_eq!(
        [0, 29, 30, 31].map(|time_ms| log.begins_on_disk(time_ms)),
        [true, true, true, false]
    );
    log.trim_tail(0, 1);
    assert!(log.begins_on_disk(31), "memory has none to compare with");
    _ = log.trimmed(4, Evicted::Age);
    assert!(!log.begins_on_disk(0), "there is nothing on disk");
}

#[test]
fn what_the_store_removed_is_counted_by_its_reason_and_said_to_who_lacks_it() {
    let evictions = |reason| log(u64::MAX, 5, 5, 5).trimmed(3, reason);
    let none = Evictions::default();
    assert_eq!(evictions(Evicted::Count), Evictions { count: 2, ..none });
    assert_eq!(evictions(Evicted::Bytes), Evictions { bytes: 2, ..none });
    assert_eq!(evictions(Evicted::Age), Evictions { age: 2, ..none });
    assert_eq!(evictions(Evicted::Memory), Evictions { memory: 2, ..none });

    let mut log = log(u64::MAX, 5, 5, 5);
    _ = log.trimmed(3, Evicted::Count);
    assert_eq!(log.trimmed(3, Evicted::Age), none, "nothing more");
    let lost = Copied::Lost { first: 3, reason: GapReason::Slow };
    assert_eq!(log.copy_after(1, u64::MAX, 100, &mut Vec::new()), lost);
    assert_eq!((log.time_of(2), log.time_of(3)), (None, Some(30)));
    assert_eq!(empty(policy(9)).trimmed(3, Evicted::Age), none, "a topic in memory has no store");
}

#[test]
fn a_store_that_was_opened_anew_is_gone_on_with() {
    // It has less than was seen: what was only written is written again.
    let mut behind = log(u64::MAX, 5, 4, 1);
    behind.roll_back();
    assert_eq!(behind.reconcile(&stored_topic(1, 2)), (5, 2));
    assert_eq!((behind.stored(), behind.tail(), behind.appended()), (2, 4, 4));
    // Memory has not all of what the store lost: what it has not cannot be stored again.
    let mut cut = log(0, 4, 4, 3);
    assert_eq!((cut.kept, cut.reconcile(&stored_topic(1, 1))), (4, (5, 1)));
    assert_eq!(cut.stored(), 3);
    // It has what was seen: memory keeps its copies.
    let mut same = log(u64::MAX, 4, 4, 2);
    assert_eq!(same.reconcile(&stored_topic(1, 4)), (5, 4));
    assert_eq!((same.kept, same.len(), same.stored(), same.tail()), (1, 4, 4, 4));
    // It has more: those turned out to be there.
    let mut ahead = log(u64::MAX, 5, 3, 3);
    ahead.roll_back();
    assert_eq!(ahead.reconcile(&stored_topic(1, 5)), (4, 5));
    assert_eq!((ahead.stored(), ahead.tail(), ahead.appended()), (5, 5, 5));
    assert_eq!((ahead.bytes(), append(&mut ahead, 1, None, 0).seq), (0, 6));
    assert_eq!(ahead.time_of(6), Some(5_000));
    assert_eq!(empty(policy(9)).reconcile(&stored_topic(1, 5)), (1, 0));
}

#[test]
fn a_log_in_memory_has_nothing_to_store_and_nothing_to_take_back() {
    let mut log = empty(policy(0));
    append(&mut log, 1, None, 10);
    log.advance(1, 1);
    assert_eq!((log.stored(), log.roll_back(), log.trim_tail(0, 9)), (0, (0, 0), 0));
    assert_eq!((log.tail(), log.len()), (1, 1));
    assert!(!log.is_on_disk(1) && !log.begins_on_disk(0));
}

#[test]
fn what_is_taken_at_once_ends_with_the_run_that_fills_it() {
    let mut log = empty(policy(u64::MAX)).durable();
    let first = append(&mut log, 40_000, None, 1).bytes;
    append(&mut log, 40_000, None, 2);
    for (bytes_max, runs) in [(0, 1), (first, 1), (first + 1, 2)] {
        assert_eq!(log.pending(1, 0, bytes_max).runs.len(), runs, "{bytes_max}");
    }
}
