//! The shared state over HTTP: values, versions as entity tags, conditions, lists.

use serde_json::{Value, json};

use crate::support::{
    http::{Http, Reply},
    node::{Node, Scratch},
    peer::number,
};

const LAMP: &str = "/v1/state/home/lamp";

#[track_caller]
fn assert_problem(reply: &Reply, status: u16, code: &str, field: &str) -> Value {
    assert_eq!(reply.status, status, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{reply:?}");
    let problem = reply.json();
    assert_eq!((&problem["code"], &problem["field"]), (&json!(code), &json!(field)), "{problem}");
    problem
}

fn put(http: &mut Http, path: &str, headers: &[&str], value: &str) -> Reply {
    http.request("PUT", path, headers, value)
}

#[track_caller]
fn tag(reply: &Reply) -> String {
    reply.header("etag").unwrap_or_else(|| panic!("no ETag: {reply:?}")).to_owned()
}

#[test]
fn a_value_is_set_read_replaced_and_deleted() {
    let node = Node::start();
    let mut http = node.http();

    let new = put(&mut http, LAMP, &[], " { \"on\": 1.50 } ");
    let read = http.get(LAMP);
    let replaced = put(&mut http, LAMP, &[], "false");
    let deleted = http.request("DELETE", LAMP, &[], "");

    assert_eq!((new.status, replaced.status, deleted.status), (201, 200, 200), "{new:?}");
    let receipt = new.json();
    assert_eq!((number(&receipt, "version"), &receipt["durability"]), (1, &json!("memory")));
    assert_eq!(tag(&new), format!("\"{}:1\"", receipt["epoch"].as_str().unwrap()));
    assert_eq!((read.status, &*read.body), (200, "{ \"on\": 1.50 }"));
    assert_eq!(read.header("content-type"), Some("application/json"));
    assert_eq!(read.header("etag"), Some(&*tag(&new)));
    let modified = read.header("last-modified").unwrap_or_default();
    assert!(modified.ends_with(" GMT") && modified.contains(", "), "{read:?}");
    assert_eq!(number(&replaced.json(), "version"), 2);
    assert_eq!((number(&deleted.json(), "version"), deleted.header("etag")), (3, None));
    assert_problem(&http.get(LAMP), 404, "not_found", "key");
    assert_problem(&http.request("DELETE", LAMP, &[], ""), 404, "not_found", "key");
    assert_eq!(put(&mut http, LAMP, &[], "1").status, 201, "it is new again");
}

#[test]
fn what_has_not_changed_is_not_sent_again() {
    let node = Node::start();
    let mut http = node.http();
    let known = format!("If-None-Match: {}", tag(&put(&mut http, LAMP, &[], "1")));

    let same = http.request("GET", LAMP, &[&known], "");
    let head = http.request("HEAD", LAMP, &[], "");
    put(&mut http, LAMP, &[], "22");
    let changed = http.request("GET", LAMP, &[&known], "");

    assert_eq!((same.status, same.body.len()), (304, 0), "{same:?}");
    assert!(same.header("etag").is_some() && same.header("last-modified").is_some());
    assert_eq!((head.status, head.header("content-length")), (200, Some("1")));
    assert_eq!((changed.status, &*changed.body), (200, "22"));
}

#[test]
fn a_condition_that_does_not_hold_is_a_conflict_with_the_version_found() {
    let node = Node::start();
    let mut http = node.http();
    let absent = ["If-None-Match: *"];
    let first = tag(&put(&mut http, LAMP, &absent, "1"));
    let matches = format!("If-Match: {first}");

    let there = put(&mut http, LAMP, &absent, "2");
    let matched = put(&mut http, LAMP, &[&matches], "2");
    let stale = put(&mut http, LAMP, &[&matches], "3");
    let stale_delete = http.request("DELETE", LAMP, &["If-Match: \"1\""], "");
    let foreign = put(&mut http, LAMP, &["If-Match: \"0123456789abcdef:2\""], "3");
    let missing = put(&mut http, "/v1/state/none", &["If-Match: *"], "1");
    let plain = put(&mut http, LAMP, &["If-Match: \"2\""], "3");
    let any = put(&mut http, LAMP, &["If-Match: *"], "4");

    let found = |problem: Value| number(&problem, "version");
    assert_eq!(found(assert_problem(&there, 412, "conflict", "If-None-Match")), 1);
    assert_eq!(matched.status, 200, "{matched:?}");
    assert_eq!(found(assert_problem(&stale, 412, "conflict", "If-Match")), 2);
    assert_eq!(found(assert_problem(&stale_delete, 412, "conflict", "If-Match")), 2);
    assert_eq!(found(assert_problem(&foreign, 412, "conflict", "If-Match")), 2);
    assert_eq!(found(assert_problem(&missing, 412, "conflict", "If-Match")), 0);
    assert_eq!((plain.status, any.status), (200, 200), "{plain:?} {any:?}");
    assert_eq!(http.get(LAMP).body, "4");
    assert_eq!(http.request("DELETE", LAMP, &["If-Match: *"], "").status, 200);
}

#[test]
fn values_are_listed_in_the_order_of_their_keys_and_in_pages() {
    let node = Node::start();
    let mut http = node.http();
    for key in ["home/hall/lamp", "home/attic/lamp", "home/hall/door", "office"] {
        put(&mut http, &format!("/v1/state/{key}"), &[], &format!("\"{key}\""));
    }
    http.request("DELETE", "/v1/state/home/hall/door", &[], "");
    let keys = |body: &Value| -> Vec<String> {
        let values = body["values"].as_array().unwrap_or_else(|| panic!("{body}"));
        values.iter().map(|state| state["key"].as_str().unwrap().to_owned()).collect()
    };

    let all = http.get("/v1/state").json();
    let lamps = http.get("/v1/state?match=home/%2B/lamp").json();
    let first = http.get("/v1/state?limit=1").json();
    let second = http.get("/v1/state?limit=2&after=home/attic/lamp").json();
    let none = http.get("/v1/state?match=$presence/%23").json();

    assert_eq!(keys(&all), ["home/attic/lamp", "home/hall/lamp", "office"]);
    assert_eq!((number(&all, "version"), all.get("next")), (5, None), "{all}");
    assert_eq!(all["values"][2]["value"], "office");
    assert_eq!(keys(&lamps), ["home/attic/lamp", "home/hall/lamp"]);
    assert_eq!((keys(&first).len(), &first["next"]), (1, &json!("home/attic/lamp")));
    assert_eq!((keys(&second), second.get("next")), (keys(&all)[1..].to_vec(), None));
    assert_eq!(keys(&none).len(), 0);
    assert_ne!(none["epoch"], all["epoch"], "what the relay says is a state of its own");
    for (query, field) in [
        ("match=a%23", "match"),
        ("match=a/%23/b", "match"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
    ] {
        let reply = http.get(&format!("/v1/state?{query}"));
        assert_problem(&reply, 400, "bad_request", field);
    }
}

#[test]
fn what_is_wrong_with_a_change_is_a_problem_that_names_the_field() {
    let node = Node::with(&["--max-value", "1KiB"]);
    let mut http = node.http();

    for body in ["", "nonsense", "1 2", &"[".repeat(100)] {
        assert_problem(&put(&mut http, LAMP, &[], body), 400, "bad_request", "body");
    }
    for path in ["/v1/state/a//b", "/v1/state/", "/v1/state/a%2B", "/v1/state/a%00b"] {
        assert_problem(&put(&mut http, path, &[], "1"), 400, "bad_request", "key");
        assert_problem(&http.get(path), 400, "bad_request", "key");
    }
    for ttl in ["0", "x", "-1", "99999999999999999999"] {
        let path = format!("{LAMP}?ttl_ms={ttl}");
        assert_problem(&put(&mut http, &path, &[], "1"), 400, "bad_request", "ttl_ms");
    }
    let large = put(&mut http, LAMP, &[], &format!("\"{}\"", "x".repeat(1_023)));
    assert_problem(&large, 413, "too_large", "value");
    assert_problem(&put(&mut http, LAMP, &["If-Match: 1"], "1"), 400, "bad_request", "If-Match");
    let reserved = "/v1/state/$presence/hall/anna";
    assert_problem(&put(&mut http, reserved, &[], "1"), 403, "forbidden", "key");
    assert_problem(&http.request("DELETE", reserved, &[], ""), 403, "forbidden", "key");
    assert_problem(&http.get(reserved), 404, "not_found", "key");

    let post = http.request("POST", LAMP, &[], "1");
    let allow = post.header("allow").unwrap_or_default();
    assert_eq!((post.status, allow), (405, "GET, HEAD, PUT, DELETE, OPTIONS"), "{post:?}");
    assert_eq!(put(&mut http, "/v1/state", &[], "1").status, 405);
    let options = http.request("OPTIONS", LAMP, &[], "");
    assert_eq!((options.status, options.header("allow")), (204, Some(allow)), "{options:?}");
    assert_eq!(http.get("/v1/state").json()["values"], json!([]), "nothing came in");
}

#[test]
fn keys_in_paths_are_decoded() {
    let node = Node::start();
    let mut http = node.http();

    assert_eq!(put(&mut http, "/v1/state/home%2Flamp", &[], "1").status, 201);
    assert_eq!(put(&mut http, "/v1/state/%68ome/l%61mp", &[], "2").status, 200);
    assert_eq!(put(&mut http, "/v1/state/k%C3%BCche", &[], "3").status, 201);

    assert_eq!(http.get(LAMP).body, "2");
    assert_eq!(http.get("/v1/state?match=k%C3%BCche").json()["values"][0]["value"], 3);
}

#[test]
fn a_durable_value_is_answered_when_it_is_stored() {
    let dir = Scratch::new("data");
    let flags = ["--durable-state"];
    let node = Node::durable(&dir, &flags);
    let mut http = node.http();
    let stored = put(&mut http, LAMP, &[], "1");
    let replaced = put(&mut http, LAMP, &["If-Match: \"1\""], "2");
    assert_eq!((stored.status, replaced.status), (201, 200), "{stored:?} {replaced:?}");
    assert_eq!(replaced.json()["durability"], "synced");
    assert_eq!(http.get(LAMP).body, "2", "who was answered sees it");
    node.kill();

    let node = Node::durable(&dir, &flags);
    let read = node.get(LAMP);
    assert_eq!((read.status, &*read.body), (200, "2"), "{read:?}");
    assert_eq!(tag(&read), tag(&replaced));
    let deleted = node.http().request("DELETE", LAMP, &[], "");
    assert_eq!((deleted.status, number(&deleted.json(), "version")), (200, 3), "{deleted:?}");
}
