//! What an operator may ask of a store while no relay has it: what it holds, whether all of it can
//! be read, and to make it smaller.
//!
//! Looking changes nothing in the files, not even in one that was not closed in good order.

use std::{io, sync::Arc};

use redb::ReadableDatabase;

use crate::store::{
    Loaded, StoreError, StoreSettings, StoredTopic, TopicId,
    backend::{failed, guarded, open_failed},
    ballast,
    disk::{Disk, DiskLock},
    facts::{self, Facts},
    journal::{self, Journal, Replay},
    record::Chunk,
    tables::{self, EVENTS, File},
    values,
};

/// What a store holds.
#[derive(Debug)]
pub struct Info {
    /// Version of what is in the file.
    pub format: u64,
    /// Bytes of the file, of the journal and of the reserved room.
    pub database_bytes: u64,
    pub journal_bytes: u64,
    pub ballast_bytes: u64,
    /// Events that are in the journal only; the next start takes them over.
    pub journal_events: u64,
    /// How many commits have forgotten topics.
    pub incarnation: u64,
    pub topics: Vec<StoredTopic>,
    pub consumers: u64,
    pub keys: u64,
    /// Keys of the shared state that have a value.
    pub state_keys: u64,
    /// What is damaged, as far as it shows without reading the events.
    pub warnings: Vec<String>,
}

/// What a check found.
#[derive(Debug, Default)]
pub struct Report {
    pub topics: u64,
    pub chunks: u64,
    pub events: u64,
    /// Bytes of frames.
    pub bytes: u64,
    /// What is wrong, in words. Empty: everything can be read and is what was written.
    pub problems: Vec<String>,
}

/// What compacting did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    pub bytes_before: u64,
    pub bytes_after: u64,
}

const LOOK: &str = "look at the store";
const CHECK: &str = "check the store";

/// Says what the store in `disk` holds.
///
/// # Errors
///
/// There is none, a relay has it, it is damaged or the disk fails.
///
/// # Blocking
///
/// For the disk.
pub fn info(disk: &dyn Disk) -> Result<Info, StoreError> {
    let _lock = take(disk)?;
    let file = File::open(disk, &StoreSettings::default())?;
    let looked = facts::load(&file.db).and_then(|(facts, mut loaded)| {
        loaded.state = values::load(&file.db, &mut loaded.warnings)?;
        Ok((loaded, pending(disk, &facts)?.unwrap_or_default()))
    });
    file.abandon();
    let (loaded, replay) = looked?;
    let Loaded { incarnation, topics, consumers, keys, state, mut warnings, .. } = loaded;
    let entries = state.into_iter().flat_map(|state| state.entries);
    warnings.extend(ignored(&replay));
    let bytes = |name| {
        let len = disk.len(name).map_err(open_failed(disk.place(), LOOK))?;
        Ok::<_, StoreError>(len.unwrap_or(0))
    };
    Ok(Info {
        format: tables::FORMAT,
        database_bytes: bytes(tables::FILE)?,
        journal_bytes: bytes(journal::FILE)?,
        ballast_bytes: bytes(ballast::FILE)?,
        journal_events: replay.batch.runs.iter().map(|run| run.count).sum(),
        incarnation,
        topics,
        consumers: consumers.len() as u64,
        keys: keys.len() as u64,
        state_keys: entries.filter(|entry| entry.value.is_some()).count() as u64,
        warnings,
    })
}

/// Reads everything in the store in `disk`.
///
/// # Errors
///
/// As [`info`]; a damaged store that can be opened is a [`Report`] instead.
///
/// # Blocking
///
/// For the disk: all of the file is read.
pub fn check(disk: &dyn Disk) -> Result<Report, StoreError> {
    let _lock = take(disk)?;
    let mut file = File::open(disk, &StoreSettings::default())?;
    let checked = check_file(disk, &mut file);
    file.abandon();
    checked
}

/// Makes the file of the store in `disk` as small as it goes.
///
/// # Errors
///
/// As [`info`], and the disk is full: a little room is needed at first.
///
/// # Blocking
///
/// For the disk: up to all of the file is written anew.
pub fn compact(disk: &dyn Disk) -> Result<Compacted, StoreError> {
    let _lock = take(disk)?;
    let bytes = || {
        let len = disk.len(tables::FILE).map_err(open_failed(disk.place(), LOOK))?;
        Ok::<_, StoreError>(len.unwrap_or(0))
    };
    let bytes_before = bytes()?;
    let mut file = File::open(disk, &StoreSettings::default())?;
    // What is damaged stays as it is, for whoever wants to look at it.
    let compacted =
        facts::load(&file.db).and_then(|_| file.release()).and_then(|()| file.compact());
    match compacted {
        Ok(_) => file.close(),
        Err(error) => {
            file.abandon();
            return Err(error);
        }
    }
    Ok(Compacted { bytes_before, bytes_after: bytes()? })
}

