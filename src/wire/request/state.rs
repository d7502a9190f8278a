//! Requests about state and presence.

use super::{Envelope, Refusal, Request};
use crate::{
    base::limits::{HISTORY_EVENTS_MAX, INFO_BYTES_MAX, TTL_MS_MAX},
    name::{Filter, Name},
    wire::{
        position::Epoch,
        request::{HISTORY_DEFAULT, brief, parse_topic},
        state::StatePosition,
    },
};

/// What a client asks for of the state and of presence.
#[derive(Debug)]
pub enum StateRequest<'a> {
    Set { key: Name, value: &'a str, if_version: Option<u64>, ttl_ms: Option<u64> },
    Delete { key: Name, if_version: Option<u64> },
    Get { filter: Filter, after: Option<String>, limit: u64 },
    Watch { filter: Filter, from: Option<StatePosition> },
    Unwatch { filter: Filter },
    Join { topic: Name, info: Option<&'a str> },
    Leave { topic: Name },
}

impl<'a> Envelope<'a> {
    #[inline(never)]
    pub(super) fn set(&self) -> Result<Request<'a>, Refusal> {
        let key = self.state_key()?;
        let value = self.value.required("value")?.0.unwrap_or_default();
        let if_version = self.if_version.number("if_version")?;
        let ttl_ms = self.ttl_ms.number("ttl_ms")?;
        if let Some(ttl_ms) = ttl_ms {
            check_ttl("ttl_ms", ttl_ms)?;
        }
        Ok(Request::State(StateRequest::Set { key, value, if_version, ttl_ms }))
    }

    #[inline(never)]
    pub(super) fn delete(&self) -> Result<Request<'a>, Refusal> {
        let key = self.state_key()?;
        let if_version = self.if_version.number("if_version")?;
        Ok(Request::State(StateRequest::Delete { key, if_version }))
    }

    #[inline(never)]
    pub(super) fn get(&self) -> Result<Request<'a>, Refusal> {
        let text = self.key.required("key")?.text("key")?.ok_or_else(|| null("key"))?;
        let filter =
            Filter::parse(&text).map_err(|error| Refusal::field("key", format!("key {error}")))?;
        let after = self.after.text("after")?.map(|after| after.into_owned());
        let limit = self.limit.number("limit")?.unwrap_or(HISTORY_DEFAULT);
        if !(1..=HISTORY_EVENTS_MAX).contains(&limit) {
            let message = format!("limit is {limit}; allowed is 1 to {HISTORY_EVENTS_MAX}");
            return Err(Refusal::field("limit", message));
        }
        Ok(Request::State(StateRequest::Get { filter, after, limit }))
    }

    #[inline(never)]
    pub(super) fn watch(&self) -> Result<Request<'a>, Refusal> {
        let filter = self.watched()?;
        let from = match self.from.0 {
            None | Some("null") => None,
            Some(raw) => Some(parse_from(raw)?),
        };
        Ok(Request::State(StateRequest::Watch { filter, from }))
    }

    #[inline(never)]
    pub(super) fn unwatch(&self) -> Result<Request<'a>, Refusal> {
        Ok(Request::State(StateRequest::Unwatch { filter: self.watched()? }))
    }

    #[inline(never)]
    pub(super) fn leave(&self) -> Result<Request<'a>, Refusal> {
        Ok(Request::State(StateRequest::Leave { topic: self.joined_topic()? }))
    }

    fn watched(&self) -> Result<Filter, Refusal> {
        let text = self.pattern.required("pattern")?.text("pattern")?;
        let text = text.ok_or_else(|| null("pattern"))?;
        Filter::parse(&text).map_err(|error| Refusal::field("pattern", format!("pattern {error}")))
    }

    #[inline(never)]
    pub(super) fn join(&self) -> Result<Request<'a>, Refusal> {
        let topic = self.joined_topic()?;
        let info = self.info.0.filter(|info| *info != "null");
        if let Some(info) = info
            && INFO_BYTES_MAX < info.len()
        {
            let message = format!("info has {} bytes, allowed are {INFO_BYTES_MAX}", info.len());
            return Err(Refusal::field("info", message));
        }
        Ok(Request::State(StateRequest::Join { topic, info }))
    }

    fn joined_topic(&self) -> Result<Name, Refusal> {
        let topic = self.topic.required("topic")?.text("topic")?.unwrap_or_default();
        parse_topic(&topic)
    }

    fn state_key(&self) -> Result<Name, Refusal> {
        let text = self.key.required("key")?.text("key")?.ok_or_else(|| null("key"))?;
        parse_key(&text)
    }
}

fn null(field: &'static str) -> Refusal {
    Refusal::field(field, format!("{field} is null; it must be a string"))
}

/// Parses a state key, with the refusal that a peer sees.
///
/// # Errors
///
/// The rule that `text` breaks.
pub fn parse_key(text: &str) -> Result<Name, Refusal> {
    Name::parse(text).map_err(|error| Refusal::field("key", format!("key {error}")))
}

/// Checks how long a key is to live.
///
/// # Errors
///
/// It is out of range.
pub fn check_ttl(field: &'static str, ttl_ms: u64) -> Result<(), Refusal> {
    if (1..=TTL_MS_MAX).contains(&ttl_ms) {
        return Ok(());
    }
    let message = format!("{field} is {ttl_ms}; allowed is 1 to {TTL_MS_MAX} milliseconds");
    Err(Refusal::field(field, message))
}

fn parse_from(raw: &str) -> Result<StatePosition, Refusal> {
    #[derive(serde::Deserialize)]
    struct Body {
        epoch: String,
        version: u64,
    }
    let refuse = |why: &dyn std::fmt::Display| {
        Refusal::field("from", format!("from is not {{\"epoch\", \"version\"}}: {why}"))
    };
    let body: Body = serde_json::from_str(raw).map_err(|error| refuse(&brief(&error)))?;
    let epoch: Epoch =
        body.epoch.parse().map_err(|error| refuse(&format_args!("from.epoch {error}")))?;
    Ok(StatePosition { epoch, version: body.version })
}
