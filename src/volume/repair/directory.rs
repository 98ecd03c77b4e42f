//! One directory: its entries and its listing are made to say the same.

use super::{Error, ROOT, Repair};
use crate::format::record::{self, Entry, Table};
use crate::volume::COOKIE_FIRST;
use crate::volume::check::is_name;
use crate::volume::records::{after_owner, decode_cookie};
use std::collections::{BTreeMap, BTreeSet};

/// What a directory's records say.
#[derive(Default)]
struct Names {
    /// By name; `None` is malformed.
    entries: BTreeMap<Vec<u8>, Option<Entry>>,
    /// By cookie: name, inode and type.
    listing: BTreeMap<u64, (Vec<u8>, u64, u8)>,
}

impl Repair<'_> {
    /// Goes through a directory whose records contradict each other or others.
    pub(super) fn repair_directory(&mut self, parent: u64) -> Result<(), Error> {
        let stored = self.read_names(parent)?;
        let mut wanted = self.keep_entries(parent, &stored);
        self.keep_listing(parent, &stored, &mut wanted);
        self.number(&mut wanted);
        for (name, entry) in &stored.entries {
            if entry.is_none() || wanted.get(name) != entry.as_ref() {
                self.delete(&record::key(Table::Entry, parent, name))?;
            }
        }
        for (cookie, (name, ino, kind)) in &stored.listing {
            let same = Entry { ino: *ino, cookie: *cookie, kind: *kind };
            if wanted.get(name) != Some(&same) {
                self.delete(&record::key(Table::Cookie, parent, &cookie.to_be_bytes()))?;
            }
        }
        for (name, entry) in &wanted {
            self.put_name(parent, name, entry)?;
        }
        Ok(())
    }

    /// Stores both records of a name.
    pub(super) fn put_name(
        &mut self,
        parent: u64,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), Error> {
        let key = record::key(Table::Entry, parent, name);
        self.tree.put(&key, Some(&entry.encode()))?;
        let listed = [&entry.ino.to_le_bytes()[..], &[entry.kind], name].concat();
        let key = record::key(Table::Cookie, parent, &entry.cookie.to_be_bytes());
        Ok(self.tree.put(&key, Some(&listed))?)
    }

    fn read_names(&mut self, parent: u64) -> Result<Names, Error> {
        let mut names = Names::default();
        let bounds = |table| (record::key(table, parent, &[]), after_owner(table, parent));
        let (from, to) = bounds(Table::Entry);
        self.each_within(&from, &to, |_, key, value| {
            names.entries.insert(key[9..].to_vec(), Entry::decode(value).ok());
            Ok(())
        })?;
        let (from, to) = bounds(Table::Cookie);
        self.each_within(&from, &to, |this, key, value| match decode_cookie(key, value) {
            Some((cookie, ino, kind, name)) => {
                names.listing.insert(cookie, (name.to_vec(), ino, kind));
                Ok(())
            }
            None => {
                this.removed(parent, "a malformed record of its listing");
                this.delete(key)
            }
        })?;
        Ok(names)
    }

    /// Entries that can stay.
    fn keep_entries(&mut self, parent: u64, stored: &Names) -> BTreeMap<Vec<u8>, Entry> {
        let mut wanted = BTreeMap::new();
        for (name, entry) in &stored.entries {
            let Some(entry) = entry else {
                let listed = stored.listing.values().any(|(of, ..)| of == name);
                if !listed || !is_name(name) {
                    self.name_removed(parent, name, 0, "the entry is malformed and goes");
                }
                continue;
            };
            if let Some(kind) = self.check_name(parent, name, entry.ino) {
                if kind != entry.kind {
                    let ino = entry.ino;
                    self.corrected(ino, format!("its entry said type {:#o}", entry.kind));
                }
                wanted.insert(name.clone(), Entry { kind, ..*entry });
            }
        }
        wanted
    }

    /// The type of what a name stands for, if the name can stay; says why not.
    fn check_name(&mut self, parent: u64, name: &[u8], ino: u64) -> Option<u8> {
        let kind = self.inodes.get(ino).map(|known| known.kind);
        let problem = if !is_name(name) {
            "no name may be like this: it goes"
        } else if ino == ROOT {
            "it named the root directory: the name goes"
        } else if kind.is_some() {
            return kind;
        } else if self.inodes.is_dropped(ino) {
            "what it named is removed, and the name with it"
        } else if self.lost.covers(&record::key(Table::Inode, ino, &[])) {
            "its inode is lost, and nothing of its content is there: the name goes"
        } else {
            "it named an inode that does not exist: the name goes"
        };
        self.name_removed(parent, name, ino, problem);
        None
    }

    /// Adds what is listed and has no entry.
    fn keep_listing(&mut self, parent: u64, stored: &Names, wanted: &mut BTreeMap<Vec<u8>, Entry>) {
        let claimed: BTreeSet<u64> = wanted.values().map(|entry| entry.cookie).collect();
        for (&cookie, (name, ino, _)) in &stored.listing {
            let same = |entry: &Entry| entry.cookie == cookie && entry.ino == *ino;
            if let Some(entry) = wanted.get(name) {
                if !same(entry) {
                    let detail = "the directory's listing had it differently";
                    self.corrected(entry.ino, detail);
                }
                continue;
            }
            let had_entry = stored.entries.get(name).is_some_and(Option::is_some);
            if had_entry {
                // It was removed just now, and that was said.
                continue;
            }
            if claimed.contains(&cookie) {
                let detail = "listed in the place of another name: it goes";
                self.name_removed(parent, name, *ino, detail);
                continue;
            }
            if let Some(kind) = self.check_name(parent, name, *ino) {
                wanted.insert(name.clone(), Entry { ino: *ino, cookie, kind });
                self.corrected(*ino, "its entry is restored from the directory's listing");
            }
        }
    }

    /// Gives each name a cookie of its own.
    fn number(&mut self, wanted: &mut BTreeMap<Vec<u8>, Entry>) {
        let mut taken = BTreeSet::new();
        for entry in wanted.values_mut() {
            if entry.cookie < COOKIE_FIRST || !taken.insert(entry.cookie) {
                entry.cookie = self.next_cookie;
                self.next_cookie += 1;
            }
        }
    }
}
