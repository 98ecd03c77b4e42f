//! Counters by inode: references that the kernel holds, and handles open for writing.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::fs::Ino;

/// Shards, so that event-loop threads rarely meet. A power of two.
const SHARDS: usize = 64;
/// Inodes in a group: neighbours, which were made one after another and are often known together.
const GROUP: u64 = 64;

/// A count for each inode; inodes whose count is zero take no memory. The kernel may know all of a
/// volume's inodes, most of them once: of those a group takes two words.
pub(super) struct Counts {
    shards: Vec<Mutex<Shard>>,
}

#[derive(Default)]
struct Shard {
    /// For each group of inodes, a bit for each whose count is above zero.
    groups: HashMap<u64, u64>,
    /// How much counts are above one, where they are.
    above_one: HashMap<Ino, u64>,
}

impl Counts {
    /// All counts are zero.
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// Adds one to the count of `ino`.
    pub(super) fn add(&self, ino: Ino) {
        let mut shard = self.shard(ino).lock();
        let bits = shard.groups.entry(ino / GROUP).or_insert(0);
        if *bits & bit(ino) == 0 {
            *bits |= bit(ino);
        } else {
            *shard.above_one.entry(ino).or_insert(0) += 1;
        }
    }

    /// Takes `n` from the count of `ino`; returns whether it is zero now.
    pub(super) fn subtract(&self, ino: Ino, n: u64) -> bool {
        let mut shard = self.shard(ino).lock();
        if !shard.any(ino) {
            return true;
        }
        let count = 1 + shard.above_one.remove(&ino).unwrap_or(0);
        match count.saturating_sub(n) {
            0 => {
                shard.clear(ino);
                true
            }
            left => {
                if left > 1 {
                    shard.above_one.insert(ino, left - 1);
                }
                false
            }
        }
    }

    /// Whether the count of `ino` is above zero.
    pub(super) fn any(&self, ino: Ino) -> bool {
        self.shard(ino).lock().any(ino)
    }

    /// All inodes whose count is above zero.
    pub(super) fn all(&self) -> Vec<Ino> {
        let mut all = Vec::new();
        for shard in &self.shards {
            for (&group, &bits) in &shard.lock().groups {
                all.extend(
                    (group * GROUP..=group * GROUP + (GROUP - 1))
                        .filter(|&ino| bits & bit(ino) != 0),
                );
            }
        }
        all
    }

    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[(ino / GROUP) as usize % SHARDS]
    }
}

impl Shard {
    fn any(&self, ino: Ino) -> bool {
        self.groups.get(&(ino / GROUP)).is_some_and(|bits| bits & bit(ino) != 0)
    }

    fn clear(&mut self, ino: Ino) {
        let group = ino / GROUP;
        if let Some(bits) = self.groups.get_mut(&group) {
            *bits &= !bit(ino);
            if *bits == 0 {
                self.groups.remove(&group);
            }
        }
    }
}

/// Which one it is in its group.
fn bit(ino: Ino) -> u64 {
    1 << (ino % GROUP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt as _, SeedableRng as _};

    /// An inode is gone when as many references were taken as were added, and not before, whatever
    /// its neighbours do; the largest number there is, too.
    #[test]
    fn as_a_map_counts() {
        let counts = Counts::new();
        let mut model: HashMap<Ino, u64> = HashMap::new();
        let mut random = rand::rngs::StdRng::seed_from_u64(1);
        for step in 0..100_000 {
            let ino = match random.random_range(0..10_u64) {
                0 => Ino::MAX - random.random_range(0..3),
                near => near * GROUP * SHARDS as u64 + random.random_range(0..70),
            };
            let count = model.entry(ino).or_insert(0);
            if random.random_bool(0.5) {
                counts.add(ino);
                *count += 1;
            } else {
                let n = random.random_range(0..4);
                *count = count.saturating_sub(n);
                assert_eq!(counts.subtract(ino, n), *count == 0, "step {step}, inode {ino}");
            }
            assert_eq!(counts.any(ino), *count > 0, "step {step}, inode {ino}");
        }
        let mut left: Vec<Ino> =
            model.into_iter().filter(|&(_, n)| n > 0).map(|(i, _)| i).collect();
        let mut all = counts.all();
        left.sort_unstable();
        all.sort_unstable();
        assert_eq!(all, left);
        for ino in all {
            counts.subtract(ino, u64::MAX);
        }
        let is_empty = |shard: &Mutex<Shard>| {
            let shard = shard.lock();
            shard.groups.is_empty() && shard.above_one.is_empty()
        };
        assert!(counts.shards.iter().all(is_empty), "what is zero takes no memory");
    }
}
