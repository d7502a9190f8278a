//! Promise 5 against a disk that fails: at every sync and at every write.
//!
//! A first run counts the steps of a fixed workload. Then the same workload runs once per step, on
//! a disk that loses power in it, or that fails in it once and goes on. A relay that is started on
//! what is left is asked for everything that clients were told before.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use landline::store::sim::{Fault, SimDisk, Step};
use serde_json::{Value, json};

use crate::support::{
    ledger::{End, Ledger},
    peer::{Peer, seq},
    relay::Relay,
    wait::{LIMIT, wait_for, wait_until},
};

/// How many relays run at a time: most of what they do is to wait for each other's threads, or for
/// a retry.
const AT_ONCE: usize = 8;

/// Topics and how many events of each are published per round.
const TOPICS: [(&str, usize); 4] =
    [("always/few", 3), ("always/all", 2), ("os/a", 2), ("interval/a", 1)];
/// Stands for a topic where the state is changed.
const STATE: &str = "$state";
/// Topics with a consumer, and its name.
const CONSUMERS: [(&str, &str); 2] = [("always/few", "worker"), ("os/a", "other")];

/// Changes of the state in each round: some replace others that are not stored yet.
fn changes(round: usize) -> [Value; 5] {
    let set = |key: &str, value: &str| json!({"type": "set", "key": key, "value": value});
    [
        set("light", &format!("first of {round}")),
        set("brief", &format!("for {round}")),
        json!({"type": "delete", "key": "brief"}),
        set(&format!("room/{}", round % 2), &format!("in {round}")),
        set("light", &format!("second of {round}")),
    ]
}

/// What clients do when a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    GiveUp,
    /// They send it again until it is not; every event has a key then.
    Insist,
}

/// The clients of one relay, and what they know.
struct Clients<'a> {
    relay: &'a Relay,
    on_refusal: Refused,
    publisher: Peer,
    watcher: Peer,
    workers: Vec<Peer>,
    ledger: Ledger,
    /// By topic, the newest event that was confirmed.
    newest: BTreeMap<&'static str, u64>,
}

/// The relay refused, and the clients have given up.
struct GaveUp;

impl<'a> Clients<'a> {
    fn new(relay: &'a Relay, on_refusal: Refused) -> Self {
        Self {
            relay,
            on_refusal,
            publisher: relay.peer(),
            watcher: relay.peer(),
            workers: CONSUMERS.map(|_| relay.peer()).into(),
            ledger: Ledger::default(),
            newest: BTreeMap::new(),
        }
    }

    /// Everything, in so many rounds; what clients know at the end of it.
    fn work(mut self, rounds: usize, mut before_round: impl FnMut(usize)) -> Ledger {
        let worked = self.begin().and_then(|()| {
            (0..rounds).try_for_each(|number| {
                before_round(number);
                self.round(number)
            })
        });
        // What was confirmed arrives, whatever came after it.
        self.watch();
        drop(worked);
        self.ledger
    }

    fn begin(&mut self) -> Result<(), GaveUp> {
        for (topic, _) in TOPICS {
            let head = self.watcher.subscribe(topic);
            self.ledger.note_epoch(topic, &head);
        }
        for (index, (topic, name)) in CONSUMERS.into_iter().enumerate() {
            let request = json!({"type": "subscribe", "topic": topic, "from": "start",
                "ack": true, "window": 4, "consumer": name});
            let reply = self.workers[index].request(request.clone());
            let reply = if reply["type"] == "subscribed" {
                reply
            } else {
                self.refused(&reply)?;
                wait_for("the consumer to be stored", LIMIT, || {
                    let reply = self.workers[index].request(request.clone());
                    (reply["type"] == "subscribed").then_some(reply)
                })
            };
            self.ledger.note_consumer(topic, name, &reply);
        }
        Ok(())
    }

