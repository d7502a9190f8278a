//! What happens in a relay, for the program that it lives in.
//!
//! Published on an event bus without waiting: a handler that is slow costs the relay nothing but
//! events, which are counted.
//!
//! # Threads
//!
//! Readers, the keeper and the committer publish; handlers run on `bus-N`.

use std::{net::SocketAddr, time::Duration};

use crate::{
    bus::Event,
    metrics::labels::Closed,
    name::{Name, UserName},
    server::relay::Shared,
};

/// Something that happened in a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RelayEvent {
    /// A client has become a WebSocket connection.
    ConnectionOpened { connection: String, peer: SocketAddr },
    /// It has ended, for `reason` as in `landline_server_disconnects_total`.
    ConnectionClosed { connection: String, user: Option<UserName>, reason: &'static str },
    /// A user is present in a topic, having been in it with no connection before.
    UserOnline { topic: Name, user: UserName },
    /// A user is not present any more: its last connection has been gone for long enough.
    UserOffline { topic: Name, user: UserName },
    /// A topic was made.
    TopicCreated { topic: Name },
    /// Durable topics and state cannot be written.
    StoreFailed { why: String },
    /// They can be written again.
    StoreRecovered,
}

impl Event for RelayEvent {
    /// What the event is about: a connection's name such as `c17`, a topic, or `$store`. Events of
    /// one connection come in order, and so do those of one topic.
    fn key(&self) -> &str {
        match self {
            RelayEvent::ConnectionOpened { connection, .. }
            | RelayEvent::ConnectionClosed { connection, .. } => connection,
            RelayEvent::UserOnline { topic, .. }
            | RelayEvent::UserOffline { topic, .. }
            | RelayEvent::TopicCreated { topic } => topic.as_str(),
            RelayEvent::StoreFailed { .. } | RelayEvent::StoreRecovered => "$store",
        }
    }
}

impl Shared {
    /// Publishes what `event` makes, if anybody wants to know.
    pub(crate) fn happened(&self, event: impl FnOnce() -> RelayEvent) {
        if self.events.subscriptions() == 0 {
            return;
        }
        // Refused where the workers are behind, which the pool counts.
        if let Err(error) = self.events.publish(event(), Duration::ZERO) {
            log::debug!("an event is not handed out error=\"{error}\"");
        }
    }

    /// As [`Shared::happened`], for the end of a connection.
    pub(crate) fn connection_ended(
        &self,
        connection: String,
        user: Option<&UserName>,
        reason: Closed,
    ) {
        self.happened(|| RelayEvent::ConnectionClosed {
            connection,
            user: user.cloned(),
            reason: reason.as_str(),
        });
    }
}
