//! Who is connected, as a list for people and programs, and how one of them is ended.
//!
//! # Threads
//!
//! The connection's reader. It waits for the writers of those that it lists, which wait for nobody.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::internal;
use crate::{
    base::{clock::Clock, lane, lock},
    http::{
        error::HttpError,
        field::Field,
        head::Head,
        response::{Exchange, Response},
        shown,
        target::Query,
    },
    metrics::labels::Closed,
    server::{
        connection::{Bye, Phase, connection_name},
        line::Line,
        relay::grace_deadline_ms,
        roster::Entry,
        writer::{Command, Findings, Survey, WriterHandle},
    },
    wire::{
        codes::{CloseCode, Code},
        request::Refusal,
    },
};

/// Connections in one answer.
const ENTRIES_PER_PAGE: usize = 1_000;
/// Connections that a writer is asked about at once.
const CONNECTIONS_PER_SURVEY: usize = 100;
/// How long all writers together may take to say what they know.
const SURVEY_LIMIT: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct ConnectionBody {
    connection: String,
    transport: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    address: String,
    age_ms: u64,
    /// Time since anything came from it.
    heard_ms: u64,
    /// Time since its last pong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pong_ms: Option<u64>,
    /// Time from a ping to its pong.
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt_ms: Option<u64>,
    subscriptions: usize,
    watches: usize,
    /// Events after its cursors.
    lag: u64,
    /// Bytes that wait for its socket.
    pending_bytes: usize,
    received_bytes: u64,
    sent_bytes: u64,
}

