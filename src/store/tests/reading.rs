//! Reading: limits, times, holes, and a writer at the same time.

use std::{
    io::ErrorKind,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use super::{event, events, first_batch, new_topic, open, read_all, run, runs, time};
use crate::store::{
    Batch, Database, Missing, Page, Store, StoreError,
    backend::Backend,
    disk::Disk,
    sim::{Fault, SimDisk, Step},
    tables::EVENTS,
};

/// Topic 1 has chunks of ten events up to 100.
fn tens(disk: &SimDisk) -> Database {
    let (mut store, _) = open(disk).unwrap();
    let batch = runs((0..10).map(|at| run(1, at * 10 + 1, 10)));
    store.commit(&Batch { topics: vec![new_topic(1)], ..batch }).unwrap();
    // Neighbours in the table.
    store.commit(&first_batch(0, 3)).unwrap();
    store.commit(&first_batch(2, 3)).unwrap();
    store
}

#[test]
fn a_read_gives_whole_frames_from_anywhere_to_anywhere_within_its_bytes() {
    let disk = SimDisk::default();
    let store = tens(&disk);
    let pages = store.pages();
    for after in [0, 1, 5, 9, 10, 11, 55, 99, 100, 101] {
        for upto in [0, after, after + 1, 9, 10, 11, 57, 99, 100, 1_000] {
            for bytes_max in [0, 1, 400, 1_500, 6_000, usize::MAX] {
                let mut out = b"before".to_vec();
                let page = pages.read(1, after, upto, bytes_max, &mut out).unwrap();
                let mut expected = b"before".to_vec();
                let mut last = after;
                while last < upto.min(100) {
                    let next = event(1, last + 1);
                    if after < last && bytes_max < expected.len() - 6 + next.len() {
                        break;
                    }
                    expected.extend_from_slice(&next);
                    last += 1;
                }
                assert_eq!(page, Page::UpTo(last), "{after} to {upto} in {bytes_max}");
                assert!(out == expected, "{after} to {upto} in {bytes_max}");
            }
        }
    }
    assert_eq!(pages.read(9, 0, 5, 10, &mut Vec::new()).unwrap(), Page::UpTo(0));
}

#[test]
fn since_finds_the_first_event_of_a_time_or_later() {
    let disk = SimDisk::default();
    let mut store = tens(&disk);
    let check = |store: &Database, first: u64| {
        for time_ms in time(0) - 1..=time(100) + 1 {
            let expected = (first..=100).find(|seq| time_ms <= time(*seq)).unwrap_or(101);
            assert_eq!(store.pages().since(1, time_ms).unwrap(), expected, "{time_ms}");
        }
        assert_eq!(store.pages().since(1, 0).unwrap(), first);
        assert_eq!(store.pages().since(1, u64::MAX).unwrap(), 101);
        assert_eq!(store.pages().since(9, 5).unwrap(), 1);
    };
    check(&store, 1);
    let policy = crate::config::Policy { max_events: 63, ..super::KEEP_ALL };
    let keeps = vec![crate::store::Keep { topic: 1, policy, now_ms: 0 }];
    store.commit(&Batch { keeps, ..Batch::default() }).unwrap();
    check(&store, 38);
}

/// Removes chunks behind the store's back.
pub(super) fn lose(disk: &SimDisk, firsts: &[u64]) {
    let backend = Backend::held(disk.open("landline.redb").unwrap());
    let db = redb::Builder::new().create_with_backend(backend.clone()).unwrap();
    backend.release().unwrap();
    let txn = db.begin_write().unwrap();
    for first in firsts {
        assert!(txn.open_table(EVENTS).unwrap().remove((1, *first)).unwrap().is_some());
    }
    txn.commit().unwrap();
}

#[test]
fn a_hole_is_reported_with_what_comes_after_it() {
    let disk = SimDisk::default();
    drop(tens(&disk));
    lose(&disk, &[1, 41, 51, 91]);
    let (mut store, loaded) = open(&disk).unwrap();
    assert_eq!(loaded.warnings.len(), 2, "{:?}", loaded.warnings);
    let topic = loaded.topics.iter().find(|topic| topic.id == 1);
    assert_eq!(topic.map(|topic| topic.tail), Some(100), "a sequence would be given out again");
    let pages = store.pages();
    let damaged = |first| Page::Missing { first, why: Missing::Damaged };
    for (after, expected) in [
        (0, damaged(11)),
        (10, Page::UpTo(40)),
        (45, damaged(61)),
        (40, damaged(61)),
        (60, Page::UpTo(90)),
        (90, damaged(101)),
        (100, Page::UpTo(100)),
    ] {
        let found = pages.read(1, after, 100, usize::MAX, &mut Vec::new()).unwrap();
        assert_eq!(found, expected, "after {after}");
    }
    for seq in (11..=40).chain(61..=90).step_by(2) {
        assert!(pages.since(1, time(seq)).unwrap() <= seq, "{seq} is passed over");
    }
    store.commit(&runs([run(1, 101, 3)])).unwrap();
    assert_eq!(read_all(&*pages, 1, 100, 103), events(1, 101, 103));
}

#[test]
fn a_topic_whose_events_are_all_lost_goes_on_where_it_ended() {
    let disk = SimDisk::default();
    drop(tens(&disk));
    let firsts: Vec<u64> = (1..=91).step_by(10).collect();
    lose(&disk, &firsts);
    let (mut store, loaded) = open(&disk).unwrap();
    let topic = &loaded.topics[1];
    assert_eq!((topic.id, topic.first, topic.tail, topic.bytes), (1, 101, 100, 0));
    let [warning] = &loaded.warnings[..] else { unreachable!("{:?}", loaded.warnings) };
    assert!(warning.starts_with("the events 1 to 100 of topic"), "{warning}");
    store.commit(&runs([run(1, 101, 3)])).unwrap();
    assert_eq!(read_all(&*store.pages(), 1, 100, 103), events(1, 101, 103));
}

#[test]
fn a_read_that_fails_says_so_and_spoils_nothing() {
    let disk = SimDisk::default();
    let mut store = tens(&disk);
    store.close().unwrap();
    drop(store);
    let (store, _) = open(&disk).unwrap();
    disk.fail(Some(Fault { step: Step::Read, nth: 1, error: ErrorKind::Other, forever: false }));
    let mut failed = 0;
    for after in 0..100 {
        match store.pages().read(1, after, 100, 1, &mut Vec::new()) {
            Ok(page) => assert_eq!(page, Page::UpTo(after + 1)),
            Err(error) => {
                assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
                failed += 1;
            }
        }
    }
    // What is in the cache never asks the disk.
    assert!(failed <= 1, "{failed}");
}

#[test]
fn reading_goes_on_while_another_thread_writes_and_recovers() {
    let disk = SimDisk::default();
    let mut store = tens(&disk);
    let (committed, done) = (AtomicU64::new(100), AtomicBool::new(false));
    let pages = store.pages();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let (pages, committed, done) = (pages.clone(), &committed, &done);
                scope.spawn(move || {
                    let (mut at, mut reads) = (0, 0_u64);
                    while !done.load(Ordering::Acquire) || at < 3_000 {
                        let upto = committed.load(Ordering::Acquire);
                        let mut out = Vec::new();
                        match pages.read(1, at, upto, 4_000 + reader, &mut out) {
                            Ok(Page::UpTo(seq)) => {
                                assert!(at < seq || at == upto, "{at} {seq} {upto}");
                                assert!(out == events(1, at + 1, seq), "after {at}");
                                let again = seq == upto && upto < 3_000;
                                at = if again { seq / 2 } else { seq };
                            }
                            Ok(missing @ Page::Missing { .. }) => unreachable!("{missing:?}"),
                            Err(StoreError::Closed) => thread::yield_now(),
                            Err(error) => unreachable!("{error}"),
                        }
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for first in (101..3_000).step_by(10) {
            if first % 500 == 1 {
                store.recover(&[]).unwrap();
            }
            store.commit(&runs([run(1, first, 10)])).unwrap();
            committed.store(first + 9, Ordering::Release);
        }
        done.store(true, Ordering::Release);
        for reader in readers {
            assert!(10 < reader.join().unwrap());
        }
    });
    store.close().unwrap();
    let closed = pages.read(1, 0, 9, 9, &mut Vec::new()).unwrap_err();
    assert!(matches!(closed, StoreError::Closed), "{closed:?}");
}
