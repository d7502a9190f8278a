//! Promise 1: in one topic `seq` starts at 1 and rises by exactly 1, and every subscription sees
//! the events in that order, each once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use serde_json::{Value, json};

use crate::support::{
    node::Node,
    peer::{Peer, number, seq, seqs},
};

fn counted(from: u64, count: u64) -> Vec<u64> {
    (from..from + count).collect()
}

#[test]
fn events_of_one_publisher_arrive_in_order_and_without_holes() {
    let node = Node::start();
    let mut subscriber = node.peer();
    let subscribed = subscriber.subscribe("lamp");

    node.peer().publish_many("lamp", 2_000, 100);
    let events = subscriber.events(2_000);

    assert_eq!(seq(&subscribed), 0, "the cursor of a topic without events: {subscribed}");
    assert_eq!(seqs(&events), counted(1, 2_000));
    let data: Vec<u64> = events.iter().map(|event| number(&event["data"], "n")).collect();
    assert_eq!(data, counted(1, 2_000), "the events' data");
}

#[test]
fn an_event_says_what_the_publisher_said() {
    let node = Node::start();
    let mut subscriber = node.peer();
    subscriber.subscribe("home/kitchen/lamp");
    let mut publisher = node.peer();
    let welcome = publisher.ask(json!({"type": "hello", "user": "anna"}), "welcome");

    publisher.ask(
        json!({"type": "publish", "topic": "home/kitchen/lamp", "data": {"on": true},
               "name": "switched"}),
        "published",
    );
    let event = subscriber.expect("event");

    assert_eq!(welcome["user"], "anna");
    assert_eq!(event["topic"], "home/kitchen/lamp");
    assert_eq!(event["seq"], 1);
    assert_eq!(event["user"], "anna");
    assert_eq!(event["name"], "switched");
    assert_eq!(event["data"], json!({"on": true}));
    assert!(1_600_000_000_000 < number(&event, "time"), "milliseconds since 1970: {event}");
}

#[test]
fn data_arrives_exactly_as_it_was_written() {
    let node = Node::start();
    let mut peer = node.peer();
    peer.subscribe("raw");

    for data in ["1.50", "1e400", "-0", "null", "\"\\u00e9\\/\"", "{ \"b\" : [ 1 ,2 ] }", "\"ü🐟\""]
    {
        peer.send_text(&format!(r#"{{"type":"publish","topic":"raw","data":{data}}}"#));
        let text = peer.text();
        assert!(text.contains(&format!("\"data\":{data}")), "{data} arrived in {text}");
    }
}

#[test]
fn several_publishers_share_one_sequence() {
    const PUBLISHERS: usize = 4;
    const EACH: u64 = 500;
    let node = Node::start();
    let mut subscribers = [node.peer(), node.peer(), node.peer()];
    for subscriber in &mut subscribers {
        subscriber.subscribe("lamp");
    }

    thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let mut peer = node.peer();
            scope.spawn(move || {
                for number in 0..EACH {
                    let data = json!([publisher, number]);
                    peer.send(&json!({"type": "publish", "topic": "lamp", "data": data}));
                }
                peer.fence();
            });
        }
    });
    let seen = subscribers.map(|mut peer| peer.events(PUBLISHERS * EACH as usize));

    let total = PUBLISHERS as u64 * EACH;
    for events in &seen {
        assert_eq!(seqs(events), counted(1, total));
        assert_eq!(data(events), data(&seen[0]), "all subscribers see one order");
    }
    for publisher in 0..PUBLISHERS {
        let own = seen[0].iter().filter(|event| event["data"][0] == publisher);
        let numbers: Vec<u64> = own.map(|event| event["data"][1].as_u64().unwrap()).collect();
        assert_eq!(numbers, counted(0, EACH), "publisher {publisher}'s events in its order");
    }
}

fn data(events: &[Value]) -> Vec<&Value> {
    events.iter().map(|event| &event["data"]).collect()
}

#[test]
fn a_publisher_sees_its_own_events_once() {
    let node = Node::start();
    let mut peer = node.peer();
    peer.subscribe("lamp");

    for number in 1..=100 {
        assert_eq!(peer.publish("lamp", number), number);
    }

    assert_eq!(seqs(&peer.events(100)), counted(1, 100));
}

