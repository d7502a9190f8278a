//! Requests that wait for their answer, and when each is sent, also again.
//!
//! A request is sent on every connection until it is answered or its caller gives up. One that the
//! relay has no room for at present is sent again when the relay said so.
//!
//! # Place
//!
//! Part of the value behind the client's lock: memory only, time comes in.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    base::lane::Inlet,
    client::{
        delivery::{History, Receipt},
        error::{ClientError, Refused},
        message,
        session::{Answer, Out},
        value::{Stored, Values},
    },
};

/// See the module.
#[derive(Default)]
pub(super) struct Requests {
    /// In the order in which they were made, which is the order in which they are sent.
    filed: BTreeMap<u64, Request>,
    bytes: usize,
    /// The first request that was not sent on this connection.
    unsent: u64,
    /// Those that the relay had no room for, by when they are sent again.
    retries: BTreeSet<(Instant, u64)>,
}

struct Request {
    text: Arc<str>,
    reply: Reply,
    expires: Instant,
    sent: bool,
    /// It stands in `retries`, so that a new connection does not send it sooner.
    resting: bool,
}

/// Who waits for which kind of answer.
pub(super) enum Reply {
    Published(Inlet<Answer<Receipt>>),
    History(Inlet<Answer<History>>),
    Pong(Inlet<Answer<u64>>),
    Stored(Inlet<Answer<Stored>>),
    /// As `Stored`, for a change that must not be sent twice: the second answer would be about
    /// what the first one did.
    StoredOnce(Inlet<Answer<Stored>>),
    Values(Inlet<Answer<Values>>),
    Member(Inlet<Answer<()>>),
}

impl Requests {
    /// Whether one more request of `bytes` may wait for its answer.
    pub(super) fn has_room(&self, bytes: usize, requests_max: usize, bytes_max: usize) -> bool {
        self.filed.is_empty()
            || (self.filed.len() < requests_max && self.bytes + bytes <= bytes_max)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.filed.is_empty()
    }

    /// Files a request under `id`, which is higher than all before.
    pub(super) fn file(&mut self, id: u64, reply: Reply, expires: Instant, body: &str) {
        let text: Arc<str> = message::with_id(id, body).into();
        self.bytes += text.len();
        self.filed.insert(id, Request { text, reply, expires, sent: false, resting: false });
    }

    /// Gives a request up. Returns whether it was sent, `None` if it has been answered.
    pub(super) fn abandon(&mut self, id: u64) -> Option<bool> {
        self.remove(id).map(|request| request.sent)
    }

    /// Takes out the one that is answered now.
    pub(super) fn answered(&mut self, id: u64) -> Option<Reply> {
        self.remove(id).map(|request| request.reply)
    }

    fn remove(&mut self, id: u64) -> Option<Request> {
        let request = self.filed.remove(&id)?;
        self.bytes -= request.text.len();
        if request.resting {
            self.retries.retain(|(_, resting)| *resting != id);
        }
        Some(request)
    }

    /// The relay has refused a request. A publish or a change that it has no room for now is sent
    /// again, as it was, if its caller still waits then.
    pub(super) fn refuse(&mut self, id: u64, refused: Refused, now: Instant) {
        let Some(request) = self.filed.get_mut(&id) else {
            log::debug!("refused, and nobody waits for it: {refused}");
            return;
        };
        let again = refused.retry_after.filter(|_| refused.is_temporary()).map(|wait| now + wait);
        let waits =
            matches!(request.reply, Reply::Published(_) | Reply::Stored(_) | Reply::StoredOnce(_));
        match again.filter(|again| waits && *again < request.expires) {
            Some(again) if !request.resting => {
                request.resting = true;
                self.retries.insert((again, id));
            }
            Some(_) => {}
            None => {
                if let Some(reply) = self.answered(id) {
                    reply.fail(ClientError::Refused(refused));
                }
            }
        }
    }

    /// A change was refused because its key has the version `found`. Whoever waits knows the rest.
    pub(super) fn conflict(&mut self, id: u64, found: u64) {
        if let Some(reply) = self.answered(id) {
            reply.fail(ClientError::Conflict { key: String::new(), wanted: 0, found });
        }
    }

