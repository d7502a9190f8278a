//! Tests of the bus: who gets which event, in which order, and who does not any more.

use std::sync::Weak;

use super::*;
use crate::name::Filter;

/// Number `n` of those that `publisher` published about `key`.
struct Note {
    key: String,
    publisher: usize,
    n: usize,
}

impl Event for Note {
    fn key(&self) -> &str {
        &self.key
    }
}

fn note(key: &str, n: usize) -> Note {
    Note { key: key.to_owned(), publisher: 0, n }
}

fn bus(workers: usize) -> (Arc<Pool>, Arc<EventBus<Note>>) {
    let pool = pool(workers);
    (Arc::clone(&pool), Arc::new(EventBus::new(pool)))
}

fn filter(text: &str) -> Option<Filter> {
    Some(Filter::parse(text).unwrap())
}

/// Counts the events that `filter` lets through.
fn counting(bus: &EventBus<Note>, filter: Option<Filter>) -> (SubscriptionId, Count) {
    let count = Count::default();
    let counts = count.clone();
    (bus.subscribe(filter, move |_| counts.add()), count)
}

#[test]
fn a_filter_decides_who_gets_an_event() {
    for (text, key, expected) in [
        ("a/b", "a/b", 1),
        ("a/b", "a/c", 0),
        ("a/+", "a/b", 1),
        ("a/+", "a/b/c", 0),
        ("#", "a/b", 1),
        ("#", "$sys/a", 0),
        ("$sys/#", "$sys/a", 1),
        ("#", "no name: a//b", 0),
    ] {
        let (pool, bus) = bus(1);
        let (_, some) = counting(&bus, filter(text));
        assert_eq!(bus.publish(note(key, 0), LONG), Ok(expected), "{text} {key}");
        let (_, all) = counting(&bus, None);
        assert_eq!(bus.publish(note(key, 1), LONG), Ok(expected + 1), "{text} {key}");
        finish(&pool);
        assert_eq!((some.value(), all.value()), (2 * expected as u64, 1), "{text} {key}");
    }
}

#[test]
fn an_event_that_nobody_wants_is_no_job() {
    let (pool, bus) = bus(1);
    assert_eq!(bus.publish(note("a", 0), LONG), Ok(0));
    let _subscribed = counting(&bus, filter("b"));
    assert_eq!(bus.publish(note("a", 0), LONG), Ok(0));
    finish(&pool);
    assert_eq!(bus.publish(note("a", 0), LONG), Ok(0));
    assert_eq!((pool.stats().run, pool.stats().refused), (0, 0));
}

#[test]
fn removing_one_of_three_handlers_of_a_key_leaves_the_others() {
    let (pool, bus) = bus(2);
    let handlers = [(); 3].map(|()| counting(&bus, filter("a")));
    assert_eq!(bus.publish(note("a", 0), LONG), Ok(3));
    // The event is handled before the removal, which would take it away otherwise.
    let handled = Stop::default();
    let says = handled.clone();
    pool.submit("a", LONG, move || _ = says.raise(Cause::Requested)).unwrap();
    await_signal(&handled);

    assert!(bus.unsubscribe(handlers[1].0));
    assert!(!bus.unsubscribe(handlers[1].0), "it is gone already");
    assert_eq!(bus.publish(note("a", 1), LONG), Ok(2));
    finish(&pool);

    assert_eq!(handlers.map(|(_, count)| count.value()), [2, 1, 2]);
    assert_eq!(bus.subscriptions(), 2);
}

