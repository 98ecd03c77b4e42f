//! Repairing a volume: from what can be read to a volume in which a check finds nothing.
//!
//! Everything is done to a tree beside the durable one ([`crate::epoch::Rebuild`]), table by table,
//! in an order in which each knows what it refers to: inodes; what is evidence of inodes that are
//! lost; inline contents; names; attributes, keys and pages; at last the inodes' own counts. The
//! result is checked before a superblock leads to it, and that superblock is the only thing that is
//! written over anything. Memory: about 100 bytes for each inode, as for a check, and some hundred
//! for each thing that is repaired.

mod contents;
mod directory;
mod inodes;
mod names;
mod pages;
mod report;

pub use report::{Action, ActionKind, DamagedFile, RepairReport};

use super::check::{CheckOptions, CheckReport, Lost, Medium, Places, SlotSet, Subject};
use super::check::{describe_range, join, path};
use super::{Error, OpenOptions, Progress, ROOT, Stage, Volume};
use crate::epoch::{Rebuild, Rebuilt, Survey};
use crate::format::record::{self, Counters, Entry, Table};
use crate::storage::{Shadow, Storage};
use inodes::Inodes;
use report::Drafts;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How a volume is repaired.
#[derive(Clone, Copy, Debug, Default)]
pub struct RepairOptions {
    /// Read every page of every file too: what does not authenticate becomes a hole.
    pub deep: bool,
}

/// Is told what a repair is going to do, and given the repaired volume to read from, before it is
/// the volume: false leaves everything as it was.
pub type Approve<'a> = dyn FnMut(&RepairReport, &Volume) -> bool + 'a;

/// Why a volume was not repaired. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Reading or writing failed.
    #[error("the repair could not be made")]
    Failed(#[from] Error),
    /// The repaired state would not have been sound: a defect of the program.
    #[error("the repaired volume would not be sound, so that it was left as it is")]
    NotSound(Box<CheckReport>),
}

impl RepairError {
    /// Whether the disk has no room for what is to be written.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Failed(Error::NoSpace) => true,
            Self::Failed(Error::Storage { source, .. }) => {
                matches!(source.downcast_ref(), Some(crate::tree::Error::NoSpace))
            }
            _ => false,
        }
    }
}

impl From<crate::epoch::Error> for RepairError {
    fn from(error: crate::epoch::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// A repair that is under way.
struct Repair<'a> {
    volume: &'a Volume,
    survey: &'a Survey,
    tree: Rebuild<'a>,
    options: RepairOptions,
    progress: &'a dyn Fn(Progress),
    medium: Medium,
    lost: Lost,
    drafts: Drafts,
    inodes: Inodes,
    /// Inodes that are marked as nameless.
    orphans: BTreeSet<u64>,
    /// Dead runs of each inode.
    cuts: BTreeMap<u64, Vec<(u64, u64)>>,
    stored_counters: Option<Counters>,
    next_ino: u64,
    next_cookie: u64,
    /// Slots of pages that stay.
    kept: SlotSet,
    /// The last table and owner whose records were said to belong to nobody.
    stray: Option<(u8, u64)>,
}

impl Volume {
    /// Repairs what is damaged or contradictory; `approve` decides when it is known what that is.
    /// The volume was opened read-only and for repair, over a storage that can be written to, or
    /// over a [`Shadow`]. Nobody else uses it meanwhile, and it is not used afterwards.
    ///
    /// A volume without damage is written anew, too: it is for the caller to check it first.
    ///
    /// # Errors
    /// [`RepairError`]; everything is as it was then, but for free slots.
    pub fn repair(
        &self,
        options: RepairOptions,
        progress: &dyn Fn(Progress),
        approve: &mut Approve,
    ) -> Result<RepairReport, RepairError> {
        let survey = self.epochs.survey()?;
        let mut repair = Repair::begin(self, &survey, options, progress)?;
        repair.say_medium();
        repair.run()?;
        let mut report = repair.report()?;
        let rebuilt = repair.tree.finish()?;
        let (repaired, check) = self.try_out(&rebuilt, options, progress)?;
        if !check.is_clean() {
            return Err(RepairError::NotSound(Box::new(check)));
        }
        report.check = Some(check);
        if approve(&report, &repaired) {
            self.epochs.adopt(&*self.storage, &rebuilt)?;
            report.committed = true;
        }
        Ok(report)
    }

