//! What a check remembers while it goes through the tables: a few dozen bytes for each inode, and
//! which keys are lost.

use crate::format::record::{self, Inode, Table};
use crate::volume::records::after_owner;

/// An inode's content is in pages.
pub(super) const PAGED: u8 = 1;
/// The inode says that it may have extended attributes.
pub(super) const XATTRS: u8 = 2;
/// The inode is marked as having no name.
pub(super) const ORPHAN: u8 = 4;
/// Inline content was found.
pub(super) const INLINE_SEEN: u8 = 8;
/// Page maps were found, and counted.
pub(super) const MAPS_SEEN: u8 = 16;

/// One inode: what its record says, and what was found about it.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub ino: u64,
    pub size: u64,
    pub pages: u64,
    /// The first directory in which a name of it was found, or 0.
    pub named_by: u64,
    pub links: u32,
    /// Names that were found.
    pub names: u32,
    /// `mode >> 12`
    pub kind: u8,
    pub flags: u8,
}

impl Known {
    pub fn new(ino: u64, inode: &Inode, orphan: bool) -> Self {
        let flags = if inode.paged { PAGED } else { 0 }
            | if inode.has_xattrs { XATTRS } else { 0 }
            | if orphan { ORPHAN } else { 0 };
        Self {
            ino,
            size: inode.size,
            pages: inode.pages,
            named_by: 0,
            links: inode.links,
            names: 0,
            kind: (inode.mode >> 12 & 0xf) as u8,
            flags,
        }
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub fn is(&self, mode: u32) -> bool {
        u32::from(self.kind) == mode >> 12
    }
}

/// One directory, beyond what it is as an inode.
#[derive(Clone, Copy)]
pub(super) struct Directory {
    pub ino: u64,
    pub parent: u64,
    /// Entries found by name; those only known from the listing included.
    pub entries: u64,
    /// Entries found in the listing.
    pub listed: u64,
    /// Sum of a hash of each entry, less that of each listed one: zero if both agree.
    pub balance: u64,
    pub subdirectories: u32,
}

/// All inodes and directories, ascending by number, as the tree gives them.
#[derive(Default)]
pub(super) struct Inodes {
    pub list: Vec<Known>,
    pub directories: Vec<Directory>,
}

impl Inodes {
    pub fn push(&mut self, known: Known, parent: u64) {
        if known.is(libc::S_IFDIR) {
            let ino = known.ino;
            let (entries, listed, balance, subdirectories) = (0, 0, 0, 0);
            let directory = Directory { ino, parent, entries, listed, balance, subdirectories };
            self.directories.push(directory);
        }
        self.list.push(known);
    }

    pub fn get(&self, ino: u64) -> Option<&Known> {
        let index = self.list.binary_search_by_key(&ino, |known| known.ino).ok()?;
        self.list.get(index)
    }

    pub fn get_mut(&mut self, ino: u64) -> Option<&mut Known> {
        let index = self.list.binary_search_by_key(&ino, |known| known.ino).ok()?;
        self.list.get_mut(index)
    }

    pub fn directory_index(&self, ino: u64) -> Option<usize> {
        self.directories.binary_search_by_key(&ino, |directory| directory.ino).ok()
    }
}

/// Key ranges whose records cannot be read: ascending and apart.
#[derive(Default)]
pub(in crate::volume) struct Lost(Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl Lost {
    /// Adds a range above all before.
    pub fn push(&mut self, from: &[u8], to: Option<&[u8]>) {
        match self.0.last_mut() {
            Some(last) if last.1.as_deref() == Some(from) => last.1 = to.map(<[u8]>::to_vec),
            _ => self.0.push((from.to_vec(), to.map(<[u8]>::to_vec))),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Parts of `from..to` that are lost.
    pub fn within<'a>(
        &'a self,
        from: &'a [u8],
        to: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + 'a {
        let first =
            self.0.partition_point(|(_, end)| end.as_deref().is_some_and(|end| end <= from));
        self.0[first..].iter().take_while(move |(start, _)| &start[..] < to).map(
            move |(start, end)| {
                (from.max(&start[..]), end.as_deref().map_or(to, |end| end.min(to)))
            },
        )
    }

    /// Whether a record of that key would be lost.
    pub fn covers(&self, key: &[u8]) -> bool {
        let first = self.0.partition_point(|(_, end)| end.as_deref().is_some_and(|end| end <= key));
        self.0.get(first).is_some_and(|(start, _)| &start[..] <= key)
    }

    /// Whether records of that inode in that table may be lost.
    pub fn touches(&self, table: Table, owner: u64) -> bool {
        !self.is_empty()
            && self
                .within(&record::key(table, owner, &[]), &after_owner(table, owner))
                .next()
                .is_some()
    }

    /// Whether records of that table may be lost.
    pub fn touches_table(&self, table: Table) -> bool {
        self.within(&[table as u8], &[table as u8 + 1]).next().is_some()
    }

    /// Ranges of runs of an inode whose page maps are lost.
    pub fn runs(&self, ino: u64) -> Vec<(u64, u64)> {
        let (from, to) = (record::key(Table::PageMap, ino, &[]), after_owner(Table::PageMap, ino));
        let run = |bound: &[u8]| -> u64 {
            // A bound may be shorter than a key: what it leaves out are zeros.
            let mut key = [0; 17];
            let length = bound.len().min(17);
            key[..length].copy_from_slice(&bound[..length]);
            if record::owner(&key) == ino && key[0] == Table::PageMap as u8 {
                u64::from_be_bytes(key[9..].try_into().expect("8 bytes"))
            } else {
                u64::MAX
            }
        };
        self.within(&from, &to).map(|(from, to)| (run(from), run(to))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_ranges_answer_for_keys_and_runs() {
        let mut lost = Lost::default();
        lost.push(&record::key(Table::Entry, 4, b"b"), Some(&record::key(Table::Entry, 4, b"f")));
        let end = record::key(Table::PageMap, 9, &[0, 0, 0, 0, 0, 0, 1]);
        lost.push(&record::key(Table::PageMap, 7, &3u64.to_be_bytes()), Some(&end));
        assert!(lost.covers(&record::key(Table::Entry, 4, b"c")));
        assert!(!lost.covers(&record::key(Table::Entry, 4, b"f")));
        assert!(!lost.covers(&record::key(Table::Entry, 4, b"a")));
        assert!(lost.touches(Table::Entry, 4) && !lost.touches(Table::Entry, 5));
        assert!(lost.touches_table(Table::PageMap) && !lost.touches_table(Table::Inode));
        assert_eq!(lost.runs(7), [(3, u64::MAX)]);
        assert_eq!(lost.runs(8), [(0, u64::MAX)]);
        assert_eq!(lost.runs(9), [(0, 256)]);
        assert_eq!(lost.runs(10), []);
    }

    #[test]
    fn the_tree_may_be_lost_to_its_end() {
        let mut lost = Lost::default();
        lost.push(b"", Some(b"\x10"));
        lost.push(b"\x10", None);
        assert!(lost.covers(b"\xff") && lost.covers(b"\x01"));
        assert!(lost.touches(Table::Cut, u64::MAX));
    }
}
