//! Streams, whatever their sockets take: each message whole, each at its place.

use std::collections::HashMap;

use super::*;
use crate::wire::{marks::Marks, stream::Dialect};

/// A message of a stream of server-sent events: its id, if it has one, and its object.
type Message = (Option<String>, serde_json::Value);

impl Rig {
    /// Connects a client with a small send buffer that is answered with a stream.
    fn attach_stream(&mut self, id: u64, dialect: Dialect) -> TcpStream {
        let client = self.attach(id, Some(20_000));
        let index = self.writer.by_connection[&id];
        let connection = Arc::clone(&self.writer.peers[index].connection);
        connection.speak(dialect);
        self.writer.obey(Command::Speak(connection));
        client
    }

    /// Follows a pattern that brings `topics`, each from its beginning.
    fn follow_pattern(&mut self, connection: u64, topics: &[Arc<Topic>]) {
        let (pattern, slow, subscription) = (Pattern::parse("#").unwrap(), SlowPolicy::Gap, 1);
        let open = OpenPattern { connection, subscription, pattern, slow, window: None };
        self.writer.obey(Command::OpenPattern(Box::new(open)));
        let (request, attached, replaced) = (None, topics.len(), false);
        let opened = PatternOpened { connection, subscription, request, attached, replaced };
        self.writer.obey(Command::PatternOpened(Box::new(opened)));
        for topic in topics {
            self.follow(connection, topic, 0, By::Pattern { subscription });
        }
        self.writer.obey(Command::Ready { connection });
    }
}

/// The messages in what a client read. Every one but the last must be whole.
fn messages(bytes: &[u8]) -> Vec<Message> {
    let text = std::str::from_utf8(bytes).unwrap();
    let end = text.rfind("\n\n").map_or(0, |end| end + 2);
    let blocks = text[..end].split_terminator("\n\n");
    let read = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
        let data = field("data: ").unwrap_or_else(|| panic!("no data in {block:?}"));
        let object = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {block}"));
        (field("id: ").map(str::to_owned), object)
    };
    blocks.map(read).collect()
}

#[test]
fn a_pattern_s_stream_says_with_every_event_where_it_is_in_all_of_its_topics() {
    let mut rig = rig();
    let topics: Vec<_> = ["a", "b", "c"].map(topic).to_vec();
    let mut client = rig.attach_stream(0, Dialect::Sse);
    publish(&topics[0], 40, 900);
    rig.follow_pattern(0, &topics);
    // A socket that is full now and then cuts batches anywhere, also between two topics.
    let mut round = 0;
    let all = rig.read_until(&mut client, ("c", 300), |rig, _| {
        round += 1;
        for (step, topic) in topics.iter().enumerate() {
            if topic.look(|log| log.tail()) < 300 && round % (step + 1) == 0 {
                publish(topic, 7, 900);
                rig.wake(topic);
            }
        }
    });

    let mut at: HashMap<String, u64> = HashMap::new();
    let mut events = 0;
    for (id, message) in messages(&all) {
        if message["type"] == "event" {
            let name = message["topic"].as_str().unwrap();
            let seq = message["seq"].as_u64().unwrap();
            assert_eq!(seq, at.get(name).copied().unwrap_or(0) + 1, "{name}");
            at.insert(name.to_owned(), seq);
            events += 1;
        }
        let is_placed = matches!(message["type"].as_str(), Some("event" | "ready"));
        assert_eq!(id.is_some(), is_placed, "{message}");
        let Some(id) = id else { continue };
        let marks = Marks::parse(&id).unwrap();
        assert_eq!(marks.len(), at.len(), "{message}");
        for (name, seq) in &at {
            let found = marks.find(name, Epoch::from_number(1)).unwrap();
            assert_eq!(found.seq, *seq, "{name} with {message}");
        }
    }
    assert!(600 < events && 1 < round, "{events} events in {round} rounds");
}

