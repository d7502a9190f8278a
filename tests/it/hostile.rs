//! Clients that break the rules of WebSocket, of JSON or of the protocol: each is told what it did
//! wrong, by an error where it may stay and by a close code where it may not.

use std::{io::Write, time::Duration};

use serde_json::json;

use crate::support::{
    frame::{self, FINAL, Mask},
    node::Node,
    peer::{Incoming, Peer, number, reset, seq, tcp},
    wait::{LIMIT, wait_until},
    witness::Witness,
};

const MIB: u64 = 1 << 20;
const TEXT_FRAME: u8 = FINAL | frame::TEXT;

#[test]
fn a_broken_frame_is_answered_with_the_close_code_of_the_standard() {
    let node = Node::with(&["--max-message", "64KiB"]);
    let witness = Witness::start(&node);
    let ping = br#"{"type":"ping"}"#;
    let large = vec![b' '; 64 * 1024 + 1];
    let half = &large[..40 * 1024];
    let text = |payload: &[u8]| frame::masked(frame::TEXT, payload);
    let bent = |first: u8, payload: &[u8]| frame::bent(first, Mask::Present, payload);

    for (what, bytes, code) in [
        ("unmasked", frame::bent(TEXT_FRAME, Mask::Absent, ping), 1_002),
        ("a reserved bit", bent(TEXT_FRAME | 0x40, ping), 1_002),
        ("an unknown opcode", bent(FINAL | 0x3, ping), 1_002),
        ("an unknown control opcode", bent(FINAL | 0xb, b""), 1_002),
        ("a fragmented ping", bent(frame::PING, b""), 1_002),
        ("a long ping", frame::masked(frame::PING, &[0; 126]), 1_002),
        ("a continuation of nothing", bent(FINAL | frame::CONTINUATION, ping), 1_002),
        ("a start within a message", [bent(frame::TEXT, b"{"), text(ping)].concat(), 1_002),
        ("a close of one byte", frame::masked(frame::CLOSE, &[3]), 1_002),
        ("binary", frame::masked(frame::BINARY, ping), 1_003),
        ("bad UTF-8", text(b"\"\xff\xfe\""), 1_007),
        ("a surrogate", text(b"\"\xed\xa0\x80\""), 1_007),
        (
            "bad UTF-8 in pieces",
            [bent(frame::TEXT, b"\"\xc3"), bent(FINAL | frame::CONTINUATION, b"\"")].concat(),
            1_007,
        ),
        ("too long", text(&large), 1_009),
        ("too long by its header", frame::header(TEXT_FRAME, Mask::Present, 1 << 40), 1_009),
        (
            "too long in pieces",
            [bent(frame::TEXT, half), bent(frame::CONTINUATION, half)].concat(),
            1_009,
        ),
    ] {
        let mut peer = node.peer();
        peer.fence();
        peer.send_raw(&bytes);
        assert_eq!(peer.close_code(), Some(code), "{what}");
    }

    witness.finish();
}

#[test]
fn a_length_beyond_all_numbers_ends_the_connection() {
    let node = Node::start();
    let mut peer = node.peer();

    peer.send_raw(&frame::header(TEXT_FRAME, Mask::Present, u64::MAX));

    assert!(matches!(peer.close_code(), Some(1_002 | 1_009)));
}

#[test]
fn a_close_is_answered_with_its_code() {
    let node = Node::start();

    node.peer().close();
    let mut silent = node.peer();
    silent.send_raw(&frame::masked(frame::CLOSE, b""));
    assert!(silent.close_code().is_some(), "a close without a code is answered too");

    let mut polite = node.peer();
    polite.send_raw(&frame::masked(frame::CLOSE, &[&1_000_u16.to_be_bytes()[..], b"bye"].concat()));
    assert_eq!(polite.close_code(), Some(1_000));
    assert_eq!(polite.receive(LIMIT), Some(Incoming::End), "the relay closes the connection");
}

