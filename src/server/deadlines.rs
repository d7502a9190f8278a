//! When a connection is to be looked at again, and what is then to be done with it.
//!
//! Pure: time comes in as an argument, the verdict goes out as a value.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    time::Duration,
};

use crate::{
    config::ConnectionSettings,
    server::connection::{Phase, State},
};

/// Things to be looked at, the next one first. Times are milliseconds of uptime.
pub(crate) struct Deadlines<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
}

struct Entry<T> {
    at_ms: u64,
    what: T,
}

impl<T> Deadlines<T> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new() }
    }

    pub(crate) fn push(&mut self, at_ms: u64, what: T) {
        self.heap.push(Reverse(Entry { at_ms, what }));
    }

    pub(crate) fn next_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(entry)| entry.at_ms)
    }

    /// Removes and returns the first one if it is due at `now_ms`.
    pub(crate) fn pop_due(&mut self, now_ms: u64) -> Option<T> {
        self.next_ms().filter(|at_ms| *at_ms <= now_ms)?;
        let due = self.heap.pop().map(|Reverse(entry)| entry.what);
        if self.heap.len() < self.heap.capacity() / 8 {
            self.heap.shrink_to_fit();
        }
        due
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.at_ms == other.at_ms
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at_ms.cmp(&other.at_ms)
    }
}

/// What is known of a connection when it is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) state: State,
    pub(crate) heard_ms: u64,
    pub(crate) pinged_ms: u64,
    /// When the ping was sent that the client must answer: the first since it was heard.
    pub(crate) asked_ms: u64,
    /// When the relay last went on after a pause: of its machine, of its process, of its keeper.
    pub(crate) resumed_ms: u64,
}

/// What is to be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing before this time.
    LookAgain(u64),
    /// Send a ping, and look again.
    Ping { asked_ms: u64, again_ms: u64 },
    /// Let a stream's client hear something, and look again.
    PingStream { again_ms: u64 },
    /// Say goodbye for having been silent.
    SayBye,
    /// Say that a request took too long, if there is the beginning of one.
    TooSlow,
    /// End it now.
    Cut,
}

/// How often a stream's client hears something. Proxies and clients take 15 s of silence for the
/// end.
const STREAM_PING: Duration = Duration::from_secs(12);

/// A deadline can come nearer while nobody looks; such a connection is looked at this often.
const LOOK_MS: u64 = 1_000;

/// Who comes this late was not merely busy.
const LATE_MS: u64 = 1_000;

/// Whether something that was due at `due_ms` is so late that the relay must have been paused: what
/// did not come meanwhile may have come in vain.
pub(crate) fn is_late(due_ms: u64, now_ms: u64) -> bool {
    due_ms.saturating_add(LATE_MS) < now_ms
}

