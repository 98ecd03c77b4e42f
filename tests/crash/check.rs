//! The promise, checked on one image: what opens is exactly what was to be seen after some prefix
//! of the script's operations, and not before the last sync that returned.
//!
//! Everything dear is done for a part of the images, chosen by their lines.

use crate::common::Volumes;
use crate::harness::{Crash, Settings, explore};
use crate::script::{DISK_BYTES, Reached, Recording};
use crate::state::{Candidate, State, difference, look};
use atrest::fs::volume::VolumeTree;
use atrest::fs::{Caller, Tree};
use atrest::storage::sim::SimDisk;
use atrest::storage::{FileId, Storage};
use atrest::volume::check::{Kind, Severity};
use atrest::volume::{CheckOptions, OpenReport, Volume};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One image in so many gets each of the dear checks.
#[derive(Clone, Copy, Debug)]
pub struct Dear {
    /// Opening once more, and every record against every other.
    pub again: u64,
    /// Going on: writing, syncing, opening, ending epochs.
    pub go_on: u64,
    /// Cutting the recovery, too, at every point.
    pub nested: u64,
}

impl Default for Dear {
    fn default() -> Self {
        Self { again: 8, go_on: 16, nested: 400 }
    }
}

/// A volume that was opened on an image.
struct Opened {
    volume: Arc<Volume>,
    tree: VolumeTree,
    report: OpenReport,
}

/// Opens the volume as a mount does: with the configuration that is there.
fn open(volumes: &Volumes, image: &Arc<SimDisk>) -> Result<Opened, String> {
    image.set_capacity(DISK_BYTES);
    let storage: Arc<dyn Storage> = image.clone();
    let config = image.read_config().map_err(|error| format!("atrest.json: {error}"))?;
    let volumes = Volumes { config, ..volumes.clone() };
    let opened = volumes.open_reported(&storage);
    let (volume, report) = opened.map_err(|error| format!("does not open: {error}"))?;
    let recovered = atrest::fs::volume::recover(&volume);
    recovered.map_err(|error| format!("nameless inodes are not discarded: {error}"))?;
    let tree = VolumeTree::new(volume.clone());
    Ok(Opened { volume, tree, report })
}

/// Checks an image of a crash of the recording.
///
/// # Errors
/// What is wrong with it.
pub fn check(
    recording: &Recording,
    dear: Dear,
    crash: &Crash,
    image: Arc<SimDisk>,
) -> Result<(), String> {
    let Reached { synced, under_way } = Reached::of(crash.marks, recording.steps.len());
    let whole = Arc::new(image.fork());
    let opened = open(&recording.volumes, &image)?;
    let found = look(&opened.tree, &opened.volume)?;
    if !is_possible(recording, synced, under_way, &found) {
        let what = explain(recording, synced, under_way, &found);
        return Err(format!("after step {synced} was synced, in step {under_way}: {what}"));
    }
    no_damage(&opened.volume)?;
    let due = |every: u64, salt: u64| every > 0 && (crash.lot >> salt) % every == 0;
    if due(dear.nested, 24) {
        cut_recovery(recording, &whole, &found)?;
    }
    if due(dear.again, 0) {
        drop(opened);
        both_copies(recording, &whole)?;
        opened_again(recording, &image, &found)?;
        way_back(recording, synced, under_way, &whole)?;
    }
    if due(dear.go_on, 8) {
        go_on(recording, &whole, &found)?;
    }
    Ok(())
}

/// What a crash may leave: what was there after one of these steps, or within one.
fn candidates(
    recording: &Recording,
    synced: usize,
    under_way: usize,
) -> impl Iterator<Item = Candidate> + '_ {
    let first = std::iter::once(Candidate::exactly(&recording.steps[synced].after));
    let later = recording.steps[synced + 1..=under_way.max(synced)].iter().flat_map(|step| {
        step.between.iter().cloned().chain(std::iter::once(Candidate::exactly(&step.after)))
    });
    first.chain(later)
}

