//! What the fuzz targets share: bytes read as a script of choices.
//!
//! A target that runs operations reads one byte per choice, so that a seed can be written by hand
//! and a mutation of one byte changes one choice.

/// The input of one run. Where it ends, every choice is the first one and [`Script::next`] ends.
#[derive(Clone, Copy, Debug)]
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Script<'a> {
        Script(bytes)
    }

    /// One of `from`.
    ///
    /// # Panics
    ///
    /// If there is nothing in `from`.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A number below `end`, which is at most 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.next().unwrap_or_default()) % end.max(1)
    }

    /// As [`Script::below`], as the type of most quantities.
    pub fn number(&mut self, end: usize) -> u64 {
        self.below(end) as u64
    }

    /// Whether the next byte is one of `parts` in 256.
    pub fn chance(&mut self, parts: u8) -> bool {
        self.next().is_some_and(|byte| byte < parts)
    }

    /// Everything that is left.
    #[must_use]
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

impl Iterator for Script<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
}
