//! Space that `fallocate(2)` promised to pages without content.
//!
//! A page is always written to a slot that is free, so what is promised are not certain slots but
//! so many: [`Space::promise`](crate::space::Space::promise) keeps that many from everybody else,
//! with blocks of the disk below them. Which pages they are for is remembered here, as long as the
//! volume is open.

use super::{Error, FILE_BYTES_MAX, Volume};
use crate::format::{PAGE_BYTES, RUN_PAGES};
use crate::space::{Class, SpaceError};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

const PAGE: u64 = PAGE_BYTES as u64;
/// Promises that were taken back and leave this many slots over are worth a look at what can be
/// given back to the disk: 1 MiB.
const WORTH_GIVING_BACK_PAGES: u64 = 256;

/// Half-open ranges of pages that have no content, by their start; apart and not adjacent.
#[derive(Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Pages of `range` that are in it.
    fn count(&self, range: &Range<u64>) -> u64 {
        let meets = self.0.range(..range.end).rev().take_while(|&(_, &to)| to > range.start);
        meets.map(|(&from, &to)| to.min(range.end) - from.max(range.start)).sum()
    }

    fn add(&mut self, mut range: Range<u64>) {
        while let Some((&from, &to)) = self.0.range(..=range.end).next_back() {
            if to < range.start {
                break;
            }
            range = from.min(range.start)..to.max(range.end);
            self.0.remove(&from);
        }
        self.0.insert(range.start, range.end);
    }

    /// Removes `range`; says how many of its pages were in it.
    fn take(&mut self, range: &Range<u64>) -> u64 {
        let mut taken = 0;
        while let Some((&from, &to)) = self.0.range(..range.end).next_back() {
            if to <= range.start {
                break;
            }
            self.0.remove(&from);
            taken += to.min(range.end) - from.max(range.start);
            if range.end < to {
                self.0.insert(range.end, to);
            }
            if from < range.start {
                self.0.insert(from, range.start);
            }
        }
        taken
    }
}

/// The promises to all inodes.
#[derive(Default)]
pub(super) struct Promises {
    inodes: Mutex<HashMap<u64, Ranges>>,
    any: AtomicBool,
    /// More was taken back than is worth keeping.
    excess: AtomicBool,
}

impl Promises {
    /// How many pages of `range` are promised.
    pub(super) fn count(&self, ino: u64, range: &Range<u64>) -> u64 {
        if range.is_empty() || !self.any.load(Ordering::Acquire) {
            return 0;
        }
        self.inodes.lock().get(&ino).map_or(0, |ranges| ranges.count(range))
    }

    fn add(&self, ino: u64, range: Range<u64>) {
        let mut inodes = self.inodes.lock();
        inodes.entry(ino).or_default().add(range);
        self.any.store(true, Ordering::Release);
    }

    /// Removes the promises to `range`; says how many pages had one.
    fn take(&self, ino: u64, range: &Range<u64>) -> u64 {
        if range.is_empty() || !self.any.load(Ordering::Acquire) {
            return 0;
        }
        let mut inodes = self.inodes.lock();
        let Some(ranges) = inodes.get_mut(&ino) else { return 0 };
        let taken = ranges.take(range);
        if ranges.0.is_empty() {
            inodes.remove(&ino);
        }
        self.any.store(!inodes.is_empty(), Ordering::Release);
        taken
    }

    /// Whether space may be given back to the disk, once.
    pub(super) fn take_excess(&self) -> bool {
        self.excess.swap(false, Ordering::Relaxed)
    }
}

impl Volume {
    /// Promises space to the holes of a range, for `fallocate(2)`: writing there does not fail for
    /// lack of space as long as the volume is open, and nobody else gets it.
    ///
    /// # Errors
    /// `NoSpace` if there is less than the holes need; nothing is promised then.
    pub fn reserve(&self, ino: u64, offset: u64, length: u64) -> Result<(), Error> {
        let pages = pages_of(offset, length)?;
        let _content = self.content_lock(ino).write();
        self.check_free(ino, &pages, self.require(ino)?.pages)?;
        let holes = self.holes(ino, pages)?;
        self.promise(ino, holes)
    }

    /// Promises space to a range that is about to be zeroed: all its whole pages, and holes at
    /// its ends.
    ///
    /// # Errors
    /// As [`Volume::reserve`].
    pub fn reserve_zeroed(&self, ino: u64, offset: u64, length: u64) -> Result<(), Error> {
        let pages = pages_of(offset, length)?;
        let whole = offset.div_ceil(PAGE)..(offset + length) / PAGE;
        if whole.is_empty() {
            return self.reserve(ino, offset, length);
        }
        let _content = self.content_lock(ino).write();
        self.require(ino)?;
        self.check_free(ino, &pages, 0)?;
        let mut ranges = self.holes(ino, pages.start..whole.start)?;
        ranges.extend(self.holes(ino, whole.end..pages.end)?);
        ranges.push(whole);
        self.promise(ino, ranges)
    }

