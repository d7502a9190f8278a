//! How a client behaves: limits, deadlines, and who is told about the connection.

use std::{fmt, sync::Arc, time::Duration};

use crate::client::error::{ClientError, LinkError};

/// What a client may take and how long it waits. Every limit has a default.
///
/// ```
/// use std::time::Duration;
/// use landline::client::Options;
///
/// let options = Options::default().user("kitchen").connect_timeout(Duration::from_secs(2));
/// ```
#[derive(Clone)]
pub struct Options {
    pub(super) user: Option<String>,
    pub(super) text: Option<String>,
    pub(super) connect_timeout: Duration,
    pub(super) deadline: Duration,
    pub(super) backoff_floor: Duration,
    pub(super) backoff_ceiling: Duration,
    pub(super) inbox: InboxLimits,
    pub(super) pending_requests: usize,
    pub(super) pending_bytes: usize,
    pub(super) on_state: Option<Observer>,
}

type Observer = Arc<dyn Fn(&State) + Send + Sync>;

/// How much of one subscription may wait for the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboxLimits {
    /// Most events.
    pub events: usize,
    /// Payloads and a share of the bookkeeping; one event of any size fits into an empty inbox.
    pub bytes: usize,
}

/// How one subscription differs from the client's defaults.
///
/// ```
/// use landline::client::SubscribeOptions;
///
/// let one_at_a_time = SubscribeOptions::default().consumer("printer").window(1);
/// ```
#[derive(Clone, Debug, Default)]
pub struct SubscribeOptions {
    pub(super) inbox: Option<InboxLimits>,
    pub(super) deadline: Option<Duration>,
    pub(super) acknowledge: bool,
    pub(super) window: Option<u64>,
    pub(super) consumer: Option<String>,
}

/// What the connection is doing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum State {
    /// A connection is being made.
    Connecting,
    Connected {
        /// The relay's name for this connection.
        connection: String,
    },
    /// The connection was lost, or not made; the next attempt is `retry_in` from now.
    Waiting { retry_in: Duration, reason: LinkError },
    /// The client has ended and stays so.
    Ended { error: ClientError },
}

impl Default for InboxLimits {
    fn default() -> Self {
        InboxLimits { events: 8_192, bytes: 16 << 20 }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            user: None,
            text: None,
            connect_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
            backoff_floor: Duration::from_millis(500),
            backoff_ceiling: Duration::from_secs(20),
            inbox: InboxLimits::default(),
            pending_requests: 1_024,
            pending_bytes: 4 << 20,
            on_state: None,
        }
    }
}

impl Options {
    /// Who publishes: shown with each event. 1 to 128 bytes, no `/`, no control characters.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Free text for the relay's list of connections, at most 128 bytes.
    #[must_use]
    pub fn client_text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// How long one attempt to connect may take, greeting included. Default 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How long a call waits for its answer, time without a connection included. Default 30 s.
    ///
    /// It also bounds how long an unconfirmed publish is sent again after a reconnect. Beyond the
    /// relay's dedupe window (2 minutes by default) sending again could store an event twice, so
    /// keep it well below that.
    #[must_use]
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = limit;
        self
    }

    /// Bounds of the delay between attempts to reconnect. Default 0.5 s and 20 s.
    #[must_use]
    pub fn backoff(mut self, floor: Duration, ceiling: Duration) -> Self {
        self.backoff_floor = floor;
        self.backoff_ceiling = ceiling.max(floor);
        self
    }

    /// How much of each subscription may wait for the program. Default 8,192 events, 16 MiB.
    #[must_use]
    pub fn inbox(mut self, limits: InboxLimits) -> Self {
        self.inbox = limits;
        self
    }

    /// How many requests, and how many bytes of them, may wait for an answer before the next one
    /// waits for room. Default 1,024 requests and 4 MiB.
    #[must_use]
    pub fn pending(mut self, requests: usize, bytes: usize) -> Self {
        self.pending_requests = requests.max(1);
        self.pending_bytes = bytes;
        self
    }

    /// Calls `observer` whenever the connection's state changes, on the client's reading thread:
    /// it must return soon, and must not wait for this client.
    #[must_use]
    pub fn on_state(mut self, observer: impl Fn(&State) + Send + Sync + 'static) -> Self {
        self.on_state = Some(Arc::new(observer));
        self
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { user, text, connect_timeout, deadline, .. } = self;
        f.debug_struct("Options")
            .field("user", user)
            .field("client_text", text)
            .field("connect_timeout", connect_timeout)
            .field("deadline", deadline)
            .finish_non_exhaustive()
    }
}

impl SubscribeOptions {
    /// How much of this subscription may wait for the program.
    #[must_use]
    pub fn inbox(mut self, limits: InboxLimits) -> Self {
        self.inbox = Some(limits);
        self
    }

    /// How long subscribing may take.
    #[must_use]
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = Some(limit);
        self
    }

    /// Delivers at least once: an event is done with when it is
    /// [acknowledged](crate::client::Subscription::ack), not when it was delivered.
    ///
    /// What is not acknowledged comes again, marked as
    /// [redelivered](crate::client::Event::redelivered): when the relay has waited long enough
    /// (30 s by default), and at once on the next connection. What was delivered too often
    /// (5 times by default) goes to the topic `$dead/{topic}`, and a gap says so. The filter must
    /// not overlap with that of another subscription of the same client.
    #[must_use]
    pub fn acknowledge(mut self) -> Self {
        self.acknowledge = true;
        self
    }

    /// How many events of one topic may be delivered and not acknowledged, 1 to 65,536. Default
    /// 256. Implies [`SubscribeOptions::acknowledge`].
    #[must_use]
    pub fn window(mut self, events: u64) -> Self {
        self.window = Some(events);
        self.acknowledge()
    }

    /// Under which name the relay keeps the acknowledged position of this subscription, which must
    /// be to a single topic. 1 to 128 bytes, no `/`, no control characters. Implies
    /// [`SubscribeOptions::acknowledge`].
    ///
    /// A consumer that the relay knows goes on after what it has acknowledged, whatever the start
    /// that is asked for. It is in one place at a time: the client that subscribes last has it, and
    /// the one that had it ends with
    /// [`ClientError::Replaced`](crate::client::ClientError::Replaced).
    #[must_use]
    pub fn consumer(mut self, name: impl Into<String>) -> Self {
        self.consumer = Some(name.into());
        self.acknowledge()
    }
}
