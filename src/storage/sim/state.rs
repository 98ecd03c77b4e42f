//! What is on the simulated disk, what is only in its cache, and what a crash makes of the latter.

use super::image::Image;
use super::random::Random;
use crate::storage::FileId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What disks of the last decades wrote atomically, if anything.
const SECTOR_BYTES: u64 = 512;
/// The grain of a tear inside a sector: a cache line.
const TEAR_BYTES: u64 = 64;
/// The grain in which a punch is torn.
const PUNCH_BYTES: u64 = crate::storage::BLOCK_BYTES as u64;

/// Something that was done to a file and is not durable by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The file was created, empty.
    Create,
    /// The file was deleted.
    Delete,
    /// Bytes were written.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// The length was set, in bytes.
    Length(u64),
    /// A range was allocated.
    Allocate {
        /// Where, in bytes.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// A range was given back.
    Punch {
        /// Where, in bytes.
        offset: u64,
        /// How many.
        bytes: u64,
    },
}

impl Change {
    /// Whether a crash can leave a part of it.
    pub fn can_tear(&self) -> bool {
        match self {
            Self::Create | Self::Delete | Self::Length(_) => false,
            Self::Write { .. } | Self::Allocate { .. } | Self::Punch { .. } => true,
        }
    }
}

/// What a crash does to a change that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It reached the disk.
    Kept,
    /// It did not.
    Lost,
    /// Parts of it did, chosen by this seed: sectors of 512 bytes, and inside of sectors pieces of
    /// 64. Where [`Change::can_tear`] is false, the seed chooses between the other two.
    Torn(u64),
}

/// A change that waits for a sync.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The file.
    pub file: FileId,
    /// What was done to it.
    pub change: Change,
}

/// One step of a script, as the journal keeps it.
#[derive(Clone, Debug)]
pub enum Operation {
    /// A change.
    Change(Pending),
    /// A successful sync of a file.
    Sync(FileId),
    /// A sync that failed, and what became of each change that it should have made durable.
    SyncFailed(FileId, Fate),
    /// A sync of the directories.
    SyncDirectory,
    /// The configuration was replaced.
    Config(Arc<[u8]>),
    /// A note of the script to its checker, such as "this much is acknowledged".
    Mark(u64),
}

/// A file's content, whatever its name is.
#[derive(Clone, Default)]
struct Inode {
    durable: Arc<Image>,
    current: Arc<Image>,
    pending: Vec<Change>,
    /// A failed sync left the two images different in what is no longer pending.
    diverged: bool,
}

/// Everything that the disk and its cache hold. Cloning is cheap.
#[derive(Clone, Default)]
pub(super) struct State {
    next_inode: u64,
    inodes: BTreeMap<u64, Inode>,
    durable_names: BTreeMap<FileId, u64>,
    current_names: BTreeMap<FileId, u64>,
    pending_names: Vec<(Pending, u64)>,
    pub(super) config: Option<Arc<[u8]>>,
}

impl State {
    /// The content of a file as this process sees it.
    pub(super) fn content(&self, file: FileId) -> Option<&Image> {
        Some(&self.inodes[self.current_names.get(&file)?].current)
    }