    /// When the next request is to be sent again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.retries.first().map(|(again, _)| *again)
    }

    /// Drops requests whose callers have given up waiting.
    pub(super) fn expire(&mut self, now: Instant, limit: Duration) {
        let late = self.filed.iter().filter(|(_, request)| request.expires <= now);
        let late: Vec<u64> = late.map(|(id, _)| *id).collect();
        for id in late {
            if let Some(request) = self.remove(id) {
                let error = if request.sent {
                    ClientError::Unanswered { limit }
                } else {
                    ClientError::NotSent { limit }
                };
                request.reply.fail(error);
            }
        }
    }

    /// The connection is gone: what must not be sent twice, and may have been heard, is over.
    pub(super) fn link_down(&mut self) {
        let doubtful = |request: &Request| {
            request.sent && !request.resting && matches!(request.reply, Reply::StoredOnce(_))
        };
        let lost = self.filed.iter().filter(|(_, request)| doubtful(request));
        let lost: Vec<u64> = lost.map(|(id, _)| *id).collect();
        for id in lost {
            if let Some(reply) = self.answered(id) {
                reply.fail(ClientError::Unknown);
            }
        }
    }

    /// A connection is ready that takes messages of at most `max` bytes: everything is sent anew.
    pub(super) fn link_up(&mut self, max: usize) {
        let large = self.filed.iter().filter(|(_, request)| max < request.text.len());
        let large: Vec<(u64, usize)> =
            large.map(|(id, request)| (*id, request.text.len())).collect();
        for (id, bytes) in large {
            if let Some(reply) = self.answered(id) {
                reply.fail(ClientError::TooLarge { bytes, max });
            }
        }
        self.unsent = 0;
    }

    /// Adds what is to be sent now to `out`, until that holds `bytes_max`.
    pub(super) fn send(&mut self, now: Instant, out: &mut Vec<Out>, bytes_max: usize) {
        let mut bytes = out.iter().map(Out::bytes).sum::<usize>();
        while bytes < bytes_max
            && let Some((again, id)) = self.retries.first().copied()
            && again <= now
        {
            self.retries.remove(&(again, id));
            let Some(request) = self.filed.get_mut(&id) else { continue };
            request.resting = false;
            if id < self.unsent {
                bytes += request.text.len();
                out.push(Out::Text(Arc::clone(&request.text)));
            }
        }
        for (id, request) in self.filed.range_mut(self.unsent..) {
            if bytes_max <= bytes {
                break;
            }
            self.unsent = id + 1;
            if !request.resting {
                bytes += request.text.len();
                request.sent = true;
                out.push(Out::Text(Arc::clone(&request.text)));
            }
        }
    }

    /// Ends everything with `error`. What was never sent is returned, to go out before the goodbye.
    pub(super) fn end(&mut self, error: &ClientError) -> Vec<Arc<str>> {
        self.bytes = 0;
        self.retries.clear();
        let mut unsent = Vec::new();
        for (_, request) in std::mem::take(&mut self.filed) {
            if !request.sent {
                unsent.push(request.text);
            }
            request.reply.fail(error.clone());
        }
        unsent
    }
}

