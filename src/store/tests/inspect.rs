//! What an operator is told of a store, sound and damaged, and that looking changes nothing.

use super::{KEEP_ALL, events, first_batch, name, new_topic, open, position, run, runs};
use crate::{
    config::Policy,
    store::{
        Batch, Keep, Store, StoreError,
        inspect::{Compacted, check, compact, info},
        sim::SimDisk,
        tests::reading::lose,
    },
};

/// Two topics, a position, keys and something in the journal; the process died.
fn killed() -> SimDisk {
    let disk = SimDisk::default();
    let (mut store, _) = open(&disk).unwrap();
    let mut batch = first_batch(1, 10);
    batch.runs.extend([run(1, 11, 10), run(1, 21, 10)]);
    batch.positions.push(position(1, 3));
    store.commit(&batch).unwrap();
    store.commit(&first_batch(2, 5)).unwrap();
    store.write(&runs([run(1, 31, 4)])).unwrap();
    disk.killed()
}

fn everything(disk: &SimDisk) -> Vec<(String, Option<Vec<u8>>)> {
    let names = disk.names().into_iter();
    names.map(|name| (name.clone(), disk.bytes(&name))).collect()
}

#[test]
fn looking_says_what_is_there_and_changes_nothing() {
    let disk = killed();
    let before = everything(&disk);

    let found = info(&disk).unwrap();
    let report = check(&disk).unwrap();

    assert!(everything(&disk) == before, "looking has changed something");
    let tails: Vec<_> = found.topics.iter().map(|topic| (topic.id, topic.tail)).collect();
    assert_eq!(tails, [(1, 30), (2, 5)]);
    assert_eq!((found.format, found.consumers, found.keys), (1, 1, 11));
    assert_eq!((found.journal_events, found.warnings.len()), (4, 0));
    assert!(0 < found.journal_bytes && 1024 * 1024 <= found.ballast_bytes);
    assert_eq!((report.topics, report.chunks, report.events), (2, 4, 35));
    assert_eq!(report.bytes, (events(1, 1, 30).len() + events(2, 1, 5).len()) as u64);
    assert_eq!(report.problems, [""; 0]);
}

#[test]
fn a_check_names_each_thing_that_is_damaged() {
    let disk = killed();
    drop(open(&disk).unwrap());
    let mut bytes = disk.bytes("landline.redb").unwrap();
    let chunk = events(2, 1, 5);
    for at in 0..bytes.len() - chunk.len() {
        if bytes[at..].starts_with(&chunk) {
            bytes[at + 100] ^= 1;
        }
    }
    disk.put("landline.redb", bytes);
    lose(&disk, &[11]);

    let problems = check(&disk).unwrap().problems;

    let topic = |id| name(id).as_str().to_owned();
    for expected in [
        format!("topic {}: between the events 11 and 21 is a hole", topic(1)),
        format!("topic {}: the chunk at event 1 is damaged", topic(2)),
        "pages of the file are damaged".to_owned(),
    ] {
        let is_said = problems.iter().any(|problem| problem.starts_with(&expected));
        assert!(is_said, "{expected} is not in {problems:#?}");
    }
}

#[test]
fn compacting_gives_back_what_was_removed_and_keeps_the_rest() {
    let disk = SimDisk::default();
    let (mut store, _) = open(&disk).unwrap();
    let many = (0..400).map(|at| run(1, at * 20 + 1, 20));
    store.commit(&Batch { topics: vec![new_topic(1)], ..runs(many) }).unwrap();
    let policy = Policy { max_events: 100, ..KEEP_ALL };
    let keeps = vec![Keep { topic: 1, policy, now_ms: 0 }];
    while store.commit(&Batch { keeps: keeps.clone(), ..Batch::default() }).unwrap().more {}
    let busy = compact(&disk).unwrap_err();
    assert!(matches!(busy, StoreError::Locked { .. }), "{busy:?}");
    drop(store);

    let Compacted { bytes_before, bytes_after } = compact(&disk).unwrap();

    assert!(bytes_after * 2 < bytes_before, "{bytes_before} to {bytes_after}");
    assert_eq!(disk.bytes("landline.redb").unwrap().len() as u64, bytes_after);
    let (store, _) = open(&disk).unwrap();
    let read = super::read_all(&*store.pages(), 1, 7_900, 8_000);
    assert_eq!(read, events(1, 7_901, 8_000));
}

#[test]
fn where_no_store_is_none_is_made() {
    let disk = SimDisk::default();
    for error in [info(&disk).unwrap_err(), check(&disk).unwrap_err(), compact(&disk).unwrap_err()]
    {
        assert!(matches!(error, StoreError::Directory { .. }), "{error:?}");
    }
    assert!(disk.names().is_empty());
}
