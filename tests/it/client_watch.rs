//! Watches of the client: nothing is missed and nothing comes twice, while connections break and
//! programs are slow; and presence that comes back with the connection.

use std::{collections::BTreeMap, time::Duration};

use landline::{
    base::lane::{self, Lane, WhenFull},
    client::{Client, ClientError, Options, Watch, WatchEvent},
};
use serde_json::{Value, json};

use crate::{
    client_support::{LIMIT, Peer, Proxy, Relay, Scripted},
    support::wait::wait_until,
};

/// Tells a test how far a script has come.
const NEWS: Lane = Lane { name: "news", capacity: 4, when_full: WhenFull::Wait };

const EPOCH: &str = "0123456789abcdef";

fn quick() -> Options {
    Options::default().backoff(Duration::from_millis(10), Duration::from_millis(100))
}

fn connect(url: &str) -> Client {
    Client::connect(url, quick()).expect("the relay is there")
}

#[track_caller]
fn next(watch: &mut Watch) -> WatchEvent {
    let event = watch.recv_timeout(LIMIT).expect("the watch goes on");
    event.expect("an event within the limit")
}

/// An event in short: `reset`, `synced 3`, `key 3 value` or `key 3 -`.
fn short(event: &WatchEvent) -> String {
    match event {
        WatchEvent::Reset => "reset".to_owned(),
        WatchEvent::Synced { version } => format!("synced {version}"),
        WatchEvent::Set(value) => format!("{} {} {}", value.key, value.version, value.data),
        WatchEvent::Deleted { key, version, .. } => format!("{key} {version} -"),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn expect(watch: &mut Watch, events: &[&str]) {
    for expected in events {
        assert_eq!(short(&next(watch)), *expected);
    }
}

/// What a watch makes of everything up to a state that is as `wanted`.
#[track_caller]
fn follow_to(watch: &mut Watch, wanted: &BTreeMap<String, Value>) {
    let (mut values, mut versions) = (BTreeMap::new(), BTreeMap::<String, u64>::new());
    let mut is_synced = false;
    while !is_synced || values != *wanted {
        let (key, version, value) = match next(watch) {
            WatchEvent::Reset => {
                values.clear();
                versions.clear();
                is_synced = false;
                continue;
            }
            WatchEvent::Synced { .. } => {
                is_synced = true;
                continue;
            }
            WatchEvent::Set(value) => {
                (value.key.to_string(), value.version, Some(value.json::<Value>().unwrap()))
            }
            WatchEvent::Deleted { key, version, .. } => (key.to_string(), version, None),
            other => panic!("{other:?}"),
        };
        let before = versions.insert(key.clone(), version).unwrap_or(0);
        assert!(before < version, "{key}: {version} came after {before}");
        match value {
            Some(value) => drop(values.insert(key, value)),
            None => drop(values.remove(&key)),
        }
    }
}

fn asked(peer: &mut Peer, kind: &str, pattern: &str) -> Value {
    let asked = peer.next().expect("a request");
    assert_eq!((&asked["type"], &asked["pattern"]), (&kind.into(), &pattern.into()), "{asked}");
    asked
}

fn watching(peer: &mut Peer, asked: &Value, version: u64, reset: bool) {
    let (id, pattern) = (&asked["id"], &asked["pattern"]);
    peer.say(&format!(
        r#"{{"type":"watching","id":{id},"pattern":{pattern},"epoch":"{EPOCH}",
            "version":{version},"reset":{reset}}}"#
    ));
}

