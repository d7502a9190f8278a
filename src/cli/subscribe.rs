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
        limits::{ACK_WINDOW_DEFAULT, ACK_WINDOW_MAX, WORKER_STACK_BYTES},
    },
    cli::{
        Global,
        exit::{Exit, Failure},
        output::{self, Output},
        values, warn,
    },
    client::{
        Acker, Client, ClientError, Delivery, Epoch, Event, From, Options, State, SubscribeOptions,
        Subscription,
    },
    name::Name,
};

const LONG_HELP: &str = "\
Follows topics, or all that match a pattern (`+` is one segment, a last `#` the rest), and prints \
one line for each event: `topic seq data`, with -o json the whole event, with -o raw the data.

A lost connection is made again for ever, and the subscription goes on exactly where it was. \
What is lost for good is reported on standard error, also with --quiet.

An event that several of the filters match is printed once.

With --ack each event is acknowledged once its line is written. What is not acknowledged comes \
again and is printed again, with -o json marked as `redelivered`; what came too often in vain \
goes to the topic `$dead/TOPIC`. With --consumer the relay keeps the position: the next `sub` with \
that name goes on there, whatever --from says, and takes over from one that still runs. With --ack \
the filters must not overlap.";

/// How many lines are acknowledged at once, at most.
const ACK_BATCH: u64 = 64;

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
        .args(acknowledging())
}

fn acknowledging() -> [Arg; 3] {
    [
        Arg::new("ack")
            .long("ack")
            .action(ArgAction::SetTrue)
            .help("Acknowledge each event once it is printed; what is not comes again"),
        Arg::new("window")
            .long("window")
            .value_name("COUNT")
            .value_parser(clap::value_parser!(u64).range(1..=ACK_WINDOW_MAX))
            .help("Most events under way and not acknowledged, implies --ack [default: 256]"),
        Arg::new("consumer")
            .long("consumer")
            .value_name("NAME")
            .help("Keep the position on the relay under this name, implies --ack"),
    ]
}

/// What the relay is asked for; `None` for no acknowledgements.
fn window(matches: &ArgMatches) -> Option<u64> {
    let asked = matches.get_one::<u64>("window").copied();
    let wanted = matches.get_flag("ack") || matches.contains_id("consumer") || asked.is_some();
    // No more is asked for than will be acknowledged: the rest would come in vain.
    let count = matches.get_one::<u64>("count").copied().unwrap_or(ACK_WINDOW_DEFAULT);
    wanted.then(|| asked.unwrap_or(count.min(ACK_WINDOW_DEFAULT)))
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
    let window = window(matches);
    let mut wanted = SubscribeOptions::default();
    if let Some(window) = window {
        wanted = wanted.window(window);
    }
    if let Some(consumer) = matches.get_one::<String>("consumer") {
        wanted = wanted.consumer(consumer);
    }
    let mut printer = Printer {
        output: Output::new(global.format),
        printed: HashMap::new(),
        acks: window.map(|window| Acks::new(window, global.timeout)),
        left: matches.get_one::<u64>("count").copied(),
        lost: false,
    };
    let limits = Limits {
        until: matches.get_one::<Duration>("for").map(|limit| clock.now() + *limit),
        idle: matches.get_one("idle").copied(),
        clock,
    };
    let client = connect(&global, options)?;
    let subscribe = |filter: &&String| client.subscribe(filter, from.clone(), wanted.clone());
    let subscriptions =
        filters.iter().map(subscribe).collect::<Result<Vec<Subscription>, ClientError>>()?;
    if let Some(acks) = &mut printer.acks {
        acks.ackers = subscriptions.iter().map(Subscription::acker).collect();
    }
    let outcome = if no_follow {
        stored(&client, subscriptions, &mut printer, &limits)
    } else {
        follow(&client, subscriptions, &mut printer, &limits)
    };
    client.close();
    outcome
}

fn connect(global: &Global<'_>, options: Options) -> Result<Client, Failure> {
    Client::connect(global.server, options).map_err(Failure::from)
}

