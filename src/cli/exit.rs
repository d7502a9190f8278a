//! How a command ends: exit codes, and the message that goes with a failure.

use std::{error::Error, fmt, io, process::ExitCode};

use crate::{
    cli::warn,
    client::{ClientError, LinkError, Refused},
    wire::codes::Code,
};

/// The exit codes. They are part of the interface: `landline --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    Done = 0,
    Other = 1,
    Usage = 2,
    Configuration = 3,
    Unreachable = 4,
    Denied = 5,
    NotFound = 6,
    TimedOut = 7,
    Gap = 8,
    Lost = 9,
    Limit = 10,
    Conflict = 11,
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    /// `None` if everything was said already.
    error: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    pub(super) fn new(exit: Exit, error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        Failure { exit, error: Some(error.into()) }
    }

    /// Ends with `exit`; what there is to say was said.
    pub(super) fn silent(exit: Exit) -> Failure {
        Failure { exit, error: None }
    }

    /// A result could not be printed. If its reader has gone that is success: it has enough.
    pub(super) fn output(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::silent(Exit::Done);
        }
        Failure::new(Exit::Other, Context { what: "cannot print".to_owned(), source: error })
    }

    pub(super) fn input(what: impl Into<String>, error: io::Error) -> Failure {
        Failure::new(Exit::Other, Context { what: what.into(), source: error })
    }

    /// Prints the error with its causes and returns the exit code.
    pub(super) fn report(self) -> ExitCode {
        if let Some(error) = self.error {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(": ");
                text.push_str(&error.to_string());
                cause = error.source();
            }
            warn(&text);
        }
        self.exit.into()
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::new(exit_of(&error), error)
    }
}

fn exit_of(error: &ClientError) -> Exit {
    match error {
        ClientError::Address { .. }
        | ClientError::Name { .. }
        | ClientError::Invalid(_)
        | ClientError::Encode { .. } => Exit::Usage,
        ClientError::Connect { source, .. } if source.is_refusal() => Exit::Denied,
        ClientError::Connect { .. } => Exit::Unreachable,
        ClientError::Dismissed { source: LinkError::ClosedWith { code: 1009, .. }, .. } => {
            Exit::Limit
        }
        ClientError::Dismissed { source, .. } if source.is_refusal() => Exit::Denied,
        ClientError::Dismissed { .. }
        | ClientError::Replaced { .. }
        | ClientError::NotSent { .. } => Exit::Lost,
        ClientError::Refused(refused) => exit_of_refusal(refused),
        ClientError::TooLarge { .. } => Exit::Limit,
        ClientError::Unanswered { .. } => Exit::TimedOut,
        ClientError::Conflict { .. } => Exit::Conflict,
        ClientError::Unknown => Exit::Lost,
        ClientError::Thread { .. } | ClientError::Closed => Exit::Other,
    }
}

fn exit_of_refusal(refused: &Refused) -> Exit {
    match refused.known_code() {
        Some(Code::BadRequest | Code::UnknownType) => Exit::Usage,
        Some(Code::TooLarge | Code::RateLimited | Code::LimitExceeded) => Exit::Limit,
        Some(Code::Unauthorized | Code::Forbidden) => Exit::Denied,
        Some(Code::NotFound) => Exit::NotFound,
        Some(Code::Busy | Code::Unavailable) => Exit::Lost,
        Some(Code::Conflict) => Exit::Conflict,
        Some(Code::Internal) | None => Exit::Other,
    }
}

/// A failure of the operating system, and what was being done.
#[derive(Debug)]
struct Context {
    what: String,
    source: io::Error,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for Context {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}
