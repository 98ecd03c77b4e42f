//! Which slots are free. Knows slots, not what is in them.
//!
//! A slot is *used* from the moment it is handed out until it is released; it is *backed* when the
//! disk underneath has a block for it, so that writing there cannot fail for lack of space. The
//! class of a segment follows from its number, so that the two copies of a tree node are always in
//! different segments and nothing needs to be stored.

mod bitmap;
mod deferred;
mod durable;

pub use deferred::{Deferred, Pin};
pub use durable::{DurableBitmaps, PIECE_BYTES, PIECE_SLOTS, runs_of};

use crate::format::{PAGE_BYTES, RUN_PAGES, SEGMENT_BYTES, SEGMENT_SLOTS, Slot};
pub use crate::storage::is_full;
use crate::storage::{FileId, Storage};
use bitmap::Segment;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Slots that were taken: one run, if there was one that is long enough.
pub type Runs = SmallVec<[SlotRun; 1]>;

/// A run of adjacent slots of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRun {
    /// The first slot.
    pub first: Slot,
    /// How many.
    pub count: u32,
}

/// All slots of some runs.
pub fn slots_of(runs: &[SlotRun]) -> impl Iterator<Item = Slot> + '_ {
    runs.iter().flat_map(|run| (run.first.0..run.first.0 + u64::from(run.count)).map(Slot))
}

/// What a slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// First copies of tree nodes.
    NodeA,
    /// Second copies of tree nodes.
    NodeB,
    /// Pages of files.
    Data,
}

impl Class {
    /// The class of a segment: of every 8, the first two hold nodes.
    pub fn of(segment: u32) -> Self {
        match segment % 8 {
            0 => Self::NodeA,
            1 => Self::NodeB,
            _ => Self::Data,
        }
    }

    /// The smallest segment number above `segment` (or the smallest of all) of this class.
    fn next_segment(self, segment: Option<u32>) -> u32 {
        let from = segment.map_or(0, |segment| segment + 1);
        (from..from + 8).find(|&number| Self::of(number) == self).expect("all in any 8")
    }
}

/// Whether an allocation may use the reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// New data: refused when only the reserve is left.
    New,
    /// Replaces data that will be freed: may use the reserve.
    Overwrite,
    /// Data for which space was promised ([`Space::promise`]).
    Promised,
}

/// No slot is free, or none that the disk has room for.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// The disk underneath is full.
    #[error("no slot is free")]
    NoSpace,
    /// The storage failed.
    #[error("preparing a slot failed")]
    Storage(#[from] io::Error),
}

/// Slots in one allocation step of backed space, at most: 8 MiB.
const BACKING_STEP_MAX: u64 = 2048;
/// Slots that a reserve is filled up by in one step, at most: 64 MiB.
const FILL_STEP_MAX: u32 = 16_384;
/// Free, backed runs of this many slots (1 MiB, aligned) are given back to the disk.
const PUNCH_SLOTS: u32 = 256;
/// A segment of whose slots with blocks less than one in so many is used is worth emptying.
const SPARSE_RATIO: u32 = 4;
/// And that many blocks must come back, so that moving pays: 4 MiB.
const SPARSE_SLOTS_MIN: u32 = 1024;
/// A request of this many slots (256 KiB) and more is of content that is written in sequence.
const STREAM_SLOTS: u32 = 64;
/// Holes are left alone while they are few: as a part of what is in use, and always so many.
const HOLES_RATIO: u64 = 8;
const HOLES_MIN: u64 = 4096;
/// What is written in sequence stays out of them until they are this many times too many.
const HOLES_STREAM: u64 = 2;

#[derive(Default)]
struct ClassState {
    /// Free slots that are backed, over all segments of the class.
    backed_free: u64,
    /// Where the next search starts: segment, slot within it.
    cursor: Option<(u32, u32)>,
    /// The same for long runs.
    long_cursor: Option<(u32, u32)>,
}

#[derive(Default)]
struct Inner {
    segments: BTreeMap<u32, Segment>,
    classes: [ClassState; 3],
    used: u64,
    /// Data slots that are kept for what `fallocate(2)` allocated.
    promised: u64,
    first_fit: bool,
    /// A segment from which nothing is taken if there is another, because it is being emptied.
    closed: Option<u32>,
}