#[test]
fn messages_may_come_in_any_pieces() {
    let node = Node::start();
    let mut peer = node.peer();
    let message = json!({"type": "ping", "id": 1, "padding": "ü".repeat(400)}).to_string();
    let message = message.as_bytes();

    for byte in frame::masked(frame::TEXT, message) {
        peer.send_raw(&[byte]);
    }
    assert_eq!(peer.expect("pong")["id"], 1);

    // A frame for each byte, with a ping of the client between them.
    peer.send_raw(&frame::bent(frame::TEXT, Mask::Present, &message[..1]));
    peer.send_raw(&frame::masked(frame::PING, b"between"));
    for byte in &message[1..] {
        peer.send_raw(&frame::bent(frame::CONTINUATION, Mask::Present, &[*byte]));
    }
    peer.send_raw(&frame::bent(FINAL | frame::CONTINUATION, Mask::Present, b""));
    assert_eq!(peer.receive(LIMIT), Some(Incoming::Pong(b"between".to_vec())));
    assert_eq!(peer.expect("pong")["id"], 1);

    let mut many = Vec::new();
    for id in 0..500 {
        let text = json!({"type": "ping", "id": id}).to_string();
        many.extend(frame::masked(frame::TEXT, text.as_bytes()));
    }
    peer.send_raw(&many);
    for id in 0..500 {
        assert_eq!(peer.expect("pong")["id"], id);
    }
}

#[test]
fn a_message_of_just_the_allowed_size_is_taken() {
    let node = Node::with(&["--max-message", "64KiB"]);
    let mut peer = node.peer();
    peer.subscribe("large");
    let frame = |len: usize| {
        let shell = r#"{"type":"publish","topic":"large","data":""}"#;
        shell.replace("\"\"", &format!("\"{}\"", "x".repeat(len - shell.len())))
    };

    peer.send_text(&frame(64 * 1024));
    assert_eq!(seq(&peer.expect("event")), 1);
    peer.send_text(&frame(64 * 1024 + 1));

    assert_eq!(peer.close_code(), Some(1_009));
}

