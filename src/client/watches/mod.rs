//! Which local watch gets which change of the shared state, over one connection.
//!
//! The relay keeps one position per state for a connection, which all its watches share; keys that
//! begin with `$` are a second state. Live changes come in the order of their versions, each once,
//! however many watches match. A watch that begins gets what it lacks between `watching` and
//! `synced`, and nothing else comes meanwhile:
//!
//! ```text
//! position  .......4                          live: 5, 6, ...
//! watch A          4    5 6 |               | 7
//! watch B joins             | 2 3 5, synced | 7     what A has already, only B gets
//! ```
//!
//! So the position is the highest version that came outside of these stretches, and rises to the
//! version of each `synced`. After a reconnect every watch that was synced resumes from it; one
//! that was not begins where it would have begun.
//!
//! The relay knows a pattern once per connection. A second local watch of a pattern that is
//! followed already has it begin anew, for both.
//!
//! # Place
//!
//! Part of the value behind the client's lock: no clock, thread or socket. What the relay is to be
//! asked comes out as [`Step`]s; changes go to the watches' trays, which always take them.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde_json::value::RawValue;

use crate::{
    base::lane::Inlet,
    client::{
        error::{ClientError, Refused},
        message::{self, Incoming, Outgoing, Text, VersionBody},
        session::Answer,
        value::Value,
        watch::{Tray, WatchEvent},
    },
    name::{Filter, Name},
    wire::{position::Epoch, state::StatePosition},
};

/// Identifies one local watch.
pub(super) type WatchId = u64;

/// Something to be done, in order.
#[derive(Debug)]
pub(super) enum Step {
    /// A request without its id, which [`Watches::asked`] is to learn.
    Ask(Ask, String),
    /// This connection cannot go on now, but another may.
    Reconnect,
}

/// What an answer will be about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Watch(Filter),
    /// The end of something: nothing depends on the answer.
    End,
    Join(Name),
}

/// The local watches, what the relay does for them, and where this client is present.
#[derive(Default)]
pub(super) struct Watches {
    ids: WatchId,
    online: bool,
    patterns: HashMap<Filter, Followed>,
    asks: HashMap<u64, Ask>,
    /// Where the connection is in the state of all, and in that of the relay.
    positions: [Option<StatePosition>; 2],
    /// Topics that were joined, with what else is to be known.
    joined: BTreeMap<Name, Option<Box<RawValue>>>,
    steps: Vec<Step>,
}

/// A pattern that somebody here watches.
#[derive(Default)]
struct Followed {
    locals: BTreeMap<WatchId, Local>,
    stage: Stage,
    /// Where it goes on; `None` if it begins with everything.
    resume: Option<StatePosition>,
}

/// What the relay does for a pattern on this connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Nothing.
    #[default]
    Idle,
    /// It is asked to follow it; the answer counts only under the newest id.
    Asked(Option<u64>),
    /// It sends what the watches lack.
    Catching(Epoch),
    Live,
    /// It begins it anew, as it has begun to do with all watches of the state: another one's
    /// `synced` may be ahead of what this one has.
    Behind,
}

struct Local {
    tray: Arc<Tray>,
    /// Who waits for the watch to begin.
    starting: Option<Inlet<Answer<()>>>,
    /// The highest version it was given, or knows that there is nothing up to.
    seen: u64,
    /// While it catches up: the version of each key that it was given. What was cut off comes
    /// again.
    given: HashMap<Name, u64>,
}

/// The index of the state that `text` is about.
fn state_of(text: &str) -> usize {
    usize::from(text.starts_with('$'))
}

impl Watches {
    /// Asks for what became of the steps, oldest first.
    pub(super) fn steps(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }

    /// A request of [`Step::Ask`] goes out under `id`.
    pub(super) fn asked(&mut self, id: u64, ask: Ask) {
        if let Ask::Watch(filter) = &ask
            && let Some(followed) = self.patterns.get_mut(filter)
        {
            followed.stage = Stage::Asked(Some(id));
        }
        self.asks.insert(id, ask);
    }

    /// Adds a watch. `starting` hears when it begins, or why it does not.
    pub(super) fn watch(
        &mut self,
        filter: Filter,
        tray: Arc<Tray>,
        starting: Inlet<Answer<()>>,
    ) -> WatchId {
        self.ids += 1;
        let id = self.ids;
        let local = Local { tray, starting: Some(starting), seen: 0, given: HashMap::new() };
        let followed = self.patterns.entry(filter.clone()).or_default();
        // It begins with everything, which for now only the relay knows.
        let rides_along = followed.resume.is_none() && matches!(followed.stage, Stage::Asked(_));
        followed.locals.insert(id, local);
        if !rides_along {
            self.begin_anew(&filter);
        }
        id
    }

