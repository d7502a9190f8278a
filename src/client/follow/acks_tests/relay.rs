//! A naive relay that keeps positions: windows, redelivery, dead letters, consumers.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    client::follow::{Filter, Name},
    wire::{
        position::{Epoch, From},
        request::{self, Acks, Request},
    },
};

pub(super) const TOPICS: [&str; 2] = ["a/x", "a/y"];
pub(super) const DELIVERIES_MAX: u64 = 3;

#[derive(Default)]
pub(super) struct Log {
    pub(super) first: u64,
    pub(super) tail: u64,
}

/// One topic on the connection that is up.
pub(super) struct Flight {
    pub(super) acked: u64,
    /// The next event is `cursor + 1`.
    pub(super) cursor: u64,
    /// The highest that was sent.
    pub(super) sent: u64,
    /// Up to here it is sent again, because nobody acknowledged it in time.
    pub(super) again: u64,
    /// How often the first that is not acknowledged was sent in vain.
    pub(super) vain: u64,
    pub(super) window: u64,
    pub(super) consumer: bool,
}

/// A relay with a few logs, one client and at most one consumer for each topic.
pub(super) struct Relay {
    pub(super) epoch: u64,
    pub(super) logs: BTreeMap<&'static str, Log>,
    pub(super) consumers: BTreeMap<String, u64>,
    pub(super) flights: BTreeMap<String, Flight>,
    pub(super) patterns: BTreeMap<String, u64>,
    pub(super) requests: VecDeque<String>,
    pub(super) stream: VecDeque<String>,
}

impl Relay {
    pub(super) fn new() -> Self {
        let log = |topic: &&'static str| (*topic, Log { first: 1, tail: 0 });
        Relay {
            epoch: 1,
            logs: TOPICS.iter().map(log).collect(),
            consumers: BTreeMap::new(),
            flights: BTreeMap::new(),
            patterns: BTreeMap::new(),
            requests: VecDeque::new(),
            stream: VecDeque::new(),
        }
    }

    pub(super) fn restart(&mut self) {
        *self = Relay { epoch: self.epoch + 1, ..Relay::new() };
    }

    pub(super) fn disconnect(&mut self) {
        self.flights.clear();
        self.patterns.clear();
        self.requests.clear();
        self.stream.clear();
    }

    pub(super) fn log(&self, topic: &str) -> &Log {
        &self.logs[topic]
    }

    /// Where `from` begins, and what the answer says of it.
    pub(super) fn start(&self, topic: &str, from: &From) -> (u64, String) {
        let Log { first, tail } = *self.log(topic);
        let position = match from {
            From::Live => return (tail, String::new()),
            From::After(position) => Some(position),
            From::Positions(positions) => {
                positions.iter().find(|(name, _)| name.as_str() == topic).map(|(_, at)| at)
            }
            From::Start | From::Last(_) | From::Since(_) => None,
        };
        let Some(at) = position else { return (first - 1, String::new()) };
        let known = at.epoch == Epoch::from_number(self.epoch) && at.seq <= tail;
        if !known {
            let reset = r#","recovery":{"mode":"reset","reason":"epoch_changed"}"#;
            return (first - 1, reset.to_owned());
        }
        self.recovered(topic, at.seq)
    }

