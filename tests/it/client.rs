//! The client keeps its promises while connections break: every event once and in order, every
//! publish stored once, every loss announced.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use landline::{
    base::{
        clock::Clock,
        lane::{self, Lane, WhenFull},
        lifecycle::{Crew, Panics, Stop},
        random,
    },
    client::{
        Client, ClientError, Delivery, Durability, Event, From, InboxLimits, Message, Options,
        State, SubscribeOptions, Subscription,
    },
};

use crate::client_support::{LIMIT, Peer, Proxy, Relay, Scripted};

/// Tells a test that something happened.
const NEWS: Lane = Lane { name: "news", capacity: 10_000, when_full: WhenFull::Wait };

fn quick() -> Options {
    Options::default().backoff(Duration::from_millis(10), Duration::from_millis(100))
}

fn connect(url: &str) -> Client {
    Client::connect(url, quick()).expect("the relay is there")
}

fn subscribe(client: &Client, filter: &str, from: From) -> Subscription {
    client.subscribe(filter, from, SubscribeOptions::default()).expect("the relay agrees")
}

/// The next event; what is no event may be an attachment or a reconnect, but no loss.
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

#[track_caller]
fn expect_numbers(subscription: &mut Subscription, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let event = next(subscription);
        assert_eq!(event.json::<u64>().unwrap(), number, "event {}", event.seq);
    }
}

/// A publisher on a thread of its own. The lane closes when all is confirmed.
fn publish_all(
    crew: &Crew,
    client: Client,
    topic: &'static str,
    count: u64,
) -> lane::Receiver<u64> {
    let (news, published) = lane::open(NEWS);
    let body = move || {
        let mut pending = std::collections::VecDeque::new();
        for number in 0..count {
            pending.push_back(client.publish_nowait(topic, &number).expect("there is room"));
            if 64 < pending.len() {
                pending.pop_front().unwrap().wait().expect("it is stored");
            }
            news.send(number).expect("the test listens");
        }
        for one in pending {
            one.wait().expect("it is stored");
        }
    };
    crew.spawn("publisher".to_owned(), 512 * 1024, body).unwrap();
    published
}

fn deadline() -> Instant {
    Clock::default().now() + LIMIT
}

