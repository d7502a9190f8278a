//! One connection's reader: HTTP requests, one after the other, until one becomes a WebSocket or
//! is answered with a stream.
//!
//! # Threads
//!
//! `conn-<id>`. It owns the reading half of the socket and waits in `read`; whoever ends the
//! connection shuts the socket down and thereby ends the wait.
//!
//! # Not here
//!
//! What requests do (`routes`, `websocket`, `stream`); how they are parsed (`http`).

use std::{
    io::Read,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use crate::{
    base::pause,
    http::{
        body::BodyReader,
        error::HttpError,
        head::{Head, Method, Parsed, Scanner},
        response::{CONTINUE, Exchange, refuse},
        stream::{StreamRequest, asked},
        upgrade::Upgrade,
    },
    metrics::labels::Closed,
    name::UserName,
    server::{
        connection::{Connection, Phase, connection_name},
        happening::RelayEvent,
        line::{Line, finally},
        relay::Shared,
        routes::{self, Answer},
        stream, websocket,
        writer::Command,
    },
    wire::stream::Dialect,
};

/// Bytes that one read takes of a head or body.
const CHUNK_BYTES: usize = 2 * 1024;

/// Serves a connection from its first byte to its end. A panic in here ends this connection only.
pub(crate) fn run(shared: &Arc<Shared>, connection: &Arc<Connection>) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let line = Line::new(Arc::clone(shared), Arc::clone(connection));
        serve(line)
    }));
    let reason = match &outcome {
        Ok(_) => connection.reason().unwrap_or(Closed::Client),
        Err(_) => {
            connection.cut(Closed::Panic);
            Closed::Panic
        }
    };
    pause::point();
    connection.command(Command::Detach { connection: connection.id });
    match outcome {
        Ok(Ended::Session(user)) => farewell(shared, connection, user.as_ref(), reason),
        Ok(Ended::Http) => {}
        Err(panic) => {
            farewell(shared, connection, None, reason);
            resume_unwind(panic);
        }
    }
}

enum Ended {
    Http,
    Session(Option<UserName>),
}

/// What a connection becomes after its requests.
enum Next {
    /// With what was received behind the request.
    WebSocket(Vec<u8>),
    Stream(StreamRequest),
}

fn serve(mut line: Line) -> Ended {
    match finally(&mut line, serve_http, Line::tell) {
        // The stack that the requests needed is free again before the long life begins.
        Some(Next::WebSocket(received)) => Ended::Session(websocket::serve(line, received)),
        Some(Next::Stream(request)) => {
            stream::serve(line, request);
            Ended::Session(None)
        }
        None => Ended::Http,
    }
}

/// Serves requests until the connection ends or becomes something else.
#[inline(never)]
fn serve_http(line: &mut Line) -> Option<Next> {
    let mut input = Vec::new();
    let mut scanner = Scanner::default();
    loop {
        let head = match read_head(line, &mut scanner, &mut input) {
            Ok(Some(head)) => head,
            Ok(None) => return None,
            Err(error) => return refuse_and_end(line, &Exchange::LAST, &error),
        };
        let config = line.config();
        let caller = match routes::admit(&head, &config.origins) {
            Ok(caller) => caller,
            Err(error) => return refuse_and_end(line, &Exchange::LAST, &error),
        };
        let exchange = Exchange::of(&head, caller);
        match routes::upgrade(&line.shared, &head) {
            Ok(None) => {}
            Ok(Some(upgrade)) => {
                become_websocket(line, &upgrade);
                return Some(Next::WebSocket(input));
            }
            Err(error) => return refuse_and_end(line, &exchange, &error),
        }
        let body = match read_body(line, &head, &mut input) {
            Ok(Some(body)) => body,
            Ok(None) => return None,
            Err(error) => return refuse_and_end(line, &exchange, &error),
        };
        match asked(&head) {
            Ok(Some(request)) if head.method == Method::Get => {
                return begin_stream(line, &exchange, request);
            }
            Ok(_) => {}
            Err(error) => return refuse_and_end(line, &exchange, &error),
        }
        let Answer { bytes, status } = routes::answer(line, &head, &exchange, &body);
        routes::count(&line.shared.metrics, status);
        line.reply(|out| out.extend_from_slice(&bytes));
        let timeout = line.config().connections.idle_timeout;
        line.enter(Phase::Idle, timeout);
        // After entering the phase: a stop that begins now finds it, or is found here.
        // Whoever has said the last word, or asked for it, has also said why.
        let over = line.connection.reason().is_some() || line.shared.readiness().is_err();
        if over || !exchange.keep_alive {
            end(line);
            return None;
        }
    }
}

