//! `landline pub`: publishes one event, or one for each line of its input.
//!
//! # Threads
//!
//! With `--lines` the main thread reads and publishes; `confirm` prints the confirmations in the
//! same order, so that they appear while the next line is awaited.

use std::{
    fs,
    io::{self, BufRead, IsTerminal, Read},
    path::PathBuf,
    time::Duration,
};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::value::RawValue;

use crate::{
    base::{
        clock::Clock,
        lane::{self, Receiver},
        lifecycle::{Group, OnPanic, Panics, Stop},
        limits::WORKER_STACK_BYTES,
    },
    cli::{
        Global,
        exit::{Exit, Failure},
        output::Output,
        warn,
    },
    client::{Client, Message, Pending},
};

const LONG_HELP: &str = "\
Publishes events, waits until the relay has each, and prints `topic seq epoch` for it.

DATA is JSON. Without DATA it is read from FILE, or else from standard input. With --text the \
data is any text, sent as a JSON string, without the line break at its end.

With --lines each line is one event: JSON if the line is valid JSON, else the line as a string. \
With --text every line is sent as a string, also one that happens to be JSON.";

pub(super) fn command() -> Command {
    let text = |name: &'static str, shown: &'static str| Arg::new(name).value_name(shown);
    Command::new("pub")
        .visible_aliases(["publish", "send"])
        .about("Publish events")
        .long_about(LONG_HELP)
        .arg(text("topic", "TOPIC").required(true).help("The topic to publish to"))
        .arg(
            text("data", "DATA")
                .help("The event's data as JSON")
                .conflicts_with_all(["file", "lines"]),
        )
        .arg(
            text("file", "FILE")
                .short('f')
                .long("file")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Read the data from this file"),
        )
        .arg(
            Arg::new("lines")
                .long("lines")
                .action(ArgAction::SetTrue)
                .help("Publish one event for each line of the input"),
        )
        .arg(
            Arg::new("text")
                .long("text")
                .action(ArgAction::SetTrue)
                .help("The data is text, not JSON"),
        )
        .arg(text("name", "NAME").long("name").help("The event's name"))
        .arg(
            text("key", "KEY")
                .long("key")
                .conflicts_with("lines")
                .help("Idempotency key: the same key is stored once within the dedupe window"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let global = Global::of(matches);
    let job = Job {
        topic: matches.get_one::<String>("topic").cloned().unwrap_or_default(),
        name: matches.get_one::<String>("name").cloned(),
        key: matches.get_one::<String>("key").cloned(),
        text: matches.get_flag("text"),
    };
    let file = matches.get_one::<PathBuf>("file");
    let source = || -> Result<Box<dyn BufRead>, Failure> {
        let Some(path) = file else {
            if io::stdin().is_terminal() {
                global.tell("reading data from the terminal; end it with Ctrl-D");
            }
            return Ok(Box::new(io::stdin().lock()));
        };
        let open = fs::File::open(path);
        let open =
            open.map_err(|error| Failure::input(format!("cannot read {}", path.display()), error))?;
        Ok(Box::new(io::BufReader::new(open)))
    };
    if matches.get_flag("lines") {
        return lines(&global, job, source()?);
    }
    let data = match matches.get_one::<String>("data") {
        Some(data) => data.clone(),
        None => {
            let mut data = String::new();
            source()?
                .read_to_string(&mut data)
                .map_err(|error| Failure::input("cannot read the data", error))?;
            data
        }
    };
    let message = job.message(&data)?;
    let client = Client::connect(global.server, global.client_options())?;
    let receipt = client.send(message)?.wait()?;
    if !global.quiet {
        let mut output = Output::new(global.format);
        output.receipt(&job.topic, &receipt)?;
        output.flush()?;
    }
    Ok(())
}

/// What is the same for all events.
struct Job {
    topic: String,
    name: Option<String>,
    key: Option<String>,
    text: bool,
}

impl Job {
    fn message(&self, data: &str) -> Result<Message, Failure> {
        if self.text {
            return Ok(self.complete(Message::new(&self.topic, without_line_break(data))));
        }
        let data: &RawValue = serde_json::from_str(data.trim()).map_err(|error| {
            let what = format!("the data is not valid JSON: {error}; --text sends it as text");
            Failure::new(Exit::Usage, what)
        })?;
        Ok(self.complete(Message::new(&self.topic, data)))
    }

    fn line(&self, line: &str) -> Message {
        let json = serde_json::from_str::<&RawValue>(line.trim()).ok().filter(|_| !self.text);
        self.complete(match json {
            Some(data) => Message::new(&self.topic, data),
            None => Message::new(&self.topic, line),
        })
    }

    fn complete(&self, mut message: Message) -> Message {
        if let Some(name) = &self.name {
            message = message.name(name);
        }
        if let Some(key) = &self.key {
            message = message.key(key);
        }
        message
    }
}

fn without_line_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// Publishes each line, many under way at once.
fn lines(global: &Global<'_>, job: Job, mut source: Box<dyn BufRead>) -> Result<(), Failure> {
    let client = Client::connect(global.server, global.client_options())?;
    let (pending, receiver) = lane::open(lane::CONFIRMATIONS);
    let (outcome, confirmed) = lane::open(lane::REPLIES);
    let (topic, format, quiet) = (job.topic.clone(), global.format, global.quiet);
    let mut group = Group::new(Stop::default(), Panics::default());
    let body = move || {
        let output = (!quiet).then(|| Output::new(format));
        drop(outcome.send(confirm(&topic, output, &receiver)));
    };
    group
        .spawn("confirm".to_owned(), WORKER_STACK_BYTES, OnPanic::Contain, body)
        .map_err(|error| Failure::input("cannot start a thread", error))?;
    let read = read_lines(&mut source, |line| {
        // A rejected one means that confirming has failed, which says why below.
        Ok(pending.send(client.send(job.line(line))?).is_ok())
    });
    drop(pending);
    let clock = Clock::default();
    let outcome = confirmed.recv().unwrap_or_else(|_| Err(Failure::silent(Exit::Other)));
    let late = group.join(clock.now() + Duration::from_secs(1));
    if !late.is_empty() {
        warn("the thread that confirms did not end");
    }
    outcome.and(read)
}

/// Calls `publish` with each line until it returns `false`. Bytes that are not UTF-8 are replaced.
fn read_lines(
    source: &mut dyn BufRead,
    mut publish: impl FnMut(&str) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = source.read_until(b'\n', &mut line);
        if read.map_err(|error| Failure::input("cannot read a line", error))? == 0 {
            return Ok(());
        }
        if !publish(without_line_break(&String::from_utf8_lossy(&line)))? {
            return Ok(());
        }
    }
}

/// Waits for each confirmation and prints it.
fn confirm(
    topic: &str,
    mut output: Option<Output>,
    pending: &Receiver<Pending>,
) -> Result<(), Failure> {
    while let Ok(one) = pending.recv() {
        let receipt = one.wait()?;
        if let Some(output) = &mut output {
            output.receipt(topic, &receipt)?;
            if pending.is_empty() {
                output.flush()?;
            }
        }
    }
    output.as_mut().map_or(Ok(()), Output::flush)
}