    /// Takes back what was promised to a range of pages, which may be empty.
    pub fn forgo(&self, ino: u64, pages: Range<u64>) {
        let taken = self.promises.take(ino, &pages);
        self.epochs.space.take_back(taken);
        if taken >= WORTH_GIVING_BACK_PAGES {
            self.promises.excess.store(true, Ordering::Relaxed);
        }
    }

    /// Pages of an inode without content that space is kept for.
    pub fn promised_pages(&self, ino: u64) -> u64 {
        self.promises.count(ino, &(0..u64::MAX))
    }

    /// Pages of a range got their content: what was promised to them is used now.
    pub(super) fn keep_promise(&self, ino: u64, pages: Range<u64>) {
        self.epochs.space.take_back(self.promises.take(ino, &pages));
    }

    fn promise(&self, ino: u64, ranges: Vec<Range<u64>>) -> Result<(), Error> {
        let all: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let kept: u64 = ranges.iter().map(|range| self.promises.count(ino, range)).sum();
        let pages = all - kept;
        self.with_space(pages, || match self.epochs.space.promise(pages) {
            Ok(()) => Ok(()),
            Err(SpaceError::NoSpace) => Err(Error::NoSpace),
            Err(SpaceError::Storage(source)) => Err(Error::Storage {
                what: format!("allocating {pages} pages for inode {ino}"),
                source: Box::new(source),
            }),
        })?;
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            self.promises.add(ino, range);
        }
        Ok(())
    }

    /// Refuses at once what cannot be, before the disk is asked for all that it has.
    fn check_free(&self, ino: u64, pages: &Range<u64>, present: u64) -> Result<(), Error> {
        let missing = pages.end - pages.start - self.promises.count(ino, pages);
        let (_, free, _) = self.space();
        let coming = self.epochs.deferred_slots_of(Class::Data);
        if missing.saturating_sub(present) > free + coming { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// The parts of a range of pages that have no content. The caller holds the content lock.
    fn holes(&self, ino: u64, pages: Range<u64>) -> Result<Vec<Range<u64>>, Error> {
        let mut holes: Vec<Range<u64>> = Vec::new();
        let mut page = pages.start;
        while page < pages.end {
            let run = page / RUN_PAGES;
            let map = self.page_map(ino, run)?;
            if map.is_empty() {
                let next = self.next_live_run(ino, run + 1)?;
                let to = next.map_or(pages.end, |next| (next * RUN_PAGES).min(pages.end));
                holes.push(page..to);
                page = to;
                continue;
            }
            let to = ((run + 1) * RUN_PAGES).min(pages.end);
            let is_hole = |page: &u64| map.pages[(page % RUN_PAGES) as usize].is_none();
            holes.extend((page..to).filter(is_hole).map(|page| page..page + 1));
            page = to;
        }
        Ok(holes)
    }
}

/// The pages that a range of bytes touches.
fn pages_of(offset: u64, length: u64) -> Result<Range<u64>, Error> {
    let end = offset.checked_add(length).filter(|&end| end <= FILE_BYTES_MAX);
    Ok(offset / PAGE..end.ok_or(Error::TooLarge)?.div_ceil(PAGE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Ranges behave as sets of pages, whatever is added and taken.
    #[test]
    fn ranges_are_sets() {
        let (mut ranges, mut pages) = (Ranges::default(), BTreeSet::new());
        let mut state: u64 = 1;
        for step in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let from = (state >> 40) % 60;
            let range = from..from + (state >> 50) % 12 + 1;
            match (state >> 60) % 3 {
                0 => {
                    ranges.add(range.clone());
                    pages.extend(range);
                }
                1 => {
                    let taken = range.clone().filter(|page| pages.remove(page)).count();
                    assert_eq!(ranges.take(&range), taken as u64, "step {step}");
                }
                _ => {
                    let count = range.clone().filter(|page| pages.contains(page)).count();
                    assert_eq!(ranges.count(&range), count as u64, "step {step}");
                }
            }
            let all: Vec<u64> = ranges.0.iter().flat_map(|(&from, &to)| from..to).collect();
            assert!(all.iter().eq(pages.iter()), "step {step}");
        }
    }
}
