//! What a client knows across its connections: requests without an answer, subscriptions, and
//! what the writer is to send.
//!
//! # Place
//!
//! The value behind the client's lock. It decides and touches memory only; the threads around it
//! do the waiting.
//!
//! # Locks
//!
//! It stands behind [`Rank::Client`](crate::base::lock::Rank::Client); inboxes are ended inside it.

use std::{
    collections::{HashMap, VecDeque},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    base::{
        lane::{Inlet, Receiver},
        random,
    },
    client::{
        delivery::Delivery,
        error::{ClientError, LinkError, Refused},
        follow::{Follows, Step, SubId},
        inbox::Inbox,
        message::{self, Incoming},
        options::State,
        reply,
        requests::{Reply, Requests},
        watches::{self, Watches},
    },
    name::{Filter, Name},
    wire::{
        codes::{CloseCode, Code},
        position::{From, Position},
        request::Acks,
    },
};

/// An answer, or why there is none.
pub(super) type Answer<T> = Result<T, ClientError>;

/// Bytes that the writer takes at once.
const BATCH_BYTES: usize = 64 * 1024;
/// Bytes of control messages that may wait for the writer. Reached only by a relay that floods its
/// clients with pings.
const CONTROL_BYTES_MAX: usize = 4 << 20;
/// How long the reader waits for a full inbox while somebody else needs it.
const PATIENCE_SHORT: Duration = Duration::from_millis(20);
/// How long it waits for a full inbox while nobody does: the relay is then slowed by TCP, which
/// is cheaper than leaving the topic and coming back.
const PATIENCE_LONG: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Session {
    follows: Follows,
    pub watches: Watches,
    members: HashMap<SubId, Member>,
    pub requests: Requests,
    /// When the writer is to look again, though nothing new is there.
    alarm: Option<Instant>,
    control: VecDeque<Out>,
    control_bytes: usize,
    link: Option<Link>,
    key_prefix: u64,
    keys: u64,
    /// What the reader is to do next.
    posts: Vec<Post>,
    /// The inbox that the reader may be waiting for.
    blocked_on: Option<Arc<Inbox>>,
    pub state: State,
    /// Why the client has ended.
    pub over: Option<ClientError>,
    /// The reader is about to return.
    pub reader_done: bool,
}

/// The connection that is up.
#[derive(Clone)]
pub(super) struct Link {
    pub socket: Arc<TcpStream>,
    pub message_bytes_max: usize,
}

/// One local subscription, beside what `follow` knows about it.
struct Member {
    inbox: Arc<Inbox>,
    /// Who waits for the subscription to start.
    starting: Option<Inlet<Answer<()>>>,
}

/// Something for the writer.
pub(super) enum Out {
    /// A message, to be framed and masked.
    Text(Arc<str>),
    /// Bytes that are frames already.
    Frames(Vec<u8>),
    /// The close frame; nothing is sent after it.
    Close,
}

/// Something for the reader to do once the lock is released.
pub(super) enum Post {
    Deliver { id: SubId, inbox: Arc<Inbox>, delivery: Delivery },
    Forget { inbox: Arc<Inbox>, topic: Name, after: u64 },
    Reconnect,
}

/// What the writer finds.
pub(super) enum Work {
    Send {
        socket: Arc<TcpStream>,
        out: Vec<Out>,
        /// Acknowledgements are among it.
        acks: bool,
    },
    /// Nothing before this moment, unless there is news.
    Sleep {
        until: Option<Instant>,
    },
    Finished,
}

impl Session {
    pub(super) fn new() -> Self {
        Self {
            follows: Follows::new(),
            watches: Watches::default(),
            members: HashMap::new(),
            requests: Requests::default(),
            alarm: None,
            control: VecDeque::new(),
            control_bytes: 0,
            link: None,
            key_prefix: random::number(),
            keys: 0,
            posts: Vec::new(),
            blocked_on: None,
            state: State::Connecting,
            over: None,
            reader_done: false,
        }
    }

