//! What the committer does when the store fails, until it can be written again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{Committer, Failed, Owned, chain};
use crate::{
    base::backoff::Backoff,
    metrics::labels::StoreFailure,
    server::{happening::RelayEvent, vault::Failure},
    state::Pending,
    store::{Loaded, StoreError, StoredTopic, TopicId},
    topic::{Evictions, Taken, Told, Topic},
};

/// Shortest and longest wait before the store is tried again.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

impl Committer<'_> {
    /// The store has failed: what it was given is not there, as far as anybody can know. Durable
    /// topics refuse from now on, and everything else goes on.
    pub(super) fn fail(&mut self, error: &StoreError, taken: Owned, state: Option<Pending>) {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        let wait = backoff.delay();
        log::error!(
            "durable topics cannot be written retry_ms={} error=\"{}\"",
            wait.as_millis(),
            chain(error)
        );
        self.shared.vault.fail(failure(error, wait));
        self.shared.happened(|| RelayEvent::StoreFailed { why: chain(error) });
        self.failed = Some(Failed { retry_at: self.shared.clock.now() + wait, backoff });
        let told = taken.into_iter().map(|(topic, taken)| self.reject(&topic, Some(taken)));
        let told: Vec<Told> = told.collect();
        let settled = self.reject_state(state);
        told.into_iter().for_each(Told::tell);
        settled.tell();
    }

    /// Takes back what a topic has that may not be seen.
    fn reject(&self, topic: &Arc<Topic>, taken: Option<Taken>) -> Told {
        topic.committer_looks();
        let (told, grown, gone) = topic.not_stored(taken);
        self.shared.registry.account(Evictions::default(), grown);
        self.shared.vault.settle(gone);
        told
    }

    /// While the store has failed: refuses, and tries again when it is time to.
    pub(super) fn stand_by(&mut self) {
        let topics = std::mem::take(&mut self.ready);
        let told: Vec<Told> = topics.iter().map(|topic| self.reject(topic, None)).collect();
        told.into_iter().for_each(Told::tell);
        self.reject_state(None).tell();
        let now = self.shared.clock.now();
        let last = self.stopping && !std::mem::replace(&mut self.tried_last, self.stopping);
        if last || self.failed.as_ref().is_some_and(|failed| failed.retry_at <= now) {
            self.recover();
        }
    }

    fn recover(&mut self) {
        let keeps = self.keep_all();
        match self.store.recover(&keeps) {
            Ok(mut loaded) => {
                self.failed = None;
                self.continue_with(&loaded);
                self.continue_state(loaded.state.take());
                self.shared.metrics.store_recoveries.add(1);
                self.shared.vault.heal();
                self.shared.happened(|| RelayEvent::StoreRecovered);
                log::info!("durable topics can be written again");
            }
            Err(error) => {
                let Some(failed) = &mut self.failed else { return };
                let wait = failed.backoff.delay();
                failed.retry_at = self.shared.clock.now() + wait;
                log::warn!(
                    "durable topics still cannot be written retry_ms={} error=\"{}\"",
                    wait.as_millis(),
                    chain(&error)
                );
                self.shared.vault.fail(failure(&error, wait));
            }
        }
    }

    /// Goes on from what is on disk, which may be more than was confirmed, never less.
    fn continue_with(&mut self, loaded: &Loaded) {
        loaded.warnings.iter().for_each(|warning| log::error!("{warning}"));
        let by_id: HashMap<TopicId, &StoredTopic> =
            loaded.topics.iter().map(|stored| (stored.id, stored)).collect();
        for topic in self.shared.registry.durable() {
            let Some(id) = topic.id() else { continue };
            let told = self.reject(&topic, None);
            let (gone, grown) = topic.reconcile(by_id.get(&id).copied(), &loaded.keys);
            self.shared.registry.account(gone, grown);
            self.wake(&topic);
            told.tell();
            if topic.look(|log| log.stored() < log.tail()) {
                self.written.insert(id, Arc::clone(&topic));
                self.sync_at = Some(self.shared.clock.now());
            }
            if topic.needs_commit() || topic.consumers(|consumers, _| consumers.is_dirty()) {
                self.ready.push(topic);
            }
        }
    }
}

fn failure(error: &StoreError, wait: Duration) -> Failure {
    let (kind, text) = match error {
        StoreError::Full { .. } => (StoreFailure::Full, "the disk is full"),
        StoreError::Damaged { .. } | StoreError::Format { .. } => {
            (StoreFailure::Damaged, "what is on disk is damaged")
        }
        StoreError::Directory { .. }
        | StoreError::Locked { .. }
        | StoreError::Io { .. }
        | StoreError::NotBuilt
        | StoreError::Closed => (StoreFailure::Io, "the disk cannot be used"),
    };
    let retry_after_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    Failure { kind, text, retry_after_ms }
}
