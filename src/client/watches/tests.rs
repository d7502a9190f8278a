//! The watches against a model of the relay: one position per connection, watches that begin one
//! after the other, deletions that are forgotten, connections that break.

use std::collections::VecDeque;

use super::*;
use crate::{
    base::lane::{self, Receiver},
    wire::request::{self, Request, StateRequest},
};

const KEYS: [&str; 5] = ["a/x", "a/y", "a/z", "b/x", "b/y"];
const PATTERNS: [&str; 5] = ["a/+", "+/x", "#", "b/y", "a/+"];

type Entry = (u64, Option<u64>);

/// A relay with one state and one client.
struct Relay {
    epoch: u64,
    version: u64,
    horizon: u64,
    entries: BTreeMap<Name, Entry>,
    filters: Vec<Filter>,
    cursor: u64,
    stream: VecDeque<String>,
}

impl Relay {
    fn new() -> Relay {
        let (entries, filters, stream) = (BTreeMap::new(), Vec::new(), VecDeque::new());
        Relay { epoch: 1, version: 0, horizon: 0, entries, filters, cursor: 0, stream }
    }

    fn change(&mut self, key: &str, value: Option<u64>) {
        self.version += 1;
        self.entries.insert(Name::parse(key).unwrap(), (self.version, value));
    }

    fn forget_deletions(&mut self) {
        let gone = self.entries.values().filter(|(_, value)| value.is_none());
        self.horizon = gone.map(|(version, _)| *version).max().unwrap_or(0).max(self.horizon);
        self.entries.retain(|_, (_, value)| value.is_some());
    }

    fn restart(&mut self) {
        let stream = std::mem::take(&mut self.stream);
        *self = Relay { epoch: self.epoch + 1, stream, ..Relay::new() };
    }

    fn disconnect(&mut self) {
        self.filters.clear();
        self.stream.clear();
    }

