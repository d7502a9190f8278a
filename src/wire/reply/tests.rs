//! What the relay says, byte for byte.

use super::*;
use crate::wire::{codes::Code, position::Mode};

const EPOCH: Epoch = Epoch::from_number(10);
const AT: Attachment =
    Attachment { epoch: EPOCH, seq: 4, first: 2, tail: 9, recovery: None, cursor: Cursor::New };
const PARTIAL: Recovery =
    Recovery { mode: Mode::Partial, missing: Some((2, 3)), reason: Some(Reason::Truncated) };
const RESET: Recovery =
    Recovery { mode: Mode::Reset, missing: None, reason: Some(Reason::EpochChanged) };

/// The one text frame that `write` appends.
fn said(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    assert_eq!(frame::length(&out), out.len());
    String::from_utf8(frame::payload(&out).to_vec()).unwrap()
}

#[test]
fn a_welcome_says_who_is_who() {
    let hello = Welcome {
        connection: "7",
        user: Some("anna"),
        heartbeat_ms: 25_000,
        max_message_bytes: 1_024,
    };
    let server = format!(r#"{{"name":"landline","version":"{}"}}"#, env!("CARGO_PKG_VERSION"));
    assert_eq!(
        said(|out| welcome(out, Some(1), &hello)),
        format!(r#"{{"type":"welcome","id":1,"connection":"7","user":"anna","server":{server},"#)
            + r#""heartbeat_ms":25000,"max_message_bytes":1024}"#
    );
    let nobody = said(|out| welcome(out, None, &Welcome { user: None, ..hello }));
    assert!(nobody.starts_with(r#"{"type":"welcome","connection":"7","user":null,"#), "{nobody}");
}

#[test]
fn an_attachment_says_where_the_cursor_is_and_whose_it_was() {
    let facts = r#""epoch":"000000000000000a","seq":4,"first":2,"tail":9"#;
    let moved = Attachment { cursor: Cursor::Moved, recovery: Some(PARTIAL), ..AT };
    let kept = Attachment { cursor: Cursor::Kept, recovery: Some(Recovery::COMPLETE), ..AT };
    let partial = r#""recovery":{"mode":"partial","missing":[2,3],"reason":"truncated"}"#;
    for (at, rest) in [
        (AT, String::new()),
        (moved, format!(r#",{partial},"replaced":true"#)),
        (kept, r#","recovery":{"mode":"complete"},"shared":true"#.to_owned()),
    ] {
        assert_eq!(
            said(|out| subscribed(out, Some(3), "a", &at)),
            format!(r#"{{"type":"subscribed","id":3,"topic":"a",{facts}{rest}}}"#)
        );
        assert_eq!(
            said(|out| attached(out, "a/b", "a/+", &at)),
            format!(r#"{{"type":"attached","topic":"a/b","pattern":"a/+",{facts}{rest}}}"#)
        );
    }
}

#[test]
fn a_request_that_is_done_is_answered_under_its_id() {
    let receipt =
        Receipt { epoch: EPOCH, seq: 8, durability: Durability::Written, duplicate: false };
    let again = Receipt { duplicate: true, durability: Durability::Synced, ..receipt };
    for (text, expected) in [
        (
            said(|out| subscribed_pattern(out, Some(3), "a/#", 2, false)),
            r##"{"type":"subscribed","id":3,"topic":"a/#","attached":2}"##,
        ),
        (
            said(|out| subscribed_pattern(out, None, "a/#", 0, true)),
            r##"{"type":"subscribed","topic":"a/#","attached":0,"replaced":true}"##,
        ),
        (
            said(|out| done_with(out, Some(4), "unsubscribed", "a")),
            r#"{"type":"unsubscribed","id":4,"topic":"a"}"#,
        ),
        (
            said(|out| published(out, 5, &receipt)),
            concat!(
                r#"{"type":"published","id":5,"seq":8,"epoch":"000000000000000a","#,
                r#""durability":"written"}"#
            ),
        ),
        (
            said(|out| published(out, 5, &again)),
            concat!(
                r#"{"type":"published","id":5,"seq":8,"epoch":"000000000000000a","#,
                r#""durability":"synced","duplicate":true}"#
            ),
        ),
        (said(|out| pong(out, Some(6), 17)), r#"{"type":"pong","id":6,"time":17}"#),
        (said(|out| ping(out, 17)), r#"{"type":"ping","time":17}"#),
        (said(|out| ready(out, "a/+", 2)), r#"{"type":"ready","topic":"a/+","topics":2}"#),
        (
            said(|out| bye(out, "it drains", Some(300))),
            r#"{"type":"bye","reason":"it drains","reconnect_after_ms":300}"#,
        ),
        (said(|out| bye(out, "no", None)), r#"{"type":"bye","reason":"no"}"#),
    ] {
        assert_eq!(text, expected);
    }
}

#[test]
fn a_history_has_its_facts_before_its_events() {
    let head = HistoryHead { epoch: EPOCH, first: 2, tail: 9, recovery: None };
    assert_eq!(
        said(|out| history(out, Some(1), "a\"", &head, b"{},{}")),
        concat!(
            r#"{"type":"history","id":1,"topic":"a\"","epoch":"000000000000000a","#,
            r#""first":2,"tail":9,"events":[{},{}]}"#
        )
    );
    let head = HistoryHead { recovery: Some(RESET), ..head };
    assert_eq!(
        said(|out| history(out, None, "a", &head, b"")),
        concat!(
            r#"{"type":"history","topic":"a","epoch":"000000000000000a","first":2,"tail":9,"#,
            r#""recovery":{"mode":"reset","reason":"epoch_changed"},"events":[]}"#
        )
    );
}

#[test]
fn a_gap_says_what_is_missing_as_far_as_it_is_known() {
    assert_eq!(
        said(|out| gap_of_recovery(out, "a", &PARTIAL)),
        r#"{"type":"gap","topic":"a","from":2,"to":3,"reason":"truncated"}"#
    );
    assert_eq!(
        said(|out| gap_of_recovery(out, "a", &Recovery { reason: Some(Reason::Ahead), ..RESET })),
        r#"{"type":"gap","topic":"a","reason":"ahead"}"#
    );
    assert_eq!(
        said(|out| gap_of_topics(out, "a/+", 3)),
        r#"{"type":"gap","topic":"a/+","topics":3,"reason":"epoch_changed"}"#
    );
    let reasons = ["truncated", "slow", "retention", "damaged", "dead_letter"];
    for (reason, name) in GapReason::ALL.iter().zip(reasons) {
        assert_eq!(
            said(|out| gap(out, "a", 5, 6, *reason)),
            format!(r#"{{"type":"gap","topic":"a","from":5,"to":6,"reason":"{name}"}}"#)
        );
    }
}

#[test]
fn an_error_has_only_the_facts_that_there_are() {
    let plain = Refusal::new(Code::Busy, "later");
    assert_eq!(
        said(|out| error(out, None, None, &plain)),
        r#"{"type":"error","code":"busy","message":"later"}"#
    );
    let full =
        Refusal { field: Some("seq"), retry_after_ms: Some(9), version: Some(0), ..plain.clone() };
    let text = said(|out| error(out, Some(1), Some("a"), &full));
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({
        "type": "error", "id": 1, "code": "busy", "message": "later", "field": "seq",
        "topic": "a", "retry_after_ms": 9, "version": 0,
    });
    assert_eq!(value, expected);
}
