//! Replaying the log: what happened after the last durable epoch.
//!
//! The log ends at the first record that does not chain. What is before its last *flushed* mark is
//! believed; behind it a change is believed only if every page that it refers to is there. So what
//! is found is the durable epoch and a prefix of the changes after it, which contains all that a
//! flush had acknowledged.

use super::log::{nonce, sealing_key};
use super::overlay::{Key, Value};
use crate::crypto::{PageKey, Tag};
use crate::defect::{self, Defect};
use crate::format::log::{BLOCK_BYTES, HEADER_BYTES, Header, Item, Items, LogStart, page_sum};
use crate::format::{PAGE_BYTES, SEGMENT_BYTES, Slot, VolumeId};
use crate::key::VolumeKeys;
use crate::space::{Class, DurableBitmaps};
use crate::storage::{FileId, Storage};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// What the log said.
#[derive(Default)]
pub(super) struct Replayed {
    /// Records that changed, in order.
    pub(super) puts: Vec<(Key, Value)>,
    /// Notes of the layer above, in order.
    pub(super) notes: Vec<Box<[u8]>>,
    /// Slots that the records refer to, or referred to for a while.
    pub(super) slots: Vec<Slot>,
    /// Where the last believed record ends.
    pub(super) end: u64,
    /// How many changes were found.
    pub(super) changes: u64,
    /// Changes whose contents did not reach the disk, and that nobody had synced.
    pub(super) dropped: u64,
    /// A record is damaged that a flush had made durable.
    pub(super) damaged: bool,
}

/// A record that authenticates.
struct Parsed {
    position: u64,
    items: Vec<u8>,
}

/// Where a slot's bytes stand in the log.
struct Image {
    record: usize,
    bytes: Range<usize>,
}

struct Reader<'a> {
    storage: &'a dyn Storage,
    keys: &'a VolumeKeys,
    volume_id: VolumeId,
    start: LogStart,
}

/// Reads the log from `start` on, brings the contents that it holds into their slots, and returns
/// the changes. `used` are the slots that the durable tree refers to: the log never writes there.
///
/// Everything but writing contents fails softly: what cannot be read is where the log ends.
///
/// # Errors
/// If a slot cannot be written.
pub(super) fn replay(
    storage: &dyn Storage,
    keys: &VolumeKeys,
    volume_id: VolumeId,
    start: LogStart,
    used: &DurableBitmaps,
) -> io::Result<Replayed> {
    let reader = Reader { storage, keys, volume_id, start };
    let (records, damaged) = reader.read_records();
    let flushed = records.iter().flat_map(items).fold(0, |flushed, item| {
        if let Item::Flushed { through } = item { flushed.max(through) } else { flushed }
    });
    let images = find_images(&records);
    let mut replayed = Replayed { end: start.position, damaged, ..Replayed::default() };
    let mut contents = BTreeMap::new();
    for (index, record) in records.iter().enumerate() {
        let pages = pages_of(record);
        let believed = record.position < flushed
            || defect::active(Defect::BelievePages)
            || pages.iter().all(|page| images.contains_key(page) || reader.holds(page));
        let free = pages
            .iter()
            .all(|&(slot, _)| !used.is_used(slot) && Class::of(slot.segment()) == Class::Data);
        if !free {
            log::error!("the log refers to slots that are in use; it is replayed up to there");
        }
        if !believed || !free {
            let rest = &records[index..];
            replayed.dropped = rest.iter().filter(|record| is_change(record)).count() as u64;
            break;
        }
        contents.extend(pages);
        replayed.take(record);
    }
    for (slot, sum) in &contents {
        let found = images.get(&(*slot, *sum));
        if let Some(image) = found.filter(|_| !defect::active(Defect::KeepImages)) {
            restore(storage, *slot, &records[image.record].items[image.bytes.clone()])?;
        }
    }
    replayed.slots = contents.into_keys().collect();
    Ok(replayed)
}

impl Replayed {
    fn take(&mut self, record: &Parsed) {
        self.changes += u64::from(is_change(record));
        self.end = record.position + crate::format::log::record_bytes(record.items.len());
        for item in items(record) {
            match item {
                Item::Put { key, value } => {
                    self.puts.push((Key::from(key), Some(Arc::from(value))));
                }
                Item::Delete { key } => self.puts.push((Key::from(key), None)),
                Item::Note(note) => self.notes.push(note.into()),
                Item::Flushed { .. } | Item::Sealed { .. } => {
                    self.end = self.end.next_multiple_of(BLOCK_BYTES);
                }
                Item::Pages { .. } | Item::Image { .. } => {}
            }
        }
    }
}

/// The items of a record that was checked to be well formed.
fn items(record: &Parsed) -> impl Iterator<Item = Item<'_>> {
    Items::new(&record.items).flatten()
}

fn is_change(record: &Parsed) -> bool {
    items(record).any(|item| matches!(item, Item::Put { .. } | Item::Delete { .. }))
}

/// The slots that a record refers to, each with the sum of its bytes.
fn pages_of(record: &Parsed) -> Vec<(Slot, u64)> {
    let mut pages = Vec::new();
    for item in items(record) {
        if let Item::Pages { first, sums } = item {
            let sums = sums.chunks_exact(8).map(|sum| sum.try_into().expect("8 bytes"));
            pages.extend((first.0..).map(Slot).zip(sums.map(u64::from_le_bytes)));
        }
    }
    pages
}

