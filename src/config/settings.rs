//! Checked settings: nothing optional that has a default, no sentinel values.

use std::{path::PathBuf, time::Duration};

use crate::name::{Filter, Name};

/// Everything the relay can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen, as `host:port`; names are resolved when the listener is bound.
    pub listen: Vec<String>,
    /// Whether anybody may connect to a listener that is not on loopback.
    pub allow_anonymous: bool,
    /// How many writer threads.
    pub writers: usize,
    /// How long a stop may take before stragglers are cut off.
    pub drain: Duration,
    pub log: LogSettings,
    pub connections: ConnectionSettings,
    pub origins: OriginSettings,
    pub topics: TopicSettings,
    pub store: StoreSettings,
    pub acks: AckSettings,
    pub state: StateSettings,
    pub presence: PresenceSettings,
}

/// Where durable topics are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// `None` means that no topic is durable.
    pub data_dir: Option<PathBuf>,
    /// Bytes of the database that may be kept in memory.
    pub cache: usize,
    /// Bytes of events that may wait for the disk, all topics together.
    pub max_backlog: u64,
    /// How long a publisher waits for room in the backlog.
    pub backlog_wait: Duration,
}

/// How acknowledgements are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckSettings {
    /// How long an event that was sent may go unacknowledged.
    pub timeout: Duration,
    /// How often an event is sent before it goes to `$dead/...`.
    pub max_deliveries: u32,
    /// How long a consumer that nobody uses is remembered.
    pub consumer_idle: Duration,
    /// Consumers at once.
    pub max_consumers: usize,
}

/// How safe an event of a durable topic is before anybody sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// On disk.
    Always,
    /// With the operating system, and on disk an interval later at most.
    Interval,
    /// With the operating system.
    Os,
}

/// Where the log goes, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    pub level: LogLevel,
    /// `None` is standard error.
    pub file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// What one connection may take, and how long it may take for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// Connections at once; one more is answered 503.
    pub max_connections: usize,
    /// Largest message from a client, in bytes.
    pub max_message: usize,
    /// Bytes of replies that may wait for one connection before its requests wait too.
    pub max_outbox: usize,
    /// Subscriptions of one connection.
    pub max_subscriptions: usize,
    /// Topics that one connection may follow through patterns.
    pub max_cursors: usize,
    /// Time between pings.
    pub heartbeat: Duration,
    /// Silence after which a WebSocket connection is taken for dead.
    pub heartbeat_timeout: Duration,
    /// How long a peer may take nothing of what waits for it.
    pub write_stall: Duration,
    /// How long an HTTP head, or its body, may take to arrive.
    pub handshake_timeout: Duration,
    /// How long an HTTP connection may stay open between requests.
    pub idle_timeout: Duration,
}

/// Which browsers' pages may talk to the relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginSettings {
    /// Origins beside the relay's own, such as `https://panel.example`, in the form in which
    /// browsers send them: lower case, without a default port.
    pub allowed_origins: Vec<String>,
    /// Host names that requests may address, beside IP literals, `localhost` and `*.local`; lower
    /// case.
    pub allowed_hosts: Vec<String>,
}

/// How topics are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// Topics at once.
    pub max_topics: usize,
    /// Bytes of all logs together; beyond it the oldest events of the largest log go.
    pub max_memory: u64,
    /// How long a topic without events and subscribers is remembered.
    pub forget_after: Duration,
    /// How long an idempotency key is remembered.
    pub dedupe_window: Duration,
    /// The policy of a topic that no rule matches.
    pub default_policy: Policy,
    /// The first rule that matches a topic decides.
    pub rules: Vec<TopicRule>,
}

/// A policy for the topics that match a name or pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRule {
    pub filter: Filter,
    pub policy: Policy,
}

/// What one topic's log keeps: what is older or beyond these bounds goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub max_events: u64,
    pub max_bytes: u64,
    /// `None` keeps events of any age.
    pub max_age: Option<Duration>,
    /// Whether the topic survives a restart.
    pub durable: bool,
    pub sync: SyncPolicy,
    /// How long events of [`SyncPolicy::Interval`] may be with the operating system alone.
    pub sync_interval: Duration,
    /// Bytes of a durable topic's newest events that are kept in memory as well.
    pub max_tail: u64,
}

