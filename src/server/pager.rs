//! The thread that reads history from disk, for cursors and callers that are behind what memory
//! keeps; and that puts aside what nobody acknowledges.
//!
//! # Threads
//!
//! `pager`. Writers ask it and never wait for it; readers wait for its answer.
//!
//! # Locks
//!
//! One log, to ask what it has. None while it waits for the disk.

use std::{sync::Arc, time::Duration};

use crate::{
    base::{
        lane::{self, Inlet, Receiver},
        limits::TURN_BYTES,
        lock, pause,
        sync::atomic::{AtomicBool, Ordering},
    },
    name::UserName,
    server::{
        relay::Shared,
        writer::{Command, WriterHandle},
    },
    store::{Missing, Page, Pages, StoreError},
    topic::{Asked, Confirm, Copied, Draft, Log, Topic, Unstored},
    wire::{codes::Code, frame, json, reply::Receipt, request::Refusal},
};

/// What the pager is asked for.
pub(crate) enum Errand {
    /// A page for a cursor; it goes to the cursor's writer.
    Page(Box<PageFor>),
    /// A page for somebody who waits.
    Read { topic: Arc<Topic>, after: u64, upto: u64, reply: Inlet<Result<Sheet, StoreError>> },
    /// Where the events of a time begin.
    Since { topic: Arc<Topic>, time_ms: u64, reply: Inlet<Result<u64, StoreError>> },
    /// An event that nobody acknowledges.
    Bury(Box<Burial>),
    /// The relay stops.
    Stop,
}

/// Whose page is asked for.
#[derive(Clone)]
pub(crate) struct PageFor {
    pub(crate) writer: usize,
    pub(crate) connection: u64,
    pub(crate) topic: Arc<Topic>,
    pub(crate) after: u64,
    /// The last event that it may have.
    pub(crate) upto: u64,
}

/// A page on its way to a cursor.
pub(crate) struct PageDone {
    pub(crate) connection: u64,
    pub(crate) topic: Arc<Topic>,
    pub(crate) after: u64,
    pub(crate) sheet: Result<Sheet, StoreError>,
}

/// What was found on disk.
#[derive(Debug)]
pub(crate) enum Sheet {
    /// Frames up to an event.
    Events { upto: u64, frames: Vec<u8> },
    /// The log has it in memory, or has lost it: ask there.
    AskTheLog,
    /// Nothing before event `first` can be read.
    Gone { first: u64, why: Missing },
}

/// An event that is to be put aside, and for whom.
pub(crate) struct Burial {
    pub(crate) writer: usize,
    pub(crate) connection: u64,
    pub(crate) topic: Arc<Topic>,
    pub(crate) seq: u64,
    pub(crate) deliveries: u32,
    pub(crate) consumer: Option<(UserName, u64)>,
}

/// What became of an event that was to be put aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buried {
    /// It is in `$dead/...`, as safe as its topic asks for.
    Done,
    /// It is gone already; the log says so.
    Gone,
    /// It cannot be put aside now.
    Failed,
}

/// The way to the pager.
#[derive(Clone)]
pub(crate) struct PagerHandle {
    inlet: Inlet<Errand>,
}

impl PagerHandle {
    pub(crate) fn new(inlet: Inlet<Errand>) -> Self {
        Self { inlet }
    }

    /// Asks without waiting. Returns whether the pager has it.
    pub(crate) fn offer(&self, errand: Errand) -> bool {
        self.inlet.offer(errand).is_ok()
    }

    /// Asks.
    ///
    /// # Blocking
    ///
    /// While the lane is full.
    pub(crate) fn send(&self, errand: Errand) {
        // A closed lane means that the relay has stopped; the answer's lane closes with it.
        drop(self.inlet.send(errand));
    }

    pub(crate) fn depth(&self) -> usize {
        self.inlet.depth()
    }

