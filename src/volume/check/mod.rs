//! Checking a volume: every record against every other, space against use, every tag.
//!
//! One walk goes through the tree in key order, so that each table meets what it refers to: inodes
//! come first and are remembered in a few dozen bytes each, then everything that belongs to them.
//! Nothing is written.

mod contents;
mod known;
mod medium;
mod names;
mod paths;
mod report;
mod slots;

pub use report::{CheckReport, FINDINGS_MAX, Finding, Kind, Severity, printable};

use crate::format::map::PageMap;
use crate::format::node::Node;
use crate::format::record::{self, Counters, Inode, Table};
use crate::space::Class;
use crate::tree::{self, Place, Visitor};
use crate::volume::{COOKIE_FIRST, INO_FIRST, ROOT, Volume, cuts};
pub(in crate::volume) use contents::clip;
pub(in crate::volume) use known::Lost;
use known::{Inodes, Known};
pub(in crate::volume) use medium::Medium;
pub(in crate::volume) use names::{fingerprint, is_name};
pub(in crate::volume) use paths::{Places, join, path};
use report::Drafts;
pub(in crate::volume) use report::Subject;
pub(in crate::volume) use slots::SlotSet;
use slots::Slots;

/// Nodes and runs between two calls of the progress function.
const PROGRESS_STEP: u64 = 256;

/// What is checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// Also read every page of every file and verify its tag.
    pub deep: bool,
}

/// What a check is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Tree nodes and records; counted in nodes.
    Metadata,
    /// Contents; counted in pages.
    Contents,
    /// Finding out the paths of what is damaged; not counted.
    Paths,
}

/// How far a check is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What it is doing.
    pub stage: Stage,
    /// How much of it is done.
    pub done: u64,
    /// How much it is, as far as that is known.
    pub total: u64,
}

/// A check that is under way.
struct Checker<'a> {
    volume: &'a Volume,
    options: CheckOptions,
    progress: &'a dyn Fn(Progress),
    report: CheckReport,
    drafts: Drafts,
    inodes: Inodes,
    lost: Lost,
    slots: Slots,
    medium: Medium,
    /// Inodes marked as having no name, ascending.
    orphans: Vec<u64>,
    counters: Option<Counters>,
    /// The last cut mark: its inode and its end.
    last_cut: Option<(u64, u64)>,
    /// The largest cookie that an entry has.
    cookie_max: u64,
    /// The last table and owner that were reported as stray.
    stray: Option<(u8, u64)>,
    names: names::State,
    contents: contents::State,
    nodes_total: u64,
    pages_total: u64,
}

impl Volume {
    /// Checks the durable state of the volume; `progress` is called now and then. Call it when
    /// nothing is being changed. Memory: about 100 bytes for each inode, and 16 KiB for each
    /// segment.
    pub fn check(&self, options: CheckOptions, progress: &dyn Fn(Progress)) -> CheckReport {
        let mut checker = Checker::new(self, options, progress);
        checker.check_medium();
        let _pin = self.epochs.pin();
        let root = self.epochs.root();
        tree::walk(self.epochs.source(), root.as_ref(), &mut checker);
        checker.finish_contents();
        checker.finish_names();
        checker.finish_counters();
        checker.finish_slots();
        checker.into_report()
    }

    /// Compares the slots that the durable tree refers to with those that the bitmaps say are used;
    /// returns a line for each contradiction. Call it when nothing is being changed.
    pub fn check_space(&self) -> Vec<String> {
        let mut nodes = NodeSlots { slots: Slots::new(self), damaged: Vec::new() };
        let root = self.epochs.root();
        tree::walk(self.epochs.source(), root.as_ref(), &mut nodes);
        let NodeSlots { mut slots, damaged: mut problems } = nodes;
        let maps = self.epochs.scan_durable(Table::PageMap, &mut |_, value| {
            if let Ok(map) = PageMap::decode(self.cipher, value) {
                map.pages.iter().flatten().for_each(|page| slots.refer(page.slot));
            }
        });
        if let Err(error) = maps {
            problems.push(format!("page maps cannot be read: {error}"));
        }
        slots.compare();
        let shared = slots.shared.iter();
        problems.extend(shared.map(|slot| format!("slot {} is referred to twice", slot.0)));
        let free = slots.free.iter();
        problems
            .extend(free.map(|slot| format!("slot {} is referred to and counted as free", slot.0)));
        let leaked = slots.leaked.iter();
        problems.extend(leaked.map(|(first, count)| {
            format!("{count} slots from slot {} on are used by nothing", first.0)
        }));
        problems
    }
}

/// Counts the slots of every node, and what is damaged.
struct NodeSlots {
    slots: Slots,
    damaged: Vec<String>,
}

impl Visitor for NodeSlots {
    fn enter(&mut self, place: Place<'_>) -> bool {
        place.pointer.slots.into_iter().for_each(|slot| self.slots.refer(slot));
        // A leaf's slots are in its parent; its records are read elsewhere.
        place.level > 0
    }

