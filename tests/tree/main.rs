//! The tree against a `BTreeMap`, over a store in memory that watches how it is used.
//!
//! Random batches of several shapes are applied to both; damage is done to every node in turn;
//! pages are decoded that nobody encoded. `ATREST_SEED=<printed number>` replays a failure.

mod damage;
mod decode;
mod model;
mod prune;
mod random;
mod store;

use atrest::tree::{Change, Error, KEY_BYTES_MAX, VALUE_BYTES_MAX, apply};
use model::{Model, batch};
use random::Random;

/// Lengths of keys and values.
#[derive(Clone, Copy, Debug)]
enum Sizes {
    /// Keys of 1 to 3 bytes, values of 0 to 8.
    Tiny,
    /// As most records are: 17-byte keys with much in common, values of about 60 bytes.
    Usual,
    /// The largest keys and values there may be, with the smallest between them.
    Extreme,
    /// Long keys that differ at their end or at their beginning.
    Prefixes,
    /// Keys that make long separators with little in common, so that interior nodes have about ten
    /// children and the tree is high.
    Steep,
}

impl Sizes {
    /// The key for a number, in the order of the numbers (but for `Extreme`).
    fn key(self, number: usize) -> Vec<u8> {
        let big_endian = (number as u64).to_be_bytes();
        match self {
            Self::Tiny if number < 256 => vec![number as u8],
            Self::Tiny => big_endian[5..].to_vec(),
            Self::Usual => [&[2], &big_endian[..], &(number as u64 % 7).to_be_bytes()].concat(),
            Self::Extreme => {
                let length = [1, 8, 40, KEY_BYTES_MAX][number % 4];
                let mut key = ((number as u64).wrapping_mul(0x9e37_79b9)).to_be_bytes().to_vec();
                key.rotate_left(4);
                key.resize(length, number as u8);
                key
            }
            Self::Prefixes => {
                let mut key = big_endian[5..7].to_vec();
                key.resize(200 + (number >> 8) % 100, (number >> 4) as u8);
                key.extend_from_slice(&big_endian);
                key
            }
            Self::Steep => {
                let mut key = big_endian[4..].to_vec();
                let last = key[3] % 2;
                key[3] -= last;
                key.resize(310, 0);
                key.push(last);
                key
            }
        }
    }

    fn value(self, random: &mut Random) -> Vec<u8> {
        let length = match self {
            Self::Tiny => random.below(9),
            Self::Usual => 40 + random.below(40),
            Self::Prefixes => random.below(300),
            Self::Steep => random.below(1_200),
            Self::Extreme => {
                [0, 1, VALUE_BYTES_MAX, VALUE_BYTES_MAX - 1, random.below(1400)][random.below(5)]
            }
        };
        random.bytes(length)
    }
}

/// Applies 25 batches of each shape to a tree of up to `numbers` records and compares as it goes.
fn compare(name: &str, sizes: Sizes, numbers: usize, batch_max: usize) {
    let mut random = Random::new(name);
    let mut model = Model::default();
    let mut next = numbers / 2;
    let mut changes_count = 0;
    for round in 0..6 * 25 {
        let count = 1 + random.below(batch_max);
        let start = random.below(numbers);
        let deletes_percent = [10, 10, 10, 15, 50, 90][round / 25];
        let mut changes = Vec::new();
        for step in 0..count {
            let number = match round / 25 {
                0 => {
                    next = (next + 1) % numbers;
                    next
                }
                1 => (start + count - step) % numbers,
                2 | 4 => random.below(numbers),
                3 => (start + random.below(count)) % numbers,
                _ => (start + step) % numbers,
            };
            let value = (!random.chance(deletes_percent)).then(|| sizes.value(&mut random));
            changes.push((sizes.key(number % numbers), value));
        }
        let batch = batch(changes);
        changes_count += batch.len();
        model.apply(&batch);
        model.check_some(&mut random, &mut |random| sizes.key(random.below(numbers)));
        if round % 5 == 0 {
            model.check_all();
        } else {
            model.census();
        }
    }
    model.check_all();
    let all: Vec<_> = model.map.keys().map(|key| (key.clone(), None)).collect();
    model.apply(&batch(all));
    assert!(model.root.is_none() && model.store.nodes.is_empty(), "an empty tree has no nodes");
    println!("{name}: {changes_count} changes");
}

#[test]
fn tiny_records() {
    compare("tiny_records", Sizes::Tiny, 200_000, 20_000);
}

#[test]
fn usual_records() {
    compare("usual_records", Sizes::Usual, 150_000, 15_000);
}

#[test]
fn extreme_records() {
    compare("extreme_records", Sizes::Extreme, 20_000, 2_000);
}

#[test]
fn long_prefixes() {
    compare("long_prefixes", Sizes::Prefixes, 40_000, 4_000);
}

