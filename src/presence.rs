//! Who is where: users in topics, however many connections each of them has.
//!
//! Plain data: time comes in as an argument, what is to be written into the state goes out as
//! values. A join can be refused by whoever writes it, so it is planned first, written, and then
//! committed; everything else cannot be refused.
//!
//! A user whose last connection is gone stays for a while. Coming back within it changes nothing
//! that anybody sees:
//!
//! ```text
//!   join        leave              join                leave                       time is up
//!   online ---- still present ---- back, no message -- still present ------------- offline
//!               timer runs         timer is removed    another timer runs
//! ```
//!
//! # Not here
//!
//! Locks, the state itself, and who is told (`server::presence`).

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::name::{Name, UserName};

/// All users in all topics.
///
/// Invariants, asserted by [`Presence::check`]:
///
/// 1. A member has a timer if and only if none of its connections is there. A timer is removed with
///    its reason, so none that is too old can ever fire.
/// 2. What `connections` say, the members' `joins` say, and nothing else.
/// 3. What is `shown` of a member with connections is their number and the newest `info`.
#[derive(Debug, Default)]
pub struct Presence {
    members: HashMap<Name, Member>,
    connections: HashMap<u64, Attendance>,
    /// When members are gone whose last connection is.
    timers: BTreeSet<(u64, Name)>,
}

/// One user in one topic; the state's key says which.
#[derive(Debug)]
struct Member {
    topic: Name,
    user: UserName,
    since_ms: u64,
    /// The newest one last.
    joins: Vec<Join>,
    shown: Shown,
    gone_ms: Option<u64>,
}

#[derive(Debug)]
struct Join {
    connection: u64,
    info: Info,
}

/// JSON text that a client wants others to see.
type Info = Option<Arc<str>>;

/// What the state has about a member.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    connections: usize,
    info: Info,
}

/// What one connection has joined, and as whom.
#[derive(Debug)]
struct Attendance {
    user: UserName,
    topics: BTreeSet<Name>,
}

/// What is to become of a key of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub key: Name,
    /// JSON text; `None` deletes.
    pub value: Option<String>,
}

/// Joins that are not done yet.
#[must_use]
#[derive(Debug)]
pub struct Plan {
    connection: u64,
    user: UserName,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    topic: Name,
    key: Name,
    info: Info,
    /// When the user came, if it was not there.
    since_ms: u64,
    write: Option<Write>,
    undo: Option<Write>,
}

impl Plan {
    /// What is to be written before the plan is committed.
    pub fn writes(&self) -> impl Iterator<Item = &Write> {
        self.steps.iter().filter_map(|step| step.write.as_ref())
    }

    /// What takes back the first `count` of the writes, if the next one was refused: the last one
    /// first.
    pub fn undo(&self, count: usize) -> impl Iterator<Item = &Write> {
        let undo = self.steps.iter().filter_map(|step| step.undo.as_ref());
        undo.take(count).collect::<Vec<_>>().into_iter().rev()
    }
}

/// What followed from a change.
#[must_use]
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// To be written, in this order.
    pub writes: Vec<Write>,
    pub events: Vec<Event>,
}

/// Something that happened to a user in a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection of the user joined.
    Joined,
    /// A connection of the user left.
    Left,
    /// The user was not there before.
    Online { topic: Name, user: UserName },
    /// The user came back before it was taken for gone.
    Returned { topic: Name, user: UserName },
    /// The user is gone.
    Offline { topic: Name, user: UserName },
}

/// A connection is in as many topics as it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this connection has already joined {max} topics, which is its limit")]
pub struct TooMany {
    pub max: usize,
}

/// Joins.
impl Presence {
    /// What it takes for `connection` to join `topic` as `user`, or to change its `info` there.
    ///
    /// A connection has one user at a time: another one takes its place by [`Presence::plan_user`].
    ///
    /// # Errors
    ///
    /// The connection has joined `topics_max` others.
    pub fn plan_join(
        &self,
        connection: u64,
        (topic, user): (&Name, &UserName),
        info: Option<&str>,
        (topics_max, unix_ms): (usize, u64),
    ) -> Result<Plan, TooMany> {
        let joined = self.connections.get(&connection);
        debug_assert!(joined.is_none_or(|joined| joined.user == *user));
        if joined.is_some_and(|it| topics_max <= it.topics.len() && !it.topics.contains(topic)) {
            return Err(TooMany { max: topics_max });
        }
        let step = self.step(connection, (topic, user), info.map(Arc::from), unix_ms);
        Ok(Plan { connection, user: user.clone(), steps: vec![step] })
    }

