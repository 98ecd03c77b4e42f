//! The read-write [`Tree`] over a [`Volume`]: POSIX rules turned into changes of records. Knows
//! neither keys nor bytes on disk.
//!
//! Every operation on names looks up what it needs, locks all inodes that it changes in one call,
//! looks again, and puts one [`Change`](crate::volume::Change). Names are read without locks, so an
//! operation orders its puts in a way that a lookup beside it always finds either the old or the
//! new: an inode is put before the entry that names it, and a rename puts the new entry before it
//! deletes the old.
//!
//! # Locks, in this order
//! 1. `moves`: renames that give a directory another parent.
//! 2. `sizes`: whoever computes a size from the size there is, against writers of the same file.
//! 3. The volume's own, see [`Volume`].

mod access;
mod attributes;
mod content;
mod dir;
mod edit;
mod gate;
mod handle;
mod namespace;
mod rename;
mod xattr;

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::{
    Allocate, Attr, Caller, DirEntry, Error, Ino, RenameFlags, Seek, SetAttr, SetXattr, StatFs,
    Tree,
};
use crate::format::record::Inode;
use crate::volume::{self, Volume};
use access::Accesses;
use handle::Handles;

pub use content::SIZE_BYTES_MAX;
pub use gate::{GatedTree, Refusal};
pub use namespace::make_root;

/// Number of the root directory.
pub const ROOT: Ino = 1;

/// Locks of `VolumeTree::sizes`; inodes share them.
const SIZE_LOCKS: usize = 64;

/// A volume as a filesystem.
pub struct VolumeTree {
    volume: Arc<Volume>,
    handles: Arc<Handles>,
    accesses: Arc<Accesses>,
    /// Keeps the ancestors of directories as they are while one is checked not to be moved below
    /// itself (the kernel's `s_vfs_rename_mutex`).
    moves: Mutex<()>,
    /// Shared by writers; exclusive for what reads the size and sets another.
    sizes: [RwLock<()>; SIZE_LOCKS],
}

impl VolumeTree {
    /// Serves `volume`. Call [`recover`] first if it was just opened.
    pub fn new(volume: Arc<Volume>) -> Self {
        Self::resume(volume, Arc::default())
    }

    /// The same, with handles that were open when it was served before.
    fn resume(volume: Arc<Volume>, handles: Arc<Handles>) -> Self {
        let sizes = [const { RwLock::new(()) }; SIZE_LOCKS];
        let accesses = Arc::new(Accesses::default());
        let waiting = accesses.clone();
        volume.before_epoch(Box::new(move |volume, has_work| waiting.put(volume, has_work)));
        Self { volume, handles, accesses, moves: Mutex::new(()), sizes }
    }

    /// Keeps every inode that loses its last name until [`Tree::forget`] says that nobody holds it.
    /// For a tree under a kernel, which holds what it removes and says when it lets go.
    #[must_use]
    pub fn discard_when_forgotten(self) -> Self {
        self.handles.wait_for_forget();
        self
    }

    fn inode(&self, ino: Ino) -> Result<Inode, Error> {
        let inode = self.volume.inode(ino).map_err(self.failed("reading the attributes", ino))?;
        Ok(self.with_access(ino, inode.ok_or(Error::Stale)?))
    }

    /// The record with the access time that waits.
    fn with_access(&self, ino: Ino, mut inode: Inode) -> Inode {
        if let Some(at) = self.accesses.get(ino) {
            inode.atime = inode.atime.max(at);
        }
        inode
    }

    /// Discards an inode that has no name and is not open. What asked for it has succeeded already,
    /// so a failure is only logged: the inode stays marked, and the next mount tries again.
    fn discard(&self, ino: Ino) {
        if let Err(error) = self.volume.discard(ino) {
            log::warn!("inode {ino} has no name and could not be discarded: {error}");
        }
    }

    /// See [`failed`].
    fn failed(&self, what: &'static str, ino: Ino) -> impl FnOnce(volume::Error) -> Error + '_ {
        failed(&self.volume, what, ino)
    }

    /// As [`failed`], with the offset in bytes.
    fn failed_at(
        &self,
        what: &'static str,
        ino: Ino,
        offset: u64,
    ) -> impl FnOnce(volume::Error) -> Error + '_ {
        move |error| {
            let what = || format!("{what} inode {ino} at offset {offset} failed");
            explain(&self.volume, error, what)
        }
    }

    fn size_lock(&self, ino: Ino) -> &RwLock<()> {
        &self.sizes[ino as usize % SIZE_LOCKS]
    }
}

/// Discards the inodes that lost their last name while they were open when the volume was last in
/// use. Returns how many. One that cannot be discarded is logged and left for the next time.
///
/// # Errors
/// [`Error::Io`] if the list cannot be read.
pub fn recover(volume: &Volume) -> Result<u64, Error> {
    recover_except(volume, &|_| false)
}

/// As [`recover`], but for what is still in use.
fn recover_except(volume: &Volume, in_use: &dyn Fn(Ino) -> bool) -> Result<u64, Error> {
    let mut discarded = 0;
    for ino in volume.orphans().map_err(failed(volume, "listing nameless inodes", ROOT))? {
        if in_use(ino) {
            continue;
        }
        match volume.discard(ino) {
            Ok(()) => discarded += 1,
            Err(error) => log::warn!("inode {ino} has no name and cannot be discarded: {error}"),
        }
    }
    Ok(discarded)
}

