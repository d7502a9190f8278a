//! Who is connected: from the moment a connection is accepted until its writer has let it go.
//!
//! # Locks
//!
//! [`Rank::Roster`], for one insertion, change, removal or copy.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use crate::{
    base::lock::{Rank, Ranked},
    metrics::Metrics,
    name::UserName,
    server::connection::Connection,
};

/// All connections of the relay, HTTP requests included.
pub(crate) struct Roster {
    /// By number.
    connections: Ranked<BTreeMap<u64, Entry>>,
    metrics: Arc<Metrics>,
}

/// One connection, and what it has said about itself.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) connection: Arc<Connection>,
    /// `None` if it has said nothing.
    pub(crate) about: Option<Arc<About>>,
}

/// What a client says about itself.
#[derive(Clone, Default)]
pub(crate) struct About {
    pub(crate) user: Option<UserName>,
    /// What the client calls itself.
    pub(crate) client: Option<Box<str>>,
}

impl Roster {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { connections: Ranked::new(Rank::Roster, BTreeMap::new()), metrics }
    }

    pub(crate) fn insert(&self, connection: &Arc<Connection>) {
        let connection = Arc::clone(connection);
        let entry = Entry { connection, about: None };
        let len = self.connections.with(|all| {
            all.insert(entry.connection.id, entry);
            all.len()
        });
        self.metrics.connections.set(len as u64);
    }

    /// Changes what a connection has said about itself.
    pub(crate) fn amend(&self, id: u64, change: impl FnOnce(&mut About)) {
        self.connections.with(|all| {
            if let Some(entry) = all.get_mut(&id) {
                change(Arc::make_mut(entry.about.get_or_insert_default()));
            }
        });
    }

    pub(crate) fn remove(&self, id: u64) {
        let (gone, len) = self.connections.with(|all| (all.remove(&id), all.len()));
        // Outside the lock: dropping the last reference closes the socket.
        drop(gone);
        self.metrics.connections.set(len as u64);
    }

    pub(crate) fn len(&self) -> usize {
        self.connections.with(|all| all.len())
    }

    pub(crate) fn all(&self) -> Vec<Arc<Connection>> {
        let connection = |entry: &Entry| Arc::clone(&entry.connection);
        self.connections.with(|all| all.values().map(connection).collect())
    }

    pub(crate) fn find(&self, id: u64) -> Option<Arc<Connection>> {
        self.connections.with(|all| all.get(&id).map(|entry| Arc::clone(&entry.connection)))
    }

    /// At most `limit` connections after number `after`, by number.
    pub(crate) fn page(&self, after: u64, limit: usize) -> Vec<Entry> {
        self.connections.with(|all| {
            let later = all.range((Excluded(after), Unbounded));
            later.take(limit).map(|(_, entry)| entry.clone()).collect()
        })
    }
}
