//! The only module that creates threads; and the signal that ends them.
//!
//! Every thread has a name, an owner that waits for it, and a panic policy. Owners are [`Group`]s
//! (few threads, joined one by one) and [`Crew`]s (many short-lived ones, counted).

use std::{
    convert::Infallible,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use crate::base::{
    clock::Clock,
    fault::Fault,
    limits::THREAD_NAME_BYTES_MAX,
    lock::{Rank, Ranked},
    sync::{
        Condvar,
        atomic::{AtomicU64, Ordering},
        channel::{self, Receiver, RecvTimeoutError, Sender},
        thread::{self, JoinHandle},
    },
};

/// Every thread of the relay, of its client and of the command line, `N` and `ID` standing for a
/// number. `ARCHITECTURE.md` says what each is; a test keeps the two equal.
pub const THREADS: &[&str] = &[
    "main",
    "accept-N",
    "conn-ID",
    "writer-N",
    "keeper",
    "commit",
    "pager",
    "bus-N",
    "client-read",
    "client-write",
    "client-sub",
    "confirm",
    "sub-N",
    "stdout",
];

/// Why the relay is going down. Decides the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Requested,
    ThreadPanicked { name: String },
}

/// A one-way stop signal. Raised once, never lowered; cloning yields another handle to it.
#[derive(Clone)]
pub struct Stop {
    shared: Arc<StopShared>,
}

type Hook = Box<dyn Fn() + Send + Sync>;

struct StopShared {
    cause: OnceLock<Cause>,
    // Nothing is ever sent: dropping the sender is the signal, and it wakes every receiver.
    hold: Ranked<Option<Sender<Infallible>>>,
    wake: Receiver<Infallible>,
    on_raise: OnceLock<Hook>,
}

impl Default for Stop {
    #[expect(clippy::disallowed_methods, reason = "a signal, not a queue: it never holds anything")]
    fn default() -> Self {
        let (hold, wake) = channel::bounded(0);
        let hold = Ranked::new(Rank::Crew, Some(hold));
        let shared = StopShared { cause: OnceLock::new(), hold, wake, on_raise: OnceLock::new() };
        Self { shared: Arc::new(shared) }
    }
}

impl Stop {
    /// Raises the signal. Returns whether this call was the first; later causes are ignored.
    pub fn raise(&self, cause: Cause) -> bool {
        if Fault::StopWithoutCause.is_on() {
            drop(self.shared.hold.with(Option::take));
        }
        let first = self.shared.cause.set(cause).is_ok();
        if first {
            drop(self.shared.hold.with(Option::take));
            if let Some(hook) = self.shared.on_raise.get() {
                hook();
            }
        }
        first
    }

    /// Calls `hook` once when the signal is raised, for a waiter that cannot wait on a channel.
    /// Only the first hook is kept. It must not block.
    pub fn on_raise(&self, hook: impl Fn() + Send + Sync + 'static) {
        drop(self.shared.on_raise.set(Box::new(hook)));
    }

    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        self.shared.cause.get()
    }

    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.shared.cause.get().is_some()
    }

    /// Sleeps for `limit` or until the signal is raised. Returns whether it was raised.
    ///
    /// # Blocking
    ///
    /// Up to `limit`. This is the only way to sleep in landline.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> bool {
        match self.shared.wake.recv_timeout(limit) {
            Ok(never) => match never {},
            Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) => false,
        }
    }
}

/// What a panic in a thread means for everyone else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// One connection is lost; its owner notices and cleans up.
    Contain,
    /// Others depend on this thread: raise [`Stop`] and leave with a non-zero exit code.
    StopServer,
}

/// How many threads ended in a panic; anything but zero is a bug worth a report.
pub type Panics = Arc<AtomicU64>;

/// The threads of one shutdown stage.
#[must_use]
pub struct Group {
    stop: Stop,
    panics: Panics,
    members: Vec<Member>,
}

struct Member {
    name: String,
    handle: JoinHandle<()>,
    // Disconnects when the thread returns or unwinds; lets `join` wait with a deadline.
    exited: Receiver<Infallible>,
}

impl Group {
    pub fn new(stop: Stop, panics: Panics) -> Self {
        Self { stop, panics, members: Vec::new() }
    }

    /// Starts a thread named `name` that runs `body`.
    ///
    /// # Errors
    ///
    /// The operating system refused another thread.
    #[expect(clippy::disallowed_methods, reason = "the one place that creates threads")]
    pub fn spawn(
        &mut self,
        name: String,
        stack_bytes: usize,
        on_panic: OnPanic,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let (alive, exited) = channel::bounded(0);
        let body =
            supervised(name.clone(), on_panic, self.stop.clone(), Arc::clone(&self.panics), body);
        let body = move || {
            let _alive: Sender<Infallible> = alive;
            body();
        };
        let handle = builder(&name, stack_bytes).spawn(body)?;
        self.members.push(Member { name, handle, exited });
        Ok(())
    }

    /// Waits for all members, oldest first, until `deadline`. Returns the names of those still
    /// running, which are abandoned so that a stuck thread cannot hang the shutdown.
    ///
    /// # Blocking
    ///
    /// Until the last member exits or `deadline` passes.
    ///
    /// # Panics
    ///
    /// Never: members catch their own panics.
    pub fn join(self, deadline: Instant) -> Vec<String> {
        let mut late = Vec::new();
        for Member { name, handle, exited } in self.members {
            match exited.recv_deadline(deadline) {
                Ok(never) => match never {},
                Err(RecvTimeoutError::Disconnected) => {
                    handle.join().expect("the body is caught, so the thread cannot have unwound");
                }
                Err(RecvTimeoutError::Timeout) => late.push(name),
            }
        }
        late
    }
}

