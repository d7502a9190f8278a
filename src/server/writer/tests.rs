//! A writer without its thread, turned by hand: what it sends, to whom, and in which order.

mod acks;
#[cfg(shuttle)]
mod models;
mod stream;
mod survey;
mod watch;

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    base::lane,
    config::Policy,
    name::Name,
    server::{connection::Birth, pager::Errand},
    topic::{Draft, dedupe::Window},
    wire::position::{Epoch, Recovery},
};

/// A writer, and a way to connect to it.
struct Rig {
    writer: Writer,
    handle: WriterHandle,
    listener: TcpListener,
    // Keeps the lane open.
    _keeper: lane::Receiver<Watch>,
    _errands: lane::Receiver<Errand>,
}

fn rig() -> Rig {
    let (inlet, inbox) = lane::open(lane::COMMANDS);
    let (keeper, _keeper) = lane::open(lane::DEADLINES);
    let (errands, _errands) = lane::open(lane::PAGES);
    let waker = Arc::new(Waker::new().unwrap());
    let parts = WriterParts {
        index: 0,
        inbox,
        waker: Arc::clone(&waker),
        keeper,
        roster: Arc::new(Roster::new(Arc::default())),
        settings: ConnectionSettings::default(),
        acks: AckSettings::default(),
        pager: PagerHandle::new(errands),
        spaces: [Arc::new(Space::of_test(1)), Arc::new(Space::of_test(1))],
        clock: Clock::default(),
        metrics: Arc::default(),
    };
    let writer = Writer::new(parts).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Rig { writer, handle: WriterHandle { inlet, waker }, listener, _keeper, _errands }
}

impl Rig {
    /// Connects peer `id`, with a small send buffer if one is given.
    fn attach(&mut self, id: u64, send_buffer: Option<usize>) -> TcpStream {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        let (socket, peer) = self.listener.accept().unwrap();
        if let Some(bytes) = send_buffer {
            socket2::SockRef::from(&socket).set_send_buffer_size(bytes).unwrap();
            socket2::SockRef::from(&client).set_recv_buffer_size(65_536).unwrap();
        }
        client.set_nonblocking(true).unwrap();
        let handle = self.handle.clone();
        let birth = Birth { id, peer, socket, writer: 0, handle, now_ms: 0, deadline_ms: 0 };
        self.writer.obey(Command::Attach(Arc::new(Connection::new(birth))));
        client
    }

    fn follow(&mut self, connection: u64, topic: &Arc<Topic>, seq: u64, by: By) {
        assert!(topic.follow(0));
        let (topic, start) = (Arc::clone(topic), Start { seq, recovery: None });
        self.writer.obey(Command::Follow(Box::new(Follow {
            connection,
            topic,
            start,
            by,
            acks: None,
        })));
    }

    fn unfollow(&mut self, connection: u64, topic: &Arc<Topic>) {
        self.writer.obey(Command::Unfollow(Box::new(Unfollow {
            connection,
            request: None,
            filter: Filter::Topic(topic.name().clone()),
            topic: Some(Arc::clone(topic)),
            subscription: 0,
            quiet: true,
        })));
    }

    fn wake(&mut self, topic: &Arc<Topic>) {
        self.writer.obey(Command::Wake(Arc::clone(topic)));
    }

    fn turn(&mut self) {
        if !self.writer.stalled.is_empty() {
            self.writer.look_after_stalled(true);
        }
        self.writer.turn();
    }

    /// Turns and reads, with `each` in between, until event `seq` of `topic` has come or there is
    /// no hope that it ever will. Returns what was read.
    fn read_until(
        &mut self,
        client: &mut TcpStream,
        (topic, seq): (&str, u64),
        mut each: impl FnMut(&mut Rig, usize),
    ) -> Vec<u8> {
        let wanted = format!("\"topic\":\"{topic}\",\"seq\":{seq},");
        let mut all = Vec::new();
        let mut buffer = vec![0; 65_536];
        for _ in 0..20_000 {
            let got = client.read(&mut buffer).unwrap_or(0);
            let seen = all.len().saturating_sub(wanted.len());
            all.extend_from_slice(&buffer[..got]);
            let fresh = String::from_utf8_lossy(&all[seen..]);
            if fresh.contains(&wanted) || HOPELESS_BYTES < all.len() {
                break;
            }
            each(self, got);
            self.turn();
        }
        all
    }
}

/// More than any of these tests delivers.
const HOPELESS_BYTES: usize = 20 << 20;

