//! Landline: a reliable event relay for the LAN.

pub mod base;
pub mod config;
pub mod http;
pub mod name;
pub mod wire;
