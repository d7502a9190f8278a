//! The one table of settings: name, type, range, whether a reload applies it, and what it means.
//!
//! # Place
//!
//! Feeds the checks, the flags with their help, `docs/config.md` and the comparison at a reload.
//! Defaults are not repeated here: they are what [`Config::default`] has in the key's slot.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use crate::config::{
    address,
    settings::{Config, LogLevel, SyncPolicy},
};

/// One setting.
#[derive(Debug)]
pub(super) struct Key {
    /// In the file. The environment variable is `LANDLINE_` and this in capitals.
    pub(super) name: &'static str,
    /// Without the dashes before it.
    pub(super) flag: &'static str,
    pub(super) kind: Kind,
    pub(super) change: Change,
    /// What it means, in one sentence.
    pub(super) sentence: &'static str,
    /// The default in words, where it depends on the machine.
    pub(super) default: Option<&'static str>,
}

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// At the next SIGHUP.
    Reload,
    Restart,
}

/// The type of a setting, the values it allows, and its place in [`Config`].
#[derive(Debug)]
pub(super) enum Kind {
    Duration(Slot<Duration>, RangeInclusive<Duration>),
    /// A duration, or `false` for any age.
    Age(Slot<Option<Duration>>, RangeInclusive<Duration>),
    Size(Number, RangeInclusive<u64>),
    Count(Number, RangeInclusive<u64>),
    Switch(Slot<bool>),
    Level(Slot<LogLevel>),
    Sync(Slot<SyncPolicy>),
    /// A path, or `false` for none.
    Path(Slot<Option<PathBuf>>),
    List(Slot<Vec<String>>, Items),
}

/// Where in [`Config`] a value lives.
#[derive(Debug)]
pub(super) struct Slot<T> {
    pub(super) get: fn(&Config) -> &T,
    pub(super) put: fn(&mut Config) -> &mut T,
}

/// A whole number of either width.
#[derive(Debug)]
pub(super) enum Number {
    Short(Slot<u32>),
    Word(Slot<usize>),
    Wide(Slot<u64>),
}

/// What the entries of a list are.
#[derive(Debug)]
pub(super) struct Items {
    /// As the help calls one entry.
    pub(super) name: &'static str,
    /// Returns the entry as it is kept, or what is wrong with it.
    pub(super) check: fn(&str) -> Result<String, String>,
    pub(super) count_min: usize,
}

/// The names of the log levels, the quietest first.
pub(super) const LEVELS: [(&str, LogLevel); 5] = [
    ("error", LogLevel::Error),
    ("warn", LogLevel::Warn),
    ("info", LogLevel::Info),
    ("debug", LogLevel::Debug),
    ("trace", LogLevel::Trace),
];

/// The names of the ways to sync, the safest first.
pub(super) const SYNCS: [(&str, SyncPolicy); 3] =
    [("always", SyncPolicy::Always), ("interval", SyncPolicy::Interval), ("os", SyncPolicy::Os)];

/// What begins the names of all environment variables.
pub(super) const PREFIX: &str = "LANDLINE_";

/// The table of the file that is not a key: policies for some of the topics.
pub(super) const TOPICS: &str = "topics";

/// The one key of such a table that no topic policy at the top has.
pub(super) const PATTERN: &str = "pattern";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// The key called `name`.
pub(super) fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The keys that a `[[topics]]` table may have beside its pattern.
pub(super) fn topic_keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| TOPIC_KEYS.contains(&key.name))
}

const TOPIC_KEYS: [&str; 7] =
    ["max_events", "max_bytes", "max_age", "durable", "sync", "sync_interval", "max_tail"];

impl Key {
    /// The environment variable that sets it.
    pub(super) fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.to_ascii_uppercase())
    }
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}

macro_rules! slot {
    ($($path:tt)+) => {
        Slot { get: |config| &config.$($path)+, put: |config| &mut config.$($path)+ }
    };
}

