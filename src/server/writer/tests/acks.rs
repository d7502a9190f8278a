//! Cursors that acknowledge, in the corners that sockets reach only by chance.

use std::time::Duration;

use super::*;
use crate::{
    metrics::labels::Closed,
    server::{
        connection::Bye,
        pager::{BurialDone, Buried, Errand, Sheet},
    },
    store::{Missing, StoredTopic},
    wire::codes::CloseCode,
};

/// As often as the rigs here send an event that nobody acknowledges.
const DELIVERIES: u32 = 2;

/// A rig whose clock stands still.
fn rig() -> Rig {
    let mut rig = super::rig();
    rig.writer.clock = Clock::manual(1_000);
    rig.writer.acks.max_deliveries = DELIVERIES;
    rig
}

impl Rig {
    /// Follows with acknowledgements. Returns what the reader would acknowledge through.
    fn follow_acking(
        &mut self,
        connection: u64,
        topic: &Arc<Topic>,
        (seq, window): (u64, u64),
        deliveries: u32,
    ) -> Arc<AckCell> {
        assert!(topic.follow(0));
        let cell = Arc::new(AckCell::new(seq));
        let setup = AckSetup { cell: Arc::clone(&cell), window, consumer: None, deliveries };
        let (topic, start) = (Arc::clone(topic), Start { seq, recovery: None });
        let acks = Some(Box::new(setup));
        let follow = Follow { connection, topic, start, by: NAME, acks };
        self.writer.obey(Command::Follow(Box::new(follow)));
        cell
    }

    fn ack(&mut self, connection: u64, cell: &AckCell, seq: u64) {
        if cell.acknowledge(seq) {
            self.writer.obey(Command::Acked { connection });
        }
    }

    /// Lets the timeout of acknowledgements pass.
    fn time_out(&mut self) {
        self.writer.clock.advance(self.writer.acks.timeout + Duration::from_millis(1));
        self.writer.look_after_acks();
    }

    fn stop(&mut self, connection: u64) {
        let index = self.writer.by_connection[&connection];
        let code = CloseCode::GoingAway;
        let bye = Bye { reason: "shutdown", text: "", code, reconnect_after_ms: None };
        self.writer.peers[index].connection.say_bye(Closed::Shutdown, u64::MAX, &bye);
        self.writer.obey(Command::Flush { connection });
    }

