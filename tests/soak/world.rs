//! What the clients of a soak share: where the relay is, what they are to do, and what is true.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::Value;

use crate::support::{
    dice::Dice,
    frame,
    peer::{Incoming, Peer},
    wait::{LIMIT, pause},
};

/// How often a client looks whether there is something else to do.
pub const LOOK: Duration = Duration::from_millis(500);
/// Lines of its story that a client remembers.
const STORY: usize = 40;

/// What clients are to do.
#[derive(Clone, Debug)]
pub enum Phase {
    /// Come and go.
    Run,
    /// Who publishes or changes the state ends, once all of its own is confirmed.
    Quiet,
    /// Who follows something ends, once it has got so far.
    Settle(Arc<Targets>),
    /// Everybody ends.
    Over,
}

/// What there is when nothing changes any more.
#[derive(Debug, Default)]
pub struct Targets {
    /// Epoch and tail by topic.
    pub tails: BTreeMap<String, (String, u64)>,
    /// Value and version by key, of the keys of clients and of those of the relay.
    pub state: BTreeMap<String, (Value, u64)>,
    pub presence: BTreeMap<String, (Value, u64)>,
}

/// Who published an event, and which of its events of that topic it is.
pub type Mark = (u64, u64);

/// By topic, and then by epoch, which sequence has which event.
pub type Truth = BTreeMap<String, BTreeMap<String, BTreeMap<u64, Mark>>>;

pub struct World {
    pub relay: SocketAddr,
    /// Ways to the relay that fail.
    pub detours: Mutex<Vec<SocketAddr>>,
    phase: Mutex<Phase>,
    /// How many relays there have been; counted up before one is ended.
    pub life: AtomicU64,
    truth: Mutex<Truth>,
    tally: Mutex<BTreeMap<String, u64>>,
    /// The stories of clients that were let down.
    pub violations: Mutex<Vec<String>>,
    /// Who stays present to the end, as `$presence/TOPIC/USER`.
    pub present: Mutex<Vec<String>>,
}

impl World {
    #[must_use]
    pub fn new(relay: SocketAddr) -> World {
        World {
            relay,
            detours: Mutex::default(),
            phase: Mutex::new(Phase::Run),
            life: AtomicU64::new(1),
            truth: Mutex::default(),
            tally: Mutex::default(),
            violations: Mutex::default(),
            present: Mutex::default(),
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase.lock().clone()
    }

    pub fn runs(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Run)
    }

    pub fn is_over(&self) -> bool {
        matches!(*self.phase.lock(), Phase::Over)
    }

    /// Begins a phase, unless it is all over.
    pub fn enter(&self, next: Phase) {
        let mut phase = self.phase.lock();
        if !matches!(*phase, Phase::Over) {
            *phase = next;
        }
    }

    pub fn life(&self) -> u64 {
        self.life.load(Ordering::SeqCst)
    }

    pub fn count(&self, what: &str, times: u64) {
        let mut tally = self.tally.lock();
        match tally.get_mut(what) {
            Some(count) => *count += times,
            None => _ = tally.insert(what.to_owned(), times),
        }
    }

    pub fn counted(&self, what: &str) -> u64 {
        self.tally.lock().get(what).copied().unwrap_or(0)
    }

    /// Everything that was counted, a line each.
    pub fn summary(&self) -> String {
        let tally = self.tally.lock();
        tally.iter().fold(String::new(), |mut text, (what, count)| {
            _ = writeln!(text, "{count:>12} {what}");
            text
        })
    }

    /// Notes that event `seq` of `topic` is `mark`.
    ///
    /// # Panics
    ///
    /// If somebody was told otherwise, or if a topic that survives has another life.
    pub fn note(&self, (topic, epoch, seq): (&str, &str, u64), mark: Mark) {
        let mut truth = self.truth.lock();
        let lives = match truth.get_mut(topic) {
            Some(lives) => lives,
            None => truth.entry(topic.to_owned()).or_default(),
        };
        let events = match lives.get_mut(epoch) {
            Some(events) => events,
            None => lives.entry(epoch.to_owned()).or_default(),
        };
        let known = *events.entry(seq).or_insert(mark);
        assert_eq!(known, mark, "event {seq} of {topic} was another one for somebody else");
        assert!(!is_stored(topic) || lives.len() == 1, "{topic} has begun anew: {epoch}");
    }

    /// What anybody was told of the events of each topic.
    pub fn truth(&self) -> Truth {
        self.truth.lock().clone()
    }

