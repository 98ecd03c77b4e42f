//! Checking a volume: every record against every other, space against use, every tag.

use super::Volume;
use crate::format::Slot;
use crate::format::map::PageMap;
use crate::format::node::Node;
use crate::format::record::Table;
use crate::tree::{self, Place, Visitor};
use std::collections::HashMap;

/// Counts the slots of every node, and what is damaged.
struct NodeSlots<'a> {
    count: &'a mut dyn FnMut(Slot),
    damaged: Vec<String>,
}

impl Visitor for NodeSlots<'_> {
    fn enter(&mut self, place: Place<'_>) -> bool {
        place.pointer.slots.into_iter().for_each(&mut self.count);
        // A leaf's slots are in its parent; its records are read elsewhere.
        place.level > 0
    }

    fn node(&mut self, _: Place<'_>, _: &Node) {}

    fn damaged(&mut self, _: Place<'_>, error: &tree::Error) {
        self.damaged.push(error.to_string());
    }
}

impl Volume {
    /// Compares the slots that the durable tree refers to with those that the bitmaps say are used;
    /// returns a line for each contradiction. Call it when nothing is being changed.
    pub fn check_space(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut referred: HashMap<Slot, u32> = HashMap::new();
        let mut count = |slot: Slot| *referred.entry(slot).or_default() += 1;
        self.epochs.delta_slots().into_iter().flatten().for_each(&mut count);
        let cipher = self.cipher;
        let root = self.epochs.root();
        let mut nodes = NodeSlots { count: &mut count, damaged: Vec::new() };
        tree::walk(self.epochs.source(), root.as_ref(), &mut nodes);
        problems.append(&mut nodes.damaged);
        let maps = self.epochs.scan_durable(Table::PageMap, &mut |_, value| {
            if let Ok(map) = PageMap::decode(cipher, value) {
                map.pages.iter().flatten().for_each(|page| count(page.slot));
            }
        });
        if let Err(error) = maps {
            problems.push(format!("page maps cannot be read: {error}"));
        }
        let mut in_use: HashMap<Slot, u32> = HashMap::new();
        self.epochs.slots_in_use(&mut |slot| *in_use.entry(slot).or_default() += 1);
        for (slot, times) in &referred {
            if *times > 1 {
                problems.push(format!("slot {} is referred to {times} times", slot.0));
            }
            if !in_use.contains_key(slot) {
                problems.push(format!("slot {} is referred to and counted as free", slot.0));
            }
        }
        let leaked = in_use.keys().filter(|slot| !referred.contains_key(slot));
        problems.extend(leaked.map(|slot| format!("slot {} is used by nothing", slot.0)));
        problems
    }
}
