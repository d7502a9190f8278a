//! Who publishes, changes and watches the state, is present, or misbehaves.

use std::{collections::BTreeMap, io::Write as _};

use serde_json::{Value, json};

use crate::{
    support::{
        frame,
        mirror::Mirror,
        peer::{Peer, number, seq},
        wait::{Deadline, LIMIT, pause},
    },
    world::{LOOK, Me, Next, Phase, World, is_stored},
};

/// A reply that means that the disk, or a relay that stops, could not take it now.
fn may_come_again(reply: &Value) -> bool {
    matches!(reply["code"].as_str(), Some("busy" | "unavailable"))
}

/// Publishes one event after the other, each until it is confirmed, under a key of its own.
pub fn publish(world: &World, me: &mut Me, publisher: u64, topics: &[String]) {
    let mut peer = None;
    let mut owns = vec![0_u64; topics.len()];
    // By topic, the last that was confirmed.
    let mut last: BTreeMap<&str, (String, u64)> = BTreeMap::new();
    while world.runs() {
        let which = me.dice.below(topics.len() as u64) as usize;
        let topic = topics[which].as_str();
        owns[which] += 1;
        let size = if me.one_in(50) { 8_000 } else { me.dice.below(100) };
        let data = json!({"topic": topic, "publisher": publisher, "own": owns[which],
            "padding": "x".repeat(size as usize)});
        let key = format!("{publisher}.{}", owns[which]);
        let request = json!({"type": "publish", "id": 1, "topic": topic, "key": key, "data": data});
        let Some(reply) = publish_one(world, me, &mut peer, &request) else { return };
        let epoch = reply["epoch"].as_str().expect("an epoch").to_owned();
        let due = if is_stored(topic) { "synced" } else { "memory" };
        assert_eq!(reply["durability"], due, "{reply}");
        if let Some((before, seq_before)) = last.get(topic) {
            let other = *before != epoch && !is_stored(topic);
            assert!(other || *seq_before < seq(&reply), "after {seq_before}: {reply}");
            assert!(other || *before == epoch, "{topic} was {before}: {reply}");
        }
        world.note((topic, &epoch, seq(&reply)), (publisher, owns[which]));
        last.insert(topic, (epoch, seq(&reply)));
        world.count("events published", 1);
        if reply["duplicate"] == true {
            world.count("events published: duplicates", 1);
        }
        if me.one_in(60)
            && let Some(peer) = peer.take()
        {
            me.part(peer);
        }
        pause(me.time(100, 900));
    }
}

/// Sends a publish until it is confirmed; `None` when all is over.
fn publish_one(
    world: &World,
    me: &mut Me,
    peer: &mut Option<Peer>,
    request: &Value,
) -> Option<Value> {
    loop {
        let mut connected = match peer.take() {
            Some(connected) => connected,
            None => me.connect(world)?,
        };
        // Its answer is lost; it comes again under the same key.
        if me.one_in(40) {
            connected.try_send(request);
            world.count("answers to publishers not waited for", 1);
            me.part(connected);
            continue;
        }
        let Some(reply) = me.ask(world, &mut connected, request) else { continue };
        *peer = Some(connected);
        if reply["type"] == "published" {
            return Some(reply);
        }
        assert!(may_come_again(&reply), "{request} was answered {reply}");
        world.count("publishes refused for now", 1);
        pause(me.time(100, 500));
    }
}

