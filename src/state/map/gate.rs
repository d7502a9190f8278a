//! The gate between a change and those who see it: what is not stored yet.

use super::{Map, key_bytes};
use crate::{name::Name, state::Entry};

/// What is not stored yet, and what the store is to forget.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    /// In the order of their versions.
    pub entries: Vec<(Name, Entry)>,
    pub forgotten: Vec<Name>,
    pub horizon: u64,
    /// The newest version that is in it, or that something in it has replaced.
    pub upto: u64,
    /// It is all that there is: the store is to keep nothing else.
    pub is_whole: bool,
}

impl Pending {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.forgotten.is_empty()
    }

    /// How many entries there are, and what their messages take.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        let bytes = self.entries.iter().map(|(_, entry)| entry.frame().len() as u64).sum();
        (self.entries.len() as u64, bytes)
    }
}

/// What the store is concerned with.
impl Map {
    /// What is to be stored now. It stays pending until [`Map::stored`].
    #[must_use]
    pub fn pending(&mut self) -> Pending {
        let seen = |key: &Name| Some((key.clone(), self.slots.get(key)?.visible.clone()?));
        let entry = |key: &Name| Some((key.clone(), self.slots.get(key)?.pending.clone()?));
        let mut entries = Vec::new();
        if self.is_unknown {
            entries.extend(self.order.values().filter_map(seen));
        }
        entries.extend(self.pending.values().filter_map(entry));
        let mut forgotten = std::mem::take(&mut self.forgotten);
        // A key that came back is not to be forgotten.
        forgotten.retain(|key| !self.slots.contains_key(key));
        let (horizon, upto, is_whole) = (self.horizon, self.last, self.is_unknown);
        Pending { entries, forgotten, horizon, upto, is_whole }
    }

    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty() || !self.forgotten.is_empty() || self.is_unknown
    }

    /// All of what was taken is stored: it is seen from now on.
    pub fn stored(&mut self, taken: &Pending) {
        self.some_stored(&taken.entries);
        self.all_stored();
    }

    /// Everything that is seen is in the store.
    pub fn all_stored(&mut self) {
        self.is_unknown = false;
    }

    /// Some of what was taken is seen from now on: all before it is already, and the rest follows.
    pub fn some_stored(&mut self, entries: &[(Name, Entry)]) {
        for (key, entry) in entries {
            let Some(slot) = self.slots.get_mut(key) else { continue };
            match &slot.pending {
                Some(pending) if pending.version == entry.version => self.show(entry.version),
                // It was changed once more meanwhile, which is not stored.
                Some(_) if slot.visible_version() < entry.version => {
                    self.bytes -= slot.visible.as_ref().map_or(0, |old| old.frame().len() as u64);
                    self.bytes += entry.frame().len() as u64;
                    self.stand(key, entry.clone());
                }
                _ => {}
            }
        }
        self.purge();
    }

    /// Has everything that is seen stored once more.
    pub fn store_anew(&mut self) {
        self.is_unknown = self.is_gated;
    }

    /// Nothing that is pending is stored, nor will it be: every key is as it was seen last.
    /// `taken` is what a store that failed was given.
    pub fn not_stored(&mut self, taken: Option<Pending>) {
        self.forgotten.extend(taken.into_iter().flat_map(|taken| taken.forgotten));
        for key in std::mem::take(&mut self.pending).into_values() {
            let Some(slot) = self.slots.get_mut(&key) else { continue };
            self.bytes -= slot.bytes();
            self.live -= usize::from(slot.version() != 0);
            if let Some(gone) = slot.pending.take()
                && let Some(expires) = gone.expires
            {
                self.expiries.remove(&(expires.uptime_ms, gone.version, key.clone()));
            }
            if let Some(entry) = &slot.visible
                && let Some(expires) = entry.expires
            {
                self.expiries.insert((expires.uptime_ms, entry.version, key.clone()));
            }
            self.live += usize::from(slot.version() != 0);
            self.bytes += slot.bytes();
            if slot.visible.is_none() {
                self.slots.remove(&key);
                self.bytes -= key_bytes(&key);
            }
        }
    }

    /// Takes in what the store has, which may be more than was ever confirmed, never less. Nothing
    /// may be pending. No version up to `upto` is given out again.
    pub fn restore(&mut self, entries: Vec<(Name, Entry)>, horizon: u64, upto: u64) {
        debug_assert!(self.pending.is_empty());
        self.horizon = self.horizon.max(horizon);
        self.last = self.last.max(upto);
        self.visible = self.visible.max(upto);
        for (key, entry) in entries {
            match self.slots.get(&key).and_then(|slot| slot.visible.as_ref()) {
                Some(visible) if entry.version <= visible.version => {}
                None if entry.version <= self.horizon && entry.is_deleted() => {
                    self.forgotten.push(key);
                }
                _ => {
                    let version = entry.version;
                    self.put_pending(&key, entry);
                    self.show(version);
                }
            }
        }
        self.purge();
    }
}