#[test]
fn nothing_comes_before_the_position_that_a_pattern_s_stream_begins_at() {
    let mut rig = rig();
    let topics: Vec<_> = ["a", "b"].map(topic).to_vec();
    let mut client = rig.attach_stream(0, Dialect::Sse);
    topics.iter().for_each(|topic| publish(topic, 3, 10));
    let (pattern, slow, subscription) = (Pattern::parse("#").unwrap(), SlowPolicy::Gap, 1);
    let open = OpenPattern { connection: 0, subscription, pattern, slow, window: None };
    rig.writer.obey(Command::OpenPattern(Box::new(open)));
    let (request, attached, replaced) = (None, 2, false);
    let opened = PatternOpened { connection: 0, subscription, request, attached, replaced };
    rig.writer.obey(Command::PatternOpened(Box::new(opened)));
    // The writer may turn between any two commands.
    rig.follow(0, &topics[0], 0, By::Pattern { subscription });
    rig.turn();
    rig.follow(0, &topics[1], 2, By::Pattern { subscription });
    rig.turn();
    rig.writer.obey(Command::Ready { connection: 0 });

    let mut all = rig.read_until(&mut client, ("a", 3), |_, _| {});
    if seqs(&all, "b").is_empty() {
        all.extend(rig.read_until(&mut client, ("b", 3), |_, _| {}));
    }

    let mut kinds = Vec::new();
    for (id, message) in messages(&all) {
        let marks = id.map(|id| Marks::parse(&id).unwrap());
        if let Some(marks) = &marks {
            assert!(marks.find("b", Epoch::from_number(1)).is_some(), "{message}");
        }
        kinds.push(message["type"].as_str().unwrap().to_owned());
    }
    let expected = ["subscribed", "attached", "attached", "ready"];
    assert_eq!(kinds[..4], expected);
    assert_eq!(kinds[4..], ["event"; 4]);
}

#[test]
fn a_stream_that_is_cut_anywhere_goes_on_with_the_event_that_was_cut() {
    for dialect in [Dialect::Sse, Dialect::Ndjson] {
        let mut rig = rig();
        let topic = topic("t");
        let mut streaming = rig.attach_stream(0, dialect);
        let mut socket = rig.attach(1, None);
        rig.follow(0, &topic, 0, NAME);
        rig.follow(1, &topic, 0, NAME);
        rig.turn();

        let mut nowhere = vec![0; 1 << 20];
        let all = rig.read_until(&mut streaming, ("t", 2_000), |rig, _| {
            if topic.look(|log| log.tail()) < 2_000 {
                publish(&topic, 50, 700);
                rig.wake(&topic);
            }
            while let Ok(1..) = socket.read(&mut nowhere) {}
        });

        assert_whole(&seqs(&all, "t")[..2_000], 2_000);
        if dialect == Dialect::Sse {
            let events = messages(&all);
            let events = events.iter().filter(|(_, message)| message["type"] == "event");
            for (id, message) in events {
                let expected = format!("{}:{}", Epoch::from_number(1), message["seq"]);
                assert_eq!(id.as_deref(), Some(expected.as_str()));
            }
        }
    }
}

#[test]
fn who_stands_at_the_same_place_shares_one_translation() {
    let mut rig = rig();
    let topic = topic("t");
    let mut clients: Vec<_> = (0..20)
        .map(|id| rig.attach_stream(id, if id < 10 { Dialect::Sse } else { Dialect::Ndjson }))
        .collect();
    (0..20).for_each(|id| rig.follow(id, &topic, 0, NAME));
    rig.turn();

    publish(&topic, 10, 1_000);
    rig.wake(&topic);
    rig.turn();

    let held = rig.writer.arena.len();
    assert!(held < 4 * 10 * 1_200, "{held} bytes for ten events in three forms");
    for client in &mut clients {
        let all = rig.read_until(client, ("t", 10), |_, _| {});
        assert_whole(&seqs(&all, "t"), 10);
    }
}