/// By slot and sum, so that what a slot held before it was written anew is never taken for it.
fn find_images(records: &[Parsed]) -> BTreeMap<(Slot, u64), Image> {
    let mut images = BTreeMap::new();
    for (index, record) in records.iter().enumerate() {
        for item in items(record) {
            if let Item::Image { slot, bytes } = item {
                let from = bytes.as_ptr() as usize - record.items.as_ptr() as usize;
                let image = Image { record: index, bytes: from..from + PAGE_BYTES };
                images.insert((slot, page_sum(bytes)), image);
            }
        }
    }
    images
}

/// Brings a slot's bytes where they belong. Its segment may be missing: the directory is synced
/// only when contents are not in the log.
fn restore(storage: &dyn Storage, slot: Slot, bytes: &[u8]) -> io::Result<()> {
    let file = FileId::Segment(slot.segment());
    if storage.length(file)?.unwrap_or(0) < SEGMENT_BYTES {
        match storage.create(file) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        storage.set_length(file, SEGMENT_BYTES)?;
    }
    storage.write_at(file, slot.offset(), bytes)
}

impl Reader<'_> {
    /// All records up to the first that does not chain, and whether that one must have been there.
    fn read_records(&self) -> (Vec<Parsed>, bool) {
        let mut records = Vec::new();
        let LogStart { position, salt, key_epoch, .. } = self.start;
        let mut key = sealing_key(self.keys, key_epoch, &salt);
        let (mut position, mut sequence, mut before) = (position, 0, salt);
        while let Some(known) = &key {
            let Some((header, items)) = self.read_record(known, position, sequence, &before) else {
                return (records, self.is_promised(known, position, sequence));
            };
            if Items::new(&items).any(|item| item.is_err()) {
                log::error!("a record of the log is malformed; it is replayed up to there");
                break;
            }
            let record = Parsed { position, items };
            position += header.record_bytes();
            (sequence, before) = (sequence + 1, header.tag);
            for item in self::items(&record) {
                match item {
                    Item::Flushed { .. } => position = position.next_multiple_of(BLOCK_BYTES),
                    Item::Sealed { .. } if defect::active(Defect::StopAtSealed) => {
                        return (records, false);
                    }
                    Item::Sealed { key_epoch, salt } => {
                        position = position.next_multiple_of(BLOCK_BYTES);
                        key = sealing_key(self.keys, key_epoch, &salt);
                        (sequence, before) = (0, salt);
                    }
                    _ => {}
                }
            }
            records.push(record);
        }
        (records, false)
    }

    /// Whether a record that does not authenticate is followed by a mark that says that it was
    /// durable: then it is damaged, and not where the log ends. Found only if its header is whole.
    fn is_promised(&self, key: &PageKey, mut position: u64, mut sequence: u64) -> bool {
        let first = position;
        let mut header = match self.read_header(position) {
            Some(header) if header.sequence == sequence => header,
            _ => return false,
        };
        loop {
            position += header.record_bytes();
            sequence += 1;
            let next = self.read_record(key, position, sequence, &header.tag);
            let Some((next, items)) = next else { return false };
            let promised = |item| matches!(item, Ok(Item::Flushed { through }) if through > first);
            if Items::new(&items).any(promised) {
                return true;
            }
            header = next;
        }
    }

    fn read_header(&self, position: u64) -> Option<Header> {
        let mut bytes = [0; HEADER_BYTES];
        self.read(position, &mut bytes)?;
        let header = Header::decode(&bytes)?;
        let end = position.checked_add(header.record_bytes())?;
        (end - self.start.position <= self.start.capacity).then_some(header)
    }

    /// The record at a position, if it is one and continues what was before it.
    fn read_record(
        &self,
        key: &PageKey,
        position: u64,
        sequence: u64,
        before: &[u8; 16],
    ) -> Option<(Header, Vec<u8>)> {
        let header = self.read_header(position).filter(|header| header.sequence == sequence)?;
        let mut sealed = vec![0; header.length as usize];
        self.read(position + HEADER_BYTES as u64, &mut sealed)?;
        let mut items = vec![0; sealed.len()];
        let aad = header.associated_data(self.volume_id, position, before);
        key.open(nonce(sequence), &aad, Tag(header.tag), &sealed, &mut items).ok()?;
        Some((header, items))
    }

    /// Reads from the ring.
    fn read(&self, position: u64, buffer: &mut [u8]) -> Option<()> {
        let capacity = self.start.capacity;
        let offset = position % capacity;
        let until_end = (capacity - offset).min(buffer.len() as u64) as usize;
        let (first, rest) = buffer.split_at_mut(until_end);
        let mut read = self.storage.read_at(FileId::Log, offset, first);
        if read.is_ok() && !rest.is_empty() {
            read = self.storage.read_at(FileId::Log, 0, rest);
        }
        if let Err(error) = &read {
            log::error!(
                "the log cannot be read ({error}): what was synced after the last epoch, a few \
                 seconds at most, may be lost"
            );
        }
        read.ok()
    }

    /// Whether a slot has the bytes that it should have.
    fn holds(&self, &(slot, sum): &(Slot, u64)) -> bool {
        let mut sealed = [0; PAGE_BYTES];
        let file = FileId::Segment(slot.segment());
        self.storage.read_at(file, slot.offset(), &mut sealed).is_ok() && page_sum(&sealed) == sum
    }
}
