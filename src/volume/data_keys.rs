//! Data encryption keys: one per chunk of a file, wrapped by the volume key.

use super::records::dek_key;
use super::{Error, Volume};
use crate::crypto::{PageKey, random};
use crate::epoch::{CacheCounts, CacheShard};
use crate::format::CHUNK_BYTES;
use parking_lot::Mutex;
use std::sync::Arc;

const SHARDS: usize = 16;
/// Keys that are kept set up, over all shards: 2 GiB of contents, about 10 MiB of memory.
const KEYS_CACHED: usize = 8192;

/// Set-up DEKs, by inode and chunk. Inode numbers are never reused, so an entry is never wrong; it
/// goes when its chunk does.
pub(super) struct DataKeys(Vec<Shard>);

/// Keys by inode and chunk.
type Shard = Mutex<CacheShard<(u64, u64), Arc<PageKey>>>;

impl DataKeys {
    pub(super) fn new() -> Self {
        let keys = KEYS_CACHED / SHARDS;
        Self((0..SHARDS).map(|_| Mutex::new(CacheShard::new(keys))).collect())
    }

    fn shard(&self, ino: u64, chunk: u64) -> &Shard {
        &self.0[(ino.wrapping_mul(31).wrapping_add(chunk)) as usize % SHARDS]
    }

    /// How the cache is.
    pub(super) fn counts(&self) -> CacheCounts {
        let mut counts = CacheCounts::default();
        self.0.iter().for_each(|shard| shard.lock().add_to(&mut counts));
        counts
    }

    fn get(&self, ino: u64, chunk: u64) -> Option<Arc<PageKey>> {
        self.shard(ino, chunk).lock().get(&(ino, chunk), |_| true).cloned()
    }

    fn put(&self, ino: u64, chunk: u64, key: Arc<PageKey>) {
        self.shard(ino, chunk).lock().put((ino, chunk), key);
    }

    pub(super) fn remove(&self, ino: u64, chunk: u64) {
        self.shard(ino, chunk).lock().pop_if(&(ino, chunk), |_| true);
    }
}

/// The chunk that a page belongs to.
pub(super) fn chunk_of(page: u64) -> u64 {
    page / (CHUNK_BYTES / crate::format::PAGE_BYTES as u64)
}

impl Volume {
    /// The key of an existing chunk.
    pub(super) fn dek(&self, ino: u64, chunk: u64) -> Result<Arc<PageKey>, Error> {
        if let Some(key) = self.data_keys.get(ino, chunk) {
            return Ok(key);
        }
        match self.stored_dek(ino, chunk)? {
            Some(key) => {
                self.data_keys.put(ino, chunk, key.clone());
                Ok(key)
            }
            None => Err(damaged(ino, chunk, "is missing and so")),
        }
    }

    /// The key of a chunk that is about to be written; drawn if it has none. The caller holds the
    /// content lock, so the chunk is not being cut off, and no record lock.
    pub(super) fn dek_for_write(&self, ino: u64, chunk: u64) -> Result<Arc<PageKey>, Error> {
        if let Some(key) = self.data_keys.get(ino, chunk) {
            return Ok(key);
        }
        let _lock = self.lock_inodes(&[ino]);
        if let Some(key) = self.stored_dek(ino, chunk)? {
            self.data_keys.put(ino, chunk, key.clone());
            return Ok(key);
        }
        let dek = random::secret(self.cipher.key_bytes());
        let (epoch, wrapped) = self.keys.wrap_dek(ino, chunk, &dek);
        let mut value = Vec::with_capacity(4 + wrapped.len());
        value.extend_from_slice(&epoch.to_le_bytes());
        value.extend_from_slice(&wrapped);
        let pages = CHUNK_BYTES / crate::format::PAGE_BYTES as u64;
        let is_promised = self.promises.count(ino, &(chunk * pages..(chunk + 1) * pages)) > 0;
        self.change(is_promised)?.put(dek_key(ino, chunk), &value);
        let key = Arc::new(PageKey::new(self.cipher, &dek));
        self.data_keys.put(ino, chunk, key.clone());
        Ok(key)
    }

    /// The key of a chunk as its record gives it.
    pub(super) fn stored_dek(&self, ino: u64, chunk: u64) -> Result<Option<Arc<PageKey>>, Error> {
        let Some(value) = self.epochs.get(&dek_key(ino, chunk))? else { return Ok(None) };
        self.decode_dek(ino, chunk, &value).map(Some)
    }

    /// The key of a chunk that a record holds.
    pub(super) fn decode_dek(
        &self,
        ino: u64,
        chunk: u64,
        value: &[u8],
    ) -> Result<Arc<PageKey>, Error> {
        let (epoch, wrapped) = value.split_at_checked(4).ok_or(Error::Malformed("data key"))?;
        let epoch = u32::from_le_bytes(epoch.try_into().expect("4 bytes"));
        let dek = self
            .keys
            .unwrap_dek(epoch, ino, chunk, wrapped)
            .map_err(|_| damaged(ino, chunk, ""))?;
        if dek.len() != self.cipher.key_bytes() {
            return Err(Error::Malformed("data key"));
        }
        Ok(Arc::new(PageKey::new(self.cipher, &dek)))
    }
}

fn damaged(ino: u64, chunk: u64, how: &str) -> Error {
    let from = chunk * CHUNK_BYTES;
    let what = format!("the key of bytes {from} to {} {how}", from + CHUNK_BYTES - 1);
    Error::Damaged { ino, what: what.trim_end().to_owned() }
}
