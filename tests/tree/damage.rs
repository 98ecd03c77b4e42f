//! Nodes that cannot be read, or written.

use crate::model::{Census, Model, batch};
use crate::random::Random;
use crate::{Sizes, load};
use atrest::format::NodePointer;
use atrest::format::node::Node;
use atrest::tree::{self, Error, NodeSource, Place, Root, Visitor};
use std::ops::ControlFlow;
use std::sync::Arc;

fn is_damaged<T>(result: &Result<T, Error>, pointer: &NodePointer) -> bool {
    matches!(result, Err(Error::Damaged(damaged)) if damaged == pointer)
}

/// Damages every node in turn. What is below it fails, what is not is right; a walk finds exactly
/// it; a batch fails if it changes something below it, and works otherwise.
#[test]
fn damage_is_confined_to_its_subtree() {
    let mut random = Random::new("damage_is_confined_to_its_subtree");
    let mut model = Model::default();
    model.apply(&load(Sizes::Prefixes, 0..4_000, &mut random));
    let census = model.census();
    assert!(model.root.unwrap().level >= 2);
    for (pointer, _) in &census.pointers {
        let mut broken = model.clone();
        broken.store.damaged.insert(pointer.slots[0].0);
        let mut found = Census::default();
        tree::walk(&broken.store, broken.root.as_ref(), &mut found);
        let [(slot, from, to)] = &found.damaged[..] else { panic!("one node is damaged") };
        assert_eq!(*slot, pointer.slots[0].0);
        let is_below = |key: &[u8]| key >= &from[..] && to.as_ref().is_none_or(|to| key < &to[..]);

        let mut lost = 0;
        for (key, value) in &model.map {
            let got = tree::get(&broken.store, broken.root.as_ref(), key);
            if is_below(key) {
                assert!(is_damaged(&got, pointer));
                lost += 1;
            } else {
                assert_eq!(got.unwrap().as_deref(), Some(&**value));
            }
        }
        assert!(lost > 0);
        let overlaps = |range: [&[u8]; 2]| {
            &from[..] < range[1] && to.as_ref().is_none_or(|to| range[0] < &to[..])
        };
        check_ranges(&broken, pointer, &mut random, &overlaps);
        broken.check_range(&[], from, 100_000);
        broken.check_range(to.as_deref().unwrap_or(&[0xff; 321]), &[0xff; 321], 100_000);
        check_batches(&broken, pointer, &mut random, &is_below);
    }
}

fn check_ranges(
    broken: &Model,
    pointer: &NodePointer,
    random: &mut Random,
    overlaps: &dyn Fn([&[u8]; 2]) -> bool,
) {
    for _ in 0..3 {
        let start = random.below(3_900);
        let (from, to) = (Sizes::Prefixes.key(start), Sizes::Prefixes.key(start + 50));
        let mut seen = 0;
        let result = tree::range(&broken.store, broken.root.as_ref(), &from, &to, &mut |key, _| {
            assert!(broken.map.contains_key(key));
            seen += 1;
            ControlFlow::Continue(())
        });
        if overlaps([&from, &to]) {
            assert!(is_damaged(&result, pointer));
        } else {
            assert!(result.is_ok() && seen == 50);
        }
    }
}

fn check_batches(
    broken: &Model,
    pointer: &NodePointer,
    random: &mut Random,
    is_below: &dyn Fn(&[u8]) -> bool,
) {
    for _ in 0..3 {
        // Deletes long stretches, so that neighbours of the damage become underfull.
        let mut broken = broken.clone();
        let start = random.below(4_000);
        let keys = (start..(start + 100).min(4_000)).map(|number| Sizes::Prefixes.key(number));
        let batch = batch(keys.filter(|_| random.chance(95)).map(|key| (key, None)));
        if batch.iter().any(|change| is_below(&change.key)) {
            broken.store.begin();
            let result = tree::apply(&mut broken.store, broken.root, &batch, &mut |_, _, _| {});
            assert!(is_damaged(&result, pointer));
            continue;
        }
        broken.apply(&batch);
        let mut found = Census::default();
        tree::walk(&broken.store, broken.root.as_ref(), &mut found);
        assert_eq!(found.damaged.len(), 1, "the damaged node is still where it was");
    }
}

