//! HTTP: publishing, reading, what is running, and what an operator asks for.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::{
    http::{Body, Http, Reply, request_text},
    node::{Metrics, Node},
    peer::{number, position, seq, seqs},
    wait::{LIMIT, wait_for, wait_until},
};

const EVENTS: &str = "/v1/topics/home/lamp/events";

#[track_caller]
fn assert_problem(reply: &Reply, status: u16, code: &str) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{reply:?}");
    let problem = reply.json();
    assert_eq!(problem["code"], code, "{problem}");
    assert_eq!(problem["status"], status, "{problem}");
    assert!(problem["title"].is_string() || problem["detail"].is_string(), "{problem}");
}

#[test]
fn an_event_is_published_and_reaches_subscribers_unchanged() {
    let node = Node::start();
    let mut subscriber = node.peer();
    subscriber.subscribe("home/lamp");
    let mut http = node.http();

    let headers = ["Event-Name: switched", "Content-Type: application/json"];
    let reply = http.request("POST", EVENTS, &headers, "{ \"on\": 1.50 }");
    let text = subscriber.text();

    assert_eq!(reply.status, 201, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let receipt = reply.json();
    assert_eq!((seq(&receipt), &receipt["durability"]), (1, &json!("memory")), "{receipt}");
    assert_ne!(receipt["duplicate"], true, "{receipt}");
    assert!(text.contains("\"data\":{ \"on\": 1.50 }"), "{text}");
    let event: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&event["name"], seq(&event)), (&json!("switched"), 1));
}

#[test]
fn history_is_read_with_from_and_limit() {
    let node = Node::start();
    let mut http = node.http();
    for number in 1..=10 {
        assert_eq!(http.post(EVENTS, &number.to_string()).status, 201);
    }

    let all = http.get(&format!("{EVENTS}?from=start")).json();
    let some = http.get(&format!("{EVENTS}?from=start&limit=3")).json();
    let default = http.get(EVENTS).json();

    assert_eq!(seqs(all["events"].as_array().unwrap()), (1..=10).collect::<Vec<_>>());
    assert_eq!((number(&all, "first"), number(&all, "tail")), (1, 10));
    assert_eq!(all["events"][4]["data"], 5);
    assert_eq!(seqs(some["events"].as_array().unwrap()), [1, 2, 3]);
    assert_eq!(default["epoch"], all["epoch"]);
    assert_problem(&http.get(&format!("{EVENTS}?limit=0")), 400, "bad_request");
    assert_problem(&http.get(&format!("{EVENTS}?from=nonsense")), 400, "bad_request");
}

#[test]
fn names_in_paths_are_decoded() {
    let node = Node::start();
    let mut http = node.http();
    let mut peer = node.peer();

    for path in ["home%2Flamp", "home/lamp", "%68ome/l%61mp"] {
        let reply = http.post(&format!("/v1/topics/{path}/events"), "1");
        assert_eq!(reply.status, 201, "{path}: {reply:?}");
    }
    assert_eq!(http.post("/v1/topics/k%C3%BCche/events", "1").status, 201);
    assert_eq!(http.post("/v1/topics/events/events", "1").status, 201);

    assert_eq!(number(&peer.history("home/lamp", json!("start"), 10), "tail"), 3);
    assert_eq!(number(&peer.history("küche", json!("start"), 10), "tail"), 1);
    assert_eq!(number(&peer.history("events", json!("start"), 10), "tail"), 1);
    for path in ["a%zz", "a%2", "a%ff", "a//b", "a%00b", "a%2B", "home/%23"] {
        let reply = http.post(&format!("/v1/topics/{path}/events"), "1");
        assert_problem(&reply, 400, "bad_request");
    }
}

#[test]
fn topics_are_listed_with_their_bounds() {
    let node = Node::with(&["--max-events", "5"]);
    let mut peer = node.peer();
    peer.subscribe("a");
    for number in 1..=8 {
        peer.publish("a", number);
    }
    let epoch = peer.history("a", json!("start"), 1)["epoch"].clone();

    let reply = node.get("/v1/topics");
    let listed = reply.json();
    let topics = listed["topics"].as_array().or(listed.as_array()).expect("a list of topics");
    let topic = topics.iter().find(|topic| topic["topic"] == "a" || topic["name"] == "a");
    let topic = topic.unwrap_or_else(|| panic!("{listed}"));

    assert_eq!(reply.status, 200);
    assert_eq!((number(topic, "first"), number(topic, "tail")), (4, 8), "{topic}");
    assert_eq!(topic["epoch"], epoch);
    assert_eq!(number(topic, "subscribers"), 1, "{topic}");
}