/// What the shared state may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSettings {
    /// Whether it is kept in `data_dir` and survives a restart.
    pub durable: bool,
    pub max_keys: usize,
    /// Bytes of one value.
    pub max_value: usize,
    /// Bytes of all keys and values together.
    pub max_bytes: u64,
    /// Deletions that are remembered for watchers that come back.
    pub max_tombstones: usize,
}

/// How long a user who has gone is still taken for present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresenceSettings {
    /// After the last connection was closed, or has left.
    pub leave_debounce: Duration,
    /// After the last connection broke.
    pub lost_debounce: Duration,
}

impl TopicSettings {
    /// Whether any topic may be durable.
    #[must_use]
    pub fn has_durable(&self) -> bool {
        self.default_policy.durable || self.rules.iter().any(|rule| rule.policy.durable)
    }

    /// The policy for `topic`: that of the first rule that matches, else the default. Events that
    /// could not be delivered are kept as the topic that they were published to.
    #[must_use]
    pub fn policy(&self, topic: &Name) -> Policy {
        let origin = topic.dead_letters_of();
        let topic = origin.as_ref().unwrap_or(topic);
        let rule = self.rules.iter().find(|rule| rule.filter.matches(topic));
        rule.map_or(self.default_policy, |rule| rule.policy)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            max_events: 100_000,
            max_bytes: 64 << 20,
            max_age: None,
            durable: false,
            sync: SyncPolicy::Always,
            sync_interval: Duration::from_secs(1),
            max_tail: 1 << 20,
        }
    }
}

impl Default for StoreSettings {
    fn default() -> Self {
        StoreSettings {
            data_dir: None,
            cache: 4 << 20,
            max_backlog: 16 << 20,
            backlog_wait: Duration::from_secs(5),
        }
    }
}

impl Default for AckSettings {
    fn default() -> Self {
        AckSettings {
            timeout: Duration::from_secs(30),
            max_deliveries: 5,
            consumer_idle: Duration::from_secs(7 * 86_400),
            max_consumers: 10_000,
        }
    }
}

impl Default for StateSettings {
    fn default() -> Self {
        StateSettings {
            durable: false,
            max_keys: 100_000,
            max_value: 64 << 10,
            max_bytes: 64 << 20,
            max_tombstones: 10_000,
        }
    }
}

impl Default for PresenceSettings {
    fn default() -> Self {
        PresenceSettings {
            leave_debounce: Duration::from_millis(100),
            lost_debounce: Duration::from_secs(5),
        }
    }
}

impl Default for TopicSettings {
    fn default() -> Self {
        TopicSettings {
            max_topics: 100_000,
            max_memory: 256 << 20,
            forget_after: Duration::from_secs(24 * 3_600),
            dedupe_window: Duration::from_secs(120),
            default_policy: Policy::default(),
            rules: Vec::new(),
        }
    }
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        ConnectionSettings {
            max_connections: 10_000,
            max_message: 256 << 10,
            max_outbox: 1 << 20,
            max_subscriptions: 1_000,
            max_cursors: 10_000,
            heartbeat: Duration::from_secs(25),
            heartbeat_timeout: Duration::from_secs(54),
            write_stall: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: vec!["127.0.0.1:5263".to_owned()],
            allow_anonymous: false,
            writers: default_writers(),
            drain: Duration::from_secs(10),
            log: LogSettings { level: LogLevel::Info, file: None },
            connections: ConnectionSettings::default(),
            origins: OriginSettings::default(),
            topics: TopicSettings::default(),
            store: StoreSettings::default(),
            acks: AckSettings::default(),
            state: StateSettings::default(),
            presence: PresenceSettings::default(),
        }
    }
}

/// As many writers as cores, 2 to 8: fewer cannot use the machine, more only share its caches.
#[must_use]
pub fn default_writers() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8))
}