    /// Opens and checks a rebuilt state of which only this process knows.
    fn try_out(
        &self,
        rebuilt: &Rebuilt,
        options: RepairOptions,
        progress: &dyn Fn(Progress),
    ) -> Result<(Arc<Self>, CheckReport), RepairError> {
        let shadow: Arc<dyn Storage> = Arc::new(Shadow::new(self.storage.clone()));
        self.epochs.adopt(&*shadow, rebuilt)?;
        let what = || "opening what was repaired".to_owned();
        let config = self
            .storage
            .read_config()
            .map_err(|source| Error::Storage { what: what(), source: Box::new(source) })?;
        let open = OpenOptions { read_only: true, ..OpenOptions::default() };
        let (keys, cipher) = (self.keys.clone(), self.cipher);
        let (volume, _) = Self::open(shadow, keys, self.volume_id, cipher, &config, &open)
            .map_err(|source| Error::Storage { what: what(), source: Box::new(source) })?;
        let check = volume.check(CheckOptions { deep: options.deep }, progress);
        Ok((volume, check))
    }
}

impl<'a> Repair<'a> {
    fn begin(
        volume: &'a Volume,
        survey: &'a Survey,
        options: RepairOptions,
        progress: &'a dyn Fn(Progress),
    ) -> Result<Self, Error> {
        progress(Progress { stage: Stage::Metadata, done: 0, total: 0 });
        // Before anything is written: a segment may be made anew.
        let medium = Medium::new(volume);
        let mut lost = Lost::default();
        survey.lost.iter().for_each(|(from, to)| lost.push(from, to.as_deref()));
        Ok(Self {
            volume,
            survey,
            tree: Rebuild::begin(&volume.epochs, survey)?,
            options,
            progress,
            medium,
            lost,
            drafts: Drafts::default(),
            inodes: Inodes::default(),
            orphans: BTreeSet::new(),
            cuts: BTreeMap::new(),
            stored_counters: None,
            next_ino: 0,
            next_cookie: 0,
            kept: SlotSet::default(),
            stray: None,
        })
    }

    fn run(&mut self) -> Result<(), Error> {
        self.read_marks()?;
        self.read_inodes()?;
        self.rebuild_inodes()?;
        self.repair_inline()?;
        self.repair_names()?;
        self.repair_xattrs()?;
        self.repair_data_keys()?;
        self.repair_pages()?;
        self.finish_inodes()?;
        self.finish_counters()?;
        self.tree.flush()?;
        Ok(())
    }

    /// Says what is done to superblocks, nodes, segments and bitmaps.
    fn say_medium(&mut self) {
        let volume = self.volume;
        let mut say = |detail: String| {
            self.drafts.add(ActionKind::Metadata, Subject::Volume, detail);
        };
        let superblocks = volume.epochs.superblocks();
        for (name, superblock) in ["super.a", "super.b"].into_iter().zip(&superblocks) {
            if let Err(error) = superblock {
                say(format!("{name} is written anew: {error}"));
            }
        }
        let newest = superblocks.iter().flatten().map(|superblock| superblock.sequence).max();
        let chosen = volume.epochs.superblock().sequence;
        if let Some(newest) = newest.filter(|&newest| newest > chosen) {
            say(format!(
                "the newest state, sequence {newest}, has lost its root: state {chosen}, before \
                 it, takes its place"
            ));
        }
        for (from, to) in &self.survey.lost {
            let held = describe_range(from, to.as_deref());
            say(format!("a lost tree node is cut out; it held {held}"));
        }
        if !self.survey.copies.is_empty() {
            let count = self.survey.copies.len();
            say(format!("tree nodes of which one copy is damaged are written anew: {count}"));
        }
        if let Some(error) = volume.epochs.space_damage() {
            say(format!("which slots are free is found out from what is in use: {error}"));
        }
        for (segment, how) in self.survey.bad_segments() {
            say(format!("data/{segment:08} {how} and is made whole; what it held is lost"));
        }
    }

