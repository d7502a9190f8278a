//! What is kept of a topic, for whoever asks: from memory, and page by page from disk.
//!
//! # Locks
//!
//! One log, to ask what it has. None while the pager is waited for.

use crate::{
    base::limits::{HISTORY_BYTES_MAX, TURN_BYTES},
    server::{pager::Sheet, relay::Shared},
    store::Missing,
    topic::{Copied, Log, Start, Topic},
    wire::{
        codes::Code,
        frame,
        position::{From, Mode, Reason, Recovery},
        reply::HistoryHead,
        request::Refusal,
    },
};

impl Shared {
    /// Events of `topic`, joined by commas, and what stands beside them. There is no hole in them:
    /// the head says what is gone before the first, and they end before what is gone behind it.
    ///
    /// # Errors
    ///
    /// There is no such topic, or its history on disk cannot be read now.
    ///
    /// # Blocking
    ///
    /// Until the pager has read what is not in memory.
    pub(crate) fn history(
        &self,
        topic: &str,
        from: Option<&From>,
        limit: u64,
    ) -> Result<(HistoryHead, Vec<u8>), Refusal> {
        let Some(topic) = self.registry.find(topic) else {
            let message = format!("there is no topic {topic}");
            return Err(Refusal { field: Some("topic"), ..Refusal::new(Code::NotFound, message) });
        };
        let newest = From::Last(limit);
        let start = self.locate(&topic, from.unwrap_or(&newest))?;
        let read = |after, upto| self.pager.read(&topic, after, upto);
        let (head, events) = collect(&topic, start, limit, read)?;
        if let Some(reason) = head.recovery.and_then(|recovery| recovery.reason) {
            self.metrics.history_losses.add(reason, 1);
        }
        Ok((head, events))
    }
}

/// Takes up to `limit` events from `start` on; `read` has those that are on disk alone, after one
/// sequence and up to another.
fn collect(
    topic: &Topic,
    start: Start,
    limit: u64,
    mut read: impl FnMut(u64, u64) -> Result<Sheet, Refusal>,
) -> Result<(HistoryHead, Vec<u8>), Refusal> {
    let mut excerpt = topic.look(|log| Excerpt::new(log, start, limit));
    let mut is_asked = false;
    while !excerpt.is_done() {
        let sheet = match topic.look(|log| excerpt.copy(log)) {
            Copied::UpTo(_) => continue,
            Copied::Lost { first, .. } => Sheet::Gone { first, why: Missing::Removed },
            Copied::Stored => read(excerpt.cursor, excerpt.upto)?,
        };
        let is_asked_again = std::mem::replace(&mut is_asked, matches!(sheet, Sheet::AskTheLog));
        match sheet {
            Sheet::Events { upto, frames } => excerpt.add(upto, &frames),
            Sheet::Gone { first, why } => excerpt.miss(first, why),
            // Each says that the other has it: the topic is just being forgotten.
            Sheet::AskTheLog if is_asked_again => {
                let message = format!("the history of {} is not there now", topic.name());
                return Err(Refusal::new(Code::Unavailable, message));
            }
            Sheet::AskTheLog => {}
        }
    }
    Ok((excerpt.head, excerpt.joined))
}

/// Event objects, joined by commas, up to a bound; the first is always whole.
struct Excerpt {
    /// What there was at the beginning, and what turned out to be gone since.
    head: HistoryHead,
    limit: u64,
    cursor: u64,
    upto: u64,
    joined: Vec<u8>,
    is_full: bool,
}

impl Excerpt {
    fn new(log: &Log, start: Start, limit: u64) -> Self {
        let (epoch, first, tail) = (log.epoch(), log.first(), log.tail());
        let head = HistoryHead { epoch, first, tail, recovery: start.recovery };
        let (cursor, upto) = (start.seq, tail.min(start.seq.saturating_add(limit)));
        Self { head, limit, cursor, upto, joined: Vec::new(), is_full: false }
    }

