//! Damage at random, and power cuts in the middle of a repair.

use crate::repair::{Seen, repair_in, rest_is_named, show_actions};
use crate::world::{Change, World, show};
use atrest::crypto::Cipher;
use atrest::format::SEGMENT_BYTES;
use atrest::format::Slot;
use atrest::format::record::{Key, Table, key};
use atrest::storage::sim::{Fate, Random};
use atrest::storage::{FileId, Storage};
use atrest::volume::repair::RepairError;
use std::collections::BTreeMap;
use std::sync::Arc;

fn seeds(usual: u64, first: u64) -> Vec<u64> {
    match std::env::var("ATREST_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (first..first + usual).collect(),
    }
}

/// Some slots of nodes, and of all slots in use.
fn slots(world: &World) -> (Vec<Slot>, Vec<Slot>) {
    let nodes = [0, 1].into_iter().flat_map(|level| world.nodes(level));
    let nodes: Vec<Slot> = nodes.flat_map(|node| node.slots).collect();
    let mut all = Vec::new();
    world.open().epochs().slots_in_use(&mut |slot| all.push(slot));
    (nodes, all)
}

/// Records that are to be deleted or spoilt.
fn spoil(world: &World, random: &mut Random) {
    let keys: Vec<Vec<u8>> = world.nodes(0).into_iter().flat_map(|leaf| leaf.keys).collect();
    let mut changes: BTreeMap<Key, Option<Vec<u8>>> = BTreeMap::new();
    for _ in 0..1 + random.below(12) {
        let victim = keys[random.below(keys.len() as u64) as usize].clone();
        if victim[0] == Table::Space as u8 {
            continue;
        }
        let mut value = world.record(&victim);
        let at = random.below(value.len().max(1) as u64) as usize;
        let change = match random.below(4) {
            0 | 1 => None,
            2 if !value.is_empty() => {
                value[at] ^= 1 << random.below(8);
                Some(value)
            }
            _ => {
                value.truncate(at);
                Some(value)
            }
        };
        changes.insert(victim.into(), change);
    }
    for table in [Table::Orphan, Table::Cut, Table::Inline] {
        if random.below(6) == 0 {
            let ino = 1 + random.below(720);
            let rest = random.below(300).to_be_bytes();
            let rest = if table == Table::Orphan { &[][..] } else { &rest[..] };
            changes.insert(key(table, ino, rest), Some(random.below(999).to_le_bytes().to_vec()));
        }
    }
    let changes: Vec<Change> = changes.into_iter().collect();
    world.forge(&changes);
}

/// Spoils a volume; returns what was done.
fn ruin(world: &World, random: &mut Random) -> String {
    let mut done = Vec::new();
    if random.coin() {
        spoil(world, random);
        done.push("records".to_owned());
    }
    let (nodes, all) = slots(world);
    if random.below(3) > 0 {
        let destroyed: Vec<Slot> = {
            let mut pairs = world.nodes(0);
            pairs.extend(world.nodes(1));
            let count = 1 + random.below(4);
            let mut hit = Vec::new();
            for _ in 0..count {
                hit.extend(pairs[random.below(pairs.len() as u64) as usize].slots);
            }
            hit.sort_unstable();
            hit.dedup();
            hit
        };
        destroyed.iter().for_each(|slot| world.flip(*slot));
        done.push(format!("nodes {destroyed:?}"));
    }
    for _ in 0..random.below(40) {
        let from = if random.below(4) == 0 { &nodes } else { &all };
        world.flip(from[random.below(from.len() as u64) as usize]);
    }
    if random.below(3) == 0 {
        let file = if random.coin() { FileId::SuperA } else { FileId::SuperB };
        match random.below(3) {
            0 => world.disk.flip_bit(file, random.below(4096), 3),
            1 => world.storage.set_length(file, random.below(4096)).expect("set_length"),
            _ => world.storage.delete(file).expect("delete"),
        }
        done.push(format!("{file:?}"));
    }
    if random.below(4) == 0 {
        let segments = world.storage.segments().expect("segments");
        let segment = FileId::Segment(segments[random.below(segments.len() as u64) as usize]);
        match random.coin() {
            true => world.storage.delete(segment).expect("delete"),
            false => {
                let length = random.below(SEGMENT_BYTES / 100);
                world.storage.set_length(segment, length).expect("set_length");
            }
        }
        done.push(format!("{segment:?}"));
    }
    done.join(", ")
}

