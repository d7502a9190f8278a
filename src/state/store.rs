//! The state within the process: typed values, changes, and handlers that are called when keys
//! change.
//!
//! A handler is a cursor like any watcher: what it is called with is each key that has changed
//! since it was called last, at its newest. One that is slow conflates and costs nobody anything.
//!
//! # Threads
//!
//! Any thread reads and changes. Handlers run on the workers of a [`Pool`], each always on the same
//! one, so that no handler runs twice at the same time and versions only rise.
//!
//! # Locks
//!
//! [`Rank::Handlers`] around the list, for one copy of it; never while a handler runs.

mod handlers;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    base::{
        clock::Clock,
        flag::Flag,
        lane::{self, Inlet},
        lock::{self, Rank, Ranked},
        sync::atomic::{AtomicBool, AtomicU64, Ordering},
    },
    bus::{Pool, SubscriptionId},
    name::{Filter, Name, NameError},
    state::{Applied, Asked, Change, ChangeError, Entry, Limits, Now, Settle, Space, Unsaved},
    wire::{json, position::Epoch, request::Refusal, state::Stored},
};

/// Why the state could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    #[error("the key {key:?} {source}")]
    Key { key: String, source: NameError },
    #[error("{key} is not changed")]
    Refused { key: Name, source: ChangeError },
    /// The relay alone writes keys that begin with `$`.
    #[error("{key} begins with $ and is written by the relay alone")]
    Reserved { key: Name },
    #[error("{key} cannot be written as JSON")]
    Encode { key: Name, source: serde_json::Error },
    #[error("{key} nests deeper than 32 levels")]
    Deep { key: Name },
    #[error("{key} is not what it was read as")]
    Decode { key: Name, source: serde_json::Error },
    /// The disk, or the time given for it.
    #[error("{key} could not be stored: {why}")]
    Unavailable { key: Name, why: String },
}

/// What applies changes: a relay, or nothing but the state itself.
pub(crate) trait Changer: Send + Sync {
    /// Applies `change`, and has it seen or stored.
    fn change(
        &self,
        change: &Change<'_>,
        asked: Option<Asked<'_>>,
    ) -> Result<(Stored, Applied), NotChanged>;

    /// Called before values are read, for whoever has nobody else to look after keys that expire.
    fn expire(&self) {}
}

/// Why a [`Changer`] did not apply a change.
pub(crate) enum NotChanged {
    Refused(ChangeError),
    Unavailable(Refusal),
}

/// The shared state, for the program that it lives in.
///
/// A relay's own is [`Server::state`](crate::server::Server::state); [`StateStore::alone`] is one
/// without a relay. Cloning gives another handle to the same state.
///
/// ```
/// use std::sync::{Arc, mpsc};
///
/// use landline::{
///     base::lifecycle::{Panics, Stop},
///     bus::{Pool, PoolSettings},
///     state::{StateStore, Update},
/// };
///
/// let pool = Pool::start(PoolSettings::default(), Stop::default(), Panics::default())?;
/// let state = StateStore::alone(Arc::new(pool));
///
/// let (tell, told) = mpsc::sync_channel(10);
/// let id = state.subscribe("lamp/+", move |update| {
///     if let Update::Set(value) = update {
///         let is_on = value.get::<bool>().unwrap_or(false);
///         drop(tell.send(is_on));
///     }
/// })?;
/// let stored = state.set("lamp/kitchen", &true)?;
/// assert!(told.recv()?);
/// assert_eq!(state.get::<bool>("lamp/kitchen")?, Some(true));
/// assert!(state.compare_and_set("lamp/kitchen", stored.version, &false).is_ok());
/// assert!(state.compare_and_set("lamp/kitchen", stored.version, &true).is_err());
/// assert!(state.unsubscribe(id));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct StateStore {
    inner: Arc<Inner>,
}

struct Inner {
    space: Arc<Space>,
    changer: Box<dyn Changer>,
    pool: Arc<Pool>,
    handlers: Ranked<Arc<[Arc<Handler>]>>,
    /// By worker: handlers that it runs.
    counts: Box<[AtomicU64]>,
    /// By worker: it has been told, and has not looked yet.
    told: Box<[Flag]>,
    panicked: AtomicU64,
}

type Call = Box<dyn Fn(&Update) + Send + Sync>;

