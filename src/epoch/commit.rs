//! Making an epoch durable.

use super::delta::{self, Delta};
use super::nodes::NodeWriter;
use super::{Committer, Epochs, Error, OpenData, slots_of, superblocks};
use crate::format::Slot;
use crate::format::record::{self, Table};
use crate::format::superblock::Superblock;
use crate::space::{PIECE_BYTES, runs_of};
use crate::storage::FileId;
use crate::tree::{self, Change, Root};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

/// Freed slots that may stay behind when a volume is idle: an epoch's own nodes.
const IDLE_SLOTS: u64 = 64;

/// What a commit writes besides the records.
#[derive(Default, Clone)]
pub struct CommitOptions {
    /// The unmount is in order: says so in the superblock.
    pub clean: bool,
    /// Commit even if nothing changed.
    pub force: bool,
    /// New digest of the configuration, and of the one that is about to replace it.
    pub config: Option<([u8; 32], Option<[u8; 32]>)>,
}

/// Slots that a new tree refers to and no longer refers to.
#[derive(Default)]
struct Moves {
    set: Vec<Slot>,
    cleared: Vec<Slot>,
}

impl Epochs {
    /// Returns when every change made before the call is durable.
    ///
    /// # Errors
    /// [`Error::Poisoned`] if that cannot be; the volume then has to be opened again.
    pub fn sync(&self) -> Result<(), Error> {
        let open = *self.gate.read();
        self.commit_through(open)
    }

    /// Returns when epoch `number` is durable, committing it if nobody else does.
    pub(super) fn commit_through(&self, number: u64) -> Result<(), Error> {
        // Everyone who waits here while one commit runs is served by the next one.
        let mut committer = self.committer.lock();
        if self.durable() >= number {
            return Ok(());
        }
        self.commit_locked(&mut committer, &CommitOptions::default())
    }

    /// Ends the open epoch now.
    ///
    /// # Errors
    /// As [`Epochs::sync`].
    pub fn commit(&self, options: &CommitOptions) -> Result<(), Error> {
        self.commit_locked(&mut self.committer.lock(), options)
    }

    /// Whether something waits to be made durable or to be given back.
    pub fn wants_commit(&self) -> bool {
        self.is_dirty() || self.deferred.waiting() > IDLE_SLOTS
    }

    fn is_dirty(&self) -> bool {
        self.overlay.size().0 > 0 || !self.open.lock().runs.is_empty()
    }

