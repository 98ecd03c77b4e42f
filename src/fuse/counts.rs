//! Counters by inode: references that the kernel holds, and handles open for writing.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::fs::Ino;

/// Shards, so that event-loop threads rarely meet. A power of two.
const SHARDS: usize = 64;

/// A count for each inode; inodes whose count is zero take no memory.
pub(super) struct Counts {
    shards: Vec<Mutex<HashMap<Ino, u64>>>,
}

impl Counts {
    /// All counts are zero.
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect() }
    }

    /// Adds one to the count of `ino`.
    pub(super) fn add(&self, ino: Ino) {
        *self.shard(ino).lock().entry(ino).or_insert(0) += 1;
    }

    /// Takes `n` from the count of `ino`; returns whether it is zero now.
    pub(super) fn subtract(&self, ino: Ino, n: u64) -> bool {
        let mut counts = self.shard(ino).lock();
        let Some(count) = counts.get_mut(&ino) else { return true };
        *count = count.saturating_sub(n);
        let gone = *count == 0;
        if gone {
            counts.remove(&ino);
        }
        gone
    }

    /// Whether the count of `ino` is above zero.
    pub(super) fn any(&self, ino: Ino) -> bool {
        self.shard(ino).lock().contains_key(&ino)
    }

    /// All inodes whose count is above zero.
    pub(super) fn all(&self) -> Vec<Ino> {
        self.shards
            .iter()
            .flat_map(|shard| shard.lock().keys().copied().collect::<Vec<_>>())
            .collect()
    }

    fn shard(&self, ino: Ino) -> &Mutex<HashMap<Ino, u64>> {
        &self.shards[ino as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An inode is gone when as many references were taken as were added, and not before.
    #[test]
    fn gone_when_all_are_taken() {
        let counts = Counts::new();
        for _ in 0..3 {
            counts.add(7);
        }
        counts.add(7 + SHARDS as u64);
        assert!(!counts.subtract(7, 2));
        assert!(counts.any(7));
        assert!(counts.subtract(7, 1));
        assert!(!counts.any(7));
        assert!(counts.any(7 + SHARDS as u64), "inodes of one shard are counted apart");
    }
}
