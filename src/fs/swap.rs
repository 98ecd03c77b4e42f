//! A read-only tree that can be exchanged for another under a mount, at one moment.
//!
//! The root keeps its inode number; all others carry the generation of the tree that they belong
//! to, so that what is open goes on in the tree it was opened in, and pages and attributes that the
//! kernel has cached stay right. Which tree a path leads into is decided in the root alone. So an
//! exchange has three steps: names in the root are no longer kept by the kernel, those it keeps are
//! dropped, and only then does the root lead into the new tree: before that moment every lookup
//! finds the old one, after it the new one, and no name that is cached tells of either.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;

use super::volume::Refusal;
use super::{
    Allocate, Attr, Caller, DirEntry, Error, Ino, RenameFlags, Seek, SetAttr, SetXattr, StatFs,
    Tree,
};

/// The root directory, in every generation.
const ROOT: Ino = 1;
/// Bits of an inode number below the generation: more than a package has members.
const INO_BITS: u32 = 40;

/// See the [module](self).
pub struct SwapTree(RwLock<State>);

struct State {
    trees: BTreeMap<u64, Arc<dyn Tree>>,
    current: u64,
    next: u64,
    /// Whether the kernel may keep names of the root.
    settled: bool,
    refusal: Option<Refusal>,
}

impl SwapTree {
    /// Serves `tree`.
    pub fn new(tree: Arc<dyn Tree>) -> Self {
        let trees = BTreeMap::from([(1, tree)]);
        Self(RwLock::new(State { trees, current: 1, next: 2, settled: true, refusal: None }))
    }

    /// Exchanges the tree for `new`. `forget` makes the kernel drop these names of the root; it is
    /// called from this thread, which must not be one that serves requests. Afterwards the root's
    /// own attributes and list, which the kernel may have kept, are the caller's to drop.
    ///
    /// # Errors
    /// The root of a tree cannot be listed; the old one is served.
    pub fn swap(&self, new: Arc<dyn Tree>, forget: impl FnOnce(&[Vec<u8>])) -> Result<(), Error> {
        let mut names = root_names(&*new)?;
        let old = self.current();
        names.extend(root_names(&*old)?);
        names.sort_unstable();
        names.dedup();
        self.0.write().settled = false;
        forget(&names);
        let mut state = self.0.write();
        let generation = state.next;
        state.trees.insert(generation, new);
        (state.current, state.next, state.settled) = (generation, generation + 1, true);
        Ok(())
    }

    /// How many trees there are besides the one that the root leads into.
    pub fn old_count(&self) -> usize {
        self.0.read().trees.len() - 1
    }

    /// Lets go of the trees that nothing in `known`, the inodes that the kernel holds, belongs to.
    /// Whoever finds an inode comes by one that is known, or by the root and so into the current
    /// tree; one that was current just now may not be known yet, so the newest old one is let go
    /// when asked a second time at the earliest.
    pub fn retire(&self, known: &[Ino], earlier: &mut Vec<u64>) {
        let used: Vec<u64> = known.iter().map(|ino| ino >> INO_BITS).collect();
        let mut state = self.0.write();
        let current = state.current;
        let idle: Vec<u64> = state
            .trees
            .keys()
            .copied()
            .filter(|generation| *generation != current && !used.contains(generation))
            .collect();
        state
            .trees
            .retain(|generation, _| !(idle.contains(generation) && earlier.contains(generation)));
        *earlier = idle;
    }

    /// The names in old trees that the kernel may hold, by directory. It was told to drop those in
    /// the root; one below that was in use then it keeps, and with it all that it is in.
    pub fn old_names(&self, known: &[Ino]) -> Vec<(Ino, Vec<Vec<u8>>)> {
        let current = self.0.read().current;
        let old = known.iter().filter(|ino| **ino != ROOT && *ino >> INO_BITS != current);
        let old: HashSet<Ino> = old.copied().collect();
        let names_in = |directory: &Ino| {
            let (tree, generation, inner) = self.find(*directory).ok()?;
            let mut names = Vec::new();
            let mut collect = |entry: &DirEntry| {
                let is_dot = matches!(entry.name, b"." | b"..");
                if !is_dot && old.contains(&outside(generation, entry.ino)) {
                    names.push(entry.name.to_owned());
                }
                true
            };
            // What is no directory has no names.
            tree.readdir(inner, 0, false, &mut collect).ok()?;
            (!names.is_empty()).then_some((*directory, names))
        };
        old.iter().filter_map(names_in).collect()
    }

    /// Refuses everything, or with `None` serves again.
    pub fn refuse(&self, refusal: Option<Refusal>) {
        self.0.write().refusal = refusal;
    }

    /// The tree that the root leads into.
    pub fn current(&self) -> Arc<dyn Tree> {
        let state = self.0.read();
        state.trees[&state.current].clone()
    }

    /// The same as [`SwapTree::find`], for callers.
    fn of(&self, ino: Ino) -> Result<(Arc<dyn Tree>, u64, Ino), Error> {
        if let Some(refusal) = self.0.read().refusal {
            return Err(refusal.error());
        }
        self.find(ino)
    }

    /// The tree of an inode, its generation, and the inode's number there.
    fn find(&self, ino: Ino) -> Result<(Arc<dyn Tree>, u64, Ino), Error> {
        let state = self.0.read();
        let (generation, inner) = match ino {
            ROOT => (state.current, ROOT),
            _ => (ino >> INO_BITS, ino & ((1 << INO_BITS) - 1)),
        };
        let tree = state.trees.get(&generation).ok_or(Error::Stale)?;
        Ok((tree.clone(), generation, inner))
    }
}

