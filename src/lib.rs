//! Landline: a reliable event relay for the LAN.

pub mod base;
pub mod cli;
pub mod config;
pub mod http;
pub mod metrics;
pub mod name;
pub mod server;
pub mod topic;
pub mod wire;
