//! What the relay says, as text frames appended to a buffer.
//!
//! `data` of an event and the events of a history reply are spliced in as they are kept; nothing
//! here parses or re-serializes a payload.

use serde::Serialize;

use crate::wire::{
    codes::{Durability, GapReason},
    frame, json,
    position::{Epoch, Reason, Recovery},
    request::Refusal,
};

/// What a subscriber learns about the topic it was attached to.
#[derive(Clone, Copy, Debug)]
pub struct Attachment {
    pub epoch: Epoch,
    /// The cursor: the next event is `seq + 1`.
    pub seq: u64,
    pub first: u64,
    pub tail: u64,
    pub recovery: Option<Recovery>,
    pub cursor: Cursor,
}

/// What became of the connection's one cursor into the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// It is new.
    New,
    /// The connection had one, which was moved to where the subscription asked for.
    Moved,
    /// The connection had one, which stays where it is.
    Kept,
}

/// What a publisher learns about its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub epoch: Epoch,
    pub seq: u64,
    pub durability: Durability,
    pub duplicate: bool,
}

#[derive(Serialize)]
struct RecoveryBody {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<[u64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl From<Recovery> for RecoveryBody {
    fn from(recovery: Recovery) -> Self {
        RecoveryBody {
            mode: recovery.mode.as_str(),
            missing: recovery.missing.map(|(from, to)| [from, to]),
            reason: recovery.reason.map(|reason| reason.as_str()),
        }
    }
}

pub(super) fn push(out: &mut Vec<u8>, body: &impl Serialize) {
    let text = serde_json::to_vec(body).expect("a reply has only string keys");
    frame::push_text(out, &text);
}

/// Appends `welcome`.
pub fn welcome(out: &mut Vec<u8>, id: Option<u64>, hello: &Welcome<'_>) {
    #[derive(Serialize)]
    struct Server {
        name: &'static str,
        version: &'static str,
    }
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        connection: &'a str,
        user: Option<&'a str>,
        server: Server,
        heartbeat_ms: u64,
        max_message_bytes: usize,
    }
    let Welcome { connection, user, heartbeat_ms, max_message_bytes } = *hello;
    let server = Server { name: "landline", version: env!("CARGO_PKG_VERSION") };
    push(
        out,
        &Body { r#type: "welcome", id, connection, user, server, heartbeat_ms, max_message_bytes },
    );
}

/// The facts of a `welcome`.
#[derive(Clone, Copy, Debug)]
pub struct Welcome<'a> {
    pub connection: &'a str,
    pub user: Option<&'a str>,
    pub heartbeat_ms: u64,
    pub max_message_bytes: usize,
}

#[derive(Serialize)]
struct AttachmentBody<'a> {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pattern: Option<&'a str>,
    epoch: String,
    seq: u64,
    first: u64,
    tail: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery: Option<RecoveryBody>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    replaced: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    shared: bool,
}

/// Appends `subscribed` for one topic.
pub fn subscribed(out: &mut Vec<u8>, id: Option<u64>, topic: &str, at: &Attachment) {
    push(
        out,
        &AttachmentBody {
            r#type: "subscribed",
            id,
            topic,
            pattern: None,
            epoch: at.epoch.to_string(),
            seq: at.seq,
            first: at.first,
            tail: at.tail,
            recovery: at.recovery.map(Into::into),
            replaced: at.cursor == Cursor::Moved,
            shared: at.cursor == Cursor::Kept,
        },
    );
}

/// Appends `attached`: a topic that a pattern has come to match.
pub fn attached(out: &mut Vec<u8>, topic: &str, pattern: &str, at: &Attachment) {
    push(
        out,
        &AttachmentBody {
            r#type: "attached",
            id: None,
            topic,
            pattern: Some(pattern),
            epoch: at.epoch.to_string(),
            seq: at.seq,
            first: at.first,
            tail: at.tail,
            recovery: at.recovery.map(Into::into),
            replaced: at.cursor == Cursor::Moved,
            shared: at.cursor == Cursor::Kept,
        },
    );
}

