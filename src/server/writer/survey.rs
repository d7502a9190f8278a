//! What a writer says of its connections to whoever lists them.

use super::{Writer, peer::Peer};
use crate::base::lane::Inlet;

/// A question about connections of one writer.
pub(crate) struct Survey {
    pub(crate) connections: Box<[u64]>,
    /// What there is to say of the first of them, in their order, of one at least. `None` is one
    /// that is not here, or not any more.
    pub(crate) reply: Inlet<Vec<Option<Findings>>>,
}

/// What only its writer knows of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// To names and to patterns.
    pub(crate) subscriptions: usize,
    pub(crate) watches: usize,
    /// Events after its cursors.
    pub(crate) lag: u64,
}

/// Cursors that one answer looks at, and those of one connection more: beyond it the rest is to be
/// asked for again, and others are served in between.
const CURSORS_PER_ANSWER: usize = 20_000;

impl Writer {
    pub(super) fn survey(&self, survey: &Survey) {
        let mut findings = Vec::with_capacity(survey.connections.len());
        let mut looked_at = 0;
        for connection in &survey.connections {
            if CURSORS_PER_ANSWER <= looked_at {
                break;
            }
            let peer = self.by_connection.get(connection).map(|index| &self.peers[*index]);
            looked_at += peer.map_or(0, |peer| peer.follows.len());
            findings.push(peer.map(|peer| self.findings(peer)));
        }
        // Who asked may have gone; nobody else wants to know.
        drop(survey.reply.offer(findings));
    }

    fn findings(&self, peer: &Peer) -> Findings {
        let mut found = Findings { subscriptions: peer.patterns.len(), ..Findings::default() };
        for (feed, following) in &peer.follows {
            found.subscriptions += usize::from(following.by_name.is_some());
            // Whoever stands with the group gets all there is in the next turn.
            if let Some(cursor) = following.cursor {
                let tail = self.feeds[*feed].topic.look(|log| log.tail());
                found.lag += tail.saturating_sub(cursor);
            }
        }
        found.watches = peer.watchers.iter().flatten().map(|watcher| watcher.len()).sum();
        found
    }
}