    /// Calls `visit` with every record of a table, in key order, as the tree has it now.
    fn each(
        &mut self,
        table: Table,
        visit: impl FnMut(&mut Self, &[u8], &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.tree.flush()?;
        self.each_within(&[table as u8], &[table as u8 + 1], visit)
    }

    /// The same for a range of keys, without what was changed since.
    fn each_within(
        &mut self,
        from: &[u8],
        to: &[u8],
        mut visit: impl FnMut(&mut Self, &[u8], &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut from = from.to_vec();
        loop {
            let page = self.tree.page(&from, to)?;
            for (key, value) in &page.records {
                visit(self, key, value)?;
            }
            match page.next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), Error> {
        Ok(self.tree.put(key, None)?)
    }

    fn corrected(&mut self, ino: u64, detail: impl Into<String>) {
        self.drafts.add(ActionKind::Corrected, Subject::Inode(ino), detail);
    }

    fn removed(&mut self, ino: u64, detail: impl Into<String>) {
        self.drafts.add(ActionKind::Removed, Subject::Inode(ino), detail);
    }

    fn name_removed(&mut self, parent: u64, name: &[u8], ino: u64, detail: impl Into<String>) {
        let subject = Subject::Name { parent, name: name.to_vec(), ino };
        self.drafts.add(ActionKind::Removed, subject, detail);
    }

    /// Deletes a record of an inode that does not exist, and says so once a table.
    fn delete_stray(&mut self, key: &[u8], what: &str) -> Result<(), Error> {
        let (table, owner) = (key[0], record::owner(key));
        // What belonged to an inode that is removed goes with it.
        let is_dropped = self.inodes.is_dropped(owner);
        if !is_dropped && self.stray.replace((table, owner)) != Some((table, owner)) {
            self.removed(owner, format!("{what} of an inode that does not exist"));
        }
        self.delete(key)
    }

    /// Puts paths to what is done.
    fn report(&mut self) -> Result<RepairReport, Error> {
        (self.progress)(Progress { stage: Stage::Paths, done: 0, total: 0 });
        let drafts = std::mem::take(&mut self.drafts.0);
        let mut places = Places::new();
        for draft in &drafts {
            match draft.subject {
                Subject::Volume => {}
                Subject::Inode(ino) => self.need(ino, &mut places),
                Subject::Name { parent, .. } => self.need(parent, &mut places),
            }
        }
        if !places.is_empty() {
            self.each(Table::Entry, |_, key, value| {
                let parent = record::owner(key);
                if let Ok(entry) = Entry::decode(value) {
                    if let Some((of, found)) = places.get_mut(&entry.ino) {
                        if found.is_none() && *of == parent {
                            *found = Some(key[9..].to_vec());
                        }
                    }
                }
                Ok(())
            })?;
        }
        let mut actions: Vec<Action> = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let (path, ino) = match draft.subject {
                Subject::Volume => (None, None),
                Subject::Inode(ino) => (path(&places, ino), Some(ino)),
                Subject::Name { parent, name, ino } => {
                    (path(&places, parent).map(|parent| join(&parent, &name)), Some(ino))
                }
            };
            let (offset, length) = (draft.range.map(|r| r.0), draft.range.map(|r| r.1));
            actions.push(Action {
                kind: draft.kind,
                path,
                ino,
                offset,
                length,
                detail: draft.detail,
            });
        }
        let (sequence, deep) = (self.volume.epochs.superblock().sequence, self.options.deep);
        Ok(RepairReport { sequence, deep, actions, ..RepairReport::default() })
    }

    /// Notes that the names of an inode and of all directories above it are needed.
    fn need(&self, mut ino: u64, places: &mut Places) {
        while ino != ROOT && ino != 0 && !places.contains_key(&ino) {
            let named_by = self.inodes.get(ino).map_or(0, |known| known.named_by);
            places.insert(ino, (named_by, None));
            ino = named_by;
        }
    }
}
