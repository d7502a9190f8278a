//! Requests: one JSON object per text frame, decoded field by field so that a refusal names the
//! field, the value found and the rule.
//!
//! Every field is first taken as raw JSON, which is iterative and borrows from the message; only
//! the fields that the request's type knows are looked into. `data` is never looked into at all.

mod from;
mod state;

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    base::limits::{
        ACK_WINDOW_DEFAULT, ACK_WINDOW_MAX, EVENT_NAME_BYTES_MAX, HISTORY_EVENTS_MAX,
        JSON_DEPTH_MAX, KEY_BYTES_MAX,
    },
    name::{Filter, Name, UserName},
    wire::{codes::Code, json, position::From},
};

pub use self::state::{StateRequest, check_ttl, parse_key};

/// What a client asks for.
#[derive(Debug)]
pub enum Request<'a> {
    Hello { user: Option<UserName>, client: Option<String> },
    Subscribe { filter: Filter, from: From, slow: SlowPolicy, acks: Option<Acks> },
    Unsubscribe { filter: Filter },
    Publish(Publish<'a>),
    Ack { topic: Cow<'a, str>, seq: u64 },
    History { topic: Name, from: Option<From>, limit: u64 },
    Ping,
    State(StateRequest<'a>),
}

/// One event to be appended. `topic` is still text: a connection usually publishes to the topic it
/// published to last, and comparing is cheaper than parsing.
#[derive(Debug)]
pub struct Publish<'a> {
    pub topic: Cow<'a, str>,
    pub data: &'a str,
    pub name: Option<Cow<'a, str>>,
    pub key: Option<Cow<'a, str>>,
}

/// What a subscription that acknowledges asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acks {
    /// Events that may be sent and not acknowledged.
    pub window: u64,
    /// Under which name the relay keeps the position.
    pub consumer: Option<UserName>,
}

/// What happens to a subscription whose cursor the log's tail has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SlowPolicy {
    /// It gets a `gap` and goes on at the oldest retained event.
    #[default]
    Gap,
    /// Its connection is closed, to resume at once.
    Disconnect,
}

/// Why a request is refused: what a peer reads, and nothing internal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: Code,
    /// A sentence that says what to change.
    pub message: String,
    pub field: Option<&'static str>,
    pub retry_after_ms: Option<u64>,
    /// The version that the key has, where another was expected; 0 if it is not there.
    pub version: Option<u64>,
}

impl Refusal {
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into(), field: None, retry_after_ms: None, version: None }
    }

    /// A field that breaks a rule. `message` names value and rule; the field is named here.
    #[must_use]
    pub fn field(field: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { field: Some(field), ..Refusal::new(Code::BadRequest, message) }
    }
}

/// A decoded message: the request or why it is refused, and the id to answer under.
#[derive(Debug)]
pub struct Decoded<'a> {
    pub id: Option<u64>,
    pub request: Result<Request<'a>, Refusal>,
}

/// Decodes one message.
#[must_use]
pub fn decode(text: &str) -> Decoded<'_> {
    if !json::is_shallow(text) {
        let message = format!("the message nests deeper than {JSON_DEPTH_MAX} levels");
        return Decoded { id: None, request: Err(Refusal::new(Code::BadRequest, message)) };
    }
    if let Some(publish) = plain_publish(text) {
        return Decoded { id: None, request: Ok(Request::Publish(publish)) };
    }
    let mut envelope = Envelope::default();
    let mut parser = serde_json::Deserializer::from_str(text);
    let filled = Fill(&mut envelope).deserialize(&mut parser).and_then(|()| parser.end());
    if let Err(error) = filled {
        let message = format!("the message is not a valid JSON object: {}", brief(&error));
        return Decoded { id: None, request: Err(Refusal::new(Code::BadRequest, message)) };
    }
    match envelope.id.number("id") {
        Ok(id) => Decoded { id, request: envelope.request() },
        Err(refusal) => Decoded { id: None, request: Err(refusal) },
    }
}

