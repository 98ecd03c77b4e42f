//! Trees from which damaged nodes are cut, and whose nodes are moved.

use crate::model::{Census, Model};
use crate::random::Random;
use crate::{Sizes, load};
use atrest::tree::{self, Marks};
use std::collections::HashSet;

/// Marks what a walk finds damaged, prunes, and checks that exactly the records below are gone, and
/// that what is left is a tree like any other: it takes batches.
fn check_pruned(mut model: Model, random: &mut Random) -> usize {
    let mut found = Census::default();
    tree::walk(&model.store, model.root.as_ref(), &mut found);
    let mut marks = Marks::default();
    for (slot, from, to) in &found.damaged {
        let (pointer, _) = model.store.nodes[slot];
        marks.lose(from, &pointer);
        let is_below = |key: &[u8]| key >= &from[..] && to.as_ref().is_none_or(|to| key < &to[..]);
        model.map.retain(|key, _| !is_below(key));
    }
    model.store.begin();
    model.root = tree::prune(&mut model.store, model.root, &marks).unwrap();
    // What is below the damage is in the store, and no part of the tree.
    let mut live = Census::default();
    tree::walk(&model.store, model.root.as_ref(), &mut live);
    assert!(live.damaged.is_empty());
    model.store.nodes.retain(|slot, _| live.live.contains(slot));
    model.check_all();
    let left = model.map.len();
    model.apply(&load(Sizes::Prefixes, 1_000..1_300, random));
    model.check_all();
    left
}

#[test]
fn what_cannot_be_read_is_cut_out_and_the_rest_stays() {
    let mut random = Random::new("what_cannot_be_read_is_cut_out_and_the_rest_stays");
    let mut model = Model::default();
    model.apply(&load(Sizes::Prefixes, 0..4_000, &mut random));
    let census = model.census();
    assert!(model.root.unwrap().level >= 2);
    for (pointer, level) in &census.pointers {
        let mut broken = model.clone();
        broken.store.damaged.insert(pointer.slots[0].0);
        let left = check_pruned(broken, &mut random);
        assert_eq!(left == 0, Some(*level) == model.root.map(|root| root.level));
    }
    for _ in 0..60 {
        let mut broken = model.clone();
        let percent = 1 + random.below(90);
        let hit = census.pointers.iter().filter(|_| random.chance(percent));
        broken.store.damaged.extend(hit.map(|(pointer, _)| pointer.slots[0].0));
        check_pruned(broken, &mut random);
    }
}

/// Nodes that are marked to move are somewhere else, and nothing else is different.
#[test]
fn marked_nodes_move() {
    let mut random = Random::new("marked_nodes_move");
    let mut model = Model::default();
    model.apply(&load(Sizes::Prefixes, 0..4_000, &mut random));
    let census = model.census();
    let mut places = Places::default();
    tree::walk(&model.store, model.root.as_ref(), &mut places);
    for _ in 0..50 {
        let mut moved = model.clone();
        let (mut marks, mut slots) = (Marks::default(), HashSet::new());
        for (slot, from) in places.0.iter().filter(|_| random.chance(4)) {
            marks.move_away(from);
            slots.insert(*slot);
        }
        moved.store.begin();
        moved.root = tree::prune(&mut moved.store, moved.root, &marks).unwrap();
        let after = moved.check_all();
        assert!(after.live.is_disjoint(&slots));
        let kept = after.live.intersection(&census.live).count();
        assert!(slots.len() > 10 || kept > census.live.len() / 4, "it is not all written anew");
    }
}

#[derive(Default)]
struct Places(Vec<(u64, Vec<u8>)>);

impl tree::Visitor for Places {
    fn node(&mut self, place: tree::Place<'_>, _: &atrest::format::node::Node) {
        self.0.push((place.pointer.slots[0].0, place.from.to_vec()));
    }

    fn damaged(&mut self, _: tree::Place<'_>, error: &tree::Error) {
        panic!("{error}");
    }
}
