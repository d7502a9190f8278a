//! The shared state: what of it is there after a restart, and what is said where it is damaged.

use redb::{ReadableTable, TableHandle};

use super::{epoch, first_batch, open, runs, state, value};
use crate::{
    name::Name,
    store::{
        Batch, Database, Loaded, StateBatch, Store, StoreSettings, StoredState,
        backend::Backend,
        disk::Disk,
        inspect::{check, info},
        sim::SimDisk,
        tables::{self, STATE},
    },
};

const FILE: &str = "landline.redb";

fn batch(state: StateBatch) -> Batch {
    Batch { state: Some(Box::new(state)), ..Batch::default() }
}

/// Three keys, one of them deleted; and a topic.
fn filled(disk: &SimDisk) -> Database {
    let (mut store, loaded) = open(disk).unwrap();
    assert!(loaded.state.is_none());
    store.commit(&first_batch(1, 5)).unwrap();
    let changes = vec![value("a", 3, false), value("b/\u{e9}", 4, false), value("c", 5, true)];
    store.commit(&batch(StateBatch { horizon: 2, upto: 6, ..state(changes) })).unwrap();
    store
}

#[track_caller]
fn stored(loaded: Loaded) -> StoredState {
    assert_eq!(loaded.warnings, [""; 0]);
    loaded.state.expect("the state was stored")
}

/// Changes the file behind the store's back.
fn tamper(disk: &SimDisk, change: impl FnOnce(&redb::WriteTransaction)) {
    let backend = Backend::held(disk.open(FILE).unwrap());
    let db = redb::Builder::new().create_with_backend(backend.clone()).unwrap();
    backend.release().unwrap();
    let txn = db.begin_write().unwrap();
    change(&txn);
    txn.commit().unwrap();
}

#[test]
fn the_state_is_there_after_a_restart_with_everything_that_belongs_to_it() {
    let disk = SimDisk::default();
    drop(filled(&disk));

    let loaded = stored(open(&disk).unwrap().1);

    assert_eq!((loaded.epoch, loaded.horizon, loaded.upto), (epoch(99), 2, 6));
    let expected = [value("a", 3, false), value("b/\u{e9}", 4, false), value("c", 5, true)];
    assert_eq!(loaded.entries, expected);
    assert!(!loaded.is_damaged);
    assert_eq!(info(&disk).unwrap().state_keys, 2);
    assert_eq!(check(&disk).unwrap().problems, [""; 0]);
}

#[test]
fn what_is_replaced_or_forgotten_is_gone_and_a_whole_state_replaces_all() {
    let disk = SimDisk::default();
    let mut store = filled(&disk);
    let changes = vec![value("a", 7, false), value("a", 8, true)];
    let forgotten = vec![Name::parse("c").unwrap(), Name::parse("never").unwrap()];
    store.commit(&batch(StateBatch { horizon: 5, forgotten, ..state(changes) })).unwrap();
    drop(store);
    let (mut store, loaded) = open(&disk).unwrap();
    let loaded = stored(loaded);
    assert_eq!(loaded.entries, [value("a", 8, true), value("b/\u{e9}", 4, false)]);
    assert_eq!((loaded.horizon, loaded.upto), (5, 8));

    let whole = StateBatch { is_whole: true, ..state(vec![value("d", 9, false)]) };
    store.commit(&batch(whole)).unwrap();
    drop(store);

    let loaded = stored(open(&disk).unwrap().1);
    assert_eq!((loaded.entries, loaded.upto), (vec![value("d", 9, false)], 9));
}

#[test]
fn a_commit_without_state_leaves_it_and_a_write_does_not_look_at_it() {
    let disk = SimDisk::default();
    let mut store = filled(&disk);
    store.commit(&runs([super::run(1, 6, 2)])).unwrap();
    let written = Batch { runs: vec![super::run(1, 8, 2)], ..batch(state(Vec::new())) };
    store.write(&written).unwrap();

    // The process dies; what was written is in the journal only.
    let (_, loaded) = open(&disk.killed()).unwrap();

    assert_eq!(loaded.topics[0].tail, 9);
    let loaded = stored(loaded);
    assert_eq!((loaded.entries.len(), loaded.upto), (3, 6));
}

