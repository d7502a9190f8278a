//! What requests do with the shared state, whichever way they came.
//!
//! # Threads
//!
//! The reader of whoever asks; the keeper, for keys that expire.

mod stored;

use std::sync::{Arc, Weak};

pub(crate) use self::stored::{batch, open, restore};
use crate::{
    base::{
        limits::HISTORY_BYTES_MAX,
        sync::atomic::{AtomicU64, Ordering},
    },
    config::StateSettings,
    name::{Filter, Name},
    server::{relay::Shared, sys, vault::Job, writer::Command},
    state::{
        Applied, Asked, Change, ChangeError, Changer, Entry, Limits, Map, NotChanged, Now, Page,
        Space, StateStore,
    },
    wire::{
        codes::Code,
        position::Epoch,
        request::Refusal,
        state::{StatePosition, Stored},
    },
};

/// The states of one relay.
pub(crate) struct Spaces {
    /// What clients share.
    pub(crate) shared: Arc<Space>,
    /// What the relay says: `$...`. It begins anew with every start.
    pub(crate) relay: Arc<Space>,
    /// When the keeper looks for keys that have expired, by uptime.
    expiry_ms: AtomicU64,
}

/// Which of the states something is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Shared,
    Relay,
}

impl Which {
    pub(crate) const ALL: [Which; 2] = [Which::Shared, Which::Relay];

    /// The state that keys which `text` names, or matches as a pattern, are in.
    pub(crate) fn of(text: &str) -> Which {
        if text.starts_with('$') { Which::Relay } else { Which::Shared }
    }
}

impl Spaces {
    pub(crate) fn new(shared: Space, settings: &StateSettings, writers: usize) -> Spaces {
        let relay = Space::new(Epoch::random(), relay_limits(settings), false, writers);
        Spaces {
            shared: Arc::new(shared),
            relay: Arc::new(relay),
            expiry_ms: AtomicU64::new(u64::MAX),
        }
    }

    pub(crate) fn space(&self, which: Which) -> &Arc<Space> {
        match which {
            Which::Shared => &self.shared,
            Which::Relay => &self.relay,
        }
    }

    pub(crate) fn apply(&self, settings: &StateSettings) {
        self.shared.apply_limits(limits(settings));
        self.relay.apply_limits(relay_limits(settings));
    }
}

/// The shared state of a relay for the program that it lives in. From now on, whoever watches a
/// state hears of its changes: writers, and handlers within the process.
pub(crate) fn store_of(shared: &Arc<Shared>) -> StateStore {
    let changer = Weakly(Arc::downgrade(shared));
    let (space, pool) = (Arc::clone(&shared.state.shared), Arc::clone(&shared.pool));
    let store = StateStore::over(space, Box::new(changer), pool);
    for which in Which::ALL {
        let handlers = (which == Which::Shared).then(|| store.downgrade());
        let writers = shared.writers.to_vec();
        let space = Arc::downgrade(shared.state.space(which));
        shared.state.space(which).on_change(move || {
            if let Some(space) = space.upgrade() {
                space.wake(|writer| writers[writer].send(Command::WakeState(which)));
            }
            if let Some(handlers) = &handlers {
                handlers.wake();
            }
        });
    }
    store
}

/// A relay, for as long as there is one.
struct Weakly(Weak<Shared>);

impl Changer for Weakly {
    fn change(
        &self,
        change: &Change<'_>,
        asked: Option<Asked<'_>>,
    ) -> Result<(Stored, Applied), NotChanged> {
        let shared = self.0.upgrade();
        let shared = shared.ok_or_else(|| {
            NotChanged::Unavailable(Refusal::new(Code::Unavailable, "the relay has stopped"))
        })?;
        shared.apply_change(change, asked)
    }
}

pub(crate) fn limits(settings: &StateSettings) -> Limits {
    Limits {
        keys_max: settings.max_keys,
        value_bytes_max: settings.max_value,
        bytes_max: settings.max_bytes,
        tombstones_max: settings.max_tombstones,
    }
}

/// Bounds of what the relay says: a user's presence is one key.
fn relay_limits(settings: &StateSettings) -> Limits {
    Limits { value_bytes_max: 64 << 10, ..limits(settings) }
}

impl Shared {
    pub(crate) fn state_now(&self) -> Now {
        Now { uptime_ms: self.clock.uptime_ms(), unix_ms: self.clock.unix_ms() }
    }

    /// Changes a key of the shared state. If that is pending, `asked` is answered later.
    ///
    /// # Errors
    ///
    /// The rule that the change breaks, or why the store cannot take it.
    ///
    /// # Blocking
    ///
    /// On a durable state, until there is room in the backlog; while a writer's lane is full.
    pub(crate) fn change_state(
        &self,
        change: &Change<'_>,
        asked: Option<Asked<'_>>,
    ) -> Result<(Stored, Applied), Refusal> {
        if change.key.is_reserved() {
            let message = format!("{} begins with $ and is written by the relay alone", change.key);
            return Err(Refusal { field: Some("key"), ..Refusal::new(Code::Forbidden, message) });
        }
        self.apply_change(change, asked).map_err(|error| match error {
            NotChanged::Refused(error) => refuse(change.key, error),
            NotChanged::Unavailable(refusal) => refusal,
        })
    }