#[test]
fn a_subscription_has_a_number_of_its_own_on_all_buses() {
    let ((_one_pool, one), (_other_pool, other)) = (bus(1), bus(1));
    let mut ids = Vec::new();
    for _ in 0..10 {
        let (id, _) = counting(&one, None);
        assert!(!other.unsubscribe(id));
        assert!(one.unsubscribe(id));
        ids.extend([id, counting(&other, None).0]);
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[test]
fn a_handler_that_panics_is_counted_and_keeps_nobody_from_running() {
    let (pool, bus) = bus(2);
    let (before_id, before) = counting(&bus, None);
    let bad = bus.subscribe(None, |note: &Note| assert!(note.n.is_multiple_of(2), "on purpose"));
    let (_, after) = counting(&bus, None);
    for n in 0..10 {
        assert_eq!(bus.publish(note("a", n), LONG), Ok(3), "it stays subscribed");
    }
    finish(&pool);

    assert_eq!((before.value(), after.value()), (10, 10));
    assert_eq!((bus.panicked_in(bad), bus.panicked_in(before_id)), (Some(5), Some(0)));
    assert_eq!((bus.panicked(), pool.stats().panicked, pool.stats().run), (5, 5, 10));
    assert!(bus.unsubscribe(bad));
    assert_eq!(bus.panicked_in(bad), None);
}

#[test]
fn publishing_to_a_full_lane_is_refused_after_its_limit_and_counted() {
    let (pool, bus) = bus(1);
    let (_, count) = counting(&bus, None);
    let release = block(&pool, 0);
    fill(&pool, 0);

    let kept = Arc::new(note("a", 0));
    let clock = Clock::default();
    let before = clock.now();
    assert_eq!(bus.publish(Arc::clone(&kept), SHORT), Err(BusError::Full));
    let took = clock.now() - before;
    assert_eq!(bus.publish(Arc::clone(&kept), Duration::ZERO), Err(BusError::Full));

    assert!(SHORT <= took && took < LONG, "{took:?}");
    assert_eq!(pool.stats().refused, 2);
    release.raise(Cause::Requested);
    assert_eq!(bus.publish(kept, LONG), Ok(1), "there is room again");
    finish(&pool);
    assert_eq!(count.value(), 1);
}

#[test]
fn a_stop_delivers_what_was_published_and_refuses_what_comes_later() {
    let (pool, bus) = bus(2);
    let release = [block(&pool, 0), block(&pool, 1)];
    let (_, count) = counting(&bus, None);
    for n in 0..100 {
        bus.publish(note(&format!("key/{n}"), n), Duration::ZERO).unwrap();
    }
    assert_eq!(count.value(), 0);
    release.iter().for_each(|release| _ = release.raise(Cause::Requested));
    finish(&pool);
    assert_eq!(count.value(), 100);
    assert_eq!(bus.publish(note("a", 0), LONG), Err(BusError::Stopped));
}

#[test]
fn fifty_handlers_get_a_hundred_concurrent_events_each_in_the_order_of_the_key() {
    const HANDLERS: usize = 50;
    const PUBLISHERS: usize = 10;
    const EVENTS_EACH: usize = 10;
    type Seen = Arc<Ranked<Vec<(String, usize, usize)>>>;
    let (pool, bus) = bus(4);
    let seen: Vec<Seen> =
        (0..HANDLERS).map(|_| Arc::new(Ranked::new(Rank::Log, Vec::new()))).collect();
    for seen in &seen {
        let seen = Arc::clone(seen);
        bus.subscribe(filter("key/+"), move |note: &Note| {
            let entry = (note.key.clone(), note.publisher, note.n);
            seen.with(|seen| seen.push(entry));
        });
    }
    thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let bus = &bus;
            scope.spawn(move || {
                for n in 0..EVENTS_EACH {
                    let event = Note { key: format!("key/{}", n % 5), publisher, n };
                    assert_eq!(bus.publish(event, LONG), Ok(HANDLERS));
                }
            });
        }
    });
    finish(&pool);

    let seen: Vec<_> = seen.iter().map(|seen| seen.with(std::mem::take)).collect();
    assert!(seen.iter().all(|seen| seen.len() == PUBLISHERS * EVENTS_EACH));
    for key in (0..5).map(|key| format!("key/{key}")) {
        let of_key = |seen: &[(String, usize, usize)]| {
            let found = seen.iter().filter(|(found, ..)| *found == key);
            found.map(|(_, publisher, n)| (*publisher, *n)).collect::<Vec<_>>()
        };
        let first = of_key(&seen[0]);
        assert!(seen.iter().all(|seen| of_key(seen) == first), "{key} has one order for all");
        for publisher in 0..PUBLISHERS {
            let own = first.iter().filter(|(from, _)| *from == publisher).map(|(_, n)| *n);
            assert!(own.is_sorted(), "{key} keeps the order of each publisher");
        }
    }
}

#[test]
fn a_handler_is_not_started_for_waiting_events_once_it_is_unsubscribed() {
    let (pool, bus) = bus(1);
    let release = block(&pool, 0);
    let ((id, gone), (_, stays)) = (counting(&bus, None), counting(&bus, None));
    for n in 0..10 {
        assert_eq!(bus.publish(note("a", n), Duration::ZERO), Ok(2));
    }
    assert!(bus.unsubscribe(id));
    release.raise(Cause::Requested);
    finish(&pool);
    assert_eq!((gone.value(), stays.value()), (0, 10));
}