    /// Publishes at once to all topics, reads all of it, and acknowledges.
    fn round(&mut self, number: usize) -> Result<(), GaveUp> {
        let mut requests = Vec::new();
        for (topic, count) in TOPICS {
            for index in 0..count {
                let data = format!("{topic} {number}.{index}");
                let mut request = json!({"type": "publish", "topic": topic, "data": data});
                if index == 0 || self.on_refusal == Refused::Insist {
                    request["key"] = json!(format!("key of {data}"));
                }
                self.ledger.note_sent(&request);
                requests.push((topic, request));
            }
        }
        for change in changes(number) {
            self.ledger.values.note_sent(&change);
            requests.push((STATE, change));
        }
        let replies = burst(&mut self.publisher, &requests);
        let mut refused = Vec::new();
        for ((topic, request), reply) in requests.into_iter().zip(replies) {
            if !self.is_done(topic, &request, &reply) {
                refused.push((topic, request, reply));
            }
        }
        if let Some((.., reply)) = refused.first() {
            self.refused(reply)?;
        }
        for (topic, request, _) in refused {
            wait_until("the relay to take it", LIMIT, || {
                let reply = self.publisher.request(request.clone());
                self.is_done(topic, &request, &reply)
            });
        }
        self.watch();
        let all = self.watcher.request(json!({"type": "get", "key": "#", "limit": 1_000}));
        self.ledger.values.note_seen(&all);
        for (index, (topic, name)) in CONSUMERS.into_iter().enumerate() {
            let newest = self.newest.get(topic).copied().unwrap_or_default();
            let worker = &mut self.workers[index];
            while seq(&worker.expect("event")) < newest {}
            worker.send(&json!({"type": "ack", "topic": topic, "seq": newest}));
            worker.fence();
            self.ledger.note_ack(topic, name, newest);
        }
        Ok(())
    }

    /// Notes the answer to a publish or a change; whether it is done.
    fn is_done(&mut self, topic: &'static str, request: &Value, reply: &Value) -> bool {
        match reply["type"].as_str() {
            Some("published") => self.published(topic, request, reply),
            Some("stored" | "deleted") => self.ledger.values.note_stored(request, reply),
            // It is gone after all: the answer was lost with the store, the change was not.
            _ => return reply["code"] == "not_found",
        }
        true
    }

    fn published(&mut self, topic: &'static str, request: &Value, reply: &Value) {
        self.ledger.note_published(request, reply);
        let newest = self.newest.entry(topic).or_default();
        *newest = seq(reply).max(*newest);
    }

    /// The watcher gets everything that was confirmed.
    fn watch(&mut self) {
        let mut missing = self.newest.clone();
        missing.retain(|topic, newest| self.ledger.last_seen(topic) < *newest);
        while !missing.is_empty() {
            let event = self.watcher.expect("event");
            self.ledger.note_event(&event);
            missing.retain(|topic, newest| event["topic"] != **topic || seq(&event) < *newest);
        }
    }

    /// A request was refused: by name, the relay says that it is not ready, and why; and it is
    /// again by itself, unless the disk is dead.
    fn refused(&mut self, reply: &Value) -> Result<(), GaveUp> {
        assert_eq!(reply["code"], "unavailable", "{reply}");
        assert!(reply["retry_after_ms"].is_u64(), "{reply}");
        let ready = self.relay.get("/readyz");
        let metrics = self.relay.metrics();
        let recoveries = metrics.sum(&["landline_store_recoveries_total"]);
        let is_told = ready.status == 503 && ready.body.contains("durable topics cannot be");
        assert!(is_told || recoveries == 1.0, "{ready:?}");
        assert!(1.0 <= metrics.sum(&["landline_store_failures_total"]), "{reply}");
        if self.on_refusal == Refused::GiveUp {
            return Err(GaveUp);
        }
        self.relay.wait_ready();
        Ok(())
    }
}

/// Sends all requests at once; the replies in the order of the requests.
fn burst(peer: &mut Peer, requests: &[(&'static str, Value)]) -> Vec<Value> {
    for (id, (_, request)) in requests.iter().enumerate() {
        let mut request = request.clone();
        // Above those that the peer counts itself.
        request["id"] = json!(1_000_000 + id);
        peer.send(&request);
    }
    let mut replies = vec![Value::Null; requests.len()];
    for _ in requests {
        let reply = peer.message();
        let id = reply["id"].as_u64().unwrap_or_else(|| panic!("{reply} answers nothing"));
        replies[id as usize - 1_000_000] = reply;
    }
    replies
}

/// Runs the workload on `disk` to its end, or until the relay refuses for good.
fn run(disk: &SimDisk, rounds: usize, before_round: impl FnMut(usize)) -> Ledger {
    let Ok(relay) = Relay::start(disk) else { return Ledger::default() };
    let ledger = Clients::new(&relay, Refused::GiveUp).work(rounds, before_round);
    relay.stop();
    ledger
}

/// How many steps of this kind the workload takes on a disk that works.
fn count(step: Step, rounds: usize) -> u64 {
    let disk = SimDisk::default();
    run(&disk, rounds, |_| {});
    disk.count(step)
}

/// What a relay that is started on `disk` does not know any more of what `ledger` says.
fn judge(ledger: &Ledger, disk: &SimDisk, end: End) -> Vec<String> {
    match Relay::start(disk) {
        Ok(relay) => {
            let problems = ledger.judge(relay.addr(), end);
            relay.stop();
            problems
        }
        Err(error) => vec![format!("it does not start: {error:?}")],
    }
}

/// Calls `check` with each number from 1 to `last`, some at a time; what it finds must be nothing.
#[track_caller]
fn for_each_step(last: u64, check: impl Fn(u64) -> Vec<String> + Sync) {
    let next = AtomicU64::new(1);
    let one = || {
        let mut found = Vec::new();
        loop {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            if last < nth {
                return found;
            }
            found.extend(check(nth).into_iter().map(|problem| format!("step {nth}: {problem}")));
        }
    };
    let found: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(one)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no check panics")).collect()
    });
    assert!(found.is_empty(), "{} problems:\n{}", found.len(), found.join("\n"));
}