    fn is_done(&self) -> bool {
        self.is_full || self.upto <= self.cursor
    }

    /// Takes the next events that `log` has in memory.
    fn copy(&mut self, log: &Log) -> Copied {
        let mut frames = Vec::new();
        let copied = log.copy_after(self.cursor, self.upto, TURN_BYTES, &mut frames);
        if let Copied::UpTo(at) = copied {
            assert!(self.cursor < at, "a log has all events up to its tail");
            self.add(at, &frames);
        }
        copied
    }

    fn add(&mut self, upto: u64, frames: &[u8]) {
        self.cursor = upto;
        for event in frame::payloads(frames) {
            let room = self.joined.len() + event.len() <= HISTORY_BYTES_MAX;
            self.is_full |= !room && !self.joined.is_empty();
            if self.is_full {
                return;
            }
            if !self.joined.is_empty() {
                self.joined.push(b',');
            }
            self.joined.extend_from_slice(event);
        }
    }

    /// Nothing before `first` is there: ends in front of that, or begins behind it.
    fn miss(&mut self, first: u64, why: Missing) {
        if !self.joined.is_empty() {
            self.is_full = true;
            return;
        }
        let gone = (self.cursor + 1, first - 1);
        if why == Missing::Removed {
            self.head.first = self.head.first.max(first);
        }
        self.head.tail = self.head.tail.max(gone.1);
        self.head.recovery = recovery(self.head.recovery, gone, why);
        self.cursor = gone.1;
        self.upto = self.head.tail.min(self.cursor.saturating_add(self.limit));
    }
}

