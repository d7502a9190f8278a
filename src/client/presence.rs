//! Being present in topics, for others to see.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    client::{
        Client,
        error::ClientError,
        message::{self, Outgoing},
        requests::Reply,
        watches,
    },
    name::Name,
    wire::codes::Code,
};

impl Client {
    /// Shows this client's user as present in `topic`, with `info` about them, which is at most
    /// 1 KiB of JSON; `None` for nothing.
    ///
    /// ```no_run
    /// use landline::client::{Client, Options};
    ///
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// let client = Client::connect("http://127.0.0.1:5263", Options::default().user("anna"))?;
    /// client.join("hall", Some(&serde_json::json!({"color": "red"})))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It lasts until [`Client::leave`] or the client's end: every new connection joins again. Who
    /// is where is in the state, under `$presence/{topic}/{user}`, and can be
    /// [watched](Client::watch).
    ///
    /// # Errors
    ///
    /// - [`ClientError::Name`], [`ClientError::Encode`], [`ClientError::Invalid`]: `topic` or
    ///   `info` break a rule.
    /// - [`ClientError::Refused`]: the relay will not have it; a client needs a
    ///   [user](crate::client::Options::user) for it.
    /// - [`ClientError::NotSent`], [`ClientError::Unanswered`]: the deadline passed.
    /// - [`ClientError::Closed`], [`ClientError::Dismissed`]: the client has ended.
    ///
    /// After an error it is not present.
    ///
    /// # Blocking
    ///
    /// At most the client's deadline.
    pub fn join<T: Serialize + ?Sized>(
        &self,
        topic: &str,
        info: Option<&T>,
    ) -> Result<(), ClientError> {
        let name = parse(topic)?;
        let info: Option<Box<RawValue>> = info
            .map(serde_json::value::to_raw_value)
            .transpose()
            .map_err(|error| ClientError::Encode { source: std::sync::Arc::new(error) })?;
        let body = watches::join(&name, &info);
        // Known before it is asked for: a connection that comes meanwhile joins too.
        let shared = self.shared();
        shared.change(|session| session.watch(|watches| watches.join(name.clone(), info)));
        let limit = shared.options.deadline;
        let joined = self.file(&body, limit, Reply::Member).and_then(|awaited| self.wait(&awaited));
        if joined.is_err() {
            // The relay may have heard it; nobody waits for the answer to this.
            shared.change(|session| session.watch(|watches| watches.withdraw(&name)));
        }
        joined
    }

    /// Is not present in `topic` any more. Also if it was not before.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// # let client = landline::client::Client::connect("", Default::default())?;
    /// client.leave("hall")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Client::join`]. After an error no new connection joins either.
    ///
    /// # Blocking
    ///
    /// At most the client's deadline.
    pub fn leave(&self, topic: &str) -> Result<(), ClientError> {
        let name = parse(topic)?;
        let shared = self.shared();
        shared.change(|session| session.watch(|watches| watches.leave(&name)));
        let body = message::body(&Outgoing::Leave { topic: name.as_str() });
        let awaited = self.file(&body, shared.options.deadline, Reply::Member)?;
        match self.wait(&awaited) {
            // A connection that came meanwhile did not join, which is what is wanted.
            Err(ClientError::Refused(refused)) if refused.known_code() == Some(Code::NotFound) => {
                Ok(())
            }
            left => left,
        }
    }
}

fn parse(topic: &str) -> Result<Name, ClientError> {
    Name::parse(topic).map_err(|rule| ClientError::Name { text: topic.to_owned(), rule })
}
