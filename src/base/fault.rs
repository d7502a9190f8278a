//! Bugs that are known to be easy to make where threads meet, to be put back on purpose.
//!
//! A model of such a place is worth something only if it would find the bug. So each model runs a
//! second time with the fault in the production code, and fails if nothing is found. Everywhere
//! else [`Fault::is_on`] is `false` when the code is compiled, and nothing is left of it.

use crate::base::sync::atomic::Ordering;

/// One bug that can be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The stop signal wakes those who wait before it says why.
    StopWithoutCause,
    /// A condition variable wakes nobody.
    Unnotified,
    /// A hand-over flag of an outbox is cleared after the bytes were taken.
    OutboxFlag,
    /// The last words go out before a reply that was promised earlier.
    OutboxPromise,
    /// A writer looks at its lane before it says that it sleeps.
    WakerLooksEarly,
    /// A topic's wake flag is cleared after the log was read.
    WakeFlag,
    /// A follower is counted after its writer was told of it.
    FollowLate,
    /// A topic's followers are woken before the event is appended.
    WakeBeforeAppend,
    /// The committer clears its flag after it took what waits.
    CommitterFlag,
    /// Publishers are answered before the event is stored.
    AnswerEarly,
    /// What needs no commit is taken under another lock than that under which this was found.
    WrittenUnlooked,
    /// Room in the backlog is announced without the lock that its waiters look under.
    RoomWithoutLock,
    /// What an earlier holder of a consumer says still counts.
    Fence,
    /// A page from disk is delivered to a cursor that does not wait for it any more.
    StalePage,
    /// A connection asks whether the relay stops before it enters the phase that a stop looks for.
    PhaseLate,
    /// A flag that tells of news publishes nothing: its ordering is relaxed.
    FlagUnordered,
    /// Who rings a writer looks at its flag without a fence before it.
    RingUnfenced,
    /// A writer that goes to sleep looks at its lane without a fence before it.
    SleepUnfenced,
}

impl Fault {
    /// Whether the bug is there: never, but in a model that is to find it.
    #[cfg(not(all(test, any(loom, shuttle))))]
    #[must_use]
    #[inline]
    pub const fn is_on(self) -> bool {
        _ = self;
        false
    }

    #[cfg(all(test, any(loom, shuttle)))]
    pub fn is_on(self) -> bool {
        crate::base::sync::model::fault() == Some(self)
    }

    /// `ordering`, or none at all if the bug is there.
    #[must_use]
    #[inline]
    pub fn or_relaxed(self, ordering: Ordering) -> Ordering {
        if self.is_on() { Ordering::Relaxed } else { ordering }
    }
}
