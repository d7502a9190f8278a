//! A watch as the program holds it, and the tray in which changes wait for it.
//!
//! # Threads
//!
//! `client-read` puts in, the program's thread takes out.
//!
//! # Locks
//!
//! [`Rank::Inbox`], for one change. Taken inside [`Rank::Client`].

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    base::{
        lane,
        lock::{Rank, Ranked},
        sync::Condvar,
    },
    client::{Client, error::ClientError, value::Value, watches::WatchId},
    name::{Filter, Name},
};

/// One thing that happened to a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchEvent {
    /// What was seen before does not count any more; all values follow, and then
    /// [`WatchEvent::Synced`]. The first event of a watch, and again if the state began anew, if
    /// the relay or this client could not keep all deletions for a watch that was away or slow, or
    /// if another watch of the same client began with the same pattern.
    Reset,
    /// A key has a new value.
    Set(Value),
    /// A key was deleted, or has expired.
    Deleted {
        key: Name,
        version: u64,
        /// When, in Unix milliseconds by the relay's clock.
        time: u64,
    },
    /// Everything up to `version` has been delivered: what was there at the start, or what was
    /// missed while the connection was lost. Also if that was nothing.
    Synced { version: u64 },
}

/// Follows the keys of the shared state that match a pattern. Dropping it ends it, and no other.
///
/// What waits to be taken is one change per key, the newest: a program that is slow skips what
/// was replaced in the meantime, and neither delays others nor fills memory. For one key versions
/// only rise, until a [`WatchEvent::Reset`].
///
/// After a lost connection it goes on by itself, with each key that has changed meanwhile once,
/// deletions included, and then [`WatchEvent::Synced`].
///
/// ```no_run
/// use landline::client::{Client, Options, WatchEvent};
///
/// # fn main() -> Result<(), landline::client::ClientError> {
/// let client = Client::connect("http://127.0.0.1:5263", Options::default())?;
/// for event in client.watch("home/+/lamp")? {
///     match event? {
///         WatchEvent::Reset => println!("all lamps:"),
///         WatchEvent::Set(value) => println!("{} is {}", value.key, value.data),
///         WatchEvent::Deleted { key, .. } => println!("{key} is gone"),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Watch {
    id: WatchId,
    filter: Filter,
    client: Client,
    tray: Arc<Tray>,
    ended: bool,
}

impl Client {
    /// Follows a key of the shared state, or all keys that match a pattern.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// # let client = landline::client::Client::connect("", Default::default())?;
    /// use landline::client::WatchEvent;
    ///
    /// let mut present = client.watch("$presence/hall/+")?;
    /// while !matches!(present.recv()?, WatchEvent::Synced { .. }) {}
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Several watches of one client may overlap: each gets every change once.
    ///
    /// # Errors
    ///
    /// - [`ClientError::Name`]: `pattern` is neither a key nor a pattern.
    /// - [`ClientError::Refused`]: the relay does not allow it.
    /// - [`ClientError::Unanswered`]: the deadline passed.
    /// - [`ClientError::Closed`], [`ClientError::Dismissed`]: the client has ended.
    ///
    /// # Blocking
    ///
    /// Until the relay has confirmed the watch, at most the deadline.
    pub fn watch(&self, pattern: &str) -> Result<Watch, ClientError> {
        let shared = self.shared();
        let filter = Filter::parse(pattern)
            .map_err(|rule| ClientError::Name { text: pattern.to_owned(), rule })?;
        let tray = Arc::new(Tray::new());
        let limit = shared.options.deadline;
        let deadline = shared.clock.now() + limit;
        let (inlet, answer) = lane::open(lane::REPLIES);
        let id = shared.change(|session| match &session.over {
            Some(error) => Err(error.clone()),
            None => {
                Ok(session.watch(|watches| watches.watch(filter.clone(), Arc::clone(&tray), inlet)))
            }
        })?;
        // From here on dropping it ends it.
        let watch = Watch { id, filter, client: self.clone(), tray, ended: false };
        match answer.recv_deadline(deadline) {
            Ok(started) => started.map(|()| watch),
            Err(lane::RecvTimeoutError::Disconnected) => Err(ClientError::Closed),
            Err(lane::RecvTimeoutError::Timeout) => Err(ClientError::Unanswered { limit }),
        }
    }
}

impl Watch {
    /// What it follows.
    #[must_use]
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Takes the next event.
    ///
    /// # Errors
    ///
    /// The watch has ended: [`ClientError::Refused`] if the relay would not have it any more,
    /// [`ClientError::Dismissed`] or [`ClientError::Closed`] if the client ended.
    ///
    /// # Blocking
    ///
    /// Until there is one, also while the connection is down.
    pub fn recv(&mut self) -> Result<WatchEvent, ClientError> {
        self.tray.take(None)?.ok_or(ClientError::Closed)
    }

