//! What the tree lies in: superblocks, segments, slots.

use super::report::Subject;
use super::{Checker, Kind};
use crate::format::map::PageMap;
use crate::format::record::{self, Table};
use crate::format::{PAGE_BYTES, RUN_PAGES, SEGMENT_BYTES, Slot};
use crate::storage::FileId;
use crate::volume::Volume;
use std::collections::BTreeMap;

/// Lengths of the segments that exist, in bytes; `None` is one that cannot be asked.
pub(in crate::volume) struct Medium(BTreeMap<u32, Option<u64>>);

impl Medium {
    pub fn new(volume: &Volume) -> Self {
        let segments = volume.storage.segments().unwrap_or_default();
        let length = |segment| volume.storage.length(FileId::Segment(segment)).ok().flatten();
        Self(segments.into_iter().map(|segment| (segment, length(segment))).collect())
    }

    /// Why nothing can be in a slot.
    pub fn problem(&self, slot: Slot) -> Option<String> {
        let segment = slot.segment();
        match self.0.get(&segment) {
            None => Some(format!("data/{segment:08}, which held it, is missing")),
            Some(Some(length)) if slot.offset() + PAGE_BYTES as u64 > *length => {
                Some(format!("data/{segment:08} ends before it"))
            }
            _ => None,
        }
    }
}

impl Checker<'_> {
    /// Checks superblocks and segments.
    pub(super) fn check_medium(&mut self) {
        let superblocks = self.volume.epochs.superblocks();
        if let [Ok(a), Ok(b)] = &superblocks {
            if a.sequence.abs_diff(b.sequence) != 1 {
                let (a, b) = (a.sequence, b.sequence);
                let detail = format!("super.a has sequence {a} and super.b {b}, not consecutive");
                self.drafts.add(Kind::SuperblockReplayed, Subject::Volume, detail);
            }
        }
        let newest = superblocks.iter().flatten().map(|superblock| superblock.sequence).max();
        if let Some(newest) = newest.filter(|&newest| newest > self.report.sequence) {
            let opened = self.report.sequence;
            let detail = format!(
                "the newest state, sequence {newest}, has lost its root or its space bitmaps; \
                 state {opened} was checked instead, and is what a mount goes on from"
            );
            self.drafts.add(Kind::NewestLost, Subject::Volume, detail);
        }
        for (name, superblock) in ["super.a", "super.b"].into_iter().zip(&superblocks) {
            if let Err(error) = superblock {
                let detail = format!("{name} cannot be used: {error}");
                self.drafts.add(Kind::Superblock, Subject::Volume, detail);
            }
        }
        for segment in self.slots.in_use.segments() {
            let used = self.slots.in_use.count(segment);
            let (kind, what) = match self.medium.0.get(&segment) {
                None => (Kind::SegmentMissing, "is missing".to_owned()),
                Some(Some(length)) if *length < SEGMENT_BYTES => {
                    (Kind::SegmentShort, format!("has {length} bytes of {SEGMENT_BYTES}"))
                }
                _ => continue,
            };
            if used > 0 {
                let detail = format!("data/{segment:08} {what}; {used} slots of it are in use");
                self.drafts.add(kind, Subject::Volume, detail);
            }
        }
    }

    /// Compares what the records refer to with what is counted as used.
    pub(super) fn finish_slots(&mut self) {
        if let Some(error) = self.volume.epochs.space_damage() {
            let detail = format!(
                "it cannot be read which slots are in use: {error}; the volume can be mounted \
                 read-only (-o ro)"
            );
            return self.drafts.add(Kind::SpaceLost, Subject::Volume, detail);
        }
        self.slots.compare();
        self.name_suspects();
        if self.slots.omitted > 0 {
            let detail = format!("{} more slots are contradictory", self.slots.omitted);
            self.drafts.add(Kind::SlotShared, Subject::Volume, detail);
        }
        if !self.lost.is_empty() {
            let detail = "leaked space: what lost nodes referred to is not known";
            self.drafts.add(Kind::NotChecked, Subject::Volume, detail);
            return;
        }
        for (first, count) in std::mem::take(&mut self.slots.leaked) {
            let (segment, offset) = (first.segment(), first.offset());
            let detail = format!(
                "{count} slots in data/{segment:08} from offset {offset} are counted as used, \
                 and nothing refers to them"
            );
            self.drafts.add(Kind::SlotLeaked, Subject::Volume, detail);
        }
    }

    /// Finds out whose the slots are that are shared or counted as free.
    fn name_suspects(&mut self) {
        let (shared, free) =
            (std::mem::take(&mut self.slots.shared), std::mem::take(&mut self.slots.free));
        if shared.is_empty() && free.is_empty() {
            return;
        }
        let cipher = self.volume.cipher();
        let mut named = std::collections::BTreeSet::new();
        let drafts = &mut self.drafts;
        self.volume.scan(
            &[Table::PageMap as u8],
            &[Table::PageMap as u8 + 1],
            &mut |key, value| {
                let (Ok(map), 17) = (PageMap::decode(cipher, value), key.len()) else {
                    return true;
                };
                let run = u64::from_be_bytes(key[9..].try_into().expect("17 bytes"));
                for (page, pointer) in (run.saturating_mul(RUN_PAGES)..).zip(&map.pages) {
                    let Some(slot) = pointer.map(|pointer| pointer.slot) else { continue };
                    let range = (page.saturating_mul(PAGE_BYTES as u64), PAGE_BYTES as u64);
                    let ino = record::owner(key);
                    if shared.contains(&slot) {
                        let detail = "something else lies in the same slots";
                        drafts.add_range(Kind::SlotShared, ino, range, detail);
                        named.insert(slot);
                    }
                    if free.contains(&slot) {
                        let detail = "its slots are counted as free and could be written over";
                        drafts.add_range(Kind::SlotFree, ino, range, detail);
                        named.insert(slot);
                    }
                }
                true
            },
        );
        for (kind, slots) in [(Kind::SlotShared, shared), (Kind::SlotFree, free)] {
            for slot in slots.iter().filter(|slot| !named.contains(slot)) {
                let (segment, offset) = (slot.segment(), slot.offset());
                let place = format!("of a tree node in data/{segment:08} at offset {offset}");
                let detail = match kind {
                    Kind::SlotShared => format!("something else refers to the slot {place}"),
                    _ => format!("the slot {place} is counted as free"),
                };
                self.drafts.add(kind, Subject::Volume, detail);
            }
        }
    }
}