/// The publish that `text` is, if it is one in its plainest form: type, topic and data in this
/// order, and nothing else. Most events come like this, at half the cost of the general way.
fn plain_publish(text: &str) -> Option<Publish<'_>> {
    let rest = text.strip_prefix("{\"type\":\"publish\",\"topic\":\"")?;
    let (topic, rest) = rest.split_once('"')?;
    let data = rest.strip_prefix(",\"data\":")?.strip_suffix('}')?;
    if topic.bytes().any(|byte| byte == b'\\' || byte.is_ascii_control()) {
        return None;
    }
    // More fields behind the data make this fail, and the general way look again.
    let data: &RawValue = serde_json::from_str(data).ok()?;
    Some(Publish { topic: Cow::Borrowed(topic), data: data.get(), name: None, key: None })
}

/// A field as it stands in the message; `None` if it does not. `null` is there, unlike with
/// `Option`.
#[derive(Clone, Copy, Debug, Default)]
struct Field<'a>(Option<&'a str>);

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&'a RawValue>::deserialize(deserializer).map(|raw| Field(Some(raw.get())))
    }
}

/// The fields of a message, as they stand in it.
#[derive(Default)]
struct Envelope<'a> {
    kind: Field<'a>,
    id: Field<'a>,
    topic: Field<'a>,
    data: Field<'a>,
    name: Field<'a>,
    key: Field<'a>,
    from: Field<'a>,
    slow: Field<'a>,
    ack: Field<'a>,
    consumer: Field<'a>,
    window: Field<'a>,
    seq: Field<'a>,
    limit: Field<'a>,
    user: Field<'a>,
    client: Field<'a>,
    value: Field<'a>,
    if_version: Field<'a>,
    ttl_ms: Field<'a>,
    pattern: Field<'a>,
    after: Field<'a>,
    info: Field<'a>,
}

/// Fills an envelope in place. What the derived code does instead, a second set of fields that is
/// then moved twice, is a tenth of the cost of a publish.
struct Fill<'e, 'a>(&'e mut Envelope<'a>);

impl<'de> DeserializeSeed<'de> for Fill<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fill<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Text(key)) = map.next_key()? {
            let slot = match &*key {
                "type" => &mut self.0.kind,
                "id" => &mut self.0.id,
                "topic" => &mut self.0.topic,
                "data" => &mut self.0.data,
                "name" => &mut self.0.name,
                "key" => &mut self.0.key,
                "from" => &mut self.0.from,
                "slow" => &mut self.0.slow,
                "ack" => &mut self.0.ack,
                "consumer" => &mut self.0.consumer,
                "window" => &mut self.0.window,
                "seq" => &mut self.0.seq,
                "limit" => &mut self.0.limit,
                "user" => &mut self.0.user,
                "client" => &mut self.0.client,
                "value" => &mut self.0.value,
                "if_version" => &mut self.0.if_version,
                "ttl_ms" => &mut self.0.ttl_ms,
                "pattern" => &mut self.0.pattern,
                "after" => &mut self.0.after,
                "info" => &mut self.0.info,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if slot.0.is_some() {
                return Err(A::Error::custom(format_args!("the field {key} stands there twice")));
            }
            *slot = map.next_value()?;
        }
        Ok(())
    }
}

