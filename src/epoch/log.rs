//! The log: what happened since the last durable epoch, appended as it happens, so that `fsync`
//! needs one flush and a killed daemon loses nothing.
//!
//! A ring in a file that is as long as it will ever be and was written once, so that appending
//! allocates nothing. What cannot be logged (no room, a failed write) makes a *gap*: from there on
//! only the end of the epoch makes anything durable, until that epoch is.

use crate::crypto::{Cipher, Nonce, PageKey, Tag, kdf, random};
use crate::defect::{self, Defect};
use crate::format::log::{BLOCK_BYTES, HEADER_BYTES, Header, Item, LogStart};
use crate::format::{PAGE_BYTES, Slot, VolumeId};
use crate::key::VolumeKeys;
use crate::space::SlotRun;
use crate::storage::{FileId, Storage};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The smallest log in bytes, for volumes on small disks.
const CAPACITY_MIN: u64 = 256 << 10;
/// The largest.
const CAPACITY_MAX: u64 = 64 << 20;
/// What a new log is written in.
const ZEROS_BYTES: usize = 1 << 20;
/// Contents up to this many bytes go into the log with a flush; of more, the segments are synced.
const IMAGES_BYTES_MAX: u64 = 64 << 10;

/// Memory for records that is kept for the next one.
const RECORD_KEPT_BYTES: usize = 128 << 10;

/// The log of a volume.
pub(super) struct Log {
    storage: Arc<dyn Storage>,
    keys: Arc<VolumeKeys>,
    volume_id: VolumeId,
    /// 0: there is no log.
    capacity: u64,
    state: Mutex<State>,
    /// Whether a flush is under way. Nothing else is locked while this is.
    flushing: Mutex<bool>,
    flushed: Condvar,
    /// Everything before this position is durable.
    durable: AtomicU64,
}

struct State {
    /// Where changes are logged; `None` while there is a gap in the open epoch.
    region: Option<Region>,
    /// Where the next record goes.
    head: u64,
    /// What is before is not needed any more.
    tail: u64,
    /// The last epoch of which something is not in the log.
    gap: Option<u64>,
    /// Slots that were written and not synced, by epoch, oldest first.
    unsynced: VecDeque<(u64, SlotRun)>,
    /// A record on its way to the disk, sealed.
    record: Vec<u8>,
}

/// The records of one epoch, under one key.
struct Region {
    key: PageKey,
    start: u64,
    sequence: u64,
    /// Tag of the last record, or the salt.
    before: [u8; 16],
}

/// The turn to flush; over when it is dropped.
pub(super) struct Turn<'a>(&'a Log);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.flushing.lock() = false;
        self.0.flushed.notify_all();
    }
}

/// What a flush has to take care of.
pub(super) struct Unsynced {
    /// Slots that the records before `through` refer to, by epoch.
    runs: VecDeque<(u64, SlotRun)>,
    /// The position up to which the flush reaches.
    pub(super) through: u64,
}

/// Whether the contents of these slots fit into the log.
fn fit(runs: &VecDeque<(u64, SlotRun)>) -> bool {
    let slots: u64 = runs.iter().map(|(_, run)| u64::from(run.count)).sum();
    slots * PAGE_BYTES as u64 <= IMAGES_BYTES_MAX
}

impl Unsynced {
    /// The slots.
    pub(super) fn runs(&self) -> impl Iterator<Item = SlotRun> + '_ {
        self.runs.iter().map(|(_, run)| *run)
    }

    /// Whether their contents fit into the log.
    pub(super) fn fit(&self) -> bool {
        fit(&self.runs)
    }

    /// The segments that they are in.
    pub(super) fn segments(&self) -> BTreeSet<u32> {
        self.runs().map(|run| run.first.segment()).collect()
    }
}

/// Bytes that the log of a volume on a disk of that size takes: 1/256, 256 KiB to 64 MiB.
pub fn log_bytes_for(disk_bytes: u64) -> u64 {
    (disk_bytes / 256).clamp(CAPACITY_MIN, CAPACITY_MAX).next_multiple_of(BLOCK_BYTES)
}

