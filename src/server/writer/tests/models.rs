//! A writer and those who append and subscribe while it runs, under many schedules.

use std::time::Duration;

use super::*;
use crate::{
    base::{
        fault::Fault,
        sync::{
            model::check::{finds, holds},
            thread,
        },
    },
    wire::frame,
};

/// Starts the writer. What it lacks when it is told to stop, nobody has told it of.
fn start(writer: Writer) -> thread::JoinHandle<()> {
    thread::spawn(move || writer.run())
}

fn publishers(topic: &Arc<Topic>, handle: &WriterHandle) -> [thread::JoinHandle<()>; 2] {
    [(); 2].map(|()| {
        let (topic, handle) = (Arc::clone(topic), handle.clone());
        thread::spawn(move || {
            publish(&topic, 1, 1);
            topic.wake(|_| handle.send(Command::Wake(Arc::clone(&topic))));
        })
    })
}

/// The sequences that came before the writer ended.
fn received(mut client: TcpStream) -> Vec<u64> {
    // Thousands of connections a second: none of them may leave its port occupied.
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    client.set_nonblocking(false).unwrap();
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    let messages = frame::payloads(&bytes).map(|text| serde_json::from_slice(text).unwrap());
    let events = messages.filter(|message: &serde_json::Value| message["type"] == "event");
    events.map(|event| event["seq"].as_u64().unwrap()).collect()
}

/// Two append to a topic that somebody follows at its tail.
fn news() {
    let mut rig = rig();
    let client = rig.attach(1, None);
    let topic = topic("a");
    rig.follow(1, &topic, 0, NAME);
    rig.turn();
    let Rig { writer, handle, .. } = rig;
    let publishers = publishers(&topic, &handle);
    let writing = start(writer);
    publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
    handle.send(Command::Stop);
    writing.join().unwrap();
    assert_eq!(received(client), [1, 2]);
}

#[test]
fn a_writer_sends_everything_that_it_was_woken_for() {
    holds(3_000, news);
    finds(Fault::WakeFlag, news);
}