/// Fails every write of a batch in turn: the batch fails, nothing panics.
#[test]
fn full_disks_fail_the_batch() {
    let mut random = Random::new("full_disks_fail_the_batch");
    let mut model = Model::default();
    model.apply(&load(Sizes::Usual, 0..5_000, &mut random));
    let changes: Vec<_> = (0..60)
        .map(|_| (Sizes::Usual.key(random.below(6_000)), random.chance(50).then(|| vec![7; 900])))
        .collect();
    let batch = batch(changes);
    let mut good = model.clone();
    good.apply(&batch);
    for writes in 0..good.store.written.len() {
        let mut full = model.clone();
        full.store.writes_left = Some(writes);
        full.store.begin();
        let result = tree::apply(&mut full.store, full.root, &batch, &mut |_, _, _| {});
        assert!(matches!(result, Err(Error::NoSpace)));
    }
}

/// A source that returns some other node than the one that was asked for: as if a program had
/// written nonsense that authenticates.
struct Swapped<'a> {
    model: &'a Model,
    nodes: Vec<Arc<Node>>,
    seed: u64,
}

impl NodeSource for Swapped<'_> {
    fn read(&self, pointer: &NodePointer, level: u8) -> Result<Arc<Node>, Error> {
        let draw = Random::seeded(self.seed ^ pointer.slots[0].0).next();
        if draw % 4 > 0 {
            return self.model.store.read(pointer, level);
        }
        Ok(self.nodes[draw as usize / 4 % self.nodes.len()].clone())
    }
}

impl tree::NodeSink for Swapped<'_> {
    fn write(&mut self, _: u8, _: Node) -> Result<NodePointer, Error> {
        Ok(self.model.root.expect("some pointer").pointer)
    }

    fn free(&mut self, _: &NodePointer) {}
}

/// Counts what a walk could not read, and skips leaves.
#[derive(Default)]
struct Interior {
    read: usize,
    leaves: usize,
}

impl Visitor for Interior {
    fn enter(&mut self, place: Place<'_>) -> bool {
        self.leaves += usize::from(place.level == 0);
        place.level > 0
    }

    fn node(&mut self, place: Place<'_>, node: &Node) {
        assert_eq!(node.level(), place.level);
        self.read += 1;
    }

    fn damaged(&mut self, _: Place<'_>, error: &Error) {
        assert!(matches!(error, Error::Malformed { .. }));
    }
}

#[test]
fn misplaced_nodes_never_panic() {
    let mut random = Random::new("misplaced_nodes_never_panic");
    let mut model = Model::default();
    model.apply(&load(Sizes::Prefixes, 0..4_000, &mut random));
    let nodes: Vec<_> = model.store.nodes.values().map(|(_, node)| node.clone()).collect();
    let mut refused = 0;
    for _ in 0..300 {
        let mut source = Swapped { model: &model, nodes: nodes.clone(), seed: random.next() };
        let number = random.below(4_000);
        let key = Sizes::Prefixes.key(number);
        let _ = tree::get(&source, model.root.as_ref(), &key);
        let to = Sizes::Prefixes.key(number + 300);
        let visit = &mut |_: &[u8], _: &[u8]| ControlFlow::Continue(());
        let _ = tree::range(&source, model.root.as_ref(), &key, &to, visit);
        tree::walk(&source, model.root.as_ref(), &mut Interior::default());
        let keys = (number..number + 300).map(|number| (Sizes::Prefixes.key(number), None));
        let result = tree::apply(&mut source, model.root, &batch(keys), &mut |_, _, _| {});
        refused += usize::from(matches!(result, Err(Error::Malformed { .. })));
    }
    assert!(refused > 100, "misplaced nodes are noticed: {refused}");
}

