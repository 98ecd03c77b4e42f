//! Decompressed blocks in memory, the least recently used of which go first.

use std::sync::Arc;

use lru::LruCache;

use super::index::NodeId;

/// Length of a block, but for the last one of a member.
pub(super) const BLOCK_BYTES: u64 = 128 << 10;

/// Part of a member: which, and the number of the block in it.
pub(super) type BlockId = (NodeId, u64);

/// Blocks, up to a number of bytes.
pub(super) struct Cache {
    blocks: LruCache<BlockId, Arc<Vec<u8>>>,
    bytes: u64,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self { blocks: LruCache::unbounded(), bytes: 0 }
    }

    pub(super) fn get(&mut self, id: BlockId) -> Option<Arc<Vec<u8>>> {
        self.blocks.get(&id).cloned()
    }

    pub(super) fn contains(&self, id: BlockId) -> bool {
        self.blocks.contains(&id)
    }

    /// Adds a block, and drops others until at most `bytes_max` are left.
    pub(super) fn put(&mut self, id: BlockId, block: Arc<Vec<u8>>, bytes_max: u64) {
        self.bytes += block.len() as u64;
        if let Some(before) = self.blocks.put(id, block) {
            self.bytes -= before.len() as u64;
        }
        while self.bytes > bytes_max {
            let Some((_, dropped)) = self.blocks.pop_lru() else { return };
            self.bytes -= dropped.len() as u64;
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}
