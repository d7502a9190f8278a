//! Presence with a hand-driven clock, by example and beside a naive model.

use std::collections::BTreeMap;

use super::*;
use crate::base::random;

const LEAVE_MS: u64 = 100;
const LOST_MS: u64 = 5_000;

/// Presence, its clock, and the state that it writes.
#[derive(Default)]
struct World {
    presence: Presence,
    now_ms: u64,
    state: BTreeMap<String, String>,
    /// Changes of the state so far.
    version: u64,
    /// Keys that the state takes.
    keys_max: Option<usize>,
    events: Vec<Event>,
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn user(text: &str) -> UserName {
    UserName::parse(text).unwrap()
}

impl World {
    fn write(&mut self, write: &Write) -> bool {
        let key = write.key.as_str().to_owned();
        match &write.value {
            None => assert!(self.state.remove(&key).is_some(), "{key} is deleted once"),
            Some(value) => {
                let is_new = !self.state.contains_key(&key);
                if is_new && self.keys_max.is_some_and(|max| max <= self.state.len()) {
                    return false;
                }
                serde_json::from_str::<serde_json::Value>(value).unwrap();
                let before = self.state.insert(key, value.clone());
                assert_ne!(before.as_ref(), Some(value), "a write that changes nothing");
            }
        }
        self.version += 1;
        true
    }

    fn take(&mut self, done: Done) {
        done.writes.iter().for_each(|write| assert!(self.write(write)));
        self.events.extend(done.events);
        self.presence.check();
    }

    /// Whether it was written.
    fn run(&mut self, plan: Plan) -> bool {
        let writes: Vec<Write> = plan.writes().cloned().collect();
        for (count, write) in writes.iter().enumerate() {
            if !self.write(write) {
                let undo: Vec<Write> = plan.undo(count).cloned().collect();
                undo.iter().for_each(|write| assert!(self.write(write)));
                return false;
            }
        }
        let done = self.presence.commit(plan, self.now_ms + LEAVE_MS);
        self.take(done);
        true
    }

    fn join(&mut self, connection: u64, topic: &str, who: &str, info: Option<&str>) -> bool {
        let at = (&name(topic), &user(who));
        let plan = self.presence.plan_join(connection, at, info, (3, self.now_ms)).unwrap();
        self.run(plan)
    }

    fn hello(&mut self, connection: u64, who: &str) -> bool {
        match self.presence.plan_user(connection, &user(who), self.now_ms) {
            Some(plan) => self.run(plan),
            None => true,
        }
    }

    fn leave(&mut self, connection: u64, topic: &str) -> bool {
        let done = self.presence.leave(connection, &name(topic), self.now_ms + LEAVE_MS);
        let was_there = done.is_some();
        self.take(done.unwrap_or_default());
        was_there
    }

    fn end(&mut self, connection: u64, debounce_ms: u64) {
        let done = self.presence.end(connection, self.now_ms + debounce_ms);
        self.take(done);
    }

    /// Moves the clock as the keeper does: it wakes up for each deadline, and looks too often.
    fn pass(&mut self, ms: u64) {
        let end_ms = self.now_ms + ms;
        while let Some(next_ms) = self.presence.next_ms().filter(|next_ms| *next_ms <= end_ms) {
            assert!(self.now_ms < next_ms || self.now_ms == 0, "{next_ms} was due already");
            self.now_ms = next_ms;
            while self.presence.next_ms().is_some_and(|next_ms| next_ms <= self.now_ms) {
                let done = self.presence.expire(self.now_ms, 2);
                assert!((1..=2).contains(&done.writes.len()));
                self.take(done);
            }
        }
        self.now_ms = end_ms;
        assert_eq!(self.presence.expire(end_ms, usize::MAX), Done::default());
    }

