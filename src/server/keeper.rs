//! The thread that keeps deadlines: heartbeats, slow heads, goodbyes, retention, presence.
//!
//! # Threads
//!
//! `keeper`. It waits in its lane until the next deadline.
//!
//! # Locks
//!
//! An outbox, to add a ping; the registry and logs, to sweep; presence, to let users go; the state.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    base::{
        lane::{Receiver, RecvTimeoutError},
        pause,
    },
    config::{Config, TopicSettings},
    http::{
        error::HttpError,
        response::{Exchange, refuse},
    },
    metrics::labels::Closed,
    server::{
        connection::{Bye, Connection},
        deadlines::{Deadlines, Facts, Step, is_late, step},
        relay::{Shared, grace_deadline_ms, last_resort_ms},
        vault::Job,
    },
    wire::codes::CloseCode,
};

/// A connection that is to be looked at.
pub(crate) struct Watch {
    pub(crate) connection: Weak<Connection>,
    pub(crate) at_ms: u64,
}

/// Longest time between two sweeps of the registry.
const SWEEP_MS_MAX: u64 = 30_000;
/// Shortest time between two sweeps.
const SWEEP_MS_MIN: u64 = 500;

/// Serves until the lane is closed or the relay has stopped.
pub(crate) fn run(shared: &Arc<Shared>, inbox: &Receiver<Watch>) {
    let mut deadlines = Deadlines::new();
    let mut sweep_ms = 0;
    let mut resumed_ms = 0;
    loop {
        let now_ms = shared.clock.uptime_ms();
        let due_ms = deadlines.next_ms().unwrap_or(u64::MAX).min(sweep_ms);
        if 0 < sweep_ms && is_late(due_ms, now_ms) {
            resumed_ms = now_ms;
        }
        if sweep_ms <= now_ms {
            let (_, config) = shared.config();
            sweep(shared, &config);
            sweep_ms = now_ms + sweep_every_ms(&config.topics);
        }
        pause::point();
        while let Some(connection) = deadlines.pop_due(now_ms) {
            look_at(shared, &connection, Now { now_ms, resumed_ms }, &mut deadlines);
        }
        let expiry_ms = shared.expire_keys().min(shared.expire_presence());
        let expiry_ms = expiry_ms.min(shared.keep_sys());
        let next_ms = deadlines.next_ms().unwrap_or(u64::MAX).min(sweep_ms).min(expiry_ms);
        let wait = Duration::from_millis(next_ms.saturating_sub(shared.clock.uptime_ms()));
        match inbox.recv_timeout(wait) {
            Ok(Watch { connection, at_ms }) => deadlines.push(at_ms, connection),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if shared.keeper_may_end() {
            return;
        }
    }
}

/// Removes what is too old, and has the store told.
fn sweep(shared: &Shared, config: &Config) {
    let swept = shared.registry.sweep(config.acks.consumer_idle);
    swept.changed.iter().for_each(|topic| shared.vault.tell_lazily(topic));
    swept.forgotten.into_iter().for_each(|id| shared.vault.send(Job::Forget(id)));
}

#[derive(Clone, Copy)]
struct Now {
    now_ms: u64,
    /// When the relay last went on after a pause.
    resumed_ms: u64,
}

fn look_at(
    shared: &Shared,
    weak: &Weak<Connection>,
    Now { now_ms, resumed_ms }: Now,
    deadlines: &mut Deadlines<Weak<Connection>>,
) {
    let Some(connection) = weak.upgrade() else { return };
    let facts = Facts {
        state: connection.state(),
        heard_ms: connection.heard_ms(),
        pinged_ms: connection.pinged_ms(),
        asked_ms: connection.asked_ms(),
        resumed_ms,
    };
    let (_, config) = shared.config();
    match step(&facts, &config.connections, now_ms) {
        Step::LookAgain(at_ms) => deadlines.push(at_ms, Weak::clone(weak)),
        Step::Ping { asked_ms, again_ms } => {
            connection.ping(now_ms, asked_ms, config.connections.max_outbox);
            deadlines.push(again_ms, Weak::clone(weak));
        }
        Step::PingStream { again_ms } => {
            let unix_ms = shared.clock.unix_ms();
            connection.ping_stream(now_ms, unix_ms, config.connections.max_outbox);
            deadlines.push(again_ms, Weak::clone(weak));
        }
        Step::SayBye => {
            let deadline_ms = grace_deadline_ms(now_ms);
            let code = CloseCode::HeartbeatMissed;
            let text = "nothing was heard for the heartbeat timeout";
            let bye = Bye { reason: "heartbeat_missed", text, code, reconnect_after_ms: None };
            connection.say_bye(Closed::Heartbeat, deadline_ms, &bye);
            connection.flush();
            deadlines.push(deadline_ms, Weak::clone(weak));
        }
        Step::TooSlow if 0 < connection.received_bytes_now() => {
            let deadline_ms = last_resort_ms(now_ms, &config.connections);
            connection.finish(Closed::Deadline, deadline_ms, |out| {
                refuse(out, &Exchange::LAST, &HttpError::TooSlow);
            });
            connection.flush();
            deadlines.push(now_ms, Weak::clone(weak));
        }
        Step::TooSlow | Step::Cut => connection.cut(Closed::Deadline),
    }
}

/// Events beyond their age go within a quarter of it, or of half a minute.
fn sweep_every_ms(topics: &TopicSettings) -> u64 {
    let policies = topics.rules.iter().map(|rule| &rule.policy).chain([&topics.default_policy]);
    let ages = policies.filter_map(|policy| policy.max_age).chain([topics.forget_after]);
    let shortest = ages.min().unwrap_or(Duration::MAX);
    let quarter = u64::try_from(shortest.as_millis() / 4).unwrap_or(u64::MAX);
    quarter.clamp(SWEEP_MS_MIN, SWEEP_MS_MAX)
}
