//! Building a sound state beside a damaged one, for `fsck --repair`.
//!
//! 1. [`Epochs::survey`] reads both superblocks' trees: what is damaged, and which slots are taken.
//! 2. [`Rebuild`] writes a tree without the damage into slots that neither tree uses, and changes
//!    records in it. Every version of it but the last is forgotten.
//! 3. [`Rebuild::finish`] counts which slots that tree refers to, stores them as its bitmaps, and
//!    syncs everything.
//! 4. [`Epochs::adopt`] writes the superblock that leads there, over the older one.
//!
//! A crash before 4 leaves the state as it was, and one in 4 or later that or the new one, for the
//! reasons that [`crate::manual::crash`] gives for every epoch.

use super::commit::{CommitOptions, next_superblock, space_key, storage_error};
use super::delta;
use super::nodes::NodeWriter;
use super::{Epochs, Error, Key, Record, Value};
use crate::format::node::Node;
use crate::format::record::{self, Table};
use crate::format::superblock::Superblock;
use crate::format::{SEGMENT_BYTES, Slot};
use crate::space::{Class, DurableBitmaps, PIECE_BYTES, Space, slots_of};
use crate::storage::{FileId, Storage};
use crate::tree::{self, Change, Marks, Place, Root, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Memory of changes that are not in the tree yet, in bytes.
const PENDING_BYTES_MAX: usize = 16 << 20;
/// Rough cost of a change in memory, beyond its key and value.
const PENDING_OVERHEAD: usize = 96;
/// Records that are read at a time.
const PAGE_RECORDS: usize = 512;
/// Slots that get blocks in one step.
const BACKING_SLOTS: u64 = 256;
/// A segment is made anew only up to this many above those that exist: a number far off is damage
/// of what names it.
const SEGMENTS_ABOVE: u32 = 8;

/// A range of keys; `None` has no end.
pub type KeyRange = (Vec<u8>, Option<Vec<u8>>);

/// What is on a damaged volume.
pub struct Survey {
    /// The state that is repaired.
    chosen: Superblock,
    marks: Marks,
    space: Space,
    /// Every slot that either superblock's state uses, as far as that can be read.
    used: DurableBitmaps,
    /// Keys whose records cannot be read, ascending and apart.
    pub lost: Vec<KeyRange>,
    /// Slots of copies of nodes that authenticate.
    pub nodes: DurableBitmaps,
    /// Nodes of which one copy does not authenticate.
    pub copies: Vec<[Slot; 2]>,
    /// Slots to which several things refer.
    pub shared: BTreeSet<Slot>,
    /// Lengths of the segments that exist, in bytes.
    lengths: BTreeMap<u32, u64>,
}

/// Records of a range, in key order.
pub struct RecordPage {
    /// Keys and values.
    pub records: Vec<(Key, Arc<[u8]>)>,
    /// Where the next page starts; `None` at the end of the range.
    pub next: Option<Vec<u8>>,
}

/// A tree that is being built.
pub struct Rebuild<'a> {
    epochs: &'a Epochs,
    survey: &'a Survey,
    writer: NodeWriter<'a>,
    root: Option<Root>,
    pending: BTreeMap<Key, Value>,
    pending_bytes: usize,
}

/// A state that is on the disk, to which no superblock leads yet.
pub struct Rebuilt {
    superblock: Superblock,
    /// Segments that are missing or too short, and hold something in one of the states.
    segments: Vec<u32>,
}

/// Collects what a tree uses and where it is damaged.
struct Surveyor<'a> {
    epochs: &'a Epochs,
    used: DurableBitmaps,
    nodes: DurableBitmaps,
    copies: Vec<[Slot; 2]>,
    shared: BTreeSet<Slot>,
    marks: Marks,
    lost: Vec<KeyRange>,
    /// This is the older tree: what it shares with the newer one was seen.
    older: bool,
    slots: Vec<Slot>,
    key: Vec<u8>,
}

impl Surveyor<'_> {
    /// Notes that a slot is in use; that it was already is no matter here.
    fn take(&mut self, slot: Slot) {
        self.used.set(slot, true);
    }
}

