//! What the types of settings accept, and how their values are written.
//!
//! # Place
//!
//! The methods of [`Kind`]. What [`Kind::written`] writes can stand in the file, and
//! [`Kind::accept`] reads it as the same value.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use crate::config::{
    found::Shape,
    settings::Config,
    table::{Items, Kind, LEVELS, Number, SYNCS},
    units,
};

impl Kind {
    /// Puts a value into its slot of `config`.
    ///
    /// # Errors
    ///
    /// The rule that the value breaks, as a clause that continues "the value is ...,". The slot is
    /// untouched then.
    pub(super) fn accept(&self, config: &mut Config, shape: &Shape) -> Result<(), String> {
        match self {
            Kind::Duration(slot, range) => {
                *(slot.put)(config) = duration(shape, range)?.ok_or_else(|| self.expected())?;
            }
            Kind::Age(slot, range) => {
                *(slot.put)(config) = if *shape == Shape::Switch(false) {
                    None
                } else {
                    Some(duration(shape, range)?.ok_or_else(|| self.expected())?)
                };
            }
            Kind::Size(number, range) => {
                number.put(config, size(shape, range)?.ok_or_else(|| self.expected())?);
            }
            Kind::Count(number, range) => {
                let Shape::Integer(count) = shape else { return Err(self.expected()) };
                let count = u64::try_from(*count).ok().filter(|count| range.contains(count));
                number.put(config, count.ok_or_else(|| format!("allowed is {}", self.range()))?);
            }
            Kind::Switch(slot) => {
                let Shape::Switch(on) = shape else { return Err(self.expected()) };
                *(slot.put)(config) = *on;
            }
            Kind::Level(slot) => {
                let Shape::Text(text) = shape else { return Err(self.expected()) };
                let level = LEVELS.iter().find(|(name, _)| name == text);
                *(slot.put)(config) = level.ok_or_else(|| self.expected())?.1;
            }
            Kind::Sync(slot) => {
                let Shape::Text(text) = shape else { return Err(self.expected()) };
                let sync = SYNCS.iter().find(|(name, _)| name == text);
                *(slot.put)(config) = sync.ok_or_else(|| self.expected())?.1;
            }
            Kind::Path(slot) => {
                *(slot.put)(config) = match shape {
                    Shape::Text(text) if !text.is_empty() => Some(text.into()),
                    Shape::Switch(false) => None,
                    Shape::Text(_)
                    | Shape::Switch(true)
                    | Shape::Integer(_)
                    | Shape::List(_)
                    | Shape::Other => return Err(self.expected()),
                };
            }
            Kind::List(slot, items) => {
                *(slot.put)(config) = list(shape, items)?.ok_or_else(|| self.expected())?;
            }
        }
        Ok(())
    }

    /// The value in `config`, as it would stand in the file.
    pub(super) fn written(&self, config: &Config) -> String {
        match self {
            Kind::Duration(slot, _) => quote(&units::write_duration(*(slot.get)(config))),
            Kind::Age(slot, _) => (slot.get)(config)
                .map_or("false".to_owned(), |age| quote(&units::write_duration(age))),
            Kind::Size(number, _) => quote(&units::write_size(number.get(config))),
            Kind::Count(number, _) => number.get(config).to_string(),
            Kind::Switch(slot) => (slot.get)(config).to_string(),
            Kind::Level(slot) => {
                let level = LEVELS.iter().find(|(_, level)| level == (slot.get)(config));
                quote(level.map_or("", |(name, _)| name))
            }
            Kind::Sync(slot) => {
                let sync = SYNCS.iter().find(|(_, sync)| sync == (slot.get)(config));
                quote(sync.map_or("", |(name, _)| name))
            }
            Kind::Path(slot) => (slot.get)(config)
                .as_ref()
                .map_or("false".to_owned(), |path| quote(&path.to_string_lossy())),
            Kind::List(slot, _) => {
                let items: Vec<_> = (slot.get)(config).iter().map(|item| quote(item)).collect();
                format!("[{}]", items.join(", "))
            }
        }
    }

    /// The type in words, with the values it allows.
    pub(super) fn title(&self) -> String {
        let range = self.range();
        match self {
            Kind::Duration(..) => format!("duration, {range}"),
            Kind::Age(..) => format!("duration, {range}, or `false`"),
            Kind::Size(..) => format!("size, {range}"),
            Kind::Count(..) => format!("whole number, {range}"),
            Kind::Switch(_) => "`true` or `false`".to_owned(),
            Kind::Level(_) | Kind::Sync(_) => format!("one of {range}"),
            Kind::Path(_) => "path, or `false`".to_owned(),
            Kind::List(_, items) if 0 < items.count_min => {
                format!("list of `{}`, {range}", items.name)
            }
            Kind::List(_, items) => format!("list of `{}`", items.name),
        }
    }

    /// What a value may be, in words; empty where the type says it all.
    fn range(&self) -> String {
        match self {
            Kind::Duration(_, range) | Kind::Age(_, range) => {
                span(range, |it| units::write_duration(*it))
            }
            Kind::Size(_, range) => span(range, |it| units::write_size(*it)),
            Kind::Count(_, range) => span(range, u64::to_string),
            Kind::Level(_) => either(&LEVELS.map(|(name, _)| name)),
            Kind::Sync(_) => either(&SYNCS.map(|(name, _)| name)),
            Kind::List(_, items) if 0 < items.count_min => format!("at least {}", items.count_min),
            Kind::Switch(_) | Kind::Path(_) | Kind::List(..) => String::new(),
        }
    }

