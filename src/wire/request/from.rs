//! The `from` of a subscription or a history request.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::{Field, Refusal, Text, brief, shown, string};
use crate::{
    base::limits::POSITIONS_MAX,
    name::Name,
    wire::position::{Epoch, From, Position},
};

#[derive(Deserialize, Default)]
#[serde(default, expecting = "a JSON object")]
struct FromFields<'a> {
    #[serde(borrow)]
    last: Field<'a>,
    #[serde(borrow)]
    since: Field<'a>,
    #[serde(borrow)]
    epoch: Field<'a>,
    #[serde(borrow)]
    seq: Field<'a>,
    #[serde(borrow)]
    positions: Field<'a>,
}

const FROM_FORMS: &str = "from is \"live\", \"start\", {\"last\": n}, {\"since\": unix_ms}, \
                          {\"epoch\": e, \"seq\": n} or, for a pattern, {\"positions\": {...}}";

pub(super) fn parse(raw: &str) -> Result<From, Refusal> {
    if raw.starts_with('"') {
        let text: Cow<'_, str> = string(raw).unwrap_or_default();
        return match &*text {
            "live" => Ok(From::Live),
            "start" => Ok(From::Start),
            found => Err(Refusal::field("from", format!("from is {}; {FROM_FORMS}", shown(found)))),
        };
    }
    let wrong = || Refusal::field("from", format!("from is {}; {FROM_FORMS}", shown(raw)));
    if !raw.starts_with('{') {
        return Err(wrong());
    }
    let fields: FromFields<'_> = serde_json::from_str(raw).map_err(|_| wrong())?;
    let forms = [fields.last.0, fields.since.0, fields.positions.0];
    let position = fields.epoch.0.is_some() || fields.seq.0.is_some();
    if forms.iter().flatten().count() + usize::from(position) != 1 {
        return Err(wrong());
    }
    if position {
        return position_of(&fields).map(From::After);
    }
    if let Some(raw) = fields.positions.0 {
        return positions(raw).map(From::Positions);
    }
    if let Some(count) = fields.last.number("from.last")? {
        return Ok(From::Last(count));
    }
    fields.since.number("from.since")?.map(From::Since).ok_or_else(wrong)
}

fn position_of(fields: &FromFields<'_>) -> Result<Position, Refusal> {
    let epoch = fields.epoch.text("from.epoch")?.ok_or_else(|| {
        Refusal::field("from.epoch", "from.epoch is missing; a sequence means nothing without it")
    })?;
    let epoch: Epoch = epoch.parse().map_err(|error| {
        Refusal::field("from.epoch", format!("from.epoch {} {error}", shown(&epoch)))
    })?;
    let seq = fields.seq.number("from.seq")?.ok_or_else(|| {
        Refusal::field("from.seq", "from.seq is missing; it is the last one seen")
    })?;
    Ok(Position { epoch, seq })
}

fn positions(raw: &str) -> Result<Vec<(Name, Position)>, Refusal> {
    let wrong = |error: serde_json::Error| {
        Refusal::field(
            "from.positions",
            format!("from.positions is not {{topic: position}}: {}", brief(&error)),
        )
    };
    let map: Positions<'_> = serde_json::from_str(raw).map_err(wrong)?;
    if POSITIONS_MAX < map.0.len() {
        let message =
            format!("from.positions lists {} topics, allowed are {POSITIONS_MAX}", map.0.len());
        return Err(Refusal::field("from.positions", message));
    }
    let position = |(topic, fields): &(Cow<'_, str>, FromFields<'_>)| {
        let name = Name::parse(topic).map_err(|error| {
            Refusal::field(
                "from.positions",
                format!("from.positions: topic {} {error}", shown(topic)),
            )
        })?;
        Ok((name, position_of(fields)?))
    };
    map.0.iter().map(position).collect()
}

/// An object with its entries in the order they were written.
struct Positions<'a>(Vec<(Cow<'a, str>, FromFields<'a>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Positions<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Positions<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of positions by topic")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((topic, fields)) = map.next_entry::<Text<'de>, FromFields<'de>>()? {
                    entries.push((topic.0, fields));
                }
                Ok(Positions(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
