//! The pool: a fixed number of workers, each with a bounded lane of jobs.
//!
//! # Threads
//!
//! `bus-0`, `bus-1` and so on run the jobs. Any thread submits; whoever stops the pool joins them.
//!
//! # Locks
//!
//! [`Rank::Pool`], to copy the sender of one lane, or to take all of them away. That is the whole
//! of a stop: a lane whose last sender is gone ends, for its worker, after the last job in it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    num::NonZeroUsize,
    sync::OnceLock,
    time::{Duration, Instant},
};

use crate::{
    base::{
        clock::Clock,
        flag::Flag,
        lane::{self, Inlet, JOBS, Receiver, Rejected},
        lifecycle::{Group, OnPanic, Panics, Stop},
        limits::{BUS_WORKERS_DEFAULT, POOL_DROP_LIMIT, WORKER_STACK_BYTES},
        lock::{self, Rank, Ranked},
        sync::{
            Arc, Condvar,
            atomic::{AtomicBool, AtomicU64, Ordering},
            thread::{self, ThreadId},
        },
    },
    bus::{BusError, contained},
};

/// Longest wait for the end of the workers: far beyond any use, and still a moment of the clock.
const STOP_LIMIT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What a pool is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Threads, and lanes. More of them let more keys make progress while a handler waits.
    pub workers: NonZeroUsize,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self { workers: BUS_WORKERS_DEFAULT }
    }
}

/// The operating system refused a worker.
#[derive(Debug, thiserror::Error)]
#[error("cannot start thread {thread}")]
pub struct StartError {
    /// The name of the thread.
    pub thread: String,
    pub source: io::Error,
}

/// What a pool has done and has to do. Reading it changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Jobs that wait now, in all lanes together.
    pub depth: usize,
    /// The most that can wait, in all lanes together. One lane is full at its share of it.
    pub limit: usize,
    /// Jobs that have been run, those that panicked included. An event is one job.
    pub run: u64,
    /// Jobs that were not taken, because a lane was full or the pool had been stopped.
    pub refused: u64,
    /// Panics that were contained: of jobs, and of the handlers of all buses.
    pub panicked: u64,
    /// Jobs that were taken and never run, because the limit of a stop passed.
    pub dropped: u64,
}

/// How a stop ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Names of the threads that had not ended. They end after the job that keeps them.
    pub late: Vec<String>,
    /// Jobs that had been taken and were thrown away, because the limit passed before their turn.
    pub dropped: u64,
}

/// A fixed number of threads that run jobs, those of one key in order.
///
/// ```
/// use std::time::Duration;
///
/// use landline::{
///     base::lifecycle::{Panics, Stop},
///     bus::{Pool, PoolSettings},
/// };
///
/// let pool = Pool::start(PoolSettings::default(), Stop::default(), Panics::default())?;
/// pool.submit("printer", Duration::ZERO, || println!("first"))?;
/// pool.submit("printer", Duration::ZERO, || println!("second"))?;
/// let report = pool.stop(Duration::from_secs(5));
/// assert!(report.late.is_empty());
/// assert_eq!(pool.stats().run, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pool {
    shared: Arc<Shared>,
    // The workers' own ends, for counting what waits and for emptying a lane nobody serves.
    outlets: Box<[Receiver<Task>]>,
    phase: Ranked<Phase>,
    /// A report has been written.
    reported: Condvar,
    clock: Clock,
}

/// How far the pool is on its way from open to stopped. What is taken is never put back.
struct Phase {
    /// There until a stop begins.
    inlets: Option<Box<[Inlet<Task>]>>,
    /// There until somebody waits for the threads.
    group: Option<Group>,
    /// There when nobody waits for the threads any more.
    report: Option<Report>,
}

/// What the workers share with the pool. They do not hold the pool, which ends them when dropped.
pub(super) struct Shared {
    /// The limit of a stop has passed: jobs are thrown away instead of run.
    abandoned: AtomicBool,
    /// Each set by its worker before the first job.
    threads: Box<[OnceLock<ThreadId>]>,
    run: AtomicU64,
    refused: AtomicU64,
    panicked: AtomicU64,
    dropped: AtomicU64,
    /// By worker: somebody has rung, and it has not looked yet.
    rung: Box<[Flag]>,
    hooks: Ranked<Arc<[Hook]>>,
}

