//! The overlay over the tree, and the one protocol that makes it durable.
//!
//! Operations change only memory: the *open* epoch. Sealing makes it the *sealed* one in
//! microseconds; [`Epochs::commit`] makes the sealed one *durable* while a new one is open. The
//! order of syncs is argued in [`crate::manual::crash`].
//!
//! Lock order: `committer`, then `gate`, then a shard of the overlay or `open`.

mod cache;
mod commit;
mod delta;
mod fsync;
mod log;
mod nodes;
mod open;
mod overlay;
mod rebuild;
mod replay;
mod superblocks;

pub use cache::{CacheCounts, CacheShard};
pub use commit::CommitOptions;
pub use log::log_bytes_for;
pub use nodes::DamageCounters;
pub use open::{OpenError, OpenOptions, OpenReport, newest_sequence};
pub use overlay::{Key, Value};
pub use rebuild::{KeyRange, Rebuild, Rebuilt, RecordPage, Survey};
pub use superblocks::Refused;

use crate::defect::{self, Defect};
use crate::format::VolumeId;
use crate::format::log::Item;
use crate::format::record::Table;
use crate::format::superblock::Superblock;
use crate::key::VolumeKeys;
use crate::space::{Deferred, DurableBitmaps, Pin, SlotRun, Space, slots_of};
use crate::storage::Storage;
use crate::tree::{self, Root, ValueRef};
use delta::Delta;
use log::Log;
use nodes::NodeStore;
use overlay::Overlay;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Deref};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// Data of the open epoch above which it is sealed without waiting for the timer, in bytes.
pub const DATA_BYTES_SOFT: u64 = 256 << 20;
/// Data above which writers wait for the sealed epoch.
const DATA_BYTES_HARD: u64 = 384 << 20;
/// Memory of the open epoch above which it is sealed, in bytes.
pub const OVERLAY_BYTES_SOFT: usize = 24 << 20;
/// Memory above which operations wait for the sealed epoch.
const OVERLAY_BYTES_HARD: usize = 40 << 20;
/// Tree nodes that one changed record may cost, for the reserve: a leaf and its share of the path.
const NODES_PER_RECORD: u64 = 2;
/// Records looked at in one step of a range.
const WINDOW_RECORDS: usize = 512;
/// What most changes say in the log, in bytes.
const ITEMS_BYTES: usize = 1024;
/// Locks of `Epochs::segment_syncs`; segments share them.
const SYNC_LOCKS: usize = 16;

/// Why an epoch operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The tree could not be read or written.
    #[error(transparent)]
    Tree(#[from] tree::Error),
    /// No space is left for new work.
    #[error("no space is left on the volume")]
    NoSpace,
    /// An earlier failure stopped all writing until the volume is opened again.
    #[error("writing stopped after an earlier error: {0}")]
    Poisoned(Arc<str>),
    /// Everything is durable but changes that belong into a damaged node, which are lost.
    #[error("changes were lost: they belong into a damaged part of the volume's metadata")]
    Lost,
    /// The volume was opened for reading only.
    #[error("the volume is open read-only")]
    ReadOnly,
}

/// A record's value, borrowed from a tree node or shared with the overlay.
pub enum Record {
    /// From the overlay.
    Overlay(Arc<[u8]>),
    /// From a leaf.
    Leaf(ValueRef),
}

impl Deref for Record {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Overlay(value) => value,
            Self::Leaf(value) => value,
        }
    }
}

/// What waits to become durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Records that the open epoch has changed.
    pub records: u64,
    /// Memory of those, in bytes.
    pub record_bytes: u64,
    /// Pages that the open epoch has written, in bytes; they are on their way to the disk.
    pub data_bytes: u64,
    /// Epochs that are sealed and not durable.
    pub sealed: u64,
}

/// What the open epoch did besides changing records.
#[derive(Default)]
struct OpenData {
    runs: Vec<SlotRun>,
    segments: BTreeSet<u32>,
    bytes: u64,
    /// Pages that its changes no longer refer to.
    freed: u64,
}

