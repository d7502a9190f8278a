//! What a subscription hands to the program: events, and everything that is not silent about them.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::{
    client::{error::Refused, message::Text},
    name::Name,
    wire::{
        codes::Durability,
        position::{Epoch, Position},
    },
};

/// One thing that happened to a subscription, in the order in which it happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Delivery {
    /// An event. In one topic `seq` rises by exactly 1 from one to the next, unless a
    /// [`Delivery::Gap`] or [`Delivery::Reset`] came between them. Where a subscription
    /// acknowledges, `seq` may also go back to one that is not acknowledged, and rises from there,
    /// without those that were acknowledged meanwhile.
    Event(Event),
    /// The subscription follows `topic` from now on; the next event is `position.seq + 1`.
    Attached { topic: Name, position: Position, first: u64, tail: u64 },
    /// Events `from..=to` of `topic` will never come.
    Gap { topic: Name, from: u64, to: u64, reason: LossReason },
    /// The log of `topic` is not the one that `lost` belongs to. What came after `lost` is
    /// unknown; the subscription goes on after `position`, so events `1..=position.seq` of the
    /// log as it is now are not stored any more.
    Reset { topic: Name, lost: Position, position: Position, reason: ResetReason },
    /// The relay will not deliver `topic` to this connection, although the pattern matches it.
    Unavailable { topic: Name, refused: Refused },
    /// The connection was lost and is back. What was missed follows; what is lost is announced.
    Reconnected,
}

/// Why events will never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// They were not stored any more when the subscription wanted them.
    Truncated,
    /// The subscriber read too slowly.
    Slow,
    /// They were removed for their age, or for the relay's memory limit.
    Retention,
    /// What the relay has on disk is not what it wrote.
    Damaged,
    /// They were delivered too often without being acknowledged: they are in `$dead/{topic}`.
    DeadLetter,
    /// The relay gave no reason that this version knows.
    Other,
}

/// Why a position means nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResetReason {
    /// The log is a different one: the relay restarted, or its files were lost.
    EpochChanged,
    /// The position is after the newest event of the log.
    Ahead,
}

impl LossReason {
    pub(super) fn parse(text: &str) -> LossReason {
        match text {
            "truncated" => LossReason::Truncated,
            "slow" => LossReason::Slow,
            "retention" => LossReason::Retention,
            "damaged" => LossReason::Damaged,
            "dead_letter" => LossReason::DeadLetter,
            _ => LossReason::Other,
        }
    }

    /// The reason in one word, as it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            LossReason::Truncated => "truncated",
            LossReason::Slow => "slow",
            LossReason::Retention => "retention",
            LossReason::Damaged => "damaged",
            LossReason::DeadLetter => "dead_letter",
            LossReason::Other => "other",
        }
    }
}

impl ResetReason {
    pub(super) fn parse(text: Option<&Text<'_>>) -> ResetReason {
        match text.map(Text::as_str) {
            Some("ahead") => ResetReason::Ahead,
            _ => ResetReason::EpochChanged,
        }
    }

    /// The reason in one word, as it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ResetReason::EpochChanged => "epoch_changed",
            ResetReason::Ahead => "ahead",
        }
    }
}

/// One event of one topic. Cloning shares the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub topic: Name,
    /// The life of the log that `seq` counts in.
    pub epoch: Epoch,
    pub seq: u64,
    /// Unix milliseconds by the relay's clock.
    pub time: u64,
    /// Who published it, if they said so.
    pub user: Option<Arc<str>>,
    /// The event's name, if it has one.
    pub name: Option<Arc<str>>,
    /// The payload as JSON text, byte for byte as it was published.
    pub data: Arc<str>,
    /// This subscription has handed it over before, and it was not acknowledged: it may have been
    /// dealt with. Always `false` where a subscription does not acknowledge. What an earlier
    /// process got is not known here.
    pub redelivered: bool,
}

impl Event {
    /// Where a subscription that has seen this event resumes.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, seq: self.seq }
    }

    /// Reads the payload.
    ///
    /// # Errors
    ///
    /// The payload is not a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.data)
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Delivery>() + self.data.len() + self.name.as_ref().map_or(0, |name| name.len())
    }
}

/// What the relay stored for a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub epoch: Epoch,
    pub seq: u64,
    /// How safe the event was when the relay answered.
    pub durability: Durability,
    /// The key was used before; this is the receipt of the event that is stored under it.
    pub duplicate: bool,
}

/// A stretch of a topic's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    pub topic: Name,
    pub epoch: Epoch,
    /// The oldest event that is stored; `tail + 1` if none is.
    pub first: u64,
    /// The newest event there ever was; 0 if there was none.
    pub tail: u64,
    /// The events, oldest first.
    pub events: Vec<Event>,
    /// What of it cannot be had any more: of a request after a position, or damaged.
    pub loss: Option<HistoryLoss>,
}

/// What a history request did not find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistoryLoss {
    /// Events `from..=to` are not stored any more.
    Truncated { from: u64, to: u64 },
    /// Of events `from..=to` some are damaged on the relay's disk; none can be had.
    Damaged { from: u64, to: u64 },
    /// The position belongs to another log; the answer starts at the oldest event of this one.
    Reset(ResetReason),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codes::GapReason;

    #[test]
    fn every_reason_of_the_relay_is_known_here() {
        let known = GapReason::ALL.iter().map(|reason| reason.as_str()).chain(["dead_letter"]);
        for text in known {
            assert_eq!(LossReason::parse(text).as_str(), text);
        }
        assert_eq!(LossReason::parse("a new one"), LossReason::Other);
    }
}
