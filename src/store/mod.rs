//! What survives a restart: the contract of a store, and the one that is built in.
//!
//! # Place
//!
//! Knows topics by number, events as encoded frames and positions as numbers; what they mean is
//! `topic`'s business. Below `topic` and `server`.
//!
//! # Threads
//!
//! One thread writes ([`Store`]), others read at the same time ([`Pages`]).
//!
//! # Locks
//!
//! [`Rank::Store`](crate::base::lock::Rank::Store), to copy a reference or count a reader; never
//! during I/O.

#[cfg(feature = "durable")]
mod backend;
#[cfg(feature = "durable")]
mod ballast;
#[cfg(feature = "durable")]
mod boot;
#[cfg(feature = "durable")]
mod commit;
#[cfg(feature = "durable")]
mod database;
pub mod disk;
#[cfg(feature = "durable")]
mod facts;
#[cfg(all(fuzzing, feature = "durable"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "durable")]
pub mod inspect;
#[cfg(feature = "durable")]
mod journal;
#[cfg(feature = "durable")]
mod pages;
#[cfg(feature = "durable")]
mod record;
#[cfg(feature = "durable")]
mod retention;
#[cfg(feature = "durable")]
#[doc(hidden)]
pub mod sim;
#[cfg(feature = "durable")]
mod tables;
#[cfg(test)]
#[cfg(feature = "durable")]
mod tests;
#[cfg(feature = "durable")]
mod values;

use std::{fmt::Debug, ops::Range, sync::Arc};

#[cfg(feature = "durable")]
pub use database::{Database, StoreSettings};

use crate::{
    config::Policy,
    metrics::labels::Evicted,
    name::{Name, UserName},
    wire::position::Epoch,
};

/// A topic's number in the store. Never given out twice by one relay.
pub type TopicId = u64;

/// What is written at once: all of it, or none.
#[derive(Debug, Default)]
pub struct Batch {
    pub topics: Vec<NewTopic>,
    /// In the order of their sequences, per topic.
    pub runs: Vec<Run>,
    /// What retention asks for, after the runs.
    pub keeps: Vec<Keep>,
    pub positions: Vec<ConsumerChange>,
    /// Idempotency keys older than this are forgotten, some with each commit.
    pub keys_before_ms: u64,
    /// Topics that are forgotten, with all that is left of them.
    pub forgotten: Vec<TopicId>,
    /// What changed of the shared state.
    pub state: Option<Box<StateBatch>>,
}

impl Batch {
    /// Whether there is nothing in it but what retention asks for.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let Batch { topics, runs, positions, forgotten, state, .. } = self;
        let is_plain = topics.is_empty() && runs.is_empty() && positions.is_empty();
        is_plain && forgotten.is_empty() && state.is_none()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.is_idle() && self.keeps.is_empty()
    }
}

/// A topic that the store does not know yet, or one that it knows with a new epoch.
#[derive(Clone, Debug)]
pub struct NewTopic {
    pub id: TopicId,
    pub name: Name,
    pub epoch: Epoch,
    /// The event before its first one: 0, unless it is restored from a backup.
    pub tail: u64,
}

/// Consecutive events of one topic, at most [`RUN_BYTES_MAX`] of them unless one is larger.
#[derive(Clone, Debug)]
pub struct Run {
    pub topic: TopicId,
    /// Sequence of the first.
    pub first: u64,
    pub count: u64,
    /// When the first and the last were appended, Unix milliseconds.
    pub first_ms: u64,
    pub last_ms: u64,
    /// Their frames, as they are sent.
    pub frames: Vec<u8>,
    pub keys: Vec<Key>,
}

/// Bytes of frames that one run should have at most. The database keeps values in pages whose sizes
/// are powers of two: a run, with what is stored beside it, just fits into one of 32 KiB.
pub const RUN_BYTES_MAX: usize = 32 * 1024 - 512;

/// An idempotency key and the event that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub seq: u64,
    pub time_ms: u64,
    pub text: Box<str>,
}

