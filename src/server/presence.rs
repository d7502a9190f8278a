//! Presence as the relay keeps it: decided in `presence`, written into the relay's own state, and
//! carried on by the keeper when users are gone.
//!
//! # Threads
//!
//! The reader of whoever joins or leaves; the keeper, for users who do not come back.
//!
//! # Locks
//!
//! [`Rank::Presence`], for one decision and the changes of the state that follow from it: changes
//! stand in the state in the order of the decisions. Whoever watches is told after it.

use crate::{
    base::{
        lock::{Rank, Ranked},
        sync::atomic::{AtomicU64, Ordering},
    },
    metrics::labels::{Closed, Departure},
    name::{Name, UserName},
    presence::{Done, Event, Plan, Presence, Write},
    server::{RelayEvent, relay::Shared},
    state::{Change, ChangeError, Now},
    wire::{codes::Code, request::Refusal},
};

/// Who is where, and when the keeper looks for users who are gone.
pub(crate) struct Members {
    presence: Ranked<Presence>,
    /// By uptime; never later than the first timer.
    look_ms: AtomicU64,
}

impl Default for Members {
    fn default() -> Self {
        let presence = Ranked::new(Rank::Presence, Presence::default());
        Members { presence, look_ms: AtomicU64::new(u64::MAX) }
    }
}

/// Users who are removed before others get a turn.
const GONE_PER_TURN: usize = 256;

/// How a connection that ended for `reason` left what it had joined; `None` if the relay stops,
/// which is no news about anybody.
pub(crate) fn departure(reason: Option<Closed>) -> Option<Departure> {
    match reason {
        Some(Closed::Shutdown) => None,
        Some(Closed::Client | Closed::Replaced) => Some(Departure::Closed),
        // The client did not mean to go, and may be back at once. Without a reason its reader
        // panicked.
        Some(
            Closed::Lost
            | Closed::Heartbeat
            | Closed::Disconnected
            | Closed::Stalled
            | Closed::Deadline
            | Closed::Panic
            | Closed::Unavailable
            | Closed::Slow
            | Closed::Protocol
            | Closed::TooLarge
            | Closed::Refused,
        )
        | None => Some(Departure::Lost),
    }
}

/// What a decision led to, told when the lock is released.
struct Outcome {
    /// Changes of the state.
    writes: usize,
    /// When the next user is gone, by uptime.
    next_ms: Option<u64>,
    events: Vec<Event>,
    departure: Departure,
}

/// When something is decided, and when users are gone who leave by it.
#[derive(Clone, Copy)]
struct Moment {
    now: Now,
    gone_ms: u64,
    departure: Departure,
}

impl Shared {
    /// Has `connection` join `topic` as `user`, or say something else about itself there.
    ///
    /// # Errors
    ///
    /// The topic is the relay's own, the connection has joined `topics_max` others, or the state
    /// has no room. Nothing has changed then.
    ///
    /// # Blocking
    ///
    /// While a writer's or the keeper's lane is full.
    pub(crate) fn join(
        &self,
        connection: u64,
        (topic, user): (&Name, &UserName),
        info: Option<&str>,
        topics_max: usize,
    ) -> Result<(), Refusal> {
        let refuse =
            |code, message| Refusal { field: Some("topic"), ..Refusal::new(code, message) };
        if topic.is_reserved() {
            let message = format!("{topic} begins with $ and is the relay's own; nobody joins it");
            return Err(refuse(Code::Forbidden, message));
        }
        let full = |error: &dyn std::fmt::Display| {
            refuse(Code::LimitExceeded, format!("{user} cannot join {topic}: {error}"))
        };
        let moment = self.moment(Departure::Left);
        let outcome = self.members.presence.with(|presence| {
            let bounds = (topics_max, moment.now.unix_ms);
            let plan = presence.plan_join(connection, (topic, user), info, bounds);
            let plan = plan.map_err(|error| full(&error))?;
            self.carry_out(presence, plan, moment).map_err(|error| full(&error))
        });
        self.tell_presence(&outcome?);
        Ok(())
    }