    /// A key that no other publish has.
    pub(super) fn next_key(&mut self) -> String {
        self.keys += 1;
        format!("{:016x}-{}", self.key_prefix, self.keys)
    }

    /// The largest message that the relay takes, if that is known.
    pub(super) fn message_bytes_max(&self) -> Option<usize> {
        self.link.as_ref().map(|link| link.message_bytes_max)
    }

    /// An id for a message that is not kept here.
    pub(super) fn hello_id(&mut self) -> u64 {
        self.follows.next_id()
    }

    /// Files a request and returns its id.
    pub(super) fn file(&mut self, reply: Reply, expires: Instant, body: &str) -> u64 {
        // Ids rise in the order of filing, which is the order of sending.
        let id = self.follows.next_id();
        self.requests.file(id, reply, expires, body);
        self.hurry();
        id
    }

    pub(super) fn join(
        &mut self,
        filter: Filter,
        from: From,
        inbox: Arc<Inbox>,
        acks: Option<Acks>,
        starting: Inlet<Answer<()>>,
    ) -> Result<SubId, ClientError> {
        let id = self.follows.join(filter, from, acks)?;
        self.members.insert(id, Member { inbox, starting: Some(starting) });
        self.settle();
        self.hurry();
        Ok(id)
    }

    /// The program has dealt with the event at `position` of `topic`, and all before it.
    pub(super) fn acknowledge(
        &mut self,
        id: SubId,
        topic: &Name,
        position: Position,
    ) -> Result<(), ClientError> {
        match &self.over {
            Some(error) => Err(error.clone()),
            None => self.follows.acknowledge(id, topic, position),
        }
    }

    /// Whether the subscription `id` acknowledges.
    pub(super) fn acknowledges(&self, id: SubId) -> bool {
        self.follows.acknowledges(id)
    }

