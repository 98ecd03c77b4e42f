//! Random numbers that a seed repeats, on every platform and with every version of every crate.

/// SplitMix64 (Steele, Lea, Flood 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// `0..limit`
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// True once in `of` times.
    pub fn once_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Bytes without zeros, so that a hole is told from data.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend((self.next() | 0x0101_0101_0101_0101).to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// The seed that `ATREST_SEED` asks for, or one of the clock.
pub fn seed() -> u64 {
    match std::env::var("ATREST_SEED") {
        Ok(seed) => seed.parse().expect("ATREST_SEED is a number"),
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.expect("the clock is past 1970").as_nanos() as u64 & 0xffff_ffff
        }
    }
}

/// How many operations `ATREST_MODEL_OPS` asks for, or `default`.
pub fn operations(default: usize) -> usize {
    std::env::var("ATREST_MODEL_OPS")
        .map_or(default, |count| count.parse().expect("ATREST_MODEL_OPS is a number"))
}

/// Says on a panic how to repeat it.
pub struct Replay {
    pub seed: u64,
    pub operation: usize,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "failed at operation {}: repeat with ATREST_SEED={}",
                self.operation, self.seed
            );
        }
    }
}