struct Handler {
    id: SubscriptionId,
    filter: Filter,
    worker: usize,
    call: Call,
    is_subscribed: AtomicBool,
    /// Used by its worker alone.
    cursor: Ranked<Cursor>,
}

#[derive(Clone, Copy)]
struct Cursor {
    at: u64,
    /// It had nothing before, and gets values up to this version.
    snapshot_to: Option<u64>,
}

/// What a handler is called with.
#[derive(Clone, Debug)]
pub enum Update {
    /// A key has a new value.
    Set(Value),
    /// A key was deleted, or has expired.
    Deleted { key: Name, version: u64 },
    /// So much was deleted while the handler was busy that nobody remembers what: all that it knew
    /// does not count any more, and every value follows.
    Reset,
}

/// A value and what is known of it.
#[derive(Clone, Debug)]
pub struct Value {
    pub key: Name,
    entry: Entry,
}

impl Value {
    /// The version that it was set with.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.entry.version
    }

    /// When it was set, Unix milliseconds.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.entry.time_ms
    }

    /// The JSON text as it was set.
    #[must_use]
    pub fn text(&self) -> &str {
        self.entry.value().unwrap_or("null")
    }

    /// The value as a `T`.
    ///
    /// # Errors
    ///
    /// [`StateError::Decode`]: it is something else.
    pub fn get<T: DeserializeOwned>(&self) -> Result<T, StateError> {
        serde_json::from_str(self.text())
            .map_err(|source| StateError::Decode { key: self.key.clone(), source })
    }
}

/// How long a change of a durable state waits for the disk.
const DISK_PATIENCE: Duration = Duration::from_secs(60);
/// Changes that one turn of a handler takes.
const CHANGES_PER_TURN: usize = 256;

impl StateStore {
    /// A state without a relay, in memory, whose handlers run on `pool`. Its bounds are those that
    /// a relay has by default. Keys whose time is over go when something is read or changed.
    #[must_use]
    pub fn alone(pool: Arc<Pool>) -> StateStore {
        let limits = Limits {
            keys_max: 100_000,
            value_bytes_max: 64 << 10,
            bytes_max: 64 << 20,
            tombstones_max: 10_000,
        };
        let space = Arc::new(Space::new(Epoch::random(), limits, false, 0));
        let changer = Alone { space: Arc::clone(&space), clock: Clock::default() };
        let store = StateStore::over(Arc::clone(&space), Box::new(changer), pool);
        let handlers = store.downgrade();
        space.on_change(move || handlers.wake());
        store
    }

    /// The state that `changer` changes. Whoever makes this has `wake` called after changes.
    pub(crate) fn over(
        space: Arc<Space>,
        changer: Box<dyn Changer>,
        pool: Arc<Pool>,
    ) -> StateStore {
        let workers = pool.workers();
        let inner = Arc::new(Inner {
            space,
            changer,
            pool,
            handlers: Ranked::new(Rank::Handlers, Arc::default()),
            counts: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            told: (0..workers).map(|_| Flag::default()).collect(),
            panicked: AtomicU64::new(0),
        });
        let weak = Arc::downgrade(&inner);
        inner.pool.on_ring(move |worker| Inner::turn(&weak, worker));
        StateStore { inner }
    }

    /// The way to wake the handlers, which does not keep them.
    pub(crate) fn downgrade(&self) -> Handlers {
        Handlers(Arc::downgrade(&self.inner))
    }

