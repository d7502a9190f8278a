//! Acknowledgements: what the program has dealt with, and what comes again because it has not.
//!
//! ```text
//! acknowledged by the program   ....4
//! delivered in this run         .......7       next is 8
//! delivered ever                ...........11  8 to 11 come again, and are marked
//! ```
//!
//! A run begins where the relay goes back by itself: on the same connection, to the first event
//! that it was not told to be dealt with, or on the next one. What was acknowledged here meanwhile
//! is skipped, and the relay is told so when it comes by: it is never told of more than it has
//! sent on this connection.
//!
//! A topic that is acknowledged has one subscription here. Two would need two positions, and the
//! relay keeps one for each topic and connection.

use std::collections::{BTreeMap, HashMap};

use crate::{
    client::{
        delivery::{Delivery, LossReason, ResetReason},
        error::ClientError,
        follow::{
            Follows, Step, Sub, SubId,
            cursor::{Cursor, Facts, Found},
        },
        message::{AcksBody, Outgoing, RecoveryFields, encode},
    },
    name::{Filter, Name},
    wire::{
        position::{Epoch, From, Position},
        request::Acks,
    },
};

/// What a subscription asked for, and how far it has come.
pub(super) struct Acking {
    pub(super) wanted: Acks,
    pub(super) marks: HashMap<Name, Mark>,
}

/// How far the program has come in one topic.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    epoch: Epoch,
    /// Dealt with, this event and all before it.
    pub(super) acked: u64,
    /// The highest that was ever delivered or announced as lost.
    high: u64,
    /// What was announced as lost behind events that are not dealt with: nobody acknowledges it,
    /// so it counts as dealt with when they are. At most one for each event in the window.
    lost: BTreeMap<u64, u64>,
    /// The highest that the relay has sent since it was last asked for the topic.
    reached: u64,
    /// What the relay knows to be dealt with.
    told: u64,
}

impl Mark {
    pub(super) fn at(position: Position) -> Mark {
        let Position { epoch, seq } = position;
        Mark { epoch, acked: seq, high: seq, lost: BTreeMap::new(), reached: seq, told: seq }
    }

    /// Notes that event `seq` goes to the inbox. Returns whether it did before.
    pub(super) fn deliver(&mut self, seq: u64) -> bool {
        let before = seq <= self.high;
        self.high = self.high.max(seq);
        before
    }

    #[cfg(test)]
    pub(super) fn knows(&self, position: Position) -> bool {
        self.epoch == position.epoch && self.acked < position.seq
    }

    /// Notes that `from..=to` will not come.
    pub(super) fn lose(&mut self, from: u64, to: u64) {
        self.lost.insert(from, to);
        self.high = self.high.max(to);
        self.deal_with(self.acked);
    }

    /// Notes that the program has dealt with event `seq` and all before it.
    fn deal_with(&mut self, seq: u64) {
        self.acked = self.acked.max(seq);
        while let Some(first) = self.lost.first_entry().filter(|lost| *lost.key() <= self.acked + 1)
        {
            self.acked = self.acked.max(first.remove());
        }
    }

    /// What was announced after event `after` will be so again.
    fn begin_run(&mut self, after: u64) {
        self.lost.retain(|_, to| *to <= after);
    }

    /// The relay begins to send after event `seq`, and takes all before for dealt with.
    pub(super) fn restart(&mut self, seq: u64) {
        (self.reached, self.told) = (seq, seq);
    }

    /// Notes that event `seq` was not delivered after all.
    pub(super) fn take_back(&mut self, seq: u64) {
        self.high = self.high.min(seq - 1);
    }
}

impl Acking {
    pub(super) fn new(wanted: Acks) -> Self {
        Self { wanted, marks: HashMap::new() }
    }

    pub(super) fn consumes(&self) -> bool {
        self.wanted.consumer.is_some()
    }

    /// The relay has gone back to `seq` by itself: where the run begins, if that changes anything.
    pub(super) fn go_back(&mut self, name: &Name, seq: u64, at: &mut Position) -> Option<u64> {
        let mark = self.marks.get_mut(name)?;
        let after = mark.acked.max(seq.saturating_sub(1));
        let back = after < at.seq;
        if back {
            at.seq = after;
            mark.begin_run(after);
        }
        back.then_some(after)
    }
}

impl Sub {
    pub(super) fn consumes(&self) -> bool {
        self.acking.as_ref().is_some_and(Acking::consumes)
    }

    /// What is known of `name`, if this subscription acknowledges.
    pub(super) fn mark(&mut self, name: &Name) -> Option<&mut Mark> {
        self.acking.as_mut()?.marks.get_mut(name)
    }