impl OpenData {
    fn refer_to(&mut self, run: SlotRun) {
        self.runs.push(run);
        self.segments.insert(run.first.segment());
        self.bytes += u64::from(run.count) * crate::format::PAGE_BYTES as u64;
    }

    fn merge(&mut self, other: Self) {
        self.runs.extend(other.runs);
        self.segments.extend(other.segments);
        self.bytes += other.bytes;
        self.freed += other.freed;
    }
}

/// State that only the thread that ends an epoch touches.
struct Committer {
    bitmaps: DurableBitmaps,
    /// Changes of the last durable epoch's nodes, not yet in `bitmaps`.
    delta: Delta,
    superblock: Superblock,
    /// The last epoch of which changes were lost.
    lossy: u64,
}

/// The engine under a volume: records in, durable tree out.
pub struct Epochs {
    storage: Arc<dyn Storage>,
    keys: Arc<VolumeKeys>,
    volume_id: VolumeId,
    /// The allocator of slots.
    pub space: Space,
    deferred: Deferred,
    nodes: NodeStore,
    overlay: Overlay,
    /// Held shared while records change, alone while the epoch is sealed. Holds the open epoch's
    /// number.
    gate: RwLock<u64>,
    open: Mutex<OpenData>,
    root: RwLock<Option<Root>>,
    committer: Mutex<Committer>,
    durable: AtomicU64,
    /// What happened since the last durable epoch.
    log: Log,
    /// The log records what happens: an epoch was made durable since the volume was opened.
    begun: AtomicBool,
    /// What the layer above noted with the changes that were replayed.
    replayed_notes: Mutex<Vec<Box<[u8]>>>,
    directory_sync: Mutex<()>,
    segment_syncs: [Mutex<()>; SYNC_LOCKS],
    /// The reserve could not be filled: only work that frees space is accepted.
    full: AtomicBool,
    last_reclaim: Mutex<Option<Instant>>,
    last_refill: Mutex<Option<Instant>>,
    /// Owners of changes that were lost to damaged nodes.
    lost: Mutex<BTreeSet<u64>>,
    /// Why nothing is written any more.
    poisoned: OnceLock<Arc<str>>,
    read_only: bool,
    /// Why it is not known which slots are in use, if the volume was opened read-only without.
    space_damage: Option<String>,
    /// Called when the open epoch is large enough to be sealed at once.
    on_pressure: Mutex<Option<Box<dyn Fn() + Send>>>,
    pressed: AtomicBool,
    on_seal: Mutex<Option<SealHook>>,
    decode_slots: SlotDecoder,
}

/// Gives the record that every epoch stores; see [`Epochs::on_seal`].
type SealHook = Box<dyn Fn() -> (Key, Value) + Send>;

/// Tells which slots a record's value refers to; how the engine accounts for data without knowing
/// what it is. Called with key and value; `Err` names a malformed record.
pub type SlotDecoder = Box<
    dyn Fn(&[u8], &[u8], &mut Vec<crate::format::Slot>) -> Result<(), &'static str> + Send + Sync,
>;

/// Changes that become durable together; see [`Epochs::change`].
pub struct Change<'a> {
    epochs: &'a Epochs,
    /// What the log says of it.
    items: Vec<u8>,
    /// The open epoch.
    gate: RwLockReadGuard<'a, u64>,
}