impl Reply {
    pub(super) fn fail(self, error: ClientError) {
        // The caller may have stopped waiting; then nobody is left to tell.
        match self {
            Reply::Published(reply) => drop(reply.send(Err(error))),
            Reply::History(reply) => drop(reply.send(Err(error))),
            Reply::Pong(reply) => drop(reply.send(Err(error))),
            Reply::Stored(reply) | Reply::StoredOnce(reply) => drop(reply.send(Err(error))),
            Reply::Values(reply) => drop(reply.send(Err(error))),
            Reply::Member(reply) => drop(reply.send(Err(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{clock::Clock, lane};

    fn busy(ms: u64) -> Refused {
        let (code, message) = ("busy".to_owned(), "later".to_owned());
        let retry_after = Some(Duration::from_millis(ms));
        Refused { code, message, field: None, retry_after }
    }

    fn sent(requests: &mut Requests, now: Instant) -> Vec<String> {
        let mut out = Vec::new();
        requests.send(now, &mut out, usize::MAX);
        let text = |out: &Out| match out {
            Out::Text(text) => text.to_string(),
            Out::Frames(_) | Out::Close => panic!("only requests are here"),
        };
        out.iter().map(text).collect()
    }

    #[test]
    fn a_publish_without_room_rests_until_its_time_also_across_connections() {
        let now = Clock::default().now();
        let after = |ms| now + Duration::from_millis(ms);
        let (mut requests, limit) = (Requests::default(), after(10_000));
        let (inlet, answer) = lane::open(lane::REPLIES);
        requests.file(1, Reply::Published(inlet), limit, "{\"key\":1}");
        let text = sent(&mut requests, now);
        assert_eq!(text.len(), 1);
        requests.refuse(1, busy(500), now);
        requests.refuse(1, busy(900), now);

        assert_eq!(requests.next_retry(), Some(after(500)));
        assert!(sent(&mut requests, after(499)).is_empty());
        requests.link_up(usize::MAX);
        assert!(sent(&mut requests, after(499)).is_empty(), "a new connection changes nothing");
        assert_eq!(sent(&mut requests, after(500)), text);
        assert_eq!(requests.next_retry(), None);
        assert!(sent(&mut requests, after(600)).is_empty(), "it is under way");

        requests.refuse(1, busy(9_600), after(600));
        assert!(matches!(answer.try_recv(), Ok(Err(ClientError::Refused(_)))), "it was too late");
        assert!(requests.is_empty() && requests.next_retry().is_none());
    }

    #[test]
    fn only_publishes_that_are_refused_for_now_are_sent_again() {
        let now = Clock::default().now();
        let (mut requests, limit) = (Requests::default(), now + Duration::from_secs(10));
        let (inlet, pong) = lane::open(lane::REPLIES);
        requests.file(1, Reply::Pong(inlet), limit, "{}");
        let (inlet, published) = lane::open(lane::REPLIES);
        requests.file(2, Reply::Published(inlet), limit, "{}");
        sent(&mut requests, now);
        requests.refuse(1, busy(1), now);
        requests.refuse(2, Refused { code: "forbidden".to_owned(), ..busy(1) }, now);
        assert!(matches!(pong.try_recv(), Ok(Err(ClientError::Refused(_)))));
        assert!(matches!(published.try_recv(), Ok(Err(ClientError::Refused(_)))));
    }

    #[test]
    fn what_must_not_be_sent_twice_is_unknown_once_its_connection_is_lost() {
        let now = Clock::default().now();
        let (mut requests, limit) = (Requests::default(), now + Duration::from_secs(10));
        let mut file = |id, reply: fn(_) -> Reply| {
            let (inlet, answer) = lane::open(lane::REPLIES);
            requests.file(id, reply(inlet), limit, "{}");
            answer
        };
        let (once, again) = (file(1, Reply::StoredOnce), file(2, Reply::Stored));
        let resting = file(3, Reply::StoredOnce);
        sent(&mut requests, now);
        requests.refuse(3, busy(500), now);
        let (inlet, unsent) = lane::open(lane::REPLIES);
        requests.file(4, Reply::StoredOnce(inlet), limit, "{}");

        requests.link_down();
        requests.link_up(usize::MAX);

        assert!(matches!(once.try_recv(), Ok(Err(ClientError::Unknown))));
        for answer in [again, resting, unsent] {
            assert!(answer.try_recv().is_err(), "it goes on");
        }
        assert_eq!(sent(&mut requests, now).len(), 2, "the third rests");
    }

    #[test]
    fn one_that_rests_and_is_given_up_is_not_sent_again() {
        let now = Clock::default().now();
        let mut requests = Requests::default();
        let (inlet, _answer) = lane::open(lane::REPLIES);
        let limit = now + Duration::from_secs(10);
        requests.file(1, Reply::Published(inlet), limit, "{}");
        sent(&mut requests, now);
        requests.refuse(1, busy(1), now);
        assert_eq!(requests.abandon(1), Some(true));
        assert_eq!(requests.next_retry(), None);
        assert!(sent(&mut requests, limit).is_empty());
    }
}
