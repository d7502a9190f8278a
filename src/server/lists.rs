//! What there is, as lists for people and programs: topics and consumers.
//!
//! # Threads
//!
//! The reader of whoever asks.

use serde::Serialize;

use crate::{
    http::{error::HttpError, head::Head, target::Query},
    server::{connection::connection_name, relay::Shared, routes::internal},
    topic::consumers::Listed,
    wire::request::{Refusal, parse_topic},
};

/// Entries in one answer.
const ENTRIES_PER_PAGE: usize = 1_000;

#[derive(Serialize)]
struct TopicBody<'a> {
    topic: &'a str,
    epoch: String,
    first: u64,
    tail: u64,
    events: u64,
    bytes: u64,
    subscribers: u64,
    /// How safe an event is before it is seen.
    durability: &'static str,
    /// Events per second over the last seconds.
    rate: f64,
}

#[derive(Serialize)]
struct TopicsBody<'a> {
    topics: Vec<TopicBody<'a>>,
    /// The `after` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

/// The answer of `/v1/topics`.
///
/// # Errors
///
/// The query breaks a rule.
pub(crate) fn topics(shared: &Shared, head: &Head) -> Result<Vec<u8>, HttpError> {
    let query = Query::parse(head.query())?;
    let after = query.value("after")?;
    let mut found = shared.registry.list(after, ENTRIES_PER_PAGE + 1);
    let more = ENTRIES_PER_PAGE < found.len();
    found.truncate(ENTRIES_PER_PAGE);
    let now_ms = shared.clock.unix_ms();
    let topics = found.iter().map(|topic| {
        topic.look(|log| TopicBody {
            topic: topic.name().as_str(),
            epoch: log.epoch().to_string(),
            first: log.first(),
            tail: log.tail(),
            events: log.len(),
            bytes: log.bytes(),
            subscribers: topic.followers(),
            durability: log.durability().as_str(),
            rate: (log.rate(now_ms) * 10.0).round() / 10.0,
        })
    });
    let topics = topics.collect();
    let next = found.last().filter(|_| more).map(|topic| topic.name().as_str());
    serde_json::to_vec(&TopicsBody { topics, next }).map_err(internal)
}

#[derive(Serialize)]
struct ConsumerBody {
    consumer: String,
    topic: String,
    epoch: String,
    /// The last event that it acknowledged.
    seq: u64,
    tail: u64,
    /// Events after its position.
    lag: u64,
    connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<String>,
    /// How often the first of them was sent.
    deliveries: u32,
    /// Time since it was last used.
    idle_ms: u64,
}

#[derive(Serialize)]
struct ConsumersBody {
    consumers: Vec<ConsumerBody>,
    /// The `after` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// The answer of `/v1/consumers`: by topic, then by name.
///
/// # Errors
///
/// The query breaks a rule.
pub(crate) fn consumers(shared: &Shared, head: &Head) -> Result<Vec<u8>, HttpError> {
    let query = Query::parse(head.query())?;
    let topics = match query.value("topic")? {
        None => shared.registry.list(None, usize::MAX),
        Some(topic) => {
            parse_topic(topic)?;
            shared.registry.find(topic).into_iter().collect()
        }
    };
    // A consumer's name has no `/`, so the last one ends the topic.
    let after = query.value("after")?.map(|after| after.rsplit_once('/').ok_or_else(not_a_place));
    let after = after.transpose()?;
    let now_ms = shared.clock.unix_ms();
    let mut consumers = Vec::new();
    let mut more = false;
    for topic in topics {
        let name = topic.name().as_str();
        if after.is_some_and(|(topic, _)| name < topic) {
            continue;
        }
        let listed = topic.consumers(|consumers, log| (consumers.list(), log.epoch(), log.tail()));
        let (list, epoch, tail) = listed;
        let is_later = |listed: &Listed| match after {
            Some((topic, consumer)) if topic == name => consumer < listed.name.as_str(),
            _ => true,
        };
        for listed in list.into_iter().filter(is_later) {
            if ENTRIES_PER_PAGE <= consumers.len() {
                more = true;
                break;
            }
            let holder = listed.holder;
            consumers.push(ConsumerBody {
                consumer: listed.name.as_str().to_owned(),
                topic: name.to_owned(),
                epoch: epoch.to_string(),
                seq: listed.state.seq,
                tail,
                lag: tail.saturating_sub(listed.state.seq),
                connected: holder.is_some(),
                connection: holder.map(|holder| connection_name(holder.connection)),
                deliveries: listed.state.deliveries,
                idle_ms: now_ms.saturating_sub(listed.state.used_ms),
            });
        }
    }
    let last = consumers.last().filter(|_| more);
    let next = last.map(|last: &ConsumerBody| format!("{}/{}", last.topic, last.consumer));
    serde_json::to_vec(&ConsumersBody { consumers, next }).map_err(internal)
}

fn not_a_place() -> Refusal {
    Refusal::field("after", "after is the `next` of the page before: a topic, a / and a consumer")
}
