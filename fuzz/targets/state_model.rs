//! The shared state beside a naive map: changes, expiries, commits that fail, new bounds, and
//! watchers that read whenever they like and in the end hold what there is.
//!
//! The first byte says whether changes wait for a disk; then each byte is a choice.

#![no_main]

use std::collections::BTreeMap;

use landline::{
    name::{Filter, Name},
    state::{
        ANY_VERSION, Change, ChangeError, Copied, Limits, Map, Now, Pending, Wanted, version_in,
    },
    wire::frame,
};
use landline_fuzz::Script;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| run(Script::new(data)));

const OPERATIONS_MAX: usize = 200;
const KEYS: [&str; 8] = ["a", "b", "a/x", "a/y", "a/x/1", "b/x", "c/x/y", "$d"];
const FILTERS: [&[&str]; 7] =
    [&["#", "$d"], &["a/#"], &["+/x", "b"], &["a"], &["b/x", "a/y"], &["+", "+/+"], &["c/#", "#"]];

/// One key as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Slot {
    value: String,
    version: u64,
    expires_ms: Option<u64>,
}

type Slots = BTreeMap<&'static str, Slot>;

#[derive(Clone, Debug, Default)]
struct Model {
    /// As whoever changes it finds it, and as it is seen.
    latest: Slots,
    seen: Slots,
    /// Keys with changes that are not stored, and the newest of them.
    pending: BTreeMap<&'static str, u64>,
    last: u64,
    keys_max: usize,
}

/// What was given to the disk, and what is seen once it has it.
type Taken = (Pending, Slots);

fn limits(keys_max: usize, tombstones_max: usize) -> Limits {
    Limits { keys_max, value_bytes_max: 40, bytes_max: 1 << 20, tombstones_max }
}

fn run(mut script: Script<'_>) {
    let is_gated = script.chance(128);
    let mut map = Map::new(limits(6, 2), is_gated);
    let mut model = Model { keys_max: 6, ..Model::default() };
    let mut watchers = FILTERS.map(Watcher::new);
    let mut taken: Option<Taken> = None;
    let mut now_ms = 0;
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = script.next() else { break };
        now_ms += script.number(8);
        let now = Now { uptime_ms: now_ms, unix_ms: now_ms };
        match operation % 12 {
            0..6 => model.change(&mut map, &mut script, now),
            6 => model.expire(&mut map, now),
            7 if is_gated && taken.is_none() => taken = Some((map.pending(), model.latest.clone())),
            7 | 8 if is_gated => model.settle(&mut map, &mut taken, &mut script),
            9 => {
                model.keys_max = script.below(9);
                map.apply_limits(limits(model.keys_max, script.below(4)));
            }
            _ => {
                let bytes_max = script.below(256) * 4;
                watchers[script.below(FILTERS.len())].read(&map, bytes_max);
            }
        }
        model.compare(&map, &mut script);
    }
    map.not_stored(taken.map(|(pending, _)| pending));
    model.latest.clone_from(&model.seen);
    for watcher in &mut watchers {
        watcher.finish(&map, &model.seen);
    }
}

