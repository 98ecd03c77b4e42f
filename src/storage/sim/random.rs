//! A generator that gives the same numbers for the same seed on every machine and in every release.

/// SplitMix64 (Steele, Lea, Flood, 2014). For tests only: it is not a source of keys.
pub struct Random(u64);

impl Random {
    /// A generator that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    #[expect(
        clippy::should_implement_trait,
        reason = "an endless sequence is not an iterator here"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0; the bias is negligible for small bounds.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True or false.
    pub fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}
