//! The client acknowledges: what it says on the wire, what it says again, and what comes again.
//! Against a scripted relay, which loses, repeats and takes away at the right moment.

use std::time::Duration;

use landline::{
    base::lane::{self, Lane, WhenFull},
    client::{
        Client, ClientError, Delivery, Event, From, LossReason, Options, SubscribeOptions,
        Subscription,
    },
};
use serde_json::{Value, json};

use crate::client_support::{LIMIT, Peer, Scripted};

const EPOCH: &str = "0000000000000007";
const NEWS: Lane = Lane { name: "news", capacity: 100, when_full: WhenFull::Wait };

fn connect(scripted: &Scripted) -> Client {
    let quick = Options::default().backoff(Duration::from_millis(10), Duration::from_millis(50));
    Client::connect(&scripted.url(), quick).expect("the script welcomes")
}

fn acknowledging() -> SubscribeOptions {
    SubscribeOptions::default().acknowledge()
}

#[track_caller]
fn subscribe(client: &Client, options: SubscribeOptions) -> Subscription {
    client.subscribe("jobs", From::Start, options).expect("the script agrees")
}

#[track_caller]
fn next(subscription: &mut Subscription) -> Event {
    loop {
        match subscription.recv_timeout(LIMIT).expect("it goes on") {
            Some(Delivery::Event(event)) => return event,
            Some(Delivery::Attached { .. } | Delivery::Reconnected) => {}
            other => panic!("an event was awaited and {other:?} came"),
        }
    }
}

/// Takes the next request, which must be a `subscribe`, and answers it.
#[track_caller]
fn agree(peer: &mut Peer, seq: u64, tail: u64) -> Value {
    let request = peer.next().expect("a subscribe");
    assert_eq!((&request["type"], &request["topic"]), (&json!("subscribe"), &json!("jobs")));
    peer.say(&format!(
        r#"{{"type":"subscribed","id":{},"topic":"jobs","epoch":"{EPOCH}","seq":{seq},"first":1,
            "tail":{tail},"recovery":{{"mode":"complete"}}}}"#,
        request["id"]
    ));
    request
}

fn send(peer: &mut Peer, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        let event = json!({"type": "event", "topic": "jobs", "seq": seq, "time": 1, "data": seq});
        peer.say(&event.to_string());
    }
}

/// Reads acknowledgements until the one for `seq`, and none beyond it.
#[track_caller]
fn await_ack(peer: &mut Peer, seq: u64) {
    loop {
        let message = peer.next().expect("an acknowledgement");
        assert_eq!((&message["type"], &message["topic"]), (&json!("ack"), &json!("jobs")));
        let acked = message["seq"].as_u64().unwrap();
        assert!(acked <= seq, "{acked} was acknowledged, {seq} is the last");
        if acked == seq {
            return;
        }
    }
}

#[test]
fn a_new_connection_begins_after_what_was_acknowledged() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 60_000);
        let request = agree(&mut peer, 0, 3);
        assert_eq!((&request["ack"], &request["window"]), (&json!(true), &json!(7)));
        assert_eq!((&request["from"], &request["consumer"]), (&json!("start"), &Value::Null));
        send(&mut peer, 1..=3);
        await_ack(&mut peer, 2);
        drop(peer);
        let mut peer = Peer::welcome(listener, 60_000);
        let request = agree(&mut peer, 2, 4);
        assert_eq!(request["from"], json!({"epoch": EPOCH, "seq": 2}));
        assert_eq!((&request["ack"], &request["window"]), (&json!(true), &json!(7)));
        send(&mut peer, 3..=4);
        await_ack(&mut peer, 4);
        assert!(peer.next().is_none());
    });
    let client = connect(&scripted);
    let mut jobs = subscribe(&client, acknowledging().window(7));
    let first: Vec<Event> = (0..3).map(|_| next(&mut jobs)).collect();
    jobs.ack(&first[1]).unwrap();
    let again: Vec<Event> = (0..2).map(|_| next(&mut jobs)).collect();
    let told: Vec<_> = again.iter().map(|event| (event.seq, event.redelivered)).collect();
    assert_eq!(told, [(3, true), (4, false)]);
    jobs.ack(&again[1]).unwrap();
    assert!(client.flush(LIMIT));
    client.close();
    scripted.finish();
}

#[test]
fn what_the_relay_sends_again_is_handed_over_again_and_marked() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 60_000);
        agree(&mut peer, 0, 5);
        send(&mut peer, 1..=3);
        await_ack(&mut peer, 1);
        // Nothing of 2 and 3 was heard in time.
        send(&mut peer, 2..=4);
        await_ack(&mut peer, 3);
        let gap = json!({"type": "gap", "topic": "jobs", "from": 4, "to": 4,
                         "reason": "dead_letter"});
        peer.say(&gap.to_string());
        send(&mut peer, 5..=5);
        // The dead letter needs no acknowledgement of its own.
        await_ack(&mut peer, 5);
        assert!(peer.next().is_none());
    });
    let client = connect(&scripted);
    let mut jobs = subscribe(&client, acknowledging());
    let mut told = Vec::new();
    let mut take = |jobs: &mut Subscription| {
        let event = next(jobs);
        told.push((event.seq, event.redelivered));
        event
    };
    let first = take(&mut jobs);
    take(&mut jobs);
    take(&mut jobs);
    jobs.ack(&first).unwrap();
    take(&mut jobs);
    let third = take(&mut jobs);
    take(&mut jobs);
    jobs.ack(&third).unwrap();
    let gap = jobs.recv_timeout(LIMIT).unwrap();
    let Some(Delivery::Gap { from: 4, to: 4, reason: LossReason::DeadLetter, .. }) = gap else {
        panic!("a gap was awaited and {gap:?} came");
    };
    let last = take(&mut jobs);
    assert_eq!(
        told,
        [(1, false), (2, false), (3, false), (2, true), (3, true), (4, false), (5, false)]
    );
    // Acknowledging what is acknowledged says nothing.
    jobs.ack(&first).unwrap();
    jobs.ack(&last).unwrap();
    assert!(client.flush(LIMIT));
    client.close();
    scripted.finish();
}