/// A leaf that is another leaf's twin: its keys do not belong there, although they ascend.
#[test]
fn keys_outside_of_their_bounds_are_noticed() {
    struct Twin(Model, NodePointer, Arc<Node>);
    impl NodeSource for Twin {
        fn read(&self, pointer: &NodePointer, level: u8) -> Result<Arc<Node>, Error> {
            let is_twin = *pointer == self.1;
            if is_twin { Ok(self.2.clone()) } else { self.0.store.read(pointer, level) }
        }
    }
    impl tree::NodeSink for Twin {
        fn write(&mut self, level: u8, node: Node) -> Result<NodePointer, Error> {
            self.0.store.write(level, node)
        }
        fn free(&mut self, pointer: &NodePointer) {
            self.0.store.free(pointer);
        }
    }

    let mut random = Random::new("keys_outside_of_their_bounds_are_noticed");
    let mut model = Model::default();
    model.apply(&load(Sizes::Usual, 0..2_000, &mut random));
    let leaves: Vec<_> =
        model.census().pointers.into_iter().filter(|(_, level)| *level == 0).collect();
    for (victim, other) in [(3, 4), (4, 3)] {
        let [(victim, _), (other, _)] = [leaves[victim], leaves[other]];
        let node = |pointer: NodePointer| model.store.nodes[&pointer.slots[0].0].1.clone();
        let mut key = Vec::new();
        node(victim).append_key(0, &mut key);
        let mut twin = Twin(model.clone(), victim, node(other));
        twin.0.store.begin();
        let is_malformed =
            |error: &Error| matches!(error, Error::Malformed { pointer, .. } if *pointer == victim);
        let mut visitor = Malformed::default();
        tree::walk(&twin, model.root.as_ref(), &mut visitor);
        assert!(matches!(&visitor.0[..], [error] if is_malformed(error)));
        let batch = batch([(key, Some(vec![1]))]);
        let result = tree::apply(&mut twin, model.root, &batch, &mut |_, _, _| {});
        assert!(result.is_err_and(|error| is_malformed(&error)));
    }
}

/// Collects what a walk complains about.
#[derive(Default)]
struct Malformed(Vec<Error>);

impl Visitor for Malformed {
    fn node(&mut self, _: Place<'_>, _: &Node) {}

    fn damaged(&mut self, _: Place<'_>, error: &Error) {
        self.0.push(error.clone());
    }
}

#[test]
fn a_root_of_the_wrong_level_is_refused() {
    let mut model = Model::default();
    model.apply(&batch([(vec![1], Some(vec![2]))]));
    let pointer = model.root.unwrap().pointer;
    let source = Swapped {
        nodes: vec![model.store.nodes.values().next().unwrap().1.clone()],
        model: &model,
        seed: (0..).find(|seed| Random::seeded(*seed).next() % 4 == 0).unwrap(),
    };
    for level in [1, 15, 16, 255] {
        let root = Root { pointer, level };
        let got = tree::get(&source, Some(&root), &[1]);
        assert!(matches!(got, Err(Error::Malformed { .. })));
    }
}

#[test]
fn walks_can_leave_leaves_unread() {
    let mut random = Random::new("walks_can_leave_leaves_unread");
    let mut model = Model::default();
    model.apply(&load(Sizes::Usual, 0..20_000, &mut random));
    let census = model.census();
    let mut interior = Interior::default();
    model.store.begin();
    tree::walk(&model.store, model.root.as_ref(), &mut interior);
    assert_eq!(interior.leaves, census.leaves);
    assert_eq!(interior.read, census.live.len() - census.leaves);
    assert_eq!(model.store.reads.get(), interior.read);
}
