//! Inodes: those that are there, those of which only contents and names are, and their counts.

use super::{Error, ROOT, Repair};
use crate::format::PAGE_BYTES;
use crate::format::RUN_PAGES;
use crate::format::map::PageMap;
use crate::format::record::{self, Counters, Entry, Inode, Table};
use crate::volume::check::Subject;
use crate::volume::records::{after_owner, decode_cookie};
use crate::volume::{COOKIE_FIRST, INO_FIRST, cuts};
use std::collections::BTreeMap;

/// The record says that content is in pages.
pub(super) const PAGED: u16 = 1;
/// The record says that there may be extended attributes.
pub(super) const XATTRS: u16 = 2;
/// It is removed.
pub(super) const DROPPED: u16 = 4;
/// It was made anew.
pub(super) const REBUILT: u16 = 8;
/// It has inline content.
pub(super) const INLINE: u16 = 16;
/// It has extended attributes.
pub(super) const XATTR_SEEN: u16 = 32;

/// Inode numbers from here on were never given out.
const INO_END: u64 = 1 << 63;
/// Numbers and cookies that are left out if it is not known which were given out.
const COUNTERS_MARGIN: u64 = 1 << 32;

/// An inode: what its record says, or is going to.
#[derive(Clone, Copy)]
pub(super) struct Ino {
    pub ino: u64,
    pub size: u64,
    /// Pages that its record counts.
    pub pages: u64,
    /// Pages that stay.
    pub pages_kept: u64,
    /// Pages that page maps hold, whatever becomes of them.
    pub pages_found: u64,
    pub links: u32,
    /// `mode >> 12`; 0 if the mode has no type.
    pub kind: u8,
    pub flags: u16,
    /// Of a directory: where its record says that it is.
    pub parent: u64,
    /// A directory in which it has a name, or 0.
    pub named_by: u64,
    pub names: u32,
    /// Of a directory.
    pub entries: u64,
    pub subdirectories: u32,
    /// Of a directory: entries in its listing.
    pub listed: u64,
    /// Of a directory: zero if entries and listing agree.
    pub balance: u64,
}

impl Ino {
    pub fn new(ino: u64, inode: &Inode) -> Self {
        let kind = (inode.mode >> 12 & 0xf) as u8;
        let flags = if inode.paged { PAGED } else { 0 } | if inode.has_xattrs { XATTRS } else { 0 };
        Self {
            ino,
            size: inode.size,
            pages: inode.pages,
            pages_kept: 0,
            pages_found: 0,
            links: inode.links,
            kind: if is_kind(kind) { kind } else { 0 },
            flags,
            parent: inode.parent,
            named_by: 0,
            names: 0,
            entries: 0,
            subdirectories: 0,
            listed: 0,
            balance: 0,
        }
    }

    pub fn is(&self, mode: u32) -> bool {
        u32::from(self.kind) == mode >> 12
    }

    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Whether a mode may have these type bits.
fn is_kind(kind: u8) -> bool {
    let kinds = [
        libc::S_IFREG,
        libc::S_IFDIR,
        libc::S_IFLNK,
        libc::S_IFCHR,
        libc::S_IFBLK,
        libc::S_IFIFO,
        libc::S_IFSOCK,
    ];
    kinds.iter().any(|mode| mode >> 12 == u32::from(kind))
}

/// All inodes, by number.
#[derive(Default)]
pub(super) struct Inodes {
    pub list: Vec<Ino>,
}

impl Inodes {
    fn index(&self, ino: u64) -> Result<usize, usize> {
        self.list.binary_search_by_key(&ino, |known| known.ino)
    }

    /// An inode that stays.
    pub fn get(&self, ino: u64) -> Option<&Ino> {
        let index = self.index(ino).ok()?;
        Some(&self.list[index]).filter(|known| !known.has(DROPPED))
    }

    pub fn get_mut(&mut self, ino: u64) -> Option<&mut Ino> {
        let index = self.index(ino).ok()?;
        Some(&mut self.list[index]).filter(|known| !known.has(DROPPED))
    }

    /// Where an inode that stays is in the list.
    pub fn position(&self, ino: u64) -> Option<usize> {
        self.index(ino).ok().filter(|index| !self.list[*index].has(DROPPED))
    }

    pub fn is_dropped(&self, ino: u64) -> bool {
        self.index(ino).is_ok_and(|index| self.list[index].has(DROPPED))
    }

