//! What HTTP requests are answered.
//!
//! # Threads
//!
//! The connection's reader.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    config::OriginSettings,
    http::{
        error::HttpError,
        field::Field,
        head::{Head, Method},
        origin::{self, Caller},
        response::{self, Exchange, Response},
        target::{Query, Route},
        upgrade::{self, Upgrade},
    },
    metrics::{
        Metrics,
        labels::{HttpOutcome, Transport},
    },
    server::{line::Line, relay::Shared, requests::check_writable},
    topic::{Draft, Topic},
    wire::{
        codes::Code,
        json,
        reply::{self, ReceiptBody},
        request::{Refusal, parse_topic},
    },
};

/// Topics in one answer of `/v1/topics`.
const TOPICS_PER_PAGE: usize = 1_000;

/// An answer and its status.
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) status: u16,
}

/// Whether the caller may ask at all.
///
/// # Errors
///
/// `Host` or `Origin` is not allowed.
pub(crate) fn admit(head: &Head, origins: &OriginSettings) -> Result<Caller, HttpError> {
    Ok(origin::check(head.field(Field::Host), head.field(Field::Origin), origins)?)
}

/// The handshake that `head` asks for, if it asks for one.
///
/// # Errors
///
/// The handshake breaks a rule, or the relay is stopping.
pub(crate) fn upgrade(shared: &Shared, head: &Head) -> Result<Option<Upgrade>, HttpError> {
    match Route::parse(head.path()) {
        Ok(Route::WebSocket) => {
            let upgrade = upgrade::check(head)?;
            shared.admit()?;
            Ok(Some(upgrade))
        }
        _ => Ok(None),
    }
}

/// Counts an answer by its class.
pub(crate) fn count(metrics: &Metrics, status: u16) {
    let class = match status {
        0..300 => HttpOutcome::Success,
        300..400 => HttpOutcome::Redirect,
        400..500 => HttpOutcome::ClientError,
        500.. => HttpOutcome::ServerError,
    };
    metrics.http_requests.add(class, 1);
}

/// Answers one request.
pub(crate) fn answer(line: &mut Line, head: &Head, exchange: &Exchange<'_>, body: &[u8]) -> Answer {
    let mut bytes = Vec::new();
    let status = match respond(line, head, exchange, body, &mut bytes) {
        Ok(status) => status,
        Err(error) => {
            line.shared.metrics.requests_refused.add(error.code(), 1);
            response::refuse(&mut bytes, exchange, &error);
            error.status()
        }
    };
    Answer { bytes, status }
}

fn respond(
    line: &mut Line,
    head: &Head,
    exchange: &Exchange<'_>,
    body: &[u8],
    out: &mut Vec<u8>,
) -> Result<u16, HttpError> {
    let route = Route::parse(head.path())?;
    route.admit(head.method)?;
    if head.method == Method::Options {
        response::options(out, exchange, route.methods());
        return Ok(204);
    }
    let json = |out: &mut Vec<u8>, status, body: &[u8]| {
        response::json(out, exchange, status, body);
        Ok(status)
    };
    match route {
        Route::Events { topic } if head.method == Method::Post => {
            let (status, body) = publish(line, head, &topic, body)?;
            json(out, status, &body)
        }
        Route::Events { topic } => {
            let query = Query::parse(head.query())?;
            let from = query.from()?;
            parse_topic(&topic)?;
            let (found, events) = line.shared.history(&topic, from.as_ref(), query.limit()?)?;
            json(out, 200, &reply::history_body("{", &topic, &found, &events))
        }
        Route::Topics => json(out, 200, &topics(&line.shared, head)?),
        Route::Healthz => json(out, 200, b"{\"status\":\"ok\"}"),
        Route::Readyz => match line.shared.readiness() {
            Ok(()) => json(out, 200, b"{\"status\":\"ready\"}"),
            Err(why) => Err(Refusal::new(Code::Unavailable, why).into()),
        },
        Route::Metrics => {
            let mut text = String::new();
            line.shared.sample();
            line.shared.metrics.render(&mut text);
            Response::new(200)
                .body("text/plain; version=0.0.4; charset=utf-8", text.as_bytes())
                .write(out, exchange);
            Ok(200)
        }
        Route::Index => {
            Response::new(200)
                .header("Content-Security-Policy", PAGE_POLICY)
                .header("Referrer-Policy", "no-referrer")
                .body("text/html; charset=utf-8", PAGE.as_bytes())
                .write(out, exchange);
            Ok(200)
        }
        Route::WebSocket | Route::Unknown => {
            Err(Refusal::new(Code::NotFound, "there is nothing under this path").into())
        }
    }
}

