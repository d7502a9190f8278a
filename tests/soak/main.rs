//! A soak: clients of all kinds come and go for as long as is asked for, through ways that fail,
//! while the relay is killed and stopped again and again; every client checks every promise that
//! concerns it.
//!
//! `make soak`; `docs/testing.md` says more.

#![expect(clippy::disallowed_methods, reason = "tests have threads and clocks of their own")]
#![expect(clippy::cast_possible_truncation, reason = "tests know their numbers")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that fails should say so at once"
)]

#[path = "../it/support/mod.rs"]
pub mod support;

pub mod act;
pub mod follow;
pub mod weather;
pub mod world;

use std::{
    collections::BTreeMap,
    env, fs,
    net::{SocketAddr, TcpListener},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, atomic::Ordering},
    thread::{self, Scope, ScopedJoinHandle},
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::{
    support::{
        dice::Dice,
        mirror::values,
        node::{Node, Scratch},
        peer::{number, seq},
        wait::{Deadline, LIMIT, Watch, pause, wait_for, wait_until},
    },
    world::{Me, Phase, Role, Targets, World, assert_distinct, is_stored},
};

const CONFIG: &str = r#"
durable_state = true
max_deliveries = 1000000
heartbeat = "5s"
heartbeat_timeout = "15s"
write_stall = "5s"
drain = "5s"
lost_debounce = "1s"
max_tail = "64KiB"

[[topics]]
pattern = "stored/#"
durable = true
max_events = 1000000
max_bytes = "64GiB"

[[topics]]
pattern = "kept/#"
max_events = 20
"#;

const DETOURS: usize = 8;
const STACK: usize = 1 << 20;
/// More than this beyond what it was at the beginning, and memory leaks: the events that memory
/// topics keep, and what an allocator keeps.
const MEMORY_ROOM: u64 = 96 << 20;

type Clients<'scope> = Vec<ScopedJoinHandle<'scope, ()>>;

/// What is asked for.
#[derive(Debug)]
struct Settings {
    seconds: u64,
    /// Time from one end of the relay to the next.
    life: Duration,
    connections: u64,
    seed: u64,
}

impl Settings {
    fn from_environment() -> Settings {
        let number = |name: &str, default: u64| match env::var(name) {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, no number")),
            Err(_) => default,
        };
        let seconds = number("SOAK_SECONDS", 3_600);
        let life = number("SOAK_LIFE", (seconds / 12).clamp(4, 300));
        let seed = number("SOAK_SEED", u64::from(std::process::id()));
        let connections = number("SOAK_CONNECTIONS", 2_000);
        Settings { seconds, life: Duration::from_secs(life), connections, seed }
    }
}

/// What the relay takes of the machine.
#[derive(Clone, Copy, Debug)]
struct Takes {
    rss: u64,
    threads: u64,
    open_files: usize,
}

impl Takes {
    fn of(node: &Node) -> Takes {
        Takes { rss: node.rss(), threads: node.threads(), open_files: node.open_files() }
    }

    fn shown(self) -> String {
        let Takes { rss, threads, open_files } = self;
        format!("{} MiB, {threads} threads, {open_files} descriptors", rss >> 20)
    }
}

#[test]
#[ignore = "takes as long as SOAK_SECONDS says, by default an hour: make soak"]
fn every_client_gets_what_it_was_promised_for_as_long_as_it_is_asked_to() {
    let settings = Settings::from_environment();
    eprintln!("{settings:?}");
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).expect("raise the limit of open files");
    let watch = Watch::start();
    let config = Scratch::new("soak.toml");
    fs::write(config.path(), CONFIG).unwrap();
    let dir = Scratch::new("soak");
    let flags = ["--config", config.path().to_str().unwrap(), "--data-dir"];
    let flags = [&flags[..], &[dir.path().to_str().unwrap()]].concat();
    let mut dice = Dice(settings.seed);
    let listen = free_address(&mut dice);
    let world = World::new(listen);
    let start = || Node::listening(&listen.to_string(), &flags);
    let node = start();
    let before = Takes::of(&node);
    eprintln!("at the beginning: {}", before.shown());

    let node = thread::scope(|scope| {
        let world = &world;
        for index in 0..DETOURS {
            let dice = Dice(dice.below(u64::MAX));
            scope.spawn(move || weather::blow(world, index, dice));
        }
        let (doers, others) = populate(scope, world, settings.connections, &mut dice);
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let node = restart(world, node, &start, &settings, (&mut dice, watch));
            settle(world, doers, others);
            node
        }));
        world.enter(Phase::Over);
        ended.unwrap_or_else(|panic| resume_unwind(panic))
    });

    eprintln!("{}", world.summary());
    let violations = world.violations.lock();
    assert!(violations.is_empty(), "seed {}:\n{}", settings.seed, violations.join("\n\n"));
    drop(violations);
    judge(&world, &node);
    let mut after = Takes::of(&node);
    let (threads, open_files) = (before.threads, before.open_files);
    wait_until("threads and descriptors to be as before", LIMIT, || {
        after = Takes::of(&node);
        after.threads <= threads + 1 && after.open_files <= open_files + 4
    });
    eprintln!("at the end: {}; at the beginning: {}", after.shown(), before.shown());
    assert!(after.rss < before.rss + MEMORY_ROOM, "memory has grown");
    node.stop();
}

