//! The way to the committer, and what publishers need to know of the store.
//!
//! # Threads
//!
//! Readers ask whether there is room, and wait here for it; the committer says how it goes.
//!
//! # Locks
//!
//! [`Rank::Vault`], for one look or change.

use std::{sync::Arc, time::Duration};

use crate::{
    base::{
        clock::Clock,
        fault::Fault,
        lane::{self, Inlet},
        limits::WAITER_BYTES,
        lock::{self, Rank, Ranked},
        random,
        sync::{
            Condvar,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
    },
    config::StoreSettings,
    metrics::{
        Metrics,
        labels::{StoreFailure, StoreRefused},
    },
    store::TopicId,
    topic::{Publication, Topic},
    wire::{codes::Code, request::Refusal},
};

/// What the committer is told.
pub(crate) enum Job {
    /// A topic has something that somebody waits for.
    Dirty(Arc<Topic>),
    /// A topic has something that may wait a second.
    Lazy(Arc<Topic>),
    /// The shared state has something that somebody waits for.
    State,
    /// A topic is no more.
    Forget(TopicId),
    /// Policies have changed.
    Retain,
    /// Somebody waits until what came before this is stored, or cannot be.
    Barrier(Inlet<()>),
    /// The relay stops; what comes before this is still stored.
    Stop,
}

/// The store as everybody but the committer sees it.
pub(crate) struct Vault {
    jobs: Inlet<Job>,
    /// Bytes that wait for the disk.
    backlog: AtomicU64,
    backlog_max: AtomicU64,
    has_failed: AtomicBool,
    state: Ranked<State>,
    /// The backlog shrank, or the store failed or came back.
    changed: Condvar,
    clock: Clock,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    failure: Option<Failure>,
    wait: Duration,
}

/// Why durable topics cannot be written.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: StoreFailure,
    pub(crate) text: &'static str,
    pub(crate) retry_after_ms: u64,
}

impl Vault {
    pub(crate) fn new(
        jobs: Inlet<Job>,
        settings: &StoreSettings,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let vault = Self {
            jobs,
            backlog: AtomicU64::new(0),
            backlog_max: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
            state: Ranked::new(Rank::Vault, State::default()),
            changed: Condvar::new(),
            clock,
            metrics,
        };
        vault.apply(settings);
        vault
    }

    pub(crate) fn apply(&self, settings: &StoreSettings) {
        self.backlog_max.store(settings.max_backlog, Ordering::Relaxed);
        self.metrics.backlog_limit.set(settings.max_backlog);
        self.state.with(|state| state.wait = settings.backlog_wait);
        self.changed.notify_all();
    }

    /// Tells the committer.
    ///
    /// # Blocking
    ///
    /// While its lane is full.
    pub(crate) fn send(&self, job: Job) {
        // A closed lane means that there is no store, or no relay any more.
        drop(self.jobs.send(job));
    }

    /// Tells the committer that `topic` has something that somebody waits for.
    ///
    /// # Blocking
    ///
    /// While its lane is full.
    pub(crate) fn tell(&self, topic: &Arc<Topic>) {
        if topic.id().is_some() && topic.must_tell_committer() {
            self.send(Job::Dirty(Arc::clone(topic)));
        }
    }

    /// Tells the committer that `topic` has something that may wait a while.
    ///
    /// # Blocking
    ///
    /// While its lane is full.
    pub(crate) fn tell_lazily(&self, topic: &Arc<Topic>) {
        if topic.id().is_some() && topic.must_tell_committer_lazily() {
            self.send(Job::Lazy(Arc::clone(topic)));
        }
    }

    /// As [`Vault::tell_lazily`], for threads that must not wait for the committer. If its lane is
    /// full it hears of the topic with the next change.
    pub(crate) fn offer_lazily(&self, topic: &Arc<Topic>) {
        if topic.id().is_some()
            && topic.must_tell_committer_lazily()
            && self.jobs.offer(Job::Lazy(Arc::clone(topic))).is_err()
        {
            topic.was_not_told();
        }
    }

    /// Whether an event may be appended to a durable topic right now.
    pub(crate) fn has_room(&self) -> bool {
        self.backlog_bytes() <= self.backlog_max.load(Ordering::Relaxed)
            && !self.has_failed.load(Ordering::Relaxed)
    }

