//! Live changes of a state: who watches the same keys shares every copy.
//!
//! A writer looks once at which keys have changed, finds the circles that are concerned, and copies
//! one batch for each. Whoever cannot take it keeps a position of its own, and gets the newest of
//! each key when it can.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use slab::Slab;

use super::{ARENA_BYTES, PartKind, Writer, peer::Part, stream::Forms};
use crate::{
    base::{limits::TURN_BYTES, lock},
    name::{Filter, Name},
    server::state::Which,
    state::{Copied, Space, Wanted},
    topic::trie::Trie,
    wire::frame,
};

/// One state as one writer sees it.
pub(super) struct View {
    pub(super) space: Arc<Space>,
    /// Circles have been told of all changes up to this version.
    seen: u64,
    /// There may be later ones.
    is_due: bool,
    circles: Slab<Circle>,
    by_filters: HashMap<Vec<Filter>, usize>,
    named: HashMap<Name, Vec<usize>>,
    patterns: Trie<usize>,
    /// Circles with changes for their group.
    ready: VecDeque<usize>,
}

/// Those who watch the same keys.
struct Circle {
    filters: Vec<Filter>,
    /// Everybody in the group has every change of these keys up to this version.
    at: u64,
    /// Peers that stand at `at`.
    group: Vec<usize>,
    /// Peers in the group or behind.
    members: usize,
    /// Waits in `ready`.
    is_queued: bool,
}

/// Looks at changed keys that one turn takes.
const LOOKS_PER_TURN: usize = 4;

