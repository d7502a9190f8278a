//! What a relay is made of, before its threads start: the store, the states, the limits.

use std::sync::Arc;

use super::StartError;
#[cfg(feature = "durable")]
use crate::wire::position::Epoch;
use crate::{
    base::{
        clock::Clock,
        lane,
        lifecycle::{Panics, Stop},
    },
    bus::{Pool, PoolSettings},
    config::Config,
    metrics::Metrics,
    server::{
        state::{self, Spaces},
        system,
    },
    store::{Loaded, Store, StoreError, disk::Disk},
};

/// Opens the store, and says what was found that should not be.
#[cfg(feature = "durable")]
pub(super) fn open_store(
    config: &Config,
    disk: Arc<dyn Disk>,
) -> Result<(Box<dyn Store>, Loaded), StartError> {
    use crate::store::{Database, StoreSettings};

    let settings =
        StoreSettings { cache_bytes: config.store.cache, reads_state: config.state.durable };
    let (mut database, mut loaded) = Database::open(disk, settings).map_err(StartError::Store)?;
    if loaded.has_lost_power {
        renew_epochs(config, &mut database, &mut loaded).map_err(StartError::Store)?;
    }
    database.begin_run().map_err(StartError::Store)?;
    loaded.warnings.iter().for_each(|warning| log::error!("{warning}"));
    Ok((Box::new(database), loaded))
}

/// Begins a new epoch for each topic whose newest events may have been lost with the power: their
/// sequences will be given out again, for other events.
#[cfg(feature = "durable")]
fn renew_epochs(
    config: &Config,
    database: &mut crate::store::Database,
    loaded: &mut Loaded,
) -> Result<(), StoreError> {
    use crate::{
        config::SyncPolicy,
        store::{Batch, NewTopic},
    };

    let mut batch = Batch::default();
    for topic in &mut loaded.topics {
        if config.topics.policy(&topic.name).sync != SyncPolicy::Always {
            topic.epoch = Epoch::random();
            let (name, epoch, tail) = (topic.name.clone(), topic.epoch, topic.tail);
            batch.topics.push(NewTopic { id: topic.id, name, epoch, tail });
        }
    }
    if !batch.topics.is_empty() {
        database.commit(&batch)?;
        loaded.warnings.push(format!(
            "the machine stopped under the relay; {} topics whose events are not always on disk \
             begin a new epoch",
            batch.topics.len()
        ));
    }
    Ok(())
}

/// Starts the workers that run handlers within the process.
pub(super) fn start_pool(stop: &Stop, panics: &Panics) -> Result<Arc<Pool>, StartError> {
    let pool = Pool::start(PoolSettings::default(), stop.clone(), Arc::clone(panics));
    pool.map(Arc::new)
        .map_err(|error| StartError::Thread { name: error.thread, source: error.source })
}

/// Makes the states.
pub(super) fn open_spaces(config: &Config, clock: &Clock, loaded: Option<&mut Loaded>) -> Spaces {
    let own = state::open(&config.state, clock, loaded, config.writers);
    Spaces::new(own, &config.state, config.writers)
}

/// There is none in this build.
#[cfg(not(feature = "durable"))]
pub(super) fn open_store(
    _: &Config,
    _: Arc<dyn Disk>,
) -> Result<(Box<dyn Store>, Loaded), StartError> {
    Err(StartError::Store(StoreError::NotBuilt))
}

/// Fits the limit of connections to what the operating system allows, with a warning.
pub(super) fn fit_connections(wanted: u64) -> u64 {
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

/// Notes the bounds that do not change while the relay runs, or only by a reload.
pub(super) fn note_limits(metrics: &Metrics, config: &Config) {
    let limit = lane::COMMANDS.capacity * config.writers;
    metrics.commands_limit.set(limit as u64);
    metrics.pages_limit.set(lane::PAGES.capacity as u64);
    metrics.consumers_limit.set(config.acks.max_consumers as u64);
    metrics.state_keys_limit.set(config.state.max_keys as u64);
    metrics.state_bytes_limit.set(config.state.max_bytes);
}
