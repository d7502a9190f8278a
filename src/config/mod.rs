//! Configuration: what the relay runs with.
//!
//! # Place
//!
//! Above `base` and `name`. Components receive their own slice of [`Config`] by value.

pub mod settings;

pub use settings::{
    Config, ConnectionSettings, LogLevel, LogSettings, OriginSettings, Policy, TopicRule,
    TopicSettings,
};