impl Visitor for Surveyor<'_> {
    fn enter(&mut self, place: Place<'_>) -> bool {
        let slots = place.pointer.slots;
        if self.older {
            let new = !self.used.is_used(slots[0]);
            slots.into_iter().for_each(|slot| self.take(slot));
            return new;
        }
        let whole = self.epochs.check_copies(place.pointer, place.level);
        for (slot, whole) in slots.into_iter().zip(whole) {
            self.take(slot);
            if whole {
                self.nodes.set(slot, true);
            }
        }
        if whole[0] != whole[1] {
            self.marks.move_away(place.from);
            self.copies.push(slots);
        }
        true
    }

    fn node(&mut self, place: Place<'_>, node: &Node) {
        if place.level > 0 {
            return;
        }
        for index in 0..node.len() {
            self.key.clear();
            node.append_key(index, &mut self.key);
            let value = node.value(index);
            self.slots.clear();
            // What is malformed refers to nothing.
            if (self.epochs.decode_slots)(&self.key, value, &mut self.slots).is_ok() {
                let slots = std::mem::take(&mut self.slots);
                for &slot in &slots {
                    if !self.used.set(slot, true) && !self.older {
                        self.shared.insert(slot);
                    }
                }
                self.slots = slots;
            }
            if let Some((segment, piece, bits)) = decode_space(&self.key, value) {
                let mut stored = DurableBitmaps::default();
                stored.insert(segment, piece, bits);
                stored.for_each_used(|slot| self.take(slot));
            }
        }
    }

    fn damaged(&mut self, place: Place<'_>, _: &tree::Error) {
        if !self.older {
            self.marks.lose(place.from, place.pointer);
            self.lost.push((place.from.to_vec(), place.to.map(<[u8]>::to_vec)));
        }
    }
}

/// A stored piece of the bitmaps, if it is one.
fn decode_space<'a>(key: &[u8], value: &'a [u8]) -> Option<(u32, u8, &'a [u8; PIECE_BYTES])> {
    let is_space = key.len() == 10 && key[0] == Table::Space as u8 && key[9] < 8;
    let segment = u32::try_from(record::owner(key)).ok().filter(|_| is_space)?;
    Some((segment, key[9], value.try_into().ok()?))
}

impl Epochs {
    /// Reads everything that both superblocks lead to, except contents. The volume was opened for
    /// repair ([`super::OpenOptions::repair`]).
    ///
    /// # Errors
    /// If the storage cannot even be listed, or nothing of the tree can be read: then there is
    /// nothing to repair, and only a backup helps.
    pub fn survey(&self) -> Result<Survey, Error> {
        let chosen = self.superblock();
        let mut surveyor = Surveyor {
            epochs: self,
            used: DurableBitmaps::default(),
            nodes: DurableBitmaps::default(),
            copies: Vec::new(),
            shared: BTreeSet::new(),
            marks: Marks::default(),
            lost: Vec::new(),
            older: false,
            slots: Vec::new(),
            key: Vec::new(),
        };
        let root = root_of(&chosen);
        tree::walk(&self.nodes, root.as_ref(), &mut surveyor);
        if let Some(root) = root.filter(|_| surveyor.lost == [(Vec::new(), None)]) {
            return Err(tree::Error::Damaged(root.pointer).into());
        }
        surveyor.older = true;
        for superblock in self.superblocks().into_iter().flatten() {
            let root = root_of(&superblock);
            if superblock.sequence != chosen.sequence {
                tree::walk(&self.nodes, root.as_ref(), &mut surveyor);
            }
            if let Ok(delta) = delta::read(&self.nodes, superblock.delta) {
                let chain = delta.chain.iter().flatten().copied();
                for slot in chain.chain(slots_of(&delta.used)) {
                    surveyor.take(slot);
                }
            }
        }
        self.replayed_slots(&mut surveyor)?;
        let Surveyor { used, nodes, copies, shared, marks, lost, .. } = surveyor;
        let segments =
            self.storage.segments().map_err(|source| storage_error("list segments", source))?;
        let length = |number: u32| {
            let length = self.storage.length(FileId::Segment(number)).ok().flatten();
            (number, length.unwrap_or(0))
        };
        let lengths = segments.iter().map(|number| length(*number)).collect();
        let space = self.space_beside(&used, segments)?;
        Ok(Survey { chosen, marks, space, used, lost, nodes, copies, shared, lengths })
    }

