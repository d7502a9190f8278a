//! The map beside a naive one that keeps everything, and watchers that stall beside both.

use std::collections::BTreeMap;

use super::*;
use crate::{base::random, state::version_in, wire::frame};

const KEYS: [&str; 8] = ["a", "b", "a/x", "a/y", "a/x/1", "b/x", "c/x/y", "d"];
const FILTERS: [&str; 7] = ["#", "a/#", "+/x", "a", "b/x", "+", "c/#"];

fn limits() -> Limits {
    Limits { keys_max: 6, value_bytes_max: 40, bytes_max: 4_000, tombstones_max: 2 }
}

/// What the map should hold, as somebody would write it who has no limits.
#[derive(Default)]
struct Model {
    /// Value and version of each key as whoever changes it finds it.
    latest: BTreeMap<&'static str, (String, u64)>,
    /// As it is seen.
    seen: BTreeMap<&'static str, (String, u64)>,
    /// Keys with changes that are not stored, and the newest of them.
    pending: BTreeMap<&'static str, u64>,
    last: u64,
}

/// A client that keeps what it is sent.
struct Client {
    filter: Filter,
    held: BTreeMap<String, String>,
    at: u64,
    /// While it gets a snapshot: up to where.
    snapshot_to: Option<u64>,
}

impl Client {
    fn new(filter: &str) -> Client {
        let filter = Filter::parse(filter).unwrap();
        Client { filter, held: BTreeMap::new(), at: 0, snapshot_to: None }
    }

    /// Takes one batch; begins anew if the map asks for it.
    fn read(&mut self, map: &Map, bytes_max: usize) {
        let wanted = Wanted {
            filters: std::slice::from_ref(&self.filter),
            after: self.at,
            upto: self.snapshot_to.unwrap_or(u64::MAX),
            is_snapshot: self.snapshot_to.is_some(),
        };
        let mut out = Vec::new();
        match map.copy(&wanted, bytes_max, &mut out) {
            Copied::Lost => {
                self.held.clear();
                (self.at, self.snapshot_to) = (0, Some(map.version()));
            }
            Copied::UpTo(at) => {
                let mut before = self.at;
                let mut rest = &out[..];
                while !rest.is_empty() {
                    let (own, others) = rest.split_at(frame::length(rest));
                    let version = version_in(frame::payload(own)).unwrap();
                    assert!(before < version && version <= at, "{before} {version} {at}");
                    before = version;
                    self.take(frame::payload(own));
                    rest = others;
                }
                assert!(self.at <= at);
                self.at = at;
                if self.snapshot_to.is_some_and(|to| to <= at) {
                    self.snapshot_to = None;
                }
            }
        }
    }

    fn take(&mut self, text: &[u8]) {
        let state: serde_json::Value = serde_json::from_slice(text).unwrap();
        let key = state["key"].as_str().unwrap().to_owned();
        if state["deleted"] == true {
            assert!(self.snapshot_to.is_none(), "a snapshot has no deletions");
            self.held.remove(&key);
        } else {
            self.held.insert(key, state["value"].to_string());
        }
    }

    fn has_all(&self, map: &Map) -> bool {
        self.at == map.version() && self.snapshot_to.is_none()
    }
}

fn pick<T: Copy>(from: &[T]) -> T {
    from[usize::try_from(random::below(from.len() as u64)).unwrap()]
}

