//! A bus of one type of events: who is subscribed, and the way from a publisher to the handlers.
//!
//! # Threads
//!
//! Any thread publishes, subscribes and unsubscribes, also a handler. Handlers run on the workers
//! of the pool.
//!
//! # Locks
//!
//! [`Rank::Bus`], to copy the reference to the list of handlers, or to put another list there. A
//! list that is in use is never changed, so that publishers look through it without the lock.

use std::{cell::OnceCell, fmt, mem, time::Duration};

use crate::{
    base::{
        lock::{Rank, Ranked},
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        },
    },
    bus::{
        BusError, contained,
        pool::{Pool, Shared, Task},
    },
    name::{Filter, Name},
};

/// What can be published on an [`EventBus`].
pub trait Event: Send + Sync + 'static {
    /// What the event is about, such as `process/web`: what filters look at, and what events have
    /// in common that are to be handled in order. Must be the same whenever it is asked for.
    ///
    /// A filter matches only keys that are [names](Name).
    fn key(&self) -> &str;
}

/// One subscription of one bus. Never used again in this process, on any bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(u64);

impl SubscriptionId {
    pub(crate) fn next() -> Self {
        static LAST: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        // Relaxed: only that no two are equal matters.
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The number, for logs.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Hands events of type `E` to whoever subscribed, on the workers of a [`Pool`].
///
/// What can be relied on:
///
/// 1. A handler gets every event that its filter matches, was published after its `subscribe`
///    returned, and was taken (`publish` returned `Ok`), unless it is unsubscribed or the limit
///    of the pool's stop passes first.
/// 2. Events of one key are handled one at a time, in the order in which they were taken; those
///    of different keys may be handled at the same time, by the same handler too.
/// 3. The handlers of an event run one after the other, in the order of their subscriptions. One
///    that waits delays everything else of its worker; one that panics delays nobody, is counted,
///    and stays subscribed.
/// 4. Once `unsubscribe` has returned, the handler is not started any more, not even for events
///    taken earlier. One that is running may finish.
///
/// A handler that uses its own bus should hold it weakly, because the bus holds the handler.
///
/// ```
/// use std::{sync::Arc, time::Duration};
///
/// use landline::{
///     base::lifecycle::{Panics, Stop},
///     bus::{Event, EventBus, Pool, PoolSettings},
///     name::Filter,
/// };
///
/// struct Exited {
///     process: String,
///     code: i32,
/// }
///
/// impl Event for Exited {
///     fn key(&self) -> &str {
///         &self.process
///     }
/// }
///
/// let pool = Pool::start(PoolSettings::default(), Stop::default(), Panics::default())?;
/// let pool = Arc::new(pool);
/// let bus = EventBus::new(Arc::clone(&pool));
///
/// let webs = Filter::parse("web/+")?;
/// let id = bus.subscribe(Some(webs), |event: &Exited| {
///     println!("{} exited with {}", event.process, event.code);
/// });
/// let handlers =
///     bus.publish(Exited { process: "web/0".into(), code: 1 }, Duration::from_millis(100))?;
/// assert_eq!(handlers, 1);
///
/// assert!(pool.stop(Duration::from_secs(5)).late.is_empty());
/// assert!(bus.unsubscribe(id));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct EventBus<E> {
    pool: Arc<Pool>,
    subscribers: Ranked<List<E>>,
    /// The length of the list, readable without its lock.
    count: AtomicUsize,
    panicked: Arc<AtomicU64>,
}

/// In the order of subscription. Replaced as a whole.
type List<E> = Arc<[Arc<Subscriber<E>>]>;

struct Subscriber<E> {
    id: SubscriptionId,
    filter: Option<Filter>,
    handler: Box<dyn Fn(&E) + Send + Sync>,
    /// Until it is unsubscribed. Looked at right before each start of the handler.
    is_subscribed: AtomicBool,
    panicked: AtomicU64,
}

impl<E: Event> EventBus<E> {
    /// A bus without subscriptions, whose handlers run on the workers of `pool`.
    #[must_use]
    pub fn new(pool: Arc<Pool>) -> Self {
        let subscribers = Ranked::new(Rank::Bus, List::default());
        Self { pool, subscribers, count: AtomicUsize::new(0), panicked: Arc::default() }
    }

    /// Has `handler` called with every event whose key matches `filter`; `None` matches all keys,
    /// those too that are no names and those that begin with `$`.
    ///
    /// Several handlers may have the same filter, and know nothing of one another.
    pub fn subscribe(
        &self,
        filter: Option<Filter>,
        handler: impl Fn(&E) + Send + Sync + 'static,
    ) -> SubscriptionId {
        let id = SubscriptionId::next();
        let subscriber = Arc::new(Subscriber {
            id,
            filter,
            handler: Box::new(handler),
            is_subscribed: AtomicBool::new(true),
            panicked: AtomicU64::new(0),
        });
        self.replace(|list| list.iter().cloned().chain([subscriber]).collect());
        id
    }