    pub(super) fn set_mark(&mut self, name: &Name, position: Position) {
        if let Some(acking) = &mut self.acking {
            acking.marks.insert(name.clone(), Mark::at(position));
        }
    }

    /// The relay has confirmed a cursor. Returns after which event what was delivered comes again,
    /// if any does.
    pub(super) fn confirm_mark(
        &mut self,
        name: &Name,
        found: Found,
        position: Position,
    ) -> Option<u64> {
        let mark = self.mark(name)?;
        let high = mark.high;
        let after = match found {
            Found::Everything => {
                mark.begin_run(position.seq);
                position.seq
            }
            Found::Partly { from, to } => {
                mark.begin_run(from - 1);
                mark.lose(from, to);
                from - 1
            }
            Found::Foreign { .. } => {
                *mark = Mark::at(position);
                return None;
            }
        };
        (after < high).then_some(after)
    }

    /// Where the relay is to go on with `name`, for a cursor that it is to go on for.
    pub(super) fn wanted(&self, name: &Name) -> Option<Position> {
        let mut position = self.cursors.get(name)?.position()?;
        let mark = self.acking.as_ref().and_then(|acking| acking.marks.get(name));
        if let Some(mark) = mark.filter(|mark| mark.epoch == position.epoch) {
            position.seq = position.seq.min(mark.acked);
        }
        Some(position)
    }

    /// The connection is gone: what is not acknowledged comes again.
    pub(super) fn go_back_to_acknowledged(&mut self) {
        let Some(acking) = &self.acking else { return };
        for (name, cursor) in &mut self.cursors {
            if let (Cursor::At(at) | Cursor::Rewinding(at) | Cursor::Held(at), Some(mark)) =
                (cursor, acking.marks.get(name))
            {
                at.seq = mark.acked;
            }
        }
        if !self.consumes() {
            // The next connection begins there; it is not told.
            let marks = self.acking.iter_mut().flat_map(|acking| acking.marks.values_mut());
            marks.for_each(|mark| mark.told = mark.acked);
        }
    }
}

impl Follows {
    /// The program has dealt with the event at `position` of `name` and all before it.
    pub(in crate::client) fn acknowledge(
        &mut self,
        id: SubId,
        name: &Name,
        position: Position,
    ) -> Result<(), ClientError> {
        let sub = self.subs.get_mut(&id).ok_or(ClientError::Closed)?;
        let Some(acking) = &mut sub.acking else {
            let rule = "this subscription does not acknowledge; subscribe with acknowledge()";
            return Err(ClientError::Invalid(rule.to_owned()));
        };
        let Position { epoch, seq } = position;
        let Some(mark) = acking.marks.get_mut(name) else {
            return Err(ClientError::Invalid(format!("{name} is not in this subscription")));
        };
        if mark.epoch != epoch {
            // Of a log that is gone, and so is its position.
            return Ok(());
        }
        if mark.high < seq {
            let rule = format!("event {seq} of {name} was not delivered by this subscription");
            return Err(ClientError::Invalid(rule));
        }
        mark.deal_with(seq);
        let acked = mark.acked;
        if let Some(Cursor::At(at) | Cursor::Rewinding(at) | Cursor::Held(at)) =
            sub.cursors.get_mut(name)
        {
            at.seq = at.seq.max(acked);
        }
        self.note_due(name);
        Ok(())
    }

    pub(in crate::client) fn acknowledges(&self, id: SubId) -> bool {
        self.subs.get(&id).is_some_and(|sub| sub.acking.is_some())
    }

    /// Whether the relay is to be told of an acknowledgement now.
    pub(in crate::client) fn has_acks(&self) -> bool {
        !self.due.is_empty()
    }

    /// Whether the relay has been told of every acknowledgement.
    pub(in crate::client) fn all_told(&self) -> bool {
        let mut marks = self.subs.values().filter_map(|sub| sub.acking.as_ref());
        marks.all(|acking| acking.marks.values().all(|mark| mark.acked <= mark.told))
    }

    /// The messages that tell the relay what was acknowledged.
    pub(in crate::client) fn acks(&mut self) -> Vec<String> {
        let mut texts = Vec::new();
        for name in std::mem::take(&mut self.due) {
            let Some((sub, seq)) = self.untold(&name) else { continue };
            if let Some(mark) = self.subs.get_mut(&sub).and_then(|sub| sub.mark(&name)) {
                mark.told = seq;
            }
            // The id keeps an error from being taken for something else.
            let id = self.next_id();
            texts.push(encode(id, &Outgoing::Ack { topic: name.as_str(), seq }));
        }
        texts
    }

    /// As [`Follows::acks`], before something that would make them too late.
    pub(super) fn flush_acks(&mut self) {
        let texts = self.acks();
        self.steps.extend(texts.into_iter().map(Step::Send));
    }