    /// What it takes for `connection` to be `user` from now on, wherever it has joined. `None` if
    /// it is nowhere, or is that user already.
    #[must_use]
    pub fn plan_user(&self, connection: u64, user: &UserName, unix_ms: u64) -> Option<Plan> {
        let joined = self.connections.get(&connection).filter(|joined| joined.user != *user)?;
        let step = |topic: &Name| {
            let before = self.members.get(&topic.presence(&joined.user));
            let mut joins = before.into_iter().flat_map(|before| &before.joins);
            let own = joins.find(|join| join.connection == connection);
            self.step(connection, (topic, user), own.and_then(|own| own.info.clone()), unix_ms)
        };
        let steps = joined.topics.iter().map(step).collect();
        Some(Plan { connection, user: user.clone(), steps })
    }

    fn step(
        &self,
        connection: u64,
        (topic, user): (&Name, &UserName),
        info: Info,
        unix_ms: u64,
    ) -> Step {
        let key = topic.presence(user);
        let member = self.members.get(&key);
        let others = member.map_or(0, |member| member.others(connection));
        let next = Shown { connections: others + 1, info: info.clone() };
        let since_ms = member.map_or(unix_ms, |member| member.since_ms);
        let changes = member.is_none_or(|member| member.shown != next);
        let write = |value| Write { key: key.clone(), value };
        Step {
            topic: topic.clone(),
            write: changes.then(|| write(Some(next.value(since_ms)))),
            undo: changes.then(|| write(member.map(|it| it.shown.value(it.since_ms)))),
            key,
            info,
            since_ms,
        }
    }

    /// Does what was planned, with nothing in between, and written. Where the connection was
    /// another user before, that one leaves, and is gone at `gone_ms`.
    pub fn commit(&mut self, plan: Plan, gone_ms: u64) -> Done {
        let Plan { connection, user, steps } = plan;
        let mut done = Done::default();
        if self.connections.get(&connection).is_some_and(|joined| joined.user != user) {
            done = self.end(connection, gone_ms);
        }
        for Step { topic, key, info, since_ms, .. } in steps {
            self.enter((connection, &user), (&topic, key), (info, since_ms), &mut done.events);
            let joined = self.connections.entry(connection);
            let fresh = || Attendance { user: user.clone(), topics: BTreeSet::new() };
            joined.or_insert_with(fresh).topics.insert(topic);
        }
        done
    }

    fn enter(
        &mut self,
        (connection, user): (u64, &UserName),
        (topic, key): (&Name, Name),
        (info, since_ms): (Info, u64),
        events: &mut Vec<Event>,
    ) {
        let is_new = !self.members.contains_key(&key);
        let member = self.members.entry(key.clone()).or_insert_with(|| Member {
            topic: topic.clone(),
            user: user.clone(),
            since_ms,
            joins: Vec::new(),
            shown: Shown { connections: 0, info: None },
            gone_ms: None,
        });
        let before = member.joins.len();
        // The newest one is last, also one that says something else.
        member.joins.retain(|join| join.connection != connection);
        if member.joins.len() == before {
            events.push(Event::Joined);
        }
        member.joins.push(Join { connection, info });
        member.shown = member.present();
        let (topic, user) = (topic.clone(), user.clone());
        if let Some(gone_ms) = member.gone_ms.take() {
            self.timers.remove(&(gone_ms, key));
            events.push(Event::Returned { topic, user });
        } else if is_new {
            events.push(Event::Online { topic, user });
        }
    }
}

/// Leaving.
impl Presence {
    /// `connection` leaves `topic`; if it was the user's last one there, the user is gone at
    /// `gone_ms`. `None` if it had not joined.
    pub fn leave(&mut self, connection: u64, topic: &Name, gone_ms: u64) -> Option<Done> {
        let joined = self.connections.get_mut(&connection)?;
        if !joined.topics.remove(topic) {
            return None;
        }
        let key = topic.presence(&joined.user);
        if joined.topics.is_empty() {
            self.connections.remove(&connection);
        }
        let mut done = Done::default();
        self.depart(connection, key, gone_ms, &mut done);
        Some(done)
    }

