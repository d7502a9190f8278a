//! Answers from the relay, as the values that callers get.

use std::time::Duration;

use crate::{
    client::{
        delivery::{Event, History, HistoryLoss, Receipt, ResetReason},
        error::{ClientError, Refused},
        message::{Incoming, RecoveryFields, StateFields, Text},
        session::{Answer, refused as refusal},
        value::{Stored, Value, Values},
    },
    name::Name,
    wire::codes::Durability,
};

/// An answer that makes no sense, as the error that the caller gets.
pub(super) fn nonsense(what: &str) -> Refused {
    refusal("internal", &format!("the relay's answer makes no sense: {what}"))
}

pub(super) fn refused(message: &Incoming<'_>) -> Refused {
    let text = |text: &Option<Text<'_>>| text.as_ref().map(|text| text.as_str().to_owned());
    Refused {
        code: text(&message.code).unwrap_or_default(),
        message: text(&message.message).unwrap_or_default(),
        field: text(&message.field),
        retry_after: message.retry_after_ms.map(Duration::from_millis),
    }
}

pub(super) fn receipt(message: &Incoming<'_>) -> Answer<Receipt> {
    let Incoming { seq, duplicate, .. } = *message;
    let durability = durability(message);
    match message.epoch {
        Some(epoch) => Ok(Receipt { epoch: epoch.0, seq, durability, duplicate }),
        None => Err(ClientError::Refused(nonsense("it has no epoch"))),
    }
}

fn durability(message: &Incoming<'_>) -> Durability {
    // A level that this version does not know promises nothing here.
    let said = message.durability.as_ref().map_or("", Text::as_str);
    let known = Durability::ALL.iter().find(|level| level.as_str() == said);
    known.copied().unwrap_or(Durability::Memory)
}

pub(super) fn stored(message: &Incoming<'_>) -> Answer<Stored> {
    match (message.epoch, message.version) {
        (Some(epoch), Some(version)) => {
            Ok(Stored { epoch: epoch.0, version, durability: durability(message) })
        }
        _ => Err(ClientError::Refused(nonsense("it has no epoch or no version"))),
    }
}

pub(super) fn values(message: &Incoming<'_>) -> Answer<Values> {
    let (Some(epoch), Some(version)) = (message.epoch, message.version) else {
        return Err(ClientError::Refused(nonsense("it has no epoch or no version")));
    };
    let value = |fields: &StateFields<'_>| {
        let Ok(key) = Name::parse(fields.key.as_str()) else {
            return Err(ClientError::Refused(nonsense("a key is not a name")));
        };
        Ok(Value {
            key,
            version: fields.version,
            time: fields.time,
            user: fields.user.as_ref().map(|user| user.as_str().into()),
            data: fields.value.0.into(),
        })
    };
    Ok(Values {
        epoch: epoch.0,
        version,
        values: message.values.iter().map(value).collect::<Result<_, _>>()?,
        next: message.next.as_ref().map(|next| next.as_str().to_owned()),
    })
}

pub(super) fn history(message: &Incoming<'_>) -> Answer<History> {
    let name = message.topic.as_ref().map_or("", Text::as_str);
    let (Ok(topic), Some(epoch)) = (Name::parse(name), message.epoch) else {
        return Err(ClientError::Refused(nonsense("it has no topic or no epoch")));
    };
    let event = |fields: &crate::client::message::EventFields<'_>| Event {
        topic: topic.clone(),
        epoch: epoch.0,
        seq: fields.seq,
        time: fields.time,
        user: fields.user.as_ref().map(|user| user.as_str().into()),
        name: fields.name.as_ref().map(|name| name.as_str().into()),
        data: fields.data.0.into(),
        redelivered: false,
    };
    Ok(History {
        epoch: epoch.0,
        first: message.first,
        tail: message.tail,
        events: message.events.iter().map(event).collect(),
        loss: message.recovery.as_ref().and_then(loss),
        topic,
    })
}

fn loss(recovery: &RecoveryFields<'_>) -> Option<HistoryLoss> {
    let is_damaged = recovery.reason.as_ref().is_some_and(|reason| reason.as_str() == "damaged");
    match (recovery.mode.as_str(), recovery.missing) {
        ("complete", _) => None,
        ("partial", Some((from, to))) if is_damaged => Some(HistoryLoss::Damaged { from, to }),
        ("partial", Some((from, to))) => Some(HistoryLoss::Truncated { from, to }),
        _ => Some(HistoryLoss::Reset(ResetReason::parse(recovery.reason.as_ref()))),
    }
}
