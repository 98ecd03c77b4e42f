//! Scripts about space that is freed and written again, the log, the ends of epochs, and keys.

use crate::script::write_down::*;
use crate::script::{Op, Script};
use crate::scripts::{all, file};
use atrest::fs::Allocate;

/// All of them.
pub fn all_scripts() -> Vec<Script> {
    let mut scripts = reuse();
    scripts.extend(log());
    scripts.extend(epochs());
    scripts
}

/// Slots that are freed and used again.
fn reuse() -> Vec<Script> {
    let mut racing = Vec::new();
    for round in 2..6u8 {
        racing.push(write("a", 0, 8_192, round));
        racing.push(Op::EpochEnd);
        racing.push(write("b", 4_096, 4_096, round));
        racing.push(if round % 2 == 0 { fsync("b") } else { Op::EpochEnd });
    }
    let mut reused = Vec::new();
    for round in 0..4u8 {
        reused.extend([create("d/a"), write("d/a", 0, 30_000, round), link("d/a", "l")]);
        reused.push(Op::EpochEnd);
        reused.extend([unlink("d/a"), unlink("l"), Op::Sync]);
    }
    let mut many = Vec::new();
    for round in 0..6u8 {
        for index in 0..10usize {
            let path = format!("file-{round}-{index}");
            many.push(create(&path));
            many.push(write(&path, 0, 1 + usize::from(round) * 900 + index * 300, round));
        }
        many.push(write(&format!("file-{round}-3"), 1_000, 500, 0x80));
        many.push(if round % 3 == 1 { Op::EpochEnd } else { Op::Sync });
    }
    vec![
        Script::new(
            "two_files_race_for_freed_slots",
            all([file("a", 8_192), file("b", 12_288)]),
            racing,
        ),
        Script::new("unlink_and_reuse_of_space", vec![mkdir("d")], reused),
        Script::new("many_files_over_many_epochs", vec![], many),
        Script::new(
            "large_file_goes",
            file("large", 3 << 20),
            vec![
                unlink("large"),
                Op::EpochEnd,
                create("a"),
                write("a", 0, 100_000, 2),
                Op::EpochEnd,
                append("a", 100_000, 3),
                Op::EpochEnd,
                append("a", 9_000, 4),
                fsync("a"),
            ],
        ),
        Script::new(
            "freed_slot_between_used_ones",
            all([file("a", 12_288), file("b", 12_288)]),
            vec![
                write("a", 4_096, 4_096, 2),
                Op::EpochEnd,
                Op::EpochEnd,
                Op::EpochEnd,
                create("c"),
                write("c", 0, 4_096, 3),
                fsync("c"),
                append("c", 4_096, 4),
            ],
        ),
        Script::new(
            "segment_is_emptied",
            all([file("a", 40_000), file("b", 9_000), vec![unlink("b")]]),
            vec![
                write("a", 4_096, 100, 2),
                Op::Evacuate(2),
                write("a", 0, 8_192, 3),
                fsync("a"),
                Op::Evacuate(3),
                append("a", 9_000, 4),
                fsync("a"),
            ],
        ),
    ]
}

/// What goes into the log, and what does not.
fn log() -> Vec<Script> {
    // More than the log holds: it goes round, and what does not fit ends epochs.
    let mut wrapping = Vec::new();
    for round in 2..12u8 {
        wrapping.extend([write("a", 4_096 * u64::from(round), 36_000, round), fsync("a")]);
        wrapping.extend((round % 4 == 3).then_some(Op::EpochEnd));
        wrapping.push(append("b", 700, round));
    }
    let mut overflowing = Vec::new();
    for round in 2..8u8 {
        let value = Op::SetXattr("a".into(), "user.large", 60_000, round);
        overflowing.extend([value, append("b", 10, round), fsync("b")]);
        overflowing.push(Op::SetXattr("b".into(), "user.larger", 65_000, round));
    }
    vec![
        Script::new("log_goes_round", all([file("a", 8_192), file("b", 100)]), wrapping),
        Script::new("log_overflows", all([file("a", 8_192), file("b", 100)]), overflowing),
        Script::new(
            "create_large",
            vec![],
            vec![create("a"), write("a", 0, 90_000, 1), fsync("a")],
        ),
        Script::new(
            "fsync_of_much_beside_little",
            all([file("a", 100), file("b", 100)]),
            vec![write("a", 0, 90_000, 2), write("b", 0, 9_000, 3), fsync("b"), append("a", 9, 4)],
        ),
    ]
}

/// Ends of epochs.
fn epochs() -> Vec<Script> {
    let keep_size = true;
    vec![
        Script::new(
            "fsync_while_an_epoch_ends",
            all([file("a", 8_192), file("b", 100)]),
            vec![
                write("a", 0, 4_096, 2),
                Op::EpochEndAround(3, vec![append("b", 5_000, 3), fsync("b")]),
                write("a", 4_096, 4_096, 4),
                fsync("a"),
            ],
        ),
        Script::new(
            "fsync_while_an_epoch_begins_to_end",
            all([file("a", 8_192), file("b", 100)]),
            vec![
                write("a", 0, 8_192, 2),
                Op::EpochEndAround(0, vec![append("b", 50, 3), fsync("b"), fsync("a")]),
                append("b", 60, 4),
                fsync("b"),
            ],
        ),
        Script::new(
            "key_rotation",
            file("a", 5_000),
            vec![
                write("a", 0, 10, 2),
                Op::ReplaceConfig(1),
                append("a", 100, 3),
                Op::ReplaceConfig(2),
                fsync("a"),
            ],
        ),
        Script::new(
            "sync_of_nothing",
            file("a", 10),
            vec![
                Op::Sync,
                Op::Sync,
                Op::EpochEnd,
                Op::Allocate {
                    path: "a".into(),
                    offset: 0,
                    length: 10,
                    what: Allocate::Zero { keep_size },
                },
                fsync("a"),
                fsync("a"),
                Op::EpochEnd,
                Op::EpochEnd,
            ],
        ),
    ]
}