/// Volumes that were used, and damaged in many ways at a time.
#[test]
fn whatever_is_damaged_a_repair_leaves_a_sound_volume() {
    let base = World::new(Cipher::Aes256Gcm);
    base.use_it(11, 150);
    let before: BTreeMap<String, Seen> = base.seen();
    let (mut repaired, mut refused) = (0, 0);
    for seed in seeds(60, 1) {
        println!("replay with ATREST_SEED={seed}");
        let world = base.fork();
        let random = &mut Random::new(seed);
        let done = ruin(&world, random);
        let deep = random.below(4) > 0;
        let report = match repair_in(&world, world.storage.clone(), deep) {
            Ok(report) => report,
            Err(error) => {
                if let RepairError::NotSound(check) = &error {
                    panic!("seed {seed}, {done}: {}", show(&check.findings));
                }
                let text = format!("{error:?}");
                assert!(text.contains("Damaged"), "seed {seed}, {done}: {text}");
                refused += 1;
                continue;
            }
        };
        repaired += 1;
        let check = world.check(deep);
        assert!(check.is_clean(), "seed {seed}, {done}: {}", show(&check.findings));
        if !deep {
            repair_in(&world, world.storage.clone(), true).expect("repair");
        }
        world.is_sound();
        // A record that was forged and fits is what it says.
        if deep && !done.starts_with("records") {
            rest_is_named(&world, &before, &report);
        }
        assert!(!show_actions(&report).is_empty());
    }
    assert!(std::env::var("ATREST_SEED").is_ok() || repaired > refused * 5, "{repaired} {refused}");
}

/// A power cut at every operation of a repair: what opens is the state before, which can be
/// repaired again, or the repaired one.
#[test]
fn a_power_cut_during_a_repair_loses_nothing() {
    let base = World::new(Cipher::Aes256Gcm);
    let before = base.seen();
    let world = base.fork();
    let many = world.ino("/many");
    let leaf = world.leaf_of(&key(Table::Entry, many, b"file 300"));
    let inodes = world.leaf_of(&key(Table::Inode, world.ino("/many/file 100"), &[]));
    for page in [1, 9] {
        world.flip(world.slot("/deep/deeper/big", page));
    }
    let copy = world.nodes(0)[3].slots[0];
    world.destroy(&leaf);
    world.destroy(&inodes);
    world.flip(copy);
    world.disk.flip_bit(FileId::SuperA, 300, 1);
    let found = show(&world.check(true).findings);
    let whole = world.fork();
    whole.disk.start_recording();
    let report = repair_in(&whole, whole.storage.clone(), true).expect("repair");
    let expected = whole.seen();
    let mut replay = whole.disk.replay();
    let (mut old, mut new) = (0, 0);
    loop {
        for style in 0..3u64 {
            let random = &mut Random::new(replay.position() as u64 * 3 + style);
            let pending = replay.pending().len();
            let fates: Vec<Fate> = (0..pending)
                .map(|_| match style {
                    0 => Fate::Lost,
                    1 => Fate::Kept,
                    _ if random.coin() => Fate::Torn(random.below(4096)),
                    _ => Fate::Kept,
                })
                .collect();
            let disk = Arc::new(replay.after_crash(fates));
            let storage: Arc<dyn Storage> = disk.clone();
            let (volumes, contents) = (world.volumes.clone(), BTreeMap::new());
            let crashed = World { volumes, disk, storage, contents };
            let check = crashed.check(true);
            if check.is_clean() {
                new += 1;
            } else {
                assert_eq!(show(&check.findings), found, "step {}", replay.position());
                old += 1;
                let again = repair_in(&crashed, crashed.storage.clone(), true).expect("repair");
                assert_eq!(show_actions(&again), show_actions(&report));
            }
            assert!(crashed.check(true).is_clean());
            let seen = crashed.seen();
            let same = |(path, one): (&String, &Seen)| seen.get(path) == Some(one);
            assert!(expected.iter().all(same), "step {}", replay.position());
        }
        if replay.step().is_none() {
            break;
        }
    }
    assert!(old > 10 && new > 0, "{old} {new}");
    rest_is_named(&whole, &before, &report);
}
