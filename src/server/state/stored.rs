//! The shared state on its way to the store and back.

use crate::{
    base::clock::Clock,
    config::StateSettings,
    name::Name,
    server::state::limits,
    state::{Entry, Expiry, Now, Pending, Settled, Space},
    store::{Loaded, StateBatch, StateRecord, StoredState},
    wire::position::Epoch,
};

/// What the store is to be given of `taken`.
pub(crate) fn batch(space: &Space, taken: &Pending) -> Box<StateBatch> {
    let record = |(key, entry): &(Name, Entry)| StateRecord {
        key: key.clone(),
        version: entry.version,
        time_ms: entry.time_ms,
        expires_unix_ms: entry.expires.map(|expires| expires.unix_ms),
        text: entry.text().to_vec(),
        value: entry.value_in_text(),
    };
    Box::new(StateBatch {
        epoch: space.epoch(),
        horizon: taken.horizon,
        upto: taken.upto,
        is_whole: taken.is_whole,
        changes: taken.entries.iter().map(record).collect(),
        forgotten: taken.forgotten.clone(),
    })
}

/// Takes in what the store has, and gives up what waits for it. The caller announces it.
pub(crate) fn restore(space: &Space, stored: StoredState, now: Now) -> Settled {
    let entry = |record: StateRecord| {
        let StateRecord { key, version, time_ms, expires_unix_ms, text, value } = record;
        let expires = expires_unix_ms.map(|unix_ms| {
            // A calendar that was put back does not give a key more than its time.
            let left_ms = unix_ms.saturating_sub(now.unix_ms.max(time_ms));
            Expiry { uptime_ms: now.uptime_ms.saturating_add(left_ms), unix_ms }
        });
        (key, Entry::from_text((version, time_ms), &text, value, expires))
    };
    let entries = stored.entries.into_iter().map(entry).collect();
    space.restore(entries, stored.horizon, stored.upto)
}

/// The shared state of a relay that starts, with what is stored of it. Without a store nothing is.
pub(crate) fn open(
    settings: &StateSettings,
    clock: &Clock,
    loaded: Option<&mut Loaded>,
    writers: usize,
) -> Space {
    let is_durable = settings.durable && loaded.is_some();
    let stored = loaded.filter(|_| is_durable).and_then(|loaded| loaded.state.take());
    let Some(stored) = stored else {
        return Space::new(Epoch::random(), limits(settings), is_durable, writers);
    };
    // Who has seen what is lost would keep it, if the epoch said that nothing is.
    let is_damaged = stored.is_damaged;
    let epoch = if is_damaged { Epoch::random() } else { stored.epoch };
    let space = Space::new(epoch, limits(settings), true, writers);
    let now = Now { uptime_ms: clock.uptime_ms(), unix_ms: clock.unix_ms() };
    // Nobody can wait yet.
    drop(restore(&space, stored, now));
    if is_damaged {
        log::error!("the shared state begins a new epoch, because some of it is lost");
        space.store_anew();
    }
    space
}
