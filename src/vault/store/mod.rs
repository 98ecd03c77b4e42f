//! Everything that a vault keeps: values by key, sealed at rest, changed one atomic and durable
//! change at a time.
//!
//! One file, `state`: a snapshot, and after it a record for each change, each sealed and chained
//! to the one before ([`record`]). When what is outdated outweighs what is not, the file is written
//! anew and put in the old one's place. Only keys, and where values lie, are in memory.
//!
//! # Crash argument
//! 1. A change is one record, appended and synced before [`Store::change`] returns and before
//!    anybody can read it. A crash before the sync leaves it out or whole: one that is torn is cut
//!    off when the file is opened ([`StateFile::open`]).
//! 2. A failed write is undone by cutting the file; a failed sync, or a cut that fails, stops all
//!    changes until the vault is opened again, because nobody knows what is on the disk.
//! 3. A new file replaces the old one as [`StateFile::write_new`] says.
//!
//! # Rollback
//! An older record, head or part of the file does not chain. The whole file of an earlier day does,
//! and so does the file cut after an earlier record: this host's memory of the sequence
//! (`key::pin`) refuses those.

mod file;
pub mod record;

use std::collections::BTreeMap;
use std::io;
use std::ops::{Bound, Range};
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, RwLock};
use zeroize::Zeroizing;

use super::encoding::to_json;
use crate::crypto::Secret;
use crate::format::VolumeId;
use file::{AppendError, End, Place, Snapshot, StateFile};

/// Most entries: what bounds the memory of the index, to some 100 MB.
const ENTRIES_MAX: usize = 500_000;
/// A file below this size is not written anew.
const COMPACT_BYTES_MIN: u64 = 1024 * 1024;

/// Why the store cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call on a file failed.
    #[error("cannot {attempt} {}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Somebody else wrote to the file, or the disk lost what was durable.
    #[error("the vault's state was changed by somebody without its key, at byte {offset}")]
    Tampered {
        /// Where the record begins.
        offset: u64,
    },
    /// A value that the store holds is not what this version writes.
    #[error("the vault's entry {0:?} cannot be understood; a newer version may have written it")]
    Malformed(String),
    /// No more entries.
    #[error("the vault is full: purge what is not needed")]
    Full,
    /// More than a record holds.
    #[error("this is more than can be changed at once")]
    TooLarge,
    /// An earlier change failed in a way that leaves open what is on the disk.
    #[error("nothing can be changed after an earlier error of the disk; restart the vault")]
    Stopped,
}

impl StoreError {
    fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { attempt, path, source }
    }
}

/// The store. Reads run beside each other and beside a change; changes one after another.
pub struct Store {
    directory: PathBuf,
    master: Secret,
    vault: VolumeId,
    /// Lock order: `writer`, then `view`.
    writer: Mutex<Writer>,
    view: RwLock<View>,
}

struct Writer {
    end: End,
    stopped: bool,
}

/// What readers see: all of the changes that are durable.
struct View {
    file: std::sync::Arc<StateFile>,
    index: BTreeMap<String, Location>,
    /// Bytes of all live entries.
    live_bytes: u64,
}

#[derive(Clone, Debug)]
struct Location {
    place: Place,
    value: Range<u32>,
}

impl View {
    fn apply(&mut self, place: &Place, entries: Vec<record::Entry>) -> Result<(), StoreError> {
        for record::Entry { key, value } in entries {
            let bytes = |value: &Range<u32>| {
                record::entry_bytes(&key, (value.end - value.start) as usize) as u64
            };
            let new = value.map(|value| Location {
                place: *place,
                value: value.start as u32..value.end as u32,
            });
            self.live_bytes += new.as_ref().map_or(0, |new| bytes(&new.value));
            let old = match new {
                Some(new) => self.index.insert(key.clone(), new),
                None => self.index.remove(&key),
            };
            self.live_bytes -= old.map_or(0, |old| bytes(&old.value));
        }
        if self.index.len() > ENTRIES_MAX { Err(StoreError::Full) } else { Ok(()) }
    }
}

