//! A request that is answered with a stream: events or values as they come, for clients that only
//! listen.
//!
//! It is a session with one subscription or one watch that never says anything: its cursors, its
//! outbox and its writer are those of any other.
//!
//! # Threads
//!
//! `conn-<id>`, its connection's reader, which reads only to hear of the end.

use std::{io::Read, sync::Arc};

use rustix::net::sockopt::set_tcp_user_timeout;

use crate::{
    base::random,
    http::{
        response::{Exchange, Response},
        stream::{StreamOf, StreamRequest},
    },
    metrics::labels::{Closed, Recovered},
    name::{Filter, Pattern},
    server::{
        connection::{Bye, Phase},
        line::{Line, finally},
        relay::{Shared, last_resort_ms},
        websocket::{Session, Terms},
        writer::Command,
    },
    wire::{
        codes::CloseCode,
        marks::Marks,
        position::From,
        reply,
        request::Refusal,
        stream::{self, Dialect},
    },
};

/// How long a browser waits before it comes back, with as much again at random: a relay that was
/// gone is not to see all of them at once.
const RETRY_MS: u64 = 1_500;

/// Appends the head of the answer, and what comes before everything else.
pub(crate) fn begin(out: &mut Vec<u8>, exchange: &Exchange<'_>, dialect: Dialect) {
    Response::new(200).stream(dialect.media_type()).write(out, exchange);
    if dialect == Dialect::Sse {
        stream::retry(out, RETRY_MS + random::below(RETRY_MS));
    }
}

/// Serves a stream until it ends.
#[inline(never)]
pub(crate) fn serve(line: Line, request: StreamRequest) {
    let patience = line.config().connections.heartbeat_timeout;
    // The client never says anything: that it is gone shows by what it does not confirm. Where the
    // option is not to be had, it takes longer.
    let millis = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
    _ = set_tcp_user_timeout(&line.connection.socket, millis);
    let mut session = Session::begin(line, Phase::Stream);
    finally(
        &mut *session,
        |session| {
            session.follow(request);
            session.listen();
        },
        Session::leave,
    );
}

impl Session {
    fn follow(&mut self, request: StreamRequest) {
        let connection = Arc::clone(&self.line.connection);
        let id = connection.id;
        // What was said so far goes out before all that the writer has to say.
        self.line.tell();
        self.line.command(Command::Speak(connection));
        let outcome = match request.of {
            StreamOf::Values { filter, from } => self.watch(None, filter, from),
            StreamOf::Events { filter, from } => {
                self.subscribe(None, filter, &from, Terms::default())
            }
            StreamOf::Rest { pattern, marks } => self.resume(pattern, &marks),
        };
        match outcome {
            Ok(()) => self.line.command(Command::Ready { connection: id }),
            Err(refusal) => self.refuse(&refusal),
        }
    }

    /// Goes on in each topic where its client has come to.
    fn resume(&mut self, pattern: Pattern, marks: &Marks) -> Result<(), Refusal> {
        let (from, lost) = self.line.shared.find_marks(&pattern, marks);
        if 0 < lost {
            self.line.shared.metrics.recoveries.add(Recovered::Reset, lost as u64);
            let connection = Arc::clone(&self.line.connection);
            self.line.reply(|out| {
                connection.say(out, |out| reply::gap_of_topics(out, pattern.as_str(), lost));
            });
            self.line.tell();
        }
        self.subscribe(None, Filter::Pattern(pattern), &from, Terms::default())
    }

    /// Ends a stream that cannot begin now. A client that comes back by itself may find it can.
    fn refuse(&mut self, refusal: &Refusal) {
        let (shared, connection) = (&self.line.shared, &self.line.connection);
        shared.metrics.requests_refused.add(refusal.code, 1);
        let now_ms = shared.clock.uptime_ms();
        let deadline_ms = last_resort_ms(now_ms, &self.line.config().connections);
        let connection = Arc::clone(connection);
        self.line.reply(|out| {
            connection.say(out, |out| reply::error(out, None, None, refusal));
        });
        let bye = Bye {
            reason: refusal.code.as_str(),
            text: &refusal.message,
            code: CloseCode::Internal,
            reconnect_after_ms: Some(refusal.retry_after_ms.unwrap_or(COME_BACK_MS)),
        };
        connection.say_bye(Closed::Refused, deadline_ms, &bye);
        connection.flush();
        self.line.shared.watch(&connection, now_ms);
    }

    /// Reads, and drops what it reads, until the client has gone.
    fn listen(&mut self) {
        let mut nowhere = [0; 256];
        let reason = loop {
            match self.line.read(&mut nowhere) {
                Ok(0) => break Closed::Client,
                Ok(_) => {}
                Err(_) => break Closed::Lost,
            }
        };
        self.line.connection.note_reason(reason);
    }
}

/// When whoever was refused may find that there is room.
const COME_BACK_MS: u64 = 10_000;

impl Shared {
    /// Where a pattern's stream has come to in the topics that there are, and in how many it was
    /// that are not there any more.
    fn find_marks(&self, pattern: &Pattern, marks: &Marks) -> (From, usize) {
        let topics = self.registry.list(None, usize::MAX);
        let matching = topics.iter().filter(|topic| pattern.matches(topic.name()));
        let positions: Vec<_> = matching
            .filter_map(|topic| {
                let epoch = topic.look(|log| log.epoch());
                let position = marks.find(topic.name().as_str(), epoch)?;
                Some((topic.name().clone(), position))
            })
            .collect();
        let lost = marks.len().saturating_sub(positions.len());
        (From::Positions(positions), lost)
    }
}
