//! The values that metric labels range over.

use super::kinds::Label;
use crate::wire::{
    codes::{Code, GapReason},
    position::Reason,
    stream::Dialect,
};

macro_rules! label {
    ($(#[$doc:meta])* $type:ident, $key:literal, {
        $($(#[$vdoc:meta])* $variant:ident = $text:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type {
            $($(#[$vdoc])* $variant,)*
        }

        impl $type {
            #[must_use]
            pub fn as_str(self) -> &'static str {
                Self::VALUES[self.index()]
            }
        }

        impl Label for $type {
            const KEY: &'static str = $key;
            const VALUES: &'static [&'static str] = &[$($text,)*];

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label!(
    /// How an event came in.
    Transport, "transport", { WebSocket = "websocket", Http = "http", }
);

label!(
    /// How an event went out.
    Channel, "transport", {
        WebSocket = "websocket",
        /// Server-sent events.
        Sse = "sse",
        /// Lines of JSON.
        Ndjson = "ndjson",
    }
);

impl From<Dialect> for Channel {
    fn from(dialect: Dialect) -> Channel {
        match dialect {
            Dialect::WebSocket => Channel::WebSocket,
            Dialect::Sse => Channel::Sse,
            Dialect::Ndjson => Channel::Ndjson,
        }
    }
}

label!(
    /// Why a connection was turned away before it could say anything.
    Refused, "reason", {
        /// The limit of connections is reached.
        Limit = "limit",
        /// The operating system refused a thread.
        Thread = "thread",
        /// The relay is stopping.
        Stopping = "stopping",
    }
);

label!(
    /// Why a connection ended.
    Closed, "reason", {
        /// The client closed it, properly.
        Client = "client",
        /// The client vanished: end of stream or reset without a close frame.
        Lost = "lost",
        /// Nothing was heard for the heartbeat timeout.
        Heartbeat = "heartbeat_missed",
        /// Somebody asked the relay to end it.
        Disconnected = "disconnected",
        /// Nothing of what waited was taken for the write stall limit.
        Stalled = "stalled",
        /// Another connection took over one of its consumers.
        Replaced = "replaced",
        /// What it asked for could not be read from disk.
        Unavailable = "unavailable",
        /// A subscription with `slow: disconnect` fell out of its log.
        Slow = "slow_consumer",
        /// It broke the WebSocket protocol.
        Protocol = "protocol",
        /// It sent a message beyond the size limit.
        TooLarge = "too_large",
        /// An HTTP head, body or idle time took too long.
        Deadline = "deadline",
        /// The stream that it asked for could not begin.
        Refused = "refused",
        /// The relay stopped.
        Shutdown = "shutdown",
        /// A bug: its thread panicked.
        Panic = "panic",
    }
);

label!(
    /// How a connection left a topic that it had joined.
    Departure, "reason", {
        /// The client asked for it, or became another user.
        Left = "left",
        /// The connection was closed, by either side and in order.
        Closed = "closed",
        /// The connection broke, or fell silent.
        Lost = "lost",
    }
);

label!(
    /// How an HTTP request was answered.
    HttpOutcome, "class", {
        Success = "2xx", Redirect = "3xx", ClientError = "4xx", ServerError = "5xx",
    }
);

label!(
    /// Which bound removed an event from its log.
    Evicted, "reason", {
        /// The topic's bound in events.
        Count = "count",
        /// The topic's bound in bytes.
        Bytes = "bytes",
        /// The topic's bound in age.
        Age = "age",
        /// The relay-wide bound in bytes.
        Memory = "memory",
    }
);

label!(
    /// How a position was resumed from.
    Recovered, "mode", { Complete = "complete", Partial = "partial", Reset = "reset", }
);

label!(
    /// How the store failed.
    StoreFailure, "reason", {
        /// The disk is full.
        Full = "full",
        /// The disk cannot be read or written.
        Io = "io",
        /// What is on disk is not what was written.
        Damaged = "damaged",
    }
);

label!(
    /// Why a publish to a durable topic was refused.
    StoreRefused, "reason", {
        /// Too much waited for the disk for too long.
        Busy = "busy",
        /// The store has failed.
        Unavailable = "unavailable",
    }
);

impl Label for GapReason {
    const KEY: &'static str = "reason";
    const VALUES: &'static [&'static str] =
        &["truncated", "slow", "retention", "damaged", "dead_letter"];

    fn index(self) -> usize {
        self as usize
    }
}

impl Label for Reason {
    const KEY: &'static str = "reason";
    const VALUES: &'static [&'static str] = &["truncated", "epoch_changed", "ahead", "damaged"];

    fn index(self) -> usize {
        self as usize
    }
}

impl Label for Code {
    const KEY: &'static str = "code";
    const VALUES: &'static [&'static str] = &[
        "bad_request",
        "unknown_type",
        "too_large",
        "unauthorized",
        "forbidden",
        "not_found",
        "conflict",
        "rate_limited",
        "limit_exceeded",
        "busy",
        "unavailable",
        "internal",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_say_what_the_wire_says() {
        for code in Code::ALL {
            assert_eq!(Code::VALUES[code.index()], code.as_str());
        }
        for reason in GapReason::ALL {
            assert_eq!(GapReason::VALUES[reason.index()], reason.as_str());
        }
        for reason in [Reason::Truncated, Reason::EpochChanged, Reason::Ahead, Reason::Damaged] {
            assert_eq!(Reason::VALUES[reason.index()], reason.as_str());
        }
    }
}
