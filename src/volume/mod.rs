//! A volume as records and page contents: what the tree's keys mean. Knows no POSIX rules.

use crate::format::record::{Entry, Inode, Timestamp};

/// Why a volume operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A record or page does not authenticate.
    #[error("inode {ino}: {what} does not authenticate")]
    Damaged {
        /// The inode that it belongs to.
        ino: u64,
        /// Which part, with its offset.
        what: String,
    },
    /// No space is left.
    #[error("no space is left on the volume")]
    NoSpace,
    /// The volume stopped writing after a failed sync or write.
    #[error(
        "the volume stopped writing after an error of the backing storage: unmount and mount it again"
    )]
    Poisoned,
    /// Anything else of the storage.
    #[error("{what}")]
    Storage {
        /// What was attempted.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// An open volume. Shared between threads by `Arc`.
///
/// # Locks, in this order
/// 1. `lock_inodes` (striped mutexes over inode records), taken in one call for all inodes that an
///    operation changes; content operations ([`Volume::write`], [`Volume::truncate`], …) take theirs
///    themselves and must not be called with any held.
/// 2. A [`Change`] ([`Volume::change`]): everything put through one `Change` becomes durable together. It
///    blocks the end of an epoch, so no content operation and no waiting while it lives.
pub struct Volume;

/// Locks on inode records; released on drop.
pub struct InodeLocks;

/// A set of record changes that become durable together. Puts do not fail.
pub struct Change;

impl Volume {
    /// Locks the records of these inodes (any order, duplicates allowed).
    pub fn lock_inodes(&self, inos: &[u64]) -> InodeLocks {
        let _ = inos;
        todo!()
    }

    /// Starts a set of changes. Fails with `NoSpace` when the volume is full and `frees` (the change
    /// only removes or replaces) is false, `Poisoned` when it stopped writing.
    pub fn change(&self, frees: bool) -> Result<Change, Error> {
        let _ = frees;
        todo!()
    }

    /// A new inode number, never given out before.
    pub fn new_ino(&self) -> u64 {
        todo!()
    }

    /// A new directory cookie, larger than all before (starts above 16).
    pub fn new_cookie(&self) -> u64 {
        todo!()
    }

    /// The record of an inode.
    pub fn inode(&self, ino: u64) -> Result<Option<Inode>, Error> {
        let _ = ino;
        todo!()
    }

    /// The entry of that name.
    pub fn entry(&self, parent: u64, name: &[u8]) -> Result<Option<Entry>, Error> {
        let _ = (parent, name);
        todo!()
    }

    /// Visits entries with a cookie above `after`, ascending, until `visit` returns false:
    /// `visit(cookie, ino, kind, name)`. `visit` may call other read methods of the volume.
    pub fn entries(
        &self,
        parent: u64,
        after: u64,
        visit: &mut dyn FnMut(u64, u64, u8, &[u8]) -> bool,
    ) -> Result<(), Error> {
        let _ = (parent, after, visit);
        todo!()
    }

    /// Bytes kept inline: the target of a symlink. (Contents of small files are [`Volume::read`]'s.)
    pub fn inline(&self, ino: u64) -> Result<Vec<u8>, Error> {
        let _ = ino;
        todo!()
    }

    /// Value of an extended attribute (up to 64 KiB).
    pub fn xattr(&self, ino: u64, name: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let _ = (ino, name);
        todo!()
    }

    /// Names of all extended attributes, ascending.
    pub fn xattr_names(&self, ino: u64) -> Result<Vec<Vec<u8>>, Error> {
        let _ = ino;
        todo!()
    }

    /// Reads up to `length` bytes at `offset` into `buffer` (cleared first); short at the end of file.
    pub fn read(
        &self,
        ino: u64,
        offset: u64,
        length: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let _ = (ino, offset, length, buffer);
        todo!()
    }

    /// Writes `data`, grows the size if needed, and applies `touch` to the record in the same change
    /// (times, set-user-ID bits).
    pub fn write(
        &self,
        ino: u64,
        offset: u64,
        data: &[u8],
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        let _ = (ino, offset, data, touch);
        todo!()
    }

    /// Sets the size (the new part reads as zeros) and applies `touch`; returns the new record.
    pub fn truncate(
        &self,
        ino: u64,
        size: u64,
        touch: &dyn Fn(&mut Inode),
    ) -> Result<Inode, Error> {
        let _ = (ino, size, touch);
        todo!()
    }

    /// Makes a range read as zeros and frees its pages; the size stays.
    pub fn punch(
        &self,
        ino: u64,
        offset: u64,
        length: u64,
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        let _ = (ino, offset, length, touch);
        todo!()
    }

    /// Checks that `bytes` more can be written, for `fallocate`; `NoSpace` otherwise.
    pub fn reserve(&self, ino: u64, offset: u64, length: u64) -> Result<(), Error> {
        let _ = (ino, offset, length);
        todo!()
    }

    /// First offset at or after `offset` that is data (`true`) or a hole (`false`), 4 KiB granular;
    /// the end of the file counts as a hole. `None` past the end.
    pub fn seek(&self, ino: u64, offset: u64, data: bool) -> Result<Option<u64>, Error> {
        let _ = (ino, offset, data);
        todo!()
    }

    /// Ends the epoch and waits until it is durable.
    pub fn sync(&self) -> Result<(), Error> {
        todo!()
    }

    /// Total and free space in 4 KiB pages, and inodes in use.
    pub fn space(&self) -> (u64, u64, u64) {
        todo!()
    }

    /// The wall clock.
    pub fn now(&self) -> Timestamp {
        todo!()
    }

    /// Inodes that have no name and were not yet discarded (found at opening).
    pub fn orphans(&self) -> Result<Vec<u64>, Error> {
        todo!()
    }

    /// Removes everything of an inode that is no longer open: record, contents, xattrs, orphan mark.
    /// Large contents go in the background. The caller holds no locks.
    pub fn discard(&self, ino: u64) -> Result<(), Error> {
        let _ = ino;
        todo!()
    }
}

impl Change {
    /// Stores an inode record.
    pub fn put_inode(&mut self, ino: u64, inode: &Inode) {
        let _ = (ino, inode);
        todo!()
    }

    /// Stores an entry under its name and under its cookie.
    pub fn put_entry(&mut self, parent: u64, name: &[u8], entry: &Entry) {
        let _ = (parent, name, entry);
        todo!()
    }

    /// Removes an entry; `cookie` is that of the entry as it was read.
    pub fn delete_entry(&mut self, parent: u64, name: &[u8], cookie: u64) {
        let _ = (parent, name, cookie);
        todo!()
    }

    /// Stores the target of a new symlink.
    pub fn put_inline(&mut self, ino: u64, bytes: &[u8]) {
        let _ = (ino, bytes);
        todo!()
    }

    /// Stores an extended attribute; `old_bytes` is the length of the value that it replaces, if any.
    pub fn put_xattr(&mut self, ino: u64, name: &[u8], value: &[u8], old_bytes: Option<usize>) {
        let _ = (ino, name, value, old_bytes);
        todo!()
    }

    /// Removes an extended attribute of `old_bytes` bytes.
    pub fn delete_xattr(&mut self, ino: u64, name: &[u8], old_bytes: usize) {
        let _ = (ino, name, old_bytes);
        todo!()
    }

    /// Marks an inode as having no name, so that it is discarded even after a crash.
    pub fn put_orphan(&mut self, ino: u64) {
        let _ = ino;
        todo!()
    }

    /// Takes the mark back (an `O_TMPFILE` file that is given a name).
    pub fn delete_orphan(&mut self, ino: u64) {
        let _ = ino;
        todo!()
    }

    /// Counts inodes that come (+1) and go (-1).
    pub fn count_inodes(&mut self, by: i64) {
        let _ = by;
        todo!()
    }
}
