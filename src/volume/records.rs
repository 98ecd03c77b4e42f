//! Typed access to records.

use super::{EPOCHS_UNTIL_REUSE, Error, INLINE_BYTES_MAX, Live, Volume};
use crate::epoch::{self, CommitOptions};
use crate::format::map::PageMap;
use crate::format::record::{self, Entry, Inode, Key, RecordError, Table};
use crate::format::{RUN_PAGES, Slot};
use crate::space::SlotRun;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Longer values are stored in parts of this many bytes.
pub(super) const PART_BYTES: usize = INLINE_BYTES_MAX as usize;
/// Freed slots for which epochs are ended at once when a full disk refuses an operation.
const WORTH_AN_EPOCH_SLOTS: u64 = 256;

/// Sees an entry's cookie, inode, kind and name; false ends the visit.
pub type VisitEntry<'a> = dyn FnMut(u64, u64, u8, &[u8]) -> bool + 'a;

/// A set of record changes that become durable together. Puts do not fail.
pub struct Change<'a> {
    inner: epoch::Change<'a>,
    live: &'a Live,
    inodes: i64,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if !self.inner.is_empty() {
            self.inner.note(&self.live.note(self.inodes));
        }
    }
}

impl Volume {
    /// Starts a set of changes. `frees`: it only removes or replaces, and is let through when the
    /// volume is full.
    ///
    /// # Errors
    /// `NoSpace` when the volume is full and `frees` is false; `Poisoned`; `ReadOnly`.
    pub fn change(&self, frees: bool) -> Result<Change<'_>, Error> {
        let inner = match self.epochs.change(frees) {
            Err(epoch::Error::NoSpace) if self.epochs.reclaim(WORTH_AN_EPOCH_SLOTS)? => {
                // What was deleted a moment ago may be just what is missing.
                for _ in 1..EPOCHS_UNTIL_REUSE {
                    self.epochs.commit(&CommitOptions { force: true, ..Default::default() })?;
                }
                self.epochs.change(frees)?
            }
            change => change?,
        };
        Ok(Change { inner, live: &self.live, inodes: 0 })
    }

    /// The record of an inode.
    ///
    /// # Errors
    /// If the metadata is damaged there; likewise for every method below that reads.
    pub fn inode(&self, ino: u64) -> Result<Option<Inode>, Error> {
        match self.epochs.get(&record::key(Table::Inode, ino, &[]))? {
            Some(value) => Ok(Some(Inode::decode(&value)?)),
            None => Ok(None),
        }
    }

    /// The entry of that name.
    pub fn entry(&self, parent: u64, name: &[u8]) -> Result<Option<Entry>, Error> {
        match self.epochs.get(&record::key(Table::Entry, parent, name))? {
            Some(value) => Ok(Some(Entry::decode(&value)?)),
            None => Ok(None),
        }
    }

    /// Visits entries with a cookie above `after`, ascending, until `visit` returns false:
    /// `visit(cookie, ino, kind, name)`. `visit` may call other read methods of the volume.
    pub fn entries(&self, parent: u64, after: u64, visit: &mut VisitEntry) -> Result<(), Error> {
        let from = record::key(Table::Cookie, parent, &after.saturating_add(1).to_be_bytes());
        let to = record::key(Table::Cookie, parent, &[0xff; 9]);
        let mut malformed = false;
        self.epochs.range(&from, &to, &mut |key, value| match decode_cookie(key, value) {
            Some((cookie, ino, kind, name)) => visit(cookie, ino, kind, name),
            None => {
                malformed = true;
                false
            }
        })?;
        if malformed { Err(RecordError("cookie").into()) } else { Ok(()) }
    }

    /// Finds out whether a new inode and its entry in `parent` can be stored: a damaged part of the
    /// metadata takes nothing.
    pub fn check_new(&self, ino: u64, parent: u64, cookie: u64) -> Result<(), Error> {
        self.epochs.get(&record::key(Table::Inode, ino, &[]))?;
        self.epochs.get(&record::key(Table::Cookie, parent, &cookie.to_be_bytes()))?;
        Ok(())
    }

    /// Bytes kept inline: contents of a small file, the target of a symlink.
    pub fn inline(&self, ino: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let (from, to) = (record::key(Table::Inline, ino, &[]), after_owner(Table::Inline, ino));
        self.epochs.range(&from, &to, &mut |_, value| {
            bytes.extend_from_slice(value);
            true
        })?;
        Ok(bytes)
    }

    /// Value of an extended attribute (up to 64 KiB).
    pub fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let mut value: Option<Vec<u8>> = None;
        let (from, to) = (xattr_key(ino, name, 0), xattr_key(ino, name, u16::MAX));
        self.epochs.range(&from, &to, &mut |_, part| {
            value.get_or_insert_default().extend_from_slice(part);
            true
        })?;
        Ok(value)
    }

    /// Names of all extended attributes, ascending.
    pub fn xattr_names(&self, ino: u64) -> Result<Vec<Vec<u8>>, Error> {
        let mut names = Vec::new();
        let (from, to) = (record::key(Table::Xattr, ino, &[]), after_owner(Table::Xattr, ino));
        self.epochs.range(&from, &to, &mut |key, _| {
            let name = key.get(9..key.len().saturating_sub(3)).unwrap_or_default();
            if names.last().is_none_or(|last: &Vec<u8>| last != name) {
                names.push(name.to_vec());
            }
            true
        })?;
        Ok(names)
    }

    /// Inodes that have no name and were not yet discarded (found at opening).
    pub fn orphans(&self) -> Result<Vec<u64>, Error> {
        let mut inos = Vec::new();
        self.epochs.scan(Table::Orphan, &mut |key, _| inos.push(record::owner(key)))?;
        Ok(inos)
    }

    /// Where a page is, or `None` for a hole.
    pub fn slot_of(&self, ino: u64, page: u64) -> Result<Option<Slot>, Error> {
        let map = self.page_map(ino, page / RUN_PAGES)?;
        Ok(map.pages[(page % RUN_PAGES) as usize].map(|page| page.slot))
    }

    pub(super) fn page_map(&self, ino: u64, run: u64) -> Result<PageMap, Error> {
        if self.cuts.is_dead(ino, run) {
            return Ok(PageMap::empty());
        }
        self.stored_map(ino, run)
    }

    /// The stored map of a run, dead or not: its pages count as allocated until it goes.
    pub(super) fn stored_map(&self, ino: u64, run: u64) -> Result<PageMap, Error> {
        match self.epochs.get(&map_key(ino, run))? {
            Some(value) => Ok(PageMap::decode(self.cipher, &value)?),
            None => Ok(PageMap::empty()),
        }
    }

    /// Keys of all records of an inode in `table`, at most `limit`.
    pub(super) fn keys_of(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Key>, Error> {
        let mut keys = Vec::new();
        self.epochs.range(from, to, &mut |key, _| {
            keys.push(Key::from_slice(key));
            keys.len() < limit
        })?;
        Ok(keys)
    }
}

