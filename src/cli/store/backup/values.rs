//! The shared state in a backup.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Export, Import, ask_if_there, unreadable};
use crate::{
    cli::{Global, exit::Failure, http},
    name::Name,
    state::{Entry, Now},
    store::{StateBatch, StateRecord},
    wire::position::Epoch,
};

impl Export {
    fn value(&mut self, text: &str) -> Result<(), Failure> {
        self.count.keys += 1;
        self.output.line(text)
    }

    /// One key, unless it was deleted.
    pub(super) fn stored_value(&mut self, entry: &StateRecord) -> Result<(), Failure> {
        if entry.value.is_none() {
            return Ok(());
        }
        self.value(&String::from_utf8_lossy(&entry.text))
    }
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    values: Vec<&'a RawValue>,
    next: Option<String>,
}

/// Prints the state of a running relay. Keys are as they are when their turn comes.
pub(super) fn export(export: &mut Export, global: &Global<'_>) -> Result<(), Failure> {
    let mut path = Some("/v1/state".to_owned());
    while let Some(asked) = path.take() {
        // One of an earlier version has no state.
        let Some(body) = ask_if_there(global, &asked)? else { return Ok(()) };
        let page: Page<'_> = serde_json::from_str(&body).map_err(unreadable)?;
        for value in page.values {
            export.value(value.get())?;
        }
        path = page.next.map(|after| format!("/v1/state?after={}", http::encode(&after)));
    }
    Ok(())
}

/// A key of an export.
#[derive(Deserialize)]
struct Value<'a> {
    version: u64,
    #[serde(borrow)]
    value: &'a RawValue,
    time: u64,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    expires: Option<u64>,
}

/// What an import has of the state.
#[derive(Default)]
pub(super) struct Values {
    epoch: Option<Epoch>,
    seen: HashSet<Name>,
    versions: HashSet<u64>,
    upto: u64,
    changes: Vec<StateRecord>,
}

impl Values {
    /// What came since the last time.
    pub(super) fn take(&mut self) -> Option<Box<StateBatch>> {
        if self.changes.is_empty() {
            return None;
        }
        let epoch = *self.epoch.get_or_insert_with(Epoch::random);
        let changes = std::mem::take(&mut self.changes);
        let (upto, forgotten) = (self.upto, Vec::new());
        let batch = StateBatch { epoch, horizon: 0, upto, is_whole: false, changes, forgotten };
        Some(Box::new(batch))
    }
}

impl Import {
    pub(super) fn value(&mut self, key: &str, text: &str) -> Result<(), String> {
        let key = Name::parse(key).map_err(|error| format!("key {error}"))?;
        if key.is_reserved() {
            return Err(format!("key {key} begins with $ and is not kept"));
        }
        let line: Value<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let Value { version, value, time: time_ms, user, expires } = line;
        if version == 0 {
            return Err("version is 0; versions begin at 1".to_owned());
        }
        if !self.values.seen.insert(key.clone()) {
            return Err(format!("key {key} comes twice"));
        }
        if !self.values.versions.insert(version) {
            return Err(format!("version {version} comes twice"));
        }
        let now = Now { uptime_ms: 0, unix_ms: time_ms };
        let user = user.map(|user| user.get().as_bytes());
        let ttl_ms = expires.map(|at_ms| at_ms.saturating_sub(time_ms));
        let entry = Entry::new((version, now), &key, Some(value.get()), user, ttl_ms);
        self.count.keys += 1;
        self.bytes += entry.text().len();
        self.values.upto = self.values.upto.max(version);
        self.values.changes.push(StateRecord {
            key,
            version,
            time_ms,
            expires_unix_ms: expires,
            text: entry.text().to_vec(),
            value: entry.value_in_text(),
        });
        Ok(())
    }
}
