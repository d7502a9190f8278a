//! `landline sub`: follows topics and prints one event per line.
//!
//! # Threads
//!
//! One `sub-N` for each filter waits for its deliveries and hands them to the main thread, which
//! prints. They end when the client is closed. `stdout` waits until nobody reads the output any
//! more, or printing has ended.

use std::{
    collections::HashMap,
    io,
    time::{Duration, Instant},
};

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::{
    base::{
        clock::Clock,
        lane::{self, Receiver, RecvTimeoutError},
        lifecycle::{Group, OnPanic, Panics, Stop},
        limits::WORKER_STACK_BYTES,
    },
    cli::{
        Global,
        exit::{Exit, Failure},
        output::{self, Output},
        values, warn,
    },
    client::{
        Client, ClientError, Delivery, Epoch, From, Options, State, SubscribeOptions, Subscription,
    },
    name::Name,
};

const LONG_HELP: &str = "\
Follows topics, or all that match a pattern (`+` is one segment, a last `#` the rest), and prints \
one line for each event: `topic seq data`, with -o json the whole event, with -o raw the data.

A lost connection is made again for ever, and the subscription goes on exactly where it was. \
What is lost for good is reported on standard error, also with --quiet.

An event that several of the filters match is printed once.";

pub(super) fn command() -> Command {
    let duration = |name: &'static str| {
        Arg::new(name).long(name).value_name("DURATION").value_parser(values::duration)
    };
    Command::new("sub")
        .visible_aliases(["subscribe", "tail"])
        .about("Follow topics")
        .long_about(LONG_HELP)
        .arg(
            Arg::new("filter")
                .value_name("FILTER")
                .required(true)
                .num_args(1..)
                .help("Topics or patterns"),
        )
        .arg(
            Arg::new("from")
                .long("from")
                .value_name("START")
                .value_parser(values::start)
                .help(format!("Where to start: {} [default: live]", values::START_FORMS)),
        )
        .arg(
            Arg::new("count")
                .short('n')
                .long("count")
                .value_name("COUNT")
                .value_parser(clap::value_parser!(u64).range(1..))
                .help("End after so many events"),
        )
        .arg(duration("for").help("End after this time (exit code 7 if -n was not reached)"))
        .arg(duration("idle").help("End when no event came for this time (7 as above)"))
        .arg(
            Arg::new("no-follow")
                .long("no-follow")
                .action(ArgAction::SetTrue)
                .help("End when what is stored now has been printed (start is then the default)"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let global = Global::of(matches);
    let filters: Vec<&String> = matches.get_many("filter").into_iter().flatten().collect();
    let no_follow = matches.get_flag("no-follow");
    let default = if no_follow { From::Start } else { From::Live };
    let from = matches.get_one::<From>("from").cloned().unwrap_or(default);
    let quiet = global.quiet;
    let options = global.client_options().on_state(move |state| tell_state(quiet, state));
    let clock = Clock::default();
    let mut printer = Printer {
        output: Output::new(global.format),
        printed: HashMap::new(),
        left: matches.get_one::<u64>("count").copied(),
        lost: false,
    };
    let limits = Limits {
        until: matches.get_one::<Duration>("for").map(|limit| clock.now() + *limit),
        idle: matches.get_one("idle").copied(),
        clock,
    };
    let client = connect(&global, options)?;
    let subscribe =
        |filter: &&String| client.subscribe(filter, from.clone(), SubscribeOptions::default());
    let subscriptions =
        filters.iter().map(subscribe).collect::<Result<Vec<Subscription>, ClientError>>()?;
    let outcome = if no_follow {
        stored(&client, subscriptions, &mut printer, &limits)
    } else {
        follow(&client, subscriptions, &mut printer, &limits)
    };
    client.close();
    let flushed = printer.output.flush();
    outcome.and(flushed)
}

fn connect(global: &Global<'_>, options: Options) -> Result<Client, Failure> {
    Client::connect(global.server, options).map_err(Failure::from)
}

fn tell_state(quiet: bool, state: &State) {
    if let State::Waiting { retry_in, reason } = state
        && !quiet
    {
        let mut text = reason.to_string();
        if let Some(source) = std::error::Error::source(reason) {
            text = format!("{text}: {source}");
        }
        let seconds = retry_in.as_secs_f64();
        warn(&format!("no connection: {text}; next attempt in {seconds:.1} s"));
    }
}

/// When to end.
struct Limits {
    clock: Clock,
    until: Option<Instant>,
    idle: Option<Duration>,
}

impl Limits {
    /// When to give up waiting for the next event; `None` is never.
    fn deadline(&self) -> Option<Instant> {
        let idle = self.idle.map(|idle| self.clock.now() + idle);
        match (self.until, idle) {
            (Some(until), Some(idle)) => Some(until.min(idle)),
            (until, idle) => until.or(idle),
        }
    }
}

/// Prints deliveries, each event once.
struct Printer {
    output: Output,
    printed: HashMap<(Name, Epoch), u64>,
    /// Events still wanted.
    left: Option<u64>,
    /// Something that was asked for will never come.
    lost: bool,
}

impl Printer {
    /// Prints `delivery`. Returns whether an event was printed.
    fn print(&mut self, delivery: &Delivery) -> Result<bool, Failure> {
        match delivery {
            Delivery::Event(event) => {
                let last = self.printed.entry((event.topic.clone(), event.epoch)).or_default();
                if event.seq <= *last {
                    return Ok(false);
                }
                *last = event.seq;
                self.output.event(event)?;
                self.left = self.left.map(|left| left - 1);
                return Ok(true);
            }
            Delivery::Gap { topic, from, to, reason } => {
                self.lost = true;
                warn(&format!("{topic}: events {from} to {to} are lost ({})", reason.as_str()));
            }
            Delivery::Reset { topic, lost, position, reason } => {
                self.lost = true;
                warn(&format!(
                    "{topic}: the log is a new one ({}); what came after {}:{} is unknown, it \
                     goes on after {}:{}",
                    reason.as_str(),
                    lost.epoch,
                    lost.seq,
                    position.epoch,
                    position.seq
                ));
            }
            Delivery::Unavailable { topic, refused } => {
                self.lost = true;
                warn(&format!("{topic}: {refused}"));
            }
            Delivery::Attached { .. } | Delivery::Reconnected => {}
        }
        Ok(false)
    }

    fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    /// How it ends when time is over.
    fn timed_out(&self) -> Result<(), Failure> {
        match self.left {
            Some(left) if 0 < left => {
                let what = format!("timed out with {left} events still to come");
                Err(Failure::new(Exit::TimedOut, what))
            }
            _ => Ok(()),
        }
    }
}

/// What the main thread waits for.
enum Next {
    Delivery(Result<Delivery, ClientError>),
    /// Nobody reads what is printed.
    ReaderGone,
}

/// Prints until the count or the time is over, or the reader of the output has gone.
fn follow(
    client: &Client,
    subscriptions: Vec<Subscription>,
    printer: &mut Printer,
    limits: &Limits,
) -> Result<(), Failure> {
    let (inlet, deliveries) = lane::open(lane::PRINTS);
    let mut group = Group::new(Stop::default(), Panics::default());
    for (number, subscription) in subscriptions.into_iter().enumerate() {
        let inlet = inlet.clone();
        let body = move || {
            for delivery in subscription {
                if inlet.send(Next::Delivery(delivery)).is_err() {
                    return;
                }
            }
        };
        group
            .spawn(format!("sub-{number}"), WORKER_STACK_BYTES, OnPanic::Contain, body)
            .map_err(|error| Failure::input("cannot start a thread", error))?;
    }
    let started = io::pipe().and_then(|(cancelled, cancel)| {
        let body = move || {
            if output::wait_for_reader_to_go(&cancelled) {
                // Printing may have ended in the meantime.
                drop(inlet.send(Next::ReaderGone));
            }
        };
        group.spawn("stdout".to_owned(), WORKER_STACK_BYTES, OnPanic::Contain, body)?;
        Ok(cancel)
    });
    let cancel = started.map_err(|error| Failure::input("cannot watch the output", error))?;
    let outcome = print_all(printer, limits, &deliveries);
    // Nobody takes anything any more, and nothing more comes: the threads end.
    drop((deliveries, cancel));
    client.close();
    let late = group.join(limits.clock.now() + Duration::from_secs(1));
    if !late.is_empty() {
        warn("a thread did not end");
    }
    outcome
}

fn print_all(
    printer: &mut Printer,
    limits: &Limits,
    deliveries: &Receiver<Next>,
) -> Result<(), Failure> {
    let mut deadline = limits.deadline();
    loop {
        if deliveries.is_empty() {
            printer.output.flush()?;
        }
        let next = match deadline {
            Some(deadline) => deliveries.recv_deadline(deadline),
            None => deliveries.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(Next::ReaderGone) => return Err(Failure::silent(Exit::Done)),
            Ok(Next::Delivery(delivery)) => {
                if printer.print(&delivery?)? {
                    deadline = limits.deadline();
                }
                let over = limits.until.is_some_and(|until| until <= limits.clock.now());
                if printer.is_done() {
                    return Ok(());
                }
                if over {
                    return printer.timed_out();
                }
            }
            Err(RecvTimeoutError::Timeout) => return printer.timed_out(),
            Err(RecvTimeoutError::Disconnected) => return Err(Failure::silent(Exit::Other)),
        }
    }
}

/// Prints what is stored now.
fn stored(
    client: &Client,
    subscriptions: Vec<Subscription>,
    printer: &mut Printer,
    limits: &Limits,
) -> Result<(), Failure> {
    for mut subscription in subscriptions {
        // What was said before the answer to this has arrived when it arrives.
        client.ping()?;
        let mut known = subscription.waiting();
        let mut tails: HashMap<Name, u64> = HashMap::new();
        while 0 < known || !reached(&subscription, &tails) {
            let delivery = match limits.deadline() {
                None => subscription.recv()?,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(limits.clock.now());
                    match subscription.recv_timeout(left)? {
                        Some(delivery) => delivery,
                        None => return printer.timed_out(),
                    }
                }
            };
            known = known.saturating_sub(1);
            if let Delivery::Attached { topic, tail, .. } = &delivery {
                tails.insert(topic.clone(), *tail);
            }
            printer.print(&delivery)?;
            if printer.is_done() {
                return Ok(());
            }
        }
    }
    if printer.lost { Err(Failure::silent(Exit::Gap)) } else { Ok(()) }
}

fn reached(subscription: &Subscription, tails: &HashMap<Name, u64>) -> bool {
    let positions = subscription.positions();
    tails.iter().all(|(name, tail)| positions.get(name).is_some_and(|at| *tail <= at.seq))
}
