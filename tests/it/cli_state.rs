//! `landline state` and `landline presence`: output, exit codes, values as they are written.

use std::io::{BufRead, BufReader, Write};

use landline::base::lane::{self, Lane, WhenFull};
use serde_json::Value;

use crate::{
    client_support::{LIMIT, Peer, Relay, Scripted, fails, run, spawn, succeeds},
    support::wait::wait_until,
};

#[test]
fn a_value_is_set_and_printed_in_each_format() {
    let relay = Relay::start();
    let url = relay.url();
    let stored = succeeds(&url, &["state", "set", "home/lamp", "{\"on\": true}"], "");
    assert!(stored.starts_with("home/lamp 1 "), "{stored}");
    let raw = succeeds(&url, &["state", "set", "home/door", "-5", "-o", "raw"], "");
    assert_eq!(raw.trim(), format!("{}:2", stored.split(' ').nth(2).unwrap().trim()));
    assert_eq!(succeeds(&url, &["state", "set", "home/note", "-", "-q"], "[1,\n2]\n"), "");
    succeeds(&url, &["state", "set", "home/text", "--text", "on", "-q"], "");

    let one = succeeds(&url, &["state", "get", "home/lamp"], "");
    let all = succeeds(&url, &["state", "get", "home/#"], "");
    let raw = succeeds(&url, &["state", "get", "home/+", "-o", "raw"], "");
    let json = succeeds(&url, &["state", "get", "home/lamp", "-o", "json"], "");
    let json: Value = serde_json::from_str(&json).unwrap();

    assert_eq!(one, "home/lamp 1 {\"on\": true}\n");
    assert_eq!(
        all,
        "home/door 2 -5\nhome/lamp 1 {\"on\": true}\nhome/note 3 [1,2]\nhome/text 4 \"on\"\n"
    );
    assert_eq!(raw, "-5\n{\"on\": true}\n[1,2]\n\"on\"\n");
    assert_eq!((&json["key"], &json["version"]), (&"home/lamp".into(), &1.into()));
    assert_eq!(json["value"]["on"], true);
    assert!(succeeds(&url, &["state", "del", "home/lamp"], "").starts_with("home/lamp 5 "));
    assert_eq!(succeeds(&url, &["state", "get", "nothing/#"], ""), "");
}

#[test]
fn what_is_wrong_has_its_exit_code_and_says_what_to_do() {
    let relay = Relay::start();
    let url = relay.url();

    let bare = fails(&url, &["state", "set", "lamp", "on"], 2);
    assert!(bare.contains("'\"on\"'") && bare.contains("--text"), "{bare}");
    fails(&url, &["state", "set", "a//b", "1"], 2);
    fails(&url, &["state", "set", "lamp", "1", "--ttl", "10"], 2);
    fails(&url, &["state", "set", "lamp", "1", "--ttl", "0s"], 2);
    fails(&url, &["state"], 2);
    fails("http://127.0.0.1:1", &["state", "get", "lamp"], 4);
    fails(&url, &["state", "set", "$presence/hall/anna", "1"], 5);
    assert!(fails(&url, &["state", "get", "lamp"], 6).contains("lamp has no value"));
    fails(&url, &["state", "del", "lamp"], 6);
    succeeds(&url, &["state", "set", "lamp", "1", "--if-version", "0"], "");
    let conflict = fails(&url, &["state", "set", "lamp", "2", "--if-version", "0"], 11);
    assert!(conflict.contains("lamp has version 1, not 0"), "{conflict}");
    fails(&url, &["state", "del", "lamp", "--if-version", "7"], 11);
    succeeds(&url, &["state", "del", "lamp", "--if-version", "1"], "");
    fails(&url, &["presence", "a/+"], 2);
}

#[test]
fn a_value_with_a_time_to_live_goes_by_itself() {
    let relay = Relay::start();
    let url = relay.url();
    succeeds(&url, &["state", "set", "lamp", "1", "--ttl", "30ms"], "");
    wait_until("the key to go", LIMIT, || run(&url, &["state", "get", "lamp"], "").0 == Some(6));
}

#[test]
fn nobody_is_present_where_nobody_came() {
    let relay = Relay::start();
    let out = succeeds(&relay.url(), &["presence", "hall"], "");
    assert_eq!(out, "USER  CONNECTIONS  SINCE  INFO\n");
}

/// Tells a script that a line was printed.
const PRINTED: Lane = Lane { name: "printed", capacity: 4, when_full: WhenFull::Wait };

const EPOCH: &str = "0123456789abcdef";

fn watching(peer: &mut Peer, pattern: &str) {
    let asked = peer.next().expect("a request");
    assert_eq!((&asked["type"], &asked["pattern"]), (&"watch".into(), &pattern.into()));
    peer.say(&format!(
        r#"{{"type":"watching","id":{},"pattern":"{pattern}","epoch":"{EPOCH}","version":2,
            "reset":true}}"#,
        asked["id"]
    ));
}

#[test]
fn a_watch_prints_what_is_there_and_ends_if_it_is_told_to() {
    let script = Scripted::start(|listener| {
        let mut peer = Peer::welcome(listener, 0);
        watching(&mut peer, "home/#");
        peer.say(r#"{"type":"state","version":1,"key":"home/a","value":[1, 2],"time":5}"#);
        peer.say(r#"{"type":"state","version":2,"key":"home/b","deleted":true,"time":6}"#);
        peer.say(r#"{"type":"synced","pattern":"home/#","version":2}"#);
        while peer.next().is_some() {}
    });
    let out = succeeds(&script.url(), &["state", "watch", "home/#", "--once"], "");
    assert_eq!(out, "home/a 1 [1, 2]\nhome/b 2 deleted\n");
    script.finish();
}

#[test]
fn presence_prints_who_comes_and_goes_until_nobody_reads_it() {
    let (read, printed) = lane::open(PRINTED);
    let script = Scripted::start(move |listener| {
        let mut peer = Peer::welcome(listener, 0);
        watching(&mut peer, "$presence/hall/+");
        let wait = || printed.recv_timeout(LIMIT).expect("a line was printed");
        let state = |version: u64, user: &str, rest: &str| {
            format!(
                r#"{{"type":"state","version":{version},"key":"$presence/hall/{user}",{rest},
                    "time":5}}"#
            )
        };
        let here = r#""value":{"connections":1,"since":5,"info":{"x":1}}"#;
        peer.say(&state(1, "anna", here));
        peer.say(r#"{"type":"synced","pattern":"$presence/hall/+","version":1}"#);
        // Else it would be right to print only how it ends.
        wait();
        peer.say(&state(2, "ben", here));
        wait();
        peer.say(&state(3, "anna", r#""deleted":true"#));
        while peer.next().is_some() {}
    });
    let mut child = spawn(&script.url(), &["presence", "hall", "--follow"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), "anna present 1 {\"x\":1}");
    read.send(()).unwrap();
    assert_eq!(next(), "ben joined 1 {\"x\":1}");
    read.send(()).unwrap();
    assert_eq!(next(), "anna left");
    drop(lines);
    drop(child.stdin.take().map(|mut stdin| stdin.flush()));
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    script.finish();
}