    /// Events of `topic` after `after` up to `upto`, a page at most.
    ///
    /// # Errors
    ///
    /// They cannot be read now.
    ///
    /// # Blocking
    ///
    /// Until the pager has read them.
    pub(crate) fn read(&self, topic: &Arc<Topic>, after: u64, upto: u64) -> Result<Sheet, Refusal> {
        let (reply, answer) = lane::open(lane::REPLIES);
        self.send(Errand::Read { topic: Arc::clone(topic), after, upto, reply });
        receive(&answer)
    }

    /// The first event of `topic` appended at `time_ms` or later, as far as the disk knows.
    ///
    /// # Errors
    ///
    /// It cannot be read now.
    ///
    /// # Blocking
    ///
    /// Until the pager has found it.
    pub(crate) fn since(&self, topic: &Arc<Topic>, time_ms: u64) -> Result<u64, Refusal> {
        let (reply, answer) = lane::open(lane::REPLIES);
        self.send(Errand::Since { topic: Arc::clone(topic), time_ms, reply });
        receive(&answer)
    }
}

fn receive<T>(answer: &Receiver<Result<T, StoreError>>) -> Result<T, Refusal> {
    lock::assert_none_held();
    answer.recv().unwrap_or(Err(StoreError::Closed)).map_err(|error| {
        log::debug!("history cannot be read error=\"{error}\"");
        let message = "the history on disk cannot be read now; ask again";
        let retry_after_ms = Some(RETRY_AFTER_MS);
        Refusal { retry_after_ms, ..Refusal::new(Code::Unavailable, message) }
    })
}

const RETRY_AFTER_MS: u64 = 1_000;
/// How often, and how far apart, a page is tried that cannot be read.
const TRIES: u32 = 5;
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Reads until told to stop. `pages` is not there without a store.
pub(crate) fn run(shared: &Arc<Shared>, inbox: &Receiver<Errand>, pages: Option<Arc<dyn Pages>>) {
    let pager = Pager { shared, pages };
    while let Ok(errand) = inbox.recv() {
        pause::point();
        match errand {
            Errand::Page(page) => pager.serve(*page),
            Errand::Read { topic, after, upto, reply } => {
                // Who has given up waiting does not hear it.
                drop(reply.offer(pager.read(&topic, after, upto)));
            }
            Errand::Since { topic, time_ms, reply } => {
                drop(reply.offer(pager.since(&topic, time_ms)));
            }
            Errand::Bury(burial) => pager.bury(*burial),
            Errand::Stop => return,
        }
    }
}

struct Pager<'a> {
    shared: &'a Arc<Shared>,
    pages: Option<Arc<dyn Pages>>,
}