#[derive(Serialize)]
struct ConnectionsBody {
    connections: Vec<ConnectionBody>,
    /// The `after` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// The answer of `/v1/connections`: by number. Who comes or goes meanwhile may be left out.
///
/// # Errors
///
/// The caller is not on this machine, the query breaks a rule, or a writer does not answer in time.
///
/// # Blocking
///
/// Until the writers have said what they know, and while a writer's lane is full.
pub(super) fn list(line: &mut Line, head: &Head) -> Result<Vec<u8>, HttpError> {
    check_local(line, head)?;
    let query = Query::parse(head.query())?;
    let after = query.value("after")?.map(|name| number_of(name).ok_or_else(not_a_place));
    let after = after.transpose()?.unwrap_or(0);
    let limit = query.limit_or(ENTRIES_PER_PAGE as u64)?;
    let limit = usize::try_from(limit).unwrap_or(ENTRIES_PER_PAGE);
    let mut entries = line.shared.roster.page(after, limit + 1);
    let more = limit < entries.len();
    entries.truncate(limit);

    line.tell();
    // The request is here; what takes its time now is the answer.
    line.enter(Phase::Http, 2 * SURVEY_LIMIT);
    let shared = &line.shared;
    let deadline = shared.clock.now() + SURVEY_LIMIT;
    let known = ask_writers(&shared.writers, &entries, &shared.clock, deadline)?;
    let now_ms = shared.clock.uptime_ms();
    let body = |entry: &Entry| Some(describe(entry, *known.get(&entry.connection.id)?, now_ms));
    let next = entries.last().filter(|_| more).map(|last| connection_name(last.connection.id));
    let connections = entries.iter().filter_map(body).collect();
    serde_json::to_vec(&ConnectionsBody { connections, next }).map_err(internal)
}

fn describe(entry: &Entry, findings: Findings, now_ms: u64) -> ConnectionBody {
    let Entry { connection, about } = entry;
    let about = about.as_deref();
    let user = about.and_then(|about| about.user.as_ref());
    let client = about.and_then(|about| about.client.as_deref());
    let Findings { subscriptions, watches, lag } = findings;
    // Another thread may have noted a time after `now_ms` was taken.
    let since = |at_ms: u64| now_ms.saturating_sub(at_ms);
    let (address, port) = (connection.peer.ip().to_canonical(), connection.peer.port());
    ConnectionBody {
        connection: connection_name(connection.id),
        transport: connection.transport(),
        user: user.map(|user| user.as_str().to_owned()),
        client: client.map(ToString::to_string),
        address: std::net::SocketAddr::new(address, port).to_string(),
        age_ms: since(connection.opened_ms),
        heard_ms: since(connection.heard_ms()),
        pong_ms: connection.pulse.ponged_ms().map(since),
        rtt_ms: connection.pulse.rtt_ms(),
        subscriptions,
        watches,
        lag,
        pending_bytes: connection.outbox.waiting(),
        received_bytes: connection.received_bytes_now(),
        sent_bytes: connection.sent_bytes_now(),
    }
}

/// What writers know of `entries`, by the number of the connection. Who has no writer yet, or none
/// any more, is not there.
fn ask_writers(
    writers: &[WriterHandle],
    entries: &[Entry],
    clock: &Clock,
    deadline: Instant,
) -> Result<HashMap<u64, Findings>, Refusal> {
    lock::assert_none_held();
    let mut open = vec![Vec::new(); writers.len()];
    for Entry { connection, .. } in entries {
        open[connection.writer].push(connection.id);
    }
    let mut known = HashMap::with_capacity(entries.len());
    while open.iter().any(|ids| !ids.is_empty()) {
        let asked = open.iter().zip(writers).map(|(ids, writer)| {
            let first = &ids[..ids.len().min(CONNECTIONS_PER_SURVEY)];
            (!first.is_empty()).then(|| ask(writer, first))
        });
        // All are asked before the first answer is awaited.
        let answers: Vec<_> = asked.collect();
        for (ids, answer) in open.iter_mut().zip(answers) {
            let Some(answer) = answer else { continue };
            let left = deadline.saturating_duration_since(clock.now());
            let findings = answer.recv_timeout(left).map_err(|_| too_busy())?;
            let answered = ids.drain(..findings.len()).zip(findings);
            known.extend(answered.filter_map(|(id, findings)| Some((id, findings?))));
        }
    }
    Ok(known)
}

fn ask(writer: &WriterHandle, ids: &[u64]) -> lane::Receiver<Vec<Option<Findings>>> {
    let (reply, answer) = lane::open(lane::REPLIES);
    writer.send(Command::Survey(Box::new(Survey { connections: ids.into(), reply })));
    answer
}

/// Answers `DELETE /v1/connections/{id}`.
///
/// # Errors
///
/// The caller is not on this machine, or there is no such connection.
///
/// # Blocking
///
/// While a writer's or the keeper's lane is full.
pub(super) fn end(
    line: &Line,
    head: &Head,
    exchange: &Exchange<'_>,
    name: &str,
    out: &mut Vec<u8>,
) -> Result<u16, HttpError> {
    check_local(line, head)?;
    let shared = &line.shared;
    let connection = number_of(name).and_then(|id| shared.roster.find(id)).ok_or_else(|| {
        let message = format!("there is no connection {}", shown(name));
        Refusal { field: Some("connection"), ..Refusal::new(Code::NotFound, message) }
    })?;
    log::info!("disconnecting connection={name} by={}", line.connection.peer);
    let mut exchange = *exchange;
    let deadline_ms = grace_deadline_ms(shared.clock.uptime_ms());
    match connection.phase() {
        Phase::WebSocket | Phase::Stream => {
            let text = "the operator of the relay has ended this connection";
            let code = CloseCode::Disconnected;
            let bye = Bye { reason: "disconnected", text, code, reconnect_after_ms: None };
            connection.say_bye(Closed::Disconnected, deadline_ms, &bye);
            connection.flush();
        }
        Phase::Http | Phase::Idle if connection.id == line.connection.id => {
            // The answer is its last word; its reader sees that there is a reason to end.
            connection.note_reason(Closed::Disconnected);
            exchange.keep_alive = false;
        }
        Phase::Http | Phase::Idle => connection.retire(Closed::Disconnected, deadline_ms),
        Phase::Closing => {}
    }
    shared.watch(&connection, deadline_ms);
    Response::new(204).write(out, &exchange);
    Ok(204)
}

/// The number in a connection's name.
fn number_of(name: &str) -> Option<u64> {
    let id = name.strip_prefix('c')?.parse().ok()?;
    (connection_name(id) == name).then_some(id)
}

fn check_local(line: &Line, head: &Head) -> Result<(), Refusal> {
    let forwarded = [Field::Forwarded, Field::ForwardedFor];
    let forwarded = forwarded.into_iter().find(|field| head.field(*field).is_some());
    check_caller(line.connection.peer.ip(), forwarded)
}

/// Without authentication, only whoever is on this machine may see and end connections: a request
/// from a loopback address that no proxy has forwarded.
fn check_caller(peer: IpAddr, forwarded: Option<Field>) -> Result<(), Refusal> {
    const RULE: &str = "as long as there is no authentication, connections are shown to and ended \
                        by requests from a loopback address only, and not through a proxy";
    let why = match forwarded {
        Some(field) => format!("this one has {}", field.name()),
        None if peer.to_canonical().is_loopback() => return Ok(()),
        None => format!("this one comes from {}", peer.to_canonical()),
    };
    Err(Refusal::new(Code::Forbidden, format!("{RULE}; {why}")))
}

fn not_a_place() -> Refusal {
    Refusal::field("after", "after is the `next` of the page before: a c and a number")
}

fn too_busy() -> Refusal {
    let message = "the relay is too busy to say who is connected, or stops";
    Refusal { retry_after_ms: Some(1_000), ..Refusal::new(Code::Unavailable, message) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{config::Config, server::Server};

    #[test]
    fn only_this_machine_may_ask_and_not_through_a_proxy() {
        let check = |peer: &str, forwarded| check_caller(peer.parse().unwrap(), forwarded);
        for peer in ["127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(check(peer, None), Ok(()), "{peer}");
            for field in [Field::Forwarded, Field::ForwardedFor] {
                let refusal = check(peer, Some(field)).unwrap_err();
                assert_eq!(refusal.code, Code::Forbidden);
                assert!(refusal.message.contains(field.name()), "{refusal:?}");
            }
        }
        for peer in ["192.168.1.7", "10.0.0.1", "::ffff:192.168.1.7", "fe80::1", "::", "0.0.0.0"] {
            let refusal = check(peer, None).unwrap_err();
            assert_eq!(refusal.code, Code::Forbidden, "{peer}");
            let shown = peer.trim_start_matches("::ffff:");
            assert!(refusal.message.contains(shown), "{refusal:?}");
        }
    }

    #[test]
    fn a_connections_name_is_a_c_and_a_number_and_nothing_else() {
        assert_eq!(number_of("c17"), Some(17));
        for name in ["", "c", "17", "c017", "c+1", "c-1", "C1", "c1 ", "c18446744073709551616"] {
            assert_eq!(number_of(name), None, "{name}");
        }
    }

    #[test]
    fn a_writer_that_does_not_answer_in_time_makes_the_list_unavailable() {
        let config = Config { listen: vec!["127.0.0.1:0".into()], ..Config::default() };
        let server = Server::start(config).unwrap();
        let shared = server.shared();
        let line = Line::of_test(shared, server.addresses()[0]);
        shared.roster.insert(&line.connection);
        let entries = shared.roster.page(u64::MAX - 1, 1);
        assert_eq!(entries.len(), 1);
        let ask = |writers: &[WriterHandle], limit| {
            let deadline = shared.clock.now() + limit;
            ask_writers(writers, &entries, &shared.clock, deadline)
        };
        // The writer is there, and does not know this connection.
        assert!(ask(&shared.writers, Duration::from_secs(60)).unwrap().is_empty());

        let (inlet, outlet) = lane::open(lane::COMMANDS);
        let silent = [WriterHandle { inlet, waker: Arc::clone(&shared.writers[0].waker) }];
        let refusal = ask(&silent, Duration::from_millis(20)).unwrap_err();
        assert_eq!((refusal.code, refusal.retry_after_ms), (Code::Unavailable, Some(1_000)));
        drop(outlet);
        assert!(ask(&silent, Duration::from_secs(60)).is_err(), "it has ended");
        shared.roster.remove(line.connection.id);
    }
}
