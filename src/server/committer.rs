//! The thread that makes events durable: a cursor over every durable log, and the one that gates
//! the others.
//!
//! It takes what is not on disk yet from all topics that have something, writes it in one
//! transaction, and then lets it be seen: followers are woken and publishers answered. While it
//! waits for the disk, the next batch gathers by itself.
//!
//! # Threads
//!
//! `commit`. It owns the writing side of the store.
//!
//! # Locks
//!
//! One log, to copy a run of events or to move its marks; the vault, to say how it goes. None while
//! it waits for the disk.

mod recovery;
mod state;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    base::{
        backoff::Backoff,
        fault::Fault,
        lane::{Inlet, Receiver, RecvTimeoutError},
        limits::{COMMIT_BYTES, WRITTEN_BYTES_MAX},
        lock, pause,
    },
    config::SyncPolicy,
    server::{relay::Shared, vault::Job, writer::Command},
    store::{Batch, Committed, Keep, Store, StoreError, TopicId},
    topic::{Evictions, Log, Taken, Topic},
};

/// How long a consumer's position may wait to be stored.
const LAZY: Duration = Duration::from_secs(1);
/// How long events with `sync = "os"` are with the operating system alone.
const OS_SYNC: Duration = Duration::from_secs(30);
/// Time between two looks for events beyond their age.
const SWEEP: Duration = Duration::from_secs(10);
/// Jobs that one round takes from the lane.
const JOBS_PER_ROUND: usize = 4_096;

struct Committer<'a> {
    shared: &'a Arc<Shared>,
    inbox: &'a Receiver<Job>,
    store: Box<dyn Store>,
    /// Topics that have something now.
    ready: Vec<Arc<Topic>>,
    /// Topics that have something that may wait, and until when.
    lazy: Vec<Arc<Topic>>,
    lazy_at: Option<Instant>,
    /// Topics with events that the operating system alone has, and until when.
    written: HashMap<TopicId, Arc<Topic>>,
    sync_at: Option<Instant>,
    forgotten: Vec<TopicId>,
    /// The shared state has something, or may have.
    state_is_ready: bool,
    /// Who waits until what came before is stored.
    barriers: Vec<Inlet<()>>,
    sweep_at: Instant,
    failed: Option<Failed>,
    stopping: bool,
    /// A store that has failed is tried once more when the relay stops.
    tried_last: bool,
}

/// When the store is tried again.
struct Failed {
    retry_at: Instant,
    backoff: Backoff,
}

type Owned = Vec<(Arc<Topic>, Taken)>;

/// Stores until told to stop.
pub(crate) fn run(shared: &Arc<Shared>, inbox: &Receiver<Job>, store: Box<dyn Store>) {
    shared.metrics.store_ok.set(1);
    shared.metrics.store_file_bytes.set(store.file_bytes());
    let mut committer = Committer {
        shared,
        inbox,
        store,
        ready: Vec::new(),
        lazy: Vec::new(),
        lazy_at: None,
        written: HashMap::new(),
        sync_at: None,
        forgotten: Vec::new(),
        // What was restored may be more than it may keep.
        state_is_ready: shared.state.shared.is_durable(),
        barriers: Vec::new(),
        sweep_at: shared.clock.now(),
        failed: None,
        stopping: false,
        tried_last: false,
    };
    while !committer.stopping || committer.is_busy() {
        committer.listen();
        if committer.failed.is_some() {
            committer.stand_by();
        } else {
            committer.round();
        }
        if !committer.is_busy() {
            // Who has given up waiting does not hear it.
            committer.barriers.drain(..).for_each(|barrier| drop(barrier.offer(())));
        }
    }
    committer.end();
}

