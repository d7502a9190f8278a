//! Server-sent events and lines of JSON: the same events in the same order as over a WebSocket, on
//! the same cursors.

use std::{thread, time::Duration};

use rustix::process::Signal;
use serde_json::json;

use crate::support::{
    http::{Body, Http, request_text},
    node::{Node, wait_for_metric},
    peer::{number, seq, seqs},
    stream::Stream,
    wait::wait_until,
    witness::Witness,
};

const LAMP: &str = "/v1/topics/lamp/events";

#[test]
fn a_stream_and_a_websocket_see_the_same_events_in_the_same_order() {
    const EVENTS: u64 = 3_000;
    let node = Node::start();
    let mut peer = node.peer();
    peer.subscribe("lamp");
    let mut sse = Stream::sse(node.addr(), LAMP);
    let mut lines = Stream::lines(node.addr(), LAMP);
    let subscribed = sse.expect("subscribed");
    lines.expect("subscribed");

    let mut publisher = node.peer();
    let publishing = thread::spawn(move || publisher.publish_many("lamp", EVENTS, 300));
    let events = peer.events(EVENTS as usize);
    let streamed = sse.events(EVENTS as usize);
    let as_lines = lines.events(EVENTS as usize);
    publishing.join().unwrap();

    assert_eq!(seqs(&events), (1..=EVENTS).collect::<Vec<_>>());
    assert_eq!(streamed, events);
    assert_eq!(as_lines, events);
    let id = format!("{}:{EVENTS}", subscribed.data["epoch"].as_str().unwrap());
    assert_eq!(sse.last_id, Some(id));
    assert!(sse.has_header("Content-Type: text/event-stream"), "{}", sse.head);
    assert!(sse.has_header("Cache-Control: no-store"), "{}", sse.head);
    assert!(sse.has_header("X-Accel-Buffering: no"), "{}", sse.head);
    assert!(sse.retry_ms.is_some_and(|ms| (1_000..=5_000).contains(&ms)), "{:?}", sse.retry_ms);
    let metrics = node.metrics();
    for (transport, count) in [("websocket", EVENTS), ("sse", EVENTS), ("ndjson", EVENTS)] {
        let label = format!("transport=\"{transport}\"");
        let delivered = metrics.sum(&["landline_topic_delivered_total", &label]);
        assert_eq!(delivered, count as f64, "{transport}");
    }
}

#[test]
fn an_event_is_one_line_whatever_white_space_its_data_has() {
    let node = Node::start();
    let mut sse = Stream::sse(node.addr(), LAMP);
    let mut lines = Stream::lines(node.addr(), LAMP);
    sse.expect("subscribed");
    lines.expect("subscribed");

    let text = "{\n  \"a\":\r\n [1,\n\n 2],\r \"b\": \"x\\ny\"\n}";
    assert_eq!(node.http().post(LAMP, text).status, 201);

    let expected = json!({"a": [1, 2], "b": "x\ny"});
    assert_eq!(sse.expect("message").data["data"], expected);
    assert_eq!(lines.expect("message").data["data"], expected);
}

#[test]
fn a_stream_begins_where_it_is_asked_to() {
    let node = Node::start();
    node.peer().publish_many("lamp", 10, 0);
    let tail = node.get(LAMP).json();

    for (from, expected) in [("start", 1), ("last:3", 8), ("since:0", 1)] {
        let mut sse = Stream::sse(node.addr(), &format!("{LAMP}?from={from}"));
        assert_eq!(seq(&sse.expect("subscribed").data), expected - 1, "{from}");
        assert_eq!(seq(&sse.expect("message").data), expected, "{from}");
    }
    let epoch = tail["epoch"].as_str().unwrap();
    for query in ["from", "last_event_id"] {
        let mut sse = Stream::sse(node.addr(), &format!("{LAMP}?{query}={epoch}:6"));
        assert_eq!(sse.expect("subscribed").data["recovery"]["mode"], "complete");
        assert_eq!(seq(&sse.expect("message").data), 7, "{query}");
    }
}

#[test]
fn a_pattern_s_stream_brings_topics_that_come_later_from_their_beginning() {
    let node = Node::start();
    let mut peer = node.peer();
    peer.publish("home/a", 1);
    peer.publish("away/a", 1);
    let mut sse = Stream::sse(node.addr(), "/v1/topics/home/+/events");
    assert_eq!(sse.expect("subscribed").data["attached"], 1);
    assert_eq!(sse.expect("attached").data["topic"], "home/a");
    assert_eq!(sse.expect("ready").data["topics"], 1);

    peer.publish("home/b", 2);
    peer.publish("home/a", 3);

    let mut seen = Vec::new();
    while seen.len() < 2 {
        let message = sse.message().unwrap();
        if message.event == "message" {
            seen.push((message.data["topic"].as_str().unwrap().to_owned(), seq(&message.data)));
        }
    }
    seen.sort();
    assert_eq!(seen, [("home/a".to_owned(), 2), ("home/b".to_owned(), 1)]);
}