/// Makes the file `log` as long as it has to be, with zeros, and syncs it. The directory is for the
/// caller to sync.
pub(super) fn create(storage: &dyn Storage, capacity: u64) -> io::Result<()> {
    match storage.create(FileId::Log) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    let mut offset = storage.length(FileId::Log)?.unwrap_or(0).min(capacity);
    if offset < capacity {
        storage.allocate(FileId::Log, offset, capacity - offset)?;
    }
    let zeros = vec![0; ZEROS_BYTES];
    while offset < capacity {
        let count = (capacity - offset).min(ZEROS_BYTES as u64);
        storage.write_at(FileId::Log, offset, &zeros[..count as usize])?;
        offset += count;
    }
    storage.sync(FileId::Log)
}

/// The key that seals the records under a salt; `None` if the key epoch is not known.
pub(super) fn sealing_key(keys: &VolumeKeys, key_epoch: u32, salt: &[u8; 16]) -> Option<PageKey> {
    let metadata_key = keys.metadata_key(key_epoch)?;
    Some(PageKey::new(Cipher::Aes256Gcm, &kdf::derive(metadata_key, "atrest log v1", salt, 32)))
}

/// The nonce of a record: its number under a key that nothing else uses.
pub(super) fn nonce(sequence: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&sequence.to_le_bytes());
    Nonce(bytes)
}

/// A place to start at in a log that has nothing to say.
pub(super) fn fresh_start(keys: &VolumeKeys, position: u64, capacity: u64) -> LogStart {
    let mut salt = [0; 16];
    random::fill(&mut salt);
    LogStart { position, capacity, key_epoch: keys.current_epoch(), salt }
}

impl Log {
    /// A log that starts to record when the epoch numbered `open` is sealed. The records from
    /// `tail` to `head` are those that opening found.
    pub(super) fn new(
        storage: &Arc<dyn Storage>,
        keys: &Arc<VolumeKeys>,
        volume_id: VolumeId,
        capacity: u64,
        (tail, head): (u64, u64),
        open: u64,
    ) -> Self {
        let head = head.next_multiple_of(BLOCK_BYTES);
        let (region, gap, unsynced) = (None, Some(open), VecDeque::new());
        let record = Vec::new();
        let state = Mutex::new(State { region, head, tail, gap, unsynced, record });
        let (flushing, flushed) = (Mutex::new(false), Condvar::new());
        let (storage, keys, durable) = (storage.clone(), keys.clone(), AtomicU64::new(tail));
        Self { storage, keys, volume_id, capacity, state, flushing, flushed, durable }
    }

    /// No log: for a volume that is not written to.
    pub(super) fn none(
        storage: &Arc<dyn Storage>,
        keys: &Arc<VolumeKeys>,
        volume_id: VolumeId,
    ) -> Self {
        Self::new(storage, keys, volume_id, 0, (0, 0), 0)
    }

    /// Remembers slots of the open epoch that were written and not synced. The caller holds the
    /// gate.
    pub(super) fn note_unsynced(&self, epoch: u64, runs: &[SlotRun]) {
        self.state.lock().unsynced.extend(runs.iter().map(|run| (epoch, *run)));
    }

    /// Appends a change of the open epoch. The caller holds the gate and the locks of what it
    /// changed, so that records that concern one another are in their order.
    pub(super) fn append_change(&self, epoch: u64, items: &[u8]) {
        self.append(&mut self.state.lock(), epoch, items);
    }

