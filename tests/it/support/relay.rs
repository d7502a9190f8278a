//! A relay inside the test, on a disk in memory whose steps the test lets fail.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use landline::{
    config::{Config, Policy, SyncPolicy, TopicRule},
    name::Filter,
    server::{Server, StartError},
    store::sim::SimDisk,
};

use super::{
    http::{Http, Reply},
    node::Metrics,
    peer::Peer,
    wait::{LIMIT, wait_until},
};

/// Events that `always/few` keeps.
pub const FEW: u64 = 8;

pub struct Relay {
    server: Server,
    addr: SocketAddr,
}

impl Relay {
    /// A relay whose topics are durable by the first segment of their names: `always/#`, where
    /// `always/few` keeps the last [`FEW`] events, `os/#` and `interval/#`; all others are not. The
    /// state is durable.
    ///
    /// # Errors
    ///
    /// The disk fails at once.
    pub fn start(disk: &SimDisk) -> Result<Relay, StartError> {
        Relay::start_with(config(), disk)
    }

    /// As [`Relay::start`], with a configuration made from [`config`].
    ///
    /// # Errors
    ///
    /// The disk fails at once.
    pub fn start_with(config: Config, disk: &SimDisk) -> Result<Relay, StartError> {
        let server = Server::start_on(config, Arc::new(disk.clone()))?;
        let addr = server.addresses()[0];
        Ok(Relay { server, addr })
    }

    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    #[track_caller]
    #[must_use]
    pub fn peer(&self) -> Peer {
        Peer::connect(self.addr)
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        Http::connect(self.addr).get(path)
    }

    #[track_caller]
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").body)
    }

    pub fn reload(&self, config: Config) {
        self.server.reload(config);
    }

    /// Waits until durable topics can be written, and the relay says that it is ready.
    #[track_caller]
    pub fn wait_ready(&self) {
        wait_until("the relay to be ready again", LIMIT, || self.get("/readyz").status == 200);
    }

    /// Stops the relay; all its peers should be gone. That no thread is left is asserted.
    #[track_caller]
    pub fn stop(self) {
        let panicked = self.metrics().sum(&["landline_threads_panicked"]);
        let report = self.server.stop();
        assert_eq!(report.late, [""; 0], "threads that did not end in time");
        assert_eq!(panicked, 0.0, "a thread panicked");
    }
}

/// What [`Relay::start`] starts with.
#[must_use]
pub fn config() -> Config {
    let mut config = Config {
        listen: vec!["127.0.0.1:0".to_owned()],
        writers: 1,
        drain: Duration::from_secs(5),
        ..Config::default()
    };
    let rule = |filter: &str, sync, max_events| {
        let sync_interval = Duration::from_millis(10);
        let policy = Policy { max_events, durable: true, sync, sync_interval, ..Policy::default() };
        TopicRule { filter: Filter::parse(filter).unwrap(), policy }
    };
    config.topics.rules = vec![
        rule("always/few", SyncPolicy::Always, FEW),
        rule("always/#", SyncPolicy::Always, 1_000),
        rule("os/#", SyncPolicy::Os, 1_000),
        rule("interval/#", SyncPolicy::Interval, 1_000),
    ];
    config.state.durable = true;
    config
}
