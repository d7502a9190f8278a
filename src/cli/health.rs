//! `landline health`: whether a relay is ready, as an exit code.

use clap::{ArgMatches, Command};

use crate::cli::{
    Global,
    exit::{Exit, Failure},
    http,
    output::{Format, Output},
};

pub(super) fn command() -> Command {
    Command::new("health")
        .about("Exit 0 when a relay is ready, 1 when it is not, 4 when it cannot be reached")
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let global = Global::of(matches);
    let reply = http::get(&global, "/readyz")?;
    let ready = reply.status == 200;
    if !global.quiet {
        let mut output = Output::new(global.format);
        match global.format {
            Format::Text | Format::Raw => output.line(if ready { "ready" } else { "not ready" })?,
            Format::Json => output.line(&format!("{{\"ready\":{ready}}}"))?,
        }
        output.flush()?;
    }
    if ready {
        return Ok(());
    }
    Err(Failure::new(Exit::Other, reply.problem()))
}