impl Change<'_> {
    /// Stores an inode record.
    pub fn put_inode(&mut self, ino: u64, inode: &Inode) {
        self.put(record::key(Table::Inode, ino, &[]), &inode.encode());
    }

    /// Stores an entry under its name and under its cookie.
    pub fn put_entry(&mut self, parent: u64, name: &[u8], entry: &Entry) {
        self.put(record::key(Table::Entry, parent, name), &entry.encode());
        let mut value = Vec::with_capacity(9 + name.len());
        value.extend_from_slice(&entry.ino.to_le_bytes());
        value.push(entry.kind);
        value.extend_from_slice(name);
        self.put(record::key(Table::Cookie, parent, &entry.cookie.to_be_bytes()), &value);
    }

    /// Removes an entry; `cookie` is that of the entry as it was read.
    pub fn delete_entry(&mut self, parent: u64, name: &[u8], cookie: u64) {
        self.delete(record::key(Table::Entry, parent, name));
        self.delete(record::key(Table::Cookie, parent, &cookie.to_be_bytes()));
    }

    /// Stores bytes inline: the target of a new symlink, the content of a small file.
    pub fn put_inline(&mut self, ino: u64, bytes: &[u8]) {
        for (part, bytes) in (0u16..).zip(bytes.chunks(PART_BYTES)) {
            self.put(record::key(Table::Inline, ino, &part.to_be_bytes()), bytes);
        }
    }

    /// Removes the inline content of a file, which is one part.
    pub(super) fn delete_inline(&mut self, ino: u64) {
        self.delete(record::key(Table::Inline, ino, &0u16.to_be_bytes()));
    }

    /// Stores an extended attribute; `old_bytes` is the length of the value that it replaces, if
    /// any.
    pub fn put_xattr(&mut self, ino: u64, name: &[u8], value: &[u8], old_bytes: Option<usize>) {
        let parts = parts(value.len());
        for part in 0..parts {
            let from = usize::from(part) * PART_BYTES;
            let to = (from + PART_BYTES).min(value.len());
            self.put(xattr_key(ino, name, part), &value[from..to]);
        }
        for part in parts..old_bytes.map_or(0, self::parts) {
            self.delete(xattr_key(ino, name, part));
        }
    }

    /// Removes an extended attribute of `old_bytes` bytes.
    pub fn delete_xattr(&mut self, ino: u64, name: &[u8], old_bytes: usize) {
        for part in 0..parts(old_bytes) {
            self.delete(xattr_key(ino, name, part));
        }
    }

    /// Marks an inode as having no name, so that it is discarded even after a crash.
    pub fn put_orphan(&mut self, ino: u64) {
        self.put(record::key(Table::Orphan, ino, &[]), &[]);
    }

    /// Takes the mark back (an `O_TMPFILE` file that is given a name).
    pub fn delete_orphan(&mut self, ino: u64) {
        self.delete(record::key(Table::Orphan, ino, &[]));
    }

    /// Counts inodes that come (+1) and go (-1).
    pub fn count_inodes(&mut self, by: i64) {
        self.live.inodes.fetch_add(by as u64, Ordering::Relaxed);
        self.inodes += by;
    }

    pub(super) fn put(&mut self, key: Key, value: &[u8]) {
        self.inner.put(&key[..], Some(Arc::from(value)));
    }

    pub(super) fn delete(&mut self, key: Key) {
        self.inner.put(&key[..], None);
    }

    pub(super) fn put_map(
        &mut self,
        cipher: crate::crypto::Cipher,
        ino: u64,
        run: u64,
        map: &PageMap,
    ) {
        if map.is_empty() {
            self.delete(map_key(ino, run));
        } else {
            self.put(map_key(ino, run), &map.encode(cipher));
        }
    }

    /// Says that the change frees this many pages.
    pub(super) fn note_freed(&mut self, pages: u64) {
        self.inner.note_freed(pages);
    }

    pub(super) fn refer_to(&mut self, runs: &[SlotRun], sums: &[u64]) {
        self.inner.refer_to(runs, sums);
    }
}

