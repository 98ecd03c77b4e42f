//! Tree nodes on disk: reading with verification, healing and a cache; writing both copies.

use super::cache::{CacheCounts, CacheShard};
use crate::crypto::{Cipher, Nonce, PageKey, Tag, kdf};
use crate::format::node::Node;
use crate::format::{NodePointer, PAGE_BYTES, Slot, VolumeId};
use crate::key::VolumeKeys;
use crate::space::{Class, Purpose, Space, SpaceError, slots_of};
use crate::storage::{FileId, Storage};
use crate::tree::{Error, NodeSink, NodeSource};
use lru::LruCache;
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Shards of the node cache, so that readers seldom meet.
const CACHE_SHARDS: usize = 16;
/// Sealing keys that are kept set up.
const KEYS_CACHED: usize = 1024;
/// Nodes that are written in one piece, and slots that are taken at a time.
const WRITE_NODES: usize = 256;
/// "Level" in the associated data of a page of the space delta, which is no tree node.
pub(super) const LEVEL_DELTA: u8 = 0xff;

type Page = Box<[u8; PAGE_BYTES]>;
/// Nodes by the slot of their first copy, each with the pointer that it was read by.
type NodeShard = Mutex<CacheShard<u64, (NodePointer, Arc<Node>)>>;
/// Key epoch and salt.
type SealingKeyId = (u32, [u8; 16]);

/// Reads tree nodes. Safe to share between threads.
pub(super) struct NodeStore {
    storage: Arc<dyn Storage>,
    keys: Arc<VolumeKeys>,
    volume_id: VolumeId,
    cache: Vec<NodeShard>,
    sealing: Mutex<LruCache<SealingKeyId, Arc<PageKey>>>,
    /// Nothing is written, so nothing is restored.
    read_only: bool,
    pub(super) damage: DamageCounters,
}

/// What was found damaged since the volume was opened.
#[derive(Default, Debug)]
pub struct DamageCounters {
    /// Nodes of which one copy did not authenticate and was rewritten from the other (not rewritten
    /// if the volume is open read-only).
    pub nodes_healed: AtomicU64,
    /// Nodes of which neither copy authenticates.
    pub nodes_lost: AtomicU64,
    /// Pages of files that do not authenticate.
    pub pages_lost: AtomicU64,
    /// Changes that belonged into damaged nodes and could not be made durable.
    pub changes_lost: AtomicU64,
}