impl Model {
    fn change(&mut self, map: &mut Map, script: &mut Script<'_>, now: Now) {
        let text = script.pick(&KEYS);
        let key = Name::parse(text).expect("a key");
        let found = self.latest.get(text).map_or(0, |slot| slot.version);
        let if_version = match script.below(8) {
            0 => Some(found),
            1 => Some(found + script.number(3)),
            2 => Some(ANY_VERSION),
            3 => Some(0),
            _ => None,
        };
        let value = match script.below(12) {
            0 => Some(format!("\"{}\"", "x".repeat(50))),
            1..8 => Some(script.number(256).to_string()),
            _ => None,
        };
        let ttl_ms = script.pick(&[None, None, Some(1), Some(20)]);
        let change = Change { key: &key, value: value.as_deref(), if_version, ttl_ms, user: None };
        let seen = self.seen.get(text).map_or(0, |slot| slot.version);
        let expected = match (&value, if_version) {
            (_, Some(wanted)) if wanted != ANY_VERSION || found == 0 => {
                let is_changing = self.pending.contains_key(text);
                if is_changing {
                    Err(ChangeError::Changing { found: seen })
                } else if wanted == found {
                    Ok(())
                } else {
                    Err(ChangeError::Conflict { wanted, found })
                }
            }
            _ => Ok(()),
        };
        let is_full = found == 0 && self.keys_max <= self.latest.len();
        let expected = expected.and_then(|()| match &value {
            None if found == 0 => Err(ChangeError::NotFound),
            Some(value) if 40 < value.len() => {
                Err(ChangeError::TooLarge { bytes: value.len(), max: 40 })
            }
            Some(_) if is_full => Err(ChangeError::Keys { max: self.keys_max }),
            _ => Ok(()),
        });
        let outcome = map.apply(&change, now);
        assert_eq!(outcome.map(drop), expected, "{change:?}");
        let Ok(applied) = outcome else { return };
        assert_eq!(applied.is_new, found == 0);
        let expires_ms = ttl_ms.map(|ttl_ms| now.uptime_ms + ttl_ms);
        let version = applied.version;
        let slot = value.map(|value| Slot { value, version, expires_ms });
        self.applied(text, slot, (applied.version, applied.is_pending));
    }

    fn applied(
        &mut self,
        key: &'static str,
        slot: Option<Slot>,
        (version, is_pending): (u64, bool),
    ) {
        assert!(self.last < version, "version {version} was given out before");
        self.last = version;
        match slot {
            Some(slot) => drop(self.latest.insert(key, slot)),
            None => drop(self.latest.remove(key)),
        }
        if is_pending {
            self.pending.insert(key, version);
        } else {
            self.seen.clone_from(&self.latest);
        }
    }

    fn expire(&mut self, map: &mut Map, now: Now) {
        let due = |(key, slot): (&&'static str, &Slot)| {
            Some((slot.expires_ms.filter(|due_ms| *due_ms <= now.uptime_ms)?, slot.version, *key))
        };
        let next = self.latest.values().filter_map(|slot| slot.expires_ms).min();
        assert_eq!(map.next_expiry_ms(), next);
        let expected = self.latest.iter().filter_map(due).min();
        let expired = map.expire_one(now);
        assert_eq!(expired.is_some(), expected.is_some());
        if let (Some(applied), Some((_, _, key))) = (expired, expected) {
            self.applied(key, None, (applied.version, applied.is_pending));
        }
    }

    /// What was given to the disk is there, or it is not; in the latter case the disk may have it
    /// nevertheless when it is opened anew.
    fn settle(&mut self, map: &mut Map, taken: &mut Option<Taken>, script: &mut Script<'_>) {
        if script.chance(180) {
            let Some((pending, seen)) = taken.take() else { return };
            map.stored(&pending);
            self.seen = seen;
            self.pending.retain(|_, version| pending.upto < *version);
            return;
        }
        let taken = taken.take();
        map.not_stored(taken.as_ref().map(|(pending, _)| pending.clone()));
        self.pending.clear();
        if let Some((pending, seen)) = taken
            && script.chance(128)
        {
            map.restore(pending.entries, pending.horizon, pending.upto);
            self.seen = seen;
            if script.chance(128) {
                map.store_anew();
            }
        }
        self.latest.clone_from(&self.seen);
    }

