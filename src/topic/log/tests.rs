//! The log's rules one by one, and against a naive log that keeps everything.

use std::time::Duration;

use super::*;
use crate::{base::random, topic::dedupe::KEYS_MAX};

const EPOCH: Epoch = Epoch::from_number(7);

fn policy(max_events: u64) -> Policy {
    Policy { max_events, max_bytes: u64::MAX, max_age: None, ..Policy::default() }
}

fn log(policy: Policy) -> Log {
    Log::new(&Name::parse("home/\"lamp\"").unwrap(), EPOCH, policy)
}

fn append(log: &mut Log, data: &str, now_ms: u64) -> (Appended, Evictions) {
    log.append(&Draft { user: None, name: None, data, key: None }, now_ms, at(0))
}

/// A window of a second, asked for at this uptime.
fn at(uptime_ms: u64) -> Window {
    Window { uptime_ms, length_ms: 1_000 }
}

fn filled(events: u64, kept: u64) -> Log {
    let mut log = log(policy(kept));
    (1..=events).for_each(|time| _ = append(&mut log, "0", time * 10));
    log
}

fn after(epoch: Epoch, seq: u64) -> From {
    From::After(Position { epoch, seq })
}

fn events(log: &Log, cursor: u64, limit: u64) -> Vec<serde_json::Value> {
    let mut out = Vec::new();
    log.copy_after(cursor, cursor + limit, usize::MAX, &mut out);
    frame::payloads(&out).map(|event| serde_json::from_slice(event).unwrap()).collect()
}

#[test]
fn an_event_is_encoded_once_with_all_its_fields() {
    let mut log = log(policy(10));
    let draft =
        Draft { user: Some(b"\"anna\""), name: Some(b"\"on\""), data: "{\"a\": 1.0}", key: None };
    log.append(&draft, 1_700_000_000_000, at(0));
    let mut out = Vec::new();
    assert_eq!(log.copy_after(0, u64::MAX, 1, &mut out), Copied::UpTo(1));
    assert_eq!(frame::length(&out), out.len());
    let expected = concat!(
        r#"{"type":"event","topic":"home/\"lamp\"","seq":1,"time":1700000000000,"#,
        r#""user":"anna","name":"on","data":{"a": 1.0}}"#,
    );
    assert_eq!(std::str::from_utf8(frame::payload(&out)).unwrap(), expected);
}

#[test]
fn a_frame_of_every_size_class_is_measured_rightly() {
    let mut log = log(policy(100));
    for len in [1, 30, 40, 50, 60, 65_400, 65_500, 65_536, 200_000] {
        append(&mut log, &format!("\"{}\"", "x".repeat(len)), 5);
    }
    log.frames.check();
    assert_eq!(events(&log, 0, 100).len(), 9);
}

#[test]
fn an_empty_log_is_complete_at_its_tail() {
    let log = log(policy(10));
    assert_eq!((log.first(), log.tail()), (1, 0));
    for from in [From::Live, From::Start, From::Last(5), From::Since(0)] {
        assert_eq!(log.start(&from), Start { seq: 0, recovery: None });
    }
    let complete = Start { seq: 0, recovery: Some(Recovery::COMPLETE) };
    assert_eq!(log.start(&after(EPOCH, 0)), complete);
}

#[test]
fn a_log_emptied_by_age_is_complete_at_its_tail_and_partial_before() {
    let age = Policy { max_age: Some(Duration::from_millis(50)), ..policy(10) };
    let mut log = log(age);
    (1..=3).for_each(|_| _ = append(&mut log, "0", 10));
    assert_eq!(log.evict(1_000).age, 3);
    assert_eq!((log.first(), log.tail(), log.len()), (4, 3, 0));
    let complete = Start { seq: 3, recovery: Some(Recovery::COMPLETE) };
    assert_eq!(log.start(&after(EPOCH, 3)), complete);
    let recovery = log.start(&after(EPOCH, 1)).recovery.unwrap();
    assert_eq!((recovery.mode, recovery.missing), (Mode::Partial, Some((2, 3))));
    assert_eq!(append(&mut log, "0", 2_000).0.seq, 4, "a sequence is never given out twice");
}

