//! How a subscription begins: what is checked here, and the wait for the relay's agreement.

use std::sync::Arc;

use crate::{
    base::{
        lane,
        limits::{ACK_WINDOW_DEFAULT, ACK_WINDOW_MAX},
    },
    client::{Client, error::ClientError, follow::SubId, inbox::Inbox, options::SubscribeOptions},
    name::{Filter, UserName},
    wire::{position::From, request::Acks},
};

impl Client {
    /// Adds a subscription and waits until its start is known.
    pub(super) fn begin(
        &self,
        filter: &str,
        from: From,
        options: SubscribeOptions,
    ) -> Result<(SubId, Filter, Arc<Inbox>), ClientError> {
        let shared = self.shared();
        let filter = Filter::parse(filter)
            .map_err(|rule| ClientError::Name { text: filter.to_owned(), rule })?;
        check_start(&filter, &from)?;
        let acks = options.acks(&filter)?;
        let inbox = Arc::new(Inbox::new(options.inbox.unwrap_or(shared.options.inbox)));
        let limit = options.deadline.unwrap_or(shared.options.deadline);
        let deadline = shared.clock.now() + limit;
        let (inlet, answer) = lane::open(lane::REPLIES);
        let id = shared.change(|session| match &session.over {
            Some(error) => Err(error.clone()),
            None => session.join(filter.clone(), from, Arc::clone(&inbox), acks, inlet),
        })?;
        let started = match answer.recv_deadline(deadline) {
            Ok(started) => started,
            Err(lane::RecvTimeoutError::Disconnected) => Err(ClientError::Closed),
            Err(lane::RecvTimeoutError::Timeout) => Err(ClientError::Unanswered { limit }),
        };
        match started {
            Ok(()) => Ok((id, filter, inbox)),
            Err(error) => {
                shared.change(|session| session.leave(id));
                Err(error)
            }
        }
    }
}

impl SubscribeOptions {
    /// What the relay is asked for, checked as it would.
    fn acks(&self, filter: &Filter) -> Result<Option<Acks>, ClientError> {
        let wrong = |rule: String| Err(ClientError::Invalid(rule));
        let window = self.window.unwrap_or(ACK_WINDOW_DEFAULT);
        if !(1..=ACK_WINDOW_MAX).contains(&window) {
            return wrong(format!("the window is {window}; allowed is 1 to {ACK_WINDOW_MAX}"));
        }
        let consumer = match self.consumer.as_deref().map(UserName::parse).transpose() {
            Ok(consumer) => consumer,
            Err(rule) => return wrong(format!("the consumer {rule}")),
        };
        if consumer.is_some() && matches!(filter, Filter::Pattern(_)) {
            return wrong(format!("a consumer is for a single topic, and {filter} is a pattern"));
        }
        Ok(self.acknowledge.then_some(Acks { window, consumer }))
    }
}

/// Checks that `from` fits to `filter`, as the relay would.
fn check_start(filter: &Filter, from: &From) -> Result<(), ClientError> {
    let rule = match (filter, from) {
        (Filter::Topic(_), From::Positions(_)) => "a single topic takes one position",
        (Filter::Pattern(_), From::After(_)) => "a pattern takes a position for each topic",
        (Filter::Pattern(pattern), From::Positions(positions)) => {
            match positions.iter().find(|(name, _)| !pattern.matches(name)) {
                Some((name, _)) => {
                    return Err(ClientError::Invalid(format!("{name} does not match {pattern}")));
                }
                None => return Ok(()),
            }
        }
        _ => return Ok(()),
    };
    Err(ClientError::Invalid(rule.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_relay_would_refuse_is_refused_here() {
        let topic = Filter::parse("a").unwrap();
        let pattern = Filter::parse("a/#").unwrap();
        let options = SubscribeOptions::default;
        assert_eq!(options().acks(&topic).unwrap(), None);
        let wanted = options().window(7).acks(&pattern).unwrap().unwrap();
        assert_eq!((wanted.window, wanted.consumer), (7, None));
        let wanted = options().consumer("x").acks(&topic).unwrap().unwrap();
        assert_eq!((wanted.window, wanted.consumer.unwrap().as_str()), (256, "x"));
        for (wrong, filter) in [
            (options().window(0), &topic),
            (options().window(65_537), &topic),
            (options().consumer("a/b"), &topic),
            (options().consumer("x"), &pattern),
        ] {
            assert!(matches!(wrong.acks(filter), Err(ClientError::Invalid(_))), "{wrong:?}");
        }
    }
}