    /// `connection` has ended, and leaves everything that it joined.
    pub fn end(&mut self, connection: u64, gone_ms: u64) -> Done {
        let mut done = Done::default();
        let Some(Attendance { user, topics }) = self.connections.remove(&connection) else {
            return done;
        };
        for topic in topics {
            self.depart(connection, topic.presence(&user), gone_ms, &mut done);
        }
        done
    }

    fn depart(&mut self, connection: u64, key: Name, gone_ms: u64, done: &mut Done) {
        let Some(member) = self.members.get_mut(&key) else { return };
        member.joins.retain(|join| join.connection != connection);
        done.events.push(Event::Left);
        if member.joins.is_empty() {
            // What is shown stays as it is until the user is gone, or back.
            member.gone_ms = Some(gone_ms);
            self.timers.insert((gone_ms, key));
            return;
        }
        member.shown = member.present();
        done.writes.push(Write { key, value: Some(member.shown.value(member.since_ms)) });
    }

    /// When the next user is gone, unless it comes back.
    #[must_use]
    pub fn next_ms(&self) -> Option<u64> {
        self.timers.first().map(|(gone_ms, _)| *gone_ms)
    }

    /// Removes users who are gone at `now_ms`, at most `users_max` of them.
    pub fn expire(&mut self, now_ms: u64, users_max: usize) -> Done {
        let mut done = Done::default();
        while done.writes.len() < users_max
            && let Some((gone_ms, key)) = self.timers.pop_first()
        {
            if now_ms < gone_ms {
                self.timers.insert((gone_ms, key));
                break;
            }
            if let Some(Member { topic, user, .. }) = self.members.remove(&key) {
                done.events.push(Event::Offline { topic, user });
            }
            done.writes.push(Write { key, value: None });
        }
        self.shrink();
        done
    }

    fn shrink(&mut self) {
        if self.members.len() < self.members.capacity() / 8 {
            self.members.shrink_to_fit();
            self.connections.shrink_to_fit();
        }
    }
}

/// Looking.
impl Presence {
    /// Users in topics, each topic counted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Asserts the invariants, in debug builds. The work is linear: for tests.
    pub fn check(&self) {
        let timer = |(key, member): (&Name, &Member)| Some((member.gone_ms?, key.clone()));
        let timers: BTreeSet<_> = self.members.iter().filter_map(timer).collect();
        debug_assert_eq!(timers, self.timers);
        let mut joins = 0;
        for (key, member) in &self.members {
            debug_assert_eq!(*key, member.topic.presence(&member.user));
            debug_assert_eq!(member.joins.is_empty(), member.gone_ms.is_some());
            debug_assert!(member.joins.is_empty() || member.shown == member.present());
            joins += member.joins.len();
            for Join { connection, .. } in &member.joins {
                let joined = self.connections.get(connection);
                let agrees =
                    |it: &Attendance| it.user == member.user && it.topics.contains(&member.topic);
                debug_assert!(joined.is_some_and(agrees), "{connection} {key}");
            }
        }
        let topics: usize = self.connections.values().map(|joined| joined.topics.len()).sum();
        debug_assert_eq!(topics, joins);
        debug_assert!(self.connections.values().all(|joined| !joined.topics.is_empty()));
    }
}

impl Member {
    /// Connections other than this one.
    fn others(&self, connection: u64) -> usize {
        self.joins.iter().filter(|join| join.connection != connection).count()
    }

    /// What is to be shown as long as there is a connection.
    fn present(&self) -> Shown {
        let info = self.joins.last().and_then(|join| join.info.clone());
        Shown { connections: self.joins.len(), info }
    }
}

impl Shown {
    /// The value of the key, as JSON.
    fn value(&self, since_ms: u64) -> String {
        let Shown { connections, info } = self;
        match info {
            None => format!("{{\"connections\":{connections},\"since\":{since_ms}}}"),
            Some(info) => {
                format!("{{\"connections\":{connections},\"since\":{since_ms},\"info\":{info}}}")
            }
        }
    }
}

#[cfg(test)]
mod tests;
