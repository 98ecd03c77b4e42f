//! Checking volumes on the simulated disk: a whole volume is clean; each kind of damage is found
//! and named by path and range, and everything else stays readable.

#[path = "../common/mod.rs"]
mod common;
mod medium;
mod records;
mod world;

use atrest::crypto::Cipher;
use atrest::volume::check::Kind;
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
