//! The tables of the database, and how its file is made and opened.

use std::{io, sync::Arc};

use redb::{ReadableDatabase, TableDefinition};

use crate::{
    base::random,
    store::{
        StoreError, StoreSettings, TopicId,
        backend::{Backend, failed, guarded, io_failed, open_failed},
        disk::Disk,
        record::{self, Header},
    },
};

/// By topic and sequence of the first event: chunks.
pub(super) const EVENTS: TableDefinition<'static, (TopicId, u64), &[u8]> =
    TableDefinition::new("events");
/// By number: topics.
pub(super) const TOPICS: TableDefinition<'static, TopicId, &[u8]> = TableDefinition::new("topics");
/// By topic and sequence: idempotency keys.
pub(super) const KEYS: TableDefinition<'static, (TopicId, u64), &[u8]> =
    TableDefinition::new("keys");
/// By topic and name: what consumers acknowledged.
pub(super) const CONSUMERS: TableDefinition<'static, (TopicId, &str), &[u8]> =
    TableDefinition::new("consumers");
/// By key: what the shared state has. Made by the first commit that has something for it.
pub(super) const STATE: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("state");
/// What the store knows of itself.
pub(super) const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

const FORMAT_KEY: &str = "format";
const HEADER_KEY: &str = "store";

/// Name of the database's file.
pub(super) const FILE: &str = "landline.redb";
/// What it is called until it is complete, so that a file of the other name always is.
const UNFINISHED: &str = "landline.redb.new";

/// What the tables look like. A build reads this format and, by way of [`upgrade`], all older ones.
pub(super) const FORMAT: u64 = 1;

const OPEN: &str = "open the store";
const CREATE: &str = "create the store";

/// An open database file.
#[derive(Debug)]
pub(super) struct File {
    pub(super) db: Arc<redb::Database>,
    backend: Backend,
}

impl File {
    /// Opens the database, and creates it where there is none. Until [`File::release`] nothing is
    /// written to one that was there.
    pub(super) fn open(disk: &dyn Disk, settings: &StoreSettings) -> Result<File, StoreError> {
        if disk.len(FILE).map_err(open_failed(place(disk), OPEN))?.unwrap_or(0) == 0 {
            create(disk, settings)?;
        }
        let file = open(disk, FILE, settings)?;
        match guarded(OPEN, || upgrade(disk, &file.db)) {
            Ok(()) => Ok(file),
            Err(error) => {
                file.abandon();
                Err(error)
            }
        }
    }

    /// Takes the file as what it says it is: from now on it is written to.
    pub(super) fn release(&self) -> Result<(), StoreError> {
        self.backend.release().map_err(io_failed(OPEN))
    }

    /// Lets go of a file that is to stay as it is.
    pub(super) fn abandon(self) {
        self.backend.shut();
        self.close();
    }

    /// Lets go of a file. Redb writes its last word; what fails then is made up for at the next
    /// opening.
    pub(super) fn close(self) {
        close(self.db);
    }

    /// Asks redb whether all pages are what was written. What it repairs goes nowhere unless the
    /// file was released.
    pub(super) fn is_sound(&mut self) -> Result<bool, StoreError> {
        const CHECK: &str = "check the store";
        guarded(CHECK, || match Arc::get_mut(&mut self.db) {
            Some(db) => db.check_integrity().map_err(failed(CHECK)),
            None => Ok(true),
        })
    }

    /// Looks at all of a database that nobody reads, and rebuilds what can be: which places in the
    /// file are free.
    pub(super) fn check(&mut self) -> Result<(), StoreError> {
        const CHECK: &str = "check the store";
        guarded(CHECK, || match Arc::get_mut(&mut self.db) {
            Some(db) => db.check_integrity().map(drop).map_err(failed(CHECK)),
            None => Ok(()),
        })
    }

    /// Makes a database that nobody reads as small as it goes. Returns whether anything was done.
    pub(super) fn compact(&mut self) -> Result<bool, StoreError> {
        const COMPACT: &str = "compact the store";
        guarded(COMPACT, || match Arc::get_mut(&mut self.db) {
            Some(db) => db.compact().map_err(failed(COMPACT)),
            None => Ok(false),
        })
    }
}

/// Drops a reference to a database, if it is the last one then with all that entails.
pub(super) fn close(db: Arc<redb::Database>) {
    drop(guarded(OPEN, || {
        drop(db);
        Ok(())
    }));
}

fn place(disk: &dyn Disk) -> String {
    format!("{}/{FILE}", disk.place())
}

/// Makes a complete, empty database under another name, then gives it its own. A crash in between
/// leaves nothing that must be understood.
fn create(disk: &dyn Disk, settings: &StoreSettings) -> Result<(), StoreError> {
    disk.remove(UNFINISHED).map_err(open_failed(place(disk), CREATE))?;
    let file = open(disk, UNFINISHED, settings)?;
    let made = guarded(CREATE, || {
        file.release()?;
        let txn = file.db.begin_write().map_err(failed(CREATE))?;
        txn.open_table(EVENTS).map_err(failed(CREATE))?;
        txn.open_table(TOPICS).map_err(failed(CREATE))?;
        txn.open_table(KEYS).map_err(failed(CREATE))?;
        txn.open_table(CONSUMERS).map_err(failed(CREATE))?;
        // The generation is random: a journal of an earlier database must not match.
        let (seed, generation) = (random::number(), random::number());
        put_header(&txn, Header { seed, incarnation: 0, generation })?;
        let mut meta = txn.open_table(META).map_err(failed(CREATE))?;
        let format = record::encode_numbers(FORMAT_KEY, &[FORMAT]);
        meta.insert(FORMAT_KEY, format.as_slice()).map_err(failed(CREATE))?;
        drop(meta);
        txn.commit().map_err(failed(CREATE))
    });
    file.close();
    made?;
    disk.rename(UNFINISHED, FILE).and_then(|()| disk.sync()).map_err(io_failed(CREATE))
}

