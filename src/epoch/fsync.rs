//! Making everything that happened so far durable with one flush of the log.

use super::commit::storage_error;
use super::log::{Turn, Unsynced};
use super::{Epochs, Error};
use crate::defect::{self, Defect};
use crate::format::{PAGE_BYTES, Slot};
use crate::storage::FileId;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

impl Epochs {
    /// Returns when every change made before the call is durable.
    ///
    /// # Crash argument
    /// 1. Every change is in the log before the call, in order; so a prefix of the log is a state
    ///    that the volume was in.
    /// 2. The pages that these changes refer to become durable before the mark that says so is
    ///    flushed: in their slots, or in the log in front of the mark.
    /// 3. The flush makes the log durable up to the mark. It writes no block that an earlier flush
    ///    wrote, so it cannot tear what is durable already.
    ///
    /// With 2 after 3, a crash between them leaves a mark that promises pages which are not there.
    ///
    /// # Errors
    /// [`Error::Poisoned`] if that cannot be; the volume then has to be opened again.
    /// [`Error::NoSpace`] if it cannot be now: everything stays in memory, and the next attempt may
    /// succeed. [`Error::Lost`] if everything is durable but what belongs into a damaged node.
    pub fn sync(&self) -> Result<(), Error> {
        self.check_writable()?;
        match self.log.head() {
            Some(position) => self.flush_through(position),
            None => self.sync_epoch(),
        }
    }

    /// As [`Epochs::sync`], by ending the epoch.
    ///
    /// # Errors
    /// As [`Epochs::sync`].
    pub fn sync_epoch(&self) -> Result<(), Error> {
        let open = *self.gate.read();
        self.commit_through(open)
    }

    /// As [`Epochs::sync`], if that takes one flush of a few pages and nobody else is flushing;
    /// `None`, and nothing was done, if it would have to wait for more.
    pub fn try_sync(&self) -> Option<Result<(), Error>> {
        let position = self.log.head()?;
        if self.log.is_durable(position) {
            return Some(Ok(()));
        }
        let turn = self.log.try_turn()?;
        self.log.is_short().then(|| self.flush(&turn))
    }

    fn flush_through(&self, position: u64) -> Result<(), Error> {
        match self.log.wait_for_turn(position) {
            Some(turn) => self.flush(&turn),
            None => Ok(()),
        }
    }

    fn flush(&self, _turn: &Turn<'_>) -> Result<(), Error> {
        // Whoever failed while this one waited may have lost what this one needs.
        self.check_writable()?;
        let unsynced = self.log.take_unsynced();
        let images = match self.read_images(&unsynced) {
            Some(_) if defect::active(Defect::NoImages) => BTreeMap::new(),
            Some(images) => images,
            None if defect::active(Defect::MarkBeforePages) => BTreeMap::new(),
            None => {
                self.sync_segments(&unsynced.segments())?;
                BTreeMap::new()
            }
        };
        match self.log.flush(unsynced.through, &images) {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.log.return_unsynced(unsynced);
                self.sync_epoch()
            }
            Err(source) => Err(self.poison(storage_error("sync of the log", source))),
        }
    }

    /// The contents of slots that were just written, if they are few. `None` also if one cannot be
    /// read: then syncing its segment says what is wrong.
    fn read_images(&self, unsynced: &Unsynced) -> Option<BTreeMap<Slot, Vec<u8>>> {
        if !unsynced.fit() {
            return None;
        }
        let mut images = BTreeMap::new();
        for run in unsynced.runs() {
            let mut bytes = vec![0; run.count as usize * PAGE_BYTES];
            let (file, offset) = (FileId::Segment(run.first.segment()), run.first.offset());
            self.storage.read_at(file, offset, &mut bytes).ok()?;
            let slots = (run.first.0..).map(Slot);
            images.extend(slots.zip(bytes.chunks_exact(PAGE_BYTES).map(<[u8]>::to_vec)));
        }
        Some(images)
    }

    /// Syncs segments, and the directory if one of them is new. One sync of a segment is under way
    /// at a time: an error is reported to one of two only.
    pub(super) fn sync_segments(&self, segments: &BTreeSet<u32>) -> Result<(), Error> {
        // Poisoned before the lock is released: the next sync would succeed, or not be tried.
        let failed = |source: io::Error| self.poison(storage_error("sync", source));
        {
            let _directory = self.directory_sync.lock();
            if self.space.take_directory_dirty() {
                self.storage.sync_directory().map_err(failed)?;
            }
        }
        for &segment in segments {
            let _segment = self.segment_syncs[segment as usize % self.segment_syncs.len()].lock();
            self.check_writable()?;
            self.storage.sync(FileId::Segment(segment)).map_err(failed)?;
        }
        Ok(())
    }
}
