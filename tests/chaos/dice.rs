//! Chance that can be repeated: the same seed throws the same numbers.

use std::{ops::Range, time::Duration};

/// A source of numbers (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another source, whose numbers don't depend on how many this one throws later.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.throw())
    }

    pub(crate) fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number of this range, which isn't empty.
    pub(crate) fn range(&mut self, range: Range<u64>) -> u64 {
        range.start + self.throw() % (range.end - range.start)
    }

    /// Whether something happens that happens so many times of a hundred.
    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.range(0..100) < chance
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        self.range(0..length as u64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }

    /// A span between these two, in milliseconds.
    pub(crate) fn span(&mut self, milliseconds: Range<u64>) -> Duration {
        Duration::from_millis(self.range(milliseconds))
    }
}