#[test]
fn a_connection_serves_many_requests_also_sent_ahead() {
    let node = Node::start();
    let mut http = node.http();
    for number in 1..=20 {
        assert_eq!(seq(&http.post(EVENTS, "1").json()), number);
    }

    let addr = node.addr();
    let ahead: String = (0..100).map(|_| request_text(addr, "POST", EVENTS, &[], "2")).collect();
    http.send(&ahead);
    for number in 21..=120 {
        let reply = http.reply(Body::Expected);
        assert_eq!((reply.status, seq(&reply.json())), (201, number));
    }

    let last = http.request("GET", "/healthz", &["Connection: close"], "");
    assert_eq!(last.status, 200);
    assert_eq!(last.header("connection").map(str::to_lowercase), Some("close".into()));
    wait_until("the connection to be closed", LIMIT, || http.is_closed());
}

#[test]
fn a_chunked_body_is_a_body() {
    let node = Node::start();
    let mut http = node.http();
    let chunked = ["Transfer-Encoding: chunked"];

    let body = "1\r\n[\r\n4;note=x\r\n1, 2\r\n1\r\n]\r\n0\r\n\r\n";
    let reply = http.request("POST", EVENTS, &chunked, body);
    assert_eq!(reply.status, 201, "{reply:?}");
    let next = http.get(&format!("{EVENTS}?from=start"));
    assert_eq!(next.json()["events"][0]["data"], json!([1, 2]), "{next:?}");

    for body in ["zz\r\n[]\r\n0\r\n\r\n", "2\r\n[]xx\r\n0\r\n\r\n", "ffffffffffffffffff\r\n"] {
        let mut http = node.http();
        let reply = http.request("POST", EVENTS, &chunked, body);
        assert!(reply.status == 400 || reply.status == 413, "{body:?}: {reply:?}");
        wait_until("the connection to be closed", LIMIT, || http.is_closed());
    }
}

#[test]
fn a_body_of_unclear_length_is_refused_and_ends_the_connection() {
    let node = Node::start();

    for headers in [
        &["Content-Length: 2", "Transfer-Encoding: chunked"][..],
        &["Content-Length: 2", "Content-Length: 3"],
        &["Content-Length: -1"],
        &["Content-Length: 2x"],
        &["Transfer-Encoding: gzip"],
        &["Transfer-Encoding: chunked, identity"],
    ] {
        let mut http = node.http();
        let mut text = format!("POST {EVENTS} HTTP/1.1\r\nHost: localhost\r\n");
        text += &headers.join("\r\n");
        http.send(&(text + "\r\n\r\n[]"));
        let reply = http.reply(Body::Expected);
        assert!([400, 411, 501].contains(&reply.status), "{headers:?}: {reply:?}");
        wait_until("the connection to be closed", LIMIT, || http.is_closed());
    }
    assert_eq!(node.get("/v1/topics").body.matches("home/lamp").count(), 0, "nothing came in");
}

