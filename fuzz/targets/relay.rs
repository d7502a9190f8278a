//! A whole relay over real sockets: clients that connect, publish, subscribe, acknowledge, resume
//! and vanish, a relay that is killed or loses power, and the promises of `docs/protocol.md`.
//!
//! Each byte is a choice. Publishes are not waited for, so what is on its way at a kill may or may
//! not be there afterwards; what was confirmed or seen must be.

#![no_main]

#[path = "relay/client.rs"]
mod client;
#[expect(dead_code, reason = "the tests of the relay bend frames in more ways than this target")]
#[path = "../../tests/it/support/frame.rs"]
mod frame;
#[path = "relay/peer.rs"]
mod peer;
#[path = "relay/values.rs"]
mod values;
#[path = "relay/world.rs"]
mod world;

use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use landline::{
    config::{Config, Policy, SyncPolicy, TopicRule},
    name::Filter,
    server::Server,
    store::sim::SimDisk,
};
use landline_fuzz::Script;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

use crate::{
    client::{Asked, Client},
    peer::{LIMIT, Wire},
    values::{KEYS, Mirror, PATTERN, Values},
    world::{Sent, TOPICS, World},
};

fuzz_target!(|data: &[u8]| run(Script::new(data)));

const OPERATIONS_MAX: usize = 60;
/// Clients 0 and 1 follow names and patterns; 2 and 3 acknowledge, each on topics that keep
/// everything.
const CLIENTS: usize = 4;
const CONSUMED: &str = "d/all";

struct Run {
    server: Option<Server>,
    disk: SimDisk,
    world: World,
    values: Values,
    clients: [Option<Client>; CLIENTS],
    /// Where each client was when its last connection ended.
    positions: [BTreeMap<usize, (String, u64)>; CLIENTS],
    mirrors: [Option<Mirror>; CLIENTS],
    connections: u64,
    /// No connection ended while what it published was on its way.
    is_calm: bool,
    /// What the consumer has acknowledged since its position was last told; the first is that.
    acknowledged: Vec<u64>,
}

fn run(mut script: Script<'_>) {
    let disk = SimDisk::default();
    let mut run = Run {
        server: Some(start(&disk)),
        disk,
        world: World::default(),
        values: Values::default(),
        clients: [const { None }; CLIENTS],
        positions: Default::default(),
        mirrors: Default::default(),
        connections: 0,
        is_calm: true,
        acknowledged: Vec::new(),
    };
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = script.next() else { break };
        run.operation(operation, &mut script);
    }
    run.finish();
}

fn start(disk: &SimDisk) -> Server {
    let mut config = Config {
        listen: vec!["127.0.0.1:0".to_owned()],
        writers: 1,
        drain: Duration::from_secs(5),
        ..Config::default()
    };
    config.acks.max_deliveries = 1_000;
    config.state.durable = true;
    config.state.max_tombstones = 2;
    let rule = |(name, keeps, durable): (&str, Option<u64>, bool)| TopicRule {
        filter: Filter::parse(name).expect("a topic"),
        policy: Policy {
            max_events: keeps.unwrap_or(100_000),
            durable,
            sync: SyncPolicy::Always,
            ..Policy::default()
        },
    };
    config.topics.rules = TOPICS.map(rule).into();
    Server::start_on(config, Arc::new(disk.clone())).expect("the relay starts on what is left")
}

impl Run {
    fn operation(&mut self, operation: u8, script: &mut Script<'_>) {
        let at = script.below(CLIENTS);
        match operation % 16 {
            0..5 => self.publish(at, script),
            5 | 6 => self.subscribe(at, script),
            7 => self.unsubscribe(at, script),
            8 | 9 => self.acknowledge(at, script),
            10 => self.change(at, script),
            11 => self.watch(at),
            12 => {
                let version = self.values.version;
                self.client(at).take_or_catch_up(script, version);
            }
            13 => self.fence(at),
            14 => self.part(at, script.chance(128)),
            _ if script.chance(80) => self.kill(script),
            _ => self.part(at, false),
        }
        for at in 0..CLIENTS {
            if self.clients[at].as_ref().is_some_and(|client| client.ended) {
                self.part(at, false);
            }
        }
    }

