//! The shared state as a program changes and reads it.

use serde::Serialize;

use crate::{
    client::{
        Client,
        error::ClientError,
        message::{self, Outgoing},
        requests::Reply,
        value::{Change, Stored, Value, Values},
    },
    name::{Filter, Name},
};

impl Client {
    /// Sets `key` of the shared state to `value`, as JSON, and waits until the relay has it.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// # let client = landline::client::Client::connect("", Default::default())?;
    /// let stored = client.set("home/hall/lamp", &serde_json::json!({"on": true}))?;
    /// println!("version {}", stored.version);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// If the connection is lost before the relay has answered, the change is sent again: it may
    /// then be made twice, under two versions, which leaves the same value. It can also replace
    /// what somebody else set in between; who cannot have that uses
    /// [`Client::compare_and_set`].
    ///
    /// # Errors
    ///
    /// As [`Client::apply`].
    ///
    /// # Blocking
    ///
    /// As [`Client::apply`].
    pub fn set<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<Stored, ClientError> {
        self.apply(Change::set(key, value))
    }

    /// Sets `key` to `value` if it has `version`, 0 if it must not have a value.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// # let client = landline::client::Client::connect("", Default::default())?;
    /// use landline::client::ClientError;
    ///
    /// let mut version = client.get("counter")?.map_or(0, |value| value.version);
    /// while let Err(error) = client.compare_and_set("counter", version, &1) {
    ///     match error {
    ///         ClientError::Conflict { found, .. } => version = found,
    ///         error => return Err(error),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`ClientError::Conflict`]: the key has another version; nothing has changed.
    /// - [`ClientError::Unknown`]: the connection was lost before the relay answered. It is not
    ///   sent again, because a conflict with what it did itself would look like one with somebody
    ///   else.
    /// - Else as [`Client::apply`].
    ///
    /// # Blocking
    ///
    /// As [`Client::apply`].
    pub fn compare_and_set<T: Serialize + ?Sized>(
        &self,
        key: &str,
        version: u64,
        value: &T,
    ) -> Result<Stored, ClientError> {
        self.apply(Change::set(key, value).if_version(version))
    }

    /// Deletes `key` and waits until the relay has done so.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// # let client = landline::client::Client::connect("", Default::default())?;
    /// client.delete("home/hall/lamp")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Client::apply`]: [`ClientError::Refused`] with `not_found` if the key has no value. If
    /// the connection is lost before the relay has answered, whether this call deleted it is not
    /// known, which is [`ClientError::Unknown`].
    ///
    /// # Blocking
    ///
    /// As [`Client::apply`].
    pub fn delete(&self, key: &str) -> Result<Stored, ClientError> {
        self.apply(Change::delete(key))
    }

    /// Makes one change of the shared state and waits until the relay has it; on a durable state
    /// until it is on disk.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// # let client = landline::client::Client::connect("", Default::default())?;
    /// use std::time::Duration;
    /// use landline::client::Change;
    ///
    /// client.apply(Change::set("leader", "anna").if_version(0).ttl(Duration::from_secs(10)))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A plain set is sent again after a reconnect (see [`Client::set`]); what has a condition,
    /// and a delete, is not.
    ///
    /// # Errors
    ///
    /// - [`ClientError::Name`], [`ClientError::Encode`], [`ClientError::Invalid`],
    ///   [`ClientError::TooLarge`]: key, value or time to live break a rule.
    /// - [`ClientError::Conflict`]: the key has another version than was asked for.
    /// - [`ClientError::Refused`]: the relay will not have it, and says why.
    /// - [`ClientError::NotSent`]: the deadline passed while there was no connection.
    /// - [`ClientError::Unanswered`], [`ClientError::Unknown`]: whether it was made is unknown.
    /// - [`ClientError::Closed`], [`ClientError::Dismissed`]: the client has ended.
    ///
    /// # Blocking
    ///
    /// At most the client's deadline. While the connection is down the time spent reconnecting
    /// counts against it.
    pub fn apply(&self, change: Change) -> Result<Stored, ClientError> {
        let Change { key, value, if_version, ttl, deadline } = change;
        parse_key(&key)?;
        let value = value.transpose()?;
        let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        if ttl_ms == Some(0) {
            return Err(ClientError::Invalid(format!("the time to live of {key} is under 1 ms")));
        }
        let request = match &value {
            Some(value) => Outgoing::Set { key: &key, if_version, ttl_ms, value },
            None => Outgoing::Delete { key: &key, if_version },
        };
        let is_repeatable = value.is_some() && if_version.is_none();
        let reply = if is_repeatable { Reply::Stored } else { Reply::StoredOnce };
        let limit = deadline.unwrap_or(self.shared().options.deadline);
        let awaited = self.file(&message::body(&request), limit, reply)?;
        self.wait(&awaited).map_err(|error| {
            if let ClientError::Conflict { found, .. } = error {
                return ClientError::Conflict { key, wanted: if_version.unwrap_or(0), found };
            }
            error
        })
    }

    /// What `key` has; `None` if it has no value.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = landline::client::Client::connect("", Default::default())?;
    /// if let Some(value) = client.get("home/hall/lamp")? {
    ///     println!("version {}: {}", value.version, value.json::<bool>()?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`ClientError::Name`]: `key` is not a key.
    /// - [`ClientError::Refused`]: the relay says no.
    /// - [`ClientError::NotSent`], [`ClientError::Unanswered`]: the deadline passed.
    /// - [`ClientError::Closed`], [`ClientError::Dismissed`]: the client has ended.
    ///
    /// # Blocking
    ///
    /// At most the client's deadline.
    pub fn get(&self, key: &str) -> Result<Option<Value>, ClientError> {
        parse_key(key)?;
        self.ask(key, None, None).map(|found| found.values.into_iter().next())
    }

    /// The values whose keys match `pattern` and come after `after`: at most `limit` (1 to 1,000)
    /// of them, and about 1 MiB.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// # let client = landline::client::Client::connect("", Default::default())?;
    /// let mut after = None;
    /// loop {
    ///     let page = client.values("home/#", after.as_deref(), 100)?;
    ///     page.values.iter().for_each(|value| println!("{} {}", value.key, value.data));
    ///     after = page.next;
    ///     if after.is_none() {
    ///         break;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    ///
    /// # Blocking
    ///
    /// At most the client's deadline.
    pub fn values(
        &self,
        pattern: &str,
        after: Option<&str>,
        limit: u64,
    ) -> Result<Values, ClientError> {
        Filter::parse(pattern)
            .map_err(|rule| ClientError::Name { text: pattern.to_owned(), rule })?;
        self.ask(pattern, after, Some(limit))
    }

    fn ask(
        &self,
        key: &str,
        after: Option<&str>,
        limit: Option<u64>,
    ) -> Result<Values, ClientError> {
        let request = Outgoing::Get { key, after, limit };
        let deadline = self.shared().options.deadline;
        let awaited = self.file(&message::body(&request), deadline, Reply::Values)?;
        self.wait(&awaited)
    }
}

fn parse_key(key: &str) -> Result<Name, ClientError> {
    Name::parse(key).map_err(|rule| ClientError::Name { text: key.to_owned(), rule })
}
