//! The threads of a relay: who is started and stopped when.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use socket2::SockRef;

use super::{Shared, StartError, StopReport};
use crate::{
    base::{
        clock::Clock,
        lane::{self, Inlet, Receiver},
        lifecycle::{Cause, Group, OnPanic, Panics, Stop},
        limits::WORKER_STACK_BYTES,
        sync::atomic::Ordering,
    },
    config::Config,
    metrics::{Metrics, labels::Closed},
    server::{
        acceptor, committer,
        connection::Phase,
        keeper::{self, Watch},
        pager::{self, Errand, PagerHandle},
        roster::Roster,
        state::{Spaces, Which},
        vault::Job,
        writer::{Command, Waker, Writer, WriterHandle, WriterParts},
    },
    store::Store,
};

/// The threads of a relay that others depend on, and what wakes the acceptors.
pub(super) struct Threads {
    pub(super) listeners: Vec<Arc<TcpListener>>,
    pub(super) acceptors: Group,
    pub(super) keeper: Group,
    /// Empty without a store.
    pub(super) committer: Group,
    pub(super) pager: Group,
    pub(super) writers: Group,
}

impl Threads {
    /// None but the writers, which run.
    pub(super) fn new(stop: &Stop, panics: &Panics, writers: Group) -> Threads {
        let group = || Group::new(stop.clone(), Arc::clone(panics));
        Threads {
            listeners: Vec::new(),
            acceptors: group(),
            keeper: group(),
            committer: group(),
            pager: group(),
            writers,
        }
    }

    /// Starts the committer, if there is a store, and the pager.
    pub(super) fn serve_store(
        &mut self,
        shared: &Arc<Shared>,
        store: Option<(Box<dyn Store>, Receiver<Job>)>,
        errands: Receiver<Errand>,
    ) -> Result<(), StartError> {
        let pages = store.as_ref().map(|(store, _)| store.pages());
        let pager_shared = Arc::clone(shared);
        let body = move || pager::run(&pager_shared, &errands, pages);
        spawn(&mut self.pager, "pager".to_owned(), body)?;
        if let Some((store, jobs)) = store {
            let shared = Arc::clone(shared);
            let body = move || committer::run(&shared, &jobs, store);
            spawn(&mut self.committer, "commit".to_owned(), body)?;
        }
        Ok(())
    }

    /// Starts the keeper and the acceptors. Returns where they listen.
    pub(super) fn serve(
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

    pub(super) fn stop(self, shared: &Arc<Shared>, drain: Duration) -> StopReport {
        let Threads { listeners, acceptors, keeper, committer, pager, writers } = self;
        let clock = &shared.clock;
        let deadline = clock.now() + drain;
        // SeqCst: see `Connection::state`.
        shared.draining.store(true, Ordering::SeqCst);
        shared.stop.raise(Cause::Requested);
        for listener in &listeners {
            // Wakes the acceptor, which sees that the relay stops.
            drop(SockRef::from(&**listener).shutdown(std::net::Shutdown::Both));
        }
        let mut late = acceptors.join(deadline);
        // Who has published hears that it is stored before it hears that the relay stops.
        shared.vault.drain(drain);
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
        // Handlers may still change the state, which is then stored.
        let left = last.max(clock.now() + LAST_MOMENT).saturating_duration_since(clock.now());
        late.extend(shared.pool.stop(left).late);
        shared.vault.send(Job::Stop);
        late.extend(committer.join(last.max(clock.now()) + STORE_MOMENT));
        shared.pager.send(Errand::Stop);
        let last = last.max(clock.now() + LAST_MOMENT);
        late.extend(pager.join(last));
        late.extend(end_writers(&shared.writers, writers, last));
        StopReport { late, cut }
    }
}

/// The drain time of a relay that is dropped rather than stopped.
pub(super) const DRAIN_ON_DROP: Duration = Duration::from_secs(1);
/// What the committer gets to store what may have waited, and to close the store.
const STORE_MOMENT: Duration = Duration::from_secs(5);
/// What threads get to end in, after the drain time.
pub(super) const LAST_MOMENT: Duration = Duration::from_secs(1);

/// Tells every client that the relay stops.
fn say_bye_to_all(shared: &Arc<Shared>, drain: Duration) {
    let window_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX);
    let deadline_ms = shared.clock.uptime_ms() + window_ms;
    for connection in shared.roster.all() {
        match connection.phase() {
            Phase::WebSocket | Phase::Stream => shared.say_stopping(&connection, deadline_ms),
            // Nobody waits for an answer, except one that is on its way.
            Phase::Idle => connection.retire(Closed::Shutdown, deadline_ms),
            // Readers look themselves when they have answered, or are asked for a WebSocket.
            Phase::Http | Phase::Closing => {}
        }
    }
}

pub(super) fn bind_all(listen: &[String]) -> Result<Vec<(TcpListener, SocketAddr)>, StartError> {
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

/// What all writers are made of.
pub(super) struct Common<'a> {
    pub(super) config: &'a Config,
    pub(super) clock: &'a Clock,
    pub(super) metrics: &'a Arc<Metrics>,
    pub(super) keeper: &'a Inlet<Watch>,
    pub(super) roster: &'a Arc<Roster>,
    pub(super) pager: &'a PagerHandle,
    pub(super) spaces: &'a Spaces,
}

/// Starts the writers. On an error, those in `handles` run and are to be ended.
pub(super) fn start_writers(
    group: &mut Group,
    handles: &mut Vec<WriterHandle>,
    common: &Common<'_>,
) -> Result<(), StartError> {
    let Common { config, clock, metrics, keeper, roster, pager, spaces } = *common;
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
            acks: config.acks,
            pager: pager.clone(),
            spaces: Which::ALL.map(|which| Arc::clone(spaces.space(which))),
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
pub(super) fn end_writers(
    handles: &[WriterHandle],
    group: Group,
    deadline: Instant,
) -> Vec<String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Space;

    #[test]
    fn writers_that_were_started_in_vain_end() {
        let config = Config { writers: 3, ..Config::default() };
        let (clock, metrics) = (Clock::default(), Arc::new(Metrics::default()));
        let (keeper, _watches) = lane::open(lane::DEADLINES);
        let mut group = Group::new(Stop::default(), Panics::default());
        let mut handles = Vec::new();
        let roster = Arc::new(Roster::new(Arc::clone(&metrics)));
        let (errands, _errands) = lane::open(lane::PAGES);
        let pager = PagerHandle::new(errands);
        let spaces = Spaces::new(Space::of_test(3), &config.state, 3);
        let (config, clock, metrics) = (&config, &clock, &metrics);
        let (keeper, roster, pager, spaces) = (&keeper, &roster, &pager, &spaces);
        let common = Common { config, clock, metrics, keeper, roster, pager, spaces };
        start_writers(&mut group, &mut handles, &common).unwrap();
        let late = end_writers(&handles, group, clock.now() + Duration::from_secs(30));
        assert_eq!(late, [""; 0]);
    }
}