fn dies_at(step: Step, nth: u64) -> Option<Fault> {
    Some(Fault { step, nth, error: ErrorKind::Other, forever: true })
}

/// Steps beyond those of the first run: how events fall into batches differs a little.
const MORE: u64 = 3;

#[test]
fn nothing_confirmed_is_lost_when_the_power_fails_in_any_sync() {
    let syncs = count(Step::Sync, 5) + MORE;
    assert!(20 < syncs, "{syncs} syncs");
    let confirmed = AtomicU64::new(0);
    for_each_step(syncs, |nth| {
        let disk = SimDisk::default();
        disk.fail(dies_at(Step::Sync, nth));
        let ledger = run(&disk, 5, |_| {});
        confirmed.fetch_add(ledger.confirmed() as u64, Ordering::Relaxed);
        judge(&ledger, &disk.crashed(None), End::PowerLoss)
    });
    // Half of all runs get half of the way, on average.
    assert!(syncs * 10 < confirmed.load(Ordering::Relaxed), "hardly anything was confirmed");
}

#[test]
fn nothing_confirmed_is_lost_when_any_write_is_the_last_and_torn() {
    let writes = count(Step::Write, 2) + MORE;
    for_each_step(writes, |nth| {
        let disk = SimDisk::default();
        disk.fail(dies_at(Step::Write, nth));
        let ledger = run(&disk, 2, |_| {});
        let torn = judge(&ledger, &disk.crashed(Some(nth)), End::PowerLoss);
        let killed = judge(&ledger, &disk.killed(), End::Killed);
        torn.into_iter().chain(killed).collect()
    });
}

#[test]
fn a_disk_that_fails_once_delays_events_and_loses_none() {
    for (step, error) in [
        (Step::Sync, ErrorKind::Other),
        (Step::Write, ErrorKind::Other),
        (Step::Write, ErrorKind::StorageFull),
    ] {
        let failures = AtomicU64::new(0);
        for_each_step(count(step, 2) + MORE, |nth| {
            let disk = SimDisk::default();
            disk.fail(Some(Fault { step, nth, error, forever: false }));
            let relay = match Relay::start(&disk) {
                Ok(relay) => relay,
                Err(_) => Relay::start(&disk).expect("the disk failed once"),
            };
            let ledger = Clients::new(&relay, Refused::Insist).work(2, |_| {});
            let failed = relay.metrics().sum(&["landline_store_failures_total"]);
            failures.fetch_add(u64::from(0.0 < failed), Ordering::Relaxed);
            let mut problems = judge(&ledger, &disk.crashed(None), End::PowerLoss);
            relay.stop();
            problems.extend(judge(&ledger, &disk.killed(), End::Killed));
            problems
        });
        let failures = failures.load(Ordering::Relaxed);
        assert!(0 < failures, "{step:?} never failed while a relay ran");
    }
}

#[test]
fn after_a_stop_in_good_order_the_power_may_fail() {
    let disk = SimDisk::default();
    let ledger = run(&disk, 2, |_| {});

    let found = judge(&ledger, &disk.crashed(None), End::Killed);

    assert_eq!(found, [""; 0]);
    assert_eq!(ledger.confirmed(), 2 * TOPICS.iter().map(|(_, count)| count).sum::<usize>());
    assert_eq!(ledger.values.confirmed(), 2 * changes(0).len());
}

#[test]
fn a_disk_whose_syncs_do_nothing_is_noticed_by_this_check() {
    for lies_from in 0..3 {
        let disk = SimDisk::default();
        let ledger = run(&disk, 3, |round| {
            if round == lies_from {
                disk.lie();
            }
        });
        let found = judge(&ledger, &disk.crashed(None), End::PowerLoss);
        assert!(!found.is_empty(), "a disk that lies from round {lies_from} on was not noticed");
    }
}