    /// Ends a subscription. Returns whether there was one.
    ///
    /// When this returns, whatever it returns, the handler is not started any more, not even for
    /// events that wait already. If it is running, it may finish: at most once per worker.
    pub fn unsubscribe(&self, id: SubscriptionId) -> bool {
        let mut was_there = false;
        self.replace(|list| {
            let (gone, rest): (Vec<_>, Vec<_>) =
                list.iter().cloned().partition(|subscriber| subscriber.id == id);
            for subscriber in gone {
                was_there = true;
                // Here rather than after the lock, so that whoever finds the subscription gone
                // can rely on it as well. Release pairs with the acquire in `deliver`.
                subscriber.is_subscribed.store(false, Ordering::Release);
            }
            rest.into()
        });
        was_there
    }

    fn replace(&self, change: impl FnOnce(&List<E>) -> List<E>) {
        let old = self.subscribers.with(|list| {
            let changed = change(list);
            // Release pairs with the acquire in `publish`.
            self.count.store(changed.len(), Ordering::Release);
            mem::replace(list, changed)
        });
        // Outside of the lock, because it may be the last to hold a handler, and what a handler
        // owns has destructors of its own.
        drop(old);
    }

    /// Hands `event` to all handlers that want it, and returns how many those are.
    ///
    /// An event that nobody wants costs a look at a counter if nobody has subscribed at all, and
    /// a look at each filter otherwise; it is not refused by a pool that is full or stopped. Who
    /// wants to try again after a refusal publishes an `Arc`, and keeps another.
    ///
    /// # Errors
    ///
    /// [`BusError::Full`] if the lane of the key's worker has no room for as long as `limit`, and
    /// [`BusError::Stopped`] after the pool was stopped. No handler gets the event then.
    ///
    /// # Blocking
    ///
    /// Up to `limit`, never with a ranked lock held; with a limit of zero not at all. From a
    /// handler, a limit is time during which its worker does nothing, see [`Pool::submit`].
    pub fn publish(&self, event: impl Into<Arc<E>>, limit: Duration) -> Result<usize, BusError> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Ok(0);
        }
        let event = event.into();
        let key = Key { text: event.key(), name: OnceCell::new() };
        let list = self.subscribers.with(|list| Arc::clone(list));
        let wanting: Vec<_> = list.iter().filter(|one| one.wants(&key)).cloned().collect();
        drop(list);
        if wanting.is_empty() {
            return Ok(0);
        }
        let (handlers, worker) = (wanting.len(), self.pool.worker_of(key.text));
        let (pool, total) = (Arc::clone(self.pool.shared()), Arc::clone(&self.panicked));
        let job = move || deliver(&*event, &wanting, &pool, &total);
        self.pool.send(worker, limit, Task { key: None, job: Box::new(job) })?;
        Ok(handlers)
    }

    /// How many subscriptions there are.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// How often handlers of this bus have panicked.
    #[must_use]
    pub fn panicked(&self) -> u64 {
        self.panicked.load(Ordering::Relaxed)
    }

    /// How often the handler of `id` has panicked; `None` if it is not subscribed.
    #[must_use]
    pub fn panicked_in(&self, id: SubscriptionId) -> Option<u64> {
        let list = self.subscribers.with(|list| Arc::clone(list));
        let found = list.iter().find(|subscriber| subscriber.id == id);
        found.map(|subscriber| subscriber.panicked.load(Ordering::Relaxed))
    }
}

/// The job that an event becomes.
fn deliver<E: Event>(event: &E, to: &[Arc<Subscriber<E>>], pool: &Shared, total: &AtomicU64) {
    for subscriber in to {
        // This look is the start of the handler: what is unsubscribed by then is not started.
        if !subscriber.is_subscribed.load(Ordering::Acquire) {
            continue;
        }
        if !contained(|| (subscriber.handler)(event)) {
            // Relaxed: counters.
            subscriber.panicked.fetch_add(1, Ordering::Relaxed);
            total.fetch_add(1, Ordering::Relaxed);
            pool.count_panic();
            let (id, key) = (subscriber.id, event.key());
            let filter = subscriber.filter.as_ref().map_or("all", Filter::as_str);
            log::error!("a handler panicked subscription={id} filter={filter:?} key={key:?}");
        }
    }
}

impl<E> Subscriber<E> {
    fn wants(&self, key: &Key<'_>) -> bool {
        match &self.filter {
            None => true,
            Some(Filter::Topic(topic)) => topic.as_str() == key.text,
            Some(Filter::Pattern(pattern)) => key.name().is_some_and(|name| pattern.matches(name)),
        }
    }
}

/// A key, which is parsed when the first pattern asks for its segments.
struct Key<'a> {
    text: &'a str,
    name: OnceCell<Option<Name>>,
}

impl Key<'_> {
    fn name(&self) -> Option<&Name> {
        self.name.get_or_init(|| Name::parse(self.text).ok()).as_ref()
    }
}
