//! The operating system has no descriptor or no thread left for a newcomer: those who are there
//! notice nothing, the newcomer waits or is told, and is let in when there is one again.

use rustix::process::Resource;
use serde_json::json;

use crate::support::{
    http::{Body, Http, request_text},
    node::{Metrics, Node, Scratch, wait_for_metric},
    peer::{number, seq, tcp, try_read_head, upgrade_request},
    wait::{LIMIT, Watch, wait_until},
    witness::Witness,
};

/// Less than the stack of a reader takes, more than everything else needs meanwhile.
const ROOM_BYTES: u64 = 100 * 1024;

fn metric(http: &mut Http, parts: &[&str]) -> f64 {
    Metrics::parse(&http.get("/metrics").body).sum(parts)
}

fn connections(http: &mut Http) -> f64 {
    Metrics::parse(&http.get("/metrics").body).0["landline_server_connections"]
}

#[test]
fn without_descriptors_newcomers_wait_in_line_and_the_relay_does_not_spin() {
    const ERRORS: &[&str] = &["landline_server_accept_errors_total"];
    let node = Node::start();
    let witness = Witness::start(&node);
    let mut http = node.http();
    let mut leaving = [node.peer(), node.peer()];
    leaving.iter_mut().for_each(|peer| peer.fence());
    http.get("/healthz");

    node.limit(Resource::Nofile, Some(node.next_file()));
    let files = node.open_files();
    let mut waiting: Vec<Http> = (0..8).map(|_| node.http()).collect();
    let request = request_text(node.addr(), "GET", "/healthz", &[], "");
    waiting.iter_mut().for_each(|newcomer| newcomer.send(&request));
    wait_until("accepting to fail", LIMIT, || 3.0 <= metric(&mut http, ERRORS));
    let (before, watch) = (metric(&mut http, ERRORS), Watch::start());
    witness.see(300);
    let (errors, elapsed) = (metric(&mut http, ERRORS) - before, watch.elapsed());
    assert!(errors <= 20.0 + elapsed.as_secs_f64() * 20.0, "{errors} in {elapsed:?}");
    let said = node.stderr().matches("cannot accept error=\"Too many open files").count();
    assert!((1..=40).contains(&said), "{said} lines:\n{}", node.stderr());
    assert!(node.open_files() <= files + 1, "the bound holds");

    // As many come in as go; the others go on waiting.
    leaving.into_iter().for_each(|peer| peer.close());
    for newcomer in &mut waiting[..2] {
        assert_eq!(newcomer.reply(Body::Expected).status, 200);
    }
    node.limit(Resource::Nofile, None);
    for newcomer in &mut waiting[2..] {
        assert_eq!(newcomer.reply(Body::Expected).status, 200);
    }
    assert_eq!(metric(&mut http, &["landline_server_refused_total"]), 0.0);
    witness.finish();
}

#[test]
fn without_descriptors_durable_topics_are_written_and_read() {
    const EVENTS: u64 = 600;
    let dir = Scratch::new("data");
    let node = Node::durable(&dir, &["--max-tail", "64KiB", "--durable-state"]);
    let mut peer = node.peer();
    peer.publish("lamp", "first");

    node.limit(Resource::Nofile, Some(node.next_file()));
    let newcomer = node.http();
    peer.publish_many("lamp", EVENTS, 1_000);
    for round in 1..=20 {
        peer.ask(json!({"type": "set", "key": "lamp", "value": round}), "stored");
        let request = json!({"type": "publish", "topic": "lamp", "data": round});
        assert_eq!(peer.ask(request, "published")["durability"], "synced");
    }
    let tail = EVENTS + 21;
    let head = peer.subscribe_from("lamp", json!("start"));
    assert_eq!(number(&head, "tail"), tail);
    for expected in 1..=tail {
        assert_eq!(seq(&peer.expect("event")), expected);
    }
    node.limit(Resource::Nofile, None);
    let metrics = node.metrics();
    assert_eq!(metrics.sum(&["landline_store_failures_total"]), 0.0);
    assert!(1.0 <= metrics.sum(&["landline_server_accept_errors_total"]), "there was none left");
    drop(newcomer);
    peer.cut();
    node.kill();

    let node = Node::durable(&dir, &["--durable-state"]);
    let head = node.peer().subscribe_from("lamp", json!("start"));
    assert_eq!(number(&head, "tail"), tail);
    assert_eq!(node.get("/v1/state/lamp").json(), json!(20));
}

#[test]
fn a_connection_that_gets_no_thread_is_told_to_come_again_and_nobody_else_notices() {
    const REFUSED: &[&str] = &["landline_server_refused_total", "reason=\"thread\""];
    let node = Node::with(&["--max-events", "100"]);
    let witness = Witness::start(&node);
    let mut http = node.http();
    let before = connections(&mut http);
    witness.see(200);

    node.limit(Resource::As, Some(node.address_space() + ROOM_BYTES));
    for _ in 0..5 {
        let mut newcomer = node.http();
        newcomer.try_send(&request_text(node.addr(), "GET", "/healthz", &[], ""));
        let reply = newcomer.reply(Body::Expected);
        assert_eq!(reply.status, 503);
        assert!(reply.header("retry-after").is_some(), "{reply:?}");
    }
    let mut stream = tcp(node.addr(), None);
    std::io::Write::write_all(&mut stream, upgrade_request(node.addr(), "").as_bytes()).ok();
    let (head, _) = try_read_head(&mut stream).expect("an answer");
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(metric(&mut http, REFUSED), 6.0);
    assert!(node.stderr().contains("cannot start a reader"), "{}", node.stderr());
    witness.see(50);
    wait_until("those who were told to be forgotten", LIMIT, || connections(&mut http) == before);

    node.limit(Resource::As, None);
    assert_eq!(node.get("/healthz").status, 200);
    wait_for_metric(&node, REFUSED, 6.0);
    witness.finish();
}
