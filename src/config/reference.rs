//! `docs/config.md`, made from the table.

use crate::config::{
    settings::Config,
    table::{Change, KEYS, Key},
};

/// A file that shows how settings and rules are written; a test reads it.
const EXAMPLE: &str = r#"# Other machines may connect, and nobody has to say who they are.
listen = ["0.0.0.0:5263"]
allow_anonymous = true
# Names under which browsers and programs address this relay.
allowed_hosts = ["relay.example"]
# A page from elsewhere that may use it.
allowed_origins = ["https://panel.example"]

# Every topic keeps its last 10000 events, none older than a week.
max_events = 10000
max_age = "7d"

# Except these: camera pictures are large and soon worthless...
[[topics]]
pattern = "home/camera/#"
max_events = 20
max_bytes = "16MiB"
max_age = "10m"

# ... and what the door did is kept longer, whatever its age.
[[topics]]
pattern = "home/door"
max_events = 100000
max_age = false
"#;

const INTRODUCTION: &str = "\
# Configuration

The relay runs without any configuration: it then listens on this machine alone. Every setting can
be given in three places; a later one wins over an earlier one and over the default:

1. The file, in TOML, named with `--config FILE` or `LANDLINE_CONFIG`: `max_message = \"1MiB\"`.
2. The environment, as `LANDLINE_` and the key in capitals: `LANDLINE_MAX_MESSAGE=1MiB`. An empty
   variable counts as none. Lists are separated by commas.
3. A flag, the key with dashes: `--max-message 1MiB`. Flags of lists may be given several times;
   the list of a stronger place replaces the whole list of a weaker one.

All values are checked before the relay starts, also those that another place overrides, and all
problems are reported together, each with its place. A key of the file that does not exist is an
error; a variable `LANDLINE_...` that does not exist is a warning.

Durations and sizes always have a unit. A duration is written with `ms`, `s`, `m`, `h` and `d`, such
as `\"500ms\"`, `\"25s\"` or `\"1h30m\"`. A size is written with `B`, `KiB`, `MiB`, `GiB` and `TiB`,
or with `KB`, `MB`, `GB` and `TB` for powers of 1000, such as `\"256KiB\"`. In the file, a list of
one text may be written as that text alone.

On SIGHUP the relay reads the file again. If there is any problem it keeps what it has and logs the
problem. Otherwise it applies the keys that say `live`; changes of keys that say `restart` are
logged and wait for the next start.

## Keys

These stand at the top of the file, before any `[[topics]]`.
";

const RELATIONS: &str = "
Beyond the ranges these rules hold:

- `heartbeat` is shorter than `heartbeat_timeout`.
- `max_outbox` is at least 4KiB larger than `max_message`, so that a reply always fits.
- `max_bytes`, also that of a `[[topics]]` table, and `max_memory` are at least `max_message`.
- Listening on anything but loopback needs `allow_anonymous = true`. There is no authentication yet,
  so whoever can connect can read and write everything. Loopback means `127.0.0.0/8`, `::1` and the
  name `localhost`; any other name may turn out to be any address.

## Topics

`max_events`, `max_bytes` and `max_age` say what a topic keeps: what is beyond any of these bounds
goes, the oldest event first. `[[topics]]` tables say it for some topics only. They stand at the end
of the file and only there; neither variables nor flags can set them. A change is live.

| key | type | meaning |
|---|---|---|
| `pattern` | text, required | A topic name, or a pattern with `+` for any one segment and `#` for \
the rest. |
";

const TOPICS_END: &str = "
What a table leaves out is as at the top of the file. The first table whose pattern matches a topic
decides, so special patterns come before general ones; a table that can never decide is a warning.

## Example
";

/// The page that `docs/config.md` must be equal to.
#[must_use]
pub fn reference() -> String {
    let defaults = Config::default();
    let mut page = String::from(INTRODUCTION);
    page.push_str("\n| key | type | default | change | meaning |\n|---|---|---|---|---|\n");
    for key in KEYS {
        page.push_str(&row(key, &defaults));
    }
    page.push_str(RELATIONS);
    for key in super::table::topic_keys() {
        page.push_str(&format!("| `{}` | {} | {} |\n", key.name, key.kind.title(), key.sentence));
    }
    page.push_str(TOPICS_END);
    page.push_str(&format!("\n```toml\n{EXAMPLE}```\n"));
    page
}

fn row(key: &Key, defaults: &Config) -> String {
    let default = key
        .default
        .map_or_else(|| format!("`{}`", key.kind.written(defaults)), |words| words.to_owned());
    let change = match key.change {
        Change::Reload => "live",
        Change::Restart => "restart",
    };
    format!("| `{}` | {} | {default} | {change} | {} |\n", key.name, key.kind.title(), key.sentence)
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use super::*;
    use crate::config::resolve;
    use crate::name::Name;

    #[test]
    fn the_page_is_in_step_with_the_table() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/config.md");
        if env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, reference()).unwrap();
        }
        assert!(
            fs::read_to_string(&file).unwrap_or_default() == reference(),
            "docs/config.md is out of step with the code; run UPDATE_DOCS=1 cargo test --lib"
        );
    }

    #[test]
    fn the_example_is_a_configuration_without_warnings() {
        let loaded = resolve(Some(EXAMPLE), "example", &[], &[]).unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        let policy = |topic| loaded.config.topics.policy(&Name::parse(topic).unwrap());
        assert_eq!(policy("home/camera/hall").max_events, 20);
        assert_eq!(policy("home/door").max_age, None);
        assert_eq!(policy("home/lamp").max_events, 10_000);
    }

    #[test]
    fn the_page_is_ascii_and_names_every_key() {
        let page = reference();
        assert!(page.is_ascii());
        for key in KEYS {
            assert!(page.contains(&format!("\n| `{}` |", key.name)));
        }
    }
}
