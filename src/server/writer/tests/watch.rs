//! Watches: what a client that follows the protocol ends up with, however its writer is disturbed.

use std::{collections::BTreeMap, io::Read, net::TcpStream, sync::Arc};

use serde_json::Value;

use super::{Rig, publish, rig, seqs, topic};
use crate::{
    name::{Filter, Name},
    server::{
        state::Which,
        writer::{Command, UnwatchOrder, WatchOrder},
    },
    state::{Change, Now, Space},
    wire::{frame, position::Epoch, state::StatePosition},
};

/// What a client has, and what it holds the relay to.
#[derive(Default)]
struct Viewer {
    bytes: Vec<u8>,
    /// Versions by key.
    held: BTreeMap<String, u64>,
    /// As the protocol has clients keep it.
    position: u64,
    /// Whose beginning comes, whether with everything, and the version before.
    catching: Option<(String, bool, u64)>,
    synced: Vec<String>,
    /// Were synced until the relay began all of them anew.
    stale: Vec<String>,
    states: usize,
    resets: usize,
    replies: Vec<Value>,
}

impl Viewer {
    /// Reads what has come; whether anything had.
    fn read(&mut self, client: &mut TcpStream, bytes_max: usize) -> bool {
        let mut buffer = vec![0; bytes_max];
        let got = client.read(&mut buffer).unwrap_or(0);
        self.bytes.extend_from_slice(&buffer[..got]);
        while let Some(length) = whole_frame(&self.bytes) {
            let frame: Vec<u8> = self.bytes.drain(..length).collect();
            self.take(&serde_json::from_slice(frame::payload(&frame)).unwrap());
        }
        0 < got
    }

    #[track_caller]
    fn take(&mut self, message: &Value) {
        let version = message["version"].as_u64().unwrap_or(0);
        match message["type"].as_str().unwrap() {
            "watching" => {
                let pattern = message["pattern"].as_str().unwrap().to_owned();
                let reset = message["reset"] == true;
                if message["id"].is_null() && self.synced.contains(&pattern) {
                    self.stale.append(&mut self.synced);
                }
                self.synced.retain(|own| *own != pattern);
                self.stale.retain(|own| *own != pattern);
                if reset {
                    self.resets += 1;
                    let kept = self.synced.iter().chain(&self.stale);
                    let kept: Vec<Filter> = kept.map(|own| filter(own)).collect();
                    self.held.retain(|key, _| kept.iter().any(|own| own.matches(&name(key))));
                }
                self.catching = Some((pattern, reset, 0));
                self.replies.push(message.clone());
            }
            "synced" => {
                let (pattern, ..) = self.catching.take().expect("a beginning");
                assert_eq!(message["pattern"], pattern.as_str());
                self.synced.push(pattern);
                self.position = self.position.max(version);
            }
            "state" => self.take_state(message, version),
            "unwatched" => {
                let pattern = message["pattern"].as_str().unwrap();
                self.synced.retain(|own| own != pattern);
                if self.catching.as_ref().is_some_and(|(own, ..)| own == pattern) {
                    self.catching = None;
                }
                self.replies.push(message.clone());
            }
            _ => self.replies.push(message.clone()),
        }
    }

    #[track_caller]
    fn take_state(&mut self, message: &Value, version: u64) {
        self.states += 1;
        let key = message["key"].as_str().unwrap();
        if let Some((pattern, reset, before)) = &mut self.catching {
            assert!(*before < version && filter(pattern).matches(&name(key)), "{message}");
            assert!(!*reset || message.get("value").is_some(), "{message}");
            *before = version;
        } else {
            assert!(self.position < version, "back from {}: {message}", self.position);
            assert!(
                self.synced.iter().any(|own| filter(own).matches(&name(key))),
                "nobody watches this: {message}"
            );
            self.position = version;
        }
        if message["deleted"] == true {
            self.held.remove(key);
        } else {
            self.held.insert(key.to_owned(), version);
        }
    }
}