    /// Forgets the lives of memory topics, whose relay has ended, once no event was twice in them.
    pub fn forget_memory(&self) {
        let mut truth = self.truth.lock();
        for (topic, lives) in truth.iter_mut().filter(|(topic, _)| !is_stored(topic)) {
            for (epoch, events) in std::mem::take(lives) {
                assert_distinct(topic, &epoch, &events);
            }
        }
    }
}

/// Each key is one event.
pub fn assert_distinct(topic: &str, epoch: &str, events: &BTreeMap<u64, Mark>) {
    let mut marks: Vec<_> = events.values().collect();
    marks.sort_unstable();
    let twice = marks.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(twice, None, "an event is twice in {topic}, {epoch}");
}

/// Whether a topic is kept on disk.
#[must_use]
pub fn is_stored(topic: &str) -> bool {
    topic.starts_with("stored/")
}

/// What a connection brings next.
#[derive(Clone, Debug)]
pub enum Next {
    Message(Value),
    Quiet,
    End,
}

/// What a client does until it ends.
pub type Role = Box<dyn FnOnce(&World, &mut Me) + Send>;

/// One client: its name, its luck, and what it went through of late.
pub struct Me {
    pub name: String,
    pub dice: Dice,
    pub story: Arc<Mutex<VecDeque<String>>>,
    pub is_direct: bool,
}

impl Me {
    pub fn say(&self, line: String) {
        let mut story = self.story.lock();
        if story.len() == STORY {
            story.pop_front();
        }
        story.push_back(line);
    }

    /// A time between `least` and `most`, in milliseconds.
    pub fn time(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.dice.below(most - least))
    }

    pub fn one_in(&mut self, chances: u64) -> bool {
        self.dice.below(chances) == 0
    }

    /// A TCP connection, sometimes by a way that fails; `None` when all is over.
    pub fn reach(&mut self, world: &World) -> Option<TcpStream> {
        while !world.is_over() {
            let way = self.way(world);
            self.is_direct = way == world.relay;
            if let Ok(stream) = TcpStream::connect_timeout(&way, LIMIT) {
                stream.set_nodelay(true).ok();
                self.say(format!("connected to {way} in life {}", world.life()));
                return Some(stream);
            }
            pause(self.time(200, 1_500));
        }
        None
    }

    fn way(&mut self, world: &World) -> SocketAddr {
        let detours = world.detours.lock();
        let direct = !self.one_in(4) || detours.is_empty();
        let at = self.dice.below(detours.len().max(1) as u64) as usize;
        if direct || !world.runs() { world.relay } else { detours[at] }
    }

    /// A connection that has been upgraded; `None` when all is over.
    pub fn connect(&mut self, world: &World) -> Option<Peer> {
        loop {
            let stream = self.reach(world)?;
            if let Some(peer) = Peer::try_upgrade(stream, world.relay) {
                world.count("connections: WebSocket", 1);
                return Some(peer);
            }
            pause(self.time(200, 1_500));
        }
    }

    /// Waits a while for the next message.
    pub fn next(&self, world: &World, peer: &mut Peer) -> Next {
        match peer.receive(LOOK) {
            None => Next::Quiet,
            Some(Incoming::Text(text)) => {
                let message: Value = serde_json::from_str(&text).expect("the relay sends JSON");
                if message["type"] == "bye" {
                    world.count(&format!("byes: {}", message["reason"]), 1);
                }
                let shown = text.get(..160).unwrap_or(&text);
                self.say(shown.to_owned());
                Next::Message(message)
            }
            Some(end) => {
                self.say(format!("the connection ended: {end:?}"));
                Next::End
            }
        }
    }

    /// The reply to `request`, which has an `id`; `None` if the connection ends before.
    pub fn ask(&self, world: &World, peer: &mut Peer, request: &Value) -> Option<Value> {
        self.say(format!("sent {request}"));
        if !peer.try_send(request) {
            return None;
        }
        let mut looks = LIMIT.as_millis() / LOOK.as_millis();
        loop {
            match self.next(world, peer) {
                Next::Message(message) if message["id"] == request["id"] => return Some(message),
                Next::Message(_) => {}
                Next::Quiet => {
                    looks -= 1;
                    let waits = 0 < looks;
                    assert!(waits || !self.is_direct, "no answer to {request} within {LIMIT:?}");
                    if !waits {
                        return None;
                    }
                }
                Next::End => return None,
            }
        }
    }

    /// Ends a connection in one of the ways in which connections end.
    pub fn part(&mut self, mut peer: Peer) {
        self.say("left".to_owned());
        match self.dice.below(3) {
            0 => peer.cut(),
            1 => {
                peer.try_send_raw(&frame::masked(frame::CLOSE, &1_000_u16.to_be_bytes()));
            }
            _ => drop(peer),
        }
    }
}
