//! Numbers that look random and come again with their seed.

use std::{
    env,
    hash::{BuildHasher, RandomState},
};

/// splitmix64.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// A number from 0 up to `bound`, which is not among them.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Seeds for `count` runs: others each time, or the one that `LANDLINE_SEED` names. Each is printed
/// by whoever uses it, so that a failure can be replayed.
#[track_caller]
#[must_use]
pub fn seeds(count: usize) -> Vec<u64> {
    match env::var("LANDLINE_SEED") {
        Ok(text) => {
            vec![text.parse().unwrap_or_else(|_| panic!("LANDLINE_SEED is {text:?}, no number"))]
        }
        // Short enough to be typed.
        Err(_) => (0..count).map(|_| RandomState::new().hash_one(count) >> 32).collect(),
    }
}
