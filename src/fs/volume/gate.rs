//! A volume's tree that can be taken away from under the kernel, and put back: inode numbers and
//! handles stay what they are.
//!
//! Serving → draining → locked → serving. While draining, callers are refused and the kernel's
//! write-back is taken: what was acknowledged is to become durable. When locked there is no tree,
//! and no key in memory; what the kernel closes and forgets meanwhile is remembered.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::handle::Handles;
use super::{VolumeTree, recover_except};
use crate::fs::{
    Allocate, Attr, Caller, DirEntry, Error, Ino, RenameFlags, Seek, SetAttr, SetXattr, StatFs,
    Tree,
};
use crate::volume::Volume;

/// Why callers are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The key was taken away.
    Revoked,
    /// There is no key for the time being.
    NoKey,
}

impl Refusal {
    /// What callers get.
    pub(in crate::fs) fn error(self) -> Error {
        match self {
            Self::Revoked => Error::KeyRevoked,
            Self::NoKey => Error::NoKey,
        }
    }
}

enum Phase {
    Serving(VolumeTree),
    Draining(VolumeTree, Refusal),
    Locked(Refusal),
}

/// See the [module](self).
pub struct GatedTree {
    /// Read by every operation for as long as it takes, so that writing waits for those under way.
    /// No operation waits for another request of the kernel, so that this ends.
    phase: RwLock<Phase>,
    handles: Arc<Handles>,
    /// Writes that came while draining.
    late_writes: AtomicU64,
    /// Of what could not be written then.
    unwritten: Mutex<BTreeSet<Ino>>,
}

impl GatedTree {
    /// Serves `volume` to a kernel, which says when it forgets what it held.
    pub fn new(volume: Arc<Volume>) -> Self {
        let tree = VolumeTree::new(volume).discard_when_forgotten();
        let handles = tree.handles.clone();
        Self {
            phase: RwLock::new(Phase::Serving(tree)),
            handles,
            late_writes: AtomicU64::new(0),
            unwritten: Mutex::default(),
        }
    }

    /// Refuses callers from now on. Returns when nobody is served any more.
    pub fn drain(&self, refusal: Refusal) {
        let mut phase = self.phase.write();
        *phase = match std::mem::replace(&mut *phase, Phase::Locked(refusal)) {
            Phase::Serving(tree) | Phase::Draining(tree, _) => Phase::Draining(tree, refusal),
            Phase::Locked(_) => Phase::Locked(refusal),
        };
    }

    /// How many writes came while draining; one that still comes may be followed by more.
    pub fn late_writes(&self) -> u64 {
        self.late_writes.load(Ordering::Relaxed)
    }

    /// The files of which a write failed that came while draining.
    pub fn unwritten(&self) -> BTreeSet<Ino> {
        self.unwritten.lock().clone()
    }

    /// Lets go of the volume. Call it when what came while draining is durable.
    pub fn lock(&self) {
        let mut phase = self.phase.write();
        let (Phase::Draining(_, refusal) | Phase::Locked(refusal)) = *phase else { return };
        *phase = Phase::Locked(refusal);
    }

    /// Goes on with the same volume, opened again. What was deleted and closed meanwhile is
    /// discarded.
    pub fn resume(&self, volume: Arc<Volume>) {
        match recover_except(&volume, &|ino| self.handles.is_nameless(ino)) {
            Ok(_) => {}
            Err(error) => log::error!("deleted files are still there: {error}"),
        }
        let tree = VolumeTree::resume(volume, self.handles.clone());
        self.unwritten.lock().clear();
        *self.phase.write() = Phase::Serving(tree);
    }

    /// For callers.
    fn serve<R>(&self, work: impl FnOnce(&VolumeTree) -> Result<R, Error>) -> Result<R, Error> {
        match &*self.phase.read() {
            Phase::Serving(tree) => work(tree),
            Phase::Draining(_, refusal) | Phase::Locked(refusal) => Err(refusal.error()),
        }
    }

    /// For what the kernel does with what callers were told is done.
    fn finish<R>(&self, work: impl FnOnce(&VolumeTree) -> Result<R, Error>) -> Result<R, Error> {
        match &*self.phase.read() {
            Phase::Serving(tree) => work(tree),
            Phase::Draining(tree, _) => {
                self.late_writes.fetch_add(1, Ordering::Relaxed);
                work(tree)
            }
            Phase::Locked(refusal) => Err(refusal.error()),
        }
    }
}

/// Whether the kernel alone may ask for it: it keeps the times of what it writes back
/// (`fuse_flush_times` in fs/fuse/inode.c).
fn are_kept_times(change: &SetAttr) -> bool {
    let SetAttr { permissions, uid, gid, size, atime, mtime: _, ctime: _, kill_suid: _ } = change;
    permissions.is_none() && uid.is_none() && gid.is_none() && size.is_none() && atime.is_none()
}