#[test]
fn what_is_not_a_request_is_an_error_and_the_connection_lives() {
    let node = Node::start();
    let mut peer = node.peer();
    let deep = "[".repeat(20_000) + &"]".repeat(20_000);

    for (text, code) in [
        ("", "bad_request"),
        ("nonsense", "bad_request"),
        ("[]", "bad_request"),
        ("5", "bad_request"),
        ("null", "bad_request"),
        ("{", "bad_request"),
        (r#"{"type":"ping"} {}"#, "bad_request"),
        (r#"{"type":"ping","type":"ping"}"#, "bad_request"),
        ("{}", "bad_request"),
        (&format!(r#"{{"type":"publish","topic":"a","data":{deep}}}"#), "bad_request"),
        (&"[".repeat(100_000), "bad_request"),
        (r#"{"type":"nonsense"}"#, "unknown_type"),
        (r#"{"type":"PING"}"#, "unknown_type"),
        ("{\"type\":\"\\u0000\"}", "unknown_type"),
    ] {
        peer.send_text(text);
        let error = peer.expect("error");
        assert_eq!(error["code"], code, "{:.80} was answered {error}", text);
        let message = error["message"].as_str().unwrap();
        assert!(10 < message.len() && message.len() < 500, "{message}");
    }

    peer.fence();
}

#[test]
fn a_wrong_field_is_named_and_its_request_id_is_echoed() {
    let node = Node::start();
    let mut peer = node.peer();
    let long = "x".repeat(300);

    for (request, field) in [
        (json!({"type": 5}), "type"),
        (json!({"type": null}), "type"),
        (json!({"topic": "a"}), "type"),
        (json!({"type": "publish", "data": 1}), "topic"),
        (json!({"type": "publish", "topic": "a"}), "data"),
        (json!({"type": "publish", "topic": 1, "data": 1}), "topic"),
        (json!({"type": "publish", "topic": null, "data": 1}), "topic"),
        (json!({"type": "publish", "topic": "", "data": 1}), "topic"),
        (json!({"type": "publish", "topic": "/a", "data": 1}), "topic"),
        (json!({"type": "publish", "topic": "a//b", "data": 1}), "topic"),
        (json!({"type": "publish", "topic": "a\u{7}", "data": 1}), "topic"),
        (json!({"type": "publish", "topic": "a/+", "data": 1}), "topic"),
        (json!({"type": "publish", "topic": long, "data": 1}), "topic"),
        (json!({"type": "publish", "topic": "a", "data": 1, "name": {}}), "name"),
        (json!({"type": "publish", "topic": "a", "data": 1, "name": long}), "name"),
        (json!({"type": "publish", "topic": "a", "data": 1, "key": 7}), "key"),
        (json!({"type": "publish", "topic": "a", "data": 1, "key": ""}), "key"),
        (json!({"type": "publish", "topic": "a", "data": 1, "key": long}), "key"),
        (json!({"type": "subscribe"}), "topic"),
        (json!({"type": "subscribe", "topic": ["a"]}), "topic"),
        (json!({"type": "subscribe", "topic": "a/#/b"}), "topic"),
        (json!({"type": "subscribe", "topic": "a+"}), "topic"),
        (json!({"type": "subscribe", "topic": "a", "from": 5}), "from"),
        (json!({"type": "subscribe", "topic": "a", "from": {"last": "3"}}), "from"),
        (json!({"type": "subscribe", "topic": "a", "from": {"since": 1.5}}), "from"),
        (json!({"type": "subscribe", "topic": "a", "from": {"positions": {}}}), "from"),
        (json!({"type": "subscribe", "topic": "a", "slow": "drop"}), "slow"),
        (json!({"type": "subscribe", "topic": "a", "slow": true}), "slow"),
        (json!({"type": "subscribe", "topic": "a", "ack": "yes"}), "ack"),
        (json!({"type": "subscribe", "topic": "a", "ack": true, "window": 0}), "window"),
        (json!({"type": "subscribe", "topic": "a", "consumer": "c/d"}), "consumer"),
        (json!({"type": "subscribe", "topic": "a/+", "consumer": "c"}), "consumer"),
        (json!({"type": "ack", "topic": "a"}), "seq"),
        (json!({"type": "unsubscribe"}), "topic"),
        (json!({"type": "unsubscribe", "topic": {}}), "topic"),
        (json!({"type": "history", "topic": "a/#"}), "topic"),
        (json!({"type": "history", "topic": "a", "limit": 0}), "limit"),
        (json!({"type": "history", "topic": "a", "limit": 1_001}), "limit"),
        (json!({"type": "history", "topic": "a", "limit": "9"}), "limit"),
        (json!({"type": "hello", "user": 7}), "user"),
        (json!({"type": "hello", "user": "a/b"}), "user"),
        (json!({"type": "hello", "user": long}), "user"),
        (json!({"type": "hello", "client": []}), "client"),
    ] {
        let error = peer.refused(request.clone(), "bad_request");
        let named = error["field"].as_str().unwrap_or_default();
        assert!(named == field || named.starts_with(&format!("{field}.")), "{request}: {error}");
    }
    for id in [json!("1"), json!(-1), json!(1.5), json!([1])] {
        peer.send(&json!({"type": "ping", "id": id}));
        let error = peer.expect("error");
        assert_eq!((&error["field"], error.get("id")), (&json!("id"), None), "{error}");
    }

    peer.fence();
}

#[test]
fn subscriptions_without_end_meet_a_limit() {
    const REQUESTS: u64 = 100_000;
    let node = Node::with(&["--max-subscriptions", "10"]);
    let witness = Witness::start(&node);
    let mut peer = node.peer();
    let before = node.rss();

    let mut sent = 0;
    let (mut subscribed, mut refused) = (0, 0);
    while subscribed + refused < REQUESTS {
        while sent < REQUESTS.min(subscribed + refused + 1_000) {
            let request = json!({"type": "subscribe", "topic": format!("t/{sent}"), "id": sent});
            peer.send(&request);
            sent += 1;
        }
        let message = peer.message();
        match message["type"].as_str() {
            Some("subscribed") => subscribed += 1,
            Some("error") => {
                assert_eq!(message["code"], "limit_exceeded", "{message}");
                refused += 1;
            }
            _ => panic!("{message}"),
        }
    }

    assert_eq!(subscribed, 10);
    let grown = node.rss().saturating_sub(before);
    assert!(grown < 16 * MIB, "{REQUESTS} requests cost {grown} bytes");
    peer.ask(json!({"type": "unsubscribe", "topic": "t/3"}), "unsubscribed");
    peer.subscribe("another");
    witness.finish();
}

#[test]
fn topics_without_end_meet_a_limit() {
    let node = Node::with(&["--max-topics", "10"]);
    let mut peer = node.peer();
    for topic in 0..10 {
        peer.publish(&format!("t/{topic}"), 1);
    }

    let publish = json!({"type": "publish", "topic": "one/more", "data": 1});
    let error = peer.refused(publish, "limit_exceeded");
    peer.refused(json!({"type": "subscribe", "topic": "one/more"}), "limit_exceeded");
    let http = node.http().post("/v1/topics/one/more/events", "1");

    assert!(error["message"].as_str().unwrap().contains("10"), "{error}");
    assert_eq!(http.json()["code"], "limit_exceeded", "{http:?}");
    assert_eq!(peer.publish("t/3", 2), 2, "the topics that exist go on");
}

#[test]
fn a_pattern_may_not_follow_topics_without_end() {
    let node = Node::with(&["--max-cursors", "5"]);
    let mut publisher = node.peer();
    let mut peer = node.peer();
    let witness = Witness::start(&node);

    peer.subscribe("many/#");
    for topic in 0..8 {
        publisher.publish(&format!("many/{topic}"), 1);
    }
    let (mut attached, mut refused) = (0, 0);
    while attached < 5 || refused == 0 {
        let message = peer.message();
        match message["type"].as_str() {
            Some("attached") => attached += 1,
            Some("error") => {
                assert_eq!(message["code"], "limit_exceeded", "{message}");
                refused += 1;
            }
            Some("event") => assert_eq!(number(&message, "seq"), 1),
            _ => panic!("{message}"),
        }
    }

    assert_eq!(attached, 5);
    witness.finish();
}

#[test]
fn noise_of_any_kind_leaves_the_relay_as_it_was() {
    let node = Node::with(&[
        "--handshake-timeout",
        "2s",
        "--heartbeat-timeout",
        "5s",
        "--heartbeat",
        "1s",
    ]);
    let witness = Witness::start(&node);
    let (files, threads) = (node.open_files(), node.threads());
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut attack = |count: usize| {
        for number in 0..count {
            let bytes = noise.bytes(4_096);
            let sent = if number % 2 == 0 {
                tcp(node.addr(), None).write_all(&bytes).is_ok()
            } else {
                let mut peer = node.peer();
                let sent = peer.try_send_raw(&bytes);
                reset(&peer.stream());
                sent
            };
            _ = sent;
        }
    };

    attack(100);
    wait_until("files and threads to be given back", LIMIT, || {
        node.open_files() <= files && node.threads() <= threads
    });
    let before = node.rss();
    attack(400);
    wait_until("files and threads to be given back", LIMIT, || {
        node.open_files() <= files && node.threads() <= threads
    });

    let grown = node.rss().saturating_sub(before);
    assert!(grown < 16 * MIB, "400 attacks cost {grown} bytes");
    witness.finish();
}

/// Bytes that look random and are the same in each run.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut byte = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.to_le_bytes()[3]
        };
        (0..count).map(|_| byte()).collect()
    }
}

#[test]
fn large_messages_that_never_end_cost_no_more_than_their_limit() {
    const PEERS: usize = 50;
    let node = Node::with(&["--max-message", "64KiB"]);
    let witness = Witness::start(&node);
    let before = node.rss();

    let mut peers: Vec<Peer> = (0..PEERS).map(|_| node.peer()).collect();
    for peer in &mut peers {
        // A start that claims nearly all that is allowed, and all of it but the end.
        peer.send_raw(&frame::header(TEXT_FRAME, Mask::Present, 65_000));
        peer.send_raw(&[b' '; 60_000]);
    }
    witness.see(20);
    let grown = node.rss().saturating_sub(before);

    assert!(grown < 32 * MIB, "{PEERS} unfinished messages cost {grown} bytes");
    assert_eq!(peers[0].receive(Duration::from_millis(50)), None, "it may still end");
    witness.finish();
}

#[test]
fn what_clients_say_is_not_in_the_log() {
    const MARKER: &str = "m4rk3r";
    let node = Node::with(&["--log-level", "trace", "--max-message", "64KiB"]);
    let mut peer = node.peer();
    peer.subscribe("quiet");

    peer.publish("quiet", MARKER);
    node.http().post("/v1/topics/quiet/events", &format!("\"{MARKER}\""));
    node.http().post("/v1/topics/quiet/events", &format!("{{{MARKER}"));
    peer.send_text(&format!(r#"{{"type":"publish","topic":"quiet","data":{MARKER}}}"#));
    peer.send_text(MARKER);
    peer.fence();
    let mut broken = node.peer();
    broken.send_raw(&frame::masked(frame::TEXT, &[MARKER.as_bytes(), &[0xff]].concat()));
    assert_eq!(broken.close_code(), Some(1_007));
    peer.send_text(&MARKER.repeat(20_000));
    assert_eq!(peer.close_code(), Some(1_009));

    let log = node.stderr();
    assert!(!log.is_empty(), "a relay that traces says something");
    assert!(!log.contains(MARKER), "{log}");
}