impl Store {
    /// Makes an empty store in `directory`.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn create(directory: &Path, master: Secret, vault: VolumeId) -> Result<Self, StoreError> {
        let (file, end) = StateFile::write_new(directory, (&master, vault), 1, &[], |_, _| ())?;
        let view = View { file: file.into(), index: BTreeMap::new(), live_bytes: 0 };
        Ok(Self::with(directory, (master, vault), end, view))
    }

    /// Opens the store in `directory`. The caller holds the directory's lock.
    ///
    /// # Errors
    /// [`StoreError::Tampered`], or the disk's.
    pub fn open(directory: &Path, master: Secret, vault: VolumeId) -> Result<Self, StoreError> {
        let mut found = Vec::new();
        let (file, end, torn) = StateFile::open(directory, &master, vault, |place, entries| {
            found.push((*place, entries));
            Ok(())
        })?;
        if torn {
            log::warn!("a change that was never acknowledged was cut off by a crash");
        }
        let mut view = View { file: file.into(), index: BTreeMap::new(), live_bytes: 0 };
        for (place, entries) in found {
            view.apply(&place, entries)?;
        }
        Ok(Self::with(directory, (master, vault), end, view))
    }

    fn with(directory: &Path, key: (Secret, VolumeId), end: End, view: View) -> Self {
        Self {
            directory: directory.to_owned(),
            master: key.0,
            vault: key.1,
            writer: Mutex::new(Writer { end, stopped: false }),
            view: RwLock::new(view),
        }
    }

    /// The vault's identity.
    pub fn vault_id(&self) -> VolumeId {
        self.vault
    }

    /// The vault's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Number of the newest change: it only ever grows.
    pub fn sequence(&self) -> u64 {
        self.writer.lock().end.0.sequence
    }

    /// A key for `label`, derived from the master key: for what is kept beside the store.
    pub fn derive_key(&self, label: &str, length: usize) -> Secret {
        crate::crypto::kdf::derive(&self.master, label, &self.vault.0, length)
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`StoreError::Tampered`], or the disk's.
    pub fn get(&self, key: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let view = self.view.read();
        let Some(location) = view.index.get(key).cloned() else { return Ok(None) };
        let file = view.file.clone();
        drop(view);
        let entries = file.read(&location.place)?;
        let value = &entries[location.value.start as usize..location.value.end as usize];
        Ok(Some(Zeroizing::new(value.to_vec())))
    }

    /// The value of `key`, decoded from JSON.
    ///
    /// # Errors
    /// As [`Store::get`], and [`StoreError::Malformed`].
    pub fn get_json<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<T>, StoreError> {
        self.get(key)?.map(|bytes| decode(key, &bytes)).transpose()
    }

    /// Keys that begin with `prefix`, in order, that are greater than `after`, at most `count`.
    pub fn keys(&self, prefix: &str, after: Option<&str>, count: usize) -> Vec<String> {
        let view = self.view.read();
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let range = view.index.range::<str, _>((start, Bound::Unbounded));
        let keys = range.map(|(key, _)| key).take_while(|key| key.starts_with(prefix));
        keys.take(count).cloned().collect()
    }

    /// Makes a change: what `decide` puts into the transaction is durable, all of it, when this
    /// returns `Ok`; nothing of it has happened if it returns `Err`. Changes run one after another,
    /// so what `decide` reads is still so when its change counts: keep it short, and draw keys
    /// before.
    ///
    /// # Errors
    /// That of `decide`, else a [`StoreError`].
    pub fn change<T, E: From<StoreError>>(
        &self,
        decide: impl FnOnce(&mut Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut writer = self.writer.lock();
        if writer.stopped {
            return Err(StoreError::Stopped.into());
        }
        let mut transaction = Transaction { store: self, changes: BTreeMap::new() };
        let result = decide(&mut transaction)?;
        let changes = transaction.changes;
        if changes.is_empty() {
            return Ok(result);
        }
        self.commit(&mut writer, &changes)?;
        let (file_bytes, live_bytes) = (writer.end.0.offset, self.view.read().live_bytes);
        if file_bytes > COMPACT_BYTES_MIN && file_bytes > 4 * live_bytes {
            // The change is durable; the file is only larger than it need be.
            if let Err(error) = self.compact_locked(&mut writer) {
                log::error!("cannot write the vault's state anew: {error}");
            }
        }
        Ok(result)
    }

    fn commit(&self, writer: &mut Writer, changes: &Changes) -> Result<(), StoreError> {
        let bytes = changes.iter().map(|(key, value)| {
            record::entry_bytes(key, value.as_ref().map_or(0, |value| value.len()))
        });
        let bytes = bytes.sum();
        if !record::fits(bytes) || changes.keys().any(|key| key.len() > record::KEY_BYTES_MAX) {
            return Err(StoreError::TooLarge);
        }
        let puts = changes.values().filter(|value| value.is_some()).count();
        if self.view.read().index.len() + puts > ENTRIES_MAX {
            return Err(StoreError::Full);
        }
        let mut entries = Zeroizing::new(Vec::with_capacity(bytes));
        for (key, value) in changes {
            record::push_entry(&mut entries, key, value.as_ref().map(|value| value.as_slice()));
        }
        let file = self.view.read().file.clone();
        let place = writer.end.0;
        writer.end = file.append(&writer.end, &entries).map_err(|error| {
            let source = match error {
                AppendError::Undone(source) => source,
                AppendError::Final(source) => {
                    writer.stopped = true;
                    source
                }
            };
            StoreError::io("write", &self.directory.join(file::NAME))(source)
        })?;
        let entries = record::entries(&entries).expect("just encoded");
        self.view.write().apply(&place, entries)
    }

    /// Writes the file anew, without anything that is outdated: what was purged is then not in it
    /// any more.
    ///
    /// # Errors
    /// Those of the disk. Changes stop if it is not known which file stays.
    pub fn compact(&self) -> Result<(), StoreError> {
        let mut writer = self.writer.lock();
        if writer.stopped {
            return Err(StoreError::Stopped);
        }
        self.compact_locked(&mut writer)
    }

    fn compact_locked(&self, writer: &mut Writer) -> Result<(), StoreError> {
        let lengths: Vec<(String, usize)> = {
            let view = self.view.read();
            let length = |location: &Location| location.value.len();
            view.index.iter().map(|(key, location)| (key.clone(), length(location))).collect()
        };
        let read = |key: &str| self.get(key)?.ok_or_else(|| StoreError::Malformed(key.to_owned()));
        let entries = lengths.iter().map(|(key, bytes)| (key.as_str(), *bytes));
        let groups = Snapshot::group(entries, &read);
        let mut places = Vec::new();
        let first = writer.end.0.sequence;
        let made = StateFile::write_new(
            &self.directory,
            (&self.master, self.vault),
            first,
            &groups,
            |place, group| places.push((*place, group.keys.len())),
        );
        let (file, end) = made.inspect_err(|error| {
            // Before the rename the old file is in its place, and appending to it is right.
            let renamed = matches!(error, StoreError::Io { attempt: "replace" | "sync", .. });
            writer.stopped |= renamed;
        })?;
        let mut view = View { file: file.into(), index: BTreeMap::new(), live_bytes: 0 };
        let mut lengths = lengths.into_iter();
        for (place, count) in places {
            let mut at = 0;
            let entries = lengths.by_ref().take(count).map(|(key, bytes)| {
                let start = at + record::entry_bytes(&key, 0);
                at = start + bytes;
                record::Entry { key, value: Some(start..at) }
            });
            view.apply(&place, entries.collect())?;
        }
        *self.view.write() = view;
        writer.end = end;
        Ok(())
    }
}