pub(super) fn tell_state(quiet: bool, state: &State) {
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

/// What is to be acknowledged.
struct Acks {
    /// One for each subscription.
    ackers: Vec<Acker>,
    /// The last event of each topic that was printed, and whose it is.
    printed: HashMap<Name, (usize, Event)>,
    /// Lines since the last acknowledgement, and after how many there is one.
    lines: u64,
    batch: u64,
    /// How long the last ones may take to reach the relay.
    limit: Duration,
}

impl Acks {
    fn new(window: u64, limit: Duration) -> Acks {
        // So that the relay need not wait for the end of the window.
        let batch = (window / 4).clamp(1, ACK_BATCH);
        Acks { ackers: Vec::new(), printed: HashMap::new(), lines: 0, batch, limit }
    }
}

/// Prints deliveries, each event once unless it has to be acknowledged.
struct Printer {
    output: Output,
    printed: HashMap<(Name, Epoch), u64>,
    acks: Option<Acks>,
    /// Events still wanted.
    left: Option<u64>,
    /// Something that was asked for will never come.
    lost: bool,
}

impl Printer {
    /// Prints `delivery` of subscription `number`. Returns whether an event was printed.
    fn print(&mut self, number: usize, delivery: &Delivery) -> Result<bool, Failure> {
        match delivery {
            Delivery::Event(event) => {
                if let Some(acks) = &mut self.acks {
                    acks.lines += 1;
                    acks.printed.insert(event.topic.clone(), (number, event.clone()));
                } else {
                    let last = self.printed.entry((event.topic.clone(), event.epoch)).or_default();
                    if event.seq <= *last {
                        return Ok(false);
                    }
                    *last = event.seq;
                }
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

    /// Whether lines should be written out and acknowledged while so many deliveries wait.
    fn is_due(&self, waiting: usize) -> bool {
        self.acks.as_ref().is_some_and(|acks| waiting == 0 || acks.batch <= acks.lines)
    }

    /// Writes out what is printed, and then acknowledges it.
    fn flush(&mut self) -> Result<(), Failure> {
        self.output.flush()?;
        if let Some(acks) = &mut self.acks {
            acks.lines = 0;
            for (_, (number, event)) in acks.printed.drain() {
                acks.ackers.get(number).map_or(Ok(()), |acker| acker.ack(&event))?;
            }
        }
        Ok(())
    }

    /// As [`Printer::flush`], and waits until the relay has taken notice.
    fn finish(&mut self, client: &Client) -> Result<(), Failure> {
        self.flush()?;
        let Some(acks) = &self.acks else { return Ok(()) };
        if !client.flush(acks.limit) {
            let what = "the relay was not told of the last acknowledgements: they will come again";
            return Err(Failure::new(Exit::TimedOut, what));
        }
        // It takes requests in order: what was sent before this is done when it is answered.
        client.ping()?;
        Ok(())
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
    /// Of the subscription with this number.
    Delivery(usize, Result<Delivery, ClientError>),
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
                if inlet.send(Next::Delivery(number, delivery)).is_err() {
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
    let finished = printer.finish(client);
    // Nobody takes anything any more, and nothing more comes: the threads end.
    drop((deliveries, cancel));
    client.close();
    let late = group.join(limits.clock.now() + Duration::from_secs(1));
    if !late.is_empty() {
        warn("a thread did not end");
    }
    outcome.and(finished)
}

fn print_all(
    printer: &mut Printer,
    limits: &Limits,
    deliveries: &Receiver<Next>,
) -> Result<(), Failure> {
    let mut deadline = limits.deadline();
    loop {
        if deliveries.is_empty() || printer.is_due(deliveries.len()) {
            printer.flush()?;
        }
        let next = match deadline {
            Some(deadline) => deliveries.recv_deadline(deadline),
            None => deliveries.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match next {
            Ok(Next::ReaderGone) => return Err(Failure::silent(Exit::Done)),
            Ok(Next::Delivery(number, delivery)) => {
                if printer.print(number, &delivery?)? {
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
    mut subscriptions: Vec<Subscription>,
    printer: &mut Printer,
    limits: &Limits,
) -> Result<(), Failure> {
    let outcome = print_stored(client, &mut subscriptions, printer, limits);
    let finished = printer.finish(client);
    outcome.and(finished)
}

fn print_stored(
    client: &Client,
    subscriptions: &mut [Subscription],
    printer: &mut Printer,
    limits: &Limits,
) -> Result<(), Failure> {
    for (number, subscription) in subscriptions.iter_mut().enumerate() {
        // What was said before the answer to this has arrived when it arrives.
        client.ping()?;
        let mut known = subscription.waiting();
        let mut tails: HashMap<Name, u64> = HashMap::new();
        while 0 < known || !reached(subscription, &tails) {
            if printer.is_due(subscription.waiting()) {
                printer.flush()?;
            }
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
            printer.print(number, &delivery)?;
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
