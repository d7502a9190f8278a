//! `landline store export` and `import`: what comes out of a running or stopped relay goes into an
//! empty directory, and what is wrong is named.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    node::{Node, Scratch},
    peer::{number, position, seqs},
};

/// Runs `landline store` with `input`: exit code, output, errors.
fn store(arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_landline"))
        .arg("store")
        .args(arguments)
        .env_remove("LANDLINE_DATA_DIR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end before it has read everything.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A relay with some history, a consumer and a topic without events, and its directory.
fn filled() -> (Node, Scratch) {
    let dir = Scratch::new("data");
    let node = Node::durable(&dir, &["--max-events", "300", "--max-tail", "4KiB"]);
    let mut peer = node.peer();
    for n in 1..=2_500 {
        let topic = if n % 5 == 0 { "door/\"back\"" } else { "lamp" };
        let publish = json!({"type": "publish", "topic": topic, "data": {"n": n, "u": "\u{e9}"}});
        // The last two are waited for: then all before them are stored.
        if n < 2_499 { peer.send(&publish) } else { drop(peer.ask(publish, "published")) }
    }
    peer.subscribe("quiet");
    let consumer = json!({"type": "subscribe", "topic": "lamp", "from": {"last": 9},
        "consumer": "billing"});
    let begun = number(&peer.ask(consumer, "subscribed"), "seq");
    peer.send(&json!({"type": "ack", "topic": "lamp", "seq": begun}));
    peer.fence();
    (node, dir)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_is_exported_is_the_same_from_a_running_and_a_stopped_relay_and_can_be_restored() {
    let (node, dir) = filled();
    let url = format!("http://{}", node.addr());
    let (code, running, said) = store(&["export", "--url", &url], "");
    assert_eq!(code, Some(0), "{said}");
    let old = node.peer().history("lamp", json!("start"), 1_000);
    let path = dir.path().to_str().unwrap();
    let (code, _, said) = store(&["export", "--data-dir", path], "");
    assert!(code == Some(1) && said.contains("--url") && said.contains("in use"), "{said}");
    node.stop();
    let (code, stopped, said) = store(&["export", "--data-dir", path], "");
    assert_eq!(code, Some(0), "{said}");
    let (mut one, mut other) = (lines(&running), lines(&stopped));
    assert_eq!(one.last(), other.last());
    let by_text = |line: &Value| line.to_string();
    one.sort_by_key(by_text);
    other.sort_by_key(by_text);
    assert_eq!(one, other);

    for export in [running, stopped] {
        let restored = Scratch::new("restored");
        let path = restored.path().to_str().unwrap();
        let (code, out, said) = store(&["import", "--data-dir", path], &export);
        assert_eq!((code, said.as_str()), (Some(0), ""));
        assert_eq!(out, "3 topics, 600 events, 1 consumers, 0 keys\n");
        let node = Node::durable(&restored, &["--max-events", "300"]);
        let mut peer = node.peer();
        let new = peer.history("lamp", json!("start"), 1_000);
        assert_eq!(new["events"], old["events"]);
        assert_eq!((&new["first"], &new["tail"]), (&old["first"], &old["tail"]));
        assert_ne!(new["epoch"], old["epoch"], "it is another life");
        let head = peer.subscribe_from("lamp", position(&old, 1_900));
        assert_eq!(head["recovery"]["reason"], "epoch_changed");
        let mut worker = node.peer();
        let head = worker.ask(
            json!({"type": "subscribe", "topic": "lamp", "consumer": "billing"}),
            "subscribed",
        );
        assert_eq!((number(&head, "seq"), &head["recovery"]["mode"]), (1_991, &json!("complete")));
        assert_eq!(seqs(&worker.events(9)), (1_992..=2_000).collect::<Vec<_>>());
        assert_eq!(peer.publish("lamp", 1), 2_001);
        let (code, _, said) = store(&["export", "--url", "http://127.0.0.1:9"], "");
        assert_eq!(code, Some(4), "{said}");
        node.stop();
        let (code, _, said) = store(&["import", "--data-dir", path], &export);
        assert!(code == Some(1) && said.contains("has 3 topics and 0 keys already"), "{said}");
    }
}

#[test]
fn the_state_is_restored_with_its_versions_in_a_new_epoch() {
    let (dir, restored) = (Scratch::new("data"), Scratch::new("restored"));
    let node = |dir: &Scratch| Node::durable(dir, &["--durable-state"]);
    let all = |node: &Node| node.peer().ask(json!({"type": "get", "key": "#"}), "values");
    let before = node(&dir);
    let mut peer = before.peer();
    for (key, value) in [("gone", json!(1)), ("lamp", json!({"on": [1.50, "\u{e9}\""]}))] {
        peer.ask(json!({"type": "set", "key": key, "value": value}), "stored");
    }
    peer.ask(json!({"type": "delete", "key": "gone"}), "deleted");
    let brief = json!({"type": "set", "key": "a/brief", "value": null, "ttl_ms": 3_600_000});
    peer.ask(brief, "stored");
    drop(peer);
    let old = all(&before);
    let url = format!("http://{}", before.addr());
    let (_, running, _) = store(&["export", "--url", &url], "");
    before.stop();

    let path = dir.path().to_str().unwrap();
    let (code, export, said) = store(&["export", "--data-dir", path], "");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(running, export, "of a running and of a stopped relay");
    let keys: Vec<Value> =
        lines(&export).into_iter().filter(|line| line["type"] == "state").collect();
    let versions: Vec<_> =
        keys.iter().map(|line| (&line["key"], number(line, "version"))).collect();
    assert_eq!(versions, [(&json!("a/brief"), 4), (&json!("lamp"), 2)]);
    assert_eq!(number(&keys[0], "expires") - number(&keys[0], "time"), 3_600_000);
    assert_eq!(keys[1]["expires"], Value::Null);
    let path = restored.path().to_str().unwrap();
    let (code, out, said) = store(&["import", "--data-dir", path], &export);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert_eq!(out, "0 topics, 0 events, 0 consumers, 2 keys\n");
    let (_, again, _) = store(&["export", "--data-dir", path], "");
    assert_eq!(again, export, "to the last byte");
    let (_, info, _) = store(&["info", "--data-dir", path], "");
    let told = info.lines().find(|line| line.starts_with("keys of the state")).unwrap();
    assert!(told.ends_with(" 2"), "{told}");

    let after = node(&restored);
    let new = all(&after);
    assert_eq!(new["values"], old["values"]);
    assert_ne!(new["epoch"], old["epoch"], "it is another life");
    let next = after.peer().ask(json!({"type": "set", "key": "gone", "value": 2}), "stored");
    assert_eq!(number(&next, "version"), 5);
    after.stop();
    let (code, _, said) = store(&["import", "--data-dir", path], &export);
    assert!(code == Some(1) && said.contains("has 0 topics and 3 keys already"), "{said}");
}

#[test]
fn an_import_names_the_line_that_is_wrong() {
    let head = "{\"export\":1}\n{\"topic\":\"a\",\"first\":1,\"tail\":2}\n";
    let event = |seq| format!("{{\"type\":\"event\",\"topic\":\"a\",\"seq\":{seq},\"time\":5}}\n");
    let end = "{\"end\":true,\"topics\":1,\"events\":2,\"consumers\":0}\n";
    let key = |key, version| {
        let rest = format!("\"version\":{version},\"key\":\"{key}\",\"value\":1,\"time\":5");
        format!("{{\"type\":\"state\",{rest}}}\n")
    };
    let begin = "{\"export\":1}\n";
    let end_keys = "{\"end\":true,\"topics\":0,\"events\":0,\"consumers\":0,\"keys\":2}\n";
    for (text, complaint) in [
        (format!("{begin}{}{}", key("a", 1), key("a", 2)), "line 3: key a comes twice"),
        (format!("{begin}{}{}", key("a", 1), key("b", 1)), "line 3: version 1 comes twice"),
        (format!("{begin}{}", key("a", 0)), "line 2: version is 0"),
        (format!("{begin}{}", key("$a", 1)), "line 2: key $a begins with $"),
        (format!("{begin}{}", key("a//b", 1)), "line 2: key "),
        (format!("{begin}{}{end_keys}", key("a", 1)), "line 3: 2 keys were exported, but 1 came"),
        ("{\"topic\":\"a\"}\n".to_owned(), "line 1: it does not begin as an export"),
        ("{\"export\":7}\n".to_owned(), "line 1: the format is 7"),
        (format!("{head}nonsense\n"), "line 3: "),
        (format!("{head}{}{}", event(1), event(3)), "line 4: event 3 of a comes after event 1"),
        (format!("{head}{}{end}", event(1)), "line 4: 1 topics and 2 events were exported"),
        (format!("{head}{}{}", event(1), event(2)), "has no last line"),
        (format!("{head}{{\"missing\":\"a\",\"from\":1,\"to\":1}}\n"), "line 3: events of a are"),
        (format!("{head}{}{}{end}{}", event(1), event(2), event(3)), "line 6: there is something"),
        (format!("{head}{{\"topic\":\"a\",\"first\":1}}\n"), "line 3: topic a comes twice"),
        ("{\"export\":1}\n{\"topic\":\"a//b\",\"first\":1}\n".to_owned(), "line 2: topic"),
        (
            format!("{head}{{\"consumer\":\"c\",\"topic\":\"b\",\"seq\":1}}\n"),
            "topic b has no line",
        ),
    ] {
        let dir = Scratch::new("import");
        let arguments = ["import", "--data-dir", dir.path().to_str().unwrap()];
        let (code, _, said) = store(&arguments, &text);
        assert!(code == Some(1) && said.contains(complaint), "{text}: {said}");
    }
    let (code, _, said) = store(&["export"], "");
    assert!(code == Some(2) && said.contains("--url"), "{said}");
}
