//! Durable topics: publishers, the committer that answers them, and who follows meanwhile.

use super::{
    memory::Memory,
    rig::{Client, Rig, TOPIC},
};
use crate::{
    base::{
        fault::Fault,
        sync::{
            Arc,
            model::check::{finds, holds},
            thread,
        },
    },
    config::Policy,
    name::Name,
    topic::{Draft, Topic, dedupe::Window},
    wire::position::Epoch,
};

const PUBLISH: &str = r#"{"type":"publish","topic":"a","data":1,"id":7}"#;
const SUBSCRIBE: &str = r#"{"type":"subscribe","topic":"a","from":"start"}"#;
/// All of a topic's stored events stay in memory.
const LONG_TAIL: u64 = 1 << 20;

/// Nobody hears of an event that is not stored.
fn assert_stored(client: &Client, memory: &Memory) {
    let told = client.of("published").map(|reply| reply["seq"].as_u64().unwrap());
    let heard = told.chain(client.events()).max().unwrap_or(0);
    assert!(heard <= memory.tail(), "heard of {heard}, stored are {}", memory.tail());
}

/// Two publish and one follows: both are answered and it gets both events, once each is stored.
fn publish_and_follow() {
    let memory = Memory::default();
    let rig = Rig::durable(&memory, LONG_TAIL);
    let (mut subscriber, mut follower) = rig.connect();
    subscriber.handle(&[SUBSCRIBE]);
    let publishers = [(); 2].map(|()| {
        let (mut publisher, mut client) = rig.connect();
        let memory = memory.clone();
        thread::spawn(move || {
            publisher.handle(&[PUBLISH]);
            client.wait(|client| 0 < client.of("published").count());
            assert_stored(&client, &memory);
            drop(client);
            publisher.end();
        })
    });
    follower.wait(|client| {
        assert_stored(client, &memory);
        client.events().len() == 2
    });
    assert_eq!(follower.events(), [1, 2]);
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    drop(follower);
    subscriber.end();
    rig.stop();
}

/// The store fails on its way: each publisher gets one answer to each request, and whoever heard
/// that an event is stored finds it on disk.
fn publish_and_fail() {
    // The topic itself may come first, with an event or without one.
    let memory = Memory::failing_after(1);
    let rig = Rig::durable(&memory, LONG_TAIL);
    let publishers = [(); 2].map(|()| {
        let (mut publisher, mut client) = rig.connect();
        let memory = memory.clone();
        thread::spawn(move || {
            publisher.handle(&[PUBLISH, PUBLISH]);
            let answers =
                |client: &Client| client.of("published").count() + client.of("error").count();
            client.wait(|client| 2 <= answers(client));
            assert_stored(&client, &memory);
            assert_eq!(answers(&client), 2);
            drop(client);
            publisher.end();
        })
    });
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    rig.stop();
}

/// A topic has three events on disk and none in memory. One reads them, page by page, and begins
/// anew when a page may be on its way; another one publishes two more, of which memory keeps as
/// good as nothing either.
fn page_and_publish() {
    let memory = Memory::with_events(3);
    let rig = Rig::durable(&memory, 1);
    let (mut publisher, publishing) = rig.connect();
    let publisher = thread::spawn(move || {
        publisher.handle(&[PUBLISH]);
        publisher.handle(&[PUBLISH]);
        drop(publishing);
        publisher.end();
    });
    let (mut subscriber, mut follower) = rig.connect();
    subscriber.handle(&[SUBSCRIBE]);
    subscriber.handle(&[SUBSCRIBE]);
    follower.wait(|client| {
        client.of("subscribed").count() == 2 && client.messages.last().unwrap()["seq"] == 5
    });
    let begun = follower.messages.iter().rposition(|message| message["type"] == "subscribed");
    drop(follower.messages.drain(..begun.unwrap()));
    assert_eq!(follower.events(), [1, 2, 3, 4, 5]);
    publisher.join().unwrap();
    drop(follower);
    subscriber.end();
    rig.stop();
}

/// The committer looks whether a topic needs a commit, finds that it does not, and takes what may
/// be only written, while an event comes that has to be committed.
fn look_and_publish() {
    let (name, epoch) = (Name::parse(TOPIC).unwrap(), Epoch::from_number(1));
    let topic = Arc::new(Topic::new_durable(name, (1, epoch), Policy::default(), 1, 0));
    drop(topic.stored(0, Some(0)));
    let publisher = thread::spawn({
        let topic = Arc::clone(&topic);
        move || {
            let draft = Draft { user: None, name: None, data: "1", key: None };
            topic.publish(&draft, 0, Window { uptime_ms: 0, length_ms: 0 }, None).unwrap();
        }
    });
    if !topic.needs_commit()
        && let Some((pending, _)) = topic.take_written(u64::MAX)
    {
        assert!(pending.runs.is_empty(), "an event of `always` would be only written");
    }
    publisher.join().unwrap();
    assert!(topic.needs_commit());
}

#[test]
fn an_event_that_comes_while_the_committer_looks_is_committed() {
    holds(500, look_and_publish);
    finds(Fault::WrittenUnlooked, look_and_publish);
}

#[test]
fn publishers_are_answered_when_their_events_are_stored() {
    holds(500, publish_and_follow);
    finds(Fault::CommitterFlag, publish_and_follow);
    finds(Fault::AnswerEarly, publish_and_follow);
}

#[test]
fn publishers_are_answered_when_the_store_fails() {
    holds(500, publish_and_fail);
    finds(Fault::AnswerEarly, publish_and_fail);
}

#[test]
fn replay_from_disk_joins_what_is_live_without_a_seam() {
    holds(500, page_and_publish);
    finds(Fault::StalePage, page_and_publish);
}