#[test]
fn a_position_is_valid_from_before_the_oldest_event_to_the_tail() {
    let log = filled(10, 4);
    assert_eq!((log.first(), log.tail()), (7, 10));
    for seq in 6..=10 {
        let start = Start { seq, recovery: Some(Recovery::COMPLETE) };
        assert_eq!(log.start(&after(EPOCH, seq)), start);
    }
    let partial = log.start(&after(EPOCH, 5));
    let (missing, reason) = (Some((6, 6)), Some(Reason::Truncated));
    let recovery = Some(Recovery { mode: Mode::Partial, missing, reason });
    assert_eq!(partial, Start { seq: 6, recovery });
}

#[test]
fn a_position_that_means_nothing_here_is_reset_with_what_is_missing() {
    let log = filled(10, 4);
    let reset = |reason| {
        let recovery = Recovery { mode: Mode::Reset, missing: Some((1, 6)), reason: Some(reason) };
        Start { seq: 6, recovery: Some(recovery) }
    };
    assert_eq!(log.start(&after(EPOCH, 11)), reset(Reason::Ahead));
    assert_eq!(log.start(&after(EPOCH, u64::MAX)), reset(Reason::Ahead));
    assert_eq!(log.start(&after(Epoch::from_number(8), 8)), reset(Reason::EpochChanged));
}

#[test]
fn the_other_ways_to_start_stay_within_what_is_retained() {
    let log = filled(10, 4);
    let seq = |from| log.start(&from).seq;
    assert_eq!(seq(From::Live), 10);
    assert_eq!(seq(From::Start), 6);
    assert_eq!([0, 1, 4, 5, u64::MAX].map(|n| seq(From::Last(n))), [10, 9, 6, 6, 6]);
    assert_eq!([0, 70, 71, 100, 101, u64::MAX].map(|t| seq(From::Since(t))), [6, 6, 7, 9, 10, 10]);
}

#[test]
fn the_times_of_a_log_never_go_back() {
    let mut log = log(policy(10));
    append(&mut log, "0", 500);
    append(&mut log, "0", 100);
    append(&mut log, "0", 600);
    let times: Vec<_> = events(&log, 0, 10).iter().map(|event| event["time"].as_u64()).collect();
    assert_eq!(times, [Some(500), Some(500), Some(600)]);
}

#[test]
fn the_newest_event_stays_even_if_it_is_beyond_the_bound() {
    let tiny = Policy { max_events: 10, max_bytes: 1, max_age: None, ..Policy::default() };
    let mut log = log(tiny);
    append(&mut log, "0", 1);
    let (_, gone) = append(&mut log, "1", 2);
    assert_eq!((gone.bytes, log.len(), log.first()), (1, 1, 2));
    assert_eq!(log.shrink(0, 10).memory, 1, "except to make room for other logs");
    assert_eq!((log.first(), log.tail()), (3, 2));
    let mut none = self::log(policy(0));
    (1..=2).for_each(|time| _ = append(&mut none, "0", time));
    assert_eq!((none.first(), none.len()), (2, 1));
}

#[test]
fn making_room_takes_keys_after_their_events() {
    let mut log = log(policy(10));
    for key in ["a", "b"] {
        let draft = Draft { user: None, name: None, data: "1", key: Some(key) };
        log.append(&draft, 1, at(1));
    }
    let before = log.memory();
    assert_eq!(log.shrink(before - 1, 10), Evictions { memory: 1, ..Evictions::default() });
    assert_eq!(log.shrink(0, 10), Evictions { memory: 1, keys: 2, ..Evictions::default() });
    assert_eq!(log.memory(), 0);
}

#[test]
fn a_lost_cursor_says_which_bound_took_its_events() {
    let mut slow = filled(10, 4);
    let lost = |log: &Log| log.copy_after(2, u64::MAX, 100, &mut Vec::new());
    assert_eq!(lost(&slow), Copied::Lost { first: 7, reason: GapReason::Slow });
    slow.shrink(0, 1);
    assert_eq!(lost(&slow), Copied::Lost { first: 8, reason: GapReason::Retention });
}

#[test]
fn a_copy_without_a_bound_takes_all() {
    let log = filled(300, 300);
    let mut out = Vec::new();
    assert_eq!(log.copy_after(100, u64::MAX, usize::MAX, &mut out), Copied::UpTo(300));
}