    fn compare(&self, map: &Map, script: &mut Script<'_>) {
        map.check();
        for text in KEYS {
            let found =
                map.get(text).map(|entry| (entry.value().map(str::to_owned), entry.version));
            let expected = self.seen.get(text);
            let expected = expected.map(|slot| (Some(slot.value.clone()), slot.version));
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!((map.len(), map.is_empty()), (self.latest.len(), self.latest.is_empty()));
        let filter = Filter::parse(script.pick(&FILTERS)[0]).expect("a filter");
        let mut listed = Vec::new();
        let mut after: Option<Name> = None;
        loop {
            let page = map.list(&filter, after.as_ref().map(Name::as_str), 2);
            assert!(page.values.len() <= 2);
            listed.extend(page.values.into_iter().map(|(key, entry)| (key, entry.version)));
            after = page.more;
            if after.is_none() {
                break;
            }
        }
        let listed: Vec<_> = listed.iter().map(|(key, version)| (key.as_str(), *version)).collect();
        let own = self.seen.iter().filter(|(key, _)| covers(&filter, key));
        let expected: Vec<_> = own.map(|(key, slot)| (*key, slot.version)).collect();
        assert_eq!(listed, expected, "{filter}");
    }
}

fn covers(filter: &Filter, key: &str) -> bool {
    filter.matches(&Name::parse(key).expect("a key"))
}

/// Somebody who keeps what it is sent.
struct Watcher {
    filters: Vec<Filter>,
    held: BTreeMap<String, String>,
    at: u64,
    /// While it gets a snapshot: up to where.
    snapshot_to: Option<u64>,
}

impl Watcher {
    fn new(filters: &[&str]) -> Watcher {
        let filters = filters.iter().map(|text| Filter::parse(text).expect("a filter"));
        Watcher { filters: filters.collect(), held: BTreeMap::new(), at: 0, snapshot_to: None }
    }

    /// Takes one batch; begins anew if the map asks for it.
    fn read(&mut self, map: &Map, bytes_max: usize) {
        let wanted = Wanted {
            filters: &self.filters,
            after: self.at,
            upto: self.snapshot_to.unwrap_or(u64::MAX),
            is_snapshot: self.snapshot_to.is_some(),
        };
        let mut out = Vec::new();
        match map.copy(&wanted, bytes_max, &mut out) {
            Copied::Lost => {
                assert!(self.at < map.horizon() && self.snapshot_to.is_none());
                self.held.clear();
                (self.at, self.snapshot_to) = (0, Some(map.version()));
            }
            Copied::UpTo(at) => {
                let (mut before, mut rest) = (self.at, &out[..]);
                while !rest.is_empty() {
                    let (own, others) = rest.split_at(frame::length(rest));
                    let version =
                        version_in(frame::payload(own)).expect("a state message has a version");
                    assert!(before < version && version <= at, "{before} {version} {at}");
                    before = version;
                    self.take(frame::payload(own));
                    rest = others;
                }
                assert!(self.at <= at, "from {} back to {at}", self.at);
                self.at = at;
                if self.snapshot_to.is_some_and(|to| to <= at) {
                    self.snapshot_to = None;
                }
            }
        }
    }

    fn take(&mut self, text: &[u8]) {
        let state: serde_json::Value = serde_json::from_slice(text).expect("the map writes JSON");
        let key = state["key"].as_str().expect("a key").to_owned();
        assert!(self.filters.iter().any(|filter| covers(filter, &key)), "{key} was not asked for");
        if state["deleted"] == true {
            assert!(self.snapshot_to.is_none(), "a snapshot has no deletions");
            self.held.remove(&key);
        } else {
            self.held.insert(key, state["value"].to_string());
        }
    }

    /// Reads on until it has everything, which must be what is seen.
    fn finish(&mut self, map: &Map, seen: &Slots) {
        let mut looks = 0;
        while self.at != map.version() || self.snapshot_to.is_some() {
            self.read(map, 100);
            looks += 1;
            assert!(looks < 100, "a watcher never gets everything");
        }
        let own = seen.iter().filter(|(key, _)| self.filters.iter().any(|one| covers(one, key)));
        let expected: BTreeMap<String, String> =
            own.map(|(key, slot)| ((*key).to_owned(), slot.value.clone())).collect();
        assert_eq!(self.held, expected, "{:?}", self.filters);
    }
}
