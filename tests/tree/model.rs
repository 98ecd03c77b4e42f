//! The tree beside a `BTreeMap`: every batch goes to both, and then both must say the same.

use crate::random::Random;
use crate::store::Store;
use atrest::format::NodePointer;
use atrest::format::node::Node;
use atrest::tree::{self, Change, Error, Place, Root, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

pub type Map = BTreeMap<Vec<u8>, Arc<[u8]>>;

#[derive(Clone, Default)]
pub struct Model {
    pub store: Store,
    pub root: Option<Root>,
    pub map: Map,
}

/// What a walk found.
#[derive(Debug, Default)]
pub struct Census {
    pub pointers: Vec<(NodePointer, u8)>,
    pub live: HashSet<u64>,
    pub damaged: Vec<(u64, Vec<u8>, Option<Vec<u8>>)>,
    pub records: usize,
    pub leaves: usize,
    pub leaf_bytes: usize,
    /// Nodes that are less than a quarter full and may not be. At the right edge they may, to be
    /// filled by what comes.
    pub underfull: usize,
    pub last_leaf_underfull: bool,
    pub last_leaf_records: usize,
}

impl Visitor for Census {
    fn node(&mut self, place: Place<'_>, node: &Node) {
        self.pointers.push((*place.pointer, place.level));
        assert!(self.live.insert(place.pointer.slots[0].0), "each node has one parent");
        // Merging begins at a third, but five large records cannot be divided better than 3 to 2.
        let is_underfull = usize::from(node.used_bytes() < 4096 / 4);
        match (place.level, place.to) {
            (0, None) => self.last_leaf_underfull = is_underfull == 1 && !place.from.is_empty(),
            (_, None) => {}
            _ => self.underfull += is_underfull,
        }
        if node.level() == 0 {
            self.records += node.len();
            self.leaves += 1;
            self.last_leaf_records = node.len();
            self.leaf_bytes += node.used_bytes();
        }
    }

    fn damaged(&mut self, place: Place<'_>, error: &Error) {
        assert!(matches!(error, Error::Damaged(pointer) if pointer == place.pointer));
        let to = place.to.map(<[u8]>::to_vec);
        self.damaged.push((place.pointer.slots[0].0, place.from.to_vec(), to));
    }
}

impl Model {
    /// Applies a batch to both, and compares what `observe` hears.
    pub fn apply(&mut self, batch: &[Change]) {
        self.store.begin();
        let mut heard = 0;
        let mut observe = |key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>| {
            let change: &Change = &batch[heard];
            heard += 1;
            assert_eq!(key, &*change.key);
            assert_eq!(new, change.value.as_deref());
            assert_eq!(old, self.map.get(key).map(|value| &**value));
        };
        self.root = tree::apply(&mut self.store, self.root, batch, &mut observe).unwrap();
        assert_eq!(heard, batch.len());
        for change in batch {
            match &change.value {
                Some(value) => self.map.insert(change.key.to_vec(), value.clone()),
                None => self.map.remove(&*change.key),
            };
        }
    }

    /// Walks the tree; nothing may be damaged, missing or left over.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        tree::walk(&self.store, self.root.as_ref(), &mut census);
        assert!(census.damaged.is_empty());
        let stored: HashSet<u64> = self.store.nodes.keys().copied().collect();
        assert_eq!(census.live, stored, "live nodes are those that the root reaches");
        assert_eq!(census.records, self.map.len());
        if let Some(root) = self.root.filter(|root| root.level > 0) {
            let top = &self.store.nodes[&root.pointer.slots[0].0].1;
            assert!(top.len() > 1, "a root with one child is not a root");
        }
        census
    }

    pub fn check_get(&self, key: &[u8]) {
        let got = tree::get(&self.store, self.root.as_ref(), key).unwrap();
        assert_eq!(got.as_deref(), self.map.get(key).map(|value| &**value));
    }

    /// Compares a range, up to `limit` records of it.
    pub fn check_range(&self, from: &[u8], to: &[u8], limit: usize) {
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut expected = (from < to)
            .then(|| self.map.range::<[u8], _>(bounds).take(limit))
            .into_iter()
            .flatten();
        let mut count = 0;
        tree::range(&self.store, self.root.as_ref(), from, to, &mut |key, value| {
            if count == limit {
                return ControlFlow::Break(());
            }
            count += 1;
            let next = expected.next().map(|(key, value)| (&key[..], &value[..]));
            assert_eq!(next, Some((key, value)));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(expected.next().is_none(), "no record is missing");
    }

    /// Compares everything, from the first record to the last.
    pub fn check_all(&self) -> Census {
        self.check_range(&[], &[0xff; 321], usize::MAX);
        self.census()
    }

    /// Compares some records and ranges.
    pub fn check_some(&self, random: &mut Random, key: &mut dyn FnMut(&mut Random) -> Vec<u8>) {
        for _ in 0..50 {
            self.check_get(&key(random));
        }
        for _ in 0..5 {
            let (from, to) = (key(random), key(random));
            self.check_range(&from, &to, 300);
        }
    }
}

/// Sorts changes; of several to one key the last wins.
pub fn batch(changes: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>) -> Vec<Change> {
    let sorted: BTreeMap<_, _> = changes.into_iter().collect();
    let change = |(key, value): (Vec<u8>, Option<Vec<u8>>)| Change {
        key: key.into(),
        value: value.map(Arc::from),
    };
    sorted.into_iter().map(change).collect()
}
