//! What becomes of changes between the lock, the store and those who wait.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::*;

const EPOCH: Epoch = Epoch::from_number(9);
const NOW: Now = Now { uptime_ms: 100, unix_ms: 1_000 };

/// What somebody who waits was told; `None` where it was asked to pass that on.
type Told = Option<(Option<u64>, Result<Stored, Unsaved>)>;

struct Waiter(SyncSender<Told>);

impl Settle for Waiter {
    fn settle(&self, request: Option<u64>, outcome: &Result<Stored, Unsaved>) {
        self.0.send(Some((request, *outcome))).unwrap();
    }

    fn settled(&self) {
        self.0.send(None).unwrap();
    }
}

fn waiter() -> (Arc<dyn Settle>, Receiver<Told>) {
    let (tell, told) = sync_channel(100);
    (Arc::new(Waiter(tell)), told)
}

fn limits() -> Limits {
    Limits { keys_max: 600, value_bytes_max: 9, bytes_max: 1_000_000, tombstones_max: 1 }
}

fn durable() -> Space {
    Space::new(EPOCH, limits(), true, 2)
}

fn change<'a>(key: &'a Name, value: Option<&'a str>) -> Change<'a> {
    Change { key, value, if_version: None, ttl_ms: None, user: None }
}

fn key(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn set(space: &Space, name: &str, value: &str) -> (Stored, Applied) {
    space.change(&change(&key(name), Some(value)), NOW, None).unwrap()
}

fn values(space: &Space, filter: &str) -> Vec<String> {
    let values = space.list(&Filter::parse(filter).unwrap());
    values.iter().map(|(key, entry)| format!("{key}={}", entry.value().unwrap())).collect()
}

#[test]
fn a_change_in_memory_is_seen_at_once_and_nobody_waits() {
    let space = Space::of_test(1);
    assert!(!space.is_durable() && !space.has_pending());
    let (who, told) = waiter();
    let (stored, applied) =
        space.change(&change(&key("a"), Some("1")), NOW, Some((&who, Some(7)))).unwrap();
    assert_eq!(
        stored,
        Stored {
            epoch: space.epoch(),
            version: 1,
            durability: Durability::Memory,
            is_deletion: false
        }
    );
    assert!(!applied.is_pending && applied.is_new);
    assert_eq!(values(&space, "#"), ["a=1"]);
    space.stored(&Pending { upto: 1, ..Pending::default() }).tell();
    assert!(told.try_recv().is_err());
}

#[test]
fn who_changes_what_is_durable_hears_of_it_when_it_is_stored() {
    let space = durable();
    let (who, told) = waiter();
    let ask = |value, request| {
        let key = key("a");
        space.change(&change(&key, value), NOW, Some((&who, request))).unwrap()
    };
    let (first, applied) = ask(Some("1"), Some(7));
    assert!(applied.is_pending && space.is_durable() && space.has_pending());
    assert_eq!((first.epoch, first.durability), (EPOCH, Durability::Synced));
    let taken = space.take();
    let (second, _) = ask(None, None);
    assert!(second.is_deletion && values(&space, "#").is_empty());

    let settled = space.stored(&taken);
    assert_eq!(settled.size, (1, applied.bytes));
    settled.tell();
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [Some((Some(7), Ok(first))), None]);
    assert_eq!(values(&space, "#"), ["a=1"]);

    assert_eq!(space.take().size().0, 1);
    space.not_stored(None).tell();
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [Some((None, Err(Unsaved))), None]);
    assert!(!space.has_pending() && values(&space, "#") == ["a=1"]);
}

#[test]
fn many_changes_come_to_be_seen_although_the_lock_is_held_for_few() {
    let space = durable();
    (0..600).for_each(|number| _ = set(&space, &format!("k/{number}"), "1"));
    let taken = space.take();
    assert_eq!(space.stored(&taken).size.0, 600);
    assert_eq!(values(&space, "k/+").len(), 600);
}

#[test]
fn what_the_store_has_is_taken_in_and_what_waited_is_given_up() {
    let space = durable();
    set(&space, "a", "1");
    let had = space.take();
    drop(space.not_stored(Some(had.clone())));
    set(&space, "b", "2");
    assert_eq!(space.restore(had.entries, 0, 5).size.0, 1);
    assert_eq!(values(&space, "#"), ["a=1"]);
    assert_eq!(set(&space, "b", "2").0.version, 6);

    drop(space.not_stored(None));
    assert!(!space.has_pending());
    space.store_anew();
    let all = space.take();
    assert!(all.is_whole && all.entries.len() == 1 && space.has_pending());
    drop(space.stored(&all));
    assert!(!space.has_pending());
}

#[test]
fn what_has_expired_goes_a_few_at_a_time() {
    let space = durable();
    for name in ["a", "b", "c"] {
        let key = key(name);
        space.change(&Change { ttl_ms: Some(50), ..change(&key, Some("1")) }, NOW, None).unwrap();
    }
    assert_eq!(space.next_expiry_ms(), Some(150));
    let at = |uptime_ms| Now { uptime_ms, unix_ms: 0 };
    assert!(space.expire(at(149), 9).is_empty());
    assert_eq!(space.expire(at(150), 2).len(), 2);
    assert_eq!(space.expire(at(150), 2).len(), 1);
    assert_eq!(space.next_expiry_ms(), None);
    // All of them wait: three values and three deletions.
    assert_eq!(space.not_stored(None).size.0, 6);
}

#[test]
fn bounds_apply_from_when_they_are_set_but_to_what_the_relay_says() {
    let space = durable();
    set(&space, "a", "1");
    space.apply_limits(Limits { keys_max: 1, bytes_max: 1, ..limits() });
    let key = key("b");
    let change = change(&key, Some("\"longer than nine\""));
    let error = space.change(&change, NOW, None).unwrap_err();
    assert!(matches!(error, ChangeError::TooLarge { .. }), "{error}");
    assert!(space.change_beyond_bounds(&change, NOW).unwrap().1.is_new);
    let full = Err(ChangeError::Keys { max: 1 });
    let another = Change { value: Some("1"), key: &self::key("c"), ..change };
    assert_eq!(space.change(&another, NOW, None), full, "the bounds are what they were");
}

#[test]
fn the_committer_and_the_writers_are_told_once_until_they_look() {
    let space = durable();
    assert!(space.must_tell_committer() && !space.must_tell_committer());
    space.committer_looks();
    assert!(space.must_tell_committer());

    let woken = || {
        let mut woken = Vec::new();
        space.wake(|writer| woken.push(writer));
        woken
    };
    assert!(woken().is_empty());
    space.follow(1);
    assert_eq!((woken(), woken()), (vec![1], vec![]));
    space.woken(1);
    assert_eq!(woken(), [1]);
    space.woken(1);
    space.unfollow(1);
    assert!(woken().is_empty());
}

#[test]
fn a_change_is_announced_to_the_one_who_asked_for_that() {
    let space = Space::of_test(1);
    space.announce();
    let (tell, told) = sync_channel(9);
    space.on_change(move || tell.send(()).unwrap());
    space.announce();
    assert_eq!(told.try_iter().count(), 1);
}