    /// An allocator for nodes that hands out nothing that is in use.
    fn space_beside(&self, used: &DurableBitmaps, existing: Vec<u32>) -> Result<Space, Error> {
        let mut segments: BTreeSet<u32> = existing.into_iter().collect();
        let highest = highest_segment(segments.last());
        for number in used.segments() {
            // Slots of a segment that is missing are in use all the same: it must be known.
            let holds_nodes = Class::of(number) != Class::Data;
            if holds_nodes && number <= highest && segments.insert(number) {
                restore_segment(&*self.storage, number)
                    .map_err(|source| storage_error("making a segment anew", source))?;
            }
        }
        let segments: Vec<u32> = segments.into_iter().collect();
        let space = Space::new(self.storage.clone(), used, &segments, BACKING_SLOTS, false);
        // On a full disk the volume's reserve is what there is room in.
        space.learn_backed();
        Ok(space)
    }

    /// Notes what records refer to that opening put into the overlay.
    fn replayed_slots(&self, surveyor: &mut Surveyor<'_>) -> Result<(), Error> {
        self.overlay.seal();
        for change in self.overlay.sealed_batch() {
            let Some(value) = &change.value else { continue };
            let mut slots = Vec::new();
            (self.decode_slots)(&change.key, value, &mut slots)
                .map_err(|what| storage_error("replay", io::Error::other(what)))?;
            slots.into_iter().for_each(|slot| surveyor.take(slot));
        }
        Ok(())
    }

    /// Makes a rebuilt state the newest one, in `storage`: its superblock takes the place of the
    /// older one. What this was opened with is not used for writing after that.
    ///
    /// # Errors
    /// If writing or the sync fails: then it is not known which state is the newest, and either is
    /// whole.
    pub fn adopt(&self, storage: &dyn Storage, rebuilt: &Rebuilt) -> Result<(), Error> {
        let superblock = &rebuilt.superblock;
        for file in [FileId::SuperA, FileId::SuperB] {
            let make = |length: Option<u64>| match length {
                Some(_) => Ok(()),
                None => storage.create(file).and_then(|()| storage.sync_directory()),
            };
            storage
                .length(file)
                .and_then(make)
                .map_err(|source| storage_error("superblock", source))?;
        }
        super::superblocks::write(storage, &self.keys, self.volume_id, superblock)
            .map_err(|source| storage_error("superblock", source))?;
        // Not before: contents that carry no tags would look as if they were there.
        for &segment in &rebuilt.segments {
            restore_segment(storage, segment)
                .map_err(|source| storage_error("making a segment anew", source))?;
        }
        Ok(())
    }
}

/// The highest number of a segment that can be missing.
fn highest_segment(last: Option<&u32>) -> u32 {
    last.copied().unwrap_or(0).saturating_add(SEGMENTS_ABOVE)
}

/// Makes a segment whole; what is missing of it reads as zeros.
fn restore_segment(storage: &dyn Storage, segment: u32) -> io::Result<()> {
    let file = FileId::Segment(segment);
    match storage.length(file)? {
        Some(length) if length >= SEGMENT_BYTES => return Ok(()),
        Some(_) => {}
        None => storage.create(file)?,
    }
    storage.set_length(file, SEGMENT_BYTES)?;
    storage.sync(file)?;
    storage.sync_directory()
}

impl Survey {
    /// Nodes of which no copy authenticates.
    pub fn lost_nodes(&self) -> usize {
        self.marks.lost()
    }

