//! Renaming, with the flags of `renameat2(2)`.

use super::edit::{Edits, is_directory, touch_directory};
use super::namespace::{blank, lose_name};
use super::{Ino, VolumeTree};
use crate::format::record::{Entry, Inode};
use crate::fs::{Error, Kind, RenameFlags, name};

/// What is asked for.
#[derive(Clone, Copy)]
pub(super) struct Rename<'a> {
    pub parent: Ino,
    pub name: &'a [u8],
    pub new_parent: Ino,
    pub new_name: &'a [u8],
    pub flags: RenameFlags,
}

/// What both names refer to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Found {
    source: Entry,
    target: Option<Entry>,
}

impl Found {
    fn source_is_directory(&self) -> bool {
        is_directory(self.source.kind)
    }

    fn target_is_directory(&self) -> bool {
        self.target.is_some_and(|target| is_directory(target.kind))
    }
}

impl VolumeTree {
    pub(super) fn rename_entry(&self, rename: &Rename) -> Result<(), Error> {
        name::check(rename.name)?;
        name::check(rename.new_name)?;
        let RenameFlags { no_replace, exchange, whiteout } = rename.flags;
        if exchange && (no_replace || whiteout) {
            return Err(Error::Invalid("RENAME_EXCHANGE goes with no other flag"));
        }
        let mut moves = None;
        loop {
            let found = self.find_both(rename)?;
            let moves_directory = rename.parent != rename.new_parent
                && (found.source_is_directory() || (exchange && found.target_is_directory()));
            if moves_directory && moves.is_none() {
                moves = Some(self.moves.lock());
            }
            let target = found.target.map_or(found.source.ino, |target| target.ino);
            let changed = [rename.parent, rename.new_parent, found.source.ino, target];
            let locks = self.volume.lock_inodes(&changed);
            if self.find_both(rename)? != found {
                continue;
            }
            if moves_directory {
                self.check_not_below(found.source.ino, rename.new_parent)?;
                if let (true, Some(target)) = (exchange, found.target) {
                    self.check_not_below(target.ino, rename.parent)?;
                }
            }
            let discard = self.rename_locked(rename, &found)?;
            drop(locks);
            drop(moves);
            if let Some(ino) = discard {
                self.discard(ino);
            }
            return Ok(());
        }
    }

