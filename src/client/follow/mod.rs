//! Which local subscription gets which event, over one connection that has one cursor per topic.
//!
//! The relay keeps one cursor per topic and connection, while a program may have many
//! subscriptions that overlap. Here every subscription has a cursor of its own for each topic.
//! The relay's cursor is kept at or before the lowest of them, and each subscription skips what
//! lies before its own: so nobody loses anything to somebody else's start, and nobody gets an
//! event twice.
//!
//! ```text
//! relay's cursor for t    .......4            next event is 5
//! subscription A                 4            gets 5, 6, ...
//! subscription B                        7     skips 5 to 7, gets 8, ...
//! C arrives, wants    1                       "subscribe t from 1": the relay sends 2, 3, 4 again,
//!                                             A and B skip them, C gets them
//! ```
//!
//! A subscription that joins a topic already followed first learns its start from a `history`
//! request. After a reconnect every filter is asked for again from the lowest cursors.
//!
//! # Place
//!
//! The pure core of the client: plain data, no clock, lock, thread or socket. What is to be done
//! comes out as [`Step`]s.
//!
//! # Not here
//!
//! Where steps go (`session`), queues (`inbox`).

mod acks;
#[cfg(test)]
mod acks_tests;
mod answers;
mod cursor;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    base::limits::POSITIONS_MAX,
    client::{
        delivery::{Delivery, Event},
        error::ClientError,
        message::{FromBody, Outgoing, encode},
    },
    name::{Filter, Name, Pattern},
    wire::{
        position::{Epoch, From, Position},
        request::Acks,
    },
};
use acks::Acking;
use cursor::Cursor;

/// Identifies one local subscription.
pub(super) type SubId = u64;

/// Something to be done, in order.
#[derive(Debug)]
pub(super) enum Step {
    /// A message for the relay.
    Send(String),
    /// Something for a subscription's inbox.
    Deliver(SubId, Delivery),
    /// What waits in a subscription's inbox, of this topic and after this event, comes again.
    Forget(SubId, Name, u64),
    /// A subscription's start is known.
    Started(SubId),
    /// A subscription has ended.
    Failed(SubId, ClientError),
    /// This connection cannot go on now, but another may.
    Reconnect,
}

/// The local subscriptions and what the relay does for them.
///
/// 1. A filter is in `held` if and only if the relay was asked for it on this connection and not
///    asked to drop it since.
/// 2. While a topic is in `topics`, the relay's cursor for it is at or before the cursor of each
///    subscription that is `At`, or a request that puts it there is in `asks`.
/// 3. A cursor that is `At` only moves forward, by one event or by an announced loss; one that
///    acknowledges also back, to what is not acknowledged.
/// 4. A subscription that acknowledges overlaps with no other.
pub(super) struct Follows {
    ids: u64,
    online: bool,
    subs: BTreeMap<SubId, Sub>,
    held: HashMap<Filter, Held>,
    topics: HashMap<Name, Topic>,
    asks: HashMap<u64, Ask>,
    /// Patterns whose `unsubscribed` is on its way: until then, `attached` is about the past.
    leaving: HashMap<Pattern, u64>,
    message_bytes_max: usize,
    /// Topics of which the relay is to be told what was acknowledged.
    due: BTreeSet<Name>,
    steps: Vec<Step>,
}

/// One local subscription.
struct Sub {
    filter: Filter,
    from: From,
    stage: Stage,
    /// Its inbox is full: it is treated as if its connection were lost, alone.
    stalled: bool,
    cursors: HashMap<Name, Cursor>,
    /// Only if it acknowledges.
    acking: Option<Acking>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The filter is not held yet.
    Waiting,
    /// The starts on so many topics are being asked for.
    Seeking(usize),
    Started,
}

/// A filter that the relay follows on this connection.
struct Held {
    /// The request that is not answered completely.
    ask: Option<u64>,
    /// The subscription whose `from` was sent; `None` where positions were.
    initiator: Option<SubId>,
    /// How many topics the relay said match at once, when it has.
    announced: Option<u64>,
    attached: u64,
}

/// A topic that the relay follows on this connection.
struct Topic {
    epoch: Epoch,
    /// The next event from the relay is `seq + 1`.
    seq: u64,
    /// The highest sequence that the relay was heard to speak of.
    tail: u64,
    /// The subscriptions whose filter covers it.
    subs: Vec<SubId>,
}

/// What an answer will be about.
#[derive(Clone, Debug)]
enum Ask {
    Subscribe(Filter),
    Rewind(Name),
    Info(SubId, Name),
    Unsubscribe(Filter),
}