#[test]
fn steep_trees() {
    compare("steep_trees", Sizes::Steep, 20_000, 1_000);
    compare("steep_trees, small batches", Sizes::Steep, 3_000, 30);
}

#[test]
fn small_batches_to_small_trees() {
    for sizes in [Sizes::Tiny, Sizes::Usual, Sizes::Extreme, Sizes::Prefixes, Sizes::Steep] {
        for numbers in [3, 30, 300] {
            compare(&format!("small {sizes:?} {numbers}"), sizes, numbers, 8);
        }
    }
}

fn load(sizes: Sizes, numbers: std::ops::Range<usize>, random: &mut Random) -> Vec<Change> {
    batch(numbers.map(|number| (sizes.key(number), Some(sizes.value(random)))))
}

/// Bytes of leaves in use, of all there are.
fn leaf_fill(model: &Model) -> f64 {
    let census = model.check_all();
    census.leaf_bytes as f64 / (census.leaves * 4096) as f64
}

#[test]
fn sequential_loads_fill_leaves() {
    let mut random = Random::new("sequential_loads_fill_leaves");
    let count = 100_000;
    for (batch_size, at_least) in [(count, 0.94), (5_000, 0.94), (300, 0.90), (7, 0.90)] {
        let count = if batch_size < 100 { count / 10 } else { count };
        let mut model = Model::default();
        for start in (0..count).step_by(batch_size) {
            let end = (start + batch_size).min(count);
            model.apply(&load(Sizes::Usual, start..end, &mut random));
        }
        let census = model.census();
        let nodes_bytes = model.store.nodes.len() * 4096;
        let bytes_per_record = nodes_bytes as f64 / census.records as f64;
        let fill = leaf_fill(&model);
        println!("batches of {batch_size}: {fill:.3} full, {bytes_per_record:.1} bytes per record");
        assert!(fill >= at_least);
    }
}

/// Tables lie next to each other in one tree: each grows at its own end, inside the tree.
#[test]
fn loads_in_front_of_other_records_fill_leaves() {
    let mut random = Random::new("loads_in_front_of_other_records_fill_leaves");
    let mut model = Model::default();
    for start in (0..4_000).step_by(20) {
        let tables = [1, 2, 3].into_iter().flat_map(|table| {
            (start..start + 20).map(move |number| {
                let mut key = Sizes::Usual.key(number);
                key[0] = table;
                key
            })
        });
        let changes: Vec<_> =
            tables.map(|key| (key, Some(Sizes::Usual.value(&mut random)))).collect();
        model.apply(&batch(changes));
    }
    let fill = leaf_fill(&model);
    println!("three growing tables: {fill:.3} full");
    assert!(fill >= 0.85);
}

#[test]
fn random_inserts_leave_leaves_well_filled() {
    let mut random = Random::new("random_inserts_leave_leaves_well_filled");
    let mut model = Model::default();
    for _ in 0..500 {
        let changes: Vec<_> = (0..100)
            .map(|_| (Sizes::Usual.key(random.below(1 << 40)), Some(random.bytes(60))))
            .collect();
        model.apply(&batch(changes));
    }
    let fill = leaf_fill(&model);
    println!("random: {fill:.3} full");
    assert!(fill >= 0.6);
}

/// Deletes in batches so small that neighbours of changed leaves are unchanged, in random order and
/// from one place outwards to either side, until little or nothing remains.
#[test]
fn deletions_shrink_the_tree() {
    let mut random = Random::new("deletions_shrink_the_tree");
    for (sizes, count) in [(Sizes::Usual, 20_000), (Sizes::Steep, 4_000)] {
        let mut full = Model::default();
        full.apply(&load(sizes, 0..count, &mut random));
        let before = full.census();
        for (shape, batch_max) in [("random", 7), ("upwards", 7), ("downwards", 7), ("random", 60)]
        {
            let mut model = full.clone();
            let mut keys: Vec<_> = model.map.keys().cloned().collect();
            for keep in [keys.len() / 20, 0] {
                let middle = if keep == 0 { 0 } else { keys.len() / 3 };
                while keys.len() > keep {
                    let gone = (1 + random.below(batch_max)).min(keys.len() - keep);
                    let gone: Vec<_> = (0..gone)
                        .map(|_| match shape {
                            "random" => keys.remove(random.below(keys.len())),
                            "upwards" => keys.remove(middle.min(keys.len() - 1)),
                            _ => keys.remove(middle.min(keys.len()).saturating_sub(1)),
                        })
                        .map(|key| (key, None))
                        .collect();
                    model.apply(&batch(gone));
                }
                let after = model.check_all();
                println!(
                    "{sizes:?} {shape} {batch_max}: {} leaves, then {}, {} nodes, {} underfull",
                    before.leaves,
                    after.leaves,
                    after.live.len(),
                    after.underfull
                );
                assert!(after.leaves * 8 <= before.leaves, "at most 5 % of the records remain");
                assert!(after.underfull <= 2 + after.live.len() / 50);
            }
            assert!(model.root.is_none());
        }
    }
}