    /// Has `connection` be `user` wherever it has joined.
    ///
    /// # Errors
    ///
    /// The state has no room for `user` everywhere; then the connection is still who it was.
    ///
    /// # Blocking
    ///
    /// As [`Shared::join`].
    pub(crate) fn change_user(&self, connection: u64, user: &UserName) -> Result<(), Refusal> {
        let moment = self.moment(Departure::Left);
        let outcome = self.members.presence.with(|presence| {
            let plan = presence.plan_user(connection, user, moment.now.unix_ms)?;
            Some(self.carry_out(presence, plan, moment))
        });
        match outcome {
            None => Ok(()),
            Some(Ok(outcome)) => {
                self.tell_presence(&outcome);
                Ok(())
            }
            Some(Err(error)) => {
                // What was written and taken back is news to whoever looked meanwhile.
                self.state.relay.announce();
                let message = format!("{user} cannot join what this connection has: {error}");
                Err(Refusal { field: Some("user"), ..Refusal::new(Code::LimitExceeded, message) })
            }
        }
    }

    /// Has `connection` leave `topic`. Whether it had joined.
    ///
    /// # Blocking
    ///
    /// As [`Shared::join`].
    pub(crate) fn leave(&self, connection: u64, topic: &Name) -> bool {
        let moment = self.moment(Departure::Left);
        let outcome = self.members.presence.with(|presence| {
            let done = presence.leave(connection, topic, moment.gone_ms)?;
            Some(self.write_down(presence, done, moment))
        });
        outcome.is_some_and(|outcome| {
            self.tell_presence(&outcome);
            true
        })
    }

    /// Has `connection`, which has ended, leave everything.
    ///
    /// # Blocking
    ///
    /// As [`Shared::join`].
    pub(crate) fn leave_all(&self, connection: u64, departure: Departure) {
        // A relay that stops has no news about anybody.
        if self.readiness().is_err() {
            return;
        }
        let moment = self.moment(departure);
        let outcome = self.members.presence.with(|presence| {
            let done = presence.end(connection, moment.gone_ms);
            self.write_down(presence, done, moment)
        });
        self.tell_presence(&outcome);
    }

    /// Removes users who are gone. Returns when the next one is, by uptime. For the keeper.
    ///
    /// # Blocking
    ///
    /// While a writer's lane is full.
    pub(crate) fn expire_presence(&self) -> u64 {
        let look_ms = &self.members.look_ms;
        // Relaxed here and below: what counts is behind the lock; this only says when to look.
        let due_ms = look_ms.load(Ordering::Relaxed);
        if self.clock.uptime_ms() < due_ms {
            return due_ms;
        }
        if self.readiness().is_err() {
            return u64::MAX;
        }
        // Before looking: who leaves after this wakes the keeper.
        look_ms.store(u64::MAX, Ordering::Relaxed);
        let moment = self.moment(Departure::Left);
        loop {
            let outcome = self.members.presence.with(|presence| {
                let done = presence.expire(moment.now.uptime_ms, GONE_PER_TURN);
                self.write_down(presence, done, moment)
            });
            self.say_presence(&outcome);
            if outcome.writes < GONE_PER_TURN {
                let next_ms = outcome.next_ms.unwrap_or(u64::MAX);
                return next_ms.min(look_ms.fetch_min(next_ms, Ordering::Relaxed));
            }
        }
    }

    fn moment(&self, departure: Departure) -> Moment {
        let settings = self.config().1.presence;
        let debounce = match departure {
            Departure::Left | Departure::Closed => settings.leave_debounce,
            Departure::Lost => settings.lost_debounce,
        };
        let debounce_ms = u64::try_from(debounce.as_millis()).unwrap_or(u64::MAX);
        let now = self.state_now();
        // The present millisecond has begun already; without it a debounce would be too short.
        let gone_ms = now.uptime_ms.saturating_add(debounce_ms).saturating_add(1);
        Moment { now, gone_ms, departure }
    }