impl View {
    pub(super) fn new(space: Arc<Space>) -> Self {
        Self {
            space,
            seen: 0,
            is_due: false,
            circles: Slab::new(),
            by_filters: HashMap::new(),
            named: HashMap::new(),
            patterns: Trie::default(),
            ready: VecDeque::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn circles(&self) -> usize {
        self.circles.len()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.is_due || !self.ready.is_empty()
    }

    fn open(&mut self, filters: &[Filter]) -> usize {
        if let Some(&circle) = self.by_filters.get(filters) {
            return circle;
        }
        if self.circles.is_empty() {
            // Who comes first reads everything up to now for itself.
            self.seen = self.space.look(|map| map.version());
        }
        let filters = filters.to_vec();
        let circle = Circle {
            filters: filters.clone(),
            at: 0,
            group: Vec::new(),
            members: 0,
            is_queued: false,
        };
        let circle = self.circles.insert(circle);
        for filter in &filters {
            match filter {
                Filter::Topic(key) => self.named.entry(key.clone()).or_default().push(circle),
                Filter::Pattern(pattern) => self.patterns.insert(pattern, circle),
            }
        }
        self.by_filters.insert(filters, circle);
        circle
    }

    fn close_if_empty(&mut self, index: usize) {
        if 0 < self.circles[index].members {
            return;
        }
        let circle = self.circles.remove(index);
        for filter in &circle.filters {
            match filter {
                Filter::Topic(key) => {
                    if let Some(circles) = self.named.get_mut(key) {
                        circles.retain(|circle| *circle != index);
                        if circles.is_empty() {
                            self.named.remove(key);
                        }
                    }
                }
                Filter::Pattern(pattern) => _ = self.patterns.remove(pattern, &index),
            }
        }
        self.by_filters.remove(&circle.filters);
        if circle.is_queued {
            self.ready.retain(|ready| *ready != index);
        }
    }

    /// Notes that a circle has changes. Until now its group had everything up to `seen`.
    fn queue(&mut self, index: usize, seen: u64) {
        let circle = &mut self.circles[index];
        if !circle.is_queued {
            circle.is_queued = true;
            circle.at = circle.at.max(seen);
            self.ready.push_back(index);
        }
    }

    /// Finds the circles that recent changes concern.
    fn look(&mut self) {
        if self.circles.is_empty() {
            return;
        }
        for _ in 0..LOOKS_PER_TURN {
            let seen = self.seen;
            let (changed, upto, version, horizon) = self.space.look(|map| {
                let (changed, upto) = map.changed(seen);
                (changed, upto, map.version(), map.horizon())
            });
            if seen < horizon {
                // Deletions that nobody knows any more are not among them, and may concern anybody.
                let all: Vec<usize> = self.circles.iter().map(|(circle, _)| circle).collect();
                all.into_iter().for_each(|circle| self.queue(circle, seen));
            }
            for key in changed {
                let mut found = self.named.get(&key).cloned().unwrap_or_default();
                found.extend(self.patterns.matching(&key));
                found.into_iter().for_each(|circle| self.queue(circle, seen));
            }
            self.seen = upto;
            self.is_due = upto < version;
            if !self.is_due {
                return;
            }
        }
    }
}

impl Writer {
    pub(super) fn wake_state(&mut self, which: Which) {
        self.views[which as usize].is_due = true;
    }

    /// Gives each circle that has changes one batch of them.
    pub(super) fn deliver_states(&mut self) {
        for view in &mut self.views {
            if std::mem::take(&mut view.is_due) {
                // Before looking: what changes later sends another wake-up.
                view.space.woken(self.index);
                view.look();
            }
        }
        // Those who are behind get a part of every turn. The states take turns, and one of each is
        // served whatever the topics have taken, so that nobody keeps another waiting for ever.
        let bytes_max = if self.lagging.is_empty() { ARENA_BYTES } else { ARENA_BYTES / 4 * 3 };
        let mut left = Which::ALL.map(|which| self.views[which as usize].ready.len());
        while left != [0, 0] {
            for which in Which::ALL {
                let view = &mut self.views[which as usize];
                let left = &mut left[which as usize];
                if 0 < *left
                    && let Some(circle) = view.ready.pop_front()
                {
                    view.circles[circle].is_queued = false;
                    self.move_circle(which, circle);
                }
                *left = left.saturating_sub(1);
            }
            if bytes_max <= self.arena.len() {
                return;
            }
        }
    }

    /// Moves a circle's group by one batch.
    fn move_circle(&mut self, which: Which, index: usize) {
        let view = &mut self.views[which as usize];
        let circle = &view.circles[index];
        if circle.group.is_empty() {
            return;
        }
        let from = circle.at;
        let start = self.arena.len();
        let filters = &circle.filters;
        let wanted = Wanted { filters, after: from, upto: u64::MAX, is_snapshot: false };
        let arena = &mut self.arena;
        let (copied, version) =
            view.space.look(|map| (map.copy(&wanted, TURN_BYTES, arena), map.version()));
        lock::assert_none_held();
        match copied {
            Copied::UpTo(to) => {
                view.circles[index].at = to;
                if to < version {
                    view.queue(index, to);
                }
                let range = start..self.arena.len();
                if !range.is_empty() {
                    let count = frame::payloads(&self.arena[range.clone()]).count() as u64;
                    let kind = PartKind::States { which, is_starting: false, from, count };
                    self.hand_round(which, index, &Part::frames(range, kind));
                }
            }
            Copied::Lost => {
                for peer in view.circles[index].group.clone() {
                    self.reset_watches(peer, which);
                }
            }
        }
    }

    /// Adds `part` to everybody in a circle's group who can take it; the others fall behind.
    fn hand_round(&mut self, which: Which, circle: usize, part: &Part) {
        let PartKind::States { from, .. } = part.kind else { return };
        let mut forms = Forms::default();
        let mut slot = 0;
        while let Some(&index) = self.views[which as usize].circles[circle].group.get(slot) {
            if self.peers[index].is_stalled() {
                // Its place is taken by the last of the group, whose turn it is then.
                self.fall_out(index, which);
                if let Some(watcher) = &mut self.peers[index].watchers[which as usize] {
                    watcher.cursor = Some(from);
                }
                continue;
            }
            let own = self.form_of(index, part, &mut forms);
            self.peers[index].parts.push(own);
            self.touch(index);
            slot += 1;
        }
    }

    /// Moves a peer that is behind its circle by one batch, and into the group if it is there.
    pub(super) fn catch_up_with_circle(&mut self, index: usize, which: Which) {
        let Some(watcher) = &self.peers[index].watchers[which as usize] else { return };
        let (Some(circle), Some(from)) = (watcher.circle, watcher.cursor) else { return };
        let view = &mut self.views[which as usize];
        let seen = view.seen;
        let own = &mut view.circles[circle];
        if !own.is_queued && !own.group.is_empty() {
            own.at = own.at.max(seen);
        }
        let group = if own.group.is_empty() { u64::MAX } else { own.at };
        let start = self.arena.len();
        let wanted = Wanted { filters: &own.filters, after: from, upto: group, is_snapshot: false };
        let arena = &mut self.arena;
        let (copied, version) =
            view.space.look(|map| (map.copy(&wanted, TURN_BYTES, arena), map.version()));
        lock::assert_none_held();
        match copied {
            Copied::Lost => self.reset_watches(index, which),
            Copied::UpTo(to) => {
                self.add_states(index, which, (start, from), false);
                let Some(watcher) = &mut self.peers[index].watchers[which as usize] else { return };
                watcher.cursor = Some(to);
                let view = &mut self.views[which as usize];
                if group < to {
                    // What this one skipped the group has not looked at yet.
                    view.queue(circle, group);
                } else if version.min(group) <= to {
                    let own = &mut view.circles[circle];
                    if own.group.is_empty() {
                        own.at = to;
                    }
                    watcher.slot = own.group.len();
                    watcher.cursor = None;
                    own.group.push(index);
                }
            }
        }
    }

    /// Makes a peer a member of the circle for what it watches, behind the group. When its turn has
    /// come, and not before: requests that come together then change its circle once.
    pub(super) fn enter_circle(&mut self, index: usize, which: Which) {
        let Some(watcher) = &mut self.peers[index].watchers[which as usize] else { return };
        if watcher.filters.is_empty() || !watcher.starting.is_empty() || watcher.circle.is_some() {
            return;
        }
        let view = &mut self.views[which as usize];
        let circle = view.open(&watcher.filters);
        view.circles[circle].members += 1;
        watcher.circle = Some(circle);
    }

    /// Takes a peer out of its circle, at the position that it has.
    pub(super) fn leave_circle(&mut self, index: usize, which: Which) {
        self.fall_out(index, which);
        let Some(watcher) = &mut self.peers[index].watchers[which as usize] else { return };
        let Some(circle) = watcher.circle.take() else { return };
        let view = &mut self.views[which as usize];
        view.circles[circle].members -= 1;
        view.close_if_empty(circle);
    }

    /// Takes a peer out of the group of its circle, if it is there, with the group's position.
    pub(super) fn fall_out(&mut self, index: usize, which: Which) {
        let Some(watcher) = &mut self.peers[index].watchers[which as usize] else { return };
        let (Some(circle), None) = (watcher.circle, watcher.cursor) else { return };
        let slot = watcher.slot;
        let view = &mut self.views[which as usize];
        let seen = view.seen;
        let own = &mut view.circles[circle];
        // A group that nothing waits for has all that was looked at.
        let at = if own.is_queued { own.at } else { own.at.max(seen) };
        watcher.cursor = Some(at);
        own.group.swap_remove(slot);
        if let Some(&moved) = own.group.get(slot)
            && let Some(watcher) = &mut self.peers[moved].watchers[which as usize]
        {
            watcher.slot = slot;
        }
    }
}