fn state(peer: &mut Peer, key: &str, version: u64, value: Option<u64>) {
    let what = value.map_or("\"deleted\":true".to_owned(), |value| format!("\"value\":{value}"));
    peer.say(&format!(r#"{{"type":"state","version":{version},"key":"{key}",{what},"time":1}}"#));
}

fn synced(peer: &mut Peer, pattern: &str, version: u64) {
    peer.say(&format!(r#"{{"type":"synced","pattern":"{pattern}","version":{version}}}"#));
}

#[test]
fn a_watch_resumes_from_its_position_on_the_next_connection() {
    let script = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 0);
        let first = asked(&mut peer, "watch", "a/+");
        assert_eq!(first.get("from"), None);
        watching(&mut peer, &first, 2, true);
        state(&mut peer, "a/x", 1, Some(1));
        synced(&mut peer, "a/+", 2);
        state(&mut peer, "a/y", 3, Some(3));
        drop(peer);

        let mut peer = Peer::welcome(listener, 0);
        let again = asked(&mut peer, "watch", "a/+");
        assert_eq!(again["from"], json!({"epoch": EPOCH, "version": 3}));
        watching(&mut peer, &again, 6, false);
        state(&mut peer, "a/x", 5, None);
        drop(peer);

        // What was not synced comes again.
        let mut peer = Peer::welcome(listener, 0);
        let again = asked(&mut peer, "watch", "a/+");
        assert_eq!(again["from"], json!({"epoch": EPOCH, "version": 3}));
        watching(&mut peer, &again, 6, false);
        state(&mut peer, "a/x", 5, None);
        state(&mut peer, "a/y", 6, Some(6));
        synced(&mut peer, "a/+", 6);
        asked(&mut peer, "unwatch", "a/+");
        while peer.next().is_some() {}
    });
    let client = connect(&script.url());
    let mut watch = client.watch("a/+").unwrap();
    expect(&mut watch, &["reset", "a/x 1 1", "synced 2", "a/y 3 3", "a/x 5 -"]);
    expect(&mut watch, &["a/y 6 6", "synced 6"]);
    drop(watch);
    assert!(client.flush(LIMIT));
    drop(client);
    script.finish();
}

#[test]
fn watches_that_overlap_get_every_change_once_each() {
    let script = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 0);
        let wide = asked(&mut peer, "watch", "a/#");
        watching(&mut peer, &wide, 1, true);
        state(&mut peer, "a/x", 1, Some(1));
        synced(&mut peer, "a/#", 1);
        let narrow = asked(&mut peer, "watch", "a/x");
        watching(&mut peer, &narrow, 1, true);
        state(&mut peer, "a/x", 1, Some(1));
        synced(&mut peer, "a/x", 1);
        state(&mut peer, "a/x", 2, Some(2));
        state(&mut peer, "a/y", 3, Some(3));
        // The relay lost too much for one of them.
        peer.say(&format!(
            r#"{{"type":"watching","pattern":"a/x","epoch":"{EPOCH}","version":9,"reset":true}}"#
        ));
        state(&mut peer, "a/x", 8, Some(8));
        synced(&mut peer, "a/x", 9);
        while peer.next().is_some() {}
    });
    let client = connect(&script.url());
    let mut wide = client.watch("a/#").unwrap();
    expect(&mut wide, &["reset", "a/x 1 1", "synced 1"]);
    let mut narrow = client.watch("a/x").unwrap();
    expect(&mut wide, &["a/x 2 2", "a/y 3 3"]);
    // What this one had before the reset may have been taken with it.
    loop {
        if short(&next(&mut narrow)) == "a/x 8 8" {
            break;
        }
    }
    expect(&mut narrow, &["synced 9"]);
    assert_eq!((wide.waiting(), narrow.waiting()), (0, 0));
    drop((wide, narrow, client));
    script.finish();
}

#[test]
fn a_program_that_is_slow_gets_each_key_once_at_its_newest() {
    const CHANGES: u64 = 20_000;
    let script = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 0);
        let watch = asked(&mut peer, "watch", "#");
        watching(&mut peer, &watch, 0, true);
        synced(&mut peer, "#", 0);
        for version in 1..=CHANGES {
            state(&mut peer, &format!("k/{}", version % 10), version, Some(version));
        }
        let ping = peer.next().expect("a ping");
        peer.say(&format!(r#"{{"type":"pong","id":{},"time":1}}"#, ping["id"]));
        while peer.next().is_some() {}
    });
    let client = connect(&script.url());
    let mut watch = client.watch("#").unwrap();
    // What was said before the answer has come when it comes.
    client.ping().unwrap();
    assert!(watch.waiting() <= 12, "{}", watch.waiting());
    expect(&mut watch, &["reset"]);
    let mut versions = Vec::new();
    while let Some(event) = watch.try_recv().unwrap() {
        if let WatchEvent::Set(value) = event {
            versions.push(value.version);
        }
    }
    assert_eq!(versions, (CHANGES - 9..=CHANGES).collect::<Vec<_>>());
    drop((watch, client));
    script.finish();
}

