//! Tests of the pool, and what they share with those of the bus.
//!
//! Nothing here sleeps: a worker is kept busy by a job that waits for a signal, and a pool that is
//! stopped has run everything.

mod events;

use std::{panic::panic_any, thread, time::Duration};

use super::*;
use crate::base::{
    clock::Clock,
    lane::JOBS,
    lifecycle::{Cause, Panics, Stop},
    lock::{Rank, Ranked},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
/// A limit that is meant to pass.
const SHORT: Duration = Duration::from_millis(30);

fn pool(workers: usize) -> Arc<Pool> {
    let settings = PoolSettings { workers: workers.try_into().unwrap() };
    Arc::new(Pool::start(settings, Stop::default(), Panics::default()).unwrap())
}

/// Stops `pool` and expects that nothing was in its way.
#[track_caller]
fn finish(pool: &Pool) {
    assert_eq!(pool.stop(LONG), Report::default());
}

/// Waits until somebody raises `signal`.
#[track_caller]
fn await_signal(signal: &Stop) {
    assert!(signal.wait(LONG), "nobody raised the signal");
}

/// Keeps `worker` busy until the signal that this returns is raised.
#[track_caller]
fn block(pool: &Pool, worker: usize) -> Stop {
    let (begun, release) = (Stop::default(), Stop::default());
    let (says, waits) = (begun.clone(), release.clone());
    let job = move || {
        says.raise(Cause::Requested);
        await_signal(&waits);
    };
    pool.submit_to(worker, LONG, job).unwrap();
    await_signal(&begun);
    release
}

/// Takes all room in the lane of a `worker` that is busy.
#[track_caller]
fn fill(pool: &Pool, worker: usize) {
    for _ in 0..JOBS.capacity {
        pool.submit_to(worker, Duration::ZERO, || ()).unwrap();
    }
}

/// How often something happened, to be counted where it happens.
#[derive(Clone, Default)]
struct Count(Arc<AtomicU64>);

impl Count {
    fn add(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn value(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[test]
fn jobs_of_one_key_run_in_order_and_never_two_at_once_under_many_publishers() {
    const PUBLISHERS: usize = 4;
    const JOBS_EACH: usize = 300;
    struct Seen {
        busy: AtomicBool,
        jobs: Ranked<Vec<(usize, usize)>>,
    }
    let new_seen = || {
        Arc::new(Seen { busy: AtomicBool::new(false), jobs: Ranked::new(Rank::Log, Vec::new()) })
    };
    let pool = pool(3);
    let keys: Vec<_> = (0..5).map(|key| (format!("key/{key}"), new_seen())).collect();

    thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let (pool, keys) = (&pool, &keys);
            scope.spawn(move || {
                for n in 0..JOBS_EACH {
                    for (key, seen) in keys {
                        let seen = Arc::clone(seen);
                        let job = move || {
                            assert!(!seen.busy.swap(true, Ordering::SeqCst));
                            seen.jobs.with(|jobs| jobs.push((publisher, n)));
                            thread::yield_now();
                            seen.busy.store(false, Ordering::SeqCst);
                        };
                        pool.submit(key, LONG, job).unwrap();
                    }
                }
            });
        }
    });
    finish(&pool);

    assert_eq!(pool.stats().panicked, 0, "two jobs of a key ran at once");
    for (key, seen) in &keys {
        let jobs = seen.jobs.with(std::mem::take);
        assert_eq!(jobs.len(), PUBLISHERS * JOBS_EACH);
        for publisher in 0..PUBLISHERS {
            let order = jobs.iter().filter(|(from, _)| *from == publisher).map(|(_, n)| *n);
            assert!(order.eq(0..JOBS_EACH), "{key} is out of order");
        }
    }
}

#[test]
fn keys_spread_over_all_workers_and_stay_where_they_are() {
    let pool = pool(4);
    let mut jobs = [0; 4];
    for n in 0..400 {
        let key = format!("key/{n}");
        jobs[pool.worker_of(&key)] += 1;
        assert_eq!(pool.worker_of(&key), pool.worker_of(&key.clone()));
    }
    assert!(jobs.iter().all(|jobs| 50 < *jobs), "{jobs:?}");
}

#[test]
fn a_full_lane_refuses_after_the_limit_and_not_before() {
    let pool = pool(2);
    let release = block(&pool, 1);
    fill(&pool, 1);

    let clock = Clock::default();
    let before = clock.now();
    assert_eq!(pool.submit_to(1, SHORT, || ()), Err(BusError::Full));
    let took = clock.now() - before;
    assert_eq!(pool.submit_to(1, Duration::ZERO, || ()), Err(BusError::Full));
    assert_eq!(pool.submit_to(0, Duration::ZERO, || ()), Ok(()), "another worker has room");

    assert!(SHORT <= took && took < LONG, "{took:?}");
    let stats = pool.stats();
    assert_eq!((stats.refused, stats.limit), (2, 2 * JOBS.capacity));
    assert!(JOBS.capacity <= stats.depth, "{stats:?}");
    release.raise(Cause::Requested);
    finish(&pool);
    let stats = pool.stats();
    assert_eq!((stats.run, stats.depth), (JOBS.capacity as u64 + 2, 0));
}

#[test]
fn there_is_no_worker_beyond_the_last() {
    let pool = pool(2);
    assert_eq!(pool.workers(), 2);
    let wrong = pool.submit_to(2, Duration::ZERO, || ());
    assert_eq!(wrong, Err(BusError::NoWorker { worker: 2, workers: 2 }));
}

#[test]
fn a_job_that_panics_is_counted_and_the_worker_goes_on() {
    struct PanicsToo;
    impl Drop for PanicsToo {
        fn drop(&mut self) {
            panic!("on purpose, in a destructor");
        }
    }
    let (stop, panics) = (Stop::default(), Panics::default());
    let settings = PoolSettings { workers: 1.try_into().unwrap() };
    let pool = Pool::start(settings, stop.clone(), Arc::clone(&panics)).unwrap();
    let ran = Count::default();

    pool.submit("a", LONG, || panic!("on purpose")).unwrap();
    pool.submit("a", LONG, || panic_any(PanicsToo)).unwrap();
    let counts = ran.clone();
    pool.submit("a", LONG, move || counts.add()).unwrap();
    finish(&pool);

    assert_eq!(ran.value(), 1);
    let stats = pool.stats();
    assert_eq!((stats.run, stats.panicked), (3, 2));
    assert!(!stop.is_raised() && panics.load(Ordering::Relaxed) == 0, "the worker itself died");
}

#[test]
fn a_stop_runs_what_was_taken_and_refuses_what_comes_later() {
    let pool = pool(2);
    let release = [block(&pool, 0), block(&pool, 1)];
    let ran = Count::default();
    for n in 0..200 {
        let ran = ran.clone();
        pool.submit_to(n % 2, Duration::ZERO, move || ran.add()).unwrap();
    }
    release.iter().for_each(|release| _ = release.raise(Cause::Requested));
    finish(&pool);

    assert_eq!(ran.value(), 200);
    assert_eq!(pool.submit("a", LONG, || ()), Err(BusError::Stopped));
    assert_eq!(pool.submit("a", Duration::ZERO, || ()), Err(BusError::Stopped));
    assert_eq!(pool.stats().refused, 2);
    assert_eq!(pool.stop(LONG), Report::default(), "again");
}

#[test]
fn a_stop_whose_limit_passes_names_the_thread_and_counts_what_it_threw_away() {
    let pool = pool(2);
    let release = block(&pool, 1);
    let ran = Count::default();
    for _ in 0..10 {
        let ran = ran.clone();
        pool.submit_to(1, Duration::ZERO, move || ran.add()).unwrap();
    }
    let report = Report { late: vec!["bus-1".to_owned()], dropped: 10 };
    assert_eq!(pool.stop(SHORT), report);
    assert_eq!(pool.stop(LONG), report, "the same for whoever asks again");
    assert_eq!(pool.stats().dropped, 10);
    release.raise(Cause::Requested);
    drop(pool);
    assert_eq!(ran.value(), 0);
}

#[test]
fn two_stops_at_once_wait_for_the_same_end() {
    let pool = pool(1);
    let release = block(&pool, 0);
    let ran = Count::default();
    let counts = ran.clone();
    pool.submit_to(0, Duration::ZERO, move || counts.add()).unwrap();
    thread::scope(|scope| {
        let stops = [0, 1].map(|_| {
            scope.spawn(|| {
                let report = pool.stop(LONG);
                (report, ran.value())
            })
        });
        // Refusing is what a stop begins with.
        let clock = Clock::default();
        let deadline = clock.now() + LONG;
        while pool.submit_to(0, Duration::ZERO, || ()) != Err(BusError::Stopped) {
            assert!(clock.now() < deadline, "no stop has begun");
            thread::yield_now();
        }
        release.raise(Cause::Requested);
        for stop in stops {
            assert_eq!(stop.join().unwrap(), (Report::default(), 1));
        }
    });
}

#[test]
fn who_waits_for_room_during_a_stop_delays_no_other_worker_and_is_accounted_for() {
    let mut was_waiting = false;
    for _ in 0..200 {
        let pool = pool(2);
        let release = block(&pool, 0);
        fill(&pool, 0);
        let starts = Stop::default();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                starts.raise(Cause::Requested);
                pool.submit_to(0, LONG, || ())
            });
            await_signal(&starts);
            assert_eq!(pool.stop(SHORT).late, ["bus-0"]);
            was_waiting |= waiter.join().unwrap().is_ok();
        });
        let stats = pool.stats();
        assert_eq!(stats.dropped + stats.refused, JOBS.capacity as u64 + 1, "{stats:?}");
        release.raise(Cause::Requested);
        if was_waiting {
            return;
        }
    }
    panic!("nobody was ever waiting when the stop began");
}