    /// Segments that hold something in one of the states, and are missing or too short.
    pub fn bad_segments(&self) -> Vec<(u32, &'static str)> {
        let highest = highest_segment(self.lengths.keys().next_back());
        let state = |number: u32| match self.lengths.get(&number) {
            None => Some((number, "is missing")),
            Some(length) if *length < SEGMENT_BYTES => Some((number, "is too short")),
            Some(_) => None,
        };
        let named = self.used.segments().into_iter();
        named.filter(|number| *number <= highest).filter_map(state).collect()
    }
}

impl<'a> Rebuild<'a> {
    /// Begins with everything that can be read.
    ///
    /// # Errors
    /// Those of reading and writing nodes; likewise for every method below.
    pub fn begin(epochs: &'a Epochs, survey: &'a Survey) -> Result<Self, Error> {
        let writer = NodeWriter::new(&epochs.nodes, &survey.space, epochs.keys.current_epoch())
            .ok_or_else(|| storage_error("seal", io::Error::other("no metadata key")))?;
        let (root, pending) = (root_of(&survey.chosen), BTreeMap::new());
        let mut rebuild = Self { epochs, survey, writer, root, pending, pending_bytes: 0 };
        rebuild.root = tree::prune(&mut rebuild.writer, rebuild.root, &survey.marks)?;
        rebuild.apply(&epochs.overlay.sealed_batch())?;
        Ok(rebuild)
    }

    /// The value of a record.
    pub fn get(&self, key: &[u8]) -> Result<Option<Record>, Error> {
        if let Some(value) = self.pending.get(key) {
            return Ok(value.clone().map(Record::Overlay));
        }
        Ok(tree::get(&self.writer, self.root.as_ref(), key)?.map(Record::Leaf))
    }

    /// The first records of `from..to`, as they were at the last [`Rebuild::flush`].
    pub fn page(&self, from: &[u8], to: &[u8]) -> Result<RecordPage, Error> {
        let mut page = RecordPage { records: Vec::new(), next: None };
        tree::range(&self.writer, self.root.as_ref(), from, to, &mut |key, value| {
            page.records.push((Key::from(key), Arc::from(value)));
            if page.records.len() < PAGE_RECORDS {
                return ControlFlow::Continue(());
            }
            page.next = Some([key, &[0]].concat());
            ControlFlow::Break(())
        })?;
        Ok(page)
    }

    /// Stores or deletes a record.
    pub fn put(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), Error> {
        self.pending_bytes += PENDING_OVERHEAD + key.len() + value.map_or(0, <[u8]>::len);
        self.pending.insert(key.into(), value.map(Arc::from));
        if self.pending_bytes > PENDING_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    /// Brings the tree up to date with all changes.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.pending_bytes = 0;
        let changes = std::mem::take(&mut self.pending).into_iter();
        let batch: Vec<Change> = changes.map(|(key, value)| Change { key, value }).collect();
        self.apply(&batch)
    }

    fn apply(&mut self, batch: &[Change]) -> Result<(), Error> {
        self.root = tree::apply(&mut self.writer, self.root, batch, &mut |_, _, _| {})?;
        Ok(())
    }

    /// Stores which slots are in use and makes everything durable but a superblock. Fails if two
    /// records refer to one slot.
    pub fn finish(mut self) -> Result<Rebuilt, Error> {
        self.flush()?;
        let bitmaps = self.count_slots()?;
        // Bitmaps say what is in use before they are written; the delta says what that changed.
        let freed_before = self.writer.freed.len();
        self.store_bitmaps(bitmaps)?;
        let written: BTreeSet<Slot> = self.writer.written.iter().flatten().copied().collect();
        let freed: Vec<Slot> = self.writer.freed[freed_before..]
            .iter()
            .flatten()
            .filter(|slot| !written.contains(slot))
            .copied()
            .collect();
        let mut used = written;
        let dropped: BTreeSet<Slot> = self.writer.freed.iter().flatten().copied().collect();
        used.retain(|slot| !dropped.contains(slot));
        let (pointer, _) = delta::write(&mut self.writer, used.into_iter().collect(), freed)?;
        self.writer.finish()?;
        self.sync()?;
        let options = CommitOptions { clean: true, ..CommitOptions::default() };
        let chosen = &self.survey.chosen;
        // What the log said is in the tree.
        let log = self.epochs.log.start_after(chosen.log);
        let superblock = next_superblock(chosen, self.root, pointer, log, &options);
        let segments = self.survey.bad_segments().into_iter().map(|(number, _)| number).collect();
        Ok(Rebuilt { superblock, segments })
    }

