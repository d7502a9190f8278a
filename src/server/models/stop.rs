//! A relay that stops while clients connect and publish.

use super::{
    memory::Memory,
    rig::{Reader, Rig},
};
use crate::base::{
    fault::Fault,
    sync::model::check::{finds, holds},
};

const PUBLISH: &str = r#"{"type":"publish","topic":"a","data":1,"id":7}"#;
const STACK_BYTES: usize = 64 * 1024;

/// A connection becomes a WebSocket and publishes while the relay stops: it hears what became of
/// its event, then that the relay stops, and its thread ends.
fn stop_while_publishing() {
    let memory = Memory::default();
    let rig = Rig::durable(&memory, 1 << 20);
    let (line, mut client) = rig.knock();
    let body = move || {
        let mut reader = Reader::open(line);
        reader.handle(&[PUBLISH]);
        client.wait(|client| client.has_closed);
        let types: Vec<_> = client.messages.iter().map(|message| &message["type"]).collect();
        // Who publishes after the last word was said publishes nothing.
        assert!(types == ["published", "bye"] || types == ["bye"], "{types:?}");
        assert_eq!(types.len() as u64 - 1, memory.tail());
        drop(client);
        reader.end();
    };
    rig.shared().crew.spawn("conn-1".to_owned(), STACK_BYTES, body).unwrap();
    rig.stop();
}

#[test]
fn everybody_hears_that_the_relay_stops_and_what_became_of_events() {
    holds(500, stop_while_publishing);
    finds(Fault::PhaseLate, stop_while_publishing);
}