/// What a topic keeps of its events.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    pub topic: TopicId,
    pub policy: Policy,
    /// What is older than the policy's age at this time goes.
    pub now_ms: u64,
}

/// A consumer's position that changed, or a consumer that is gone.
#[derive(Clone, Debug)]
pub struct ConsumerChange {
    pub topic: TopicId,
    pub name: UserName,
    pub state: Option<ConsumerState>,
}

/// What is known of a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerState {
    /// The last event that it acknowledged.
    pub seq: u64,
    /// How often the one after it was delivered.
    pub deliveries: u32,
    /// When it was last heard of, Unix milliseconds.
    pub used_ms: u64,
}

/// Changes of the shared state, and where it is after them.
#[derive(Clone, Debug)]
pub struct StateBatch {
    pub epoch: Epoch,
    /// The newest deletion that is not known any more.
    pub horizon: u64,
    /// The newest version that was given out.
    pub upto: u64,
    /// Nothing that was stored before is kept.
    pub is_whole: bool,
    /// Of a key that is there twice, the last one counts.
    pub changes: Vec<StateRecord>,
    /// Keys of which nothing is left, not even that they were deleted. None of them is in
    /// `changes`.
    pub forgotten: Vec<Name>,
}

/// What a key of the shared state has: a value, or that it was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRecord {
    pub key: Name,
    pub version: u64,
    /// When it was set, Unix milliseconds.
    pub time_ms: u64,
    pub expires_unix_ms: Option<u64>,
    /// The message, as it is sent.
    pub text: Vec<u8>,
    /// Where the value is in `text`; `None` if the key was deleted.
    pub value: Option<Range<usize>>,
}

/// What a commit did beside writing.
#[derive(Debug, Default)]
pub struct Committed {
    /// The topics of which events went.
    pub trimmed: Vec<Trimmed>,
    /// Retention has more to remove than one commit may; ask again.
    pub more: bool,
}

/// A topic of which events went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trimmed {
    pub topic: TopicId,
    /// The oldest event that is kept; one after the newest if none is.
    pub first: u64,
    /// The bound that removed the last one that went.
    pub reason: Evicted,
}

/// What a store holds when it is opened.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Random, made with the store; epochs of its topics are derived from it.
    pub seed: u64,
    /// How many commits have forgotten topics.
    pub incarnation: u64,
    /// The machine stopped under a relay: events that were only written may be lost, and their
    /// sequences would be given out twice. Whoever goes on begins new epochs for such topics.
    pub has_lost_power: bool,
    pub topics: Vec<StoredTopic>,
    pub consumers: Vec<ConsumerChange>,
    /// By topic, oldest first.
    pub keys: Vec<(TopicId, Key)>,
    /// `None` if none was ever stored, or if the store was told not to read it.
    pub state: Option<StoredState>,
    /// What was found and put aside, in words for the log: a damaged file, a torn journal.
    pub warnings: Vec<String>,
}

/// The shared state as the store has it.
#[derive(Clone, Debug)]
pub struct StoredState {
    pub epoch: Epoch,
    pub horizon: u64,
    pub upto: u64,
    /// In the order of their keys.
    pub entries: Vec<StateRecord>,
    /// Some of it cannot be read. Whoever goes on without that begins a new epoch, or those who
    /// have seen what is lost would keep it.
    pub is_damaged: bool,
}

/// A topic as the store has it.
#[derive(Clone, Debug)]
pub struct StoredTopic {
    pub id: TopicId,
    pub name: Name,
    pub epoch: Epoch,
    /// The oldest event; one after the tail if there is none.
    pub first: u64,
    pub tail: u64,
    /// When the newest event was appended, Unix milliseconds.
    pub newest_ms: u64,
    /// Bytes of frames.
    pub bytes: u64,
}