/// Many short-lived threads of one kind, counted rather than kept.
///
/// A finished member costs nothing: its handle is not held, so its memory goes at once.
#[derive(Clone)]
pub struct Crew {
    shared: Arc<CrewShared>,
}

struct CrewShared {
    stop: Stop,
    panics: Panics,
    running: Ranked<usize>,
    changed: Condvar,
}

impl Crew {
    #[must_use]
    pub fn new(stop: Stop, panics: Panics) -> Self {
        let running = Ranked::new(Rank::Crew, 0);
        Self { shared: Arc::new(CrewShared { stop, panics, running, changed: Condvar::new() }) }
    }

    /// Starts a member. Its panic is contained.
    ///
    /// # Errors
    ///
    /// The operating system refused another thread; `body` is dropped.
    #[expect(clippy::disallowed_methods, reason = "the one place that creates threads")]
    pub fn spawn(
        &self,
        name: String,
        stack_bytes: usize,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        self.shared.running.with(|running| *running += 1);
        let place = Place(Arc::clone(&self.shared));
        let stop = self.shared.stop.clone();
        let builder = builder(&name, stack_bytes);
        let body = supervised(name, OnPanic::Contain, stop, Arc::clone(&self.shared.panics), body);
        let body = move || {
            let _place = place;
            body();
        };
        builder.spawn(body).map(drop)
    }

    /// How many members run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.shared.running.with(|running| *running)
    }

    /// Waits until no member runs. Returns how many still did at `deadline`.
    ///
    /// # Blocking
    ///
    /// Until the last member exits or `deadline` passes.
    #[must_use]
    pub fn join(&self, clock: &Clock, deadline: Instant) -> usize {
        loop {
            let left = deadline.saturating_duration_since(clock.now());
            let done = self
                .shared
                .running
                .wait(&self.shared.changed, left, |running| (*running == 0).then_some(()));
            if done.is_some() {
                return 0;
            }
            if left.is_zero() {
                return self.running();
            }
        }
    }
}

/// One member's place in the count, given back on every way out, also when spawning failed.
struct Place(Arc<CrewShared>);

impl Drop for Place {
    fn drop(&mut self) {
        let last = self.0.running.with(|running| {
            *running -= 1;
            *running == 0
        });
        if last {
            self.0.changed.notify_all();
        }
    }
}

fn builder(name: &str, stack_bytes: usize) -> thread::Builder {
    debug_assert!(name.len() <= THREAD_NAME_BYTES_MAX, "thread name {name:?} would be cut off");
    #[cfg(test)]
    assert!(is_listed(name), "thread {name:?} is not in THREADS");
    thread::Builder::new().name(name.to_owned()).stack_size(stack_bytes)
}

#[cfg(test)]
fn is_listed(name: &str) -> bool {
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    THREADS.iter().any(|thread| match thread.rsplit_once('-') {
        Some((kind, "N" | "ID")) => {
            name.rsplit_once('-').is_some_and(|(own, rest)| own == kind && is_number(rest))
        }
        _ => name == *thread,
    })
}

fn supervised(
    name: String,
    on_panic: OnPanic,
    stop: Stop,
    panics: Panics,
    body: impl FnOnce(),
) -> impl FnOnce() {
    move || {
        // The panic hook has already logged the message.
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            // Relaxed: a counter.
            panics.fetch_add(1, Ordering::Relaxed);
            match on_panic {
                OnPanic::Contain => {}
                OnPanic::StopServer => drop(stop.raise(Cause::ThreadPanicked { name })),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit() -> Instant {
        Clock::default().now() + Duration::from_secs(5)
    }

    #[test]
    fn a_panic_that_others_depend_on_raises_the_stop_signal_with_the_name() {
        let stop = Stop::default();
        let panics = Panics::default();
        let mut group = Group::new(stop.clone(), Arc::clone(&panics));
        let body = || panic!("on purpose");
        group.spawn("writer-0".into(), 64 * 1024, OnPanic::StopServer, body).unwrap();
        assert!(stop.wait(Duration::from_secs(5)));
        assert_eq!(stop.cause(), Some(&Cause::ThreadPanicked { name: "writer-0".into() }));
        assert!(group.join(limit()).is_empty());
        assert_eq!(panics.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_thread_that_does_not_end_is_named_and_abandoned() {
        let stop = Stop::default();
        let release = Stop::default();
        let mut group = Group::new(stop, Panics::default());
        let held = release.clone();
        let body = move || while !held.wait(Duration::from_secs(60)) {};
        group.spawn("keeper".into(), 64 * 1024, OnPanic::Contain, body).unwrap();
        let deadline = Clock::default().now() + Duration::from_millis(20);
        assert_eq!(group.join(deadline), ["keeper"]);
        release.raise(Cause::Requested);
    }

    #[test]
    fn a_crew_is_waited_for_and_survives_a_panicking_member() {
        let stop = Stop::default();
        let crew = Crew::new(stop.clone(), Panics::default());
        crew.spawn("conn-1".into(), 64 * 1024, || panic!("on purpose")).unwrap();
        let clock = Clock::default();
        assert_eq!(crew.join(&clock, limit()), 0);
        let release = Stop::default();
        let held = release.clone();
        crew.spawn(
            "conn-2".into(),
            64 * 1024,
            move || {
                while !held.wait(Duration::from_secs(60)) {}
            },
        )
        .unwrap();
        assert_eq!(crew.join(&clock, clock.now() + Duration::from_millis(20)), 1);
        release.raise(Cause::Requested);
        assert_eq!(crew.join(&clock, limit()), 0);
        assert!(!stop.is_raised());
    }
}
