//! What the committer does with the shared state: one more thing that is gated by what is stored.

use super::Committer;
use crate::{
    server::state,
    state::{Pending, Settled, Space},
    store::{Batch, StoredState},
};

impl Committer<'_> {
    fn space(&self) -> Option<&Space> {
        let space = &self.shared.state.shared;
        space.is_durable().then_some(&**space)
    }

    /// Whether the state has something that must be committed now.
    pub(super) fn look_at_state(&mut self) -> bool {
        let was_told = std::mem::take(&mut self.state_is_ready);
        let Some(space) = self.space() else { return false };
        if was_told {
            // Before looking: what comes after this comes with a job of its own.
            space.committer_looks();
        }
        was_told && space.has_pending()
    }

    /// Puts what the state has into `batch`, whatever the batch is made for.
    pub(super) fn take_state(&self, batch: &mut Batch) -> Option<Pending> {
        let space = self.space()?;
        let taken = space.take();
        if taken.is_empty() && !taken.is_whole {
            return None;
        }
        batch.state = Some(state::batch(space, &taken));
        Some(taken)
    }

    /// What was taken is stored: it is seen, and whoever changed it is told.
    pub(super) fn confirm_state(&self, taken: Option<Pending>) {
        let Some((space, taken)) = self.space().zip(taken) else { return };
        let settled = space.stored(&taken);
        self.shared.vault.settle(settled.size);
        space.announce();
        settled.tell();
    }

    /// Takes back what the state has that may not be seen.
    pub(super) fn reject_state(&mut self, taken: Option<Pending>) -> Settled {
        self.state_is_ready = false;
        let Some(space) = self.space() else { return Settled::default() };
        space.committer_looks();
        let settled = space.not_stored(taken);
        self.shared.vault.settle(settled.size);
        // What has expired and is back must go once more.
        self.shared.nudge_keeper();
        settled
    }

    /// Goes on from what is on disk.
    pub(super) fn continue_state(&mut self, stored: Option<StoredState>) {
        let now = self.shared.state_now();
        let Some(space) = self.space() else { return };
        space.committer_looks();
        let mut is_whole = false;
        let settled = match stored {
            // What may be seen is all in memory, so that damage costs nothing.
            Some(stored) if stored.epoch == space.epoch() => {
                is_whole = !stored.is_damaged;
                state::restore(space, stored, now)
            }
            // The file is another one, or there was no state in it yet.
            Some(_) | None => space.not_stored(None),
        };
        if !is_whole {
            space.store_anew();
        }
        self.shared.vault.settle(settled.size);
        space.announce();
        settled.tell();
        self.state_is_ready = true;
    }
}