#[test]
fn what_is_wrong_with_a_request_is_said_before_the_stream_begins() {
    let node = Node::start();
    let id = "Last-Event-ID: 7";
    for (path, headers, field) in [
        ("/v1/topics/a//b/events", &[][..], "topic"),
        ("/v1/topics/a%23b/events", &[], "topic"),
        ("/v1/topics/a/events?from=yesterday", &[], "from"),
        ("/v1/topics/a/events", &[id], "Last-Event-ID"),
        ("/v1/topics/%23/events?last_event_id=m.nonsense", &[], "last_event_id"),
        ("/v1/state?match=a//b", &[], "match"),
        ("/v1/state", &[id], "Last-Event-ID"),
    ] {
        let reply = Stream::refused(node.addr(), path, headers);
        assert_eq!(reply.status, 400, "{path}");
        assert_eq!(reply.json()["field"], field, "{path}: {}", reply.body);
    }
    let head = node.http().request("HEAD", LAMP, &["Accept: text/event-stream"], "");
    assert_eq!((head.status, node.get(LAMP).status), (404, 404), "asking made no topic");
}

#[test]
fn a_stream_that_cannot_begin_says_why_and_when_to_come_back() {
    let node = Node::with(&["--max-topics", "1"]);
    node.peer().publish("one", 1);

    let mut sse = Stream::sse(node.addr(), LAMP);

    let problem = sse.expect("problem").data;
    assert_eq!((&problem["code"], &problem["field"]), (&json!("limit_exceeded"), &json!("topic")));
    assert_eq!(sse.expect("bye").data["reason"], "limit_exceeded");
    assert_eq!(sse.retry_ms, Some(10_000));
    assert_eq!(sse.any_message(), None);
    drop(sse);
    wait_for_metric(&node, &["disconnects", "reason=\"refused\""], 1.0);
}

#[test]
fn a_stream_follows_so_many_topics_as_fit_into_an_id_and_says_so() {
    let node = Node::start();
    let mut peer = node.peer();
    for number in 0..520 {
        peer.publish(&format!("t/{number}"), 1);
    }

    let mut sse = Stream::sse(node.addr(), "/v1/topics/t/%23/events?from=start");
    let mut seen = [0, 0];
    while seen[0] < 512 {
        let message = sse.message().unwrap();
        match message.event.as_str() {
            "message" => seen[0] += 1,
            "problem" => {
                assert_eq!(message.data["code"], "limit_exceeded");
                seen[1] += 1;
            }
            _ => {}
        }
    }

    assert_eq!(seen, [512, 1]);
    let id = sse.last_id.clone().unwrap();
    drop(sse);
    peer.publish("t/0", 2);
    let mut again = Stream::sse_after(node.addr(), "/v1/topics/t/%23/events", Some(&id));
    let events: Vec<_> = std::iter::from_fn(|| again.message())
        .filter(|message| message.event == "message")
        .take(1)
        .collect();
    assert_eq!(events[0].data["data"], 2, "a browser can send the longest id back");
}

#[test]
fn a_stream_hears_a_ping_before_a_proxy_would_give_it_up() {
    let node = Node::with(&["--heartbeat", "200ms", "--heartbeat-timeout", "1s"]);
    let mut sse = Stream::sse(node.addr(), LAMP);
    let mut lines = Stream::lines(node.addr(), "/v1/state");

    for stream in [&mut sse, &mut lines] {
        let mut pings = 0;
        while pings < 8 {
            let message = stream.any_message().expect("a stream that says nothing is not given up");
            pings += usize::from(message.event == "ping");
            assert!(message.event != "ping" || 0 < number(&message.data, "time"));
        }
    }
    assert_eq!(sse.last_id.map(|id| id.ends_with(":0")), Some(true), "a ping moves no position");
}

#[test]
fn a_stop_delivers_what_there_is_and_tells_a_browser_when_to_come_back() {
    let mut node = Node::with(&["--drain", "5s"]);
    let mut peer = node.peer();
    let mut sse = Stream::sse(node.addr(), LAMP);
    let mut lines = Stream::lines(node.addr(), LAMP);
    sse.expect("subscribed");
    lines.expect("subscribed");
    peer.publish_many("lamp", 2_000, 1_000);

    node.signal(Signal::TERM);

    let events = sse.events(2_000);
    assert_eq!(seqs(&events), (1..=2_000).collect::<Vec<_>>());
    let bye = sse.expect("bye").data;
    assert_eq!(bye["reason"], "shutdown");
    assert_eq!(sse.retry_ms, Some(number(&bye, "reconnect_after_ms")));
    lines.events(2_000);
    assert_eq!(lines.expect("bye").data["reason"], "shutdown");
    assert_eq!((sse.any_message(), lines.any_message()), (None, None));
    drop((sse, lines, peer));
    node.ends_cleanly();
}