fn open(disk: &dyn Disk, name: &str, settings: &StoreSettings) -> Result<File, StoreError> {
    let file = disk.open(name).map_err(open_failed(place(disk), OPEN))?;
    let backend = Backend::held(file);
    guarded(OPEN, || {
        let mut builder = redb::Builder::new();
        builder.set_cache_size(settings.cache_bytes);
        let db = builder.create_with_backend(backend.clone()).map_err(|error| {
            if let redb::DatabaseError::UpgradeRequired(found) = error {
                let found = u64::from(found);
                return StoreError::Format { file: place(disk), found, known: REDB_FORMAT };
            }
            failed(OPEN)(error)
        })?;
        Ok(File { db: Arc::new(db), backend })
    })
}

/// Writes all that the file says once more, and returns when it is on disk.
///
/// When a sync fails, the operating system forgets that what it was to write is not written: it
/// reads on as if it were, and the next sync succeeds without it. So nothing of the file can be
/// relied on until it was written anew. Nobody else may write to it meanwhile.
pub(super) fn rewrite(disk: &dyn Disk) -> Result<(), StoreError> {
    const REWRITE: &str = "write what the store says once more";
    if disk.len(FILE).map_err(open_failed(place(disk), OPEN))?.is_none() {
        return Ok(());
    }
    let file = disk.open(FILE).map_err(open_failed(place(disk), OPEN))?;
    let len = file.len().map_err(io_failed(REWRITE))?;
    let mut block = [0; BLOCK_BYTES];
    for at in (0..len).step_by(BLOCK_BYTES) {
        let size = usize::try_from(len - at).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        let block = &mut block[..size];
        // What cannot be read is not in memory, and so was not about to be written. What is zero
        // is most likely a hole, which takes no room.
        if file.read_at(at, block).is_ok() && block.iter().any(|byte| *byte != 0) {
            file.write_at(at, block).map_err(io_failed(REWRITE))?;
        }
    }
    file.sync().map_err(io_failed(REWRITE))
}

/// What is read and written at a time: the operating system's page, most often.
const BLOCK_BYTES: usize = 4_096;

/// The format of the file below the tables.
const REDB_FORMAT: u64 = 3;

/// Brings the tables to the format of this build, one version after the other.
fn upgrade(disk: &dyn Disk, db: &redb::Database) -> Result<(), StoreError> {
    let txn = db.begin_read().map_err(failed(OPEN))?;
    let meta = txn.open_table(META).map_err(failed(OPEN))?;
    let found = meta.get(FORMAT_KEY).map_err(failed(OPEN))?;
    let found = found.and_then(|value| record::decode_numbers(FORMAT_KEY, value.value()));
    let Some([found]) = found else {
        return Err(StoreError::Damaged { what: OPEN, why: "it says no format".to_owned() });
    };
    // Version 1 is the first: a step from each version to the next would stand here.
    match found {
        FORMAT => Ok(()),
        _ => Err(StoreError::Format { file: place(disk), found, known: FORMAT }),
    }
}

/// Numbers that the store knows under `key`; `Some(None)` if they are damaged.
pub(super) fn numbers<const N: usize>(
    txn: &redb::ReadTransaction,
    key: &str,
) -> Result<Option<Option<[u64; N]>>, StoreError> {
    let meta = txn.open_table(META).map_err(failed(OPEN))?;
    let value = meta.get(key).map_err(failed(OPEN))?;
    Ok(value.map(|value| record::decode_numbers(key, value.value())))
}

pub(super) fn put_numbers(
    txn: &redb::WriteTransaction,
    key: &str,
    numbers: &[u64],
) -> Result<(), StoreError> {
    const WRITE: &str = "write to the store";
    let numbers = record::encode_numbers(key, numbers);
    let mut meta = txn.open_table(META).map_err(failed(WRITE))?;
    meta.insert(key, numbers.as_slice()).map_err(failed(WRITE))?;
    Ok(())
}

pub(super) fn header(txn: &redb::ReadTransaction) -> Result<Header, StoreError> {
    let Some(Some([seed, incarnation, generation])) = numbers(txn, HEADER_KEY)? else {
        let why = "what it knows of itself is damaged".to_owned();
        return Err(StoreError::Damaged { what: OPEN, why });
    };
    Ok(Header { seed, incarnation, generation })
}

pub(super) fn put_header(txn: &redb::WriteTransaction, header: Header) -> Result<(), StoreError> {
    let Header { seed, incarnation, generation } = header;
    put_numbers(txn, HEADER_KEY, &[seed, incarnation, generation])
}

/// Moves a damaged database out of the way, and the journal that belongs to it.
pub(super) fn put_aside(disk: &dyn Disk, journal: &str, unix_s: u64) -> io::Result<String> {
    let mut suffix = format!("corrupt-{unix_s}");
    let mut tries = 1;
    while disk.len(&format!("{FILE}.{suffix}"))?.is_some() {
        tries += 1;
        suffix = format!("corrupt-{unix_s}-{tries}");
    }
    let aside = format!("{FILE}.{suffix}");
    if 0 < disk.len(journal)?.unwrap_or(0) {
        disk.rename(journal, &format!("{journal}.{suffix}"))?;
    }
    disk.rename(FILE, &aside)?;
    disk.sync()?;
    Ok(aside)
}
