//! Moving what is left in nearly empty segments elsewhere, so that their space can be given back.
//!
//! Sealed pages are moved as they are: neither their keys nor their tags say in which slot they
//! are. A move is a change like any other, to slots that were free, so a crash leaves the page in
//! the old place or in the new one; see [`crate::manual::crash`].

use super::resize::run_of;
use super::{Error, Volume};
use crate::epoch::CommitOptions;
use crate::format::log::page_sum;
use crate::format::map::PageMap;
use crate::format::record::{self, Table};
use crate::format::{PAGE_BYTES, RUN_PAGES, Slot};
use crate::space::{Class, slots_of};
use crate::storage::FileId;
use std::ops::{ControlFlow, Range};

/// Page maps that are looked at in one piece.
const MAPS_AT_ONCE: usize = 4096;

/// A segment that is being emptied. Nothing is taken from it until [`Evacuation::end`].
pub(super) struct Evacuation {
    segment: u32,
    /// What is before this key in the durable tree has been moved; `None`: everything has.
    from: Option<Vec<u8>>,
    /// The epoch that has to be durable before it goes on.
    epoch: u64,
    moved: u64,
}

impl Evacuation {
    pub(super) fn new(volume: &Volume, segment: u32) -> Self {
        volume.epochs.space.close(segment);
        // When the open epoch is durable, the tree says everything that is in the segment.
        let (from, epoch) = (Some(vec![Table::PageMap as u8]), volume.epochs.open_epoch());
        Self { segment, from, epoch, moved: 0 }
    }

    /// Moves about `pages` pages; true when the segment is empty and its space was given back.
    ///
    /// # Errors
    /// If a page cannot be read or written.
    pub(super) fn step(&mut self, volume: &Volume, pages: u64) -> Result<bool, Error> {
        if volume.epochs.durable() < self.epoch {
            return Ok(false);
        }
        let until = self.moved.saturating_add(pages);
        while let Some(from) = self.from.take() {
            let (found, next) = volume.maps_into(self.segment, &from)?;
            for key in found {
                let (ino, run) = (record::owner(&key), run_of(&key));
                let segment = self.segment;
                self.moved += volume.move_pages(ino, run..run + 1, &move |pages| {
                    pages.retain(|(_, slot)| slot.segment() == segment);
                })?;
            }
            // What was left can be used again when this epoch and the next are durable.
            self.epoch = volume.epochs.open_epoch() + 1;
            self.from = next;
            if self.from.is_none() || self.moved >= until {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Which segment.
    pub(super) fn segment(&self) -> u32 {
        self.segment
    }

    /// Lets the segment be used again.
    pub(super) fn end(self, volume: &Volume) {
        volume.epochs.space.reopen();
        log::debug!("moved {} pages out of data/{:08}", self.moved, self.segment);
    }
}

/// Leaves those pages, by number and slot, that are to be moved.
pub(super) type Choose = dyn Fn(&mut Vec<(u64, Slot)>);

impl Volume {
    /// Moves every page of a segment elsewhere, and returns how many were moved.
    ///
    /// # Errors
    /// If a page cannot be read or written; what was moved until then is moved.
    pub fn evacuate(&self, segment: u32) -> Result<u64, Error> {
        if Class::of(segment) != Class::Data {
            return Ok(0);
        }
        let mut evacuation = Evacuation::new(self, segment);
        let step = |evacuation: &mut Evacuation| {
            self.epochs.commit(&CommitOptions { force: true, ..CommitOptions::default() })?;
            evacuation.step(self, u64::MAX)
        };
        let emptied = loop {
            match step(&mut evacuation) {
                Ok(false) => {}
                Ok(true) => break Ok(evacuation.moved),
                Err(error) => break Err(error),
            }
        };
        evacuation.end(self);
        emptied
    }

    /// Keys of page maps in the durable tree that refer to a segment, from a key on, and where to
    /// go on.
    #[allow(clippy::type_complexity)]
    fn maps_into(
        &self,
        segment: u32,
        from: &[u8],
    ) -> Result<(Vec<Vec<u8>>, Option<Vec<u8>>), Error> {
        let (mut found, mut next, mut looked_at) = (Vec::new(), None, 0);
        self.epochs.scan_durable_from(from, Table::PageMap, &mut |key, value| {
            if looked_at == MAPS_AT_ONCE {
                next = Some(key.to_vec());
                return ControlFlow::Break(());
            }
            looked_at += 1;
            // What is malformed is for fsck to say.
            let map = PageMap::decode(self.cipher, value).unwrap_or_else(|_| PageMap::empty());
            if map.pages.iter().flatten().any(|page| page.slot.segment() == segment) {
                found.push(key.to_vec());
            }
            ControlFlow::Continue(())
        })?;
        Ok((found, next))
    }

    /// Moves those pages of some runs that `choose` leaves of all, into as few places as can be;
    /// returns how many. What was cut off is left to go by itself.
    pub(super) fn move_pages(
        &self,
        ino: u64,
        runs: Range<u64>,
        choose: &Choose,
    ) -> Result<u64, Error> {
        let _content = self.content_lock(ino).read();
        let _lock = self.lock_inodes(&[ino]);
        let _pin = self.epochs.pin();
        let first_run = runs.start;
        let mut maps = Vec::new();
        let mut moving = Vec::new();
        for run in runs {
            let map = self.page_map(ino, run)?;
            let pages = (run * RUN_PAGES..).zip(&map.pages);
            moving.extend(pages.filter_map(|(page, pointer)| Some((page, (*pointer)?.slot))));
            maps.push((run, map));
        }
        choose(&mut moving);
        let Some(&(first, _)) = moving.first() else { return Ok(0) };
        let mut sealed = vec![0; moving.len() * PAGE_BYTES];
        for (&(page, slot), sealed) in moving.iter().zip(sealed.chunks_exact_mut(PAGE_BYTES)) {
            let file = FileId::Segment(slot.segment());
            self.storage.read_at(file, slot.offset(), sealed).map_err(|source| Error::Storage {
                what: format!("moving page {page} of inode {ino}"),
                source: Box::new(source),
            })?;
        }
        let placed = self.write_slots(ino, first, &sealed)?;
        for (&(page, _), slot) in moving.iter().zip(slots_of(&placed)) {
            let (_, map) = &mut maps[(page / RUN_PAGES - first_run) as usize];
            map.pages[(page % RUN_PAGES) as usize].as_mut().expect("it is moved").slot = slot;
        }
        let sums: Vec<u64> = sealed.chunks_exact(PAGE_BYTES).map(page_sum).collect();
        let mut change = self.change(true).inspect_err(|_| self.epochs.space.release(&placed))?;
        maps.retain(|(run, _)| moving.iter().any(|(page, _)| page / RUN_PAGES == *run));
        for (run, map) in &maps {
            change.put_map(self.cipher, ino, *run, map);
        }
        change.refer_to(&placed, &sums);
        change.note_freed(moving.len() as u64);
        Ok(moving.len() as u64)
    }
}