/// The number outside of the inode `inner` of a generation.
fn outside(generation: u64, inner: Ino) -> Ino {
    if inner == ROOT { ROOT } else { generation << INO_BITS | inner }
}

fn outside_attr(generation: u64, attr: Attr) -> Attr {
    Attr { ino: outside(generation, attr.ino), ..attr }
}

fn root_names(tree: &dyn Tree) -> Result<Vec<Vec<u8>>, Error> {
    let mut names = Vec::new();
    tree.readdir(ROOT, 0, false, &mut |entry| {
        names.push(entry.name.to_owned());
        true
    })?;
    names.retain(|name| !matches!(name.as_slice(), b"." | b".."));
    Ok(names)
}

impl Tree for SwapTree {
    /// What an inode is never changes, though the root leads elsewhere.
    fn is_image(&self) -> bool {
        true
    }

    fn read_is_long(&self, ino: Ino, offset: u64) -> bool {
        self.find(ino).is_ok_and(|(tree, _, inner)| tree.read_is_long(inner, offset))
    }

    /// Names in an old tree would keep it: nothing drops them when the last who uses it goes.
    fn keeps_names(&self, parent: Ino) -> bool {
        let state = self.0.read();
        match parent {
            ROOT => state.settled,
            _ => parent >> INO_BITS == state.current,
        }
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        let (tree, generation, inner) = self.of(parent)?;
        Ok(outside_attr(generation, tree.lookup(inner, name)?))
    }

    fn forget(&self, ino: Ino) {
        if let Ok((tree, _, inner)) = self.find(ino) {
            tree.forget(inner);
        }
    }

    fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        let (tree, generation, inner) = self.of(ino)?;
        Ok(outside_attr(generation, tree.getattr(inner)?))
    }

    fn setattr(&self, _: Ino, _: &SetAttr) -> Result<Attr, Error> {
        Err(Error::ReadOnly)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        let (tree, _, inner) = self.of(ino)?;
        tree.readlink(inner)
    }

    fn mknod(&self, _: Caller, _: Ino, _: &[u8], _: u32, _: u32) -> Result<Attr, Error> {
        Err(Error::ReadOnly)
    }

    fn mkdir(&self, _: Caller, _: Ino, _: &[u8], _: u32) -> Result<Attr, Error> {
        Err(Error::ReadOnly)
    }

    fn symlink(&self, _: Caller, _: Ino, _: &[u8], _: &[u8]) -> Result<Attr, Error> {
        Err(Error::ReadOnly)
    }

    fn link(&self, _: Ino, _: Ino, _: &[u8]) -> Result<Attr, Error> {
        Err(Error::ReadOnly)
    }

    fn unlink(&self, _: Ino, _: &[u8]) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn rmdir(&self, _: Ino, _: &[u8]) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn rename(&self, _: Ino, _: &[u8], _: Ino, _: &[u8], _: RenameFlags) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn open(&self, ino: Ino, truncate: bool, kill_suid: bool) -> Result<u64, Error> {
        if truncate {
            return Err(Error::ReadOnly);
        }
        let (tree, _, inner) = self.of(ino)?;
        tree.open(inner, false, kill_suid)
    }

    fn create(&self, _: Caller, _: Ino, _: &[u8], _: u32) -> Result<(Attr, u64), Error> {
        Err(Error::ReadOnly)
    }

    fn tmpfile(&self, _: Caller, _: Ino, _: u32) -> Result<(Attr, u64), Error> {
        Err(Error::ReadOnly)
    }

    fn release(&self, ino: Ino, handle: u64) {
        if let Ok((tree, _, inner)) = self.find(ino) {
            tree.release(inner, handle);
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
        let (tree, _, inner) = self.of(ino)?;
        tree.read(inner, offset, length, is_access, buffer)
    }

    fn read_into(
        &self,
        ino: Ino,
        offset: u64,
        is_access: bool,
        buffer: &mut [u8],
    ) -> Result<usize, Error> {
        let (tree, _, inner) = self.of(ino)?;
        tree.read_into(inner, offset, is_access, buffer)
    }

    fn write(&self, _: Ino, _: u64, _: &[u8], _: bool) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn copy_range(&self, _: Ino, _: u64, _: Ino, _: u64, _: u64) -> Result<u64, Error> {
        Err(Error::ReadOnly)
    }

    fn flush(&self, _: Ino, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn fsync(&self, _: Ino, _: u64, _: bool) -> Result<(), Error> {
        Ok(())
    }

    fn try_fsync(&self, _: Ino, _: u64, _: bool) -> Option<Result<(), Error>> {
        Some(Ok(()))
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        with_attr: bool,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<(), Error> {
        let (tree, generation, inner) = self.of(ino)?;
        tree.readdir(inner, cookie, with_attr, &mut |entry| {
            visit(&DirEntry {
                ino: outside(generation, entry.ino),
                attr: entry.attr.map(|attr| outside_attr(generation, attr)),
                ..*entry
            })
        })
    }

    fn fallocate(&self, _: Ino, _: u64, _: u64, _: Allocate) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, Error> {
        let (tree, _, inner) = self.of(ino)?;
        tree.seek(inner, offset, what)
    }

    fn statfs(&self) -> Result<StatFs, Error> {
        let (tree, _, _) = self.of(ROOT)?;
        tree.statfs()
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Error> {
        let (tree, _, inner) = self.of(ino)?;
        tree.getxattr(inner, name)
    }

    fn setxattr(&self, _: Ino, _: &[u8], _: &[u8], _: SetXattr) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        let (tree, _, inner) = self.of(ino)?;
        tree.listxattr(inner)
    }

    fn removexattr(&self, _: Ino, _: &[u8]) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }
}