    /// Names of the files that exist.
    pub(super) fn names(&self) -> impl Iterator<Item = FileId> + '_ {
        self.current_names.keys().copied()
    }

    /// Bytes that all files take from the disk.
    pub(super) fn allocated_bytes(&self) -> u64 {
        self.current_names.values().map(|id| self.inodes[id].current.allocated_bytes()).sum()
    }

    /// Does what a journal says. The operation was possible when it was recorded, and so it is now.
    pub(super) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Change(pending) => self.change(pending),
            Operation::Sync(file) => self.sync(*file),
            Operation::SyncFailed(file, fate) => self.sync_failed(*file, *fate),
            Operation::SyncDirectory => {
                self.durable_names = self.current_names.clone();
                self.pending_names.clear();
                self.drop_unreachable();
            }
            Operation::Config(bytes) => self.config = Some(Arc::clone(bytes)),
            Operation::Mark(_) => {}
        }
    }

    /// Everything that waits for a sync: names first, then files, each in order.
    pub(super) fn pending(&self) -> Vec<Pending> {
        let names = self.pending_names.iter().map(|(pending, _)| pending.clone());
        let contents = self.contents_pending().flat_map(|(_, file, inode)| {
            inode.pending.iter().map(move |change| Pending { file, change: change.clone() })
        });
        names.chain(contents).collect()
    }

    /// What is on disk after a crash in which each change of [`State::pending`] has the fate that
    /// the iterator gives it, in that order.
    pub(super) fn after_crash(&self, fates: &mut dyn Iterator<Item = Fate>) -> Self {
        let mut next = || fates.next().unwrap_or(Fate::Lost);
        let mut names = self.durable_names.clone();
        for (pending, id) in &self.pending_names {
            if survives(next()) {
                rename(&mut names, pending, *id);
            }
        }
        let mut after = Self { next_inode: self.next_inode, ..Self::default() };
        for (id, file, inode) in self.contents_pending() {
            let mut image = Arc::clone(&inode.durable);
            for change in &inode.pending {
                apply_with_fate(&mut image, change, next());
            }
            // Two names may claim a file that was deleted and created again; each has its inode.
            if names.get(&file) == Some(&id) {
                let current = Arc::clone(&image);
                after.inodes.insert(id, Inode { durable: image, current, ..Inode::default() });
            }
        }
        after.durable_names = names.clone();
        after.current_names = names;
        after.config = self.config.clone();
        after
    }

    /// Makes the process see what is on disk wherever nothing is pending, as when the cache is
    /// dropped under memory pressure.
    pub(super) fn drop_clean_cache(&mut self) {
        for inode in self.inodes.values_mut() {
            let mut image = Arc::clone(&inode.durable);
            for change in &inode.pending {
                apply_to_image(Arc::make_mut(&mut image), change);
            }
            inode.current = image;
        }
    }

    /// Changes bytes on disk and in the cache alike, as a decaying medium does.
    pub(super) fn damage(&mut self, file: FileId, damage: &dyn Fn(&mut Image)) -> bool {
        let Some(inode) = self.inode(file) else { return false };
        damage(Arc::make_mut(&mut inode.durable));
        damage(Arc::make_mut(&mut inode.current));
        true
    }

    fn change(&mut self, pending: &Pending) {
        if matches!(pending.change, Change::Create | Change::Delete) {
            let id = match self.current_names.get(&pending.file) {
                Some(id) => *id,
                None => self.next_inode,
            };
            if pending.change == Change::Create {
                self.inodes.insert(id, Inode::default());
                self.next_inode += 1;
            }
            rename(&mut self.current_names, pending, id);
            self.pending_names.push((pending.clone(), id));
        } else if let Some(inode) = self.inode(pending.file) {
            apply_to_image(Arc::make_mut(&mut inode.current), &pending.change);
            inode.pending.push(pending.change.clone());
        }
    }

    fn sync(&mut self, file: FileId) {
        let Some(inode) = self.inode(file) else { return };
        let pending = std::mem::take(&mut inode.pending);
        if inode.diverged {
            // What an earlier sync lost stays lost: the kernel believes that it is clean.
            for change in &pending {
                apply_to_image(Arc::make_mut(&mut inode.durable), change);
            }
        } else {
            inode.durable = Arc::clone(&inode.current);
        }
    }

    fn sync_failed(&mut self, file: FileId, fate: Fate) {
        let Some(inode) = self.inode(file) else { return };
        let mut seeds = Random::new(if let Fate::Torn(seed) = fate { seed } else { 0 });
        for change in std::mem::take(&mut inode.pending) {
            let fate = if let Fate::Torn(_) = fate { Fate::Torn(seeds.next()) } else { fate };
            apply_with_fate(&mut inode.durable, &change, fate);
        }
        inode.diverged = true;
    }

    fn inode(&mut self, file: FileId) -> Option<&mut Inode> {
        self.inodes.get_mut(self.current_names.get(&file)?)
    }

    /// Every inode that a name may lead to after a crash, with that name, in the order of creation.
    fn contents_pending(&self) -> impl Iterator<Item = (u64, FileId, &Inode)> {
        let mut names: BTreeMap<u64, FileId> =
            self.durable_names.iter().map(|(file, id)| (*id, *file)).collect();
        names.extend(self.pending_names.iter().map(|(pending, id)| (*id, pending.file)));
        names.into_iter().map(|(id, file)| (id, file, &self.inodes[&id]))
    }

    fn drop_unreachable(&mut self) {
        let kept: BTreeSet<u64> = self.durable_names.values().copied().collect();
        self.inodes.retain(|id, _| kept.contains(id));
    }
}