fn step(map: &mut Map, model: &mut Model, now: Now) {
    let text = pick(&KEYS);
    let key = Name::parse(text).unwrap();
    let found = model.latest.get(text).map_or(0, |(_, version)| *version);
    let if_version = match random::below(4) {
        0 => Some(found),
        1 => Some(found + random::below(3)),
        _ => None,
    };
    let value = match random::below(12) {
        0 => format!("\"{}\"", "x".repeat(50)),
        1..8 => random::below(1_000).to_string(),
        _ => String::new(),
    };
    let value = (!value.is_empty()).then_some(value);
    let change =
        Change { key: &key, value: value.as_deref(), if_version, ttl_ms: None, user: None };
    let outcome = map.apply(&change, now);
    let expected = match (&value, if_version) {
        (_, Some(_)) if model.pending.contains_key(text) => {
            let found = model.seen.get(text).map_or(0, |(_, version)| *version);
            Err(ChangeError::Changing { found })
        }
        (_, Some(wanted)) if wanted != found => Err(ChangeError::Conflict { wanted, found }),
        (None, _) if found == 0 => Err(ChangeError::NotFound),
        (Some(value), _) if 40 < value.len() => {
            Err(ChangeError::TooLarge { bytes: value.len(), max: 40 })
        }
        (Some(_), _) if found == 0 && 6 <= model.latest.len() => Err(ChangeError::Keys { max: 6 }),
        _ => Ok(()),
    };
    assert_eq!(outcome.map(|_| ()), expected);
    let Ok(applied) = outcome else { return };
    assert!(model.last < applied.version);
    model.last = applied.version;
    match value {
        Some(value) => drop(model.latest.insert(text, (value, applied.version))),
        None => drop(model.latest.remove(text)),
    }
    if applied.is_pending {
        model.pending.insert(text, applied.version);
    } else {
        model.seen = model.latest.clone();
    }
}

/// All that `filter` matches, a few at a time.
fn list(map: &Map, filter: &str) -> Vec<(Name, Entry)> {
    let (filter, mut all, mut after) = (Filter::parse(filter).unwrap(), Vec::new(), None::<Name>);
    loop {
        let page = map.list(&filter, after.as_ref().map(Name::as_str), 2);
        assert!(page.values.len() <= 2);
        all.extend(page.values);
        after = page.more;
        if after.is_none() {
            return all;
        }
    }
}

fn compare(map: &Map, model: &Model) {
    map.check();
    for text in KEYS {
        let found = map.get(text).map(|entry| (entry.value().unwrap().to_owned(), entry.version));
        assert_eq!(found.as_ref(), model.seen.get(text), "{text}");
    }
    assert_eq!((map.len(), map.is_empty()), (model.latest.len(), model.latest.is_empty()));
    let all: Vec<u64> = list(map, "#").iter().map(|(_, entry)| entry.version).collect();
    let expected: Vec<u64> = model.seen.values().map(|(_, version)| *version).collect();
    assert_eq!(all, expected);
}

/// Random changes, commits and failures, and watchers that read whenever they like.
fn run(is_gated: bool, steps: usize) {
    let mut map = Map::new(limits(), is_gated);
    let mut model = Model::default();
    let mut clients = FILTERS.map(Client::new);
    let mut taken: Option<(Pending, Model)> = None;
    for at in 0..steps {
        step(&mut map, &mut model, Now { uptime_ms: at as u64, unix_ms: at as u64 });
        if is_gated {
            match random::below(6) {
                0 if taken.is_none() => {
                    let latest = model.latest.clone();
                    taken = Some((map.pending(), Model { latest, ..Model::default() }));
                }
                1 | 2 => {
                    if let Some((pending, then)) = taken.take() {
                        map.stored(&pending);
                        model.seen = then.latest;
                        model.pending.retain(|_, version| pending.upto < *version);
                    }
                }
                3 if random::below(4) == 0 => {
                    map.not_stored(taken.take().map(|(pending, _)| pending));
                    model.latest = model.seen.clone();
                    model.pending.clear();
                }
                _ => {}
            }
        }
        compare(&map, &model);
        let client = &mut clients[usize::try_from(random::below(7)).unwrap()];
        if random::below(3) == 0 {
            client.read(&map, usize::try_from(random::below(300)).unwrap());
        }
    }
    if is_gated {
        map.not_stored(taken.map(|(pending, _)| pending));
    }
    for client in &mut clients {
        while !client.has_all(&map) {
            client.read(&map, 200);
        }
        let expected: BTreeMap<String, String> = list(&map, client.filter.as_str())
            .iter()
            .map(|(key, entry)| (key.as_str().to_owned(), entry.value().unwrap().to_owned()))
            .collect();
        assert_eq!(client.held, expected, "{}", client.filter);
    }
}

