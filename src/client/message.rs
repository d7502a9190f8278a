//! The protocol from the client's side: requests as text, and what the relay says as values.
//!
//! # Place
//!
//! Beside `wire`, which has the relay's side. Pure data.

use std::borrow::Cow;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    ser::{Error as _, SerializeMap},
};
use serde_json::value::RawValue;

use crate::{
    name::UserName,
    wire::{
        position::{Epoch, From, Position},
        request::Acks,
        state::StatePosition,
    },
};

/// A message from the relay, all its possible fields side by side; `kind` says which matter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Incoming<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Text<'a>,
    pub id: Option<u64>,
    #[serde(borrow)]
    pub topic: Option<Text<'a>>,
    #[serde(borrow)]
    pub pattern: Option<Text<'a>>,
    pub epoch: Option<EpochText>,
    pub seq: u64,
    pub first: u64,
    pub tail: u64,
    pub shared: bool,
    pub duplicate: bool,
    #[serde(borrow)]
    pub durability: Option<Text<'a>>,
    pub attached: u64,
    pub time: u64,
    #[serde(borrow)]
    pub user: Option<Text<'a>>,
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub data: Raw<'a>,
    pub from: u64,
    pub to: u64,
    #[serde(borrow)]
    pub reason: Option<Text<'a>>,
    #[serde(borrow)]
    pub recovery: Option<RecoveryFields<'a>>,
    #[serde(borrow)]
    pub events: Vec<EventFields<'a>>,
    #[serde(borrow)]
    pub code: Option<Text<'a>>,
    #[serde(borrow)]
    pub message: Option<Text<'a>>,
    #[serde(borrow)]
    pub field: Option<Text<'a>>,
    pub retry_after_ms: Option<u64>,
    pub reconnect_after_ms: Option<u64>,
    #[serde(borrow)]
    pub connection: Option<Text<'a>>,
    pub heartbeat_ms: u64,
    pub max_message_bytes: Option<usize>,
    #[serde(borrow)]
    pub key: Option<Text<'a>>,
    #[serde(borrow)]
    pub value: Raw<'a>,
    pub version: Option<u64>,
    pub deleted: bool,
    pub reset: bool,
    #[serde(borrow)]
    pub values: Vec<StateFields<'a>>,
    #[serde(borrow)]
    pub next: Option<Text<'a>>,
}

/// One key inside a `values` reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct StateFields<'a> {
    #[serde(borrow)]
    pub key: Text<'a>,
    pub version: u64,
    pub time: u64,
    #[serde(borrow)]
    pub user: Option<Text<'a>>,
    #[serde(borrow)]
    pub value: Raw<'a>,
}

/// One event inside a history reply.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EventFields<'a> {
    pub seq: u64,
    pub time: u64,
    #[serde(borrow)]
    pub user: Option<Text<'a>>,
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub data: Raw<'a>,
}

/// How a request for a position was met.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RecoveryFields<'a> {
    #[serde(borrow)]
    pub mode: Text<'a>,
    pub missing: Option<(u64, u64)>,
    #[serde(borrow)]
    pub reason: Option<Text<'a>>,
}

/// A string, borrowed from the message where it has no escapes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// JSON text as it stands in the message; `null` where the field is missing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw<'a>(pub &'a str);

#[derive(Clone, Copy, Debug)]
pub(super) struct EpochText(pub Epoch);

impl Default for Raw<'_> {
    fn default() -> Self {
        Raw("null")
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&'a RawValue>::deserialize(deserializer).map(|raw| Raw(raw.get()))
    }
}

impl<'de> Deserialize<'de> for EpochText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        text.0.parse().map(EpochText).map_err(serde::de::Error::custom)
    }
}

impl Text<'_> {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A request without its `id`, which is given when the request is filed.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Outgoing<'a> {
    Hello {
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        client: Option<&'a str>,
    },
    Subscribe {
        topic: &'a str,
        from: FromBody<'a>,
        #[serde(flatten)]
        acks: Option<AcksBody<'a>>,
    },
    Ack {
        topic: &'a str,
        seq: u64,
    },
    Unsubscribe {
        topic: &'a str,
    },
    Publish {
        topic: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<&'a str>,
        key: &'a str,
        data: &'a RawValue,
    },
    History {
        topic: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<FromBody<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<u64>,
    },
    Ping,
    Set {
        key: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        ttl_ms: Option<u64>,
        value: &'a RawValue,
    },
    Delete {
        key: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
    Get {
        key: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        after: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        limit: Option<u64>,
    },
    Watch {
        pattern: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<VersionBody>,
    },
    Unwatch {
        pattern: &'a str,
    },
    Join {
        topic: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        info: Option<&'a RawValue>,
    },
    Leave {
        topic: &'a str,
    },
}

/// A position in a state as it stands in a request.
#[derive(Serialize)]
pub(super) struct VersionBody {
    epoch: String,
    version: u64,
}

impl VersionBody {
    pub(super) fn of(at: StatePosition) -> Self {
        VersionBody { epoch: at.epoch.to_string(), version: at.version }
    }
}

/// What a `subscribe` says of acknowledgements.
#[derive(Serialize)]
pub(super) struct AcksBody<'a> {
    ack: bool,
    window: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer: Option<&'a str>,
}

