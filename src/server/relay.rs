//! The relay: what starts and stops, in which order.
//!
//! # Threads
//!
//! Started by whoever owns the [`Server`]: writers and keeper first, acceptors last. Stopped in the
//! opposite order: nobody new comes in, everybody is told, outboxes drain, readers end, then the
//! keeper, then the writers.
//!
//! # Locks
//!
//! The settings, for one copy of a reference.

mod opening;
mod stages;

use self::opening::{fit_connections, note_limits, open_spaces, open_store, start_pool};
use self::stages::{
    Common, DRAIN_ON_DROP, LAST_MOMENT, Threads, bind_all, end_writers, start_writers,
};
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    base::{
        clock::Clock,
        lane::{self, Inlet},
        lifecycle::{Crew, Group, Panics, Stop},
        limits::CLOSE_GRACE,
        lock::{Rank, Ranked},
        random,
        sync::atomic::{AtomicBool, AtomicU64, Ordering},
    },
    bus::{EventBus, Pool},
    config::{Config, ConnectionSettings},
    metrics::{
        Metrics,
        labels::{Closed, StoreFailure},
    },
    server::{
        connection::{Bye, Connection},
        happening::RelayEvent,
        keeper::Watch,
        logging::Limiter,
        pager::PagerHandle,
        presence::Members,
        roster::Roster,
        state::{self, Spaces},
        sys::Sys,
        system,
        vault::{Job, Vault},
        writer::{Command, WriterHandle},
    },
    state::StateStore,
    store::{
        Loaded, Store, StoreError,
        disk::{Directory, Disk},
    },
    topic::Registry,
    wire::{
        codes::{CloseCode, Code},
        request::Refusal,
    },
};

/// What all threads of one relay share.
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) registry: Registry,
    pub(crate) roster: Arc<Roster>,
    pub(crate) state: Spaces,
    pub(crate) pool: Arc<Pool>,
    pub(crate) events: EventBus<RelayEvent>,
    pub(crate) members: Members,
    pub(crate) sys: Sys,
    pub(crate) vault: Vault,
    pub(crate) pager: PagerHandle,
    pub(crate) writers: Box<[WriterHandle]>,
    pub(crate) crew: Crew,
    pub(crate) stop: Stop,
    /// Connections at once, as far as the operating system allows.
    pub(crate) connections_max: u64,
    pub(crate) next_connection: AtomicU64,
    pub(crate) accept_errors: Limiter,
    pub(crate) disconnects: Limiter,
    panics: Panics,
    keeper: Inlet<Watch>,
    config: Ranked<Arc<Config>>,
    /// Counts reloads, so that nobody asks for the settings who has them.
    generation: AtomicU64,
    draining: AtomicBool,
    /// Nothing is left whose deadlines matter.
    drained: AtomicBool,
}

impl Shared {
    /// The settings in force, and their generation.
    pub(crate) fn config(&self) -> (u64, Arc<Config>) {
        self.config.with(|config| (self.generation(), Arc::clone(config)))
    }

    pub(crate) fn generation(&self) -> u64 {
        // Relaxed: a hint that asks for the settings, which are behind their lock.
        self.generation.load(Ordering::Relaxed)
    }

    /// Has the keeper look at `connection` at `at_ms` of uptime.
    ///
    /// # Blocking
    ///
    /// While the keeper's lane is full.
    pub(crate) fn watch(&self, connection: &Arc<Connection>, at_ms: u64) {
        // A closed lane means that the relay has stopped; its deadlines do not matter any more.
        drop(self.keeper.send(Watch { connection: Arc::downgrade(connection), at_ms }));
    }

    /// Has the keeper look around at `at_ms` of uptime.
    ///
    /// # Blocking
    ///
    /// While the keeper's lane is full.
    pub(crate) fn wake_keeper(&self, at_ms: u64) {
        drop(self.keeper.send(Watch { connection: Weak::new(), at_ms }));
    }

    /// Has the keeper look around soon, for threads that must not wait for it. If its lane is full
    /// it is about to.
    pub(crate) fn nudge_keeper(&self) {
        drop(self.keeper.offer(Watch { connection: Weak::new(), at_ms: 0 }));
    }

    pub(crate) fn keeper_may_end(&self) -> bool {
        // Relaxed: a flag that only ever rises, looked at again after each wake-up.
        self.drained.load(Ordering::Relaxed)
    }

