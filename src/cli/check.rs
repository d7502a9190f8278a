//! `landline check`: whether the relay would start with this configuration, and with what.

use std::io::{self, Write};

use clap::{ArgMatches, Command};

use crate::{
    cli::{
        exit::{Exit, Failure},
        serve, warn,
    },
    config::{self, Loaded},
};

pub(super) fn command() -> Command {
    serve::arguments(Command::new("check").about(
        "Check the configuration and print what is in force, and where each value comes from",
    ))
}

/// Prints every setting with its origin, as lines that are a valid configuration file again.
pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let loaded = config::load(&serve::sources(matches));
    let Loaded { config, warnings, effective } = loaded
        .map_err(|error| Failure::new(Exit::Configuration, serve::ServeError::Config(error)))?;
    warnings.iter().for_each(|warning| warn(&format!("warning: {warning}")));
    // The one thing that the values alone do not show.
    serve::open_log(&config.log).map_err(|error| Failure::new(Exit::Configuration, error))?;
    let mut out = io::stdout().lock();
    for line in effective {
        writeln!(out, "{line}").map_err(Failure::output)?;
    }
    out.flush().map_err(Failure::output)
}
