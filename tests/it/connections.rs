//! Who is connected, and how the operator ends one of them.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use landline::client::{Client, Delivery, From, Options, SubscribeOptions};
use serde_json::{Value, json};

use crate::support::{
    http::{Http, Reply},
    node::{Node, wait_for_metric},
    peer::{Incoming, Peer, number, position},
    stream::Stream,
    wait::{LIMIT, wait_for, wait_until},
};

/// The connection's name, as `welcome` says it.
#[track_caller]
fn hello(peer: &mut Peer, mut about: Value) -> String {
    about["type"] = json!("hello");
    peer.ask(about, "welcome")["connection"].as_str().unwrap().to_owned()
}

#[track_caller]
fn list(http: &mut Http, query: &str) -> (Vec<Value>, Option<String>) {
    let reply = http.get(&format!("/v1/connections{query}"));
    assert_eq!(reply.status, 200, "{reply:?}");
    let body = reply.json();
    let next = body.get("next").map(|next| next.as_str().unwrap().to_owned());
    (body["connections"].as_array().unwrap().clone(), next)
}

/// What the list says of one connection.
#[track_caller]
fn find(node: &Node, name: &str) -> Option<Value> {
    let (all, next) = list(&mut node.http(), "");
    assert_eq!(next, None);
    all.into_iter().find(|one| one["connection"] == name)
}

#[track_caller]
fn end(http: &mut Http, name: &str) -> Reply {
    http.request("DELETE", &format!("/v1/connections/{name}"), &[], "")
}

#[track_caller]
fn problem(reply: &Reply, status: u16, code: &str) -> Value {
    assert_eq!(reply.status, status, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/problem+json"));
    let problem = reply.json();
    assert_eq!(problem["code"], code, "{problem}");
    problem
}

fn names(all: &[Value]) -> Vec<&str> {
    all.iter().map(|one| one["connection"].as_str().unwrap()).collect()
}

#[test]
fn the_list_says_of_each_connection_what_it_is_and_what_it_does() {
    let node = Node::with(&["--heartbeat", "1s", "--heartbeat-timeout", "30s"]);
    let mut peer = node.peer();
    let name = hello(&mut peer, json!({"user": "anna", "client": "wall tablet, kitchen"}));
    peer.subscribe("a");
    peer.subscribe("a/b");
    peer.ask(json!({"type": "subscribe", "topic": "a/#"}), "subscribed");
    peer.ask(json!({"type": "watch", "pattern": "lamp/+"}), "watching");
    let address = peer.stream().local_addr().unwrap();
    let mut http = node.http();

    let (all, next) = list(&mut http, "");
    assert_eq!((all.len(), next), (2, None), "{all:?}");
    let (seen, own) = (&all[0], &all[1]);
    let expected = [
        ("connection", json!(name)),
        ("transport", json!("websocket")),
        ("user", json!("anna")),
        ("client", json!("wall tablet, kitchen")),
        ("address", json!(address.to_string())),
        ("subscriptions", json!(3)),
        ("watches", json!(1)),
        ("lag", json!(0)),
        ("pending_bytes", json!(0)),
    ];
    for (field, value) in expected {
        assert_eq!(seen[field], value, "{field} of {seen}");
    }
    assert!(number(seen, "heard_ms") <= number(seen, "age_ms"), "{seen}");
    assert!(300 < number(seen, "received_bytes"), "{seen}");
    assert!(300 < number(seen, "sent_bytes"), "{seen}");
    assert_eq!(own["transport"], "http");
    for unknown in ["user", "client", "pong_ms", "rtt_ms"] {
        assert_eq!(own.get(unknown), None, "{own}");
    }

    // A later hello changes what it says, and only that; a ping is answered.
    hello(&mut peer, json!({"user": "bert"}));
    wait_until("a ping", LIMIT, || {
        let silent = peer.receive(std::time::Duration::from_millis(20));
        assert!(!matches!(silent, Some(Incoming::End | Incoming::Close(_))), "{silent:?}");
        0 < peer.pings()
    });
    let seen = wait_for("the pong to be noted", LIMIT, || {
        find(&node, &name).filter(|seen| seen.get("rtt_ms").is_some())
    });
    assert_eq!((&seen["user"], &seen["client"]), (&json!("bert"), &json!("wall tablet, kitchen")));
    assert!(number(&seen, "pong_ms") <= number(&seen, "age_ms"), "{seen}");
    assert!(number(&seen, "rtt_ms") < number(&seen, "age_ms"), "{seen}");
    hello(&mut peer, json!({"client": "hall"}));
    let seen = find(&node, &name).unwrap();
    assert_eq!((&seen["user"], &seen["client"]), (&json!("bert"), &json!("hall")));

    peer.ask(json!({"type": "unsubscribe", "topic": "a/#"}), "unsubscribed");
    peer.ask(json!({"type": "unwatch", "pattern": "lamp/+"}), "unwatched");
    let seen = find(&node, &name).unwrap();
    assert_eq!((&seen["subscriptions"], &seen["watches"]), (&json!(2), &json!(0)));
    peer.close();
    wait_until("it to be gone", LIMIT, || find(&node, &name).is_none());
}

#[test]
fn the_list_comes_in_pages_by_number_and_none_is_left_out() {
    let node = Node::start();
    let mut peers: Vec<Peer> = (0..250).map(|_| node.peer()).collect();
    let all: Vec<String> = peers.iter_mut().map(|peer| hello(peer, json!({}))).collect();
    let mut http = node.http();

    let (whole, next) = list(&mut http, "");
    assert_eq!((names(&whole)[..250].to_vec(), next), (all.iter().map(|it| &**it).collect(), None));
    let mut found: Vec<String> = Vec::new();
    let mut after = String::new();
    loop {
        let (page, next) = list(&mut http, &format!("?limit=100{after}"));
        found.extend(names(&page).into_iter().map(str::to_owned));
        let Some(next) = next else { break };
        assert_eq!((page.len(), Some(&next)), (100, found.last()));
        after = format!("&after={next}");
    }
    assert_eq!(found, names(&whole));
    // It is a place, also when who stood there is gone.
    let (page, next) = list(&mut http, "?limit=1&after=c0");
    assert_eq!((names(&page), next), (vec![&*all[0]], Some(all[0].clone())));
    assert_eq!(list(&mut http, "?after=c1000000"), (vec![], None));
}

#[test]
fn a_query_that_breaks_a_rule_is_refused_by_its_field() {
    let node = Node::start();
    let mut http = node.http();
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("after=17", "after"),
        ("after=c", "after"),
        ("after=c1&after=c2", "after"),
    ] {
        let reply = http.get(&format!("/v1/connections?{query}"));
        assert_eq!(problem(&reply, 400, "bad_request")["field"], field, "{query}");
    }
    for name in ["c99", "17", "c01", "c", "%00"] {
        assert_eq!(problem(&end(&mut http, name), 404, "not_found")["field"], "connection");
    }
    assert_eq!(http.get("/v1/connections/c1").header("allow"), Some("DELETE, OPTIONS"));
    assert_eq!(http.post("/v1/connections", "1").status, 405);
}

