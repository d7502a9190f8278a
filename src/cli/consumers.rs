//! `landline consumers`: who keeps a position on the relay, and how far behind it is.

use clap::{Arg, ArgMatches, Command};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::cli::{
    Global,
    exit::Failure,
    http,
    output::{Format, Output},
};

const LONG_HELP: &str = "\
Lists the consumers of the relay, or of one topic: after which event each goes on (POSITION), the \
newest event of its topic (TAIL), how many are still to be acknowledged (LAG), the connection that \
has it, and for how long nothing was heard from it. With -o json one object for each, with -o raw \
`TOPIC/CONSUMER`.";

pub(super) fn command() -> Command {
    let topic =
        Arg::new("topic").long("topic").value_name("TOPIC").help("Only those of this topic");
    Command::new("consumers")
        .about("List who keeps a position on the relay")
        .long_about(LONG_HELP)
        .arg(topic)
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    consumers: Vec<&'a RawValue>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Consumer {
    consumer: String,
    topic: String,
    seq: u64,
    tail: u64,
    lag: u64,
    #[serde(default)]
    connected: bool,
    connection: Option<String>,
    #[serde(default)]
    idle_ms: u64,
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let global = Global::of(matches);
    let topic = matches.get_one::<String>("topic").map(|topic| http::encode(topic));
    let mut output = Output::new(global.format);
    let mut rows = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let reply = http::get(&global, &path(topic.as_deref(), after.as_deref()))?;
        if reply.status != 200 {
            return Err(reply.failure());
        }
        let page: Page<'_> = serde_json::from_str(&reply.body).map_err(http::unreadable)?;
        for raw in &page.consumers {
            let row: Consumer = serde_json::from_str(raw.get()).map_err(http::unreadable)?;
            match global.format {
                Format::Json => output.line(raw.get())?,
                Format::Raw => output.line(&format!("{}/{}", row.topic, row.consumer))?,
                Format::Text => rows.push(row),
            }
        }
        match page.next {
            Some(next) => after = Some(http::encode(&next)),
            None => break,
        }
    }
    if global.format == Format::Text {
        table(&mut output, &rows)?;
    }
    output.flush()
}

fn path(topic: Option<&str>, after: Option<&str>) -> String {
    let field = |(name, value): (&str, Option<&str>)| value.map(|value| format!("{name}={value}"));
    let query: Vec<String> =
        [("topic", topic), ("after", after)].into_iter().filter_map(field).collect();
    let sign = if query.is_empty() { "" } else { "?" };
    format!("/v1/consumers{sign}{}", query.join("&"))
}

fn table(output: &mut Output, rows: &[Consumer]) -> Result<(), Failure> {
    let width = |text: fn(&Consumer) -> &str, least: usize| {
        rows.iter().map(|row| text(row).chars().count()).max().unwrap_or(0).max(least)
    };
    let (names, topics) = (width(|row| &row.consumer, 8), width(|row| &row.topic, 5));
    output.line(&format!(
        "{:names$}  {:topics$}  {:>10}  {:>10}  {:>8}  {:12}  {:>5}",
        "CONSUMER", "TOPIC", "POSITION", "TAIL", "LAG", "CONNECTION", "IDLE"
    ))?;
    for Consumer { consumer, topic, seq, tail, lag, connected, connection, idle_ms } in rows {
        let connection = match connection.as_deref().filter(|_| *connected) {
            Some(name) => name,
            None if *connected => "yes",
            None => "-",
        };
        let idle = idle(*idle_ms);
        output.line(&format!(
            "{consumer:names$}  {topic:topics$}  {seq:>10}  {tail:>10}  {lag:>8}  \
             {connection:12}  {idle:>5}"
        ))?;
    }
    Ok(())
}

/// A time in its largest unit that keeps at least two of it.
pub(super) fn idle(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_has_what_was_asked_for() {
        assert_eq!(path(None, None), "/v1/consumers");
        assert_eq!(path(Some("a/b"), None), "/v1/consumers?topic=a/b");
        assert_eq!(path(None, Some("t/x")), "/v1/consumers?after=t/x");
        assert_eq!(path(Some("t"), Some("t/x")), "/v1/consumers?topic=t&after=t/x");
    }

    #[test]
    fn idle_times_are_short() {
        for (ms, text) in [
            (999, "0s"),
            (119_000, "119s"),
            (120_000, "2m"),
            (7_200_000, "2h"),
            (172_800_000, "2d"),
        ] {
            assert_eq!(idle(ms), text);
        }
    }
}