    /// Takes the next event, or `None` if `limit` passed without one.
    ///
    /// # Errors
    ///
    /// As [`Watch::recv`].
    ///
    /// # Blocking
    ///
    /// At most `limit`.
    pub fn recv_timeout(&mut self, limit: Duration) -> Result<Option<WatchEvent>, ClientError> {
        self.tray.take(Some(self.client.shared().clock.now() + limit))
    }

    /// Takes the next event if there is one now.
    ///
    /// # Errors
    ///
    /// As [`Watch::recv`].
    pub fn try_recv(&mut self) -> Result<Option<WatchEvent>, ClientError> {
        self.tray.try_take()
    }

    /// How many events wait to be taken: at most one for each key, and two.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.tray.pile.with(|pile| pile.events.len())
    }
}

/// Events until the watch ends; the error that ended it comes last.
///
/// # Blocking
///
/// As [`Watch::recv`].
impl Iterator for Watch {
    type Item = Result<WatchEvent, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let event = self.recv();
        self.ended = event.is_err();
        Some(event)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Watch { id, filter, client, .. } = self;
        client.shared().change(|session| session.watch(|watches| watches.unwatch(filter, *id)));
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Watch { id, filter, .. } = self;
        f.debug_struct("Watch").field("id", id).field("filter", filter).finish_non_exhaustive()
    }
}

/// Deletions that wait at most. Values are bounded by the keys that there are; keys that come and
/// go would not be.
const DELETIONS_MAX: usize = 10_000;

/// What waits for one watch's program.
pub(super) struct Tray {
    pile: Ranked<Pile>,
    filled: Condvar,
}

/// Events in the order in which they are taken.
///
/// Invariants:
///
/// 1. `latest` has the place of the one event of each key that is in `events`.
/// 2. At most one `Reset` waits, at the front, and one `Synced`, at `synced`.
/// 3. `deletions` counts those in `events`.
#[derive(Default)]
struct Pile {
    places: u64,
    events: BTreeMap<u64, WatchEvent>,
    latest: HashMap<Name, u64>,
    synced: Option<u64>,
    deletions: usize,
    /// Nothing more will come, for this reason.
    end: Option<ClientError>,
}

impl Tray {
    pub(super) fn new() -> Tray {
        Tray { pile: Ranked::new(Rank::Inbox, Pile::default()), filled: Condvar::new() }
    }

    /// Puts `event` in, instead of what it replaces. `false` if too many deletions wait: the watch
    /// must begin anew, so that they need not be kept.
    pub(super) fn put(&self, event: WatchEvent) -> bool {
        let has_room = self.pile.with(|pile| {
            pile.put(event);
            pile.deletions <= DELETIONS_MAX
        });
        self.filled.notify_one();
        has_room
    }

    /// Takes the oldest event. `Ok(None)` if the deadline passed first.
    fn take(&self, deadline: Option<Instant>) -> Result<Option<WatchEvent>, ClientError> {
        let taken = self.pile.wait_until(&self.filled, deadline, |pile| {
            pile.pop().map(Ok).or_else(|| pile.end.clone().map(Err))
        });
        taken.transpose()
    }

    pub(super) fn try_take(&self) -> Result<Option<WatchEvent>, ClientError> {
        let taken = self.pile.with(|pile| pile.pop().map(Ok).or_else(|| pile.end.clone().map(Err)));
        taken.transpose()
    }

    /// Ends the watch: what waits can still be taken, then `error` is returned.
    pub(super) fn end(&self, error: ClientError) {
        self.pile.with(|pile| pile.end = pile.end.take().or(Some(error)));
        self.filled.notify_all();
    }
}

impl Pile {
    fn put(&mut self, event: WatchEvent) {
        match &event {
            // Nothing before it counts any more.
            WatchEvent::Reset => {
                self.events.clear();
                self.latest.clear();
                (self.synced, self.deletions) = (None, 0);
                self.push(event);
            }
            WatchEvent::Synced { .. } => {
                let before = self.synced.take();
                before.map(|place| self.events.remove(&place));
                self.synced = Some(self.push(event));
            }
            WatchEvent::Set(Value { key, version, .. })
            | WatchEvent::Deleted { key, version, .. } => {
                let (key, version) = (key.clone(), *version);
                let before = self.latest.get(&key).copied();
                let replaced = before.and_then(|place| self.events.remove(&place));
                self.deletions -= usize::from(is_deletion(replaced.as_ref()));
                self.deletions += usize::from(is_deletion(Some(&event)));
                let place = self.push(event);
                self.latest.insert(key, place);
                // What it replaced was promised to come before; so that has to wait for it.
                if before < self.synced
                    && before.is_some()
                    && let Some(synced) = self.synced.take()
                    && let Some(WatchEvent::Synced { version: upto }) = self.events.remove(&synced)
                {
                    let version = upto.max(version);
                    self.synced = Some(self.push(WatchEvent::Synced { version }));
                }
            }
        }
    }

