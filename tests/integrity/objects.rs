//! One object at a time: slots, nodes, the log, superblocks, the configuration, segments.

use crate::world::{Outcome, SPAN, World, move_file, read};
use crate::worlds;
use atrest::storage::sim::SimDisk;
use atrest::storage::{FileId, Storage};
use std::sync::Arc;

const DATA: u32 = 2;
const NODES: [u32; 2] = [0, 1];

/// Slots of a segment that hold something.
fn filled(disk: &SimDisk, segment: u32) -> Vec<u64> {
    let file = FileId::Segment(segment);
    let offsets = (0..SPAN / 4096).map(|slot| slot * 4096);
    offsets.filter(|&offset| read(disk, file, offset) != [0; 4096]).collect()
}

/// Does something to a copy and says what is seen then.
fn after(world: &World, manipulate: impl FnOnce(&SimDisk)) -> Outcome {
    let disk = world.copy();
    manipulate(&disk);
    world.open(&disk)
}

/// Everything that is readable is as it was last; something may be an error.
fn confined(outcome: &Outcome, world: &World, what: &str) -> usize {
    match outcome {
        Outcome::State { state, unreadable, .. } if *state == world.latest() => unreadable.len(),
        other => panic!("{what}: {other:?}"),
    }
}

/// The state is an earlier one or the latest, whole.
fn earlier(outcome: &Outcome, what: &str) -> (usize, bool) {
    match outcome {
        Outcome::State { state, unreadable, said } if unreadable.is_empty() => (*state, *said),
        other => panic!("{what}: {other:?}"),
    }
}

/// Flipped, zeroed, swapped, put back from an older copy: an error for the file, and nothing else.
#[test]
fn slots_of_contents() {
    for world in worlds() {
        let file = FileId::Segment(DATA);
        let slots = filled(&world.disk, DATA);
        let (mut errors, mut cases) = ([0; 4], 0);
        for (index, &offset) in slots.iter().enumerate() {
            let other = slots[(index + 7) % slots.len()];
            let outcomes = [
                after(&world, |disk| disk.flip_bit(file, offset + 1000, 3)),
                after(&world, |disk| disk.overwrite(file, offset, &[0; 4096])),
                after(&world, |disk| {
                    let (a, b) = (read(disk, file, offset), read(disk, file, other));
                    disk.overwrite(file, offset, &b);
                    disk.overwrite(file, other, &a);
                }),
                after(&world, |disk| {
                    disk.overwrite(file, offset, &read(&world.older, file, offset));
                }),
            ];
            for (kind, outcome) in outcomes.iter().enumerate() {
                // Where only the log has a page, what it has is put in its place again.
                errors[kind] += confined(outcome, &world, &format!("slot {offset}, kind {kind}"));
                cases += 1;
            }
        }
        assert!(cases > 100 && errors.iter().all(|&count| count > 0), "{cases}: {errors:?}");
    }
}

/// One copy of a node: nothing is lost. Both: an error for what is below. Never another state.
#[test]
fn tree_nodes() {
    for world in worlds() {
        let mut lost = 0;
        for segment in NODES {
            for offset in filled(&world.disk, segment) {
                let file = FileId::Segment(segment);
                let old = read(&world.older, file, offset);
                let one = [
                    after(&world, |disk| disk.flip_bit(file, offset + 100, 1)),
                    after(&world, |disk| disk.overwrite(file, offset, &[0; 4096])),
                    after(&world, |disk| disk.overwrite(file, offset, &old)),
                ];
                for outcome in one {
                    assert_eq!(outcome, Outcome::exact(world.latest()), "{segment} {offset}");
                }
            }
        }
        // First-fit gives both copies the same place in their segments, mostly.
        for offset in filled(&world.disk, NODES[0]) {
            let both = |disk: &SimDisk, bytes: &dyn Fn(FileId) -> [u8; 4096]| {
                for segment in NODES {
                    let file = FileId::Segment(segment);
                    disk.overwrite(file, offset, &bytes(file));
                }
            };
            let outcomes = [
                after(&world, |disk| both(disk, &|_| [0xaa; 4096])),
                after(&world, |disk| both(disk, &|file| read(&world.older, file, offset))),
                after(&world, |disk| {
                    let other = (offset + 8192) % SPAN;
                    both(disk, &|file| read(&world.disk, file, other));
                }),
            ];
            for outcome in outcomes {
                match outcome {
                    Outcome::Refused(_) => lost += 1,
                    // The older superblock, and the log from there on; it is said.
                    Outcome::State { said: true, .. } => lost += 1,
                    Outcome::State { state, unreadable, .. } => {
                        assert_eq!(state, world.latest(), "both copies at {offset}");
                        lost += unreadable.len();
                    }
                }
            }
        }
        assert!(lost > 0, "no node of the tree was hit");
    }
}

/// What was acknowledged can be cut off only back to the last epoch, and within the log only where
/// a record was; a record that is damaged in front of others is said.
#[test]
fn the_log() {
    let [closed, open] = worlds();
    for outcome in log_cases(&closed) {
        assert_eq!(outcome.1, Outcome::exact(closed.latest()), "closed, {}", outcome.0);
    }
    let (mut cut, mut said) = (0, 0);
    for (what, outcome) in log_cases(&open) {
        let (state, is_said) = earlier(&outcome, &what);
        cut += usize::from(state < open.latest());
        said += usize::from(is_said);
    }
    assert!(cut > 4 && said > 0, "cut {cut}, said {said}");
}