#[test]
fn a_client_that_does_not_read_shows_its_lag_and_the_others_show_none() {
    let node = Node::with(&["--max-events", "100000", "--write-stall", "60s"]);
    let (mut stuck, mut quick) = (Peer::connect_tiny(node.addr()), node.peer());
    let (slow, fast) = (hello(&mut stuck, json!({})), hello(&mut quick, json!({})));
    for peer in [&mut stuck, &mut quick] {
        peer.subscribe("a");
        peer.ask(json!({"type": "subscribe", "topic": "b/#"}), "subscribed");
    }
    let mut publisher = node.peer();
    for topic in ["a", "b/1"] {
        publisher.publish_many(topic, 5_000, 2_000);
    }
    let mut got = 0;
    while got < 10_000 {
        got += usize::from(quick.message()["type"] == "event");
    }
    wait_for_metric(&node, &["stalled_connections"], 1.0);

    let seen = find(&node, &slow).unwrap();
    let lag = number(&seen, "lag");
    // What it lacks of both topics, less what the buffers of two sockets hold.
    assert!((5_000..10_000).contains(&lag), "{seen}");
    assert!(0 < number(&seen, "pending_bytes"), "{seen}");
    publisher.publish_many("a", 100, 0);
    // Its socket may take a little more all the same.
    assert!((lag + 1..=lag + 100).contains(&number(&find(&node, &slow).unwrap(), "lag")), "{lag}");
    wait_until("the other to have everything", LIMIT, || {
        let seen = find(&node, &fast).unwrap();
        (number(&seen, "lag"), number(&seen, "pending_bytes")) == (0, 0)
    });

    got = 0;
    while got < 10_100 {
        got += usize::from(stuck.message()["type"] == "event");
    }
    let seen = find(&node, &slow).unwrap();
    assert_eq!((number(&seen, "lag"), number(&seen, "pending_bytes")), (0, 0), "{seen}");
}