#[test]
fn a_key_inside_its_window_gets_the_first_events_sequence() {
    let mut log = log(policy(10));
    let keyed = |data| Draft { user: None, name: None, data, key: Some("k") };
    assert_eq!(log.append(&keyed("1"), 5, at(100)).0.seq, 1);
    let again = log.append(&keyed("2"), 5, at(1_099)).0;
    assert_eq!((again.seq, again.duplicate, log.tail()), (1, true, 1));
    let later = log.append(&keyed("3"), 5, at(1_100)).0;
    assert_eq!((later.seq, later.duplicate), (2, false));
}

#[test]
fn a_key_that_had_to_go_for_another_is_counted() {
    let mut log = log(policy(9));
    for seq in 0..KEYS_MAX as u64 {
        log.dedupe.remember(&format!("key {seq}"), seq, 0);
    }
    let draft = Draft { user: None, name: None, data: "1", key: Some("k") };
    let (_, gone) = log.append(&draft, 10, at(0));
    assert_eq!(gone, Evictions { keys: 1, ..Evictions::default() });
}

#[test]
fn a_wall_clock_that_is_set_changes_no_window() {
    const HOUR_MS: u64 = 3_600_000;
    let mut log = log(policy(10));
    let keyed = |key| Draft { user: None, name: None, data: "1", key: Some(key) };
    log.append(&keyed("a"), 2 * HOUR_MS, at(0));
    let back = log.append(&keyed("a"), HOUR_MS, at(1_000)).0;
    assert!(!back.duplicate, "its window has ended");
    let ahead = log.append(&keyed("a"), 9 * HOUR_MS, at(1_999)).0;
    assert!(ahead.duplicate, "its window goes on");
    log.evict(10 * HOUR_MS);
    log.forget_keys(at(1_999));
    assert!(!log.dedupe.is_empty());
    log.forget_keys(at(2_000));
    assert!(log.dedupe.is_empty());
}

#[test]
fn the_rate_forgets_what_is_long_ago() {
    let mut log = log(policy(10_000));
    (0..1_000).for_each(|n| _ = append(&mut log, "0", 100_000 + n * 10));
    let rate = log.rate(110_000);
    assert!((80.0..120.0).contains(&rate), "{rate}");
    assert!(log.rate(200_000) < 0.001);
}

/// Random appends, evictions and readers with cursors: every reader gets every event once, in
/// order, or is told exactly which ones it will not get.
#[test]
fn random_readers_get_every_event_or_its_announced_loss() {
    for _ in 0..200 {
        let bounds = Policy {
            max_events: 1 + random::below(50),
            max_bytes: 200 + random::below(5_000),
            max_age: (random::below(2) == 0).then(|| Duration::from_millis(random::below(300))),
            ..Policy::default()
        };
        let mut log = log(bounds);
        let mut readers = [0_u64; 3];
        let mut accounted = [0_u64; 3];
        for now_ms in 0..300 {
            let data = "9".repeat(1 + usize::try_from(random::below(200)).unwrap());
            append(&mut log, &data, now_ms);
            if random::below(10) == 0 {
                log.shrink(random::below(3_000), 1 + random::below(5));
            }
            let reader = usize::try_from(random::below(3)).unwrap();
            let mut out = Vec::new();
            let upto = if random::below(2) == 0 { u64::MAX } else { readers[reader] + 3 };
            match log.copy_after(readers[reader], upto, 500, &mut out) {
                Copied::UpTo(to) => {
                    let mut rest = &out[..];
                    while !rest.is_empty() {
                        let (one, more) = rest.split_at(frame::length(rest));
                        let event: serde_json::Value =
                            serde_json::from_slice(frame::payload(one)).unwrap();
                        accounted[reader] += 1;
                        assert_eq!(event["seq"].as_u64(), Some(accounted[reader]));
                        rest = more;
                    }
                    assert_eq!(to, accounted[reader]);
                    readers[reader] = to;
                }
                Copied::Stored => panic!("nothing is on disk"),
                Copied::Lost { first, .. } => {
                    assert!(readers[reader] + 1 < first && first <= log.tail() + 1);
                    readers[reader] = first - 1;
                    accounted[reader] = first - 1;
                }
            }
        }
        log.frames.check();
    }
}