const PAGE: &str = include_str!("../web/index.html");
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; \
                           base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn publish(
    line: &mut Line,
    head: &Head,
    topic: &str,
    body: &[u8],
) -> Result<(u16, Vec<u8>), HttpError> {
    let name = parse_topic(topic)?;
    check_writable(&name)?;
    let data = payload(body)?;
    let event_name = head.event_name()?.map(|name| {
        let mut text = Vec::new();
        json::push_string(&mut text, name);
        text
    });
    let key = head.idempotency_key()?;
    let draft = Draft { user: None, name: event_name.as_deref(), data, key };
    let shared = Arc::clone(&line.shared);
    let mut topic = shared.open_topic(&name)?;
    let receipt = shared.publish(&mut topic, &draft, line.now_ms())?.receipt;
    if !receipt.duplicate {
        line.has_news(&topic, Transport::Http, data.len());
    }
    let body = serde_json::to_vec(&ReceiptBody::from(receipt)).map_err(internal)?;
    Ok((if receipt.duplicate { 200 } else { 201 }, body))
}

/// The event's data: the body, which must be JSON.
fn payload(body: &[u8]) -> Result<&str, Refusal> {
    let wrong = |why: &dyn std::fmt::Display| {
        Refusal::field("body", format!("the body is not JSON: {why}"))
    };
    let text = std::str::from_utf8(body).map_err(|error| wrong(&error))?;
    if !json::is_shallow(text) {
        return Err(Refusal::field("body", "the body nests deeper than 32 levels"));
    }
    let text = text.trim_ascii();
    let parsed: Result<&serde_json::value::RawValue, _> = serde_json::from_str(text);
    parsed.map(serde_json::value::RawValue::get).map_err(|error| wrong(&error))
}

#[derive(Serialize)]
struct TopicBody<'a> {
    topic: &'a str,
    epoch: String,
    first: u64,
    tail: u64,
    events: u64,
    bytes: u64,
    subscribers: u64,
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

fn topics(shared: &Shared, head: &Head) -> Result<Vec<u8>, HttpError> {
    let query = Query::parse(head.query())?;
    let after = query.value("after")?;
    let mut found = shared.registry.list(after, TOPICS_PER_PAGE + 1);
    let more = TOPICS_PER_PAGE < found.len();
    found.truncate(TOPICS_PER_PAGE);
    let now_ms = shared.clock.unix_ms();
    let body = |topic: &'_ Arc<Topic>| {
        let (epoch, first, tail, events, bytes, rate) = topic.look(|log| {
            (log.epoch(), log.first(), log.tail(), log.len(), log.bytes(), log.rate(now_ms))
        });
        (epoch.to_string(), first, tail, events, bytes, (rate * 10.0).round() / 10.0)
    };
    let topics = found.iter().map(|topic| {
        let (epoch, first, tail, events, bytes, rate) = body(topic);
        let (topic, subscribers) = (topic.name().as_str(), topic.followers());
        TopicBody { topic, epoch, first, tail, events, bytes, subscribers, rate }
    });
    let topics = topics.collect();
    let next = found.last().filter(|_| more).map(|topic| topic.name().as_str());
    serde_json::to_vec(&TopicsBody { topics, next }).map_err(internal)
}

fn internal(error: serde_json::Error) -> HttpError {
    log::error!("cannot write an answer error=\"{error}\"");
    Refusal::new(Code::Internal, "the answer could not be written").into()
}
