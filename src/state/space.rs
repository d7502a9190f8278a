//! One state: a map behind its lock, who watches it, and who waits for the store.
//!
//! A relay has two: what clients share, and what the relay itself says (`$...`), which never
//! survives a restart.
//!
//! # Threads
//!
//! Whoever changes something appends; the committer stores; writers and readers copy out.
//!
//! # Locks
//!
//! [`Rank::State`], for one change or one copy of at most a turn's bytes.

use std::sync::{Arc, OnceLock};

use crate::{
    base::{
        flag::Flag,
        interest::Interest,
        lock::{self, Rank, Ranked},
    },
    name::{Filter, Name},
    state::{Applied, Change, ChangeError, Entry, Limits, Map, Now, Page, Pending},
    wire::{codes::Durability, position::Epoch, state::Stored},
};

/// Changes that come to be seen with the lock held once.
const STORED_PER_TURN: usize = 256;

/// Who waits for a change, and the request that it answers.
pub type Asked<'a> = (&'a Arc<dyn Settle>, Option<u64>);

/// Who waits until a change is stored.
pub trait Settle: Send + Sync {
    /// Takes the answer. Must not wait for anything; called with no lock held.
    fn settle(&self, request: Option<u64>, outcome: &Result<Stored, Unsaved>);

    /// Called after a number of answers, once for each of them: time to pass them on.
    ///
    /// # Blocking
    ///
    /// While a writer's lane is full.
    fn settled(&self);
}

/// A change could not be stored, and is not there, as far as anybody can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the change could not be stored")]
pub struct Unsaved;

/// A state that exists.
pub struct Space {
    epoch: Epoch,
    is_durable: bool,
    body: Ranked<Body>,
    interest: Interest,
    /// The committer has been told that something waits for it here.
    told: Flag,
    on_change: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

struct Body {
    map: Map,
    /// Changes that wait for the store, in the order of their versions.
    waiting: Vec<Waiting>,
}

struct Waiting {
    stored: Stored,
    /// What the backlog counts it with.
    bytes: u64,
    asked: Option<(Arc<dyn Settle>, Option<u64>)>,
}

type Answer = (Arc<dyn Settle>, Option<u64>, Result<Stored, Unsaved>);

/// Answers that are to be given with no lock held, and what does not wait any more.
#[must_use]
#[derive(Default)]
pub struct Settled {
    answers: Vec<Answer>,
    /// Changes and their bytes.
    pub size: (u64, u64),
}

impl Settled {
    /// Gives all answers, and then asks that they be passed on.
    ///
    /// # Blocking
    ///
    /// While a writer's lane is full.
    pub fn tell(self) {
        lock::assert_none_held();
        for (who, request, outcome) in &self.answers {
            who.settle(*request, outcome);
        }
        for (who, ..) in self.answers {
            who.settled();
        }
    }

    fn add(&mut self, waiting: Waiting, is_stored: bool) {
        self.size.0 += 1;
        self.size.1 += waiting.bytes;
        if let Some((who, request)) = waiting.asked {
            let outcome = if is_stored { Ok(waiting.stored) } else { Err(Unsaved) };
            self.answers.push((who, request, outcome));
        }
    }
}

impl Space {
    /// An empty one, for `writers` writers. One that is durable shows changes when the committer
    /// says that they are stored.
    #[must_use]
    pub fn new(epoch: Epoch, limits: Limits, is_durable: bool, writers: usize) -> Space {
        let body = Body { map: Map::new(limits, is_durable), waiting: Vec::new() };
        Space {
            epoch,
            is_durable,
            body: Ranked::new(Rank::State, body),
            interest: Interest::new(writers),
            told: Flag::default(),
            on_change: OnceLock::new(),
        }
    }

    /// An empty one with room for a little, for tests.
    #[cfg(test)]
    pub(crate) fn of_test(writers: usize) -> Space {
        let limits = Limits {
            keys_max: 1_000,
            value_bytes_max: 1_000,
            bytes_max: 1_000_000,
            tombstones_max: 10,
        };
        Space::new(Epoch::from_number(1), limits, false, writers)
    }

    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.is_durable
    }

    /// Has `on_change` called after every change that may be seen, with no lock held. Only the
    /// first one counts.
    pub fn on_change(&self, on_change: impl Fn() + Send + Sync + 'static) {
        // There is one owner, who sets it once.
        drop(self.on_change.set(Box::new(on_change)));
    }

    /// Tells whoever looks at this that something changed.
    ///
    /// # Blocking
    ///
    /// While a writer's lane is full.
    pub fn announce(&self) {
        lock::assert_none_held();
        if let Some(on_change) = self.on_change.get() {
            on_change();
        }
    }

    /// Applies one change. The caller announces it, or tells the committer if it is pending; then
    /// whoever `asked` is answered when it is stored.
    ///
    /// # Errors
    ///
    /// The rule that it breaks.
    pub fn change(
        &self,
        change: &Change<'_>,
        now: Now,
        asked: Option<Asked<'_>>,
    ) -> Result<(Stored, Applied), ChangeError> {
        self.body.with(|body| {
            let applied = body.map.apply(change, now)?;
            Ok((body.note(self, &applied, change.value.is_none(), asked), applied))
        })
    }