#[test]
fn a_job_that_submits_to_its_own_full_lane_is_refused_after_its_limit() {
    let pool = pool(1);
    let (begun, release) = (Stop::default(), Stop::default());
    let (says, waits, again) = (begun.clone(), release.clone(), Arc::downgrade(&pool));
    let refused = Stop::default();
    let tells = refused.clone();
    let job = move || {
        says.raise(Cause::Requested);
        await_signal(&waits);
        let pool = again.upgrade().expect("the test holds the pool");
        let clock = Clock::default();
        let before = clock.now();
        assert_eq!(pool.submit_to(0, SHORT, || ()), Err(BusError::Full));
        assert!(SHORT <= clock.now() - before);
        tells.raise(Cause::Requested);
    };
    pool.submit_to(0, LONG, job).unwrap();
    await_signal(&begun);
    fill(&pool, 0);
    release.raise(Cause::Requested);
    await_signal(&refused);
    finish(&pool);
    assert_eq!(pool.stats().panicked, 0);
}

#[test]
fn a_job_that_stops_its_pool_only_begins_the_stop() {
    let pool = pool(2);
    let release = block(&pool, 0);
    let (ran, again) = (Count::default(), Arc::downgrade(&pool));
    let stopped = Stop::default();
    let (counts, says) = (ran.clone(), stopped.clone());
    let job = move || {
        let pool = again.upgrade().expect("the test holds the pool");
        assert_eq!(pool.stop(LONG).late, ["bus-0", "bus-1"]);
        assert_eq!(pool.submit_to(1, LONG, || ()), Err(BusError::Stopped));
        counts.add();
        says.raise(Cause::Requested);
    };
    pool.submit_to(0, LONG, job).unwrap();
    let counts = ran.clone();
    pool.submit_to(0, LONG, move || counts.add()).unwrap();
    release.raise(Cause::Requested);
    await_signal(&stopped);

    finish(&pool);

    assert_eq!((ran.value(), pool.stats().panicked), (2, 0));
}

#[test]
fn a_pool_that_is_dropped_runs_what_it_took() {
    let pool = pool(1);
    let release = block(&pool, 0);
    let ran = Count::default();
    let counts = ran.clone();
    pool.submit_to(0, LONG, move || counts.add()).unwrap();
    release.raise(Cause::Requested);
    drop(pool);
    assert_eq!(ran.value(), 1);
}

#[test]
fn a_pool_that_its_own_job_drops_runs_what_it_took() {
    let pool = pool(1);
    let release = block(&pool, 0);
    let (last, ended) = (Arc::clone(&pool), Stop::default());
    pool.submit_to(0, LONG, move || drop(last)).unwrap();
    let says = ended.clone();
    pool.submit_to(0, LONG, move || _ = says.raise(Cause::Requested)).unwrap();
    drop(pool);
    release.raise(Cause::Requested);
    await_signal(&ended);
}

#[test]
fn the_longest_limit_there_is_is_no_problem() {
    let pool = pool(1);
    pool.submit("a", Duration::MAX, || ()).unwrap();
    assert_eq!(pool.stop(Duration::MAX), Report::default());
}