    fn commit_locked(
        &self,
        committer: &mut Committer,
        options: &CommitOptions,
    ) -> Result<(), Error> {
        self.check_writable()?;
        let forced = options.force || options.clean || options.config.is_some();
        if !forced && !self.wants_commit() {
            return Ok(());
        }
        let (number, sealed) = self.seal();
        match self.make_durable(committer, number, &sealed, options) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.poison(error)),
        }
    }

    /// Step 1: the open epoch becomes the sealed one.
    fn seal(&self) -> (u64, OpenData) {
        let mut gate = self.gate.write();
        let number = *gate;
        if let Some(hook) = &*self.on_seal.lock() {
            let (key, value) = hook();
            self.overlay.put(key, value);
        }
        self.overlay.seal();
        let sealed = std::mem::take(&mut *self.open.lock());
        *gate = number + 1;
        self.deferred.advance(number + 1);
        self.pressed.store(false, Ordering::Relaxed);
        (number, sealed)
    }

    /// Steps 2 to 5, in the order that `manual::crash` argues for.
    fn make_durable(
        &self,
        committer: &mut Committer,
        number: u64,
        sealed: &OpenData,
        options: &CommitOptions,
    ) -> Result<(), Error> {
        // 2. Everything that the new tree will refer to is on disk before the tree is.
        self.sync_segments(&sealed.segments)?;

        // 3. The new tree, in free slots.
        let mut writer = NodeWriter::new(&self.nodes, &self.space, self.keys.current_epoch())
            .ok_or_else(|| storage_error("seal", io::Error::other("no metadata key")))?;
        let mut moves = Moves::default();
        let root = self.apply_records(&mut writer, &mut moves)?;
        let root = self.apply_bitmaps(&mut writer, committer, &moves, root)?;
        let (new_delta, pointer, transient) = write_delta(&mut writer, committer)?;
        writer.finish()?;

        // 4. The tree is on disk before a superblock refers to it.
        let segments: BTreeSet<u32> =
            writer.written.iter().flatten().map(|slot| slot.segment()).collect();
        self.sync_segments(&segments)?;

        // 5. The superblock.
        let superblock = next_superblock(&committer.superblock, number, root, pointer, options);
        superblocks::write(&*self.storage, &self.keys, self.volume_id, &superblock)
            .map_err(|source| storage_error("superblock", source))?;

        // The epoch is durable: show it, and let go of what it replaced.
        *self.root.write() = root;
        self.overlay.clear_sealed();
        self.durable.store(number, Ordering::Release);
        let mut freed = moves.cleared;
        freed.extend(slots_of(&new_delta.freed));
        self.deferred.push(number, runs_of(freed));
        let mut never_durable = transient;
        never_durable.extend(slots_of(&sealed.runs).filter(|&s| !committer.bitmaps.is_used(s)));
        self.deferred.push_until(number, runs_of(never_durable));
        committer.delta = new_delta;
        committer.superblock = superblock;
        self.reuse(number);
        Ok(())
    }

    /// Syncs segments, and the directory if one of them is new.
    fn sync_segments(&self, segments: &BTreeSet<u32>) -> Result<(), Error> {
        if self.space.take_directory_dirty() {
            self.storage.sync_directory().map_err(|source| storage_error("sync", source))?;
        }
        for &segment in segments {
            self.storage
                .sync(FileId::Segment(segment))
                .map_err(|source| storage_error("sync", source))?;
        }
        Ok(())
    }

    fn apply_records(
        &self,
        writer: &mut NodeWriter,
        moves: &mut Moves,
    ) -> Result<Option<Root>, Error> {
        let batch = self.overlay.sealed_batch();
        let old_root = *self.root.read();
        let mut malformed = None;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let root = tree::apply(writer, old_root, &batch, &mut |key, old, new| {
            before.clear();
            after.clear();
            for (value, slots) in [(old, &mut before), (new, &mut after)] {
                let decoded = value.map_or(Ok(()), |value| (self.decode_slots)(key, value, slots));
                malformed = malformed.or(decoded.err());
            }
            before.sort_unstable();
            after.sort_unstable();
            let missing = |slot: &&Slot, of: &[Slot]| of.binary_search(slot).is_err();
            moves.set.extend(after.iter().filter(|slot| missing(slot, &before)));
            moves.cleared.extend(before.iter().filter(|slot| missing(slot, &after)));
        })?;
        match malformed {
            Some(what) => Err(storage_error("apply", io::Error::other(what))),
            None => Ok(root),
        }
    }

    /// Brings the stored bitmaps up to date: with the data that this epoch moved, and with the nodes
    /// of the last one.
    fn apply_bitmaps(
        &self,
        writer: &mut NodeWriter,
        committer: &mut Committer,
        moves: &Moves,
        root: Option<Root>,
    ) -> Result<Option<Root>, Error> {
        let mut contradiction = None;
        let delta = std::mem::take(&mut committer.delta.used);
        let freed = std::mem::take(&mut committer.delta.freed);
        let clear = slots_of(&freed).chain(moves.cleared.iter().copied()).map(|slot| (slot, false));
        let set = slots_of(&delta).chain(moves.set.iter().copied()).map(|slot| (slot, true));
        for (slot, used) in clear.chain(set) {
            if !committer.bitmaps.set(slot, used) {
                contradiction = Some((slot, used));
            }
        }
        if let Some((slot, used)) = contradiction {
            let what = if used { "used twice" } else { "freed twice" };
            let what = format!("slot {} would be {what}; run `atrest fsck`", slot.0);
            return Err(storage_error("apply", io::Error::other(what)));
        }
        let batch: Vec<Change> = committer
            .bitmaps
            .take_changed()
            .into_iter()
            .map(|((segment, piece), bits)| space_change(segment, piece, bits))
            .collect();
        Ok(tree::apply(writer, root, &batch, &mut |_, _, _| {})?)
    }

    /// Makes slots available that nothing durable, no reader and no older superblock needs.
    fn reuse(&self, durable: u64) {
        let runs = self.deferred.take_reusable(durable);
        self.space.release(&runs);
        self.space.punch_near(&runs);
        let filled = self.space.fill_reserve();
        let full = filled.is_err();
        if full != self.full.swap(full, Ordering::Relaxed) {
            match filled {
                Err(_) => log::warn!("the disk under the volume is full: new files are refused"),
                Ok(()) => log::info!("the disk under the volume has space again"),
            }
        }
    }

    /// Stops all writing until the volume is opened again.
    fn poison(&self, error: Error) -> Error {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        log::error!(
            "writing stopped: {text}. What was synced is safe. Unmount the volume and mount it again"
        );
        let reason: Arc<str> = text.into();
        *self.poisoned.lock() = Some(reason.clone());
        self.is_poisoned.store(true, Ordering::Release);
        Error::Poisoned(reason)
    }
}

/// Writes the delta of this epoch's nodes. Also returns slots that were written and freed within the
/// epoch, to which nothing durable refers.
fn write_delta(
    writer: &mut NodeWriter,
    committer: &Committer,
) -> Result<(Delta, Option<crate::format::NodePointer>, Vec<Slot>), Error> {
    let mut used: BTreeMap<Slot, ()> =
        writer.written.iter().flatten().map(|&slot| (slot, ())).collect();
    let mut freed: Vec<Slot> = committer.delta.chain.iter().flatten().copied().collect();
    let mut transient = Vec::new();
    for slot in writer.freed.iter().flatten() {
        if used.remove(slot).is_some() { transient.push(*slot) } else { freed.push(*slot) }
    }
    let (pointer, delta) = delta::write(writer, used.into_keys().collect(), freed)?;
    Ok((delta, pointer, transient))
}

fn next_superblock(
    last: &Superblock,
    number: u64,
    root: Option<Root>,
    delta: Option<crate::format::NodePointer>,
    options: &CommitOptions,
) -> Superblock {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (config_digest, config_digest_next) =
        options.config.unwrap_or((last.config_digest, last.config_digest_next));
    Superblock {
        sequence: number,
        root: root.map(|root| (root.pointer, root.level)),
        delta,
        clean: options.clean,
        config_digest,
        config_digest_next,
        committed: now,
    }
}

fn space_change(segment: u32, piece: u8, bits: Option<[u8; PIECE_BYTES]>) -> Change {
    Change { key: space_key(segment, piece).into(), value: bits.map(|bits| Arc::from(&bits[..])) }
}

/// Key of a stored piece of a bitmap.
pub(super) fn space_key(segment: u32, piece: u8) -> Box<[u8]> {
    record::key(Table::Space, u64::from(segment), &[piece])
}

pub(super) fn storage_error(op: &'static str, source: io::Error) -> Error {
    Error::Tree(tree::Error::Storage { op, source: Arc::new(source) })
}