    pub(super) fn recovered(&self, topic: &str, seq: u64) -> (u64, String) {
        let first = self.log(topic).first;
        if seq < first - 1 {
            let (from, to) = (seq + 1, first - 1);
            let partial = format!(
                r#","recovery":{{"mode":"partial","missing":[{from},{to}],"reason":"truncated"}}"#
            );
            return (to, partial);
        }
        (seq, r#","recovery":{"mode":"complete"}"#.to_owned())
    }

    pub(super) fn begin(&mut self, topic: &str, seq: u64, window: u64, consumer: bool) -> String {
        let (acked, cursor, sent, again, vain) = (seq, seq, seq, 0, 0);
        let flight = Flight { acked, cursor, sent, again, vain, window, consumer };
        self.flights.insert(topic.to_owned(), flight);
        let Log { first, tail } = *self.log(topic);
        let epoch = Epoch::from_number(self.epoch);
        format!(r#""topic":"{topic}","epoch":"{epoch}","seq":{seq},"first":{first},"tail":{tail}"#)
    }

    pub(super) fn take_requests(&mut self, count: usize) {
        for _ in 0..count {
            let Some(text) = self.requests.pop_front() else { return };
            self.request(&text);
        }
    }

    pub(super) fn request(&mut self, text: &str) {
        let decoded = request::decode(text);
        let id = decoded.id.unwrap();
        match decoded.request.unwrap() {
            Request::Subscribe { filter: Filter::Topic(name), from, acks, .. } => {
                let Acks { window, consumer } = acks.expect("everything here acknowledges");
                let topic = name.as_str();
                let kept = consumer.as_ref().and_then(|_| self.consumers.get(topic)).copied();
                let (seq, recovery) = match kept {
                    Some(seq) => self.recovered(topic, seq),
                    None => self.start(topic, &from),
                };
                if consumer.is_some() {
                    self.consumers.insert(topic.to_owned(), seq);
                }
                let facts = self.begin(topic, seq, window, consumer.is_some());
                let reply = format!(r#"{{"type":"subscribed","id":{id},{facts}{recovery}}}"#);
                self.stream.push_back(reply);
            }
            Request::Subscribe { filter: Filter::Pattern(pattern), from, acks, .. } => {
                let window = acks.expect("everything here acknowledges").window;
                self.patterns.insert(pattern.as_str().to_owned(), window);
                let reply = format!(
                    r#"{{"type":"subscribed","id":{id},"topic":"{pattern}","attached":2}}"#
                );
                self.stream.push_back(reply);
                for topic in TOPICS {
                    let (seq, recovery) = self.start(topic, &from);
                    let facts = self.begin(topic, seq, window, false);
                    self.stream.push_back(format!(
                        r#"{{"type":"attached","pattern":"{pattern}",{facts}{recovery}}}"#
                    ));
                }
            }
            Request::Unsubscribe { filter } => {
                self.flights
                    .retain(|topic, _| !filter.matches(&Name::parse(topic).expect("a name")));
                let reply = format!(r#"{{"type":"unsubscribed","id":{id},"topic":"{filter}"}}"#);
                self.stream.push_back(reply);
            }
            Request::Ack { topic, seq } => {
                let flight = self.flights.get_mut(&*topic).expect("it is followed");
                assert!(seq <= flight.sent, "{topic}: {seq} was not sent on this connection");
                if flight.acked < seq {
                    (flight.acked, flight.vain) = (seq, 0);
                    flight.cursor = flight.cursor.max(seq);
                }
                if flight.consumer {
                    self.consumers.insert(topic.into_owned(), flight.acked);
                }
            }
            Request::Hello { .. }
            | Request::Publish(_)
            | Request::History { .. }
            | Request::Ping
            | Request::State(_) => panic!("{text}"),
        }
    }

    /// Sends at most `count` events of each topic, as far as its window goes.
    pub(super) fn pump(&mut self, count: u64) {
        for (topic, flight) in &mut self.flights {
            let Log { first, tail } = self.logs[topic.as_str()];
            for _ in 0..count {
                if flight.cursor < first - 1 {
                    let (from, to) = (flight.cursor + 1, first - 1);
                    self.stream.push_back(gap(topic, from, to, "slow"));
                    flight.cursor = to;
                } else if flight.cursor < tail && flight.cursor < flight.acked + flight.window {
                    flight.cursor += 1;
                    let seq = flight.cursor;
                    let again = if seq <= flight.again { r#","again":1"# } else { "" };
                    self.stream.push_back(format!(
                        r#"{{"type":"event","topic":"{topic}","seq":{seq},"data":{seq}{again}}}"#
                    ));
                }
                flight.sent = flight.sent.max(flight.cursor);
            }
        }
    }

    /// The time for acknowledging is over.
    pub(super) fn redeliver(&mut self, topic: &str) {
        let Some(flight) = self.flights.get_mut(topic) else { return };
        if flight.acked == flight.sent {
            return;
        }
        flight.vain += 1;
        (flight.cursor, flight.again) = (flight.acked, flight.sent);
        if flight.vain == DELIVERIES_MAX {
            let seq = flight.acked + 1;
            (flight.acked, flight.cursor, flight.vain) = (seq, seq, 0);
            if flight.consumer {
                self.consumers.insert(topic.to_owned(), seq);
            }
            self.stream.push_back(gap(topic, seq, seq, "dead_letter"));
        }
    }
}

pub(super) fn gap(topic: &str, from: u64, to: u64, reason: &str) -> String {
    format!(r#"{{"type":"gap","topic":"{topic}","from":{from},"to":{to},"reason":"{reason}"}}"#)
}