fn is_possible(recording: &Recording, synced: usize, under_way: usize, found: &State) -> bool {
    let mut steps = recording.steps[synced..=under_way.max(synced)].iter();
    steps.any(|step| step.after == *found)
        || candidates(recording, synced, under_way).any(|candidate| candidate.is(found))
}

/// Compares with the state that is most like what was found.
fn explain(recording: &Recording, synced: usize, under_way: usize, found: &State) -> String {
    let texts = candidates(recording, synced, under_way)
        .map(|candidate| difference(&candidate.state, found));
    let nearest = texts.min_by_key(|text| (text.lines().count(), text.len())).unwrap_or_default();
    let known = recording.steps.iter().position(|step| step.after == *found);
    let known = known.map_or("no state that ever was".to_owned(), |step| format!("step {step}"));
    let ops: Vec<String> = (0..)
        .zip(&recording.steps)
        .map(|(number, step)| {
            let error = step.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
            format!("  {number} {:?}{error}", step.op)
        })
        .collect();
    format!("found {known}; compared with the nearest:\n{nearest}steps:\n{}", ops.join("\n"))
}

/// Opening met nothing that does not authenticate: a crash damages nothing.
fn no_damage(volume: &Volume) -> Result<(), String> {
    let damage = volume.epochs().damage();
    let counters = [
        ("nodes were healed", &damage.nodes_healed),
        ("nodes were lost", &damage.nodes_lost),
        ("pages were lost", &damage.pages_lost),
        ("changes were lost", &damage.changes_lost),
    ];
    for (what, counter) in counters {
        let count = counter.load(Ordering::Relaxed);
        if count > 0 {
            return Err(format!("{count} {what}"));
        }
    }
    Ok(())
}

/// Opening once more, as after another crash at once, shows the same; and after the end of an epoch
/// all records agree, and no slot is used twice or leaked.
fn opened_again(recording: &Recording, image: &Arc<SimDisk>, found: &State) -> Result<(), String> {
    let opened = open(&recording.volumes, image).map_err(|error| format!("again: {error}"))?;
    let seen =
        look(&opened.tree, &opened.volume).map_err(|error| format!("opened again: {error}"))?;
    if seen != *found {
        return Err(format!("opened again, it shows:\n{}", difference(found, &seen)));
    }
    opened.tree.sync().map_err(|error| format!("syncing what was found: {error}"))?;
    drop(opened);
    let opened = open(&recording.volumes, image).map_err(|error| format!("synced: {error}"))?;
    end_epoch(&opened)?;
    sound(&opened.volume)?;
    let seen = look(&opened.tree, &opened.volume)
        .map_err(|error| format!("with the epoch ended: {error}"))?;
    if seen == *found {
        return Ok(());
    }
    Err(format!("with the epoch ended, it shows:\n{}", difference(found, &seen)))
}

fn end_epoch(opened: &Opened) -> Result<(), String> {
    let options = atrest::epoch::CommitOptions { force: true, ..Default::default() };
    let ended = opened.volume.epochs().commit(&options);
    ended.map_err(|error| format!("ending the epoch: {error}"))
}

/// Everything that `fsck --deep` knows, and space against use.
fn sound(volume: &Volume) -> Result<(), String> {
    let problems = volume.check_space();
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    let report = volume.check(CheckOptions { deep: true }, &|_| {});
    let bad: Vec<String> = report
        .findings
        .iter()
        .filter(|finding| finding.kind.severity() > Severity::Notice)
        .filter(|finding| finding.kind != Kind::Superblock)
        .map(|finding| format!("{finding:?}"))
        .collect();
    if bad.is_empty() { Ok(()) } else { Err(format!("the check found:\n{}", bad.join("\n"))) }
}

/// A crash leaves both copies of every node that the durable tree has.
fn both_copies(recording: &Recording, image: &Arc<SimDisk>) -> Result<(), String> {
    let opened = open(&recording.volumes, &Arc::new(image.fork()))?;
    let report = opened.volume.check(CheckOptions::default(), &|_| {});
    let copies = report.findings.iter().filter(|finding| finding.kind == Kind::NodeCopy);
    let found: Vec<String> = copies.map(|finding| format!("{finding:?}")).collect();
    if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
}

