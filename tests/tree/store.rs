//! A store of nodes in memory that watches its user: what is freed was live and is not read again,
//! children are written before parents, and nothing written is thrown away at once.

use atrest::format::node::Node;
use atrest::format::{NodePointer, Slot};
use atrest::tree::{Error, NodeSink, NodeSource};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

#[derive(Clone, Default)]
pub struct Store {
    /// Live nodes by slot.
    pub nodes: HashMap<u64, (NodePointer, Arc<Node>)>,
    /// Slots of nodes that do not authenticate.
    pub damaged: HashSet<u64>,
    /// Levels written since [`Store::begin`], in order.
    pub written: Vec<u8>,
    /// How many were freed since then.
    pub freed: usize,
    /// How many were read since then.
    pub reads: Cell<usize>,
    /// The slots from here on were written since then.
    written_from: u64,
    slots: u64,
    /// Writes that are left until the disk is full.
    pub writes_left: Option<usize>,
}

impl Store {
    /// A batch begins.
    pub fn begin(&mut self) {
        self.written.clear();
        self.freed = 0;
        self.reads.set(0);
        self.written_from = self.slots;
    }
}

impl NodeSource for Store {
    fn read(&self, pointer: &NodePointer, level: u8) -> Result<Arc<Node>, Error> {
        self.reads.set(self.reads.get() + 1);
        let slot = pointer.slots[0].0;
        if self.damaged.contains(&slot) {
            return Err(Error::Damaged(*pointer));
        }
        let (expected, node) = self.nodes.get(&slot).expect("only live nodes are read");
        assert_eq!(expected, pointer);
        assert_eq!(node.level(), level, "a healthy tree has the levels that it says");
        Ok(node.clone())
    }
}

impl NodeSink for Store {
    fn write(&mut self, level: u8, node: Node) -> Result<NodePointer, Error> {
        if let Some(left) = &mut self.writes_left {
            *left = left.checked_sub(1).ok_or(Error::NoSpace)?;
        }
        assert_eq!(node.level(), level);
        let node = Node::decode(node.into_bytes()).expect("what is built can be decoded");
        for child in (0..node.len()).filter_map(|index| node.pointer(index)) {
            let (_, child) = self.nodes.get(&child.slots[0].0).expect("children come first");
            assert_eq!(child.level() + 1, level);
        }
        let slot = self.slots;
        self.slots += 1;
        let tag = u128::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let pointer = NodePointer {
            slots: [Slot(slot), Slot(slot + (1 << 40))],
            key_epoch: 1,
            salt: [0xa5; 16],
            counter: slot as u32,
            tag: tag.to_le_bytes(),
        };
        self.nodes.insert(slot, (pointer, Arc::new(node)));
        self.written.push(level);
        Ok(pointer)
    }

    fn free(&mut self, pointer: &NodePointer) {
        let slot = pointer.slots[0].0;
        assert!(slot < self.written_from, "a node is freed by the batch that wrote it");
        let (live, _) = self.nodes.remove(&slot).expect("only live nodes are freed, and once");
        assert_eq!(live, *pointer);
        self.freed += 1;
    }
}
