//! A subscription as the program holds it: an iterator, or a handler on a thread of its own.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use crate::{
    client::{
        Client,
        delivery::{Delivery, Event},
        error::ClientError,
        follow::SubId,
        inbox::{Inbox, Taken},
        threads::Shared,
    },
    name::{Filter, Name},
    wire::position::{From, Position},
};

/// A subscription to one topic, or to all that match a pattern. Dropping it ends it, and no other.
///
/// It keeps its client alive. If nobody takes deliveries out, its inbox fills; the relay is then
/// slowed down for a while, after which the subscription is left behind and resumes by position
/// when there is room again. Nothing is dropped silently: what the relay does not store any more
/// by then arrives as a [`Delivery::Gap`].
///
/// ```no_run
/// use landline::client::{Client, Delivery, From, Options, SubscribeOptions};
///
/// # fn main() -> Result<(), landline::client::ClientError> {
/// let client = Client::connect("http://127.0.0.1:5263", Options::default())?;
/// let doors = client.subscribe("home/+/door", From::Live, SubscribeOptions::default())?;
/// for delivery in doors {
///     match delivery? {
///         Delivery::Event(event) => println!("{} {}", event.topic, event.data),
///         Delivery::Gap { topic, from, to, .. } => eprintln!("{topic}: {from} to {to} are lost"),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Subscription {
    id: SubId,
    filter: Filter,
    client: Client,
    inbox: Arc<Inbox>,
    positions: HashMap<Name, Position>,
    ended: bool,
}

impl Subscription {
    pub(super) fn new(id: SubId, filter: Filter, client: Client, inbox: Arc<Inbox>) -> Self {
        Self { id, filter, client, inbox, positions: HashMap::new(), ended: false }
    }

    /// A number that no other subscription of this client has.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it follows.
    #[must_use]
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Takes the next delivery.
    ///
    /// # Errors
    ///
    /// The subscription has ended: [`ClientError::Refused`] if the relay would not have it any
    /// more, [`ClientError::Dismissed`] or [`ClientError::Closed`] if the client ended.
    ///
    /// # Blocking
    ///
    /// Until there is one, also while the connection is down.
    pub fn recv(&mut self) -> Result<Delivery, ClientError> {
        match self.inbox.take(None)? {
            Some(taken) => Ok(self.note(taken)),
            None => Err(ClientError::Closed),
        }
    }

    /// Takes the next delivery, or `None` if `limit` passed without one.
    ///
    /// # Errors
    ///
    /// As [`Subscription::recv`].
    ///
    /// # Blocking
    ///
    /// At most `limit`.
    pub fn recv_timeout(&mut self, limit: Duration) -> Result<Option<Delivery>, ClientError> {
        let deadline = self.client.shared().clock.now() + limit;
        let taken = self.inbox.take(Some(deadline))?;
        Ok(taken.map(|taken| self.note(taken)))
    }

    /// Takes the next delivery if there is one now.
    ///
    /// # Errors
    ///
    /// As [`Subscription::recv`].
    pub fn try_recv(&mut self) -> Result<Option<Delivery>, ClientError> {
        let taken = self.inbox.try_take()?;
        Ok(taken.map(|taken| self.note(taken)))
    }

    /// Says that the program has dealt with `event` and all before it in its topic. Only for a
    /// subscription that [acknowledges](crate::client::SubscribeOptions::acknowledge).
    ///
    /// ```no_run
    /// # fn main() -> Result<(), landline::client::ClientError> {
    /// # let client = landline::client::Client::connect("", Default::default())?;
    /// use landline::client::{Delivery, From, SubscribeOptions};
    ///
    /// let options = SubscribeOptions::default().acknowledge();
    /// let mut jobs = client.subscribe("jobs", From::Start, options)?;
    /// if let Delivery::Event(job) = jobs.recv()? {
    ///     // What has to be done for it is done here, and then:
    ///     jobs.ack(&job)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It is sent soon, many as one, and remembered: where a lost connection lost it, the next
    /// one brings it. [`Client::flush`] waits until it is sent.
    ///
    /// # Errors
    ///
    /// - [`ClientError::Invalid`]: the subscription does not acknowledge, or has not delivered
    ///   `event`.
    /// - [`ClientError::Replaced`], [`ClientError::Dismissed`], [`ClientError::Closed`]: it has
    ///   ended, and the relay will not hear of it.
    pub fn ack(&self, event: &Event) -> Result<(), ClientError> {
        acknowledge(self.client.shared(), self.id, event)
    }

    /// A handle for acknowledging, for another thread or while this is iterated over. It does not
    /// keep the client alive.
    #[must_use]
    pub fn acker(&self) -> Acker {
        Acker { shared: Arc::clone(self.client.shared()), id: self.id }
    }

