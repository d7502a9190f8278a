//! What the relay says about itself under `$sys/...`: taken when somebody asks, each second while
//! somebody watches, never otherwise.
//!
//! # Threads
//!
//! The reader of whoever asks or begins to watch; the keeper, while there are watchers.
//!
//! # Locks
//!
//! [`Rank::Sys`], for one comparison and the changes of the state that follow from it. Everything
//! that is said is gathered before.

use crate::{
    base::{
        lock::{Rank, Ranked},
        sync::atomic::{AtomicU64, Ordering},
    },
    metrics::kinds::{CounterBy, Label, Sample as _},
    name::Name,
    server::relay::Shared,
    state::Change,
};

/// What the relay last said about itself, and how many watch it.
pub(crate) struct Sys {
    watched: AtomicU64,
    last: Ranked<Last>,
}

impl Default for Sys {
    fn default() -> Self {
        Sys { watched: AtomicU64::new(0), last: Ranked::new(Rank::Sys, Last::default()) }
    }
}

/// Shortest time between two looks.
const EVERY_MS: u64 = 1_000;

/// What begins all of these keys.
const PREFIX: &str = "$sys";

/// Whether a key or pattern is about what is here.
pub(crate) fn is_about(filter: &str) -> bool {
    filter.starts_with(PREFIX)
}

/// What was said last, and what rates are measured from.
#[derive(Debug, Default)]
struct Last {
    /// When that was, by uptime.
    taken_ms: Option<u64>,
    totals: Totals,
    said: Vec<(&'static str, String)>,
}

/// What only grows.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    published: u64,
    delivered: u64,
    received_bytes: u64,
    sent_bytes: u64,
}

/// Everything that is said, as it is now.
#[derive(Clone, Debug, Default)]
struct Facts {
    uptime_ms: u64,
    connections: u64,
    topics: u64,
    subscriptions: u64,
    totals: Totals,
    /// There is one, for durable topics.
    has_store: bool,
    store_failure: Option<&'static str>,
    backlog_bytes: u64,
    file_bytes: u64,
    log_bytes: u64,
    state_bytes: u64,
    stalled: u64,
    gaps: Counts,
    disconnects: Counts,
    refused: Counts,
    limits: Limits,
}

/// How often something happened, by its reason; what never did is not there.
type Counts = Vec<(&'static str, u64)>;

/// What the numbers here are bounded by.
#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    connections: u64,
    topics: u64,
    memory: u64,
    state: u64,
    backlog: u64,
}

impl Last {
    /// Takes note of `facts`, unless the last time is less than a second ago. Returns what has
    /// changed since, as keys and their JSON.
    fn take(&mut self, facts: &Facts) -> Vec<(&'static str, String)> {
        let now_ms = facts.uptime_ms;
        if self.taken_ms.is_some_and(|taken_ms| now_ms < taken_ms.saturating_add(EVERY_MS)) {
            return Vec::new();
        }
        let elapsed_ms = now_ms.saturating_sub(self.taken_ms.unwrap_or(0)).max(EVERY_MS);
        let values = facts.values(&self.totals, elapsed_ms);
        self.taken_ms = Some(now_ms);
        self.totals = facts.totals;
        let before = std::mem::replace(&mut self.said, values);
        self.said.iter().filter(|said| !before.contains(said)).cloned().collect()
    }
}

impl Facts {
    fn values(&self, before: &Totals, elapsed_ms: u64) -> Vec<(&'static str, String)> {
        let per_second = |now: u64, before: u64| now.saturating_sub(before) * 1_000 / elapsed_ms;
        let Totals { published, delivered, received_bytes, sent_bytes } = self.totals;
        let rates = serde_json::json!({
            "published": per_second(published, before.published),
            "delivered": per_second(delivered, before.delivered),
            "received_bytes": per_second(received_bytes, before.received_bytes),
            "sent_bytes": per_second(sent_bytes, before.sent_bytes),
        });
        let totals = serde_json::json!({
            "published": published,
            "delivered": delivered,
            "received_bytes": received_bytes,
            "sent_bytes": sent_bytes,
        });
        let memory =
            serde_json::json!({"log_bytes": self.log_bytes, "state_bytes": self.state_bytes});
        vec![
            ("$sys/connections", self.connections.to_string()),
            ("$sys/disconnects", object(&self.disconnects)),
            ("$sys/gaps", object(&self.gaps)),
            ("$sys/limits", self.limits()),
            ("$sys/memory", memory.to_string()),
            ("$sys/rates", rates.to_string()),
            ("$sys/refused", object(&self.refused)),
            ("$sys/stalled", self.stalled.to_string()),
            ("$sys/store", self.store()),
            ("$sys/subscriptions", self.subscriptions.to_string()),
            ("$sys/topics", self.topics.to_string()),
            ("$sys/totals", totals.to_string()),
            ("$sys/uptime", (self.uptime_ms / 1_000).to_string()),
            ("$sys/version", concat!("\"", env!("CARGO_PKG_VERSION"), "\"").to_owned()),
        ]
    }