impl Committer<'_> {
    /// Whether something is there that somebody waits for.
    fn is_busy(&self) -> bool {
        !self.ready.is_empty() || self.state_is_ready
    }

    /// Takes what is in the lane; waits for the first if there is nothing else to do.
    fn listen(&mut self) {
        if !self.is_busy() && !self.stopping {
            let wait = self.next_at().saturating_duration_since(self.shared.clock.now());
            match self.inbox.recv_timeout(wait) {
                Ok(job) => self.obey(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.stopping = true,
            }
        }
        pause::point();
        for _ in 0..JOBS_PER_ROUND {
            match self.inbox.try_recv() {
                Ok(job) => self.obey(job),
                Err(_) => return,
            }
        }
    }

    fn next_at(&self) -> Instant {
        match &self.failed {
            Some(failed) => failed.retry_at,
            None => {
                let others = [self.lazy_at, self.sync_at].into_iter().flatten();
                others.fold(self.sweep_at, Ord::min)
            }
        }
    }

    fn obey(&mut self, job: Job) {
        match job {
            Job::Dirty(topic) => self.ready.push(topic),
            Job::Lazy(topic) => {
                self.lazy.push(topic);
                self.lazy_at.get_or_insert(self.shared.clock.now() + LAZY);
            }
            Job::State => self.state_is_ready = true,
            Job::Forget(id) => self.forgotten.push(id),
            Job::Retain => self.sweep_at = self.shared.clock.now(),
            Job::Barrier(reply) => {
                self.barriers.push(reply);
                self.state_is_ready = true;
            }
            Job::Stop => self.stopping = true,
        }
    }

    /// Makes what the ready topics have as safe as it is to be.
    fn round(&mut self) {
        let now = self.shared.clock.now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let mut topics = std::mem::take(&mut self.ready);
        let mut must = !self.forgotten.is_empty();
        if is_due(self.lazy_at) || self.stopping {
            must |= !self.lazy.is_empty();
            topics.append(&mut self.lazy);
            self.lazy_at = None;
        }
        // Before looking: what comes after this comes with a job of its own.
        if !Fault::CommitterFlag.is_on() {
            topics.iter().for_each(|topic| topic.committer_looks());
        }
        must |= self.look_at_state();
        let sweeps = self.sweep_at <= now;
        let must_sync = is_due(self.sync_at) || WRITTEN_BYTES_MAX < self.store.written_bytes();
        must |= sweeps || must_sync;
        if must || topics.iter().any(|topic| topic.needs_commit()) {
            self.commit(topics, sweeps);
        } else if !topics.is_empty() {
            self.write(topics);
        }
    }

    fn commit(&mut self, topics: Vec<Arc<Topic>>, sweeps: bool) {
        let (mut batch, mut taken) = self.gather(topics);
        if Fault::CommitterFlag.is_on() {
            taken.iter().for_each(|(topic, _)| topic.committer_looks());
        }
        if Fault::AnswerEarly.is_on() {
            self.confirm_all(std::mem::take(&mut taken), true);
        }
        let state = self.take_state(&mut batch);
        if sweeps {
            self.sweep_at = self.shared.clock.now() + SWEEP;
            batch.keeps = self.keep_all();
        }
        if batch.is_empty() {
            return self.confirm_all(taken, true);
        }
        lock::assert_none_held();
        let started = self.shared.clock.now();
        match self.store.commit(&batch) {
            Ok(committed) => {
                let elapsed = self.shared.clock.now().saturating_duration_since(started);
                let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
                // A look for what is too old that found nothing is none.
                if !batch.is_idle() || !committed.trimmed.is_empty() {
                    self.shared.metrics.store_commits.add(1);
                    self.shared.metrics.store_commit_microseconds.add(micros);
                }
                self.written.clear();
                self.sync_at = None;
                let ids = taken.iter().filter_map(|(topic, _)| Some((topic.id()?, topic.clone())));
                let ids: HashMap<TopicId, Arc<Topic>> = ids.collect();
                self.confirm_all(taken, true);
                self.confirm_state(state);
                self.trim(&committed, ids, sweeps);
                if sweeps {
                    self.shared.metrics.store_file_bytes.set(self.store.file_bytes());
                }
            }
            Err(error) => {
                self.forgotten.append(&mut batch.forgotten);
                self.fail(&error, taken, state);
            }
        }
    }

    /// Takes what `topics` have, and what others have that was only written.
    fn gather(&mut self, topics: Vec<Arc<Topic>>) -> (Batch, Owned) {
        let window_ms = self.shared.registry.dedupe_window_ms();
        let now_ms = self.shared.clock.unix_ms();
        let mut batch = Batch {
            forgotten: std::mem::take(&mut self.forgotten),
            keys_before_ms: now_ms.saturating_sub(window_ms),
            ..Batch::default()
        };
        let mut left = COMMIT_BYTES;
        let mut all: HashMap<TopicId, (Arc<Topic>, bool)> = HashMap::new();
        let written = self.written.iter().map(|(id, topic)| (*id, (Arc::clone(topic), true)));
        let ready = topics.into_iter().filter_map(|topic| Some((topic.id()?, (topic, false))));
        for (id, entry) in written.chain(ready) {
            all.entry(id).or_insert(entry);
        }
        let mut taken = Vec::with_capacity(all.len());
        for (id, (topic, was_written)) in all {
            // What was written must all be there; of the others, what fits.
            let bytes_max = if was_written { u64::MAX } else { left };
            let mut own = topic.take(Log::stored, bytes_max);
            left = left.saturating_sub(own.pending.bytes);
            batch.topics.extend(own.new.clone());
            batch.positions.extend(own.positions.iter().cloned());
            if !own.pending.runs.is_empty() {
                let policy = topic.look(|log| *log.policy());
                batch.keeps.push(Keep { topic: id, policy, now_ms });
                batch.runs.append(&mut own.pending.runs);
            }
            taken.push((topic, own));
        }
        (batch, taken)
    }

    fn keep_all(&self) -> Vec<Keep> {
        let now_ms = self.shared.clock.unix_ms();
        let topics = self.shared.registry.durable();
        let keep = |topic: &Arc<Topic>| {
            let policy = topic.look(|log| (0 < log.appended()).then(|| *log.policy()))?;
            Some(Keep { topic: topic.id()?, policy, now_ms })
        };
        topics.iter().filter_map(keep).collect()
    }

    /// Hands what `topics` have to the operating system.
    fn write(&mut self, topics: Vec<Arc<Topic>>) {
        let now = self.shared.clock.now();
        let mut batch = Batch::default();
        let mut left = COMMIT_BYTES;
        let mut taken = Vec::with_capacity(topics.len());
        for topic in topics {
            let Some((mut pending, policy)) = topic.take_written(left) else {
                self.ready.push(topic);
                continue;
            };
            if pending.runs.is_empty() {
                continue;
            }
            left = left.saturating_sub(pending.bytes);
            batch.runs.append(&mut pending.runs);
            let limit = match policy.sync {
                SyncPolicy::Always | SyncPolicy::Interval => policy.sync_interval,
                SyncPolicy::Os => OS_SYNC,
            };
            self.sync_at = Some(self.sync_at.map_or(now + limit, |at| at.min(now + limit)));
            taken.push((topic, Taken { pending, ..Taken::default() }));
        }
        if batch.runs.is_empty() {
            return;
        }
        lock::assert_none_held();
        match self.store.write(&batch) {
            Ok(()) => {
                self.shared.metrics.store_writes.add(1);
                let named =
                    taken.iter().filter_map(|(topic, _)| Some((topic.id()?, topic.clone())));
                self.written.extend(named);
                self.confirm_all(taken, false);
            }
            Err(error) => self.fail(&error, taken, None),
        }
    }

    /// What was taken is as safe as it is to be: it is seen, and publishers are told.
    fn confirm_all(&mut self, taken: Owned, is_stored: bool) {
        let mut answers = Vec::with_capacity(taken.len());
        for (topic, Taken { pending, savers, .. }) in taken {
            let stored = is_stored.then_some(pending.upto);
            let (mut told, grown) = topic.stored(pending.upto, stored);
            told.saved(savers);
            self.shared.registry.account(Evictions::default(), grown);
            if pending.unseen != (0, 0) {
                let (events, bytes) = pending.unseen;
                self.shared.metrics.stored_events.add(events);
                self.shared.metrics.stored_bytes.add(bytes);
                self.shared.vault.settle(pending.unseen);
                self.wake(&topic);
            }
            answers.push(told);
            if pending.more {
                self.ready.push(topic);
            }
        }
        answers.into_iter().for_each(crate::topic::Told::tell);
    }

    fn wake(&self, topic: &Arc<Topic>) {
        topic.wake(|writer| {
            self.shared.writers[writer].send(Command::Wake(Arc::clone(topic)));
        });
    }

    /// Notes which events retention removed.
    fn trim(&mut self, committed: &Committed, mut ids: HashMap<TopicId, Arc<Topic>>, sweeps: bool) {
        if committed.more {
            self.sweep_at = self.shared.clock.now();
        }
        if sweeps && !committed.trimmed.is_empty() {
            let all = self.shared.registry.durable();
            ids.extend(all.into_iter().filter_map(|topic| Some((topic.id()?, topic))));
        }
        for trimmed in &committed.trimmed {
            if let Some(topic) = ids.get(&trimmed.topic) {
                let (gone, grown) = topic.trimmed(trimmed.first, trimmed.reason);
                self.shared.registry.account(gone, grown);
            }
        }
    }

    /// Stores what may have waited, and closes the store in good order.
    fn end(mut self) {
        if self.failed.is_none() {
            let topics = std::mem::take(&mut self.lazy);
            self.commit(topics, false);
        }
        if self.failed.is_none()
            && let Err(error) = self.store.close()
        {
            log::warn!("the store was not closed in good order error=\"{}\"", chain(&error));
        }
    }
}

/// An error and its causes, in one line.
fn chain(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
