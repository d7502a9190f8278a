//! What the relay's messages do to the subscriptions.

use crate::{
    client::{
        delivery::{Delivery, Event, LossReason},
        error::{ClientError, Refused},
        follow::{
            Ask, Follows, Stage, Step, Sub, SubId, Topic,
            acks::Acking,
            cursor::{Cursor, Facts, Found},
        },
        message::{Incoming, Text},
    },
    name::{Filter, Name, Pattern},
    wire::position::Position,
};

impl Follows {
    /// Takes a message that is about subscriptions. `false` if it is about something else.
    pub(crate) fn take(&mut self, message: &Incoming<'_>) -> bool {
        match message.kind.as_str() {
            "event" => self.on_event(message),
            "gap" => self.on_gap(message),
            "attached" => self.on_attached(message),
            "subscribed" => self.on_subscribed(message),
            "unsubscribed" | "history" => return self.on_answer(message),
            _ => return false,
        }
        true
    }

    /// Whether `id` is a request of this module, which `refused` then ends.
    pub(crate) fn refuse(&mut self, id: u64, refused: &Refused) -> bool {
        let Some(ask) = self.asks.remove(&id) else { return false };
        match ask {
            Ask::Subscribe(filter) => self.refuse_filter(&filter, refused),
            Ask::Rewind(name) => {
                let stuck = |id: &SubId| {
                    let rewinding =
                        self.cursor(*id, &name).is_some_and(|at| at.rewinding_to().is_some());
                    // Those that asked for it by name would lose it with the last pattern.
                    let by_name = self.subs.get(id).is_some_and(
                        |sub| matches!(&sub.filter, Filter::Topic(topic) if *topic == name),
                    );
                    rewinding || by_name
                };
                let subs = self.topics.get(&name).map_or(&[][..], |topic| &topic.subs);
                let stuck: Vec<SubId> = subs.iter().copied().filter(stuck).collect();
                stuck.into_iter().for_each(|id| self.fail(id, refused));
            }
            Ask::Info(sub, _) => self.fail(sub, refused),
            Ask::Unsubscribe(filter) => {
                if let Filter::Pattern(pattern) = filter {
                    self.leaving.remove(&pattern);
                }
            }
        }
        true
    }

    /// The relay will not attach `topic` to any pattern of this connection.
    pub(in crate::client) fn lack(&mut self, topic: &str, refused: &Refused) {
        let Ok(name) = Name::parse(topic) else { return };
        let mut patterns = Vec::new();
        for (filter, held) in &mut self.held {
            if matches!(filter, Filter::Pattern(_)) && filter.matches(&name) {
                // It was counted among those that match at once.
                held.attached += u64::from(held.ask.is_some());
                patterns.push(filter.clone());
            }
        }
        for (id, sub) in &self.subs {
            if patterns.contains(&sub.filter) {
                let (topic, refused) = (name.clone(), refused.clone());
                self.steps.push(Step::Deliver(*id, Delivery::Unavailable { topic, refused }));
            }
        }
        patterns.iter().for_each(|filter| self.check_settled(filter));
    }

    fn refuse_filter(&mut self, filter: &Filter, refused: &Refused) {
        let initiator = self.held.remove(filter).and_then(|held| held.initiator);
        match initiator {
            Some(id) => {
                self.fail(id, refused);
                self.advance(filter);
            }
            None if refused.is_temporary() => self.steps.push(Step::Reconnect),
            None => {
                let subs = self.subs.iter().filter(|(_, sub)| sub.filter == *filter);
                let ended: Vec<SubId> = subs.map(|(id, _)| *id).collect();
                ended.into_iter().for_each(|id| self.fail(id, refused));
            }
        }
    }

    fn fail(&mut self, id: SubId, refused: &Refused) {
        self.leave(id);
        self.steps.push(Step::Failed(id, ClientError::Refused(refused.clone())));
    }

