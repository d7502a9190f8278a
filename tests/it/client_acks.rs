//! The client and the relay together deliver at least once: over cuts, restarts, other processes
//! and other clients.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use landline::{
    base::{
        clock::Clock,
        lane::{self, Lane, WhenFull},
        lifecycle::{Crew, Panics, Stop},
        random,
        sync::atomic::Ordering,
    },
    client::{
        Client, ClientError, Delivery, Durability, Event, From, LossReason, Options,
        SubscribeOptions, Subscription,
    },
};
use serde_json::Value;

use crate::{
    client_support::{LIMIT, Proxy, Relay, run},
    support::{
        node::{Node, Scratch},
        wait::wait_until,
    },
};

const NEWS: Lane = Lane { name: "news", capacity: 100, when_full: WhenFull::Wait };

fn quick() -> Options {
    Options::default().backoff(Duration::from_millis(10), Duration::from_millis(100))
}

fn connect(url: &str) -> Client {
    Client::connect(url, quick()).expect("the relay is there")
}

#[track_caller]
fn consume(client: &Client, topic: &str, name: &str) -> Subscription {
    let options = SubscribeOptions::default().consumer(name).window(16);
    client.subscribe(topic, From::Start, options).expect("the relay agrees")
}

/// The next event, across reconnects but no losses.
#[track_caller]
fn next(subscription: &mut Subscription) -> Event {
    loop {
        match subscription.recv_timeout(LIMIT).expect("the subscription goes on") {
            Some(Delivery::Event(event)) => return event,
            Some(Delivery::Attached { .. } | Delivery::Reconnected) => {}
            other => panic!("an event was awaited and {other:?} came"),
        }
    }
}

fn publish(client: &Client, topic: &str, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        client.publish(topic, &number).expect("it is stored");
    }
}

fn deadline() -> Instant {
    Clock::default().now() + LIMIT
}

#[track_caller]
fn consumers(url: &str) -> Vec<Value> {
    let (code, out, err) = run(url, &["consumers", "-o", "json"], "");
    assert_eq!(code, Some(0), "{err}");
    out.lines().map(|line| serde_json::from_str(line).expect("an object")).collect()
}

#[test]
fn a_consumer_cut_off_again_and_again_gets_everything_and_nothing_that_it_acknowledged() {
    let patience = ["--ack-timeout", "100ms", "--max-deliveries", "1000000"];
    let relay = Relay::start_with(&[&["--listen", "127.0.0.1:0"], &patience[..]].concat());
    let proxy = Proxy::start(relay.address);
    let panics = Panics::default();
    let crew = Crew::new(Stop::default(), Arc::clone(&panics));
    let publisher = connect(&relay.url());
    crew.spawn("publisher".to_owned(), 512 * 1024, move || publish(&publisher, "jobs", 1..=5_000))
        .unwrap();

    let client = connect(&proxy.url());
    let mut jobs = consume(&client, "jobs", "worker");
    let (mut acked, mut at, mut again, mut cuts) = (0, 0, 0, 0);
    while acked < 5_000 {
        let event = next(&mut jobs);
        assert!(acked < event.seq, "{} comes again, {acked} was acknowledged", event.seq);
        assert!(event.seq <= at + 1, "{} comes after {at}", event.seq);
        assert_eq!(event.redelivered, event.seq <= at, "{event:?}");
        again += u64::from(event.redelivered);
        at = at.max(event.seq);
        if random::below(3) == 0 || event.seq == 5_000 {
            jobs.ack(&event).unwrap();
            acked = event.seq;
        }
        if random::below(100) == 0 {
            cuts += proxy.cut();
        }
    }
    // The last one may have gone down with a connection that was cut behind it; then it is said
    // again when the next one brings the event.
    wait_until("the relay has the last acknowledgement", LIMIT, || {
        consumers(&relay.url())[0]["seq"] == 5_000
    });
    assert!(10 < cuts && 10 < again, "{cuts} cuts, {again} events again");
    assert_eq!(crew.join(&Clock::default(), deadline()), 0);
    assert_eq!(panics.load(Ordering::Relaxed), 0);
}