#[test]
fn no_handler_starts_after_unsubscribe_returned_while_others_publish() {
    const WORKERS: usize = 2;
    const ROUNDS: usize = 200;
    let (pool, bus) = bus(WORKERS);
    let enough = AtomicBool::new(false);
    let mut late_starts = Vec::new();
    thread::scope(|scope| {
        for publisher in 0..3 {
            let (bus, enough) = (&bus, &enough);
            scope.spawn(move || {
                let mut n = 0;
                while !enough.load(Ordering::SeqCst) {
                    let event = Note { key: format!("key/{}", n % 7), publisher, n };
                    bus.publish(event, LONG).expect("the pool is open, and its workers work");
                    n += 1;
                }
            });
        }
        for _ in 0..ROUNDS {
            let (gone, early, late) =
                (Arc::new(AtomicBool::new(false)), Count::default(), Count::default());
            let (is_gone, counts_early, counts_late) =
                (Arc::clone(&gone), early.clone(), late.clone());
            let id = bus.subscribe(None, move |_| {
                let counts =
                    if is_gone.load(Ordering::SeqCst) { &counts_late } else { &counts_early };
                counts.add();
            });
            let clock = Clock::default();
            let deadline = clock.now() + LONG;
            while early.value() < 10 && clock.now() < deadline {
                thread::yield_now();
            }
            let unsubscribed = bus.unsubscribe(id);
            gone.store(true, Ordering::SeqCst);
            let in_use = 10 <= early.value();
            late_starts.push((unsubscribed && in_use, late));
            if !in_use {
                break;
            }
        }
        enough.store(true, Ordering::SeqCst);
    });
    finish(&pool);
    for (was_in_use, late) in late_starts {
        assert!(was_in_use, "events came, and the handler was there until it was unsubscribed");
        // What has begun on a worker may come to its first line after all of this.
        assert!(late.value() <= WORKERS as u64, "{} starts after the end", late.value());
    }
}

#[test]
fn a_handler_may_unsubscribe_itself_and_those_after_it() {
    let (pool, bus) = bus(1);
    let ids = Arc::new(Ranked::new(Rank::Log, Vec::new()));
    let (taken, weak) = (Arc::clone(&ids), Arc::downgrade(&bus));
    let first = bus.subscribe(None, move |_| {
        let bus = weak.upgrade().expect("the test holds the bus");
        for id in taken.with(std::mem::take) {
            assert!(bus.unsubscribe(id));
        }
    });
    let ((second, removed), (_, stays)) = (counting(&bus, None), counting(&bus, None));
    ids.with(|ids| ids.extend([first, second]));
    assert_eq!(bus.publish(note("a", 0), LONG), Ok(3));
    finish(&pool);
    assert_eq!((removed.value(), stays.value()), (0, 1));
    assert_eq!((bus.subscriptions(), bus.panicked()), (1, 0));
}

#[test]
fn a_handler_may_publish_and_subscribe() {
    let (pool, bus) = bus(2);
    let done = Stop::default();
    let (says, weak): (_, Weak<EventBus<Note>>) = (done.clone(), Arc::downgrade(&bus));
    bus.subscribe(filter("chain/+"), move |event: &Note| {
        let bus = weak.upgrade().expect("the test holds the bus");
        if event.n == 100 {
            counting(&bus, None);
            says.raise(Cause::Requested);
        } else {
            let next = note(&format!("chain/{}", event.n % 3), event.n + 1);
            assert_eq!(bus.publish(next, Duration::ZERO), Ok(1));
        }
    });
    bus.publish(note("chain/0", 0), LONG).unwrap();
    await_signal(&done);
    finish(&pool);
    assert_eq!((pool.stats().run, pool.stats().panicked), (101, 0));
    assert_eq!(bus.subscriptions(), 2);
}

#[test]
fn what_a_handler_owns_is_dropped_with_no_lock_held() {
    struct UsesTheBus(Weak<EventBus<Note>>, Count);
    impl Drop for UsesTheBus {
        fn drop(&mut self) {
            let bus = self.0.upgrade().expect("the test holds the bus");
            counting(&bus, None);
            self.1.add();
        }
    }
    let (_pool, bus) = bus(1);
    let dropped = Count::default();
    let owned = UsesTheBus(Arc::downgrade(&bus), dropped.clone());
    let id = bus.subscribe(None, move |_| _ = owned.1.value());
    assert!(bus.unsubscribe(id));
    assert_eq!((dropped.value(), bus.subscriptions()), (1, 1));
}

#[test]
fn events_that_were_taken_are_delivered_after_their_bus_is_gone() {
    let (pool, bus) = bus(1);
    let release = block(&pool, 0);
    let (_, count) = counting(&bus, None);
    bus.publish(note("a", 0), LONG).unwrap();
    drop(bus);
    release.raise(Cause::Requested);
    finish(&pool);
    assert_eq!(count.value(), 1);
}

#[test]
fn an_event_may_be_offered_with_a_lock_held_and_not_waited_for() {
    let (pool, bus) = bus(1);
    let (_, count) = counting(&bus, None);
    let log = Ranked::new(Rank::Log, ());
    assert_eq!(log.with(|()| bus.publish(note("a", 0), Duration::ZERO)), Ok(1));
    finish(&pool);
    assert_eq!(count.value(), 1);
}