/// The writing side of a store.
///
/// The contract, for every implementation:
///
/// 1. When [`Store::commit`] returns `Ok`, its batch and everything committed or written before it
///    survive a crash of the process and a loss of power.
/// 2. When [`Store::write`] returns `Ok`, its batch and everything before it survive a crash of the
///    process. They survive a loss of power once a later `commit` has returned.
/// 3. A batch is there completely or not at all, after any crash. Batches are there in order: if
///    one is there, all before it are.
/// 4. A commit contains every event that was only written before: the caller repeats them, and
///    what was written is then forgotten.
/// 5. After an error of `commit` or `write` nobody knows whether the batch is there. Every further
///    call fails until [`Store::recover`] has returned `Ok`, which says what is there.
/// 6. What [`Pages`] reads was committed. Events that were only written may be missing.
/// 7. The shared state is committed and never only written: `write` does not look at it.
pub trait Store: Send {
    /// Writes `batch` and returns when it is on disk.
    ///
    /// # Errors
    ///
    /// Nobody knows whether it is there; see the contract.
    ///
    /// # Blocking
    ///
    /// For the disk.
    fn commit(&mut self, batch: &Batch) -> Result<Committed, StoreError>;

    /// Hands `batch` to the operating system. Only its topics and runs count.
    ///
    /// # Errors
    ///
    /// As [`Store::commit`].
    ///
    /// # Blocking
    ///
    /// For the operating system's memory at most.
    fn write(&mut self, batch: &Batch) -> Result<(), StoreError>;

    /// Bytes that were written and not yet committed.
    fn written_bytes(&self) -> u64;

    /// Opens the store anew after an error, makes room as `keeps` allow, and tries whether it can
    /// be written.
    ///
    /// # Errors
    ///
    /// It cannot yet; try again later.
    ///
    /// # Blocking
    ///
    /// For the disk, and until nobody reads from the old one.
    fn recover(&mut self, keeps: &[Keep]) -> Result<Loaded, StoreError>;

    /// The reading side.
    fn pages(&self) -> Arc<dyn Pages>;

    /// Bytes on disk.
    fn file_bytes(&self) -> u64;

    /// Ends in good order: the next start has nothing to repair.
    ///
    /// # Errors
    ///
    /// Everything committed is there nevertheless.
    fn close(&mut self) -> Result<(), StoreError>;
}

/// The reading side of a store, for any thread.
pub trait Pages: Send + Sync + Debug {
    /// Appends the frames after event `after` up to `upto` to `out`, as many as fit into
    /// `bytes_max` but at least one.
    ///
    /// # Errors
    ///
    /// The disk cannot be read, or the store is being opened anew.
    ///
    /// # Blocking
    ///
    /// For the disk.
    fn read(
        &self,
        topic: TopicId,
        after: u64,
        upto: u64,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Result<Page, StoreError>;

    /// The first event appended at `time_ms` or later; one after the newest if there is none.
    ///
    /// # Errors
    ///
    /// As [`Pages::read`].
    ///
    /// # Blocking
    ///
    /// For the disk; it reads a number of places that grows with the logarithm of the history.
    fn since(&self, topic: TopicId, time_ms: u64) -> Result<u64, StoreError>;
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Events up to this one; `after` itself if there are none behind it.
    UpTo(u64),
    /// The events from behind `after` to before `first` are not there.
    Missing { first: u64, why: Missing },
}

/// Why stored events are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Retention removed them.
    Removed,
    /// What is on disk is not what was written.
    Damaged,
}

/// What can go wrong between a topic and the disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("cannot use the data directory {place}")]
    Directory { place: String, source: std::io::Error },
    #[error("the data directory {place} is in use by another relay or command")]
    Locked { place: String },
    #[error("{file} has format {found}, this build reads up to {known}")]
    Format { file: String, found: u64, known: u64 },
    /// No room on the disk.
    #[error("cannot {what}: the disk is full")]
    Full { what: &'static str, source: std::io::Error },
    #[error("cannot {what}")]
    Io { what: &'static str, source: std::io::Error },
    /// What is on disk cannot be what was written.
    #[error("cannot {what}: {why}")]
    Damaged { what: &'static str, why: String },
    /// This build has no store.
    #[error("this build keeps nothing on disk: it was made without the feature durable")]
    NotBuilt,
    /// An earlier error has not been recovered from.
    #[error("the store has failed and is not open")]
    Closed,
}