/// Counts a key up, each time on the condition that it is as it was last known; after a lost
/// connection it looks first.
pub fn count_up(world: &World, me: &mut Me) {
    let key = format!("soak/{}", me.name);
    let (mut value, mut version) = (0, 0);
    'connection: while let Some(mut peer) = me.connect(world) {
        loop {
            let get = json!({"type": "get", "id": 1, "key": key});
            let Some(found) = me.ask(world, &mut peer, &get) else { continue 'connection };
            let state = &found["values"][0];
            let now = state["value"].as_u64().unwrap_or(0);
            let now_version = state["version"].as_u64().unwrap_or(0);
            assert!(now == value || now == value + 1, "{key} was {value} at {version}: {found}");
            assert!(version <= now_version, "{key} was {value} at {version}: {found}");
            (value, version) = (now, now_version);
            if !world.runs() {
                return;
            }
            let set = json!({"type": "set", "id": 2, "key": key, "value": value + 1,
                "if_version": version});
            let Some(reply) = me.ask(world, &mut peer, &set) else { continue 'connection };
            if reply["type"] == "stored" {
                assert!(version < number(&reply, "version"), "{version} was before: {reply}");
                (value, version) = (value + 1, number(&reply, "version"));
                world.count("state: changes", 1);
            } else {
                // What was sent before the connection was lost may have come to pass since.
                let ok = may_come_again(&reply) || reply["code"] == "conflict";
                assert!(ok, "{set} was answered {reply}");
            }
            pause(me.time(200, 2_000));
            if me.one_in(60) {
                me.part(peer);
                continue 'connection;
            }
        }
    }
}

/// Keeps a copy of the state, or of who is present, and in the end has what there is.
pub fn watch(world: &World, me: &mut Me, pattern: &str) {
    let mut mirror = Mirror::new();
    let mut settled: Option<Deadline> = None;
    while let Some(mut peer) = me.connect(world) {
        mirror.was_cut();
        let request = mirror.request(pattern);
        me.say(format!("sent {request}"));
        if !peer.try_send(&request) {
            continue;
        }
        let leaves = Deadline::after(me.time(2_000, 40_000));
        loop {
            if let Phase::Settle(targets) = world.phase() {
                let is_own = pattern.starts_with('$');
                let due = if is_own { &targets.presence } else { &targets.state };
                if mirror.is_synced(pattern) && mirror.held == *due {
                    return;
                }
                let deadline = settled.get_or_insert_with(|| Deadline::after(LIMIT * 3));
                assert!(!deadline.is_over(), "has {:?} instead of {due:?}", mirror.held);
            }
            if world.is_over() || world.runs() && leaves.is_over() {
                me.part(peer);
                break;
            }
            let message = match me.next(world, &mut peer) {
                Next::Message(message) => message,
                Next::Quiet => continue,
                Next::End => break,
            };
            match message["type"].as_str() {
                Some("watching") => {
                    let how = if message["reset"] == true { "anew" } else { "from a version" };
                    world.count(&format!("watches: {how}"), 1);
                    mirror.take(&message);
                }
                Some("state" | "synced") => {
                    world.count("state: messages", 1);
                    mirror.take(&message);
                }
                Some("error") => assert!(may_come_again(&message), "{message}"),
                _ => {}
            }
        }
    }
}

/// A user who comes to a topic, and goes, and in the end is there.
pub fn be_present(world: &World, me: &mut Me, topic: &str) {
    let key = format!("$presence/{topic}/{}", me.name);
    while let Some(mut peer) = me.connect(world) {
        let hello = json!({"type": "hello", "id": 1, "user": me.name});
        let join = json!({"type": "join", "id": 2, "topic": topic});
        let Some(welcome) = me.ask(world, &mut peer, &hello) else { continue };
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        let Some(joined) = me.ask(world, &mut peer, &join) else { continue };
        if may_come_again(&joined) {
            continue;
        }
        assert_eq!(joined["type"], "joined", "{joined}");
        let get = json!({"type": "get", "id": 3, "key": key});
        let Some(found) = me.ask(world, &mut peer, &get) else { continue };
        assert_eq!(found["values"][0]["key"], *key, "{found}");
        world.count("presence: joined", 1);
        let stays = !world.runs() && me.is_direct;
        if stays {
            world.present.lock().push(key.clone());
        }
        let leaves = Deadline::after(me.time(500, 20_000));
        while stays || !leaves.is_over() && world.runs() {
            if world.is_over() {
                return;
            }
            if matches!(me.next(world, &mut peer), Next::End) {
                assert!(!stays, "it was to stay present");
                break;
            }
        }
        if me.one_in(2) {
            peer.try_send(&json!({"type": "leave", "topic": topic}));
        }
        me.part(peer);
    }
}

/// Sends what is broken, and expects to be thrown out.
pub fn vandalize(world: &World, me: &mut Me) {
    while world.runs() {
        let Some(mut peer) = me.connect(world) else { return };
        let hello = json!({"type": "hello", "client": "x".repeat(64)}).to_string();
        let mut bytes = frame::masked(frame::TEXT, hello.as_bytes());
        bytes.extend(frame::masked(frame::TEXT, br#"{"type":"subscribe","topic":"vandals"}"#));
        for _ in 0..1 + me.dice.below(4) {
            let at = me.dice.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << me.dice.below(8);
        }
        let mut tcp = peer.stream();
        tcp.write_all(&bytes).ok();
        if me.one_in(3) {
            let shorter = me.dice.below(bytes.len() as u64) as usize;
            tcp.write_all(&bytes[..shorter]).ok();
        }
        world.count("faults: broken frames", 1);
        let leaves = Deadline::after(me.time(500, 5_000));
        while !leaves.is_over() && !matches!(me.next(world, &mut peer), Next::End) {}
        me.part(peer);
        pause(LOOK);
    }
}
