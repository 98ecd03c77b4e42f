//! Records of inodes that one operation reads once, edits and puts together. Two roles that are
//! played by the same inode (both parents of a rename, say) so edit the same record.

use super::{Ino, VolumeTree};
use crate::format::record::{Inode, Timestamp};
use crate::fs::{Error, Kind};
use crate::volume::Change;

/// The records of a few locked inodes.
#[derive(Default)]
pub(super) struct Edits(Vec<(Ino, Inode)>);

impl Edits {
    /// Reads the record of an inode, which the caller has locked.
    ///
    /// # Errors
    /// [`Error::Stale`] if there is none.
    pub fn load(&mut self, tree: &VolumeTree, ino: Ino) -> Result<&mut Inode, Error> {
        if !self.0.iter().any(|(loaded, _)| *loaded == ino) {
            self.0.push((ino, tree.inode(ino)?));
        }
        Ok(self.of(ino))
    }

    /// As [`Edits::load`], for a directory whose entries change.
    ///
    /// # Errors
    /// [`Error::NotDirectory`]; [`Error::NotFound`] if it was removed.
    pub fn load_directory(&mut self, tree: &VolumeTree, ino: Ino) -> Result<&mut Inode, Error> {
        let inode = self.load(tree, ino)?;
        if kind(inode) != Some(Kind::Directory) {
            return Err(Error::NotDirectory);
        }
        if inode.links == 0 {
            return Err(Error::NotFound);
        }
        Ok(inode)
    }

    /// The record that was loaded.
    pub fn of(&mut self, ino: Ino) -> &mut Inode {
        let record = self.0.iter_mut().find(|(loaded, _)| *loaded == ino);
        &mut record.expect("operations name only what they loaded").1
    }

    /// Puts all records.
    pub fn put(&self, change: &mut Change) {
        for (ino, inode) in &self.0 {
            change.put_inode(*ino, inode);
        }
    }
}

/// The type of an inode; `None` if its mode has none.
pub(super) fn kind(inode: &Inode) -> Option<Kind> {
    u8::try_from(inode.mode >> 12).ok().and_then(Kind::from_type)
}

/// Whether entries of that type are directories.
pub(super) fn is_directory(kind: u8) -> bool {
    kind == Kind::Directory.as_type()
}

/// The entries of a directory changed: its times and, by `entries` and `subdirectories`, its size
/// and links.
///
/// # Errors
/// [`Error::TooManyLinks`].
pub(super) fn touch_directory(
    inode: &mut Inode,
    now: Timestamp,
    entries: i64,
    subdirectories: i32,
) -> Result<(), Error> {
    inode.links = inode.links.checked_add_signed(subdirectories).ok_or(Error::TooManyLinks)?;
    inode.size = inode.size.checked_add_signed(entries).ok_or(Error::TooManyLinks)?;
    inode.mtime = now;
    inode.ctime = now;
    Ok(())
}