#[test]
fn the_rate_is_that_of_the_last_five_seconds() {
    let mut rate = Rate::default();
    (0..10).for_each(|_| rate.count(6_000));
    let at = |rate: Rate, times: [u64; 5]| times.map(|time_ms| rate.at(time_ms));
    // From the next window on it fades, and then is gone.
    assert_eq!(at(rate, [6_000, 9_999, 10_000, 12_500, 15_000]), [2.0, 2.0, 2.0, 1.0, 0.0]);
    rate.count(11_000);
    assert_eq!(at(rate, [10_000, 11_000, 15_000, 17_500, 20_000]), [2.2, 1.8, 0.2, 0.1, 0.0]);
    rate.count(20_000);
    assert_eq!(rate.at(20_000), 0.2, "two windows ago is too long ago");
    rate.count(19_000);
    assert_eq!(rate.at(19_000), 0.4, "a clock that was set back counts as now");
}

#[test]
fn what_is_just_within_a_bound_stays() {
    let two = filled(2, 10).bytes();
    let bounds = Policy { max_bytes: two, max_age: Some(Duration::from_millis(50)), ..policy(10) };
    let mut log = log(bounds);
    (1..=3).for_each(|time| _ = append(&mut log, "0", time * 10));
    assert_eq!((log.bytes(), log.first(), log.len()), (two, 2, 2));
    assert_eq!(log.evict(70), Evictions::default());
    assert_eq!(log.evict(71), Evictions { age: 1, ..Evictions::default() });
    assert_eq!(log.shrink(log.memory(), 10), Evictions::default());
    append(&mut log, "0", 72);
    let one = Policy { max_events: 1, ..bounds };
    assert_eq!(log.set_policy(one, 72), Evictions { count: 1, ..Evictions::default() });
    assert_eq!((log.time_of(3), log.time_of(4), log.time_of(5)), (None, Some(72), None));
}

#[test]
fn making_room_takes_no_more_steps_than_it_may() {
    let mut log = log(policy(10));
    for key in ["a", "b", "c"] {
        log.append(&Draft { user: None, name: None, data: "1", key: Some(key) }, 1, at(1));
    }
    assert_eq!(log.shrink(0, 3), Evictions { memory: 2, keys: 1, ..Evictions::default() });
    assert_eq!(log.len(), 1);
}

#[test]
fn a_log_is_forgettable_when_neither_events_nor_keys_are_left() {
    let mut log = log(policy(10));
    assert!(log.is_forgettable() && log.is_empty());
    log.append(&Draft { user: None, name: None, data: "1", key: Some("a") }, 1, at(0));
    assert!(!log.is_forgettable() && !log.is_empty());
    log.shrink(0, 1);
    assert!(!log.is_forgettable() && log.is_empty(), "its key stands for an event");
    log.forget_keys(at(1_000));
    assert!(log.is_forgettable());
    let mut pending = self::log(policy(10)).durable();
    append(&mut pending, "0", 1);
    assert!(!pending.is_forgettable() && pending.is_empty(), "it may not be seen yet");
}

#[test]
fn a_position_of_another_life_lacks_nothing_where_all_is_retained() {
    let log = filled(3, 10);
    let recovery =
        Recovery { mode: Mode::Reset, missing: None, reason: Some(Reason::EpochChanged) };
    let start = Start { seq: 0, recovery: Some(recovery) };
    assert_eq!(log.start(&after(Epoch::from_number(8), 2)), start);
    let unnamed = Start { seq: 0, recovery: Some(Recovery::COMPLETE) };
    assert_eq!(log.start(&From::Positions(vec![])), unnamed);
}

#[test]
fn events_that_went_for_their_age_are_lost_to_retention() {
    let age = Policy { max_age: Some(Duration::from_millis(50)), ..policy(10) };
    let mut log = log(age);
    append(&mut log, "0", 10);
    append(&mut log, "0", 100);
    let lost = Copied::Lost { first: 2, reason: GapReason::Retention };
    assert_eq!(log.copy_after(0, u64::MAX, 100, &mut Vec::new()), lost);
}
