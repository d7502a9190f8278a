//! The bounded queue between the client's reader and one subscription's program.
//!
//! # Threads
//!
//! `client-read` puts in, the program's thread takes out.
//!
//! # Locks
//!
//! [`Rank::Inbox`], for one delivery. May be taken inside [`Rank::Client`].

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    base::{
        lock::{Rank, Ranked},
        sync::Condvar,
    },
    client::{delivery::Delivery, error::ClientError, options::InboxLimits},
    name::Name,
    wire::position::Position,
};

/// What waits for one subscription's program.
pub(super) struct Inbox {
    limits: InboxLimits,
    queue: Ranked<Queue>,
    filled: Condvar,
    drained: Condvar,
}

struct Queue {
    deliveries: VecDeque<Delivery>,
    bytes: usize,
    /// Of topics of which something was forgotten: the first event that nobody has taken yet.
    untaken: HashMap<Name, Position>,
    /// Nothing more will come, for this reason.
    end: Option<ClientError>,
    /// The reader is needed elsewhere and must not wait for room now.
    hurry: bool,
    /// The reader has given up waiting and wants to be told when there is room.
    stalled: bool,
}

/// What became of a delivery.
#[derive(Debug)]
pub(super) enum Put {
    Done,
    /// There is no room, and waiting for it is over.
    Full(Delivery),
}

/// What was taken.
#[derive(Debug)]
pub(super) struct Taken {
    pub delivery: Delivery,
    /// There is room again, and somebody wants to know.
    pub resume: bool,
}

impl Inbox {
    pub(super) fn new(limits: InboxLimits) -> Self {
        let queue = Queue {
            deliveries: VecDeque::new(),
            bytes: 0,
            untaken: HashMap::new(),
            end: None,
            hurry: false,
            stalled: false,
        };
        Self {
            limits,
            queue: Ranked::new(Rank::Inbox, queue),
            filled: Condvar::new(),
            drained: Condvar::new(),
        }
    }

    /// Puts `delivery` in. Only events wait for room: the rest is rare and always fits.
    ///
    /// # Blocking
    ///
    /// Until there is room, the subscription ends, [`Inbox::hurry`] is called, or `patience` is
    /// over. Never with a ranked lock held.
    pub(super) fn put(&self, delivery: Delivery, patience: Duration) -> Put {
        let mut waiting = Some(delivery);
        let limits = self.limits;
        let mut put = |queue: &mut Queue| {
            let bytes = waiting.as_ref().map_or(0, Delivery::bytes);
            if queue.end.is_some() {
                waiting = None;
            } else if bytes == 0 || queue.has_room(limits, bytes) {
                queue.bytes += bytes;
                let put = waiting.take().map(|delivery| queue.mark(delivery));
                queue.deliveries.extend(put);
            } else if !queue.hurry {
                return None;
            }
            queue.hurry = false;
            Some(())
        };
        // The usual case needs no clock and no wait.
        if self.queue.with(&mut put).is_none() && !patience.is_zero() {
            let _room: Option<()> = self.queue.wait(&self.drained, patience, &mut put);
        }
        match waiting {
            Some(delivery) => Put::Full(delivery),
            None => {
                self.filled.notify_one();
                Put::Done
            }
        }
    }

    /// Makes the reader stop waiting here, or not begin to.
    pub(super) fn hurry(&self) {
        self.queue.with(|queue| queue.hurry = true);
        self.drained.notify_all();
    }

    /// Asks to be told through [`Taken::resume`] when half of the room is free. `false` if it is
    /// free already.
    pub(super) fn stall(&self) -> bool {
        self.queue.with(|queue| {
            queue.stalled = !queue.is_half_empty(self.limits);
            queue.stalled
        })
    }

