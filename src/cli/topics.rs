//! `landline topics`: the relay's topics as a table.

use clap::{ArgMatches, Command};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::cli::{
    Global,
    exit::Failure,
    http,
    output::{Format, Output},
};

pub(super) fn command() -> Command {
    Command::new("topics").about("List the relay's topics")
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    topics: Vec<&'a RawValue>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Topic {
    topic: String,
    epoch: String,
    first: u64,
    tail: u64,
    #[serde(default)]
    subscribers: u64,
    durability: Option<String>,
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let global = Global::of(matches);
    let mut output = Output::new(global.format);
    let mut rows = Vec::new();
    let mut path = "/v1/topics".to_owned();
    loop {
        let reply = http::get(&global, &path)?;
        if reply.status != 200 {
            return Err(reply.failure());
        }
        let page: Page<'_> = serde_json::from_str(&reply.body).map_err(http::unreadable)?;
        for raw in &page.topics {
            let topic: Topic = serde_json::from_str(raw.get()).map_err(http::unreadable)?;
            match global.format {
                Format::Json => output.line(raw.get())?,
                Format::Raw => output.line(&topic.topic)?,
                Format::Text => rows.push(topic),
            }
        }
        match page.next {
            Some(after) => path = format!("/v1/topics?after={}", http::encode(&after)),
            None => break,
        }
    }
    if global.format == Format::Text {
        table(&mut output, &rows)?;
    }
    output.flush()
}

fn table(output: &mut Output, rows: &[Topic]) -> Result<(), Failure> {
    let width = rows.iter().map(|row| row.topic.chars().count()).max().unwrap_or(0).max(5);
    output.line(&format!(
        "{:width$}  {:>10}  {:>10}  {:16}  {:>11}  DURABILITY",
        "TOPIC", "FIRST", "TAIL", "EPOCH", "SUBSCRIBERS"
    ))?;
    for Topic { topic, epoch, first, tail, subscribers, durability } in rows {
        let durability = durability.as_deref().unwrap_or("-");
        output.line(&format!(
            "{topic:width$}  {first:>10}  {tail:>10}  {epoch:16}  {subscribers:>11}  {durability}"
        ))?;
    }
    Ok(())
}
