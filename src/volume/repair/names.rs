//! Names: every directory, every inode once or as often as its names, and `lost+found`.

use super::inodes::{DROPPED, Ino};
use super::{ActionKind, Error, ROOT, Repair};
use crate::format::record::{self, Entry, Inode, Table};
use crate::volume::COOKIE_FIRST;
use crate::volume::check::{Subject, fingerprint, is_name};
use crate::volume::records::{after_owner, decode_cookie};
use std::collections::BTreeSet;

/// The directory for what no name leads to.
const LOST_AND_FOUND: &[u8] = b"lost+found";

impl Repair<'_> {
    /// After this every inode that stays has a name to which a path from the root leads, and
    /// entries and listings agree.
    pub(super) fn repair_names(&mut self) -> Result<(), Error> {
        let directories = self.find_contradictions()?;
        self.tree.flush()?;
        for parent in directories {
            self.repair_directory(parent)?;
        }
        let again = self.count_names()?;
        self.keep_one_name(&again)?;
        self.break_loops()?;
        self.reattach()
    }

    /// Directories whose entries and listings do not agree, or name what cannot be named. Removes
    /// names in what is no directory.
    fn find_contradictions(&mut self) -> Result<BTreeSet<u64>, Error> {
        let mut found = BTreeSet::new();
        self.each(Table::Entry, |this, key, value| {
            let (parent, name) = (record::owner(key), &key[9..]);
            let Ok(entry) = Entry::decode(value) else {
                return match this.is_directory(parent) {
                    true => {
                        found.insert(parent);
                        Ok(())
                    }
                    false => this.delete_stray(key, "entries"),
                };
            };
            if !this.is_directory(parent) {
                let detail = "it was a name in something that is no directory: it goes";
                this.name_removed(parent, name, entry.ino, detail);
                return this.delete(key);
            }
            this.next_cookie = this.next_cookie.max(entry.cookie.saturating_add(1));
            let target = this.inodes.get(entry.ino);
            let fits = target.is_some_and(|known| known.kind == entry.kind && known.ino != ROOT);
            if !fits || !is_name(name) || entry.cookie < COOKIE_FIRST {
                found.insert(parent);
            }
            let directory = this.inodes.get_mut(parent).expect("it is a directory");
            directory.entries += 1;
            directory.balance = directory.balance.wrapping_add(fingerprint(name, &entry));
            Ok(())
        })?;
        self.each(Table::Cookie, |this, key, value| {
            let parent = record::owner(key);
            if !this.is_directory(parent) {
                return this.delete_stray(key, "a listing");
            }
            let Some((cookie, ino, kind, name)) = decode_cookie(key, value) else {
                found.insert(parent);
                return Ok(());
            };
            this.next_cookie = this.next_cookie.max(cookie.saturating_add(1));
            let entry = Entry { ino, cookie, kind };
            let directory = this.inodes.get_mut(parent).expect("it is a directory");
            directory.listed += 1;
            directory.balance = directory.balance.wrapping_sub(fingerprint(name, &entry));
            Ok(())
        })?;
        for known in &mut self.inodes.list {
            if known.balance != 0 || known.entries != known.listed {
                found.insert(known.ino);
            }
            known.entries = 0;
        }
        Ok(found)
    }

    fn is_directory(&self, ino: u64) -> bool {
        self.inodes.get(ino).is_some_and(|known| known.is(libc::S_IFDIR))
    }

    /// Counts names and entries; returns further names of directories.
    fn count_names(&mut self) -> Result<Vec<(u64, Vec<u8>, u64)>, Error> {
        let mut again = Vec::new();
        self.each(Table::Entry, |this, key, value| {
            let (parent, name) = (record::owner(key), &key[9..]);
            let entry = Entry::decode(value)?;
            this.count_name(parent, entry.ino, 1);
            let child = this.inodes.get(entry.ino);
            if child.is_some_and(|known| known.is(libc::S_IFDIR) && known.names > 1) {
                again.push((parent, name.to_vec(), entry.ino));
            }
            Ok(())
        })?;
        Ok(again)
    }

    /// Counts a name that comes (1) or goes (-1).
    fn count_name(&mut self, parent: u64, ino: u64, by: i32) {
        let mut is_directory = false;
        if let Some(child) = self.inodes.get_mut(ino) {
            child.names = child.names.saturating_add_signed(by);
            is_directory = child.is(libc::S_IFDIR);
            if child.named_by == 0 {
                child.named_by = parent;
            }
        }
        if let Some(directory) = self.inodes.get_mut(parent) {
            directory.entries = directory.entries.saturating_add_signed(by.into());
            let by = if is_directory { by } else { 0 };
            directory.subdirectories = directory.subdirectories.saturating_add_signed(by);
        }
    }

    /// Of several names of a directory the one stays that it names as its parent, else the first.
    fn keep_one_name(&mut self, again: &[(u64, Vec<u8>, u64)]) -> Result<(), Error> {
        let detail = "a directory has one name only: this one goes";
        for (parent, name, ino) in again {
            let known = self.inodes.get(*ino).copied();
            let prefers = known.is_some_and(|k| k.parent == *parent && k.named_by != *parent);
            if !prefers {
                self.remove_name(*parent, name, *ino, detail)?;
                continue;
            }
            let first = known.map_or(0, |known| known.named_by);
            for name in self.names_of(*ino, first)? {
                self.remove_name(first, &name, *ino, detail)?;
            }
            if let Some(known) = self.inodes.get_mut(*ino) {
                known.named_by = *parent;
            }
        }
        Ok(())
    }

    /// Names of an inode in a directory.
    fn names_of(&mut self, ino: u64, parent: u64) -> Result<Vec<Vec<u8>>, Error> {
        self.tree.flush()?;
        let mut names = Vec::new();
        let (from, to) =
            (record::key(Table::Entry, parent, &[]), after_owner(Table::Entry, parent));
        self.each_within(&from, &to, |_, key, value| {
            if Entry::decode(value).is_ok_and(|entry| entry.ino == ino) {
                names.push(key[9..].to_vec());
            }
            Ok(())
        })?;
        Ok(names)
    }

    fn remove_name(
        &mut self,
        parent: u64,
        name: &[u8],
        ino: u64,
        detail: &str,
    ) -> Result<(), Error> {
        let key = record::key(Table::Entry, parent, name);
        let Some(value) = self.tree.get(&key)? else { return Ok(()) };
        let cookie = Entry::decode(&value)?.cookie;
        drop(value);
        self.delete(&key)?;
        self.delete(&record::key(Table::Cookie, parent, &cookie.to_be_bytes()))?;
        self.count_name(parent, ino, -1);
        self.name_removed(parent, name, ino, detail);
        Ok(())
    }

    /// Takes one directory of each loop out of it.
    fn break_loops(&mut self) -> Result<(), Error> {
        // The number of the search that came by, counted from 1.
        let mut marks = vec![0usize; self.inodes.list.len()];
        for start in 0..self.inodes.list.len() {
            let mut at = Some(start).filter(|index| self.inodes.list[*index].is(libc::S_IFDIR));
            while let Some(index) = at.filter(|index| marks[*index] == 0) {
                marks[index] = start + 1;
                let known = self.inodes.list[index];
                let up = Some(known.named_by).filter(|_| known.ino != ROOT && known.names > 0);
                at = up.and_then(|up| self.inodes.position(up));
            }
            let Some(index) = at.filter(|index| marks[*index] == start + 1) else { continue };
            let Ino { ino, named_by, .. } = self.inodes.list[index];
            for name in self.names_of(ino, named_by)? {
                let detail = "it was below itself: this name goes";
                self.remove_name(named_by, &name, ino, detail)?;
            }
        }
        Ok(())
    }

    /// Discards what lost its last name while it was open; gives everything else that has no name
    /// one in `lost+found`.
    fn reattach(&mut self) -> Result<(), Error> {
        self.tree.flush()?;
        let mut home = None;
        for index in 0..self.inodes.list.len() {
            let known = self.inodes.list[index];
            let ino = known.ino;
            let marked = self.orphans.contains(&ino);
            if known.has(DROPPED) || ino == ROOT || known.names > 0 {
                if marked && known.names > 0 {
                    self.corrected(ino, "it has a name and was marked as having none");
                }
                continue;
            }
            let mark_lost = self.lost.covers(&record::key(Table::Orphan, ino, &[]));
            let deleted = marked || mark_lost && known.links == 0;
            if deleted && known.entries == 0 {
                self.removed(ino, "it had lost its last name while it was open");
                self.discard(ino)?;
                continue;
            }
            let home = match home {
                Some(home) => home,
                None => *home.insert(self.lost_and_found()?),
            };
            let name = self.free_name(home, &format!("#{ino}"))?;
            self.add_name(home, &name, ino)?;
            let detail = "no name led to it";
            self.drafts.add(ActionKind::Reattached, Subject::Inode(ino), detail);
        }
        Ok(())
    }

    /// A name in a directory that is not taken: this one, or with a number.
    fn free_name(&self, parent: u64, name: &str) -> Result<Vec<u8>, Error> {
        let mut candidate = name.to_owned();
        for number in 1u64.. {
            let key = record::key(Table::Entry, parent, candidate.as_bytes());
            if self.tree.get(&key)?.is_none() {
                break;
            }
            candidate = format!("{name}.{number}");
        }
        Ok(candidate.into_bytes())
    }

    fn add_name(&mut self, parent: u64, name: &[u8], ino: u64) -> Result<(), Error> {
        let kind = self.inodes.get(ino).map_or(0, |known| known.kind);
        let entry = Entry { ino, cookie: self.next_cookie, kind };
        self.next_cookie += 1;
        self.put_name(parent, name, &entry)?;
        if let Some(known) = self.inodes.get_mut(ino) {
            known.named_by = parent;
        }
        self.count_name(parent, ino, 1);
        Ok(())
    }

    /// The directory for what no name leads to, made if there is none.
    fn lost_and_found(&mut self) -> Result<u64, Error> {
        let key = record::key(Table::Entry, ROOT, LOST_AND_FOUND);
        if let Some(value) = self.tree.get(&key)? {
            let ino = Entry::decode(&value)?.ino;
            if self.is_directory(ino) {
                return Ok(ino);
            }
        }
        let name = self.free_name(ROOT, "lost+found")?;
        let (uid, gid) = self.owner_of_root()?;
        let (ino, now) = (self.next_ino, self.volume.now());
        self.next_ino += 1;
        let inode = Inode {
            mode: libc::S_IFDIR | 0o700,
            links: 2,
            uid,
            gid,
            rdev: 0,
            paged: false,
            has_xattrs: false,
            size: 0,
            pages: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            parent: ROOT,
        };
        self.tree.put(&record::key(Table::Inode, ino, &[]), Some(&inode.encode()))?;
        let mut known = Ino::new(ino, &inode);
        known.flags |= super::inodes::REBUILT;
        self.inodes.insert(known);
        self.add_name(ROOT, &name, ino)?;
        let detail = "it is made for what no name leads to";
        self.drafts.add(ActionKind::Rebuilt, Subject::Inode(ino), detail);
        Ok(ino)
    }
}