impl Pager<'_> {
    fn serve(&self, page: PageFor) {
        let PageFor { writer, connection, topic, after, upto } = page;
        let sheet = self.read(&topic, after, upto);
        let done = PageDone { connection, topic, after, sheet };
        self.shared.writers[writer].send(Command::Page(Box::new(done)));
    }

    fn read(&self, topic: &Arc<Topic>, after: u64, upto: u64) -> Result<Sheet, StoreError> {
        let (Some(id), Some(pages)) = (topic.id(), &self.pages) else {
            return Ok(Sheet::AskTheLog);
        };
        let upto = upto.min(topic.look(Log::stored));
        if upto <= after {
            return Ok(Sheet::AskTheLog);
        }
        let mut frames = Vec::with_capacity(TURN_BYTES);
        let page = self.insist(|| {
            frames.clear();
            lock::assert_none_held();
            pages.read(id, after, upto, TURN_BYTES, &mut frames)
        })?;
        self.shared.metrics.pages.add(1);
        match page {
            Page::UpTo(upto) if upto == after => Ok(Sheet::AskTheLog),
            Page::UpTo(upto) => Ok(Sheet::Events { upto, frames }),
            // Retention moves on between the log's word and this look at the disk; the log says
            // what is missing, and why. It hears of that only after the commit.
            Page::Missing { why: Missing::Removed, first } => {
                let is_known = topic.look(Log::first) > after + 1;
                let gone = Sheet::Gone { first, why: Missing::Removed };
                Ok(if is_known { Sheet::AskTheLog } else { gone })
            }
            Page::Missing { why: Missing::Damaged, first } => {
                log::error!(
                    "events on disk are damaged and cannot be delivered topic={} from={} to={}",
                    topic.name(),
                    after + 1,
                    first - 1
                );
                Ok(Sheet::Gone { first, why: Missing::Damaged })
            }
        }
    }

    fn since(&self, topic: &Arc<Topic>, time_ms: u64) -> Result<u64, StoreError> {
        let (Some(id), Some(pages)) = (topic.id(), &self.pages) else {
            return Ok(topic.look(Log::tail) + 1);
        };
        self.insist(|| {
            lock::assert_none_held();
            pages.since(id, time_ms)
        })
    }

    /// Tries again while the store is being opened anew, and some times when the disk fails.
    fn insist<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        for _ in 1..TRIES {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(error) => {
                    self.shared.metrics.page_failures.add(1);
                    log::warn!("history on disk cannot be read error=\"{error}\"");
                }
            }
            if self.shared.readiness().is_err() && self.shared.vault.failure().is_none() {
                break;
            }
            self.shared.vault.wait_for_change(TRY_AGAIN);
        }
        attempt()
    }

    /// Publishes an event that nobody acknowledges to the topic for such events, and has its
    /// writer move on once it is safe there.
    fn bury(&self, burial: Burial) {
        let name = burial.topic.name().dead_letters();
        let handle = self.shared.writers[burial.writer].clone();
        let found = self.find(&burial.topic, burial.seq);
        let receipt = Arc::new(BurialReceipt {
            burial,
            handle,
            shared: Arc::clone(self.shared),
            is_stored: AtomicBool::new(false),
        });
        let Some(event) = found else { return receipt.report(Buried::Gone) };
        // What could not be delivered of such a topic stays where it is.
        let Some(name) = name else { return receipt.report(Buried::Done) };
        let Ok(mut dead) = self.shared.open_topic(&name) else {
            return receipt.report(Buried::Failed);
        };
        let data = receipt.burial.letter(&event);
        let draft = Draft { user: None, name: Some(b"\"dead_letter\""), data: &data, key: None };
        let waiter: Arc<dyn Confirm> = Arc::clone(&receipt) as Arc<dyn Confirm>;
        let asked: Asked<'_> = (&waiter, None);
        let now_ms = self.shared.clock.unix_ms();
        match self.shared.publish(&mut dead, &draft, now_ms, Some(asked)) {
            Ok(done) if done.is_pending => self.shared.vault.tell(&dead),
            Ok(_) => {
                self.shared.wake(&dead);
                receipt.report(Buried::Done);
            }
            Err(_) => receipt.report(Buried::Failed),
        }
    }

    /// The event `seq` as JSON.
    fn find(&self, topic: &Arc<Topic>, seq: u64) -> Option<Vec<u8>> {
        let mut frames = Vec::new();
        let after = seq - 1;
        match topic.look(|log| log.copy_after(after, seq, 1, &mut frames)) {
            Copied::UpTo(upto) if upto == seq => {}
            Copied::UpTo(_) | Copied::Lost { .. } => return None,
            Copied::Stored => match self.read(topic, after, seq) {
                Ok(Sheet::Events { frames: found, .. }) => frames = found,
                Ok(Sheet::AskTheLog | Sheet::Gone { .. }) | Err(_) => return None,
            },
        }
        frame::payloads(&frames).next().map(<[u8]>::to_vec)
    }
}

impl Burial {
    /// What is published of the event: itself, where it was, and why it is not there any more.
    fn letter(&self, event: &[u8]) -> String {
        let mut text = b"{\"reason\":\"max_deliveries\",\"deliveries\":".to_vec();
        json::push_number(&mut text, u64::from(self.deliveries));
        if let Some((consumer, _)) = &self.consumer {
            text.extend_from_slice(b",\"consumer\":");
            json::push_string(&mut text, consumer.as_str());
        }
        text.extend_from_slice(b",\"topic\":");
        json::push_string(&mut text, self.topic.name().as_str());
        let epoch = self.topic.look(Log::epoch);
        text.extend_from_slice(format!(",\"epoch\":\"{epoch}\",\"seq\":{}", self.seq).as_bytes());
        text.extend_from_slice(b",\"event\":");
        text.extend_from_slice(event);
        text.push(b'}');
        String::from_utf8(text).unwrap_or_default()
    }
}

