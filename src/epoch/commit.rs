//! Making an epoch durable.

use super::delta::{self, Delta};
use super::nodes::NodeWriter;
use super::open::chain;
use super::{Committer, Epochs, Error, OpenData, superblocks};
use crate::defect::{self, Defect};
use crate::format::log::LogStart;
use crate::format::record::{self, Table};
use crate::format::superblock::Superblock;
use crate::format::{NodePointer, Slot};
use crate::space::{Class, PIECE_BYTES, is_full, runs_of, slots_of};
use crate::tree::{self, Change, Root};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Freed slots that may stay behind when a volume is idle: an epoch's own nodes.
const IDLE_SLOTS: u64 = 64;
/// Least time between epochs that are ended only in the hope for a few slots.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(1);
/// Inodes that are named when changes are lost.
const LOST_SHOWN: usize = 20;

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

/// A new tree in free slots, to which no superblock refers yet.
struct Built {
    root: Option<Root>,
    moves: Moves,
    delta: Delta,
    delta_pointer: Option<NodePointer>,
    /// Slots that were written and freed while the tree was built.
    transient: Vec<Slot>,
    /// Nodes that the new tree does without.
    replaced: Vec<[Slot; 2]>,
    segments: BTreeSet<u32>,
}

impl Epochs {
    /// Returns when epoch `number` is durable, committing it if nobody else does.
    pub(super) fn commit_through(&self, number: u64) -> Result<(), Error> {
        // Everyone who waits here while one commit runs is served by the next one.
        let mut committer = self.committer.lock();
        if self.durable() >= number {
            return if committer.lossy == number { Err(Error::Lost) } else { Ok(()) };
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

    /// Makes an epoch durable before the first change, so that the log has a place to start at to
    /// which the superblock leads, under a key of its own, and what was replayed is in the tree.
    pub(super) fn begin(&self) -> Result<(), Error> {
        let mut committer = self.committer.lock();
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let options = CommitOptions { force: true, ..CommitOptions::default() };
        match self.commit_locked(&mut committer, &options) {
            // There is no log until there is space; the end of an epoch is what syncs.
            Err(Error::NoSpace) => self.begun.store(true, Ordering::Release),
            Err(Error::Lost) => {}
            done => done?,
        }
        Ok(())
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
        let (number, sealed, log) = self.seal();
        let stale = defect::active(Defect::StaleLogStart);
        let log = log.filter(|_| !stale).or(committer.superblock.log);
        match self.make_durable(committer, number, &sealed, log, options) {
            Ok(()) if committer.lossy == number => Err(Error::Lost),
            Ok(()) => Ok(()),
            Err(error) if is_no_space(&error) => {
                self.unseal(sealed);
                self.set_full(true);
                Err(Error::NoSpace)
            }
            Err(error) => Err(self.poison(error)),
        }
    }

    /// The sealed epoch could not be written and becomes a part of the open one again.
    fn unseal(&self, sealed: OpenData) {
        let _gate = self.gate.write();
        self.overlay.unseal();
        self.open.lock().merge(sealed);
    }

    /// Step 1: the open epoch becomes the sealed one.
    fn seal(&self) -> (u64, OpenData, Option<LogStart>) {
        let mut gate = self.gate.write();
        let number = *gate;
        let forget = defect::active(Defect::ForgetCounters);
        if let Some(hook) = self.on_seal.lock().as_ref().filter(|_| !forget) {
            let (key, value) = hook();
            self.overlay.put(key, value);
        }
        self.overlay.seal();
        let sealed = std::mem::take(&mut *self.open.lock());
        let log = self.log.seal(number);
        *gate = number + 1;
        self.deferred.advance(number + 1);
        self.pressed.store(false, Ordering::Relaxed);
        (number, sealed, log)
    }

    /// Steps 2 to 5, in the order that `manual::crash` argues for.
    fn make_durable(
        &self,
        committer: &mut Committer,
        number: u64,
        sealed: &OpenData,
        log: Option<LogStart>,
        options: &CommitOptions,
    ) -> Result<(), Error> {
        // 2. Everything that the new tree will refer to is on disk before the tree is.
        self.sync_segments(&sealed.segments)?;

        // 3. The new tree, in free slots.
        let built = self.build(committer, number)?;

        // 4. The tree is on disk before a superblock refers to it.
        if !defect::active(Defect::SuperblockFirst) {
            self.sync_segments(&built.segments)?;
        }

        // 5. The superblock.
        let superblock =
            next_superblock(&committer.superblock, built.root, built.delta_pointer, log, options);
        superblocks::write(&*self.storage, &self.keys, self.volume_id, &superblock)
            .map_err(|source| storage_error("superblock", source))?;
        if defect::active(Defect::SuperblockFirst) {
            self.sync_segments(&built.segments)?;
        }

        // The epoch is durable: show it, and let go of what it replaced.
        *self.root.write() = built.root;
        self.overlay.clear_sealed();
        self.nodes.forget(&built.replaced);
        self.durable.store(number, Ordering::Release);
        self.log.release(number, log);
        self.begun.store(true, Ordering::Release);
        let mut freed = built.moves.cleared;
        freed.extend(slots_of(&built.delta.freed));
        self.deferred.push(number, runs_of(freed));
        let mut never_durable = built.transient;
        never_durable.extend(slots_of(&sealed.runs).filter(|&s| !committer.bitmaps.is_used(s)));
        self.deferred.push_until(number, runs_of(never_durable));
        if !defect::active(Defect::ForgetDelta) {
            committer.delta = built.delta;
        }
        committer.superblock = superblock;
        self.reuse(number);
        Ok(())
    }

    /// Step 3: writes the new tree. What fails leaves nothing behind; changes that belong into a
    /// damaged node are given up, and the others tried again.
    fn build(&self, committer: &mut Committer, number: u64) -> Result<Built, Error> {
        let mut batch = self.overlay.sealed_batch();
        loop {
            let mut writer =
                NodeWriter::new(&self.nodes, &self.space, self.keys.current_epoch())
                    .ok_or_else(|| storage_error("seal", io::Error::other("no metadata key")))?;
            let mut flips = Vec::new();
            let error = match self.build_once(&mut writer, committer, &batch, &mut flips) {
                Ok(built) => return Ok(built),
                Err(error) => error,
            };
            writer.abandon();
            for &(slot, used) in flips.iter().rev() {
                committer.bitmaps.set(slot, !used);
            }
            let lost = match &error {
                Error::Tree(
                    tree::Error::Damaged(pointer) | tree::Error::Malformed { pointer, .. },
                ) => self.give_up_below(pointer, &mut batch),
                _ => 0,
            };
            if lost == 0 {
                return Err(error);
            }
            committer.lossy = number;
        }
    }

    fn build_once(
        &self,
        writer: &mut NodeWriter,
        committer: &mut Committer,
        batch: &[Change],
        flips: &mut Vec<(Slot, bool)>,
    ) -> Result<Built, Error> {
        let mut moves = Moves::default();
        let root = self.apply_records(writer, batch, &mut moves)?;
        let root = self.apply_bitmaps(writer, committer, &moves, root, flips)?;
        let (delta, delta_pointer, transient) = write_delta(writer, committer)?;
        writer.finish()?;
        let segments = writer.written.iter().flatten().map(|slot| slot.segment()).collect();
        let replaced = std::mem::take(&mut writer.freed);
        Ok(Built { root, moves, delta, delta_pointer, transient, replaced, segments })
    }

    /// Removes from `batch` what belongs at or below a node that cannot be read: nobody knows what
    /// else is there, so the node stays as it is. Says so, and returns how many changes that were.
    fn give_up_below(&self, pointer: &NodePointer, batch: &mut Vec<Change>) -> usize {
        let root = *self.root.read();
        let mut search = KeyRange { pointer, batch, found: None };
        tree::walk(&self.nodes, root.as_ref(), &mut search);
        let Some((from, to)) = search.found else { return 0 };
        let is_below = |key: &[u8]| *key >= *from && to.as_deref().is_none_or(|to| key < to);
        let mut owners = BTreeSet::new();
        let before = batch.len();
        batch.retain(|change| {
            let below = is_below(&change.key);
            if below {
                owners.insert(record::owner(&change.key));
            }
            !below
        });
        let lost = before - batch.len();
        let shown: Vec<String> = owners.iter().take(LOST_SHOWN).map(u64::to_string).collect();
        let more = if owners.len() > LOST_SHOWN { " and others" } else { "" };
        log::error!(
            "{lost} changes are lost: they belong into a damaged tree node, in slots {} and {}; \
             they are of inodes {}{more}. Run `atrest fsck` to see what it held",
            pointer.slots[0].0,
            pointer.slots[1].0,
            shown.join(", ")
        );
        self.nodes.damage.changes_lost.fetch_add(lost as u64, Ordering::Relaxed);
        self.lost.lock().extend(owners);
        lost
    }

    /// Whether a change of this inode could not be made durable.
    pub fn has_lost(&self, ino: u64) -> bool {
        self.nodes.damage.changes_lost.load(Ordering::Relaxed) > 0
            && self.lost.lock().contains(&ino)
    }

    fn apply_records(
        &self,
        writer: &mut NodeWriter,
        batch: &[Change],
        moves: &mut Moves,
    ) -> Result<Option<Root>, Error> {
        let old_root = *self.root.read();
        let mut malformed = None;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let root = tree::apply(writer, old_root, batch, &mut |key, old, new| {
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

    /// Brings the stored bitmaps up to date: with the data that this epoch moved, and with the
    /// nodes of the last one.
    fn apply_bitmaps(
        &self,
        writer: &mut NodeWriter,
        committer: &mut Committer,
        moves: &Moves,
        root: Option<Root>,
        flips: &mut Vec<(Slot, bool)>,
    ) -> Result<Option<Root>, Error> {
        let mut contradiction = None;
        let Delta { used, freed, .. } = &committer.delta;
        let clear = slots_of(freed).chain(moves.cleared.iter().copied()).map(|slot| (slot, false));
        let set = slots_of(used).chain(moves.set.iter().copied()).map(|slot| (slot, true));
        for (slot, used) in clear.chain(set) {
            if committer.bitmaps.set(slot, used) {
                flips.push((slot, used));
            } else {
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
        self.set_full(self.space.fill_reserve().is_err());
    }

    /// Whether the volume can take new work, which may be news if it was full: others may have
    /// deleted something on the disk below. That is asked once a second.
    pub fn has_space(&self) -> bool {
        if self.is_full() && due(&self.last_refill) {
            self.set_full(self.space.fill_reserve().is_err());
        }
        !self.is_full()
    }

    fn set_full(&self, full: bool) {
        if full != self.full.swap(full, Ordering::Relaxed) {
            match full {
                true => log::warn!("the disk under the volume is full: new files are refused"),
                false => log::info!("the disk under the volume has space again"),
            }
        }
    }

    /// Ends an epoch if that may free `slots` slots for pages, or anything at all: what is freed
    /// can be used again when the epoch that frees it and the next are durable. False if there is
    /// nothing to hope for.
    ///
    /// # Errors
    /// As [`Epochs::sync`].
    pub fn reclaim(&self, slots: u64) -> Result<bool, Error> {
        let of_pages = self.open.lock().freed + self.deferred.waiting_of(Class::Data);
        let hopeful = if of_pages >= slots.max(1) {
            true
        } else if of_pages > 0 || self.deferred.waiting() > IDLE_SLOTS {
            // Too few pages, or nodes: not for every operation that a full disk refuses.
            due(&self.last_reclaim)
        } else {
            false
        };
        if hopeful {
            self.commit(&CommitOptions { force: true, ..CommitOptions::default() })?;
        }
        Ok(hopeful)
    }

    /// Stops all writing until the volume is opened again.
    pub(super) fn poison(&self, error: Error) -> Error {
        if matches!(error, Error::Poisoned(_)) || defect::active(Defect::NoPoison) {
            return error;
        }
        let text = chain(&error);
        log::error!(
            "writing stopped: {text}. What was synced is safe. Unmount the volume and mount it \
             again"
        );
        let reason: Arc<str> = text.into();
        // The first reason is the one that matters.
        let _ = self.poisoned.set(reason.clone());
        Error::Poisoned(reason)
    }
}

/// Whether something that is done once in a while is to be done now.
fn due(last: &Mutex<Option<Instant>>) -> bool {
    let mut last = last.lock();
    let due = last.is_none_or(|last| last.elapsed() > RECLAIM_INTERVAL);
    if due {
        *last = Some(Instant::now());
    }
    due
}

/// Writes the delta of this epoch's nodes. Also returns slots that were written and freed within
/// the epoch, to which nothing durable refers.
fn write_delta(
    writer: &mut NodeWriter,
    committer: &Committer,
) -> Result<(Delta, Option<NodePointer>, Vec<Slot>), Error> {
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

pub(super) fn next_superblock(
    last: &Superblock,
    root: Option<Root>,
    delta: Option<NodePointer>,
    log: Option<LogStart>,
    options: &CommitOptions,
) -> Superblock {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (config_digest, config_digest_next) =
        options.config.unwrap_or((last.config_digest, last.config_digest_next));
    Superblock {
        // Not the epoch's number: an epoch that could not be written leaves a gap there, and here
        // it would make the newest superblock the one that is overwritten.
        sequence: last.sequence + if defect::active(Defect::OverwriteNewest) { 2 } else { 1 },
        root: root.map(|root| (root.pointer, root.level)),
        delta,
        clean: options.clean,
        config_digest,
        config_digest_next,
        log,
        committed: now,
    }
}

fn space_change(segment: u32, piece: u8, bits: Option<[u8; PIECE_BYTES]>) -> Change {
    let key = Arc::from(&space_key(segment, piece)[..]);
    Change { key, value: bits.map(|bits| Arc::from(&bits[..])) }
}

/// Key of a stored piece of a bitmap.
pub(super) fn space_key(segment: u32, piece: u8) -> record::Key {
    record::key(Table::Space, u64::from(segment), &[piece])
}

/// Finds the keys that belong at or below a node.
struct KeyRange<'a> {
    pointer: &'a NodePointer,
    /// The node is on the way to one of these.
    batch: &'a [Change],
    found: Option<(Vec<u8>, Option<Vec<u8>>)>,
}

impl tree::Visitor for KeyRange<'_> {
    fn enter(&mut self, place: tree::Place<'_>) -> bool {
        if place.pointer == self.pointer {
            self.found = Some((place.from.to_vec(), place.to.map(<[u8]>::to_vec)));
        }
        let first = self.batch.partition_point(|change| *change.key < *place.from);
        let below = |change: &Change| place.to.is_none_or(|to| *change.key < *to);
        self.found.is_none() && place.level > 0 && self.batch.get(first).is_some_and(below)
    }

    fn node(&mut self, _: tree::Place<'_>, _: &crate::format::node::Node) {}

    fn damaged(&mut self, _: tree::Place<'_>, _: &tree::Error) {}
}

/// Whether an epoch could not be written because the disk is full; what was synced before is not
/// concerned then.
fn is_no_space(error: &Error) -> bool {
    match error {
        Error::NoSpace | Error::Tree(tree::Error::NoSpace) => true,
        // A sync that failed may have dropped what it was to write, whatever the reason.
        Error::Tree(tree::Error::Storage { op, source }) => *op != "sync" && is_full(source),
        _ => false,
    }
}

pub(super) fn storage_error(op: &'static str, source: io::Error) -> Error {
    Error::Tree(tree::Error::Storage { op, source: Arc::new(source) })
}