    fn node(&mut self, _: Place<'_>, _: &Node) {}

    fn damaged(&mut self, _: Place<'_>, error: &tree::Error) {
        self.damaged.push(error.to_string());
    }
}

impl Visitor for Checker<'_> {
    fn enter(&mut self, place: Place<'_>) -> bool {
        place.pointer.slots.into_iter().for_each(|slot| self.slots.refer(slot));
        self.report.nodes += 1;
        if self.report.nodes % PROGRESS_STEP == 0 && !self.contents.started() {
            let (done, total) = (self.report.nodes, self.nodes_total);
            (self.progress)(Progress { stage: Stage::Metadata, done, total });
        }
        let copies = self.volume.epochs.check_copies(place.pointer, place.level);
        for copy in 0..2 {
            if !copies[copy] && copies[1 - copy] {
                let slot = place.pointer.slots[copy];
                let (segment, offset) = (slot.segment(), slot.offset());
                let detail = format!(
                    "a tree node does not authenticate in data/{segment:08} at offset {offset}; \
                     its other copy is whole"
                );
                self.drafts.add(Kind::NodeCopy, Subject::Volume, detail);
            }
        }
        true
    }

    fn node(&mut self, place: Place<'_>, node: &Node) {
        if place.level > 0 {
            return;
        }
        let mut key = Vec::new();
        for index in 0..node.len() {
            key.clear();
            node.append_key(index, &mut key);
            self.record(&key, node.value(index));
        }
    }

    fn damaged(&mut self, place: Place<'_>, error: &tree::Error) {
        self.lost.push(place.from, place.to);
        let held = describe_range(place.from, place.to);
        let detail = format!("{error}; it held {held}");
        self.drafts.add(Kind::NodeLost, Subject::Volume, detail);
    }
}

