//! A value as somebody wrote it, and where: what the layers hand to the table of keys.
//!
//! # Place
//!
//! The file brings typed values; the environment and the flags bring text, which is given the type
//! that the same text would have in the file. From there on all three are checked alike.

use std::fmt;

use toml::de::{DeInteger, DeValue};

use crate::config::table::Kind;

/// Longest value that a problem shows in full, in characters.
const SHOWN_CHARS_MAX: usize = 80;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// Lines and columns count from 1, columns in characters.
    File { name: String, line: usize, column: usize },
    /// The environment variable of this name.
    Variable(String),
    /// The flag of this name, with its dashes.
    Flag(String),
}

/// One value before its key's rules are applied.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) shape: Shape,
    /// As it was written, for messages.
    pub(super) written: String,
    pub(super) origin: Origin,
}

/// What kind of value stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Text(String),
    Integer(i128),
    Switch(bool),
    List(Vec<String>),
    /// A float, a date, a table, or a list of something else than texts: no key takes these.
    Other,
}

impl Origin {
    /// The origin with its column, for a problem at exactly this place.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Origin::File { name, line, column } => format!("{name}:{line}:{column}"),
            Origin::Default | Origin::Variable(_) | Origin::Flag(_) => self.to_string(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { name, line, .. } => write!(f, "{name}:{line}"),
            Origin::Variable(name) | Origin::Flag(name) => f.write_str(name),
        }
    }
}

impl Found {
    /// The value `text` of an environment variable or flag, read as `kind` suggests.
    pub(super) fn from_text(kind: &Kind, text: &str, origin: Origin) -> Found {
        let shape = match kind {
            Kind::List(..) => Shape::List(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(str::to_owned)
                    .collect(),
            ),
            Kind::Path(_) if text == "false" => Shape::Switch(false),
            Kind::Path(_) => Shape::Text(text.to_owned()),
            Kind::Level(_) | Kind::Sync(_) => Shape::Text(text.trim().to_owned()),
            Kind::Duration(..)
            | Kind::Age(..)
            | Kind::Size(..)
            | Kind::Count(..)
            | Kind::Switch(_) => scalar(text.trim()),
        };
        Found { shape, written: shorten(&format!("{text:?}")), origin }
    }

    /// The value of the file that is written as `written`.
    pub(super) fn from_toml(value: &DeValue<'_>, written: &str, origin: Origin) -> Found {
        // The text of a table is only its header.
        let written = if value.is_table() { "a table" } else { written };
        Found { shape: shape(value), written: shorten(written), origin }
    }
}

/// What `text` would be in the file if it needs no quotes there; else a text.
fn scalar(text: &str) -> Shape {
    match DeValue::parse(text).as_ref().map(|value| shape(value.get_ref())) {
        Ok(plain @ (Shape::Integer(_) | Shape::Switch(_))) => plain,
        _ => Shape::Text(text.to_owned()),
    }
}

fn shape(value: &DeValue<'_>) -> Shape {
    match value {
        DeValue::String(text) => Shape::Text(text.to_string()),
        DeValue::Integer(number) => integer(number).map_or(Shape::Other, Shape::Integer),
        DeValue::Boolean(on) => Shape::Switch(*on),
        DeValue::Array(items) => {
            let texts = items.iter().map(|item| item.get_ref().as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>().map_or(Shape::Other, Shape::List)
        }
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => Shape::Other,
    }
}

fn integer(number: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(number.as_str(), number.radix()).ok()
}

/// `text` on one line and of bearable length.
fn shorten(text: &str) -> String {
    let line = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let shown: String = line.chars().take(SHOWN_CHARS_MAX).collect();
    if shown == line { shown } else { format!("{shown}...") }
}