/// The allocator.
pub struct Space {
    inner: Mutex<Inner>,
    storage: Arc<dyn Storage>,
    /// Backed free slots that are kept for nodes (per copy) and for overwrites.
    reserve: u64,
    /// A segment was created and its directory entry is not durable.
    directory_dirty: AtomicBool,
    /// The last refusal of the disk was one of a quota.
    over_quota: AtomicBool,
}

impl Space {
    /// An allocator over `storage`. `segments` says which slots are in use; every used slot counts
    /// as backed, every free one as not. `reserve` is a number of slots; `first_fit` takes the
    /// lowest free slots instead of going round, so that tests meet reused slots at once.
    pub fn new(
        storage: Arc<dyn Storage>,
        used: &DurableBitmaps,
        segments: &[u32],
        reserve: u64,
        first_fit: bool,
    ) -> Self {
        let mut inner = Inner::default();
        for &number in segments {
            let segment = Segment::from_used(|piece| used.piece(number, piece));
            inner.used += u64::from(segment.used());
            inner.segments.insert(number, segment);
        }
        inner.first_fit = first_fit;
        Self {
            inner: Mutex::new(inner),
            storage,
            reserve,
            directory_dirty: AtomicBool::new(false),
            over_quota: AtomicBool::new(false),
        }
    }

    /// Takes `count` slots of `class`, in long runs, one behind the other, as long as few slots lie
    /// waste because of that. Their content is undefined and writing them may fail with `ENOSPC`;
    /// see [`Space::allocate_backed`].
    ///
    /// # Errors
    /// If a new segment cannot be created.
    pub fn allocate(&self, class: Class, count: u32) -> Result<Runs, SpaceError> {
        let mut inner = self.inner.lock();
        let mut runs = Runs::new();
        let mut missing = count;
        while missing > 0 {
            let keep_backed = inner.classes[class as usize].backed_free <= self.keep(&inner, class);
            let want = if keep_backed { Want::Unbacked } else { Want::Any };
            let run = if self.fills_holes(&inner, class, count) {
                inner.take(class, missing, want)
            } else {
                inner.take_long(class, missing, want)
            };
            match run {
                Some(run) => {
                    missing -= run.count;
                    runs.push(run);
                }
                None => {
                    if let Err(error) = self.add_segment(&mut inner, class) {
                        runs.into_iter().for_each(|run| inner.give_back(run));
                        return Err(error);
                    }
                }
            }
        }
        Ok(runs)
    }

    /// Whether a request is to take the next free slots, however few they are in one place. What
    /// is written at random may be anywhere, and is what leaves the holes.
    fn fills_holes(&self, inner: &Inner, class: Class, count: u32) -> bool {
        let free = inner.classes[class as usize].backed_free;
        let holes = free.saturating_sub(self.kept(inner, class));
        let few = inner.used / HOLES_RATIO + HOLES_MIN;
        let times = if count >= STREAM_SLOTS { HOLES_STREAM } else { 1 };
        inner.first_fit || holes > few * times
    }

    /// Whether large requests are laid out in long runs: holes are few.
    pub fn lays_out_in_sequence(&self) -> bool {
        !self.fills_holes(&self.inner.lock(), Class::Data, STREAM_SLOTS)
    }

    /// Takes `count` slots that the disk has blocks for, so that writing them does not fail for
    /// lack of space.
    ///
    /// # Errors
    /// [`SpaceError::NoSpace`] when there are too few; nothing is taken then.
    pub fn allocate_backed(
        &self,
        class: Class,
        count: u32,
        purpose: Purpose,
    ) -> Result<Runs, SpaceError> {
        let mut inner = self.inner.lock();
        let keep = match purpose {
            Purpose::New => self.keep(&inner, class),
            Purpose::Overwrite if class == Class::Data => inner.promised,
            Purpose::Overwrite | Purpose::Promised => 0,
        };
        if inner.classes[class as usize].backed_free < keep + u64::from(count) {
            // Ask for more than is needed, so that the next allocations find it.
            let step = count.max(self.backing_step());
            if self.back(&mut inner, class, step).is_err()
                && inner.classes[class as usize].backed_free < keep + u64::from(count)
            {
                self.back(&mut inner, class, count)?;
            }
        }
        let mut runs = Runs::new();
        let mut missing = count;
        while missing > 0 {
            let Some(run) = inner.take(class, missing, Want::Backed) else {
                for run in runs {
                    inner.give_back(run);
                }
                return Err(SpaceError::NoSpace);
            };
            missing -= run.count;
            runs.push(run);
        }
        Ok(runs)
    }

