//! Bringing pages together that are read in sequence and lie apart, because they were written at
//! random.
//!
//! Reading notes where; the thread that ends epochs moves the pages, sealed as they are, as it
//! moves those of nearly empty segments ([`super::evacuate`]).

use super::{Error, Volume};
use crate::format::RUN_PAGES;
use crate::format::map::PagePointer;
use parking_lot::Mutex;
use std::collections::BTreeSet;

/// Pages that are brought together: 1 MiB of a file.
const PIECE_PAGES: u64 = 256;
/// Reads of fewer pages (128 KiB) say nothing about an order.
const SEQUENCE_PAGES: usize = 32;
/// Pages in one place, in the mean, where nothing is to be moved: 64 KiB.
const TOGETHER_PAGES: usize = 16;
/// Pieces that are remembered: 4 GiB.
const PIECES_MAX: usize = 4096;

/// Pieces of files, by inode and number, that are read in sequence and lie apart.
#[derive(Default)]
pub(super) struct Apart(Mutex<BTreeSet<(u64, u64)>>);

impl Apart {
    /// A read of `pages`, ascending, found them in so many places.
    pub(super) fn note(&self, ino: u64, pages: &[(u64, PagePointer)], places: usize) {
        let (Some((first, _)), Some((last, _))) = (pages.first(), pages.last()) else { return };
        if pages.len() < SEQUENCE_PAGES || are_together(pages.len(), places) {
            return;
        }
        let mut pieces = self.0.lock();
        for piece in first / PIECE_PAGES..=last / PIECE_PAGES {
            if pieces.len() < PIECES_MAX {
                pieces.insert((ino, piece));
            }
        }
    }
}

fn are_together(pages: usize, places: usize) -> bool {
    places * TOGETHER_PAGES <= pages
}

impl Volume {
    /// Brings about `pages` pages together that were read in sequence and lie apart; returns how
    /// many were moved. Nothing is, where there is no room to lay them out in sequence.
    pub fn defragment(&self, pages: u64) -> u64 {
        let mut moved = 0;
        while moved < pages && !self.epochs.is_full() && self.epochs.space.lays_out_in_sequence() {
            let Some((ino, piece)) = self.apart.0.lock().pop_first() else { break };
            match self.bring_together(ino, piece) {
                Ok(count) => moved += count,
                Err(Error::NoSpace) => break,
                // Who reads it is told.
                Err(error) => log::debug!("inode {ino} stays where it is: {error}"),
            }
        }
        if moved > 0 {
            log::debug!("brought {moved} pages together");
        }
        moved
    }

    /// Moves the pages of a piece into one place, if they are in many.
    fn bring_together(&self, ino: u64, piece: u64) -> Result<u64, Error> {
        let first = piece * PIECE_PAGES / RUN_PAGES;
        self.move_pages(ino, first..first + PIECE_PAGES / RUN_PAGES, &|pages| {
            let places = pages.chunk_by(|a, b| a.1.is_before(b.1)).count();
            if are_together(pages.len(), places) {
                pages.clear();
            }
        })
    }
}
