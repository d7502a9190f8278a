//! `landline serve`: the relay as a process, with its signals.
//!
//! # Threads
//!
//! `main` waits here for a signal; a thread that others depend on and that has panicked ends the
//! wait as well.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use clap::{Arg, ArgMatches, Command};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
    iterator::Signals,
};
use simplelog::{ConfigBuilder, LevelFilter, WriteLogger};

use crate::{
    base::lifecycle::{Cause, Stop},
    config::{self, Config, LogLevel, LogSettings, Sources},
    server::{Server, StartError, StopReport},
};

/// The command line of `serve`.
pub(super) fn command() -> Command {
    arguments(Command::new("serve").about("Run the relay; also what no command at all means"))
}

/// Adds to `command` the configuration file, and a flag for every setting.
pub(super) fn arguments(command: Command) -> Command {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .env("LANDLINE_CONFIG")
        .value_parser(clap::value_parser!(PathBuf))
        .help("Read the configuration from this TOML file");
    command.arg(file).args(config::flag_args())
}

/// Why the relay could not run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    #[error("the configuration is not valid\n{0}")]
    Config(config::ConfigError),
    #[error("cannot open the log file {}", path.display())]
    LogFile { path: PathBuf, source: io::Error },
    #[error("cannot wait for signals")]
    Signals { source: io::Error },
    #[error("cannot say where the relay listens")]
    Announce { source: io::Error },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the thread {name} panicked; the log says where")]
    Panicked { name: String },
}

/// Where the configuration comes from, according to the command line and the environment.
pub(super) fn sources(matches: &ArgMatches) -> Sources {
    Sources {
        file: matches.get_one::<PathBuf>("config").cloned(),
        env: std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        flags: config::flags_from(matches),
    }
}

/// Runs the relay until a signal ends it.
///
/// # Errors
///
/// It cannot start, or a thread that others depend on has panicked.
///
/// # Blocking
///
/// As long as the relay runs.
pub(super) fn run(matches: &ArgMatches) -> Result<(), ServeError> {
    let sources = sources(matches);
    let loaded = config::load(&sources).map_err(ServeError::Config)?;
    let config = loaded.config;
    start_log(&config.log)?;
    log_panics();
    loaded.warnings.iter().for_each(|warning| log::warn!("{warning}"));

    // The second of these signals ends the process at once, from the handler itself.
    let asked = Arc::new(AtomicBool::new(false));
    let signals = (|| {
        for signal in [SIGTERM, SIGINT] {
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&asked))?;
            flag::register(signal, Arc::clone(&asked))?;
        }
        Signals::new([SIGTERM, SIGINT, SIGHUP])
    })();
    let signals = signals.map_err(|source| ServeError::Signals { source })?;

    let server = Server::start(config.clone())?;
    announce(&server, &config)?;
    let stop = server.stop_signal();
    wait(&server, &stop, signals, &sources, config);
    log::info!("stopping");
    let cause = stop.cause().cloned();
    let StopReport { late, cut } = server.stop();
    if !late.is_empty() {
        log::warn!("threads did not end in time names=\"{}\"", late.join(", "));
    }
    log::info!("stopped cut_connections={cut}");
    match cause {
        Some(Cause::ThreadPanicked { name }) => Err(ServeError::Panicked { name }),
        Some(Cause::Requested) | None => Ok(()),
    }
}

/// Waits for the signal that ends the relay, and re-reads the configuration at the others.
fn wait(server: &Server, stop: &Stop, mut signals: Signals, sources: &Sources, running: Config) {
    let handle = signals.handle();
    stop.on_raise(move || handle.close());
    if stop.is_raised() {
        return;
    }
    for signal in signals.forever() {
        if signal != SIGHUP {
            return;
        }
        match config::load(sources) {
            Ok(loaded) => {
                loaded.warnings.iter().for_each(|warning| log::warn!("{warning}"));
                let changes = config::changed(&running, &loaded.config);
                server.reload(loaded.config);
                let (live, restart) = (changes.live.join(", "), changes.restart.join(", "));
                log::info!("reloaded changed=\"{live}\" after_restart=\"{restart}\"");
            }
            Err(error) => {
                server.note_failed_reload();
                log::error!("the configuration stays as it was error=\"{error}\"");
            }
        }
    }
}

fn announce(server: &Server, config: &Config) -> Result<(), ServeError> {
    let mut out = io::stdout().lock();
    let mut print = || {
        for address in server.addresses() {
            writeln!(out, "listening on http://{address}")?;
        }
        out.flush()
    };
    match print() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(ServeError::Announce { source: error });
        }
        _ => {}
    }
    for address in server.addresses() {
        log::info!("listening addr={address} version={}", env!("CARGO_PKG_VERSION"));
        if !address.ip().is_loopback() {
            log::warn!("anybody who can reach addr={address} may publish and subscribe");
        }
    }
    if server.addresses().iter().all(|address| address.ip().is_loopback()) {
        log::info!(
            "only this machine can connect; --listen 0.0.0.0:5263 --allow-anonymous opens it"
        );
    }
    match &config.store.data_dir {
        None => log::info!("data_dir is not set: no topic survives a restart"),
        Some(dir) => {
            let rules = config.topics.rules.iter().filter(|rule| rule.policy.durable);
            let patterns: Vec<&str> = rules.map(|rule| rule.filter.as_str()).collect();
            let everything = if config.topics.default_policy.durable { "all others" } else { "" };
            log::info!(
                "durable topics data_dir={} patterns=\"{}\" and=\"{everything}\"",
                dir.display(),
                patterns.join(", ")
            );
        }
    }
    Ok(())
}

fn start_log(settings: &LogSettings) -> Result<(), ServeError> {
    let level = match settings.level {
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
        LogLevel::Trace => LevelFilter::Trace,
    };
    let mut builder = ConfigBuilder::new();
    builder
        .set_time_format_rfc3339()
        .set_target_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off);
    // tungstenite traces every frame, bodies included; bodies are never logged.
    builder.add_filter_allow_str("landline");
    let format = builder.build();
    let started = match open_log(settings)? {
        None => WriteLogger::init(level, format, io::stderr()),
        Some(file) => WriteLogger::init(level, format, file),
    };
    // A logger that is set already is an embedder's, and stays.
    _ = started;
    Ok(())
}

/// Opens the log file, if the log goes to one.
pub(super) fn open_log(settings: &LogSettings) -> Result<Option<File>, ServeError> {
    let open = |path: &PathBuf| {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.map_err(|source| ServeError::LogFile { path: path.clone(), source })
    };
    settings.file.as_ref().map(open).transpose()
}

/// Logs each panic as one event.
fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let backtrace = std::backtrace::Backtrace::capture();
        log::error!("panic thread={name} {info} {backtrace}");
    }));
}