    fn apply_change(
        &self,
        change: &Change<'_>,
        asked: Option<Asked<'_>>,
    ) -> Result<(Stored, Applied), NotChanged> {
        let space = &self.state.shared;
        if space.is_durable() && !self.vault.has_room() {
            self.vault.wait_for_room().map_err(NotChanged::Unavailable)?;
        }
        let now = self.state_now();
        let (stored, applied) = space.change(change, now, asked).map_err(NotChanged::Refused)?;
        self.metrics.state_changes.add(1);
        self.pass_on(&applied);
        if let Some(ttl_ms) = change.ttl_ms {
            self.watch_expiry(now.uptime_ms.saturating_add(ttl_ms));
        }
        Ok((stored, applied))
    }

    /// Has a change of the shared state seen, or stored.
    fn pass_on(&self, applied: &Applied) {
        let space = &self.state.shared;
        if applied.is_pending {
            self.vault.owe_bytes(applied.bytes);
            if space.must_tell_committer() {
                self.vault.send(Job::State);
            }
        } else {
            space.announce();
        }
    }

    /// Has the keeper look for keys that have expired at `at_ms`, unless it looks earlier.
    fn watch_expiry(&self, at_ms: u64) {
        // Relaxed: the keeper looks at the map itself; this only wakes it early enough.
        if at_ms < self.state.expiry_ms.fetch_min(at_ms, Ordering::Relaxed) {
            self.wake_keeper(at_ms);
        }
    }

    /// Deletes the keys that have expired. Returns when the next one does, by uptime.
    ///
    /// # Blocking
    ///
    /// While a writer's or the committer's lane is full.
    pub(crate) fn expire_keys(&self) -> u64 {
        // Before looking: who adds a key that expires earlier after this wakes the keeper.
        self.state.expiry_ms.store(u64::MAX, Ordering::Relaxed);
        let now = self.state_now();
        let space = &self.state.shared;
        // What cannot be stored is tried again when the store has come back.
        if space.is_durable() && !self.vault.has_room() {
            return now.uptime_ms + EXPIRE_AGAIN_MS;
        }
        loop {
            let gone = space.expire(now, EXPIRED_PER_TURN);
            self.metrics.state_expired.add(gone.len() as u64);
            gone.iter().for_each(|applied| self.pass_on(applied));
            if gone.len() < EXPIRED_PER_TURN {
                break;
            }
        }
        let next_ms = space.next_expiry_ms().unwrap_or(u64::MAX);
        next_ms.min(self.state.expiry_ms.fetch_min(next_ms, Ordering::Relaxed))
    }

    /// Values whose keys `filter` matches and come after `after`, joined by commas: at most `limit`
    /// and about 1 MiB of them. The last key, if there are more.
    ///
    /// # Blocking
    ///
    /// Where they are `$sys/...`, while a writer's lane is full.
    pub(crate) fn values(
        &self,
        filter: &Filter,
        after: Option<&str>,
        limit: u64,
    ) -> (StatePosition, Vec<u8>, Option<String>) {
        if sys::is_about(filter.as_str()) {
            self.refresh_sys();
        }
        let space = self.state.space(Which::of(filter.as_str()));
        // Whatever changes while the pages are read comes to whoever watches from here on.
        let version = space.look(Map::version);
        let at = StatePosition { epoch: space.epoch(), version };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX - 1);
        let found = page(space, filter, after, limit + 1);
        let (mut joined, mut last) = (Vec::new(), None);
        for (index, (key, entry)) in found.iter().enumerate() {
            let text = entry.text();
            let is_full = HISTORY_BYTES_MAX < joined.len() + text.len() && !joined.is_empty();
            if index == limit || is_full {
                return (at, joined, last.map(|last: &Name| last.as_str().to_owned()));
            }
            if !joined.is_empty() {
                joined.push(b',');
            }
            joined.extend_from_slice(text);
            last = Some(key);
        }
        (at, joined, None)
    }
}

/// The first `max` values that `filter` matches after `after`.
fn page(space: &Space, filter: &Filter, after: Option<&str>, max: usize) -> Vec<(Name, Entry)> {
    let (mut found, mut after) = (Vec::new(), after.map(str::to_owned));
    while found.len() < max {
        let left = max - found.len();
        let Page { values, more } = space.look(|map| map.list(filter, after.as_deref(), left));
        found.extend(values);
        let Some(more) = more else { break };
        after = Some(more.as_str().to_owned());
    }
    found
}

/// Keys that go at once with the lock held.
const EXPIRED_PER_TURN: usize = 256;
/// How long the keeper waits where a store has failed.
const EXPIRE_AGAIN_MS: u64 = 1_000;

/// The refusal of a change, in words for whoever asked for it.
fn refuse(key: &Name, error: ChangeError) -> Refusal {
    let (code, field) = match error {
        ChangeError::Conflict { .. } | ChangeError::Changing { .. } => {
            (Code::Conflict, Some("if_version"))
        }
        ChangeError::NotFound => (Code::NotFound, Some("key")),
        ChangeError::TooLarge { .. } => (Code::TooLarge, Some("value")),
        ChangeError::Keys { .. } | ChangeError::Bytes { .. } => (Code::LimitExceeded, None),
    };
    let version = match error {
        ChangeError::Conflict { found, .. } | ChangeError::Changing { found } => Some(found),
        ChangeError::NotFound
        | ChangeError::TooLarge { .. }
        | ChangeError::Keys { .. }
        | ChangeError::Bytes { .. } => None,
    };
    Refusal { field, version, ..Refusal::new(code, format!("{key} is not changed: {error}")) }
}
