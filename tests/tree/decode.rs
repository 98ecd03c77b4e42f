//! Pages that nobody encoded: decoding refuses them or yields a node that is in order.

use crate::model::Model;
use crate::random::Random;
use crate::{Sizes, load};
use atrest::format::PAGE_BYTES;
use atrest::format::node::{Node, NodeBuilder};

/// Uses every accessor, and encodes the node again: there is one encoding.
fn check(page: &[u8; PAGE_BYTES]) -> bool {
    let Ok(node) = Node::decode(Box::new(*page)) else { return false };
    let mut keys = Vec::new();
    for index in 0..node.len() {
        let mut key = Vec::new();
        node.append_key(index, &mut key);
        assert_eq!(node.pointer(index).is_some(), node.level() > 0);
        keys.push(key);
    }
    assert!(keys.is_sorted_by(|a, b| a < b), "keys ascend");
    let first = usize::from(node.level() > 0);
    for (index, key) in keys.iter().enumerate().skip(first) {
        assert_eq!(node.search(key), Ok(index));
        assert!(node.compare(index, key).is_eq());
        let larger = [key, &[0][..]].concat();
        let next = keys.get(index + 1).is_some_and(|next| *next == larger);
        assert_eq!(node.search(&larger), if next { Ok(index + 1) } else { Err(index + 1) });
    }
    let mut again = NodeBuilder::new(node.level());
    for (index, key) in keys.iter().enumerate() {
        assert!(again.push(key, node.value(index)));
    }
    assert_eq!(again.finish().unwrap().bytes(), page, "a node has one encoding");
    true
}

#[test]
fn random_pages_never_panic() {
    let mut random = Random::new("random_pages_never_panic");
    let mut good = 0;
    for round in 0..30_000 {
        let mut page = [0; PAGE_BYTES];
        let used = if round % 2 == 0 { random.below(60) } else { random.below(PAGE_BYTES) };
        page[..used].copy_from_slice(&random.bytes(used));
        // A plausible header, so that more than the header is looked at.
        let header = [random.below(2) as u8, 0, random.below(4) as u8, 0, 0, 0, 0, 0];
        page[..8].copy_from_slice(&header);
        let entries_start = 8 + 2 * usize::from(header[2]);
        page[8] = entries_start as u8 + random.below(70) as u8;
        page[9] = 0;
        good += usize::from(check(&page));
    }
    println!("{good} random pages were nodes");
}

#[test]
fn flipped_bits_never_panic() {
    let mut random = Random::new("flipped_bits_never_panic");
    let mut good = 0;
    for sizes in [Sizes::Tiny, Sizes::Usual, Sizes::Extreme, Sizes::Prefixes] {
        let mut model = Model::default();
        model.apply(&load(sizes, 0..2_000, &mut random));
        for (_, node) in model.store.nodes.values().take(30) {
            assert!(check(node.bytes()));
            let structure = 8 + 2 * node.len() + 30;
            for round in 0..300 {
                let mut page = *node.bytes();
                let within = if round % 2 == 0 { structure } else { PAGE_BYTES };
                for _ in 0..1 + random.below(3) {
                    page[random.below(within)] ^= 1 << random.below(8);
                }
                good += usize::from(check(&page));
            }
        }
    }
    assert!(good > 0, "some flips change only keys and values");
}
