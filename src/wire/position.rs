//! Where in a topic: epochs, sequences, and the ways a client may say where to start.

use std::{fmt, str::FromStr};

use crate::{base::random, name::Name};

/// One life of a log. Random, made with it, written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(u64);

impl Epoch {
    #[must_use]
    pub fn random() -> Epoch {
        Epoch(random::number())
    }

    #[must_use]
    pub const fn from_number(number: u64) -> Epoch {
        Epoch(number)
    }

    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// Its text: 16 lower-case hexadecimal digits.
    #[must_use]
    pub fn digits(self) -> [u8; 16] {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; 16];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0.to_be_bytes()) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 0xf)];
        }
        digits
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is not 16 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not an epoch: 16 lower-case hexadecimal digits")]
pub struct NotAnEpoch;

impl FromStr for Epoch {
    type Err = NotAnEpoch;

    fn from_str(text: &str) -> Result<Epoch, NotAnEpoch> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() != 16 || !digits {
            return Err(NotAnEpoch);
        }
        u64::from_str_radix(text, 16).map(Epoch).map_err(|_| NotAnEpoch)
    }
}

/// After which event of which life of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    pub epoch: Epoch,
    pub seq: u64,
}

/// Where a subscription or a history request starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// After the newest event.
    Live,
    /// At the oldest retained event.
    Start,
    /// At the newest so many events.
    Last(u64),
    /// At the first event of this time (Unix milliseconds, the relay's clock) or later.
    Since(u64),
    /// After a position.
    After(Position),
    /// For a pattern: after these positions; topics that are not listed, from their beginning.
    Positions(Vec<(Name, Position)>),
}

/// How a request for a position was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    pub mode: Mode,
    /// First and last sequence that are gone for good.
    pub missing: Option<(u64, u64)>,
    pub reason: Option<Reason>,
}

/// How much of what was asked for is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything after the position.
    Complete,
    /// Everything that is retained; `missing` is not.
    Partial,
    /// The position means nothing here: everything that is retained, from the oldest.
    Reset,
}

/// Why a request for a position was not met completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Truncated,
    EpochChanged,
    Ahead,
    /// Of a history alone: what is on disk is not what was written.
    Damaged,
}

impl Recovery {
    pub const COMPLETE: Recovery = Recovery { mode: Mode::Complete, missing: None, reason: None };
}

impl Mode {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Complete => "complete",
            Mode::Partial => "partial",
            Mode::Reset => "reset",
        }
    }
}

impl Reason {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::Truncated => "truncated",
            Reason::EpochChanged => "epoch_changed",
            Reason::Ahead => "ahead",
            Reason::Damaged => "damaged",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digits_of_an_epoch_are_its_text() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX] {
            let epoch = Epoch::from_number(number);
            assert_eq!(epoch.digits().as_slice(), epoch.to_string().as_bytes());
        }
    }

    #[test]
    fn an_epoch_survives_its_text_and_nothing_else_parses() {
        let epoch = Epoch::from_number(0x00ab_cdef);
        assert_eq!(epoch.to_string(), "0000000000abcdef");
        assert_eq!(epoch.to_string().parse(), Ok(epoch));
        for text in ["", "abc", "0000000000ABCDEF", "+000000000abcdef", "0000000000abcdef0"] {
            assert_eq!(text.parse::<Epoch>(), Err(NotAnEpoch), "{text:?}");
        }
    }
}