/// How long the first frame is, if it is there as a whole.
fn whole_frame(bytes: &[u8]) -> Option<usize> {
    let header = match bytes.get(1)? {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    (header <= bytes.len()).then(|| frame::length(bytes)).filter(|length| *length <= bytes.len())
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn filter(text: &str) -> Filter {
    Filter::parse(text).unwrap()
}

impl Rig {
    fn space(&self) -> Arc<Space> {
        Arc::clone(&self.writer.views[Which::Shared as usize].space)
    }

    fn watch_from(&mut self, connection: u64, pattern: &str, from: Option<u64>) {
        let which = Which::of(pattern);
        self.writer.views[which as usize].space.follow(0);
        let from = from.map(|version| StatePosition { epoch: Epoch::from_number(1), version });
        let (request, filter) = (Some(7), filter(pattern));
        let order = WatchOrder { connection, request, filter, from };
        self.writer.obey(Command::Watch(which, Box::new(order)));
    }

    fn watch(&mut self, connection: u64, pattern: &str) {
        self.watch_from(connection, pattern, None);
    }

    fn unwatch(&mut self, connection: u64, pattern: &str) {
        let order = UnwatchOrder { connection, request: Some(8), filter: filter(pattern) };
        self.writer.obey(Command::Unwatch(Which::of(pattern), Box::new(order)));
    }

    /// Changes a key, and tells the writer if it is to be told.
    fn change(&mut self, key: &str, value: Option<&str>) -> u64 {
        let which = Which::of(key);
        let space = Arc::clone(&self.writer.views[which as usize].space);
        let key = name(key);
        let change = Change { key: &key, value, if_version: None, ttl_ms: None, user: None };
        let (stored, _) = space.change(&change, Now::default(), None).unwrap();
        space.wake(|_| self.writer.obey(Command::WakeState(which)));
        stored.version
    }

    fn set(&mut self, key: &str, bytes: usize) -> u64 {
        let value = format!("\"{}\"", "x".repeat(bytes));
        self.change(key, Some(&value))
    }

    /// Turns, and lets the client read, until it has what `done` asks for.
    #[track_caller]
    fn serve(
        &mut self,
        (client, viewer): (&mut TcpStream, &mut Viewer),
        done: impl Fn(&Viewer) -> bool,
    ) {
        for _ in 0..20_000 {
            if done(viewer) {
                return;
            }
            self.turn();
            viewer.read(client, 65_536);
        }
        let (held, position) = (viewer.held.len(), viewer.position);
        panic!("it never came: {held} keys, position {position}, synced {:?}", viewer.synced);
    }

    /// Lets the client read until it has everything of `patterns`, and compares.
    #[track_caller]
    fn assert_follows(
        &mut self,
        (client, viewer): (&mut TcpStream, &mut Viewer),
        patterns: &[&str],
    ) {
        // Whatever else it lacks comes before this.
        let last = self.change("last", Some("1"));
        self.serve((client, viewer), |viewer| {
            let is_synced = |own: &&str| viewer.synced.iter().any(|synced| synced == own);
            viewer.position == last && viewer.catching.is_none() && patterns.iter().all(is_synced)
        });
        let all = self.space().list(&filter("#"));
        let filters: Vec<Filter> = patterns.iter().map(|own| filter(own)).collect();
        let wanted = all.iter().filter(|(key, _)| filters.iter().any(|own| own.matches(key)));
        let wanted: BTreeMap<String, u64> =
            wanted.map(|(key, entry)| (key.to_string(), entry.version)).collect();
        assert_eq!(viewer.held, wanted);
    }

    fn watches(&self) -> u64 {
        self.writer.metrics.watches.value()
    }

    fn circles(&self) -> usize {
        self.writer.views[Which::Shared as usize].circles()
    }
}

/// Sets `count` keys below `prefix`, about 1 KiB each.
fn fill(rig: &mut Rig, prefix: &str, count: usize) {
    for number in 0..count {
        rig.set(&format!("{prefix}/{number}"), 990);
    }
}

/// Turns until the only socket is full.
fn turn_until_stalled(rig: &mut Rig) {
    for _ in 0..100 {
        rig.writer.turn();
        if !rig.writer.stalled.is_empty() {
            return;
        }
    }
    panic!("the socket never was full");
}

#[test]
fn a_snapshot_that_is_cut_goes_on_where_it_was_cut() {
    let mut rig = rig();
    fill(&mut rig, "a", 600);
    let (mut client, mut viewer) = (rig.attach(0, Some(20_000)), Viewer::default());
    rig.watch(0, "#");
    turn_until_stalled(&mut rig);

    rig.serve((&mut client, &mut viewer), |viewer| !viewer.synced.is_empty());

    assert_eq!((viewer.states, viewer.held.len(), viewer.position), (600, 600, 600));
    rig.assert_follows((&mut client, &mut viewer), &["#"]);
}

#[test]
fn live_states_that_are_cut_come_at_their_newest() {
    let mut rig = rig();
    let (mut slow, mut viewer) = (rig.attach(0, Some(20_000)), Viewer::default());
    let (mut fast, mut other) = (rig.attach(1, None), Viewer::default());
    rig.watch(0, "#");
    rig.watch(1, "#");
    rig.serve((&mut slow, &mut viewer), |viewer| !viewer.synced.is_empty());
    rig.serve((&mut fast, &mut other), |viewer| !viewer.synced.is_empty());
    rig.turn();
    assert_eq!(rig.circles(), 1);
    for round in 0..6 {
        fill(&mut rig, "a", 500);
        rig.change(&format!("a/{round}"), None);
        rig.serve((&mut fast, &mut other), |viewer| viewer.position == (round + 1) * 501);
    }
    assert_eq!(rig.writer.stalled.len(), 1);
    rig.assert_follows((&mut slow, &mut viewer), &["#"]);
    rig.assert_follows((&mut fast, &mut other), &["#"]);
    assert!(viewer.states < 1_300, "{} states came", viewer.states);
    assert_eq!((viewer.resets, other.resets), (1, 1));
}

#[test]
fn what_changes_while_a_snapshot_stalls_comes_after_it() {
    let mut rig = rig();
    fill(&mut rig, "a", 600);
    let (mut client, mut viewer) = (rig.attach(0, Some(20_000)), Viewer::default());
    rig.watch(0, "a/#");
    turn_until_stalled(&mut rig);
    for number in [0, 1, 300, 599] {
        rig.change(&format!("a/{number}"), None);
        rig.set(&format!("a/{}", number + 2), 10);
    }

    rig.serve((&mut client, &mut viewer), |viewer| !viewer.synced.is_empty());
    assert_eq!(viewer.position, 600);
    rig.watch(0, "last");
    rig.assert_follows((&mut client, &mut viewer), &["a/#", "last"]);
}

#[test]
fn a_watch_that_begins_while_another_is_behind_waits_with_it() {
    let mut rig = rig();
    let (mut client, mut viewer) = (rig.attach(0, Some(20_000)), Viewer::default());
    rig.watch(0, "a/#");
    rig.serve((&mut client, &mut viewer), |viewer| !viewer.synced.is_empty());
    rig.turn();
    fill(&mut rig, "a", 300);
    fill(&mut rig, "b", 300);
    turn_until_stalled(&mut rig);

    for pattern in ["b/#", "+/1", "last"] {
        rig.watch(0, pattern);
        rig.change("b/7", None);
        rig.set("a/7", 10);
        rig.set("b/7", 20);
    }

    rig.assert_follows((&mut client, &mut viewer), &["a/#", "b/#", "+/1", "last"]);
    assert_eq!((rig.watches(), rig.circles()), (4, 1));
}

#[test]
fn a_position_that_is_ahead_of_the_connection_skips_nothing_of_its_other_watches() {
    let mut rig = rig();
    let (mut client, mut viewer) = (rig.attach(0, None), Viewer::default());
    rig.watch(0, "a/#");
    rig.serve((&mut client, &mut viewer), |viewer| !viewer.synced.is_empty());
    rig.turn();
    let missed = rig.set("a/1", 10);
    let known = rig.set("b/1", 10);

    rig.watch_from(0, "b/#", Some(known));
    rig.serve((&mut client, &mut viewer), |viewer| viewer.synced.len() == 2);

    assert!(viewer.position < missed, "what it has up to {known} lacks {missed}");
    rig.watch(0, "last");
    rig.assert_follows((&mut client, &mut viewer), &["a/#", "b/#", "last"]);
}

#[test]
fn a_reset_while_others_begin_leaves_everything_right() {
    let mut rig = rig();
    let (mut client, mut viewer) = (rig.attach(0, Some(20_000)), Viewer::default());
    rig.watch(0, "a/#");
    rig.watch(0, "b/#");
    rig.serve((&mut client, &mut viewer), |viewer| viewer.synced.len() == 2);
    rig.turn();
    fill(&mut rig, "a", 300);
    fill(&mut rig, "b", 300);
    turn_until_stalled(&mut rig);
    rig.watch(0, "last");
    for number in 0..20 {
        rig.change(&format!("a/{number}"), None);
    }

    rig.assert_follows((&mut client, &mut viewer), &["a/#", "b/#", "last"]);

    assert_eq!(viewer.replies.iter().filter(|reply| reply["id"].is_null()).count(), 3);
    assert_eq!((viewer.resets, rig.writer.metrics.watch_resets.value()), (6, 3));
}

#[test]
fn a_beginning_whose_deletions_are_forgotten_begins_anew() {
    let mut rig = rig();
    fill(&mut rig, "a", 600);
    let (mut client, mut viewer) = (rig.attach(0, Some(20_000)), Viewer::default());
    rig.watch_from(0, "#", Some(1));
    turn_until_stalled(&mut rig);
    for number in 500..520 {
        rig.change(&format!("a/{number}"), None);
    }

    rig.assert_follows((&mut client, &mut viewer), &["#"]);

    assert_eq!((viewer.resets, rig.watches()), (1, 1));
}

#[test]
fn a_deletion_that_is_forgotten_before_the_writer_looks_is_not_lost() {
    let mut rig = rig();
    let (mut client, mut viewer) = (rig.attach(0, None), Viewer::default());
    fill(&mut rig, "other", 20);
    rig.set("key", 10);
    rig.watch(0, "key");
    rig.watch(0, "last");
    rig.serve((&mut client, &mut viewer), |viewer| viewer.synced.len() == 2);
    rig.turn();
    rig.change("key", None);
    for number in 0..20 {
        rig.change(&format!("other/{number}"), None);
    }

    rig.assert_follows((&mut client, &mut viewer), &["key", "last"]);
}

#[test]
fn nothing_of_a_watch_comes_after_its_end_wherever_it_was() {
    let mut rig = rig();
    fill(&mut rig, "a", 300);
    fill(&mut rig, "b", 300);
    let (mut client, mut viewer) = (rig.attach(0, Some(20_000)), Viewer::default());
    rig.watch(0, "a/#");
    rig.watch(0, "b/#");
    rig.watch(0, "last");
    turn_until_stalled(&mut rig);
    // The first is on its way, the second waits for it.
    rig.unwatch(0, "a/#");
    rig.unwatch(0, "b/#");
    assert_eq!(rig.watches(), 1);
    let ended = |viewer: &Viewer| viewer.replies.iter().filter(|it| it["id"] == 8).count() == 2;
    rig.serve((&mut client, &mut viewer), |viewer| ended(viewer));
    let before = viewer.states;
    rig.set("a/1", 10);
    rig.serve((&mut client, &mut viewer), |viewer| viewer.synced == ["last"]);
    assert_eq!(viewer.states, before);

    rig.unwatch(0, "last");
    rig.turn();
    rig.set("last", 10);
    rig.turn();

    assert_eq!((rig.watches(), rig.circles()), (0, 0));
    assert!(!rig.writer.views[0].is_busy() && rig.writer.lagging.is_empty());
    let mut woken = false;
    rig.space().wake(|_| woken = true);
    assert!(!woken, "nobody follows");
}

#[test]
fn every_watch_that_was_asked_for_is_answered() {
    let mut rig = rig();
    fill(&mut rig, "a", 600);
    let (mut client, mut viewer) = (rig.attach(0, Some(20_000)), Viewer::default());
    rig.watch(0, "a/#");
    turn_until_stalled(&mut rig);

    // Neither can begin before the first is through.
    for _ in 0..3 {
        rig.watch(0, "b");
    }
    rig.watch(0, "c");
    rig.unwatch(0, "c");
    rig.serve((&mut client, &mut viewer), |viewer| viewer.synced == ["a/#", "b"]);

    let of = |pattern: &str, kind: &str| {
        let is_it = |it: &&Value| it["type"] == kind && it["id"] == 7 && it["pattern"] == pattern;
        viewer.replies.iter().filter(is_it).count()
    };
    let errors = viewer.replies.iter().filter(|it| it["type"] == "error").count();
    assert_eq!((of("a/#", "watching"), of("b", "watching"), errors), (1, 1, 3));
}

#[test]
fn who_takes_the_place_of_a_peer_and_of_a_circle_that_waited_gets_its_own() {
    let mut rig = rig();
    let (mut first, mut viewer) = (rig.attach(0, None), Viewer::default());
    rig.watch(0, "a/#");
    rig.serve((&mut first, &mut viewer), |viewer| !viewer.synced.is_empty());
    rig.turn();
    fill(&mut rig, "a", 300);
    rig.writer.turn();
    // Its circle has more; a second one waits to begin.
    assert!(rig.writer.views[0].is_busy());
    rig.watch(0, "b/#");
    assert_eq!(rig.writer.lagging.len(), 1);
    rig.writer.obey(Command::Detach { connection: 0 });
    rig.writer.turn();
    assert_eq!((rig.watches(), rig.circles(), rig.writer.peers.len()), (0, 0, 0));

    let (mut next, mut viewer) = (rig.attach(1, None), Viewer::default());
    rig.watch(1, "b/#");
    rig.watch(1, "last");
    fill(&mut rig, "b", 300);
    rig.assert_follows((&mut next, &mut viewer), &["b/#", "last"]);
    assert_eq!(viewer.states, 301);
}

#[test]
fn a_peer_that_leaves_a_group_takes_nothing_of_the_others_with_it() {
    let mut rig = rig();
    let mut clients: Vec<_> = (0..20).map(|id| (rig.attach(id, None), Viewer::default())).collect();
    (0..20).for_each(|id| rig.watch(id, "#"));
    for (client, viewer) in &mut clients {
        rig.serve((client, viewer), |viewer| !viewer.synced.is_empty());
    }
    rig.turn();
    for id in [0, 19, 7, 8, 13] {
        rig.writer.obey(Command::Detach { connection: id });
        rig.set(&format!("key/{id}"), 10);
        rig.turn();
    }

    for id in [1, 12, 18] {
        let (client, viewer) = &mut clients[id];
        rig.assert_follows((client, viewer), &["#"]);
    }
    assert_eq!((rig.watches(), rig.circles()), (15, 1));
}

/// Clients that watch everything, each in a circle of its own, and read it.
fn busy_watchers(rig: &mut Rig) -> Vec<(TcpStream, Viewer)> {
    let mut busy: Vec<_> = (100..106).map(|id| (rig.attach(id, None), Viewer::default())).collect();
    for (at, (client, viewer)) in busy.iter_mut().enumerate() {
        let id = 100 + at as u64;
        rig.watch(id, "#");
        rig.watch(id, &format!("own/{id}"));
        rig.serve((client, viewer), |viewer| viewer.synced.len() == 2);
        rig.turn();
    }
    assert_eq!(rig.circles(), 6);
    busy
}

/// Gives them more than a turn can take, and reads what has come.
fn keep_busy(rig: &mut Rig, busy: &mut [(TcpStream, Viewer)]) {
    fill(rig, "busy", 140);
    for (client, viewer) in busy {
        while viewer.read(client, 1 << 20) {}
    }
}

#[test]
fn a_busy_state_leaves_room_for_those_who_are_behind() {
    let mut rig = rig();
    let mut busy = busy_watchers(&mut rig);
    let old = topic("old");
    publish(&old, 10, 10);
    let mut behind = rig.attach(0, None);
    keep_busy(&mut rig, &mut busy);
    rig.follow(0, &old, 0, super::NAME);

    let mut rounds = 0;
    let all = rig.read_until(&mut behind, ("old", 10), |rig, _| {
        rounds += 1;
        assert!(rounds < 50, "the old events never came");
        keep_busy(rig, &mut busy);
    });

    assert_eq!(seqs(&all, "old").len(), 10);
}

#[test]
fn a_busy_state_leaves_room_for_the_other() {
    let mut rig = rig();
    let (mut client, mut viewer) = (rig.attach(0, None), Viewer::default());
    rig.watch(0, "$sys/#");
    rig.serve((&mut client, &mut viewer), |viewer| !viewer.synced.is_empty());
    rig.turn();
    let mut busy = busy_watchers(&mut rig);
    keep_busy(&mut rig, &mut busy);
    rig.change("$sys/topics", Some("1"));

    for _ in 0..50 {
        rig.turn();
        viewer.read(&mut client, 65_536);
        keep_busy(&mut rig, &mut busy);
    }

    assert_eq!(viewer.held.len(), 1);
}

#[test]
fn busy_topics_leave_room_for_states() {
    let mut rig = rig();
    let hot: Vec<_> = (0..4).map(|number| topic(&format!("h{number}"))).collect();
    let mut busy = rig.attach(1, None);
    hot.iter().for_each(|topic| rig.follow(1, topic, 0, super::NAME));
    let (mut client, mut viewer) = (rig.attach(0, None), Viewer::default());
    rig.watch(0, "#");
    rig.serve((&mut client, &mut viewer), |viewer| !viewer.synced.is_empty());
    rig.turn();
    let last = rig.set("last", 10);

    let mut nowhere = vec![0; 1 << 20];
    for _ in 0..50 {
        for topic in &hot {
            publish(topic, 1, 140_000);
            rig.wake(topic);
        }
        rig.turn();
        viewer.read(&mut client, 65_536);
        while let Ok(1..) = busy.read(&mut nowhere) {}
    }

    assert_eq!(viewer.position, last);
}

#[test]
fn requests_that_come_together_change_a_circle_once() {
    let mut rig = rig();
    let (mut client, mut viewer) = (rig.attach(0, None), Viewer::default());
    let patterns: Vec<String> = (0..50).map(|number| format!("a/{number}/+")).collect();
    patterns.iter().for_each(|pattern| rig.watch(0, pattern));
    rig.serve((&mut client, &mut viewer), |viewer| viewer.synced.len() == 50);
    rig.turn();
    assert_eq!(rig.circles(), 1);

    for pattern in &patterns[10..] {
        rig.unwatch(0, pattern);
        // To file all of its patterns anew is for when it is served.
        assert_eq!(rig.circles(), 0);
    }
    rig.set("a/3/x", 10);
    rig.set("a/30/x", 10);
    rig.serve((&mut client, &mut viewer), |viewer| viewer.held.len() == 1);
    rig.turn();

    assert_eq!((rig.watches(), rig.circles(), viewer.states), (10, 1, 1));
}
