//! A shard of a cache, and how often it had what was asked for.

use std::hash::Hash;
use std::num::NonZeroUsize;

use lru::LruCache;

/// The least recently used entry goes. Shards have locks of their own, which the counts are under.
pub struct CacheShard<K: Hash + Eq, V> {
    entries: LruCache<K, V>,
    hits: u64,
    misses: u64,
}

/// How a cache is, over all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Entries that are there.
    pub entries: u64,
    /// How often what was asked for was there.
    pub hits: u64,
    /// How often it was not.
    pub misses: u64,
}

impl<K: Hash + Eq, V> CacheShard<K, V> {
    /// Room for so many entries, at least one.
    pub fn new(entries: usize) -> Self {
        let entries = NonZeroUsize::new(entries).unwrap_or(NonZeroUsize::MIN);
        Self { entries: LruCache::new(entries), hits: 0, misses: 0 }
    }

    /// The entry, if it is there and `is_right`.
    pub fn get(&mut self, key: &K, is_right: impl FnOnce(&V) -> bool) -> Option<&V> {
        let found = self.entries.get(key).filter(|value| is_right(value));
        let count = if found.is_some() { &mut self.hits } else { &mut self.misses };
        *count += 1;
        found
    }

    /// Puts an entry.
    pub fn put(&mut self, key: K, value: V) {
        self.entries.put(key, value);
    }

    /// Takes an entry out, if it is there and `is_that`.
    pub fn pop_if(&mut self, key: &K, is_that: impl FnOnce(&V) -> bool) {
        if self.entries.peek(key).is_some_and(is_that) {
            self.entries.pop(key);
        }
    }

    /// Adds what this shard counted.
    pub fn add_to(&self, counts: &mut CacheCounts) {
        counts.entries += self.entries.len() as u64;
        counts.hits += self.hits;
        counts.misses += self.misses;
    }
}
