//! Configuration: what the relay runs with, and how it is told.
//!
//! # Place
//!
//! Above `base` and `name`. Components receive their own slice of [`Config`] by value.
//!
//! Four layers, the later ones stronger: defaults, a TOML file, environment variables, flags. One
//! table describes the settings; the checks, the flags and `docs/config.md` are made from it. All
//! problems of all layers are reported together, each with the place where it stands.
//!
//! # Not here
//!
//! Which file is read, when it is read again, and what a component does about a changed value.

mod address;
mod check;
mod file;
mod flags;
mod found;
mod kind;
mod layers;
mod reference;
pub mod settings;
mod suggest;
mod table;
#[cfg(test)]
mod tests;
mod units;

use std::{fmt, fs, path::PathBuf};

pub use flags::{flag_args, flags_from};
pub use found::Origin;
pub use reference::reference;
pub use settings::{
    AckSettings, Config, ConnectionSettings, LogLevel, LogSettings, OriginSettings, Policy,
    PresenceSettings, StateSettings, StoreSettings, SyncPolicy, TopicRule, TopicSettings,
};

use crate::base::lock;
use crate::config::{
    file::Contents,
    kind::quote,
    layers::Draft,
    table::{Change, KEYS, TOPICS},
};

/// What a configuration is made from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file, which must exist; `None` is no file.
    pub file: Option<PathBuf>,
    /// The environment; variables that do not begin with `LANDLINE_` are passed over.
    pub env: Vec<(String, String)>,
    /// Keys with the values of their flags, as [`flags_from`] returns them.
    pub flags: Vec<(&'static str, String)>,
}

/// A whole configuration, and what there is to say about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// What has no effect and was probably meant to have one.
    pub warnings: Vec<String>,
    /// Every setting with its value and origin. Line by line it is a file with the same meaning.
    pub effective: Vec<Effective>,
}

/// A setting, its value as it would stand in the file, and where that comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    pub key: &'static str,
    pub value: String,
    pub origin: Origin,
}

/// Everything wrong with a configuration, not just the first thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigError {
    /// Each with its place, the key, the value found and the rule that it breaks.
    pub problems: Vec<String>,
}

/// Keys whose values differ between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A reload applies them.
    pub live: Vec<&'static str>,
    /// They wait for the next start.
    pub restart: Vec<&'static str>,
}

/// Reads the file of `sources` and resolves it together with the other layers.
///
/// # Errors
///
/// The file cannot be read, or what [`resolve`] refuses.
///
/// # Blocking
///
/// Reads the file. No ranked lock may be held.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    lock::assert_none_held();
    let contents = sources.file.as_ref().map_or_else(Contents::default, |path| {
        let name = path.display().to_string();
        match fs::read_to_string(path) {
            Ok(text) => file::read(&text, &name),
            Err(error) => Contents {
                problems: vec![format!("{name}: cannot read the file: {error}")],
                is_torn: true,
                ..Contents::default()
            },
        }
    });
    settle(contents, &sources.env, &sources.flags)
}

/// Puts the layers together and checks every value and every relation between them.
///
/// `text` is what the file called `file_name` says, `env` the environment, and `flags` are keys
/// with the values of their flags.
///
/// # Errors
///
/// Lists all problems.
pub fn resolve(
    text: Option<&str>,
    file_name: &str,
    env: &[(String, String)],
    flags: &[(&'static str, String)],
) -> Result<Loaded, ConfigError> {
    let contents = text.map_or_else(Contents::default, |text| file::read(text, file_name));
    settle(contents, env, flags)
}

/// Which keys differ between the configuration in force and the one that is to replace it.
///
/// `old` is what runs: where a reload left a restart to be done, compare with what was in force
/// before it, or the reminder is lost.
#[must_use]
pub fn changed(old: &Config, new: &Config) -> Changes {
    let mut changes = Changes::default();
    for key in KEYS.iter().filter(|key| key.kind.written(old) != key.kind.written(new)) {
        match key.change {
            Change::Reload => changes.live.push(key.name),
            Change::Restart => changes.restart.push(key.name),
        }
    }
    if old.topics.rules != new.topics.rules {
        changes.live.push(TOPICS);
    }
    changes
}

impl Changes {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.restart.is_empty()
    }
}

impl fmt::Display for Effective {
    /// A line of the file, with the origin in a comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} # {}", self.key, self.value, self.origin)
    }
}

fn settle(
    contents: Contents,
    env: &[(String, String)],
    flags: &[(&'static str, String)],
) -> Result<Loaded, ConfigError> {
    let mut draft = Draft::new(contents, env, flags);
    check::check(&mut draft);
    if !draft.problems.is_empty() {
        return Err(ConfigError { problems: draft.problems });
    }
    let effective = effective(&draft);
    Ok(Loaded { config: draft.config, warnings: draft.warnings, effective })
}

fn effective(draft: &Draft) -> Vec<Effective> {
    let keys = KEYS.iter().map(|key| Effective {
        key: key.name,
        value: key.kind.written(&draft.config),
        origin: draft.origin(key.name),
    });
    let origin = draft.rules.first().map_or(Origin::Default, |(origin, _)| origin.clone());
    let rules: Vec<_> = draft.config.topics.rules.iter().map(write_rule).collect();
    let topics = Effective { key: TOPICS, value: format!("[{}]", rules.join(", ")), origin };
    keys.chain([topics]).collect()
}

/// The rule as an inline table.
fn write_rule(rule: &TopicRule) -> String {
    let mut scratch = Config::default();
    scratch.topics.default_policy = rule.policy;
    let mut parts = vec![format!("{} = {}", table::PATTERN, quote(rule.filter.as_str()))];
    for key in table::topic_keys() {
        parts.push(format!("{} = {}", key.name, key.kind.written(&scratch)));
    }
    format!("{{ {} }}", parts.join(", "))
}
