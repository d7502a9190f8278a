//! The state itself: keys with their newest values, and an order of all changes in which each key
//! stands once, at its newest.
//!
//! Plain data: time comes in as an argument, effects go out as values.

mod gate;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

pub use gate::Pending;

use crate::{
    name::{Filter, Name},
    state::{Entry, Now},
};

/// Bounds of one map.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub keys_max: usize,
    pub value_bytes_max: usize,
    /// Messages and keys together, tombstones included.
    pub bytes_max: u64,
    pub tombstones_max: usize,
}

/// What is to become of a key.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    pub key: &'a Name,
    /// JSON text; `None` deletes.
    pub value: Option<&'a str>,
    /// The version that the key must have; 0 for one that must not be there, [`ANY_VERSION`] for
    /// one that must.
    pub if_version: Option<u64>,
    pub ttl_ms: Option<u64>,
    /// Who changes it, as a JSON string.
    pub user: Option<&'a [u8]>,
}

/// Whichever version a key has, if it has a value.
pub const ANY_VERSION: u64 = u64::MAX;

/// Why a change was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// `found` is 0 if the key is not there.
    #[error("the key has version {found}, not {wanted}")]
    Conflict { wanted: u64, found: u64 },
    /// Another change of it is on its way to the disk, and not to be seen before it is there.
    /// `found` is the version that is seen.
    #[error("the key is being changed by somebody else; it had version {found}")]
    Changing { found: u64 },
    #[error("there is no such key")]
    NotFound,
    #[error("the value has {bytes} bytes, allowed are {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("there are already {max} keys, which is the limit")]
    Keys { max: usize },
    #[error("the state would take {bytes} bytes, allowed are {max}")]
    Bytes { bytes: u64, max: u64 },
}

/// A change that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    pub version: u64,
    /// Nobody sees it before it is stored.
    pub is_pending: bool,
    /// Bytes of its message.
    pub bytes: u64,
    /// The key had no value before.
    pub is_new: bool,
}

/// What a look behind a position found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// Changes up to this version were copied; there may be more.
    UpTo(u64),
    /// Deletions after the position are not known any more.
    Lost,
}

/// Some of the values that a filter matches.
#[derive(Clone, Debug)]
pub struct Page {
    /// In the order of their keys.
    pub values: Vec<(Name, Entry)>,
    /// After which key the next one begins, if there may be one.
    pub more: Option<Name>,
}

/// Which changes are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Of keys that one of these matches.
    pub filters: &'a [Filter],
    pub after: u64,
    pub upto: u64,
    /// Values only: whoever asks had nothing before.
    pub is_snapshot: bool,
}

/// Keys that one look passes at most, so that nobody waits long for the lock.
const LOOK_KEYS_MAX: usize = 1_024;
/// As [`LOOK_KEYS_MAX`], for keys that are compared with several filters each.
const LOOK_MATCHES_MAX: usize = 4_096;
/// What a key costs beside its name and its message, about.
const ENTRY_BYTES: u64 = 160;

/// One key.
#[derive(Debug, Default)]
struct Slot {
    visible: Option<Entry>,
    /// Newer, and not stored yet.
    pending: Option<Entry>,
}

impl Slot {
    fn latest(&self) -> Option<&Entry> {
        self.pending.as_ref().or(self.visible.as_ref())
    }

    fn bytes(&self) -> u64 {
        let each = |entry: &Entry| entry.frame().len() as u64;
        self.visible.iter().chain(&self.pending).map(each).sum()
    }

    fn visible_version(&self) -> u64 {
        self.visible.as_ref().map_or(0, |entry| entry.version)
    }

    /// The version of the value that is seen; 0 if there is none.
    fn seen_version(&self) -> u64 {
        self.visible.as_ref().filter(|entry| !entry.is_deleted()).map_or(0, |entry| entry.version)
    }