#[test]
fn random_changes_agree_with_a_naive_map_and_every_watcher_ends_with_its_content() {
    for _ in 0..3_000 {
        run(false, 60);
        run(true, 60);
    }
}

fn key(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn set(map: &mut Map, name: &str, value: &str) -> u64 {
    set_for(map, name, value, None, 0)
}

fn set_for(map: &mut Map, name: &str, value: &str, ttl_ms: Option<u64>, now_ms: u64) -> u64 {
    let key = key(name);
    let change = Change { key: &key, value: Some(value), if_version: None, ttl_ms, user: None };
    map.apply(&change, Now { uptime_ms: now_ms, unix_ms: now_ms }).unwrap().version
}

#[test]
fn a_key_expires_once_and_only_at_its_newest() {
    let mut map = Map::new(limits(), false);
    set_for(&mut map, "a", "1", Some(10), 0);
    set_for(&mut map, "a", "2", Some(30), 5);
    set_for(&mut map, "b", "1", Some(20), 0);
    set(&mut map, "b", "2");
    assert_eq!(map.next_expiry_ms(), Some(35));
    assert_eq!(map.expire_one(Now { uptime_ms: 34, unix_ms: 0 }), None);
    assert!(map.expire_one(Now { uptime_ms: 35, unix_ms: 0 }).is_some());
    assert!(map.get("a").is_none() && map.entry("a").unwrap().is_deleted());
    assert_eq!(map.expire_one(Now { uptime_ms: 1_000, unix_ms: 0 }), None);
    assert_eq!(map.get("b").unwrap().value(), Some("2"));
    map.check();
}

#[test]
fn an_expiry_whose_deletion_was_not_stored_is_tried_again() {
    let mut map = Map::new(limits(), true);
    set_for(&mut map, "a", "1", Some(10), 0);
    let taken = map.pending();
    map.stored(&taken);
    assert!(map.expire_one(Now { uptime_ms: 10, unix_ms: 0 }).is_some());
    map.not_stored(None);
    map.check();
    assert_eq!(map.get("a").unwrap().value(), Some("1"));
    assert!(map.expire_one(Now { uptime_ms: 11, unix_ms: 0 }).is_some());
}

#[test]
fn a_position_before_a_forgotten_deletion_is_lost_and_a_snapshot_is_not() {
    let mut map = Map::new(limits(), false);
    for name in ["a", "b", "d"] {
        set(&mut map, name, "1");
    }
    for name in ["a", "b", "d"] {
        let key = key(name);
        let gone = Change { key: &key, value: None, if_version: None, ttl_ms: None, user: None };
        map.apply(&gone, Now::default()).unwrap();
    }
    set(&mut map, "e", "5");
    let filters = [Filter::parse("#").unwrap()];
    let wanted = |after, is_snapshot| Wanted { filters: &filters, after, upto: 7, is_snapshot };
    let mut out = Vec::new();
    assert_eq!((map.horizon(), map.tombstones()), (4, 2));
    assert_eq!(map.copy(&wanted(3, false), 1_000, &mut out), Copied::Lost);
    assert_eq!(map.copy(&wanted(4, false), 1_000, &mut out), Copied::UpTo(7));
    assert_eq!(frame::payloads(&out).count(), 3);
    out.clear();
    assert_eq!(map.copy(&wanted(0, true), 1_000, &mut out), Copied::UpTo(7));
    assert_eq!(frame::payloads(&out).count(), 1);
}

#[test]
fn any_version_is_one_that_is_there() {
    for is_gated in [false, true] {
        let mut map = Map::new(limits(), is_gated);
        let key = key("a");
        let change = |value| {
            let if_version = Some(ANY_VERSION);
            Change { key: &key, value, if_version, ttl_ms: None, user: None }
        };
        let missing = Err(ChangeError::Conflict { wanted: ANY_VERSION, found: 0 });
        assert_eq!(map.apply(&change(Some("1")), Now::default()), missing);
        set(&mut map, "a", "1");
        assert_eq!(map.apply(&change(Some("2")), Now::default()).unwrap().version, 2);
        assert_eq!(map.apply(&change(None), Now::default()).unwrap().version, 3);
        map.check();
    }
}

#[test]
fn the_bound_of_bytes_refuses_growth_and_lets_shrink() {
    let limits = Limits { keys_max: 100, value_bytes_max: 1_000, bytes_max: 2_000, ..limits() };
    let mut map = Map::new(limits, false);
    let long = format!("\"{}\"", "x".repeat(900));
    set(&mut map, "a", &long);
    let key = key("b");
    let change =
        Change { key: &key, value: Some(&long), if_version: None, ttl_ms: None, user: None };
    let error = map.apply(&change, Now::default()).unwrap_err();
    assert!(matches!(error, ChangeError::Bytes { max: 2_000, .. }), "{error}");
    map.apply_limits(Limits { bytes_max: 100, ..limits });
    set(&mut map, "a", "1");
    assert_eq!(map.get("a").unwrap().value(), Some("1"));
    map.check();
}

#[test]
fn what_the_store_has_is_taken_in_if_it_is_newer() {
    let mut map = Map::new(limits(), true);
    set(&mut map, "a", "1");
    let taken = map.pending();
    map.stored(&taken);
    set(&mut map, "a", "2");
    set(&mut map, "b", "2");
    let lost = map.pending();
    // The store failed, and has it nevertheless.
    map.not_stored(Some(lost.clone()));
    assert_eq!(map.get("a").unwrap().value(), Some("1"));
    map.restore(lost.entries, 0, lost.upto);
    map.check();
    assert_eq!(map.get("a").unwrap().value(), Some("2"));
    assert_eq!(map.version(), 3);
    assert_eq!(set(&mut map, "b", "3"), 4);
}

#[test]
fn a_look_with_many_filters_passes_fewer_keys_and_ends_with_all() {
    let limits = Limits { keys_max: 2_000, bytes_max: 1 << 30, ..limits() };
    let mut map = Map::new(limits, false);
    for number in 0..1_000 {
        let key = Name::parse(&format!("a/{number}/b")).unwrap();
        let change =
            Change { key: &key, value: Some("1"), if_version: None, ttl_ms: None, user: None };
        map.apply(&change, Now::default()).unwrap();
    }
    for (count, looks_max) in [(1, 1), (1_000, 300), (10_000, 1_001)] {
        let filters: Vec<Filter> =
            (0..count).map(|number| Filter::parse(&format!("+/{number}/+")).unwrap()).collect();
        let (mut at, mut looks, mut out) = (0, 0, Vec::new());
        while at < map.version() {
            let wanted =
                Wanted { filters: &filters, after: at, upto: u64::MAX, is_snapshot: false };
            let before = at;
            let Copied::UpTo(to) = map.copy(&wanted, usize::MAX, &mut out) else { panic!("lost") };
            at = to;
            looks += 1;
            let compared = usize::try_from(at - before).unwrap() * count;
            assert!(before < at && compared <= LOOK_MATCHES_MAX.max(count), "{before} {at}");
        }
        assert!(looks <= looks_max, "{looks} looks with {count} filters");
        let found = frame::payloads(&out).count();
        assert_eq!(found, count.min(1_000));
    }
}

#[test]
fn bytes_are_counted_and_bounded_to_the_last_one() {
    let key = key("abc");
    let change =
        Change { key: &key, value: Some("\"123456\""), if_version: None, ttl_ms: None, user: None };
    // What is expected of a value is its own size and what a key costs.
    let expected = 8 + ENTRY_BYTES;
    for (bytes_max, value_bytes_max, is_taken) in [
        (expected, 8, Ok(1)),
        (expected - 1, 8, Err(ChangeError::Bytes { bytes: expected, max: expected - 1 })),
        (expected, 7, Err(ChangeError::TooLarge { bytes: 8, max: 7 })),
    ] {
        let mut map = Map::new(Limits { bytes_max, value_bytes_max, ..limits() }, false);
        let taken = map.apply(&change, Now::default());
        assert_eq!(taken.map(|applied| applied.version), is_taken);
        let frame = map.get("abc").map_or(0, |entry| entry.frame().len() as u64 + 3 + ENTRY_BYTES);
        assert_eq!(map.bytes(), frame);
    }
    // What is replaced makes room.
    let mut map = Map::new(limits(), false);
    let first = map.apply(&change, Now::default()).unwrap().bytes;
    let bytes_max = map.bytes() - first + 50 + ENTRY_BYTES;
    map.apply_limits(Limits { bytes_max, value_bytes_max: 500, ..limits() });
    let grow = |size: usize| format!("\"{}\"", "x".repeat(size - 2));
    let larger = grow(usize::try_from(first).unwrap() + 1);
    let refused = map.apply(&Change { value: Some(&larger), ..change }, Now::default());
    assert!(matches!(refused, Err(ChangeError::Bytes { .. })), "{refused:?}");
    let as_large = grow(usize::try_from(first).unwrap());
    map.apply(&Change { value: Some(&as_large), ..change }, Now::default()).unwrap();
    let before = map.apply(&change, Now::default()).unwrap().bytes;
    let fitting = grow(usize::try_from(before).unwrap() + 1);
    let bytes_max = map.bytes() + 1 + ENTRY_BYTES;
    map.apply_limits(Limits { bytes_max, value_bytes_max: 500, ..limits() });
    map.apply(&Change { value: Some(&fitting), ..change }, Now::default()).unwrap();
}

#[test]
fn a_copy_has_as_many_messages_as_fit_behind_what_is_there() {
    let mut map = Map::new(limits(), false);
    for name in ["a", "b", "d"] {
        set(&mut map, name, "1");
    }
    let one = map.get("a").unwrap().frame().len();
    let filters = [Filter::parse("#").unwrap()];
    let wanted = Wanted { filters: &filters, after: 0, upto: u64::MAX, is_snapshot: false };
    for (bytes_max, count) in [(0, 1), (2 * one - 1, 1), (2 * one, 2), (3 * one, 3)] {
        let mut out = vec![0; 7];
        assert_eq!(map.copy(&wanted, bytes_max, &mut out), Copied::UpTo(count as u64));
        assert_eq!(out.len(), 7 + count * one);
    }
}

#[test]
fn what_has_changed_is_listed_a_look_at_a_time() {
    let limits = Limits { keys_max: 2_000, bytes_max: 1 << 30, ..limits() };
    let mut map = Map::new(limits, false);
    assert_eq!(map.changed(0), (vec![], 0));
    (0..1_030).for_each(|number| _ = set(&mut map, &number.to_string(), "1"));
    let (first, upto) = map.changed(0);
    assert_eq!((first.len(), upto, first[0].as_str()), (1_024, 1_024, "0"));
    let (rest, upto) = map.changed(upto);
    assert_eq!((rest.len(), upto, rest[0].as_str()), (6, 1_030, "1024"));
    assert_eq!(map.changed(1_030), (vec![], 1_030));
    assert_eq!(map.changed(2_000), (vec![], 2_000));
}

#[test]
fn a_list_begins_after_a_key_and_stops_after_a_look() {
    let limits = Limits { keys_max: 2_000, bytes_max: 1 << 30, ..limits() };
    let mut map = Map::new(limits, false);
    (0..1_030).for_each(|number| _ = set(&mut map, &format!("k/{number:04}"), "1"));
    set(&mut map, "b", "1");
    set(&mut map, "z", "1");
    let filter = |text| Filter::parse(text).unwrap();
    let found = |text, after| map.list(&filter(text), after, usize::MAX).values.len();
    assert_eq!(["a", "y", "z"].map(|after| found("z", Some(after))), [1, 1, 0]);
    assert_eq!((found("z", None), found("y", None)), (1, 0));
    assert_eq!(
        ["a", "k/1028", "k/1029", "l"].map(|after| found("k/+", Some(after))),
        [1_024, 1, 0, 0]
    );
    let page = map.list(&filter("k/+"), None, usize::MAX);
    assert_eq!(page.more.unwrap().as_str(), "k/1023");
    // Nobody is looked for in vain for long.
    let page = map.list(&filter("#"), Some("k/1000"), 1);
    assert_eq!((page.values.len(), page.more.unwrap().as_str()), (1, "k/1001"));
}

#[test]
fn what_is_to_be_stored_is_measured_with_what_is_to_be_forgotten() {
    let mut map = Map::new(limits(), true);
    assert!(map.pending().is_empty() && !map.has_pending());
    set(&mut map, "a", "1");
    assert!(map.has_pending());
    let taken = map.pending();
    let bytes = taken.entries[0].1.frame().len() as u64;
    assert_eq!((taken.is_empty(), taken.size()), (false, (1, bytes)));
    map.stored(&taken);
    map.apply_limits(Limits { tombstones_max: 0, ..limits() });
    let key = key("a");
    let gone = Change { key: &key, value: None, if_version: None, ttl_ms: None, user: None };
    map.apply(&gone, Now::default()).unwrap();
    let taken = map.pending();
    map.stored(&taken);
    assert!(map.has_pending());
    let taken = map.pending();
    assert_eq!((taken.is_empty(), taken.size(), &taken.forgotten[..]), (false, (0, 0), &[key][..]));
}

#[test]
fn what_is_restored_is_what_is_newer_and_every_deletion_that_matters() {
    let mut map = Map::new(limits(), true);
    let entry = |name, version, value| {
        let key = key(name);
        let entry = Entry::new((version, Now::default()), &key, value, None, None);
        (key, entry)
    };
    let had = vec![entry("gone", 3, None), entry("a", 2, Some("2")), entry("late", 7, None)];
    map.restore(had, 5, 9);
    map.check();
    assert_eq!((map.version(), map.horizon(), map.tombstones(), map.len()), (9, 5, 1, 1));
    assert!(map.entry("gone").is_none() && map.entry("late").unwrap().is_deleted());
    assert_eq!(map.pending().forgotten, [key("gone")]);
    map.restore(vec![entry("a", 1, Some("1"))], 0, 0);
    assert_eq!(map.get("a").unwrap().value(), Some("2"));
}

#[test]
fn a_deletion_that_is_stored_once_more_is_still_one_though_the_key_comes_back() {
    let mut map = Map::new(limits(), true);
    set(&mut map, "a", "1");
    let key = key("a");
    let gone = Change { key: &key, value: None, if_version: None, ttl_ms: None, user: None };
    map.apply(&gone, Now::default()).unwrap();
    let taken = map.pending();
    map.stored(&taken);
    map.store_anew();
    let all = map.pending();
    assert!(all.is_whole && map.has_pending());
    set(&mut map, "a", "2");
    map.stored(&all);
    map.check();
    assert!(map.entry("a").unwrap().is_deleted());
    let taken = map.pending();
    assert!(!taken.is_whole);
    map.stored(&taken);
    assert!(!map.has_pending());
    assert_eq!(map.get("a").unwrap().value(), Some("2"));
}