    pub fn insert(&mut self, known: Ino) {
        match self.index(known.ino) {
            Ok(index) => self.list[index] = known,
            Err(index) => self.list.insert(index, known),
        }
    }
}

/// What is there of an inode whose record is not.
#[derive(Default)]
struct Evidence {
    has_entries: bool,
    inline_bytes: u64,
    pages: u64,
    last_page: u64,
    /// The type that names give it, or 0.
    kind: u8,
}

impl Repair<'_> {
    /// Reads orphan and cut marks and the counters, and removes the marks: what they mark goes.
    pub(super) fn read_marks(&mut self) -> Result<(), Error> {
        self.each(Table::Orphan, |this, key, value| {
            if key.len() == 9 && value.is_empty() {
                this.orphans.insert(record::owner(key));
            } else {
                this.removed(record::owner(key), "a malformed orphan mark");
            }
            this.delete(key)
        })?;
        self.each(Table::Cut, |this, key, value| {
            let ino = record::owner(key);
            match cuts::decode(key, value).filter(|_| key.len() == 17) {
                Some(range) => this.cuts.entry(ino).or_default().push(range),
                None => this.removed(ino, "a malformed mark of cut-off pages"),
            }
            this.delete(key)
        })?;
        self.each(Table::Counters, |this, key, value| match Counters::decode(value) {
            Ok(counters) if *key == *record::key(Table::Counters, 0, &[]) => {
                this.stored_counters = Some(counters);
                Ok(())
            }
            _ => this.delete(key),
        })
    }

    /// Whether a run was cut off.
    pub(super) fn is_dead(&self, ino: u64, run: u64) -> bool {
        let ranges = self.cuts.get(&ino).map_or(&[][..], Vec::as_slice);
        ranges.iter().any(|(from, to)| (*from..*to).contains(&run))
    }

    pub(super) fn read_inodes(&mut self) -> Result<(), Error> {
        self.each(Table::Inode, |this, key, value| {
            let ino = record::owner(key);
            let inode = Inode::decode(value).ok().filter(|_| key.len() == 9 && is_possible(ino));
            match inode {
                Some(inode) => this.inodes.list.push(Ino::new(ino, &inode)),
                None => {
                    this.removed(ino, "a malformed inode record");
                    this.delete(key)?;
                }
            }
            Ok(())
        })?;
        let last = self.inodes.list.last().map_or(0, |known| known.ino);
        let stored = self.stored_counters;
        let margin = if stored.is_none() && !self.inodes.list.is_empty() && !self.lost.is_empty() {
            COUNTERS_MARGIN
        } else {
            0
        };
        let first = stored.map_or(INO_FIRST, |counters| counters.next_ino).min(INO_END);
        self.next_ino = first.max(last + 1) + margin;
        self.next_cookie = stored.map_or(COOKIE_FIRST, |counters| counters.next_cookie);
        self.next_cookie = self.next_cookie.clamp(COOKIE_FIRST, INO_END) + margin;
        Ok(())
    }

    /// Makes inodes anew of which names or contents are there.
    pub(super) fn rebuild_inodes(&mut self) -> Result<(), Error> {
        let evidence = self.gather_evidence()?;
        let known: Vec<u64> = evidence.keys().copied().collect();
        if let Some(last) = known.last() {
            self.next_ino = self.next_ino.max(last + 1);
        }
        let mut made_anew = Vec::new();
        for (ino, evidence) in evidence {
            let made = mode_of(ino, &evidence);
            if let Ok(at) = self.inodes.index(ino) {
                let (mode, what) = made.unwrap_or((libc::S_IFREG, "a regular file"));
                self.inodes.list[at].kind = (mode >> 12) as u8;
                self.corrected(
                    ino,
                    format!("its type is none that it can have: it becomes {what}"),
                );
                continue;
            }
            let Some((mode, what)) = made else { continue };
            let pages_bytes = (evidence.last_page + 1).saturating_mul(PAGE_BYTES as u64);
            let size = if evidence.pages > 0 { pages_bytes } else { evidence.inline_bytes };
            let owner = self.owner_of_root()?;
            let now = self.volume.now();
            let inode = Inode {
                mode,
                links: 1,
                uid: owner.0,
                gid: owner.1,
                rdev: 0,
                paged: evidence.pages > 0,
                has_xattrs: false,
                size,
                pages: evidence.pages,
                atime: now,
                mtime: now,
                ctime: now,
                btime: now,
                parent: 0,
            };
            self.tree.put(&record::key(Table::Inode, ino, &[]), Some(&inode.encode()))?;
            let mut known = Ino::new(ino, &inode);
            known.flags |= REBUILT;
            made_anew.push(known);
            let mode = mode & 0o7777;
            let detail = format!(
                "owner, mode and times are lost: {what}, mode {mode:o}, is made of what is there"
            );
            self.drafts.add(super::ActionKind::Rebuilt, Subject::Inode(ino), detail);
        }
        self.inodes.list.extend(made_anew);
        self.inodes.list.sort_unstable_by_key(|known| known.ino);
        Ok(())
    }