    /// The version of the value that whoever changes it next finds; 0 if there is none.
    fn version(&self) -> u64 {
        self.latest().filter(|entry| !entry.is_deleted()).map_or(0, |entry| entry.version)
    }
}

/// The state: a map with one version counter.
///
/// Invariants, asserted by [`Map::check`]:
///
/// 1. `order` has the version of every visible entry, and nothing else; `pending` that of every
///    pending one.
/// 2. Every version in `order` is at most `visible`, every pending one is greater.
/// 3. `tombstones` are the versions of visible deletions, `live` counts the keys whose latest entry
///    is a value, and `bytes` is what they all take.
/// 4. `expiries` has the latest entry of each key that expires.
#[derive(Debug)]
pub struct Map {
    slots: BTreeMap<Name, Slot>,
    order: BTreeMap<u64, Name>,
    pending: BTreeMap<u64, Name>,
    tombstones: BTreeSet<u64>,
    expiries: BTreeSet<(u64, u64, Name)>,
    /// The newest version that was given out.
    last: u64,
    visible: u64,
    /// The newest deletion that is not known any more.
    horizon: u64,
    live: usize,
    bytes: u64,
    limits: Limits,
    /// Changes are seen only when they are stored.
    is_gated: bool,
    /// Tombstones that went, and that the store still has.
    forgotten: Vec<Name>,
    /// The store has nothing of what is seen.
    is_unknown: bool,
}

impl Map {
    #[must_use]
    pub fn new(limits: Limits, is_gated: bool) -> Map {
        Map {
            slots: BTreeMap::new(),
            order: BTreeMap::new(),
            pending: BTreeMap::new(),
            tombstones: BTreeSet::new(),
            expiries: BTreeSet::new(),
            last: 0,
            visible: 0,
            horizon: 0,
            live: 0,
            bytes: 0,
            limits,
            is_gated,
            forgotten: Vec::new(),
            is_unknown: false,
        }
    }