impl<'a> AcksBody<'a> {
    pub(super) fn of(acks: &'a Acks) -> Self {
        let consumer = acks.consumer.as_ref().map(UserName::as_str);
        AcksBody { ack: true, window: acks.window, consumer }
    }
}

/// Writes a request.
pub(super) fn encode(id: u64, request: &Outgoing<'_>) -> String {
    with_id(id, &body(request))
}

/// Writes a request that has no id yet, which takes the longer part of the time.
pub(super) fn body(request: &Outgoing<'_>) -> String {
    serde_json::to_string(request).expect("a request has only string keys")
}

/// Adds the id to a request's body.
pub(super) fn with_id(id: u64, body: &str) -> String {
    let fields = body.strip_prefix('{').expect("a request is an object");
    let mut text = String::with_capacity(fields.len() + ID_BYTES);
    text.push_str("{\"id\":");
    text.push_str(itoa::Buffer::new().format(id));
    text.push(',');
    text.push_str(fields);
    text
}

/// Most bytes that an id adds to a request.
pub(super) const ID_BYTES: usize = 28;

/// A start as it stands in a request.
pub(super) struct FromBody<'a>(pub &'a From);

impl Serialize for FromBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let one = |serializer: S, key: &str, value: u64| {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry(key, &value)?;
            map.end()
        };
        match self.0 {
            From::Live => serializer.serialize_str("live"),
            From::Start => serializer.serialize_str("start"),
            From::Last(count) => one(serializer, "last", *count),
            From::Since(time) => one(serializer, "since", *time),
            From::After(position) => PositionBody(*position).serialize(serializer),
            From::Positions(positions) => {
                let body: serde_json::Map<String, serde_json::Value> = positions
                    .iter()
                    .map(|(topic, position)| {
                        serde_json::to_value(PositionBody(*position))
                            .map(|value| (topic.to_string(), value))
                    })
                    .collect::<Result<_, _>>()
                    .map_err(S::Error::custom)?;
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("positions", &body)?;
                map.end()
            }
        }
    }
}

struct PositionBody(Position);

impl Serialize for PositionBody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("epoch", &self.0.epoch.to_string())?;
        map.serialize_entry("seq", &self.0.seq)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        name::{Filter, Name},
        wire::request::{self, Request},
    };

    fn decoded_from(from: &From, topic: &str) -> From {
        let text = encode(7, &Outgoing::Subscribe { topic, from: FromBody(from), acks: None });
        match request::decode(&text) {
            request::Decoded {
                id: Some(7),
                request: Ok(Request::Subscribe { filter, from, .. }),
            } => {
                assert_eq!(filter, Filter::parse(topic).unwrap());
                from
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn the_relay_reads_every_start_as_it_was_meant() {
        let position = Position { epoch: Epoch::from_number(7), seq: 4 };
        for from in [From::Live, From::Start, From::Last(3), From::Since(5), From::After(position)]
        {
            assert_eq!(decoded_from(&from, "a"), from);
        }
        let positions = From::Positions(vec![(Name::parse("a/\"b").unwrap(), position)]);
        assert_eq!(decoded_from(&positions, "a/#"), positions);
    }

    #[test]
    fn the_relay_reads_what_is_said_of_acknowledgements() {
        let consumer = Some(UserName::parse("\"x\"").unwrap());
        for acks in [Acks { window: 7, consumer }, Acks { window: 65_536, consumer: None }] {
            let (from, body) = (FromBody(&From::Start), AcksBody::of(&acks));
            let text = encode(1, &Outgoing::Subscribe { topic: "a", from, acks: Some(body) });
            match request::decode(&text).request {
                Ok(Request::Subscribe { acks: Some(read), .. }) => assert_eq!(read, acks),
                other => panic!("{text}: {other:?}"),
            }
        }
        let text = encode(1, &Outgoing::Ack { topic: "a", seq: 4 });
        match request::decode(&text).request {
            Ok(Request::Ack { topic, seq }) => assert_eq!((&*topic, seq), ("a", 4)),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn the_relay_reads_a_publish_with_its_payload_untouched() {
        let data = RawValue::from_string("{ \"a\": 1.50 }".to_owned()).unwrap();
        let text = encode(
            9,
            &Outgoing::Publish { topic: "a/b", name: Some("n"), key: "k-1", data: &data },
        );
        match request::decode(&text).request {
            Ok(Request::Publish(publish)) => {
                assert_eq!(publish.data, data.get());
                assert_eq!(publish.topic, "a/b");
                assert_eq!(publish.key.as_deref(), Some("k-1"));
                assert_eq!(publish.name.as_deref(), Some("n"));
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn null_data_and_missing_data_are_both_null() {
        for text in [r#"{"type":"event","data":null}"#, r#"{"type":"event"}"#] {
            assert_eq!(serde_json::from_str::<Incoming<'_>>(text).unwrap().data.0, "null");
        }
    }
}
