//! Cut marks: ranges of runs that are dead although their records are still there.
//!
//! Truncating or punching a large range only marks it; a background job removes the records in
//! bounded steps. A run that is written again is taken out of its mark in the same change.

use super::records::Change;
use crate::epoch::Epochs;
use crate::format::record::{self, Table};
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
    /// Reads the marks of the durable tree. `read_only`: damage is passed over, at the price that
    /// what was cut off of a file lately may be read as it was before.
    pub(super) fn load(epochs: &Epochs, read_only: bool) -> Result<Self, crate::epoch::Error> {
        let mut inodes = BTreeMap::new();
        let whole = epochs.scan_durable(Table::Cut, &mut |key, value| {
            inodes.insert(record::owner(key), decode(value));
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
        let known = inodes.contains_key(&ino);
        let mut ranges = inodes.remove(&ino).unwrap_or_default();
        edit(&mut ranges);
        let key = record::key(Table::Cut, ino, &[]);
        if !ranges.is_empty() {
            change.put(key, &encode(&ranges));
            inodes.insert(ino, ranges);
        } else if known {
            change.delete(key);
        }
        self.any.store(!inodes.is_empty(), Ordering::Release);
    }
}

fn encode(ranges: &Ranges) -> Vec<u8> {
    // A record holds 80 ranges. Joining the closest two when there are more would revive nothing:
    // the runs between are alive, so the oldest marks are kept and writers wait for the job instead;
    // see `Volume::add_cut`.
    ranges.iter().flat_map(|(from, to)| [from.to_le_bytes(), to.to_le_bytes()]).flatten().collect()
}

fn decode(bytes: &[u8]) -> Ranges {
    let long = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    bytes.chunks_exact(16).map(|pair| (long(&pair[..8]), long(&pair[8..]))).collect()
}
