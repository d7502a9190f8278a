//! What the tests stand on: a real relay, peers that can misbehave, a faulty network, and a witness
//! beside them, and waiting with a limit.

pub mod clock;
pub mod dice;
pub mod frame;
pub mod http;
pub mod ledger;
pub mod mirror;
pub mod node;
pub mod peer;
pub mod proxy;
pub mod relay;
pub mod stream;
pub mod values;
pub mod wait;
pub mod witness;