impl Change<'_> {
    /// Stores (`Some`) or deletes (`None`) a record.
    pub fn put(&mut self, key: impl Into<Key>, value: Value) {
        let key = key.into();
        match &value {
            Some(value) => Item::Put { key: &key, value }.encode(&mut self.items),
            None => Item::Delete { key: &key }.encode(&mut self.items),
        }
        self.epochs.overlay.put(key, value);
        if defect::active(Defect::SplitChange) {
            self.epochs.log.append_change(*self.gate, &std::mem::take(&mut self.items));
        }
    }

    /// Says that a record stored through this change refers to these freshly written slots; `sums`
    /// has the [`crate::format::log::page_sum`] of each slot's bytes.
    pub fn refer_to(&mut self, runs: &[SlotRun], sums: &[u64]) {
        let mut sums = sums;
        for run in runs {
            let (of_run, rest) = sums.split_at(run.count as usize);
            let bytes: SmallVec<[u8; 64]> =
                of_run.iter().flat_map(|sum| sum.to_le_bytes()).collect();
            Item::Pages { first: run.first, sums: &bytes }.encode(&mut self.items);
            sums = rest;
        }
        self.epochs.log.note_unsynced(*self.gate, runs);
        let mut open = self.epochs.open.lock();
        for run in runs {
            open.refer_to(*run);
        }
    }

    /// Says that records changed so that they no longer refer to this many slots.
    pub fn note_freed(&mut self, slots: u64) {
        self.epochs.open.lock().freed += slots;
    }

    /// Whether nothing was put.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Remembers some bytes with the change: should it have to be replayed,
    /// [`Epochs::take_replayed_notes`] gives them back.
    pub fn note(&mut self, bytes: &[u8]) {
        Item::Note(bytes).encode(&mut self.items);
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let forget = self.items.len() < 300 && defect::active(Defect::ChangeNotLogged);
        if !self.items.is_empty() && !forget {
            // With the gate held: the epoch is not sealed before the log has the change.
            self.epochs.log.append_change(*self.gate, &self.items);
        }
        self.epochs.notice_pressure();
    }
}