    /// Whether the relay can serve, or why not.
    pub(crate) fn readiness(&self) -> Result<(), &'static str> {
        // SeqCst: see `Connection::state`.
        if self.draining.load(Ordering::SeqCst) {
            return Err(STOPPING);
        }
        Ok(())
    }

    /// Whether durable topics can be written, or why not.
    pub(crate) fn store_health(&self) -> Result<(), &'static str> {
        match self.vault.failure().map(|failure| failure.kind) {
            None => Ok(()),
            Some(StoreFailure::Full) => Err("durable topics cannot be written: the disk is full"),
            Some(StoreFailure::Damaged) => {
                Err("durable topics cannot be written: what is on disk is damaged")
            }
            Some(StoreFailure::Io) => {
                Err("durable topics cannot be written: the disk cannot be used")
            }
        }
    }

    /// As [`Shared::readiness`], for who asks to stay: with a time to come back.
    pub(crate) fn admit(&self) -> Result<(), Refusal> {
        self.readiness().map_err(|why| {
            let after_ms = 1 + random::below(self.drain_ms().max(1));
            Refusal { retry_after_ms: Some(after_ms), ..Refusal::new(Code::Unavailable, why) }
        })
    }

    /// Tells one client that the relay stops and when to come back: each at its own time within the
    /// drain window, so that a restart is not met by all of them at once. It has until
    /// `deadline_ms` at most.
    pub(crate) fn say_stopping(&self, connection: &Connection, deadline_ms: u64) {
        let after = Some(random::below(self.drain_ms().max(1)));
        let code = CloseCode::GoingAway;
        let bye = Bye { reason: "shutdown", text: STOPPING, code, reconnect_after_ms: after };
        connection.say_bye(Closed::Shutdown, deadline_ms, &bye);
        connection.flush();
    }

    pub(crate) fn drain_ms(&self) -> u64 {
        u64::try_from(self.config().1.drain.as_millis()).unwrap_or(u64::MAX / 2)
    }

    /// Refreshes the gauges that are read rather than kept.
    pub(crate) fn sample(&self) {
        let depth = self.writers.iter().map(|writer| writer.inlet.depth() as u64).sum();
        self.metrics.commands_depth.set(depth);
        self.metrics.topics.set(self.registry.len() as u64);
        self.metrics.log_bytes.set(self.registry.bytes());
        // Relaxed: a count.
        let consumers = self.registry.consumer_count().load(Ordering::Relaxed);
        self.metrics.consumers.set(consumers);
        self.metrics.backlog_bytes.set(self.vault.backlog_bytes());
        let size = self.state.shared.look(|map| (map.len(), map.bytes(), map.tombstones()));
        self.metrics.state_keys.set(size.0 as u64);
        self.metrics.state_bytes.set(size.1);
        self.metrics.state_tombstones.set(size.2 as u64);
        let stats = self.pool.stats();
        self.metrics.bus_depth.set(stats.depth as u64);
        self.metrics.bus_limit.set(stats.limit as u64);
        self.metrics.bus_refused.set(stats.refused);
        self.metrics.bus_panicked.set(stats.panicked);
        self.metrics.pages_depth.set(self.pager.depth() as u64);
        self.metrics.threads_panicked.set(self.panics.load(Ordering::Relaxed));
        let config = self.config().1;
        let commits = usize::from(config.store.data_dir.is_some());
        // Writers, acceptors, workers of the bus, the keeper, the pager.
        let fixed = self.writers.len() + config.listen.len() + self.pool.workers() + 2 + commits;
        self.metrics.threads.set((self.crew.running() + fixed) as u64);
    }
}

const STOPPING: &str = "the relay is stopping";

/// A running relay. Dropping it stops it, and gives clients a second at most; [`Server::stop`]
/// gives them the configured drain time, and says how it went.
///
/// ```
/// use landline::{config::Config, server::Server};
///
/// let config = Config { listen: vec!["127.0.0.1:0".into()], ..Config::default() };
/// let server = Server::start(config)?;
/// println!("listening on http://{}", server.addresses()[0]);
/// let report = server.stop();
/// assert!(report.late.is_empty());
/// # Ok::<(), landline::server::StartError>(())
/// ```
pub struct Server {
    shared: Arc<Shared>,
    state: StateStore,
    addresses: Vec<SocketAddr>,
    /// `None` once it has stopped.
    threads: Option<Threads>,
}

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    #[error("cannot listen on {address}")]
    Listen { address: String, source: io::Error },
    #[error("cannot start the thread {name}")]
    Thread { name: String, source: io::Error },
    #[error("cannot open a bell for writer {writer}")]
    Bell { writer: usize, source: io::Error },
    #[error("cannot open the store")]
    Store(#[source] StoreError),
}