    /// Tops the reserves up: backed free slots for the next epoch's nodes and for overwrites.
    ///
    /// # Errors
    /// [`SpaceError::NoSpace`] when the disk cannot give them.
    pub fn fill_reserve(&self) -> Result<(), SpaceError> {
        for class in [Class::NodeA, Class::NodeB, Class::Data] {
            // The lock is let go between steps: others are not to wait for all of it.
            while !self.fill_step(&mut self.inner.lock(), class)? {}
        }
        Ok(())
    }

    /// Gets blocks for some of what a class lacks; true if it lacks nothing.
    fn fill_step(&self, inner: &mut Inner, class: Class) -> Result<bool, SpaceError> {
        let keep = self.keep(inner, class);
        let missing = keep.saturating_sub(inner.classes[class as usize].backed_free);
        if missing == 0 {
            return Ok(true);
        }
        let missing = u32::try_from(missing).unwrap_or(u32::MAX).min(FILL_STEP_MAX);
        if missing >= self.backing_step() || self.back(inner, class, self.backing_step()).is_err() {
            self.back(inner, class, missing)?;
        }
        Ok(false)
    }

    /// Backed free slots of a class that are not for new data.
    fn keep(&self, inner: &Inner, class: Class) -> u64 {
        self.reserve
            + match class {
                Class::Data => inner.promised,
                // A leaf for each page map, at the worst.
                Class::NodeA | Class::NodeB => inner.promised.div_ceil(RUN_PAGES),
            }
    }

    /// Keeps space for `pages` pages and their metadata from everybody who does not say
    /// [`Purpose::Promised`], with blocks of the disk below it.
    ///
    /// # Errors
    /// [`SpaceError::NoSpace`] when the disk cannot give it; nothing is kept then.
    pub fn promise(&self, pages: u64) -> Result<(), SpaceError> {
        if pages == 0 {
            return Ok(());
        }
        self.inner.lock().promised += pages;
        self.fill_reserve().inspect_err(|_| {
            self.take_back(pages);
            self.punch_everywhere();
        })
    }

    /// Of what was promised, `pages` pages are no longer: they have their content, or nobody wants
    /// them any more.
    pub fn take_back(&self, pages: u64) {
        if pages > 0 {
            let mut inner = self.inner.lock();
            inner.promised = inner.promised.saturating_sub(pages);
        }
    }

    /// Whether an error says that the disk has no space; remembers whether a quota is why.
    pub fn refuses(&self, error: &io::Error) -> bool {
        if is_full(error) {
            let quota = error.kind() == io::ErrorKind::QuotaExceeded;
            self.over_quota.store(quota, Ordering::Relaxed);
        }
        is_full(error)
    }

    /// Whether a quota was the reason of the last refusal of the disk.
    pub fn is_over_quota(&self) -> bool {
        self.over_quota.load(Ordering::Relaxed)
    }

    /// Pages that space is kept for.
    pub fn promised(&self) -> u64 {
        self.inner.lock().promised
    }

    /// Slots that first copies of nodes use.
    pub fn nodes_used(&self) -> u64 {
        let inner = self.inner.lock();
        let nodes = inner.segments.iter().filter(|(n, _)| Class::of(**n) == Class::NodeA);
        nodes.map(|(_, segment)| u64::from(segment.used())).sum()
    }

    /// Makes sure that `count` nodes can be written without asking the disk for more.
    ///
    /// # Errors
    /// [`SpaceError::NoSpace`] when the disk cannot give them.
    pub fn back_nodes(&self, count: u64) -> Result<(), SpaceError> {
        let mut inner = self.inner.lock();
        for class in [Class::NodeA, Class::NodeB] {
            while inner.classes[class as usize].backed_free < count {
                self.back(&mut inner, class, self.backing_step())?;
            }
        }
        Ok(())
    }

    /// Slots that get blocks in one step: few where the disk is small.
    fn backing_step(&self) -> u32 {
        u32::try_from(self.reserve.min(BACKING_STEP_MAX)).expect("at most 2048")
    }