    /// Takes the oldest delivery. `Ok(None)` if the deadline passed first.
    ///
    /// # Errors
    ///
    /// The subscription has ended and everything before its end was taken.
    ///
    /// # Blocking
    ///
    /// Until something arrives or `deadline` passes; without one, until something arrives.
    pub(super) fn take(&self, deadline: Option<Instant>) -> Result<Option<Taken>, ClientError> {
        let taken = self.queue.wait_until(&self.filled, deadline, |queue| {
            queue.pop(self.limits).map(Ok).or_else(|| queue.end.clone().map(Err))
        });
        if taken.is_some() {
            self.drained.notify_one();
        }
        taken.transpose()
    }

    /// Takes the oldest delivery if there is one now.
    ///
    /// # Errors
    ///
    /// As [`Inbox::take`].
    pub(super) fn try_take(&self) -> Result<Option<Taken>, ClientError> {
        let taken = self
            .queue
            .with(|queue| queue.pop(self.limits).map(Ok).or_else(|| queue.end.clone().map(Err)));
        if taken.is_some() {
            self.drained.notify_one();
        }
        taken.transpose()
    }

    /// Drops what waits of `topic` after event `after`: it comes again, in order.
    pub(super) fn forget(&self, topic: &Name, after: u64) {
        self.queue.with(|queue| {
            let (mut settled, mut untaken) = (false, None);
            for at in (0..queue.deliveries.len()).rev() {
                let again = match &queue.deliveries[at] {
                    Delivery::Event(event) => event.topic == *topic && after < event.seq,
                    Delivery::Gap { topic: of, to, .. } => of == topic && after < *to,
                    Delivery::Attached { topic: of, .. } | Delivery::Reset { topic: of, .. } => {
                        // Before it, the log was another one.
                        settled |= of == topic;
                        false
                    }
                    Delivery::Unavailable { .. } | Delivery::Reconnected => false,
                };
                if settled {
                    break;
                }
                if again && let Some(delivery) = queue.deliveries.remove(at) {
                    queue.bytes -= delivery.bytes();
                    if let Delivery::Event(event) = delivery
                        && !event.redelivered
                    {
                        untaken = Some(event.position());
                    }
                }
            }
            queue.untaken.extend(untaken.map(|first| (topic.clone(), first)));
        });
    }

    /// The events that wait.
    #[cfg(test)]
    pub(super) fn events(&self) -> Vec<crate::client::delivery::Event> {
        self.queue.with(|queue| {
            let mut events = Vec::new();
            for delivery in &queue.deliveries {
                if let Delivery::Event(event) = delivery {
                    events.push(event.clone());
                }
            }
            events
        })
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue.with(|queue| queue.deliveries.len())
    }

    /// Ends the subscription and forgets what is in the inbox: nobody will take it.
    pub(super) fn discard(&self) {
        self.queue.with(|queue| {
            queue.deliveries = VecDeque::new();
            queue.bytes = 0;
        });
        self.end(ClientError::Closed);
    }

    /// Ends the subscription: what is in the inbox can still be taken, then `error` is returned.
    pub(super) fn end(&self, error: ClientError) {
        self.queue.with(|queue| queue.end.get_or_insert(error).clone());
        self.filled.notify_all();
        self.drained.notify_all();
    }
}

impl Queue {
    fn has_room(&self, limits: InboxLimits, bytes: usize) -> bool {
        self.deliveries.is_empty()
            || (self.deliveries.len() < limits.events && self.bytes + bytes <= limits.bytes)
    }

    fn is_half_empty(&self, limits: InboxLimits) -> bool {
        self.deliveries.len() <= limits.events / 2 && self.bytes <= limits.bytes / 2
    }

    /// An event that comes again is new to a program that had not taken it before.
    fn mark(&mut self, mut delivery: Delivery) -> Delivery {
        if let Delivery::Event(event) = &mut delivery {
            let untaken = self.untaken.get(&event.topic);
            let new = untaken.is_some_and(|at| at.epoch == event.epoch && at.seq <= event.seq);
            event.redelivered &= !new;
        }
        delivery
    }

