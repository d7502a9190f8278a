//! What HTTP requests are answered.
//!
//! # Threads
//!
//! The connection's reader.

mod connections;
mod pages;
mod state;

use std::{sync::Arc, time::Duration};

use crate::{
    base::{
        lane::{self, Inlet, Receiver},
        lock,
    },
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
    server::{connection::Phase, line::Line, lists, relay::Shared, requests::check_writable},
    topic::{Confirm, Draft, Unstored},
    wire::{
        codes::Code,
        json,
        reply::{self, Receipt, ReceiptBody},
        request::{Refusal, parse_topic},
    },
};

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
        Route::Values => state::list(&line.shared, head, exchange, out),
        Route::Value { key } => state::one(line, head, exchange, (&key, body), out),
        Route::Topics => json(out, 200, &lists::topics(&line.shared, head)?),
        Route::Consumers => json(out, 200, &lists::consumers(&line.shared, head)?),
        Route::Connections => json(out, 200, &connections::list(line, head)?),
        Route::Connection { name } => connections::end(line, head, exchange, &name, out),
        Route::Healthz => json(out, 200, b"{\"status\":\"ok\"}"),
        Route::Readyz => match line.shared.readiness().and_then(|()| line.shared.store_health()) {
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
        Route::Index => Ok(pages::index(exchange, out)),
        Route::Style => Ok(pages::style(exchange, out)),
        Route::Script => Ok(pages::script(exchange, out)),
        Route::Module => Ok(pages::module(exchange, out)),
        Route::WebSocket | Route::Unknown => {
            Err(Refusal::new(Code::NotFound, "there is nothing under this path").into())
        }
    }
}

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
    let (waiter, outcome) = Waiter::open();
    let asked = topic.id().map(|_| (&waiter, None));
    let done = shared.publish(&mut topic, &draft, line.now_ms(), asked)?;
    let mut receipt = done.receipt;
    if !receipt.duplicate {
        line.has_news(&topic, Transport::Http, data.len());
    }
    if done.is_pending {
        // A disk may take longer than a client may for its request.
        line.enter(Phase::Http, DISK_PATIENCE);
        line.tell();
        lock::assert_none_held();
        receipt = outcome.recv().unwrap_or(Err(Unstored)).map_err(|_| shared.vault.unstored())?;
    }
    let body = serde_json::to_vec(&ReceiptBody::from(receipt)).map_err(internal)?;
    Ok((if receipt.duplicate { 200 } else { 201 }, body))
}

/// How long the answer to a request that must be stored may take.
const DISK_PATIENCE: Duration = Duration::from_secs(600);

/// Who waits for one event to be stored.
struct Waiter {
    reply: Inlet<Result<Receipt, Unstored>>,
}

impl Waiter {
    fn open() -> (Arc<dyn Confirm>, Receiver<Result<Receipt, Unstored>>) {
        let (reply, outcome) = lane::open(lane::REPLIES);
        (Arc::new(Waiter { reply }), outcome)
    }
}

impl Confirm for Waiter {
    fn confirm(&self, _request: Option<u64>, outcome: &Result<Receipt, Unstored>) {
        // The reader waits until it hears this.
        drop(self.reply.offer(*outcome));
    }

    fn confirmed(&self) {}
}

/// An event's data, or a value: the body, which must be JSON.
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

pub(crate) fn internal(error: serde_json::Error) -> HttpError {
    log::error!("cannot write an answer error=\"{error}\"");
    Refusal::new(Code::Internal, "the answer could not be written").into()
}
