//! What retention keeps, against a model that counts one by one, and the room that it frees.

use std::time::Duration;

use super::{KEEP_ALL, event, events, first_batch, new_topic, open, read_all, run, runs, time};
use crate::{
    config::Policy,
    metrics::labels::Evicted,
    store::{
        Batch, Keep, Missing, Page, Store, Trimmed,
        sim::{SimDisk, Step, random},
        tests::model::State,
    },
};

fn keep(policy: Policy, now_ms: u64) -> Batch {
    Batch { keeps: vec![Keep { topic: 1, policy, now_ms }], ..Batch::default() }
}

const fn count(max_events: u64) -> Policy {
    Policy { max_events, ..KEEP_ALL }
}

#[test]
fn retention_keeps_what_a_naive_model_keeps() {
    for seed in 1..=6_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut below = |bound| random(&mut state) % bound;
        let disk = SimDisk::default();
        let (mut store, _) = open(&disk).unwrap();
        let mut model = State::default();
        let first = Batch { topics: vec![new_topic(1)], ..Batch::default() };
        model.apply(&first);
        store.commit(&first).unwrap();
        for _ in 0..80 {
            let tail = model.topics[&1].tail;
            let max_age = (below(2) == 0).then(|| Duration::from_millis(below(2_000)));
            let policy = Policy {
                max_events: 1 + below(400),
                max_bytes: 1 + below(60_000),
                max_age,
                ..Policy::default()
            };
            let mut batch = keep(policy, time(tail) + below(100));
            batch.runs.extend((below(3) != 0).then(|| run(1, tail + 1, 1 + below(30))));
            let before = model.topics[&1].first;
            model.apply(&batch);
            let done = store.commit(&batch).unwrap();

            let first = model.topics[&1].first;
            let moved: Vec<_> = done.trimmed.iter().map(|trimmed| trimmed.first).collect();
            assert_eq!(moved, if before < first { vec![first] } else { vec![] });
            assert!(!done.more);
            model.assert_readable(&*store.pages());
        }
        drop(store);
        let (_, loaded) = open(&disk).unwrap();
        assert!(model.is(&loaded), "{model:?} {loaded:?}");
    }
}

#[test]
fn a_commit_removes_a_bounded_number_of_chunks_but_says_the_exact_first() {
    let (mut store, _) = open(&SimDisk::default()).unwrap();
    let batch = runs((1..=200).map(|seq| run(1, seq, 1)));
    store.commit(&Batch { topics: vec![new_topic(1)], ..batch }).unwrap();

    let first = store.commit(&keep(count(5), 0)).unwrap();

    let trimmed = Trimmed { topic: 1, first: 196, reason: Evicted::Count };
    assert_eq!((first.trimmed, first.more), (vec![trimmed], true));
    let mut commits = 1;
    loop {
        let next = store.commit(&keep(count(5), 0)).unwrap();
        assert_eq!(next.trimmed, []);
        commits += 1;
        if !next.more {
            break;
        }
    }
    assert_eq!(commits, 4);
    let missing = Page::Missing { first: 196, why: Missing::Removed };
    assert_eq!(store.pages().read(1, 0, 200, 100, &mut Vec::new()).unwrap(), missing);
    assert_eq!(read_all(&*store.pages(), 1, 195, 200), events(1, 196, 200));
    // From now on it moves by one event at a time.
    let mut batch = keep(count(5), 0);
    batch.runs.push(run(1, 201, 1));
    let trimmed = Trimmed { topic: 1, first: 197, reason: Evicted::Count };
    assert_eq!(store.commit(&batch).unwrap().trimmed, [trimmed]);
}

#[test]
fn the_newest_event_stays_unless_it_is_too_old_and_no_sequence_returns() {
    let disk = SimDisk::default();
    let (mut store, _) = open(&disk).unwrap();
    let batch = runs([run(1, 1, 2), run(1, 3, 1)]);
    store.commit(&Batch { topics: vec![new_topic(1)], ..batch }).unwrap();
    let tiny = Policy { max_events: 0, max_bytes: 0, max_age: None, ..Policy::default() };
    let old = Policy { max_age: Some(Duration::from_millis(5)), ..KEEP_ALL };

    for (policy, now_ms, first, reason) in [
        (tiny, 0, 3, Some(Evicted::Count)),
        (old, time(3) + 5, 3, None),
        (old, time(3) + 6, 4, Some(Evicted::Age)),
    ] {
        let done = store.commit(&keep(policy, now_ms)).unwrap();
        let trimmed = reason.map(|reason| Trimmed { topic: 1, first, reason });
        assert_eq!(done.trimmed, Vec::from_iter(trimmed));
    }
    drop(store);

    let (mut store, loaded) = open(&disk).unwrap();
    let topic = &loaded.topics[0];
    assert_eq!((topic.first, topic.tail, topic.bytes), (4, 3, 0));
    assert_eq!((topic.newest_ms, loaded.warnings.len()), (time(3), 0));
    let missing = Page::Missing { first: 4, why: Missing::Removed };
    assert_eq!(store.pages().read(1, 0, 3, 100, &mut Vec::new()).unwrap(), missing);
    store.commit(&runs([run(1, 4, 1)])).unwrap();
    assert_eq!(read_all(&*store.pages(), 1, 3, 4), event(1, 4));
}