    fn pop(&mut self, limits: InboxLimits) -> Option<Taken> {
        let delivery = self.deliveries.pop_front()?;
        self.bytes -= delivery.bytes();
        if let Delivery::Event(event) = &delivery
            && let Some(untaken) = self.untaken.get_mut(&event.topic)
            && untaken.epoch == event.epoch
        {
            untaken.seq = untaken.seq.max(event.seq + 1);
        }
        let resume = self.stalled && self.is_half_empty(limits);
        self.stalled = self.stalled && !resume;
        Some(Taken { delivery, resume })
    }
}

impl Delivery {
    /// What it takes of the inbox's limit; 0 for what always fits.
    fn bytes(&self) -> usize {
        match self {
            Delivery::Event(event) => event.bytes(),
            Delivery::Attached { .. }
            | Delivery::Gap { .. }
            | Delivery::Reset { .. }
            | Delivery::Unavailable { .. }
            | Delivery::Reconnected => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{client::delivery::Event, wire::position::Epoch};

    fn event(seq: u64) -> Delivery {
        Delivery::Event(Event {
            topic: Name::parse("a").unwrap(),
            epoch: Epoch::from_number(1),
            seq,
            time: 0,
            user: None,
            name: None,
            data: "1".into(),
            redelivered: false,
        })
    }

    fn inbox(events: usize) -> Inbox {
        Inbox::new(InboxLimits { events, bytes: 1 << 20 })
    }

    #[test]
    fn a_full_inbox_gives_an_event_back_and_takes_everything_else() {
        let inbox = inbox(1);
        assert!(matches!(inbox.put(event(1), Duration::ZERO), Put::Done));
        assert!(matches!(inbox.put(event(2), Duration::ZERO), Put::Full(_)));
        assert!(matches!(inbox.put(Delivery::Reconnected, Duration::ZERO), Put::Done));
    }

    #[test]
    fn an_event_larger_than_the_limit_fits_into_an_empty_inbox() {
        let inbox = Inbox::new(InboxLimits { events: 10, bytes: 1 });
        assert!(matches!(inbox.put(event(1), Duration::ZERO), Put::Done));
        assert!(matches!(inbox.put(event(2), Duration::ZERO), Put::Full(_)));
    }

    #[test]
    fn whoever_stalled_is_told_once_when_half_of_the_room_is_free() {
        let inbox = inbox(4);
        (1..=4).for_each(|seq| drop(inbox.put(event(seq), Duration::ZERO)));
        assert!(inbox.stall());
        let told: Vec<bool> = (0..4).map(|_| inbox.try_take().unwrap().unwrap().resume).collect();
        assert_eq!(told, [false, true, false, false]);
        assert!(!inbox.stall(), "it is empty");
    }

    #[test]
    fn what_comes_again_does_not_wait_twice() {
        let inbox = inbox(4);
        (1..=3).for_each(|seq| drop(inbox.put(event(seq), Duration::ZERO)));
        let topic = Name::parse("a").unwrap();
        inbox.forget(&Name::parse("b").unwrap(), 0);
        inbox.forget(&topic, 1);
        assert!(inbox.queue.with(|queue| queue.deliveries.len() == 1 && 0 < queue.bytes));
        inbox.forget(&topic, 0);
        assert!(inbox.queue.with(|queue| queue.deliveries.is_empty() && queue.bytes == 0));
    }

    #[test]
    fn what_was_put_before_the_end_can_be_taken_after_it() {
        let inbox = inbox(4);
        drop(inbox.put(event(1), Duration::ZERO));
        inbox.end(ClientError::Closed);
        drop(inbox.put(event(2), Duration::ZERO));
        assert!(inbox.take(None).unwrap().is_some());
        assert!(matches!(inbox.take(None), Err(ClientError::Closed)));
    }

    #[test]
    fn a_reader_that_is_in_a_hurry_does_not_wait() {
        let inbox = inbox(1);
        drop(inbox.put(event(1), Duration::ZERO));
        inbox.hurry();
        assert!(matches!(inbox.put(event(2), Duration::from_secs(60)), Put::Full(_)));
    }
}