    fn store(&self) -> String {
        let mut store =
            serde_json::json!({"ok": self.store_failure.is_none(), "durable": self.has_store});
        if let Some(failure) = self.store_failure {
            store["reason"] = failure.into();
        }
        if self.has_store {
            store["backlog_bytes"] = self.backlog_bytes.into();
            store["file_bytes"] = self.file_bytes.into();
        }
        store.to_string()
    }

    fn limits(&self) -> String {
        let Limits { connections, topics, memory, state, backlog } = self.limits;
        let mut limits = serde_json::json!({
            "max_connections": connections,
            "max_topics": topics,
            "max_memory": memory,
            "max_state": state,
        });
        if self.has_store {
            limits["max_backlog"] = backlog.into();
        }
        limits.to_string()
    }
}

/// `counts` as a JSON object.
fn object(counts: &[(&'static str, u64)]) -> String {
    let members = counts.iter().map(|(reason, count)| ((*reason).to_owned(), (*count).into()));
    serde_json::Value::Object(members.collect()).to_string()
}

/// What `counter` has counted, by its label.
fn counts<L: Label>(counter: &CounterBy<L>) -> Counts {
    let mut counts = Counts::new();
    counter.each(&mut |label, count| {
        if let Some((_, reason)) = label.filter(|_| 0 < count) {
            counts.push((reason, count));
        }
    });
    counts
}

impl Shared {
    /// A watch of what is here begins: it is fresh, and stays so until [`Shared::end_sys`].
    ///
    /// # Blocking
    ///
    /// While a writer's or the keeper's lane is full.
    pub(crate) fn begin_sys(&self) {
        self.refresh_sys();
        // Relaxed: the keeper looks at it once more when it is woken.
        if self.sys.watched.fetch_add(1, Ordering::Relaxed) == 0 {
            self.wake_keeper(self.clock.uptime_ms());
        }
    }

    /// A watch of what is here has ended.
    pub(crate) fn end_sys(&self) {
        let before = self.sys.watched.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(0 < before, "a watch of $sys ends that has not begun");
    }

    /// Watches of what is here now.
    pub(crate) fn sys_watched(&self) -> u64 {
        self.sys.watched.load(Ordering::Relaxed)
    }

    /// Says what is new if somebody watches. Returns when there may be more, by uptime. For the
    /// keeper.
    ///
    /// # Blocking
    ///
    /// While a writer's lane is full.
    pub(crate) fn keep_sys(&self) -> u64 {
        if self.sys_watched() == 0 {
            return u64::MAX;
        }
        self.refresh_sys()
    }

    /// Says what is new, at most once a second. Returns when there may be more, by uptime.
    ///
    /// # Blocking
    ///
    /// While a writer's lane is full.
    pub(crate) fn refresh_sys(&self) -> u64 {
        let next_ms = |last: &Last| last.taken_ms.map_or(0, |taken_ms| taken_ms + EVERY_MS);
        let again_ms = self.sys.last.with(|last| next_ms(last));
        if self.clock.uptime_ms() < again_ms {
            return again_ms;
        }
        let (facts, now) = (self.facts(), self.state_now());
        let (is_news, again_ms) = self.sys.last.with(|last| {
            let news = last.take(&facts);
            for (key, value) in &news {
                let key = Name::parse(key).expect("the keys of $sys are names");
                let value = Some(value.as_str());
                let change =
                    Change { key: &key, value, if_version: None, ttl_ms: None, user: None };
                if let Err(error) = self.state.relay.change(&change, now, None) {
                    // There is no room, because of many who are present.
                    log::debug!("not said key={key} error=\"{error}\"");
                    last.said.retain(|(said, _)| *said != key.as_str());
                }
            }
            (!news.is_empty(), next_ms(last))
        });
        if is_news {
            self.state.relay.announce();
        }
        again_ms
    }

    fn facts(&self) -> Facts {
        let (metrics, config) = (&self.metrics, self.config().1);
        let mut refused = counts(&metrics.requests_refused);
        let turned_away = metrics.refused.sum();
        if 0 < turned_away {
            refused.push(("connections", turned_away));
        }
        Facts {
            uptime_ms: self.clock.uptime_ms(),
            connections: metrics.connections.value(),
            topics: self.registry.len() as u64,
            subscriptions: metrics.subscriptions.value(),
            totals: Totals {
                published: metrics.published.sum(),
                delivered: metrics.delivered.sum(),
                received_bytes: metrics.received_bytes.value(),
                sent_bytes: metrics.sent_bytes.value(),
            },
            has_store: config.store.data_dir.is_some(),
            store_failure: self.vault.failure().map(|failure| failure.kind.as_str()),
            backlog_bytes: self.vault.backlog_bytes(),
            file_bytes: metrics.store_file_bytes.value(),
            log_bytes: self.registry.bytes(),
            state_bytes: self.state.shared.look(crate::state::Map::bytes),
            stalled: metrics.stalled.value(),
            gaps: counts(&metrics.gaps),
            disconnects: counts(&metrics.disconnects),
            refused,
            limits: Limits {
                connections: self.connections_max,
                topics: config.topics.max_topics as u64,
                memory: config.topics.max_memory,
                state: config.state.max_bytes,
                backlog: config.store.max_backlog,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{base::lane, config::Config, server::Server, wire::codes::GapReason};

    fn said<'a>(news: &'a [(&'static str, String)], key: &str) -> Option<&'a str> {
        news.iter().find(|(found, _)| *found == key).map(|(_, value)| value.as_str())
    }

    #[test]
    fn what_has_not_changed_is_not_said_again_and_nothing_twice_in_a_second() {
        let mut last = Last::default();
        let mut facts = Facts { uptime_ms: 10, connections: 2, ..Facts::default() };
        assert_eq!(last.take(&facts).len(), 14);
        facts.connections = 3;
        facts.uptime_ms = 1_009;
        assert_eq!(last.take(&facts), []);
        facts.uptime_ms = 1_010;
        let news = last.take(&facts);
        assert_eq!(news, [("$sys/connections", "3".to_owned()), ("$sys/uptime", "1".to_owned())]);
    }

    #[test]
    fn rates_are_those_since_the_last_look() {
        let mut last = Last::default();
        let mut facts = Facts { uptime_ms: 500, ..Facts::default() };
        facts.totals.published = 40;
        let news = last.take(&facts);
        assert!(said(&news, "$sys/rates").unwrap().contains(r#""published":40"#), "{news:?}");
        facts.totals = Totals { published: 50, delivered: 30, received_bytes: 9, sent_bytes: 200 };
        facts.uptime_ms = 2_500;
        let news = last.take(&facts);
        let rates = r#"{"delivered":15,"published":5,"received_bytes":4,"sent_bytes":100}"#;
        assert_eq!(said(&news, "$sys/rates"), Some(rates));
    }

    #[test]
    fn a_store_that_fails_says_why() {
        let facts = Facts { has_store: true, store_failure: Some("full"), ..Facts::default() };
        let news = Last::default().take(&facts);
        let expected =
            r#"{"backlog_bytes":0,"durable":true,"file_bytes":0,"ok":false,"reason":"full"}"#;
        assert_eq!(said(&news, "$sys/store"), Some(expected));
    }

    #[test]
    fn only_what_has_happened_is_counted() {
        let counter = CounterBy::default();
        assert_eq!(object(&counts(&counter)), "{}");
        counter.add(GapReason::Slow, 2);
        counter.add(GapReason::Damaged, 1);
        assert_eq!(object(&counts(&counter)), r#"{"damaged":1,"slow":2}"#);
    }

    #[test]
    fn the_keeper_says_it_each_second_while_somebody_watches_and_then_no_more() {
        let config = Config { listen: vec!["127.0.0.1:0".into()], ..Config::default() };
        let server = Server::start(config).unwrap();
        let shared = server.shared();
        let version = || shared.state.relay.look(crate::state::Map::version);
        let (_inlet, never) = lane::open::<()>(lane::REPLIES);
        // Looks every few milliseconds, for `limit_ms` at most; when something was said.
        let changes = |count: usize, limit_ms: u64| {
            let (begun_ms, mut before) = (shared.clock.uptime_ms(), version());
            let mut at_ms = Vec::new();
            while at_ms.len() < count && shared.clock.uptime_ms() < begun_ms + limit_ms {
                _ = never.recv_timeout(Duration::from_millis(5));
                let now = version();
                if std::mem::replace(&mut before, now) != now {
                    at_ms.push(shared.clock.uptime_ms());
                }
            }
            at_ms
        };
        assert_eq!((version(), shared.sys_watched()), (0, 0));
        let begun_ms = shared.clock.uptime_ms();
        shared.begin_sys();
        shared.begin_sys();
        assert_eq!(version(), 14, "it is fresh when a watch begins");
        let at_ms = changes(2, 30_000);
        assert_eq!(at_ms.len(), 2);
        // Who looks late sees the first one late, and never the second one early.
        assert!(begun_ms + 2 * EVERY_MS <= at_ms[1], "{begun_ms} {at_ms:?}");
        shared.end_sys();
        assert_eq!(changes(1, 30_000).len(), 1, "somebody watches still");
        shared.end_sys();
        assert!(changes(1, 2_500).is_empty(), "nobody watches");
    }
}
