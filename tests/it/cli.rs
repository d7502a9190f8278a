//! The commands do what their help says: output, exit codes, closed pipes.

use std::{
    io::{BufRead, BufReader, Write},
    sync::Arc,
};

use rustix::process::{Pid, Signal, kill_process};

use landline::{
    name::Name,
    store::{Batch, Database, NewTopic, Store, StoreSettings, disk::Directory},
    wire::position::Epoch,
};

use crate::{
    client_support::{Relay, fails, run, spawn, succeeds},
    loss::wait_for_stall,
    support::node::Node,
};

#[test]
fn what_is_published_is_printed_in_each_format() {
    let relay = Relay::start();
    let url = relay.url();
    let receipt = succeeds(&url, &["pub", "a/b", "{\"x\": 1}"], "");
    assert!(receipt.starts_with("a/b 1 "), "{receipt}");
    succeeds(&url, &["send", "a/b", "--text", "--name", "greeting"], "hello\n");
    assert_eq!(succeeds(&url, &["publish", "a/b", "-q"], "[1,\n2]"), "");

    let text = succeeds(&url, &["history", "a/b"], "");
    assert_eq!(text, "a/b 1 {\"x\": 1}\na/b 2 \"hello\"\na/b 3 [1,2]\n");
    let json = succeeds(&url, &["history", "a/b", "-o", "json", "--limit", "2"], "");
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!((&first["seq"], &first["name"]), (&2.into(), &"greeting".into()));
    assert_eq!(first["epoch"].as_str().unwrap(), receipt.split(' ').nth(2).unwrap().trim());
    let raw = succeeds(&url, &["-o", "raw", "sub", "a/+", "a/b", "--no-follow", "-n", "2"], "");
    assert_eq!(raw, "{\"x\": 1}\n\"hello\"\n");
}

#[test]
fn each_line_is_an_event_in_order() {
    let relay = Relay::start();
    let url = relay.url();
    let lines: String = (0..3_000).map(|n| format!("{n}\n")).collect();
    let receipts = succeeds(&url, &["pub", "t", "--lines"], &lines);
    assert_eq!(receipts.lines().count(), 3_000);
    succeeds(&url, &["pub", "t", "--lines", "-q"], "not json\n");
    let printed = succeeds(&url, &["sub", "t", "--no-follow", "-o", "raw"], "");
    assert_eq!(printed, lines + "\"not json\"\n");
    let long = succeeds(&url, &["history", "t", "--limit", "2500", "-o", "raw"], "");
    assert_eq!(long.lines().count(), 2_500);
}