#[test]
fn a_subscriber_killed_a_hundred_times_sees_every_event_once_and_in_order() {
    let relay = Relay::start();
    let panics = Panics::default();
    let crew = Crew::new(Stop::default(), Arc::clone(&panics));
    let published = publish_all(&crew, connect(&relay.url()), "busy", 10_000);

    let mut from = From::Start;
    let mut expected = 0;
    for _ in 0..100 {
        let client = connect(&relay.url());
        let mut subscription = subscribe(&client, "busy", from);
        for _ in 0..random::below(100) + 1 {
            if expected == 10_000 {
                break;
            }
            assert_eq!(next(&mut subscription).json::<u64>().unwrap(), expected);
            expected += 1;
        }
        from = subscription.resume_from().expect("it has a position");
    }
    let client = connect(&relay.url());
    expect_numbers(&mut subscribe(&client, "busy", from), expected..10_000);

    assert_eq!(published.iter().count(), 10_000);
    assert_eq!(crew.join(&Clock::default(), deadline()), 0);
    assert_eq!(panics.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn a_connection_cut_at_random_moments_loses_nothing_and_stores_nothing_twice() {
    let relay = Relay::start();
    let proxy = Proxy::start(relay.address);
    let panics = Panics::default();
    let crew = Crew::new(Stop::default(), Arc::clone(&panics));
    let client = connect(&proxy.url());
    let mut by_name = subscribe(&client, "a/numbers", From::Live);
    let mut by_pattern = subscribe(&client, "a/#", From::Live);
    let mut again = subscribe(&client, "a/numbers", From::Start);

    let published = publish_all(&crew, connect(&proxy.url()), "a/numbers", 20_000);
    let mut cuts = 0;
    let mut until_cut = random::below(800);
    for number in &published {
        if until_cut == 0 {
            cuts += proxy.cut();
            until_cut = random::below(800);
        }
        until_cut = until_cut.saturating_sub(1);
        // All three are read behind the publisher, so that they are busy when it is cut.
        if 1_000 < number {
            let number = number - 1_001;
            expect_numbers(&mut by_name, number..number + 1);
            expect_numbers(&mut by_pattern, number..number + 1);
            expect_numbers(&mut again, number..number + 1);
        }
    }
    for subscription in [&mut by_name, &mut by_pattern, &mut again] {
        expect_numbers(subscription, 18_999..20_000);
    }

    assert!(10 < cuts, "only {cuts} connections were cut");
    let stored = connect(&relay.url()).history("a/numbers", None, 1).unwrap();
    assert_eq!(stored.tail, 20_000, "something was stored twice");
    assert_eq!(panics.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn subscriptions_on_one_topic_start_and_end_each_for_itself() {
    let relay = Relay::start();
    let client = connect(&relay.url());
    for number in 0..10_u64 {
        client.publish("t", &number).unwrap();
    }
    let mut all = subscribe(&client, "t", From::Start);
    let mut two = subscribe(&client, "t", From::Last(2));
    let mut live = subscribe(&client, "+", From::Live);
    let half = From::After(landline::client::Position {
        epoch: client.history("t", None, 1).unwrap().epoch,
        seq: 5,
    });
    let mut half = subscribe(&client, "t", half);
    client.publish("t", &10_u64).unwrap();
    expect_numbers(&mut all, 0..11);
    expect_numbers(&mut two, 8..11);
    expect_numbers(&mut live, 10..11);
    expect_numbers(&mut half, 5..11);

    drop((all, live));
    client.publish("t", &11_u64).unwrap();
    expect_numbers(&mut two, 11..12);
    expect_numbers(&mut half, 11..12);
    drop((two, half));
    let mut fresh = subscribe(&client, "t", From::Live);
    client.publish("t", &12_u64).unwrap();
    expect_numbers(&mut fresh, 12..13);
    assert!(fresh.try_recv().unwrap().is_none());
}

#[test]
fn a_restarted_relay_is_announced_as_a_reset_with_both_positions() {
    let relay = Relay::start();
    let address = relay.address;
    let client = connect(&relay.url());
    let mut by_name = subscribe(&client, "a/b", From::Live);
    let mut by_pattern = subscribe(&client, "a/+", From::Live);
    let first = client.publish("a/b", &0_u64).unwrap();
    expect_numbers(&mut by_name, 0..1);
    expect_numbers(&mut by_pattern, 0..1);

    drop(relay);
    let _relay = Relay::start_at(address);
    let second = client.publish("a/b", &1_u64).unwrap();

    assert_ne!(first.epoch, second.epoch);
    for subscription in [&mut by_name, &mut by_pattern] {
        loop {
            match subscription.recv_timeout(LIMIT).unwrap() {
                Some(Delivery::Reset { lost, position, .. }) => {
                    assert_eq!((lost.epoch, lost.seq), (first.epoch, 1));
                    assert_eq!((position.epoch, position.seq), (second.epoch, 0));
                    break;
                }
                Some(Delivery::Reconnected) => {}
                other => panic!("a reset was awaited and {other:?} came"),
            }
        }
        expect_numbers(subscription, 1..2);
    }
}

#[test]
fn a_subscriber_that_does_not_read_stops_neither_the_others_nor_publishes() {
    let relay = Relay::start();
    let client = connect(&relay.url());
    let small = SubscribeOptions::default().inbox(InboxLimits { events: 8, bytes: 1 << 20 });
    let mut stuck = client.subscribe("t", From::Live, small).unwrap();
    let mut reads = subscribe(&client, "t", From::Live);
    for number in 0..500 {
        client.publish("t", &number).unwrap();
        expect_numbers(&mut reads, number..number + 1);
    }
    assert!(stuck.waiting() < 20, "the inbox has a limit");
    expect_numbers(&mut stuck, 0..500);
    client.publish("t", &500).unwrap();
    expect_numbers(&mut stuck, 500..501);
}

#[test]
fn a_subscriber_may_publish_for_each_event_although_its_inbox_is_full() {
    let relay = Relay::start();
    let client = connect(&relay.url());
    let small = SubscribeOptions::default().inbox(InboxLimits { events: 4, bytes: 1 << 20 });
    for number in 0..200_u64 {
        client.publish("in", &number).unwrap();
    }
    let mut work = client.subscribe("in", From::Start, small).unwrap();
    for number in 0..200 {
        assert_eq!(next(&mut work).json::<u64>().unwrap(), number);
        client.publish("out", &number).unwrap();
    }
    expect_numbers(&mut subscribe(&client, "out", From::Start), 0..200);
}

#[test]
fn a_handler_gets_deliveries_and_may_use_the_client() {
    let relay = Relay::start();
    let client = connect(&relay.url());
    let (news, heard) = lane::open(NEWS);
    let inner = client.clone();
    let options = SubscribeOptions::default();
    let listener = client.subscribe_with("in", From::Start, options, move |delivery| {
        if let Delivery::Event(event) = delivery {
            inner.publish("out", &event.seq).unwrap();
            news.send(event.seq).unwrap();
        }
    });
    let listener = listener.unwrap();
    client.publish("in", "x").unwrap();
    assert_eq!(heard.recv_timeout(LIMIT), Ok(1));
    drop(listener);
    assert!(heard.recv_timeout(LIMIT).is_err(), "the handler has gone");
}

#[test]
fn a_handler_that_panics_ends_its_subscription_alone() {
    let relay = Relay::start();
    let client = connect(&relay.url());
    let options = SubscribeOptions::default();
    let listener = client.subscribe_with("t", From::Live, options, |_| panic!("on purpose"));
    let mut other = subscribe(&client, "t", From::Live);
    for number in 0..3 {
        client.publish("t", &number).unwrap();
    }
    expect_numbers(&mut other, 0..3);
    drop(listener);
}

#[test]
fn what_breaks_a_rule_is_refused_before_or_by_the_relay() {
    let relay = Relay::start();
    let client = connect(&relay.url());
    assert!(matches!(client.publish("a//b", &1), Err(ClientError::Name { .. })));
    assert!(matches!(client.publish("$x", &1), Err(ClientError::Refused(_))));
    let large = "x".repeat(300_000);
    assert!(matches!(client.publish("a", &large), Err(ClientError::TooLarge { .. })));
    let deep: serde_json::Value =
        serde_json::from_str(&format!("{}{}", "[".repeat(40), "]".repeat(40))).unwrap();
    assert!(matches!(client.publish("a", &deep), Err(ClientError::Invalid(_))));
    let missing = client.history("nothing", None, 1);
    assert!(matches!(missing, Err(ClientError::Refused(refused)) if refused.code == "not_found"));
    let after = From::After(client.publish("a", &1).map(position).unwrap());
    let refused = client.subscribe("a/#", after, SubscribeOptions::default());
    assert!(matches!(refused, Err(ClientError::Invalid(_))));
    assert!(client.ping().unwrap() < LIMIT);
    assert!(client.flush(LIMIT));
}

fn position(receipt: landline::client::Receipt) -> landline::client::Position {
    landline::client::Position { epoch: receipt.epoch, seq: receipt.seq }
}

#[test]
fn the_same_key_is_stored_once() {
    let relay = Relay::start();
    let client = connect(&relay.url());
    let send = || client.send(Message::new("t", &1).key("k").name("n")).unwrap().wait().unwrap();
    let (first, second) = (send(), send());
    assert_eq!((first.seq, first.duplicate), (1, false));
    assert_eq!((second.seq, second.duplicate), (1, true));
}

#[test]
fn without_a_relay_connecting_fails_and_starting_waits_for_one() {
    let relay = Relay::start();
    let address = relay.address;
    drop(relay);
    let url = format!("http://{address}");
    assert!(matches!(Client::connect(&url, quick()), Err(ClientError::Connect { .. })));
    assert!(matches!(Client::connect("https://x", quick()), Err(ClientError::Address { .. })));

    let client = Client::start(&url, quick()).unwrap();
    let short = Message::new("t", &1).deadline(Duration::from_millis(20));
    assert!(matches!(client.send(short).unwrap().wait(), Err(ClientError::NotSent { .. })));
    let waiting = client.publish_nowait("t", &2).unwrap();
    let _relay = Relay::start_at(address);
    assert_eq!(waiting.wait().unwrap().seq, 1, "only the second was sent");
}

#[test]
fn a_code_that_says_never_ends_the_client_for_everybody() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 60_000);
        assert_eq!(peer.next().unwrap()["type"], "publish");
        peer.close(4_003);
        drop(listener.set_nonblocking(true));
        assert!(listener.accept().is_err(), "it came back");
    });
    let client = connect(&scripted.url());
    let ended = client.publish("t", &1);
    assert!(matches!(ended, Err(ClientError::Dismissed { .. })), "{ended:?}");
    scripted.finish();
    assert!(matches!(client.publish("t", &1), Err(ClientError::Dismissed { .. })));
    assert!(matches!(client.state(), State::Ended { .. }));
}

