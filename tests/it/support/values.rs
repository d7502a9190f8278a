//! What clients were told of the shared state, and whether a relay that comes after it keeps all of
//! it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde_json::{Value, json};

use super::peer::{Peer, number};

/// Everything that clients know of the state.
#[derive(Clone, Debug, Default)]
pub struct Values {
    epoch: Option<String>,
    /// By key, the newest that was confirmed or seen: its version and value, `null` if deleted.
    known: BTreeMap<String, (u64, Value)>,
    /// By key, what anybody ever asked for, whatever became of it.
    sent: BTreeMap<String, Vec<Value>>,
    /// Versions that were confirmed.
    versions: BTreeSet<u64>,
    problems: Vec<String>,
}

impl Values {
    /// Changes that were confirmed.
    #[must_use]
    pub fn confirmed(&self) -> usize {
        self.versions.len()
    }

    pub fn note_sent(&mut self, request: &Value) {
        self.sent.entry(key(request)).or_default().push(request["value"].clone());
    }

    /// Notes the answer `stored` or `deleted` to `request`.
    pub fn note_stored(&mut self, request: &Value, reply: &Value) {
        if reply["durability"] != "synced" {
            self.problems.push(format!("{request} was answered {reply}"));
        }
        self.note_epoch(reply);
        let version = number(reply, "version");
        if !self.versions.insert(version) {
            self.problems.push(format!("version {version} was given out before: {reply}"));
        }
        self.note(key(request), version, request["value"].clone());
    }

    /// Notes the answer `values` to a request for everything.
    pub fn note_seen(&mut self, reply: &Value) {
        self.note_epoch(reply);
        for value in reply["values"].as_array().into_iter().flatten() {
            self.note(key(value), number(value, "version"), value["value"].clone());
        }
    }

    fn note(&mut self, key: String, version: u64, value: Value) {
        let known = self.known.entry(key).or_default();
        if known.0 < version {
            *known = (version, value);
        }
    }

    fn note_epoch(&mut self, reply: &Value) {
        let epoch = reply["epoch"].as_str().unwrap_or_default();
        let known = self.epoch.get_or_insert_with(|| epoch.to_owned());
        if known != epoch {
            self.problems.push(format!("the epoch of the state was {known}: {reply}"));
        }
    }

    /// Asks the relay at `addr`, which came after this one, for everything. Returns what is wrong
    /// with its answers.
    #[must_use]
    pub fn judge(&self, addr: SocketAddr) -> Vec<String> {
        let mut problems = self.problems.clone();
        let mut peer = Peer::connect(addr);
        let all = peer.ask(json!({"type": "get", "key": "#", "limit": 1_000}), "values");
        // An epoch in which nothing was stored yet need not be the same.
        if let Some(epoch) = &self.epoch
            && !self.known.is_empty()
            && all["epoch"] != **epoch
        {
            problems.push(format!("the epoch of the state was {epoch}: {all}"));
        }
        let mut newest = self.known.values().map(|(version, _)| *version).max().unwrap_or(0);
        let mut found = BTreeMap::new();
        for value in all["values"].as_array().into_iter().flatten() {
            newest = newest.max(number(value, "version"));
            found.insert(key(value), value);
        }
        for (key, (version, value)) in &self.known {
            let sent = self.sent.get(key).map_or(&[][..], Vec::as_slice);
            match found.get(key) {
                // Somebody may have deleted it last, and was not told that it worked.
                None if value.is_null() || sent.last() == Some(&Value::Null) => {}
                None => problems.push(format!("{key} was {value} at {version}, and is gone")),
                Some(found) => {
                    let now = number(found, "version");
                    let is_other = now == *version && found["value"] != *value;
                    if now < *version || is_other || !sent.contains(&found["value"]) {
                        problems.push(format!("{key} was {value} at {version}: {found}"));
                    }
                }
            }
        }
        let reply = peer.ask(json!({"type": "set", "key": "afterwards", "value": 1}), "stored");
        if number(&reply, "version") <= newest {
            problems.push(format!("after version {newest} came {reply}"));
        }
        problems
    }
}

fn key(message: &Value) -> String {
    message["key"].as_str().unwrap_or_else(|| panic!("{message} has no key")).to_owned()
}