impl NodeStore {
    /// `cache_bytes` bounds the memory of cached nodes.
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        keys: Arc<VolumeKeys>,
        volume_id: VolumeId,
        cache_bytes: usize,
        read_only: bool,
    ) -> Self {
        let nodes = (cache_bytes / PAGE_BYTES / CACHE_SHARDS).max(8);
        let shard = || Mutex::new(CacheShard::new(nodes));
        Self {
            storage,
            keys,
            volume_id,
            cache: (0..CACHE_SHARDS).map(|_| shard()).collect(),
            sealing: Mutex::new(LruCache::new(NonZeroUsize::new(KEYS_CACHED).expect("not zero"))),
            read_only,
            damage: DamageCounters::default(),
        }
    }

    /// How the cache of nodes is.
    pub(super) fn cache_counts(&self) -> CacheCounts {
        let mut counts = CacheCounts::default();
        self.cache.iter().for_each(|shard| shard.lock().add_to(&mut counts));
        counts
    }

    fn shard(&self, slot: Slot) -> &NodeShard {
        &self.cache[slot.0 as usize % CACHE_SHARDS]
    }

    fn cached(&self, pointer: &NodePointer) -> Option<Arc<Node>> {
        let mut shard = self.shard(pointer.slots[0]).lock();
        let found = shard.get(&pointer.slots[0].0, |(known, _)| known == pointer);
        found.map(|(_, node)| node.clone())
    }

    fn remember(&self, pointer: &NodePointer, node: Arc<Node>) {
        self.shard(pointer.slots[0]).lock().put(pointer.slots[0].0, (*pointer, node));
    }

    /// The key that seals nodes of that epoch and salt.
    pub(super) fn sealing_key(&self, epoch: u32, salt: [u8; 16]) -> Option<Arc<PageKey>> {
        if let Some(key) = self.sealing.lock().get(&(epoch, salt)) {
            return Some(key.clone());
        }
        let metadata_key = self.keys.metadata_key(epoch)?;
        let derived = kdf::derive(metadata_key, "atrest node v1", &salt, 32);
        let key = Arc::new(PageKey::new(Cipher::Aes256Gcm, &derived));
        self.sealing.lock().put((epoch, salt), key.clone());
        Some(key)
    }

    /// Associated data of a node: what it is and where it belongs.
    pub(super) fn associated_data(&self, level: u8) -> [u8; 32] {
        let mut data = *b"atrest node v1\0\0................";
        data[14] = level;
        data[16..32].copy_from_slice(&self.volume_id.0);
        data
    }

    /// Reads and authenticates the page at `pointer`, from the second copy if need be.
    pub(super) fn read_page(&self, pointer: &NodePointer, level: u8) -> Result<Page, Error> {
        let Some(key) = self.sealing_key(pointer.key_epoch, pointer.salt) else {
            return Err(Error::Damaged(*pointer));
        };
        let mut sealed = Box::new([0; PAGE_BYTES]);
        let mut page = Box::new([0; PAGE_BYTES]);
        let mut bad = [false; 2];
        for (copy, slot) in pointer.slots.into_iter().enumerate() {
            let read =
                self.storage.read_at(FileId::Segment(slot.segment()), slot.offset(), &mut *sealed);
            let opened = read.is_ok_and(|()| {
                let aad = self.associated_data(level);
                let tag = Tag(pointer.tag);
                key.open(nonce(pointer.counter), &aad, tag, &*sealed, &mut *page).is_ok()
            });
            if opened {
                if bad[0] {
                    self.heal(pointer.slots[0], &sealed);
                }
                return Ok(page);
            }
            bad[copy] = true;
        }
        self.damage.nodes_lost.fetch_add(1, Ordering::Relaxed);
        log::error!(
            "metadata is damaged: neither copy of the tree node in slots {} and {} authenticates; \
             run `atrest fsck` to see what it held",
            pointer.slots[0].0,
            pointer.slots[1].0
        );
        Err(Error::Damaged(*pointer))
    }

    /// Rewrites a copy with the bytes that it should have, unless nothing may be written.
    fn heal(&self, slot: Slot, sealed: &[u8; PAGE_BYTES]) {
        self.damage.nodes_healed.fetch_add(1, Ordering::Relaxed);
        if self.read_only {
            return log::warn!(
                "the tree node in slot {} is damaged and is read from its second copy",
                slot.0
            );
        }
        let healed = self.storage.write_at(FileId::Segment(slot.segment()), slot.offset(), sealed);
        match healed {
            Ok(()) => log::warn!(
                "the tree node in slot {} was damaged and has been restored from its second copy",
                slot.0
            ),
            Err(error) => log::warn!(
                "the tree node in slot {} is damaged and is read from its second copy; \
                 restoring it failed: {error}",
                slot.0
            ),
        }
    }

    /// Whether each copy of a node authenticates, without the cache and without healing.
    pub(super) fn check_copies(&self, pointer: &NodePointer, level: u8) -> [bool; 2] {
        let key = self.sealing_key(pointer.key_epoch, pointer.salt);
        pointer.slots.map(|slot| {
            let mut sealed = Box::new([0; PAGE_BYTES]);
            let mut page = Box::new([0; PAGE_BYTES]);
            let file = FileId::Segment(slot.segment());
            let aad = self.associated_data(level);
            key.as_ref().is_some_and(|key| {
                self.storage.read_at(file, slot.offset(), &mut *sealed).is_ok()
                    && key
                        .open(nonce(pointer.counter), &aad, Tag(pointer.tag), &*sealed, &mut *page)
                        .is_ok()
            })
        })
    }

    /// Forgets nodes to which the tree no longer refers: whoever still reads an older tree reads
    /// them from the disk.
    pub(super) fn forget(&self, slots: &[[Slot; 2]]) {
        for pair in slots {
            let mut shard = self.shard(pair[0]).lock();
            shard.pop_if(&pair[0].0, |(known, _)| known.slots == *pair);
        }
    }
}

impl NodeSource for NodeStore {
    fn read(&self, pointer: &NodePointer, level: u8) -> Result<Arc<Node>, Error> {
        if let Some(node) = self.cached(pointer) {
            return Ok(node);
        }
        let page = self.read_page(pointer, level)?;
        let malformed = |what| Error::Malformed { pointer: *pointer, what };
        let node = Node::decode(page).map_err(|_| malformed("node layout"))?;
        if node.level() != level {
            return Err(malformed("level"));
        }
        let node = Arc::new(node);
        self.remember(pointer, node.clone());
        Ok(node)
    }
}

/// The nonce of a node: its counter under a key that nothing else uses.
fn nonce(counter: u32) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&counter.to_le_bytes());
    Nonce(bytes)
}

/// Writes the nodes of one epoch, under a salt of its own.
pub(super) struct NodeWriter<'a> {
    store: &'a NodeStore,
    space: &'a Space,
    key: Arc<PageKey>,
    key_epoch: u32,
    salt: [u8; 16],
    counter: u32,
    free_pairs: VecDeque<[Slot; 2]>,
    pending: RefCell<Vec<([Slot; 2], Page)>>,
    /// Slots that were written.
    pub(super) written: Vec<[Slot; 2]>,
    /// Slots of nodes that the new tree no longer refers to.
    pub(super) freed: Vec<[Slot; 2]>,
}

impl<'a> NodeWriter<'a> {
    /// `key_epoch` names the metadata key; a fresh salt is drawn.
    pub(super) fn new(store: &'a NodeStore, space: &'a Space, key_epoch: u32) -> Option<Self> {
        let mut salt = [0; 16];
        crate::crypto::random::fill(&mut salt);
        let key = store.sealing_key(key_epoch, salt)?;
        Some(Self {
            store,
            space,
            key,
            key_epoch,
            salt,
            counter: 0,
            free_pairs: VecDeque::new(),
            pending: RefCell::new(Vec::new()),
            written: Vec::new(),
            freed: Vec::new(),
        })
    }

