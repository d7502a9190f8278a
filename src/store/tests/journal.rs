//! The journal, cut, damaged, and back from the dead.

use super::{event, events, first_batch, new_topic, open, read_all, run, runs};
use crate::store::{Batch, Database, Loaded, Store, sim::SimDisk};

const JOURNAL: &str = "journal";

/// A store with three events of topic 1 committed, and the journal after each of three writes.
fn written() -> (SimDisk, Database, Vec<Vec<u8>>) {
    let disk = SimDisk::default();
    let (mut store, _) = open(&disk).unwrap();
    store.commit(&first_batch(1, 3)).unwrap();
    let second = Batch { topics: vec![new_topic(2)], ..runs([run(1, 6, 1), run(2, 1, 2)]) };
    let mut journals = Vec::new();
    for batch in [runs([run(1, 4, 2)]), second, runs([run(2, 3, 4)])] {
        store.write(&batch).unwrap();
        journals.push(disk.bytes(JOURNAL).unwrap());
    }
    assert_eq!(store.written_bytes(), journals[2].len() as u64);
    (disk, store, journals)
}

/// Opens an image of `disk` in which the journal is another one.
fn open_with(disk: &SimDisk, journal: Vec<u8>) -> (SimDisk, Database, Loaded) {
    let image = disk.killed();
    image.put(JOURNAL, journal);
    let (store, loaded) = open(&image).unwrap();
    (image, store, loaded)
}

fn tail(loaded: &Loaded, topic: u64) -> Option<u64> {
    loaded.topics.iter().find(|found| found.id == topic).map(|found| found.tail)
}

#[test]
fn a_journal_cut_anywhere_is_applied_up_to_its_last_whole_record() {
    let (disk, _store, journals) = written();
    let whole = &journals[2];
    for len in 0..=whole.len() {
        let (image, store, loaded) = open_with(&disk, whole[..len].to_vec());
        let records = journals.iter().filter(|journal| journal.len() <= len).count();
        let expected =
            [(Some(3), None), (Some(5), None), (Some(6), Some(2)), (Some(6), Some(6))][records];
        assert_eq!((tail(&loaded, 1), tail(&loaded, 2)), expected, "cut to {len}");
        assert_eq!(loaded.warnings, [""; 0], "cut to {len}");
        assert_eq!(image.bytes(JOURNAL).unwrap(), b"");
        assert_eq!(store.written_bytes(), 0);
        if len == whole.len() {
            assert_eq!(loaded.keys.len(), 4);
            assert_eq!(read_all(&*store.pages(), 1, 0, 6), events(1, 1, 6));
            assert_eq!(read_all(&*store.pages(), 2, 0, 6), events(2, 1, 6));
        }
    }
}

#[test]
fn what_stands_behind_garbage_is_ignored_and_counted() {
    let (disk, _store, journals) = written();
    let [first, second, _] = [0, 1, 2].map(|at| journals[at].len());
    for (at, expected) in [(first - 1, 3), (second - 1, 5)] {
        let mut journal = journals[2].clone();
        journal[at] ^= 1;
        let ignored = journal.len() - if at < first { 0 } else { first };
        let (_, _, loaded) = open_with(&disk, journal);
        assert_eq!(tail(&loaded, 1), Some(expected));
        let [warning] = &loaded.warnings[..] else { unreachable!("{:?}", loaded.warnings) };
        assert!(warning.starts_with(&format!("{ignored} bytes")), "{warning}, not {ignored}");
    }
    // Where the last one is damaged, it was being written when the power failed.
    let mut journal = journals[2].clone();
    *journal.last_mut().unwrap() ^= 1;
    let (_, _, loaded) = open_with(&disk, journal);
    assert_eq!((tail(&loaded, 2), loaded.warnings.len()), (Some(2), 0));
}

#[test]
fn an_old_journal_that_is_back_changes_nothing() {
    let (disk, mut store, journals) = written();
    let written = [run(1, 4, 2), run(1, 6, 1), run(2, 1, 2), run(2, 3, 4)];
    store.commit(&Batch { topics: vec![new_topic(2)], ..runs(written) }).unwrap();
    assert_eq!((store.written_bytes(), disk.bytes(JOURNAL).unwrap().len()), (0, 0));
    store.commit(&Batch { forgotten: vec![2], ..Batch::default() }).unwrap();
    for journal in &journals {
        let (_, _, loaded) = open_with(&disk, journal.clone());
        assert_eq!((tail(&loaded, 1), tail(&loaded, 2)), (Some(6), None));
        assert_eq!(loaded.warnings, [""; 0]);
    }
    // And with what was written over its beginning since.
    store.write(&runs([run(1, 7, 1)])).unwrap();
    let mut mixed = disk.bytes(JOURNAL).unwrap();
    assert!(mixed.len() < journals[0].len());
    mixed.extend_from_slice(&journals[2][mixed.len()..]);
    let (_, store, loaded) = open_with(&disk, mixed);
    assert_eq!((tail(&loaded, 1), tail(&loaded, 2)), (Some(7), None));
    assert_eq!(read_all(&*store.pages(), 1, 6, 7), event(1, 7));
}

#[test]
fn a_commit_that_leaves_out_what_was_written_is_refused() {
    let (disk, mut store, _) = written();
    store.commit(&runs([run(1, 4, 2)])).unwrap_err();
    drop(store);
    let (_, loaded) = open(&disk).unwrap();
    assert_eq!((tail(&loaded, 1), tail(&loaded, 2)), (Some(6), Some(6)));
}

#[test]
fn a_batch_that_does_not_go_on_where_the_topic_ends_is_refused() {
    let mut shorter = run(1, 4, 1);
    shorter.count = 0;
    let known = Batch { topics: vec![new_topic(1)], ..Batch::default() };
    let unknown = runs([run(2, 1, 1)]);
    for batch in [runs([run(1, 3, 1)]), runs([run(1, 5, 1)]), runs([shorter]), known, unknown] {
        for is_commit in [true, false] {
            let (mut store, _) = open(&SimDisk::default()).unwrap();
            store.commit(&first_batch(1, 3)).unwrap();
            let refused = if is_commit {
                store.commit(&batch).is_err()
            } else {
                store.write(&batch).is_err()
            };
            assert!(refused, "{is_commit} {batch:?}");
        }
    }
}
