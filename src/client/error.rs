//! What can go wrong between a program and the relay, as the program sees it.

use std::{fmt, io, sync::Arc, time::Duration};

use crate::{name::NameError, wire::codes::Code};

/// Why a call on a [`Client`](crate::client::Client) failed, or why a subscription ended.
///
/// `Display` says what was being done, `source` why it failed. Cloning is cheap: one failure may
/// end many calls at once.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The text is not the address of a relay.
    #[error("the server address {url:?} {rule}")]
    Address { url: String, rule: &'static str },

    /// The first connection could not be made. Later ones are tried for ever.
    #[error("cannot connect to {server}")]
    Connect { server: String, source: LinkError },

    /// The relay closed the connection and said not to come back. The client has ended.
    #[error("the relay at {server} ended the connection for good")]
    Dismissed { server: String, source: LinkError },

    /// Another client has taken over a consumer of this one. The client has ended; coming back
    /// would take it away again.
    #[error("another client has taken over a consumer of this one at {server}")]
    Replaced { server: String },

    /// The relay refused this one request.
    #[error("{0}")]
    Refused(Refused),

    /// The text is not the name of a topic or key, nor a pattern.
    #[error("the name {text:?} {rule}")]
    Name { text: String, rule: NameError },

    /// The request breaks a rule that the client can check itself.
    #[error("{0}")]
    Invalid(String),

    /// The value cannot be written as JSON.
    #[error("the data cannot be written as JSON")]
    Encode { source: Arc<serde_json::Error> },

    /// The message is larger than the relay takes.
    #[error("the message has {bytes} bytes, the relay takes {max}")]
    TooLarge { bytes: usize, max: usize },

    /// The deadline passed before the request was sent; the relay has not seen it.
    #[error("not connected within {limit:?}, so nothing was sent")]
    NotSent { limit: Duration },

    /// The deadline passed after the request was sent. A publish may or may not be stored;
    /// publishing again with the same key cannot store it twice.
    #[error("no answer from the relay within {limit:?}")]
    Unanswered { limit: Duration },

    /// The key has another version than the change was made for; nothing has changed.
    #[error("{key} has version {found}, not {wanted}")]
    Conflict {
        key: String,
        wanted: u64,
        /// 0 if the key has no value.
        found: u64,
    },

    /// The connection was lost before the relay answered, and sending the change again could
    /// answer for somebody else's: whether it was made is unknown. Reading the key tells.
    #[error("the connection was lost before the relay answered; the outcome is unknown")]
    Unknown,

    /// The operating system refused a thread.
    #[error("cannot start the client's thread")]
    Thread { source: Arc<io::Error> },

    /// The client was closed by this program.
    #[error("the client is closed")]
    Closed,
}

/// What the relay answered when it refused a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The code as the relay sent it, also if this version does not know it.
    pub code: String,
    /// A sentence that says what to change.
    pub message: String,
    /// The field of the request that is wrong.
    pub field: Option<String>,
    /// When trying again makes sense.
    pub retry_after: Option<Duration>,
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The host name has no address, or there is nobody to ask.
    #[error("the name {host} cannot be resolved")]
    Resolve { host: String, source: Arc<io::Error> },
    /// Nobody listens there, or the network does not reach it.
    #[error("{address} did not accept a connection")]
    Tcp { address: String, source: Arc<io::Error> },
    /// Something answered, but not as a relay that takes this client: 401 and 403 are final.
    #[error("it answered with HTTP status {status} instead of a WebSocket")]
    Status { status: u16 },
    /// Connecting took too long.
    #[error("it did not answer within {limit:?}")]
    Timeout { limit: Duration },
    /// Reading failed.
    #[error("the connection broke")]
    Broken { source: Arc<io::Error> },
    /// It ended without a word.
    #[error("the relay closed the connection")]
    Closed,
    /// It ended with a close frame; the code says whether to come back.
    #[error("the relay closed the connection: {reason} (code {code})")]
    ClosedWith { code: u16, reason: String },
    /// Not even pings came.
    #[error("nothing was heard for {limit:?}")]
    Silent { limit: Duration },
    /// What came is not what a relay sends.
    #[error("the peer broke the protocol: {what}")]
    Protocol { what: String },
    /// The greeting was refused.
    #[error("{0}")]
    Refused(Refused),
}

impl Refused {
    /// The code, if this version knows it.
    #[must_use]
    pub fn known_code(&self) -> Option<Code> {
        Code::ALL.iter().copied().find(|code| code.as_str() == self.code)
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self.known_code(), Some(Code::RateLimited | Code::Busy | Code::Unavailable))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused by the relay: {} ({})", self.message, self.code)
    }
}

impl LinkError {
    pub(super) fn broken(error: io::Error) -> LinkError {
        LinkError::Broken { source: Arc::new(error) }
    }

    /// Whether the relay refused who we are, so that trying again is pointless.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            LinkError::Status { status } => matches!(status, 401 | 403),
            LinkError::ClosedWith { code, .. } => *code == 4001,
            LinkError::Refused(refused) => {
                matches!(refused.known_code(), Some(Code::Unauthorized | Code::Forbidden))
            }
            LinkError::Resolve { .. }
            | LinkError::Tcp { .. }
            | LinkError::Timeout { .. }
            | LinkError::Broken { .. }
            | LinkError::Closed
            | LinkError::Silent { .. }
            | LinkError::Protocol { .. } => false,
        }
    }
}