    /// What the help calls a value.
    pub(super) fn placeholder(&self) -> &'static str {
        match self {
            Kind::Duration(..) | Kind::Age(..) => "DURATION",
            Kind::Size(..) => "SIZE",
            Kind::Count(..) => "NUMBER",
            Kind::Switch(_) => "BOOL",
            Kind::Level(_) => "LEVEL",
            Kind::Sync(_) => "SYNC",
            Kind::Path(_) => "PATH",
            Kind::List(_, items) => items.name,
        }
    }

    /// The clause for a value of another type.
    fn expected(&self) -> String {
        let range = self.range();
        match self {
            Kind::Duration(..) => format!("expected a duration such as \"25s\", {range}"),
            Kind::Age(..) => {
                format!("expected a duration such as \"7d\", {range}, or false for any age")
            }
            Kind::Size(..) => format!("expected a size such as \"256KiB\", {range}"),
            Kind::Count(..) => format!("expected a whole number, {range}"),
            Kind::Switch(_) => "expected true or false".to_owned(),
            Kind::Level(_) | Kind::Sync(_) => format!("expected {range}"),
            Kind::Path(_) => "expected a path, or false for none".to_owned(),
            Kind::List(_, items) if 0 < items.count_min => {
                format!("expected a list of texts of the form {}, {range}", items.name)
            }
            Kind::List(_, items) => format!("expected a list of texts of the form {}", items.name),
        }
    }
}

/// Names as a sentence lists them.
fn either(names: &[&str]) -> String {
    let (last, others) = names.split_last().unwrap_or((&"", &[]));
    format!("{} or {last}", others.join(", "))
}

impl Number {
    fn get(&self, config: &Config) -> u64 {
        match self {
            Number::Short(slot) => u64::from(*(slot.get)(config)),
            Number::Word(slot) => u64::try_from(*(slot.get)(config)).unwrap_or(u64::MAX),
            Number::Wide(slot) => *(slot.get)(config),
        }
    }

    fn put(&self, config: &mut Config, value: u64) {
        match self {
            Number::Short(slot) => {
                *(slot.put)(config) = u32::try_from(value).unwrap_or(u32::MAX);
            }
            Number::Word(slot) => {
                *(slot.put)(config) = usize::try_from(value).unwrap_or(usize::MAX);
            }
            Number::Wide(slot) => *(slot.put)(config) = value,
        }
    }
}

/// `text` as a basic string of TOML.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            _ if letter.is_control() => {
                quoted.push_str(&format!("\\u{:04X}", u32::from(letter)));
            }
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

/// The duration that `shape` stands for; `None` if it is of another type.
fn duration(shape: &Shape, range: &RangeInclusive<Duration>) -> Result<Option<Duration>, String> {
    let duration = match shape {
        Shape::Text(text) => units::parse_duration(text)?,
        Shape::Integer(number) => return Err(units::no_duration_unit(&number.to_string())),
        Shape::Switch(_) | Shape::List(_) | Shape::Other => return Ok(None),
    };
    within(duration, range, |it| units::write_duration(*it)).map(Some)
}

/// The bytes that `shape` stands for; `None` if it is of another type.
fn size(shape: &Shape, range: &RangeInclusive<u64>) -> Result<Option<u64>, String> {
    let size = match shape {
        Shape::Text(text) => units::parse_size(text)?,
        Shape::Integer(number) => return Err(units::no_size_unit(&number.to_string())),
        Shape::Switch(_) | Shape::List(_) | Shape::Other => return Ok(None),
    };
    within(size, range, |it| units::write_size(*it)).map(Some)
}

/// The checked entries of a list; `None` if `shape` is no list or too short a one.
fn list(shape: &Shape, items: &Items) -> Result<Option<Vec<String>>, String> {
    let entries = match shape {
        Shape::Text(text) => std::slice::from_ref(text),
        Shape::List(entries) => entries,
        Shape::Integer(_) | Shape::Switch(_) | Shape::Other => return Ok(None),
    };
    if entries.len() < items.count_min {
        return Ok(None);
    }
    let (mut kept, mut wrong) = (Vec::new(), Vec::new());
    for entry in entries {
        match (items.check)(entry) {
            Ok(entry) => kept.push(entry),
            Err(why) => wrong.push(format!("{entry:?} {why}")),
        }
    }
    if wrong.is_empty() { Ok(Some(kept)) } else { Err(format!("where {}", wrong.join("; "))) }
}

fn within<T: PartialOrd>(
    value: T,
    range: &RangeInclusive<T>,
    write: impl Fn(&T) -> String,
) -> Result<T, String> {
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(format!("allowed is {}", span(range, write)))
    }
}

fn span<T, W: Display>(range: &RangeInclusive<T>, write: impl Fn(&T) -> W) -> String {
    format!("{} to {}", write(range.start()), write(range.end()))
}
