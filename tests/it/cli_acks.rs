//! The command line acknowledges what it has printed, and lists who does. Against a scripted
//! relay, which sees what is said and when.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use landline::base::lane::{self, Lane, WhenFull};
use serde_json::{Value, json};

use crate::client_support::{LIMIT, Peer, Scripted, run, spawn};

const EPOCH: &str = "0000000000000007";
const NEWS: Lane = Lane { name: "news", capacity: 1_000, when_full: WhenFull::Wait };

/// Welcomes `landline sub`, and agrees to what it subscribes to.
#[track_caller]
fn subscriber(listener: &TcpListener, seq: u64, tail: u64) -> (Peer, Value) {
    let mut peer = Peer::welcome(listener, 60_000);
    let request = peer.next().expect("a subscribe");
    assert_eq!(request["type"], "subscribe", "{request}");
    let reply = json!({"type": "subscribed", "id": request["id"], "topic": request["topic"],
                       "epoch": EPOCH, "seq": seq, "first": 1, "tail": tail});
    peer.say(&reply.to_string());
    (peer, request)
}

fn send(peer: &mut Peer, seq: u64) {
    let event = json!({"type": "event", "topic": "t", "seq": seq, "time": 1, "data": seq});
    peer.say(&event.to_string());
}

/// The sequence of the next message, which must be an acknowledgement.
#[track_caller]
fn acked(peer: &mut Peer) -> u64 {
    let message = peer.next().expect("an acknowledgement");
    assert_eq!((&message["type"], &message["topic"]), (&json!("ack"), &json!("t")));
    message["seq"].as_u64().unwrap()
}

/// Answers the ping behind the last acknowledgement, and sees the client off.
#[track_caller]
fn see_off(mut peer: Peer) {
    let ping = peer.next().expect("a ping");
    assert_eq!(ping["type"], "ping", "{ping}");
    peer.say(&json!({"type": "pong", "id": ping["id"], "time": 1}).to_string());
    while let Some(message) = peer.next() {
        assert_eq!(message["type"], "unsubscribe", "{message}");
    }
}

#[test]
fn the_last_event_of_a_count_is_acknowledged_before_the_end() {
    let scripted = Scripted::start(|listener| {
        let (mut peer, request) = subscriber(listener, 0, 3);
        // No more is asked for than is wanted.
        assert_eq!((&request["ack"], &request["window"]), (&json!(true), &json!(2)));
        assert_eq!(request["consumer"], "printer");
        send(&mut peer, 1);
        send(&mut peer, 2);
        while acked(&mut peer) < 2 {}
        see_off(peer);
    });
    let arguments = ["sub", "t", "--consumer", "printer", "-n", "2"];
    let (code, out, err) = run(&scripted.url(), &arguments, "");
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "t 1 1\nt 2 2\n", ""));
    scripted.finish();
}

#[test]
fn nothing_is_acknowledged_before_it_is_written() {
    let (news, acks) = lane::open(NEWS);
    let scripted = Scripted::start(move |listener| {
        let (mut peer, request) = subscriber(listener, 0, 0);
        assert_eq!((&request["window"], &request["consumer"]), (&json!(256), &Value::Null));
        // More than a pipe holds.
        let data = "x".repeat(1_000);
        for seq in 1..=256 {
            let event = json!({"type": "event", "topic": "t", "seq": seq, "time": 1, "data": data});
            peer.say(&event.to_string());
        }
        while let Some(message) = peer.next() {
            if message["type"] == "ack" {
                news.send(message["seq"].as_u64().unwrap()).unwrap();
            }
        }
    });
    let mut child = spawn(&scripted.url(), &["sub", "t", "--ack"]);
    let mut out = BufReader::with_capacity(100, child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.starts_with("t 1 "), "{line}");
    // Until it comes to a halt, for nobody reads on.
    let mut last = 0;
    while let Ok(seq) = acks.recv_timeout(Duration::from_millis(500)) {
        last = seq;
    }
    assert!(last < 128, "{last} was acknowledged, and a pipe does not hold that much");
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    assert_eq!(acks.iter().max(), None, "what nobody has read is not acknowledged");
    scripted.finish();
}

#[test]
fn what_comes_again_is_printed_again_and_marked_and_dead_letters_are_reported() {
    let scripted = Scripted::start(|listener| {
        let (mut peer, _) = subscriber(listener, 0, 0);
        send(&mut peer, 1);
        assert_eq!(acked(&mut peer), 1);
        drop(peer);
        // The relay has not heard of it, nor does this client go back behind it.
        let (mut peer, request) = subscriber(listener, 1, 2);
        assert_eq!(request["from"], json!({"epoch": EPOCH, "seq": 1}));
        let gap = json!({"type": "gap", "topic": "t", "from": 2, "to": 2, "reason": "dead_letter"});
        peer.say(&gap.to_string());
        send(&mut peer, 3);
        while acked(&mut peer) < 3 {}
        see_off(peer);
    });
    let arguments = ["sub", "t", "--ack", "-n", "2", "-o", "json", "-q"];
    let (code, out, err) = run(&scripted.url(), &arguments, "");
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(err, "landline: t: events 2 to 2 are lost (dead_letter)\n");
    let seqs: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|event| json!([event["seq"], event["redelivered"]]))
        .collect();
    assert_eq!(seqs, [json!([1, null]), json!([3, null])]);
    scripted.finish();
}