/// Reads until a whole head is there. `None` if the client ended the connection before.
fn read_head(
    line: &mut Line,
    scanner: &mut Scanner,
    input: &mut Vec<u8>,
) -> Result<Option<Head>, HttpError> {
    let mut begun = false;
    loop {
        if !input.is_empty() {
            if !std::mem::replace(&mut begun, true) {
                line.enter(Phase::Http, line.config().connections.handshake_timeout);
            }
            if let Parsed::Done { head, used } = scanner.scan(input)? {
                input.drain(..used);
                return Ok(Some(head));
            }
        }
        if read_more(line, input) == 0 {
            return Ok(None);
        }
    }
}

/// Reads the request's body. `None` if the client ended the connection before its end.
fn read_body(
    line: &mut Line,
    head: &Head,
    input: &mut Vec<u8>,
) -> Result<Option<Vec<u8>>, HttpError> {
    let mut reader = BodyReader::new(head.body, line.config().connections.max_message)?;
    let mut body = Vec::new();
    if !reader.is_done() {
        line.enter(Phase::Http, line.config().connections.handshake_timeout);
    }
    if head.expects_continue && !reader.is_done() && input.is_empty() {
        line.reply(|out| out.extend_from_slice(CONTINUE));
    }
    while !reader.is_done() {
        if input.is_empty() && read_more(line, input) == 0 {
            return Ok(None);
        }
        let used = reader.feed(input, &mut body)?;
        input.drain(..used);
    }
    Ok(Some(body))
}

/// Reads some bytes behind `input`. 0 at the end of the stream, also by an error.
fn read_more(line: &mut Line, input: &mut Vec<u8>) -> usize {
    let len = input.len();
    input.resize(len + CHUNK_BYTES, 0);
    let got = match line.read(&mut input[len..]) {
        Ok(got) => got,
        Err(_) => {
            line.connection.note_reason(Closed::Lost);
            0
        }
    };
    input.truncate(len + got);
    got
}

fn become_websocket(line: &mut Line, upgrade: &Upgrade) {
    line.shared.metrics.upgraded.add(1);
    line.connection.speak(Dialect::WebSocket);
    announce(line);
    line.reply(|out| {
        crate::http::response::switching_protocols(out, &upgrade.accept_key, upgrade.protocol);
    });
}

/// Answers with a stream that goes on, or with one that ends at once because the relay stops.
fn begin_stream(line: &mut Line, exchange: &Exchange<'_>, request: StreamRequest) -> Option<Next> {
    if let Err(refusal) = line.shared.admit()
        && request.dialect != Dialect::Sse
    {
        return refuse_and_end(line, exchange, &refusal.into());
    }
    routes::count(&line.shared.metrics, 200);
    line.shared.metrics.streams.add(request.dialect.into(), 1);
    line.connection.speak(request.dialect);
    announce(line);
    line.reply(|out| stream::begin(out, exchange, request.dialect));
    Some(Next::Stream(request))
}

fn announce(line: &Line) {
    let (connection, peer) = (line.connection.id, line.connection.peer);
    line.shared.happened(|| RelayEvent::ConnectionOpened {
        connection: connection_name(connection),
        peer,
    });
}

fn refuse_and_end<T>(line: &mut Line, exchange: &Exchange<'_>, error: &HttpError) -> Option<T> {
    routes::count(&line.shared.metrics, error.status());
    line.shared.metrics.requests_refused.add(error.code(), 1);
    let exchange = Exchange { keep_alive: false, ..*exchange };
    line.reply(|out| refuse(out, &exchange, error));
    end(line);
    None
}

/// Says that nothing more comes, and reads what the client still sends: closing at once would
/// reset the connection, and the answer might be lost with it. The keeper bounds how long.
fn end(line: &mut Line) {
    line.finish(Closed::Client);
    let mut nowhere = [0; CHUNK_BYTES];
    while let Ok(1..) = line.read(&mut nowhere) {}
}

/// Says how a WebSocket connection or a stream ended: what an operator must know at info, the rest
/// at debug.
fn farewell(shared: &Shared, connection: &Connection, user: Option<&UserName>, reason: Closed) {
    shared.metrics.disconnects.add(reason, 1);
    shared.connection_ended(connection_name(connection.id), user, reason);
    let now_ms = shared.clock.uptime_ms();
    let expected = matches!(reason, Closed::Client | Closed::Shutdown);
    let level = if expected { log::Level::Debug } else { log::Level::Info };
    let allowed = if expected { Some(0) } else { shared.disconnects.allow(now_ms) };
    let Some(suppressed) = allowed else { return };
    log::log!(
        level,
        "disconnected reason={} connection={} user={} peer={} age_s={} received_bytes={} \
         sent_bytes={} suppressed={suppressed}",
        reason.as_str(),
        connection_name(connection.id),
        user.map_or("-", UserName::as_str),
        connection.peer,
        (now_ms - connection.opened_ms) / 1_000,
        connection.received_bytes_now(),
        connection.sent_bytes_now(),
    );
}
