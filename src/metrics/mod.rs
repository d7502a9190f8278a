//! Every metric of one relay, in exposition order.
//!
//! Names follow `landline_<area>_<noun>[_<unit>][_total]` with base units (seconds, bytes). A label
//! ranges over a Rust enum: topics, users and addresses are never labels, so the number of series
//! is known at compile time. `docs/metrics.md` is generated from this file. Reading never changes
//! a value.
//!
//! # Place
//!
//! Above `base` and `wire`, whose reasons are its labels. One value per relay, shared by all its
//! threads.

pub mod kinds;
pub mod labels;

use kinds::{Counter, CounterBy, Gauge, Sample, Total};
use labels::{Channel, Closed, HttpOutcome, Refused, Transport};

use crate::wire::{
    codes::{Code, GapReason},
    position::Reason,
};

macro_rules! metrics {
    ($($field:ident: $type:ty = $name:literal, $help:literal;)*) => {
        /// The metrics of one relay.
        #[derive(Default)]
        pub struct Metrics {
            $(#[doc = $help] pub $field: $type,)*
        }

        impl Metrics {
            /// Appends all samples in the Prometheus text format, version 0.0.4.
            pub fn render(&self, out: &mut String) {
                $(kinds::render(&self.$field, $name, $help, out);)*
            }

            /// Name, kind, labels and help of every metric.
            #[must_use]
            pub fn families() -> Vec<Family> {
                vec![$(Family {
                    name: $name,
                    kind: <$type as Sample>::KIND,
                    label: <$type as Sample>::label(),
                    help: $help,
                },)*]
            }
        }
    };
}

/// What `docs/metrics.md` says about a metric.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: &'static str,
    /// Key and values of its label.
    pub label: Option<(&'static str, &'static [&'static str])>,
    pub help: &'static str,
}

metrics! {
    connections: Gauge = "landline_server_connections", "Connections open now.";
    connections_limit: Gauge = "landline_server_connections_limit",
        "Connections allowed at once, after the limits of the operating system.";
    accepted: Counter = "landline_server_accepted_total", "Connections accepted.";
    refused: CounterBy<Refused> = "landline_server_refused_total",
        "Connections turned away at the door.";
    accept_errors: Counter = "landline_server_accept_errors_total",
        "Accept calls that failed; the acceptor backs off and goes on.";
    upgraded: Counter = "landline_server_websockets_total", "Connections that became WebSockets.";
    streams: CounterBy<Channel> = "landline_server_streams_total",
        "Requests that are answered with a stream.";
    disconnects: CounterBy<Closed> = "landline_server_disconnects_total",
        "WebSocket connections and streams that ended.";
    http_requests: CounterBy<HttpOutcome> = "landline_http_requests_total",
        "HTTP requests answered, upgrades not counted.";
    received_bytes: Counter = "landline_server_received_bytes_total", "Bytes read from sockets.";
    sent_bytes: Counter = "landline_server_sent_bytes_total", "Bytes handed to the kernel.";
    sends: Counter = "landline_server_sends_total", "System calls that sent something.";
    stalled: Gauge = "landline_server_stalled_connections",
        "Connections whose socket takes nothing now.";
    outbox_waits: Counter = "landline_server_outbox_waits_total",
        "Times a reader waited because its client did not read its replies.";
    requests_refused: CounterBy<Code> = "landline_server_requests_refused_total",
        "Requests answered with an error.";
    commands_depth: Gauge = "landline_server_commands_depth", "Commands waiting for the writers.";
    commands_limit: Gauge = "landline_server_commands_limit",
        "Commands that may wait for the writers.";
    threads: Gauge = "landline_threads", "Threads of the relay now.";
    threads_panicked: Gauge = "landline_threads_panicked",
        "Threads that ended in a panic; anything but zero is a bug worth a report.";
    topics: Gauge = "landline_topic_topics", "Topics now.";
    topics_limit: Gauge = "landline_topic_topics_limit", "Topics allowed at once.";
    topics_forgotten: Counter = "landline_topic_forgotten_total",
        "Topics forgotten after a long time without events and subscribers.";
    log_bytes: Gauge = "landline_topic_log_bytes", "Bytes of all logs.";
    log_bytes_limit: Gauge = "landline_topic_log_bytes_limit",
        "Bytes that all logs together may keep.";
    events_evicted: CounterBy<labels::Evicted> = "landline_topic_events_evicted_total",
        "Events that a retention bound removed.";
    subscriptions: Gauge = "landline_topic_subscriptions",
        "Subscriptions now, patterns counted once.";
    cursors: Gauge = "landline_topic_cursors", "Cursors now: connections times topics they follow.";
    published: CounterBy<Transport> = "landline_topic_published_total", "Events appended.";
    published_bytes: Counter = "landline_topic_published_bytes_total",
        "Bytes of event payloads appended.";
    duplicates: Counter = "landline_topic_duplicates_total",
        "Publishes answered from the dedupe window.";
    dedupe_evicted: Counter = "landline_topic_dedupe_evicted_total",
        "Idempotency keys forgotten before their window ended, for lack of room.";
    delivered: CounterBy<Channel> = "landline_topic_delivered_total",
        "Events handed to the kernel, once per subscriber.";
    gaps: CounterBy<GapReason> = "landline_topic_gaps_total", "Gap notices sent.";
    gap_events: CounterBy<GapReason> = "landline_topic_gap_events_total",
        "Events that gap notices announced as lost to a subscription.";
    recoveries: CounterBy<labels::Recovered> = "landline_topic_recoveries_total",
        "Positions resumed from, by how much was there.";
    history_losses: CounterBy<Reason> = "landline_topic_history_losses_total",
        "Answers to `history` that name something as missing.";
    acks: Counter = "landline_ack_received_total", "Acknowledgements received.";
    redelivered: Counter = "landline_ack_redelivered_events_total",
        "Events that were sent again because they were not acknowledged in time.";
    dead_letters: Counter = "landline_ack_dead_letters_total",
        "Events that went to `$dead/...` because nobody acknowledged them.";
    consumers: Gauge = "landline_consumer_consumers", "Consumers now.";
    consumers_limit: Gauge = "landline_consumer_consumers_limit", "Consumers allowed at once.";
    consumers_replaced: Counter = "landline_consumer_replaced_total",
        "Consumers that another connection took over.";
    consumers_expired: Counter = "landline_consumer_expired_total",
        "Consumers forgotten after a long time without use.";
    store_ok: Gauge = "landline_store_ok",
        "1 if durable topics can be written, 0 if the store has failed or there is none.";
    store_failures: CounterBy<labels::StoreFailure> = "landline_store_failures_total",
        "Writes and recoveries of the store that failed.";
    store_recoveries: Counter = "landline_store_recoveries_total",
        "Times the store could be written again after a failure.";
    store_commits: Counter = "landline_store_commits_total", "Commits that reached the disk.";
    store_commit_microseconds: Counter = "landline_store_commit_microseconds_total",
        "Time that commits took, in millionths of a second.";
    store_writes: Counter = "landline_store_writes_total",
        "Batches handed to the operating system without waiting for the disk.";
    stored_events: Counter = "landline_store_events_total",
        "Events that became as safe as their topic asks for.";
    stored_bytes: Counter = "landline_store_events_bytes_total", "Bytes of these events.";
    store_refused: CounterBy<labels::StoreRefused> = "landline_store_refused_total",
        "Publishes to durable topics that were refused.";
    backlog_bytes: Gauge = "landline_store_backlog_bytes",
        "Bytes of events that wait for the disk.";
    backlog_limit: Gauge = "landline_store_backlog_bytes_limit",
        "Bytes of events that may wait for the disk.";
    backlog_waits: Counter = "landline_store_backlog_waits_total",
        "Times a publisher waited because too much waited for the disk.";
    store_file_bytes: Gauge = "landline_store_file_bytes", "Bytes of the store's files.";
    pages: Counter = "landline_store_pages_total", "Pages of history read from disk.";
    page_failures: Counter = "landline_store_page_failures_total",
        "Pages of history that could not be read.";
    pages_depth: Gauge = "landline_store_pages_depth", "Pages of history that are asked for.";
    pages_limit: Gauge = "landline_store_pages_limit", "Pages of history that may be asked for.";
    state_keys: Gauge = "landline_state_keys", "Keys of the shared state now.";
    state_keys_limit: Gauge = "landline_state_keys_limit", "Keys that the shared state may have.";
    state_bytes: Gauge = "landline_state_bytes", "Bytes of all keys and values.";
    state_bytes_limit: Gauge = "landline_state_bytes_limit",
        "Bytes that all keys and values may take.";
    state_tombstones: Gauge = "landline_state_tombstones", "Deletions that are remembered.";
    state_changes: Counter = "landline_state_changes_total", "Keys set or deleted by clients.";
    state_expired: Counter = "landline_state_expired_total",
        "Keys deleted because their time came.";
    watches: Gauge = "landline_state_watches", "Watches now.";
    state_sent: Counter = "landline_state_sent_total",
        "Values and deletions handed to the kernel, once per watcher.";
    watch_resets: Counter = "landline_state_watch_resets_total",
        "Watches that got a whole snapshot because what they had was too old.";
    bus_depth: Gauge = "landline_bus_depth", "Jobs waiting for the workers of the event bus.";
    bus_limit: Gauge = "landline_bus_depth_limit",
        "Jobs that may wait for the workers of the event bus.";
    bus_refused: Total = "landline_bus_refused_total",
        "Jobs and events that the event bus did not take because its workers were behind.";
    bus_panicked: Total = "landline_bus_panicked_total",
        "Panics of handlers within the process, which were contained.";
    presence_members: Gauge = "landline_presence_members",
        "Users who are present now, each topic counted.";
    presence_joins: Counter = "landline_presence_joins_total", "Connections that joined a topic.";
    presence_leaves: CounterBy<labels::Departure> = "landline_presence_leaves_total",
        "Connections that left a topic.";
    presence_returns: Counter = "landline_presence_returns_total",
        "Users who came back before they were taken for gone.";
    reloads_failed: Counter = "landline_config_reloads_failed_total",
        "Reloads that kept the old configuration.";
    reload_ok: Gauge = "landline_config_last_reload_successful",
        "1 if the last reload, or the start, succeeded.";
}

/// The reference that `docs/metrics.md` must be equal to.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from(
        "# Metrics\n\n`GET /metrics` answers in the Prometheus text format, version 0.0.4. Labels \
         range over fixed sets, so the number of series does not grow with topics, users or \
         connections.\n\n| metric | kind | label | meaning |\n|---|---|---|---|\n",
    );
    for Family { name, kind, label, help } in Metrics::families() {
        let label =
            label.map_or(String::new(), |(key, values)| format!("`{key}`: {}", values.join(", ")));
        text.push_str(&format!("| `{name}` | {kind} | {label} | {help} |\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
        for Family { name, kind, .. } in Metrics::families() {
            assert!(name.starts_with("landline_"), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        }
    }

    #[test]
    fn the_exposition_has_every_metric_and_reading_changes_nothing() {
        let metrics = Metrics::default();
        metrics.gaps.add(GapReason::Slow, 3);
        let (mut first, mut second) = (String::new(), String::new());
        metrics.render(&mut first);
        metrics.render(&mut second);
        assert_eq!(first, second);
        assert!(first.contains("landline_topic_gaps_total{reason=\"slow\"} 3\n"));
        for family in Metrics::families() {
            assert!(first.contains(&format!("# TYPE {} {}\n", family.name, family.kind)));
        }
    }

    #[test]
    fn the_reference_in_the_documentation_is_this_one() {
        crate::base::docs::compare("docs/metrics.md", &reference());
    }
}