/// The older superblock leads to a whole state, which is not newer.
fn way_back(
    recording: &Recording,
    synced: usize,
    under_way: usize,
    image: &Arc<SimDisk>,
) -> Result<(), String> {
    let newest = {
        let opened = open(&recording.volumes, &Arc::new(image.fork()))?;
        // Where a superblock was torn, there is no other to go back to.
        if !opened.report.refused.is_empty() {
            return Ok(());
        }
        opened.report.sequence
    };
    let file = if newest % 2 == 0 { FileId::SuperA } else { FileId::SuperB };
    let image = Arc::new(image.fork());
    image.flip_bit(file, 2000, 1);
    let opened =
        open(&recording.volumes, &image).map_err(|error| format!("no way back: {error}"))?;
    let seen =
        look(&opened.tree, &opened.volume).map_err(|error| format!("the way back: {error}"))?;
    if is_possible(recording, 0, under_way.max(synced), &seen) {
        return Ok(());
    }
    Err(format!("the way back: {}", explain(recording, 0, under_way, &seen)))
}

/// The volume works on: what is written and synced now is there, beside all that was found, after
/// two more epochs and two more openings.
fn go_on(recording: &Recording, image: &Arc<SimDisk>, found: &State) -> Result<(), String> {
    let failed = |error: atrest::fs::Error| format!("going on: {error}");
    let mut expected = found.clone();
    for round in 0..2u8 {
        let opened =
            open(&recording.volumes, image).map_err(|error| format!("going on: {error}"))?;
        let seen =
            look(&opened.tree, &opened.volume).map_err(|error| format!("going on: {error}"))?;
        if seen != expected {
            return Err(format!("going on, it shows:\n{}", difference(&expected, &seen)));
        }
        let caller = Caller { uid: 0, gid: 0, umask: 0 };
        let name = format!("going-on-{round}");
        let (attr, handle) = opened
            .tree
            .create(caller, crate::state::ROOT, name.as_bytes(), 0o600)
            .map_err(failed)?;
        opened.tree.write(attr.ino, 0, &vec![round; 9000], false).map_err(failed)?;
        opened.tree.release(attr.ino, handle);
        opened.tree.fsync(attr.ino, handle, false).map_err(failed)?;
        if round == 0 {
            end_epoch(&opened)?;
            opened.tree.write(attr.ino, 4096, &[0x77; 4096], false).map_err(failed)?;
            opened.tree.sync().map_err(failed)?;
        }
        expected = look(&opened.tree, &opened.volume)?;
        let kept = expected.iter().filter(|(path, _)| !path.starts_with("/going-on"));
        let rest = kept.filter(|(path, _)| !path.is_empty());
        if !rest.eq(found.iter().filter(|(path, _)| !path.is_empty())) {
            return Err(format!("going on changed:\n{}", difference(found, &expected)));
        }
    }
    let opened = open(&recording.volumes, image).map_err(|error| format!("went on: {error}"))?;
    let seen = look(&opened.tree, &opened.volume).map_err(|error| format!("went on: {error}"))?;
    if seen != expected {
        return Err(format!("went on, it shows:\n{}", difference(&expected, &seen)));
    }
    end_epoch(&opened)?;
    sound(&opened.volume)
}

/// The recovery is cut, too: what opens then is what the recovery had found.
fn cut_recovery(recording: &Recording, image: &Arc<SimDisk>, found: &State) -> Result<(), String> {
    let disk = Arc::new(image.fork());
    disk.start_recording();
    let opened = open(&recording.volumes, &disk)?;
    opened.tree.sync().map_err(|error| format!("syncing what was found: {error}"))?;
    end_epoch(&opened)?;
    let nested = Settings { samples: 6, quota: 6, tears: 1, ..Settings::new("recovery") };
    let checked = explore(
        &nested,
        disk.replay(),
        |_, image| {
            let opened = open(&recording.volumes, &image)?;
            let seen = look(&opened.tree, &opened.volume)?;
            if seen == *found { Ok(()) } else { Err(difference(found, &seen)) }
        },
        None,
    );
    checked.map(drop).map_err(|report| format!("with its recovery cut: {report}"))
}
