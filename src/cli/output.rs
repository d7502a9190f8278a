//! Results on standard output: one line each, in the format that was asked for.
//!
//! Text is for people and simple scripts, JSON has one object per line, raw is the payload alone.

use std::io::{self, BufWriter, PipeReader, StdoutLock, Write};

use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{
    cli::exit::Failure,
    client::{Event, Receipt, Stored, Value},
    name::Name,
};

/// How results are printed. It does not depend on whether a terminal reads them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Format {
    #[default]
    Text,
    Json,
    Raw,
}

impl clap::ValueEnum for Format {
    fn value_variants<'a>() -> &'a [Self] {
        &[Format::Text, Format::Json, Format::Raw]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(match self {
            Format::Text => "text",
            Format::Json => "json",
            Format::Raw => "raw",
        }))
    }
}

/// Standard output. Lines are whole, and are out after [`Output::flush`].
pub(super) struct Output {
    format: Format,
    out: BufWriter<StdoutLock<'static>>,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        Output { format, out: BufWriter::new(io::stdout().lock()) }
    }

    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(Failure::output)
    }

    pub(super) fn event(&mut self, event: &Event) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Body<'a> {
            topic: &'a str,
            epoch: String,
            seq: u64,
            time: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            user: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            name: Option<&'a str>,
            data: &'a RawValue,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            redelivered: bool,
        }
        let Event { topic, epoch, seq, time, user, name, data, redelivered } = event;
        match self.format {
            Format::Text => self.line(&format!("{topic} {seq} {}", one_line(data))),
            Format::Raw => self.line(data),
            Format::Json => {
                let data = one_line(data);
                let data = serde_json::from_str(&data)
                    .map_err(|error| Failure::output(io::Error::other(error)))?;
                let (topic, epoch, seq, time) = (topic.as_str(), epoch.to_string(), *seq, *time);
                let (user, name) = (user.as_deref(), name.as_deref());
                let redelivered = *redelivered;
                self.object(&Body { topic, epoch, seq, time, user, name, data, redelivered })
            }
        }
    }

    pub(super) fn receipt(&mut self, topic: &str, receipt: &Receipt) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Body<'a> {
            topic: &'a str,
            seq: u64,
            epoch: String,
            durability: &'static str,
            duplicate: bool,
        }
        let Receipt { epoch, seq, durability, duplicate } = *receipt;
        match self.format {
            Format::Text => self.line(&format!("{topic} {seq} {epoch}")),
            Format::Raw => self.line(&format!("{epoch}:{seq}")),
            Format::Json => {
                let (epoch, durability) = (epoch.to_string(), durability.as_str());
                self.object(&Body { topic, seq, epoch, durability, duplicate })
            }
        }
    }

    /// What a change of `key` became.
    pub(super) fn stored(&mut self, key: &str, stored: &Stored) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Body<'a> {
            key: &'a str,
            version: u64,
            epoch: String,
            durability: &'static str,
        }
        let Stored { epoch, version, durability } = *stored;
        match self.format {
            Format::Text => self.line(&format!("{key} {version} {epoch}")),
            Format::Raw => self.line(&format!("{epoch}:{version}")),
            Format::Json => {
                let (epoch, durability) = (epoch.to_string(), durability.as_str());
                self.object(&Body { key, version, epoch, durability })
            }
        }
    }

    pub(super) fn value(&mut self, value: &Value) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Body<'a> {
            key: &'a str,
            version: u64,
            time: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            user: Option<&'a str>,
            value: &'a RawValue,
        }
        let Value { key, version, time, user, data } = value;
        match self.format {
            Format::Text => self.line(&format!("{key} {version} {}", one_line(data))),
            Format::Raw => self.line(&one_line(data)),
            Format::Json => {
                let data = one_line(data);
                let value = serde_json::from_str(&data)
                    .map_err(|error| Failure::output(io::Error::other(error)))?;
                let (key, version, time, user) = (key.as_str(), *version, *time, user.as_deref());
                self.object(&Body { key, version, time, user, value })
            }
        }
    }

    /// That `key` is gone.
    pub(super) fn deleted(&mut self, key: &Name, version: u64, time: u64) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Body<'a> {
            key: &'a str,
            version: u64,
            time: u64,
            deleted: bool,
        }
        match self.format {
            Format::Text => self.line(&format!("{key} {version} deleted")),
            Format::Raw => self.line(""),
            Format::Json => self.object(&Body { key: key.as_str(), version, time, deleted: true }),
        }
    }

    pub(super) fn object(&mut self, body: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.out, body)
            .map_err(|error| Failure::output(error.into()))?;
        self.line("")
    }

    pub(super) fn line(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.out, "{text}").map_err(Failure::output)
    }
}

/// Waits until whoever reads standard output has gone. Returns whether it has; `false` once the
/// other end of `cancel` is dropped.
///
/// A write would notice as well, but only when there is something to write.
///
/// # Blocking
///
/// Until one of the two.
pub(super) fn wait_for_reader_to_go(cancel: &PipeReader) -> bool {
    let stdout = io::stdout();
    let mut watched =
        [PollFd::new(&stdout, PollFlags::empty()), PollFd::new(cancel, PollFlags::empty())];
    loop {
        match poll(&mut watched, None) {
            Ok(_) => return !watched[0].revents().is_empty(),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// JSON text on one line. Line breaks stand between tokens only: in a string they are escaped.
fn one_line(json: &str) -> std::borrow::Cow<'_, str> {
    if json.contains(['\n', '\r']) { json.replace(['\n', '\r'], "").into() } else { json.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_between_tokens_go_and_escaped_ones_stay() {
        assert_eq!(one_line("{\n \"a\":\r\n \"x\\ny\"\n}"), "{ \"a\": \"x\\ny\"}");
    }
}