fn log_cases(world: &World) -> Vec<(String, Outcome)> {
    let log = FileId::Log;
    let length = world.disk.length(log).expect("length").expect("a log");
    let mut cases = vec![
        ("removed".into(), after(world, |disk| disk.delete(log).expect("delete"))),
        ("empty".into(), after(world, |disk| disk.set_length(log, 0).expect("truncate"))),
        ("longer".into(), after(world, |disk| disk.set_length(log, length * 2).expect("extend"))),
        ("older".into(), after(world, |disk| world.put_back(disk, log))),
        (
            "moved".into(),
            after(world, |disk| {
                let copy = disk.fork();
                for offset in (0..length).step_by(4096) {
                    disk.overwrite(log, (offset + 4096) % length, &read(&copy, log, offset));
                }
            }),
        ),
    ];
    for offset in (0..length).step_by(4096) {
        if read(&world.disk, log, offset) == [0; 4096] {
            continue;
        }
        cases.push((
            format!("flipped at {offset}"),
            after(world, |disk| disk.flip_bit(log, offset + 200, 2)),
        ));
        cases.push((
            format!("zeroed at {offset}"),
            after(world, |disk| disk.overwrite(log, offset, &[0; 4096])),
        ));
        cases.push((
            format!("cut at {offset}"),
            after(world, |disk| disk.set_length(log, offset).expect("truncate")),
        ));
        let next = (offset + 4096) % length;
        cases.push((
            format!("swapped at {offset}"),
            after(world, |disk| {
                let (a, b) = (read(disk, log, offset), read(disk, log, next));
                disk.overwrite(log, offset, &b);
                disk.overwrite(log, next, &a);
            }),
        ));
    }
    cases
}

/// One superblock: the other opens, and it is said. Both: refused.
#[test]
fn superblocks() {
    for world in worlds() {
        for (file, other) in [(FileId::SuperA, FileId::SuperB), (FileId::SuperB, FileId::SuperA)] {
            let cases: [(&str, Outcome); 7] = [
                ("flipped", after(&world, |disk| disk.flip_bit(file, 300, 1))),
                ("zeroed", after(&world, |disk| disk.overwrite(file, 0, &[0; 4096]))),
                ("truncated", after(&world, |disk| disk.set_length(file, 4000).expect("cut"))),
                ("removed", after(&world, |disk| disk.delete(file).expect("delete"))),
                ("the other", after(&world, |disk| move_file((disk, other), (disk, file)))),
                ("older", after(&world, |disk| world.put_back(disk, file))),
                ("longer", after(&world, |disk| disk.set_length(file, 9000).expect("extend"))),
            ];
            for (what, outcome) in cases {
                let (state, said) = earlier(&outcome, what);
                assert_eq!(said, what != "longer", "{file:?} {what}");
                // The log that the older one leads to may have been written over since.
                assert!(state == world.latest() || !world.closed, "{file:?} {what}: {state}");
            }
        }
        let both = after(&world, |disk| {
            disk.flip_bit(FileId::SuperA, 300, 1);
            disk.flip_bit(FileId::SuperB, 300, 1);
        });
        assert!(matches!(&both, Outcome::Refused(why) if why.contains("neither superblock")));
        let swapped = after(&world, |disk| {
            let copy = disk.fork();
            move_file((&copy, FileId::SuperA), (disk, FileId::SuperB));
            move_file((&copy, FileId::SuperB), (disk, FileId::SuperA));
        });
        assert!(matches!(&swapped, Outcome::Refused(why) if why.contains("neither superblock")));
    }
}

/// Whole segments: what was in them is an error, or is read from the other copy.
#[test]
fn segments() {
    for world in worlds() {
        for segment in [0, 1, DATA] {
            let file = FileId::Segment(segment);
            let cases: [(&str, Outcome); 5] = [
                ("removed", after(&world, |disk| disk.delete(file).expect("delete"))),
                ("truncated", after(&world, |disk| disk.set_length(file, 20_480).expect("cut"))),
                ("longer", after(&world, |disk| disk.set_length(file, 1 << 30).expect("extend"))),
                ("older", after(&world, |disk| world.put_back(disk, file))),
                (
                    "moved",
                    after(&world, |disk| {
                        let copy = disk.fork();
                        move_file((&copy, FileId::Segment(segment ^ 1)), (disk, file));
                    }),
                ),
            ];
            for (what, outcome) in cases {
                let lost = confined(&outcome, &world, what);
                let expected = segment == DATA && what != "longer";
                assert_eq!(lost > 0, expected, "data/{segment:08} {what}: {lost} unreadable");
            }
        }
        let strange = after(&world, |disk| {
            for number in [3, 8, 77] {
                move_file((&world.disk, FileId::Segment(DATA)), (disk, FileId::Segment(number)));
            }
        });
        assert_eq!(strange, Outcome::exact(world.latest()), "added segments are nothing");
    }
}

/// Any other configuration than the one that the superblock names.
#[test]
fn configuration() {
    for world in worlds() {
        let disk = world.copy();
        let storage: Arc<dyn Storage> = disk;
        let error = world.open_with_config(&storage, b"{}").expect_err("another configuration");
        assert!(error.contains("atrest.json is not the one"), "{error}");
    }
}
