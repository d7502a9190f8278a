//! `landline store export` and `import`: everything that is stored, as JSON lines.
//!
//! ```text
//!   {"export":1}
//!   {"topic":"door","epoch":"...","first":1,"tail":2}
//!   {"type":"event","topic":"door","seq":1,...}          one line for each event, as it is sent
//!   {"missing":"door","from":5,"to":9,"reason":"damaged"}
//!   {"consumer":"billing","topic":"door","seq":1}
//!   {"type":"state","version":7,"key":"lamp","value":1,...}     one for each key, as it is sent
//!   {"end":true,"topics":1,"events":2,"consumers":1,"keys":1}
//! ```
//!
//! A restored topic has the sequences of the old one and a new epoch: who had a position in the old
//! one is told that it begins anew. So it is with the state, whose versions stay; nobody needs to
//! know in a new epoch what was deleted.

mod values;

use std::{
    collections::HashMap,
    io::{BufRead, stdin},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::values::Values;
use crate::{
    base::clock::Clock,
    cli::{
        Global,
        exit::{Exit, Failure},
        http,
        output::{Format, Output},
        warn,
    },
    name::{Name, UserName},
    store::{
        Batch, ConsumerChange, ConsumerState, Database, Loaded, NewTopic, Page, Pages,
        RUN_BYTES_MAX, Run, Store, StoreError, StoreSettings, TopicId, disk::Directory,
    },
    wire::{frame, position::Epoch},
};

/// What the first line says of the lines after it.
const FORMAT: u64 = 1;
/// Bytes that are read from the store at once, and committed at once.
const PIECE_BYTES: usize = 1 << 20;
/// Events that are asked of a running relay at once.
const EVENTS_PER_PAGE: u64 = 1_000;

#[derive(Serialize)]
struct Head<'a> {
    topic: &'a str,
    epoch: &'a str,
    first: u64,
    tail: u64,
}

#[derive(Serialize)]
struct Hole<'a> {
    missing: &'a str,
    from: u64,
    to: u64,
    reason: &'a str,
}

#[derive(Serialize)]
struct Position<'a> {
    consumer: &'a str,
    topic: &'a str,
    seq: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Count {
    topics: u64,
    events: u64,
    consumers: u64,
    keys: u64,
}

/// Where an export goes to, and what it came to.
struct Export {
    output: Output,
    count: Count,
    has_holes: bool,
}

impl Export {
    fn begin() -> Result<Self, Failure> {
        let mut output = Output::new(Format::Json);
        output.line(&format!("{{\"export\":{FORMAT}}}"))?;
        Ok(Self { output, count: Count::default(), has_holes: false })
    }

    fn topic(&mut self, head: &Head<'_>) -> Result<(), Failure> {
        self.count.topics += 1;
        self.output.object(head)
    }

    fn event(&mut self, text: &str) -> Result<(), Failure> {
        self.count.events += 1;
        self.output.line(text)
    }

    fn hole(&mut self, topic: &str, from: u64, to: u64) -> Result<(), Failure> {
        self.has_holes = true;
        warn(&format!("{topic}: events {from} to {to} cannot be read"));
        self.output.object(&Hole { missing: topic, from, to, reason: "damaged" })
    }

    fn consumer(&mut self, position: &Position<'_>) -> Result<(), Failure> {
        self.count.consumers += 1;
        self.output.object(position)
    }

    fn end(mut self) -> Result<(), Failure> {
        let Count { topics, events, consumers, keys } = self.count;
        self.output.line(&format!(
            "{{\"end\":true,\"topics\":{topics},\"events\":{events},\"consumers\":{consumers},\
             \"keys\":{keys}}}"
        ))?;
        self.output.flush()?;
        if self.has_holes { Err(Failure::silent(Exit::Gap)) } else { Ok(()) }
    }
}

fn failure(error: StoreError) -> Failure {
    Failure::new(Exit::Other, error)
}

fn open(dir: &str) -> Result<(Database, Loaded), Failure> {
    let disk = Arc::new(Directory::new(dir));
    let (store, loaded) = Database::open(disk, StoreSettings::default()).map_err(|error| {
        let is_locked = matches!(error, StoreError::Locked { .. });
        if is_locked {
            warn("a running relay is exported with --url, and everything else waits until it ends");
        }
        failure(error)
    })?;
    loaded.warnings.iter().for_each(|warning| warn(&format!("warning: {warning}")));
    Ok((store, loaded))
}