#[test]
fn a_relay_that_falls_silent_is_left_and_unconfirmed_publishes_are_sent_again() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 50);
        let first = peer.next().unwrap();
        // Not a word more: no answer, no ping.
        let mut second_peer = Peer::welcome(listener, 60_000);
        let second = second_peer.next().unwrap();
        assert_eq!(first["key"], second["key"]);
        assert_eq!(first["data"], second["data"]);
        second_peer.say(&format!(
            r#"{{"type":"published","id":{},"seq":7,"epoch":"0000000000000007",
                "durability":"memory","duplicate":true}}"#,
            second["id"]
        ));
        assert!(second_peer.next().is_none());
        drop(peer);
    });
    let client = connect(&scripted.url());
    let receipt = client.publish("t", &1).unwrap();
    assert_eq!((receipt.seq, receipt.duplicate), (7, true));
    drop(client);
    scripted.finish();
}

#[test]
fn a_relay_that_is_busy_gets_the_same_publish_again_when_it_said_so() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 60_000);
        let first = peer.next().unwrap();
        let refuse = |peer: &mut Peer, id: &serde_json::Value, code: &str, ms: u64| {
            peer.say(&format!(
                r#"{{"type":"error","id":{id},"code":"{code}","message":"no room",
                    "retry_after_ms":{ms}}}"#
            ));
        };
        let said = Clock::default().now();
        refuse(&mut peer, &first["id"], "busy", 100);
        let second = peer.next().unwrap();
        assert!(Duration::from_millis(100) <= Clock::default().now() - said, "too early");
        assert_eq!(first, second);
        // Another connection does not send it sooner, nor does it forget.
        refuse(&mut peer, &first["id"], "unavailable", 300);
        let said = Clock::default().now();
        drop(peer);
        let mut peer = Peer::welcome(listener, 60_000);
        assert_eq!(peer.next().unwrap(), first);
        assert!(Duration::from_millis(300) <= Clock::default().now() - said, "too early");
        peer.say(&format!(
            r#"{{"type":"published","id":{},"seq":3,"epoch":"0000000000000007",
                "durability":"synced"}}"#,
            first["id"]
        ));
        // This one could only be sent again after its deadline.
        let late = peer.next().unwrap();
        refuse(&mut peer, &late["id"], "busy", 60_000);
        assert!(peer.next().is_none());
    });
    let client = connect(&scripted.url());
    let receipt = client.publish("t", &1).unwrap();
    assert_eq!((receipt.seq, receipt.durability), (3, Durability::Synced));
    let refused = client.publish("t", &2);
    assert!(matches!(&refused, Err(ClientError::Refused(refused)) if refused.code == "busy"));
    drop(client);
    scripted.finish();
}