/// Ends the relay and starts it again until the time is over. Returns the last one.
fn restart(
    world: &World,
    mut node: Node,
    start: &dyn Fn() -> Node,
    settings: &Settings,
    (dice, watch): (&mut Dice, Watch),
) -> Node {
    let ends = Deadline::after(Duration::from_secs(settings.seconds));
    // The last life is a longer one: what leaks shows in it.
    while settings.life * 3 < ends.left() && world.runs() {
        observe(world, &node, watch, Deadline::after(settings.life));
        world.life.fetch_add(1, Ordering::SeqCst);
        if dice.below(2) == 0 {
            world.count("relays killed", 1);
            node.kill();
        } else {
            world.count("relays stopped", 1);
            node.stop();
        }
        world.forget_memory();
        pause(Duration::from_millis(dice.below(1_000)));
        node = start();
    }
    observe(world, &node, watch, ends);
    node
}

/// An address that no client's own port can be.
fn free_address(dice: &mut Dice) -> SocketAddr {
    wait_for("a free port", LIMIT, || {
        let port = 20_000 + dice.below(10_000) as u16;
        TcpListener::bind(("127.0.0.1", port)).ok()?.local_addr().ok()
    })
}

fn topics(kind: &str) -> Vec<String> {
    (0..16).map(|number| format!("{kind}/{}/{}", number / 4, number % 4)).collect()
}

/// Starts so many clients. Returns those who act, who end first, and those who follow.
fn populate<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    world: &'scope World,
    count: u64,
    dice: &mut Dice,
) -> (Clients<'scope>, Clients<'scope>) {
    let (mut doers, mut others) = (Vec::new(), Vec::new());
    for number in 0..count {
        let own = Dice(dice.below(u64::MAX));
        let one = |name: &str, run: Role| {
            let name = format!("{name}-{number}");
            let dice = own.clone();
            let builder = thread::Builder::new().stack_size(STACK).name(name.clone());
            let client = builder.spawn_scoped(scope, move || live(world, name, dice, run));
            client.expect("start a client")
        };
        let kind = ["stored", "kept"][number as usize % 2];
        let (group, last) = (dice.below(4), dice.below(4));
        let topic = format!("{kind}/{group}/{last}");
        let pattern = match dice.below(3) {
            0 => format!("{kind}/{group}/#"),
            1 => format!("{kind}/+/{last}"),
            _ => topic.clone(),
        };
        let stored = format!("stored/{group}/{last}");
        match number % 40 {
            0 => {
                let all = [topics("stored"), topics("kept")].concat();
                let run = move |world: &World, me: &mut Me| act::publish(world, me, number, &all);
                doers.push(one("publisher", Box::new(run)));
            }
            1 | 2 => doers.push(one("writer", Box::new(act::count_up))),
            3 if number % 80 == 3 => doers.push(one("vandal", Box::new(act::vandalize))),
            4..=6 => {
                others.push(one("member", Box::new(move |w, me| act::be_present(w, me, &topic))));
            }
            7..=9 => others.push(one("watcher", Box::new(|w, me| act::watch(w, me, "soak/#")))),
            10 => others.push(one("beholder", Box::new(|w, me| act::watch(w, me, "$presence/#")))),
            11..=14 => {
                others
                    .push(one("consumer", Box::new(move |w, me| follow::consume(w, me, &stored))));
            }
            15..=20 => {
                others.push(one("stream", Box::new(move |w, me| follow::stream(w, me, &pattern))));
            }
            at => {
                let slow = at == 21;
                let run = move |w: &World, me: &mut Me| follow::subscribe(w, me, &pattern, slow);
                others.push(one(if slow { "sluggard" } else { "subscriber" }, Box::new(run)));
            }
        }
    }
    (doers, others)
}