    /// Waits until an event may be appended to a durable topic. The caller has told the committer
    /// of everything it appended.
    ///
    /// # Errors
    ///
    /// The store has failed, or there was no room for too long.
    ///
    /// # Blocking
    ///
    /// Up to `backlog_wait`.
    #[inline(never)]
    pub(crate) fn wait_for_room(&self) -> Result<(), Refusal> {
        let wait = self.state.with(|state| state.wait);
        let deadline = self.clock.now() + wait;
        self.metrics.backlog_waits.add(1);
        let verdict =
            self.state.wait_until(&self.changed, Some(deadline), |state| match &state.failure {
                Some(failure) => Some(Err(failure.clone())),
                None => self.has_room().then_some(Ok(())),
            });
        match verdict {
            Some(Ok(())) => Ok(()),
            Some(Err(failure)) => Err(self.refuse(&failure)),
            None => {
                self.metrics.store_refused.add(StoreRefused::Busy, 1);
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                let message = format!("the disk has been too slow for {wait_ms} ms; send it again");
                let retry_after_ms = Some(1 + random::below(wait_ms.max(1)));
                Err(Refusal { retry_after_ms, ..Refusal::new(Code::Busy, message) })
            }
        }
    }

    fn refuse(&self, failure: &Failure) -> Refusal {
        self.metrics.store_refused.add(StoreRefused::Unavailable, 1);
        let message = format!(
            "durable topics cannot be written: {}; the relay tries again by itself",
            failure.text
        );
        let retry_after_ms = Some(failure.retry_after_ms);
        Refusal { retry_after_ms, ..Refusal::new(Code::Unavailable, message) }
    }

    /// The refusal of an event that could not be stored.
    pub(crate) fn unstored(&self) -> Refusal {
        let gone = Failure {
            kind: StoreFailure::Io,
            text: "it failed a moment ago",
            retry_after_ms: RETRY_AFTER_MS,
        };
        self.refuse(&self.failure().unwrap_or(gone))
    }

    /// Counts an event that waits for the disk.
    pub(crate) fn owe(&self, publication: &Publication) {
        if 0 < publication.unstored {
            self.owe_bytes(publication.unstored);
        }
    }

    /// Counts one thing of `bytes` that waits for the disk.
    pub(crate) fn owe_bytes(&self, bytes: u64) {
        self.backlog.fetch_add(bytes + WAITER_BYTES, Ordering::Relaxed);
    }

    /// Counts `events`, with `bytes` of frames, that do not wait any more.
    pub(crate) fn settle(&self, (events, bytes): (u64, u64)) {
        let gone = bytes + events * WAITER_BYTES;
        let before = self.backlog.fetch_sub(gone, Ordering::Relaxed);
        let max = self.backlog_max.load(Ordering::Relaxed);
        if max < before {
            // With the lock, so that nobody is between looking and waiting.
            if !Fault::RoomWithoutLock.is_on() {
                self.state.with(|_| ());
            }
            self.changed.notify_all();
        }
    }

    pub(crate) fn backlog_bytes(&self) -> u64 {
        // Relaxed here and where it is changed: a bound that publishers may exceed by one event
        // each; whoever waits looks again with the lock held.
        let bytes = self.backlog.load(Ordering::Relaxed);
        // What was appended may be settled before it is owed. For that moment it is below zero.
        if bytes.cast_signed() < 0 { 0 } else { bytes }
    }

    /// Waits until everything that the committer was told of is stored, or cannot be.
    ///
    /// # Blocking
    ///
    /// Up to `limit`.
    pub(crate) fn drain(&self, limit: Duration) {
        let (reply, done) = lane::open(lane::REPLIES);
        self.send(Job::Barrier(reply));
        lock::assert_none_held();
        // Nobody answers where there is no committer.
        _ = done.recv_timeout(limit);
    }

    pub(crate) fn fail(&self, failure: Failure) {
        self.metrics.store_failures.add(failure.kind, 1);
        self.metrics.store_ok.set(0);
        self.has_failed.store(true, Ordering::Relaxed);
        self.state.with(|state| state.failure = Some(failure));
        self.changed.notify_all();
    }

    pub(crate) fn heal(&self) {
        self.metrics.store_ok.set(1);
        self.has_failed.store(false, Ordering::Relaxed);
        self.state.with(|state| state.failure = None);
        self.changed.notify_all();
    }

    /// Why durable topics cannot be written, if they cannot.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.state.with(|state| state.failure.clone())
    }

    /// Waits until the store comes back or fails once more.
    ///
    /// # Blocking
    ///
    /// Up to `limit`.
    pub(crate) fn wait_for_change(&self, limit: Duration) {
        let mut looks = 0;
        _ = self.state.wait(&self.changed, limit, |_| {
            looks += 1;
            (1 < looks).then_some(())
        });
    }
}

/// When to try again where the store has come back already.
const RETRY_AFTER_MS: u64 = 100;