impl Tree for GatedTree {
    fn admit(&self) -> Result<(), Error> {
        self.serve(|_| Ok(()))
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        self.serve(|tree| tree.lookup(parent, name))
    }

    fn forget(&self, ino: Ino) {
        match &*self.phase.read() {
            Phase::Serving(tree) | Phase::Draining(tree, _) => tree.forget(ino),
            // What is to be discarded is, when the volume is there again.
            Phase::Locked(_) => drop(self.handles.forget(ino)),
        }
    }

    fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        self.serve(|tree| tree.getattr(ino))
    }

    fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr, Error> {
        if are_kept_times(change) {
            return self.finish(|tree| tree.setattr(ino, change));
        }
        self.serve(|tree| tree.setattr(ino, change))
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        self.serve(|tree| tree.readlink(ino))
    }

    fn mknod(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> Result<Attr, Error> {
        self.serve(|tree| tree.mknod(caller, parent, name, mode, rdev))
    }

    fn mkdir(&self, caller: Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr, Error> {
        self.serve(|tree| tree.mkdir(caller, parent, name, mode))
    }

    fn symlink(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr, Error> {
        self.serve(|tree| tree.symlink(caller, parent, name, target))
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        self.serve(|tree| tree.link(ino, parent, name))
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), Error> {
        self.serve(|tree| tree.unlink(parent, name))
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), Error> {
        self.serve(|tree| tree.rmdir(parent, name))
    }

    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), Error> {
        self.serve(|tree| tree.rename(parent, name, new_parent, new_name, flags))
    }

    fn open(&self, ino: Ino, truncate: bool, kill_suid: bool) -> Result<u64, Error> {
        self.serve(|tree| tree.open(ino, truncate, kill_suid))
    }

    fn accessed(&self, ino: Ino, is_changing: bool) -> Result<bool, Error> {
        self.serve(|tree| tree.accessed(ino, is_changing))
    }

    fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<(Attr, u64), Error> {
        self.serve(|tree| tree.create(caller, parent, name, mode))
    }

    fn tmpfile(&self, caller: Caller, parent: Ino, mode: u32) -> Result<(Attr, u64), Error> {
        self.serve(|tree| tree.tmpfile(caller, parent, mode))
    }

    fn release(&self, ino: Ino, handle: u64) {
        match &*self.phase.read() {
            Phase::Serving(tree) | Phase::Draining(tree, _) => tree.release(ino, handle),
            Phase::Locked(_) => drop(self.handles.close(ino)),
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
        self.serve(|tree| tree.read(ino, offset, length, is_access, buffer))
    }

    fn read_into(
        &self,
        ino: Ino,
        offset: u64,
        is_access: bool,
        buffer: &mut [u8],
    ) -> Result<usize, Error> {
        self.serve(|tree| tree.read_into(ino, offset, is_access, buffer))
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], kill_suid: bool) -> Result<(), Error> {
        let written = self.finish(|tree| tree.write(ino, offset, data, kill_suid));
        if written.is_err() && matches!(*self.phase.read(), Phase::Draining(..)) {
            self.unwritten.lock().insert(ino);
        }
        written
    }

    fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        length: u64,
    ) -> Result<u64, Error> {
        self.serve(|tree| tree.copy_range(from, from_offset, to, to_offset, length))
    }

    fn flush(&self, ino: Ino, handle: u64) -> Result<(), Error> {
        self.finish(|tree| tree.flush(ino, handle))
    }

    fn fsync(&self, ino: Ino, handle: u64, data_only: bool) -> Result<(), Error> {
        self.finish(|tree| tree.fsync(ino, handle, data_only))
    }

    fn try_fsync(&self, ino: Ino, handle: u64, data_only: bool) -> Option<Result<(), Error>> {
        self.finish(|tree| Ok(tree.try_fsync(ino, handle, data_only)))
            .unwrap_or_else(|error| Some(Err(error)))
    }

    fn sync(&self) -> Result<(), Error> {
        self.finish(VolumeTree::sync)
    }

    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        with_attr: bool,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<(), Error> {
        self.serve(|tree| tree.readdir(ino, cookie, with_attr, visit))
    }

    fn fallocate(&self, ino: Ino, offset: u64, length: u64, what: Allocate) -> Result<(), Error> {
        self.serve(|tree| tree.fallocate(ino, offset, length, what))
    }

    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, Error> {
        self.serve(|tree| tree.seek(ino, offset, what))
    }

    fn statfs(&self) -> Result<StatFs, Error> {
        self.serve(VolumeTree::statfs)
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Error> {
        self.serve(|tree| tree.getxattr(ino, name))
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Result<(), Error> {
        self.serve(|tree| tree.setxattr(ino, name, value, how))
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        self.serve(|tree| tree.listxattr(ino))
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), Error> {
        self.serve(|tree| tree.removexattr(ino, name))
    }
}