impl<'a> Envelope<'a> {
    fn request(&self) -> Result<Request<'a>, Refusal> {
        let kind = self.kind.required("type")?.text("type")?;
        match &*kind.unwrap_or_default() {
            "publish" => self.publish().map(Request::Publish),
            "subscribe" => self.subscribe(),
            "unsubscribe" => Ok(Request::Unsubscribe { filter: self.filter()? }),
            "ack" => self.ack(),
            "history" => self.history(),
            "hello" => self.hello(),
            "ping" => Ok(Request::Ping),
            "set" => self.set(),
            "delete" => self.delete(),
            "get" => self.get(),
            "watch" => self.watch(),
            "unwatch" => self.unwatch(),
            "join" => self.join(),
            "leave" => self.leave(),
            unknown => Err(Refusal {
                code: Code::UnknownType,
                message: format!(
                    "the type {} is not known; known are hello, subscribe, unsubscribe, publish, \
                     ack, history, set, delete, get, watch, unwatch, join, leave and ping",
                    shown(unknown)
                ),
                field: Some("type"),
                retry_after_ms: None,
                version: None,
            }),
        }
    }

    fn publish(&self) -> Result<Publish<'a>, Refusal> {
        let topic = self.topic.required("topic")?.text("topic")?.unwrap_or_default();
        let data = self.data.required("data")?.0.unwrap_or_default();
        let name = self.name.short_text("name", EVENT_NAME_BYTES_MAX)?;
        let key = self.key.short_text("key", KEY_BYTES_MAX)?;
        Ok(Publish { topic, data, name, key })
    }

    #[inline(never)]
    fn subscribe(&self) -> Result<Request<'a>, Refusal> {
        let filter = self.filter()?;
        let from = self.from()?.unwrap_or(From::Live);
        match (&filter, &from) {
            (Filter::Topic(_), From::Positions(_)) => {
                return Err(Refusal::field(
                    "from",
                    "from.positions is for a pattern; a single topic takes {\"epoch\", \"seq\"}",
                ));
            }
            (Filter::Pattern(_), From::After(_)) => {
                return Err(Refusal::field(
                    "from",
                    "from is a position, which is for a single topic; a pattern takes \
                     {\"positions\": {topic: position}}",
                ));
            }
            (Filter::Pattern(pattern), From::Positions(positions)) => {
                let stray = positions.iter().find(|(name, _)| !pattern.matches(name));
                if let Some((name, _)) = stray {
                    let message = format!("from.positions names {name}, which is not in {pattern}");
                    return Err(Refusal::field("from", message));
                }
            }
            _ => {}
        }
        let slow = match self.slow.text("slow")?.as_deref() {
            None | Some("gap") => SlowPolicy::Gap,
            Some("disconnect") => SlowPolicy::Disconnect,
            Some(found) => {
                let message = format!("slow is {}; it is gap or disconnect", shown(found));
                return Err(Refusal::field("slow", message));
            }
        };
        let acks = self.acks(&filter)?;
        Ok(Request::Subscribe { filter, from, slow, acks })
    }

    #[inline(never)]
    fn acks(&self, filter: &Filter) -> Result<Option<Acks>, Refusal> {
        let consumer = match self.consumer.text("consumer")? {
            None => None,
            Some(text) => Some(
                UserName::parse(&text)
                    .map_err(|error| Refusal::field("consumer", format!("consumer {error}")))?,
            ),
        };
        if consumer.is_some() && matches!(filter, Filter::Pattern(_)) {
            let message = "consumer is for a single topic; subscribe to each topic by its name";
            return Err(Refusal::field("consumer", message));
        }
        let wanted = match self.ack.0 {
            None | Some("null") => consumer.is_some(),
            Some("true") => true,
            Some("false") if consumer.is_some() => {
                let message = "ack is false; a consumer moves by acknowledgements, so leave ack \
                               out or make it true";
                return Err(Refusal::field("ack", message));
            }
            Some("false") => false,
            Some(raw) => {
                let message = format!("ack is {}; it must be true or false", shown(raw));
                return Err(Refusal::field("ack", message));
            }
        };
        let window = self.window.number("window")?;
        if window.is_some() && !wanted {
            let message = "window bounds what is not acknowledged; it needs ack to be true";
            return Err(Refusal::field("window", message));
        }
        let window = window.unwrap_or(ACK_WINDOW_DEFAULT);
        if !(1..=ACK_WINDOW_MAX).contains(&window) {
            let message = format!("window is {window}; allowed is 1 to {ACK_WINDOW_MAX}");
            return Err(Refusal::field("window", message));
        }
        Ok(wanted.then_some(Acks { window, consumer }))
    }

    fn ack(&self) -> Result<Request<'a>, Refusal> {
        let topic = self.topic.required("topic")?.text("topic")?.unwrap_or_default();
        let seq = self.seq.required("seq")?.number("seq")?.ok_or_else(|| {
            Refusal::field("seq", "seq is null; it is the last event that was handled")
        })?;
        Ok(Request::Ack { topic, seq })
    }

    #[inline(never)]
    fn history(&self) -> Result<Request<'a>, Refusal> {
        let topic = self.topic.required("topic")?.text("topic")?.unwrap_or_default();
        let topic = parse_topic(&topic)?;
        let from = self.from()?;
        if let Some(From::Positions(_)) = from {
            return Err(Refusal::field(
                "from",
                "from.positions is for a subscription to a pattern",
            ));
        }
        let limit = self.limit.number("limit")?.unwrap_or(HISTORY_DEFAULT);
        if !(1..=HISTORY_EVENTS_MAX).contains(&limit) {
            let message = format!("limit is {limit}; allowed is 1 to {HISTORY_EVENTS_MAX}");
            return Err(Refusal::field("limit", message));
        }
        Ok(Request::History { topic, from, limit })
    }

    #[inline(never)]
    fn hello(&self) -> Result<Request<'a>, Refusal> {
        let user = match self.user.text("user")? {
            None => None,
            Some(text) => Some(
                UserName::parse(&text)
                    .map_err(|error| Refusal::field("user", format!("user {error}")))?,
            ),
        };
        let client = self.client.short_text("client", KEY_BYTES_MAX)?.map(Cow::into_owned);
        Ok(Request::Hello { user, client })
    }

    fn filter(&self) -> Result<Filter, Refusal> {
        let text = self.topic.required("topic")?.text("topic")?.unwrap_or_default();
        Filter::parse(&text).map_err(|error| Refusal::field("topic", format!("topic {error}")))
    }

    fn from(&self) -> Result<Option<From>, Refusal> {
        match self.from.0 {
            None | Some("null") => Ok(None),
            Some(raw) => from::parse(raw).map(Some),
        }
    }
}