/// Waits until a dead letter is safe.
struct BurialReceipt {
    burial: Burial,
    handle: WriterHandle,
    shared: Arc<Shared>,
    is_stored: AtomicBool,
}

impl BurialReceipt {
    /// Tells the writer.
    ///
    /// # Blocking
    ///
    /// While the writer's lane is full.
    fn report(&self, outcome: Buried) {
        let Burial { connection, topic, seq, consumer, .. } = &self.burial;
        if outcome == Buried::Done {
            let name = topic.name();
            if name.dead_letters().is_some() {
                self.shared.metrics.dead_letters.add(1);
                log::warn!(
                    "nobody acknowledged an event, it is a dead letter now topic={name} seq={seq}"
                );
            }
            if let Some((name, fence)) = consumer {
                let now_ms = self.shared.clock.unix_ms();
                let at = (*seq, *seq);
                topic.consumers(|consumers, _| consumers.acknowledge(name, *fence, at, now_ms));
                self.shared.vault.offer_lazily(topic);
            }
        }
        let word =
            BurialDone { connection: *connection, topic: Arc::clone(topic), seq: *seq, outcome };
        self.handle.send(Command::Buried(Box::new(word)));
    }
}

/// What a writer is told of an event that was to be put aside.
pub(crate) struct BurialDone {
    pub(crate) connection: u64,
    pub(crate) topic: Arc<Topic>,
    pub(crate) seq: u64,
    pub(crate) outcome: Buried,
}

impl Confirm for BurialReceipt {
    fn confirm(&self, _request: Option<u64>, outcome: &Result<Receipt, Unstored>) {
        // Relaxed here and below: both are called by one thread, the committer.
        self.is_stored.store(outcome.is_ok(), Ordering::Relaxed);
    }

    fn confirmed(&self) {
        let is_stored = self.is_stored.load(Ordering::Relaxed);
        self.report(if is_stored { Buried::Done } else { Buried::Failed });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Config, Policy},
        name::Name,
        server::Server,
        store::{StoredTopic, TopicId},
        wire::position::Epoch,
    };

    /// A disk on which retention has removed everything before event 5.
    #[derive(Debug)]
    struct Trimmed;

    impl Pages for Trimmed {
        fn read(
            &self,
            _topic: TopicId,
            _after: u64,
            _upto: u64,
            _bytes_max: usize,
            _out: &mut Vec<u8>,
        ) -> Result<Page, StoreError> {
            Ok(Page::Missing { first: 5, why: Missing::Removed })
        }

        fn since(&self, _topic: TopicId, _time_ms: u64) -> Result<u64, StoreError> {
            Ok(5)
        }
    }

    #[test]
    fn what_retention_removed_is_not_damage_although_the_log_has_not_heard_of_it() {
        let config = Config { listen: Vec::new(), ..Config::default() };
        let server = Server::start(config).unwrap();
        let pager = Pager { shared: server.shared(), pages: Some(Arc::new(Trimmed)) };
        let found = |first| {
            let (name, epoch) = (Name::parse("t").unwrap(), Epoch::from_number(1));
            let stored = StoredTopic { id: 1, name, epoch, first, tail: 9, newest_ms: 1, bytes: 9 };
            let topic = Arc::new(Topic::restored(&stored, Policy::default(), 1, 0));
            pager.read(&topic, 0, 9)
        };

        assert!(matches!(found(1), Ok(Sheet::Gone { first: 5, why: Missing::Removed })));
        assert!(matches!(found(5), Ok(Sheet::AskTheLog)));
        assert!(server.stop().late.is_empty());
    }
}