    fn say(&mut self, key: &Name, (version, value): Entry) {
        let what = match value {
            Some(value) => format!(r#""value":{value}"#),
            None => r#""deleted":true"#.to_owned(),
        };
        self.stream.push_back(format!(
            r#"{{"type":"state","version":{version},"key":"{key}",{what},"time":1}}"#
        ));
    }

    fn between(&self, after: u64, upto: u64, filters: &[Filter]) -> Vec<(Name, Entry)> {
        let wanted = |(key, (version, _)): &(&Name, &Entry)| {
            after < *version && *version <= upto && filters.iter().any(|filter| filter.matches(key))
        };
        let found = self.entries.iter().filter(wanted);
        let mut found: Vec<(Name, Entry)> =
            found.map(|(key, entry)| (key.clone(), *entry)).collect();
        found.sort_by_key(|(_, (version, _))| *version);
        found
    }

    /// Sends at most `count` changes that are due.
    fn pump(&mut self, count: usize) {
        if self.filters.is_empty() {
            return;
        }
        if self.cursor < self.horizon {
            for filter in std::mem::take(&mut self.filters) {
                self.begin(&filter, None, None);
            }
            return;
        }
        let due = self.between(self.cursor, self.version, &self.filters.clone());
        if due.len() <= count {
            self.cursor = self.version;
        }
        for (key, entry) in due.into_iter().take(count) {
            self.cursor = self.cursor.max(entry.0);
            self.say(&key, entry);
        }
    }

    fn begin(&mut self, filter: &Filter, id: Option<u64>, from: Option<StatePosition>) {
        self.filters.retain(|own| own != filter);
        if self.filters.is_empty() {
            self.cursor = self.version;
        } else if self.cursor < self.horizon {
            // What it follows already has missed deletions.
            self.cursor = self.version;
            for other in std::mem::take(&mut self.filters) {
                self.begin(&other, None, None);
            }
        }
        let known = |from: &StatePosition| {
            from.epoch.number() == self.epoch
                && (self.horizon..=self.version).contains(&from.version)
        };
        let from = from.filter(known);
        let at = from.map_or(0, |from| from.version);
        let (reset, upto) = (from.is_none(), self.cursor.max(at));
        let id = id.map_or(String::new(), |id| format!(r#""id":{id},"#));
        let epoch = Epoch::from_number(self.epoch);
        self.stream.push_back(format!(
            r#"{{"type":"watching",{id}"pattern":"{filter}","epoch":"{epoch}","version":{upto},
                "reset":{reset}}}"#,
            filter = filter.as_str()
        ));
        for (key, entry) in self.between(at, upto, std::slice::from_ref(filter)) {
            if !reset || entry.1.is_some() {
                self.say(&key, entry);
            }
        }
        self.stream.push_back(format!(
            r#"{{"type":"synced","pattern":"{}","version":{upto}}}"#,
            filter.as_str()
        ));
        self.filters.push(filter.clone());
    }

    fn request(&mut self, text: &str) {
        let decoded = request::decode(text);
        let Request::State(request) = decoded.request.unwrap() else { panic!("{text}") };
        match request {
            StateRequest::Watch { filter, from } => {
                self.begin(&filter, decoded.id, from);
            }
            StateRequest::Unwatch { filter } => {
                self.filters.retain(|own| *own != filter);
                let id = decoded.id.unwrap();
                self.stream.push_back(format!(
                    r#"{{"type":"unwatched","id":{id},"pattern":"{}"}}"#,
                    filter.as_str()
                ));
            }
            StateRequest::Set { .. }
            | StateRequest::Delete { .. }
            | StateRequest::Get { .. }
            | StateRequest::Join { .. }
            | StateRequest::Leave { .. } => panic!("{text}"),
        }
    }
}

/// What a program makes of its watch.
struct Mirror {
    id: WatchId,
    filter: Filter,
    tray: Arc<Tray>,
    started: Receiver<Answer<()>>,
    values: BTreeMap<Name, u64>,
    versions: BTreeMap<Name, u64>,
    synced: bool,
}

impl Mirror {
    fn take(&mut self, count: usize) {
        for _ in 0..count {
            let Some(event) = self.tray.try_take().unwrap() else { return };
            let (key, version, value) = match event {
                WatchEvent::Reset => {
                    self.values.clear();
                    self.versions.clear();
                    self.synced = false;
                    continue;
                }
                WatchEvent::Synced { .. } => {
                    self.synced = true;
                    continue;
                }
                WatchEvent::Set(value) => (value.key.clone(), value.version, value.json().ok()),
                WatchEvent::Deleted { key, version, .. } => (key, version, None),
            };
            assert!(self.filter.matches(&key), "{key} is not of {:?}", self.filter);
            let before = self.versions.insert(key.clone(), version).unwrap_or(0);
            assert!(before < version, "{key}: {version} came after {before}");
            match value {
                Some(value) => drop(self.values.insert(key, value)),
                None => drop(self.values.remove(&key)),
            }
        }
    }
}

struct World {
    relay: Relay,
    watches: Watches,
    ids: u64,
    mirrors: Vec<Mirror>,
}

impl World {
    fn new() -> World {
        let (relay, watches) = (Relay::new(), Watches::default());
        World { relay, watches, ids: 0, mirrors: Vec::new() }
    }

    fn settle(&mut self) {
        for step in self.watches.steps() {
            match step {
                Step::Ask(ask, body) => {
                    self.ids += 1;
                    self.watches.asked(self.ids, ask);
                    self.relay.request(&message::with_id(self.ids, &body));
                }
                Step::Reconnect => panic!("nothing was refused"),
            }
        }
    }

    fn join(&mut self, pattern: &str) {
        let (inlet, started) = lane::open(lane::REPLIES);
        let (filter, tray) = (Filter::parse(pattern).unwrap(), Arc::new(Tray::new()));
        let id = self.watches.watch(filter.clone(), Arc::clone(&tray), inlet);
        let (values, versions) = (BTreeMap::new(), BTreeMap::new());
        let mirror = Mirror { id, filter, tray, started, values, versions, synced: false };
        self.mirrors.push(mirror);
        self.settle();
    }

    fn hear(&mut self, count: usize) {
        for _ in 0..count {
            let Some(text) = self.relay.stream.pop_front() else { return };
            let message: Incoming<'_> = serde_json::from_str(&text).unwrap();
            assert!(self.watches.take(&message), "{text}");
            self.settle();
        }
    }