    fn on_event(&mut self, message: &Incoming<'_>) {
        let name = message.topic.as_ref().map_or("", Text::as_str);
        let Some((name, topic)) = self.topics.get_key_value(name) else { return };
        let (name, epoch, seq) = (name.clone(), topic.epoch, message.seq);
        let (mut event, mut acking): (Option<Event>, bool) = (None, false);
        for id in &topic.subs {
            let Some(sub) = self.subs.get_mut(id) else { continue };
            acking |= sub.acking.is_some();
            let Some(Cursor::At(at)) = sub.cursors.get_mut(&name) else { continue };
            if let Some(acking) = &mut sub.acking
                && seq <= topic.seq
                && let Some(after) = acking.go_back(&name, seq, at)
            {
                self.steps.push(Step::Forget(*id, name.clone(), after));
            }
            if seq <= at.seq {
                continue;
            }
            if at.seq + 1 < seq {
                log::error!("{name}: {seq} came after {} without a gap", at.seq);
                let (from, to) = (at.seq + 1, seq - 1);
                let reason = LossReason::Other;
                let gap = Delivery::Gap { topic: name.clone(), from, to, reason };
                self.steps.push(Step::Deliver(*id, gap));
                at.seq = to;
                if let Some(mark) = sub.mark(&name) {
                    mark.lose(from, to);
                }
            }
            if let Some(Cursor::At(at)) = sub.cursors.get_mut(&name) {
                at.seq = seq;
            }
            let redelivered = sub.mark(&name).is_some_and(|mark| mark.deliver(seq));
            let event = event.get_or_insert_with(|| Event {
                topic: name.clone(),
                epoch,
                seq,
                time: message.time,
                user: message.user.as_ref().map(|user| user.as_str().into()),
                name: message.name.as_ref().map(|name| name.as_str().into()),
                data: message.data.0.into(),
                redelivered,
            });
            self.steps.push(Step::Deliver(*id, Delivery::Event(event.clone())));
        }
        if let Some(topic) = self.topics.get_mut(&name) {
            topic.seq = seq;
            topic.tail = topic.tail.max(seq);
        }
        if acking {
            self.reached(&name, seq);
        }
    }

    fn on_gap(&mut self, message: &Incoming<'_>) {
        let name = message.topic.as_ref().map_or("", Text::as_str);
        let Some((name, topic)) = self.topics.get_key_value(name) else { return };
        let name = name.clone();
        let reason =
            message.reason.as_ref().map_or(LossReason::Other, |text| LossReason::parse(&text.0));
        let mut acking = false;
        for id in &topic.subs {
            let Some(sub) = self.subs.get_mut(id) else { continue };
            acking |= sub.acking.is_some();
            let Some(Cursor::At(at)) = sub.cursors.get_mut(&name) else { continue };
            if let Some(acking) = &mut sub.acking
                && message.from <= topic.seq
                && let Some(after) = acking.go_back(&name, message.from, at)
            {
                self.steps.push(Step::Forget(*id, name.clone(), after));
            }
            if at.seq < message.to {
                let (from, to) = (at.seq + 1, message.to);
                at.seq = to;
                if let Some(mark) = sub.mark(&name) {
                    mark.lose(from, to);
                }
                let gap = Delivery::Gap { topic: name.clone(), from, to, reason };
                self.steps.push(Step::Deliver(*id, gap));
            }
        }
        if let Some(topic) = self.topics.get_mut(&name) {
            topic.seq = if acking { message.to } else { topic.seq.max(message.to) };
            topic.tail = topic.tail.max(message.to);
        }
        if acking {
            self.reached(&name, message.to);
        }
    }

    fn on_subscribed(&mut self, message: &Incoming<'_>) {
        let Some(ask) = message.id.and_then(|id| self.asks.remove(&id)) else { return };
        match ask {
            Ask::Subscribe(Filter::Topic(name)) => {
                let filter = Filter::Topic(name.clone());
                let initiator = self.held.get_mut(&filter).and_then(|held| {
                    held.ask = None;
                    held.initiator.take()
                });
                let Some(facts) = facts(message) else { return };
                self.place(&name, facts);
                if let Some(id) = initiator {
                    if self.subs.get(&id).is_some_and(Sub::consumes) {
                        self.give_consumer(id, &name, facts, message.recovery.as_ref());
                    } else {
                        self.give(id, &name, facts, Some(facts.seq));
                    }
                    self.begin(id);
                }
                self.advance(&filter);
            }
            Ask::Subscribe(Filter::Pattern(pattern)) => {
                let filter = Filter::Pattern(pattern);
                if let Some(held) = self.held.get_mut(&filter) {
                    held.announced = Some(message.attached);
                }
                self.check_settled(&filter);
            }
            Ask::Rewind(name) => {
                if let Some(facts) = facts(message) {
                    self.place(&name, facts);
                }
            }
            Ask::Info(..) | Ask::Unsubscribe(_) => {}
        }
    }

