//! The store as the relay uses it, on a disk that keeps its word and on one that does not.

mod crash;
mod damage;
mod full;
mod inspect;
mod journal;
mod model;
mod opening;
mod reading;
mod retention;
mod values;

use std::{sync::Arc, time::Duration};

use crate::{
    config::{Policy, SyncPolicy},
    name::{Name, UserName},
    store::{
        Batch, ConsumerChange, ConsumerState, Database, Key, Loaded, NewTopic, Page, Pages, Run,
        StateBatch, StateRecord, Store, StoreError, StoreSettings, TopicId, sim::SimDisk,
    },
    wire::{frame, json, position::Epoch},
};

/// A policy that keeps everything.
const KEEP_ALL: Policy = Policy {
    max_events: u64::MAX,
    max_bytes: u64::MAX,
    max_age: None,
    durable: true,
    sync: SyncPolicy::Always,
    sync_interval: Duration::from_secs(1),
    max_tail: 1 << 20,
};

/// A name with everything that JSON must escape.
fn name(topic: TopicId) -> Name {
    Name::parse(&format!("home/\"qu\\oted\",\"seq\":9/ü{topic}")).unwrap()
}

fn epoch(topic: TopicId) -> Epoch {
    Epoch::from_number(topic.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn new_topic(id: TopicId) -> NewTopic {
    NewTopic { id, name: name(id), epoch: epoch(id), tail: 0 }
}

/// When an event is appended: two events share each time.
fn time(seq: u64) -> u64 {
    1_000_000 + seq / 2 * 10
}

/// The frame of an event, which topic and sequence say all about.
fn event(topic: TopicId, seq: u64) -> Vec<u8> {
    let mut text = b"{\"type\":\"event\",\"topic\":".to_vec();
    json::push_string(&mut text, name(topic).as_str());
    let fill = "x".repeat(usize::try_from((seq * 7 + topic * 13) % 300).unwrap());
    let rest = format!(",\"seq\":{seq},\"time\":{},\"data\":\"{fill}\"}}", time(seq));
    text.extend_from_slice(rest.as_bytes());
    let mut out = Vec::new();
    frame::push_text(&mut out, &text);
    out
}

fn events(topic: TopicId, first: u64, last: u64) -> Vec<u8> {
    (first..=last).flat_map(|seq| event(topic, seq)).collect()
}

fn key(seq: u64) -> Key {
    Key { seq, time_ms: time(seq), text: format!("key {seq}").into() }
}

/// Consecutive events, every third with a key.
fn run(topic: TopicId, first: u64, count: u64) -> Run {
    let last = first + count - 1;
    let keys = (first..=last).filter(|seq| seq % 3 == 0).map(key).collect();
    let frames = events(topic, first, last);
    Run { topic, first, count, first_ms: time(first), last_ms: time(last), frames, keys }
}

fn position(topic: TopicId, seq: u64) -> ConsumerChange {
    let state = ConsumerState { seq, deliveries: 1, used_ms: seq };
    ConsumerChange { topic, name: UserName::parse("worker").unwrap(), state: Some(state) }
}

/// A key with a value that says all about it, or that it was deleted.
fn value(key: &str, version: u64, is_deleted: bool) -> StateRecord {
    let mut text = format!("{{\"type\":\"state\",\"version\":{version},\"key\":\"{key}\",");
    let start = text.len() + "\"value\":".len();
    let fill = "\u{e9}".repeat(usize::try_from(version * 7 % 200).unwrap());
    text +=
        &if is_deleted { "\"deleted\":true".to_owned() } else { format!("\"value\":\"{fill}\"") };
    let value = (!is_deleted).then_some(start..text.len());
    text += &format!(",\"time\":{}}}", time(version));
    let expires_unix_ms = (!is_deleted && version.is_multiple_of(3)).then(|| time(version) + 500);
    let (key, time_ms) = (Name::parse(key).unwrap(), time(version));
    StateRecord { key, version, time_ms, expires_unix_ms, text: text.into_bytes(), value }
}

/// Changes of the state, the last of them the newest.
fn state(changes: Vec<StateRecord>) -> StateBatch {
    let upto = changes.last().map_or(0, |change| change.version);
    let (epoch, forgotten) = (epoch(99), Vec::new());
    StateBatch { epoch, horizon: 0, upto, is_whole: false, changes, forgotten }
}

/// A batch with the first events of a topic.
fn first_batch(topic: TopicId, count: u64) -> Batch {
    Batch { topics: vec![new_topic(topic)], runs: vec![run(topic, 1, count)], ..Batch::default() }
}

fn runs(runs: impl IntoIterator<Item = Run>) -> Batch {
    Batch { runs: runs.into_iter().collect(), ..Batch::default() }
}

fn open(disk: &SimDisk) -> Result<(Database, Loaded), StoreError> {
    Database::open(Arc::new(disk.clone()), StoreSettings::default())
}

/// Reads in small bites until there is nothing more.
#[track_caller]
fn read_all(pages: &dyn Pages, topic: TopicId, after: u64, upto: u64) -> Vec<u8> {
    let (mut at, mut out) = (after, Vec::new());
    loop {
        match pages.read(topic, at, upto, 1_000, &mut out).unwrap() {
            Page::UpTo(done) if done == at => return out,
            Page::UpTo(done) => at = done,
            missing @ Page::Missing { .. } => {
                unreachable!("{missing:?} after {at} of topic {topic}")
            }
        }
    }
}

#[test]
fn what_is_committed_is_there_after_a_restart() {
    let disk = SimDisk::default();
    let (mut store, loaded) = open(&disk).unwrap();
    let mut batch = first_batch(7, 50);
    batch.positions.push(position(7, 12));
    store.commit(&batch).unwrap();
    store.commit(&runs([run(7, 51, 5)])).unwrap();
    store.close().unwrap();
    drop(store);

    let (store, again) = open(&disk).unwrap();

    let [topic] = &again.topics[..] else { unreachable!("{:?}", again.topics) };
    assert_eq!((topic.id, topic.first, topic.tail), (7, 1, 55));
    assert_eq!((topic.name.clone(), topic.epoch), (name(7), epoch(7)));
    assert_eq!((topic.newest_ms, topic.bytes), (time(55), events(7, 1, 55).len() as u64));
    assert_eq!((again.seed, again.incarnation), (loaded.seed, 0));
    assert_eq!(again.consumers[0].state, position(7, 12).state);
    assert_eq!(again.keys.len(), 18);
    assert_eq!(again.warnings, [""; 0]);
    assert_eq!(read_all(&*store.pages(), 7, 0, 55), events(7, 1, 55));
}

#[test]
fn a_forgotten_topic_leaves_nothing_and_is_counted() {
    let disk = SimDisk::default();
    let (mut store, _) = open(&disk).unwrap();
    store.commit(&first_batch(1, 9)).unwrap();
    let mut batch = first_batch(2, 9);
    batch.positions.extend([position(1, 3), position(2, 3)]);
    store.commit(&batch).unwrap();
    store.commit(&Batch { forgotten: vec![1], ..Batch::default() }).unwrap();
    drop(store);

    let (store, loaded) = open(&disk).unwrap();

    assert_eq!(loaded.incarnation, 1);
    assert_eq!(loaded.topics.iter().map(|topic| topic.id).collect::<Vec<_>>(), [2]);
    assert!(loaded.keys.iter().all(|(topic, _)| *topic == 2), "{:?}", loaded.keys);
    assert_eq!(loaded.consumers.len(), 1);
    assert_eq!(store.pages().read(1, 0, 9, 100, &mut Vec::new()).unwrap(), Page::UpTo(0));
    assert_eq!(read_all(&*store.pages(), 2, 0, 9), events(2, 1, 9));
}
