//! `landline store`: what a relay has stored, while it does not run.

mod backup;

use clap::{Arg, ArgMatches, Command};
use serde::Serialize;

use crate::{
    cli::{
        Global,
        exit::{Exit, Failure},
        output::{Format, Output},
        warn,
    },
    store::{
        StoreError, StoredTopic,
        disk::Directory,
        inspect::{self, Compacted, Info, Report},
    },
};

pub(super) fn command() -> Command {
    let data_dir = Arg::new("data_dir")
        .long("data-dir")
        .value_name("DIR")
        .env("LANDLINE_DATA_DIR")
        .required(true)
        .global(false)
        .help("The directory that the relay stores in");
    let about = [
        ("info", "Print what is stored"),
        ("check", "Read everything and print what is damaged: exit 0 if nothing is, 1 if not"),
        ("compact", "Make the file as small as it goes"),
    ];
    let commands = about.map(|(name, about)| Command::new(name).about(about).arg(&data_dir));
    let url = Arg::new("url")
        .long("url")
        .value_name("URL")
        .conflicts_with("data_dir")
        .help("A running relay, instead of a directory");
    let export = Command::new("export")
        .about("Print everything as JSON lines: a backup, also of a running relay")
        .arg(data_dir.clone().required(false))
        .arg(url);
    let import = Command::new("import")
        .about("Store an export, from standard input, in an empty directory")
        .arg(data_dir);
    Command::new("store")
        .about("Look at what a relay has stored, make it smaller, back it up and restore it")
        .subcommand_required(true)
        .subcommands(commands)
        .subcommands([export, import])
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    let global = Global::of(matches);
    let path = matches.get_one::<String>("data_dir").map_or("", String::as_str);
    let disk = Directory::new(path);
    match name {
        "info" => print_info(&global, &inspect::info(&disk).map_err(failure)?),
        "export" => match matches.get_one::<String>("url") {
            Some(url) => backup::export_relay(&Global { server: url, ..global }),
            None if path.is_empty() => Err(Failure::new(
                Exit::Usage,
                "say what is to be exported: --data-dir DIR, or --url URL of a running relay",
            )),
            None => backup::export_directory(path),
        },
        "import" => backup::import(path),
        "check" => print_report(&global, &inspect::check(&disk).map_err(failure)?),
        _ => print_compacted(&global, inspect::compact(&disk).map_err(failure)?),
    }
}

fn failure(error: StoreError) -> Failure {
    Failure::new(Exit::Other, error)
}

fn print_info(global: &Global<'_>, info: &Info) -> Result<(), Failure> {
    info.warnings.iter().for_each(|warning| warn(&format!("warning: {warning}")));
    let mut output = Output::new(global.format);
    match global.format {
        Format::Text => {
            table(&mut output, &info.topics)?;
            output.line("")?;
            let bytes: u64 = info.topics.iter().map(|topic| topic.bytes).sum();
            for (what, number) in [
                ("format", info.format),
                ("topics", info.topics.len() as u64),
                ("consumers", info.consumers),
                ("idempotency keys", info.keys),
                ("keys of the state", info.state_keys),
                ("bytes of events", bytes),
                ("bytes of the database", info.database_bytes),
                ("bytes of the journal", info.journal_bytes),
                ("events in the journal only", info.journal_events),
                ("bytes reserved", info.ballast_bytes),
            ] {
                output.line(&format!("{what:26}  {number:>12}"))?;
            }
        }
        Format::Json => info.topics.iter().try_for_each(|topic| output.object(&row(topic)))?,
        Format::Raw => info.topics.iter().try_for_each(|topic| output.line(topic.name.as_str()))?,
    }
    output.flush()
}

#[derive(Serialize)]
struct Row<'a> {
    topic: &'a str,
    epoch: String,
    first: u64,
    tail: u64,
    bytes: u64,
    newest_ms: u64,
}

fn row(topic: &StoredTopic) -> Row<'_> {
    let StoredTopic { name, epoch, first, tail, newest_ms, bytes, .. } = topic;
    let (first, tail, bytes, newest_ms) = (*first, *tail, *bytes, *newest_ms);
    Row { topic: name.as_str(), epoch: epoch.to_string(), first, tail, bytes, newest_ms }
}

fn table(output: &mut Output, topics: &[StoredTopic]) -> Result<(), Failure> {
    let names = topics.iter().map(|topic| topic.name.as_str().chars().count());
    let width = names.max().unwrap_or(0).max(5);
    output.line(&format!(
        "{:width$}  {:>10}  {:>10}  {:16}  {:>12}",
        "TOPIC", "FIRST", "TAIL", "EPOCH", "BYTES"
    ))?;
    for Row { topic, epoch, first, tail, bytes, .. } in topics.iter().map(row) {
        output
            .line(&format!("{topic:width$}  {first:>10}  {tail:>10}  {epoch:16}  {bytes:>12}"))?;
    }
    Ok(())
}

fn print_report(global: &Global<'_>, report: &Report) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Body<'a> {
        topics: u64,
        chunks: u64,
        events: u64,
        bytes: u64,
        problems: &'a [String],
    }
    let Report { topics, chunks, events, bytes, ref problems } = *report;
    let mut output = Output::new(global.format);
    if global.format == Format::Json {
        output.object(&Body { topics, chunks, events, bytes, problems })?;
    } else {
        problems.iter().try_for_each(|problem| output.line(problem))?;
        output.line(&format!(
            "{topics} topics, {chunks} chunks, {events} events, {bytes} bytes: {} problems",
            problems.len()
        ))?;
    }
    output.flush()?;
    if problems.is_empty() { Ok(()) } else { Err(Failure::silent(Exit::Other)) }
}

fn print_compacted(global: &Global<'_>, compacted: Compacted) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Body {
        bytes_before: u64,
        bytes_after: u64,
    }
    let Compacted { bytes_before, bytes_after } = compacted;
    let mut output = Output::new(global.format);
    match global.format {
        Format::Json => output.object(&Body { bytes_before, bytes_after })?,
        Format::Text | Format::Raw => {
            output.line(&format!("{bytes_before} bytes before, {bytes_after} bytes after"))?;
        }
    }
    output.flush()
}