    fn on_attached(&mut self, message: &Incoming<'_>) {
        let (Some(name), Some(pattern)) = (&message.topic, &message.pattern) else { return };
        let (Ok(name), Ok(pattern)) = (Name::parse(&name.0), Pattern::parse(&pattern.0)) else {
            return;
        };
        let Some(mut facts) = facts(message) else { return };
        let filter = Filter::Pattern(pattern.clone());
        let Some(held) = self.held.get_mut(&filter) else { return };
        if self.leaving.contains_key(&pattern) {
            return;
        }
        let initial = held.ask.is_some();
        let initiator = held.initiator.filter(|_| initial);
        held.attached += u64::from(initial);
        let known = self.topics.get(&name).filter(|topic| topic.epoch == facts.epoch);
        if message.shared
            && let Some(topic) = known
        {
            // What has arrived here counts: the relay's cursor may be ahead of it.
            facts.seq = topic.seq;
        }
        self.place(&name, facts);
        let followers: Vec<SubId> = self
            .subs
            .iter()
            .filter(|(_, sub)| sub.filter == filter && !sub.cursors.contains_key(&name))
            .filter(|(id, sub)| sub.stage != Stage::Waiting || initiator == Some(**id))
            .map(|(id, _)| *id)
            .collect();
        for id in followers {
            let from = self.subs[&id].from.clone();
            let want = if !message.shared {
                Some(facts.seq)
            } else if initiator == Some(id) {
                facts.start(&from)
            } else {
                // It came to exist later, so all of it is new.
                Some(facts.beginning())
            };
            match want {
                Some(_) => self.give(id, &name, facts, want),
                None => self.ask_info(id, &name, &from),
            }
        }
        self.check_settled(&filter);
    }

    /// Ends the asking for a pattern when all that it matched at once is attached.
    fn check_settled(&mut self, filter: &Filter) {
        let Some(held) = self.held.get_mut(filter) else { return };
        if held.ask.is_none() || held.announced.is_none_or(|announced| held.attached < announced) {
            return;
        }
        held.ask = None;
        if let Some(id) = held.initiator.take() {
            self.begin(id);
        }
        self.advance(filter);
    }

    /// The first answer for `id` is complete; what it lacks is being asked for.
    fn begin(&mut self, id: SubId) {
        if let Some(sub) = self.subs.get_mut(&id) {
            let seeking = sub.cursors.values().filter(|cursor| **cursor == Cursor::Seeking);
            sub.stage = Stage::Seeking(seeking.count());
        }
        self.check_started(id);
    }

    /// Takes `unsubscribed` or `history`, if it answers a request of this module.
    fn on_answer(&mut self, message: &Incoming<'_>) -> bool {
        let Some(ask) = message.id.and_then(|id| self.asks.remove(&id)) else { return false };
        match ask {
            Ask::Unsubscribe(Filter::Pattern(pattern)) => {
                if self.leaving.get(&pattern) == message.id.as_ref() {
                    self.leaving.remove(&pattern);
                }
            }
            Ask::Info(id, name) => self.on_info(id, &name, message),
            Ask::Unsubscribe(Filter::Topic(_)) | Ask::Subscribe(_) | Ask::Rewind(_) => {}
        }
        true
    }

    fn on_info(&mut self, id: SubId, name: &Name, message: &Incoming<'_>) {
        let Some(mut facts) = facts(message) else { return };
        let (Some(sub), Some(topic)) = (self.subs.get(&id), self.topics.get_mut(name)) else {
            return;
        };
        facts.seq = topic.seq;
        topic.tail = topic.tail.max(facts.tail);
        if sub.cursors.get(name) == Some(&Cursor::Seeking) {
            let from = sub.from.clone();
            let earliest = message.events.first().map(|event| event.seq.saturating_sub(1));
            let earliest = earliest.unwrap_or(facts.tail);
            let want = Some(facts.start(&from).unwrap_or(earliest));
            self.give(id, name, facts, want);
        } else if matches!(sub.cursors.get(name), Some(Cursor::Preset(_))) {
            self.settle(id, name, facts);
        }
        if self.cursor(id, name).is_some_and(|cursor| cursor.rewinding_to().is_some()) {
            self.rewind(name);
        }
        if let Some(sub) = self.subs.get_mut(&id)
            && let Stage::Seeking(left) = &mut sub.stage
        {
            *left = left.saturating_sub(1);
        }
        self.check_started(id);
    }