#[test]
fn who_waits_for_its_own_acknowledgements_lags_too() {
    let node = Node::start();
    let mut peer = node.peer();
    let name = hello(&mut peer, json!({}));
    peer.ask(json!({"type": "subscribe", "topic": "a", "ack": true, "window": 2}), "subscribed");
    node.peer().publish_many("a", 10, 0);
    assert_eq!(peer.events(2).len(), 2);
    wait_until("it to lack what its window has no room for", LIMIT, || {
        number(&find(&node, &name).unwrap(), "lag") == 8
    });
}

#[test]
fn who_is_disconnected_hears_it_and_is_told_to_come_back() {
    let node = Node::start();
    let mut peer = node.peer();
    let name = hello(&mut peer, json!({"user": "anna"}));
    let mut http = node.http();
    let reply = end(&mut http, &name);
    assert_eq!((reply.status, &*reply.body), (204, ""));
    let (words, code) = peer.last_words();
    assert_eq!(words, [json!({"type": "bye", "reason": "disconnected"})]);
    assert_eq!(code, Some(4_103));
    // Its side of the socket is open still; it does not stay for ever.
    wait_until("it to be gone", LIMIT, || find(&node, &name).is_none());
    problem(&end(&mut http, &name), 404, "not_found");
    wait_for_metric(&node, &["disconnects_total", "\"disconnected\""], 1.0);

    // One that reads nothing is gone as well.
    let mut stuck = Peer::connect_tiny(node.addr());
    let name = hello(&mut stuck, json!({}));
    stuck.subscribe("a");
    node.peer().publish_many("a", 3_000, 2_000);
    wait_for_metric(&node, &["stalled_connections"], 1.0);
    assert_eq!(end(&mut http, &name).status, 204);
    wait_until("it to be gone", LIMIT, || find(&node, &name).is_none());
}

#[test]
fn an_http_connection_can_be_ended_also_by_itself() {
    let node = Node::start();
    let (mut idle, mut http) = (node.http(), node.http());
    assert_eq!(idle.get("/healthz").status, 200);
    let (all, _) = list(&mut http, "");
    let [name, own] = names(&all)[..] else { panic!("there are two: {all:?}") };
    assert_eq!(end(&mut http, name).status, 204);
    wait_until("it to be closed", LIMIT, || idle.is_closed());
    wait_until("it to be gone", LIMIT, || find(&node, name).is_none());

    let reply = end(&mut http, own);
    assert_eq!((reply.status, reply.header("connection")), (204, Some("close")));
    wait_until("it to be closed", LIMIT, || http.is_closed());
    wait_until("it to be gone", LIMIT, || find(&node, own).is_none());
}

#[test]
fn the_rust_client_comes_back_after_it_was_disconnected_and_misses_nothing() {
    let node = Node::start();
    let mut publisher = node.peer();
    let options = Options::default()
        .backoff(std::time::Duration::from_millis(10), std::time::Duration::from_millis(100));
    let client = Client::connect(&format!("http://{}", node.addr()), options).unwrap();
    let mut subscription = client.subscribe("a", From::Live, SubscribeOptions::default()).unwrap();
    let (mut published, mut received, mut reconnects) = (0, 0, 0);
    let mut http = node.http();
    for _ in 0..3 {
        let own = wait_for("the client to follow", LIMIT, || {
            let (all, _) = list(&mut http, "");
            let own = all.into_iter().find(|one| one["subscriptions"] == 1)?;
            Some(own["connection"].as_str()?.to_owned())
        });
        for round in 0..2 {
            for _ in 0..100 {
                published += 1;
                publisher.send(&json!({"type": "publish", "topic": "a", "data": published}));
            }
            publisher.fence();
            if round == 0 {
                assert_eq!(end(&mut http, &own).status, 204);
            }
        }
        while received < published {
            match subscription.recv_timeout(LIMIT).unwrap() {
                Some(Delivery::Event(event)) => {
                    received += 1;
                    assert_eq!(event.json::<u64>().unwrap(), received);
                }
                Some(Delivery::Reconnected) => reconnects += 1,
                Some(Delivery::Attached { .. }) => {}
                other => panic!("an event was awaited and {other:?} came"),
            }
        }
        wait_until("the old connection to be gone", LIMIT, || find(&node, &own).is_none());
    }
    assert!((1..=3).contains(&reconnects), "{reconnects}");
}

