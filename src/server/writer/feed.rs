//! A topic as one writer sees it: who stands at its tail.

use std::sync::Arc;

use crate::topic::Topic;

/// The followers of one topic on one writer.
///
/// Those who have everything up to `at` form one group and share every copy; those who are behind
/// keep a cursor of their own, in their [`super::peer::Peer`], until they have caught up.
pub(super) struct Feed {
    pub(super) topic: Arc<Topic>,
    /// Everybody in the group has this event and all before it.
    pub(super) at: u64,
    /// Peers that stand at `at`.
    pub(super) group: Vec<usize>,
    /// Peers with a cursor here, in the group or behind.
    pub(super) followers: usize,
    /// Waits in the writer's `ready` queue.
    pub(super) queued: bool,
}

impl Feed {
    pub(super) fn new(topic: Arc<Topic>, at: u64) -> Self {
        Self { topic, at, group: Vec::new(), followers: 0, queued: false }
    }
}
