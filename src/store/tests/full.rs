//! A full disk: nothing is lost, reading goes on, and what may go makes room.

use super::{KEEP_ALL, events, first_batch, open, read_all, run, runs};
use crate::{
    config::Policy,
    store::{Database, Keep, Store, StoreError, sim::SimDisk},
};

const BALLAST: u64 = 1024 * 1024;

/// A store that was written to until the disk was full, and its last committed event.
fn filled(disk: &SimDisk) -> (Database, u64) {
    let (mut store, _) = open(disk).unwrap();
    store.commit(&first_batch(1, 20)).unwrap();
    disk.limit(Some(disk.used() + 1024 * 1024));
    let mut tail = 20;
    let error = loop {
        match store.commit(&runs([run(1, tail + 1, 20)])) {
            Ok(_) => tail += 20,
            Err(error) => break error,
        }
        assert!(tail < 100_000, "the disk has no end");
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    (store, tail)
}

fn keep(max_events: u64) -> [Keep; 1] {
    [Keep { topic: 1, policy: Policy { max_events, ..KEEP_ALL }, now_ms: 0 }]
}

#[test]
fn a_full_disk_is_recovered_from_by_what_may_go() {
    let disk = SimDisk::default();
    let (mut store, tail) = filled(&disk);
    assert_eq!(read_all(&*store.pages(), 1, 0, tail), events(1, 1, tail));

    let loaded = store.recover(&keep(1_000)).unwrap();

    let topic = &loaded.topics[0];
    assert!(topic.tail == tail || topic.tail == tail + 20, "{}, not {tail}", topic.tail);
    assert_eq!(topic.first, topic.tail - 999);
    assert_eq!(disk.bytes("ballast").map(|bytes| bytes.len() as u64), Some(BALLAST));
    let (first, mut tail) = (topic.first, topic.tail);
    assert_eq!(read_all(&*store.pages(), 1, first - 1, tail), events(1, first, tail));
    for _ in 0..200 {
        let mut batch = runs([run(1, tail + 1, 20)]);
        batch.keeps = keep(1_000).to_vec();
        store.commit(&batch).unwrap();
        tail += 20;
    }
    assert_eq!(read_all(&*store.pages(), 1, tail - 1_000, tail), events(1, tail - 999, tail));
}

#[test]
fn a_disk_that_stays_full_is_read_and_loses_nothing() {
    let disk = SimDisk::default();
    let (mut store, mut tail) = filled(&disk);
    // Nothing may go; others take what the store gives back.
    disk.limit(Some(disk.used() - BALLAST));
    for _ in 0..3 {
        let error = store.recover(&[]).unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        assert_eq!(read_all(&*store.pages(), 1, 0, tail), events(1, 1, tail));
        assert_eq!(disk.bytes("ballast"), None);
    }
    disk.limit(None);
    let loaded = store.recover(&[]).unwrap();
    assert!(tail <= loaded.topics[0].tail);
    tail = loaded.topics[0].tail;
    store.commit(&runs([run(1, tail + 1, 5)])).unwrap();
    assert_eq!(read_all(&*store.pages(), 1, 0, tail + 5), events(1, 1, tail + 5));
}

#[test]
fn a_full_disk_keeps_what_was_only_written() {
    let disk = SimDisk::default();
    let (mut store, _) = open(&disk).unwrap();
    store.commit(&first_batch(1, 20)).unwrap();
    store.commit(&runs((1..100).map(|at| run(1, at * 20 + 1, 20)))).unwrap();
    disk.limit(Some(disk.used() + 64 * 1024));
    let mut tail = 2_000;
    while store.write(&runs([run(1, tail + 1, 20)])).is_ok() {
        tail += 20;
        assert!(tail < 100_000, "the disk has no end");
    }
    let loaded = store.recover(&keep(500)).unwrap();
    assert!(tail <= loaded.topics[0].tail && 2_100 < tail, "{tail} {}", loaded.topics[0].tail);
    assert_eq!(read_all(&*store.pages(), 1, tail - 400, tail), events(1, tail - 399, tail));
    assert_eq!(store.written_bytes(), 0);
}

#[test]
fn a_disk_that_is_nearly_full_when_the_store_is_opened_is_warned_of() {
    let disk = SimDisk::default();
    drop(open(&disk).unwrap());
    let disk = disk.killed();
    crate::store::disk::Disk::remove(&disk, "ballast").unwrap();
    disk.limit(Some(disk.used() + BALLAST / 2));
    let (mut store, loaded) = open(&disk).unwrap();
    let [warning] = &loaded.warnings[..] else { unreachable!("{:?}", loaded.warnings) };
    assert!(warning.contains("nearly full"), "{warning}");
    store.commit(&first_batch(1, 3)).unwrap();
}

/// Appends events until the disk is full; the last one that was committed.
fn fill(store: &mut Database, mut tail: u64) -> u64 {
    while store.commit(&runs([run(1, tail + 1, 20)])).is_ok() {
        tail += 20;
        assert!(tail < 100_000, "the disk has no end");
    }
    tail
}

/// The file has places that the disk has not backed yet, and redb may take those before it takes
/// free pages: until the file is compact, free pages are no room.
#[test]
fn room_that_was_made_before_is_found_when_the_disk_is_full() {
    let disk = SimDisk::default();
    let (mut store, full) = filled(&disk);
    store.recover(&[]).unwrap();
    let tail = store.recover(&keep(1_000)).unwrap().topics[0].tail;
    let mut first = tail - 999;
    fill(&mut store, tail);

    let tail = store.recover(&[]).unwrap().topics[0].tail;
    let end = fill(&mut store, tail);

    // As many events as there were, less what a copy of a page and the ballast take.
    assert!(full * 3 / 4 < end - first, "{full} events at first, then {}", end - first);
    first = store.recover(&[]).unwrap().topics[0].first;
    assert_eq!(read_all(&*store.pages(), 1, first - 1, end), events(1, first, end));
}