    fn cut(&mut self) {
        self.watches.link_down();
        self.relay.disconnect();
    }

    fn connect(&mut self) {
        if !self.watches.online {
            self.watches.link_up();
            self.settle();
        }
    }

    #[track_caller]
    fn check_all(&mut self, seed: u64) {
        self.connect();
        for _ in 0..4 {
            self.hear(usize::MAX);
            self.relay.pump(usize::MAX);
        }
        self.hear(usize::MAX);
        for mirror in &mut self.mirrors {
            mirror.take(usize::MAX);
            let there = self.relay.entries.iter().filter(|(key, _)| mirror.filter.matches(key));
            let there: BTreeMap<Name, u64> =
                there.filter_map(|(key, (_, value))| Some((key.clone(), (*value)?))).collect();
            assert_eq!(mirror.values, there, "seed {seed}, {:?}", mirror.filter);
            assert!(mirror.synced, "seed {seed}, {:?}", mirror.filter);
            assert!(matches!(mirror.started.try_recv(), Ok(Ok(()))), "seed {seed}");
        }
    }
}

/// Numbers that a seed repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

#[test]
fn every_watch_ends_up_with_what_the_relay_has_whatever_happens() {
    for seed in 0..5_000 {
        let mut world = World::new();
        let mut random = Random(seed);
        for step in 0..120 {
            match random.below(16) {
                0..5 => {
                    let key = KEYS[random.below(KEYS.len())];
                    let value = (random.below(3) != 0).then_some(step);
                    world.relay.change(key, value);
                }
                5..8 => world.relay.pump(random.below(4)),
                8..11 => world.hear(random.below(6)),
                11 => {
                    if !world.mirrors.is_empty() {
                        let at = random.below(world.mirrors.len());
                        world.mirrors[at].take(random.below(5));
                    }
                }
                12 if world.mirrors.len() < 6 => {
                    world.join(PATTERNS[random.below(PATTERNS.len())]);
                }
                13 if 3 < world.mirrors.len() => {
                    let gone = world.mirrors.swap_remove(random.below(4));
                    world.watches.unwatch(&gone.filter, gone.id);
                    world.settle();
                }
                14 => world.cut(),
                15 if random.below(3) == 0 => world.relay.forget_deletions(),
                15 if random.below(4) == 0 => {
                    world.cut();
                    world.relay.restart();
                }
                _ => world.connect(),
            }
        }
        world.check_all(seed);
    }
}

/// What the client asked for, as JSON.
fn asked(watches: &mut Watches, ids: &mut u64) -> Vec<serde_json::Value> {
    let mut found = Vec::new();
    for step in watches.steps() {
        match step {
            Step::Ask(ask, body) => {
                *ids += 1;
                watches.asked(*ids, ask);
                let mut body: serde_json::Value = serde_json::from_str(&body).unwrap();
                body["id"] = (*ids).into();
                found.push(body);
            }
            Step::Reconnect => found.push("reconnect".into()),
        }
    }
    found
}

fn say(watches: &mut Watches, text: &str) {
    assert!(watches.take(&serde_json::from_str(text).unwrap()), "{text}");
}

fn watch(watches: &mut Watches, pattern: &str) -> (Arc<Tray>, Receiver<Answer<()>>) {
    let (inlet, started) = lane::open(lane::REPLIES);
    let tray = Arc::new(Tray::new());
    watches.watch(Filter::parse(pattern).unwrap(), Arc::clone(&tray), inlet);
    (tray, started)
}

const BUSY: &str = "busy";

fn refused(code: &str) -> Refused {
    crate::client::session::refused(code, "no")
}

#[test]
fn every_watch_that_was_synced_resumes_from_the_one_position() {
    let (mut watches, mut ids) = (Watches::default(), 0);
    watches.link_up();
    let _one = watch(&mut watches, "a/+");
    let _other = watch(&mut watches, "$presence/a/+");
    assert_eq!(asked(&mut watches, &mut ids).len(), 2);
    let epoch = "0000000000000001";
    say(
        &mut watches,
        &format!(
            r#"{{"type":"watching","id":1,"pattern":"a/+","epoch":"{epoch}","version":7,
                "reset":true}}"#
        ),
    );
    say(&mut watches, r#"{"type":"state","version":5,"key":"a/x","value":1,"time":1}"#);
    say(&mut watches, r#"{"type":"synced","pattern":"a/+","version":7}"#);
    say(&mut watches, r#"{"type":"state","version":9,"key":"a/x","value":2,"time":1}"#);
    let _late = watch(&mut watches, "b/+");
    asked(&mut watches, &mut ids);
    say(
        &mut watches,
        &format!(
            r#"{{"type":"watching","id":3,"pattern":"b/+","epoch":"{epoch}","version":9,
                "reset":true}}"#
        ),
    );
    say(&mut watches, r#"{"type":"state","version":20,"key":"b/x","value":1,"time":1}"#);

    watches.link_down();
    watches.link_up();
    let mut again = asked(&mut watches, &mut ids);
    again.sort_by_key(|one| one["pattern"].to_string());
    let from: Vec<&serde_json::Value> = again.iter().map(|one| &one["from"]).collect();
    assert_eq!(
        from,
        [
            &serde_json::Value::Null,
            &serde_json::json!({"epoch": epoch, "version": 9}),
            &serde_json::Value::Null,
        ],
        "only what was synced resumes, and what came in a snapshot does not count"
    );
}

#[test]
fn a_refused_watch_ends_and_one_that_had_begun_tries_another_connection() {
    let (mut watches, mut ids) = (Watches::default(), 0);
    watches.link_up();
    let (tray, started) = watch(&mut watches, "a/+");
    asked(&mut watches, &mut ids);
    assert!(watches.refuse(1, &refused(BUSY)));
    assert!(matches!(started.try_recv(), Ok(Err(ClientError::Refused(_)))));
    assert!(matches!(tray.try_take(), Err(ClientError::Refused(_))));

    let (tray, _started) = watch(&mut watches, "a/+");
    asked(&mut watches, &mut ids);
    say(
        &mut watches,
        r#"{"type":"watching","id":2,"pattern":"a/+","epoch":"0000000000000001","version":0,
            "reset":true}"#,
    );
    watches.link_down();
    watches.link_up();
    asked(&mut watches, &mut ids);
    assert!(watches.refuse(3, &refused(BUSY)));
    assert_eq!(asked(&mut watches, &mut ids), ["reconnect"]);
    watches.link_down();
    watches.link_up();
    asked(&mut watches, &mut ids);
    assert!(watches.refuse(4, &refused("forbidden")));
    assert_eq!(tray.try_take().unwrap(), Some(WatchEvent::Reset));
    assert!(matches!(tray.try_take(), Err(ClientError::Refused(_))));
    assert!(!watches.refuse(4, &refused(BUSY)), "it is answered");
}

#[test]
fn who_has_joined_joins_again_on_every_connection_until_leaving() {
    let (mut watches, mut ids) = (Watches::default(), 0);
    let info = serde_json::value::to_raw_value(&1).unwrap();
    watches.join(Name::parse("hall").unwrap(), Some(info));
    watches.join(Name::parse("attic").unwrap(), None);
    for _ in 0..2 {
        watches.link_up();
        let joins = asked(&mut watches, &mut ids);
        let topics: Vec<&serde_json::Value> = joins.iter().map(|one| &one["topic"]).collect();
        assert_eq!(topics, ["attic", "hall"]);
        assert_eq!((&joins[1]["type"], &joins[1]["info"]), (&"join".into(), &1.into()));
        watches.link_down();
    }
    watches.leave(&Name::parse("attic").unwrap());
    watches.link_up();
    let joins = asked(&mut watches, &mut ids);
    assert_eq!((joins.len(), &joins[0]["topic"]), (1, &"hall".into()));
    assert!(watches.refuse(ids, &refused("forbidden")));
    watches.link_down();
    watches.link_up();
    assert!(asked(&mut watches, &mut ids).is_empty(), "what is refused is not asked for again");
}