    /// Learns which free slots have blocks from before the volume was opened. What cannot be found
    /// out only costs space.
    pub fn learn_backed(&self) {
        let mut inner = self.inner.lock();
        let Inner { segments, classes, .. } = &mut *inner;
        for (&number, segment) in segments {
            let ranges = self.storage.allocated(FileId::Segment(number)).unwrap_or_default();
            let page = PAGE_BYTES as u64;
            for range in ranges {
                let first = range.start.div_ceil(page).min(SEGMENT_SLOTS);
                let end = (range.end / page).min(SEGMENT_SLOTS);
                if first < end {
                    let learnt = segment.learn_backed(first as u32, (end - first) as u32);
                    classes[Class::of(number) as usize].backed_free += u64::from(learnt);
                }
            }
        }
    }

    /// Gives free, backed space back to the disk wherever it is, beyond what the reserve needs.
    pub fn punch_everywhere(&self) {
        let numbers: Vec<u32> = self.inner.lock().segments.keys().copied().collect();
        for number in numbers {
            for first in (0..SEGMENT_SLOTS as u32).step_by(PUNCH_SLOTS as usize) {
                self.punch_window(number, first);
            }
        }
    }

    /// Gives blocks back that free slots have from before the volume was opened, of which nothing
    /// is known. Failures only cost space.
    pub fn punch_unbacked(&self) {
        let mut inner = self.inner.lock();
        let numbers: Vec<u32> = inner.segments.keys().copied().collect();
        for number in numbers {
            let mut from = 0;
            let all = SEGMENT_SLOTS as u32;
            while let Some((first, count)) =
                inner.segments.get(&number).and_then(|s| s.find(from, all, Want::Unbacked))
            {
                let run = SlotRun { first: slot(number, first), count };
                inner.hold(run);
                let bytes = u64::from(count) * PAGE_BYTES as u64;
                let _ = self.storage.punch(FileId::Segment(number), run.first.offset(), bytes);
                inner.give_back(run);
                from = first + count;
            }
        }
    }

    /// The smallest number of nodes that can be written without asking the disk for more.
    pub fn nodes_backed(&self) -> u64 {
        let inner = self.inner.lock();
        let [a, b] = [Class::NodeA, Class::NodeB].map(|c| inner.classes[c as usize].backed_free);
        a.min(b)
    }

    /// Says that writing this run succeeded: the disk has blocks for it.
    pub fn mark_backed(&self, run: SlotRun) {
        let mut inner = self.inner.lock();
        if let Some(segment) = inner.segments.get_mut(&run.first.segment()) {
            segment.set_backed(index(run), run.count);
        }
    }

    /// Returns slots to which nothing refers and which nobody reads any more.
    pub fn release(&self, runs: &[SlotRun]) {
        let mut inner = self.inner.lock();
        for &run in runs {
            inner.give_back(run);
        }
    }

    /// Gives free, backed space near `runs` back to the disk, beyond what the reserve needs.
    pub fn punch_near(&self, runs: &[SlotRun]) {
        let mut windows: Vec<(u32, u32)> = runs
            .iter()
            .flat_map(|&run| {
                let (first, last) = (index(run), index(run) + run.count - 1);
                (first / PUNCH_SLOTS..=last / PUNCH_SLOTS).map(move |w| (run.first.segment(), w))
            })
            .collect();
        windows.sort_unstable();
        windows.dedup();
        for (segment, window) in windows {
            self.punch_window(segment, window * PUNCH_SLOTS);
        }
    }

    fn punch_window(&self, number: u32, first: u32) {
        let class = Class::of(number);
        let run = {
            let mut inner = self.inner.lock();
            let keep = self.kept(&inner, class);
            if inner.classes[class as usize].backed_free < keep {
                return;
            }
            let Some(segment) = inner.segments.get(&number) else { return };
            if !segment.is_free_and_partly_backed(first, PUNCH_SLOTS) {
                return;
            }
            let run = SlotRun { first: slot(number, first), count: PUNCH_SLOTS };
            inner.hold(run);
            run
        };
        let bytes = u64::from(run.count) * PAGE_BYTES as u64;
        let punched = self.storage.punch(FileId::Segment(number), run.first.offset(), bytes);
        let mut inner = self.inner.lock();
        if punched.is_ok() {
            if let Some(segment) = inner.segments.get_mut(&number) {
                segment.clear_backed(first, PUNCH_SLOTS);
            }
        }
        inner.give_back(run);
    }

