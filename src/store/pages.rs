//! The reading side: events from the disk, for any thread, while the writer writes.
//!
//! # Locks
//!
//! [`Rank::Store`], to take a reference to the open database and to count who has one.

use std::{fmt, sync::Arc};

use redb::{ReadOnlyTable, ReadTransaction, ReadableDatabase};

use crate::{
    base::{
        lock::{self, Rank, Ranked},
        sync::Condvar,
    },
    store::{
        Missing, Page, Pages, StoreError, TopicId,
        backend::{failed, guarded},
        record::{self, Chunk, TopicRecord},
        tables::{self, EVENTS, TOPICS},
    },
};

/// The open database, where readers come in and the writer waits until they are gone.
pub(super) struct Gate {
    slot: Ranked<Slot>,
    left: Condvar,
}

struct Slot {
    db: Option<Arc<redb::Database>>,
    readers: usize,
}

impl Gate {
    pub(super) fn new() -> Self {
        let slot = Slot { db: None, readers: 0 };
        Self { slot: Ranked::new(Rank::Store, slot), left: Condvar::new() }
    }

    /// Lets readers in.
    pub(super) fn open(&self, db: &Arc<redb::Database>) {
        self.slot.with(|slot| slot.db = Some(Arc::clone(db)));
    }

    /// Lets no more readers in and waits until the last one has left.
    ///
    /// # Blocking
    ///
    /// For the reads that have begun.
    pub(super) fn close(&self) {
        let db = self.slot.with(|slot| slot.db.take());
        self.slot.wait_until(&self.left, None, |slot| (slot.readers == 0).then_some(()));
        if let Some(db) = db {
            tables::close(db);
        }
    }

    fn enter(&self) -> Result<Reader<'_>, StoreError> {
        let db = self.slot.with(|slot| {
            let db = slot.db.clone()?;
            slot.readers += 1;
            Some(db)
        });
        db.map(|db| Reader { gate: self, db: Some(db) }).ok_or(StoreError::Closed)
    }

    fn with<R>(
        &self,
        read: impl FnOnce(&ReadTransaction, &Events) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        lock::assert_none_held();
        let reader = self.enter()?;
        let Some(db) = &reader.db else { return Err(StoreError::Closed) };
        guarded(READ, || {
            let txn = db.begin_read().map_err(failed(READ))?;
            let events = txn.open_table(EVENTS).map_err(failed(READ))?;
            read(&txn, &events)
        })
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

/// One who has come in. Goes out when dropped, also by a panic.
struct Reader<'a> {
    gate: &'a Gate,
    db: Option<Arc<redb::Database>>,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        // First: whoever waits takes the database apart next.
        self.db = None;
        let is_last = self.gate.slot.with(|slot| {
            slot.readers -= 1;
            slot.readers == 0
        });
        if is_last {
            self.gate.left.notify_all();
        }
    }
}

impl Pages for Gate {
    fn read(
        &self,
        topic: TopicId,
        after: u64,
        upto: u64,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<Page, StoreError> {
        if upto <= after {
            return Ok(Page::UpTo(after));
        }
        self.with(|txn, events| Ask { txn, events, topic }.read(after, upto, bytes_max, out))
    }

    fn since(&self, topic: TopicId, time_ms: u64) -> Result<u64, StoreError> {
        self.with(|txn, events| Ask { txn, events, topic }.since(time_ms))
    }
}

const READ: &str = "read from the store";

type Events = ReadOnlyTable<(TopicId, u64), &'static [u8]>;
type Bytes<'a> = redb::AccessGuard<'a, &'static [u8]>;

/// One question about one topic.
struct Ask<'a> {
    txn: &'a ReadTransaction,
    events: &'a Events,
    topic: TopicId,
}

