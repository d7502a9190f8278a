//! Handlers beside one another, slow ones, broken ones, and many at once.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    panic,
    sync::{Arc, mpsc},
    thread,
};

use super::*;
use crate::{
    base::lifecycle::{Panics, Stop},
    bus::PoolSettings,
};

const LIMIT: Duration = Duration::from_secs(30);

fn pool(workers: usize) -> Arc<Pool> {
    let settings = PoolSettings { workers: NonZeroUsize::new(workers).unwrap() };
    Arc::new(Pool::start(settings, Stop::default(), Panics::default()).unwrap())
}

fn store() -> StateStore {
    StateStore::alone(pool(2))
}

/// What a handler was called with.
type Calls = mpsc::Receiver<(String, Option<u64>, u64)>;

/// Subscribes a handler that passes on what it is called with.
fn recorder(store: &StateStore, filter: &str) -> (SubscriptionId, Calls) {
    let (tell, told) = mpsc::sync_channel(100_000);
    let id = store.subscribe(filter, move |update| drop(tell.send(record(update)))).unwrap();
    (id, told)
}

fn record(update: &Update) -> (String, Option<u64>, u64) {
    match update {
        Update::Set(value) => (value.key.as_str().to_owned(), value.get().ok(), value.version()),
        Update::Deleted { key, version } => (key.as_str().to_owned(), None, *version),
        Update::Reset => ("reset".to_owned(), None, 0),
    }
}

fn next(calls: &Calls) -> (String, Option<u64>, u64) {
    calls.recv_timeout(LIMIT).expect("the handler is called")
}

#[test]
fn of_several_handlers_on_one_key_the_others_stay_when_one_goes() {
    let store = store();
    let (first, first_calls) = recorder(&store, "lamp");
    let (_second, second_calls) = recorder(&store, "lamp");
    let (_third, third_calls) = recorder(&store, "+");
    store.set("lamp", &1).unwrap();
    for calls in [&first_calls, &second_calls, &third_calls] {
        assert_eq!(next(calls), ("lamp".to_owned(), Some(1), 1));
    }

    assert!(store.unsubscribe(first));
    assert!(!store.unsubscribe(first));
    store.set("lamp", &2).unwrap();

    for calls in [&second_calls, &third_calls] {
        assert_eq!(next(calls), ("lamp".to_owned(), Some(2), 2));
    }
    assert!(first_calls.recv_timeout(LIMIT).is_err(), "its handler is gone, and was not called");
    assert_eq!(store.subscriptions(), 2);
}

#[test]
fn a_handler_that_panics_is_counted_and_costs_the_others_nothing() {
    let pool = pool(1);
    let store = StateStore::alone(Arc::clone(&pool));
    let broken = store.subscribe("a", |_| panic::panic_any("on purpose")).unwrap();
    let (_id, calls) = recorder(&store, "a");
    for value in 1..=3_u64 {
        store.set("a", &value).unwrap();
        assert_eq!(next(&calls).1, Some(value));
    }
    assert_eq!((store.panicked(), store.subscriptions()), (3, 2));
    assert_eq!(pool.stats().panicked, 3, "the operator sees them too");
    assert!(store.unsubscribe(broken));
}

#[test]
fn a_slow_handler_gets_the_newest_of_each_key_and_misses_no_deletion() {
    let store = StateStore::alone(pool(1));
    let (go_on, may_go_on) = lane::open::<()>(lane::REPLIES);
    let (tell, calls) = mpsc::sync_channel(100);
    store
        .subscribe("#", move |update| {
            drop(tell.send(record(update)));
            _ = may_go_on.recv();
        })
        .unwrap();
    store.set("a", &0).unwrap();
    assert_eq!(next(&calls).2, 1);

    for value in 1..=1_000_u64 {
        store.set("a", &value).unwrap();
        store.set("b", &value).unwrap();
    }
    store.delete("a").unwrap();
    drop(go_on);

    assert_eq!(next(&calls), ("b".to_owned(), Some(1_000), 2_001));
    assert_eq!(next(&calls), ("a".to_owned(), None, 2_002));
    store.set("c", &1).unwrap();
    assert_eq!(next(&calls).0, "c", "nothing else came");
}

#[test]
fn a_handler_that_missed_too_many_deletions_begins_anew() {
    let limits =
        Limits { keys_max: 100, value_bytes_max: 100, bytes_max: 100_000, tombstones_max: 2 };
    let space = Arc::new(Space::new(Epoch::from_number(1), limits, false, 0));
    let changer = Alone { space: Arc::clone(&space), clock: Clock::default() };
    let store = StateStore::over(Arc::clone(&space), Box::new(changer), pool(1));
    let (_id, calls) = recorder(&store, "#");
    store.set("d", &0).unwrap();
    store.downgrade().wake();
    assert_eq!(next(&calls), ("d".to_owned(), Some(0), 1));
    // It has looked; nobody wakes it until all is done.
    for key in ["a", "b", "c", "d"] {
        store.set(key, &1).unwrap();
    }
    for key in ["a", "b", "c"] {
        store.delete(key).unwrap();
    }
    store.downgrade().wake();
    assert_eq!(next(&calls).0, "reset");
    assert_eq!(next(&calls), ("d".to_owned(), Some(1), 5));
}

