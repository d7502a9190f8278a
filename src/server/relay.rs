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

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::{
    base::{
        clock::Clock,
        lane::{self, Inlet, Receiver},
        lifecycle::{Crew, Group, OnPanic, Panics, Stop},
        limits::{CLOSE_GRACE, WORKER_STACK_BYTES},
        lock::{Rank, Ranked},
        random,
        sync::atomic::{AtomicBool, AtomicU64, Ordering},
    },
    config::{Config, ConnectionSettings},
    metrics::{Metrics, labels::Closed},
    server::{
        acceptor,
        connection::{Bye, Connection, Phase},
        keeper::{self, Watch},
        logging::Limiter,
        roster::Roster,
        system,
        writer::{Command, Waker, Writer, WriterHandle, WriterParts},
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
        self.metrics.threads_panicked.set(self.panics.load(Ordering::Relaxed));
        let fixed = self.writers.len() + 1 + self.config().1.listen.len();
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
    addresses: Vec<SocketAddr>,
    /// `None` once it has stopped.
    threads: Option<Threads>,
}

/// The threads of a relay that others depend on, and what wakes the acceptors.
struct Threads {
    listeners: Vec<Arc<TcpListener>>,
    acceptors: Group,
    keeper: Group,
    writers: Group,
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
    /// A listener cannot be bound, or the operating system refuses a thread. Nothing is left
    /// running.
    pub fn start(config: Config) -> Result<Server, StartError> {
        system::raise_descriptor_limit();
        let clock = Clock::default();
        let metrics = Arc::new(Metrics::default());
        let stop = Stop::default();
        let panics = Panics::default();
        let connections_max = fit_connections(config.connections.max_connections as u64);
        metrics.connections_limit.set(connections_max);
        metrics.reload_ok.set(1);
        let bound = bind_all(&config.listen)?;

        let mut writers = Group::new(stop.clone(), Arc::clone(&panics));
        let (keeper_inlet, keeper_outlet) = lane::open(lane::DEADLINES);
        let mut handles = Vec::with_capacity(config.writers);
        let roster = Arc::new(Roster::new(Arc::clone(&metrics)));
        let common = (&config, &clock, &metrics, &keeper_inlet, &roster);
        if let Err(error) = start_writers(&mut writers, &mut handles, common) {
            end_writers(&handles, writers, clock.now() + LAST_MOMENT);
            return Err(error);
        }
        let limit = lane::COMMANDS.capacity * config.writers;
        metrics.commands_limit.set(limit as u64);
        let topics = config.topics.clone();
        let shared = Arc::new(Shared {
            registry: Registry::new(topics, config.writers, clock.clone(), Arc::clone(&metrics)),
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
        let mut threads = Threads {
            listeners: Vec::new(),
            acceptors: Group::new(stop.clone(), Arc::clone(&panics)),
            keeper: Group::new(stop, panics),
            writers,
        };
        let served = threads.serve(&shared, bound, keeper_outlet);
        // From here on, dropping it is what stops it.
        let mut server = Server { shared, addresses: Vec::new(), threads: Some(threads) };
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

    /// Puts `config` into force as far as it can change while the relay runs: everything but the
    /// listeners, the number of writers and of connections.
    ///
    /// # Blocking
    ///
    /// While a writer's lane is full.
    pub fn reload(&self, config: Config) {
        self.shared.registry.apply(config.topics.clone());
        let settings = config.connections;
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

impl Threads {
    /// Starts the keeper and the acceptors. Returns where they listen.
    fn serve(
        &mut self,
        shared: &Arc<Shared>,
        bound: Vec<(TcpListener, SocketAddr)>,
        watches: Receiver<Watch>,
    ) -> Result<Vec<SocketAddr>, StartError> {
        let keeper_shared = Arc::clone(shared);
        let body = move || keeper::run(&keeper_shared, &watches);
        spawn(&mut self.keeper, "keeper".to_owned(), body)?;
        let mut addresses = Vec::with_capacity(bound.len());
        for (index, (listener, address)) in bound.into_iter().enumerate() {
            let listener = Arc::new(listener);
            let (shared, own) = (Arc::clone(shared), Arc::clone(&listener));
            let body = move || acceptor::run(&shared, &own);
            spawn(&mut self.acceptors, format!("accept-{index}"), body)?;
            addresses.push(address);
            self.listeners.push(listener);
        }
        Ok(addresses)
    }

    fn stop(self, shared: &Arc<Shared>, drain: Duration) -> StopReport {
        let Threads { listeners, acceptors, keeper, writers } = self;
        let clock = &shared.clock;
        let deadline = clock.now() + drain;
        // SeqCst: see `Connection::state`.
        shared.draining.store(true, Ordering::SeqCst);
        shared.stop.raise(crate::base::lifecycle::Cause::Requested);
        for listener in &listeners {
            // Wakes the acceptor, which sees that the relay stops.
            drop(SockRef::from(&**listener).shutdown(std::net::Shutdown::Both));
        }
        let mut late = acceptors.join(deadline);
        say_bye_to_all(shared, drain);
        let cut = shared.crew.join(clock, deadline);
        for connection in shared.roster.all() {
            connection.cut(Closed::Shutdown);
        }
        let last = clock.now() + LAST_MOMENT;
        let stuck = shared.crew.join(clock, last);
        late.extend((0..stuck).map(|_| "conn".to_owned()));
        shared.drained.store(true, Ordering::Relaxed);
        drop(shared.keeper.offer(Watch { connection: Weak::new(), at_ms: 0 }));
        late.extend(keeper.join(last));
        late.extend(end_writers(&shared.writers, writers, last));
        StopReport { late, cut }
    }
}

/// The drain time of a relay that is dropped rather than stopped.
const DRAIN_ON_DROP: Duration = Duration::from_secs(1);
/// What threads get to end in, after the drain time.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Tells every client that the relay stops.
fn say_bye_to_all(shared: &Arc<Shared>, drain: Duration) {
    let window_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
    let deadline_ms = shared.clock.uptime_ms() + window_ms;
    for connection in shared.roster.all() {
        match connection.phase() {
            Phase::WebSocket => shared.say_stopping(&connection, deadline_ms),
            // Nobody waits for an answer, except one that is on its way.
            Phase::Idle => connection.retire(Closed::Shutdown, deadline_ms),
            // Readers look themselves when they have answered, or are asked for a WebSocket.
            Phase::Http | Phase::Closing => {}
        }
    }
}

fn bind_all(listen: &[String]) -> Result<Vec<(TcpListener, SocketAddr)>, StartError> {
    let bind = |address: &String| {
        let listener = acceptor::bind(address)?;
        let local = listener.local_addr()?;
        Ok((listener, local))
    };
    listen
        .iter()
        .map(|address| {
            bind(address).map_err(|source| StartError::Listen { address: address.clone(), source })
        })
        .collect()
}

/// Starts the writers. On an error, those in `handles` run and are to be ended.
/// What all writers are made of.
type Common<'a> = (&'a Config, &'a Clock, &'a Arc<Metrics>, &'a Inlet<Watch>, &'a Arc<Roster>);

fn start_writers(
    group: &mut Group,
    handles: &mut Vec<WriterHandle>,
    (config, clock, metrics, keeper, roster): Common<'_>,
) -> Result<(), StartError> {
    for index in 0..config.writers {
        let (inlet, inbox) = lane::open(lane::COMMANDS);
        let waker = Waker::new().map_err(|source| StartError::Bell { writer: index, source })?;
        let waker = Arc::new(waker);
        let parts = WriterParts {
            index,
            inbox,
            waker: Arc::clone(&waker),
            keeper: keeper.clone(),
            roster: Arc::clone(roster),
            settings: config.connections,
            clock: clock.clone(),
            metrics: Arc::clone(metrics),
        };
        let writer =
            Writer::new(parts).map_err(|source| StartError::Bell { writer: index, source })?;
        spawn(group, format!("writer-{index}"), move || writer.run())?;
        handles.push(WriterHandle { inlet, waker });
    }
    Ok(())
}

/// Returns the names of those that had not ended at the deadline.
fn end_writers(handles: &[WriterHandle], group: Group, deadline: Instant) -> Vec<String> {
    for handle in handles {
        handle.send(Command::Stop);
    }
    group.join(deadline)
}

fn spawn(
    group: &mut Group,
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<(), StartError> {
    group
        .spawn(name.clone(), WORKER_STACK_BYTES, OnPanic::StopServer, body)
        .map_err(|source| StartError::Thread { name, source })
}

/// Fits the limit of connections to what the operating system allows, with a warning.
fn fit_connections(wanted: u64) -> u64 {
    match system::tightest_bound() {
        Some(bound) if bound.connections < wanted => {
            log::warn!(
                "max_connections is lowered from {wanted} to {} by {}",
                bound.connections,
                bound.name
            );
            bound.connections
        }
        _ => wanted,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_that_were_started_in_vain_end() {
        let config = Config { writers: 3, ..Config::default() };
        let (clock, metrics) = (Clock::default(), Arc::new(Metrics::default()));
        let (keeper, _watches) = lane::open(lane::DEADLINES);
        let mut group = Group::new(Stop::default(), Panics::default());
        let mut handles = Vec::new();
        let roster = Arc::new(Roster::new(Arc::clone(&metrics)));
        let common = (&config, &clock, &metrics, &keeper, &roster);
        start_writers(&mut group, &mut handles, common).unwrap();
        let late = end_writers(&handles, group, clock.now() + Duration::from_secs(30));
        assert_eq!(late, [""; 0]);
    }
}