/// How a stop went.
#[derive(Debug)]
pub struct StopReport {
    /// Threads that had not ended at the deadline.
    pub late: Vec<String>,
    /// Connections that were cut off rather than closed.
    pub cut: usize,
}

impl Server {
    /// Starts a relay with `config`.
    ///
    /// # Errors
    ///
    /// A listener cannot be bound, the data directory cannot be used, or the operating system
    /// refuses a thread. Nothing is left running.
    pub fn start(config: Config) -> Result<Server, StartError> {
        let store = match &config.store.data_dir {
            None => None,
            Some(dir) => Some(open_store(&config, Arc::new(Directory::new(dir)))?),
        };
        Server::start_with(config, store)
    }

    /// As [`Server::start`], with durable topics on `disk` instead of in a directory.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn start_on(config: Config, disk: Arc<dyn Disk>) -> Result<Server, StartError> {
        let store = open_store(&config, disk)?;
        Server::start_with(config, Some(store))
    }

    pub(super) fn start_with(
        config: Config,
        store: Option<(Box<dyn Store>, Loaded)>,
    ) -> Result<Server, StartError> {
        system::raise_descriptor_limit();
        let clock = Clock::default();
        let metrics = Arc::new(Metrics::default());
        let (stop, panics) = (Stop::default(), Panics::default());
        let connections_max = fit_connections(config.connections.max_connections as u64);
        metrics.connections_limit.set(connections_max);
        let bound = bind_all(&config.listen)?;

        let mut writers = Group::new(stop.clone(), Arc::clone(&panics));
        let (keeper_inlet, keeper_outlet) = lane::open(lane::DEADLINES);
        let mut handles = Vec::with_capacity(config.writers);
        let roster = Arc::new(Roster::new(Arc::clone(&metrics)));
        let (errands, errands_outlet) = lane::open(lane::PAGES);
        let pager = PagerHandle::new(errands);
        let pool = start_pool(&stop, &panics)?;
        let (store, mut loaded) = store.unzip();
        let spaces = open_spaces(&config, &clock, loaded.as_mut());
        let common = Common {
            config: &config,
            clock: &clock,
            metrics: &metrics,
            keeper: &keeper_inlet,
            roster: &roster,
            pager: &pager,
            spaces: &spaces,
        };
        if let Err(error) = start_writers(&mut writers, &mut handles, &common) {
            end_writers(&handles, writers, clock.now() + LAST_MOMENT);
            return Err(error);
        }
        note_limits(&metrics, &config);
        let (jobs, jobs_outlet) = lane::open(lane::COMMITS);
        let (topics, measures) = (config.topics.clone(), Arc::clone(&metrics));
        let loaded = loaded.as_ref();
        let registry = Registry::new(topics, config.writers, clock.clone(), measures, loaded);
        let vault = Vault::new(jobs, &config.store, clock.clone(), Arc::clone(&metrics));
        let shared = Arc::new(Shared {
            registry,
            state: spaces,
            events: EventBus::new(Arc::clone(&pool)),
            pool,
            members: Members::default(),
            sys: Sys::default(),
            vault,
            pager,
            roster,
            writers: handles.into(),
            crew: Crew::new(stop.clone(), Arc::clone(&panics)),
            stop: stop.clone(),
            connections_max,
            next_connection: AtomicU64::new(1),
            accept_errors: Limiter::default(),
            disconnects: Limiter::default(),
            panics: Arc::clone(&panics),
            keeper: keeper_inlet,
            config: Ranked::new(Rank::Settings, Arc::new(config)),
            generation: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            clock,
            metrics,
        });
        let state = state::store_of(&shared);
        let mut threads = Threads::new(&stop, &panics, writers);
        let store = store.map(|store| (store, jobs_outlet));
        shared.metrics.reload_ok.set(1);
        let stored = threads.serve_store(&shared, store, errands_outlet);
        let served = stored.and_then(|()| threads.serve(&shared, bound, keeper_outlet));
        // From here on, dropping it is what stops it.
        let mut server = Server { shared, state, addresses: Vec::new(), threads: Some(threads) };
        server.addresses = served?;
        Ok(server)
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Where the relay listens, with the real ports.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The signal that is raised when a thread that others depend on has panicked.
    #[must_use]
    pub fn stop_signal(&self) -> Stop {
        self.shared.stop.clone()
    }

    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        self.shared.sample();
        &self.shared.metrics
    }

    /// What happens in the relay, for handlers within the process. They run on threads of their own
    /// and hold up nothing but one another; one that is too slow misses events, which is counted.
    ///
    /// ```
    /// use landline::{config::Config, server::{RelayEvent, Server}};
    ///
    /// let config = Config { listen: vec!["127.0.0.1:0".into()], ..Config::default() };
    /// let server = Server::start(config)?;
    /// let id = server.events().subscribe(None, |event| {
    ///     if let RelayEvent::TopicCreated { topic } = event {
    ///         println!("{topic} is new");
    ///     }
    /// });
    /// assert!(server.events().unsubscribe(id));
    /// # drop(server.stop());
    /// # Ok::<(), landline::server::StartError>(())
    /// ```
    #[must_use]
    pub fn events(&self) -> &EventBus<RelayEvent> {
        &self.shared.events
    }

    /// The shared state of the relay, for the program that it lives in.
    #[must_use]
    pub fn state(&self) -> &StateStore {
        &self.state
    }

    /// Puts `config` into force as far as it can change while the relay runs: everything but the
    /// listeners, the number of writers and of connections.
    ///
    /// # Blocking
    ///
    /// While a writer's lane is full.
    pub fn reload(&self, config: Config) {
        self.shared.registry.apply(config.topics.clone());
        self.shared.state.apply(&config.state);
        let settings = (config.connections, config.acks);
        self.shared.vault.apply(&config.store);
        note_limits(&self.shared.metrics, &config);
        self.shared.vault.send(Job::Retain);
        self.shared.config.with(|current| {
            *current = Arc::new(config);
            self.shared.generation.fetch_add(1, Ordering::Relaxed);
        });
        for writer in &self.shared.writers {
            writer.send(Command::Settings(Box::new(settings)));
        }
        self.shared.metrics.reload_ok.set(1);
    }

    /// Notes that a reload was refused and the old settings stay.
    pub fn note_failed_reload(&self) {
        self.shared.metrics.reloads_failed.add(1);
        self.shared.metrics.reload_ok.set(0);
    }

    /// Stops: nobody new comes in, everybody is told when to come back, what waits is sent, all
    /// threads end.
    ///
    /// # Blocking
    ///
    /// At most the configured drain time and a second.
    #[must_use]
    pub fn stop(mut self) -> StopReport {
        let drain = self.shared.config().1.drain;
        match self.threads.take() {
            Some(threads) => threads.stop(&self.shared, drain),
            None => StopReport { late: Vec::new(), cut: 0 },
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(threads) = self.threads.take() else { return };
        let drain = self.shared.config().1.drain.min(DRAIN_ON_DROP);
        let StopReport { late, .. } = threads.stop(&self.shared, drain);
        if !late.is_empty() {
            log::warn!("threads did not end in time names=\"{}\"", late.join(", "));
        }
    }
}

/// The shortest time that a client gets to take last words that wait behind much else.
const LAST_RESORT: Duration = Duration::from_secs(60);
/// As many write stalls it gets if that is longer.
const LAST_RESORT_STALLS: u32 = 6;

/// When a connection ends whose last words have been said but not sent. The writer brings it nearer
/// once they are sent, and cuts off who takes nothing; this bounds who takes a byte now and then.
pub(crate) fn last_resort_ms(now_ms: u64, settings: &ConnectionSettings) -> u64 {
    let limit = settings.write_stall.saturating_mul(LAST_RESORT_STALLS).max(LAST_RESORT);
    now_ms.saturating_add(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
}

/// When a connection ends that has been sent everything.
pub(crate) fn grace_deadline_ms(now_ms: u64) -> u64 {
    now_ms + u64::try_from(CLOSE_GRACE.as_millis()).unwrap_or(u64::MAX)
}