    /// Removes a watch, and what the relay did only for it.
    pub(super) fn unwatch(&mut self, filter: &Filter, id: WatchId) {
        let Some(followed) = self.patterns.get_mut(filter) else { return };
        followed.locals.remove(&id);
        if followed.locals.is_empty() {
            let stage = followed.stage;
            self.patterns.remove(filter);
            if stage != Stage::Idle {
                self.send_unwatch(filter);
            }
        }
    }

    /// A tray would not take more deletions: its pattern begins anew.
    fn begin_anew(&mut self, filter: &Filter) {
        let Some(followed) = self.patterns.get_mut(filter) else { return };
        followed.resume = None;
        let was_followed = followed.stage != Stage::Idle;
        followed.stage = Stage::Idle;
        if self.online {
            if was_followed {
                self.send_unwatch(filter);
            }
            self.send_watch(filter);
        }
    }

    /// Is present in `topic` from now on, on every connection.
    pub(super) fn join(&mut self, topic: Name, info: Option<Box<RawValue>>) {
        self.joined.insert(topic, info);
    }

    /// Is not present in `topic` any more, as far as new connections go.
    pub(super) fn leave(&mut self, topic: &Name) {
        self.joined.remove(topic);
    }

    /// As [`Watches::leave`], and tells the relay, which may have heard the opposite.
    pub(super) fn withdraw(&mut self, topic: &Name) {
        self.leave(topic);
        if self.online {
            let body = message::body(&Outgoing::Leave { topic: topic.as_str() });
            self.steps.push(Step::Ask(Ask::End, body));
        }
    }

    /// A connection is ready.
    pub(super) fn link_up(&mut self) {
        self.online = true;
        let joins: Vec<(Name, String)> =
            self.joined.iter().map(|(topic, info)| (topic.clone(), join(topic, info))).collect();
        for (topic, body) in joins {
            self.steps.push(Step::Ask(Ask::Join(topic), body));
        }
        let mut filters: Vec<Filter> = self.patterns.keys().cloned().collect();
        // The same order every time, so that what goes wrong once can be repeated.
        filters.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
        filters.iter().for_each(|filter| self.send_watch(filter));
    }

    /// The connection is gone, and what the relay knew about it with it.
    pub(super) fn link_down(&mut self) {
        self.online = false;
        self.asks.clear();
        self.steps.clear();
        for (filter, followed) in &mut self.patterns {
            if followed.stage == Stage::Live {
                followed.resume = self.positions[state_of(filter.as_str())];
            }
            followed.stage = Stage::Idle;
        }
    }

    /// Nothing more comes, for this reason.
    pub(super) fn end(&mut self, error: &ClientError) {
        for (_, followed) in self.patterns.drain() {
            followed.fail(error);
        }
        self.joined.clear();
        self.steps.clear();
    }

    fn send_watch(&mut self, filter: &Filter) {
        let Some(followed) = self.patterns.get_mut(filter) else { return };
        followed.stage = Stage::Asked(None);
        let from = followed.resume.map(VersionBody::of);
        let request = Outgoing::Watch { pattern: filter.as_str(), from };
        self.steps.push(Step::Ask(Ask::Watch(filter.clone()), message::body(&request)));
    }

    fn send_unwatch(&mut self, filter: &Filter) {
        let request = Outgoing::Unwatch { pattern: filter.as_str() };
        self.steps.push(Step::Ask(Ask::End, message::body(&request)));
    }

    /// Takes a message that is about watches. `false` if it is about something else.
    pub(super) fn take(&mut self, message: &Incoming<'_>) -> bool {
        match message.kind.as_str() {
            "state" => self.on_state(message),
            "watching" => self.on_watching(message),
            "synced" => self.on_synced(message),
            "unwatched" | "joined" | "left" => {
                return message.id.is_none_or(|id| self.asks.remove(&id).is_some());
            }
            _ => return false,
        }
        true
    }

    /// Whether `id` is a request of this module, which `refused` then ends.
    pub(super) fn refuse(&mut self, id: u64, refused: &Refused) -> bool {
        match self.asks.remove(&id) {
            None => return false,
            Some(Ask::End) => {}
            Some(Ask::Join(_)) if refused.is_temporary() => self.steps.push(Step::Reconnect),
            Some(Ask::Join(topic)) => {
                log::warn!("not present in {topic} any more: {refused}");
                self.joined.remove(&topic);
            }
            Some(Ask::Watch(filter)) => {
                let Some(followed) = self.patterns.get(&filter) else { return true };
                if followed.stage != Stage::Asked(Some(id)) {
                    return true;
                }
                // Who has begun before is not ended by what passes.
                let has_begun = followed.locals.values().any(|local| local.starting.is_none());
                if has_begun && refused.is_temporary() {
                    self.steps.push(Step::Reconnect);
                } else if let Some(followed) = self.patterns.remove(&filter) {
                    followed.fail(&ClientError::Refused(refused.clone()));
                }
            }
        }
        true
    }

