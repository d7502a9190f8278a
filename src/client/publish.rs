//! Events on their way to the relay, and the confirmation of each.

use std::{fmt, sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    base::lane::{RecvTimeoutError, TryRecvError},
    client::{
        Client,
        delivery::Receipt,
        error::ClientError,
        session::{Answer, Awaited},
    },
};

/// An event to be published: a topic, a payload, and what else is known about it.
///
/// ```
/// use landline::client::Message;
///
/// let message = Message::new("home/hall/lamp", &serde_json::json!({"on": true}))
///     .name("switched")
///     .key("hall-2026-01-02-0001");
/// ```
#[derive(Clone, Debug)]
pub struct Message {
    pub(super) topic: String,
    pub(super) data: Result<Box<RawValue>, ClientError>,
    pub(super) name: Option<String>,
    pub(super) key: Option<String>,
    pub(super) deadline: Option<Duration>,
}

impl Message {
    /// An event whose payload is `data` as JSON. That it cannot be written as JSON is reported
    /// when it is sent. A [`RawValue`] is taken as it is.
    #[must_use]
    pub fn new<T: Serialize + ?Sized>(topic: impl Into<String>, data: &T) -> Message {
        let data = serde_json::value::to_raw_value(data)
            .map_err(|error| ClientError::Encode { source: Arc::new(error) });
        Message { topic: topic.into(), data, name: None, key: None, deadline: None }
    }

    /// The event's name: 1 to 128 bytes.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The idempotency key, 1 to 128 bytes: within the relay's dedupe window a second event with
    /// the same key on the same topic is not stored. Without it the client makes one up, so that
    /// it can send an unconfirmed event again after a reconnect.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// How long this one may take, instead of the client's deadline.
    #[must_use]
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = Some(limit);
        self
    }
}

/// A publish that is under way. Dropping it does not stop it, but nobody learns its fate.
#[must_use = "without waiting nobody learns whether the event was stored"]
pub struct Pending {
    pub(super) client: Client,
    pub(super) awaited: Awaited<Receipt>,
}

impl Pending {
    /// Waits for the relay's confirmation.
    ///
    /// # Errors
    ///
    /// - [`ClientError::Refused`]: the relay will not have it, and says why. One that is too busy
    ///   for it is asked again when it said so, until the deadline.
    /// - [`ClientError::TooLarge`]: it is larger than the relay turned out to take.
    /// - [`ClientError::NotSent`]: the deadline passed while there was no connection.
    /// - [`ClientError::Unanswered`]: the deadline passed after it was sent. Whether it is stored
    ///   is unknown; sending it again with the same key is safe.
    /// - [`ClientError::Closed`], [`ClientError::Dismissed`]: the client has ended.
    ///
    /// # Blocking
    ///
    /// At most until the deadline, which began to run when the event was handed over.
    pub fn wait(self) -> Result<Receipt, ClientError> {
        self.client.wait(&self.awaited)
    }

    /// The confirmation if it is there, else this again.
    ///
    /// # Errors
    ///
    /// In the inner result, as [`Pending::wait`].
    pub fn try_wait(self) -> Result<Result<Receipt, ClientError>, Pending> {
        match self.awaited.answer.try_recv() {
            Ok(answer) => Ok(answer),
            Err(TryRecvError::Empty) => Err(self),
            Err(TryRecvError::Disconnected) => Ok(Err(ClientError::Closed)),
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("id", &self.awaited.id).finish_non_exhaustive()
    }
}

impl Client {
    /// Waits for an answer, and gives the request up at its deadline.
    pub(super) fn wait<T>(&self, awaited: &Awaited<T>) -> Answer<T> {
        let Awaited { id, answer, deadline, limit } = awaited;
        let limit = *limit;
        match answer.recv_deadline(*deadline) {
            Ok(answer) => return answer,
            Err(RecvTimeoutError::Disconnected) => return Err(ClientError::Closed),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let sent = self.shared().session.with(|session| session.requests.abandon(*id));
        self.shared().changed.notify_all();
        match sent {
            Some(true) => Err(ClientError::Unanswered { limit }),
            Some(false) => Err(ClientError::NotSent { limit }),
            // It was answered at the last moment.
            None => answer.try_recv().unwrap_or(Err(ClientError::Closed)),
        }
    }
}
