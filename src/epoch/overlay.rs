//! The overlay: records that changed since the last durable epoch.
//!
//! Sharded by the inode that owns a record, so that every range of one inode is in one shard.

use crate::format::record;
use crate::tree;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A record's key.
pub type Key = Arc<[u8]>;
/// A record's value; `None` says that the record is deleted.
pub type Value = Option<Arc<[u8]>>;

const SHARDS: usize = 64;
/// Rough cost of a record in memory, beyond its key and value.
const RECORD_OVERHEAD: usize = 96;

#[derive(Default)]
struct Shard {
    open: BTreeMap<Key, Value>,
    sealed: Arc<BTreeMap<Key, Value>>,
}

/// Changes of the open and of the sealed epoch.
pub(super) struct Overlay {
    shards: Vec<RwLock<Shard>>,
    records: AtomicUsize,
    bytes: AtomicUsize,
}

/// What the overlay says about a range: overrides in key order, complete up to `end`.
pub(super) struct Window {
    /// Records of the range, deletions included.
    pub(super) records: Vec<(Key, Value)>,
    /// The window was cut after its last record.
    pub(super) cut: bool,
}

impl Overlay {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            records: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        }
    }

    fn shard(&self, key: &[u8]) -> &RwLock<Shard> {
        let hash = record::owner(key).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
        &self.shards[hash as usize % SHARDS]
    }

    /// `None`: the overlay says nothing about the key.
    pub(super) fn get(&self, key: &[u8]) -> Option<Value> {
        let shard = self.shard(key).read();
        shard.open.get(key).or_else(|| shard.sealed.get(key)).cloned()
    }

    /// Puts a record into the open epoch. The caller holds the gate.
    pub(super) fn put(&self, key: Key, value: Value) {
        let bytes = RECORD_OVERHEAD + key.len() + value.as_ref().map_or(0, |value| value.len());
        let old = self.shard(&key).write().open.insert(key, value);
        if old.is_none() {
            self.records.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Records and bytes of the open epoch.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.records.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Overrides within `from..to`, at most about `limit`, which are at most two epochs' records.
    pub(super) fn window(&self, from: &[u8], to: &[u8], limit: usize) -> Window {
        let shard = self.shard(from).read();
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut open = shard.open.range::<[u8], _>(bounds).peekable();
        let mut sealed = shard.sealed.range::<[u8], _>(bounds).peekable();
        let mut records = Vec::new();
        while records.len() < limit {
            let take_open = match (open.peek(), sealed.peek()) {
                (None, None) => return Window { records, cut: false },
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((a, _)), Some((b, _))) => {
                    if a == b {
                        sealed.next();
                    }
                    open.peek().is_some_and(|(a, _)| sealed.peek().is_none_or(|(b, _)| a < b))
                }
            };
            let next = if take_open { open.next() } else { sealed.next() };
            let (key, value) = next.expect("peeked");
            records.push((key.clone(), value.clone()));
        }
        let cut = open.peek().is_some() || sealed.peek().is_some();
        Window { records, cut }
    }

    /// What the overlay says about a whole table, in key order.
    pub(super) fn of_table(&self, table: u8) -> BTreeMap<Key, Value> {
        let mut records = BTreeMap::new();
        let (from, to) = ([table], [table + 1]);
        let bounds = (Bound::Included(&from[..]), Bound::Excluded(&to[..]));
        for shard in &self.shards {
            let shard = shard.read();
            for epoch in [&*shard.sealed, &shard.open] {
                let found = epoch.range::<[u8], _>(bounds);
                records.extend(found.map(|(key, value)| (key.clone(), value.clone())));
            }
        }
        records
    }

    /// Makes the open epoch the sealed one. The caller holds the gate alone, and the sealed epoch
    /// is empty.
    pub(super) fn seal(&self) {
        for shard in &self.shards {
            let mut shard = shard.write();
            let open = std::mem::take(&mut shard.open);
            debug_assert!(shard.sealed.is_empty(), "one epoch is sealed at a time");
            shard.sealed = Arc::new(open);
        }
        self.records.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }

    /// Makes the sealed epoch a part of the open one again. The caller holds the gate alone.
    pub(super) fn unseal(&self) {
        let (mut records, mut bytes) = (0, 0);
        for shard in &self.shards {
            let mut shard = shard.write();
            let sealed = std::mem::take(&mut shard.sealed);
            for (key, value) in sealed.iter() {
                shard.open.entry(key.clone()).or_insert_with(|| value.clone());
            }
            records += shard.open.len();
            let cost = |(key, value): (&Key, &Value)| {
                RECORD_OVERHEAD + key.len() + value.as_ref().map_or(0, |value| value.len())
            };
            bytes += shard.open.iter().map(cost).sum::<usize>();
        }
        self.records.store(records, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// The sealed epoch's changes, in key order.
    pub(super) fn sealed_batch(&self) -> Vec<tree::Change> {
        let mut batch = Vec::new();
        for shard in &self.shards {
            let sealed = shard.read().sealed.clone();
            batch.extend(
                sealed
                    .iter()
                    .map(|(key, value)| tree::Change { key: key.clone(), value: value.clone() }),
            );
        }
        batch.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        batch
    }

    /// Drops the sealed epoch, which is durable now and visible through the tree.
    pub(super) fn clear_sealed(&self) {
        for shard in &self.shards {
            let sealed = std::mem::take(&mut shard.write().sealed);
            drop(sealed);
        }
    }
}
