//! Any set of files put back from an older copy, short of the whole.

use crate::world::{Outcome, World};
use crate::worlds;
use atrest::storage::FileId;

const FILES: [FileId; 6] = [
    FileId::SuperA,
    FileId::SuperB,
    FileId::Log,
    FileId::Segment(0),
    FileId::Segment(1),
    FileId::Segment(2),
];

/// Every subset of all the files there are. What is seen is one state, perhaps with errors.
#[test]
fn every_set_of_files_is_one_state() {
    for world in worlds() {
        let (mut whole, mut damaged, mut refused, mut older) = (0, 0, 0, 0);
        for set in 1..(1u32 << FILES.len()) - 1 {
            let disk = world.copy();
            let chosen = FILES.iter().enumerate().filter(|(bit, _)| set & 1 << bit != 0);
            chosen.for_each(|(_, &file)| world.put_back(&disk, file));
            match world.open(&disk) {
                Outcome::Refused(_) => refused += 1,
                Outcome::State { state, unreadable, said } => {
                    // With both superblocks it is an older volume, which only a host knows that
                    // has seen a newer one; with one, and the nodes, it is said.
                    let known = set & 3 == 3 || said;
                    assert!(state > world.older_state || known, "set {set:06b}: state {state}");
                    older += usize::from(state <= world.older_state);
                    whole += usize::from(unreadable.is_empty());
                    damaged += usize::from(!unreadable.is_empty());
                }
            }
        }
        println!("whole {whole}, damaged {damaged}, refused {refused}, older {older}");
        assert_eq!(whole + damaged + refused, (1 << FILES.len()) - 2);
        assert!(whole > 0 && damaged > 0, "{whole} {damaged} {refused}");
    }
}

/// Single slots of several segments at once, put back together with one superblock or none.
#[test]
fn sets_of_slots_are_one_state() {
    for world in worlds() {
        for seed in 1..40u64 {
            put_back_slots(&world, seed);
        }
    }
}

/// `seed` chooses the slots; a failure names it.
fn put_back_slots(world: &World, seed: u64) {
    let mut random = atrest::storage::sim::Random::new(seed);
    let disk = world.copy();
    for segment in 0..3 {
        let file = FileId::Segment(segment);
        for offset in world.changed_slots(segment) {
            if random.next() % 3 == 0 {
                disk.overwrite(file, offset, &crate::world::read(&world.older, file, offset));
            }
        }
    }
    match seed % 4 {
        1 => world.put_back(&disk, FileId::SuperA),
        2 => world.put_back(&disk, FileId::SuperB),
        3 => world.put_back(&disk, FileId::Log),
        _ => {}
    }
    println!("seed {seed}");
    if let Outcome::State { state, .. } = world.open(&disk) {
        assert!(state > world.older_state, "seed {seed}: state {state}");
    }
}