    /// How many deliveries wait to be taken.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inbox.waiting()
    }

    /// After which event of each topic the program stands, as far as it has taken deliveries,
    /// acknowledged or not.
    ///
    /// [`Subscription::resume_from`] makes a start of it for a later subscription.
    #[must_use]
    pub fn positions(&self) -> &HashMap<Name, Position> {
        &self.positions
    }

    /// Where a later subscription with the same filter goes on: exactly after what was taken
    /// here. `None` if nothing is known yet.
    #[must_use]
    pub fn resume_from(&self) -> Option<From> {
        match &self.filter {
            Filter::Topic(name) => self.positions.get(name).copied().map(From::After),
            Filter::Pattern(_) if self.positions.is_empty() => None,
            Filter::Pattern(_) => {
                let positions = self.positions.iter();
                Some(From::Positions(positions.map(|(name, at)| (name.clone(), *at)).collect()))
            }
        }
    }

    fn note(&mut self, taken: Taken) -> Delivery {
        let Taken { delivery, resume } = taken;
        match &delivery {
            Delivery::Event(event) => self.moved(&event.topic, event.position()),
            Delivery::Attached { topic, position, .. }
            | Delivery::Reset { topic, position, .. } => {
                self.moved(topic, *position);
            }
            Delivery::Gap { topic, to, .. } => {
                if let Some(position) = self.positions.get_mut(topic) {
                    position.seq = *to;
                }
            }
            Delivery::Reconnected | Delivery::Unavailable { .. } => {}
        }
        if resume {
            self.client.shared().change(|session| session.resume(self.id));
        }
        delivery
    }

    fn moved(&mut self, topic: &Name, position: Position) {
        match self.positions.get_mut(topic) {
            Some(known) => *known = position,
            None => drop(self.positions.insert(topic.clone(), position)),
        }
    }
}

/// Deliveries until the subscription ends; the error that ended it comes last.
///
/// # Blocking
///
/// As [`Subscription::recv`].
impl Iterator for Subscription {
    type Item = Result<Delivery, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let delivery = self.recv();
        self.ended = delivery.is_err();
        Some(delivery)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.client.shared().change(|session| session.leave(self.id));
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Subscription { id, filter, .. } = self;
        f.debug_struct("Subscription")
            .field("id", id)
            .field("filter", filter)
            .finish_non_exhaustive()
    }
}

/// Acknowledges events of one subscription.
///
/// ```no_run
/// # fn main() -> Result<(), landline::client::ClientError> {
/// # let client = landline::client::Client::connect("", Default::default())?;
/// # use landline::client::{Delivery, From, SubscribeOptions};
/// let options = SubscribeOptions::default().acknowledge();
/// let jobs = client.subscribe("jobs", From::Start, options)?;
/// let acker = jobs.acker();
/// for delivery in jobs {
///     if let Delivery::Event(job) = delivery? {
///         acker.ack(&job)?;
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Acker {
    shared: Arc<Shared>,
    id: SubId,
}

impl Acker {
    /// As [`Subscription::ack`].
    ///
    /// # Errors
    ///
    /// As [`Subscription::ack`].
    pub fn ack(&self, event: &Event) -> Result<(), ClientError> {
        acknowledge(&self.shared, self.id, event)
    }
}

impl fmt::Debug for Acker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acker").field("id", &self.id).finish_non_exhaustive()
    }
}

fn acknowledge(shared: &Shared, id: SubId, event: &Event) -> Result<(), ClientError> {
    shared.change(|session| session.acknowledge(id, &event.topic, event.position()))
}

/// A handler that gets deliveries on a thread of its own. Dropping it ends the subscription; a
/// call that is running goes on to its end.
#[must_use = "dropping a listener ends its subscription"]
pub struct Listener {
    id: SubId,
    client: Client,
}

impl Listener {
    pub(super) fn new(id: SubId, client: Client) -> Self {
        Self { id, client }
    }

    /// A number that no other subscription of this client has.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.client.shared().change(|session| session.leave(self.id));
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The body of a listener's thread. Ends with the subscription; ends the subscription if the
/// handler panics. It does not keep the client alive.
pub(super) fn listen(
    shared: &Arc<Shared>,
    id: SubId,
    inbox: &Inbox,
    mut handler: impl FnMut(Delivery),
) {
    let _member = Membership { shared, id };
    let acknowledges = shared.session.with(|session| session.acknowledges(id));
    while let Ok(Some(Taken { delivery, resume })) = inbox.take(None) {
        if resume {
            shared.change(|session| session.resume(id));
        }
        let mut handled = None;
        if let Delivery::Event(event) = &delivery
            && acknowledges
        {
            handled = Some(event.clone());
        }
        handler(delivery);
        // Where this fails there is nobody to tell, and nothing more comes.
        drop(handled.map(|event| acknowledge(shared, id, &event)));
    }
}

struct Membership<'a> {
    shared: &'a Shared,
    id: SubId,
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        self.shared.change(|session| session.leave(self.id));
    }
}