/// Cuts one range out of high trees of all sizes: what is left of a node may be alone under its
/// parent, and that one alone under its own; neighbours are under other parents then, or nowhere.
#[test]
fn cuts_leave_no_stumps() {
    let mut random = Random::new("cuts_leave_no_stumps");
    for round in 0..600 {
        let count = 2 + random.below(600);
        let mut model = Model::default();
        model.apply(&steep(0..count));
        let (a, b) = (random.below(count), random.below(count) + 1);
        let cut = match round % 3 {
            0 => 0..b.min(count - 1),
            1 => a.max(1)..count,
            _ => a.min(b)..a.max(b),
        };
        model.apply(&batch(cut.map(|number| (Sizes::Steep.key(number), None))));
        let census = model.check_all();
        assert_eq!(census.underfull, 0);
        // The last leaf may be small because it is new, not because it was cut.
        assert!(round % 3 != 1 || !census.last_leaf_underfull);
    }
}

fn steep(numbers: std::ops::Range<usize>) -> Vec<Change> {
    let value = |number| vec![7; 400 + number % 600];
    batch(numbers.map(|number| (Sizes::Steep.key(number), Some(value(number)))))
}

/// At the right edge a node may have one child. If nothing but that edge remains, the child is the
/// root.
#[test]
fn the_last_leaf_becomes_the_root() {
    for count in 2..300 {
        let mut model = Model::default();
        model.apply(&steep(0..count));
        let first = count - model.census().last_leaf_records;
        model.apply(&batch((0..first).map(|number| (Sizes::Steep.key(number), None))));
        model.check_all();
        assert_eq!(model.root.unwrap().level, 0);
    }
}

#[test]
fn nothing_is_written_when_nothing_changes() {
    let mut random = Random::new("nothing_is_written_when_nothing_changes");
    let mut model = Model::default();
    model.apply(&load(Sizes::Usual, 0..20_000, &mut random));
    let same = model.map.iter().step_by(7).map(|(key, value)| (key.clone(), Some(value.to_vec())));
    let absent = (20_000..20_100).map(|number| (Sizes::Usual.key(number), None));
    let changes: Vec<_> = same.chain(absent).collect();
    let root = model.root;
    model.apply(&batch(changes.clone()));
    assert_eq!((model.root, model.store.freed), (root, 0));
    assert!(model.store.written.is_empty());

    // One change among them rewrites one path.
    let changes = changes.into_iter().chain([(Sizes::Usual.key(10_000), Some(vec![1]))]);
    model.apply(&batch(changes));
    let height = usize::from(root.unwrap().level) + 1;
    assert_eq!((model.store.written.len(), model.store.freed), (height, height));
}

#[test]
fn one_change_costs_one_path() {
    let mut random = Random::new("one_change_costs_one_path");
    let mut model = Model::default();
    model.apply(&load(Sizes::Usual, 0..60_000, &mut random));
    for _ in 0..300 {
        let key = Sizes::Usual.key(random.below(60_000));
        model.apply(&batch([(key, Some(Sizes::Usual.value(&mut random)))]));
        let height = usize::from(model.root.unwrap().level) + 1;
        assert!(model.store.written.len() <= height + 1 && model.store.reads.get() <= height);
    }
}

/// Upper levels are written while leaves still come: nothing waits in memory for the end.
#[test]
fn leaves_are_written_as_they_are_finished() {
    let mut random = Random::new("leaves_are_written_as_they_are_finished");
    let mut model = Model::default();
    model.apply(&load(Sizes::Usual, 0..50_000, &mut random));
    let first_parent = model.store.written.iter().position(|level| *level == 1).unwrap();
    assert!(first_parent < 200, "{first_parent} leaves came before their parent");
}

#[test]
fn refused_batches_change_nothing() {
    let mut model = Model::default();
    model.apply(&batch([(vec![1], Some(vec![2]))]));
    let change =
        |key: Vec<u8>, value: Vec<u8>| Change { key: key.into(), value: Some(value.into()) };
    let refused = [
        vec![change(vec![2], vec![]), change(vec![1], vec![])],
        vec![change(vec![2], vec![]), change(vec![2], vec![])],
        vec![change(vec![2; KEY_BYTES_MAX + 1], vec![])],
        vec![change(vec![2], vec![0; VALUE_BYTES_MAX + 1])],
    ];
    for batch in refused {
        let mut observe = |_: &[u8], _: Option<&[u8]>, _: Option<&[u8]>| panic!("too early");
        for root in [None, model.root] {
            let result = apply(&mut model.store, root, &batch, &mut observe);
            assert!(matches!(result, Err(Error::Batch(_))));
        }
    }
    model.check_all();
}