/// What a worker does when it was rung, given its number. `false` if there is no more use in it.
type Hook = Arc<dyn Fn(usize) -> bool + Send + Sync>;

/// One entry of a lane.
pub(super) struct Task {
    /// What to call it if it panics.
    pub(super) key: Option<Box<str>>,
    pub(super) job: Box<dyn FnOnce() + Send>,
}

impl Pool {
    /// Starts the workers `bus-0`, `bus-1` and so on.
    ///
    /// Jobs cannot end a worker. Should one end in a panic all the same, that is a bug, and
    /// raises `stop` and counts in `panics`, as with every thread that others depend on.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the operating system refuses a thread; those before it have ended.
    pub fn start(settings: PoolSettings, stop: Stop, panics: Panics) -> Result<Pool, StartError> {
        let workers = settings.workers.get();
        let shared = Arc::new(Shared::new(workers));
        let (inlets, outlets): (Vec<_>, Vec<_>) = (0..workers).map(|_| lane::open(JOBS)).unzip();
        let mut group = Group::new(stop, panics);
        let clock = Clock::default();
        for (worker, outlet) in outlets.iter().enumerate() {
            let (shared, outlet) = (Arc::clone(&shared), outlet.clone());
            let body = move || shared.work(worker, &outlet);
            let thread = thread_name(worker);
            let spawned =
                group.spawn(thread.clone(), WORKER_STACK_BYTES, OnPanic::StopServer, body);
            if let Err(source) = spawned {
                drop(inlets);
                group.join(clock.now() + POOL_DROP_LIMIT);
                return Err(StartError { thread, source });
            }
        }
        let phase = Phase { inlets: Some(inlets.into()), group: Some(group), report: None };
        let (outlets, phase) = (outlets.into(), Ranked::new(Rank::Pool, phase));
        Ok(Pool { shared, outlets, phase, reported: Condvar::new(), clock })
    }

    /// Has `job` run by the worker of `key`, after everything taken for that key before.
    ///
    /// A job that panics is counted and logged with its key, and the worker goes on.
    ///
    /// # Errors
    ///
    /// [`BusError::Full`] if the worker's lane has no room for as long as `limit`, and
    /// [`BusError::Stopped`] after [`Pool::stop`]. Both are counted, and `job` is dropped.
    ///
    /// # Blocking
    ///
    /// Up to `limit`, never with a ranked lock held; with a limit of zero not at all. A job that
    /// submits to its own worker waits for room that only it could make: it gets
    /// [`BusError::Full`] after `limit`, and its worker does nothing until then.
    pub fn submit(
        &self,
        key: &str,
        limit: Duration,
        job: impl FnOnce() + Send + 'static,
    ) -> Result<(), BusError> {
        let task = Task { key: Some(key.into()), job: Box::new(job) };
        self.send(self.worker_of(key), limit, task)
    }

    /// As [`Pool::submit`], to the worker of that number, for whoever has an order of its own.
    ///
    /// # Errors
    ///
    /// As [`Pool::submit`], and [`BusError::NoWorker`] unless `worker` is less than
    /// [`Pool::workers`].
    ///
    /// # Blocking
    ///
    /// As [`Pool::submit`].
    pub fn submit_to(
        &self,
        worker: usize,
        limit: Duration,
        job: impl FnOnce() + Send + 'static,
    ) -> Result<(), BusError> {
        let workers = self.workers();
        if workers <= worker {
            return Err(BusError::NoWorker { worker, workers });
        }
        self.send(worker, limit, Task { key: None, job: Box::new(job) })
    }

    /// Has `hook` run by a worker each time that it was [rung](Pool::ring), with its number, until
    /// it says that there is no more use in it.
    pub(crate) fn on_ring(&self, hook: impl Fn(usize) -> bool + Send + Sync + 'static) {
        let hook: Hook = Arc::new(hook);
        self.shared.replace_hooks(|hooks| hooks.iter().cloned().chain([hook]).collect());
    }

