//! Handlers within the process: who is told to look, and what each is called with.

use std::sync::{Arc, Weak};

use super::{CHANGES_PER_TURN, Cursor, Handler, Inner, Update, Value};
use crate::{
    base::sync::atomic::Ordering,
    state::{Copied, Wanted},
};

impl Inner {
    pub(super) fn replace(&self, change: impl FnOnce(&[Arc<Handler>]) -> Arc<[Arc<Handler>]>) {
        let old = self.handlers.with(|list| {
            let changed = change(list);
            std::mem::replace(list, changed)
        });
        // Outside of the lock: what a handler owns has destructors of its own.
        drop(old);
    }

    /// Tells the workers that have handlers to look, unless they have been told.
    pub(super) fn wake(&self) {
        for (worker, count) in self.counts.iter().enumerate() {
            // Relaxed: ordered by the flag, which who subscribes raises after counting.
            if 0 < count.load(Ordering::Relaxed) && self.told[worker].raise() {
                self.pool.ring(worker);
            }
        }
    }

    /// A worker's turn: every handler of it gets what it lacks.
    pub(super) fn turn(weak: &Weak<Inner>, worker: usize) -> bool {
        let Some(inner) = weak.upgrade() else { return false };
        if !inner.told[worker].lower() {
            return true;
        }
        let list = inner.handlers.with(|list| Arc::clone(list));
        let mut more = false;
        for handler in list.iter().filter(|handler| handler.worker == worker) {
            more |= inner.serve(handler);
        }
        // One batch each, so that no handler keeps the others from theirs.
        if more && inner.told[worker].raise() {
            inner.pool.ring(worker);
        }
        true
    }

    /// Calls a handler with one batch. Returns whether there is more.
    fn serve(&self, handler: &Handler) -> bool {
        let cursor = handler.cursor.with(|cursor| *cursor);
        let wanted = Wanted {
            filters: std::slice::from_ref(&handler.filter),
            after: cursor.at,
            upto: cursor.snapshot_to.unwrap_or(u64::MAX),
            is_snapshot: cursor.snapshot_to.is_some(),
        };
        let mut changes = Vec::new();
        let (copied, version) = self.space.look(|map| {
            let copied = map.visit(&wanted, |key, entry| {
                changes.push((key.clone(), entry.clone()));
                changes.len() <= CHANGES_PER_TURN
            });
            (copied, map.version())
        });
        // What did not fit was not taken, and comes again.
        changes.truncate(CHANGES_PER_TURN);
        let next = match copied {
            Copied::Lost => {
                self.call(handler, &Update::Reset);
                Cursor { at: 0, snapshot_to: Some(version) }
            }
            Copied::UpTo(at) => {
                for (key, entry) in changes {
                    let version = entry.version;
                    let update = if entry.is_deleted() {
                        Update::Deleted { key, version }
                    } else {
                        Update::Set(Value { key, entry })
                    };
                    self.call(handler, &update);
                }
                let snapshot_to = cursor.snapshot_to.filter(|to| at < *to);
                Cursor { at, snapshot_to }
            }
        };
        handler.cursor.with(|cursor| *cursor = next);
        next.snapshot_to.is_some() || next.at < version
    }

    fn call(&self, handler: &Handler, update: &Update) {
        // This look is the start of the handler: what is unsubscribed by then is not started.
        if handler.is_subscribed.load(Ordering::Acquire)
            && !crate::bus::contained(|| (handler.call)(update))
        {
            // Relaxed: a counter.
            self.panicked.fetch_add(1, Ordering::Relaxed);
            self.pool.count_panic();
            let (id, filter) = (handler.id, handler.filter.as_str());
            log::error!("a handler of the state panicked subscription={id} filter={filter:?}");
        }
    }
}
