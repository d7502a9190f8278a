//! A publisher that waits for room in the backlog, and the committer that makes it.

use std::time::Duration;

use crate::{
    base::{
        clock::Clock,
        fault::Fault,
        lane,
        sync::{
            Arc,
            model::check::{finds, holds},
            thread,
        },
    },
    config::StoreSettings,
    metrics::labels::StoreFailure,
    server::vault::{Failure, Vault},
};

fn vault() -> Arc<Vault> {
    let (jobs, _inbox) = lane::open(lane::COMMITS);
    let wait = Duration::from_secs(3_600);
    let settings = StoreSettings { max_backlog: 100, backlog_wait: wait, ..Default::default() };
    Arc::new(Vault::new(jobs, &settings, Clock::manual(0), Arc::default()))
}

/// Two events wait for the disk, more than may; the committer stores them one by one.
fn room() {
    let vault = vault();
    (0..2).for_each(|_| vault.owe_bytes(100));
    let publisher = {
        let vault = Arc::clone(&vault);
        thread::spawn(move || assert!(vault.wait_for_room().is_ok()))
    };
    (0..2).for_each(|_| vault.settle((1, 100)));
    publisher.join().unwrap();
    assert_eq!((vault.backlog_bytes(), vault.has_room()), (0, true));
}

/// The store fails while a publisher waits for room: it is refused, and does not wait on.
fn failure() {
    let vault = vault();
    vault.owe_bytes(1_000);
    let publisher = {
        let vault = Arc::clone(&vault);
        thread::spawn(move || assert!(vault.wait_for_room().is_err()))
    };
    vault.fail(Failure { kind: StoreFailure::Full, text: "the disk is full", retry_after_ms: 1 });
    publisher.join().unwrap();
}

#[test]
fn a_publisher_that_waits_for_room_goes_on_when_there_is_some() {
    holds(3_000, room);
    finds(Fault::RoomWithoutLock, room);
}

#[test]
fn a_publisher_that_waits_for_room_is_refused_when_the_store_fails() {
    holds(3_000, failure);
    finds(Fault::Unnotified, failure);
}