/// Does to a directory what a creation or a deletion says.
fn rename(names: &mut BTreeMap<FileId, u64>, pending: &Pending, id: u64) {
    if pending.change == Change::Create {
        names.insert(pending.file, id);
    } else if names.get(&pending.file) == Some(&id) {
        names.remove(&pending.file);
    }
}

/// Whether a change that cannot tear is on disk.
fn survives(fate: Fate) -> bool {
    match fate {
        Fate::Kept => true,
        Fate::Lost => false,
        Fate::Torn(seed) => Random::new(seed).coin(),
    }
}

fn apply_to_image(image: &mut Image, change: &Change) {
    match change {
        Change::Create | Change::Delete => {}
        Change::Write { offset, bytes } => image.write(*offset, bytes),
        Change::Length(bytes) => image.set_length(*bytes),
        Change::Allocate { offset, bytes } => image.allocate(*offset, *bytes),
        Change::Punch { offset, bytes } => image.punch(*offset, *bytes),
    }
}

fn apply_with_fate(image: &mut Arc<Image>, change: &Change, fate: Fate) {
    match (fate, change) {
        (Fate::Lost, _) => {}
        (Fate::Kept, _) => apply_to_image(Arc::make_mut(image), change),
        (Fate::Torn(seed), Change::Write { offset, bytes }) => {
            tear_write(Arc::make_mut(image), *offset, bytes, &mut Random::new(seed));
        }
        (Fate::Torn(seed), Change::Allocate { offset, bytes }) => {
            // The blocks may be there without the length that covers them, or the other way round.
            let random = &mut Random::new(seed);
            let image = Arc::make_mut(image);
            let length = image.length();
            if random.coin() {
                image.allocate(*offset, *bytes);
                if random.coin() {
                    image.set_length(length);
                }
            } else {
                image.set_length(length.max(offset + bytes));
            }
        }
        (Fate::Torn(seed), Change::Punch { offset, bytes }) => {
            let random = &mut Random::new(seed);
            for (at, count) in pieces(*offset, *bytes, PUNCH_BYTES) {
                if random.coin() {
                    Arc::make_mut(image).punch(at, count);
                }
            }
        }
        (Fate::Torn(seed), Change::Length(_)) if !Random::new(seed).coin() => {}
        (Fate::Torn(_), _) => apply_to_image(Arc::make_mut(image), change),
    }
}

/// Each sector is kept, lost or torn. The length grows as far as the last piece that is on disk
/// reaches, or all the way: filesystems have been seen to write a length before the data.
fn tear_write(image: &mut Image, offset: u64, bytes: &[u8], random: &mut Random) {
    let part = |at: u64, count: u64| &bytes[(at - offset) as usize..][..count as usize];
    for (sector, count) in pieces(offset, bytes.len() as u64, SECTOR_BYTES) {
        match random.next() % 3 {
            0 => {}
            1 => image.write(sector, part(sector, count)),
            _ => {
                for (at, count) in pieces(sector, count, TEAR_BYTES) {
                    if random.coin() {
                        image.write(at, part(at, count));
                    }
                }
            }
        }
    }
    if random.coin() {
        image.set_length(image.length().max(offset + bytes.len() as u64));
    }
}

/// A range, cut at the multiples of `grain`: offset and count of each piece, in bytes.
fn pieces(offset: u64, bytes: u64, grain: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + bytes;
    let next = move |at: &u64| Some((at / grain + 1) * grain).filter(|next| *next < end);
    std::iter::successors((bytes > 0).then_some(offset), next)
        .map(move |at| (at, ((at / grain + 1) * grain).min(end) - at))
}