    fn on_watching(&mut self, message: &Incoming<'_>) {
        if let Some(id) = message.id {
            self.asks.remove(&id);
        }
        let text = message.pattern.as_ref().map_or("", Text::as_str);
        let (Ok(filter), Some(epoch)) = (Filter::parse(text), message.epoch) else { return };
        let epoch = epoch.0;
        let Some(followed) = self.patterns.get_mut(&filter) else { return };
        let is_current = match (followed.stage, message.id) {
            (Stage::Asked(asked), Some(id)) => asked == Some(id),
            // The relay begins anew by itself.
            (Stage::Live | Stage::Behind | Stage::Catching(_), None) => true,
            _ => false,
        };
        if !is_current {
            return;
        }
        if message.id.is_none() && followed.stage == Stage::Live {
            self.fall_behind(state_of(text));
        }
        let Some(followed) = self.patterns.get_mut(&filter) else { return };
        followed.stage = Stage::Catching(epoch);
        if message.reset {
            followed.resume = None;
        }
        for local in followed.locals.values_mut() {
            if message.reset {
                local.seen = 0;
                local.given.clear();
                local.tray.put(WatchEvent::Reset);
            }
            if let Some(starting) = local.starting.take() {
                // Whoever waited may have given up.
                drop(starting.send(Ok(())));
            }
        }
        let position = &mut self.positions[state_of(filter.as_str())];
        if position.is_none_or(|at| at.epoch != epoch) {
            *position = Some(StatePosition { epoch, version: 0 });
        }
    }

    /// The relay begins all watches of a state anew, one after the other: until its turn has come,
    /// none of them can go on from the position.
    fn fall_behind(&mut self, which: usize) {
        let own = |filter: &Filter| state_of(filter.as_str()) == which;
        for (_, followed) in self.patterns.iter_mut().filter(|(filter, _)| own(filter)) {
            if followed.stage == Stage::Live {
                (followed.stage, followed.resume) = (Stage::Behind, None);
            }
        }
    }

    fn on_state(&mut self, message: &Incoming<'_>) {
        let text = message.key.as_ref().map_or("", Text::as_str);
        let (Ok(key), Some(version)) = (Name::parse(text), message.version) else { return };
        let which = state_of(text);
        let event = event(&key, version, message);
        let matches = |filter: &Filter| filter.matches(&key);
        let mut is_live = true;
        let mut full = Vec::new();
        for (filter, followed) in self.patterns.iter_mut().filter(|(filter, _)| matches(filter)) {
            if !matches!(followed.stage, Stage::Catching(_)) {
                continue;
            }
            is_live = false;
            for local in followed.locals.values_mut() {
                let given = local.given.entry(key.clone()).or_default();
                if *given < version {
                    *given = version;
                    if !local.tray.put(event.clone()) {
                        full.push(filter.clone());
                    }
                }
            }
        }
        if is_live {
            if let Some(at) = &mut self.positions[which] {
                at.version = at.version.max(version);
            }
            for (filter, followed) in self.patterns.iter_mut().filter(|(filter, _)| matches(filter))
            {
                if !matches!(followed.stage, Stage::Live | Stage::Behind) {
                    continue;
                }
                for local in followed.locals.values_mut().filter(|local| local.seen < version) {
                    local.seen = version;
                    if !local.tray.put(event.clone()) {
                        full.push(filter.clone());
                    }
                }
            }
        }
        full.dedup();
        full.iter().for_each(|filter| self.begin_anew(filter));
    }

    fn on_synced(&mut self, message: &Incoming<'_>) {
        let text = message.pattern.as_ref().map_or("", Text::as_str);
        let (Ok(filter), Some(version)) = (Filter::parse(text), message.version) else { return };
        let Some(followed) = self.patterns.get_mut(&filter) else { return };
        let Stage::Catching(epoch) = followed.stage else { return };
        followed.stage = Stage::Live;
        for local in followed.locals.values_mut() {
            local.given = HashMap::new();
            local.seen = local.seen.max(version);
            local.tray.put(WatchEvent::Synced { version });
        }
        let position = &mut self.positions[state_of(filter.as_str())];
        let before = position.filter(|at| at.epoch == epoch).map_or(0, |at| at.version);
        *position = Some(StatePosition { epoch, version: version.max(before) });
    }
}

impl Followed {
    fn fail(self, error: &ClientError) {
        for (_, local) in self.locals {
            if let Some(starting) = local.starting {
                drop(starting.send(Err(error.clone())));
            }
            local.tray.end(error.clone());
        }
    }
}

/// The request that makes this client present in `topic`.
pub(super) fn join(topic: &Name, info: &Option<Box<RawValue>>) -> String {
    message::body(&Outgoing::Join { topic: topic.as_str(), info: info.as_deref() })
}

fn event(key: &Name, version: u64, message: &Incoming<'_>) -> WatchEvent {
    let (key, time) = (key.clone(), message.time);
    if message.deleted {
        return WatchEvent::Deleted { key, version, time };
    }
    let user = message.user.as_ref().map(|user| user.as_str().into());
    WatchEvent::Set(Value { key, version, time, user, data: message.value.0.into() })
}