#[test]
fn a_disconnected_client_that_resumes_by_hand_has_everything() {
    let node = Node::start();
    let (mut peer, mut publisher) = (node.peer(), node.peer());
    let name = hello(&mut peer, json!({}));
    let subscribed = peer.subscribe("a");
    publisher.publish("a", 1);
    assert_eq!(peer.events(1).len(), 1);
    assert_eq!(end(&mut node.http(), &name).status, 204);
    publisher.publish("a", 2);
    assert_eq!(peer.close_code(), Some(4_103));

    let mut again = node.peer();
    let resumed = again.subscribe_from("a", position(&subscribed, 1));
    assert_eq!(resumed["recovery"], json!({"mode": "complete"}));
    assert_eq!(again.expect("event")["data"], 2);
}

#[test]
fn a_stream_is_in_the_list_and_its_client_is_told_when_it_is_ended() {
    let node = Node::start();
    let mut sse = Stream::sse(node.addr(), "/v1/topics/a/%23/events");
    let mut lines = Stream::lines(node.addr(), "/v1/state");
    while sse.message().unwrap().event != "ready" {}
    lines.expect("watching");

    let (all, _) = list(&mut node.http(), "");
    let seen: Vec<_> = all[..2]
        .iter()
        .map(|one| {
            (one["transport"].as_str(), number(one, "subscriptions"), number(one, "watches"))
        })
        .collect();
    assert_eq!(seen, [(Some("sse"), 1, 0), (Some("ndjson"), 0, 1)]);
    for name in names(&all[..2]) {
        assert_eq!(end(&mut node.http(), name).status, 204);
    }

    assert_eq!(sse.expect("bye").data["reason"], "disconnected");
    while lines.message().unwrap().event != "bye" {}
    assert_eq!((sse.any_message(), lines.any_message()), (None, None));
    drop((sse, lines));
    wait_for_metric(&node, &["disconnects", "reason=\"disconnected\""], 2.0);
}

#[test]
fn what_a_proxy_forwards_is_forbidden() {
    let node = Node::start();
    let mut peer = node.peer();
    let name = hello(&mut peer, json!({}));
    let mut http = node.http();
    for header in ["X-Forwarded-For: 127.0.0.1", "forwarded: for=127.0.0.1", "X-Forwarded-For:"] {
        let field = header.split(':').next().unwrap();
        for (method, path) in
            [("GET", "/v1/connections".to_owned()), ("DELETE", format!("/v1/connections/{name}"))]
        {
            let reply = http.request(method, &path, &[header], "");
            let problem = problem(&reply, 403, "forbidden");
            let detail = problem["detail"].as_str().unwrap().to_lowercase();
            assert!(detail.contains(&field.to_lowercase()), "{problem}");
        }
    }
    peer.fence();
    assert_eq!(http.get("/v1/topics").status, 200);
}

#[test]
fn who_comes_from_another_address_is_forbidden() {
    // The address that a packet to a network would have; none is sent.
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr());
    let Some(own) = own.ok().map(|own| own.ip()).filter(|ip| !ip.is_loopback()) else {
        return eprintln!("this machine has no address beside its own; not tested here");
    };
    let node = Node::with(&["--listen", "0.0.0.0:0", "--allow-anonymous"]);
    let port = wait_for("both listeners", LIMIT, || {
        let stderr = node.stderr();
        let (_, rest) = stderr.split_once("listening addr=0.0.0.0:")?;
        rest.split_whitespace().next()?.parse::<u16>().ok()
    });
    let at = |ip: IpAddr| Http::connect(SocketAddr::new(ip, port));
    let mut peer = node.peer();
    let name = hello(&mut peer, json!({}));
    let mut from_outside = at(own);
    let reply = from_outside.get("/v1/connections");
    let detail = problem(&reply, 403, "forbidden")["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains(&own.to_string()), "{detail}");
    problem(&end(&mut from_outside, &name), 403, "forbidden");
    peer.fence();
    let (all, _) = list(&mut at([127, 0, 0, 1].into()), "");
    assert!(all.iter().any(|one| one["address"].as_str().unwrap().starts_with(&own.to_string())));
}