    /// Has `worker` run the hooks, once for any number of rings since it last began to. Unlike a
    /// job, a ring cannot be refused: a worker whose lane is full looks after its next job.
    pub(crate) fn ring(&self, worker: usize) {
        if !self.shared.rung[worker].raise() {
            return;
        }
        let inlet =
            self.phase.with(|phase| phase.inlets.as_ref().map(|inlets| inlets[worker].clone()));
        if let Some(inlet) = inlet {
            // Wakes a worker that waits. If there is no room it does not.
            drop(inlet.offer(Task { key: None, job: Box::new(|| ()) }));
        }
    }

    /// Counts a panic that whoever runs on this pool has contained by itself.
    pub(crate) fn count_panic(&self) {
        self.shared.count_panic();
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.outlets.len()
    }

    /// The worker that has all jobs of `key`.
    #[must_use]
    pub fn worker_of(&self, key: &str) -> usize {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let workers = self.workers() as u64;
        usize::try_from(hasher.finish() % workers).expect("less than the number of workers")
    }

    /// The counters, and how much waits.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        // Relaxed: counters, each right by itself.
        PoolStats {
            depth: self.outlets.iter().map(Receiver::len).sum(),
            limit: self.workers() * JOBS.capacity,
            run: self.shared.run.load(Ordering::Relaxed),
            refused: self.shared.refused.load(Ordering::Relaxed),
            panicked: self.shared.panicked.load(Ordering::Relaxed),
            dropped: self.shared.dropped.load(Ordering::Relaxed),
        }
    }

    /// Takes no more jobs, has all that were taken run, and waits for the workers to end.
    ///
    /// Who waits for room when the stop begins may still get it, and its job is run. At `limit`,
    /// what still waits is thrown away, counted, and reported with the threads that are late;
    /// what comes after the report, from those who waited for room, is only counted.
    ///
    /// Stopping again waits for the stop that is under way, and returns its report. From a job of
    /// this pool, which cannot wait for its own end, it only begins the stop: all workers are
    /// reported as late, and they run what was taken and end. Stopping from elsewhere then waits.
    ///
    /// # Blocking
    ///
    /// Up to `limit`, for the jobs. Never with a ranked lock held. From a job of this pool, not.
    pub fn stop(&self, limit: Duration) -> Report {
        lock::assert_none_held();
        self.end(limit)
    }

    fn end(&self, limit: Duration) -> Report {
        let deadline = self.clock.now() + limit.min(STOP_LIMIT_MAX);
        drop(self.phase.with(|phase| phase.inlets.take()));
        if self.shared.is_worker() {
            return self.unfinished();
        }
        match self.phase.with(|phase| phase.group.take()) {
            Some(group) => self.join(group, deadline),
            None => {
                let report = |phase: &mut Phase| phase.report.clone();
                let found = self.phase.wait_until(&self.reported, Some(deadline), report);
                found.unwrap_or_else(|| self.unfinished())
            }
        }
    }

    fn join(&self, group: Group, deadline: Instant) -> Report {
        let late = group.join(deadline);
        let mut dropped = 0;
        if !late.is_empty() {
            // Pairs with the loads in `work`, for a worker that comes back, and in `send`, where
            // it must come before the look into the lanes: hence sequentially consistent.
            self.shared.abandoned.store(true, Ordering::SeqCst);
            dropped = (0..self.workers()).map(|worker| self.empty(worker)).sum();
        }
        let report = Report { late, dropped };
        self.phase.with(|phase| phase.report = Some(report.clone()));
        self.reported.notify_all();
        report
    }

    /// Throws away what waits in the lane of `worker`, and returns how much that was.
    fn empty(&self, worker: usize) -> u64 {
        let mut dropped = 0;
        while let Ok(task) = self.outlets[worker].try_recv() {
            self.shared.discard(task);
            dropped += 1;
        }
        dropped
    }

    /// The report of somebody who did not wait for the end.
    fn unfinished(&self) -> Report {
        Report { late: (0..self.workers()).map(thread_name).collect(), dropped: 0 }
    }

    pub(super) fn send(&self, worker: usize, limit: Duration, task: Task) -> Result<(), BusError> {
        // A sender of one's own rather than a look at all of them: who waits for one lane must
        // not keep the workers of the others from ending.
        let inlet =
            self.phase.with(|phase| phase.inlets.as_ref().map(|inlets| inlets[worker].clone()));
        let refused = match inlet.map(|inlet| inlet.send_timeout(task, limit)) {
            Some(Ok(())) => {
                // Room may have come from a stop that gave up on the worker: then nobody else
                // is left to account for the job.
                if self.shared.abandoned.load(Ordering::SeqCst) {
                    self.empty(worker);
                }
                return Ok(());
            }
            Some(Err(Rejected::Full(_))) => BusError::Full,
            Some(Err(Rejected::Closed(_))) | None => BusError::Stopped,
        };
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        Err(refused)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Pool {
    /// Stops the pool, with a limit of [`POOL_DROP_LIMIT`], unless that has been done.
    fn drop(&mut self) {
        if self.phase.with(|phase| phase.report.is_some()) {
            return;
        }
        // Dropped by its own last job, the pool has nobody who could wait; the workers run what
        // they have and end all the same.
        let Report { late, dropped } = self.end(POOL_DROP_LIMIT);
        if !late.is_empty() && !self.shared.is_worker() {
            let names = late.join(", ");
            log::warn!("workers did not end in time names=\"{names}\" dropped={dropped}");
        }
    }
}

impl Shared {
    fn new(workers: usize) -> Self {
        Self {
            abandoned: AtomicBool::new(false),
            threads: (0..workers).map(|_| OnceLock::new()).collect(),
            run: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            rung: (0..workers).map(|_| Flag::default()).collect(),
            hooks: Ranked::new(Rank::Pool, Arc::default()),
        }
    }

    /// The whole life of a worker.
    fn work(&self, worker: usize, outlet: &Receiver<Task>) {
        let first = self.threads[worker].set(thread::current().id()).is_ok();
        debug_assert!(first, "a worker is one thread");
        while let Ok(task) = outlet.recv() {
            if self.abandoned.load(Ordering::Acquire) {
                self.discard(task);
            } else {
                self.run(worker, task);
                self.answer(worker);
            }
        }
    }

    /// Runs the hooks if somebody has rung.
    fn answer(&self, worker: usize) {
        if !self.rung[worker].lower() {
            return;
        }
        let hooks = self.hooks.with(|hooks| Arc::clone(hooks));
        for hook in hooks.iter() {
            let mut is_of_use = true;
            if !contained(|| is_of_use = hook(worker)) {
                self.count_panic();
            }
            if !is_of_use {
                self.replace_hooks(|hooks| {
                    hooks.iter().filter(|other| !Arc::ptr_eq(other, hook)).cloned().collect()
                });
            }
        }
    }

    fn replace_hooks(&self, change: impl FnOnce(&[Hook]) -> Arc<[Hook]>) {
        let old = self.hooks.with(|hooks| {
            let changed = change(hooks);
            std::mem::replace(hooks, changed)
        });
        // Outside of the lock: what a hook owns has destructors of its own.
        drop(old);
    }

    fn run(&self, worker: usize, task: Task) {
        let Task { key, job } = task;
        if !contained(job) {
            self.count_panic();
            let (key, thread) = (key.as_deref().unwrap_or("-"), thread_name(worker));
            log::error!("a job panicked key={key:?} thread={thread}");
        }
        self.run.fetch_add(1, Ordering::Relaxed);
    }

    /// Throws a job away. What it holds may have a destructor that panics.
    fn discard(&self, task: Task) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        if !contained(|| drop(task)) {
            self.count_panic();
        }
    }

    pub(super) fn count_panic(&self) {
        self.panicked.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the calling thread is one of the workers.
    fn is_worker(&self) -> bool {
        let caller = thread::current().id();
        self.threads.iter().any(|thread| thread.get() == Some(&caller))
    }
}

fn thread_name(worker: usize) -> String {
    format!("bus-{worker}")
}