/// Makes the caller's error of a volume's: what was attempted, and on which inode.
fn failed<'a>(
    volume: &'a Volume,
    what: &'static str,
    ino: Ino,
) -> impl FnOnce(volume::Error) -> Error + 'a {
    move |error| explain(volume, error, || format!("{what} of inode {ino} failed"))
}

fn explain(volume: &Volume, error: volume::Error, what: impl FnOnce() -> String) -> Error {
    match error {
        volume::Error::NoSpace if volume.is_over_quota() => Error::QuotaExceeded,
        volume::Error::NoSpace => Error::NoSpace,
        volume::Error::NoInode(_) => Error::Stale,
        volume::Error::TooLarge => Error::TooLarge,
        volume::Error::ReadOnly => Error::ReadOnly,
        volume::Error::Damaged { .. }
        | volume::Error::Malformed(_)
        | volume::Error::Poisoned
        | volume::Error::Storage { .. } => {
            Error::Io { what: what(), source: Some(Box::new(error)) }
        }
    }
}

impl Tree for VolumeTree {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        self.find(parent, name)
    }

    fn forget(&self, ino: Ino) {
        if self.handles.forget(ino) {
            self.discard(ino);
        }
    }

    fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        self.attr(ino, &self.inode(ino)?)
    }

    fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr, Error> {
        self.set_attributes(ino, change)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        self.target(ino)
    }

    fn mknod(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> Result<Attr, Error> {
        self.make_node(caller, parent, name, mode, rdev)
    }

    fn mkdir(&self, caller: Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr, Error> {
        self.make_directory(caller, parent, name, mode)
    }

    fn symlink(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr, Error> {
        self.make_symlink(caller, parent, name, target)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        self.add_link(ino, parent, name)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), Error> {
        self.remove(parent, name, false)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), Error> {
        self.remove(parent, name, true)
    }

    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), Error> {
        self.rename_entry(&rename::Rename { parent, name, new_parent, new_name, flags })
    }

    fn open(&self, ino: Ino, truncate: bool, kill_suid: bool) -> Result<u64, Error> {
        self.open_file(ino, truncate, kill_suid)
    }

    fn accessed(&self, ino: Ino, is_changing: bool) -> Result<bool, Error> {
        self.note_access(ino, is_changing)
    }

    fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<(Attr, u64), Error> {
        self.make_open_file(caller, parent, name, mode)
    }

    fn tmpfile(&self, caller: Caller, parent: Ino, mode: u32) -> Result<(Attr, u64), Error> {
        self.make_nameless_file(caller, parent, mode)
    }

    fn release(&self, ino: Ino, _handle: u64) {
        if self.handles.close(ino) {
            self.discard(ino);
        }
    }

    fn read(
        &self,
        ino: Ino,
        offset: u64,
        length: usize,
        is_access: bool,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        self.read_content(ino, offset, length, is_access, buffer)
    }

    fn read_into(
        &self,
        ino: Ino,
        offset: u64,
        is_access: bool,
        buffer: &mut [u8],
    ) -> Result<usize, Error> {
        self.read_content_into(ino, offset, is_access, buffer)
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], kill_suid: bool) -> Result<(), Error> {
        self.write_content(ino, offset, data, kill_suid)
    }

    fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        length: u64,
    ) -> Result<u64, Error> {
        let from = content::Position { ino: from, offset: from_offset };
        self.copy_content(from, content::Position { ino: to, offset: to_offset }, length)
    }

    /// Nothing to report: every write was answered with what became of it.
    fn flush(&self, _ino: Ino, _handle: u64) -> Result<(), Error> {
        Ok(())
    }

    fn fsync(&self, ino: Ino, _handle: u64, data_only: bool) -> Result<(), Error> {
        if !data_only {
            self.put_access(ino)?;
        }
        self.volume.sync_file(ino).map_err(self.failed("syncing", ino))
    }

    fn try_fsync(&self, ino: Ino, _handle: u64, data_only: bool) -> Option<Result<(), Error>> {
        if !data_only {
            if let Err(error) = self.put_access(ino) {
                return Some(Err(error));
            }
        }
        Some(self.volume.try_sync_file(ino)?.map_err(self.failed("syncing", ino)))
    }

    fn sync(&self) -> Result<(), Error> {
        self.accesses.put(&self.volume, true);
        let what = || "syncing the volume failed".into();
        self.volume.sync().map_err(|error| explain(&self.volume, error, what))
    }

    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        with_attr: bool,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<(), Error> {
        self.list(ino, cookie, with_attr, visit)
    }

    fn fallocate(&self, ino: Ino, offset: u64, length: u64, what: Allocate) -> Result<(), Error> {
        self.allocate(ino, offset, length, what)
    }

    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, Error> {
        self.seek_content(ino, offset, what)
    }

    /// An inode costs at most a page, so there are as many free inodes as pages.
    fn statfs(&self) -> Result<StatFs, Error> {
        let (blocks, free, inodes) = self.volume.space();
        Ok(StatFs {
            blocks,
            blocks_free: free,
            blocks_available: free,
            files: inodes.saturating_add(free),
            files_free: free,
        })
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Error> {
        self.get_xattr(ino, name)
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Result<(), Error> {
        self.set_xattr(ino, name, value, how)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        self.list_xattrs(ino)
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), Error> {
        self.remove_xattr(ino, name)
    }
}
