//! Bounded black-box sequences, of the sort that CrashMonkey makes (Mohan et al., "Finding
//! Crash-Consistency Bugs with Bounded Black-Box Crash Testing", 2018): all short sequences of a
//! few operations on a few files, each followed by a sync of one of them. And long random ones.

use crate::script::write_down::*;
use crate::script::{Op, Script};
use atrest::fs::Allocate;
use atrest::storage::sim::Random;

/// What is there and durable before every sequence.
fn setup() -> Vec<Op> {
    vec![
        mkdir("A"),
        mkdir("B"),
        create("A/foo"),
        write("A/foo", 0, 9_000, 1),
        Op::SetXattr("A/foo".into(), "user.old", 30, 1),
        create("foo"),
        write("foo", 0, 700, 2),
    ]
}

/// The operations.
fn operations() -> Vec<Op> {
    let zero_keeping = Allocate::Zero { keep_size: true };
    let mut ops = vec![
        create("A/bar"),
        create("B/foo"),
        mkdir("A/dir"),
        mkdir("B/dir"),
        Op::Symlink("B/foo".into(), 20),
        Op::Mknod("A/bar".into()),
        write("A/foo", 0, 4_096, 3),
        write("A/foo", 4_000, 200, 4),
        append("A/foo", 6_000, 5),
        append("foo", 100, 6),
        append("foo", 5_000, 7),
        write("foo", 300, 10, 8),
        truncate("A/foo", 0),
        truncate("A/foo", 2_500),
        truncate("A/foo", 20_000),
        truncate("foo", 10),
        truncate("foo", 3_000),
        punch("A/foo", 1_000, 7_000),
        zero("A/foo", 5_000, 9_000),
        allocate("A/foo", 8_192, 8_192, false),
        allocate("foo", 0, 9_000, true),
        Op::Allocate { path: "A/foo".into(), offset: 0, length: 4_096, what: zero_keeping },
        Op::SetXattr("A/foo".into(), "user.new", 2_000, 9),
        Op::RemoveXattr("A/foo".into(), "user.old"),
        Op::Chmod("foo".into(), 0o600),
        Op::Utimens("A".into(), 99),
        rmdir("B"),
        Op::Exchange("A/foo".into(), "foo".into()),
        rename("A", "C"),
        rename("A", "B"),
    ];
    let pairs = [("A/foo", "A/bar"), ("A/foo", "B/foo"), ("A/foo", "foo"), ("foo", "A/foo")];
    ops.extend(pairs.iter().map(|(from, to)| rename(from, to)));
    ops.extend(pairs[..2].iter().map(|(from, to)| link(from, to)));
    ops.push(link("foo", "A/bar"));
    ops.extend(["A/foo", "A/bar", "B/foo", "foo"].map(unlink));
    ops
}

/// The syncs that may end a sequence.
fn syncs() -> Vec<Op> {
    let mut syncs = vec![Op::Sync, Op::EpochEnd];
    syncs.extend(["A/foo", "foo", "A", "B/foo"].map(fsync));
    syncs.extend(["A/bar", "foo"].map(fdatasync));
    syncs
}

fn sequence(numbers: &[usize], sync: usize) -> Script {
    let operations = operations();
    let ops = numbers.iter().map(|number| operations[*number].clone());
    let name: Vec<String> = numbers.iter().map(usize::to_string).collect();
    Script {
        name: format!("bounded-{}-sync-{sync}", name.join("-")),
        setup: setup(),
        ops: ops.chain([syncs()[sync].clone()]).collect(),
        may_fail: true,
    }
}

/// Every operation alone, with every sync.
pub fn of_length_one() -> Vec<Script> {
    let all = 0..operations().len();
    all.flat_map(|op| (0..syncs().len()).map(move |sync| sequence(&[op], sync))).collect()
}

/// Every pair of operations, with a sync drawn for each.
pub fn of_length_two(random: &mut Random) -> Vec<Script> {
    let (all, syncs) = (operations().len(), syncs().len() as u64);
    let pairs = (0..all).flat_map(|one| (0..all).map(move |other| [one, other]));
    pairs.map(|pair| sequence(&pair, random.below(syncs) as usize)).collect()
}

/// So many sequences of three operations, drawn.
pub fn of_length_three(count: usize, random: &mut Random) -> Vec<Script> {
    let (all, syncs) = (operations().len() as u64, syncs().len() as u64);
    let mut draw = |below| random.below(below) as usize;
    (0..count).map(|_| sequence(&[draw(all), draw(all), draw(all)], draw(syncs))).collect()
}

const NAMES: [&str; 7] = ["A/foo", "A/bar", "B/foo", "B/bar", "foo", "bar", "A/dir"];

fn name(random: &mut Random) -> String {
    NAMES[random.below(NAMES.len() as u64) as usize].into()
}

/// A long sequence of random operations; its seed is in its name.
pub fn random(seed: u64, length: usize) -> Script {
    let random = &mut Random::new(seed);
    let mut ops = Vec::new();
    while ops.len() < length {
        ops.push(random_operation(random));
        if random.below(5) == 0 {
            let sync = syncs()[random.below(syncs().len() as u64) as usize].clone();
            ops.push(sync);
        }
    }
    Script { name: format!("random-{seed}"), setup: setup(), ops, may_fail: true }
}

fn random_operation(random: &mut Random) -> Op {
    let path = name(random);
    let other = name(random);
    let offset = [0, random.below(2_000), random.below(20_000), 4_096 * random.below(5)]
        [random.below(4) as usize];
    let length = [random.below(500), random.below(9_000), 4_096 * (1 + random.below(3))]
        [random.below(3) as usize]
        .max(1);
    let byte = 1 + random.below(250) as u8;
    let (size, slot) = (length as usize, random.below(2) as u8);
    match random.below(31) {
        0..=2 => Op::Create(path),
        3 => Op::Mkdir(path),
        4 => Op::Link(path, other),
        5 | 6 => Op::Unlink(path),
        7 => Op::Rmdir(path),
        8..=10 => Op::Rename(path, other),
        11 => Op::Exchange(path, other),
        12..=15 => Op::Write { path, offset, length: size, byte },
        16 => Op::WriteKilling { path, offset, length: size, byte },
        17 | 18 => Op::Append { path, length: size, byte },
        19 => Op::Truncate(path, offset),
        20 => Op::OpenTruncated(path),
        21 => Op::Allocate { path, offset, length, what: Allocate::Punch },
        22 => Op::Allocate { path, offset, length, what: Allocate::Zero { keep_size: false } },
        23 => Op::Allocate { path, offset, length, what: Allocate::Reserve { keep_size: false } },
        24 => Op::Copy { from: path, from_offset: 0, to: other, to_offset: offset, length },
        25 => Op::Chmod(path, 0o600 | u16::from(byte) & 0o77),
        26 => Op::SetXattr(path, "security.capability", 20, byte),
        27 => Op::SetXattr(path, "user.random", size, byte),
        28 => Op::SetAll(path, offset, 0o640),
        29 => Op::Open(path, slot),
        _ => Op::Close(slot),
    }
}