/// Key of the page map of one run.
pub(super) fn map_key(ino: u64, run: u64) -> Key {
    record::key(Table::PageMap, ino, &run.to_be_bytes())
}

/// Key of the wrapped DEK of one chunk.
pub(super) fn dek_key(ino: u64, chunk: u64) -> Key {
    record::key(Table::Dek, ino, &chunk.to_be_bytes())
}

fn xattr_key(ino: u64, name: &[u8], part: u16) -> Key {
    let mut key = record::key(Table::Xattr, ino, name);
    key.push(0);
    key.extend_from_slice(&part.to_be_bytes());
    key
}

/// The smallest key above all of an inode's in a table.
pub(super) fn after_owner(table: Table, ino: u64) -> Key {
    match ino.checked_add(1) {
        Some(next) => record::key(table, next, &[]),
        None => Key::from_slice(&[table as u8 + 1]),
    }
}

/// Parts that a value of that length takes; an empty one takes one.
fn parts(bytes: usize) -> u16 {
    u16::try_from(bytes.div_ceil(PART_BYTES).max(1)).unwrap_or(u16::MAX)
}

pub(crate) fn decode_cookie<'a>(key: &[u8], value: &'a [u8]) -> Option<(u64, u64, u8, &'a [u8])> {
    let cookie = u64::from_be_bytes(key.get(9..)?.try_into().ok()?);
    let ino = u64::from_le_bytes(value.get(..8)?.try_into().ok()?);
    Some((cookie, ino, *value.get(8)?, value.get(9..)?))
}