#[test]
fn a_watch_begins_with_what_is_there() {
    let store = store();
    for key in ["a", "b/x", "b/y"] {
        store.set(key, &1).unwrap();
    }
    store.delete("b/y").unwrap();
    let (tell, calls) = mpsc::sync_channel(100);
    store.watch("b/#", move |update| drop(tell.send(record(update)))).unwrap();
    assert_eq!(next(&calls), ("b/x".to_owned(), Some(1), 2));
    store.set("b/y", &2).unwrap();
    assert_eq!(next(&calls), ("b/y".to_owned(), Some(2), 5));
}

#[test]
fn a_handler_may_change_and_subscribe() {
    let store = StateStore::alone(pool(1));
    let (_id, calls) = recorder(&store, "out/#");
    let own = store.clone();
    store
        .subscribe("in", move |update| {
            let (_, value, _) = record(update);
            own.set("out/1", &(value.unwrap_or(0) + 1)).unwrap();
            let id = own.subscribe("other", |_| ()).unwrap();
            assert!(own.unsubscribe(id));
        })
        .unwrap();
    store.set("in", &41).unwrap();
    assert_eq!(next(&calls), ("out/1".to_owned(), Some(42), 2));
}

/// The figures of the Go documents: 50 at once, 100 operations each, readers and writers mixed.
#[test]
fn fifty_handlers_and_a_hundred_operations_of_each_thread_lose_nothing() {
    const HANDLERS: u64 = 50;
    const THREADS: u64 = 50;
    const EACH: u64 = 100;
    let store = StateStore::alone(pool(4));
    let handlers: Vec<Calls> = (0..HANDLERS)
        .map(|own| recorder(&store, if own % 2 == 0 { "#" } else { "count" }).1)
        .collect();
    thread::scope(|scope| {
        for own in 0..THREADS {
            let store = &store;
            scope.spawn(move || match own % 3 {
                0 => (0..EACH).for_each(|_| count_up(store)),
                1 => (0..EACH).for_each(|value| {
                    store.set(&format!("key/{own}"), &value).unwrap();
                }),
                _ => (0..EACH).for_each(|_| {
                    _ = store.get::<u64>("count").unwrap();
                    assert!(store.values("key/+").unwrap().len() <= 50);
                }),
            });
        }
    });

    let counters = (0..THREADS).filter(|own| own % 3 == 0).count() as u64;
    assert_eq!(store.get::<u64>("count").unwrap(), Some(counters * EACH), "no update is lost");
    for (own, calls) in handlers.iter().enumerate() {
        let filter = if own % 2 == 0 { "#" } else { "count" };
        let expected: BTreeMap<String, Option<u64>> = store
            .values(filter)
            .unwrap()
            .iter()
            .map(|value| (value.key.as_str().to_owned(), value.get().ok()))
            .collect();
        let (mut held, mut before) = (BTreeMap::new(), 0);
        while held != expected {
            let (key, value, version) = next(calls);
            assert!(before < version, "versions rise: {before}, {version}");
            before = version;
            held.insert(key, value);
        }
    }
}

fn count_up(store: &StateStore) {
    loop {
        let found = store.value("count").unwrap();
        let version = found.as_ref().map_or(0, Value::version);
        let count: u64 = found.map_or(0, |value| value.get().unwrap());
        match store.compare_and_set("count", version, &(count + 1)) {
            Ok(_) => return,
            Err(StateError::Refused { source: ChangeError::Conflict { .. }, .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let store = store();
    let deep = (0..40).fold(serde_json::json!(1), |inner, _| serde_json::json!([inner]));
    assert!(matches!(store.set("a//b", &1), Err(StateError::Key { .. })));
    assert!(matches!(store.set("$sys/x", &1), Err(StateError::Reserved { .. })));
    assert!(matches!(store.set("a", &deep), Err(StateError::Deep { .. })));
    assert!(matches!(store.subscribe("a/#/b", |_| ()), Err(StateError::Key { .. })));
    let refused = store.compare_and_set("a", 3, &1).unwrap_err();
    let StateError::Refused { source, .. } = refused else { panic!("{refused}") };
    assert_eq!(source, ChangeError::Conflict { wanted: 3, found: 0 });
    store.set("a", &"text").unwrap();
    assert!(matches!(store.get::<u64>("a"), Err(StateError::Decode { .. })));
    assert_eq!(store.get::<String>("a").unwrap().as_deref(), Some("text"));
}

#[test]
fn a_key_whose_time_is_over_is_read_by_nobody_also_without_a_relay() {
    let store = store();
    let (_id, calls) = recorder(&store, "soon");
    store.set_for("soon", &1_u64, Duration::from_millis(1)).unwrap();
    store.set_for("later", &2_u64, LIMIT * 100).unwrap();
    let (_never_sent, never) = mpsc::channel::<()>();
    for _ in 0..1_000 {
        if store.get::<u64>("soon").unwrap().is_none() {
            break;
        }
        _ = never.recv_timeout(Duration::from_millis(5));
    }

    assert_eq!(store.values("#").unwrap().len(), 1);
    assert_eq!(store.get::<u64>("later").unwrap(), Some(2));
    let last = std::iter::from_fn(|| Some(next(&calls))).find(|call| call.1.is_none());
    assert_eq!(last.map(|call| call.0), Some("soon".to_owned()));
}
