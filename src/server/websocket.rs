//! One WebSocket connection, reading side: requests in, replies to the outbox, cursors to the
//! writer.
//!
//! # Threads
//!
//! `conn-<id>`, its connection's reader.
//!
//! # Not here
//!
//! What is sent (`writer`), when a silent client is given up (`keeper`).

mod acks;
mod durable;
mod presence;
mod state;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tungstenite::{
    Error, Message,
    error::{CapacityError, ProtocolError},
    protocol::{Role, WebSocketConfig, WebSocketContext},
};

use self::{acks::Acking, durable::publish_durable};
use crate::{
    base::fault::Fault,
    metrics::labels::{Closed, Transport},
    name::{Filter, Name, Pattern, UserName},
    server::{
        connection::{Bye, Phase, Publisher, connection_name},
        echo::{self, ECHO},
        line::{Line, finally},
        relay::last_resort_ms,
        requests::check_writable,
        writer::{By, Command, Follow, OpenPattern, PatternOpened, Unfollow},
    },
    topic::{Draft, Follower, Topic},
    wire::{
        codes::{CloseCode, Code},
        json,
        position::From,
        reply::{self, Welcome},
        request::{self, Acks, Decoded, Publish, Refusal, Request, SlowPolicy},
    },
};

/// Bytes that tungstenite reads at once. Its default of 128 KiB would be 1.3 GB for 10,000
/// connections; a busy line reads ahead by itself.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// One connection's session.
pub(crate) struct Session {
    pub(super) line: Line,
    user: Option<UserName>,
    /// The user's name as a JSON string, as it goes into events.
    user_json: Option<Vec<u8>>,
    /// What is subscribed to; patterns by the number of their subscription.
    subscriptions: HashMap<Filter, u64>,
    next_subscription: u64,
    /// The topic last published to.
    topic: Option<Arc<Topic>>,
    acking: Acking,
    /// Who hears what became of events of durable topics.
    publisher: Option<Arc<Publisher>>,
    /// What is watched.
    watches: HashSet<Filter>,
    /// It may be a member of topics.
    has_joined: bool,
}

/// How a subscription is to be served.
#[derive(Default)]
pub(super) struct Terms {
    slow: SlowPolicy,
    acks: Option<Acks>,
}

pub(super) type Context = Box<WebSocketContext>;

/// Serves a connection until it ends. `received` came behind the HTTP head.
#[inline(never)]
pub(crate) fn serve(line: Line, received: Vec<u8>) -> Option<UserName> {
    let (mut session, mut context) = open(line, received);
    finally(&mut *session, |session| session.run(&mut context), Session::leave);
    session.user.take()
}

/// Makes what a connection lives with, on the heap: a stack keeps every page it ever touched, so
/// what is large and what is rare stay out of the frames of the loop (functions that are not
/// inlined, here and below, are that for this reason).
#[inline(never)]
pub(super) fn open(line: Line, received: Vec<u8>) -> (Box<Session>, Context) {
    let session = Session::begin(line, Phase::WebSocket);
    let max_message = session.line.config().connections.max_message;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(max_message))
        .max_frame_size(Some(max_message));
    let context = WebSocketContext::from_partially_read(received, Role::Server, Some(config));
    (session, Box::new(context))
}

impl Session {
    /// A session that lives in `phase` until it says its last word.
    pub(super) fn begin(line: Line, phase: Phase) -> Box<Session> {
        let session = Box::new(Session {
            line,
            user: None,
            user_json: None,
            subscriptions: HashMap::new(),
            next_subscription: 0,
            topic: None,
            acking: Acking::default(),
            publisher: None,
            watches: HashSet::new(),
            has_joined: false,
        });
        let (shared, connection) = (&session.line.shared, &session.line.connection);
        let asked = Fault::PhaseLate.is_on().then(|| shared.readiness());
        connection.enter(phase, 0);
        // After entering the phase: a stop that begins now finds it, or is found here.
        if asked.unwrap_or_else(|| shared.readiness()).is_err() {
            shared.say_stopping(connection, shared.clock.uptime_ms() + shared.drain_ms());
            shared.watch(connection, shared.clock.uptime_ms());
        }
        session
    }