    /// As [`Space::change`], for a change that must be taken in even if there is no room for it.
    ///
    /// # Errors
    ///
    /// The rule that it breaks beside the bounds.
    pub fn change_beyond_bounds(
        &self,
        change: &Change<'_>,
        now: Now,
    ) -> Result<(Stored, Applied), ChangeError> {
        self.body.with(|body| {
            let applied = body.map.apply_beyond_bounds(change, now)?;
            Ok((body.note(self, &applied, change.value.is_none(), None), applied))
        })
    }

    /// Deletes what has expired, at most `max` keys. Returns what is to be announced or told to the
    /// committer.
    pub fn expire(&self, now: Now, max: usize) -> Vec<Applied> {
        self.body.with(|body| {
            let mut gone = Vec::new();
            while gone.len() < max
                && let Some(applied) = body.map.expire_one(now)
            {
                body.note(self, &applied, true, None);
                gone.push(applied);
            }
            gone
        })
    }

    /// When the next key expires, by uptime.
    #[must_use]
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.look(Map::next_expiry_ms)
    }

    /// Runs `look` on the map. For copying and asking; changes go through the other functions.
    pub fn look<R>(&self, look: impl FnOnce(&Map) -> R) -> R {
        self.body.with(|body| look(&body.map))
    }

    /// All values that `filter` matches, in the order of their keys. What changes meanwhile may be
    /// there or not.
    #[must_use]
    pub fn list(&self, filter: &Filter) -> Vec<(Name, Entry)> {
        let (mut all, mut after) = (Vec::new(), None::<Name>);
        loop {
            let after_key = after.as_ref().map(Name::as_str);
            let Page { mut values, more } =
                self.look(|map| map.list(filter, after_key, usize::MAX));
            all.append(&mut values);
            match more {
                Some(key) => after = Some(key),
                None => return all,
            }
        }
    }

    pub fn apply_limits(&self, limits: Limits) {
        self.body.with(|body| body.map.apply_limits(limits));
    }

    /// Adds a watcher on `writer`, before the map is read for it.
    pub fn follow(&self, writer: usize) {
        self.body.with(|_| self.interest.follow(writer));
    }

    pub fn unfollow(&self, writer: usize) {
        self.interest.unfollow(writer);
    }

    /// Calls `wake` for each writer that has watchers here and no wake-up pending.
    pub fn wake(&self, wake: impl FnMut(usize)) {
        self.interest.wake(wake);
    }

    /// Clears the wake-up of `writer`, which looks next.
    pub fn woken(&self, writer: usize) {
        self.interest.woken(writer);
    }
}

impl Body {
    fn note(
        &mut self,
        space: &Space,
        applied: &Applied,
        is_deletion: bool,
        asked: Option<Asked<'_>>,
    ) -> Stored {
        let durability = if space.is_durable { Durability::Synced } else { Durability::Memory };
        let stored =
            Stored { epoch: space.epoch, version: applied.version, durability, is_deletion };
        if applied.is_pending {
            let asked = asked.map(|(who, request)| (Arc::clone(who), request));
            self.waiting.push(Waiting { stored, bytes: applied.bytes, asked });
        }
        stored
    }
}

impl Body {
    fn give_up(&mut self, taken: Option<Pending>) -> Settled {
        self.map.not_stored(taken);
        let mut settled = Settled::default();
        self.waiting.drain(..).for_each(|waiting| settled.add(waiting, false));
        settled
    }
}

/// What the committer does with it.
impl Space {
    /// Whether the committer must be told: true once until it looks.
    pub fn must_tell_committer(&self) -> bool {
        self.told.raise()
    }

    /// The committer is about to look: what comes after this tells it again.
    pub fn committer_looks(&self) {
        self.told.lower();
    }

    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.look(Map::has_pending)
    }

    /// What is to be stored now.
    #[must_use]
    pub fn take(&self) -> Pending {
        self.body.with(|body| body.map.pending())
    }

    /// What was taken is stored, and seen from now on. The caller announces it.
    pub fn stored(&self, taken: &Pending) -> Settled {
        // A little at a time, so that nobody waits long for the lock.
        for some in taken.entries.chunks(STORED_PER_TURN) {
            self.body.with(|body| body.map.some_stored(some));
        }
        self.body.with(|body| {
            body.map.all_stored();
            let mut settled = Settled::default();
            let is_done = |waiting: &Waiting| waiting.stored.version <= taken.upto;
            let done = body.waiting.partition_point(is_done);
            body.waiting.drain(..done).for_each(|waiting| settled.add(waiting, true));
            settled
        })
    }

    /// Nothing that waits is stored, nor will it be. `taken` is what the store was given.
    pub fn not_stored(&self, taken: Option<Pending>) -> Settled {
        self.body.with(|body| body.give_up(taken))
    }

    /// Takes in what the store has, and gives up what waits for it. The caller announces it.
    pub fn restore(&self, entries: Vec<(Name, Entry)>, horizon: u64, upto: u64) -> Settled {
        // At once: what comes in between would be older than what is taken in here.
        self.body.with(|body| {
            let settled = body.give_up(None);
            body.map.restore(entries, horizon, upto);
            settled
        })
    }

    /// Has everything stored once more: the store has lost it.
    pub fn store_anew(&self) {
        self.body.with(|body| body.map.store_anew());
    }
}

#[cfg(test)]
mod tests;