#[test]
fn what_nobody_acknowledges_comes_again_and_then_becomes_a_dead_letter() {
    let flags = ["--listen", "127.0.0.1:0", "--ack-timeout", "200ms", "--max-deliveries", "3"];
    let relay = Relay::start_with(&flags);
    let client = connect(&relay.url());
    publish(&client, "jobs", 1..=2);
    let options = SubscribeOptions::default().acknowledge();
    let mut jobs = client.subscribe("jobs", From::Start, options).unwrap();
    let mut heard = Vec::new();
    let second = loop {
        let delivery = jobs.recv_timeout(LIMIT).unwrap().expect("something comes");
        if let Delivery::Event(event) = delivery {
            if heard.contains(&"dead") {
                break event;
            }
            if event.seq == 1 {
                assert_eq!(event.redelivered, !heard.is_empty());
                heard.push("one");
            }
        } else if let Delivery::Gap { from, to, reason, .. } = delivery {
            assert_eq!((from, to, reason), (1, 1, LossReason::DeadLetter));
            heard.push("dead");
        }
    };
    assert_eq!(heard, ["one", "one", "one", "dead"]);
    assert_eq!((second.seq, second.redelivered), (2, true));
    jobs.ack(&second).unwrap();
    let dead = client.history("$dead/jobs", None, 10).unwrap();
    let letter: Value = dead.events[0].json().unwrap();
    assert_eq!((&letter["seq"], &letter["reason"]), (&1.into(), &"max_deliveries".into()));
    publish(&client, "jobs", 3..=3);
    let third = loop {
        let event = next(&mut jobs);
        if event.seq == 3 {
            break event;
        }
    };
    jobs.ack(&third).unwrap();
    let quiet = jobs.recv_timeout(Duration::from_millis(500)).unwrap();
    assert!(quiet.is_none(), "everything is dealt with, and {quiet:?} came");
}

#[test]
fn the_next_process_goes_on_where_the_consumer_is() {
    let relay = Relay::start();
    let client = connect(&relay.url());
    publish(&client, "jobs", 1..=5);
    let mut jobs = consume(&client, "jobs", "worker");
    let first: Vec<Event> = (0..4).map(|_| next(&mut jobs)).collect();
    jobs.ack(&first[2]).unwrap();
    drop((jobs, client));

    let client = connect(&relay.url());
    let mut jobs = consume(&client, "jobs", "worker");
    let attached = jobs.recv_timeout(LIMIT).unwrap();
    assert!(matches!(attached, Some(Delivery::Attached { position, .. }) if position.seq == 3));
    let rest: Vec<_> = (0..2).map(|_| next(&mut jobs)).collect();
    let told: Vec<_> = rest.iter().map(|event| (event.seq, event.redelivered)).collect();
    assert_eq!(told, [(4, false), (5, false)], "what another process got is not known here");
    // Without a consumer nothing was kept.
    let other = connect(&relay.url());
    let options = SubscribeOptions::default().acknowledge();
    let mut plain = other.subscribe("jobs", From::Start, options).unwrap();
    assert_eq!(next(&mut plain).seq, 1);
}

#[test]
fn whoever_subscribes_last_has_the_consumer() {
    let relay = Relay::start();
    let first = connect(&relay.url());
    publish(&first, "jobs", 1..=3);
    let mut jobs = consume(&first, "jobs", "worker");
    let event = next(&mut jobs);
    jobs.ack(&event).unwrap();
    assert!(first.flush(LIMIT));
    first.ping().unwrap();

    let second = connect(&relay.url());
    let mut taken = consume(&second, "jobs", "worker");
    assert_eq!(next(&mut taken).seq, 2);
    let ended = std::iter::from_fn(|| Some(jobs.recv())).find_map(Result::err);
    assert!(matches!(ended, Some(ClientError::Replaced { .. })), "{ended:?}");
    assert!(matches!(first.publish("jobs", &4), Err(ClientError::Replaced { .. })));
    publish(&second, "jobs", 4..=4);
    assert_eq!([next(&mut taken).seq, next(&mut taken).seq], [3, 4], "it is left alone");
}

