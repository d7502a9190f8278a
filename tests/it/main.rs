//! The relay as its clients see it: the real binary over real sockets.

#![expect(clippy::disallowed_methods, reason = "tests have threads and clocks of their own")]
#![expect(clippy::cast_possible_truncation, reason = "tests know their numbers")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that fails should say so at once"
)]

pub mod support;

pub mod order;

pub mod loss;

pub mod resume;

pub mod epoch;

pub mod durable;

pub mod state_durable;

pub mod crash;

pub mod kill;

pub mod slow_disk;

pub mod disk_full;

pub mod damage;

pub mod dedupe;

pub mod acks;
pub mod acks_crowd;

pub mod consumers;
pub mod consumers_durable;

pub mod state;
pub mod watch;

pub mod lessons;

pub mod isolation;

pub mod handshake;

pub mod hostile;

pub mod clock_jumps;
pub mod corrupt;
pub mod faults;
pub mod scarce;

pub mod heartbeat;

pub mod presence;
pub mod presence_watch;
pub mod sys;

pub mod connections;
pub mod http_api;
pub mod http_state;

pub mod stream;
pub mod stream_resume;
pub mod stream_state;

pub mod shutdown;

pub mod client;
pub mod client_acks;
pub mod client_redelivery;
pub mod client_state;
pub mod client_support;
pub mod client_watch;

pub mod backup;
pub mod cli;
pub mod cli_acks;
pub mod cli_state;

pub mod docs;
pub mod pages;

pub mod tidy;