impl<'a> Checker<'a> {
    fn new(
        volume: &'a Volume,
        options: CheckOptions,
        progress: &'a dyn Fn(Progress),
    ) -> Checker<'a> {
        let superblock = volume.epochs.superblock();
        let report = CheckReport {
            sequence: superblock.sequence,
            unmounted_in_order: superblock.clean,
            deep: options.deep,
            ..CheckReport::default()
        };
        let slots = Slots::new(volume);
        let is_first_copy = |segment: &u32| Class::of(*segment) == Class::NodeA;
        let segments = slots.in_use.segments().filter(is_first_copy);
        let nodes_total = segments.map(|segment| slots.in_use.count(segment)).sum();
        let mut orphans = Vec::new();
        volume.scan(&[Table::Orphan as u8], &[Table::Orphan as u8 + 1], &mut |key, _| {
            orphans.push(record::owner(key));
            true
        });
        Checker {
            volume,
            options,
            progress,
            report,
            drafts: Drafts::default(),
            inodes: Inodes::default(),
            lost: Lost::default(),
            slots,
            medium: Medium::new(volume),
            orphans,
            counters: None,
            last_cut: None,
            cookie_max: 0,
            stray: None,
            names: names::State::default(),
            contents: contents::State::default(),
            nodes_total,
            pages_total: 0,
        }
    }

    fn record(&mut self, key: &[u8], value: &[u8]) {
        let Some(&table) = key.first() else { return };
        let owner = record::owner(key);
        if table > Table::PageMap as u8 && self.contents.started() {
            self.contents_end_of_inode();
        }
        match table {
            _ if key.len() < 9 => self.malformed(table, owner, "key"),
            t if t == Table::Counters as u8 => match Counters::decode(value) {
                Ok(counters) => self.counters = Some(counters),
                Err(_) => self.malformed(table, owner, "counters"),
            },
            t if t == Table::Inode as u8 => self.inode(owner, key, value),
            t if t == Table::Inline as u8 => self.inline(owner, key, value),
            t if t == Table::Entry as u8 => self.entry(owner, &key[9..], value),
            t if t == Table::Cookie as u8 => self.cookie(owner, key, value),
            t if t == Table::Xattr as u8 => self.xattr(owner, &key[9..], value),
            t if t == Table::Dek as u8 => self.data_key(owner, key),
            t if t == Table::PageMap as u8 => self.page_map(owner, key, value),
            // Opening decoded the bitmaps, or refused.
            t if t == Table::Space as u8 => {}
            t if t == Table::Orphan as u8 => self.orphan(owner, key, value),
            t if t == Table::Cut as u8 => self.cut(owner, key, value),
            _ => self.malformed(table, owner, "key of an unknown table"),
        }
    }

    fn malformed(&mut self, table: u8, owner: u64, what: &str) {
        let detail = format!("malformed {what} in table {table:#04x}");
        let subject = if owner == 0 { Subject::Volume } else { Subject::Inode(owner) };
        self.drafts.add(Kind::RecordMalformed, subject, detail);
    }

    fn inode(&mut self, ino: u64, key: &[u8], value: &[u8]) {
        let inode = match Inode::decode(value) {
            Ok(inode) if key.len() == 9 => inode,
            _ => {
                self.lost.push(key, Some(&[key, &[0]].concat()));
                return self.malformed(key[0], ino, "inode");
            }
        };
        let known = Known::new(ino, &inode, self.orphans.binary_search(&ino).is_ok());
        let types = [
            libc::S_IFREG,
            libc::S_IFDIR,
            libc::S_IFLNK,
            libc::S_IFCHR,
            libc::S_IFBLK,
            libc::S_IFIFO,
            libc::S_IFSOCK,
        ];
        if !types.iter().any(|mode| known.is(*mode)) {
            let detail = format!("its mode {:o} has no type", inode.mode);
            self.drafts.add(Kind::InodeMode, Subject::Inode(ino), detail);
        }
        if !known.is(libc::S_IFREG) && (inode.paged || inode.pages != 0) {
            let detail = "it has contents although it is no regular file";
            self.drafts.add(Kind::InodeMode, Subject::Inode(ino), detail);
        }
        self.pages_total += inode.pages;
        self.inodes.push(known, inode.parent);
    }

    /// Whether `owner` has an inode record. If not, its records are reported, once a table, unless
    /// the inode record is among what is lost.
    fn owned(&mut self, table: Table, owner: u64) -> bool {
        if self.inodes.get(owner).is_some() {
            return true;
        }
        let is_new = self.stray.replace((table as u8, owner)) != Some((table as u8, owner));
        if is_new && !self.lost.covers(&record::key(Table::Inode, owner, &[])) {
            let detail = format!("records of {} that belong to no inode", describe(table as u8));
            self.drafts.add(Kind::RecordStray, Subject::Inode(owner), detail);
        }
        false
    }

    fn orphan(&mut self, ino: u64, key: &[u8], value: &[u8]) {
        if key.len() != 9 || !value.is_empty() {
            self.malformed(key[0], ino, "orphan mark");
        }
        self.owned(Table::Orphan, ino);
    }

    fn cut(&mut self, ino: u64, key: &[u8], value: &[u8]) {
        if !self.owned(Table::Cut, ino) {
            return;
        }
        let range = cuts::decode(key, value);
        let last = self.last_cut.filter(|(of, _)| *of == ino).map(|(_, end)| end);
        if range.is_none_or(|(from, _)| last.is_some_and(|last| from <= last)) {
            let detail = "the marks of its cut-off pages are not ascending, separate ranges";
            self.drafts.add(Kind::Cut, Subject::Inode(ino), detail);
        }
        self.last_cut = range.map(|(_, end)| (ino, end));
    }

    fn finish_counters(&mut self) {
        let counters = match self.counters {
            Some(counters) => counters,
            None if self.lost.covers(&record::key(Table::Counters, 0, &[])) => return,
            None => Counters { next_ino: INO_FIRST, next_cookie: COOKIE_FIRST, inodes: 0 },
        };
        let mut problems = Vec::new();
        let ino_max = self.inodes.list.last().map_or(0, |known| known.ino);
        if counters.next_ino <= ino_max {
            let next = counters.next_ino;
            problems.push(format!("the next inode number is {next}, and inode {ino_max} exists"));
        }
        if counters.next_cookie <= self.cookie_max {
            let (next, max) = (counters.next_cookie, self.cookie_max);
            problems.push(format!("the next cookie is {next}, and an entry has cookie {max}"));
        }
        let (counted, found) = (counters.inodes, self.inodes.list.len() as u64);
        if counted != found && !self.lost.touches_table(Table::Inode) {
            problems.push(format!("{counted} inodes are counted, and there are {found}"));
        }
        for problem in problems {
            self.drafts.add(Kind::Counters, Subject::Volume, problem);
        }
    }
}

/// What the records of a table are, for people.
pub(super) fn describe(table: u8) -> &'static str {
    const NAMES: [(Table, &str); 11] = [
        (Table::Counters, "the counters"),
        (Table::Inode, "inodes"),
        (Table::Inline, "contents of small files and targets of links"),
        (Table::Entry, "directory entries"),
        (Table::Cookie, "directory listings"),
        (Table::Xattr, "extended attributes"),
        (Table::Dek, "data keys"),
        (Table::PageMap, "page maps"),
        (Table::Space, "space bitmaps"),
        (Table::Orphan, "orphan marks"),
        (Table::Cut, "cut marks"),
    ];
    NAMES.iter().find(|(number, _)| *number as u8 == table).map_or("unknown records", |(_, n)| n)
}

/// What the keys `from..to` are, for people.
pub(in crate::volume) fn describe_range(from: &[u8], to: Option<&[u8]>) -> String {
    let first = from.first().copied().unwrap_or(Table::Counters as u8);
    // A bound such as the first key of the next table excludes that table.
    let last = match to {
        None => Table::Cut as u8,
        Some(&[table]) => table.saturating_sub(1),
        Some(to) => to[0],
    };
    let name = |table: u8, bound: &[u8]| match bound.len() {
        9.. => format!("{} of inode {}", describe(table), record::owner(bound)),
        _ => describe(table).to_owned(),
    };
    match (from, to) {
        (from, Some(to)) if from.len() >= 9 && from[..9] == *to.get(..9).unwrap_or_default() => {
            name(first, from)
        }
        _ => format!("{} to {}", name(first, from), name(last, to.unwrap_or_default())),
    }
}
