//! What is understood, and what is refused in which words.

use super::*;
use crate::wire::position::{Epoch, Position};

fn refusal(text: &str) -> Refusal {
    match decode(text).request {
        Err(refusal) => refusal,
        Ok(request) => panic!("{text} was accepted as {request:?}"),
    }
}

fn from(text: &str) -> From {
    match decode(&format!(r#"{{"type":"subscribe","topic":"a","from":{text}}}"#)).request {
        Ok(Request::Subscribe { from, .. }) => from,
        other => panic!("{text}: {other:?}"),
    }
}

/// A parser's message quotes the text, escaped: a megabyte went out for a message of 256 KiB.
#[test]
fn a_refusal_is_short_however_long_the_message_is() {
    let long = "\u{7f}".repeat(50_000);
    for text in [
        format!("\"{long}\""),
        format!(r#"{{"type":"{long}"}}"#),
        format!(r#"{{"type":"subscribe","topic":"+","from":{{"positions":"{long}"}}}}"#),
        format!(r#"{{"type":"subscribe","topic":"a","from":"{long}"}}"#),
        format!(r#"{{"type":"watch","pattern":"a","from":"{long}"}}"#),
        format!(r#"{{"type":"publish","topic":"a","data":1,"name":["{long}"]}}"#),
    ] {
        let refusal = refusal(&text);
        assert!(refusal.message.len() < 1_000, "{} bytes", refusal.message.len());
    }
}

#[test]
fn data_is_passed_through_untouched_whatever_it_is() {
    for data in ["null", "1.50", "\"a\\u0041\"", "{ \"b\" : [ 1 ,2 ] }", "[]", "-0", "1e400"] {
        let text = format!(r#"{{"data":{data},"type":"publish","topic":"a"}}"#);
        match decode(&text).request {
            Ok(Request::Publish(publish)) => assert_eq!(publish.data, data),
            other => panic!("{data}: {other:?}"),
        }
    }
}

#[test]
fn every_form_of_from_is_understood() {
    let epoch = Epoch::from_number(7);
    assert_eq!(from("\"live\""), From::Live);
    assert_eq!(from("null"), From::Live);
    assert_eq!(from("\"start\""), From::Start);
    assert_eq!(from(r#"{"last":3}"#), From::Last(3));
    assert_eq!(from(r#"{"since":1700000000000}"#), From::Since(1_700_000_000_000));
    let position = Position { epoch, seq: 4 };
    assert_eq!(from(r#"{"seq":4,"epoch":"0000000000000007"}"#), From::After(position));
    let text = r##"{"type":"subscribe","topic":"a/#","from":{"positions":
        {"a/b":{"epoch":"0000000000000007","seq":4}}}}"##;
    let name = Name::parse("a/b").unwrap();
    match decode(text).request {
        Ok(Request::Subscribe { from, .. }) => {
            assert_eq!(from, From::Positions(vec![(name, position)]));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_epoch_is_an_error_and_not_a_wildcard() {
    for text in [r#"{"seq":4}"#, r#"{"seq":4,"epoch":null}"#, r#"{"seq":4,"epoch":""}"#] {
        let message = format!(r#"{{"type":"subscribe","topic":"a","from":{text}}}"#);
        assert_eq!(refusal(&message).field, Some("from.epoch"), "{text}");
    }
}

#[test]
fn every_field_of_every_message_refuses_the_wrong_type_by_name() {
    let long = "x".repeat(129);
    for (text, field) in [
        (r#"{"type":5}"#, "type"),
        (r#"{"type":null}"#, "type"),
        (r#"{"id":1}"#, "type"),
        (r#"{"type":"ping","id":"1"}"#, "id"),
        (r#"{"type":"ping","id":-1}"#, "id"),
        (r#"{"type":"ping","id":1.5}"#, "id"),
        (r#"{"type":"nonsense"}"#, "type"),
        (r#"{"type":"publish","data":1}"#, "topic"),
        (r#"{"type":"publish","topic":1,"data":1}"#, "topic"),
        (r#"{"type":"publish","topic":"a"}"#, "data"),
        (r#"{"type":"publish","topic":"a","data":1,"name":2}"#, "name"),
        (r#"{"type":"publish","topic":"a","data":1,"key":2}"#, "key"),
        (r#"{"type":"publish","topic":"a","data":1,"key":""}"#, "key"),
        (&format!(r#"{{"type":"publish","topic":"a","data":1,"key":"{long}"}}"#), "key"),
        (r#"{"type":"subscribe"}"#, "topic"),
        (r#"{"type":"subscribe","topic":"a//b"}"#, "topic"),
        (r#"{"type":"subscribe","topic":["a"]}"#, "topic"),
        (r#"{"type":"subscribe","topic":"a","from":5}"#, "from"),
        (r#"{"type":"subscribe","topic":"a","from":"yesterday"}"#, "from"),
        (r#"{"type":"subscribe","topic":"a","from":{}}"#, "from"),
        (r#"{"type":"subscribe","topic":"a","from":{"last":-1}}"#, "from"),
        (r#"{"type":"subscribe","topic":"a","from":{"last":1,"since":2}}"#, "from"),
        (r#"{"type":"subscribe","topic":"a","from":{"positions":{}}}"#, "from"),
        (
            r#"{"type":"subscribe","topic":"a/+","from":{"epoch":"0000000000000007","seq":1}}"#,
            "from",
        ),
        (r#"{"type":"subscribe","topic":"a/+","from":{"positions":[]}}"#, "from.positions"),
        (r#"{"type":"subscribe","topic":"a","slow":"drop"}"#, "slow"),
        (r#"{"type":"subscribe","topic":"a","slow":1}"#, "slow"),
        (r#"{"type":"subscribe","topic":"a","ack":1}"#, "ack"),
        (r#"{"type":"subscribe","topic":"a","ack":false,"consumer":"c"}"#, "ack"),
        (r#"{"type":"subscribe","topic":"a","window":5}"#, "window"),
        (r#"{"type":"subscribe","topic":"a","ack":true,"window":0}"#, "window"),
        (r#"{"type":"subscribe","topic":"a","ack":true,"window":65537}"#, "window"),
        (r#"{"type":"subscribe","topic":"a/+","consumer":"c"}"#, "consumer"),
        (r#"{"type":"ack","seq":1}"#, "topic"),
        (r#"{"type":"ack","topic":"a"}"#, "seq"),
        (r#"{"type":"ack","topic":"a","seq":-1}"#, "seq"),
        (r#"{"type":"subscribe","topic":"a","consumer":"c/d"}"#, "consumer"),
        (r#"{"type":"unsubscribe"}"#, "topic"),
        (r#"{"type":"history","topic":"a/#"}"#, "topic"),
        (r#"{"type":"history","topic":"a","limit":0}"#, "limit"),
        (r#"{"type":"history","topic":"a","limit":1001}"#, "limit"),
        (r#"{"type":"history","topic":"a","limit":"9"}"#, "limit"),
        (r#"{"type":"hello","user":7}"#, "user"),
        (r#"{"type":"hello","user":"a/b"}"#, "user"),
        (r#"{"type":"hello","client":7}"#, "client"),
    ] {
        let refusal = refusal(text);
        assert_eq!(refusal.field, Some(field), "{text}: {refusal:?}");
        assert!(refusal.message.contains(field), "{text}: {refusal:?}");
    }
}

#[test]
fn what_is_not_an_object_is_refused_without_an_id() {
    for text in ["", "[]", "5", "nonsense", "{", r#"{"type":"ping"} x"#, r#"{"id":1,"id":2}"#] {
        let decoded = decode(text);
        assert_eq!(decoded.id, None);
        assert_eq!(refusal(text).code, Code::BadRequest, "{text}");
    }
    let deep = format!(r#"{{"type":"publish","topic":"a","data":{}}}"#, "[".repeat(40));
    assert!(refusal(&deep).message.contains("32 levels"));
}

#[test]
fn an_error_shows_a_long_value_shortened() {
    let text = format!(r#"{{"type":"{}"}}"#, "ü".repeat(500));
    assert!(refusal(&text).message.len() < 300);
    assert_eq!(refusal(&text).code, Code::UnknownType);
}

#[test]
fn the_plain_way_understands_what_the_general_way_does_and_nothing_more() {
    let generally = |text: &str| {
        // White space in front is what the plain form does not have.
        match decode(&format!(" {text}")).request {
            Ok(Request::Publish(Publish { topic, data, name: None, key: None })) => {
                Some((topic.into_owned(), data.to_owned()))
            }
            _ => None,
        }
    };
    for data in
        ["1", "\"a\"", " [1, {\"b\": \"}\"}] ", "{}", "null", "\"\\u0041\"", "", "1,2", "tru"]
    {
        for topic in ["a", "a/b", "a\\u0062", "a\tb", "", "ü"] {
            for end in ["}", " }", ",\"x\":1}", ",\"data\":2}", "}}", "} x"] {
                let text =
                    format!("{{\"type\":\"publish\",\"topic\":\"{topic}\",\"data\":{data}{end}");
                let plain = plain_publish(&text);
                let plain =
                    plain.map(|publish| (publish.topic.into_owned(), publish.data.to_owned()));
                let general = generally(&text);
                assert!(plain.is_none() || plain == general, "{text}: {plain:?} {general:?}");
            }
        }
    }
    assert!(plain_publish("{\"type\":\"publish\",\"topic\":\"a\",\"data\":[1]}").is_some());
}

#[test]
fn every_message_is_understood_with_all_of_its_fields() {
    let epoch = "0000000000000007";
    for (text, expected) in [
        (
            r#"{"type":"hello","user":"anna","client":"c 1"}"#.to_owned(),
            r#"Hello { user: Some("anna"), client: Some("c 1") }"#,
        ),
        (
            r#"{"type":"subscribe","topic":"a","slow":"disconnect","consumer":"c","window":9}"#
                .into(),
            concat!(
                r#"Subscribe { filter: Topic("a"), from: Live, slow: Disconnect, "#,
                r#"acks: Some(Acks { window: 9, consumer: Some("c") }) }"#
            ),
        ),
        (
            r#"{"type":"subscribe","topic":"a/+","slow":null,"ack":false,"consumer":null}"#.into(),
            r#"Subscribe { filter: Pattern("a/+"), from: Live, slow: Gap, acks: None }"#,
        ),
        (
            r#"{"type":"subscribe","topic":"a","ack":true}"#.into(),
            concat!(
                r#"Subscribe { filter: Topic("a"), from: Live, slow: Gap, "#,
                r#"acks: Some(Acks { window: 256, consumer: None }) }"#
            ),
        ),
        (
            r#"{"type":"publish","topic":"a","data":1,"name":null,"key":"k"}"#.into(),
            r#"Publish(Publish { topic: "a", data: "1", name: None, key: Some("k") })"#,
        ),
        (r#"{"type":"ack","topic":"a","seq":3}"#.into(), r#"Ack { topic: "a", seq: 3 }"#),
        (
            r#"{"type":"history","topic":"a","from":"start","limit":7}"#.into(),
            r#"History { topic: "a", from: Some(Start), limit: 7 }"#,
        ),
        (
            r#"{"type":"set","key":"k","value":[1],"if_version":0,"ttl_ms":5}"#.into(),
            r#"State(Set { key: "k", value: "[1]", if_version: Some(0), ttl_ms: Some(5) })"#,
        ),
        (
            r#"{"type":"delete","key":"k","if_version":2}"#.into(),
            r#"State(Delete { key: "k", if_version: Some(2) })"#,
        ),
        (
            r#"{"type":"get","key":"a/+","after":"a/b","limit":1000}"#.into(),
            r#"State(Get { filter: Pattern("a/+"), after: Some("a/b"), limit: 1000 })"#,
        ),
        (
            format!(r#"{{"type":"watch","pattern":"a","from":{{"epoch":"{epoch}","version":3}}}}"#),
            concat!(
                r#"State(Watch { filter: Topic("a"), "#,
                r#"from: Some(StatePosition { epoch: Epoch(7), version: 3 }) })"#
            ),
        ),
        (r#"{"type":"unwatch","pattern":"a"}"#.into(), r#"State(Unwatch { filter: Topic("a") })"#),
        (
            r#"{"type":"join","topic":"a","info":{}}"#.into(),
            r#"State(Join { topic: "a", info: Some("{}") })"#,
        ),
        (
            r#"{"type":"join","topic":"a","info":null}"#.into(),
            r#"State(Join { topic: "a", info: None })"#,
        ),
        (r#"{"type":"leave","topic":"a"}"#.into(), r#"State(Leave { topic: "a" })"#),
        (r#"{"type":"unsubscribe","topic":"a"}"#.into(), r#"Unsubscribe { filter: Topic("a") }"#),
        (r#"{"type":"ping","unknown":1}"#.into(), "Ping"),
    ] {
        let decoded = decode(&text);
        assert_eq!(format!("{:?}", decoded.request.unwrap()), expected, "{text}");
    }
}

#[test]
fn what_is_as_long_as_it_may_be_is_accepted_and_longer_is_not() {
    let named = |len| {
        let name = "n".repeat(len);
        format!(r#"{{"type":"publish","topic":"a","data":1,"name":"{name}"}}"#)
    };
    let joined = |len: usize| {
        let info = "1".repeat(len);
        format!(r#"{{"type":"join","topic":"a","info":{info}}}"#)
    };
    let lived = |ms: usize| format!(r#"{{"type":"set","key":"k","value":1,"ttl_ms":{ms}}}"#);
    let place = r#"{"epoch":"0000000000000007","seq":4}"#;
    let positioned = |count: usize| {
        let places = (0..count).map(|n| format!("\"{n}\":{place}")).collect::<Vec<_>>().join(",");
        format!(r##"{{"type":"subscribe","topic":"#","from":{{"positions":{{{places}}}}}}}"##)
    };
    let texts: [(&dyn Fn(usize) -> String, _, _); 4] = [
        (&named, EVENT_NAME_BYTES_MAX, "name"),
        (&joined, 1_024, "info"),
        (&lived, 31_536_000_000, "ttl_ms"),
        (&positioned, 10_000, "from.positions"),
    ];
    for (text, max, field) in texts {
        assert!(decode(&text(max)).request.is_ok(), "{field}");
        assert_eq!(refusal(&text(max + 1)).field, Some(field));
    }
}

#[test]
fn a_refusal_shows_what_was_found_and_what_is_right() {
    let long = "x".repeat(50);
    for (text, message) in [
        (
            "[]".to_owned(),
            "the message is not a valid JSON object: invalid type: sequence, expected a JSON \
             object at line 1 column 0"
                .to_owned(),
        ),
        (
            r#"{"type":"history","topic":"a","limit":"9"}"#.to_owned(),
            r#"limit is "9"; it must be an unsigned integer"#.to_owned(),
        ),
        (
            format!(r#"{{"type":"subscribe","topic":"a","slow":"{long}"}}"#),
            format!("slow is \"{}...; it is gap or disconnect", &long[..39]),
        ),
        (
            r#"{"type":"subscribe","topic":"a","ack":0}"#.to_owned(),
            r#"ack is "0"; it must be true or false"#.to_owned(),
        ),
        (
            r##"{"type":"subscribe","topic":"#","from":{"positions":[]}}"##.to_owned(),
            "from.positions is not {topic: position}: invalid type: sequence, expected an object \
             of positions by topic at line 1 column 0"
                .to_owned(),
        ),
        (
            concat!(
                r#"{"type":"subscribe","topic":"a/+","from":{"positions":"#,
                r#"{"b/c":{"epoch":"0000000000000007","seq":4}}}}"#
            )
            .to_owned(),
            "from.positions names b/c, which is not in a/+".to_owned(),
        ),
        (
            r#"{"type":"get","key":"a","limit":0}"#.to_owned(),
            "limit is 0; allowed is 1 to 1000".to_owned(),
        ),
        (
            r#"{"type":"publish","topic":null,"data":1}"#.to_owned(),
            r#"topic is "null"; it must be a string"#.to_owned(),
        ),
    ] {
        assert_eq!(refusal(&text).message, message, "{text}");
    }
}
