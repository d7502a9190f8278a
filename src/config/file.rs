//! The configuration file: TOML, every value with the place where it stands.
//!
//! # Place
//!
//! Knows which keys exist and where they may stand, and leaves their values to
//! [`Kind::accept`](crate::config::table::Kind). Reads text that somebody else has loaded.

use std::collections::BTreeSet;

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use crate::config::{
    found::{Found, Origin},
    suggest::nearest,
    table::{self, KEYS, Key, PATTERN, TOPICS},
};
use crate::name::Filter;

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) values: Vec<(&'static Key, Found)>,
    pub(super) rules: Vec<Rule>,
    pub(super) problems: Vec<String>,
    /// Whether keys may be missing from `values` because the file could not be read.
    pub(super) is_torn: bool,
}

/// One `[[topics]]` table.
#[derive(Debug)]
pub(super) struct Rule {
    /// `None` if it is missing or wrong, which is among the problems.
    pub(super) filter: Option<Filter>,
    pub(super) origin: Origin,
    pub(super) values: Vec<(&'static Key, Found)>,
}

struct Reader<'a> {
    text: &'a str,
    name: &'a str,
    contents: Contents,
}

type Entry<'t, 'i> = (&'t Spanned<DeString<'i>>, &'t Spanned<DeValue<'i>>);

/// Reads `text`, the contents of the file called `name`.
pub(super) fn read(text: &str, name: &str) -> Contents {
    let mut reader = Reader { text, name, contents: Contents::default() };
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        reader.read_top(document.get_ref());
    } else {
        reader.report_syntax(&errors);
    }
    reader.contents
}

impl Reader<'_> {
    fn read_top(&mut self, document: &DeTable<'_>) {
        for (key, value) in in_order(document) {
            match (table::key(key.get_ref()), key.get_ref().as_ref()) {
                (Some(known), _) => {
                    let found = self.found(value);
                    self.contents.values.push((known, found));
                }
                (None, TOPICS) => self.read_topics(value),
                (None, _) => self.report_unknown(key, value),
            }
        }
    }

    fn read_topics(&mut self, value: &Spanned<DeValue<'_>>) {
        let tables = value.get_ref().as_array().map(|items| {
            items.iter().map(|item| Some((item.get_ref().as_table()?, item.span().start)))
        });
        let Some(tables) = tables.and_then(|tables| tables.collect::<Option<Vec<_>>>()) else {
            let found = self.found(value);
            self.report(
                &found.origin,
                &format!(
                    "{TOPICS} is {}, expected a [[{TOPICS}]] table for each rule",
                    found.written
                ),
            );
            return;
        };
        for (table, start) in tables {
            self.read_rule(table, self.origin(start));
        }
    }

    fn read_rule(&mut self, table: &DeTable<'_>, origin: Origin) {
        let mut rule = Rule { filter: None, origin, values: Vec::new() };
        let mut has_pattern = false;
        for (key, value) in in_order(table) {
            let name = key.get_ref().as_ref();
            if name == PATTERN {
                has_pattern = true;
                rule.filter = self.filter(value);
            } else if let Some(known) = table::topic_keys().find(|known| known.name == name) {
                rule.values.push((known, self.found(value)));
            } else {
                self.report_unknown_in_rule(key);
            }
        }
        if !has_pattern {
            let missing = format!("[[{TOPICS}]] has no {PATTERN}: write {PATTERN} = \"home/#\"");
            self.report(&rule.origin, &missing);
        }
        self.contents.rules.push(rule);
    }

    fn filter(&mut self, value: &Spanned<DeValue<'_>>) -> Option<Filter> {
        let parsed = match value.get_ref().as_str() {
            Some(text) => Filter::parse(text).map_err(|error| format!("which {error}")),
            None => Err("expected a topic name or pattern".to_owned()),
        };
        parsed
            .map_err(|rule| {
                let Found { written, origin, .. } = self.found(value);
                self.report(&origin, &format!("{PATTERN} of [[{TOPICS}]] is {written}, {rule}"));
            })
            .ok()
    }

    fn report_unknown(&mut self, key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>) {
        let name = key.get_ref().as_ref();
        let known = KEYS.iter().map(|key| key.name).chain([TOPICS]);
        let hint = if let Some(nearest) = nearest(name, known) {
            format!("did you mean {nearest:?}?")
        } else if value.get_ref().is_table() {
            "keys stand at the top of the file, not in sections".to_owned()
        } else {
            "docs/config.md lists the keys".to_owned()
        };
        self.report(&self.origin(key.span().start), &format!("unknown key {name:?}; {hint}"));
    }

    fn report_unknown_in_rule(&mut self, key: &Spanned<DeString<'_>>) {
        let name = key.get_ref().as_ref();
        let known = || table::topic_keys().map(|key| key.name).chain([PATTERN]);
        let hint = if table::key(name).is_some() {
            // In TOML every key below a table's header belongs to that table.
            format!("it is a key of the relay: move it above the first [[{TOPICS}]]")
        } else if let Some(nearest) = nearest(name, known()) {
            format!("did you mean {nearest:?}?")
        } else {
            format!("keys are {}", known().collect::<Vec<_>>().join(", "))
        };
        let problem = format!("unknown key {name:?} in [[{TOPICS}]]; {hint}");
        self.report(&self.origin(key.span().start), &problem);
    }

    /// One problem for each line with syntax errors: more of them mostly follow from the first.
    fn report_syntax(&mut self, errors: &[toml::de::Error]) {
        self.contents.is_torn = true;
        let mut lines = BTreeSet::new();
        for error in errors {
            let start = error.span().map_or(self.text.len(), |span| span.start);
            if lines.insert(line_and_column(self.text, start).0) {
                self.report(&self.origin(start), error.message());
            }
        }
    }

    fn report(&mut self, origin: &Origin, problem: &str) {
        self.contents.problems.push(format!("{}: {problem}", origin.place()));
    }

    fn found(&self, value: &Spanned<DeValue<'_>>) -> Found {
        let written = self.text.get(value.span()).unwrap_or_default();
        Found::from_toml(value.get_ref(), written, self.origin(value.span().start))
    }

    fn origin(&self, at: usize) -> Origin {
        let (line, column) = line_and_column(self.text, at);
        Origin::File { name: self.name.to_owned(), line, column }
    }
}

/// The entries of `table` as they stand in the file; the table itself sorts them by name.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<Entry<'t, 'i>> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// The place of the byte `at`, both counted from 1, columns in characters.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    (line, before[line_start..].chars().count() + 1)
}