#[test]
fn a_goodbye_is_obeyed_and_states_are_told() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 60_000);
        peer.say(r#"{"type":"bye","reason":"shutdown","reconnect_after_ms":123}"#);
        peer.close(1_001);
        let mut peer = Peer::welcome(listener, 60_000);
        assert!(peer.next().is_none());
    });
    let (news, states) = lane::open(NEWS);
    let options = quick().on_state(move |state| news.send(state.clone()).unwrap());
    let client = Client::connect(&scripted.url(), options).unwrap();
    let mut story = Vec::new();
    while story.len() < 5 {
        let state = states.recv_timeout(LIMIT).unwrap();
        if let State::Waiting { retry_in, .. } = &state {
            assert_eq!(*retry_in, Duration::from_millis(123));
            story.push("waiting");
        } else if let State::Connected { .. } = &state {
            story.push("connected");
        } else {
            assert!(matches!(state, State::Connecting), "{state:?}");
            story.push("connecting");
        }
    }
    assert_eq!(story, ["connecting", "connected", "waiting", "connecting", "connected"]);
    drop(client);
    scripted.finish();
}

#[test]
fn an_answer_that_never_comes_is_unanswered_and_not_sent_again() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 60_000);
        assert_eq!(peer.next().unwrap()["data"], 1);
        assert_eq!(peer.next().unwrap()["data"], 2);
        // Cut: the first has been given up by its caller, so only the second comes again.
        drop(peer);
        let mut peer = Peer::welcome(listener, 60_000);
        assert_eq!(peer.next().unwrap()["data"], 2);
        assert!(peer.next().is_none());
    });
    let client = connect(&scripted.url());
    let short = Message::new("t", &1).deadline(Duration::from_millis(50));
    let unanswered = client.send(short).unwrap().wait();
    assert!(matches!(unanswered, Err(ClientError::Unanswered { .. })), "{unanswered:?}");
    let long = Message::new("t", &2).deadline(Duration::from_millis(500));
    let lost = client.send(long).unwrap().wait();
    assert!(matches!(lost, Err(ClientError::Unanswered { .. })), "{lost:?}");
    drop(client);
    scripted.finish();
}

#[test]
fn dropping_a_client_ends_its_threads_and_what_waits() {
    let scripted = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 60_000);
        assert_eq!(peer.next().unwrap()["type"], "publish");
        assert!(peer.next().is_none(), "the client said goodbye");
    });
    let client = connect(&scripted.url());
    let pending = client.publish_nowait("t", &1).unwrap();
    client.close();
    assert!(matches!(pending.wait(), Err(ClientError::Closed)));
    assert!(matches!(client.publish("t", &1), Err(ClientError::Closed)));
    drop(client);
    scripted.finish();
}
