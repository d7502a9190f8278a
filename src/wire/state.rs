//! What the relay says about state and presence, as text frames appended to a buffer.
//!
//! `state` itself is not here: it is encoded once, when a key changes (`state::Entry`).

use serde::Serialize;

use crate::wire::{codes::Durability, frame, json, position::Epoch, reply::push};

/// Up to which change of which life of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatePosition {
    pub epoch: Epoch,
    pub version: u64,
}

/// What whoever changes a key learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub epoch: Epoch,
    pub version: u64,
    pub durability: Durability,
    /// It was deleted.
    pub is_deletion: bool,
}

/// What a watcher learns before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watching {
    pub epoch: Epoch,
    /// Up to where the snapshot, or what was missed, goes.
    pub version: u64,
    /// What the watcher had does not count any more: a whole snapshot follows.
    pub reset: bool,
}

/// The facts of `stored` and `deleted`, as HTTP answers them too.
#[derive(Serialize)]
pub struct StoredBody {
    version: u64,
    epoch: String,
    durability: &'static str,
}

impl From<Stored> for StoredBody {
    fn from(stored: Stored) -> Self {
        StoredBody {
            version: stored.version,
            epoch: stored.epoch.to_string(),
            durability: stored.durability.as_str(),
        }
    }
}

/// Appends `stored` or `deleted`.
pub fn stored(out: &mut Vec<u8>, id: u64, stored: &Stored) {
    #[derive(Serialize)]
    struct Body {
        r#type: &'static str,
        id: u64,
        #[serde(flatten)]
        stored: StoredBody,
    }
    let r#type = if stored.is_deletion { "deleted" } else { "stored" };
    push(out, &Body { r#type, id, stored: (*stored).into() });
}

/// Appends `watching`.
pub fn watching(out: &mut Vec<u8>, id: Option<u64>, pattern: &str, at: &Watching) {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        pattern: &'a str,
        epoch: String,
        version: u64,
        reset: bool,
    }
    let Watching { epoch, version, reset } = *at;
    push(out, &Body { r#type: "watching", id, pattern, epoch: epoch.to_string(), version, reset });
}

/// Appends `synced`.
pub fn synced(out: &mut Vec<u8>, pattern: &str, version: u64) {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        pattern: &'a str,
        version: u64,
    }
    push(out, &Body { r#type: "synced", pattern, version });
}

/// Appends `unwatched`.
pub fn unwatched(out: &mut Vec<u8>, id: Option<u64>, pattern: &str) {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        pattern: &'a str,
    }
    push(out, &Body { r#type: "unwatched", id, pattern });
}

/// Writes the body of a list of values: `prefix` (from the opening brace on), then the facts, then
/// `values`, which are `state` objects joined by commas.
#[must_use]
pub fn values_body(prefix: &str, at: &StatePosition, values: &[u8], next: Option<&str>) -> Vec<u8> {
    let mut body = Vec::with_capacity(prefix.len() + values.len() + 128);
    body.extend_from_slice(prefix.as_bytes());
    body.extend_from_slice(format!("\"epoch\":\"{}\",\"version\":", at.epoch).as_bytes());
    json::push_number(&mut body, at.version);
    if let Some(next) = next {
        body.extend_from_slice(b",\"next\":");
        json::push_string(&mut body, next);
    }
    body.extend_from_slice(b",\"values\":[");
    body.extend_from_slice(values);
    body.extend_from_slice(b"]}");
    body
}

/// Appends `values`.
pub fn values(
    out: &mut Vec<u8>,
    id: Option<u64>,
    at: &StatePosition,
    values: &[u8],
    next: Option<&str>,
) {
    let prefix = match id {
        Some(id) => format!("{{\"type\":\"values\",\"id\":{id},"),
        None => "{\"type\":\"values\",".to_owned(),
    };
    frame::push_text(out, &values_body(&prefix, at, values, next));
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch::from_number(10);

    /// The one text frame that `write` appends.
    fn said(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        assert_eq!(frame::length(&out), out.len());
        String::from_utf8(frame::payload(&out).to_vec()).unwrap()
    }

    #[test]
    fn what_is_said_about_state_is_as_the_protocol_has_it() {
        let set =
            Stored { epoch: EPOCH, version: 5, durability: Durability::Memory, is_deletion: false };
        let facts = r#""version":5,"epoch":"000000000000000a","durability":"memory""#;
        let deleted = Stored { is_deletion: true, ..set };
        let at = Watching { epoch: EPOCH, version: 5, reset: true };
        for (text, expected) in [
            (said(|out| stored(out, 1, &set)), format!(r#"{{"type":"stored","id":1,{facts}}}"#)),
            (
                said(|out| stored(out, 1, &deleted)),
                format!(r#"{{"type":"deleted","id":1,{facts}}}"#),
            ),
            (
                said(|out| watching(out, Some(2), "a/+", &at)),
                concat!(
                    r#"{"type":"watching","id":2,"pattern":"a/+","epoch":"000000000000000a","#,
                    r#""version":5,"reset":true}"#
                )
                .to_owned(),
            ),
            (
                said(|out| synced(out, "a/+", 5)),
                r#"{"type":"synced","pattern":"a/+","version":5}"#.to_owned(),
            ),
            (
                said(|out| unwatched(out, None, "a/+")),
                r#"{"type":"unwatched","pattern":"a/+"}"#.to_owned(),
            ),
        ] {
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn a_list_of_values_has_its_facts_before_them_and_says_where_to_go_on() {
        let at = StatePosition { epoch: EPOCH, version: 5 };
        let facts = r#""epoch":"000000000000000a","version":5"#;
        assert_eq!(
            said(|out| values(out, Some(1), &at, b"{},{}", Some("a\"b"))),
            format!(r#"{{"type":"values","id":1,{facts},"next":"a\"b","values":[{{}},{{}}]}}"#)
        );
        assert_eq!(
            said(|out| values(out, None, &at, b"", None)),
            format!(r#"{{"type":"values",{facts},"values":[]}}"#)
        );
    }
}