    /// The relay has sent what stands at `seq`.
    pub(super) fn reached(&mut self, name: &Name, seq: u64) {
        let Some(topic) = self.topics.get(name) else { return };
        for id in &topic.subs {
            if let Some(mark) = self.subs.get_mut(id).and_then(|sub| sub.mark(name)) {
                mark.reached = mark.reached.max(seq);
            }
        }
        self.note_due(name);
    }

    /// Notes whether the relay is to be told of what was acknowledged of `name`.
    pub(super) fn note_due(&mut self, name: &Name) {
        if self.untold(name).is_some() && !self.due.contains(name) {
            self.due.insert(name.clone());
        }
    }

    /// What the relay can be told of `name`, if it is more than it was, and for whom.
    fn untold(&self, name: &Name) -> Option<(SubId, u64)> {
        let topic = self.topics.get(name)?;
        let mark = |id: &SubId| Some((*id, self.subs.get(id)?.acking.as_ref()?.marks.get(name)?));
        let (id, mark) = topic.subs.iter().find_map(mark)?;
        let seq = mark.acked.min(mark.reached);
        (mark.epoch == topic.epoch && mark.told < seq).then_some((id, seq))
    }

    /// A filter that is followed already and cannot be together with this one.
    pub(super) fn conflict(&self, filter: &Filter, acks: Option<&Acks>) -> Result<(), ClientError> {
        let excludes =
            |sub: &&Sub| (acks.is_some() || sub.acking.is_some()) && sub.filter.overlaps(filter);
        self.subs.values().find(excludes).map_or(Ok(()), |sub| {
            Err(ClientError::Invalid(format!(
                "{filter} overlaps with {}, which this client follows already; where events are \
                 acknowledged each needs a client of its own",
                sub.filter
            )))
        })
    }

    /// What a `subscribe` for `filter` says of acknowledgements.
    pub(super) fn acks_for(&self, filter: &Filter) -> Option<&Acks> {
        let acking = |sub: &Sub| sub.acking.is_some() && sub.filter.overlaps(filter);
        let sub = self.subs.values().find(|sub| acking(sub))?;
        sub.acking.as_ref().map(|acking| &acking.wanted)
    }

    /// Writes a `subscribe`.
    pub(super) fn subscribe(&self, id: u64, filter: &Filter, from: &From) -> String {
        let acks = self.acks_for(filter).map(AcksBody::of);
        let from = super::FromBody(from);
        encode(id, &Outgoing::Subscribe { topic: filter.as_str(), from, acks })
    }

    /// Gives a consumer its first cursor, which the relay kept, with what is lost before it.
    pub(super) fn give_consumer(
        &mut self,
        id: SubId,
        name: &Name,
        facts: Facts,
        recovery: Option<&RecoveryFields<'_>>,
    ) {
        let Some(sub) = self.subs.get_mut(&id) else { return };
        let Facts { epoch, seq, first, tail } = facts;
        let here = Position { epoch, seq };
        sub.cursors.insert(name.clone(), Cursor::At(here));
        sub.set_mark(name, here);
        let topic = name.clone();
        let missing = recovery.and_then(|recovery| recovery.missing);
        let reset = recovery.filter(|recovery| recovery.mode.as_str() == "reset");
        let (position, loss) = match (&sub.from, reset, missing) {
            (From::After(lost), Some(recovery), _) => {
                let reason = ResetReason::parse(recovery.reason.as_ref());
                let reset =
                    Delivery::Reset { topic: topic.clone(), lost: *lost, position: here, reason };
                (*lost, Some(reset))
            }
            (_, _, Some((from, to))) if (1..=to).contains(&from) && to == seq => {
                let reason = LossReason::Truncated;
                let gap = Delivery::Gap { topic: topic.clone(), from, to, reason };
                (Position { epoch, seq: from - 1 }, Some(gap))
            }
            _ => (here, None),
        };
        let attached = Delivery::Attached { topic, position, first, tail };
        let told = std::iter::once(attached).chain(loss);
        self.steps.extend(told.map(|delivery| Step::Deliver(id, delivery)));
    }
}

impl Facts {
    /// As [`Facts::find`], for a consumer: it goes on where the relay says.
    pub(super) fn find_consumer(&self, at: Position) -> (Found, u64) {
        if at.epoch != self.epoch {
            (Found::Foreign { lost: at, reason: ResetReason::EpochChanged }, self.seq)
        } else if self.tail < at.seq {
            (Found::Foreign { lost: at, reason: ResetReason::Ahead }, self.seq)
        } else if at.seq < self.seq {
            (Found::Partly { from: at.seq + 1, to: self.seq }, self.seq)
        } else {
            (Found::Everything, at.seq)
        }
    }
}