    fn push(&mut self, event: WatchEvent) -> u64 {
        self.places += 1;
        self.events.insert(self.places, event);
        self.places
    }

    fn pop(&mut self) -> Option<WatchEvent> {
        let (place, event) = self.events.pop_first()?;
        self.deletions -= usize::from(is_deletion(Some(&event)));
        match &event {
            WatchEvent::Set(Value { key, .. }) | WatchEvent::Deleted { key, .. } => {
                self.latest.remove(key);
            }
            WatchEvent::Synced { .. } => self.synced = self.synced.filter(|at| *at != place),
            WatchEvent::Reset => {}
        }
        Some(event)
    }
}

fn is_deletion(event: Option<&WatchEvent>) -> bool {
    matches!(event, Some(WatchEvent::Deleted { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(key: &str, version: u64) -> WatchEvent {
        let key = Name::parse(key).unwrap();
        WatchEvent::Set(Value { key, version, time: 0, user: None, data: "1".into() })
    }

    fn deleted(key: &str, version: u64) -> WatchEvent {
        WatchEvent::Deleted { key: Name::parse(key).unwrap(), version, time: 0 }
    }

    fn synced(version: u64) -> WatchEvent {
        WatchEvent::Synced { version }
    }

    fn put<const COUNT: usize>(tray: &Tray, events: [WatchEvent; COUNT]) {
        for event in events {
            assert!(tray.put(event));
        }
    }

    fn all(tray: &Tray) -> Vec<WatchEvent> {
        std::iter::from_fn(|| tray.try_take().unwrap()).collect()
    }

    #[test]
    fn a_key_waits_once_at_its_newest_and_versions_rise() {
        let tray = Tray::new();
        for event in [set("a", 1), set("b", 2), set("a", 3), deleted("b", 4), set("a", 5)] {
            assert!(tray.put(event));
        }
        assert_eq!(all(&tray), [deleted("b", 4), set("a", 5)]);
        tray.put(set("a", 6));
        assert_eq!(all(&tray), [set("a", 6)], "it can wait again");
    }

    #[test]
    fn what_is_replaced_still_comes_before_the_sync_that_promised_it() {
        let tray = Tray::new();
        for event in [WatchEvent::Reset, set("a", 1), set("b", 2), synced(2), set("a", 7)] {
            tray.put(event);
        }
        assert_eq!(all(&tray), [WatchEvent::Reset, set("b", 2), set("a", 7), synced(7)]);
        for event in [set("a", 8), synced(8), set("b", 9), set("b", 10), synced(10)] {
            tray.put(event);
        }
        assert_eq!(all(&tray), [set("a", 8), set("b", 10), synced(10)]);
    }

    #[test]
    fn a_change_after_the_sync_does_not_hold_it_back() {
        let tray = Tray::new();
        put(&tray, [set("a", 1), synced(1)]);
        assert_eq!(tray.try_take().unwrap(), Some(set("a", 1)));
        put(&tray, [set("a", 2), set("a", 3)]);
        assert_eq!(all(&tray), [synced(1), set("a", 3)]);
    }

    #[test]
    fn a_reset_takes_everything_with_it() {
        let tray = Tray::new();
        put(&tray, [set("a", 1), deleted("b", 2), synced(2), WatchEvent::Reset]);
        assert_eq!(tray.pile.with(|pile| (pile.latest.len(), pile.deletions)), (0, 0));
        tray.put(set("a", 1));
        assert_eq!(all(&tray), [WatchEvent::Reset, set("a", 1)]);
    }

    #[test]
    fn keys_that_come_and_go_do_not_fill_memory() {
        let tray = Tray::new();
        for number in 0..DELETIONS_MAX as u64 {
            assert!(tray.put(set(&format!("k/{number}"), 2 * number + 1)));
            assert!(tray.put(deleted(&format!("k/{number}"), 2 * number + 2)));
        }
        assert!(!tray.put(deleted("one/more", u64::MAX)));
        tray.put(WatchEvent::Reset);
        assert!(tray.put(deleted("a", 1)));
    }

    #[test]
    fn what_was_put_before_the_end_can_be_taken_after_it() {
        let tray = Tray::new();
        tray.put(set("a", 1));
        tray.end(ClientError::Closed);
        assert!(tray.take(None).unwrap().is_some());
        assert!(matches!(tray.take(None), Err(ClientError::Closed)));
    }
}