    /// The newest version that may be seen.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.visible
    }

    /// Positions before this one may lack deletions.
    #[must_use]
    pub fn horizon(&self) -> u64 {
        self.horizon
    }

    /// Keys that have a value.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.tombstones.len()
    }

    pub fn apply_limits(&mut self, limits: Limits) {
        self.limits = limits;
        self.purge();
    }

    /// What `key` has, or that it was deleted.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.slots.get(key)?.visible.as_ref()
    }

    /// The value of `key`, if it has one.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entry(key).filter(|entry| !entry.is_deleted())
    }

    /// Applies one change.
    ///
    /// # Errors
    ///
    /// The rule that it breaks; nothing has changed then.
    pub fn apply(&mut self, change: &Change<'_>, now: Now) -> Result<Applied, ChangeError> {
        let Change { key, value, if_version, ttl_ms, user } = *change;
        let slot = self.slots.get(key);
        let found = slot.map_or(0, Slot::version);
        if let Some(wanted) = if_version.filter(|wanted| *wanted != ANY_VERSION || found == 0) {
            // A version that may never come to be is told nobody: it would be given out again.
            if let Some(slot) = slot.filter(|slot| slot.pending.is_some()) {
                return Err(ChangeError::Changing { found: slot.seen_version() });
            }
            if wanted != found {
                return Err(ChangeError::Conflict { wanted, found });
            }
        }
        match value {
            None if found == 0 => return Err(ChangeError::NotFound),
            None => {}
            Some(value) => self.admit(key, value, found)?,
        }
        let version = self.last + 1;
        let entry = Entry::new((version, now), key, value, user, ttl_ms);
        let bytes = entry.frame().len() as u64;
        self.last = version;
        self.put_pending(key, entry);
        if !self.is_gated {
            self.show(version);
            self.purge();
        }
        Ok(Applied { version, is_pending: self.is_gated, bytes, is_new: found == 0 })
    }

    /// As [`Map::apply`], for a change that must be taken in even if there is no room for it.
    ///
    /// # Errors
    ///
    /// The rule that it breaks beside the bounds; nothing has changed then.
    pub fn apply_beyond_bounds(
        &mut self,
        change: &Change<'_>,
        now: Now,
    ) -> Result<Applied, ChangeError> {
        let bounds = self.limits;
        self.limits = Limits {
            keys_max: usize::MAX,
            value_bytes_max: usize::MAX,
            bytes_max: u64::MAX,
            ..bounds
        };
        let applied = self.apply(change, now);
        self.limits = bounds;
        applied
    }

    /// Whether there is room for `value`.
    fn admit(&self, key: &Name, value: &str, found: u64) -> Result<(), ChangeError> {
        let Limits { keys_max, value_bytes_max, bytes_max, .. } = self.limits;
        if value_bytes_max < value.len() {
            return Err(ChangeError::TooLarge { bytes: value.len(), max: value_bytes_max });
        }
        if found == 0 && keys_max <= self.live {
            return Err(ChangeError::Keys { max: keys_max });
        }
        let before = self.slots.get(key).map_or(0, Slot::bytes);
        let bytes = self.bytes - before + value.len() as u64 + ENTRY_BYTES;
        // Who makes it smaller is never refused, nor who changes a digit of it.
        if bytes_max < bytes && before < value.len() as u64 {
            return Err(ChangeError::Bytes { bytes, max: bytes_max });
        }
        Ok(())
    }

    /// Makes `entry` the latest of `key`, to be seen later.
    fn put_pending(&mut self, key: &Name, entry: Entry) {
        if !self.slots.contains_key(key) {
            self.slots.insert(key.clone(), Slot::default());
            self.bytes += key_bytes(key);
        }
        let Some(slot) = self.slots.get_mut(key) else { return };
        self.bytes -= slot.bytes();
        self.live -= usize::from(slot.version() != 0);
        if let Some(latest) = slot.latest()
            && let Some(expires) = latest.expires
        {
            self.expiries.remove(&(expires.uptime_ms, latest.version, key.clone()));
        }
        if let Some(before) = &slot.pending {
            self.pending.remove(&before.version);
        }
        if let Some(expires) = entry.expires {
            self.expiries.insert((expires.uptime_ms, entry.version, key.clone()));
        }
        self.pending.insert(entry.version, key.clone());
        slot.pending = Some(entry);
        self.live += usize::from(slot.version() != 0);
        self.bytes += slot.bytes();
    }

    /// Lets the pending entry with `version` be seen.
    fn show(&mut self, version: u64) {
        let Some(key) = self.pending.remove(&version) else { return };
        let Some(slot) = self.slots.get_mut(&key) else { return };
        let Some(entry) = slot.pending.take() else { return };
        // It may stand there until now beside what it replaces.
        self.bytes -= slot.visible.as_ref().map_or(0, |entry| entry.frame().len() as u64);
        self.stand(&key, entry);
    }

    /// Makes `entry` what is seen of `key`. Its bytes are counted.
    fn stand(&mut self, key: &Name, entry: Entry) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let version = entry.version;
        if entry.is_deleted() {
            self.tombstones.insert(version);
        }
        if let Some(before) = slot.visible.replace(entry) {
            self.order.remove(&before.version);
            self.tombstones.remove(&before.version);
        }
        self.order.insert(version, key.clone());
        self.visible = self.visible.max(version);
        self.last = self.last.max(version);
    }

    /// Forgets the oldest deletions beyond the bound.
    fn purge(&mut self) {
        while self.limits.tombstones_max < self.tombstones.len() {
            let Some(version) = self.tombstones.pop_first() else { return };
            let Some(key) = self.order.remove(&version) else { return };
            self.horizon = self.horizon.max(version);
            let Some(slot) = self.slots.get_mut(&key) else { return };
            let gone = slot.visible.take();
            self.bytes -= gone.map_or(0, |entry| entry.frame().len() as u64);
            if slot.pending.is_none() {
                self.slots.remove(&key);
                self.bytes -= key_bytes(&key);
                if self.is_gated {
                    self.forgotten.push(key);
                }
            }
        }
    }

    /// When the next key expires, by uptime.
    #[must_use]
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.expiries.first().map(|(uptime_ms, ..)| *uptime_ms)
    }

    /// Deletes one key that has expired. `None` if none has.
    pub fn expire_one(&mut self, now: Now) -> Option<Applied> {
        let (uptime_ms, _, key) = self.expiries.first()?;
        if now.uptime_ms < *uptime_ms {
            return None;
        }
        let key = key.clone();
        let gone = Change { key: &key, value: None, if_version: None, ttl_ms: None, user: None };
        self.apply(&gone, now).ok()
    }

    /// Appends messages of changes that are `wanted`, in the order of their versions, as many as
    /// fit into `bytes_max` but at least one.
    ///
    /// It may stop early without a message: whoever wants more asks again from where it stopped.
    pub fn copy(&self, wanted: &Wanted<'_>, bytes_max: usize, out: &mut Vec<u8>) -> Copied {
        let start = out.len();
        self.visit(wanted, |_, entry| {
            let bytes = out.len() - start;
            let has_room = bytes == 0 || bytes + entry.frame().len() <= bytes_max;
            if has_room {
                out.extend_from_slice(entry.frame());
            }
            has_room
        })
    }

    /// Shows `visit` the changes that are `wanted`, in the order of their versions, until it
    /// returns `false`, which means that it did not take the last one.
    pub fn visit(
        &self,
        wanted: &Wanted<'_>,
        mut visit: impl FnMut(&Name, &Entry) -> bool,
    ) -> Copied {
        let Wanted { filters, after, upto, is_snapshot } = *wanted;
        let upto = upto.min(self.visible);
        if upto <= after {
            return Copied::UpTo(after);
        }
        if after < self.horizon && !is_snapshot {
            return Copied::Lost;
        }
        let mut take =
            |key: &Name, entry: &Entry| (is_snapshot && entry.is_deleted()) || visit(key, entry);
        // The last one before the first that was not taken.
        let mut at = after;
        if let Some(mut entries) = self.named(filters, after, upto) {
            entries.sort_unstable_by_key(|(_, entry)| entry.version);
            for (key, entry) in entries {
                if !take(key, entry) {
                    return Copied::UpTo(at);
                }
                at = entry.version;
            }
            return Copied::UpTo(upto);
        }
        let keys_max = (LOOK_MATCHES_MAX / filters.len().max(1)).clamp(1, LOOK_KEYS_MAX);
        for (looked_at, (&version, key)) in self.order.range(after + 1..=upto).enumerate() {
            if looked_at == keys_max {
                return Copied::UpTo(at);
            }
            if filters.iter().any(|filter| filter.matches(key))
                && let Some(entry) = self.entry(key.as_str())
                && !take(key, entry)
            {
                return Copied::UpTo(at);
            }
            at = version;
        }
        Copied::UpTo(upto)
    }

    /// The entries with versions after `after` up to `upto` of keys that are named; `None` where
    /// there are patterns.
    fn named<'a>(
        &'a self,
        filters: &'a [Filter],
        after: u64,
        upto: u64,
    ) -> Option<Vec<(&'a Name, &'a Entry)>> {
        let mut entries = Vec::new();
        for filter in filters {
            let Filter::Topic(key) = filter else { return None };
            let entry = self.entry(key.as_str());
            let entry = entry.filter(|entry| after < entry.version && entry.version <= upto);
            entries.extend(entry.map(|entry| (key, entry)));
        }
        Some(entries)
    }

    /// Keys that changed after `after`, and up to which version that is: at most so many as one
    /// look takes.
    #[must_use]
    pub fn changed(&self, after: u64) -> (Vec<Name>, u64) {
        let mut changed = Vec::new();
        let mut at = after;
        for (&version, key) in self.order.range(after.saturating_add(1)..) {
            if changed.len() == LOOK_KEYS_MAX {
                return (changed, at);
            }
            changed.push(key.clone());
            at = version;
        }
        (changed, self.visible.max(after))
    }

    /// Values whose keys `filter` matches and come after `after`, in the order of their keys: at
    /// most `max`, and those among at most so many keys as one look takes. The last key that was
    /// looked at, if there may be more.
    #[must_use]
    pub fn list(&self, filter: &Filter, after: Option<&str>, max: usize) -> Page {
        if let Filter::Topic(key) = filter {
            let is_wanted = after.is_none_or(|after| after < key.as_str());
            let entry = self.get(key.as_str()).filter(|_| is_wanted);
            let values = entry.map(|entry| (key.clone(), entry.clone())).into_iter().collect();
            return Page { values, more: None };
        }
        // Nothing matches that does not begin as the pattern does.
        let begin = filter.as_str().split(['+', '#']).next().unwrap_or("").trim_end_matches('/');
        let start = match after {
            Some(after) if begin <= after => Bound::Excluded(after),
            _ => Bound::Included(begin),
        };
        let mut values = Vec::new();
        let mut last = None;
        let range = self.slots.range::<str, _>((start, Bound::Unbounded));
        let keys = range.take_while(|(key, _)| key.as_str().starts_with(begin));
        for (looked_at, (key, slot)) in keys.enumerate() {
            if looked_at == LOOK_KEYS_MAX || values.len() == max {
                return Page { values, more: last };
            }
            if filter.matches(key)
                && let Some(entry) = slot.visible.as_ref().filter(|entry| !entry.is_deleted())
            {
                values.push((key.clone(), entry.clone()));
            }
            last = Some(key.clone());
        }
        Page { values, more: None }
    }

    /// Asserts the invariants, in debug builds. The work is linear: for tests.
    pub fn check(&self) {
        let visible =
            |(key, slot): (&Name, &Slot)| Some((slot.visible.as_ref()?.version, key.clone()));
        let pending =
            |(key, slot): (&Name, &Slot)| Some((slot.pending.as_ref()?.version, key.clone()));
        let order: BTreeMap<u64, Name> = self.slots.iter().filter_map(visible).collect();
        debug_assert_eq!(order, self.order);
        let waiting: BTreeMap<u64, Name> = self.slots.iter().filter_map(pending).collect();
        debug_assert_eq!(waiting, self.pending);
        debug_assert!(self.order.keys().next_back().is_none_or(|last| *last <= self.visible));
        debug_assert!(self.pending.keys().next_back().is_none_or(|last| *last <= self.last));
        let slots = self.slots.values();
        let seen = slots.clone().filter_map(|slot| slot.visible.as_ref());
        let deleted = seen.filter(|entry| entry.is_deleted()).map(|entry| entry.version);
        debug_assert_eq!(deleted.collect::<BTreeSet<_>>(), self.tombstones);
        debug_assert_eq!(slots.clone().filter(|slot| slot.version() != 0).count(), self.live);
        let bytes = self.slots.iter().map(|(key, slot)| key_bytes(key) + slot.bytes());
        debug_assert_eq!(bytes.sum::<u64>(), self.bytes);
        let expiry = |(key, slot): (&Name, &Slot)| {
            let latest = slot.latest()?;
            Some((latest.expires?.uptime_ms, latest.version, key.clone()))
        };
        debug_assert_eq!(
            self.slots.iter().filter_map(expiry).collect::<BTreeSet<_>>(),
            self.expiries
        );
        debug_assert!(self.tombstones.len() <= self.limits.tombstones_max);
        debug_assert!(slots.clone().all(|slot| slot.latest().is_some()));
    }
}

fn key_bytes(key: &Name) -> u64 {
    key.as_str().len() as u64 + ENTRY_BYTES
}

#[cfg(test)]
mod tests;
