//! Requests: whatever the text, the answer is a request that means what the text says, or a
//! refusal that says what to change.

#![no_main]

use std::collections::BTreeMap;

use landline::wire::{
    codes::Code,
    request::{Decoded, Publish, Refusal, Request, StateRequest, decode},
};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        run(text);
    }
});

/// The fields of a message by name, as they stand in it; `None` if it is no JSON object.
type Fields<'a> = BTreeMap<String, &'a RawValue>;

const DEPTH_MAX: usize = 32;
/// Bytes of a refusal's message: it may name a topic, never repeat a whole request.
const MESSAGE_BYTES_MAX: usize = 1_000;
const FIELDS: &[&str] = &[
    "type",
    "id",
    "topic",
    "data",
    "name",
    "key",
    "from",
    "slow",
    "ack",
    "consumer",
    "window",
    "seq",
    "limit",
    "user",
    "client",
    "value",
    "if_version",
    "ttl_ms",
    "pattern",
    "after",
    "info",
];

fn run(text: &str) {
    let Decoded { id, request } = decode(text);
    let fields: Option<Fields<'_>> = serde_json::from_str(text).ok();
    let is_deep = DEPTH_MAX < depth(text);
    match &request {
        Ok(request) => {
            let fields = fields.as_ref().expect("what is accepted is a JSON object");
            assert!(!is_deep, "accepted, and too deep");
            assert_eq!(id, number(fields, "id"), "the id");
            agrees(request, fields);
        }
        Err(refusal) => {
            if let Some(fields) = fields.filter(|_| !is_deep && !has_twice(refusal)) {
                is_helpful(refusal);
                let wanted = number(&fields, "id");
                assert_eq!(id, wanted, "the id of a refusal: {refusal:?}");
            }
            assert!(matches!(refusal.code, Code::BadRequest | Code::UnknownType), "{refusal:?}");
            assert!(!refusal.message.is_empty(), "{refusal:?}");
            assert!(refusal.message.len() <= MESSAGE_BYTES_MAX, "{refusal:?}");
        }
    }
}

/// A map keeps the last of two equal fields; the relay refuses both.
fn has_twice(refusal: &Refusal) -> bool {
    refusal.message.contains("stands there twice")
}

/// A refusal of a message that is well formed names the field at fault.
fn is_helpful(refusal: &Refusal) {
    let field = refusal.field.unwrap_or_else(|| panic!("no field: {refusal:?}"));
    let outer = field.split('.').next().unwrap_or_default();
    assert!(FIELDS.contains(&outer), "{refusal:?}");
    let is_type = refusal.code == Code::UnknownType;
    assert_eq!(is_type && outer != "type", false, "{refusal:?}");
}

/// The request says what the fields say.
fn agrees(request: &Request<'_>, fields: &Fields<'_>) {
    let kind = text(fields, "type").expect("a request has a type");
    match request {
        Request::Publish(publish) => {
            assert_eq!(kind, "publish");
            is_publish(publish, fields);
        }
        Request::Hello { user, client } => {
            assert_eq!(kind, "hello");
            assert_eq!(user.as_ref().map(|user| user.as_str()), text(fields, "user").as_deref());
            assert_eq!(client.as_deref(), text(fields, "client").as_deref());
        }
        Request::Subscribe { filter, acks, .. } => {
            assert_eq!(
                (kind.as_str(), text(fields, "topic").as_deref()),
                ("subscribe", Some(filter.as_str()))
            );
            let consumer = acks.as_ref().and_then(|acks| acks.consumer.as_ref());
            let wanted = text(fields, "consumer");
            assert_eq!(consumer.map(|name| name.as_str()), wanted.as_deref());
            if let Some(acks) = acks {
                assert_eq!(acks.window, number(fields, "window").unwrap_or(256));
                assert!((1..=65_536).contains(&acks.window));
            }
        }
        Request::Unsubscribe { filter } => {
            assert_eq!(
                (kind.as_str(), text(fields, "topic").as_deref()),
                ("unsubscribe", Some(filter.as_str()))
            );
        }
        Request::Ack { topic, seq } => {
            assert_eq!((kind.as_str(), text(fields, "topic").as_deref()), ("ack", Some(&**topic)));
            assert_eq!(Some(*seq), number(fields, "seq"));
        }
        Request::History { topic, limit, .. } => {
            assert_eq!(
                (kind.as_str(), text(fields, "topic").as_deref()),
                ("history", Some(topic.as_str()))
            );
            assert_eq!(*limit, number(fields, "limit").unwrap_or(100));
            assert!((1..=1_000).contains(limit));
        }
        Request::Ping => assert_eq!(kind, "ping"),
        Request::State(request) => is_state(&kind, request, fields),
    }
}

