//! Accounting for slots: what refers to each, against what the bitmaps say is used. Two bits for
//! each slot.

use crate::format::{SEGMENT_SLOTS, Slot};
use crate::volume::Volume;
use std::collections::{BTreeMap, BTreeSet};

const WORDS: usize = SEGMENT_SLOTS as usize / 64;
/// Slots that are remembered one by one because something is wrong with them.
const SUSPECTS_MAX: usize = 65_536;

/// A set of slots: 8 KiB for each segment in use.
#[derive(Default)]
pub(in crate::volume) struct SlotSet(BTreeMap<u32, Box<[u64; WORDS]>>);

impl SlotSet {
    /// Adds a slot; false if it was there.
    pub fn insert(&mut self, slot: Slot) -> bool {
        let words = self.0.entry(slot.segment()).or_insert_with(|| Box::new([0; WORDS]));
        let index = slot.0 % SEGMENT_SLOTS;
        let word = &mut words[index as usize / 64];
        let was = *word >> (index % 64) & 1 == 1;
        *word |= 1 << (index % 64);
        !was
    }

    /// Segments with a slot in the set.
    pub fn segments(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.keys().copied()
    }

    /// Slots of a segment in the set.
    pub fn count(&self, segment: u32) -> u64 {
        self.0.get(&segment).map_or(0, |words| words.iter().map(ones).sum())
    }

    /// Visits the slots that are here and not in `other`, ascending.
    pub fn without(&self, other: &Self, visit: &mut dyn FnMut(Slot)) {
        for (&segment, words) in &self.0 {
            let theirs = other.0.get(&segment);
            for (at, &word) in words.iter().enumerate() {
                let mut only = word & !theirs.map_or(0, |theirs| theirs[at]);
                while only != 0 {
                    let bit = u64::from(only.trailing_zeros());
                    only &= only - 1;
                    visit(Slot(u64::from(segment) * SEGMENT_SLOTS + at as u64 * 64 + bit));
                }
            }
        }
    }
}

fn ones(word: &u64) -> u64 {
    u64::from(word.count_ones())
}

/// What the records refer to, and what the bitmaps count as used.
#[derive(Default)]
pub(super) struct Slots {
    referred: SlotSet,
    pub in_use: SlotSet,
    /// Slots that several records refer to.
    pub shared: BTreeSet<Slot>,
    /// Slots that are referred to and counted as free; known after [`Slots::compare`].
    pub free: BTreeSet<Slot>,
    /// Slots that nothing refers to: segment, first, count.
    pub leaked: Vec<(Slot, u64)>,
    /// Slots that are wrong and were not remembered.
    pub omitted: u64,
}

impl Slots {
    /// Starts with what the bitmaps say.
    pub fn new(volume: &Volume) -> Self {
        let mut slots = Self::default();
        volume.epochs.slots_in_use(&mut |slot| {
            slots.in_use.insert(slot);
        });
        for slot in volume.epochs.delta_slots().into_iter().flatten() {
            slots.refer(slot);
        }
        slots
    }

    /// A record refers to a slot.
    pub fn refer(&mut self, slot: Slot) {
        if !self.referred.insert(slot) {
            if self.shared.len() < SUSPECTS_MAX {
                self.shared.insert(slot);
            } else {
                self.omitted += 1;
            }
        }
    }

    /// Compares both sides, when everything has been referred to.
    pub fn compare(&mut self) {
        let (free, omitted) = (&mut self.free, &mut self.omitted);
        self.referred.without(&self.in_use, &mut |slot| {
            if free.len() < SUSPECTS_MAX {
                free.insert(slot);
            } else {
                *omitted += 1;
            }
        });
        let leaked = &mut self.leaked;
        self.in_use.without(&self.referred, &mut |slot| {
            let joins = |&(first, count): &(Slot, u64)| {
                first.0 + count == slot.0 && first.segment() == slot.segment()
            };
            let room = leaked.len() < SUSPECTS_MAX;
            match leaked.last_mut().filter(|run| joins(run)) {
                Some((_, count)) => *count += 1,
                None if room => leaked.push((slot, 1)),
                None => *omitted += 1,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_tell_what_only_one_has() {
        let (mut a, mut b) = (SlotSet::default(), SlotSet::default());
        for slot in [0, 63, 64, 65_535, 65_536, 900_000] {
            assert!(a.insert(Slot(slot)));
            assert!(!a.insert(Slot(slot)));
        }
        b.insert(Slot(64));
        let mut only = Vec::new();
        a.without(&b, &mut |slot| only.push(slot.0));
        assert_eq!(only, [0, 63, 65_535, 65_536, 900_000]);
        assert_eq!(a.count(0), 4);
        assert_eq!(a.segments().collect::<Vec<_>>(), [0, 1, 13]);
    }
}
