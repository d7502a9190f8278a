//! Where one subscription stands in one topic.

use crate::{
    client::delivery::ResetReason,
    wire::position::{Epoch, From, Position},
};

/// Where one subscription stands in one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cursor {
    /// Given by the program; the relay has not said what it thinks of it.
    Preset(Position),
    /// The start is being asked for.
    Seeking,
    /// The relay's cursor is after this position and is being moved back.
    Rewinding(Position),
    /// The next event for this subscription is the one after.
    At(Position),
    /// As `At`, but its inbox is full: it takes nothing until there is room.
    Held(Position),
}

/// What the relay said about a topic: its log, and that the next event it sends is `seq + 1`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub epoch: Epoch,
    pub seq: u64,
    pub first: u64,
    pub tail: u64,
}

/// What a cursor finds in the log that the relay has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Everything,
    /// All but `from..=to`.
    Partly {
        from: u64,
        to: u64,
    },
    /// Another log than the one that `lost` belongs to.
    Foreign {
        lost: Position,
        reason: ResetReason,
    },
}

impl Cursor {
    /// Where the relay is to go on for it.
    pub(super) fn position(&self) -> Option<Position> {
        match self {
            Cursor::Preset(at) | Cursor::Rewinding(at) | Cursor::At(at) => Some(*at),
            Cursor::Seeking | Cursor::Held(_) => None,
        }
    }

    /// Whether the relay has confirmed it.
    pub(super) fn is_placed(&self) -> bool {
        matches!(self, Cursor::Rewinding(_) | Cursor::At(_) | Cursor::Held(_))
    }

    pub(super) fn rewinding_to(&self) -> Option<u64> {
        match self {
            Cursor::Rewinding(at) => Some(at.seq),
            Cursor::Preset(_) | Cursor::Seeking | Cursor::At(_) | Cursor::Held(_) => None,
        }
    }

    /// Keeps what outlives a connection. `false` if nothing does.
    pub(super) fn survive(&mut self) -> bool {
        if let Cursor::Rewinding(at) = *self {
            *self = Cursor::At(at);
        }
        *self != Cursor::Seeking
    }
}

impl Facts {
    /// The position just before the oldest event.
    pub(super) fn beginning(&self) -> u64 {
        self.first.saturating_sub(1)
    }

    /// Compares `at` with the log: what it finds, and the position from which it goes on.
    pub(super) fn find(&self, at: Position) -> (Found, u64) {
        let beginning = self.beginning();
        if at.epoch != self.epoch {
            (Found::Foreign { lost: at, reason: ResetReason::EpochChanged }, beginning)
        } else if self.tail < at.seq {
            (Found::Foreign { lost: at, reason: ResetReason::Ahead }, beginning)
        } else if at.seq < beginning {
            (Found::Partly { from: at.seq + 1, to: beginning }, beginning)
        } else {
            (Found::Everything, at.seq)
        }
    }

    /// The position before the first event that `from` asks for. `None` if that depends on the
    /// events' times.
    pub(super) fn start(&self, from: &From) -> Option<u64> {
        match from {
            From::Live => Some(self.tail),
            From::Last(count) => Some(self.tail.saturating_sub(*count).max(self.beginning())),
            // Positions name this topic through a preset cursor, or else leave it to begin.
            From::Start | From::After(_) | From::Positions(_) => Some(self.beginning()),
            From::Since(_) => None,
        }
    }

    /// The cursor of somebody who goes on after `seq`.
    pub(super) fn cursor(&self, seq: u64) -> Cursor {
        let at = Position { epoch: self.epoch, seq };
        if self.seq <= seq { Cursor::At(at) } else { Cursor::Rewinding(at) }
    }
}