    /// What a client has got after a few turns.
    fn read(&mut self, client: &mut TcpStream) -> String {
        let mut all = Vec::new();
        let mut buffer = vec![0; 65_536];
        for _ in 0..30 {
            self.turn();
            while let Ok(got @ 1..) = client.read(&mut buffer) {
                all.extend_from_slice(&buffer[..got]);
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    #[track_caller]
    fn burial(&self) -> (Arc<Topic>, u64) {
        match self._errands.try_recv() {
            Ok(Errand::Bury(burial)) => (Arc::clone(&burial.topic), burial.seq),
            _ => panic!("no event is to be put aside"),
        }
    }

    fn buried(&mut self, connection: u64, (topic, seq): (Arc<Topic>, u64)) {
        let done = BurialDone { connection, topic, seq, outcome: Buried::Done };
        self.writer.obey(Command::Buried(Box::new(done)));
    }
}

#[test]
fn a_goodbye_does_not_wait_for_a_window_that_fills_up_meanwhile() {
    for is_live in [false, true] {
        let mut rig = rig();
        let topic = topic("t");
        let mut client = rig.attach(0, None);
        if is_live {
            rig.follow_acking(0, &topic, (0, 3), 0);
            rig.turn();
            publish(&topic, 10, 10);
            rig.wake(&topic);
        } else {
            publish(&topic, 10, 10);
            rig.follow_acking(0, &topic, (0, 3), 0);
        }
        rig.stop(0);

        let got = rig.read(&mut client);

        assert_eq!(seqs(got.as_bytes(), "t"), [1, 2, 3], "live: {is_live}");
        assert!(got.contains("\"bye\""), "live: {is_live}: {got}");
    }
}

#[test]
fn an_event_that_is_acknowledged_while_it_is_put_aside_holds_nothing_up() {
    let mut rig = rig();
    let topic = topic("t");
    let mut client = rig.attach(0, None);
    publish(&topic, 3, 10);
    let cell = rig.follow_acking(0, &topic, (0, 2), 0);
    rig.turn();
    for _ in 0..DELIVERIES {
        rig.time_out();
        rig.turn();
    }
    let burial = rig.burial();
    rig.read(&mut client);

    rig.ack(0, &cell, 2);
    rig.time_out();
    rig.writer.ack_at = Some(rig.writer.now());
    rig.time_out();
    rig.buried(0, burial);

    let got = rig.read(&mut client);
    assert_eq!(seqs(got.as_bytes(), "t"), [3]);
    assert!(!got.contains("gap"), "{got}");
    rig.ack(0, &cell, 3);
    publish(&topic, 1, 10);
    rig.wake(&topic);
    assert_eq!(seqs(rig.read(&mut client).as_bytes(), "t"), [4]);
}

#[test]
fn what_a_full_socket_took_nothing_of_does_not_count_as_sent() {
    let mut rig = rig();
    let (big, small) = (topic("big"), topic("small"));
    let _client = rig.attach(0, Some(4_096));
    rig.follow(0, &big, 0, NAME);
    rig.follow_acking(0, &small, (0, 5), 0);
    rig.turn();
    publish(&big, 50, 100_000);
    publish(&small, 1, 10);
    // In this order, so that the event of the second waits behind those of the first.
    rig.wake(&big);
    rig.wake(&small);
    rig.turn();
    assert_eq!(rig.writer.stalled.len(), 1);

    for _ in 0..2 * DELIVERIES {
        rig.time_out();
        rig.turn();
    }

    assert!(rig._errands.try_recv().is_err(), "an event was put aside that was never sent");
    assert_eq!(rig.writer.ack_at, None);
}

#[test]
fn what_the_log_has_lost_is_told_once_to_who_finds_it_before_its_group() {
    let mut rig = rig();
    let (name, epoch) = (Name::parse("t").unwrap(), Epoch::from_number(1));
    let policy = Policy { max_events: 10, ..Policy::default() };
    let topic = Arc::new(Topic::new(name, epoch, policy, 1, 0));
    let (mut group, mut behind) = (rig.attach(0, None), rig.attach(1, None));
    publish(&topic, 5, 10);
    rig.follow(0, &topic, 5, NAME);
    rig.read(&mut group);
    let cell = rig.follow_acking(1, &topic, (2, 100), 0);
    // Its wake-up is still on the way.
    publish(&topic, 20, 10);

    let got = rig.read(&mut behind);

    assert_eq!(seqs(got.as_bytes(), "t"), (16..=25).collect::<Vec<_>>());
    assert_eq!(got.matches("\"gap\"").count(), 1, "{got}");
    assert_eq!(seqs(rig.read(&mut group).as_bytes(), "t"), (16..=25).collect::<Vec<_>>());
    rig.ack(1, &cell, 25);
    publish(&topic, 1, 10);
    rig.wake(&topic);
    assert_eq!(seqs(rig.read(&mut behind).as_bytes(), "t"), [26]);
}

#[test]
fn what_was_acknowledged_before_it_could_be_sent_again_is_not() {
    let mut rig = rig();
    let (t, big) = (topic("t"), topic("big"));
    let mut client = rig.attach(0, Some(4_096));
    publish(&t, 5, 10);
    let cell = rig.follow_acking(0, &t, (0, 5), 0);
    rig.follow(0, &big, 0, NAME);
    rig.turn();
    publish(&big, 2, 1_000_000);
    rig.wake(&big);
    rig.turn();
    assert_eq!(rig.writer.stalled.len(), 1);

    rig.time_out();
    rig.ack(0, &cell, 5);
    publish(&t, 1, 10);
    rig.wake(&t);
    let all = rig.read_until(&mut client, ("t", 6), |_, _| {});

    assert_eq!(seqs(&all, "t"), [1, 2, 3, 4, 5, 6]);
    rig.ack(0, &cell, 6);
    rig.time_out();
    assert_eq!(rig.writer.ack_at, None);
}

#[test]
fn a_window_that_shrinks_below_what_was_sent_opens_again() {
    let mut rig = rig();
    let topic = topic("a/b");
    publish(&topic, 20, 10);
    let mut client = rig.attach(0, None);
    open_pattern(&mut rig, Some(10));
    rig.follow(0, &topic, 0, By::Pattern { subscription: 1 });
    assert_eq!(seqs(rig.read(&mut client).as_bytes(), "a/b").len(), 10);

    let cell = rig.follow_acking(0, &topic, (20, 2), 0);
    for (acked, expected) in [(1, vec![]), (8, vec![]), (9, vec![11]), (11, vec![12, 13])] {
        rig.ack(0, &cell, acked);
        assert_eq!(seqs(rig.read(&mut client).as_bytes(), "a/b"), expected, "{acked}");
        assert!(rig.writer.lagging.is_empty(), "it is looked at again and again");
    }
}

#[test]
fn what_was_acknowledged_before_it_came_from_disk_again_is_not_asked_for() {
    let mut rig = rig();
    let (name, epoch) = (Name::parse("t").unwrap(), Epoch::from_number(1));
    let stored = StoredTopic { id: 1, name, epoch, first: 1, tail: 100, newest_ms: 1, bytes: 9 };
    let topic = Arc::new(Topic::restored(&stored, Policy::default(), 1, 0));
    let source = super::topic("t");
    publish(&source, 100, 10);
    let mut client = rig.attach(0, None);
    let cell = rig.follow_acking(0, &topic, (0, 5), 0);
    let page = |rig: &mut Rig, expected: u64| {
        rig.turn();
        let Ok(Errand::Page(page)) = rig._errands.try_recv() else { panic!("no page") };
        let PageFor { connection, topic, after, upto, .. } = *page;
        assert_eq!(after, expected);
        let mut frames = Vec::new();
        source.look(|log| log.copy_after(after, upto, TURN_BYTES, &mut frames));
        let sheet = Ok(Sheet::Events { upto, frames });
        rig.writer.obey(Command::Page(Box::new(PageDone { connection, topic, after, sheet })));
    };
    page(&mut rig, 0);
    assert_eq!(seqs(rig.read(&mut client).as_bytes(), "t"), [1, 2, 3, 4, 5]);

    rig.time_out();
    rig.ack(0, &cell, 5);
    page(&mut rig, 5);

    assert_eq!(seqs(rig.read(&mut client).as_bytes(), "t"), [6, 7, 8, 9, 10]);
}

#[test]
fn why_a_page_is_not_there_is_said_as_it_is() {
    for (why, reason) in [(Missing::Removed, "truncated"), (Missing::Damaged, "damaged")] {
        let mut rig = rig();
        let (name, epoch) = (Name::parse("t").unwrap(), Epoch::from_number(1));
        let (tail, newest_ms) = (100, 1);
        let stored = StoredTopic { id: 1, name, epoch, first: 1, tail, newest_ms, bytes: 9 };
        let topic = Arc::new(Topic::restored(&stored, Policy::default(), 1, 0));
        let mut client = rig.attach(0, None);
        rig.follow(0, &topic, 0, NAME);
        rig.turn();
        let Ok(Errand::Page(page)) = rig._errands.try_recv() else { panic!("no page") };
        let PageFor { connection, topic, after, .. } = *page;
        let sheet = Ok(Sheet::Gone { first: 51, why });
        rig.writer.obey(Command::Page(Box::new(PageDone { connection, topic, after, sheet })));

        let got = rig.read(&mut client);
        let gap = format!(r#"{{"type":"gap","topic":"t","from":1,"to":50,"reason":"{reason}"}}"#);
        assert!(got.contains(&gap), "{got}");
    }
}

#[test]
fn who_stops_acknowledging_does_not_wait_for_what_is_put_aside() {
    for is_beside_a_pattern in [false, true] {
        let mut rig = rig();
        let topic = topic("a/b");
        let mut client = rig.attach(0, None);
        if is_beside_a_pattern {
            open_pattern(&mut rig, None);
            rig.follow(0, &topic, 0, By::Pattern { subscription: 1 });
        }
        publish(&topic, 3, 10);
        rig.follow_acking(0, &topic, (0, 1), DELIVERIES);
        let burial = rig.burial();

        rig.follow(0, &topic, 3, NAME);
        rig.buried(0, burial);
        publish(&topic, 1, 10);
        rig.wake(&topic);

        let got = rig.read(&mut client);
        assert_eq!(seqs(got.as_bytes(), "a/b").last(), Some(&4), "{is_beside_a_pattern}: {got}");
    }
}

/// Subscribes connection 0 to `a/#`.
fn open_pattern(rig: &mut Rig, window: Option<u64>) {
    let (connection, subscription) = (0, 1);
    let (pattern, slow) = (Pattern::parse("a/#").unwrap(), SlowPolicy::Gap);
    let open = OpenPattern { connection, subscription, pattern, slow, window };
    rig.writer.obey(Command::OpenPattern(Box::new(open)));
    let (request, attached, replaced) = (None, 1, false);
    let opened = PatternOpened { connection, subscription, request, attached, replaced };
    rig.writer.obey(Command::PatternOpened(Box::new(opened)));
}
