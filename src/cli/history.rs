//! `landline history`: prints stored events and ends.

use clap::{Arg, ArgMatches, Command};

use crate::{
    base::limits::HISTORY_EVENTS_MAX,
    cli::{
        Global,
        exit::{Exit, Failure},
        output::Output,
        values, warn,
    },
    client::{Client, From, HistoryLoss},
};

pub(super) fn command() -> Command {
    Command::new("history")
        .about("Print stored events and exit")
        .arg(Arg::new("topic").value_name("TOPIC").required(true).help("The topic to look at"))
        .arg(
            Arg::new("from")
                .long("from")
                .value_name("START")
                .value_parser(values::start)
                .help(format!("Where to start: {} [default: last:LIMIT]", values::START_FORMS)),
        )
        .arg(
            Arg::new("limit")
                .long("limit")
                .value_name("COUNT")
                .default_value("100")
                .value_parser(clap::value_parser!(u64).range(1..))
                .help("Print at most so many events"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let global = Global::of(matches);
    let topic = matches.get_one::<String>("topic").map_or("", String::as_str);
    let mut left = matches.get_one::<u64>("limit").copied().unwrap_or_default();
    let mut from = matches.get_one::<From>("from").cloned().unwrap_or(From::Last(left));
    let client = Client::connect(global.server, global.client_options())?;
    let mut output = Output::new(global.format);
    let mut lost = false;
    while 0 < left {
        let history = client.history(topic, Some(&from), left.min(HISTORY_EVENTS_MAX))?;
        if let Some(loss) = history.loss {
            lost = true;
            warn(&match loss {
                HistoryLoss::Truncated { from, to } => {
                    format!("{topic}: events {from} to {to} are not stored any more")
                }
                HistoryLoss::Damaged { from, to } => {
                    format!("{topic}: events {from} to {to} are damaged on the relay's disk")
                }
                HistoryLoss::Reset(reason) => format!(
                    "{topic}: the log is a new one ({}); this is all that it has",
                    reason.as_str()
                ),
            });
        }
        for event in &history.events {
            output.event(event)?;
        }
        let Some(last) = history.events.last() else { break };
        left = left.saturating_sub(history.events.len() as u64);
        if history.tail <= last.seq {
            break;
        }
        from = From::After(last.position());
    }
    output.flush()?;
    if lost { Err(Failure::silent(Exit::Gap)) } else { Ok(()) }
}
