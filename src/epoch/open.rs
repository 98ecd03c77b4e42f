//! Opening: choosing a superblock, and finding out what is free.

use super::commit::space_key;
use super::delta;
use super::log::{self as ring, Log, log_bytes_for};
use super::nodes::NodeStore;
use super::overlay::Overlay;
use super::replay::{Replayed, replay};
use super::superblocks::{self, Refused};
use super::{Committer, Epochs, Error, OpenData, SlotDecoder};
use crate::defect::{self, Defect};
use crate::format::record::Table;
use crate::format::superblock::Superblock;
use crate::format::{PAGE_BYTES, SEGMENT_BYTES, Slot, VolumeId, record};
use crate::key::VolumeKeys;
use crate::space::{Deferred, DurableBitmaps, PIECE_BYTES, Space, is_full, runs_of, slots_of};
use crate::storage::{FileId, Storage};
use crate::tree::{self, NodeSource as _, Root};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

/// How a volume is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Nothing is written, not even what was damaged.
    pub read_only: bool,
    /// For a repair: a state is opened although its free space is not known, rather than one
    /// before it. Only together with `read_only`.
    pub repair: bool,
    /// Memory for cached tree nodes, in bytes.
    pub node_cache_bytes: usize,
    /// Always take the lowest free slots, so that tests meet reused slots at once.
    pub first_fit: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { read_only: false, repair: false, node_cache_bytes: 48 << 20, first_fit: false }
    }
}

/// What was noticed while opening.
#[derive(Debug, Default)]
pub struct OpenReport {
    /// Sequence number of the superblock that was opened.
    pub sequence: u64,
    /// The volume was unmounted in order.
    pub clean: bool,
    /// Superblocks that could not be used, each with the reason.
    pub refused: Vec<(FileId, String)>,
    /// Changes after the last epoch that the log had.
    pub replayed: u64,
    /// Changes in the log whose contents had not reached the disk, and that nobody had synced.
    pub dropped: u64,
    /// A part of the log that had been synced is damaged; what came after it is lost.
    pub log_damaged: bool,
    /// The two superblocks are not consecutive: one was put back from an older copy.
    pub superblock_replayed: bool,
}