    /// Takes nothing from a segment, if there is another, until [`Space::reopen`].
    pub fn close(&self, segment: u32) {
        self.inner.lock().closed = Some(segment);
    }

    /// Takes from all segments again.
    pub fn reopen(&self) {
        self.inner.lock().closed = None;
    }

    /// A segment of contents that is nearly empty, but so scattered that its blocks cannot be given
    /// back, and `but` is not to be.
    pub fn sparse_segment(&self, but: &dyn Fn(u32) -> bool) -> Option<u32> {
        let inner = self.inner.lock();
        if inner.classes[Class::Data as usize].backed_free < self.kept(&inner, Class::Data) {
            return None;
        }
        let sparse = inner.segments.iter().filter(|(number, segment)| {
            let (used, backed) = (segment.used(), segment.backed());
            Class::of(**number) == Class::Data
                && used > 0
                && used.saturating_mul(SPARSE_RATIO) < backed
                && backed - used >= SPARSE_SLOTS_MIN
        });
        sparse.map(|(&number, _)| number).find(|&number| !but(number))
    }

    /// Free slots of a class that keep their blocks.
    fn kept(&self, inner: &Inner, class: Class) -> u64 {
        self.reserve + self.keep(inner, class) + u64::from(PUNCH_SLOTS)
    }

    /// Slots in use of a segment from its slot `first` on.
    pub fn used_behind(&self, segment: u32, first: u32) -> u32 {
        let inner = self.inner.lock();
        inner.segments.get(&segment).map_or(0, |segment| segment.used_behind(first))
    }