    fn run(&mut self, context: &mut WebSocketContext) {
        loop {
            match context.read(&mut self.line) {
                Ok(message @ (Message::Text(_) | Message::Binary(_))) if ECHO => {
                    self.line.reply(|out| echo::push(out, &message));
                }
                Ok(Message::Text(text)) => self.handle(&text),
                Ok(Message::Binary(_)) if self.has_ended() => {}
                Ok(Message::Binary(_)) => self.end(
                    Closed::Protocol,
                    CloseCode::Unsupported,
                    "unsupported_data",
                    "binary frames are not part of landline.v1",
                ),
                Ok(Message::Pong(_)) => self.line.note_pong(),
                Ok(Message::Ping(_) | Message::Frame(_)) => {}
                Ok(Message::Close(_)) => self.line.connection.note_reason(Closed::Client),
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// Handles one message. Whatever is wrong with it costs its sender an error reply and nobody
    /// else anything.
    pub(super) fn handle(&mut self, text: &str) {
        if self.has_ended() {
            return;
        }
        let Decoded { id, request } = request::decode(text);
        let outcome = match request {
            Ok(Request::Publish(publish)) => self.publish(id, &publish),
            Ok(Request::Ack { topic, seq }) => self.ack(id, &topic, seq),
            Ok(Request::Subscribe { filter, from, slow, acks }) => {
                self.subscribe(id, filter, &from, Terms { slow, acks })
            }
            Ok(Request::Unsubscribe { filter }) => self.unsubscribe(id, filter),
            Ok(Request::History { topic, from, limit }) => {
                self.history(id, &topic, from.as_ref(), limit)
            }
            Ok(Request::Hello { user, client }) => self.hello(id, user, client.as_deref()),
            Ok(Request::Ping) => {
                let now_ms = self.line.shared.clock.unix_ms();
                self.line.reply(|out| reply::pong(out, id, now_ms));
                Ok(())
            }
            Ok(Request::State(request)) => self.handle_state(id, request),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = outcome {
            self.line.shared.metrics.requests_refused.add(refusal.code, 1);
            self.line.reply(|out| reply::error(out, id, None, &refusal));
        }
    }

    fn publish(&mut self, id: Option<u64>, publish: &Publish<'_>) -> Result<(), Refusal> {
        let known = self.topic.take().filter(|topic| topic.name().as_str() == publish.topic);
        let mut topic = match known {
            Some(topic) => topic,
            None => {
                let name = request::parse_topic(&publish.topic)?;
                check_writable(&name)?;
                self.line.shared.open_topic(&name)?
            }
        };
        let name = publish.name.as_deref().map(|name| {
            let mut text = Vec::with_capacity(name.len() + 2);
            json::push_string(&mut text, name);
            text
        });
        let draft = Draft {
            user: self.user_json.as_deref(),
            name: name.as_deref(),
            data: publish.data,
            key: publish.key.as_deref(),
        };
        if topic.id().is_some() {
            let done = publish_durable(&mut self.line, &mut self.publisher, id, &mut topic, &draft);
            self.topic = Some(topic);
            return done;
        }
        let now_ms = self.line.now_ms();
        if Fault::WakeBeforeAppend.is_on() {
            self.line.shared.wake(&topic);
        }
        let done = self.line.shared.publish(&mut topic, &draft, now_ms, None);
        if let Ok(done) = &done
            && !done.receipt.duplicate
        {
            self.line.has_news(&topic, Transport::WebSocket, publish.data.len());
        }
        self.topic = Some(topic);
        let receipt = done?.receipt;
        if let Some(id) = id {
            self.line.reply(|out| reply::published(out, id, &receipt));
        }
        Ok(())
    }

    #[inline(never)]
    pub(super) fn subscribe(
        &mut self,
        id: Option<u64>,
        filter: Filter,
        from: &From,
        terms: Terms,
    ) -> Result<(), Refusal> {
        let max = self.line.config().connections.max_subscriptions;
        let known = self.subscriptions.contains_key(&filter);
        if !known && max <= self.subscriptions.len() {
            let message = format!(
                "this connection already has {max} subscriptions, which is its limit; a pattern \
                 counts as one"
            );
            return Err(Refusal::new(Code::LimitExceeded, message));
        }
        // The reply comes from the writer, in order with the events that follow it.
        self.line.make_room();
        match &filter {
            Filter::Topic(name) => self.subscribe_topic(id, name, from, terms)?,
            Filter::Pattern(pattern) => {
                let pattern = pattern.clone();
                self.subscribe_pattern(id, &pattern, from, &terms)?;
            }
        }
        if !known {
            self.line.shared.metrics.subscriptions.add(1);
        }
        self.subscriptions.insert(filter, self.next_subscription);
        Ok(())
    }

    #[inline(never)]
    fn subscribe_topic(
        &mut self,
        request: Option<u64>,
        name: &Name,
        from: &From,
        terms: Terms,
    ) -> Result<(), Refusal> {
        let (connection, writer) = (self.line.connection.id, self.line.connection.writer);
        let topic = self.line.shared.open_and_follow(name, writer)?;
        if Fault::FollowLate.is_on() {
            topic.unfollow(writer, 0);
        }
        let begun = match &terms.acks {
            Some(acks) => self.begin_acks(&topic, from, acks).map(|(start, it)| (start, Some(it))),
            None => self.line.shared.start(&topic, from).map(|start| (start, None)),
        };
        let (start, acks) = match begun {
            Ok(begun) => begun,
            Err(refusal) => {
                topic.unfollow(writer, self.line.now_ms());
                return Err(refusal);
            }
        };
        if acks.is_none() {
            self.acking.remove(&self.line.shared, name);
        }
        let by = By::Name { request, slow: terms.slow };
        let late = Fault::FollowLate.is_on().then(|| Arc::clone(&topic));
        let follow = Box::new(Follow { connection, topic, start, by, acks });
        self.line.command(Command::Follow(follow));
        if let Some(topic) = late {
            topic.follow(writer);
        }
        Ok(())
    }

    #[inline(never)]
    fn subscribe_pattern(
        &mut self,
        request: Option<u64>,
        pattern: &Pattern,
        from: &From,
        terms: &Terms,
    ) -> Result<(), Refusal> {
        let shared = Arc::clone(&self.line.shared);
        // Topics that the client has a position in must exist, so that it hears what became of
        // that position.
        if let From::Positions(positions) = from {
            for (name, _) in positions {
                shared.open_topic(name)?;
            }
        }
        let filter = Filter::Pattern(pattern.clone());
        let old = self.subscriptions.get(&filter).copied();
        if let Some(old) = old {
            self.end_subscription(None, &filter, old, true);
        }
        self.next_subscription += 1;
        let (connection, subscription) = (self.line.connection.id, self.next_subscription);
        let window = terms.acks.as_ref().map(|acks| acks.window);
        if window.is_some() {
            self.acking.add_pattern(subscription);
        }
        let (pattern, slow) = (pattern.clone(), terms.slow);
        let open = OpenPattern { connection, subscription, pattern: pattern.clone(), slow, window };
        self.line.command(Command::OpenPattern(Box::new(open)));
        let writer = self.line.connection.writer;
        let follower = Follower { writer, connection, subscription };
        let mut topics = shared.registry.follow_pattern(&pattern, follower);
        // A topic that is forgotten just now comes back, if ever, through its creation.
        topics.retain(|topic| topic.follow(writer));
        self.line.command(Command::PatternOpened(Box::new(PatternOpened {
            connection,
            subscription,
            request,
            attached: topics.len(),
            replaced: old.is_some(),
        })));
        let mut positions = HashMap::new();
        if let From::Positions(list) = from {
            positions.extend(list.iter().map(|(name, position)| (name, From::After(*position))));
        }
        for topic in topics {
            // Each of them is announced, to a client that may not be reading.
            self.line.make_room();
            let from = positions.get(topic.name()).unwrap_or(from);
            let start = match shared.start(&topic, from) {
                Ok(start) => start,
                // What a time means cannot be looked up now: everything is better than a hole.
                Err(_) => topic.look(|log| log.start(&From::Start)),
            };
            let by = By::Pattern { subscription };
            let follow = Box::new(Follow { connection, topic, start, by, acks: None });
            self.line.command(Command::Follow(follow));
        }
        Ok(())
    }

    #[inline(never)]
    fn unsubscribe(&mut self, id: Option<u64>, filter: Filter) -> Result<(), Refusal> {
        let Some(subscription) = self.subscriptions.remove(&filter) else {
            let message = format!("this connection is not subscribed to {filter}");
            return Err(Refusal { field: Some("topic"), ..Refusal::new(Code::NotFound, message) });
        };
        self.line.make_room();
        self.line.shared.metrics.subscriptions.sub(1);
        self.end_subscription(id, &filter, subscription, id.is_none());
        Ok(())
    }

    fn end_subscription(
        &mut self,
        request: Option<u64>,
        filter: &Filter,
        subscription: u64,
        quiet: bool,
    ) {
        let connection = self.line.connection.id;
        if let Filter::Pattern(pattern) = filter {
            let writer = self.line.connection.writer;
            let follower = Follower { writer, connection, subscription };
            self.line.shared.registry.unfollow_pattern(pattern, follower);
            self.acking.remove_pattern(subscription);
        }
        if let Filter::Topic(name) = filter {
            self.acking.remove(&self.line.shared, name);
        }
        let topic = match filter {
            Filter::Topic(name) => self.line.shared.registry.find(name.as_str()),
            Filter::Pattern(_) => None,
        };
        let filter = filter.clone();
        let unfollow = Unfollow { connection, request, filter, topic, subscription, quiet };
        self.line.command(Command::Unfollow(Box::new(unfollow)));
    }

    #[inline(never)]
    fn history(
        &mut self,
        id: Option<u64>,
        topic: &Name,
        from: Option<&From>,
        limit: u64,
    ) -> Result<(), Refusal> {
        let (head, events) = self.line.shared.history(topic.as_str(), from, limit)?;
        self.line.reply(|out| reply::history(out, id, topic.as_str(), &head, &events));
        Ok(())
    }

    #[inline(never)]
    fn hello(
        &mut self,
        id: Option<u64>,
        user: Option<UserName>,
        client: Option<&str>,
    ) -> Result<(), Refusal> {
        if let Some(user) = user {
            self.move_to(&user)?;
            let mut text = Vec::new();
            json::push_string(&mut text, user.as_str());
            self.user_json = Some(text);
            self.user = Some(user);
        }
        self.line.shared.roster.amend(self.line.connection.id, |about| {
            about.user.clone_from(&self.user);
            if let Some(client) = client {
                about.client = Some(client.into());
            }
        });
        let limits = self.line.config().connections;
        let connection = connection_name(self.line.connection.id);
        log::debug!(
            "hello connection={connection} user={:?} client={:?}",
            self.user.as_ref().map(UserName::as_str),
            client
        );
        let welcome = Welcome {
            connection: &connection,
            user: self.user.as_ref().map(UserName::as_str),
            heartbeat_ms: u64::try_from(limits.heartbeat.as_millis()).unwrap_or(u64::MAX),
            max_message_bytes: limits.max_message,
        };
        self.line.reply(|out| reply::welcome(out, id, &welcome));
        Ok(())
    }

    /// Ends the connection with a goodbye and a close frame; reading goes on until the client has
    /// closed its side, or its time is over.
    #[inline(never)]
    fn end(&mut self, closed: Closed, code: CloseCode, reason: &str, text: &str) {
        let now_ms = self.line.shared.clock.uptime_ms();
        let deadline_ms = last_resort_ms(now_ms, &self.line.config().connections);
        let bye = Bye { reason, text, code, reconnect_after_ms: None };
        self.line.connection.say_bye(closed, deadline_ms, &bye);
        self.line.connection.flush();
        self.line.shared.watch(&self.line.connection, now_ms);
    }

    /// Whether the last word has been said.
    fn has_ended(&self) -> bool {
        self.line.connection.phase() == Phase::Closing
    }

    /// Reading has ended: properly, by a broken line, or because the client broke a rule.
    #[inline(never)]
    fn fail(&mut self, error: &Error) {
        let connection = Arc::clone(&self.line.connection);
        match error {
            Error::ConnectionClosed | Error::AlreadyClosed => {
                connection.note_reason(Closed::Client);
            }
            Error::Io(_) | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                connection.note_reason(Closed::Lost);
            }
            Error::Capacity(CapacityError::MessageTooLong { size, max_size }) => {
                let text = format!("a message has {size} bytes, allowed are {max_size}");
                self.end(Closed::TooLarge, CloseCode::TooBig, "too_large", &text);
                self.discard();
            }
            Error::Utf8(_) => {
                let text = "a text frame is not UTF-8";
                self.end(Closed::Protocol, CloseCode::InvalidText, "invalid_text", text);
                self.discard();
            }
            Error::Capacity(_)
            | Error::Protocol(_)
            | Error::WriteBufferFull(_)
            | Error::AttackAttempt
            | Error::Url(_)
            | Error::Http(_)
            | Error::HttpFormat(_)
            | Error::Tls(_) => {
                let text = error.to_string();
                self.end(Closed::Protocol, CloseCode::Protocol, "protocol_error", &text);
                self.discard();
            }
        }
    }

    /// Reads and drops what a client still sends after the last word, so that the word is not
    /// lost to a reset; the keeper bounds how long.
    fn discard(&mut self) {
        let mut nowhere = [0; 1024];
        while let Ok(1..) = std::io::Read::read(&mut self.line, &mut nowhere) {}
    }

    #[inline(never)]
    pub(super) fn leave(&mut self) {
        self.line.tell();
        self.leave_topics();
        self.acking.clear(&self.line.shared);
        self.leave_watches();
        let metrics = Arc::clone(&self.line.shared.metrics);
        metrics.subscriptions.sub(self.subscriptions.len() as u64);
        let (connection, writer) = (self.line.connection.id, self.line.connection.writer);
        for (filter, subscription) in std::mem::take(&mut self.subscriptions) {
            if let Filter::Pattern(pattern) = filter {
                let follower = Follower { writer, connection, subscription };
                self.line.shared.registry.unfollow_pattern(&pattern, follower);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::{
        config::Config,
        server::{Server, relay::Shared},
    };

    /// A relay, and a session of it as a reader has one.
    pub(super) fn session() -> (Server, Arc<Shared>, Box<Session>) {
        let config = Config { listen: vec!["127.0.0.1:0".into()], ..Config::default() };
        let server = Server::start(config).unwrap();
        let shared = Arc::clone(server.shared());
        let line = Line::of_test(&shared, server.addresses()[0]);
        let (session, _) = open(line, Vec::new());
        (server, shared, session)
    }

    #[test]
    fn a_session_that_panics_leaves_nothing_behind() {
        let (_server, shared, mut session) = session();
        session.handle(r#"{"type":"subscribe","topic":"a/+","id":1}"#);
        session.handle(r#"{"type":"subscribe","topic":"b/#","id":2}"#);
        session.handle(r#"{"type":"publish","topic":"c","data":1,"id":3}"#);
        assert_eq!(shared.metrics.subscriptions.value(), 2);
        assert_eq!(shared.metrics.published.sum(), 0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            finally(&mut *session, |_| panic!("on purpose"), Session::leave);
        }));
        assert!(outcome.is_err());
        assert_eq!(shared.metrics.subscriptions.value(), 0);
        assert_eq!(shared.metrics.published.sum(), 1);
        // No lock was torn on the way, and nobody follows any more.
        for topic in ["a/1", "b/1"] {
            let topic = shared.open_topic(&Name::parse(topic).unwrap()).unwrap();
            assert_eq!(topic.followers(), 0, "{}", topic.name());
        }
    }
}