/// Decides what is to be done with a connection at `now_ms`.
pub(crate) fn step(facts: &Facts, settings: &ConnectionSettings, now_ms: u64) -> Step {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let State { phase, deadline_ms } = facts.state;
    match phase {
        Phase::WebSocket => {
            let timeout_ms = millis(settings.heartbeat_timeout);
            let heartbeat_ms = millis(settings.heartbeat);
            let silent_ms = facts.heard_ms.saturating_add(timeout_ms);
            // Silence counts only if the client was asked, and had the time to answer.
            let asked = facts.heard_ms < facts.asked_ms && facts.resumed_ms <= facts.asked_ms;
            let asked_ms = if asked { facts.asked_ms } else { now_ms };
            let window_ms = timeout_ms.saturating_sub(heartbeat_ms);
            let dead_ms = silent_ms.max(asked_ms.saturating_add(window_ms));
            if asked && dead_ms <= now_ms {
                return Step::SayBye;
            }
            let ping_ms = facts.pinged_ms.saturating_add(heartbeat_ms);
            if ping_ms <= now_ms || (!asked && silent_ms <= now_ms) {
                let again_ms = dead_ms.min(now_ms.saturating_add(heartbeat_ms));
                return Step::Ping { asked_ms, again_ms };
            }
            Step::LookAgain(ping_ms.min(if asked { dead_ms } else { silent_ms }))
        }
        Phase::Stream => {
            let every_ms = millis(settings.heartbeat.min(STREAM_PING));
            let ping_ms = facts.pinged_ms.saturating_add(every_ms);
            if ping_ms <= now_ms {
                return Step::PingStream { again_ms: now_ms.saturating_add(every_ms) };
            }
            Step::LookAgain(ping_ms)
        }
        Phase::Http if deadline_ms <= now_ms => Step::TooSlow,
        _ if deadline_ms <= now_ms => Step::Cut,
        Phase::Http | Phase::Idle | Phase::Closing => {
            Step::LookAgain(deadline_ms.min(now_ms + LOOK_MS))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(phase: Phase, heard_ms: u64, pinged_ms: u64, now_ms: u64) -> Step {
        let state = State { phase, deadline_ms: 5_000 };
        let facts = Facts { state, heard_ms, pinged_ms, asked_ms: pinged_ms, resumed_ms: 0 };
        step(&facts, &ConnectionSettings::default(), now_ms)
    }

    fn look_after_a_pause(heard_ms: u64, asked_ms: u64, resumed_ms: u64, now_ms: u64) -> Step {
        let state = State { phase: Phase::WebSocket, deadline_ms: 0 };
        let facts = Facts { state, heard_ms, pinged_ms: asked_ms, asked_ms, resumed_ms };
        step(&facts, &ConnectionSettings::default(), now_ms)
    }

    #[test]
    fn a_websocket_is_pinged_every_heartbeat_and_given_up_after_silence() {
        let ping = |asked_ms, again_ms| Step::Ping { asked_ms, again_ms };
        assert_eq!(look(Phase::WebSocket, 0, 0, 10_000), Step::LookAgain(25_000));
        assert_eq!(look(Phase::WebSocket, 0, 0, 25_000), ping(25_000, 50_000));
        assert_eq!(look(Phase::WebSocket, 0, 25_000, 50_000), ping(25_000, 54_000));
        assert_eq!(look(Phase::WebSocket, 0, 25_000, 54_000), Step::SayBye);
        assert_eq!(look(Phase::WebSocket, 51_000, 50_000, 54_000), Step::LookAgain(75_000));
    }

    #[test]
    fn a_further_ping_gives_no_further_time() {
        let state = State { phase: Phase::WebSocket, deadline_ms: 0 };
        let facts =
            Facts { state, heard_ms: 0, pinged_ms: 50_000, asked_ms: 25_000, resumed_ms: 0 };
        let settings = ConnectionSettings::default();
        assert_eq!(step(&facts, &settings, 53_999), Step::LookAgain(54_000));
        assert_eq!(step(&facts, &settings, 54_000), Step::SayBye);
    }

    #[test]
    fn a_client_that_was_never_asked_is_asked_however_long_it_was_silent() {
        let asked = look(Phase::WebSocket, 0, 0, 90_000);
        assert_eq!(asked, Step::Ping { asked_ms: 90_000, again_ms: 115_000 });
        // It is heard no more; what it was asked before it was last heard does not count.
        assert_eq!(look_after_a_pause(0, 90_000, 0, 115_000 - 1), Step::LookAgain(115_000));
        assert_eq!(look_after_a_pause(0, 90_000, 0, 119_000), Step::SayBye);
        let asked = look_after_a_pause(30_000, 25_000, 0, 90_000);
        assert_eq!(asked, Step::Ping { asked_ms: 90_000, again_ms: 115_000 });
    }

    #[test]
    fn a_question_from_before_a_pause_is_asked_again() {
        let asked = look_after_a_pause(0, 25_000, 90_000, 90_000);
        assert_eq!(asked, Step::Ping { asked_ms: 90_000, again_ms: 115_000 });
        assert_eq!(look_after_a_pause(0, 90_000, 90_000, 118_999), {
            Step::Ping { asked_ms: 90_000, again_ms: 119_000 }
        });
        assert_eq!(look_after_a_pause(0, 90_000, 90_000, 119_000), Step::SayBye);
    }

    #[test]
    fn who_is_a_little_late_was_not_paused() {
        assert!(!is_late(5_000, 4_000));
        assert!(!is_late(5_000, 6_000));
        assert!(is_late(5_000, 6_001));
        assert!(!is_late(u64::MAX, u64::MAX));
    }

    #[test]
    fn an_http_connection_ends_at_its_deadline_and_is_looked_at_often() {
        assert_eq!(look(Phase::Http, 0, 0, 0), Step::LookAgain(1_000));
        assert_eq!(look(Phase::Idle, 0, 0, 4_500), Step::LookAgain(5_000));
        assert_eq!(look(Phase::Http, 0, 0, 5_000), Step::TooSlow);
        assert_eq!(look(Phase::Idle, 0, 0, 5_000), Step::Cut);
        assert_eq!(look(Phase::Closing, 0, 0, 0), Step::LookAgain(1_000));
        assert_eq!(look(Phase::Closing, 0, 0, 4_500), Step::LookAgain(5_000));
        assert_eq!(look(Phase::Closing, 0, 0, 5_000), Step::Cut);
    }

    #[test]
    fn a_stream_is_pinged_within_15_s_and_never_expected_to_answer() {
        assert_eq!(look(Phase::Stream, 0, 0, 10_000), Step::LookAgain(12_000));
        assert_eq!(look(Phase::Stream, 0, 0, 12_000), Step::PingStream { again_ms: 24_000 });
        assert_eq!(look(Phase::Stream, 0, 90_000, 90_001), Step::LookAgain(102_000));
    }

    #[test]
    fn deadlines_come_in_order_and_only_when_due() {
        let mut deadlines = Deadlines::new();
        deadlines.push(20, 'b');
        deadlines.push(10, 'a');
        assert_eq!(deadlines.next_ms(), Some(10));
        assert_eq!(deadlines.pop_due(9), None);
        assert_eq!(deadlines.pop_due(15), Some('a'));
        assert_eq!(deadlines.pop_due(15), None);
    }
}