    /// Writes what is planned, and does it; or takes back what was written.
    fn carry_out(
        &self,
        presence: &mut Presence,
        plan: Plan,
        moment: Moment,
    ) -> Result<Outcome, ChangeError> {
        let mut written = 0;
        for write in plan.writes() {
            if let Err(error) = self.write_presence(write, moment.now) {
                plan.undo(written).for_each(|undo| self.write_surely(undo, moment.now));
                return Err(error);
            }
            written += 1;
        }
        let done = presence.commit(plan, moment.gone_ms);
        let outcome = self.write_down(presence, done, moment);
        Ok(Outcome { writes: outcome.writes + written, ..outcome })
    }

    fn write_down(&self, presence: &Presence, done: Done, moment: Moment) -> Outcome {
        done.writes.iter().for_each(|write| self.write_surely(write, moment.now));
        // With the lock held, which waits for nothing: handlers hear of a user in order.
        done.events.iter().for_each(|event| self.publish_presence(event));
        self.metrics.presence_members.set(presence.len() as u64);
        let (writes, next_ms) = (done.writes.len(), presence.next_ms());
        Outcome { writes, next_ms, events: done.events, departure: moment.departure }
    }

    fn write_presence(&self, write: &Write, now: Now) -> Result<(), ChangeError> {
        let Write { key, value } = write;
        let value = value.as_deref();
        let change = Change { key, value, if_version: None, ttl_ms: None, user: None };
        self.state.relay.change(&change, now, None).map(drop)
    }

    /// Writes what the state cannot refuse: what is left of a user who has the key already, or its
    /// deletion. That may be longer than what it replaces, by what one client says about itself.
    fn write_surely(&self, write: &Write, now: Now) {
        let Write { key, value } = write;
        let value = value.as_deref();
        let change = Change { key, value, if_version: None, ttl_ms: None, user: None };
        if let Err(error) = self.state.relay.change_beyond_bounds(&change, now) {
            log::error!("presence cannot be written key={} error=\"{error}\"", write.key);
            debug_assert!(false, "{}: {error}", write.key);
        }
    }

    /// Tells watchers, the keeper and the operator what a reader's decision led to.
    ///
    /// # Blocking
    ///
    /// As [`Shared::join`].
    fn tell_presence(&self, outcome: &Outcome) {
        self.say_presence(outcome);
        if let Some(next_ms) = outcome.next_ms
            && next_ms < self.members.look_ms.fetch_min(next_ms, Ordering::Relaxed)
        {
            self.wake_keeper(next_ms);
        }
    }

    fn say_presence(&self, outcome: &Outcome) {
        if 0 < outcome.writes {
            self.state.relay.announce();
        }
        for event in &outcome.events {
            self.note_presence(event, outcome.departure);
        }
    }

    fn publish_presence(&self, event: &Event) {
        match event {
            Event::Online { topic, user } => self
                .happened(|| RelayEvent::UserOnline { topic: topic.clone(), user: user.clone() }),
            Event::Offline { topic, user } => self
                .happened(|| RelayEvent::UserOffline { topic: topic.clone(), user: user.clone() }),
            Event::Joined | Event::Left | Event::Returned { .. } => {}
        }
    }

    /// Counts and logs what happened to a user.
    fn note_presence(&self, event: &Event, departure: Departure) {
        match event {
            Event::Joined => self.metrics.presence_joins.add(1),
            Event::Left => self.metrics.presence_leaves.add(departure, 1),
            Event::Returned { topic, user } => {
                self.metrics.presence_returns.add(1);
                log::debug!("back user={user} topic={topic}");
            }
            Event::Online { topic, user } => {
                log::debug!("online user={user} topic={topic}");
            }
            Event::Offline { topic, user } => {
                log::debug!("offline user={user} topic={topic}");
            }
        }
    }
}