/// What became of the position that was asked for, now that `gone` turned out to be missing, too.
fn recovery(before: Option<Recovery>, gone: (u64, u64), why: Missing) -> Option<Recovery> {
    let from = before.and_then(|recovery| recovery.missing).map_or(gone.0, |(from, _)| from);
    let missing = Some((from, gone.1));
    let known = before.and_then(|recovery| recovery.reason);
    let (mode, reason) = match (before, why) {
        // `first` says it.
        (None, Missing::Removed) => return None,
        (Some(Recovery { mode: Mode::Reset, .. }), _) => (Mode::Reset, known),
        (_, Missing::Damaged) => (Mode::Partial, Some(Reason::Damaged)),
        (Some(_), Missing::Removed) => (Mode::Partial, known.or(Some(Reason::Truncated))),
    };
    Some(Recovery { mode, missing, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Policy,
        name::Name,
        store::StoredTopic,
        wire::position::{Epoch, Position},
    };

    const EPOCH: Epoch = Epoch::from_number(1);

    /// A topic with events 1 to 9, all of them on disk alone.
    fn topic() -> Topic {
        let name = Name::parse("t").unwrap();
        let stored =
            StoredTopic { id: 1, name, epoch: EPOCH, first: 1, tail: 9, newest_ms: 1, bytes: 9 };
        Topic::restored(&stored, Policy::default(), 1, 0)
    }

    fn gone(first: u64, why: Missing) -> Sheet {
        Sheet::Gone { first, why }
    }

    /// What is asked for after a position.
    fn after(epoch: Epoch, seq: u64) -> From {
        From::After(Position { epoch, seq })
    }

    /// What is collected from a disk on which `hole` is what a read finds between these events.
    fn ask(from: &From, limit: u64, hole: (u64, u64), why: Missing) -> (HistoryHead, String) {
        let topic = topic();
        let start = topic.look(|log| log.start(from));
        let read = |after: u64, upto: u64| {
            if (hole.0..=hole.1).contains(&(after + 1)) {
                return Ok(gone(hole.1 + 1, why));
            }
            let mut frames = Vec::new();
            frame::push_text(&mut frames, (after + 1).to_string().as_bytes());
            assert!(after < upto, "{after} is asked for behind {upto}");
            Ok(Sheet::Events { upto: after + 1, frames })
        };
        let (head, joined) = collect(&topic, start, limit, read).unwrap();
        (head, String::from_utf8(joined).unwrap())
    }

    fn facts(head: &HistoryHead) -> (u64, u64, Option<Recovery>) {
        (head.first, head.tail, head.recovery)
    }

    fn partial(missing: (u64, u64), reason: Reason) -> Option<Recovery> {
        Some(Recovery { mode: Mode::Partial, missing: Some(missing), reason: Some(reason) })
    }

    #[test]
    fn what_went_between_the_head_and_the_disk_is_said() {
        let (head, events) = ask(&From::Start, 3, (1, 4), Missing::Removed);
        assert_eq!((facts(&head), events.as_str()), ((5, 9, None), "5,6,7"), "counted anew");

        let (head, events) = ask(&after(EPOCH, 2), 9, (1, 4), Missing::Removed);
        let truncated = partial((3, 4), Reason::Truncated);
        assert_eq!((facts(&head), events.as_str()), ((5, 9, truncated), "5,6,7,8,9"));

        let (head, events) = ask(&after(Epoch::from_number(2), 2), 9, (1, 4), Missing::Removed);
        let reset = Recovery {
            mode: Mode::Reset,
            missing: Some((1, 4)),
            reason: Some(Reason::EpochChanged),
        };
        assert_eq!((facts(&head), events.as_str()), ((5, 9, Some(reset)), "5,6,7,8,9"));

        let (head, events) = ask(&From::Last(2), 2, (1, 11), Missing::Removed);
        assert_eq!(
            (facts(&head), events.as_str()),
            ((12, 11, None), ""),
            "newer ones came and went"
        );
    }

    #[test]
    fn what_is_damaged_is_said_also_where_no_position_was_asked_for() {
        let damaged = partial((1, 4), Reason::Damaged);
        let (head, events) = ask(&From::Start, 9, (1, 4), Missing::Damaged);
        assert_eq!((facts(&head), events.as_str()), ((1, 9, damaged), "5,6,7,8,9"));

        let (head, events) = ask(&after(EPOCH, 6), 9, (7, 9), Missing::Damaged);
        let damaged = partial((7, 9), Reason::Damaged);
        assert_eq!((facts(&head), events.as_str()), ((1, 9, damaged), ""));
    }

    #[test]
    fn events_end_before_a_hole_and_the_next_answer_names_it() {
        for why in [Missing::Removed, Missing::Damaged] {
            let (head, events) = ask(&From::Start, 9, (3, 4), why);
            assert_eq!((facts(&head), events.as_str()), ((1, 9, None), "1,2"));
        }
        let (head, events) = ask(&after(EPOCH, 2), 9, (3, 4), Missing::Damaged);
        let damaged = partial((3, 4), Reason::Damaged);
        assert_eq!((facts(&head), events.as_str()), ((1, 9, damaged), "5,6,7,8,9"));
    }

    #[test]
    fn several_holes_before_the_first_event_are_one() {
        let holes =
            [gone(3, Missing::Removed), gone(5, Missing::Damaged), gone(10, Missing::Removed)];
        let (topic, mut holes) = (topic(), holes.into_iter());
        let start = topic.look(|log| log.start(&after(EPOCH, 0)));
        let read = |_, _| Ok(holes.next().unwrap());
        let (head, events) = collect(&topic, start, 9, read).unwrap();
        assert_eq!((facts(&head), events.len()), ((10, 9, partial((1, 9), Reason::Damaged)), 0));
    }

    #[test]
    fn a_topic_that_neither_memory_nor_disk_has_any_more_is_an_error_and_not_a_loop() {
        let topic = topic();
        let start = topic.look(|log| log.start(&From::Start));
        let refusal = collect(&topic, start, 9, |_, _| Ok(Sheet::AskTheLog)).unwrap_err();
        assert_eq!(refusal.code, Code::Unavailable);
    }
}