/// Prints all that a relay has stored in `dir`, while it does not run.
pub(super) fn export_directory(dir: &str) -> Result<(), Failure> {
    let (mut store, loaded) = open(dir)?;
    let pages = store.pages();
    let mut export = Export::begin()?;
    for topic in &loaded.topics {
        let (name, epoch) = (topic.name.as_str(), topic.epoch.to_string());
        let (first, tail) = (topic.first, topic.tail);
        export.topic(&Head { topic: name, epoch: &epoch, first, tail })?;
        export_events(&mut export, &*pages, (topic.id, name), (first - 1, tail))?;
    }
    let names: HashMap<TopicId, &str> =
        loaded.topics.iter().map(|topic| (topic.id, topic.name.as_str())).collect();
    for change in &loaded.consumers {
        if let (Some(topic), Some(state)) = (names.get(&change.topic), change.state) {
            let consumer = change.name.as_str();
            export.consumer(&Position { consumer, topic, seq: state.seq })?;
        }
    }
    for entry in loaded.state.iter().flat_map(|state| &state.entries) {
        export.stored_value(entry)?;
    }
    store.close().map_err(failure)?;
    export.end()
}

fn export_events(
    export: &mut Export,
    pages: &dyn Pages,
    (id, topic): (TopicId, &str),
    (mut after, tail): (u64, u64),
) -> Result<(), Failure> {
    while after < tail {
        let mut frames = Vec::new();
        match pages.read(id, after, tail, PIECE_BYTES, &mut frames).map_err(failure)? {
            Page::UpTo(upto) if upto == after => return Ok(()),
            Page::UpTo(upto) => {
                for event in frame::payloads(&frames) {
                    export.event(&String::from_utf8_lossy(event))?;
                }
                after = upto;
            }
            Page::Missing { first, .. } => {
                export.hole(topic, after + 1, first.min(tail + 1) - 1)?;
                after = first - 1;
            }
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct TopicsPage {
    topics: Vec<TopicEntry>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct TopicEntry {
    topic: String,
    epoch: String,
    first: u64,
    tail: u64,
}

#[derive(Deserialize)]
struct EventsPage<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct ConsumersPage {
    consumers: Vec<ConsumerEntry>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct ConsumerEntry {
    consumer: String,
    topic: String,
    seq: u64,
}

/// Prints all that a running relay has. Each topic is complete up to what was its newest event when
/// its turn began.
pub(super) fn export_relay(global: &Global<'_>) -> Result<(), Failure> {
    let mut export = Export::begin()?;
    let mut path = Some("/v1/topics".to_owned());
    while let Some(asked) = path.take() {
        let page: TopicsPage = ask(global, &asked)?;
        for entry in &page.topics {
            export_topic(&mut export, global, entry)?;
        }
        path = page.next.map(|after| format!("/v1/topics?after={}", http::encode(&after)));
    }
    let mut path = Some("/v1/consumers".to_owned());
    while let Some(asked) = path.take() {
        let page: ConsumersPage = ask(global, &asked)?;
        for ConsumerEntry { consumer, topic, seq } in &page.consumers {
            export.consumer(&Position { consumer, topic, seq: *seq })?;
        }
        path = page.next.map(|after| format!("/v1/consumers?after={}", http::encode(&after)));
    }
    values::export(&mut export, global)?;
    export.end()
}

fn ask<T: for<'de> Deserialize<'de>>(global: &Global<'_>, path: &str) -> Result<T, Failure> {
    let reply = http::get(global, path)?;
    if reply.status != 200 {
        return Err(reply.failure());
    }
    serde_json::from_str(&reply.body).map_err(unreadable)
}

/// The answer to `path`, unless the relay does not know it.
fn ask_if_there(global: &Global<'_>, path: &str) -> Result<Option<String>, Failure> {
    let reply = http::get(global, path)?;
    match reply.status {
        200 => Ok(Some(reply.body)),
        404 => Ok(None),
        _ => Err(reply.failure()),
    }
}

fn unreadable(error: serde_json::Error) -> Failure {
    Failure::new(Exit::Other, format!("the relay's answer cannot be read: {error}"))
}

fn export_topic(
    export: &mut Export,
    global: &Global<'_>,
    entry: &TopicEntry,
) -> Result<(), Failure> {
    let TopicEntry { topic, epoch, tail, .. } = entry;
    let (mut after, tail) = (entry.first - 1, *tail);
    let mut begun = false;
    while after < tail {
        let path = format!(
            "/v1/topics/{}/events?from={epoch}:{after}&limit={}",
            http::encode(topic),
            EVENTS_PER_PAGE.min(tail - after)
        );
        let reply = http::get(global, &path)?;
        if reply.status != 200 {
            return Err(reply.failure());
        }
        let page: EventsPage<'_> = serde_json::from_str(&reply.body).map_err(unreadable)?;
        if page.events.is_empty() {
            break;
        }
        for event in page.events {
            let Place { seq, .. } = serde_json::from_str(event.get()).map_err(unreadable)?;
            if !std::mem::replace(&mut begun, true) {
                // Retention may have moved on since the list was made.
                export.topic(&Head { topic, epoch, first: seq, tail })?;
            } else if after + 1 < seq {
                export.hole(topic, after + 1, seq - 1)?;
            }
            export.event(event.get())?;
            after = seq;
        }
    }
    if begun { Ok(()) } else { export.topic(&Head { topic, epoch, first: tail + 1, tail }) }
}

/// A line of an export; which fields are there says what it is.
#[derive(Deserialize)]
struct Line<'a> {
    export: Option<u64>,
    end: Option<bool>,
    consumer: Option<String>,
    #[serde(borrow)]
    key: Option<std::borrow::Cow<'a, str>>,
    missing: Option<String>,
    topic: Option<std::borrow::Cow<'a, str>>,
    first: Option<u64>,
    seq: Option<u64>,
    time: Option<u64>,
    topics: Option<u64>,
    events: Option<u64>,
    keys: Option<u64>,
}

/// Where an event stands.
#[derive(Deserialize)]
struct Place {
    seq: u64,
}

/// What an import has come to.
struct Import {
    store: Database,
    batch: Batch,
    /// Bytes of events in the batch.
    bytes: usize,
    topics: HashMap<String, (TopicId, u64)>,
    values: Values,
    count: Count,
    has_begun: bool,
    has_ended: bool,
}

/// Stores what standard input says in `dir`, which must be empty.
pub(super) fn import(dir: &str) -> Result<(), Failure> {
    let (store, loaded) = open(dir)?;
    let keys = loaded.state.as_ref().map_or(0, |state| state.entries.len());
    if !loaded.topics.is_empty() || 0 < keys {
        let text = format!(
            "{dir} has {} topics and {keys} keys already; an import needs an empty directory",
            loaded.topics.len()
        );
        return Err(Failure::new(Exit::Other, text));
    }
    let mut import = Import {
        store,
        batch: Batch::default(),
        bytes: 0,
        topics: HashMap::new(),
        values: Values::default(),
        count: Count::default(),
        has_begun: false,
        has_ended: false,
    };
    for (index, line) in stdin().lock().lines().enumerate() {
        let line = line.map_err(|error| Failure::input("cannot read standard input", error))?;
        import.take(&line).map_err(|why| import.stop(dir, index + 1, &why))?;
    }
    if !import.has_ended {
        let why = "the export has no last line, so it is not whole";
        return Err(Failure::new(Exit::Other, format!("{why}; {dir} has what there was of it")));
    }
    import.commit().map_err(failure)?;
    import.store.close().map_err(failure)?;
    let Count { topics, events, consumers, keys } = import.count;
    let mut output = Output::new(Format::Text);
    output
        .line(&format!("{topics} topics, {events} events, {consumers} consumers, {keys} keys"))?;
    output.flush()
}

impl Import {
    fn stop(&self, dir: &str, line: usize, why: &str) -> Failure {
        let text = format!("line {line}: {why}; empty {dir} before it is tried again");
        Failure::new(Exit::Other, text)
    }

    /// Takes one line. The error says what is wrong with it.
    fn take(&mut self, text: &str) -> Result<(), String> {
        if text.trim().is_empty() {
            return Ok(());
        }
        let line: Line<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if self.has_ended {
            return Err("there is something after the end".to_owned());
        }
        match &line {
            Line { export: Some(FORMAT), .. } => self.has_begun = true,
            Line { export: Some(found), .. } => {
                return Err(format!("the format is {found}, this build reads {FORMAT}"));
            }
            _ if !self.has_begun => return Err("it does not begin as an export".to_owned()),
            Line { end: Some(_), topics: Some(topics), events: Some(events), keys, .. } => {
                self.end((*topics, *events, keys.unwrap_or(0)))?;
            }
            Line { missing: Some(topic), .. } => {
                return Err(format!(
                    "events of {topic} are missing here; remove its lines before this one, and \
                     make first in its own line the next sequence"
                ));
            }
            Line { consumer: Some(consumer), topic: Some(topic), seq: Some(seq), .. } => {
                self.consumer(consumer, topic, *seq)?;
            }
            Line { key: Some(key), topic: None, .. } => self.value(key, text.trim())?,
            Line { topic: Some(topic), seq: Some(seq), time: Some(time_ms), .. } => {
                self.event(topic, *seq, *time_ms, text.trim())?;
            }
            Line { topic: Some(topic), first: Some(first), .. } => self.topic(topic, *first)?,
            _ => return Err("it is no line of an export".to_owned()),
        }
        if PIECE_BYTES <= self.bytes {
            self.commit().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The last line says how much there was.
    fn end(&mut self, (topics, events, keys): (u64, u64, u64)) -> Result<(), String> {
        let Count { topics: topics_came, events: events_came, keys: keys_came, .. } = self.count;
        if (topics, events) != (topics_came, events_came) {
            return Err(format!(
                "{topics} topics and {events} events were exported, but {topics_came} and \
                 {events_came} came"
            ));
        }
        if keys != keys_came {
            return Err(format!("{keys} keys were exported, but {keys_came} came"));
        }
        self.has_ended = true;
        Ok(())
    }

    fn topic(&mut self, topic: &str, first: u64) -> Result<(), String> {
        let name = Name::parse(topic).map_err(|error| format!("topic {error}"))?;
        let before = first.checked_sub(1).ok_or("first is 0; sequences begin at 1")?;
        let id = self.topics.len() as u64 + 1;
        if self.topics.insert(topic.to_owned(), (id, before)).is_some() {
            return Err(format!("topic {topic} comes twice"));
        }
        self.count.topics += 1;
        self.batch.topics.push(NewTopic { id, name, epoch: Epoch::random(), tail: before });
        Ok(())
    }

    fn event(&mut self, topic: &str, seq: u64, time_ms: u64, text: &str) -> Result<(), String> {
        let known = self.topics.get_mut(topic);
        let (id, tail) = known.ok_or_else(|| format!("topic {topic} has no line before it"))?;
        if seq != *tail + 1 {
            return Err(format!("event {seq} of {topic} comes after event {tail}"));
        }
        *tail = seq;
        self.count.events += 1;
        self.bytes += text.len();
        match self.batch.runs.last_mut() {
            Some(run) if run.topic == *id && run.frames.len() + text.len() < RUN_BYTES_MAX => {
                frame::push_text(&mut run.frames, text.as_bytes());
                run.count += 1;
                run.last_ms = run.last_ms.max(time_ms);
            }
            _ => {
                let mut frames = Vec::new();
                frame::push_text(&mut frames, text.as_bytes());
                let (first_ms, last_ms, keys) = (time_ms, time_ms, Vec::new());
                let run = Run { topic: *id, first: seq, count: 1, first_ms, last_ms, frames, keys };
                self.batch.runs.push(run);
            }
        }
        Ok(())
    }

    fn consumer(&mut self, consumer: &str, topic: &str, seq: u64) -> Result<(), String> {
        let name = UserName::parse(consumer).map_err(|error| format!("consumer {error}"))?;
        let known = self.topics.get(topic);
        let (id, _) = known.ok_or_else(|| format!("topic {topic} has no line before it"))?;
        let used_ms = Clock::default().unix_ms();
        let state = Some(ConsumerState { seq, deliveries: 0, used_ms });
        self.count.consumers += 1;
        self.batch.positions.push(ConsumerChange { topic: *id, name, state });
        Ok(())
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        self.bytes = 0;
        self.batch.state = self.values.take();
        self.store.commit(&std::mem::take(&mut self.batch)).map(drop)
    }
}
