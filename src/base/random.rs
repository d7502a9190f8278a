//! Randomness from the operating system, for epochs, jitter and keys.

/// A random number. Falls back to the address-space layout and the clock's noise where the
/// operating system has none to give, which Linux does only in the first moments of a boot.
#[must_use]
pub fn number() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        use std::hash::{BuildHasher, Hasher, RandomState};
        RandomState::new().build_hasher().finish()
    })
}

/// A random number in `0..bound`, or 0 if `bound` is 0. The bias is below `bound / 2^64`.
#[must_use]
pub fn below(bound: u64) -> u64 {
    if bound == 0 { 0 } else { number() % bound }
}
