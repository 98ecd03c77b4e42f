//! Names: entries against listings, inodes against both, directories against each other.

use super::known::{ORPHAN, XATTRS};
use super::report::Subject;
use super::{Checker, Kind, ROOT};
use crate::format::record::{self, Entry, Table};
use crate::volume::COOKIE_FIRST;
use crate::volume::records::{after_owner, decode_cookie};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// Longest name in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Contradictions between entries and listing that are named, for each directory.
const CONTRADICTIONS_MAX: usize = 1000;

/// Where the walk is among entries and listings.
#[derive(Default)]
pub(super) struct State {
    /// Inode of the directory whose records are passing, and its index if it is one.
    directory: Option<(u64, Option<usize>)>,
    /// Entries are lost that no listing shows.
    uncertain: bool,
}

/// A hash that is equal for an entry and for its place in the listing.
pub(in crate::volume) fn fingerprint(name: &[u8], entry: &Entry) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, entry.ino, entry.cookie, entry.kind).hash(&mut hasher);
    hasher.finish()
}

pub(in crate::volume) fn is_name(name: &[u8]) -> bool {
    !(name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || name == b"."
        || name == b".."
        || name.contains(&b'/')
        || name.contains(&0))
}

impl Checker<'_> {
    /// Index of the directory that owns the record, or `None` if it is none.
    fn directory(&mut self, table: Table, parent: u64) -> Option<usize> {
        if let Some((ino, index)) = self.names.directory {
            if ino == parent {
                return index;
            }
        }
        let index = self.inodes.directory_index(parent);
        if index.is_none() && self.owned(table, parent) {
            let detail = "it has entries although it is no directory";
            self.drafts.add(Kind::InodeMode, Subject::Inode(parent), detail);
        }
        self.names.directory = Some((parent, index));
        index
    }

    pub(super) fn entry(&mut self, parent: u64, name: &[u8], value: &[u8]) {
        let directory = self.directory(Table::Entry, parent);
        let Ok(entry) = Entry::decode(value) else {
            return self.malformed(Table::Entry as u8, parent, "entry");
        };
        if let Some(index) = directory {
            let directory = &mut self.inodes.directories[index];
            let fingerprint = fingerprint(name, &entry);
            directory.balance = directory.balance.wrapping_add(fingerprint);
        }
        if !is_name(name) {
            self.named(Kind::EntryName, parent, name, &entry, "no name may be like this");
        }
        self.cookie_max = self.cookie_max.max(entry.cookie);
        if entry.cookie < COOKIE_FIRST {
            let detail = format!("its cookie {} is reserved", entry.cookie);
            self.named(Kind::EntryName, parent, name, &entry, &detail);
        }
        self.count_name(parent, name, &entry);
    }

    fn named(&mut self, kind: Kind, parent: u64, name: &[u8], entry: &Entry, detail: &str) {
        let subject = Subject::Name { parent, name: name.to_vec(), ino: entry.ino };
        self.drafts.add(kind, subject, detail);
    }

    /// Counts a name that was found, by its entry or, if that is lost, in the listing.
    fn count_name(&mut self, parent: u64, name: &[u8], entry: &Entry) {
        let is_directory = u32::from(entry.kind) == libc::S_IFDIR >> 12;
        if let Some(index) = self.inodes.directory_index(parent) {
            self.inodes.directories[index].entries += 1;
            self.inodes.directories[index].subdirectories += u32::from(is_directory);
        }
        let ino = entry.ino;
        let Some(child) = self.inodes.get_mut(ino) else {
            let (kind, detail) = if self.lost.covers(&record::key(Table::Inode, ino, &[])) {
                (Kind::InodeLost, format!("the record of inode {ino} is in a lost node"))
            } else {
                (Kind::EntryDangling, format!("it names inode {ino}, which does not exist"))
            };
            return self.named(kind, parent, name, entry, &detail);
        };
        child.names = child.names.saturating_add(1);
        if child.names == 1 {
            child.named_by = parent;
        }
        let (names, kind) = (child.names, child.kind);
        if kind != entry.kind {
            let detail = format!("it says type {:#o}, inode {ino} has {kind:#o}", entry.kind);
            self.named(Kind::EntryKind, parent, name, entry, &detail);
        }
        if is_directory && (names > 1 || ino == ROOT) {
            let detail = format!("directory {ino} has more than one name");
            self.named(Kind::Links, parent, name, entry, &detail);
        }
    }

    pub(super) fn cookie(&mut self, parent: u64, key: &[u8], value: &[u8]) {
        let directory = self.directory(Table::Cookie, parent);
        let Some((cookie, ino, kind, name)) = decode_cookie(key, value) else {
            return self.malformed(Table::Cookie as u8, parent, "listing");
        };
        let entry = Entry { ino, cookie, kind };
        if let Some(index) = directory {
            let directory = &mut self.inodes.directories[index];
            directory.listed += 1;
            directory.balance = directory.balance.wrapping_sub(fingerprint(name, &entry));
        }
        if self.lost.covers(&record::key(Table::Entry, parent, name)) {
            let detail = "it is listed, but cannot be looked up";
            self.named(Kind::EntryLost, parent, name, &entry, detail);
            self.cookie_max = self.cookie_max.max(cookie);
            self.count_name(parent, name, &entry);
        }
    }

    pub(super) fn finish_names(&mut self) {
        self.report.inodes = self.inodes.list.len() as u64;
        self.report.directories = self.inodes.directories.len() as u64;
        let tables = [Table::Entry, Table::Cookie];
        self.names.uncertain = tables.iter().all(|table| self.lost.touches_table(*table));
        if self.names.uncertain {
            let detail = "link counts and reachability: entries and listings are both damaged";
            self.drafts.add(Kind::NotChecked, Subject::Volume, detail);
        }
        let root = self.inodes.get(ROOT).map(|root| root.is(libc::S_IFDIR));
        let root_lost = self.lost.covers(&record::key(Table::Inode, ROOT, &[]));
        if root != Some(true) {
            let detail = if root_lost { "its record is in a lost node" } else { "there is none" };
            let detail = format!("the root directory: {detail}");
            self.drafts.add(Kind::RootMissing, Subject::Inode(ROOT), detail);
        }
        for index in 0..self.inodes.directories.len() {
            self.finish_directory(index);
        }
        for index in 0..self.inodes.list.len() {
            self.finish_inode(index);
        }
        self.find_loops();
    }

    fn finish_directory(&mut self, index: usize) {
        let directory = self.inodes.directories[index];
        let ino = directory.ino;
        let Some(known) = self.inodes.get(ino).copied() else { return };
        let entries_lost = self.lost.touches(Table::Entry, ino);
        let listing_lost = self.lost.touches(Table::Cookie, ino);
        let subject = || Subject::Inode(ino);
        if entries_lost && listing_lost {
            let (size, entries) = (known.size, directory.entries);
            let detail = format!("of {size} names only {entries} can be found");
            self.drafts.add(Kind::EntryLost, subject(), detail);
            return;
        }
        if listing_lost {
            let (size, listed) = (known.size, directory.listed);
            let detail = format!("only {listed} of its {size} names are listed");
            self.drafts.add(Kind::ListingLost, subject(), detail);
        }
        let agrees = directory.balance == 0 && directory.entries == directory.listed;
        if !agrees && !entries_lost && !listing_lost {
            self.compare_listing(ino);
        }
        if known.size != directory.entries {
            let (size, entries) = (known.size, directory.entries);
            let detail = format!("its size is {size}, and it has {entries} entries");
            self.drafts.add(Kind::DirectorySize, subject(), detail);
        }
        let links = if known.has(ORPHAN) { 0 } else { 2 + directory.subdirectories };
        if known.links != links {
            let detail = format!("its link count is {}, expected {links}", known.links);
            self.drafts.add(Kind::Links, subject(), detail);
        }
        let parent = if ino == ROOT { ROOT } else { known.named_by };
        if parent != 0 && directory.parent != parent {
            let detail = format!("it says it is in inode {}, it is in {parent}", directory.parent);
            self.drafts.add(Kind::Parent, subject(), detail);
        }
    }

    /// Names what entries and listing of a directory disagree about.
    fn compare_listing(&mut self, parent: u64) {
        let volume = self.volume;
        let mut wrong: Vec<(Kind, Vec<u8>, Entry)> = Vec::new();
        let (from, to) =
            (record::key(Table::Entry, parent, &[]), after_owner(Table::Entry, parent));
        volume.scan(&from, &to, &mut |key, value| {
            let (name, Ok(entry)) = (&key[9..], Entry::decode(value)) else { return true };
            let key = record::key(Table::Cookie, parent, &entry.cookie.to_be_bytes());
            let listed = volume.epochs.get(&key).ok().flatten();
            let listed = listed.as_ref().and_then(|value| decode_cookie(&key, value));
            if listed != Some((entry.cookie, entry.ino, entry.kind, name)) {
                wrong.push((Kind::CookieMissing, name.to_vec(), entry));
            }
            wrong.len() < CONTRADICTIONS_MAX
        });
        let (from, to) =
            (record::key(Table::Cookie, parent, &[]), after_owner(Table::Cookie, parent));
        volume.scan(&from, &to, &mut |key, value| {
            let Some((cookie, ino, kind, name)) = decode_cookie(key, value) else { return true };
            let stored = volume.epochs.get(&record::key(Table::Entry, parent, name)).ok().flatten();
            let stored = stored.and_then(|value| Entry::decode(&value).ok());
            let listed = Entry { ino, cookie, kind };
            if stored != Some(listed) {
                wrong.push((Kind::CookieStray, name.to_vec(), listed));
            }
            wrong.len() < CONTRADICTIONS_MAX
        });
        for (kind, name, entry) in wrong {
            let detail = match kind {
                Kind::CookieMissing => "the directory's listing does not have it so",
                _ => "the directory's listing has it, and no such entry exists",
            };
            self.named(kind, parent, &name, &entry, detail);
        }
    }

    fn finish_inode(&mut self, index: usize) {
        let known = self.inodes.list[index];
        let subject = || Subject::Inode(known.ino);
        if known.has(XATTRS) && self.lost.touches(Table::Xattr, known.ino) {
            let detail = "extended attributes of it may be in a lost node";
            self.drafts.add(Kind::AttributesLost, subject(), detail);
        }
        if known.ino == ROOT {
            return;
        }
        if known.has(ORPHAN) && known.names > 0 {
            let detail = "it has a name and is marked as having none: mounting would discard it";
            self.drafts.add(Kind::OrphanNamed, subject(), detail);
        }
        if self.names.uncertain {
            return;
        }
        if !known.is(libc::S_IFDIR) && known.names > 0 && known.links != known.names {
            let (links, names) = (known.links, known.names);
            let detail = format!("its link count is {links}, and it has {names} names");
            self.drafts.add(Kind::Links, subject(), detail);
        }
        let marks_lost = self.lost.touches(Table::Orphan, known.ino);
        if known.names == 0 && !known.has(ORPHAN) && !(known.links == 0 && marks_lost) {
            let (links, size) = (known.links, known.size);
            let detail = format!("no name leads to it; link count {links}, size {size}");
            self.drafts.add(Kind::Unreachable, subject(), detail);
        }
        if known.names == 0 && known.has(ORPHAN) && known.links != 0 {
            let detail = format!("its link count is {}, and it has no name", known.links);
            self.drafts.add(Kind::Links, subject(), detail);
        }
    }

    /// Finds directories that contain each other, which no path reaches.
    fn find_loops(&mut self) {
        let directories = &self.inodes.directories;
        // The number of the search that came by, counted from 1.
        let mut marks = vec![0u32; directories.len()];
        let mut loops = Vec::new();
        for start in 0..directories.len() {
            let search = u32::try_from(start + 1).unwrap_or(u32::MAX);
            let mut at = Some(start);
            while let Some(index) = at.filter(|index| marks[*index] == 0) {
                marks[index] = search;
                let ino = directories[index].ino;
                let named_by = self.inodes.get(ino).map_or(0, |known| known.named_by);
                at = if ino == ROOT { None } else { self.inodes.directory_index(named_by) };
            }
            if at.is_some_and(|index| marks[index] == search) {
                loops.extend(at.map(|index| directories[index].ino));
            }
        }
        for ino in loops {
            let detail = "it is below itself: no path from the root leads to it";
            self.drafts.add(Kind::Loop, Subject::Inode(ino), detail);
        }
    }
}
