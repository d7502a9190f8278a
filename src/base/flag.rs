//! The flag between those who have news for one thread and that thread: it is told once until it
//! looks.
//!
//! # Threads
//!
//! Whoever has added something raises the flag, and sends word if it was down. The one who looks
//! lowers it, and then looks. What is added after that look finds the flag down.
//!
//! `base/orderings.rs` tries it under every order that the memory model allows.

use crate::base::{
    fault::Fault,
    sync::atomic::{AtomicBool, Ordering},
};

/// Down at first.
#[derive(Debug, Default)]
pub struct Flag(AtomicBool);

impl Flag {
    /// To be called after something was added. Returns whether the one who looks must be told;
    /// otherwise it has been, or is about to look.
    #[must_use]
    pub fn raise(&self) -> bool {
        !self.swap(true)
    }

    /// To be called before looking: what was added before the flag was raised, or was found
    /// raised, is there to be seen. Returns whether it was raised.
    pub fn lower(&self) -> bool {
        self.swap(false)
    }

    fn swap(&self, value: bool) -> bool {
        // Release pairs with the acquire of whoever swaps later. Both ways are a swap, since a
        // store would hide what those before it have released.
        self.0.swap(value, Fault::FlagUnordered.or_relaxed(Ordering::AcqRel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_to_raise_a_flag_tells_until_it_is_lowered() {
        let flag = Flag::default();
        assert!(!flag.lower());
        assert!(flag.raise() && !flag.raise());
        assert!(flag.lower() && !flag.lower());
        assert!(flag.raise());
    }
}
