//! Joining and leaving, as one connection's reader handles them.

use super::Session;
use crate::{
    name::{Name, UserName},
    server::presence::departure,
    wire::{self, codes::Code, request::Refusal},
};

impl Session {
    #[inline(never)]
    pub(super) fn join(
        &mut self,
        id: Option<u64>,
        topic: &Name,
        info: Option<&str>,
    ) -> Result<(), Refusal> {
        let Some(user) = &self.user else {
            let message = "nobody can join without a name; say hello with a user first";
            return Err(Refusal::new(Code::BadRequest, message));
        };
        // Before joining: whatever happens from here on, leaving is tried.
        self.has_joined = true;
        let connection = self.line.connection.id;
        let topics_max = self.line.config().connections.max_subscriptions;
        self.line.shared.join(connection, (topic, user), info, topics_max)?;
        self.say(id, "joined", topic);
        Ok(())
    }

    #[inline(never)]
    pub(super) fn leave_topic(&mut self, id: Option<u64>, topic: &Name) -> Result<(), Refusal> {
        if !self.has_joined || !self.line.shared.leave(self.line.connection.id, topic) {
            let message = format!("this connection has not joined {topic}");
            return Err(Refusal { field: Some("topic"), ..Refusal::new(Code::NotFound, message) });
        }
        self.say(id, "left", topic);
        Ok(())
    }

    /// Whoever the connection was, it is `user` from now on, wherever it has joined.
    pub(super) fn move_to(&mut self, user: &UserName) -> Result<(), Refusal> {
        if !self.has_joined {
            return Ok(());
        }
        self.line.shared.change_user(self.line.connection.id, user)
    }

    /// The connection has ended.
    pub(super) fn leave_topics(&mut self) {
        if std::mem::take(&mut self.has_joined)
            && let Some(departure) = departure(self.line.connection.reason())
        {
            self.line.shared.leave_all(self.line.connection.id, departure);
        }
    }

    fn say(&mut self, id: Option<u64>, what: &'static str, topic: &Name) {
        if id.is_some() {
            self.line.reply(|out| wire::reply::done_with(out, id, what, topic.as_str()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        sync::Arc,
        time::Duration,
    };

    use crate::{
        base::lane,
        config::{Config, PresenceSettings},
        metrics::labels::Departure,
        name::{Name, UserName},
        server::{
            Server,
            line::finally,
            relay::Shared,
            websocket::{Session, tests::session},
        },
    };

    /// A session of a relay that takes users for gone after `debounce`.
    fn session_with(debounce: Duration) -> (Server, Arc<Shared>, Box<Session>) {
        let (server, shared, session) = session();
        let mut config = Config::clone(&shared.config().1);
        config.presence = PresenceSettings { leave_debounce: debounce, lost_debounce: debounce };
        server.reload(config);
        (server, shared, session)
    }

    #[test]
    fn a_session_that_panics_leaves_no_ghost() {
        let (_server, shared, mut session) = session_with(Duration::from_millis(20));
        session.handle(r#"{"type":"hello","user":"ada"}"#);
        session.handle(r#"{"type":"join","topic":"room","id":1}"#);
        let keys = || shared.state.relay.look(|map| map.len());
        assert_eq!((keys(), shared.metrics.presence_members.value()), (1, 1));

        let outcome = catch_unwind(AssertUnwindSafe(|| {
            finally(&mut *session, |_| panic!("on purpose"), Session::leave);
        }));

        assert!(outcome.is_err());
        assert_eq!(shared.metrics.presence_leaves.value(Departure::Lost), 1);
        let (_inlet, never) = lane::open::<()>(lane::REPLIES);
        for _ in 0..2_000 {
            if keys() == 0 {
                break;
            }
            _ = never.recv_timeout(Duration::from_millis(5));
        }
        assert_eq!((keys(), shared.metrics.presence_members.value()), (0, 0));
    }

    #[test]
    fn a_relay_that_stops_has_no_news_about_anybody() {
        let debounce = Duration::from_millis(500);
        let (server, shared, mut session) = session_with(debounce);
        session.handle(r#"{"type":"hello","user":"ada"}"#);
        session.handle(r#"{"type":"join","topic":"hall","id":1}"#);
        session.handle(r#"{"type":"join","topic":"room","id":2}"#);
        // It is there once more, so that one of both is seen to leave at once.
        let (room, ada) = (Name::parse("room").unwrap(), UserName::parse("ada").unwrap());
        shared.join(7, (&room, &ada), None, 10).unwrap();
        let before = shared.state.relay.look(|map| (map.len(), map.version()));
        assert_eq!(before, (2, 3));
        session.handle(r#"{"type":"leave","topic":"hall","id":3}"#);

        drop(server);
        session.leave();
        // The time of who has left is over.
        let (_inlet, never) = lane::open::<()>(lane::REPLIES);
        _ = never.recv_timeout(debounce * 2);
        shared.expire_presence();

        assert_eq!(shared.state.relay.look(|map| (map.len(), map.version())), before);
    }

    #[test]
    fn a_connection_leaves_also_where_there_is_no_room_for_what_the_others_say() {
        let (server, shared, _session) = session();
        let mut config = Config::clone(&shared.config().1);
        config.state.max_bytes = 4_096;
        server.reload(config);
        let (room, ada) = (Name::parse("room").unwrap(), UserName::parse("ada").unwrap());
        let info = format!("\"{}\"", "x".repeat(1_000));
        shared.join(1, (&room, &ada), Some(&info), 10).unwrap();
        shared.join(2, (&room, &ada), None, 10).unwrap();
        let other = |number: u64| UserName::parse(&format!("u{number}")).unwrap();
        let full = (3..100).find(|it| shared.join(*it, (&room, &other(*it)), None, 10).is_err());
        assert!(full.is_some(), "there is no room left");

        assert!(shared.leave(2, &room));

        let key = room.presence(&ada);
        let shown = shared.state.relay.look(|map| map.get(key.as_str()).cloned()).unwrap();
        let value = shown.value().unwrap();
        assert!(value.contains("\"connections\":1") && value.contains(&info), "{value}");
    }
}