#[test]
fn a_damaged_key_is_left_out_and_told() {
    let disk = SimDisk::default();
    drop(filled(&disk));
    tamper(&disk, |txn| {
        let mut table = txn.open_table(STATE).unwrap();
        let mut row = table.get("a").unwrap().unwrap().value().to_vec();
        *row.last_mut().unwrap() ^= 1;
        table.insert("a", row.as_slice()).unwrap();
    });

    let (mut store, loaded) = open(&disk).unwrap();

    let [warning] = &loaded.warnings[..] else { unreachable!("{:?}", loaded.warnings) };
    assert!(warning.starts_with("1 keys of the shared state are damaged"), "{warning}");
    let found = loaded.state.unwrap();
    assert!(found.is_damaged);
    assert_eq!(found.entries, [value("b/\u{e9}", 4, false), value("c", 5, true)]);
    assert_eq!((found.epoch, found.upto), (epoch(99), 6), "no version is given out again");
    // Who goes on from there replaces all of it, and then nothing is damaged any more.
    let whole = StateBatch { is_whole: true, epoch: epoch(98), ..state(found.entries) };
    store.commit(&batch(whole)).unwrap();
    drop(store);
    assert_eq!(stored(open(&disk).unwrap().1).epoch, epoch(98));
    assert_eq!(check(&disk).unwrap().problems, [""; 0]);
}

#[test]
fn without_its_place_the_state_is_damaged_and_its_values_are_kept() {
    for is_lost in [false, true] {
        let disk = SimDisk::default();
        drop(filled(&disk));
        tamper(&disk, |txn| {
            let mut meta = txn.open_table(tables::META).unwrap();
            if is_lost {
                meta.remove("state").unwrap().unwrap();
            } else {
                meta.insert("state", &b"nonsense"[..]).unwrap();
            }
        });

        let loaded = open(&disk).unwrap().1;

        assert!(loaded.warnings[0].contains("as a whole is damaged"), "{:?}", loaded.warnings);
        let found = loaded.state.unwrap();
        assert!(found.is_damaged && found.epoch != epoch(99));
        assert_eq!((found.entries.len(), found.upto), (3, 5));
        assert!(!check(&disk).unwrap().problems.is_empty());
    }
}

#[test]
fn a_store_of_before_there_was_a_state_has_none() {
    let disk = SimDisk::default();
    let (mut store, _) = open(&disk).unwrap();
    store.commit(&first_batch(1, 5)).unwrap();
    drop(store);
    tamper(&disk, |txn| {
        let names: Vec<_> = txn.list_tables().unwrap().collect();
        assert!(names.iter().all(|table| table.name() != "state"), "it is as it was before");
    });

    let (mut store, loaded) = open(&disk).unwrap();

    assert!(loaded.state.is_none() && loaded.warnings.is_empty());
    assert_eq!((loaded.topics[0].tail, info(&disk.killed()).unwrap().state_keys), (5, 0));
    store.commit(&batch(state(vec![value("a", 1, false)]))).unwrap();
    drop(store);
    assert_eq!(stored(open(&disk).unwrap().1).entries.len(), 1);
}

#[test]
fn a_state_that_is_not_wanted_is_not_read_and_stays() {
    let disk = SimDisk::default();
    drop(filled(&disk));
    let settings = StoreSettings { reads_state: false, ..StoreSettings::default() };
    let (mut store, loaded) = Database::open(std::sync::Arc::new(disk.clone()), settings).unwrap();
    assert!(loaded.state.is_none());
    store.commit(&runs([super::run(1, 6, 2)])).unwrap();
    drop(store);

    assert_eq!(stored(open(&disk).unwrap().1).entries.len(), 3);
}

#[test]
fn a_recovery_says_what_is_there_of_the_state() {
    let disk = SimDisk::default();
    let mut store = filled(&disk);
    let loaded = store.recover(&[]).unwrap();
    assert_eq!(stored(loaded).entries.len(), 3);
}