    /// The client `at`, which connects if it has to.
    fn client(&mut self, at: usize) -> Turn<'_> {
        let Run { server, clients, world, connections, .. } = self;
        let addr = server.as_ref().expect("it runs").addresses()[0];
        let client = clients[at].get_or_insert_with(|| {
            *connections += 1;
            Client::connect(addr, *connections)
        });
        Turn { client, world }
    }

    fn publish(&mut self, at: usize, script: &mut Script<'_>) {
        let topic = script.below(TOPICS.len());
        let key = script.pick(&[None, None, None, Some(0), Some(1), Some(2)]);
        let Turn { client, world } = self.client(at);
        let number = world.sent.len() as u64;
        world.sent.push(Sent { topic, key, connection: client.connection });
        let mut request = json!({"type": "publish", "topic": TOPICS[topic].0, "data": number});
        if let Some(key) = key {
            request["key"] = json!(format!("key {key}"));
        }
        client.ask(request, Asked::Publish(number));
    }

    fn subscribe(&mut self, at: usize, script: &mut Script<'_>) {
        if 2 <= at {
            return self.subscribe_with_acks(at, script);
        }
        let filter = script.pick(&["d/all", "d/few", "m/all", "m/few", "d/+", "m/+"]);
        let positions = self.positions[at].clone();
        let is_quiet = !self.clients.iter().flatten().any(Client::is_publishing) && self.is_calm;
        let Turn { client, world } = self.client(at);
        let here = client.follows.iter().map(|(topic, it)| (*topic, (it.epoch.clone(), it.at)));
        let known: BTreeMap<_, _> = positions.into_iter().chain(here).collect();
        let own = known.iter().filter(|(topic, _)| covers(filter, TOPICS[**topic].0));
        let position = |(epoch, seq): &(String, u64)| json!({"epoch": epoch, "seq": seq});
        let own: BTreeMap<_, _> = own.map(|(topic, at)| (TOPICS[*topic].0, position(at))).collect();
        let from = match script.below(4) {
            0 => json!("live"),
            1 => json!("start"),
            2 => json!({"last": script.below(6)}),
            _ if own.is_empty() => json!("start"),
            _ if filter.ends_with('+') => json!({"positions": own}),
            _ => own.values().next().cloned().unwrap_or_default(),
        };
        let request = json!({"type": "subscribe", "topic": filter, "from": from});
        let filter = filter.to_owned();
        let asked = Asked::Subscribe { filter, from, is_quiet, window: None, consumer: None };
        let id = client.ask(request, asked);
        client.answered(id, world);
    }

    fn subscribe_with_acks(&mut self, at: usize, script: &mut Script<'_>) {
        let window = 1 + script.number(4);
        let is_consumer = script.chance(160);
        let acknowledged = self.acknowledged.clone();
        let Turn { client, world } = self.client(at);
        let topic = if is_consumer { CONSUMED } else { "m/all" };
        let is_held = client.is_subscribed(topic);
        if is_held {
            return;
        }
        let mut request = json!({"type": "subscribe", "topic": topic, "from": "start",
            "ack": true, "window": window});
        if is_consumer {
            request["consumer"] = json!("worker");
        }
        let consumer = is_consumer.then_some(acknowledged);
        let (filter, from) = (topic.to_owned(), json!("start"));
        let asked =
            Asked::Subscribe { filter, from, is_quiet: false, window: Some(window), consumer };
        let id = client.ask(request, asked);
        let reply = client.answered(id, world);
        if is_consumer && reply.is_object() {
            self.acknowledged = vec![world::number(&reply, "seq")];
        }
    }

    fn unsubscribe(&mut self, at: usize, script: &mut Script<'_>) {
        let filter = script.pick(&["d/all", "d/few", "m/all", "m/few", "d/+", "m/+"]);
        let Turn { client, world } = self.client(at);
        let id = client.ask(json!({"type": "unsubscribe", "topic": filter}), Asked::Unsubscribe);
        client.answered(id, world);
    }

    fn acknowledge(&mut self, at: usize, script: &mut Script<'_>) {
        let Turn { client, world } = self.client(at);
        client.take(world);
        let back = script.number(3);
        let mut moved = Vec::new();
        for (topic, follow) in &mut client.follows {
            let Some((acked, _)) = &mut follow.window else { continue };
            let seq = follow.at.saturating_sub(back);
            if *acked < seq {
                *acked = seq;
                moved.push((*topic, seq));
            }
        }
        for (topic, seq) in &moved {
            client.send(&json!({"type": "ack", "topic": TOPICS[*topic].0, "seq": seq}));
        }
        let consumed = moved.iter().filter(|(topic, _)| TOPICS[*topic].0 == CONSUMED);
        self.acknowledged.extend(consumed.map(|(_, seq)| seq));
    }

    fn change(&mut self, at: usize, script: &mut Script<'_>) {
        let key = script.pick(&KEYS);
        let value = script.chance(180).then(|| json!(script.below(256)));
        let found = self.values.values.get(key).map_or(0, |(version, _)| *version);
        let wanted = script.pick(&[None, None, Some(found), Some(found + 1), Some(0)]);
        let kind = if value.is_some() { "set" } else { "delete" };
        let mut request = json!({"type": kind, "key": key});
        if let Some(value) = &value {
            request["value"] = value.clone();
        }
        if let Some(wanted) = wanted {
            request["if_version"] = wanted.into();
        }
        let Turn { client, world } = self.client(at);
        let id = client.ask(request, Asked::State);
        let reply = client.answered(id, world);
        if reply.is_object() {
            self.values.answered(key, value, wanted, &reply);
        }
    }

    /// Watches, from where its last watch was.
    fn watch(&mut self, at: usize) {
        if self.client(at).client.mirror.is_some() {
            return;
        }
        let mirror = self.mirrors[at].take().unwrap_or_default().again();
        let Turn { client, world } = self.client(at);
        let mut request = json!({"type": "watch", "pattern": PATTERN});
        if let Some(epoch) = &mirror.epoch {
            request["from"] = json!({"epoch": epoch, "version": mirror.version});
        }
        client.mirror = Some(mirror);
        let id = client.ask(request, Asked::State);
        client.answered(id, world);
    }

    fn fence(&mut self, at: usize) {
        let Turn { client, world } = self.client(at);
        client.fence(world);
    }

    /// A connection ends; its client keeps what it has.
    fn part(&mut self, at: usize, is_closed: bool) {
        let Some(mut client) = self.clients[at].take() else { return };
        self.is_calm &= !client.is_publishing();
        for (topic, follow) in std::mem::take(&mut client.follows) {
            self.positions[at].insert(topic, (follow.epoch, follow.at));
        }
        self.mirrors[at] = client.mirror.take().or(self.mirrors[at].take());
        match is_closed {
            true => client.close(),
            false => client.cut(),
        }
    }

    /// The process dies, or the machine; a relay is started on what is left.
    fn kill(&mut self, script: &mut Script<'_>) {
        let left = match script.below(3) {
            0 => self.disk.killed(),
            1 => self.disk.crashed(None),
            _ => self.disk.crashed(Some(script.number(256))),
        };
        (0..CLIENTS).for_each(|at| self.part(at, false));
        self.stop();
        // What was acknowledged reaches the disk within a second: it may have, or not yet.
        let last = self.acknowledged.last().copied();
        if let Some(last) = last {
            self.acknowledged = (0..=last).collect();
        }
        self.world.restarted();
        self.is_calm = true;
        self.disk = left;
        self.server = Some(start(&self.disk));
    }

    fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            // Late is who did not end within a second or so; on a busy machine that may be anybody.
            await_end(&server.stop().late);
        }
    }

    /// Everybody gets everything, and the relay has what anybody was told of.
    fn finish(mut self) {
        for at in 0..CLIENTS {
            if self.clients[at].is_some() {
                self.fence(at);
            }
        }
        let version = self.values.version;
        for at in 0..CLIENTS {
            let Some(client) = &mut self.clients[at] else { continue };
            client.catch_up(&mut self.world, version);
            let Some(mirror) = client.mirror.as_ref().filter(|_| !client.ended) else { continue };
            assert_eq!(mirror.values, self.values.values, "what a watcher holds");
        }
        let addr = self.server.as_ref().expect("it runs").addresses()[0];
        let mut wire = Wire::connect(addr);
        for (topic, (name, ..)) in TOPICS.iter().enumerate() {
            wire.send(&json!({"type": "history", "topic": name, "from": "start", "limit": 1000}));
            let history = wire.receive(LIMIT).expect("an answer");
            if history["code"] == "not_found" {
                assert_eq!(self.world.topics[topic].tail, 0, "{name} is gone");
                continue;
            }
            if self.world.topics[topic].epoch.is_some() {
                self.world.epoch(topic, &history);
            }
            let mut found = BTreeMap::new();
            for event in history["events"].as_array().into_iter().flatten() {
                let seq = world::number(event, "seq");
                self.world.saw(topic, seq, &event["data"]);
                found.insert(seq, world::number(event, "data"));
            }
            let (first, tail) = (world::number(&history, "first"), world::number(&history, "tail"));
            assert!(found.keys().copied().eq(first..=tail), "{history}");
            self.world.judge(topic, (first, tail), &found);
        }
        wire.cut();
        (0..CLIENTS).for_each(|at| self.part(at, false));
        self.stop();
    }
}

/// A client and what all of them know.
struct Turn<'a> {
    client: &'a mut Client,
    world: &'a mut World,
}

impl Turn<'_> {
    fn take_or_catch_up(self, script: &mut Script<'_>, version: u64) {
        if script.chance(128) {
            self.client.take(self.world);
        } else {
            self.client.catch_up(self.world, version);
        }
    }
}

/// Waits until no thread of this process has one of these names.
fn await_end(names: &[String]) {
    let threads = || {
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        // A thread that has just ended has no name any more.
        tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
    };
    let limit = Instant::now() + LIMIT;
    while !names.is_empty() && threads().any(|name| names.iter().any(|late| late == name.trim())) {
        assert!(Instant::now() < limit, "threads did not end: {names:?}");
        thread::yield_now();
    }
}

fn covers(filter: &str, name: &str) -> bool {
    filter == name || filter.strip_suffix('+').is_some_and(|begin| name.starts_with(begin))
}
