//! What HTTP requests about the shared state are answered.
//!
//! # Threads
//!
//! The connection's reader.

use std::sync::Arc;

use super::{DISK_PATIENCE, internal, payload};
use crate::{
    base::{
        lane::{self, Inlet, Receiver},
        lock,
    },
    http::{
        condition::{Condition, etag, http_date, is_known},
        error::HttpError,
        field::Field,
        head::{Head, Method},
        response::{Exchange, Response, json},
        target::Query,
    },
    name::{Filter, Name},
    server::{connection::Phase, line::Line, relay::Shared, state::Which, sys},
    state::{ANY_VERSION, Applied, Change, Settle, Unsaved},
    wire::{
        codes::Code,
        request::{Refusal, check_ttl, parse_key},
        state::{StatePosition, Stored, StoredBody, values_body},
    },
};

/// Answers `/v1/state`: the values whose keys match.
pub(super) fn list(
    shared: &Shared,
    head: &Head,
    exchange: &Exchange<'_>,
    out: &mut Vec<u8>,
) -> Result<u16, HttpError> {
    let query = Query::parse(head.query())?;
    let pattern = query.value("match")?.unwrap_or("#");
    let filter = Filter::parse(pattern)
        .map_err(|error| Refusal::field("match", format!("match {error}")))?;
    let (at, values, next) = shared.values(&filter, query.value("after")?, query.limit()?);
    json(out, exchange, 200, &values_body("{", &at, &values, next.as_deref()));
    Ok(200)
}

/// Answers `/v1/state/{key}`.
pub(super) fn one(
    line: &mut Line,
    head: &Head,
    exchange: &Exchange<'_>,
    (key, body): (&str, &[u8]),
    out: &mut Vec<u8>,
) -> Result<u16, HttpError> {
    let key = parse_key(key)?;
    match head.method {
        Method::Put => {
            let query = Query::parse(head.query())?;
            let ttl_ms = query.number("ttl_ms")?;
            ttl_ms.map_or(Ok(()), |ttl_ms| check_ttl("ttl_ms", ttl_ms))?;
            let value = Some(payload(body)?);
            let change = Change { key: &key, value, if_version: None, ttl_ms, user: None };
            let (stored, is_new) = change_if(line, change, Condition::of(head)?)?;
            confirm(out, exchange, if is_new { 201 } else { 200 }, stored)
        }
        Method::Delete => {
            let change =
                Change { key: &key, value: None, if_version: None, ttl_ms: None, user: None };
            let (stored, _) = change_if(line, change, Condition::of(head)?)?;
            confirm(out, exchange, 200, stored)
        }
        Method::Get | Method::Head | Method::Post | Method::Options | Method::Other => {
            read(&line.shared, head, exchange, &key, out)
        }
    }
}

fn read(
    shared: &Shared,
    head: &Head,
    exchange: &Exchange<'_>,
    key: &Name,
    out: &mut Vec<u8>,
) -> Result<u16, HttpError> {
    if sys::is_about(key.as_str()) {
        shared.refresh_sys();
    }
    let space = shared.state.space(Which::of(key.as_str()));
    let entry = space.look(|map| map.get(key.as_str()).cloned());
    let Some((entry, value)) = entry.as_ref().and_then(|entry| Some((entry, entry.value()?)))
    else {
        let message = format!("{key} has no value");
        let refusal = Refusal { field: Some("key"), ..Refusal::new(Code::NotFound, message) };
        return Err(refusal.into());
    };
    let at = StatePosition { epoch: space.epoch(), version: entry.version };
    let status = if is_known(head, &at) { 304 } else { 200 };
    let mut response = Response::new(status)
        .header("ETag", &etag(&at))
        .header("Last-Modified", &http_date(entry.time_ms));
    if status == 200 {
        response = response.body("application/json", value.as_bytes());
    }
    response.write(out, exchange);
    Ok(status)
}