    /// The slots that the tree refers to, without those of its new nodes.
    fn count_slots(&self) -> Result<DurableBitmaps, Error> {
        let new = self.writer.written.iter().map(|slots| slots[0]).collect();
        let mut count = Count {
            epochs: self.epochs,
            new,
            bitmaps: DurableBitmaps::default(),
            problem: None,
            slots: Vec::new(),
            key: Vec::new(),
        };
        tree::walk(&self.writer, self.root.as_ref(), &mut count);
        match count.problem {
            Some(problem) => Err(storage_error("repair", io::Error::other(problem))),
            None => Ok(count.bitmaps),
        }
    }

    fn store_bitmaps(&mut self, mut bitmaps: DurableBitmaps) -> Result<(), Error> {
        let (from, to) = ([Table::Space as u8], [Table::Space as u8 + 1]);
        let mut batch: BTreeMap<Key, Value> = BTreeMap::new();
        tree::range(&self.writer, self.root.as_ref(), &from, &to, &mut |key, _| {
            batch.insert(Key::from(key), None);
            ControlFlow::Continue(())
        })?;
        for ((segment, piece), bits) in bitmaps.take_changed() {
            let bits = bits.map(|bits| Arc::from(&bits[..]));
            batch.insert(Arc::from(&space_key(segment, piece)[..]), bits);
        }
        let batch: Vec<Change> =
            batch.into_iter().map(|(key, value)| Change { key, value }).collect();
        self.apply(&batch)
    }

    fn sync(&self) -> Result<(), Error> {
        let failed = |source| storage_error("sync", source);
        if self.survey.space.take_directory_dirty() {
            self.epochs.storage.sync_directory().map_err(failed)?;
        }
        let segments: BTreeSet<u32> =
            self.writer.written.iter().flatten().map(|slot| slot.segment()).collect();
        for segment in segments {
            self.epochs.storage.sync(FileId::Segment(segment)).map_err(failed)?;
        }
        Ok(())
    }
}

/// Counts which slots a tree refers to.
struct Count<'a> {
    epochs: &'a Epochs,
    /// First slots of nodes that are not counted.
    new: BTreeSet<Slot>,
    bitmaps: DurableBitmaps,
    problem: Option<String>,
    slots: Vec<Slot>,
    key: Vec<u8>,
}

impl Count<'_> {
    fn refer(&mut self, slot: Slot) {
        if !self.bitmaps.set(slot, true) {
            self.problem = Some(format!("slot {} would be used twice", slot.0));
        }
    }
}

impl Visitor for Count<'_> {
    fn enter(&mut self, place: Place<'_>) -> bool {
        if !self.new.contains(&place.pointer.slots[0]) {
            place.pointer.slots.into_iter().for_each(|slot| self.refer(slot));
        }
        true
    }

    fn node(&mut self, place: Place<'_>, node: &Node) {
        if place.level > 0 {
            return;
        }
        for index in 0..node.len() {
            self.key.clear();
            node.append_key(index, &mut self.key);
            let mut slots = std::mem::take(&mut self.slots);
            slots.clear();
            if let Err(what) = (self.epochs.decode_slots)(&self.key, node.value(index), &mut slots)
            {
                self.problem = Some(format!("a malformed record is left: {what}"));
            }
            slots.iter().for_each(|slot| self.refer(*slot));
            self.slots = slots;
        }
    }

    fn damaged(&mut self, _: Place<'_>, error: &tree::Error) {
        self.problem = Some(error.to_string());
    }
}

fn root_of(superblock: &Superblock) -> Option<Root> {
    superblock.root.map(|(pointer, level)| Root { pointer, level })
}