const NAME: By = By::Name { request: None, slow: SlowPolicy::Gap };

fn topic(name: &str) -> Arc<Topic> {
    let (name, epoch) = (Name::parse(name).unwrap(), Epoch::from_number(1));
    Arc::new(Topic::new(name, epoch, Policy::default(), 1, 0))
}

fn publish(topic: &Topic, events: usize, bytes: usize) {
    let data = format!("\"{}\"", "x".repeat(bytes));
    for _ in 0..events {
        let draft = Draft { user: None, name: None, data: &data, key: None };
        topic.publish(&draft, 1, Window { uptime_ms: 1, length_ms: 1 }, None).unwrap();
    }
}

/// The sequences of the events of `topic` in what a client read.
fn seqs(bytes: &[u8], topic: &str) -> Vec<u64> {
    let text = String::from_utf8_lossy(bytes);
    let start = format!("\"type\":\"event\",\"topic\":\"{topic}\",\"seq\":");
    text.split(&start).skip(1).filter_map(|rest| rest.split(',').next()?.parse().ok()).collect()
}

#[track_caller]
fn assert_whole(seqs: &[u64], count: usize) {
    let expected: Vec<u64> = (1..).take(count).collect();
    let hole = seqs.windows(2).find(|pair| pair[1] != pair[0] + 1);
    assert!(seqs == expected, "{} of {count} events, first hole {hole:?}", seqs.len());
}

#[test]
fn a_peer_that_takes_the_slot_of_one_that_waited_is_served_once_a_turn() {
    let mut rig = rig();
    let topic = topic("t");
    publish(&topic, 6_000, 1_000);
    let mut clients = Vec::new();
    for id in 0..6 {
        clients.push(rig.attach(id, None));
        rig.follow(id, &topic, 0, NAME);
    }
    rig.turn();
    let waiting = *rig.writer.lagging.back().unwrap();
    rig.writer.obey(Command::Detach { connection: waiting as u64 });
    rig.turn();

    let mut fresh = rig.attach(100, Some(200_000));
    rig.follow(100, &topic, 0, NAME);
    let all = rig.read_until(&mut fresh, ("t", 6_000), |_, _| {});

    assert_whole(&seqs(&all, "t"), 6_000);
}

#[test]
fn a_feed_that_takes_the_slot_of_one_that_was_ready_moves_once_a_turn() {
    let mut rig = rig();
    let (a, b) = (topic("a"), topic("b"));
    let _first = rig.attach(0, None);
    let mut second = rig.attach(1, Some(30_000));
    rig.follow(0, &a, 0, NAME);
    rig.turn();
    publish(&a, 1, 10);
    rig.wake(&a);
    rig.unfollow(0, &a);
    rig.follow(1, &b, 0, NAME);
    publish(&b, 600, 1_000);
    assert_eq!(rig.writer.ready.len(), 1);

    let all = rig.read_until(&mut second, ("b", 600), |_, _| {});

    assert_whole(&seqs(&all, "b"), 600);
}

#[test]
fn a_topic_that_a_peer_never_catches_up_with_does_not_starve_its_others() {
    let mut rig = rig();
    let (hot, quiet) = (topic("hot"), topic("quiet"));
    let mut client = rig.attach(0, Some(20_000));
    publish(&hot, 5_000, 1_000);
    rig.follow(0, &hot, 0, NAME);
    rig.follow(0, &quiet, 0, NAME);
    rig.turn();
    publish(&quiet, 1, 10);
    rig.wake(&quiet);
    rig.turn();

    let all = rig.read_until(&mut client, ("quiet", 1), |_, got| publish(&hot, got / 900, 1_000));

    assert_eq!(seqs(&all, "quiet"), [1]);
}

#[test]
fn news_leave_room_for_those_who_are_behind() {
    let mut rig = rig();
    let hot: Vec<_> = (0..4).map(|number| topic(&format!("h{number}"))).collect();
    let old = topic("old");
    publish(&old, 10, 10);
    let mut busy = rig.attach(0, None);
    let mut behind = rig.attach(1, None);
    hot.iter().for_each(|topic| rig.follow(0, topic, 0, NAME));
    rig.turn();
    rig.follow(1, &old, 0, NAME);

    let mut nowhere = vec![0; 1 << 20];
    let mut rounds = 0;
    let all = rig.read_until(&mut behind, ("old", 10), |rig, _| {
        rounds += 1;
        assert!(rounds < 50, "the old events never came");
        for topic in &hot {
            publish(topic, 1, 140_000);
            rig.wake(topic);
        }
        while let Ok(1..) = busy.read(&mut nowhere) {}
    });

    assert_whole(&seqs(&all, "old"), 10);
}

