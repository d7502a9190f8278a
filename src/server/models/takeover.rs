//! Two connections and one consumer: the later one fences off the earlier one.

use super::rig::{Reader, Rig, TOPIC};
use crate::base::{
    fault::Fault,
    sync::{
        model::check::{finds, holds},
        thread,
    },
};

const PUBLISH: &str = r#"{"type":"publish","topic":"a","data":1}"#;
const SUBSCRIBE: &str = r#"{"type":"subscribe","topic":"a","from":"start","consumer":"c"}"#;
const ACK: [&str; 2] =
    [r#"{"type":"ack","topic":"a","seq":1}"#, r#"{"type":"ack","topic":"a","seq":2}"#];

/// The first holder acknowledges two events while a second one takes over: from where the second
/// one begins, the position moves no more.
fn take_over() {
    let rig = Rig::new(1);
    let (mut first, mut losing) = rig.connect();
    first.handle(&[PUBLISH, PUBLISH, SUBSCRIBE]);
    losing.wait(|client| client.events().len() == 2);
    let acknowledging = thread::spawn(move || {
        ACK.iter().for_each(|ack| first.handle(&[ack]));
        first
    });
    let (mut second, mut taking) = rig.connect();
    second.handle(&[SUBSCRIBE]);
    taking.wait(|client| 0 < client.of("subscribed").count());
    let begins = taking.of("subscribed").next().unwrap()["seq"].as_u64().unwrap();
    taking.wait(|client| client.events().len() as u64 == 2 - begins);
    assert!(taking.events().into_iter().eq(begins + 1..=2));
    losing.wait(|client| client.has_closed);
    assert_eq!(losing.of("bye").map(|bye| &bye["reason"]).collect::<Vec<_>>(), ["replaced"]);
    let first: Reader = acknowledging.join().unwrap();
    drop((losing, taking));
    first.end();
    let topic = rig.shared().registry.find(TOPIC).unwrap();
    let position = topic.consumers(|consumers, _| consumers.list()[0].state.seq);
    assert_eq!(position, begins, "the position was moved by who does not hold it");
    second.end();
    rig.stop();
}

#[test]
fn an_earlier_holder_of_a_consumer_moves_nothing() {
    holds(500, take_over);
    finds(Fault::Fence, take_over);
}