fn confirm(
    out: &mut Vec<u8>,
    exchange: &Exchange<'_>,
    status: u16,
    stored: Stored,
) -> Result<u16, HttpError> {
    let at = StatePosition { epoch: stored.epoch, version: stored.version };
    let body = serde_json::to_vec(&StoredBody::from(stored)).map_err(internal)?;
    let mut response = Response::new(status);
    if !stored.is_deletion {
        // What was deleted has no tag that a later request could name.
        response = response.header("ETag", &etag(&at));
    }
    response.body("application/json", &body).write(out, exchange);
    Ok(status)
}

/// Applies `change` if `condition` holds. Returns whether the key is new.
fn change_if(
    line: &mut Line,
    change: Change<'_>,
    condition: Condition,
) -> Result<(Stored, bool), HttpError> {
    let (if_version, field) = match condition {
        Condition::None => (None, Field::IfMatch),
        Condition::Absent => (Some(0), Field::IfNoneMatch),
        Condition::Version { epoch, version } => {
            check_epoch(&line.shared, change.key, epoch)?;
            (Some(version), Field::IfMatch)
        }
        Condition::Present => return change_present(line, change),
    };
    let done = apply(line, &Change { if_version, ..change });
    // The condition came in a header field.
    done.map_err(|refusal| {
        let is_conflict = refusal.code == Code::Conflict;
        let field = if is_conflict { Some(field.name()) } else { refusal.field };
        Refusal { field, ..refusal }.into()
    })
}

/// Applies `change` to whichever version the key has, if it has one.
fn change_present(line: &mut Line, change: Change<'_>) -> Result<(Stored, bool), HttpError> {
    apply(line, &Change { if_version: Some(ANY_VERSION), ..change }).map_err(|refusal| {
        if refusal.code == Code::Conflict {
            conflict(0, format!("{} has no value", change.key)).into()
        } else {
            refusal.into()
        }
    })
}

fn check_epoch(shared: &Shared, key: &Name, epoch: Option<u64>) -> Result<(), Refusal> {
    let here = shared.state.shared.epoch();
    match epoch {
        Some(epoch) if epoch != here.number() && !key.is_reserved() => {
            let message = format!("{key} has another epoch, {here}: the state began anew");
            Err(conflict(found(shared, key), message))
        }
        _ => Ok(()),
    }
}

/// The version of `key` that is seen; 0 if it has no value.
fn found(shared: &Shared, key: &Name) -> u64 {
    shared.state.shared.look(|map| map.get(key.as_str()).map_or(0, |entry| entry.version))
}

fn conflict(version: u64, message: String) -> Refusal {
    let field = Some(Field::IfMatch.name());
    Refusal { field, version: Some(version), ..Refusal::new(Code::Conflict, message) }
}

/// Applies `change` and waits until it is stored.
fn apply(line: &mut Line, change: &Change<'_>) -> Result<(Stored, bool), Refusal> {
    let shared = Arc::clone(&line.shared);
    let (waiter, outcome) = Waiter::open();
    let (stored, Applied { is_pending, is_new, .. }) =
        shared.change_state(change, Some((&waiter, None)))?;
    if !is_pending {
        return Ok((stored, is_new));
    }
    // A disk may take longer than a client may for its request.
    line.enter(Phase::Http, DISK_PATIENCE);
    line.tell();
    lock::assert_none_held();
    let stored = outcome.recv().unwrap_or(Err(Unsaved)).map_err(|_| shared.vault.unstored())?;
    Ok((stored, is_new))
}

/// Who waits for one change to be stored.
struct Waiter {
    reply: Inlet<Result<Stored, Unsaved>>,
}

impl Waiter {
    fn open() -> (Arc<dyn Settle>, Receiver<Result<Stored, Unsaved>>) {
        let (reply, outcome) = lane::open(lane::REPLIES);
        (Arc::new(Waiter { reply }), outcome)
    }
}

impl Settle for Waiter {
    fn settle(&self, _request: Option<u64>, outcome: &Result<Stored, Unsaved>) {
        // The reader waits until it hears this.
        drop(self.reply.offer(*outcome));
    }

    fn settled(&self) {}
}