    fn shown(&self, topic: &str, who: &str) -> Option<&str> {
        let key = name(topic).presence(&user(who));
        self.state.get(key.as_str()).map(String::as_str)
    }
}

#[test]
fn a_user_is_there_once_with_the_number_of_its_connections() {
    let mut world = World::default();
    world.pass(7);
    for connection in 1..=3 {
        assert!(world.join(connection, "room", "ada", None));
    }
    assert_eq!(world.shown("room", "ada"), Some(r#"{"connections":3,"since":7}"#));
    assert_eq!((world.presence.len(), world.presence.is_empty()), (1, false));
    world.leave(1, "room");
    assert_eq!(world.shown("room", "ada"), Some(r#"{"connections":2,"since":7}"#));
    world.end(2, LOST_MS);
    assert_eq!(world.shown("room", "ada"), Some(r#"{"connections":1,"since":7}"#));
    world.pass(LOST_MS * 2);
    assert_eq!(world.state.len(), 1, "a timer of somebody who is not alone was started");
    world.end(3, LEAVE_MS);
    world.pass(LEAVE_MS - 1);
    assert_eq!(world.state.len(), 1);
    world.pass(1);
    assert!(world.state.is_empty() && world.presence.is_empty());
    let is_of = |event: &&Event| matches!(event, Event::Online { .. } | Event::Offline { .. });
    assert_eq!(world.events.iter().filter(is_of).count(), 2);
    let count = |wanted: &Event| world.events.iter().filter(|event| *event == wanted).count();
    assert_eq!((count(&Event::Joined), count(&Event::Left)), (3, 3));
}

#[test]
fn coming_back_in_time_changes_nothing_and_an_old_timer_removes_nobody() {
    let mut world = World::default();
    world.join(1, "room", "ada", Some("1"));
    for connection in 1..=20 {
        world.end(connection, LEAVE_MS);
        world.pass(LEAVE_MS - 1);
        world.join(connection + 1, "room", "ada", Some("1"));
    }
    assert_eq!(world.version, 1);
    // Lost, back, and closed: what counts is the last end.
    world.end(21, LOST_MS);
    world.pass(LOST_MS - 50);
    world.join(22, "room", "ada", Some("1"));
    world.pass(60);
    assert_eq!((world.version, world.state.len()), (1, 1));
    world.end(22, LEAVE_MS);
    world.pass(LEAVE_MS);
    assert_eq!((world.version, world.state.len()), (2, 0));
}

#[test]
fn the_newest_info_of_who_is_there_counts() {
    let mut world = World::default();
    let info = |world: &World| {
        let value = world.shown("room", "ada").unwrap();
        serde_json::from_str::<serde_json::Value>(value).unwrap()["info"].clone()
    };
    world.join(1, "room", "ada", Some(r#""desk""#));
    world.join(2, "room", "ada", Some(r#""phone""#));
    assert_eq!(info(&world), "phone");
    world.join(1, "room", "ada", Some(r#""sofa""#));
    assert_eq!(info(&world), "sofa");
    let joined = world.events.iter().filter(|event| **event == Event::Joined);
    assert_eq!(joined.count(), 2, "who says something else has not joined once more");
    assert!(world.shown("room", "ada").unwrap().contains(r#""connections":2"#));
    world.leave(1, "room");
    assert_eq!(info(&world), "phone");
    let before = world.version;
    world.leave(2, "room");
    world.join(3, "room", "ada", Some(r#""car""#));
    assert_eq!((info(&world), world.version), ("car".into(), before + 1));
    world.leave(3, "room");
    world.join(3, "room", "ada", None);
    assert_eq!(world.shown("room", "ada"), Some(r#"{"connections":1,"since":0}"#));
}

#[test]
fn another_user_of_a_connection_takes_its_places() {
    let mut world = World::default();
    world.join(1, "a", "ada", Some("1"));
    world.join(1, "b", "ada", None);
    world.join(2, "b", "bob", None);
    assert!(world.hello(1, "bob"));
    assert_eq!(world.shown("a", "bob"), Some(r#"{"connections":1,"since":0,"info":1}"#));
    assert_eq!(world.shown("b", "bob"), Some(r#"{"connections":2,"since":0}"#));
    assert!(world.shown("a", "ada").is_some());
    world.pass(LEAVE_MS);
    assert_eq!((world.shown("a", "ada"), world.shown("b", "ada")), (None, None));
    assert!(world.hello(1, "bob") && world.hello(9, "bob"));
    world.end(1, LEAVE_MS);
    assert_eq!(world.shown("b", "bob"), Some(r#"{"connections":1,"since":0}"#));
}

#[test]
fn what_finds_no_room_is_not_done_at_all() {
    let mut world = World { keys_max: Some(3), ..World::default() };
    world.join(1, "a", "ada", None);
    world.join(1, "b", "ada", None);
    let before = world.state.clone();
    // The first of its two places finds room, the second does not.
    assert!(!world.hello(1, "bob"));
    assert_eq!(world.state, before);
    world.presence.check();
    world.join(1, "c", "ada", None);
    assert!(!world.join(2, "c", "bob", None));
    assert!(!world.leave(2, "c"));
    // A further connection of somebody who is there needs no room, nor does coming back.
    assert!(world.join(2, "c", "ada", None));
    world.end(1, LOST_MS);
    assert!(world.join(3, "a", "ada", None));
}

#[test]
fn a_connection_joins_as_many_topics_as_it_may() {
    let mut world = World::default();
    for topic in ["a", "b", "c"] {
        world.join(1, topic, "ada", None);
    }
    let (topic, ada) = (name("d"), user("ada"));
    let plan = |topic: &Name| world.presence.plan_join(1, (topic, &ada), None, (3, 0)).map(drop);
    assert_eq!(plan(&topic), Err(TooMany { max: 3 }));
    assert_eq!(plan(&name("a")), Ok(()));
    assert!(world.leave(1, "a") && !world.leave(1, "a") && !world.leave(2, "b"));
    assert!(world.join(1, "d", "ada", None));
}

#[test]
fn memory_is_given_back_when_nearly_everybody_is_gone_and_not_before() {
    let mut world = World::default();
    for connection in 0..900 {
        world.join(connection, "room", &format!("u{connection}"), None);
    }
    let rooms =
        |world: &World| (world.presence.members.capacity(), world.presence.connections.capacity());
    let full = rooms(&world);
    assert_eq!(world.presence.len(), 900);
    (0..10).for_each(|connection| world.end(connection, 1));
    world.pass(1);
    // A removal may take a place with it until the map is rebuilt: where, the hashes decide.
    assert_eq!(world.presence.len(), 890);
    assert!(full.0 - 10 <= rooms(&world).0);
    (10..900).for_each(|connection| world.end(connection, 1));
    let done = world.presence.expire(world.now_ms + 1, usize::MAX);
    assert_eq!(done.writes.len(), 890);
    let (members, connections) = rooms(&world);
    assert!(members < full.0 / 8 && connections < full.1 / 8, "{members} {connections}");
}

/// What presence should be, as somebody would write it who looks at everything each time.
#[derive(Default)]
struct Model {
    /// Per connection its user and what it has joined.
    connections: BTreeMap<u64, (usize, Joined)>,
    /// Per topic and user: since when, and when the last connection ended plus the debounce.
    present: BTreeMap<(usize, usize), (u64, u64)>,
}

/// Per topic the info and the step of the join.
type Joined = BTreeMap<usize, (u64, u64)>;

const TOPICS: [&str; 3] = ["a", "a/b", "c"];
const USERS: [&str; 3] = ["ada", "bob", "b"];

impl Model {
    /// Infos with the steps of their joins.
    fn joins(&self, topic: usize, who: usize) -> Vec<(u64, u64)> {
        let own = self.connections.values().filter(|(user, _)| *user == who);
        own.filter_map(|(_, topics)| topics.get(&topic).copied()).collect()
    }

    /// Notes the time for everybody who has no connection since this step.
    fn settle(&mut self, before: &[(usize, usize)], now_ms: u64, debounce_ms: u64) {
        for &(topic, who) in before {
            if self.joins(topic, who).is_empty() {
                let since_ms = self.present[&(topic, who)].0;
                self.present.insert((topic, who), (since_ms, now_ms + debounce_ms));
            }
        }
    }

    fn alive(&self) -> Vec<(usize, usize)> {
        let all = (0..TOPICS.len()).flat_map(|topic| (0..USERS.len()).map(move |who| (topic, who)));
        all.filter(|(topic, who)| !self.joins(*topic, *who).is_empty()).collect()
    }

    /// What the state must show at `now_ms`; `shown` is what it showed before, which stays for
    /// those who have no connection.
    fn expected(
        &mut self,
        now_ms: u64,
        shown: &BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let mut expected = BTreeMap::new();
        let alive = self.alive();
        self.present.retain(|at, (_, gone_ms)| alive.contains(at) || now_ms < *gone_ms);
        for (&(topic, who), &(since_ms, _)) in &self.present {
            let key = name(TOPICS[topic]).presence(&user(USERS[who])).to_string();
            let joins = self.joins(topic, who);
            let value = match joins.iter().max_by_key(|(_, step)| *step) {
                None => shown[&key].clone(),
                Some((0, _)) => {
                    format!("{{\"connections\":{},\"since\":{since_ms}}}", joins.len())
                }
                Some((info, _)) => format!(
                    "{{\"connections\":{},\"since\":{since_ms},\"info\":{info}}}",
                    joins.len()
                ),
            };
            expected.insert(key, value);
        }
        expected
    }
}

/// One random history.
fn play(seed: u64) {
    let mut world = World::default();
    let mut model = Model::default();
    let mut draws = 0;
    let mut draw = |bound: u64| {
        draws += 1;
        random::derive(seed, draws, b"presence") % bound
    };
    for step in 1..=60_u64 {
        let connection = draw(5);
        let topic = usize::try_from(draw(TOPICS.len() as u64)).unwrap();
        let before = model.alive();
        let mut debounce_ms = LEAVE_MS;
        match draw(9) {
            0..=2 => {
                let drawn = usize::try_from(draw(USERS.len() as u64)).unwrap();
                let who = model.connections.get(&connection).map_or(drawn, |(who, _)| *who);
                let info = draw(3);
                let text = (info != 0).then(|| info.to_string());
                assert!(world.join(connection, TOPICS[topic], USERS[who], text.as_deref()));
                let joined = model.connections.entry(connection).or_insert((who, BTreeMap::new()));
                joined.1.insert(topic, (info, step));
                model.present.entry((topic, who)).or_insert((world.now_ms, 0));
            }
            3 => {
                let joined = model.connections.get_mut(&connection);
                let expected = joined.is_some_and(|(_, topics)| topics.remove(&topic).is_some());
                assert_eq!(world.leave(connection, TOPICS[topic]), expected);
                model.connections.retain(|_, (_, topics)| !topics.is_empty());
            }
            4 => {
                world.end(connection, LEAVE_MS);
                model.connections.remove(&connection);
            }
            5 => {
                debounce_ms = LOST_MS;
                world.end(connection, LOST_MS);
                model.connections.remove(&connection);
            }
            6 => {
                let who = usize::try_from(draw(USERS.len() as u64)).unwrap();
                assert!(world.hello(connection, USERS[who]));
                if let Some((own, topics)) = model.connections.get_mut(&connection)
                    && *own != who
                {
                    *own = who;
                    for (topic, (_, joined)) in topics {
                        *joined = step;
                        model.present.entry((*topic, who)).or_insert((world.now_ms, 0));
                    }
                }
            }
            7 => world.pass(draw(2 * LEAVE_MS)),
            _ => world.pass(draw(LOST_MS)),
        }
        model.settle(&before, world.now_ms, debounce_ms);
        let expected = model.expected(world.now_ms, &world.state);
        assert_eq!(world.state, expected, "seed {seed} step {step}");
    }
}

#[test]
fn presence_is_what_a_naive_model_says() {
    (0..4_000).for_each(play);
}