    /// False, and a gap, if that cannot be.
    fn append(&self, state: &mut State, epoch: u64, items: &[u8]) -> bool {
        let Some(region) = &mut state.region else {
            state.gap = state.gap.max(Some(epoch));
            return false;
        };
        let mut header = Header {
            length: u32::try_from(items.len()).expect("a change has a few MiB at most"),
            sequence: region.sequence,
            tag: [0; 16],
        };
        let bytes = header.record_bytes();
        let fits = state.head + bytes <= state.tail + self.capacity;
        let written = fits && {
            // To the end of the block, which nothing else is in: the filesystem below need not read
            // what the rest of it holds.
            let end = (state.head + bytes).next_multiple_of(BLOCK_BYTES);
            state.record.clear();
            state.record.resize((end - state.head) as usize, 0);
            let record = &mut state.record[..];
            let aad = header.associated_data(self.volume_id, state.head, &region.before);
            let sealed = &mut record[HEADER_BYTES..][..items.len()];
            Tag(header.tag) = region.key.seal(nonce(region.sequence), &aad, items, sealed);
            record[..HEADER_BYTES].copy_from_slice(&header.encode());
            self.write(state.head, record)
        };
        if state.record.len() > RECORD_KEPT_BYTES {
            state.record = Vec::new();
        }
        if !written {
            if !defect::active(Defect::IgnoreGap) {
                state.region = None;
                state.gap = state.gap.max(Some(epoch));
            }
            return false;
        }
        region.sequence += 1;
        region.before = header.tag;
        state.head += bytes;
        true
    }

    /// Writes into the ring. A failure is logged: the epoch's end is what makes changes durable
    /// then.
    fn write(&self, position: u64, record: &[u8]) -> bool {
        let offset = position % self.capacity;
        let until_end = (self.capacity - offset).min(record.len() as u64) as usize;
        let (first, rest) = record.split_at(until_end);
        let mut written = self.storage.write_at(FileId::Log, offset, first);
        if written.is_ok() && !rest.is_empty() {
            written = self.storage.write_at(FileId::Log, 0, rest);
        }
        if let Err(error) = &written {
            log::warn!("writing to the log failed ({error}); fsync ends epochs until it works");
        }
        written.is_ok()
    }

    /// Epoch `number` is being sealed: what follows is recorded apart. Returns where, for that
    /// epoch's superblock. The caller holds the gate alone.
    pub(super) fn seal(&self, number: u64) -> Option<LogStart> {
        if self.capacity == 0 {
            return None;
        }
        let mut state = self.state.lock();
        if defect::active(Defect::SealForgetsPages) {
            state.unsynced.clear();
        }
        let mut start = fresh_start(&self.keys, 0, self.capacity);
        let mut items = Vec::new();
        Item::Sealed { key_epoch: start.key_epoch, salt: start.salt }.encode(&mut items);
        self.append(&mut state, number, &items);
        state.head = state.head.next_multiple_of(BLOCK_BYTES);
        start.position = state.head;
        state.region = sealing_key(&self.keys, start.key_epoch, &start.salt).map(|key| Region {
            key,
            start: start.position,
            sequence: 0,
            before: start.salt,
        });
        Some(start)
    }

    /// A place behind everything that the log from `start` on may say, for a superblock that knows
    /// it already.
    pub(super) fn start_after(&self, start: Option<LogStart>) -> Option<LogStart> {
        let LogStart { position, capacity, .. } = start?;
        Some(fresh_start(&self.keys, position + capacity, capacity))
    }

    /// Epoch `number` is durable, and the log from `start` on is what comes after it.
    pub(super) fn release(&self, number: u64, start: Option<LogStart>) {
        let Some(start) = start else { return };
        let mut state = self.state.lock();
        state.tail = start.position;
        if state.gap.is_some_and(|gap| gap <= number) {
            state.gap = None;
        }
        self.forget_synced(&mut state, number);
        self.durable.fetch_max(start.position, Ordering::AcqRel);
    }

    /// The pages of epochs up to `number` are durable.
    fn forget_synced(&self, state: &mut State, number: u64) {
        while state.unsynced.front().is_some_and(|(epoch, _)| *epoch <= number) {
            state.unsynced.pop_front();
        }
    }