impl Epochs {
    /// Starts a set of changes. `frees`: it only removes or replaces, and is let through when the
    /// volume is full.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Poisoned`], [`Error::ReadOnly`].
    pub fn change(&self, frees: bool) -> Result<Change<'_>, Error> {
        self.check_writable()?;
        if !self.begun.load(Ordering::Acquire) {
            self.begin()?;
        }
        if !frees && !self.has_space() {
            return Err(Error::NoSpace);
        }
        match self.throttle() {
            // What frees may be what makes the next attempt succeed; and what was lost is not this.
            Err(Error::NoSpace) if frees => {}
            Err(Error::Lost) => {}
            throttled => throttled?,
        }
        Ok(Change { epochs: self, items: Vec::with_capacity(ITEMS_BYTES), gate: self.gate.read() })
    }

    /// # Errors
    /// If nothing may be written.
    pub fn check_writable(&self) -> Result<(), Error> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        match self.poisoned.get() {
            Some(reason) => Err(Error::Poisoned(reason.clone())),
            None => Ok(()),
        }
    }

    /// Whether the volume is too full for new work.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Waits for the sealed epoch when the open one is at its limit.
    fn throttle(&self) -> Result<(), Error> {
        let (records, bytes) = self.overlay.size();
        let data = self.open.lock().bytes;
        // Both copies of twice the nodes that the records may need: for this epoch and the next.
        let mut nodes = records as u64 * NODES_PER_RECORD * 2;
        let backed = self.space.nodes_backed();
        if nodes > backed {
            // No more nodes are replaced than there are, and new ones are at least half full.
            let new = bytes as u64 / (crate::format::PAGE_BYTES as u64 / 2) + 64;
            nodes = nodes.min((self.space.nodes_used() + new) * 2);
        }
        let tight = nodes > backed && self.space.back_nodes(nodes).is_err();
        let (_, logged, capacity) = self.log.usage();
        let log_full = logged > capacity / 4 * 3;
        if bytes > OVERLAY_BYTES_HARD || data > DATA_BYTES_HARD || tight || log_full {
            let open = *self.gate.read();
            self.commit_through(open)?;
        }
        Ok(())
    }

    fn notice_pressure(&self) {
        let (_, bytes) = self.overlay.size();
        let (logged, _, capacity) = self.log.usage();
        let pressed = bytes > OVERLAY_BYTES_SOFT
            || self.open.lock().bytes > DATA_BYTES_SOFT
            || logged > capacity / 3;
        if pressed && !self.pressed.swap(true, Ordering::Relaxed) {
            if let Some(wake) = &*self.on_pressure.lock() {
                wake();
            }
        }
    }

    /// Sets what is called when the open epoch should be committed at once.
    pub fn on_pressure(&self, wake: Box<dyn Fn() + Send>) {
        *self.on_pressure.lock() = Some(wake);
    }

    /// Sets what is called while an epoch is sealed; the record it returns belongs to that epoch.
    /// It must not take locks.
    pub fn on_seal(&self, hook: Box<dyn Fn() -> (Key, Value) + Send>) {
        *self.on_seal.lock() = Some(hook);
    }

    /// Visits all records of a table in the durable tree, as it was when the volume was opened or
    /// last committed.
    ///
    /// # Errors
    /// If the tree is damaged there.
    pub fn scan_durable(
        &self,
        table: Table,
        visit: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), Error> {
        self.scan_durable_from(&[table as u8], table, &mut |key, value| {
            visit(key, value);
            ControlFlow::Continue(())
        })
    }

    /// As [`Epochs::scan_durable`], from a key of the table on, until `visit` breaks it off.
    ///
    /// # Errors
    /// If the tree is damaged there.
    pub fn scan_durable_from(
        &self,
        from: &[u8],
        table: Table,
        visit: &mut tree::Visit,
    ) -> Result<(), Error> {
        let _pin = self.pin();
        let root = *self.root.read();
        tree::range(&self.nodes, root.as_ref(), from, &[table as u8 + 1], visit)?;
        Ok(())
    }

    /// Visits all records of a table in key order, changes that are not durable included. Nothing
    /// may be changed meanwhile.
    ///
    /// # Errors
    /// If the tree is damaged there.
    pub fn scan(&self, table: Table, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), Error> {
        let mut changed = self.overlay.of_table(table as u8).into_iter().peekable();
        self.scan_durable(table, &mut |key, value| {
            while let Some((over, value)) = changed.next_if(|(over, _)| **over < *key) {
                value.iter().for_each(|value| visit(&over, value));
            }
            if changed.peek().is_none_or(|(over, _)| **over != *key) {
                visit(key, value);
            }
        })?;
        changed.for_each(|(key, value)| value.iter().for_each(|value| visit(&key, value)));
        Ok(())
    }

    /// The records of a table that were changed since the last durable epoch: `None` is one that
    /// was removed.
    pub fn changed(&self, table: Table) -> BTreeMap<Key, Value> {
        self.overlay.of_table(table as u8)
    }

    /// What was noted with the changes that opening replayed, in order.
    pub fn take_replayed_notes(&self) -> Vec<Box<[u8]>> {
        std::mem::take(&mut *self.replayed_notes.lock())
    }

    /// Keeps slots that are looked up from now on from being written again.
    pub fn pin(&self) -> Pin {
        self.deferred.pin()
    }

    /// The value of a record.
    ///
    /// # Errors
    /// If the tree is damaged there.
    pub fn get(&self, key: &[u8]) -> Result<Option<Record>, Error> {
        if let Some(value) = self.overlay.get(key) {
            return Ok(value.map(Record::Overlay));
        }
        // The root is read after the overlay: a sealed epoch leaves the overlay only after the tree
        // that contains it was installed. The pin keeps that tree's slots from being reused.
        let _pin = self.pin();
        let root = *self.root.read();
        Ok(tree::get(&self.nodes, root.as_ref(), key)?.map(Record::Leaf))
    }

    /// Visits the records of `from..to`, which all belong to one owner, in key order, until `visit`
    /// returns false. `visit` may read records.
    ///
    /// # Errors
    /// If the tree is damaged in the range.
    pub fn range(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Error> {
        let mut from = from.to_vec();
        loop {
            let (records, next) = self.range_step(&from, to)?;
            for (key, value) in &records {
                if !visit(key, value) {
                    return Ok(());
                }
            }
            match next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    /// Merged records of the first part of a range, and where the next part starts.
    #[allow(clippy::type_complexity)]
    fn range_step(
        &self,
        from: &[u8],
        to: &[u8],
    ) -> Result<(Vec<(Key, Arc<[u8]>)>, Option<Vec<u8>>), Error> {
        let window = self.overlay.window(from, to, WINDOW_RECORDS);
        let mut end = to.to_vec();
        if window.cut {
            let (last, _) = window.records.last().expect("a cut window has records");
            end = last.to_vec();
            end.push(0);
        }
        let mut merged = Vec::new();
        let mut stopped = None;
        let mut overrides = window.records.into_iter().peekable();
        let _pin = self.pin();
        let root = *self.root.read();
        tree::range(&self.nodes, root.as_ref(), from, &end, &mut |key, value| {
            while let Some((over, value)) = overrides.next_if(|(over, _)| &**over < key) {
                merged.extend(value.map(|value| (over, value)));
            }
            if overrides.peek().is_none_or(|(over, _)| &**over != key) {
                merged.push((Key::from(key), Arc::from(value)));
            }
            if merged.len() < WINDOW_RECORDS {
                return ControlFlow::Continue(());
            }
            let mut next = key.to_vec();
            next.push(0);
            if let Some((_, value)) = overrides.next_if(|(over, _)| &**over == key) {
                merged.extend(value.map(|value| (Key::from(key), value)));
            }
            stopped = Some(next);
            ControlFlow::Break(())
        })?;
        if stopped.is_none() {
            merged.extend(overrides.filter_map(|(key, value)| value.map(|value| (key, value))));
        }
        let next = stopped.or_else(|| (end != to).then_some(end));
        Ok((merged, next))
    }

    /// Number of the open epoch.
    pub fn open_epoch(&self) -> u64 {
        *self.gate.read()
    }

    /// Number of the last durable epoch.
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// What is not durable yet.
    pub fn backlog(&self) -> Backlog {
        let (records, record_bytes) = self.overlay.size();
        let data_bytes = self.open.lock().bytes;
        let sealed = self.open_epoch().saturating_sub(self.durable() + 1);
        Backlog { records: records as u64, record_bytes: record_bytes as u64, data_bytes, sealed }
    }

    /// How the cache of tree nodes is.
    pub fn node_cache(&self) -> CacheCounts {
        self.nodes.cache_counts()
    }

    /// The damage found since the volume was opened.
    pub fn damage(&self) -> &DamageCounters {
        &self.nodes.damage
    }

    /// The root of the durable tree.
    pub fn root(&self) -> Option<Root> {
        *self.root.read()
    }

    /// Whether each copy of a node authenticates on disk, for `fsck`.
    pub fn check_copies(&self, pointer: &crate::format::NodePointer, level: u8) -> [bool; 2] {
        self.nodes.check_copies(pointer, level)
    }

    /// The tree's nodes, for `fsck` and `inspect`.
    pub fn source(&self) -> &impl tree::NodeSource {
        &self.nodes
    }

    /// Slots that the durable tree and its delta chain use, as the bitmaps say, for `fsck`.
    pub fn slots_in_use(&self, visit: &mut dyn FnMut(crate::format::Slot)) {
        let committer = self.committer.lock();
        let freed: BTreeSet<_> = slots_of(&committer.delta.freed).collect();
        committer.bitmaps.for_each_used(|slot| {
            if !freed.contains(&slot) {
                visit(slot);
            }
        });
        slots_of(&committer.delta.used).for_each(visit);
    }

    /// As [`Epochs::deferred_slots`], of one class.
    pub fn deferred_slots_of(&self, class: crate::space::Class) -> u64 {
        self.deferred.waiting_of(class)
    }

    /// Slots that were freed and wait before they may be used again.
    pub fn deferred_slots(&self) -> u64 {
        self.deferred.waiting()
    }

    /// Why it is not known which slots are in use. A volume of which that is so opens only for
    /// reading.
    pub fn space_damage(&self) -> Option<&str> {
        self.space_damage.as_deref()
    }

    /// Slots of the delta chain, for `fsck`.
    pub fn delta_slots(&self) -> Vec<[crate::format::Slot; 2]> {
        self.committer.lock().delta.chain.clone()
    }

    /// Both superblocks as they are on disk: `super.a`, then `super.b`; for `fsck` and `inspect`.
    pub fn superblocks(&self) -> [Result<Superblock, Refused>; 2] {
        superblocks::read_both(&*self.storage, &self.keys, self.volume_id)
    }

    /// The newest durable superblock.
    pub fn superblock(&self) -> Superblock {
        self.committer.lock().superblock.clone()
    }
}
