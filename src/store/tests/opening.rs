//! What is found in a directory: nothing, another relay, something foreign, something newer.

use std::{env, fs, io::ErrorKind, path::PathBuf, process, sync::Arc};

use redb::TableDefinition;

use super::{events, first_batch, open, read_all, run, runs};
use crate::store::{
    Database, Loaded, Store, StoreError, StoreSettings,
    backend::Backend,
    disk::{Directory, Disk},
    record,
    sim::{Fault, SimDisk, Step},
};

const FILE: &str = "landline.redb";

/// A disk with a store that was closed in good order.
fn closed() -> (SimDisk, Loaded) {
    let disk = SimDisk::default();
    let (mut store, loaded) = open(&disk).unwrap();
    store.commit(&first_batch(1, 100)).unwrap();
    store.write(&runs([run(1, 101, 5)])).unwrap();
    drop(store);
    (disk, loaded)
}

/// Opens a disk on which the store is damaged: it must begin anew and keep what it found.
#[track_caller]
fn moves_aside(disk: &SimDisk, old: &Loaded) {
    let found = disk.bytes(FILE).unwrap();
    let (mut store, loaded) = open(disk).unwrap();
    assert_ne!(loaded.seed, old.seed);
    assert!(loaded.topics.is_empty());
    let [warning] = &loaded.warnings[..] else { unreachable!("{:?}", loaded.warnings) };
    assert!(warning.contains("is damaged") && warning.contains("new epoch"), "{warning}");
    let names = disk.names();
    let aside = names.iter().find(|name| name.starts_with("landline.redb.corrupt-")).unwrap();
    assert!(warning.contains(aside.as_str()), "{warning}");
    assert!(disk.bytes(aside).unwrap() == found, "what was moved aside was changed");
    assert!(names.iter().any(|name| name.starts_with("journal.corrupt-")), "{names:?}");
    store.commit(&first_batch(1, 3)).unwrap();
    assert_eq!(read_all(&*store.pages(), 1, 0, 3), events(1, 1, 3));
}

#[test]
fn a_foreign_file_is_moved_aside_with_its_journal() {
    let (disk, old) = closed();
    disk.put(FILE, b"this is somebody's diary\n".repeat(1_000));
    moves_aside(&disk, &old);
}

#[test]
fn a_truncated_file_is_moved_aside_and_an_empty_one_filled() {
    let (disk, old) = closed();
    let whole = disk.bytes(FILE).unwrap();
    for len in [1, 8, 9, 100, 320, 511, 512, 4_095, 4_096, 8_192, whole.len() / 2] {
        let disk = disk.killed();
        disk.put(FILE, whole[..len].to_vec());
        moves_aside(&disk, &old);
    }
    let (disk, _) = closed();
    disk.put(FILE, Vec::new());
    let (_, loaded) = open(&disk).unwrap();
    assert_ne!(loaded.seed, old.seed);
    assert_eq!(loaded.warnings, [""; 0]);
    assert!(loaded.topics.is_empty(), "the journal of another database was applied");
}

#[test]
fn a_file_of_a_newer_format_is_refused_and_left_as_it_is() {
    const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
    let (disk, _) = closed();
    let backend = Backend::held(disk.open(FILE).unwrap());
    let db = redb::Builder::new().create_with_backend(backend.clone()).unwrap();
    backend.release().unwrap();
    let txn = db.begin_write().unwrap();
    let newer = record::encode_numbers("format", &[2]);
    txn.open_table(META).unwrap().insert("format", newer.as_slice()).unwrap();
    txn.commit().unwrap();
    drop(db);
    let (before, names) = (disk.bytes(FILE).unwrap(), disk.names());

    let refused = open(&disk).unwrap_err();

    assert!(matches!(refused, StoreError::Format { found: 2, known: 1, .. }), "{refused:?}");
    assert_eq!(
        refused.to_string(),
        "(memory)/landline.redb has format 2, this build reads up to 1"
    );
    assert!(disk.bytes(FILE).unwrap() == before);
    assert_eq!(disk.names(), names);
}

#[test]
fn a_disk_that_cannot_be_read_is_not_a_damaged_store() {
    let (disk, old) = closed();
    let reads = {
        let disk = disk.killed();
        open(&disk).unwrap();
        disk.count(Step::Read)
    };
    for nth in 1..=reads {
        let disk = disk.killed();
        let names = disk.names();
        disk.fail(Some(Fault { step: Step::Read, nth, error: ErrorKind::Other, forever: false }));
        match open(&disk) {
            Ok((_, loaded)) => assert_eq!(loaded.seed, old.seed, "read {nth}"),
            Err(error) => assert!(matches!(error, StoreError::Io { .. }), "read {nth}: {error:?}"),
        }
        assert_eq!(disk.names(), names, "read {nth}");
        let (store, loaded) = open(&disk).unwrap();
        assert_eq!((loaded.seed, loaded.topics[0].tail), (old.seed, 105), "read {nth}");
        assert_eq!(read_all(&*store.pages(), 1, 0, 105), events(1, 1, 105));
    }
}

/// A directory of its own, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("landline-store-{}-{name}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn open_at(path: PathBuf) -> Result<(Database, Loaded), StoreError> {
    Database::open(Arc::new(Directory::new(path)), StoreSettings::default())
}

#[test]
fn a_real_directory_is_created_and_serves_one_store_at_a_time() {
    let scratch = Scratch::new("real");
    let path = scratch.0.join("data/of/relay");
    let (mut store, loaded) = open_at(path.clone()).unwrap();
    store.commit(&first_batch(1, 100)).unwrap();
    store.write(&runs([run(1, 101, 5)])).unwrap();

    let second = open_at(path.clone()).unwrap_err();

    assert!(matches!(second, StoreError::Locked { .. }), "{second:?}");
    assert!(second.to_string().contains("data/of/relay is in use"), "{second}");
    assert!(1024 * 1024 < store.file_bytes());
    drop(store);
    let (store, again) = open_at(path).unwrap();
    assert_eq!((again.seed, again.topics[0].tail), (loaded.seed, 105));
    assert_eq!(read_all(&*store.pages(), 1, 0, 105), events(1, 1, 105));
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let scratch = Scratch::new("unusable");
    let file = scratch.0.join("file");
    fs::write(&file, "x").unwrap();
    let holds_a_directory = scratch.0.join("odd");
    fs::create_dir_all(holds_a_directory.join(FILE)).unwrap();
    for path in [file.clone(), file.join("below"), "/proc/nowhere".into(), holds_a_directory] {
        let error = open_at(path.clone()).unwrap_err();
        assert!(matches!(error, StoreError::Directory { .. }), "{}: {error:?}", path.display());
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}
