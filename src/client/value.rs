//! Keys of the shared state: changes that are asked for, and values that were read.

use std::{sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    client::error::ClientError,
    name::Name,
    wire::{codes::Durability, position::Epoch},
};

/// A change of one key of the shared state, to be [applied](crate::client::Client::apply).
///
/// ```
/// use std::time::Duration;
/// use landline::client::Change;
///
/// let on = Change::set("home/hall/lamp", &true).if_version(7).ttl(Duration::from_secs(60));
/// let gone = Change::delete("home/hall/lamp");
/// ```
#[derive(Clone, Debug)]
pub struct Change {
    pub(super) key: String,
    /// `None` deletes.
    pub(super) value: Option<Result<Box<RawValue>, ClientError>>,
    pub(super) if_version: Option<u64>,
    pub(super) ttl: Option<Duration>,
    pub(super) deadline: Option<Duration>,
}

impl Change {
    /// Sets `key` to `value`, as JSON. That it cannot be written as JSON is reported when the
    /// change is applied. A [`RawValue`] is taken as it is.
    #[must_use]
    pub fn set<T: Serialize + ?Sized>(key: impl Into<String>, value: &T) -> Change {
        let value = serde_json::value::to_raw_value(value)
            .map_err(|error| ClientError::Encode { source: Arc::new(error) });
        let value = Some(value);
        Change { key: key.into(), value, if_version: None, ttl: None, deadline: None }
    }

    /// Deletes `key`.
    #[must_use]
    pub fn delete(key: impl Into<String>) -> Change {
        Change { key: key.into(), value: None, if_version: None, ttl: None, deadline: None }
    }

    /// Only if the key has this version, 0 for a key that has no value. Else the change fails with
    /// [`ClientError::Conflict`].
    #[must_use]
    pub fn if_version(mut self, version: u64) -> Self {
        self.if_version = Some(version);
        self
    }

    /// The relay deletes the key when it was not set again for so long: at least 1 ms.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// How long this one may take, instead of the client's deadline.
    #[must_use]
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = Some(limit);
        self
    }
}

/// What the relay did for a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The life of the state that `version` counts in.
    pub epoch: Epoch,
    pub version: u64,
    /// How safe the change was when the relay answered.
    pub durability: Durability,
}

/// What one key has. Cloning shares the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub key: Name,
    /// Rises with every change of any key.
    pub version: u64,
    /// When it was set: Unix milliseconds by the relay's clock.
    pub time: u64,
    /// Who set it, if they said so.
    pub user: Option<Arc<str>>,
    /// The value as JSON text, byte for byte as it was set.
    pub data: Arc<str>,
}

impl Value {
    /// Reads the value.
    ///
    /// # Errors
    ///
    /// The value is not a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.data)
    }
}

/// A page of the values whose keys match a pattern, in the order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    pub epoch: Epoch,
    /// The newest version of the state when it was read.
    pub version: u64,
    pub values: Vec<Value>,
    /// After which key the next page begins, if there is one.
    pub next: Option<String>,
}