/// Appends `subscribed` for a pattern, which matched `attached` topics at once.
pub fn subscribed_pattern(
    out: &mut Vec<u8>,
    id: Option<u64>,
    pattern: &str,
    attached: usize,
    replaced: bool,
) {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        topic: &'a str,
        attached: usize,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        replaced: bool,
    }
    push(out, &Body { r#type: "subscribed", id, topic: pattern, attached, replaced });
}

/// Appends `unsubscribed`, `joined` or `left`, whichever `kind` is: what is said of a topic.
pub fn done_with(out: &mut Vec<u8>, id: Option<u64>, kind: &'static str, topic: &str) {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        topic: &'a str,
    }
    push(out, &Body { r#type: kind, id, topic });
}

/// Appends `published`.
pub fn published(out: &mut Vec<u8>, id: u64, receipt: &Receipt) {
    #[derive(Serialize)]
    struct Body {
        r#type: &'static str,
        id: u64,
        #[serde(flatten)]
        receipt: ReceiptBody,
    }
    push(out, &Body { r#type: "published", id, receipt: (*receipt).into() });
}

/// A receipt as it stands in `published` and in the HTTP reply.
#[derive(Serialize)]
pub struct ReceiptBody {
    seq: u64,
    epoch: String,
    durability: &'static str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
}

impl From<Receipt> for ReceiptBody {
    fn from(receipt: Receipt) -> Self {
        ReceiptBody {
            seq: receipt.seq,
            epoch: receipt.epoch.to_string(),
            durability: receipt.durability.as_str(),
            duplicate: receipt.duplicate,
        }
    }
}

/// What a history reply says beside its events.
#[derive(Clone, Copy, Debug)]
pub struct HistoryHead {
    pub epoch: Epoch,
    pub first: u64,
    pub tail: u64,
    pub recovery: Option<Recovery>,
}

/// Writes the body of a history reply: `prefix` (from the opening brace on), then the facts, then
/// `events`, which are event objects joined by commas.
pub fn history_body(prefix: &str, topic: &str, head: &HistoryHead, events: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(prefix.len() + topic.len() + events.len() + 160);
    body.extend_from_slice(prefix.as_bytes());
    body.extend_from_slice(b"\"topic\":");
    json::push_string(&mut body, topic);
    body.extend_from_slice(format!(",\"epoch\":\"{}\",\"first\":", head.epoch).as_bytes());
    json::push_number(&mut body, head.first);
    body.extend_from_slice(b",\"tail\":");
    json::push_number(&mut body, head.tail);
    if let Some(recovery) = head.recovery {
        body.extend_from_slice(b",\"recovery\":");
        serde_json::to_writer(&mut body, &RecoveryBody::from(recovery))
            .expect("a recovery has only string keys");
    }
    body.extend_from_slice(b",\"events\":[");
    body.extend_from_slice(events);
    body.extend_from_slice(b"]}");
    body
}

/// Appends `history`.
pub fn history(out: &mut Vec<u8>, id: Option<u64>, topic: &str, head: &HistoryHead, events: &[u8]) {
    let prefix = match id {
        Some(id) => format!("{{\"type\":\"history\",\"id\":{id},"),
        None => "{\"type\":\"history\",".to_owned(),
    };
    frame::push_text(out, &history_body(&prefix, topic, head, events));
}

/// Appends `pong`.
pub fn pong(out: &mut Vec<u8>, id: Option<u64>, unix_ms: u64) {
    #[derive(Serialize)]
    struct Body {
        r#type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        time: u64,
    }
    push(out, &Body { r#type: "pong", id, time: unix_ms });
}

/// Appends `ping`: the line still stands, for clients that cannot ask.
pub fn ping(out: &mut Vec<u8>, unix_ms: u64) {
    #[derive(Serialize)]
    struct Body {
        r#type: &'static str,
        time: u64,
    }
    push(out, &Body { r#type: "ping", time: unix_ms });
}

/// Appends `ready`: a pattern's stream is in the `topics` that there are, and its position follows.
pub fn ready(out: &mut Vec<u8>, pattern: &str, topics: usize) {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        topic: &'a str,
        topics: usize,
    }
    push(out, &Body { r#type: "ready", topic: pattern, topics });
}

/// Appends `gap` for a position that could not be met completely; what is missing, as far as it is
/// known.
pub fn gap_of_recovery(out: &mut Vec<u8>, topic: &str, recovery: &Recovery) {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        topic: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        to: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
    }
    let (from, to) = recovery.missing.unzip();
    let reason = recovery.reason.map(|reason| reason.as_str());
    push(out, &Body { r#type: "gap", topic, from, to, reason });
}

/// Appends `gap` for positions in `topics` topics that are not there any more: which they were a
/// stream of `pattern` does not know.
pub fn gap_of_topics(out: &mut Vec<u8>, pattern: &str, topics: usize) {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        topic: &'a str,
        topics: usize,
        reason: &'static str,
    }
    let reason = Reason::EpochChanged.as_str();
    push(out, &Body { r#type: "gap", topic: pattern, topics, reason });
}

/// Appends `gap`: events `from..=to` of `topic` that this subscription will never get.
pub fn gap(out: &mut Vec<u8>, topic: &str, from: u64, to: u64, reason: GapReason) {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        topic: &'a str,
        from: u64,
        to: u64,
        reason: &'static str,
    }
    push(out, &Body { r#type: "gap", topic, from, to, reason: reason.as_str() });
}

/// Appends `error`.
pub fn error(out: &mut Vec<u8>, id: Option<u64>, topic: Option<&str>, refusal: &Refusal) {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        code: &'static str,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        field: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        topic: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
    }
    push(
        out,
        &Body {
            r#type: "error",
            id,
            code: refusal.code.as_str(),
            message: &refusal.message,
            field: refusal.field,
            topic,
            retry_after_ms: refusal.retry_after_ms,
            version: refusal.version,
        },
    );
}

/// Appends `bye`, the last message before the close frame.
pub fn bye(out: &mut Vec<u8>, reason: &str, reconnect_after_ms: Option<u64>) {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        reason: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reconnect_after_ms: Option<u64>,
    }
    push(out, &Body { r#type: "bye", reason, reconnect_after_ms });
}

#[cfg(test)]
mod tests;