    /// Looks both names up and refuses what they alone forbid.
    fn find_both(&self, rename: &Rename) -> Result<Found, Error> {
        let Some(source) = self.entry(rename.parent, rename.name)? else {
            self.directory(rename.parent)?;
            return Err(Error::NotFound);
        };
        let found = Found { source, target: self.entry(rename.new_parent, rename.new_name)? };
        match found.target {
            None if rename.flags.exchange => return Err(Error::NotFound),
            Some(_) if rename.flags.no_replace => return Err(Error::Exists),
            Some(target) if !rename.flags.exchange && target.ino != source.ino => {
                match (found.source_is_directory(), found.target_is_directory()) {
                    (true, false) => return Err(Error::NotDirectory),
                    (false, true) => return Err(Error::IsDirectory),
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(found)
    }

    /// Refuses to move directory `moved` to `new_parent` if that is below it. The caller holds
    /// `moves`, so no ancestor changes.
    fn check_not_below(&self, moved: Ino, new_parent: Ino) -> Result<(), Error> {
        let mut ino = new_parent;
        loop {
            if ino == moved {
                return Err(Error::Invalid("a directory cannot move below itself"));
            }
            let parent = self.directory(ino)?.parent;
            if parent == ino {
                return Ok(());
            }
            ino = parent;
        }
    }

    /// Returns the replaced inode if it is to be discarded once the locks are released.
    fn rename_locked(&self, rename: &Rename, found: &Found) -> Result<Option<Ino>, Error> {
        let mut edits = Edits::default();
        edits.load_directory(self, rename.parent)?;
        edits.load_directory(self, rename.new_parent)?;
        match found.target {
            // Both names are links to one inode: rename(2) demands that nothing happens.
            Some(target) if target.ino == found.source.ino => Ok(None),
            Some(target) if rename.flags.exchange => {
                self.exchange(rename, &found.source, &target, edits)?;
                Ok(None)
            }
            _ => self.replace(rename, found, edits),
        }
    }

    fn exchange(
        &self,
        rename: &Rename,
        source: &Entry,
        target: &Entry,
        mut edits: Edits,
    ) -> Result<(), Error> {
        let now = self.volume.now();
        let (of_source, of_target) =
            (i32::from(is_directory(source.kind)), i32::from(is_directory(target.kind)));
        touch_directory(edits.of(rename.parent), now, 0, of_target - of_source)?;
        touch_directory(edits.of(rename.new_parent), now, 0, of_source - of_target)?;
        for (entry, parent) in [(source, rename.new_parent), (target, rename.parent)] {
            let inode = edits.load(self, entry.ino)?;
            inode.ctime = now;
            if is_directory(entry.kind) {
                inode.parent = parent;
            }
        }
        let mut change =
            self.volume.change(true).map_err(self.failed("exchanging entries", rename.parent))?;
        edits.put(&mut change);
        let moved = Entry { cookie: target.cookie, ..*source };
        change.put_entry(rename.new_parent, rename.new_name, &moved);
        let moved = Entry { cookie: source.cookie, ..*target };
        change.put_entry(rename.parent, rename.name, &moved);
        Ok(())
    }

    fn replace(
        &self,
        rename: &Rename,
        found: &Found,
        mut edits: Edits,
    ) -> Result<Option<Ino>, Error> {
        let now = self.volume.now();
        let source = found.source;
        // First of all, because the target may be the parent that is about to lose its only entry.
        let mut gone = None;
        if let Some(target) = found.target {
            if lose_name(edits.load(self, target.ino)?, now)? {
                gone = Some(target.ino);
            }
        }
        let (leaves, comes) =
            (i64::from(!rename.flags.whiteout), i64::from(found.target.is_none()));
        let moves = i32::from(found.source_is_directory());
        let goes = i32::from(found.target_is_directory());
        touch_directory(edits.of(rename.parent), now, -leaves, -moves)?;
        touch_directory(edits.of(rename.new_parent), now, comes, moves - goes)?;
        let inode = edits.load(self, source.ino)?;
        inode.ctime = now;
        if found.source_is_directory() {
            inode.parent = rename.new_parent;
        }
        // The entry that is replaced lends its cookie, so that putting the new one replaces it and
        // the name is never absent.
        let cookie = found.target.map_or_else(|| self.volume.new_cookie(), |target| target.cookie);
        let whiteout = rename.flags.whiteout.then(|| (self.volume.new_ino(), self.whiteout()));

        let mut change = self
            .volume
            .change(whiteout.is_none())
            .map_err(self.failed("renaming an entry", rename.parent))?;
        edits.put(&mut change);
        change.put_entry(rename.new_parent, rename.new_name, &Entry { cookie, ..source });
        match whiteout {
            None => change.delete_entry(rename.parent, rename.name, source.cookie),
            Some((ino, inode)) => {
                change.put_inode(ino, &inode);
                change.count_inodes(1);
                let (kind, cookie) = (Kind::CharDevice.as_type(), source.cookie);
                change.put_entry(rename.parent, rename.name, &Entry { ino, cookie, kind });
            }
        }
        if let Some(ino) = gone {
            change.put_orphan(ino);
        }
        drop(change);
        Ok(gone.filter(|ino| self.handles.nameless(*ino)))
    }

    /// What overlayfs leaves where a lower file must not show: a character device 0/0 without
    /// rights.
    fn whiteout(&self) -> Inode {
        blank(&self.volume, libc::S_IFCHR)
    }
}