    /// Takes slots for the next `count` pages, so that the caller knows them beforehand.
    pub(super) fn take_pairs(&mut self, count: usize) -> Result<Vec<[Slot; 2]>, Error> {
        while self.free_pairs.len() < count {
            self.allocate(WRITE_NODES.min(self.counter as usize + 8).max(count))?;
        }
        Ok(self.free_pairs.drain(..count).collect())
    }

    /// Returns pairs that [`NodeWriter::take_pairs`] gave and that were not written.
    pub(super) fn return_pairs(&mut self, pairs: Vec<[Slot; 2]>) {
        for pair in pairs.into_iter().rev() {
            self.free_pairs.push_front(pair);
        }
    }

    fn allocate(&mut self, count: usize) -> Result<(), Error> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let mut slots = [Vec::new(), Vec::new()];
        for (copy, class) in [Class::NodeA, Class::NodeB].into_iter().enumerate() {
            let runs =
                self.space.allocate_backed(class, count, Purpose::Overwrite).map_err(|error| {
                    match error {
                        SpaceError::NoSpace => Error::NoSpace,
                        SpaceError::Storage(source) => {
                            Error::Storage { op: "allocate", source: Arc::new(source) }
                        }
                    }
                })?;
            slots[copy].extend(slots_of(&runs));
        }
        let [a, b] = slots;
        self.free_pairs.extend(a.into_iter().zip(b).map(|(a, b)| [a, b]));
        Ok(())
    }

    /// Seals `page` into the given slots.
    pub(super) fn write_page(
        &mut self,
        slots: [Slot; 2],
        level: u8,
        page: &[u8; PAGE_BYTES],
    ) -> Result<NodePointer, Error> {
        let mut sealed = Box::new([0; PAGE_BYTES]);
        let aad = self.store.associated_data(level);
        let Tag(tag) = self.key.seal(nonce(self.counter), &aad, page, &mut *sealed);
        let (key_epoch, salt) = (self.key_epoch, self.salt);
        let pointer = NodePointer { slots, key_epoch, salt, counter: self.counter, tag };
        self.counter = self.counter.checked_add(1).ok_or(Error::NoSpace)?;
        self.written.push(slots);
        let full = {
            let mut pending = self.pending.borrow_mut();
            pending.push((slots, sealed));
            pending.len() >= WRITE_NODES
        };
        if full {
            self.flush()?;
        }
        Ok(pointer)
    }

    /// Hands everything to the operating system.
    pub(super) fn flush(&self) -> Result<(), Error> {
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        for copy in 0..2 {
            self.flush_copy(copy, &pending)
                .map_err(|source| Error::Storage { op: "write", source: Arc::new(source) })?;
        }
        Ok(())
    }

    fn flush_copy(&self, copy: usize, pending: &[([Slot; 2], Page)]) -> io::Result<()> {
        let next_to = |a: &([Slot; 2], Page), b: &([Slot; 2], Page)| a.0[copy].is_before(b.0[copy]);
        for group in pending.chunk_by(next_to) {
            let mut bytes = Vec::with_capacity(group.len() * PAGE_BYTES);
            group.iter().for_each(|(_, page)| bytes.extend_from_slice(&page[..]));
            let (file, offset) =
                (FileId::Segment(group[0].0[copy].segment()), group[0].0[copy].offset());
            self.store.storage.write_at(file, offset, &bytes)?;
            self.store.storage.start_writeback(file, offset, bytes.len() as u64);
        }
        Ok(())
    }

    /// Ends writing: flushes, and gives slots that were not used back.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        self.flush()?;
        let unused = self.free_pairs.drain(..).flatten().collect();
        self.space.release(&crate::space::runs_of(unused));
        Ok(())
    }
}

impl NodeWriter<'_> {
    /// Gives every slot back that was taken: nothing will refer to what was written.
    pub(super) fn abandon(&mut self) {
        self.pending.borrow_mut().clear();
        let written = std::mem::take(&mut self.written);
        let all = self.free_pairs.drain(..).chain(written).flatten().collect();
        self.space.release(&crate::space::runs_of(all));
    }
}

impl NodeSource for NodeWriter<'_> {
    fn read(&self, pointer: &NodePointer, level: u8) -> Result<Arc<Node>, Error> {
        if let Some(node) = self.store.cached(pointer) {
            return Ok(node);
        }
        self.flush()?;
        self.store.read(pointer, level)
    }
}

impl NodeSink for NodeWriter<'_> {
    fn write(&mut self, level: u8, node: Node) -> Result<NodePointer, Error> {
        let slots = self.take_pairs(1)?[0];
        let pointer = self.write_page(slots, level, node.bytes())?;
        self.store.remember(&pointer, Arc::new(node));
        Ok(pointer)
    }

    fn free(&mut self, pointer: &NodePointer) {
        self.freed.push(pointer.slots);
    }
}