macro_rules! words {
    () => {
        None
    };
    ($words:literal) => {
        Some($words)
    };
}

macro_rules! keys {
    ($($name:literal $flag:literal $change:ident $kind:expr,
       $sentence:literal $(, default: $default:literal)?;)+) => {
        &[$(Key {
            name: $name,
            flag: $flag,
            kind: $kind,
            change: Change::$change,
            sentence: $sentence,
            default: words!($($default)?),
        }),+]
    };
}

/// Every setting, in the order of the documentation.
pub(super) static KEYS: &[Key] = keys! {
    "listen" "listen" Restart Kind::List(slot!(listen), LISTENERS),
    "Where to listen for HTTP and WebSocket connections, as `host:port`; port 0 takes a free one.";

    "allow_anonymous" "allow-anonymous" Reload Kind::Switch(slot!(allow_anonymous)),
    "Whether anybody may connect from other machines; needed to listen on anything but loopback.";

    "writers" "writers" Restart Kind::Count(Number::Word(slot!(writers)), 1..=64),
    "How many threads write to connections.",
    default: "one per core, 2 to 8";

    "drain" "drain" Reload Kind::Duration(slot!(drain), millis(100)..=minutes(10)),
    "How long a stop may take before connections that still take data are cut off.";

    "log_level" "log-level" Reload Kind::Level(slot!(log.level)),
    "How much is logged; each level includes those before it.";

    "log_file" "log-file" Restart Kind::Path(slot!(log.file)),
    "The file that the log is appended to; `false` is standard error.";

    "max_connections" "max-connections" Restart
    Kind::Count(Number::Word(slot!(connections.max_connections)), 1..=100_000),
    "Connections at once; one more is answered 503.";

    "max_message" "max-message" Reload
    Kind::Size(Number::Word(slot!(connections.max_message)), KIB..=64 * MIB),
    "The largest message that a client may send.";

    "max_outbox" "max-outbox" Reload
    Kind::Size(Number::Word(slot!(connections.max_outbox)), 8 * KIB..=GIB),
    "Replies that may wait for one connection before its requests wait too.";

    "max_subscriptions" "max-subscriptions" Reload
    Kind::Count(Number::Word(slot!(connections.max_subscriptions)), 1..=1_000_000),
    "Subscriptions of one connection.";

    "max_cursors" "max-cursors" Reload
    Kind::Count(Number::Word(slot!(connections.max_cursors)), 1..=1_000_000),
    "Topics that one connection may follow through patterns.";

    "heartbeat" "heartbeat" Reload
    Kind::Duration(slot!(connections.heartbeat), millis(100)..=minutes(60)),
    "Time between the pings that the relay sends.";

    "heartbeat_timeout" "heartbeat-timeout" Reload
    Kind::Duration(slot!(connections.heartbeat_timeout), millis(100)..=minutes(180)),
    "Silence after which a WebSocket connection is taken for dead.";

    "write_stall" "write-stall" Reload
    Kind::Duration(slot!(connections.write_stall), millis(100)..=minutes(10)),
    "How long a client may take nothing of what waits for it before it is cut off.";

    "handshake_timeout" "handshake-timeout" Reload
    Kind::Duration(slot!(connections.handshake_timeout), millis(100)..=minutes(10)),
    "How long an HTTP head, or its body, may take to arrive.";

    "idle_timeout" "idle-timeout" Reload
    Kind::Duration(slot!(connections.idle_timeout), millis(100)..=days(1)),
    "How long an HTTP connection may stay open between requests.";

    "allowed_origins" "allowed-origins" Reload
    Kind::List(slot!(origins.allowed_origins), ORIGINS),
    "Origins beside the relay's own whose pages may use it, such as `https://panel.example`.";

    "allowed_hosts" "allowed-hosts" Reload
    Kind::List(slot!(origins.allowed_hosts), HOSTS),
    "Host names that requests may address, beside IP addresses, `localhost` and `*.local`.";

    "max_topics" "max-topics" Reload
    Kind::Count(Number::Word(slot!(topics.max_topics)), 1..=10_000_000),
    "Topics at once.";

    "max_memory" "max-memory" Reload
    Kind::Size(Number::Wide(slot!(topics.max_memory)), MIB..=TIB),
    "The logs of all topics together; beyond it the oldest events of the largest log go.";

    "forget_after" "forget-after" Reload
    Kind::Duration(slot!(topics.forget_after), millis(1_000)..=days(365)),
    "How long a topic without events and subscribers is remembered.";

    "dedupe_window" "dedupe-window" Reload
    Kind::Duration(slot!(topics.dedupe_window), millis(1_000)..=days(1)),
    "How long an idempotency key is remembered.";

    "max_events" "max-events" Reload
    Kind::Count(Number::Wide(slot!(topics.default_policy.max_events)), 1..=1_000_000_000),
    "Events that one topic keeps.";

    "max_bytes" "max-bytes" Reload
    Kind::Size(Number::Wide(slot!(topics.default_policy.max_bytes)), KIB..=TIB),
    "Bytes of events that one topic keeps.";

    "max_age" "max-age" Reload
    Kind::Age(slot!(topics.default_policy.max_age), millis(1_000)..=days(3_650)),
    "How old the events that one topic keeps may be; `false` is any age.";

    "data_dir" "data-dir" Restart Kind::Path(slot!(store.data_dir)),
    "The directory of what survives a restart; `false` means that nothing does.";

    "durable" "durable" Restart Kind::Switch(slot!(topics.default_policy.durable)),
    "Whether topics are kept in `data_dir` and survive a restart.";

    "sync" "sync" Reload Kind::Sync(slot!(topics.default_policy.sync)),
    "How safe an event of a durable topic is before its publisher is answered and anybody sees it.";

    "sync_interval" "sync-interval" Reload
    Kind::Duration(slot!(topics.default_policy.sync_interval), millis(10)..=minutes(60)),
    "How much of a durable topic with `sync = \"interval\"` a loss of power may take.";

    "max_tail" "max-tail" Reload
    Kind::Size(Number::Wide(slot!(topics.default_policy.max_tail)), 4 * KIB..=GIB),
    "Bytes of a durable topic's newest events that are kept in memory as well.";

    "max_backlog" "max-backlog" Reload
    Kind::Size(Number::Wide(slot!(store.max_backlog)), MIB..=GIB),
    "Events that may wait for the disk, all durable topics together; publishers wait beyond it.";

    "backlog_wait" "backlog-wait" Reload
    Kind::Duration(slot!(store.backlog_wait), millis(10)..=minutes(1)),
    "How long a publisher waits for the disk before it is told that the relay is busy.";

    "store_cache" "store-cache" Restart
    Kind::Size(Number::Word(slot!(store.cache)), MIB..=GIB),
    "How much of the database on disk is kept in memory.";

    "ack_timeout" "ack-timeout" Reload
    Kind::Duration(slot!(acks.timeout), millis(100)..=minutes(60)),
    "How long an event may go unacknowledged before it is sent again.";

    "max_deliveries" "max-deliveries" Reload
    Kind::Count(Number::Short(slot!(acks.max_deliveries)), 1..=1_000_000),
    "How often an event is sent without being acknowledged before it goes to `$dead/...`.";

    "consumer_idle" "consumer-idle" Reload
    Kind::Duration(slot!(acks.consumer_idle), millis(1_000)..=days(3_650)),
    "How long the position of a consumer that nobody uses is kept.";

    "max_consumers" "max-consumers" Reload
    Kind::Count(Number::Word(slot!(acks.max_consumers)), 1..=1_000_000),
    "Consumers at once, of all topics together.";

    "durable_state" "durable-state" Restart Kind::Switch(slot!(state.durable)),
    "Whether the shared state is kept in `data_dir` and survives a restart.";

    "max_keys" "max-keys" Reload
    Kind::Count(Number::Word(slot!(state.max_keys)), 1..=10_000_000),
    "Keys of the shared state.";

    "max_value" "max-value" Reload
    Kind::Size(Number::Word(slot!(state.max_value)), 16..=MIB),
    "The largest value of a key.";

    "max_state" "max-state" Reload
    Kind::Size(Number::Wide(slot!(state.max_bytes)), KIB..=TIB),
    "All keys and values of the shared state together.";

    "max_tombstones" "max-tombstones" Reload
    Kind::Count(Number::Word(slot!(state.max_tombstones)), 1..=10_000_000),
    "Deletions that are remembered; a watcher that comes back after more gets everything anew.";

    "leave_debounce" "leave-debounce" Reload
    Kind::Duration(slot!(presence.leave_debounce), millis(1)..=minutes(10)),
    "How long a user whose last connection was closed is still taken for present.";

    "lost_debounce" "lost-debounce" Reload
    Kind::Duration(slot!(presence.lost_debounce), millis(1)..=minutes(10)),
    "How long a user whose last connection broke is still taken for present.";
};

