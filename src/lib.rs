//! Landline: a reliable event relay for the LAN.

pub mod base;
pub mod client;
pub mod config;
pub mod name;
pub mod wire;
