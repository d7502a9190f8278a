//! A client that keeps what it watches, and holds the relay to promise 8 with every message.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    peer::{Incoming, Peer, number},
    wait::LIMIT,
};

/// A copy of what one or more patterns match.
#[derive(Default)]
pub struct Mirror {
    /// Value and version by key.
    pub held: BTreeMap<String, (Value, u64)>,
    pub epoch: String,
    /// Everything up to here is held.
    pub position: u64,
    /// Patterns that have been synced.
    pub synced: Vec<String>,
    /// The pattern whose snapshot is coming, whether it began anew, and the version before.
    snapshot: Option<(String, bool, u64)>,
    /// State messages taken in, and resets.
    pub messages: usize,
    pub resets: usize,
}

impl Mirror {
    #[must_use]
    pub fn new() -> Mirror {
        Mirror::default()
    }

    /// Watches `pattern` on `peer`: from where this mirror is, if it has been synced.
    #[track_caller]
    pub fn watch(&mut self, peer: &mut Peer, pattern: &str) {
        peer.send(&self.request(pattern));
    }

    /// What [`Mirror::watch`] sends.
    #[must_use]
    pub fn request(&mut self, pattern: &str) -> Value {
        let mut request = json!({"type": "watch", "pattern": pattern});
        if self.synced.iter().any(|own| own == pattern) {
            request["from"] = json!({"epoch": self.epoch, "version": self.position});
            self.synced.retain(|own| own != pattern);
        }
        request
    }

    /// Takes in one message.
    #[track_caller]
    pub fn take(&mut self, message: &Value) {
        match message["type"].as_str() {
            Some("watching") => {
                assert!(self.snapshot.is_none(), "one snapshot after the other: {message}");
                let pattern = message["pattern"].as_str().expect("a pattern").to_owned();
                let reset = message["reset"] == true;
                let epoch = message["epoch"].as_str().expect("an epoch");
                if self.epoch != epoch {
                    assert!(reset, "another epoch is a reset: {message}");
                    (self.epoch, self.position) = (epoch.to_owned(), 0);
                }
                if reset {
                    self.resets += 1;
                    self.synced.retain(|own| *own != pattern);
                    let kept = self.synced.clone();
                    self.held.retain(|key, _| kept.iter().any(|own| matches(own, key)));
                }
                self.snapshot = Some((pattern, reset, 0));
            }
            Some("synced") => {
                let (pattern, ..) = self.snapshot.take().expect("a snapshot ends");
                assert_eq!(message["pattern"], pattern.as_str());
                self.synced.push(pattern);
                self.position = self.position.max(number(message, "version"));
            }
            Some("state") => self.take_state(message),
            // What the connection follows beside.
            Some("subscribed" | "event") => {}
            _ => panic!("a mirror awaits states, got {message}"),
        }
    }

    #[track_caller]
    fn take_state(&mut self, message: &Value) {
        self.messages += 1;
        let version = number(message, "version");
        let key = message["key"].as_str().expect("a key").to_owned();
        match &mut self.snapshot {
            Some((pattern, reset, before)) => {
                assert!(*before < version, "versions rise in a snapshot: {before}, {message}");
                *before = version;
                assert!(matches(pattern, &key), "{key} is not in {pattern}");
                assert!(!*reset || message.get("value").is_some(), "{message} in a snapshot");
            }
            None => {
                let position = self.position;
                assert!(position < version, "versions never go back: {position}, {message}");
                self.position = version;
            }
        }
        if let Some((_, held)) = self.held.get(&key) {
            assert!(*held <= version, "{key} went back from {held}: {message}");
        }
        if message["deleted"] == true {
            self.held.remove(&key);
        } else {
            self.held.insert(key, (message["value"].clone(), version));
        }
    }

    /// Reads until every one of `patterns` has been synced and everything up to `version` is held
    /// that `relay` has.
    #[track_caller]
    pub fn read_until(&mut self, peer: &mut Peer, what: &str, done: impl Fn(&Mirror) -> bool) {
        while !done(self) {
            match peer.receive(LIMIT) {
                Some(Incoming::Text(text)) => {
                    let message = serde_json::from_str(&text).expect("the relay sends JSON");
                    self.take(&message);
                }
                other => panic!("awaited {what}, got {other:?}"),
            }
        }
    }

    /// Takes in what comes until nothing comes for `quiet`. `false` if the connection ended.
    pub fn read_some(&mut self, peer: &mut Peer, quiet: Duration) -> bool {
        loop {
            match peer.receive(quiet) {
                Some(Incoming::Text(text)) => {
                    let message = serde_json::from_str(&text).expect("the relay sends JSON");
                    self.take(&message);
                }
                None => return true,
                Some(_) => return false,
            }
        }
    }

    #[must_use]
    pub fn is_synced(&self, pattern: &str) -> bool {
        self.synced.iter().any(|own| own == pattern)
    }

    /// What is held, as [`values`] shows it.
    #[must_use]
    pub fn content(&self) -> BTreeMap<String, (Value, u64)> {
        self.held.clone()
    }

    /// A connection that was cut: what was under way begins anew.
    pub fn was_cut(&mut self) {
        self.snapshot = None;
    }
}

/// Whether a pattern matches a key, for the patterns that tests use: a name, `#`, or `.../#`.
fn matches(pattern: &str, key: &str) -> bool {
    match pattern.strip_suffix('#') {
        Some(prefix) => key.starts_with(prefix) || key == prefix.trim_end_matches('/'),
        None => pattern == key,
    }
}

/// All values that `pattern` matches, as `get` answers.
#[track_caller]
#[must_use]
pub fn values(addr: SocketAddr, pattern: &str) -> BTreeMap<String, (Value, u64)> {
    let mut peer = Peer::connect(addr);
    let (mut found, mut after) = (BTreeMap::new(), Value::Null);
    loop {
        let request = json!({"type": "get", "key": pattern, "after": after, "limit": 1_000});
        let reply = peer.ask(request, "values");
        for state in reply["values"].as_array().expect("a list") {
            let key = state["key"].as_str().expect("a key").to_owned();
            found.insert(key, (state["value"].clone(), number(state, "version")));
        }
        after = reply["next"].clone();
        if after.is_null() {
            return found;
        }
    }
}