    /// The value of `key` as a `T`; `None` if it has none.
    ///
    /// # Errors
    ///
    /// `key` is no name, or the value is no `T`.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StateError> {
        self.value(key)?.map(|value| value.get()).transpose()
    }

    /// The value of `key` with its version; `None` if it has none.
    ///
    /// # Errors
    ///
    /// `key` is no name.
    pub fn value(&self, key: &str) -> Result<Option<Value>, StateError> {
        let key = parse(key)?;
        self.inner.changer.expire();
        let entry = self.inner.space.look(|map| map.get(key.as_str()).cloned());
        Ok(entry.map(|entry| Value { key, entry }))
    }

    /// All values whose keys match `filter`, in the order of their keys.
    ///
    /// # Errors
    ///
    /// `filter` is neither a name nor a pattern.
    pub fn values(&self, filter: &str) -> Result<Vec<Value>, StateError> {
        let filter = parse_filter(filter)?;
        self.inner.changer.expire();
        let found = self.inner.space.list(&filter);
        Ok(found.into_iter().map(|(key, entry)| Value { key, entry }).collect())
    }

    /// Sets `key`. Everybody sees it when this returns.
    ///
    /// # Errors
    ///
    /// `key` is no name or the relay's own, `value` cannot be JSON or is too large, a bound is
    /// reached, or the disk does not take it.
    ///
    /// # Blocking
    ///
    /// On a durable state for the disk, up to a minute; otherwise while a writer's lane is full.
    /// Not to be called by a handler of a durable state whose disk is slow: it would hold up all
    /// handlers of its worker.
    pub fn set(&self, key: &str, value: &impl Serialize) -> Result<Stored, StateError> {
        self.put(key, value, None, None)
    }

    /// As [`StateStore::set`]; the key goes by itself after `ttl`.
    ///
    /// # Errors
    ///
    /// As [`StateStore::set`].
    ///
    /// # Blocking
    ///
    /// As [`StateStore::set`].
    pub fn set_for(
        &self,
        key: &str,
        value: &impl Serialize,
        ttl: Duration,
    ) -> Result<Stored, StateError> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.put(key, value, None, Some(ttl_ms.max(1)))
    }

    /// Sets `key` if it has the version `expected`, which is 0 for a key that is not there.
    ///
    /// # Errors
    ///
    /// As [`StateStore::set`]; [`ChangeError::Conflict`] names the version that it has.
    ///
    /// # Blocking
    ///
    /// As [`StateStore::set`].
    pub fn compare_and_set(
        &self,
        key: &str,
        expected: u64,
        value: &impl Serialize,
    ) -> Result<Stored, StateError> {
        self.put(key, value, Some(expected), None)
    }

    /// Deletes `key`.
    ///
    /// # Errors
    ///
    /// As [`StateStore::set`]; [`ChangeError::NotFound`] if it is not there.
    ///
    /// # Blocking
    ///
    /// As [`StateStore::set`].
    pub fn delete(&self, key: &str) -> Result<Stored, StateError> {
        let key = parse(key)?;
        self.change(&Change { key: &key, value: None, if_version: None, ttl_ms: None, user: None })
    }

    fn put(
        &self,
        key: &str,
        value: &impl Serialize,
        if_version: Option<u64>,
        ttl_ms: Option<u64>,
    ) -> Result<Stored, StateError> {
        let key = parse(key)?;
        let text = serde_json::to_string(value)
            .map_err(|source| StateError::Encode { key: key.clone(), source })?;
        if !json::is_shallow(&text) {
            return Err(StateError::Deep { key });
        }
        let value = Some(text.as_str());
        self.change(&Change { key: &key, value, if_version, ttl_ms, user: None })
    }

    fn change(&self, change: &Change<'_>) -> Result<Stored, StateError> {
        let key = || change.key.clone();
        if change.key.is_reserved() {
            return Err(StateError::Reserved { key: key() });
        }
        let (reply, outcome) = lane::open(lane::REPLIES);
        let waiter: Arc<dyn Settle> = Arc::new(Waiter { reply });
        let changed = self.inner.changer.change(change, Some((&waiter, None)));
        let (stored, applied) = changed.map_err(|error| match error {
            NotChanged::Refused(source) => StateError::Refused { key: key(), source },
            NotChanged::Unavailable(refusal) => {
                StateError::Unavailable { key: key(), why: refusal.message }
            }
        })?;
        if !applied.is_pending {
            return Ok(stored);
        }
        lock::assert_none_held();
        match outcome.recv_timeout(DISK_PATIENCE) {
            Ok(Ok(stored)) => Ok(stored),
            Ok(Err(unsaved)) => {
                Err(StateError::Unavailable { key: key(), why: unsaved.to_string() })
            }
            Err(_) => {
                let why = "the disk took too long; it may be there nevertheless".to_owned();
                Err(StateError::Unavailable { key: key(), why })
            }
        }
    }

    /// Has `handler` called with every key that matches `filter` and changes from now on.
    ///
    /// Handlers know nothing of one another, also those of the same key. One that panics is
    /// reported and counted, misses nothing that comes later, and costs the others nothing.
    ///
    /// # Errors
    ///
    /// `filter` is neither a name nor a pattern.
    pub fn subscribe(
        &self,
        filter: &str,
        handler: impl Fn(&Update) + Send + Sync + 'static,
    ) -> Result<SubscriptionId, StateError> {
        let at = self.inner.space.look(|map| map.version());
        self.add(filter, Cursor { at, snapshot_to: None }, Box::new(handler))
    }

    /// As [`StateStore::subscribe`], and first with every value that is there.
    ///
    /// # Errors
    ///
    /// As [`StateStore::subscribe`].
    pub fn watch(
        &self,
        filter: &str,
        handler: impl Fn(&Update) + Send + Sync + 'static,
    ) -> Result<SubscriptionId, StateError> {
        let snapshot_to = Some(self.inner.space.look(|map| map.version()));
        self.add(filter, Cursor { at: 0, snapshot_to }, Box::new(handler))
    }

    fn add(&self, filter: &str, cursor: Cursor, call: Call) -> Result<SubscriptionId, StateError> {
        let filter = parse_filter(filter)?;
        let inner = &self.inner;
        let id = SubscriptionId::next();
        let worker = usize::try_from(id.number()).unwrap_or(0) % inner.counts.len();
        let is_subscribed = AtomicBool::new(true);
        let cursor = Ranked::new(Rank::Handlers, cursor);
        let handler = Arc::new(Handler { id, filter, worker, call, is_subscribed, cursor });
        inner.replace(|list| list.iter().cloned().chain([handler]).collect());
        // Relaxed: a hint that spares a wake-up; what changed until now is looked at below.
        inner.counts[worker].fetch_add(1, Ordering::Relaxed);
        inner.wake();
        Ok(id)
    }

    /// Ends a subscription. Returns whether there was one.
    ///
    /// When this returns the handler is not started any more; if it is running it may finish.
    pub fn unsubscribe(&self, id: SubscriptionId) -> bool {
        let mut gone = None;
        self.inner.replace(|list| {
            gone = list.iter().find(|handler| handler.id == id).cloned();
            list.iter().filter(|handler| handler.id != id).cloned().collect()
        });
        let Some(handler) = gone else { return false };
        // Release pairs with the acquire in `Inner::serve`.
        handler.is_subscribed.store(false, Ordering::Release);
        self.inner.counts[handler.worker].fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Handlers that are subscribed.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.inner.handlers.with(|list| list.len())
    }

    /// How often handlers have panicked.
    #[must_use]
    pub fn panicked(&self) -> u64 {
        self.inner.panicked.load(Ordering::Relaxed)
    }
}