#[test]
fn bytes_are_bounded_by_whole_chunks() {
    let (mut store, _) = open(&SimDisk::default()).unwrap();
    let batch = runs((0..10).map(|at| run(1, at * 10 + 1, 10)));
    store.commit(&Batch { topics: vec![new_topic(1)], ..batch }).unwrap();
    let max_bytes = events(1, 81, 100).len() as u64;
    let done = store.commit(&keep(Policy { max_bytes, ..KEEP_ALL }, 0)).unwrap();
    assert_eq!(done.trimmed, [Trimmed { topic: 1, first: 81, reason: Evicted::Bytes }]);
    let max_bytes = max_bytes - 1;
    let done = store.commit(&keep(Policy { max_bytes, ..KEEP_ALL }, 0)).unwrap();
    assert_eq!(done.trimmed, [Trimmed { topic: 1, first: 91, reason: Evicted::Bytes }]);
}

#[test]
fn the_file_stays_small_while_a_window_moves_over_many_events() {
    let (mut store, _) = open(&SimDisk::default()).unwrap();
    let (window, step) = (5_000, 50);
    store.commit(&Batch { topics: vec![new_topic(1)], ..Batch::default() }).unwrap();
    let mut largest = 0;
    for first in (1..60_000).step_by(step) {
        let mut batch = keep(count(window), 0);
        batch.runs.push(run(1, first, step as u64));
        batch.keys_before_ms = time(first.saturating_sub(window));
        store.commit(&batch).unwrap();
        largest = largest.max(store.file_bytes());
    }
    let live = events(1, 55_001, 60_000).len() as u64;
    assert!(largest < 4 * live + 2 * 1024 * 1024, "{largest} for {live}");
}

#[test]
fn keys_are_forgotten_by_time_some_with_each_commit() {
    let disk = SimDisk::default();
    let (mut store, _) = open(&disk).unwrap();
    let batch = runs((0..60).map(|at| run(1, at * 100 + 1, 100)));
    store.commit(&Batch { topics: vec![new_topic(1)], ..batch }).unwrap();
    store.commit(&first_batch(2, 30)).unwrap();
    let keys = |disk: &SimDisk| open(&disk.killed()).unwrap().1.keys;
    assert_eq!(keys(&disk).len(), 2_010);
    let mut tail = 6_000;
    for left in [2_010 - 1_024, 33, 33] {
        tail += 1;
        let mut batch = runs([super::Run { keys: Vec::new(), ..run(1, tail, 1) }]);
        batch.keys_before_ms = time(5_903);
        store.commit(&batch).unwrap();
        assert_eq!(keys(&disk).len(), left);
    }
    assert!(keys(&disk).iter().all(|(topic, key)| *topic == 1 && time(5_903) <= key.time_ms));
}

#[test]
fn a_look_for_what_is_too_old_touches_no_disk_if_nothing_is() {
    let disk = SimDisk::default();
    let (mut store, _) = open(&disk).unwrap();
    store.commit(&first_batch(1, 30)).unwrap();
    let look = |policy, now_ms| Batch {
        keeps: vec![Keep { topic: 1, policy, now_ms }],
        keys_before_ms: time(3),
        ..Batch::default()
    };
    let before = (disk.count(Step::Sync), disk.count(Step::Write));
    let aged = Policy { max_age: Some(Duration::from_secs(1)), ..KEEP_ALL };
    assert!(store.commit(&look(aged, time(30))).unwrap().trimmed.is_empty());
    assert_eq!((disk.count(Step::Sync), disk.count(Step::Write)), before);
    assert_eq!(store.commit(&look(aged, time(30) + 5_000)).unwrap().trimmed.len(), 1);
    assert!(before.0 < disk.count(Step::Sync));
}