#[test]
fn a_redelivered_event_says_so() {
    let scripted = Scripted::start(|listener| {
        let (mut peer, _) = subscriber(listener, 0, 2);
        send(&mut peer, 1);
        send(&mut peer, 2);
        // It acknowledges each once it is printed, so this is before that, or it is dropped.
        send(&mut peer, 1);
        send(&mut peer, 2);
        send(&mut peer, 3);
        while acked(&mut peer) < 3 {}
        peer.close(4_003);
    });
    let mut child = spawn(&scripted.url(), &["sub", "t", "--ack", "-o", "json"]);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    for line in lines {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let seq = event["seq"].as_u64().unwrap();
        assert_eq!(event["redelivered"] == true, seen.contains(&seq), "{event}");
        seen.push(seq);
    }
    assert_eq!((seen.first(), seen.last()), (Some(&1), Some(&3)));
    assert_eq!(child.wait().unwrap().code(), Some(9));
    scripted.finish();
}

#[test]
fn a_consumer_that_is_taken_over_ends_with_exit_code_9() {
    let scripted = Scripted::start(|listener| {
        let (mut peer, _) = subscriber(listener, 0, 0);
        peer.say(r#"{"type":"bye","reason":"replaced"}"#);
        peer.close(4_002);
    });
    let (code, out, err) = run(&scripted.url(), &["sub", "t", "--consumer", "x"], "");
    assert_eq!((code, out.as_str()), (Some(9), ""));
    assert!(err.contains("another client has taken over"), "{err}");
    scripted.finish();
}

#[test]
fn what_cannot_be_acknowledged_is_a_wrong_command_line() {
    let scripted = Scripted::start(|listener| {
        for _ in 0..2 {
            let mut peer = Peer::welcome(listener, 60_000);
            while peer.next().is_some() {}
        }
    });
    for arguments in [&["sub", "t", "--window", "0"][..], &["sub", "t/#", "--consumer", "x"]] {
        let (code, _, err) = run(&scripted.url(), arguments, "");
        assert_eq!(code, Some(2), "{arguments:?}: {err}");
    }
    let (code, _, err) = run(&scripted.url(), &["sub", "t", "--consumer", "a/b"], "");
    assert_eq!(code, Some(2), "{err}");
    scripted.finish();
}

/// Answers one HTTP request with `body`, and returns its target.
#[track_caller]
fn answer(listener: &TcpListener, body: &Value) -> String {
    let (mut socket, _) = listener.accept().expect("a client");
    let target = request_target(&mut socket);
    let body = body.to_string();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    socket.write_all((head + &body).as_bytes()).expect("the client reads");
    target
}

#[track_caller]
fn request_target(socket: &mut TcpStream) -> String {
    socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    head.split(' ').nth(1).expect("a target").to_owned()
}

#[test]
fn consumers_are_listed_page_by_page() {
    let consumer = |name: &str, connected: bool| {
        json!({"consumer": name, "topic": "a/b", "epoch": EPOCH, "seq": 12, "tail": 20, "lag": 8,
               "connected": connected, "connection": connected.then_some("c7"), "deliveries": 0,
               "idle_ms": 150_000})
    };
    let scripted = Scripted::start(move |listener| {
        for rest in ["", "", "?topic=a/b"] {
            let first = json!({"consumers": [consumer("x y", true)], "next": "a/b/x y"});
            assert_eq!(answer(listener, &first), format!("/v1/consumers{rest}"));
            let target = answer(listener, &json!({"consumers": [consumer("z", false)]}));
            let sign = if rest.is_empty() { "?" } else { "&" };
            assert_eq!(target, format!("/v1/consumers{rest}{sign}after=a/b/x%20y"));
        }
    });
    let url = scripted.url();
    let (code, table, err) = run(&url, &["consumers"], "");
    assert_eq!(code, Some(0), "{err}");
    let rows: Vec<Vec<&str>> = table.lines().map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["CONSUMER", "TOPIC", "POSITION", "TAIL", "LAG", "CONNECTION", "IDLE"]);
    assert_eq!(rows[1], ["x", "y", "a/b", "12", "20", "8", "c7", "2m"]);
    assert_eq!(rows[2], ["z", "a/b", "12", "20", "8", "-", "2m"]);
    let (_, raw, _) = run(&url, &["consumers", "-o", "raw"], "");
    assert_eq!(raw, "a/b/x y\na/b/z\n");
    let (_, lines, _) = run(&url, &["consumers", "--topic", "a/b", "-o", "json"], "");
    let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert_eq!(rows.map(|row| row["lag"].clone()).collect::<Vec<_>>(), [8, 8]);
    scripted.finish();
}

#[test]
fn topics_show_how_safe_their_events_are_where_the_relay_says_so() {
    let scripted = Scripted::start(|listener| {
        let facts = json!({"epoch": EPOCH, "first": 1, "tail": 2, "subscribers": 0});
        let topic = |name: &str| {
            let mut topic = facts.clone();
            topic["topic"] = json!(name);
            topic
        };
        let mut durable = topic("b");
        durable["durability"] = json!("synced");
        assert_eq!(answer(listener, &json!({"topics": [topic("a"), durable]})), "/v1/topics");
    });
    let (code, table, err) = run(&scripted.url(), &["topics"], "");
    assert_eq!(code, Some(0), "{err}");
    let last: Vec<&str> = table.lines().filter_map(|row| row.split_whitespace().last()).collect();
    assert_eq!(last, ["DURABILITY", "-", "synced"]);
    scripted.finish();
}
