//! Who is connected: from the moment a connection is accepted until its writer has let it go.
//!
//! # Locks
//!
//! [`Rank::Roster`], for one insertion, removal or copy.

use std::{collections::HashMap, sync::Arc};

use crate::{
    base::lock::{Rank, Ranked},
    metrics::Metrics,
    server::connection::Connection,
};

/// All connections of the relay, HTTP requests included.
pub(crate) struct Roster {
    connections: Ranked<HashMap<u64, Arc<Connection>>>,
    metrics: Arc<Metrics>,
}

impl Roster {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { connections: Ranked::new(Rank::Roster, HashMap::new()), metrics }
    }

    pub(crate) fn insert(&self, connection: &Arc<Connection>) {
        let connection = Arc::clone(connection);
        let len = self.connections.with(|all| {
            all.insert(connection.id, connection);
            all.len()
        });
        self.metrics.connections.set(len as u64);
    }

    pub(crate) fn remove(&self, id: u64) {
        let (gone, len) = self.connections.with(|all| {
            let gone = all.remove(&id);
            if all.len() < all.capacity() / 8 {
                all.shrink_to_fit();
            }
            (gone, all.len())
        });
        // Outside the lock: dropping the last reference closes the socket.
        drop(gone);
        self.metrics.connections.set(len as u64);
    }

    pub(crate) fn len(&self) -> usize {
        self.connections.with(|all| all.len())
    }

    pub(crate) fn all(&self) -> Vec<Arc<Connection>> {
        self.connections.with(|all| all.values().cloned().collect())
    }
}