/// Takes the directory, if there is a store in it.
fn take(disk: &dyn Disk) -> Result<DiskLock, StoreError> {
    let place = disk.place();
    match disk.len(tables::FILE).map_err(open_failed(place.clone(), LOOK))? {
        Some(_) => disk.lock(),
        None => {
            let source = io::Error::new(io::ErrorKind::NotFound, "there is no store in it");
            Err(StoreError::Directory { place, source })
        }
    }
}

/// What the journal has that the database has not.
fn pending(disk: &dyn Disk, facts: &Facts) -> Result<Option<Replay>, StoreError> {
    let len = disk.len(journal::FILE).map_err(open_failed(disk.place(), LOOK))?;
    if len.unwrap_or(0) == 0 {
        return Ok(None);
    }
    Journal::open(disk)?.replay(facts).map(Some)
}

fn ignored(replay: &Replay) -> Option<String> {
    let bytes = replay.ignored;
    (0 < bytes).then(|| format!("{bytes} bytes of the journal are damaged"))
}

fn check_file(disk: &dyn Disk, file: &mut File) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let (facts, loaded) = facts::load(&file.db)?;
    report.problems.extend(loaded.warnings);
    values::load(&file.db, &mut report.problems)?;
    report.problems.extend(pending(disk, &facts)?.as_ref().and_then(ignored));
    let db = Arc::clone(&file.db);
    for topic in &loaded.topics {
        report.topics += 1;
        let bytes_ever = facts.topics.get(&topic.id).map_or(0, |facts| facts.record.bytes_ever);
        let known = (topic, bytes_ever);
        if let Err(error) = guarded(CHECK, || check_topic(&db, known, &mut report)) {
            let StoreError::Damaged { why, .. } = error else { return Err(error) };
            report.problems.push(format!("topic {}: {why}", topic.name.as_str()));
        }
    }
    tables::close(db);
    // Last: what redb finds, it repairs, and then reads what it has repaired.
    match file.is_sound() {
        Ok(true) => {}
        Ok(false) => report.problems.push("pages of the file are damaged".to_owned()),
        Err(StoreError::Damaged { why, .. }) => {
            report.problems.push(format!("pages of the file are damaged: {why}"));
        }
        Err(error) => return Err(error),
    }
    Ok(report)
}

/// Looks at every chunk of a topic: is it what was written, and does it go on where the one before
/// it ends?
fn check_topic(
    db: &redb::Database,
    (topic, bytes_ever): (&StoredTopic, u64),
    report: &mut Report,
) -> Result<(), StoreError> {
    let txn = db.begin_read().map_err(failed(CHECK))?;
    let events = txn.open_table(EVENTS).map_err(failed(CHECK))?;
    let id: TopicId = topic.id;
    let name = topic.name.as_str();
    // Where the next chunk should begin, and how many bytes came before it.
    let mut expected: Option<(u64, u64)> = None;
    for entry in events.range((id, 0)..=(id, u64::MAX)).map_err(failed(CHECK))? {
        let (key, value) = entry.map_err(failed(CHECK))?;
        let (_, first) = key.value();
        report.chunks += 1;
        let wrong = match Chunk::decode(id, first, value.value()) {
            None => {
                // How long it was nobody knows.
                expected = None;
                Some(format!("the chunk at event {first} is damaged"))
            }
            Some(chunk) => {
                report.events += chunk.count;
                report.bytes += chunk.frames.len() as u64;
                let before = expected.unwrap_or((first, chunk.bytes_before));
                expected = Some((chunk.last() + 1, chunk.bytes_before + chunk.frames.len() as u64));
                wrong_with(&chunk, before)
            }
        };
        report.problems.extend(wrong.map(|wrong| format!("topic {name}: {wrong}")));
    }
    let end = (topic.tail + 1, bytes_ever);
    if expected.is_some_and(|expected| expected != end) {
        report.problems.push(format!("topic {name}: the events do not end at {}", topic.tail));
    }
    Ok(())
}

fn wrong_with(chunk: &Chunk<'_>, (first, bytes_before): (u64, u64)) -> Option<String> {
    if first != chunk.first {
        return Some(format!("between the events {first} and {} is a hole", chunk.first));
    }
    if bytes_before != chunk.bytes_before {
        return Some(format!("the chunk at event {first} counts other bytes before it"));
    }
    let frames = chunk.events_from(first).map(|(_, frame)| frame.len());
    let (count, bytes) = frames.fold((0, 0), |(count, bytes), len| (count + 1, bytes + len));
    if count != chunk.count || bytes != chunk.frames.len() {
        return Some(format!("the chunk at event {first} does not hold {} events", chunk.count));
    }
    None
}
