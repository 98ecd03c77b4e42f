//! Proves that the harness bites: a protocol of two superblocks in fifty lines passes, and three
//! copies of it, each with one mistake that people make, do not.

use crate::harness::{Crash, Settings, enumerate, explore};
use atrest::storage::sim::SimDisk;
use atrest::storage::{FileId, Storage};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const DATA: FileId = FileId::Segment(0);
/// A payload covers several sectors, so that it can tear.
const PAYLOAD_BYTES: usize = 1500;
/// So placed that a sector's border runs through the superblock, which so can tear.
const SUPERBLOCK_AT: u64 = 7 * 512 - 12;
const COMMITS: u64 = 8;

/// What is wrong with the protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// The payload is not synced before the superblock points to it.
    NoDataSync,
    /// The superblock that is current is overwritten.
    SameSlot,
    /// The directory is not synced after the files were made.
    NoDirectorySync,
}

fn payload(sequence: u64) -> Vec<u8> {
    (0..PAYLOAD_BYTES as u64).map(|index| (sequence * 31 + index * 7 + 1) as u8).collect()
}

/// FNV-1a; stands for the authentication tag of the real format.
fn digest(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().copied().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn slot_of(sequence: u64) -> FileId {
    if sequence % 2 == 0 { FileId::SuperA } else { FileId::SuperB }
}

fn create(disk: &SimDisk, mistake: Mistake) -> io::Result<()> {
    for file in [FileId::SuperA, FileId::SuperB, DATA] {
        disk.create(file)?;
    }
    if mistake != Mistake::NoDirectorySync {
        disk.sync_directory()?;
    }
    Ok(())
}

fn commit(disk: &SimDisk, sequence: u64, mistake: Mistake) -> io::Result<()> {
    let payload = payload(sequence);
    disk.write_at(DATA, sequence % 2 * 4096, &payload)?;
    if mistake != Mistake::NoDataSync {
        disk.sync(DATA)?;
    }
    let number = sequence.to_le_bytes();
    let pointer = digest(&[&payload]).to_le_bytes();
    let seal = digest(&[&number, &pointer]).to_le_bytes();
    let slot = if mistake == Mistake::SameSlot { FileId::SuperA } else { slot_of(sequence) };
    disk.write_at(slot, SUPERBLOCK_AT, &[number, pointer, seal].concat())?;
    disk.sync(slot)
}

/// The sequence and the seal of the payload in a superblock, if there is a good one.
fn superblock(disk: &SimDisk, slot: FileId) -> Option<(u64, u64)> {
    let mut bytes = [0; 24];
    disk.read_at(slot, SUPERBLOCK_AT, &mut bytes).ok()?;
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    (digest(&[&bytes[..16]]) == word(16)).then(|| (word(0), word(8)))
}

/// Opens the newest state: `Ok(None)` if there is none.
fn open(disk: &SimDisk) -> Result<Option<u64>, String> {
    let slots = [FileId::SuperA, FileId::SuperB];
    let Some((sequence, pointer)) = slots.iter().filter_map(|s| superblock(disk, *s)).max() else {
        return Ok(None);
    };
    let mut bytes = [0; PAYLOAD_BYTES];
    let read = disk.read_at(DATA, sequence % 2 * 4096, &mut bytes);
    read.map_err(|error| format!("payload of {sequence}: {error}"))?;
    if digest(&[&bytes]) != pointer || bytes[..] != payload(sequence) {
        return Err(format!("payload of {sequence} is not what was written"));
    }
    Ok(Some(sequence))
}

fn script(disk: &SimDisk, mistake: Mistake) {
    create(disk, mistake).unwrap();
    for sequence in 1..=COMMITS {
        commit(disk, sequence, mistake).unwrap();
        disk.mark(sequence);
    }
}

fn check(crash: &Crash, disk: Arc<SimDisk>) -> Result<(), String> {
    let acknowledged = crash.marks.last().copied().unwrap_or(0);
    let found = open(&disk)?.unwrap_or(0);
    if (acknowledged..=acknowledged + 1).contains(&found) {
        Ok(())
    } else {
        let at = crash.at;
        Err(format!("{acknowledged} was acknowledged, {found} was found, at operation {at}"))
    }
}

fn settings() -> Settings {
    Settings { exhaustive_max: 4, ..Settings::new("toy") }
}

fn recorded(mistake: Mistake) -> SimDisk {
    let disk = SimDisk::new();
    script(&disk, mistake);
    disk
}

/// What the harness says about a protocol with a mistake.
fn caught(mistake: Mistake) -> String {
    let found = explore(&settings(), recorded(mistake).replay(), check, None);
    found.expect_err("the mistake was missed")
}

#[test]
fn correct_protocol_passes() {
    let explored = enumerate(&settings(), |disk| script(disk, Mistake::None), check);
    assert!(explored.images > 50, "{explored:?}");
}

#[test]
fn dropped_sync_is_caught() {
    let report = caught(Mistake::NoDataSync);
    assert!(report.contains("payload of"), "{report}");
    assert!(report.contains("ATREST_REPLAY='toy crash_at="), "{report}");
}

#[test]
fn overwriting_the_current_superblock_is_caught() {
    assert!(caught(Mistake::SameSlot).contains("was acknowledged"));
}

#[test]
fn missing_sync_of_the_directory_is_caught() {
    let report = caught(Mistake::NoDirectorySync);
    assert!(report.contains("L SuperB Create") || report.contains("L Segment(0) Create"));
}

#[test]
fn printed_line_reruns_the_one_image_that_failed() {
    let report = caught(Mistake::SameSlot);
    let line = report.split_once("ATREST_REPLAY='").and_then(|(_, line)| line.split_once('\''));
    let (line, _) = line.expect("the last line says how to repeat it");
    let images = AtomicUsize::new(0);
    let counted = |crash: &Crash, disk| {
        images.fetch_add(1, Ordering::Relaxed);
        check(crash, disk)
    };
    let again = explore(&settings(), recorded(Mistake::SameSlot).replay(), counted, Some(line));
    assert_eq!(again.expect_err("it fails again"), report);
    assert_eq!(images.into_inner(), 1);
}