#[test]
fn a_consumer_follows_the_relay_back_and_tells_it_again() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 60_000);
        let request = agree(&mut peer, 4, 6);
        assert_eq!((&request["ack"], &request["consumer"]), (&json!(true), &json!("printer")));
        send(&mut peer, 5..=6);
        await_ack(&mut peer, 6);
        drop(peer);
        // The acknowledgement was lost with the connection, as the relay sees it.
        let mut peer = Peer::welcome(listener, 60_000);
        let request = agree(&mut peer, 4, 7);
        assert_eq!(request["consumer"], "printer");
        assert_eq!(request["from"], json!({"epoch": EPOCH, "seq": 6}), "should it be a new one");
        send(&mut peer, 5..=6);
        // Nothing is acknowledged that this connection has not brought.
        await_ack(&mut peer, 6);
        send(&mut peer, 7..=7);
        await_ack(&mut peer, 7);
        assert!(peer.next().is_none());
    });
    let client = connect(&scripted);
    let mut jobs = subscribe(&client, SubscribeOptions::default().consumer("printer"));
    let attached = jobs.recv_timeout(LIMIT).unwrap();
    assert!(matches!(attached, Some(Delivery::Attached { position, .. }) if position.seq == 4));
    let acker = jobs.acker();
    for seq in 5..=7 {
        let event = next(&mut jobs);
        assert_eq!((event.seq, event.redelivered), (seq, false), "each comes once");
        acker.ack(&event).unwrap();
    }
    assert!(client.flush(LIMIT));
    client.close();
    assert!(matches!(client.ping(), Err(ClientError::Closed)));
    scripted.finish();
}

#[test]
fn a_client_whose_consumer_was_taken_over_ends_and_does_not_come_back() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 60_000);
        agree(&mut peer, 0, 1);
        send(&mut peer, 1..=1);
        peer.say(r#"{"type":"bye","reason":"replaced"}"#);
        peer.close(4_002);
        drop(listener.set_nonblocking(true));
        assert!(listener.accept().is_err(), "it came back");
    });
    let client = connect(&scripted);
    let mut jobs = subscribe(&client, SubscribeOptions::default().consumer("printer"));
    let event = next(&mut jobs);
    let ended = jobs.recv_timeout(LIMIT);
    assert!(matches!(ended, Err(ClientError::Replaced { .. })), "{ended:?}");
    assert!(matches!(jobs.ack(&event), Err(ClientError::Replaced { .. })));
    assert!(matches!(client.publish("t", &1), Err(ClientError::Replaced { .. })));
    scripted.finish();
}

#[test]
fn a_handler_acknowledges_by_returning_and_not_by_panicking() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 60_000);
        agree(&mut peer, 0, 3);
        send(&mut peer, 1..=1);
        await_ack(&mut peer, 1);
        send(&mut peer, 2..=2);
        await_ack(&mut peer, 2);
        send(&mut peer, 3..=3);
        let left = peer.next().expect("the subscription ends");
        assert_eq!(left["type"], "unsubscribe", "{left}");
        assert!(peer.next().is_none());
    });
    let client = connect(&scripted);
    let (news, heard) = lane::open(NEWS);
    let handler = move |delivery| {
        if let Delivery::Event(event) = delivery {
            assert!(event.seq < 3, "on purpose");
            news.send(event.seq).unwrap();
        }
    };
    let listener = client.subscribe_with("jobs", From::Start, acknowledging(), handler).unwrap();
    assert_eq!(heard.iter().collect::<Vec<u64>>(), [1, 2], "until it panics");
    drop((listener, client));
    scripted.finish();
}

#[test]
fn what_is_acknowledged_before_the_end_is_told_before_the_goodbye() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 60_000);
        agree(&mut peer, 0, 100);
        send(&mut peer, 1..=100);
        await_ack(&mut peer, 50);
        assert_eq!(peer.next().expect("it leaves")["type"], "unsubscribe");
        assert!(peer.next().is_none());
    });
    let client = connect(&scripted);
    let mut jobs = subscribe(&client, acknowledging());
    for seq in 1..=100 {
        let event = next(&mut jobs);
        if seq <= 50 {
            jobs.ack(&event).unwrap();
        }
    }
    drop(jobs);
    client.close();
    scripted.finish();
}

#[test]
fn what_cannot_be_acknowledged_is_refused_here() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 60_000);
        agree(&mut peer, 0, 1);
        send(&mut peer, 1..=1);
        while peer.next().is_some() {}
    });
    let client = connect(&scripted);
    let mut plain = subscribe(&client, SubscribeOptions::default());
    let event = next(&mut plain);
    assert!(matches!(plain.ack(&event), Err(ClientError::Invalid(_))));
    let overlaps = client.subscribe("#", From::Live, acknowledging());
    assert!(matches!(overlaps, Err(ClientError::Invalid(_))), "{overlaps:?}");
    let consumer = SubscribeOptions::default().consumer("x");
    let pattern = client.subscribe("a/#", From::Live, consumer);
    assert!(matches!(pattern, Err(ClientError::Invalid(_))), "{pattern:?}");
    drop((plain, client));
    scripted.finish();
}