#[test]
fn head_and_options_say_what_get_would_and_what_is_allowed() {
    let node = Node::start();
    let mut http = node.http();
    http.post(EVENTS, "1");

    for path in ["/", "/dashboard.js", "/healthz", "/landline.js", "/v1/topics", EVENTS] {
        let get = http.get(path);
        let head = http.request("HEAD", path, &[], "");
        assert_eq!((head.status, get.status), (200, 200), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
        let options = http.request("OPTIONS", path, &[], "");
        assert!(options.status == 204 || options.status == 200, "{path}: {options:?}");
        let allow = options.header("allow").unwrap_or_default();
        assert!(allow.contains("GET"), "{path}: {options:?}");
    }
}

#[test]
fn the_client_for_browsers_is_served_as_a_module() {
    let node = Node::start();
    let mut http = node.http();

    let module = http.get("/landline.js");
    let origin = "Origin: http://localhost:3000";
    let from_elsewhere = http.request("GET", "/landline.js", &[origin], "");

    assert_eq!(module.status, 200);
    assert_eq!(module.header("content-type"), Some("text/javascript; charset=utf-8"));
    assert_eq!(module.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(module.header("cache-control"), Some("no-cache"));
    assert_eq!(module.body, include_str!("../../src/web/landline.js"));
    // A page of this machine may import it: modules are fetched as CORS says.
    let allowed = from_elsewhere.header("access-control-allow-origin");
    assert_eq!(allowed, Some("http://localhost:3000"));
}

#[test]
fn the_dashboard_is_served_under_a_policy_that_takes_nothing_from_elsewhere() {
    let node = Node::start();
    let mut http = node.http();

    let page = http.get("/");

    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    let policy = page.header("content-security-policy").unwrap_or_default();
    let directives: BTreeMap<_, _> =
        policy.split("; ").filter_map(|directive| directive.split_once(' ')).collect();
    for (name, sources) in [
        ("default-src", "'none'"),
        ("script-src", "'self'"),
        ("style-src", "'self'"),
        ("connect-src", "'self'"),
        ("img-src", "'self' data:"),
        ("base-uri", "'none'"),
        ("form-action", "'none'"),
        ("frame-ancestors", "'none'"),
    ] {
        assert_eq!(directives.get(name), Some(&sources), "{policy}");
    }
    // What it names is served, relative to where it is, and never an old one.
    for (path, content_type) in [
        ("dashboard.css", "text/css; charset=utf-8"),
        ("dashboard.js", "text/javascript; charset=utf-8"),
    ] {
        assert!(page.body.contains(&format!("\"{path}\"")), "{path}");
        let part = http.get(&format!("/{path}"));
        assert_eq!((part.status, part.header("content-type")), (200, Some(content_type)));
        assert_eq!(part.header("cache-control"), Some("no-cache"), "{path}");
        assert_eq!(part.header("x-content-type-options"), Some("nosniff"), "{path}");
    }
}

#[test]
fn what_is_wrong_with_a_request_is_a_problem_with_a_code() {
    let node = Node::with(&["--max-message", "64KiB"]);
    let mut http = node.http();

    assert_problem(&http.get("/nowhere"), 404, "not_found");
    assert_problem(&http.get("/v1/topics/never/heard/of/events"), 404, "not_found");
    assert_problem(&http.post(EVENTS, "nonsense"), 400, "bad_request");
    assert_problem(&http.post(EVENTS, ""), 400, "bad_request");
    assert_problem(&http.post(EVENTS, "1 2"), 400, "bad_request");
    assert_problem(&http.post(EVENTS, &"[".repeat(100)), 400, "bad_request");
    let key = format!("Idempotency-Key: {}", "k".repeat(200));
    assert_problem(&http.request("POST", EVENTS, &[&key], "1"), 400, "bad_request");

    let wrong_method = http.request("PATCH", EVENTS, &[], "");
    assert_eq!(wrong_method.status, 405, "{wrong_method:?}");
    let allow = wrong_method.header("allow").unwrap_or_default();
    assert!(allow.contains("GET") && allow.contains("POST"), "{wrong_method:?}");
    assert_eq!(http.post("/healthz", "1").status, 405);

    let mut large = node.http();
    large.send(&format!(
        "POST {EVENTS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 65537\r\n\r\n"
    ));
    assert_problem(&large.reply(Body::Expected), 413, "too_large");
    let mut chunked = node.http();
    let body = format!("10001\r\n{}\r\n0\r\n\r\n", "1".repeat(0x1_0001));
    let reply = chunked.request("POST", EVENTS, &["Transfer-Encoding: chunked"], &body);
    assert_problem(&reply, 413, "too_large");
    assert_eq!(node.get(&format!("{EVENTS}?from=start")).status, 404, "nothing came in");
}

#[test]
fn requests_of_other_sites_are_refused() {
    let node = Node::start();
    let origin = format!("Origin: http://{}", node.addr());

    let foreign = node.http().request("POST", EVENTS, &["Origin: https://evil.example"], "1");
    let rebound = node.http().request("GET", "/v1/topics", &["Host: rebound.example"], "");
    let own = node.http().request("POST", EVENTS, &[&origin], "1");

    assert_problem(&foreign, 403, "forbidden");
    assert!([400, 403, 421].contains(&rebound.status), "{rebound:?}");
    assert_eq!(own.status, 201, "{own:?}");
}

#[test]
fn health_and_readiness_are_told() {
    let node = Node::start();
    let mut http = node.http();

    for path in ["/healthz", "/readyz"] {
        let reply = http.get(path);
        assert_eq!(reply.status, 200, "{reply:?}");
        assert!(!reply.body.is_empty());
    }
}

#[test]
fn a_full_relay_answers_503_and_says_when_to_come_back() {
    let node = Node::with(&["--max-connections", "3"]);
    let mut held: Vec<Http> = (0..3).map(|_| node.http()).collect();
    for http in &mut held {
        assert_eq!(http.get("/healthz").status, 200);
    }

    let mut fourth = node.http();
    fourth.send(&request_text(node.addr(), "GET", "/healthz", &[], ""));
    let reply = fourth.reply(Body::Expected);

    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.header("retry-after").is_some(), "{reply:?}");
    drop(held);
    let mut served = wait_for("a place to be free", LIMIT, || {
        let mut http = node.http();
        http.try_send(&request_text(node.addr(), "GET", "/healthz", &[], ""));
        http.try_reply(Body::Expected).is_some_and(|reply| reply.status == 200).then_some(http)
    });
    // Another connection might not be let in yet.
    let metrics = Metrics::parse(&served.get("/metrics").body);
    assert!(1.0 <= metrics.sum(&["server_refused_total", "reason=\"limit\""]));
}

#[test]
fn metrics_follow_the_exposition_format_and_the_house_rules() {
    let node = Node::start();
    let mut peer = node.peer();
    peer.subscribe("lamp");
    peer.publish_many("lamp", 100, 10);
    let reply = node.get("/metrics");

    let content_type = reply.header("content-type").unwrap_or_default();
    assert!(content_type.starts_with("text/plain; version=0.0.4"), "{content_type}");
    assert!(reply.body.ends_with('\n') && !reply.body.contains('\r'));
    let problems = lint(&reply.body);
    assert!(problems.is_empty(), "{}\nin\n{}", problems.join("\n"), reply.body);
    let metrics = Metrics::parse(&reply.body);
    assert_eq!(metrics.sum(&["landline_topic_published_total"]), 100.0);
    assert_eq!(metrics.sum(&["landline_topic_subscriptions"]), 1.0);
    assert_eq!(metrics.sum(&["panicked"]), 0.0);
}

/// What a scraper or the house rules would object to.
fn lint(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped: BTreeSet<&str> = BTreeSet::new();
    let mut series: BTreeSet<&str> = BTreeSet::new();
    for line in text.lines() {
        let mut report = |rule: &str| problems.push(format!("{rule}: {line}"));
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            if !helped.insert(name) || help.is_empty() {
                report("one sentence of help per metric");
            }
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            let known = ["counter", "gauge", "histogram"].contains(&kind);
            if kinds.insert(name, kind).is_some() || !known {
                report("one known type per metric");
            }
            if (kind == "counter") != name.ends_with("_total") {
                report("counters end in _total, and nothing else does");
            }
        } else {
            let (labelled, value) = line.rsplit_once(' ').unwrap_or((line, ""));
            let name = labelled.split('{').next().unwrap_or_default();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|family| kinds.get(family) == Some(&"histogram"))
                .unwrap_or(name);
            if !kinds.contains_key(family) || !helped.contains(family) {
                report("help and type come before the first sample");
            }
            if !series.insert(labelled) {
                report("a series appears once");
            }
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if !name.starts_with("landline_") || !name.chars().all(allowed) {
                report("a name is landline_ and lower-case words");
            }
            if value.parse::<f64>().is_err() {
                report("a value is a number");
            }
        }
    }
    problems
}

#[test]
fn the_lint_of_metrics_finds_what_is_wrong() {
    let good =
        "# HELP landline_a_total Some.\n# TYPE landline_a_total counter\nlandline_a_total 1\n";
    assert_eq!(lint(good), Vec::<String>::new());
    for bad in [
        "landline_a_total 1\n",
        &good.replace("landline_a_total 1", "landline_a_total one"),
        &good.replace("_total", ""),
        &good.replace("landline_a", "landline_A"),
        &format!("{good}landline_a_total 2\n"),
    ] {
        assert_ne!(lint(bad), Vec::<String>::new(), "{bad}");
    }
}

#[test]
fn reading_over_http_sees_what_websockets_see() {
    let node = Node::start();
    let mut peer = node.peer();
    for number in 1..=3 {
        peer.publish("home/lamp", number);
    }

    let http = node.get(&format!("{EVENTS}?from=start")).json();
    let mut socket = peer.history("home/lamp", json!("start"), 100);

    for field in ["type", "id"] {
        socket.as_object_mut().unwrap().remove(field);
    }
    let mut http = http;
    http.as_object_mut().unwrap().remove("type");
    assert_eq!(http, socket);
    assert_eq!(position(&http, 3), position(&socket, 3));
}
