//! `landline presence`: who is present in a topic.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    base::{clock::Clock, limits::HISTORY_EVENTS_MAX},
    cli::{
        Global,
        consumers::idle,
        exit::{Exit, Failure},
        output::{Format, Output},
        state::{Member, follow},
    },
    client::{Client, ClientError, Value, WatchEvent},
    name::Name,
};

const LONG_HELP: &str = "\
Prints who is present in a topic: with how many connections, since how long, and what they say \
about themselves.

With --follow a line for everybody who is there (`present`), and then for everybody who comes \
(`joined`), goes (`left`), or is there in another way (`changed`). With -o json one object for \
each, with -o raw the user alone.

With --as you are present yourself for as long as this runs, under that name, and with what --info \
says about you.";

pub(super) fn command() -> Command {
    Command::new("presence")
        .about("Print who is present in a topic")
        .long_about(LONG_HELP)
        .arg(Arg::new("topic").value_name("TOPIC").required(true).help("The topic to look at"))
        .arg(
            Arg::new("follow")
                .short('f')
                .long("follow")
                .action(ArgAction::SetTrue)
                .help("Go on and print who comes and goes"),
        )
        .arg(
            Arg::new("as")
                .long("as")
                .value_name("USER")
                .help("Be present under this name meanwhile; goes on as with --follow"),
        )
        .arg(
            Arg::new("info")
                .long("info")
                .value_name("JSON")
                .requires("as")
                .help("What to say about oneself, at most 1 KiB of JSON"),
        )
}

/// What the relay says of somebody who is present.
#[derive(Deserialize)]
struct Present {
    connections: u64,
    since: u64,
    #[serde(default)]
    info: Option<Box<RawValue>>,
}

/// One line.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<&'static str>,
    topic: &'a str,
    user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<&'a RawValue>,
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let global = Global::of(matches);
    let topic = matches.get_one::<String>("topic").map_or("", String::as_str);
    Name::parse(topic).map_err(|rule| ClientError::Name { text: topic.to_owned(), rule })?;
    let info = matches.get_one::<String>("info").map(|text| parse_info(text)).transpose()?;
    let user = matches.get_one::<String>("as").map(String::as_str);
    let member = user.map(|user| Member { user, topic, info: info.as_deref() });
    if member.is_some() || matches.get_flag("follow") {
        print_changes(&global, topic, member.as_ref())
    } else {
        print(&global, topic)
    }
}

fn pattern(topic: &str) -> String {
    format!("$presence/{topic}/+")
}

/// The user whose presence `key` is.
fn user(key: &Name) -> &str {
    key.as_str().rsplit('/').next().unwrap_or_default()
}

fn read(value: &Value) -> Result<Present, Failure> {
    value.json().map_err(|error| {
        Failure::new(Exit::Other, format!("the presence of {} cannot be read: {error}", value.key))
    })
}

