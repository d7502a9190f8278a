//! Topics in memory: those who append, those who subscribe, and the writers between them.

use super::rig::Rig;
use crate::base::{
    fault::Fault,
    sync::{
        model::check::{finds, holds},
        thread,
    },
};

const PUBLISH: &str = r#"{"type":"publish","topic":"a","data":1}"#;
const SUBSCRIBE: &str = r#"{"type":"subscribe","topic":"a","from":"start"}"#;

/// Two publish while one subscribes: it gets every event, once and in order.
fn publish_and_subscribe() {
    let rig = Rig::new(1);
    let (mut subscriber, mut client) = rig.connect();
    let publishers = [2, 1].map(|events| {
        let (mut publisher, client) = rig.connect();
        thread::spawn(move || {
            (0..events).for_each(|_| publisher.handle(&[PUBLISH]));
            drop(client);
            publisher.end();
        })
    });
    let subscribing = thread::spawn(move || {
        subscriber.handle(&[SUBSCRIBE]);
        subscriber
    });
    client.wait(|client| client.events().len() == 3);
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    assert_eq!(client.events(), [1, 2, 3]);
    drop(client);
    subscribing.join().unwrap().end();
    rig.stop();
}

#[test]
fn a_subscriber_gets_what_is_published_meanwhile() {
    holds(500, publish_and_subscribe);
    finds(Fault::WakeBeforeAppend, publish_and_subscribe);
    finds(Fault::FollowLate, publish_and_subscribe);
}
