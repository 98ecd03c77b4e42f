//! Checking volumes on the simulated disk: a whole volume is clean; each kind of damage is found
//! and named by path and range, and everything else stays readable.

#[allow(dead_code)] // Each binary needs another part of it.
#[path = "../common/mod.rs"]
mod common;
mod medium;
mod paths;
mod records;
mod repair;
mod ruin;
mod world;

use atrest::crypto::Cipher;
use atrest::volume::check::{CheckOptions, Kind};
use world::{World, show};

#[test]
fn a_whole_volume_is_clean() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let world = World::new(cipher);
        let report = world.check(true);
        assert!(report.is_clean(), "{}", show(&report.findings));
        assert!(report.inodes > 300 && report.directories >= 4, "{report:?}");
        assert!(report.nodes > 10, "{report:?}");
        assert_eq!(report.pages, report.pages_read);
        assert!(report.unmounted_in_order);
        let said = report.findings.iter().any(|f| f.kind == Kind::ContentUnauthenticated);
        assert_eq!(said, cipher == Cipher::Aes256Xts, "what XTS cannot tell is said");
    }
}

/// Whatever programs do leaves a volume without contradictions: names, links, holes, attributes,
/// files that are open without a name.
#[test]
fn a_volume_in_use_is_clean_after_every_commit() {
    let world = World::new(Cipher::Aes256Gcm);
    let seed = std::env::var("ATREST_SEED").map_or(3, |seed| seed.parse().expect("a number"));
    println!("replay with ATREST_SEED={seed}");
    world.use_it(seed, 1500);
}

/// Nothing is written: the disk is the same before and after.
#[test]
fn checking_writes_nothing() {
    let world = World::new(Cipher::Aes256Gcm);
    world.flip(world.nodes(0)[0].slots[0]);
    let operations = world.disk.operations();
    world.check(true);
    assert_eq!(world.disk.operations(), operations);
    assert_eq!(world.finds(Kind::NodeCopy).len(), 1, "the damaged copy is still damaged");
}

/// Cutting off so much that it is done in the background, and writing there before it is done.
#[test]
fn a_file_that_is_written_where_it_was_cut_off_is_clean() {
    let world = World::new(Cipher::Aes256Gcm);
    let volume = world.volumes.open(&world.storage).expect("open");
    let ino = volume.entry(1, b"other").expect("entry").expect("exists").ino;
    let run = 32 * 4096;
    for at in 0..1100 {
        volume.write(ino, at * run, &[3; 4096], &|_| {}).expect("write");
    }
    volume.sync().expect("sync");
    volume.truncate(ino, 1, &|_| {}).expect("truncate");
    volume.truncate(ino, 1100 * run, &|_| {}).expect("truncate");
    volume.write(ino, 700 * run + 4096, &[4; 8192], &|_| {}).expect("write");
    for size in [1100 * run, 900 * run, 10 * run] {
        volume.truncate(ino, size, &|_| {}).expect("truncate");
        volume.sync().expect("sync");
        let report = volume.check(CheckOptions { deep: true }, &|_| {});
        assert!(report.is_clean(), "{}", show(&report.findings));
    }
}
