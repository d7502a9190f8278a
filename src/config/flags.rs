//! One command-line flag for each setting, made from the table.

use clap::{Arg, ArgAction, ArgMatches, parser::ValueSource};

use crate::config::{
    settings::Config,
    table::{KEYS, Key, Kind},
};

/// The flags, in the order of the documentation. Values stay text: [`resolve`](super::resolve)
/// checks them together with the other layers, so that all problems come at once.
#[must_use]
pub fn flag_args() -> Vec<Arg> {
    let defaults = Config::default();
    KEYS.iter().map(|key| flag_arg(key, &defaults)).collect()
}

/// The settings among the flags that were given, as [`resolve`](super::resolve) takes them.
#[must_use]
pub fn flags_from(matches: &ArgMatches) -> Vec<(&'static str, String)> {
    let mut given = Vec::new();
    for key in KEYS {
        // A command may offer only some of the flags; to ask for another one is an error.
        let Ok(Some(values)) = matches.try_get_many::<String>(key.name) else { continue };
        if matches.value_source(key.name) == Some(ValueSource::CommandLine) {
            given.extend(values.map(|value| (key.name, value.clone())));
        }
    }
    given
}

fn flag_arg(key: &'static Key, defaults: &Config) -> Arg {
    let help = format!("{} [default: {}]", key.sentence.replace('`', ""), default(key, defaults));
    let arg = Arg::new(key.name).long(key.flag).value_name(key.kind.placeholder()).help(help);
    if matches!(key.kind, Kind::List(..)) {
        return arg.action(ArgAction::Append);
    }
    if matches!(key.kind, Kind::Switch(_)) {
        // Bare it switches on; the equals sign keeps it from taking the next word for its value.
        return arg.num_args(0..=1).require_equals(true).default_missing_value("true");
    }
    arg
}

/// The default as it would stand on the command line.
fn default(key: &Key, defaults: &Config) -> String {
    if let Some(words) = key.default {
        return words.to_owned();
    }
    if let Kind::List(slot, _) = &key.kind {
        let items = (slot.get)(defaults).join(",");
        return if items.is_empty() { "none".to_owned() } else { items };
    }
    key.kind.written(defaults).replace('"', "")
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    fn parse(args: &[&str]) -> Vec<(&'static str, String)> {
        let command = Command::new("serve").no_binary_name(true).args(flag_args());
        flags_from(&command.try_get_matches_from(args).unwrap())
    }

    #[test]
    fn flags_come_back_under_the_names_of_their_keys() {
        assert_eq!(parse(&[]), []);
        assert_eq!(
            parse(&["--listen", "[::1]:1", "--max-message=1MiB", "--listen=localhost:2"]),
            [
                ("listen", "[::1]:1".to_owned()),
                ("listen", "localhost:2".to_owned()),
                ("max_message", "1MiB".to_owned()),
            ]
        );
    }

    #[test]
    fn a_switch_needs_no_value() {
        assert_eq!(parse(&["--allow-anonymous"]), [("allow_anonymous", "true".to_owned())]);
        assert_eq!(parse(&["--allow-anonymous=false"]), [("allow_anonymous", "false".to_owned())]);
    }

    #[test]
    fn a_flag_that_is_no_list_is_given_once() {
        let command = Command::new("serve").no_binary_name(true).args(flag_args());
        assert!(command.try_get_matches_from(["--writers=2", "--writers=3"]).is_err());
    }

    #[test]
    fn a_command_with_only_some_of_the_flags_is_fine() {
        let listen = flag_args().into_iter().find(|arg| arg.get_id() == "listen");
        let command = Command::new("x").no_binary_name(true).args(listen);
        let matches = command.try_get_matches_from(["--listen=localhost:1"]).unwrap();
        assert_eq!(flags_from(&matches), [("listen", "localhost:1".to_owned())]);
    }

    #[test]
    fn help_tells_meaning_and_default() {
        let mut command = Command::new("serve").args(flag_args());
        let help = command.render_long_help().to_string();
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "--heartbeat <DURATION>",
            "Time between the pings that the relay sends. [default: 25s]",
            "--listen <HOST:PORT>",
            "[default: 127.0.0.1:5263]",
            "--allow-anonymous[=<BOOL>]",
            "[default: one per core, 2 to 8]",
        ] {
            assert!(words.contains(part), "{part} is not in:\n{help}");
        }
    }
}