    /// User and group of the root directory: of what is made anew too.
    pub(super) fn owner_of_root(&self) -> Result<(u32, u32), Error> {
        let root = self.tree.get(&record::key(Table::Inode, ROOT, &[]))?;
        let root = root.and_then(|value| Inode::decode(&value).ok());
        Ok(root.map_or((0, 0), |root| (root.uid, root.gid)))
    }

    /// Goes through all records and collects what belongs to inodes whose record is lost, or says
    /// no type. Removes what is no record.
    fn gather_evidence(&mut self) -> Result<BTreeMap<u64, Evidence>, Error> {
        let mut evidence: BTreeMap<u64, Evidence> = BTreeMap::new();
        if self.inodes.get(ROOT).is_none_or(|root| !root.is(libc::S_IFDIR)) {
            evidence.entry(ROOT).or_default();
            // A file has no entries.
            if let Some(root) = self.inodes.get_mut(ROOT) {
                root.kind = 0;
            }
        }
        let untyped = self.inodes.list.iter().filter(|known| known.kind == 0);
        evidence.extend(untyped.map(|known| (known.ino, Evidence::default())));
        self.tree.flush()?;
        self.each_within(&[], &[0xff; 321], |this, key, value| {
            let table = table_of(key);
            let owner = record::owner(key);
            let Some(table) = table.filter(|_| key.len() >= 9) else {
                this.removed(owner, "a record that no table has");
                return this.delete(key);
            };
            if matches!(table, Table::Counters | Table::Inode | Table::Space) {
                return Ok(());
            }
            if !is_possible(owner) {
                return this.delete_stray(key, "records");
            }
            let needs = |ino: u64| this.inodes.get(ino).is_none_or(|known| known.kind == 0);
            let named = match table {
                Table::Entry => Entry::decode(value).ok().map(|entry| (entry.ino, entry.kind)),
                Table::Cookie => decode_cookie(key, value).map(|(_, ino, kind, _)| (ino, kind)),
                _ => None,
            };
            if let Some((ino, kind)) = named.filter(|(ino, _)| is_possible(*ino) && needs(*ino)) {
                let of = evidence.entry(ino).or_default();
                of.kind = if is_kind(kind) { kind } else { of.kind };
            }
            if !needs(owner) {
                return Ok(());
            }
            let of = evidence.entry(owner).or_default();
            match table {
                Table::Entry | Table::Cookie => of.has_entries = true,
                Table::Inline => of.inline_bytes += value.len() as u64,
                Table::PageMap => {
                    let map = PageMap::decode(this.volume.cipher, value);
                    let run = key.get(9..17).filter(|_| key.len() == 17);
                    let run = run.map(|run| u64::from_be_bytes(run.try_into().expect("8 bytes")));
                    if let (Ok(map), Some(run)) = (map, run.filter(|run| *run < RUN_END)) {
                        if !this.is_dead(owner, run) {
                            let last = map.pages.iter().rposition(Option::is_some).unwrap_or(0);
                            of.last_page = run * RUN_PAGES + last as u64;
                            of.pages += map.count();
                        }
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(evidence)
    }

    /// Removes all records of an inode.
    pub(super) fn discard(&mut self, ino: u64) -> Result<(), Error> {
        for table in [Table::Inode, Table::Inline, Table::Xattr, Table::Dek, Table::PageMap] {
            let (from, to) = (record::key(table, ino, &[]), after_owner(table, ino));
            self.each_within(&from, &to, |this, key, _| this.delete(key))?;
        }
        if let Some(known) = self.inodes.get_mut(ino) {
            known.flags |= DROPPED;
        }
        Ok(())
    }

    /// Makes each inode's record say what was found.
    pub(super) fn finish_inodes(&mut self) -> Result<(), Error> {
        self.each(Table::Inode, |this, key, value| {
            let ino = record::owner(key);
            let Some(known) = this.inodes.get(ino).copied() else { return this.delete(key) };
            let stored = Inode::decode(value)?;
            let wanted = wanted(&known, &stored);
            if wanted == stored {
                return Ok(());
            }
            if !known.has(REBUILT) {
                for detail in differences(&known, &stored, &wanted) {
                    this.corrected(ino, detail);
                }
            }
            Ok(this.tree.put(key, Some(&wanted.encode()))?)
        })
    }

    pub(super) fn finish_counters(&mut self) -> Result<(), Error> {
        let inodes = self.inodes.list.iter().filter(|known| !known.has(DROPPED)).count() as u64;
        let (next_ino, next_cookie) = (self.next_ino, self.next_cookie);
        let counters = Counters { next_ino, next_cookie, inodes };
        if self.stored_counters != Some(counters) {
            let detail = "the counters of inodes, numbers and cookies are set to what was found";
            self.drafts.add(super::ActionKind::Corrected, Subject::Volume, detail);
        }
        let key = record::key(Table::Counters, 0, &[]);
        Ok(self.tree.put(&key, Some(&counters.encode()))?)
    }
}

/// Runs from here on are behind the largest file.
pub(super) const RUN_END: u64 = u64::MAX / RUN_PAGES / PAGE_BYTES as u64;

fn is_possible(ino: u64) -> bool {
    (1..INO_END).contains(&ino)
}

fn table_of(key: &[u8]) -> Option<Table> {
    const TABLES: [Table; 11] = [
        Table::Counters,
        Table::Inode,
        Table::Inline,
        Table::Entry,
        Table::Cookie,
        Table::Xattr,
        Table::Dek,
        Table::PageMap,
        Table::Space,
        Table::Orphan,
        Table::Cut,
    ];
    TABLES.into_iter().find(|table| key.first() == Some(&(*table as u8)))
}

/// The mode of an inode that is made anew, and what it is; `None` if nothing of it is there.
fn mode_of(ino: u64, evidence: &Evidence) -> Option<(u32, &'static str)> {
    let named = u32::from(evidence.kind) << 12;
    if ino == ROOT {
        return Some((libc::S_IFDIR | 0o755, "a directory"));
    }
    if evidence.has_entries || named == libc::S_IFDIR {
        return Some((libc::S_IFDIR | 0o700, "a directory"));
    }
    if evidence.pages == 0 && evidence.inline_bytes > 0 && named == libc::S_IFLNK {
        return Some((libc::S_IFLNK | 0o777, "a symbolic link"));
    }
    (evidence.pages > 0 || evidence.inline_bytes > 0)
        .then_some((libc::S_IFREG | 0o600, "a regular file"))
}

/// The record that an inode should have.
fn wanted(known: &Ino, stored: &Inode) -> Inode {
    let mut wanted = *stored;
    let mode = u32::from(known.kind) << 12;
    wanted.mode = mode | stored.mode & 0o7777;
    wanted.has_xattrs |= known.has(XATTR_SEEN);
    wanted.links = known.names;
    wanted.size = known.size;
    wanted.pages = known.pages_kept;
    wanted.paged = known.has(PAGED);
    if mode != libc::S_IFREG {
        wanted.paged = false;
    }
    if mode == libc::S_IFDIR {
        wanted.links = 2 + known.subdirectories;
        wanted.size = known.entries;
        wanted.parent = if known.ino == ROOT { ROOT } else { known.named_by };
    }
    wanted
}

/// How a record is changed, for people.
fn differences(known: &Ino, old: &Inode, new: &Inode) -> Vec<String> {
    let mut list = Vec::new();
    let mut say = |what: &str, old: u64, new: u64| {
        if old != new {
            list.push(format!("its {what} was {old} and becomes {new}"));
        }
    };
    say("link count", old.links.into(), new.links.into());
    say("size", old.size, new.size);
    // That pages which were counted are lost is said where they are.
    if old.pages != known.pages_found {
        say("number of pages", old.pages, new.pages);
    }
    say("parent", old.parent, new.parent);
    if old.mode != new.mode {
        list.push(format!("its mode was {:o} and becomes {:o}", old.mode, new.mode));
    }
    if old.paged != new.paged || old.has_xattrs != new.has_xattrs {
        list.push("its record did not say what kinds of content it has".into());
    }
    list
}
