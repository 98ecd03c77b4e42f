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
use crate::format::{PAGE_BYTES, RUN_PAGES};
use crate::space::Class;
use crate::storage::FileId;
use std::ops::ControlFlow;

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
                self.moved += volume.move_pages(ino, run, self.segment)?;
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

    /// Moves the pages of a run that are in `segment`. What was cut off is left to go by itself.
    fn move_pages(&self, ino: u64, run: u64, segment: u32) -> Result<u64, Error> {
        let _content = self.content_lock(ino).read();
        let _lock = self.lock_inodes(&[ino]);
        let _pin = self.epochs.pin();
        let mut map = self.page_map(ino, run)?;
        let in_segment = |page: &usize| {
            map.pages[*page].is_some_and(|pointer| pointer.slot.segment() == segment)
        };
        let moving: Vec<usize> = (0..RUN_PAGES as usize).filter(in_segment).collect();
        if moving.is_empty() {
            return Ok(0);
        }
        let mut sealed = vec![0; moving.len() * PAGE_BYTES];
        for (&page, sealed) in moving.iter().zip(sealed.chunks_exact_mut(PAGE_BYTES)) {
            let slot = map.pages[page].expect("filtered").slot;
            self.storage.read_at(FileId::Segment(segment), slot.offset(), sealed).map_err(
                |source| Error::Storage {
                    what: format!("moving page {page} of run {run} of inode {ino}"),
                    source: Box::new(source),
                },
            )?;
        }
        let runs = self.write_slots(ino, run * RUN_PAGES, &sealed)?;
        let slots = crate::space::slots_of(&runs);
        for (&page, slot) in moving.iter().zip(slots) {
            map.pages[page].as_mut().expect("filtered").slot = slot;
        }
        let sums: Vec<u64> = sealed.chunks_exact(PAGE_BYTES).map(page_sum).collect();
        let mut change = self.change(true).inspect_err(|_| self.epochs.space.release(&runs))?;
        change.put_map(self.cipher, ino, run, &map);
        change.refer_to(&runs, &sums);
        change.note_freed(moving.len() as u64);
        Ok(moving.len() as u64)
    }
}