#[test]
fn a_consumer_of_a_durable_topic_outlives_the_relay() {
    let dir = Scratch::new("data");
    let node = Node::durable(&dir, &[]);
    let address = node.addr();
    let client = connect(&format!("http://{address}"));
    let receipt = client.publish("jobs", &1).unwrap();
    assert_eq!(receipt.durability, Durability::Synced);
    publish(&client, "jobs", 2..=4);
    let mut jobs = consume(&client, "jobs", "worker");
    let events: Vec<Event> = (0..4).map(|_| next(&mut jobs)).collect();
    jobs.ack(&events[1]).unwrap();
    assert!(client.flush(LIMIT));
    client.ping().unwrap();
    node.stop();

    let node = Node::durable(&dir, &["--listen", &address.to_string()]);
    publish(&client, "jobs", 5..=5);
    let told: Vec<_> = (0..3).map(|_| next(&mut jobs)).map(|e| (e.seq, e.redelivered)).collect();
    assert_eq!(told, [(3, true), (4, true), (5, false)]);
    drop((jobs, client));
    node.stop();
}

#[test]
fn a_pattern_acknowledges_each_topic_for_itself() {
    let relay = Relay::start();
    let proxy = Proxy::start(relay.address);
    let publisher = connect(&relay.url());
    let topics = ["in/a", "in/b", "in/c"];
    for number in 1..=300 {
        topics.iter().for_each(|topic| publish(&publisher, topic, number..=number));
    }
    let client = connect(&proxy.url());
    let options = SubscribeOptions::default().window(8);
    let mut all = client.subscribe("in/+", From::Start, options).unwrap();
    let mut at: BTreeMap<String, u64> = BTreeMap::new();
    while at.values().sum::<u64>() < 900 {
        let event = next(&mut all);
        let last = at.entry(event.topic.to_string()).or_default();
        assert_eq!(event.seq, *last + 1, "each is acknowledged, so each comes once");
        *last += 1;
        all.ack(&event).unwrap();
        if random::below(100) == 0 {
            proxy.cut();
        }
    }
    assert!(client.flush(LIMIT));
}

#[test]
fn a_handler_that_panics_leaves_its_event_to_the_next() {
    let relay = Relay::start();
    let client = connect(&relay.url());
    publish(&client, "jobs", 1..=3);
    let (news, heard) = lane::open(NEWS);
    let options = || SubscribeOptions::default().consumer("worker");
    let handler = move |delivery| {
        if let Delivery::Event(event) = delivery {
            assert!(event.seq < 2, "on purpose");
            news.send(event.seq).unwrap();
        }
    };
    let listener = client.subscribe_with("jobs", From::Start, options(), handler).unwrap();
    assert_eq!(heard.iter().collect::<Vec<_>>(), [1], "until it panics");
    drop(listener);
    let mut jobs = client.subscribe("jobs", From::Start, options()).unwrap();
    assert_eq!(next(&mut jobs).seq, 2);
}

#[test]
fn the_command_line_takes_turns_under_one_name() {
    let relay = Relay::start();
    let url = relay.url();
    let client = connect(&url);
    publish(&client, "jobs", 1..=5);
    let sub = |arguments: &[&str]| {
        let all = [&["sub", "jobs", "--consumer", "printer"], arguments].concat();
        let (code, out, err) = run(&url, &all, "");
        assert_eq!((code, err.as_str()), (Some(0), ""), "{arguments:?}");
        out
    };
    assert_eq!(sub(&["--from", "start", "-n", "2"]), "jobs 1 1\njobs 2 2\n");
    assert_eq!(sub(&["--from", "start", "-n", "2"]), "jobs 3 3\njobs 4 4\n");
    let row = &consumers(&url)[0];
    let facts = ["consumer", "topic", "seq", "tail", "lag", "connected"].map(|key| &row[key]);
    let expected = serde_json::json!(["printer", "jobs", 4, 5, 1, false]);
    assert_eq!(serde_json::json!(facts), expected);
    assert_eq!(sub(&["--no-follow"]), "jobs 5 5\n");
    assert_eq!(sub(&["--no-follow"]), "");
    let (code, table, _) = run(&url, &["consumers", "--topic", "jobs"], "");
    assert_eq!(code, Some(0));
    let words: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words[..6], ["printer", "jobs", "5", "5", "0", "-"]);
    assert_eq!(run(&url, &["consumers", "--topic", "jo+bs"], "").0, Some(1));
}