#[test]
fn a_subscription_prints_each_line_when_it_comes_and_ends_at_its_count() {
    let relay = Relay::start();
    let url = relay.url();
    succeeds(&url, &["pub", "t", "0"], "");
    let mut child = spawn(&url, &["sub", "t", "--from", "start", "-n", "3"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for number in 0..3 {
        assert_eq!(lines.next().unwrap().unwrap(), format!("t {} {number}", number + 1));
        succeeds(&url, &["pub", "t", &(number + 1).to_string()], "");
    }
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_closed_pipe_is_success_also_while_nothing_is_printed() {
    let relay = Relay::start();
    let url = relay.url();
    succeeds(&url, &["pub", "t", "1"], "");
    let mut child = spawn(&url, &["sub", "t", "--from", "start"]);
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "t 1 1\n");
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn every_exit_code_means_what_the_help_says() {
    let relay = Relay::start();
    let url = relay.url();
    succeeds(&url, &["pub", "t", "1"], "");
    assert_eq!(succeeds(&url, &["health"], ""), "ready\n");

    fails(&url, &["nonsense"], 2);
    fails(&url, &["pub", "a//b", "1"], 2);
    assert!(fails(&url, &["pub", "t", "hello"], 2).contains("--text"));
    fails(&url, &["sub", "t", "--from", "yesterday"], 2);
    fails(&url, &["serve", "--config", "/nonexistent/landline.toml"], 3);
    fails("http://127.0.0.1:1", &["health"], 4);
    fails("http://127.0.0.1:1", &["pub", "t", "1"], 4);
    fails(&url, &["pub", "$sys/x", "1"], 5);
    assert!(fails(&url, &["history", "nothing"], 6).contains("not_found"));
    fails(&url, &["sub", "t", "-n", "1", "--idle", "100ms"], 7);
    let stale = "0000000000000001:7";
    assert!(fails(&url, &["history", "t", "--from", stale], 8).contains("epoch_changed"));
    assert!(fails(&url, &["sub", "t", "--no-follow", "--from", stale], 8).contains(stale));
    let large = "x".repeat(300_000);
    assert_eq!(run(&url, &["pub", "t", "--text"], &large).0, Some(10));
    let (code, out, _) = run(&url, &["sub", "t", "--for", "50ms"], "");
    assert_eq!((code, out.as_str()), (Some(0), ""));
}

#[test]
fn topics_are_listed() {
    let relay = Relay::start();
    let url = relay.url();
    succeeds(&url, &["pub", "b", "1"], "");
    succeeds(&url, &["pub", "a/b", "1"], "");
    assert_eq!(succeeds(&url, &["topics", "-o", "raw"], ""), "a/b\nb\n");
    let table = succeeds(&url, &["topics"], "");
    let words: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((words[0], words[1], words[2], words[4]), ("a/b", "1", "1", "0"));
}

#[test]
fn a_restart_of_the_relay_is_told_on_standard_error_and_printing_goes_on() {
    let relay = Relay::start();
    let (url, address) = (relay.url(), relay.address);
    succeeds(&url, &["pub", "t", "1"], "");
    let mut child = spawn(&url, &["sub", "t", "--from", "start", "-n", "2"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "t 1 1");
    drop(relay);
    let _relay = Relay::start_at(address);
    succeeds(&url, &["pub", "t", "2"], "");
    assert_eq!(lines.next().unwrap().unwrap(), "t 1 2");
    let output = child.wait_with_output().unwrap();
    let messages = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success());
    assert!(messages.contains("no connection") && messages.contains("epoch_changed"), "{messages}");
}

#[test]
fn lines_are_confirmed_while_the_input_is_still_open() {
    let relay = Relay::start();
    let mut child = spawn(&relay.url(), &["pub", "t", "--lines"]);
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for number in 1..4 {
        writeln!(stdin, "{number}").unwrap();
        let receipt = lines.next().unwrap().unwrap();
        assert!(receipt.starts_with(&format!("t {number} ")), "{receipt}");
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_subscriber_that_was_stopped_reports_one_loss_with_its_range_and_goes_on() {
    let node = Node::with(&["--max-events", "1000", "--write-stall", "60s"]);
    let url = format!("http://{}", node.addr());
    let mut publisher = node.peer();
    publisher.publish("t", 1);
    let mut child = spawn(&url, &["sub", "t", "--from", "start", "-o", "json"]);
    let pid = Pid::from_child(&child);
    let seq = |line: std::io::Result<String>| {
        let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        event["seq"].as_u64().unwrap()
    };
    let mut seqs = BufReader::new(child.stdout.take().unwrap()).lines().map(seq);
    assert_eq!(seqs.next(), Some(1));

    kill_process(pid, Signal::STOP).unwrap();
    // The log holds more than the kernel buffers: what is lost is lost after the stall.
    publisher.publish_many("t", 1_000, 16 * 1024);
    wait_for_stall(&node);
    publisher.publish_many("t", 3_000, 8 * 1024);
    kill_process(pid, Signal::CONT).unwrap();
    let mut all = vec![1];
    while all.last() != Some(&4_001) {
        all.push(seqs.next().unwrap());
    }
    kill_process(pid, Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();

    let holes: Vec<_> = all.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    let [hole] = holes[..] else { panic!("{holes:?}") };
    let (from, to) = (hole[0] + 1, hole[1] - 1);
    let messages = String::from_utf8(output.stderr).unwrap();
    assert_eq!(messages, format!("landline: t: events {from} to {to} are lost (slow)\n"));
}

#[test]
fn a_store_is_looked_at_checked_and_compacted_without_a_relay() {
    let dir = std::env::temp_dir().join(format!("landline-cli-store-{}", std::process::id()));
    let path = dir.to_str().unwrap();
    let missing = fails("", &["store", "check", "--data-dir", path], 1);
    assert!(missing.contains(path) && missing.contains("no store in it"), "{missing}");
    assert!(!dir.exists());
    fails("", &["store"], 2);

    let settings = StoreSettings::default();
    let (mut store, _) = Database::open(Arc::new(Directory::new(&dir)), settings).unwrap();
    let name = Name::parse("a/b").unwrap();
    let topics = vec![NewTopic { id: 1, name, epoch: Epoch::from_number(171), tail: 0 }];
    store.commit(&Batch { topics, ..Batch::default() }).unwrap();
    let busy = fails("", &["store", "info", "--data-dir", path], 1);
    assert!(busy.contains("in use by another relay"), "{busy}");
    drop(store);

    let info = succeeds("", &["store", "info", "--data-dir", path], "");
    assert!(info.contains("00000000000000ab") && info.contains("format"), "{info}");
    let json = succeeds("", &["store", "info", "--data-dir", path, "-o", "json"], "");
    let row: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&row["topic"], &row["tail"]), (&"a/b".into(), &0.into()));
    let report = succeeds("", &["store", "check", "--data-dir", path], "");
    assert_eq!(report, "1 topics, 0 chunks, 0 events, 0 bytes: 0 problems\n");
    let compacted = succeeds("", &["store", "compact", "--data-dir", path], "");
    assert!(compacted.contains("bytes after"), "{compacted}");

    let file = dir.join("landline.redb");
    std::fs::write(&file, "not a database").unwrap();
    let damaged = fails("", &["store", "check", "--data-dir", path], 1);
    assert!(damaged.contains("cannot open the store"), "{damaged}");
    assert_eq!(std::fs::read(&file).unwrap(), b"not a database", "looking has changed it");
    std::fs::remove_dir_all(&dir).unwrap();
}