/// Why a volume cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither superblock can be used.
    #[error("neither superblock can be used: super.a: {a}; super.b: {b}")]
    NoSuperblock {
        /// Why not `super.a`.
        a: Refused,
        /// Why not `super.b`.
        b: Refused,
    },
    /// The configuration is not the one that the superblock is bound to.
    #[error("atrest.json is not the one that the volume was last used with")]
    ConfigReplaced,
    /// The tree cannot be read.
    #[error(transparent)]
    Engine(#[from] Error),
    /// A stored record breaks the format.
    #[error("a record of the volume is malformed: {0}")]
    Malformed(&'static str),
    /// The storage failed.
    #[error("{op} failed")]
    Storage {
        /// What was attempted.
        op: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Epochs {
    /// Makes the log and the superblocks of a new, empty volume. `config_digest` is that of its
    /// `atrest.json`, `log_bytes` the length of its log; see [`super::log_bytes_for`].
    ///
    /// # Errors
    /// If the storage fails.
    pub fn create(
        storage: &dyn Storage,
        keys: &VolumeKeys,
        volume_id: VolumeId,
        config_digest: [u8; 32],
        log_bytes: u64,
    ) -> io::Result<()> {
        ring::create(storage, log_bytes)?;
        for file in [FileId::SuperA, FileId::SuperB] {
            storage.create(file)?;
        }
        for sequence in [1, 2] {
            let superblock = Superblock {
                sequence,
                root: None,
                delta: None,
                clean: true,
                config_digest,
                config_digest_next: None,
                log: Some(ring::fresh_start(keys, 0, log_bytes)),
                committed: 0,
            };
            superblocks::write(storage, keys, volume_id, &superblock)?;
        }
        storage.sync_directory()
    }

    /// Opens the newest state that is whole.
    ///
    /// # Errors
    /// One [`OpenError`] per refusal.
    pub fn open(
        storage: Arc<dyn Storage>,
        keys: Arc<VolumeKeys>,
        volume_id: VolumeId,
        config_digest: [u8; 32],
        options: &OpenOptions,
        decode_slots: SlotDecoder,
    ) -> Result<(Self, OpenReport), OpenError> {
        let (newest, older, mut report) = choose(&*storage, &keys, volume_id)?;
        if !newest.knows(config_digest) {
            return Err(OpenError::ConfigReplaced);
        }
        let OpenOptions { read_only, node_cache_bytes, .. } = *options;
        let nodes =
            NodeStore::new(storage.clone(), keys.clone(), volume_id, node_cache_bytes, read_only);
        let Found { superblock: newest, bitmaps, delta, used, kept, space_damage } =
            find_whole(&nodes, newest, older, options, &mut report)?;
        let (log, replayed) = if space_damage.is_none() || options.repair {
            open_log(&storage, &keys, volume_id, &newest, &used, read_only)?
        } else {
            // Nothing is written, and where is not known.
            (Log::none(&storage, &keys, volume_id), Replayed::default())
        };
        replayed.report(&mut report);
        let segments = storage
            .segments()
            .map_err(|source| OpenError::Storage { op: "listing segments", source })?;
        let free = defect::active(Defect::ReplayedFree);
        let taken = if free { &[][..] } else { &replayed.slots };
        let space = open_space(&storage, used, &segments, taken, options)?;
        let deferred = Deferred::new(newest.sequence + 1);
        deferred.push(newest.sequence, runs_of(kept));
        let root = newest.root.map(|(pointer, level)| Root { pointer, level });
        let epochs = Self {
            storage,
            keys,
            volume_id,
            space,
            deferred,
            nodes,
            overlay: Overlay::new(),
            gate: RwLock::new(newest.sequence + 1),
            open: Mutex::new(OpenData::default()),
            root: RwLock::new(root),
            durable: AtomicU64::new(newest.sequence),
            committer: Mutex::new(Committer { bitmaps, delta, superblock: newest, lossy: 0 }),
            log,
            begun: AtomicBool::new(false),
            replayed_notes: Mutex::default(),
            directory_sync: Mutex::default(),
            segment_syncs: Default::default(),
            full: AtomicBool::new(false),
            last_reclaim: Mutex::new(None),
            last_refill: Mutex::new(None),
            lost: Mutex::default(),
            poisoned: OnceLock::new(),
            read_only,
            space_damage: space_damage.map(|error| chain(&error)),
            on_pressure: Mutex::new(None),
            pressed: AtomicBool::new(false),
            on_seal: Mutex::new(None),
            decode_slots,
        };
        epochs.take_replayed(replayed);
        if !read_only {
            epochs.restore_segments(&segments)?;
            epochs.prepare_reserve();
        }
        Ok((epochs, report))
    }
}

/// The sequence number of the newest superblock, if it knows this configuration.
///
/// # Errors
/// [`OpenError::ConfigReplaced`] if not; [`OpenError::NoSuperblock`].
pub fn newest_sequence(
    storage: &dyn Storage,
    keys: &VolumeKeys,
    volume_id: VolumeId,
    config_digest: [u8; 32],
) -> Result<u64, OpenError> {
    let (newest, _, _) = choose(storage, keys, volume_id)?;
    if newest.knows(config_digest) { Ok(newest.sequence) } else { Err(OpenError::ConfigReplaced) }
}

impl Replayed {
    fn report(&self, report: &mut OpenReport) {
        (report.replayed, report.dropped) = (self.changes, self.dropped);
        report.log_damaged = self.damaged;
    }
}

impl Epochs {
    /// Makes what the log said the open epoch.
    fn take_replayed(&self, replayed: Replayed) {
        if replayed.damaged {
            log::error!(
                "the log is damaged in the middle: what was synced after the last epoch, a few \
                 seconds at most, is lost from there on"
            );
        }
        if replayed.changes + replayed.dropped > 0 {
            log::info!(
                "the volume was not unmounted in order; changes found in the log: {}, changes \
                 that had not reached the disk: {}",
                replayed.changes,
                replayed.dropped
            );
        }
        for (key, value) in replayed.puts {
            self.overlay.put(key, value);
        }
        let mut open = self.open.lock();
        let written = if defect::active(Defect::ReplayedUnsynced) { 0 } else { usize::MAX };
        runs_of(replayed.slots).into_iter().take(written).for_each(|run| open.refer_to(run));
        *self.replayed_notes.lock() = replayed.notes;
    }

    /// Makes segments as long as they have to be, and those that are missing anew, so that they can
    /// be written to; what these held is lost. `existing` are those that are not.
    fn restore_segments(&self, existing: &[u32]) -> Result<(), OpenError> {
        let failed = |op| move |source| OpenError::Storage { op, source };
        for (segment, used) in self.space.segments() {
            let file = FileId::Segment(segment);
            if existing.binary_search(&segment).is_ok() {
                let length = self.storage.length(file).map_err(failed("looking at a segment"))?;
                self.lengthen(segment, length.unwrap_or(0))
                    .map_err(failed("lengthening a segment"))?;
                continue;
            }
            log::error!(
                "data/{segment:08} is missing, and with it {used} slots that were in use; restore \
                 it from a backup before anything else is written"
            );
            self.storage
                .create(file)
                .and_then(|()| self.storage.set_length(file, SEGMENT_BYTES))
                .and_then(|()| self.storage.sync_directory())
                .map_err(failed("making a lost segment anew"))?;
        }
        Ok(())
    }

    /// Makes a segment as long as it has to be. A crash may keep a new one and lose its length;
    /// then nothing that is in use lies behind its end.
    fn lengthen(&self, segment: u32, length: u64) -> io::Result<()> {
        if length >= SEGMENT_BYTES {
            return Ok(());
        }
        let whole = u32::try_from(length / PAGE_BYTES as u64).expect("a segment is 256 MiB");
        let lost = self.space.used_behind(segment, whole);
        if lost > 0 {
            log::error!(
                "data/{segment:08} was cut off, and with its end {lost} slots that were in use; \
                 restore it from a backup before anything else is written"
            );
        }
        self.storage.set_length(FileId::Segment(segment), SEGMENT_BYTES)
    }

    /// Fills the reserve. On a full disk, free slots may still have blocks, from before the volume
    /// was closed: they are given back first.
    fn prepare_reserve(&self) {
        self.space.learn_backed();
        if self.space.fill_reserve().is_ok() {
            return;
        }
        self.space.punch_unbacked();
        if self.space.fill_reserve().is_err() {
            log::warn!("the disk under the volume is full: new files are refused");
            self.full.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

/// A state of the volume whose free space is known.
struct Found {
    superblock: Superblock,
    /// As stored in its tree.
    bitmaps: DurableBitmaps,
    delta: delta::Delta,
    /// All slots that must not be written.
    used: DurableBitmaps,
    /// Those of them to which only the older superblock refers.
    kept: Vec<Slot>,
    /// Why nothing is known about free space; only in a read-only volume.
    space_damage: Option<OpenError>,
}

/// The newest state whose bitmaps can be read. If none is whole, a read-only volume does without.
fn find_whole(
    nodes: &NodeStore,
    newest: Superblock,
    older: Option<Superblock>,
    options: &OpenOptions,
    report: &mut OpenReport,
) -> Result<Found, OpenError> {
    let read = |superblock: &Superblock| {
        let (bitmaps, delta) = read_bitmaps(nodes, superblock)?;
        let mut used = bitmaps.clone();
        fold(&mut used, &delta);
        Ok::<_, OpenError>((bitmaps, delta, used))
    };
    let older = older.map(|older| (read(&older), older));
    let (newest_error, superblock) = match read(&newest) {
        Ok((bitmaps, delta, mut used)) => {
            // What only the older superblock refers to must not be written before the next epoch is
            // durable, or it would stop being a way back.
            let kept = match older {
                Some((Ok((_, _, old_used)), _)) => old_used.without(&used),
                Some((Err(error), _)) => {
                    log::warn!("the older superblock leads to a damaged tree: {error}");
                    Vec::new()
                }
                None => Vec::new(),
            };
            for &slot in &kept {
                used.set(slot, true);
            }
            let space_damage = None;
            return Ok(Found { superblock: newest, bitmaps, delta, used, kept, space_damage });
        }
        Err(error) => (error, newest),
    };
    if options.repair && has_root(nodes, &superblock) {
        return Ok(Found::without_space(superblock, newest_error));
    }
    let whole = older.as_ref().is_some_and(|(read, _)| read.is_ok());
    if let Some((read, older)) =
        older.filter(|(_, o)| whole || options.repair && has_root(nodes, o))
    {
        report.refused.push((superblocks::file_of(superblock.sequence), chain(&newest_error)));
        report.sequence = older.sequence;
        report.clean = older.clean;
        let (kept, space_damage) = (Vec::new(), None);
        return Ok(match read {
            Ok((bitmaps, delta, used)) => {
                Found { superblock: older, bitmaps, delta, used, kept, space_damage }
            }
            Err(error) => Found::without_space(older, error),
        });
    }
    if !options.read_only {
        return Err(newest_error);
    }
    Ok(Found::without_space(superblock, newest_error))
}

/// Whether the root of a state can be read, or it has none.
fn has_root(nodes: &NodeStore, superblock: &Superblock) -> bool {
    superblock.root.is_none_or(|(pointer, level)| nodes.read(&pointer, level).is_ok())
}

impl Found {
    /// A state of which it cannot be read which slots it uses.
    fn without_space(superblock: Superblock, error: OpenError) -> Self {
        let (bitmaps, used) = Default::default();
        let (delta, kept, space_damage) = (delta::Delta::default(), Vec::new(), Some(error));
        Self { superblock, bitmaps, delta, used, kept, space_damage }
    }
}

/// The newest usable superblock, the other one if it is usable, and what is odd about them.
fn choose(
    storage: &dyn Storage,
    keys: &VolumeKeys,
    volume_id: VolumeId,
) -> Result<(Superblock, Option<Superblock>, OpenReport), OpenError> {
    let [a, b] = superblocks::read_both(storage, keys, volume_id);
    let mut report = OpenReport::default();
    let (newest, older) = match (a, b) {
        (Ok(a), Ok(b)) => {
            report.superblock_replayed = a.sequence.abs_diff(b.sequence) != 1;
            let older = defect::active(Defect::OpenOlder);
            if (a.sequence > b.sequence) != older { (a, Some(b)) } else { (b, Some(a)) }
        }
        (Ok(a), Err(error)) => {
            report.refused.push((FileId::SuperB, chain(&error)));
            (a, None)
        }
        (Err(error), Ok(b)) => {
            report.refused.push((FileId::SuperA, chain(&error)));
            (b, None)
        }
        (Err(a), Err(b)) => return Err(OpenError::NoSuperblock { a, b }),
    };
    report.sequence = newest.sequence;
    report.clean = newest.clean;
    Ok((newest, older, report))
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// The stored bitmaps, and the delta that is not in them.
fn read_bitmaps(
    nodes: &NodeStore,
    superblock: &Superblock,
) -> Result<(DurableBitmaps, delta::Delta), OpenError> {
    let mut bitmaps = DurableBitmaps::default();
    let mut malformed = false;
    let root = superblock.root.map(|(pointer, level)| Root { pointer, level });
    let from = space_key(0, 0);
    let to = [Table::Space as u8 + 1];
    tree::range(nodes, root.as_ref(), &from, &to, &mut |key, value| {
        let bits: Option<&[u8; PIECE_BYTES]> = value.try_into().ok();
        let segment = u32::try_from(record::owner(key)).ok();
        match (bits, segment, key.get(9)) {
            (Some(bits), Some(segment), Some(&piece)) if piece < 8 && key.len() == 10 => {
                bitmaps.insert(segment, piece, bits);
                ControlFlow::Continue(())
            }
            _ => {
                malformed = true;
                ControlFlow::Break(())
            }
        }
    })
    .map_err(Error::from)?;
    if malformed {
        return Err(OpenError::Malformed("space"));
    }
    let delta = delta::read(nodes, superblock.delta).map_err(Error::from)?;
    Ok((bitmaps, delta))
}

fn fold(bitmaps: &mut DurableBitmaps, delta: &delta::Delta) {
    for slot in slots_of(&delta.freed) {
        bitmaps.set(slot, false);
    }
    for slot in slots_of(&delta.used) {
        bitmaps.set(slot, true);
    }
}

/// Replays the log and makes it ready for more.
fn open_log(
    storage: &Arc<dyn Storage>,
    keys: &Arc<VolumeKeys>,
    volume_id: VolumeId,
    newest: &Superblock,
    used: &DurableBitmaps,
    read_only: bool,
) -> Result<(Log, Replayed), OpenError> {
    let replayed = match newest.log {
        Some(start) => replay(&**storage, keys, volume_id, start, used)
            .map_err(|source| OpenError::Storage { op: "replaying the log", source })?,
        None => Replayed::default(),
    };
    if read_only {
        return Ok((Log::none(storage, keys, volume_id), replayed));
    }
    let capacity = prepare_log(&**storage, newest.log.map(|log| log.capacity))?;
    let tail = newest.log.map_or(0, |log| log.position);
    let (ring, open) = ((tail, replayed.end.max(tail)), newest.sequence + 1);
    Ok((Log::new(storage, keys, volume_id, capacity, ring, open), replayed))
}

/// The allocator, for which the slots that the log refers to are in use, too.
fn open_space(
    storage: &Arc<dyn Storage>,
    mut used: DurableBitmaps,
    existing: &[u32],
    logged: &[Slot],
    options: &OpenOptions,
) -> Result<Space, OpenError> {
    for &slot in logged {
        used.set(slot, true);
    }
    let segments: BTreeSet<u32> = existing.iter().copied().chain(used.segments()).collect();
    let segments: Vec<u32> = segments.into_iter().collect();
    let reserve = reserve_slots(&**storage)?;
    Ok(Space::new(storage.clone(), &used, &segments, reserve, options.first_fit))
}

/// Sees to it that the file `log` is there. `capacity` is what the superblock says, if it knows
/// one. Returns its length: 0 if the disk has no space for it.
fn prepare_log(storage: &dyn Storage, capacity: Option<u64>) -> Result<u64, OpenError> {
    let failed = |op| move |source| OpenError::Storage { op, source };
    let found = storage.length(FileId::Log).map_err(failed("looking for the log"))?;
    let disk = storage.capacity().map_err(failed("asking for the disk's size"))?;
    let wanted = capacity.unwrap_or_else(|| log_bytes_for(disk.total_bytes));
    if found.is_some_and(|bytes| bytes >= wanted) {
        return Ok(wanted);
    }
    if capacity.is_some() {
        log::error!(
            "the log is missing or too short: what was synced after the last epoch, a few seconds \
             at most, may be lost"
        );
    }
    match ring::create(storage, wanted).and_then(|()| storage.sync_directory()) {
        Err(error) if is_full(&error) => {
            log::warn!("there is no space for the log: every fsync ends an epoch");
            Ok(0)
        }
        made => made.map(|()| wanted).map_err(failed("making the log")),
    }
}

/// Slots to hold in reserve in each class: 1/128 of the disk, 512 KiB to 16 MiB.
fn reserve_slots(storage: &dyn Storage) -> Result<u64, OpenError> {
    let capacity = storage
        .capacity()
        .map_err(|source| OpenError::Storage { op: "asking for the disk's size", source })?;
    let bytes = (capacity.total_bytes / 128).clamp(512 << 10, 16 << 20);
    Ok(bytes / PAGE_BYTES as u64)
}