#[test]
fn many_topics_on_one_connection_are_each_in_order() {
    const TOPICS: u64 = 200;
    const EACH: u64 = 20;
    let node = Node::start();
    let mut subscriber = node.peer();
    for topic in 0..TOPICS {
        subscriber.subscribe(&format!("topic/{topic}"));
    }

    let mut publisher = node.peer();
    for number in 1..=EACH {
        for topic in 0..TOPICS {
            let topic = format!("topic/{topic}");
            publisher.send(&json!({"type": "publish", "topic": topic, "data": number}));
        }
    }
    let events = subscriber.events((TOPICS * EACH) as usize);

    let mut by_topic: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for event in &events {
        assert_eq!(event["data"], event["seq"]);
        by_topic.entry(event["topic"].as_str().unwrap()).or_default().push(seq(event));
    }
    assert_eq!(by_topic.len() as u64, TOPICS);
    for (topic, seqs) in by_topic {
        assert_eq!(seqs, counted(1, EACH), "{topic}");
    }
}

#[test]
fn a_pattern_attaches_topics_that_exist_and_topics_that_come_to_exist() {
    let node = Node::start();
    let mut publisher = node.peer();
    for topic in ["home/kitchen/lamp", "home/cellar/lamp", "garden/lamp"] {
        publisher.publish(topic, "before");
    }
    let mut subscriber = node.peer();

    let reply = subscriber.subscribe("home/+/lamp");
    assert_eq!(reply["attached"], 2, "{reply}");
    let mut attached = [subscriber.expect("attached"), subscriber.expect("attached")];
    attached.sort_by_key(|attached| attached["topic"].to_string());
    for (attached, topic) in attached.iter().zip(["home/cellar/lamp", "home/kitchen/lamp"]) {
        assert_eq!(attached["topic"], topic);
        assert_eq!(attached["pattern"], "home/+/lamp");
        assert_eq!((seq(attached), number(attached, "tail")), (1, 1), "{attached}");
    }

    publisher.publish("home/attic/lamp", "first");
    publisher.publish("home/attic/fan", "not matched");
    publisher.publish("home/kitchen/lamp", "after");
    let mut messages = [subscriber.message(), subscriber.message(), subscriber.message()];
    let of_attic = messages.iter().filter(|message| message["topic"] == "home/attic/lamp");
    let kinds: Vec<_> = of_attic.map(|message| &message["type"]).collect();
    assert_eq!(kinds, ["attached", "event"]);
    messages.sort_by_key(|message| message["type"].to_string());
    let (attached, events) = messages.split_first().unwrap();

    assert_eq!(seq(attached), 0, "a topic that begins is seen from its beginning: {attached}");
    let mut seen: Vec<_> = events.iter().map(|event| (&event["topic"], seq(event))).collect();
    seen.sort_by_key(|(topic, _)| topic.to_string());
    assert_eq!(seen, [(&json!("home/attic/lamp"), 1), (&json!("home/kitchen/lamp"), 2)]);
}

#[test]
fn a_pattern_misses_no_first_event_of_topics_that_begin_while_it_subscribes() {
    const TOPICS: usize = 300;
    let node = Node::start();
    let start = Arc::new(Barrier::new(2));
    let mut publisher = node.peer();

    let publishing = thread::spawn({
        let start = Arc::clone(&start);
        move || {
            start.wait();
            for topic in 0..TOPICS {
                let topic = format!("new/{topic}");
                publisher.send(&json!({"type": "publish", "topic": topic, "data": 1}));
            }
            publisher.fence();
        }
    });
    let mut subscriber = node.peer();
    start.wait();
    subscriber.subscribe_from("new/#", json!("start"));
    let mut seen = BTreeMap::new();
    while seen.len() < TOPICS {
        let message = subscriber.message();
        match message["type"].as_str() {
            Some("attached") => assert_eq!(seq(&message), 0, "{message}"),
            Some("event") => {
                let earlier = seen.insert(message["topic"].to_string(), seq(&message));
                assert_eq!((seq(&message), earlier), (1, None), "{message}");
            }
            _ => panic!("{message}"),
        }
    }

    publishing.join().unwrap();
}