fn is_publish(publish: &Publish<'_>, fields: &Fields<'_>) {
    let Publish { topic, data, name, key } = publish;
    assert_eq!(Some(*data), fields.get("data").map(|raw| raw.get()), "data is passed on as it is");
    assert!(serde_json::from_str::<&RawValue>(data).is_ok(), "data is JSON: {data}");
    assert_eq!(Some(&**topic), text(fields, "topic").as_deref());
    assert_eq!(name.as_deref(), text(fields, "name").as_deref());
    assert_eq!(key.as_deref(), text(fields, "key").as_deref());
    for text in [name, key].into_iter().flatten() {
        assert!((1..=128).contains(&text.len()) && !text.contains(char::is_control), "{text:?}");
    }
    // In another order of fields, which is decoded in another way, it is the same.
    let again = format!(r#"{{"data":{data},"topic":{},"type":"publish"}}"#, fields["topic"]);
    match decode(&again).request {
        Ok(Request::Publish(again)) => assert_eq!((&again.topic, again.data), (topic, *data)),
        other => panic!("{again} was decoded as {other:?}"),
    }
}

fn is_state(kind: &str, request: &StateRequest<'_>, fields: &Fields<'_>) {
    let raw = |name: &str| fields.get(name).map(|raw| raw.get());
    let (expected, field, found) = match request {
        StateRequest::Set { key, value, if_version, ttl_ms } => {
            assert_eq!(Some(*value), raw("value"), "a value is passed on as it is");
            assert_eq!(*if_version, number(fields, "if_version"));
            assert_eq!(*ttl_ms, number(fields, "ttl_ms"));
            ("set", "key", key.as_str())
        }
        StateRequest::Delete { key, if_version } => {
            assert_eq!(*if_version, number(fields, "if_version"));
            ("delete", "key", key.as_str())
        }
        StateRequest::Get { filter, after, limit } => {
            assert_eq!(*after, text(fields, "after"));
            assert!((1..=1_000).contains(limit));
            ("get", "key", filter.as_str())
        }
        StateRequest::Watch { filter, from } => {
            let is_there = raw("from").is_some_and(|from| from != "null");
            assert_eq!(from.is_some(), is_there);
            ("watch", "pattern", filter.as_str())
        }
        StateRequest::Unwatch { filter } => ("unwatch", "pattern", filter.as_str()),
        StateRequest::Join { topic, info } => {
            assert_eq!(*info, raw("info").filter(|info| *info != "null"));
            assert!(info.is_none_or(|info| info.len() <= 1_024));
            ("join", "topic", topic.as_str())
        }
        StateRequest::Leave { topic } => ("leave", "topic", topic.as_str()),
    };
    assert_eq!((kind, text(fields, field).as_deref()), (expected, Some(found)));
}

fn text(fields: &Fields<'_>, name: &str) -> Option<String> {
    serde_json::from_str(fields.get(name)?.get()).ok()
}

fn number(fields: &Fields<'_>, name: &str) -> Option<u64> {
    fields.get(name)?.get().parse().ok()
}

/// How deep arrays and objects nest in JSON text.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut is_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        if is_string {
            is_string = is_escaped || byte != b'"';
            is_escaped = !is_escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => is_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
