//! The command line: what stands behind `landline`, and how every command ends.
//!
//! Results go to standard output, everything else to standard error. Each command is a file with
//! a `command` that describes it and a `run` that does it; adding one means adding a line to
//! `COMMANDS`.
//!
//! # Place
//!
//! The top layer: above `client`, `server` and `config`.

mod check;
mod consumers;
mod exit;
mod health;
mod history;
mod http;
mod output;
mod presence;
mod publish;
mod serve;
mod state;
#[cfg(feature = "durable")]
mod store;
mod subscribe;
mod topics;
mod values;

use std::{io::Write, process::ExitCode, time::Duration};

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::client::Options;
use exit::{Exit, Failure};
use output::Format;

/// A command: its description and what it does.
type Entry = (fn() -> Command, fn(&ArgMatches) -> Result<(), Failure>);

const COMMANDS: &[Entry] = &[
    (serve::command, run_serve),
    (publish::command, publish::run),
    (subscribe::command, subscribe::run),
    (history::command, history::run),
    (topics::command, topics::run),
    (consumers::command, consumers::run),
    (state::command, state::run),
    (presence::command, presence::run),
    (check::command, check::run),
    (health::command, health::run),
    #[cfg(feature = "durable")]
    (store::command, store::run),
];

const AFTER_HELP: &str = "\
Examples:
  landline
  landline serve --listen 0.0.0.0:5263 --allow-anonymous
  landline pub door/front '{\"open\":true}'
  make 2>&1 | landline pub build/log --lines
  landline sub 'door/#' --from since:10m -o json
  landline sub jobs --consumer printer >> jobs.log
  landline state set home/lamp '{\"on\":true}' --ttl 10m
  landline state watch 'home/#' -o json

Exit codes:
  0   done; for `health`: ready; for `store check`: nothing is damaged
  1   another failure; for `health`: not ready; for `store check`: something is damaged
  2   the command line, or data given on it, is wrong
  3   the configuration is not valid
  4   cannot connect
  5   refused: not allowed
  6   there is no such topic, or no such key
  7   timed out: --for, --idle or --timeout passed before what was asked for was there
  8   events that were asked for are not stored any more (history, sub --no-follow);
      what is stored has been printed
  9   the relay ended the connection for good, or asks to try again later
  10  rejected by a limit of the relay
  11  the key has another version than --if-version
  128 and more: ended by that signal";

/// The whole command line.
#[must_use]
pub fn command() -> Command {
    let mut command = Command::new("landline")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A reliable event relay for local networks")
        .after_help(AFTER_HELP)
        .args(globals());
    for (describe, _) in COMMANDS {
        command = command.subcommand(describe());
    }
    command
}

fn globals() -> [Arg; 4] {
    [
        Arg::new("server")
            .short('s')
            .long("server")
            .global(true)
            .value_name("URL")
            .env("LANDLINE_URL")
            .default_value("http://127.0.0.1:5263")
            .help("The relay to talk to"),
        Arg::new("output")
            .short('o')
            .long("output")
            .global(true)
            .value_name("FORMAT")
            .env("LANDLINE_OUTPUT")
            .default_value("text")
            .value_parser(clap::value_parser!(Format))
            .help("How results are printed"),
        Arg::new("timeout")
            .long("timeout")
            .global(true)
            .value_name("DURATION")
            .default_value("5s")
            .value_parser(values::duration)
            .help("How long to wait for a connection, and for an answer"),
        Arg::new("quiet")
            .short('q')
            .long("quiet")
            .global(true)
            .action(ArgAction::SetTrue)
            .help("Print no receipts, and no messages but errors and losses"),
    ]
}

/// Runs the command line that this process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // A closed pipe is the reader's choice; the text has nowhere else to go.
            drop(error.print());
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    // No command at all means `serve`, with what the environment says.
    let serve = serve::command().get_matches_from(["landline"]);
    let (name, matches) = matches.subcommand().unwrap_or(("serve", &serve));
    let run = COMMANDS.iter().find(|(describe, _)| describe().get_name() == name);
    match run.map_or(Ok(()), |(_, run)| run(matches)) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => failure.report(),
    }
}

fn run_serve(matches: &ArgMatches) -> Result<(), Failure> {
    serve::run(matches).map_err(|error| {
        let exit = match &error {
            serve::ServeError::Config(_) => Exit::Configuration,
            serve::ServeError::LogFile { .. }
            | serve::ServeError::Signals { .. }
            | serve::ServeError::Announce { .. }
            | serve::ServeError::Start(_)
            | serve::ServeError::Panicked { .. } => Exit::Other,
        };
        Failure::new(exit, error)
    })
}

/// The values of the options that every command has.
struct Global<'a> {
    server: &'a str,
    format: Format,
    timeout: Duration,
    quiet: bool,
}

impl<'a> Global<'a> {
    fn of(matches: &'a ArgMatches) -> Self {
        Global {
            server: matches.get_one::<String>("server").map_or("", String::as_str),
            format: matches.get_one("output").copied().unwrap_or_default(),
            timeout: matches.get_one("timeout").copied().unwrap_or_default(),
            quiet: matches.get_flag("quiet"),
        }
    }

    fn client_options(&self) -> Options {
        Options::default()
            .client_text(concat!("landline-cli/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.timeout)
            .deadline(self.timeout)
    }

    /// Says something that is not a result.
    fn tell(&self, text: &str) {
        if !self.quiet {
            warn(text);
        }
    }
}

/// Says something that matters, also to those who want quiet.
fn warn(text: &str) {
    // If nobody listens there is nobody to tell.
    drop(writeln!(std::io::stderr(), "landline: {text}"));
}
