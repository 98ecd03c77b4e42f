//! What durable references use: the bitmaps that are stored in the tree, in pieces of 1 KiB.

use super::SlotRun;
use crate::format::{SEGMENT_SLOTS, Slot};
use std::collections::{BTreeMap, BTreeSet};

/// Size of a stored piece in bytes.
pub const PIECE_BYTES: usize = 1024;
/// Slots of a piece.
pub const PIECE_SLOTS: u64 = PIECE_BYTES as u64 * 8;

type Piece = Box<[u8; PIECE_BYTES]>;
/// Segment and number of a piece, and its bits if any is set.
pub type ChangedPiece = ((u32, u8), Option<[u8; PIECE_BYTES]>);

/// Used bits by piece; a piece without a used slot is absent.
#[derive(Clone, Default)]
pub struct DurableBitmaps {
    pieces: BTreeMap<(u32, u8), Piece>,
    changed: BTreeSet<(u32, u8)>,
}

impl DurableBitmaps {
    /// Adds a stored piece.
    pub fn insert(&mut self, segment: u32, piece: u8, bits: &[u8; PIECE_BYTES]) {
        self.pieces.insert((segment, piece), Box::new(*bits));
    }

    /// The bits of a piece, one per slot, lowest bit first.
    pub fn piece(&self, segment: u32, piece: u8) -> Option<&[u8; PIECE_BYTES]> {
        self.pieces.get(&(segment, piece)).map(|bits| &**bits)
    }

    /// Whether a slot is used.
    pub fn is_used(&self, slot: Slot) -> bool {
        let (key, byte, bit) = position(slot);
        self.pieces.get(&key).is_some_and(|bits| bits[byte] & bit != 0)
    }

    /// Marks a slot as used or free; false if it was so already, which is a contradiction.
    pub fn set(&mut self, slot: Slot, used: bool) -> bool {
        let (key, byte, bit) = position(slot);
        let bits = self.pieces.entry(key).or_insert_with(|| Box::new([0; PIECE_BYTES]));
        let was = bits[byte] & bit != 0;
        if used {
            bits[byte] |= bit;
        } else {
            bits[byte] &= !bit;
        }
        self.changed.insert(key);
        was != used
    }

    /// Hands out the pieces that changed since the last call; `None` is a piece without used slots.
    pub fn take_changed(&mut self) -> Vec<ChangedPiece> {
        let changed = std::mem::take(&mut self.changed);
        let bits = |key: (u32, u8)| {
            let bits = self.pieces.get(&key).filter(|bits| bits.iter().any(|&byte| byte != 0));
            (key, bits.map(|bits| **bits))
        };
        let list = changed.into_iter().map(bits).collect::<Vec<_>>();
        for (key, bits) in &list {
            if bits.is_none() {
                self.pieces.remove(key);
            }
        }
        list
    }

    /// Visits every used slot.
    pub fn for_each_used(&self, mut visit: impl FnMut(Slot)) {
        for (&(segment, piece), bits) in &self.pieces {
            let base = u64::from(segment) * SEGMENT_SLOTS + u64::from(piece) * PIECE_SLOTS;
            for (at, &byte) in bits.iter().enumerate().filter(|(_, byte)| **byte != 0) {
                for bit in (0..8).filter(|bit| byte & 1 << bit != 0) {
                    visit(Slot(base + at as u64 * 8 + bit));
                }
            }
        }
    }

    /// Slots that are used here and not in `other`.
    pub fn without(&self, other: &Self) -> Vec<Slot> {
        let mut slots = Vec::new();
        for (key, bits) in &self.pieces {
            let theirs = other.pieces.get(key);
            let base = u64::from(key.0) * SEGMENT_SLOTS + u64::from(key.1) * PIECE_SLOTS;
            for (at, &byte) in bits.iter().enumerate() {
                let only = byte & !theirs.map_or(0, |theirs| theirs[at]);
                for bit in (0..8).filter(|bit| only & 1 << bit != 0) {
                    slots.push(Slot(base + at as u64 * 8 + bit));
                }
            }
        }
        slots
    }

    /// Segments with a used slot, ascending.
    pub fn segments(&self) -> BTreeSet<u32> {
        self.pieces.keys().map(|&(segment, _)| segment).collect()
    }
}

fn position(slot: Slot) -> ((u32, u8), usize, u8) {
    let index = slot.0 % SEGMENT_SLOTS;
    let piece = u8::try_from(index / PIECE_SLOTS).expect("8 pieces");
    let bit = index % PIECE_SLOTS;
    ((slot.segment(), piece), bit as usize / 8, 1 << (bit % 8))
}

/// Sorts slots and joins neighbours of one segment into runs.
pub fn runs_of(mut slots: Vec<Slot>) -> Vec<SlotRun> {
    slots.sort_unstable();
    let mut runs: Vec<SlotRun> = Vec::new();
    for slot in slots {
        match runs.last_mut() {
            Some(run)
                if run.first.0 + u64::from(run.count) == slot.0
                    && run.first.segment() == slot.segment() =>
            {
                run.count += 1;
            }
            _ => runs.push(SlotRun { first: slot, count: 1 }),
        }
    }
    runs
}
