//! Models of what threads of a relay hand to one another, run under many schedules.
//!
//! Each is the production code with the threads of its hand-over point; `base::sync::model` says
//! when who goes on. `make models` runs them.

mod backlog;
mod durable;
mod memory;
mod outbox;
mod rig;
mod stop;
mod takeover;
mod topics;
mod waker;
