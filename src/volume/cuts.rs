//! Cut marks: ranges of runs that are dead although their records are still there.
//!
//! Truncating or punching a large range only marks it; a background job removes the records in
//! bounded steps. A run that is written again is taken out of its mark in the same change.

use super::records::Change;
use crate::epoch::Epochs;
use crate::format::record::{self, Key, Table};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// Half-open ranges of dead runs, ascending and apart.
type Ranges = Vec<(u64, u64)>;

/// The cut marks of all inodes.
pub(super) struct Cuts {
    inodes: RwLock<BTreeMap<u64, Ranges>>,
    any: AtomicBool,
}

impl Cuts {
    /// Reads the marks. `read_only`: damage is passed over, at the price that
    /// what was cut off of a file lately may be read as it was before.
    pub(super) fn load(epochs: &Epochs, read_only: bool) -> Result<Self, crate::epoch::Error> {
        let mut inodes = BTreeMap::new();
        let whole = epochs.scan(Table::Cut, &mut |key, value| {
            if let Some(range) = decode(key, value) {
                inodes.entry(record::owner(key)).or_insert_with(Ranges::new).push(range);
            }
        });
        match whole {
            Err(error) if read_only => {
                log::error!("the marks of cut-off contents cannot be read: {error}");
            }
            other => other?,
        }
        let any = AtomicBool::new(!inodes.is_empty());
        Ok(Self { inodes: RwLock::new(inodes), any })
    }

    /// Whether a run is dead.
    pub(super) fn is_dead(&self, ino: u64, run: u64) -> bool {
        self.any.load(Ordering::Acquire)
            && self
                .inodes
                .read()
                .get(&ino)
                .is_some_and(|ranges| ranges.iter().any(|&(from, to)| (from..to).contains(&run)))
    }

    /// Whether anything of an inode is marked.
    pub(super) fn has(&self, ino: u64) -> bool {
        self.any.load(Ordering::Acquire) && self.inodes.read().contains_key(&ino)
    }

    /// Some mark, for the job that removes what it covers.
    pub(super) fn first(&self) -> Option<(u64, (u64, u64))> {
        let inodes = self.inodes.read();
        inodes.iter().find_map(|(&ino, ranges)| Some((ino, *ranges.first()?)))
    }

    /// Marks `from..to` of an inode dead. The caller holds its content lock alone.
    pub(super) fn add(&self, ino: u64, from: u64, to: u64, change: &mut Change) {
        self.update(ino, change, |ranges| {
            ranges.push((from, to));
            ranges.sort_unstable();
            let mut joined: Ranges = Vec::new();
            for &(from, to) in ranges.iter() {
                match joined.last_mut() {
                    Some(last) if last.1 >= from => last.1 = last.1.max(to),
                    _ => joined.push((from, to)),
                }
            }
            *ranges = joined;
        });
    }

    /// Takes runs out of the marks: they were removed.
    pub(super) fn remove(&self, ino: u64, from: u64, to: u64, change: &mut Change) {
        self.update(ino, change, |ranges| {
            *ranges = ranges
                .iter()
                .flat_map(|&(a, b)| [(a, b.min(from)), (a.max(to), b)])
                .filter(|(a, b)| a < b)
                .collect();
        });
    }

    /// Takes a run that is about to be written out of the marks, if it is in one.
    pub(super) fn revive(&self, ino: u64, run: u64, change: &mut Change) {
        if self.is_dead(ino, run) {
            self.remove(ino, run, run + 1, change);
        }
    }

    /// Forgets all marks of an inode that is gone.
    pub(super) fn forget(&self, ino: u64, change: &mut Change) {
        if self.any.load(Ordering::Acquire) {
            self.update(ino, change, Vec::clear);
        }
    }

    fn update(&self, ino: u64, change: &mut Change, edit: impl FnOnce(&mut Ranges)) {
        let mut inodes = self.inodes.write();
        let old = inodes.remove(&ino).unwrap_or_default();
        let mut ranges = old.clone();
        edit(&mut ranges);
        for range in old.iter().filter(|range| !ranges.contains(range)) {
            change.delete(key(ino, range.0));
        }
        for range in ranges.iter().filter(|range| !old.contains(range)) {
            change.put(key(ino, range.0), &range.1.to_le_bytes());
        }
        if !ranges.is_empty() {
            inodes.insert(ino, ranges);
        }
        self.any.store(!inodes.is_empty(), Ordering::Release);
    }
}

/// Key of the mark that starts at run `from`; its value is where it ends.
fn key(ino: u64, from: u64) -> Key {
    record::key(Table::Cut, ino, &from.to_be_bytes())
}

/// The range that a mark's record says.
pub(super) fn decode(key: &[u8], value: &[u8]) -> Option<(u64, u64)> {
    let from = u64::from_be_bytes(key.get(9..)?.try_into().ok()?);
    let to = u64::from_le_bytes(value.try_into().ok()?);
    (from < to).then_some((from, to))
}