fn print(global: &Global<'_>, topic: &str) -> Result<(), Failure> {
    let client = Client::connect(global.server, global.client_options())?;
    let mut output = Output::new(global.format);
    let mut found: Vec<(String, Present)> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = client.values(&pattern(topic), after.as_deref(), HISTORY_EVENTS_MAX)?;
        for value in &page.values {
            found.push((user(&value.key).to_owned(), read(value)?));
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if global.format == Format::Text {
        table(&mut output, &found)?;
    } else {
        let mut lines = Lines { topic, format: global.format, output: &mut output };
        for (user, present) in &found {
            lines.print(None, user, Some(present))?;
        }
    }
    output.flush()
}

fn table(output: &mut Output, rows: &[(String, Present)]) -> Result<(), Failure> {
    let width = rows.iter().map(|(user, _)| user.chars().count()).max().unwrap_or(0).max(4);
    output.line(&format!("{:width$}  {:>11}  {:>5}  INFO", "USER", "CONNECTIONS", "SINCE"))?;
    let now_ms = Clock::default().unix_ms();
    for (user, Present { connections, since, info }) in rows {
        let since = idle(now_ms.saturating_sub(*since));
        let info = info.as_ref().map_or("-", |info| info.get());
        output.line(&format!("{user:width$}  {connections:>11}  {since:>5}  {info}"))?;
    }
    Ok(())
}

fn parse_info(text: &str) -> Result<Box<RawValue>, Failure> {
    serde_json::from_str(text).map_err(|error| {
        Failure::new(Exit::Usage, format!("--info is {text:?}, which is not JSON: {error}"))
    })
}

fn print_changes(
    global: &Global<'_>,
    topic: &str,
    member: Option<&Member<'_>>,
) -> Result<(), Failure> {
    let mut output = Output::new(global.format);
    let mut crowd = Crowd::default();
    follow(global, &pattern(topic), member, |watch, event| {
        let mut lines = Lines { topic, format: global.format, output: &mut output };
        match event {
            WatchEvent::Reset => crowd.reset(),
            WatchEvent::Set(value) => {
                let present = read(&value)?;
                let change = crowd.set(user(&value.key), &value.data);
                if let Some(change) = change {
                    lines.print(Some(change), user(&value.key), Some(&present))?;
                }
            }
            WatchEvent::Deleted { key, .. } => {
                if crowd.remove(user(&key)) {
                    lines.print(Some("left"), user(&key), None)?;
                }
            }
            WatchEvent::Synced { .. } => {
                for user in crowd.synced() {
                    lines.print(Some("left"), &user, None)?;
                }
            }
        }
        if watch.waiting() == 0 {
            output.flush()?;
        }
        Ok(false)
    })
}

/// Who is known to be there, so that a snapshot that comes again prints what is new in it.
#[derive(Default)]
struct Crowd {
    is_synced: bool,
    /// What each has said, and whether it is from before the snapshot that is coming.
    users: BTreeMap<String, (String, bool)>,
}

impl Crowd {
    fn reset(&mut self) {
        self.users.values_mut().for_each(|(_, is_old)| *is_old = true);
    }

    /// How it is to be called that `user` is there, if it is news.
    fn set(&mut self, user: &str, data: &str) -> Option<&'static str> {
        match self.users.insert(user.to_owned(), (data.to_owned(), false)) {
            Some((before, _)) if before == data => None,
            Some(_) => Some("changed"),
            None if self.is_synced => Some("joined"),
            None => Some("present"),
        }
    }

    fn remove(&mut self, user: &str) -> bool {
        self.users.remove(user).is_some()
    }

    /// A snapshot is complete: who was not in it has gone.
    fn synced(&mut self) -> Vec<String> {
        self.is_synced = true;
        let gone = self.users.iter().filter(|(_, (_, is_old))| *is_old);
        let gone: Vec<String> = gone.map(|(user, _)| user.clone()).collect();
        self.users.retain(|_, (_, is_old)| !*is_old);
        gone
    }
}

struct Lines<'a> {
    topic: &'a str,
    format: Format,
    output: &'a mut Output,
}

impl Lines<'_> {
    fn print(
        &mut self,
        change: Option<&'static str>,
        user: &str,
        present: Option<&Present>,
    ) -> Result<(), Failure> {
        let info = present.and_then(|present| present.info.as_deref());
        let connections = present.map(|present| present.connections);
        match self.format {
            Format::Raw => self.output.line(user),
            Format::Json => {
                let since = present.map(|present| present.since);
                let topic = self.topic;
                self.output.object(&Row { change, topic, user, connections, since, info })
            }
            Format::Text => {
                let mut text = format!("{user} {}", change.unwrap_or("present"));
                if let Some(connections) = connections {
                    text = format!("{text} {connections}");
                }
                if let Some(info) = info {
                    text = format!("{text} {}", info.get());
                }
                self.output.line(&text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_comes_again_says_what_is_new_in_it() {
        let mut crowd = Crowd::default();
        crowd.reset();
        assert_eq!(crowd.set("anna", "1"), Some("present"));
        assert_eq!(crowd.set("ben", "1"), Some("present"));
        assert_eq!(crowd.synced(), Vec::<String>::new());
        assert_eq!(crowd.set("ben", "2"), Some("changed"));
        assert!(crowd.remove("ben") && !crowd.remove("ben"));
        assert_eq!(crowd.set("carl", "1"), Some("joined"));

        crowd.reset();
        assert_eq!(crowd.set("carl", "1"), None);
        assert_eq!(crowd.set("dora", "1"), Some("joined"));
        assert_eq!(crowd.synced(), ["anna"]);
    }
}