impl Ask<'_> {
    fn read(
        &self,
        after: u64,
        upto: u64,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<Page, StoreError> {
        let start = match self.at_or_before(after + 1)? {
            Some((first, _)) => first,
            None => after + 1,
        };
        let before = out.len();
        let mut done = after;
        let all = self.events.range((self.topic, start)..=(self.topic, u64::MAX));
        for entry in all.map_err(failed(READ))? {
            let (key, value) = entry.map_err(failed(READ))?;
            let (_, first) = key.value();
            if upto <= done {
                break;
            }
            if done + 1 < first {
                // A hole, or what lies before the oldest chunk.
                return if done == after {
                    self.missing(after, first)
                } else {
                    Ok(Page::UpTo(done))
                };
            }
            let Some(chunk) = Chunk::decode(self.topic, first, value.value()) else {
                return if done == after {
                    self.damaged(after, first)
                } else {
                    Ok(Page::UpTo(done))
                };
            };
            if chunk.last() <= done {
                continue;
            }
            let room = bytes_max.saturating_sub(out.len() - before);
            if chunk.first == done + 1 && chunk.last() <= upto && chunk.frames.len() <= room {
                out.extend_from_slice(chunk.frames);
                done = chunk.last();
                continue;
            }
            for (seq, frame) in chunk.events_from(done + 1) {
                let fits = (out.len() - before) + frame.len() <= bytes_max || done == after;
                if upto < seq || !fits {
                    return Ok(Page::UpTo(done));
                }
                out.extend_from_slice(frame);
                done = seq;
            }
        }
        if done == after { self.end(after) } else { Ok(Page::UpTo(done)) }
    }

    /// There is no chunk behind `after`.
    fn end(&self, after: u64) -> Result<Page, StoreError> {
        match self.record()? {
            Some(record) if after < record.tail => self.missing(after, record.tail + 1),
            Some(_) | None => Ok(Page::UpTo(after)),
        }
    }

    /// The events from behind `after` to before `first` are not there: why?
    fn missing(&self, after: u64, first: u64) -> Result<Page, StoreError> {
        let kept = self.record()?.map_or(first, |record| record.first);
        Ok(if kept <= after + 1 {
            Page::Missing { first, why: Missing::Damaged }
        } else {
            Page::Missing { first: first.min(kept), why: Missing::Removed }
        })
    }

    /// The chunk that begins with `chunk` cannot be read; what comes after it?
    fn damaged(&self, after: u64, chunk: u64) -> Result<Page, StoreError> {
        let rest = (self.topic, chunk + 1)..=(self.topic, u64::MAX);
        let next = self.events.range(rest).map_err(failed(READ))?.next();
        let first = match next {
            Some(entry) => entry.map_err(failed(READ))?.0.value().1,
            None => self.record()?.map_or(after, |record| record.tail) + 1,
        };
        let is_missing = after + 1 < first;
        let missing = Page::Missing { first, why: Missing::Damaged };
        Ok(if is_missing { missing } else { Page::UpTo(after) })
    }

    fn since(&self, time_ms: u64) -> Result<u64, StoreError> {
        let Some(record) = self.record()? else { return Ok(1) };
        // The event asked for is at `low` or later, and at `high` or before.
        let (mut low, mut high) = (record.first, record.tail + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            let Some((first, bytes)) = self.at_or_before(middle)? else {
                low = middle + 1;
                continue;
            };
            let Some(chunk) = Chunk::decode(self.topic, first, bytes.value()) else {
                // Unreadable: as if it were new enough. Who reads from here is told what is lost.
                high = first.clamp(low, middle);
                continue;
            };
            if chunk.last() < middle {
                // A hole, which has no time: left of it if that is new enough, right of it if not.
                let is_left = time_ms <= chunk.last_ms && low <= chunk.last();
                (low, high) = if is_left { (low, chunk.last() + 1) } else { (middle + 1, high) };
            } else if chunk.last_ms < time_ms {
                low = chunk.last() + 1;
            } else if time_ms <= chunk.first_ms {
                high = chunk.first.max(low);
            } else {
                let is_new = |frame| record::time_of(frame).is_none_or(|at| time_ms <= at);
                let mut found = chunk.events_from(low).filter(|(_, frame)| is_new(*frame));
                return Ok(found.next().map_or(chunk.last() + 1, |(seq, _)| seq));
            }
        }
        Ok(low)
    }

    /// The chunk that contains `seq`, or the last one before it.
    fn at_or_before(&self, seq: u64) -> Result<Option<(u64, Bytes<'_>)>, StoreError> {
        let mut upto =
            self.events.range((self.topic, 0)..=(self.topic, seq)).map_err(failed(READ))?;
        let Some(entry) = upto.next_back() else { return Ok(None) };
        let (key, value) = entry.map_err(failed(READ))?;
        Ok(Some((key.value().1, value)))
    }

    fn record(&self) -> Result<Option<TopicRecord>, StoreError> {
        let table = self.txn.open_table(TOPICS).map_err(failed(READ))?;
        let value = table.get(self.topic).map_err(failed(READ))?;
        let Some(value) = value else { return Ok(None) };
        TopicRecord::decode(self.topic, value.value()).map(Some).ok_or_else(|| {
            let why = format!("what is known of topic number {} is damaged", self.topic);
            StoreError::Damaged { what: READ, why }
        })
    }
}
