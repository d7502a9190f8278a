//! The layers put on top of each other: defaults, file, environment, flags.
//!
//! # Place
//!
//! Every value of every layer is checked, also one that a later layer replaces; it would surprise
//! on the day when the later one goes. The relations between settings are checked in `check`, on
//! the outcome.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{
    file::{Contents, Rule},
    found::{Found, Origin},
    settings::{Config, TopicRule},
    suggest::nearest,
    table::{KEYS, Key, Kind, PREFIX, TOPICS, key},
};

/// Variables that begin like settings and belong to other parts of the program.
const OTHER_VARIABLES: [&str; 3] = ["LANDLINE_CONFIG", "LANDLINE_URL", "LANDLINE_OUTPUT"];
/// What begins the names of more of them.
const OTHER_VARIABLES_PREFIX: &str = "LANDLINE_TOKEN";

/// A configuration on its way to be whole.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) config: Config,
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// Where each rule of `config.topics` stands, and its `max_bytes` if it has one of its own.
    pub(super) rules: Vec<(Origin, Option<Origin>)>,
    origins: BTreeMap<&'static str, Origin>,
    /// Keys whose value in `config` is not what somebody wanted, because that was wrong.
    broken: BTreeSet<&'static str>,
    is_torn: bool,
}

impl Draft {
    /// Puts the layers together, the strongest last.
    pub(super) fn new(
        contents: Contents,
        env: &[(String, String)],
        flags: &[(&'static str, String)],
    ) -> Draft {
        let mut draft =
            Draft { problems: contents.problems, is_torn: contents.is_torn, ..Draft::default() };
        for (key, found) in &contents.values {
            draft.set(key, found);
        }
        draft.add_variables(env);
        draft.add_flags(flags);
        // Last, because a rule inherits from what the top level says in the end.
        for rule in contents.rules {
            draft.add_rule(rule);
        }
        draft
    }

    /// Where the value of the key called `name` comes from.
    pub(super) fn origin(&self, name: &str) -> Origin {
        self.origins.get(name).cloned().unwrap_or(Origin::Default)
    }

    /// Whether the values of all of `names` are those that were wanted, so that it makes sense to
    /// compare them.
    pub(super) fn is_settled(&self, names: &[&str]) -> bool {
        !self.is_torn && !names.iter().any(|name| self.broken.contains(name))
    }

    fn set(&mut self, key: &'static Key, found: &Found) {
        match key.kind.accept(&mut self.config, &found.shape) {
            Ok(()) => {
                self.origins.insert(key.name, found.origin.clone());
            }
            Err(rule) => {
                self.broken.insert(key.name);
                self.problems.push(problem(key.name, found, &rule));
            }
        }
    }

    fn add_variables(&mut self, env: &[(String, String)]) {
        // An empty variable counts as none: that is how a service file takes one back.
        let ours =
            || env.iter().filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty());
        for key in KEYS {
            let variable = key.variable();
            if let Some((_, value)) = ours().find(|(name, _)| *name == variable) {
                let found = Found::from_text(&key.kind, value, Origin::Variable(variable));
                self.set(key, &found);
            }
        }
        for (name, _) in ours() {
            let is_known = KEYS.iter().any(|key| key.variable() == *name)
                || OTHER_VARIABLES.contains(&name.as_str())
                || name.starts_with(OTHER_VARIABLES_PREFIX);
            if !is_known {
                self.warn_of_variable(name);
            }
        }
    }

    /// Only a warning: container platforms name variables after the services next door.
    fn warn_of_variable(&mut self, name: &str) {
        // What all variables begin with makes none of them more similar.
        let own = name.strip_prefix(PREFIX).unwrap_or(name).to_ascii_lowercase();
        let hint = nearest(&own, KEYS.iter().map(|key| key.name))
            .and_then(key)
            .map_or(String::new(), |key| format!("; did you mean {}?", key.variable()));
        self.warnings.push(format!("{name}: no such setting, the variable is ignored{hint}"));
    }

    fn add_flags(&mut self, flags: &[(&'static str, String)]) {
        for key in KEYS {
            let given = || flags.iter().filter(|(name, _)| *name == key.name);
            let Some((_, last)) = given().next_back() else { continue };
            let text = if matches!(key.kind, Kind::List(..)) {
                given().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join(",")
            } else {
                last.clone()
            };
            let origin = Origin::Flag(format!("--{}", key.flag));
            self.set(key, &Found::from_text(&key.kind, &text, origin));
        }
        for (name, value) in flags {
            if !KEYS.iter().any(|key| key.name == *name) {
                self.problems.push(format!("flags: unknown key {name:?} with the value {value:?}"));
            }
        }
    }

    fn add_rule(&mut self, rule: Rule) {
        let pattern = rule.filter.as_ref().map_or("?", |filter| filter.as_str());
        // The slots of these keys lie in the default policy, so a copy of that takes the values.
        let mut scratch = self.config.clone();
        let mut max_bytes = None;
        for (key, found) in &rule.values {
            if let Err(broken) = key.kind.accept(&mut scratch, &found.shape) {
                let name = format!("{} of [[{TOPICS}]] {pattern:?}", key.name);
                self.problems.push(problem(&name, found, &broken));
            } else if key.name == "max_bytes" {
                max_bytes = Some(found.origin.clone());
            }
        }
        if let Some(filter) = rule.filter {
            let policy = scratch.topics.default_policy;
            self.config.topics.rules.push(TopicRule { filter, policy });
            self.rules.push((rule.origin, max_bytes));
        }
    }
}

fn problem(name: &str, found: &Found, rule: &str) -> String {
    format!("{}: {name} is {}, {rule}", found.origin.place(), found.written)
}