#[test]
fn who_has_joined_joins_again_after_a_reconnect_until_leaving() {
    let (news, joined) = lane::open(NEWS);
    let script = Scripted::start(move |listener| {
        for round in 0..3 {
            let mut peer = Peer::welcome(listener, 0);
            let answer = |peer: &mut Peer, kind: &str, reply: &str| {
                let asked = peer.next().expect("a request");
                assert_eq!((&asked["type"], &asked["topic"]), (&kind.into(), &"hall".into()));
                let id = &asked["id"];
                peer.say(&format!(r#"{{"type":"{reply}","id":{id},"topic":"hall"}}"#));
                asked
            };
            if round < 2 {
                assert_eq!(answer(&mut peer, "join", "joined")["info"]["color"], "red");
            }
            if round == 1 {
                news.send(()).expect("the test listens");
                answer(&mut peer, "leave", "left");
            }
            if round == 2 {
                let ping = peer.next().expect("a ping");
                assert_eq!(ping["type"], "ping", "nothing is joined any more");
                peer.say(&format!(r#"{{"type":"pong","id":{},"time":1}}"#, ping["id"]));
                while peer.next().is_some() {}
            }
        }
    });
    let client = Client::connect(&script.url(), quick().user("anna")).unwrap();
    client.join("hall", Some(&json!({"color": "red"}))).unwrap();
    joined.recv_timeout(LIMIT).expect("the next connection joins");
    client.leave("hall").unwrap();
    client.ping().unwrap();
    drop(client);
    script.finish();
}

#[test]
fn a_watch_that_is_refused_says_why_and_ends() {
    let script = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 0);
        let id = &peer.next().expect("a request")["id"].clone();
        peer.say(&format!(
            r#"{{"type":"error","id":{id},"code":"limit_exceeded","message":"too many"}}"#
        ));
        while peer.next().is_some() {}
    });
    let client = connect(&script.url());
    match client.watch("a/#").map(drop) {
        Err(ClientError::Refused(refused)) => assert_eq!(refused.code, "limit_exceeded"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.watch("a/#/b"), Err(ClientError::Name { .. })));
    drop(client);
    script.finish();
}

#[test]
fn watches_follow_the_state_through_a_connection_that_breaks() {
    let relay = Relay::start();
    let proxy = Proxy::start(relay.address);
    let writer = connect(&relay.url());
    let client = connect(&proxy.url());
    let patterns = ["home/#", "home/+/lamp", "home/hall/lamp", "home/#"];
    let mut watches: Vec<Watch> =
        patterns.iter().map(|pattern| client.watch(pattern).unwrap()).collect();
    let mut wanted = BTreeMap::new();
    for number in 0..2_000_u64 {
        let room = ["hall", "attic", "cellar"][(number % 3) as usize];
        let key = format!("home/{room}/{}", ["lamp", "door"][(number / 3 % 2) as usize]);
        if number % 7 == 6 && wanted.contains_key(&key) {
            writer.delete(&key).unwrap();
            wanted.remove(&key);
        } else {
            writer.set(&key, &number).unwrap();
            wanted.insert(key, json!(number));
        }
        if number % 100 == 50 {
            proxy.cut();
        }
    }
    for (watch, pattern) in watches.iter_mut().zip(patterns) {
        let filter = landline::name::Filter::parse(pattern).unwrap();
        let matches = |key: &&String| filter.matches(&landline::name::Name::parse(key).unwrap());
        let keys = wanted.keys().filter(matches);
        let own = keys.map(|key| (key.clone(), wanted[key].clone())).collect();
        follow_to(watch, &own);
    }
}

#[test]
fn a_watch_begins_anew_when_the_relay_does() {
    let relay = Relay::start();
    let address = relay.address;
    let client = connect(&relay.url());
    client.set("a", &1).unwrap();
    let mut watch = client.watch("#").unwrap();
    expect(&mut watch, &["reset", "a 1 1", "synced 1"]);
    drop(relay);
    let relay = Relay::start_at(address);
    connect(&relay.url()).set("b", &2).unwrap();
    follow_to(&mut watch, &BTreeMap::from([("b".to_owned(), json!(2))]));
}

#[test]
fn presence_is_seen_while_its_client_is_there() {
    let relay = Relay::start();
    let observer = connect(&relay.url());
    let mut hall = observer.watch("$presence/hall/+").unwrap();
    expect(&mut hall, &["reset"]);
    let anna = Client::connect(&relay.url(), quick().user("anna")).unwrap();
    anna.join("hall", Some(&json!({"color": "red"}))).unwrap();
    let is_there = |event: &WatchEvent| {
        let WatchEvent::Set(value) = event else { return false };
        let present = value.json::<Value>().unwrap();
        present["connections"] == 1 && present["info"]["color"] == "red"
    };
    while !is_there(&next(&mut hall)) {}
    anna.leave("hall").unwrap();
    while !matches!(next(&mut hall), WatchEvent::Deleted { .. }) {}
    wait_until("nobody to be there", LIMIT, || {
        observer.values("$presence/hall/+", None, 10).unwrap().values.is_empty()
    });
}
