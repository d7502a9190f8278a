//! `landline state`: reads, changes and watches keys of the shared state.
//!
//! # Threads
//!
//! While watching, `stdout` waits for whoever reads the output to go, and ends the client then.

use std::{
    io::{self, IsTerminal, Read},
    time::Duration,
};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::value::RawValue;

use crate::{
    base::{
        clock::Clock,
        lifecycle::{Group, OnPanic, Panics, Stop},
        limits::{HISTORY_EVENTS_MAX, WORKER_STACK_BYTES},
    },
    cli::{
        Global,
        exit::{Exit, Failure},
        output::{self, Output},
        subscribe::tell_state,
        values, warn,
    },
    client::{Change, Client, ClientError, Watch, WatchEvent},
    name::Filter,
};

const LONG_HELP: &str = "\
Reads, changes and watches the shared state: keys with JSON values, of which each change gets the \
next version.

Text output is `KEY VERSION VALUE`, and `KEY VERSION deleted` for a key that is gone; raw is the \
value alone, an empty line for a key that is gone; json is one object per line.";

pub(super) fn command() -> Command {
    Command::new("state")
        .about("Read, change and watch the shared state")
        .long_about(LONG_HELP)
        .subcommand_required(true)
        .subcommand(get_command())
        .subcommand(set_command())
        .subcommand(delete_command())
        .subcommand(watch_command())
}

fn get_command() -> Command {
    Command::new("get")
        .about("Print the value of a key, or all that match a pattern")
        .arg(Arg::new("key").value_name("KEY|PATTERN").required(true).help("What to look at"))
}

fn set_command() -> Command {
    Command::new("set")
        .about("Set a key")
        .arg(key())
        .arg(
            Arg::new("value")
                .value_name("VALUE")
                .required(true)
                .allow_negative_numbers(true)
                .help("The value as JSON, or - to read it from standard input"),
        )
        .arg(
            Arg::new("text")
                .long("text")
                .action(ArgAction::SetTrue)
                .help("The value is text, not JSON"),
        )
        .arg(if_version("Set it only if it has this version; 0: only if it has no value"))
        .arg(
            Arg::new("ttl")
                .long("ttl")
                .value_name("DURATION")
                .value_parser(values::duration)
                .help("Delete it when it was not set again for so long"),
        )
}

fn delete_command() -> Command {
    Command::new("del")
        .visible_alias("delete")
        .about("Delete a key")
        .arg(key())
        .arg(if_version("Delete it only if it has this version"))
}

fn watch_command() -> Command {
    Command::new("watch")
        .about("Print what matches a pattern now, and each change of it")
        .arg(Arg::new("pattern").value_name("PATTERN").required(true).help("What to watch"))
        .arg(
            Arg::new("once")
                .long("once")
                .action(ArgAction::SetTrue)
                .help("End when what is there now has been printed"),
        )
}

fn key() -> Arg {
    Arg::new("key").value_name("KEY").required(true).help("The key")
}

fn if_version(help: &'static str) -> Arg {
    Arg::new("if-version")
        .long("if-version")
        .value_name("VERSION")
        .value_parser(clap::value_parser!(u64))
        .help(help)
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    match matches.subcommand() {
        Some(("get", matches)) => get(matches),
        Some(("set", matches)) => {
            let value = value(matches)?;
            let ttl = matches.get_one::<Duration>("ttl").copied();
            let change = Change::set(text(matches, "key"), &value);
            apply(matches, if let Some(ttl) = ttl { change.ttl(ttl) } else { change })
        }
        Some(("del", matches)) => apply(matches, Change::delete(text(matches, "key"))),
        Some(("watch", matches)) => watch(matches),
        _ => Ok(()),
    }
}

fn text<'a>(matches: &'a ArgMatches, name: &str) -> &'a str {
    matches.get_one::<String>(name).map_or("", String::as_str)
}

fn get(matches: &ArgMatches) -> Result<(), Failure> {
    let global = Global::of(matches);
    let key = text(matches, "key");
    let client = Client::connect(global.server, global.client_options())?;
    let mut output = Output::new(global.format);
    let mut after: Option<String> = None;
    loop {
        let page = client.values(key, after.as_deref(), HISTORY_EVENTS_MAX)?;
        if page.values.is_empty() && matches!(Filter::parse(key), Ok(Filter::Topic(_))) {
            return Err(Failure::new(Exit::NotFound, format!("{key} has no value")));
        }
        page.values.iter().try_for_each(|value| output.value(value))?;
        after = page.next;
        if after.is_none() {
            return output.flush();
        }
    }
}

/// The value that is to be set.
fn value(matches: &ArgMatches) -> Result<Box<RawValue>, Failure> {
    let mut given = text(matches, "value").to_owned();
    let is_piped = given == "-";
    if is_piped {
        if io::stdin().is_terminal() {
            Global::of(matches).tell("reading the value from the terminal; end it with Ctrl-D");
        }
        given.clear();
        io::stdin()
            .lock()
            .read_to_string(&mut given)
            .map_err(|error| Failure::input("cannot read the value", error))?;
    }
    parse_value(&given, matches.get_flag("text"), is_piped)
}