/// Events that `history` returns where the request does not say how many.
pub const HISTORY_DEFAULT: u64 = 100;

/// Parses a topic for publishing or reading, with the refusal that a peer sees.
///
/// # Errors
///
/// The rule that `text` breaks.
pub fn parse_topic(text: &str) -> Result<Name, Refusal> {
    Name::parse(text).map_err(|error| Refusal::field("topic", format!("topic {error}")))
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Field<'a> {
    fn required(self, field: &'static str) -> Result<Field<'a>, Refusal> {
        match self.0 {
            Some(_) => Ok(self),
            None => Err(Refusal::field(field, format!("{field} is missing"))),
        }
    }

    /// The text of a string field; `None` if it is not there or `null`.
    fn text(self, field: &'static str) -> Result<Option<Cow<'a, str>>, Refusal> {
        match self.0 {
            None => Ok(None),
            Some(raw) => match string(raw) {
                Some(text) => Ok(Some(text)),
                None if raw == "null" && field != "topic" && field != "type" => Ok(None),
                None => {
                    let message = format!("{field} is {}; it must be a string", shown(raw));
                    Err(Refusal::field(field, message))
                }
            },
        }
    }

    fn short_text(
        self,
        field: &'static str,
        bytes_max: usize,
    ) -> Result<Option<Cow<'a, str>>, Refusal> {
        let text = self.text(field)?;
        if let Some(text) = &text {
            check_short_text(field, text, bytes_max)?;
        }
        Ok(text)
    }

    /// The value of an unsigned integer field; `None` if it is not there or `null`.
    fn number(self, field: &'static str) -> Result<Option<u64>, Refusal> {
        match self.0 {
            None | Some("null") => Ok(None),
            Some(raw) => raw.parse().map(Some).map_err(|_| {
                let message = format!("{field} is {}; it must be an unsigned integer", shown(raw));
                let field = field.split_once('.').map_or(field, |(outer, _)| outer);
                Refusal::field(field, message)
            }),
        }
    }
}

/// Checks a text that has a length limit and no control characters.
///
/// # Errors
///
/// The rule that `text` breaks.
pub fn check_short_text(field: &'static str, text: &str, bytes_max: usize) -> Result<(), Refusal> {
    if text.is_empty() || bytes_max < text.len() {
        let message = format!("{field} has {} bytes, allowed are 1 to {bytes_max}", text.len());
        return Err(Refusal::field(field, message));
    }
    if text.contains(char::is_control) {
        return Err(Refusal::field(field, format!("{field} has a control character")));
    }
    Ok(())
}

/// The string that the JSON text `raw` is, without a copy where it has no escapes.
fn string(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(raw).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// A value as an error message shows it: quoted, and short even if the value is not.
fn shown(value: &str) -> String {
    const CHARS_MAX: usize = 40;
    let quoted =
        if value.starts_with(['"', '{', '[']) { value.to_owned() } else { format!("{value:?}") };
    cut(quoted, CHARS_MAX)
}

/// What the parser says, short even if it repeats all of the text.
fn brief(error: &serde_json::Error) -> String {
    const CHARS_MAX: usize = 120;
    cut(error.to_string(), CHARS_MAX)
}

fn cut(text: String, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests;