const LISTENERS: Items = Items { name: "HOST:PORT", check: address::check_listen, count_min: 1 };
const ORIGINS: Items = Items { name: "ORIGIN", check: address::check_origin, count_min: 0 };
const HOSTS: Items = Items { name: "HOST", check: address::check_host, count_min: 0 };

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_flags_are_names_in_kebab_case() {
        let names: BTreeSet<_> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(names.len(), KEYS.len());
        for Key { name, flag, .. } in KEYS {
            assert_eq!(*flag, name.replace('_', "-"));
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        }
        assert!(key(TOPICS).is_none());
        assert_eq!(key("max_age").unwrap().variable(), "LANDLINE_MAX_AGE");
        assert_eq!(topic_keys().count(), TOPIC_KEYS.len());
    }

    #[test]
    fn no_two_keys_share_a_slot() {
        let defaults = Config::default();
        let mut addresses = BTreeSet::new();
        for key in KEYS {
            let address = match &key.kind {
                Kind::Duration(slot, _) => std::ptr::from_ref((slot.get)(&defaults)).addr(),
                Kind::Age(slot, _) => std::ptr::from_ref((slot.get)(&defaults)).addr(),
                Kind::Size(Number::Word(slot), _) | Kind::Count(Number::Word(slot), _) => {
                    std::ptr::from_ref((slot.get)(&defaults)).addr()
                }
                Kind::Size(Number::Wide(slot), _) | Kind::Count(Number::Wide(slot), _) => {
                    std::ptr::from_ref((slot.get)(&defaults)).addr()
                }
                Kind::Size(Number::Short(slot), _) | Kind::Count(Number::Short(slot), _) => {
                    std::ptr::from_ref((slot.get)(&defaults)).addr()
                }
                Kind::Sync(slot) => std::ptr::from_ref((slot.get)(&defaults)).addr(),
                Kind::Switch(slot) => std::ptr::from_ref((slot.get)(&defaults)).addr(),
                Kind::Level(slot) => std::ptr::from_ref((slot.get)(&defaults)).addr(),
                Kind::Path(slot) => std::ptr::from_ref((slot.get)(&defaults)).addr(),
                Kind::List(slot, _) => std::ptr::from_ref((slot.get)(&defaults)).addr(),
            };
            assert!(addresses.insert(address), "{}", key.name);
        }
    }

    #[test]
    fn sentences_end_and_fit_a_table_cell() {
        for Key { name, sentence, .. } in KEYS {
            assert!(sentence.ends_with('.'), "{name}");
            assert!(!sentence.contains(['|', '\n']) && sentence.is_ascii(), "{name}");
        }
    }
}