    /// Whether nothing waits for an answer, nor to be told.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.follows.all_told()
    }

    pub(super) fn leave(&mut self, id: SubId) {
        if let Some(member) = self.members.remove(&id) {
            member.inbox.discard();
        }
        self.follows.leave(id);
        self.settle();
    }

    /// The inbox of `id` has room again.
    pub(super) fn resume(&mut self, id: SubId) {
        self.follows.resume(id);
        self.settle();
    }

    /// The inbox of `id` took no more: `delivery` is put back.
    pub(super) fn stall(&mut self, id: SubId, delivery: &Delivery) {
        if let Delivery::Event(event) = delivery {
            self.follows.stall(id, event);
        }
        self.settle();
    }

    /// A connection is ready.
    pub(super) fn link_up(&mut self, link: Link) {
        self.follows.link_up(link.message_bytes_max);
        self.watches.link_up();
        self.requests.link_up(link.message_bytes_max);
        self.link = Some(link);
        self.settle();
    }

    /// The connection is gone.
    pub(super) fn link_down(&mut self) {
        self.link = None;
        self.control.clear();
        self.control_bytes = 0;
        self.follows.link_down();
        self.requests.link_down();
        self.watches.link_down();
        self.settle();
    }

    /// The client ends with `error`, for everybody who waits for anything.
    pub(super) fn end(&mut self, error: ClientError) {
        if self.over.is_some() {
            return;
        }
        for text in self.requests.end(&error) {
            // It was handed over before the end, so it goes out before the goodbye.
            self.push(Out::Text(text));
        }
        for (_, member) in self.members.drain() {
            if let Some(starting) = member.starting {
                drop(starting.send(Err(error.clone())));
            }
            member.inbox.end(error.clone());
        }
        self.watches.end(&error);
        self.push_acks();
        self.control.push_back(Out::Close);
        self.state = State::Ended { error: error.clone() };
        self.over = Some(error);
    }

    pub(super) fn link(&self) -> Option<Link> {
        self.link.clone()
    }

    /// Queues frames that the WebSocket itself answers with. `false` if there are too many.
    pub(super) fn push_frames(&mut self, frames: Vec<u8>) -> bool {
        self.push(Out::Frames(frames));
        self.control_bytes <= CONTROL_BYTES_MAX
    }

    fn push(&mut self, out: Out) {
        self.control_bytes += out.bytes();
        self.control.push_back(out);
    }

    /// What the writer is to send next, `None` if nothing.
    pub(super) fn work(&mut self, now: Instant) -> Option<Work> {
        let Some(link) = &self.link else {
            return if self.over.is_some() { Some(Work::Finished) } else { self.sleep(None) };
        };
        let socket = Arc::clone(&link.socket);
        let acks = self.push_acks();
        let (mut out, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(next) = self.control.pop_front()
        {
            bytes += next.bytes();
            self.control_bytes -= next.bytes();
            out.push(next);
        }
        self.requests.send(now, &mut out, BATCH_BYTES);
        if !out.is_empty() {
            return Some(Work::Send { socket, out, acks });
        }
        if self.over.is_some() {
            return Some(Work::Finished);
        }
        self.sleep(self.requests.next_retry())
    }

    /// Queues what the relay is to be told of acknowledgements. Returns whether there is any.
    fn push_acks(&mut self) -> bool {
        let texts = self.follows.acks();
        let any = !texts.is_empty();
        texts.into_iter().for_each(|text| self.push(Out::Text(text.into())));
        any
    }

    /// Tells the writer until when to sleep, if it does not know.
    fn sleep(&mut self, until: Option<Instant>) -> Option<Work> {
        let known = std::mem::replace(&mut self.alarm, until) == until;
        (!known).then_some(Work::Sleep { until })
    }

    /// Whether there are acknowledgements for the writer.
    pub(super) fn has_acks(&self) -> bool {
        self.follows.has_acks()
    }

    /// Takes one message about subscriptions. `false` if it is about something else.
    pub(super) fn follow(&mut self, message: &Incoming<'_>) -> bool {
        let taken = self.follows.take(message) || self.watches.take(message);
        if taken {
            self.settle();
        }
        taken
    }

    /// Takes one message from the relay.
    pub(super) fn take(&mut self, message: &Incoming<'_>, now: Instant) {
        if self.follow(message) {
            return;
        }
        if message.kind.as_str() == "error" {
            self.take_error(message, now);
            return;
        }
        let Some(reply) = message.id.and_then(|id| self.requests.answered(id)) else { return };
        match (reply, message.kind.as_str()) {
            (Reply::Published(reply), "published") => {
                drop(reply.send(reply::receipt(message)));
            }
            (Reply::History(reply), "history") => drop(reply.send(reply::history(message))),
            (Reply::Pong(reply), "pong") => drop(reply.send(Ok(message.time))),
            (Reply::Stored(reply) | Reply::StoredOnce(reply), "stored" | "deleted") => {
                drop(reply.send(reply::stored(message)));
            }
            (Reply::Values(reply), "values") => drop(reply.send(reply::values(message))),
            (Reply::Member(reply), "joined" | "left") => drop(reply.send(Ok(()))),
            (reply, kind) => {
                let what = format!("it answered with {kind}");
                reply.fail(ClientError::Refused(reply::nonsense(&what)));
            }
        }
    }

    fn take_error(&mut self, message: &Incoming<'_>, now: Instant) {
        let refused = reply::refused(message);
        match message.id {
            Some(id) if self.follows.refuse(id, &refused) => self.settle(),
            Some(id) if self.watches.refuse(id, &refused) => self.settle(),
            Some(id) => match message.version.filter(|_| is_conflict(&refused)) {
                Some(found) => self.requests.conflict(id, found),
                None => self.requests.refuse(id, refused, now),
            },
            None => {
                log::warn!("{refused}");
                if let Some(topic) = &message.topic {
                    self.follows.lack(topic.as_str(), &refused);
                    self.settle();
                }
            }
        }
    }

    /// Moves what the reader is to do next, outside the lock, to the empty `posts`.
    pub(super) fn hand_over(&mut self, posts: &mut Vec<Post>) {
        std::mem::swap(&mut self.posts, posts);
    }

    /// How long the reader may wait for the full inbox of `id`. [`Session::file`] cuts it short
    /// until [`Session::unblocked`].
    pub(super) fn blocked(&mut self, id: SubId, inbox: &Arc<Inbox>) -> Duration {
        let starting = self.members.get(&id).is_some_and(|member| member.starting.is_some());
        if starting {
            // Nobody takes anything out before the subscription has started.
            return Duration::ZERO;
        }
        self.blocked_on = Some(Arc::clone(inbox));
        let alone = self.requests.is_empty() && self.members.len() == 1;
        if alone { PATIENCE_LONG } else { PATIENCE_SHORT }
    }

    pub(super) fn unblocked(&mut self) {
        self.blocked_on = None;
    }

    /// Makes the reader stop waiting for a full inbox: what was filed just now needs it.
    fn hurry(&mut self) {
        if let Some(inbox) = &self.blocked_on {
            inbox.hurry();
        }
    }

    /// Turns the steps that have become due into messages and posts.
    fn settle(&mut self) {
        let mut sent = Vec::new();
        for step in self.follows.steps() {
            match step {
                Step::Send(text) => sent.push(text),
                Step::Deliver(id, delivery) => {
                    if let Some(member) = self.members.get(&id) {
                        let inbox = Arc::clone(&member.inbox);
                        self.posts.push(Post::Deliver { id, inbox, delivery });
                    }
                }
                Step::Forget(id, topic, after) => {
                    if let Some(member) = self.members.get(&id) {
                        let inbox = Arc::clone(&member.inbox);
                        self.posts.push(Post::Forget { inbox, topic, after });
                    }
                }
                Step::Started(id) => {
                    let member = self.members.get_mut(&id);
                    if let Some(starting) = member.and_then(|member| member.starting.take()) {
                        drop(starting.send(Ok(())));
                    }
                }
                Step::Failed(id, error) => {
                    let Some(member) = self.members.remove(&id) else { continue };
                    if let Some(starting) = member.starting {
                        drop(starting.send(Err(error.clone())));
                    }
                    member.inbox.end(error);
                }
                Step::Reconnect => self.posts.push(Post::Reconnect),
            }
        }
        for step in self.watches.steps() {
            match step {
                watches::Step::Ask(ask, body) => {
                    let id = self.follows.next_id();
                    self.watches.asked(id, ask);
                    sent.push(message::with_id(id, &body));
                }
                watches::Step::Reconnect => self.posts.push(Post::Reconnect),
            }
        }
        sent.into_iter().for_each(|text| self.push(Out::Text(text.into())));
    }

    /// Runs `change` on the watches, and sends what comes of it.
    pub(super) fn watch<R>(&mut self, change: impl FnOnce(&mut Watches) -> R) -> R {
        let outcome = change(&mut self.watches);
        self.settle();
        self.hurry();
        outcome
    }
}

impl Out {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Out::Text(text) => text.len(),
            Out::Frames(frames) => frames.len(),
            Out::Close => 0,
        }
    }
}

/// A request that waits for its answer.
pub(super) struct Awaited<T> {
    pub id: u64,
    pub answer: Receiver<Answer<T>>,
    pub deadline: Instant,
    pub limit: Duration,
}

fn is_conflict(refused: &Refused) -> bool {
    refused.known_code() == Some(Code::Conflict)
}

/// Says how a link that ended for good ends the client.
pub(super) fn dismissed(server: &str, source: LinkError) -> ClientError {
    let server = server.to_owned();
    if let LinkError::Refused(refused) = source {
        return ClientError::Refused(refused);
    }
    if let LinkError::ClosedWith { code, .. } = source
        && code == CloseCode::Replaced.number()
    {
        return ClientError::Replaced { server };
    }
    ClientError::Dismissed { server, source }
}

/// A refusal that the relay did not write but meant.
pub(super) fn refused(code: &str, message: &str) -> Refused {
    let (code, message) = (code.to_owned(), message.to_owned());
    Refused { code, message, field: None, retry_after: None }
}