impl Sub {
    /// Whether the relay is to follow its filter. Not for one that takes nothing, unless it has
    /// yet to learn its start.
    fn needs_filter(&self) -> bool {
        !self.stalled || self.stage != Stage::Started
    }

    fn names(&self) -> impl Iterator<Item = &Name> {
        self.cursors.keys()
    }
}

impl Follows {
    pub(super) fn new() -> Self {
        Self {
            ids: 0,
            online: false,
            subs: BTreeMap::new(),
            held: HashMap::new(),
            topics: HashMap::new(),
            asks: HashMap::new(),
            leaving: HashMap::new(),
            message_bytes_max: usize::MAX,
            due: BTreeSet::new(),
            steps: Vec::new(),
        }
    }

    /// A number that no message of this client had yet.
    pub(super) fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// What has become due, oldest first.
    pub(super) fn steps(&mut self) -> std::vec::Drain<'_, Step> {
        self.steps.drain(..)
    }

    /// Adds a subscription. [`Step::Started`] or [`Step::Failed`] follows.
    pub(super) fn join(
        &mut self,
        filter: Filter,
        from: From,
        acks: Option<Acks>,
    ) -> Result<SubId, ClientError> {
        self.conflict(&filter, acks.as_ref())?;
        let id = self.next_id();
        let consumes = acks.as_ref().is_some_and(|acks| acks.consumer.is_some());
        let preset: Vec<(Name, Position)> = match (&filter, &from) {
            // The relay decides where a consumer starts.
            _ if consumes => Vec::new(),
            (Filter::Topic(name), From::After(position)) => vec![(name.clone(), *position)],
            (Filter::Pattern(_), From::Positions(positions)) => positions.clone(),
            _ => Vec::new(),
        };
        let cursors = preset.into_iter().map(|(name, at)| (name, Cursor::Preset(at))).collect();
        for (name, topic) in &mut self.topics {
            if filter.matches(name) {
                topic.subs.push(id);
            }
        }
        let acking = acks.map(Acking::new);
        let (stage, stalled) = (Stage::Waiting, false);
        let sub = Sub { filter: filter.clone(), from, stage, stalled, cursors, acking };
        self.subs.insert(id, sub);
        self.advance(&filter);
        Ok(id)
    }

    /// Removes a subscription, and what the relay did only for it.
    pub(super) fn leave(&mut self, id: SubId) {
        self.flush_acks();
        if self.subs.remove(&id).is_none() {
            return;
        }
        for topic in self.topics.values_mut() {
            topic.subs.retain(|sub| *sub != id);
        }
        self.asks.retain(|_, ask| !matches!(ask, Ask::Info(sub, _) if *sub == id));
        self.drop_unused();
    }

    /// The inbox of `id` did not take `event`: nothing more for it until [`Follows::resume`],
    /// which goes on with that event.
    pub(super) fn stall(&mut self, id: SubId, event: &Event) {
        self.flush_acks();
        let Some(sub) = self.subs.get_mut(&id) else { return };
        sub.stalled = true;
        let before = event.seq - 1;
        let acked = sub.mark(&event.topic).map_or(0, |mark| {
            if !event.redelivered {
                mark.take_back(event.seq);
            }
            mark.acked
        });
        if let Some(Cursor::At(at)) = sub.cursors.get_mut(&event.topic) {
            at.seq = before.max(acked);
        }
        for cursor in sub.cursors.values_mut() {
            if let Cursor::At(at) | Cursor::Rewinding(at) = *cursor {
                *cursor = Cursor::Held(at);
            }
        }
        // Else the relay would send what nobody here takes.
        self.drop_unused();
    }

    /// The inbox of `id` has room again.
    pub(super) fn resume(&mut self, id: SubId) {
        let Some(sub) = self.subs.get_mut(&id).filter(|sub| sub.stalled) else { return };
        sub.stalled = false;
        let filter = sub.filter.clone();
        let mut behind = Vec::new();
        for (name, cursor) in &mut sub.cursors {
            let Cursor::Held(at) = *cursor else { continue };
            *cursor = Cursor::At(at);
            if let Some(topic) = self.topics.get(name)
                && (topic.epoch != at.epoch || at.seq < topic.seq)
            {
                *cursor = Cursor::Rewinding(at);
                behind.push(name.clone());
            }
        }
        behind.iter().for_each(|name| self.rewind(name));
        self.advance(&filter);
    }

    /// A connection is ready for requests of at most `message_bytes_max`.
    pub(super) fn link_up(&mut self, message_bytes_max: usize) {
        self.online = true;
        self.message_bytes_max = message_bytes_max;
        let started = self.subs.iter().filter(|(_, sub)| sub.stage == Stage::Started);
        let back: Vec<Step> =
            started.map(|(id, _)| Step::Deliver(*id, Delivery::Reconnected)).collect();
        self.steps.extend(back);
        // Topics first: a pattern then shares the cursors that they put in place.
        for topics in [true, false] {
            let needed = self.subs.values().filter(|sub| sub.needs_filter());
            let filters: Vec<Filter> = needed.map(|sub| sub.filter.clone()).collect();
            for filter in filters {
                if matches!(filter, Filter::Topic(_)) == topics {
                    self.advance(&filter);
                }
            }
        }
    }

    /// The connection is gone, and what the relay knew about it with it.
    pub(super) fn link_down(&mut self) {
        self.online = false;
        self.held.clear();
        self.topics.clear();
        self.asks.clear();
        self.leaving.clear();
        self.due.clear();
        for sub in self.subs.values_mut() {
            if matches!(sub.stage, Stage::Seeking(_)) {
                sub.stage = Stage::Waiting;
            }
            sub.cursors.retain(|_, cursor| cursor.survive());
            sub.go_back_to_acknowledged();
        }
    }

    /// Does the next thing that the subscriptions with `filter` need.
    fn advance(&mut self, filter: &Filter) {
        if !self.online {
            return;
        }
        match self.held.get(filter) {
            None => self.hold(filter),
            Some(held) if held.ask.is_some() => return,
            Some(_) => {}
        }
        if self.held.get(filter).is_some_and(|held| held.ask.is_none()) {
            let waiting: Vec<SubId> = self
                .subs
                .iter()
                .filter(|(_, sub)| sub.filter == *filter && sub.stage == Stage::Waiting)
                .map(|(id, _)| *id)
                .collect();
            waiting.into_iter().for_each(|id| self.seek(id));
        }
    }

    /// Asks the relay to follow `filter`.
    fn hold(&mut self, filter: &Filter) {
        let mut held = Held { ask: None, initiator: None, announced: None, attached: 0 };
        if let Filter::Topic(name) = filter
            && self.topics.contains_key(name)
        {
            // A pattern brought it; from now on it is followed by name as well.
            self.held.insert(filter.clone(), held);
            self.rewind(&name.clone());
            return;
        }
        let (from, initiator) = self.start_of(filter);
        let Some(from) = from else { return };
        let id = self.next_id();
        held.ask = Some(id);
        held.initiator = initiator;
        self.held.insert(filter.clone(), held);
        self.asks.insert(id, Ask::Subscribe(filter.clone()));
        self.steps.push(Step::Send(self.subscribe(id, filter, &from)));
    }

    /// Where the relay is to start with `filter`, and whose wish that is if it is only one's.
    fn start_of(&self, filter: &Filter) -> (Option<From>, Option<SubId>) {
        let initiator = || {
            let waiting =
                |(_, sub): &(&SubId, &Sub)| sub.filter == *filter && sub.stage == Stage::Waiting;
            self.subs.iter().find(waiting).map(|(id, sub)| (sub.from.clone(), *id))
        };
        match filter {
            Filter::Topic(name) => match self.lowest(name) {
                Some(position) => (Some(From::After(position)), None),
                None => initiator().map_or((None, None), |(from, id)| (Some(from), Some(id))),
            },
            Filter::Pattern(pattern) => {
                let started = |sub: &Sub| {
                    sub.filter == *filter && sub.stage == Stage::Started && !sub.stalled
                };
                if self.subs.values().any(started) {
                    return (Some(From::Positions(self.positions(pattern))), None);
                }
                initiator().map_or((None, None), |(from, id)| (Some(from), Some(id)))
            }
        }
    }

    /// The lowest cursor that any subscription has on `name`. If their epochs differ, those that
    /// do not fit are told so when the relay's answer shows its own.
    fn lowest(&self, name: &Name) -> Option<Position> {
        let positions = self.subs.values().filter_map(|sub| sub.wanted(name));
        positions.min_by_key(|position| position.seq)
    }

    /// The lowest cursors on all topics that match `pattern`, as far as one message holds them.
    ///
    /// A topic that is left out starts at its beginning, and what was seen before is skipped: that
    /// costs traffic, not correctness.
    fn positions(&self, pattern: &Pattern) -> Vec<(Name, Position)> {
        let mut lowest: BTreeMap<&Name, Position> = BTreeMap::new();
        let names = |sub| std::iter::repeat(sub).zip(Sub::names(sub));
        for (sub, name) in self.subs.values().flat_map(names) {
            let Some(position) = sub.wanted(name).filter(|_| pattern.matches(name)) else {
                continue;
            };
            let entry = lowest.entry(name).or_insert(position);
            if position.seq < entry.seq {
                *entry = position;
            }
        }
        let mut room = self.message_bytes_max.saturating_sub(ENVELOPE_BYTES);
        let fits = |(name, _): &(&Name, Position)| {
            // Escaping can double a name, and then some.
            let bytes = 6 * name.as_str().len() + POSITION_BYTES;
            room.checked_sub(bytes).inspect(|left| room = *left).is_some()
        };
        let listed = lowest.into_iter().take(POSITIONS_MAX).take_while(fits);
        listed.map(|(name, position)| (name.clone(), position)).collect()
    }

    /// Asks for the starts of a subscription whose filter the relay already follows.
    fn seek(&mut self, id: SubId) {
        let Some(sub) = self.subs.get_mut(&id) else { return };
        let unknown = |name: &Name| !sub.cursors.get(name).is_some_and(Cursor::is_placed);
        let names: Vec<Name> = self
            .topics
            .keys()
            .filter(|name| sub.filter.matches(name) && unknown(name))
            .cloned()
            .collect();
        let from = sub.from.clone();
        sub.stage = Stage::Seeking(names.len());
        for name in names {
            self.ask_info(id, &name, &from);
        }
        self.check_started(id);
    }

    /// Asks for the facts of `name` that a subscription's start depends on.
    fn ask_info(&mut self, sub: SubId, name: &Name, from: &From) {
        if let Some(sub) = self.subs.get_mut(&sub) {
            sub.cursors.entry(name.clone()).or_insert(Cursor::Seeking);
        }
        let id = self.next_id();
        self.asks.insert(id, Ask::Info(sub, name.clone()));
        let from = matches!(from, From::Since(_)).then_some(FromBody(from));
        let request = Outgoing::History { topic: name.as_str(), from, limit: Some(1) };
        self.steps.push(Step::Send(encode(id, &request)));
    }

    /// Moves the relay's cursor for `name` back to where everybody gets what is due.
    fn rewind(&mut self, name: &Name) {
        let Some(topic) = self.topics.get(name) else { return };
        let subs = topic.subs.iter().filter_map(|id| self.subs.get(id));
        let rewinding =
            |sub: &&Sub| sub.cursors.get(name).is_some_and(|at| at.rewinding_to().is_some());
        let wanted = subs.filter(rewinding).filter_map(|sub| sub.wanted(name));
        let lowest = wanted.map(|position| position.seq).min();
        let seq = lowest.map_or(topic.seq, |lowest| lowest.min(topic.seq));
        let from = From::After(Position { epoch: topic.epoch, seq });
        let id = self.next_id();
        self.asks.insert(id, Ask::Rewind(name.clone()));
        // From now on the topic is followed by name too, whatever brought it.
        let held = Held { ask: None, initiator: None, announced: None, attached: 0 };
        let filter = Filter::Topic(name.clone());
        self.steps.push(Step::Send(self.subscribe(id, &filter, &from)));
        self.held.entry(filter).or_insert(held);
    }

    fn check_started(&mut self, id: SubId) {
        if let Some(sub) = self.subs.get_mut(&id)
            && sub.stage == Stage::Seeking(0)
        {
            sub.stage = Stage::Started;
            self.steps.push(Step::Started(id));
        }
    }

    /// Drops the filters that nobody here needs, and the topics that came only through them.
    fn drop_unused(&mut self) {
        let used = |filter: &Filter| match filter {
            // A topic that a pattern covers as well stays: its cursor may serve the pattern.
            Filter::Topic(name) => {
                self.subs.values().any(|sub| sub.needs_filter() && sub.filter.matches(name))
            }
            Filter::Pattern(_) => {
                self.subs.values().any(|sub| sub.needs_filter() && sub.filter == *filter)
            }
        };
        let unused: Vec<Filter> =
            self.held.keys().filter(|filter| !used(filter)).cloned().collect();
        for filter in unused {
            self.held.remove(&filter);
            self.asks.retain(|_, ask| match ask {
                Ask::Subscribe(asked) => *asked != filter,
                Ask::Rewind(name) => filter.as_str() != name.as_str(),
                Ask::Info(..) | Ask::Unsubscribe(_) => true,
            });
            let id = self.next_id();
            if let Filter::Pattern(pattern) = &filter {
                self.leaving.insert(pattern.clone(), id);
            }
            let request = Outgoing::Unsubscribe { topic: filter.as_str() };
            self.steps.push(Step::Send(encode(id, &request)));
            self.asks.insert(id, Ask::Unsubscribe(filter));
        }
        let held = &self.held;
        self.topics.retain(|name, _| held.keys().any(|filter| filter.matches(name)));
    }
}

/// Bytes of one position in a `subscribe`, its name apart.
const POSITION_BYTES: usize = 64;
/// Bytes of a `subscribe` beside its positions.
const ENVELOPE_BYTES: usize = 2_048;