/// The handlers of a store, for as long as there is one.
pub(crate) struct Handlers(Weak<Inner>);

impl Handlers {
    /// Has the handlers look. To be called after changes that may be seen.
    pub(crate) fn wake(&self) {
        if let Some(inner) = self.0.upgrade() {
            inner.wake();
        }
    }
}

/// Applies changes where there is no relay.
struct Alone {
    space: Arc<Space>,
    clock: Clock,
}

impl Changer for Alone {
    fn change(
        &self,
        change: &Change<'_>,
        asked: Option<Asked<'_>>,
    ) -> Result<(Stored, Applied), NotChanged> {
        self.expire();
        let changed = self.space.change(change, self.now(), asked).map_err(NotChanged::Refused);
        if changed.is_ok() {
            self.space.announce();
        }
        changed
    }

    fn expire(&self) {
        if !self.space.expire(self.now(), usize::MAX).is_empty() {
            self.space.announce();
        }
    }
}

impl Alone {
    fn now(&self) -> Now {
        Now { uptime_ms: self.clock.uptime_ms(), unix_ms: self.clock.unix_ms() }
    }
}

/// Who waits for one change to be stored.
struct Waiter {
    reply: Inlet<Result<Stored, Unsaved>>,
}

impl Settle for Waiter {
    fn settle(&self, _request: Option<u64>, outcome: &Result<Stored, Unsaved>) {
        // Who has given up waiting does not hear it.
        drop(self.reply.offer(*outcome));
    }

    fn settled(&self) {}
}

fn parse(key: &str) -> Result<Name, StateError> {
    Name::parse(key).map_err(|source| StateError::Key { key: key.to_owned(), source })
}

fn parse_filter(filter: &str) -> Result<Filter, StateError> {
    Filter::parse(filter).map_err(|source| StateError::Key { key: filter.to_owned(), source })
}

#[cfg(test)]
mod tests;