fn parse_value(given: &str, is_text: bool, is_piped: bool) -> Result<Box<RawValue>, Failure> {
    if is_text {
        let line = given.strip_suffix('\n').filter(|_| is_piped).unwrap_or(given);
        let line = line.strip_suffix('\r').filter(|_| is_piped).unwrap_or(line);
        let raw = serde_json::value::to_raw_value(line);
        return raw.map_err(|error| Failure::new(Exit::Usage, error));
    }
    serde_json::from_str(given.trim()).map_err(|error| {
        let what = if is_piped {
            format!("the value is not valid JSON: {error}; --text sets it as text")
        } else {
            let quoted = serde_json::Value::from(given);
            format!("the value {given} is not JSON ({error}); write '{quoted}', or use --text")
        };
        Failure::new(Exit::Usage, what)
    })
}

fn apply(matches: &ArgMatches, change: Change) -> Result<(), Failure> {
    let global = Global::of(matches);
    let change = match matches.get_one::<u64>("if-version") {
        Some(version) => change.if_version(*version),
        None => change,
    };
    let client = Client::connect(global.server, global.client_options())?;
    let stored = client.apply(change)?;
    if !global.quiet {
        let mut output = Output::new(global.format);
        output.stored(text(matches, "key"), &stored)?;
        output.flush()?;
    }
    Ok(())
}

fn watch(matches: &ArgMatches) -> Result<(), Failure> {
    let global = Global::of(matches);
    let pattern = text(matches, "pattern");
    let once = matches.get_flag("once");
    let mut output = Output::new(global.format);
    let mut resets = 0;
    follow(&global, pattern, None, |watch, event| {
        match event {
            WatchEvent::Reset => {
                resets += 1;
                if 1 < resets {
                    warn(&format!("{pattern}: begins anew; what is not printed now is gone"));
                }
            }
            WatchEvent::Set(value) => output.value(&value)?,
            WatchEvent::Deleted { key, version, time } => output.deleted(&key, version, time)?,
            WatchEvent::Synced { .. } if once => return output.flush().map(|()| true),
            WatchEvent::Synced { .. } => {}
        }
        if watch.waiting() == 0 {
            output.flush()?;
        }
        Ok(false)
    })
}

/// Somebody who is present while a command runs.
pub(super) struct Member<'a> {
    pub(super) user: &'a str,
    pub(super) topic: &'a str,
    pub(super) info: Option<&'a RawValue>,
}

/// Hands the events of a watch to `take`, until that says that it has enough, or nobody reads what
/// is printed.
pub(super) fn follow(
    global: &Global<'_>,
    pattern: &str,
    member: Option<&Member<'_>>,
    mut take: impl FnMut(&Watch, WatchEvent) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let quiet = global.quiet;
    let mut options = global.client_options().on_state(move |state| tell_state(quiet, state));
    if let Some(member) = member {
        options = options.user(member.user);
    }
    let client = Client::connect(global.server, options)?;
    let mut watch = client.watch(pattern)?;
    if let Some(member) = member {
        client.join(member.topic, member.info)?;
    }
    let mut group = Group::new(Stop::default(), Panics::default());
    let started = io::pipe().and_then(|(cancelled, cancel)| {
        let client = client.clone();
        let body = move || {
            if output::wait_for_reader_to_go(&cancelled) {
                client.close();
            }
        };
        group.spawn("stdout".to_owned(), WORKER_STACK_BYTES, OnPanic::Contain, body)?;
        Ok(cancel)
    });
    let cancel = started.map_err(|error| Failure::input("cannot watch the output", error))?;
    let outcome = loop {
        match watch.recv() {
            Ok(event) => match take(&watch, event) {
                Ok(false) => {}
                Ok(true) => break Ok(()),
                Err(failure) => break Err(failure),
            },
            // Only this command closes its client.
            Err(ClientError::Closed) => break Err(Failure::silent(Exit::Done)),
            Err(error) => break Err(error.into()),
        }
    };
    drop(cancel);
    client.close();
    if !group.join(Clock::default().now() + Duration::from_secs(1)).is_empty() {
        warn("a thread did not end");
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(given: &str, is_text: bool, is_piped: bool) -> String {
        parse_value(given, is_text, is_piped).unwrap().get().to_owned()
    }

    #[test]
    fn a_value_is_json_unless_it_is_called_text() {
        assert_eq!(parsed(" {\"a\": 1.50}\n", false, true), "{\"a\": 1.50}");
        assert_eq!(parsed("on", true, false), "\"on\"");
        assert_eq!(parsed("1", true, false), "\"1\"");
        assert_eq!(parsed("two\nlines\r\n", true, true), "\"two\\nlines\"");
        assert_eq!(parsed("kept\n", true, false), "\"kept\\n\"");
        for given in ["on", "", "{", "1 2"] {
            assert!(parse_value(given, false, false).is_err(), "{given}");
            assert!(parse_value(given, false, true).is_err(), "{given}");
        }
    }
}
