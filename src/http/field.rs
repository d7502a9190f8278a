//! The header fields that the relay reads, beside those that frame the message.

/// A header field that a [`Head`](crate::http::head::Head) keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Field {
    Host,
    Origin,
    Upgrade,
    WebSocketKey,
    WebSocketVersion,
    WebSocketProtocol,
    Accept,
    ContentType,
    EventName,
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    LastEventId,
    RequestMethod,
    RequestHeaders,
    Forwarded,
    ForwardedFor,
}

/// What a second line with the same name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// More members of the same list.
    Joins,
    /// That somebody between us and the peer may have read the other one.
    Refused,
}

impl Field {
    /// Every field, at the index that is its number.
    pub const ALL: &[Field] = &[
        Field::Host,
        Field::Origin,
        Field::Upgrade,
        Field::WebSocketKey,
        Field::WebSocketVersion,
        Field::WebSocketProtocol,
        Field::Accept,
        Field::ContentType,
        Field::EventName,
        Field::IdempotencyKey,
        Field::IfMatch,
        Field::IfNoneMatch,
        Field::LastEventId,
        Field::RequestMethod,
        Field::RequestHeaders,
        Field::Forwarded,
        Field::ForwardedFor,
    ];

    pub const COUNT: usize = Self::ALL.len();

    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Field::Host => "Host",
            Field::Origin => "Origin",
            Field::Upgrade => "Upgrade",
            Field::WebSocketKey => "Sec-WebSocket-Key",
            Field::WebSocketVersion => "Sec-WebSocket-Version",
            Field::WebSocketProtocol => "Sec-WebSocket-Protocol",
            Field::Accept => "Accept",
            Field::ContentType => "Content-Type",
            Field::EventName => "Event-Name",
            Field::IdempotencyKey => "Idempotency-Key",
            Field::IfMatch => "If-Match",
            Field::IfNoneMatch => "If-None-Match",
            Field::LastEventId => "Last-Event-ID",
            Field::RequestMethod => "Access-Control-Request-Method",
            Field::RequestHeaders => "Access-Control-Request-Headers",
            Field::Forwarded => "Forwarded",
            Field::ForwardedFor => "X-Forwarded-For",
        }
    }

    /// The field called `name`, in any case of letters.
    #[must_use]
    pub fn of(name: &str) -> Option<Field> {
        Self::ALL.iter().copied().find(|field| field.name().eq_ignore_ascii_case(name))
    }

    #[must_use]
    pub const fn repeat(self) -> Repeat {
        match self {
            Field::Upgrade
            | Field::WebSocketProtocol
            | Field::Accept
            | Field::IfMatch
            | Field::IfNoneMatch
            | Field::RequestHeaders
            | Field::Forwarded
            | Field::ForwardedFor => Repeat::Joins,
            Field::Host
            | Field::Origin
            | Field::WebSocketKey
            | Field::WebSocketVersion
            | Field::ContentType
            | Field::EventName
            | Field::IdempotencyKey
            | Field::LastEventId
            | Field::RequestMethod => Repeat::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_stands_at_its_index_and_is_found_by_name() {
        for (index, field) in Field::ALL.iter().enumerate() {
            assert_eq!(field.index(), index);
            assert_eq!(Field::of(&field.name().to_uppercase()), Some(*field));
        }
        assert_eq!(Field::of("Content_Type"), None);
    }
}