    /// Slots in use, and free slots that are backed.
    pub fn usage(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.used, inner.classes.iter().map(|class| class.backed_free).sum())
    }

    /// How many more slots new data may take where the disk has blocks for `disk_free` more.
    pub fn free_for_data(&self, disk_free: u64) -> u64 {
        let inner = self.inner.lock();
        let [a, b, data] = [Class::NodeA, Class::NodeB, Class::Data]
            .map(|class| inner.classes[class as usize].backed_free);
        let nodes = self.keep(&inner, Class::NodeA);
        let wanting = nodes.saturating_sub(a) + nodes.saturating_sub(b);
        (disk_free + data).saturating_sub(self.keep(&inner, Class::Data) + wanting)
    }

    /// Slots that are kept in reserve, over all classes.
    pub fn reserve_total(&self) -> u64 {
        self.reserve * 3
    }

    /// Used slots of every segment, ascending.
    pub fn segments(&self) -> Vec<(u32, u32)> {
        let inner = self.inner.lock();
        inner.segments.iter().map(|(&number, segment)| (number, segment.used())).collect()
    }

    /// Whether a segment was created since the last call: its directory entry must be synced before
    /// anything durable refers to it.
    pub fn take_directory_dirty(&self) -> bool {
        self.directory_dirty.swap(false, Ordering::AcqRel)
    }

    /// Allocates disk blocks for `count` free slots of `class` that have none.
    fn back(&self, inner: &mut Inner, class: Class, count: u32) -> Result<(), SpaceError> {
        let mut missing = count;
        while missing > 0 {
            let Some(run) = inner.take(class, missing, Want::Unbacked) else {
                self.add_segment(inner, class)?;
                continue;
            };
            let bytes = u64::from(run.count) * PAGE_BYTES as u64;
            let file = FileId::Segment(run.first.segment());
            let allocated = self.storage.allocate(file, run.first.offset(), bytes);
            if allocated.is_ok() {
                let segment = inner.segments.get_mut(&run.first.segment()).expect("just taken");
                segment.set_backed(index(run), run.count);
            }
            inner.give_back(run);
            match allocated {
                Ok(()) => missing -= run.count.min(missing),
                Err(error) if self.refuses(&error) => {
                    // Some filesystems keep what they found before they failed.
                    let _ = self.storage.punch(file, run.first.offset(), bytes);
                    return Err(SpaceError::NoSpace);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn add_segment(&self, inner: &mut Inner, class: Class) -> Result<(), SpaceError> {
        let last = inner.segments.keys().copied().filter(|&n| Class::of(n) == class).max();
        let number = class.next_segment(last);
        let file = FileId::Segment(number);
        let created = match self.storage.create(file) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        };
        let created = created.and_then(|()| self.storage.set_length(file, SEGMENT_BYTES));
        match created {
            Ok(()) => {}
            Err(error) if self.refuses(&error) => return Err(SpaceError::NoSpace),
            Err(error) => return Err(error.into()),
        }
        self.directory_dirty.store(true, Ordering::Release);
        inner.segments.insert(number, Segment::empty());
        Ok(())
    }
}

fn index(run: SlotRun) -> u32 {
    u32::try_from(run.first.0 % SEGMENT_SLOTS).expect("below 65536")
}

fn slot(segment: u32, index: u32) -> Slot {
    Slot(u64::from(segment) * SEGMENT_SLOTS + u64::from(index))
}

/// A run of a segment: the first slot in it, and how many.
fn run_of((segment, (first, count)): (u32, (u32, u32))) -> SlotRun {
    SlotRun { first: slot(segment, first), count }
}

/// Which free slots will do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Any,
    Backed,
    Unbacked,
}

impl Inner {
    /// Takes the next run of at most `count` slots after the cursor, going round once.
    fn take(&mut self, class: Class, count: u32, want: Want) -> Option<SlotRun> {
        let cursor = self.classes[class as usize].cursor.filter(|_| !self.first_fit);
        let (start, first) = cursor.unwrap_or((class.next_segment(None), 0));
        let open =
            self.find(class, (start, first), |segment, from| segment.find(from, count, want));
        // Rather than refuse what was promised, a segment is not emptied.
        let closed = || {
            let number = self.closed.filter(|&n| want == Want::Backed && Class::of(n) == class)?;
            Some((number, self.segments.get(&number)?.find(0, count, want)?))
        };
        let run = run_of(open.or_else(closed)?);
        self.hold(run);
        self.classes[class as usize].cursor = Some((run.first.segment(), index(run) + run.count));
        Some(run)
    }

    /// Takes the rest of a long run, or the next one, of which at most `count` slots.
    fn take_long(&mut self, class: Class, count: u32, want: Want) -> Option<SlotRun> {
        let cursor = self.classes[class as usize].long_cursor;
        let (start, first) = cursor.unwrap_or((class.next_segment(None), 0));
        let here = self.segments.get(&start).filter(|_| self.closed != Some(start));
        let rest = here.and_then(|segment| segment.find(first, count, want));
        let found = match rest.filter(|&(at, _)| at == first) {
            Some(rest) => (start, rest),
            None => self.find(class, (start, first), |segment, from| {
                segment.find_long(from, count, want)
            })?,
        };
        let run = run_of(found);
        self.hold(run);
        let behind = (run.first.segment(), index(run) + run.count);
        self.classes[class as usize].long_cursor = Some(behind);
        Some(run)
    }

    /// What `look` finds in the segments of a class, going round once from a slot of one of them.
    fn find(
        &self,
        class: Class,
        (start, first): (u32, u32),
        look: impl Fn(&Segment, u32) -> Option<(u32, u32)>,
    ) -> Option<(u32, (u32, u32))> {
        let from = self
            .segments
            .range(start..)
            .map(|(&number, segment)| (number, segment, if number == start { first } else { 0 }));
        let around = self.segments.range(..=start).map(|(&number, segment)| (number, segment, 0));
        from.chain(around)
            .filter(|(number, ..)| Class::of(*number) == class && self.closed != Some(*number))
            .find_map(|(number, segment, from)| Some((number, look(segment, from)?)))
    }

    /// Marks a free run as used.
    fn hold(&mut self, run: SlotRun) {
        let number = run.first.segment();
        let segment = self.segments.get_mut(&number).expect("a known segment");
        let backed = segment.set_used(index(run), run.count);
        self.used += u64::from(run.count);
        self.classes[Class::of(number) as usize].backed_free -= u64::from(backed);
    }

    /// Marks a used run as free.
    fn give_back(&mut self, run: SlotRun) {
        let number = run.first.segment();
        let Some(segment) = self.segments.get_mut(&number) else { return };
        let backed = segment.clear_used(index(run), run.count);
        self.used -= u64::from(run.count);
        self.classes[Class::of(number) as usize].backed_free += u64::from(backed);
    }
}