    /// Where the next record goes; `None` if the log does not say all that happened.
    pub(super) fn head(&self) -> Option<u64> {
        let state = self.state.lock();
        (self.capacity > 0 && state.gap.is_none()).then_some(state.head)
    }

    /// Whether everything before `position` is durable.
    pub(super) fn is_durable(&self, position: u64) -> bool {
        self.durable.load(Ordering::Acquire) >= position
    }

    /// Waits until everything before `position` is durable, or it is the caller's turn to flush.
    /// Everybody whom a flush serves goes on at once.
    pub(super) fn wait_for_turn(&self, position: u64) -> Option<Turn<'_>> {
        let mut flushing = self.flushing.lock();
        while *flushing && !self.is_durable(position) {
            self.flushed.wait(&mut flushing);
        }
        if self.is_durable(position) {
            return None;
        }
        *flushing = true;
        Some(Turn(self))
    }

    /// The caller's turn, if no flush is under way.
    pub(super) fn try_turn(&self) -> Option<Turn<'_>> {
        let mut flushing = self.flushing.lock();
        // Not `then_some`: a turn that is made must be dropped, and that would take this lock.
        (!std::mem::replace(&mut *flushing, true)).then(|| Turn(self))
    }

    /// Whether a flush would be one of a few pages.
    pub(super) fn is_short(&self) -> bool {
        fit(&self.state.lock().unsynced)
    }

    /// Takes what was written and not synced, for a flush.
    pub(super) fn take_unsynced(&self) -> Unsynced {
        let mut state = self.state.lock();
        let mut runs = std::mem::take(&mut state.unsynced);
        if defect::active(Defect::OnlyLastPages) {
            runs.drain(..runs.len().saturating_sub(1));
        }
        Unsynced { runs, through: state.head }
    }

    /// Takes back what a flush did not take care of.
    pub(super) fn return_unsynced(&self, unsynced: Unsynced) {
        let mut state = self.state.lock();
        let newer = std::mem::replace(&mut state.unsynced, unsynced.runs);
        state.unsynced.extend(newer);
    }

    /// Appends the mark that everything before `through` is durable, behind the contents of slots
    /// that are not durable where they belong, and flushes. False if the log does not say all that
    /// happened, so that only the end of the epoch helps.
    ///
    /// # Errors
    /// If the flush fails, after which nobody knows what is durable.
    pub(super) fn flush(&self, through: u64, images: &BTreeMap<Slot, Vec<u8>>) -> io::Result<bool> {
        let mut items = Vec::new();
        for (&slot, bytes) in images {
            Item::Image { slot, bytes }.encode(&mut items);
        }
        Item::Flushed { through }.encode(&mut items);
        let durable = {
            let mut state = self.state.lock();
            // What was appended since refers to pages that this flush does not take care of.
            let complete = state.head == through;
            if state.gap.is_some() || !self.append_mark(&mut state, &items) {
                return Ok(false);
            }
            state.head = state.head.next_multiple_of(BLOCK_BYTES);
            if complete { state.head } else { through }
        };
        if !defect::active(Defect::NoFlush) {
            self.storage.sync(FileId::Log)?;
        }
        self.durable.fetch_max(durable, Ordering::AcqRel);
        Ok(true)
    }

    /// As [`Log::append`]; what does not fit makes no gap, for it changes nothing.
    fn append_mark(&self, state: &mut State, items: &[u8]) -> bool {
        let bytes = crate::format::log::record_bytes(items.len());
        // Room for the end of the epoch is kept, so that the log goes on after it.
        let room = bytes.next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES;
        state.head + room <= state.tail + self.capacity && self.append(state, 0, items)
    }

    /// Bytes that the open epoch has logged, bytes that are in use, and bytes that there are.
    pub(super) fn usage(&self) -> (u64, u64, u64) {
        let state = self.state.lock();
        let open = state.region.as_ref().map_or(0, |region| state.head - region.start);
        (open, state.head - state.tail, self.capacity)
    }
}