type Changes = BTreeMap<String, Option<Zeroizing<Vec<u8>>>>;

/// A change that is being decided on.
pub struct Transaction<'a> {
    store: &'a Store,
    changes: Changes,
}

impl Transaction<'_> {
    /// The value of `key`, as this change leaves it.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn get(&self, key: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        match self.changes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.store.get(key),
        }
    }

    /// The value of `key`, decoded from JSON.
    ///
    /// # Errors
    /// As [`Store::get_json`].
    pub fn get_json<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Option<T>, StoreError> {
        self.get(key)?.map(|bytes| decode(key, &bytes)).transpose()
    }

    /// Whether `key` has a value, as this change leaves it.
    pub fn has(&self, key: &str) -> bool {
        match self.changes.get(key) {
            Some(value) => value.is_some(),
            None => self.store.view.read().index.contains_key(key),
        }
    }

    /// Keys that begin with `prefix`, in order, as they were before this change.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        self.store.keys(prefix, None, usize::MAX)
    }

    /// Gives `key` a value.
    pub fn put(&mut self, key: &str, value: Zeroizing<Vec<u8>>) {
        self.changes.insert(key.to_owned(), Some(value));
    }

    /// Gives `key` a value that is encoded as JSON.
    pub fn put_json(&mut self, key: &str, value: &impl serde::Serialize) {
        self.put(key, to_json(value));
    }

    /// Takes its value from `key`.
    pub fn remove(&mut self, key: &str) {
        self.changes.insert(key.to_owned(), None);
    }
}

fn decode<T: serde::de::DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    // The error would quote the value.
    serde_json::from_slice(bytes).map_err(|_| StoreError::Malformed(key.to_owned()))
}

#[cfg(test)]
mod tests;