/// Runs a client, and notes its story if it was let down.
fn live(world: &World, name: String, dice: Dice, run: Role) {
    let story = Arc::new(Mutex::default());
    let mut me = Me { name: name.clone(), dice, story: Arc::clone(&story), is_direct: true };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(world, &mut me))) {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
        let lines: Vec<String> = story.lock().iter().cloned().collect();
        let told = format!("{name}: {}\n  {}", message.unwrap_or("?"), lines.join("\n  "));
        world.violations.lock().push(told);
        world.enter(Phase::Over);
    }
}

/// Looks at the relay until `ends`, and says once a minute what it sees.
fn observe(world: &World, node: &Node, watch: Watch, ends: Deadline) {
    let minute = Duration::from_secs(60);
    loop {
        let next = Deadline::after(ends.left().min(minute));
        while !next.is_over() && world.runs() {
            pause(next.left().min(Duration::from_millis(500)));
        }
        eprintln!(
            "{:>5} s, life {}: {}; {} published, {} delivered",
            watch.elapsed().as_secs(),
            world.life(),
            Takes::of(node).shown(),
            world.counted("events published"),
            world.counted("events delivered"),
        );
        if ends.is_over() || !world.runs() {
            return;
        }
    }
}

/// Lets everybody come to the end of what there is, and end.
fn settle(world: &World, doers: Clients<'_>, others: Clients<'_>) {
    let is_member = |client: &ScopedJoinHandle<'_, ()>| {
        client.thread().name().is_some_and(|name| name.starts_with("member"))
    };
    let (members, others): (Clients<'_>, Clients<'_>) = others.into_iter().partition(is_member);
    world.enter(Phase::Quiet);
    for doer in doers {
        doer.join().expect("a client notes its own failure");
    }
    world.enter(Phase::Settle(Arc::new(targets(world, members.len()))));
    for client in others {
        client.join().expect("a client notes its own failure");
    }
    world.enter(Phase::Over);
    for member in members {
        member.join().expect("a client notes its own failure");
    }
}

/// What there is, once the members are present and nobody else is.
fn targets(world: &World, members: usize) -> Targets {
    let mut peer = support::peer::Peer::connect(world.relay);
    let mut tails = BTreeMap::new();
    for topic in [topics("stored"), topics("kept")].concat() {
        let reply = peer.request(json!({"type": "history", "topic": topic, "limit": 1}));
        if reply["type"] == "history" {
            let epoch = reply["epoch"].as_str().expect("an epoch").to_owned();
            tails.insert(topic, (epoch, number(&reply, "tail")));
        }
    }
    let state = values(world.relay, "soak/#");
    let mut presence = values(world.relay, "$presence/#");
    wait_until("exactly those to be present who are", LIMIT * 2, || {
        presence = values(world.relay, "$presence/#");
        let mut present = world.present.lock().clone();
        present.sort_unstable();
        let one_each = presence.values().all(|(value, _)| value["connections"] == 1);
        let all_here = present.len() == members && presence.keys().eq(&present);
        world.is_over() || one_each && all_here
    });
    Targets { tails, state, presence }
}

/// Whether the relay has all that anybody was told of, each event once.
fn judge(world: &World, node: &Node) {
    let mut peer = node.peer();
    let mut count = 0;
    for (topic, lives) in world.truth() {
        for (epoch, known) in lives {
            assert_distinct(&topic, &epoch, &known);
            if !is_stored(&topic) {
                continue;
            }
            let mut found = BTreeMap::new();
            loop {
                let from = json!({"epoch": epoch, "seq": found.len()});
                let page = peer.history(&topic, from, 1_000);
                assert_eq!(page["recovery"]["mode"], "complete", "{topic}");
                let events = page["events"].as_array().expect("a list");
                found.extend(events.iter().map(|event| (seq(event), follow::mark(event))));
                if found.len() as u64 == number(&page, "tail") {
                    break;
                }
                assert!(!events.is_empty(), "{topic} ends at {}", found.len());
            }
            count += found.len();
            assert_distinct(&topic, &epoch, &found);
            for (seq, mark) in known {
                assert_eq!(found.get(&seq), Some(&mark), "event {seq} of {topic}");
            }
        }
    }
    eprintln!("{count:>12} events are stored, and all that anybody was told of are among them");
}