    /// The relay's cursor for `name` is at `facts.seq`: brings every subscription in line.
    fn place(&mut self, name: &Name, mut facts: Facts) {
        let subs = match self.topics.get_mut(name) {
            Some(topic) => {
                if topic.epoch == facts.epoch {
                    // An answer may be older than what arrived before it.
                    facts.tail = facts.tail.max(topic.tail);
                }
                topic.epoch = facts.epoch;
                topic.seq = facts.seq;
                topic.tail = facts.tail;
                topic.subs.clone()
            }
            None => {
                let covering = self.subs.iter().filter(|(_, sub)| sub.filter.matches(name));
                let subs: Vec<SubId> = covering.map(|(id, _)| *id).collect();
                let Facts { epoch, seq, tail, .. } = facts;
                self.topics.insert(name.clone(), Topic { epoch, seq, tail, subs: subs.clone() });
                subs
            }
        };
        for id in &subs {
            self.settle(*id, name, facts);
            if let Some(mark) = self.subs.get_mut(id).and_then(|sub| sub.mark(name)) {
                mark.restart(facts.seq);
            }
        }
        let behind = |id: &SubId| {
            self.cursor(*id, name).is_some_and(|cursor| cursor.rewinding_to().is_some())
        };
        if subs.iter().any(behind) {
            self.rewind(name);
        }
    }

    fn cursor(&self, id: SubId, name: &Name) -> Option<&Cursor> {
        self.subs.get(&id)?.cursors.get(name)
    }

    /// Compares the cursor that `id` has on `name` with what the relay has, and says what is lost.
    fn settle(&mut self, id: SubId, name: &Name, facts: Facts) {
        let Some(sub) = self.subs.get_mut(&id) else { return };
        let Some(cursor) = sub.cursors.get_mut(name) else { return };
        let Some(at) = cursor.position() else { return };
        let first_time = matches!(cursor, Cursor::Preset(_));
        let consumes = sub.acking.as_ref().is_some_and(Acking::consumes);
        let (found, seq) = if consumes { facts.find_consumer(at) } else { facts.find(at) };
        *cursor = facts.cursor(seq);
        let topic = name.clone();
        if first_time {
            // At the position that the program gave, so that a loss follows from there.
            let position = at;
            let Facts { first, tail, .. } = facts;
            let attached = Delivery::Attached { topic: topic.clone(), position, first, tail };
            self.steps.push(Step::Deliver(id, attached));
            sub.set_mark(name, facts.position(seq));
        } else if let Some(after) = sub.confirm_mark(name, found, facts.position(seq)) {
            self.steps.push(Step::Forget(id, topic.clone(), after));
        }
        let loss = match found {
            Found::Everything => return,
            Found::Partly { from, to } => {
                // A consumer may also have been moved on the relay.
                let stored = to <= facts.beginning();
                let reason = if stored { LossReason::Truncated } else { LossReason::Other };
                Delivery::Gap { topic, from, to, reason }
            }
            Found::Foreign { lost, reason } => {
                Delivery::Reset { topic, lost, position: facts.position(seq), reason }
            }
        };
        self.steps.push(Step::Deliver(id, loss));
    }

    /// Gives `id` its first cursor on `name`, unless it has one.
    fn give(&mut self, id: SubId, name: &Name, facts: Facts, want: Option<u64>) {
        let (Some(sub), Some(want)) = (self.subs.get_mut(&id), want) else { return };
        if sub.cursors.get(name).is_some_and(|cursor| *cursor != Cursor::Seeking) {
            return;
        }
        let mut cursor = facts.cursor(want);
        if let Some(at) = cursor.position().filter(|_| sub.stalled) {
            cursor = Cursor::Held(at);
        }
        sub.cursors.insert(name.clone(), cursor);
        let position = facts.position(want);
        sub.set_mark(name, position);
        let Facts { first, tail, .. } = facts;
        let attached = Delivery::Attached { topic: name.clone(), position, first, tail };
        self.steps.push(Step::Deliver(id, attached));
        if cursor.rewinding_to().is_some() {
            self.rewind(name);
        }
    }
}

impl Facts {
    fn position(&self, seq: u64) -> Position {
        Position { epoch: self.epoch, seq }
    }
}

fn facts(message: &Incoming<'_>) -> Option<Facts> {
    let Incoming { seq, first, tail, .. } = *message;
    message.epoch.map(|epoch| Facts { epoch: epoch.0, seq, first, tail })
}