/// The position was met by the reader, and the writer announced it later, with the oldest event of
/// then: `complete` beside a `first` that was beyond the position. What had gone came as a gap.
#[test]
fn a_position_is_announced_with_the_oldest_event_of_when_it_was_met() {
    let mut rig = rig();
    let policy = Policy { max_events: 4, ..Policy::default() };
    let name = Name::parse("t").unwrap();
    let topic = Arc::new(Topic::new(name, Epoch::from_number(1), policy, 1, 0));
    publish(&topic, 2, 10);
    let mut client = rig.attach(0, None);
    assert!(topic.follow(0));
    let start = Start { seq: 0, recovery: Some(Recovery::COMPLETE) };

    publish(&topic, 10, 10);
    let (connection, by, acks) = (0, NAME, None);
    let follow = Follow { connection, topic: Arc::clone(&topic), start, by, acks };
    rig.writer.obey(Command::Follow(Box::new(follow)));
    let all = rig.read_until(&mut client, ("t", 12), |_, _| {});

    let text = String::from_utf8_lossy(&all);
    let said = r#""seq":0,"first":1,"tail":12,"recovery":{"mode":"complete"}"#;
    assert!(text.contains(said), "{text}");
    assert!(text.contains(r#""from":1,"to":8,"reason":"truncated""#), "{text}");
    assert_eq!(seqs(&all, "t"), [9, 10, 11, 12]);
}

#[test]
fn what_a_pattern_still_has_to_get_a_name_does_not_skip() {
    let mut rig = rig();
    let topic = topic("a/b");
    publish(&topic, 1_000, 1_000);
    let mut client = rig.attach(0, Some(20_000));
    let (connection, subscription) = (0, 1);
    let pattern = Pattern::parse("a/#").unwrap();
    let slow = SlowPolicy::Gap;
    let open = OpenPattern { connection, subscription, pattern, slow, window: None };
    rig.writer.obey(Command::OpenPattern(Box::new(open)));
    let (request, attached, replaced) = (None, 1, false);
    let opened = PatternOpened { connection, subscription, request, attached, replaced };
    rig.writer.obey(Command::PatternOpened(Box::new(opened)));
    rig.follow(0, &topic, 0, By::Pattern { subscription });
    rig.turn();

    rig.follow(0, &topic, 1_000, NAME);
    let all = rig.read_until(&mut client, ("a/b", 1_000), |_, _| {});

    assert_whole(&seqs(&all, "a/b"), 1_000);
    let text = String::from_utf8_lossy(&all);
    assert!(text.contains("\"shared\":true") && !text.contains("\"replaced\":true"));
}

#[test]
fn a_peer_that_leaves_takes_nothing_of_the_others_with_it() {
    let mut rig = rig();
    let topic = topic("t");
    let mut clients: Vec<_> = (0..50).map(|id| rig.attach(id, None)).collect();
    (0..50).for_each(|id| rig.follow(id, &topic, 0, NAME));
    for id in [0, 49, 7, 8, 25] {
        rig.writer.obey(Command::Detach { connection: id });
        publish(&topic, 1, 10);
        rig.wake(&topic);
        rig.turn();
    }

    let all = rig.read_until(&mut clients[30], ("t", 5), |_, _| {});

    assert_whole(&seqs(&all, "t"), 5);
    assert_eq!((topic.followers(), rig.writer.peers.len()), (45, 45));
}

#[test]
fn who_is_lost_while_a_pattern_opens_leaves_no_follower_behind() {
    let mut rig = rig();
    let topic = topic("a/b");
    let client = rig.attach(0, None);
    let (connection, subscription) = (0, 1);
    let (pattern, slow) = (Pattern::parse("a/#").unwrap(), SlowPolicy::Gap);
    let open = OpenPattern { connection, subscription, pattern, slow, window: None };
    rig.writer.obey(Command::OpenPattern(Box::new(open)));
    rig.follow(0, &topic, 0, By::Pattern { subscription });
    assert_eq!(topic.followers(), 1);

    drop(client);
    rig.writer.obey(Command::Detach { connection: 0 });
    rig.turn();

    assert_eq!(topic.followers(), 0);
    assert!(rig.writer.peers.is_empty());
}