#[test]
fn while_the_relay_stops_a_browser_is_told_to_come_back_and_not_to_give_up() {
    let mut node = Node::with(&["--drain", "20s"]);
    // It keeps the relay from having drained.
    let mut held = node.peer();
    held.subscribe("lamp");
    let mut http = Http::connect(node.addr());
    let mut other = Http::connect(node.addr());
    for http in [&mut http, &mut other] {
        // With it comes the first half of another request: when the answer is there, the relay
        // knows that the connection is not idle.
        let whole = request_text(node.addr(), "GET", "/healthz", &[], "");
        http.send(&(whole + "GET /v1/topics/lamp/events HTTP/1.1\r\n"));
        assert_eq!(http.reply(Body::Expected).status, 200);
    }

    node.signal(Signal::TERM);
    assert_eq!(held.last_words().1, Some(1_001));
    let rest = |accept: &str| format!("Host: {}\r\nAccept: {accept}\r\n\r\n", node.addr());
    http.send(&rest("text/event-stream"));
    other.send(&rest("application/x-ndjson"));
    let mut answer = String::new();
    http.read_to_end(&mut answer);
    let refused = other.reply(Body::Expected);

    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("retry: ") && answer.contains("event: bye"), "{answer}");
    assert_eq!(refused.status, 503);
    drop((held, http, other));
    node.ends_cleanly();
}

#[test]
fn a_page_of_an_allowed_origin_may_read_a_stream_and_no_other() {
    let node = Node::with(&["--allowed-origins", "https://panel.example"]);
    let ask = |origin: &str| {
        let mut http = Http::connect(node.addr());
        let origin = format!("Origin: {origin}");
        let headers = ["Accept: text/event-stream", origin.as_str()];
        http.send(&request_text(node.addr(), "GET", LAMP, &headers, ""));
        http.head()
    };
    let head = ask("https://panel.example");
    assert!(head.contains("Access-Control-Allow-Origin: https://panel.example"), "{head}");
    assert!(ask("https://evil.example").starts_with("HTTP/1.1 403 "));
}

#[test]
fn a_stalled_stream_harms_nobody_and_is_told_what_it_missed() {
    let node = Node::with(&["--max-events", "50", "--write-stall", "60s"]);
    let witness = Witness::start(&node);
    let mut stalled = Stream::sse_tiny(node.addr(), LAMP);
    stalled.expect("subscribed");
    let mut pattern = Stream::sse_tiny(node.addr(), "/v1/topics/lam/%23/events");
    pattern.expect("subscribed");
    let before = node.rss();

    let mut publisher = node.peer();
    publisher.publish_many("lamp", 4_000, 8 * 1024);
    publisher.publish_many("lam/p", 4_000, 8 * 1024);
    let grown = node.rss().saturating_sub(before);

    assert!(grown < 32 << 20, "64 MiB went past two stalled streams, which cost {grown} bytes");
    for stream in [&mut stalled, &mut pattern] {
        let (mut at, mut gaps) = (0, 0);
        while at < 4_000 {
            let message = stream.message().expect("an event");
            match message.event.as_str() {
                "message" => {
                    assert_eq!(seq(&message.data), at + 1);
                    at += 1;
                }
                "gap" => {
                    assert_eq!(number(&message.data, "from"), at + 1);
                    at = number(&message.data, "to");
                    gaps += 1;
                    assert!(message.id.is_some(), "a client that knows of a loss is behind it");
                }
                _ => {}
            }
        }
        assert!(0 < gaps);
    }
    witness.finish();
}

#[test]
fn a_stream_that_takes_nothing_is_cut_and_one_that_ends_leaves_nothing_behind() {
    let node = Node::with(&["--write-stall", "1s"]);
    let stalled = Stream::sse_tiny(node.addr(), LAMP);
    let ended = Stream::sse(node.addr(), "/v1/state?match=$sys/%23");
    wait_for_metric(&node, &["landline_topic_cursors"], 1.0);

    drop(ended);
    node.peer().publish_many("lamp", 500, 32 * 1024);

    wait_for_metric(&node, &["disconnects", "reason=\"stalled\""], 1.0);
    wait_for_metric(&node, &["landline_server_disconnects_total"], 3.0);
    wait_until("nothing to be left of them", Duration::from_secs(20), || {
        let metrics = node.metrics();
        metrics.sum(&["landline_topic_cursors"]) == 0.0
            && metrics.sum(&["landline_state_watches"]) == 0.0
    });
    drop(stalled);
}
