//! The shared state as one watcher has it, and as it should be.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::world::number;

pub const PATTERN: &str = "s/+";
pub const KEYS: [&str; 3] = ["s/a", "s/b", "s/c"];

/// What a watcher holds. It outlives its connection: the next one goes on from there.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    pub values: BTreeMap<String, (u64, Value)>,
    pub epoch: Option<Value>,
    /// Everything up to here is in it.
    pub version: u64,
    /// Between `watching` and `synced`.
    is_catching_up: bool,
}

impl Mirror {
    /// Whether it has not come to `version`.
    pub fn lacks(&self, version: u64) -> bool {
        self.is_catching_up || self.version < version
    }

    /// A new connection begins; what was not complete does not count.
    #[must_use]
    pub fn again(self) -> Mirror {
        let is_whole = !self.is_catching_up && self.epoch.is_some();
        let kept = if is_whole { self } else { Mirror::default() };
        Mirror { is_catching_up: true, ..kept }
    }

    pub fn take(&mut self, message: &Value) {
        match message["type"].as_str() {
            Some("watching") => {
                let is_same = self.epoch.as_ref() == Some(&message["epoch"]);
                assert!(is_same || message["reset"] == true, "{message} after {:?}", self.epoch);
                assert!(
                    !is_same || self.version <= number(message, "version"),
                    "what was seen is lost: {message}, seen {}",
                    self.version
                );
                if message["reset"] == true {
                    self.values.clear();
                    self.version = 0;
                }
                self.epoch = Some(message["epoch"].clone());
                self.is_catching_up = true;
            }
            Some("synced") => {
                self.is_catching_up = false;
                self.version = self.version.max(number(message, "version"));
            }
            _ => self.change(message),
        }
    }

    fn change(&mut self, message: &Value) {
        let version = number(message, "version");
        let key = message["key"].as_str().unwrap_or_default().to_owned();
        assert!(self.version < version, "after {} came {message}", self.version);
        if !self.is_catching_up {
            self.version = version;
        }
        if message["deleted"] == true {
            self.values.remove(&key);
        } else {
            self.values.insert(key, (version, message["value"].clone()));
        }
    }
}

/// The state as it should be: every change waits for its answer.
#[derive(Debug, Default)]
pub struct Values {
    pub values: BTreeMap<String, (u64, Value)>,
    pub version: u64,
    pub epoch: Option<Value>,
}

impl Values {
    /// Notes the answer to a change of `key`, to `value` or to nothing.
    pub fn answered(
        &mut self,
        key: &str,
        value: Option<Value>,
        wanted: Option<u64>,
        reply: &Value,
    ) {
        let found = self.values.get(key).map_or(0, |(version, _)| *version);
        if reply["type"] == "error" {
            let is_missing = value.is_none() && found == 0 && reply["code"] == "not_found";
            let is_other = wanted.is_some_and(|wanted| wanted != found);
            let is_conflict = is_other && reply["code"] == "conflict" && reply["version"] == found;
            assert!(is_missing || is_conflict, "{key} at {found}, wanted {wanted:?}: {reply}");
            return;
        }
        assert!(wanted.is_none_or(|wanted| wanted == found), "{key} at {found}: {reply}");
        let epoch = self.epoch.get_or_insert_with(|| reply["epoch"].clone());
        assert_eq!(epoch, &reply["epoch"], "{reply}");
        assert_eq!(reply["durability"], "synced", "{reply}");
        let version = number(reply, "version");
        assert!(self.version < version, "{version} after {}", self.version);
        self.version = version;
        match value {
            Some(value) => drop(self.values.insert(key.to_owned(), (version, value))),
            None => drop(self.values.remove(key)),
        }
    }
}