#[test]
fn subscribing_while_others_publish_leaves_no_hole() {
    let node = Node::start();
    let stop = Arc::new(AtomicBool::new(false));
    let mut publisher = node.peer();
    let publishing = thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::SeqCst) {
                for _ in 0..20 {
                    publisher.send(&json!({"type": "publish", "topic": "busy", "data": 1}));
                }
                publisher.fence();
            }
        }
    });

    for _ in 0..100 {
        for from in [json!("live"), json!({"last": 10})] {
            let mut subscriber = node.peer();
            let subscribed = subscriber.subscribe_from("busy", from.clone());
            let events = subscriber.events(50);
            assert_eq!(seqs(&events), counted(seq(&subscribed) + 1, 50), "{from}: {subscribed}");
        }
    }

    stop.store(true, Ordering::SeqCst);
    publishing.join().unwrap();
}

#[test]
fn subscribing_twice_moves_the_cursor_and_says_so() {
    let node = Node::start();
    let mut peer = node.peer();
    let first = peer.subscribe("lamp");
    for number in 1..=5 {
        peer.publish("lamp", number);
    }
    assert_eq!(seqs(&peer.events(5)), counted(1, 5));

    let second = peer.subscribe_from("lamp", json!({"last": 2}));
    let replayed = peer.events(2);
    peer.publish("lamp", 6);
    let live = peer.expect("event");
    peer.fence();

    assert_eq!(first.get("replaced"), None, "{first}");
    assert_eq!(second["replaced"], true, "{second}");
    assert_eq!(seq(&second), 3);
    assert_eq!(seqs(&replayed), [4, 5]);
    assert_eq!(seq(&live), 6, "the event once, not once per request");
    peer.publish("lamp", 7);
    assert_eq!(seq(&peer.expect("event")), 7);
}

#[test]
fn a_name_and_overlapping_patterns_deliver_each_event_once() {
    for order in [["a/+", "a/b", "#"], ["a/b", "#", "a/+"], ["#", "a/+", "a/b"]] {
        let node = Node::start();
        node.peer().publish("a/b", 1);
        let mut peer = node.peer();
        for filter in order {
            peer.subscribe(filter);
        }
        for number in 2..=5 {
            peer.publish("a/b", number);
        }
        peer.publish("a/c", 1);

        let mut seen = Vec::new();
        while seen.len() < 5 {
            let message = peer.message();
            if message["type"] == "event" {
                seen.push((message["topic"].to_string(), seq(&message)));
            }
        }
        seen.sort();

        let lamp = "\"a/b\"".to_owned();
        let mut expected: Vec<_> = (2..=5).map(|seq| (lamp.clone(), seq)).collect();
        expected.push(("\"a/c\"".to_owned(), 1));
        assert_eq!(seen, expected, "subscribed in the order {order:?}");
        peer.publish("a/b", 6);
        assert_eq!(seq(&next_event(&mut peer)), 6);
    }
}

#[track_caller]
fn next_event(peer: &mut Peer) -> Value {
    loop {
        let message = peer.message();
        if message["type"] == "event" {
            return message;
        }
    }
}

#[test]
fn unsubscribing_ends_one_subscription_and_leaves_the_others() {
    let node = Node::start();
    let mut peer = node.peer();
    let mut publisher = node.peer();
    peer.subscribe("a");
    peer.subscribe("b");

    peer.ask(json!({"type": "unsubscribe", "topic": "a"}), "unsubscribed");
    publisher.publish("a", "unheard");
    publisher.publish("b", "heard");

    assert_eq!(peer.expect("event")["topic"], "b");
    let again = peer.subscribe_from("a", json!("start"));
    assert_eq!(again.get("replaced"), None, "{again}");
    assert_eq!(peer.expect("event")["data"], "unheard");
}

#[test]
fn only_the_relay_writes_names_that_begin_with_a_dollar() {
    let node = Node::start();
    let mut peer = node.peer();
    peer.subscribe("#");

    peer.refused(json!({"type": "publish", "topic": "$dead/a", "data": 1}), "forbidden");
    let http = node.http().post("/v1/topics/$dead/a/events", "1");

    assert_eq!((http.status, &http.json()["code"]), (403, &json!("forbidden")));
    peer.publish("plain", 1);
    assert_eq!(peer.expect("attached")["topic"], "plain");
}
