//! Codes that a peer sees: why a request was refused, why a connection ended, whether to come
//! back. Checked against `docs/protocol.md`.

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    BadRequest,
    UnknownType,
    TooLarge,
    Unauthorized,
    Forbidden,
    NotFound,
    Conflict,
    RateLimited,
    LimitExceeded,
    Busy,
    Unavailable,
    Internal,
}

impl Code {
    pub const ALL: &[Code] = &[
        Code::BadRequest,
        Code::UnknownType,
        Code::TooLarge,
        Code::Unauthorized,
        Code::Forbidden,
        Code::NotFound,
        Code::Conflict,
        Code::RateLimited,
        Code::LimitExceeded,
        Code::Busy,
        Code::Unavailable,
        Code::Internal,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Code::BadRequest => "bad_request",
            Code::UnknownType => "unknown_type",
            Code::TooLarge => "too_large",
            Code::Unauthorized => "unauthorized",
            Code::Forbidden => "forbidden",
            Code::NotFound => "not_found",
            Code::Conflict => "conflict",
            Code::RateLimited => "rate_limited",
            Code::LimitExceeded => "limit_exceeded",
            Code::Busy => "busy",
            Code::Unavailable => "unavailable",
            Code::Internal => "internal",
        }
    }

    /// The HTTP status that says the same.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Code::BadRequest | Code::UnknownType => 400,
            Code::TooLarge => 413,
            Code::Unauthorized => 401,
            Code::Forbidden => 403,
            Code::NotFound => 404,
            Code::Conflict => 412,
            Code::RateLimited | Code::LimitExceeded => 429,
            Code::Busy | Code::Unavailable => 503,
            Code::Internal => 500,
        }
    }
}

/// The code in a WebSocket close frame. The range of our own tells the client what to do:
/// 4000-4099 do not come back, 4100-4199 come back with back-off, 4200-4299 come back at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum CloseCode {
    Normal = 1000,
    GoingAway = 1001,
    Protocol = 1002,
    Unsupported = 1003,
    InvalidText = 1007,
    TooBig = 1009,
    Internal = 1011,
    /// Another connection has taken over a consumer of this one.
    Replaced = 4002,
    HeartbeatMissed = 4101,
    /// The operator ended it.
    Disconnected = 4103,
    SlowConsumer = 4200,
}

impl CloseCode {
    pub const ALL: &[CloseCode] = &[
        CloseCode::Normal,
        CloseCode::GoingAway,
        CloseCode::Protocol,
        CloseCode::Unsupported,
        CloseCode::InvalidText,
        CloseCode::TooBig,
        CloseCode::Internal,
        CloseCode::Replaced,
        CloseCode::HeartbeatMissed,
        CloseCode::Disconnected,
        CloseCode::SlowConsumer,
    ];

    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }
}

/// What a client should do after a connection ended with close code `code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComeBack {
    Never,
    WithBackoff,
    AtOnce,
}

impl ComeBack {
    /// Reads the advice out of a close code; `None` is a connection that ended without one.
    #[must_use]
    pub fn after(code: Option<u16>) -> ComeBack {
        match code {
            Some(1002 | 1003 | 1007 | 1009 | 4000..=4099) => ComeBack::Never,
            Some(4200..=4299) => ComeBack::AtOnce,
            _ => ComeBack::WithBackoff,
        }
    }
}

/// How safe an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// In the relay's memory: it survives the subscriber, not the relay.
    Memory,
    /// With the operating system: it survives the relay's process, not a loss of power.
    Written,
    /// On disk: it survives a loss of power.
    Synced,
}

impl Durability {
    pub const ALL: &[Durability] = &[Durability::Memory, Durability::Written, Durability::Synced];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Durability::Memory => "memory",
            Durability::Written => "written",
            Durability::Synced => "synced",
        }
    }
}

/// Why a subscription will never get some events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The log was cut while the subscription was still replaying towards the tail.
    Truncated,
    /// The subscriber read too slowly and the log's limits passed its cursor.
    Slow,
    /// The events were removed for their age, or for the relay-wide memory limit.
    Retention,
    /// What is on disk is not what was written.
    Damaged,
    /// Nobody acknowledged the event, and it went to `$dead/...`.
    DeadLetter,
}

impl GapReason {
    pub const ALL: &[GapReason] = &[
        GapReason::Truncated,
        GapReason::Slow,
        GapReason::Retention,
        GapReason::Damaged,
        GapReason::DeadLetter,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            GapReason::Truncated => "truncated",
            GapReason::Slow => "slow",
            GapReason::Retention => "retention",
            GapReason::Damaged => "damaged",
            GapReason::DeadLetter => "dead_letter",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_the_name_and_the_status_of_the_protocol() {
        let expected = [
            ("bad_request", 400),
            ("unknown_type", 400),
            ("too_large", 413),
            ("unauthorized", 401),
            ("forbidden", 403),
            ("not_found", 404),
            ("conflict", 412),
            ("rate_limited", 429),
            ("limit_exceeded", 429),
            ("busy", 503),
            ("unavailable", 503),
            ("internal", 500),
        ];
        let codes = Code::ALL.iter().map(|code| (code.as_str(), code.http_status()));
        assert_eq!(codes.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_close_codes_advice_follows_their_range() {
        assert_eq!(ComeBack::after(None), ComeBack::WithBackoff);
        assert_eq!(ComeBack::after(Some(CloseCode::GoingAway.number())), ComeBack::WithBackoff);
        assert_eq!(ComeBack::after(Some(CloseCode::TooBig.number())), ComeBack::Never);
        assert_eq!(ComeBack::after(Some(4001)), ComeBack::Never);
        assert_eq!(
            ComeBack::after(Some(CloseCode::HeartbeatMissed.number())),
            ComeBack::WithBackoff
        );
        let disconnected = Some(CloseCode::Disconnected.number());
        assert_eq!(ComeBack::after(disconnected), ComeBack::WithBackoff);
        assert_eq!(ComeBack::after(Some(CloseCode::SlowConsumer.number())), ComeBack::AtOnce);
    }
}
