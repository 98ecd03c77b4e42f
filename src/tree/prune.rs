//! Cutting damaged nodes out of a tree, and writing others anew.

use super::build::Builder;
use super::{Error, NodeSink, NodeSource, Root, check_bounds, read_node};
use crate::format::NodePointer;
use std::collections::{BTreeMap, BTreeSet};

/// Which nodes of a tree are to go, and which are to be written anew.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// How many marked nodes begin at a key.
    places: BTreeMap<Vec<u8>, u64>,
    lost: BTreeSet<[u64; 2]>,
}

impl Marks {
    /// The node cannot be read: it goes, with everything below it.
    pub fn lose(&mut self, from: &[u8], pointer: &NodePointer) {
        self.lost.insert(pointer.slots.map(|slot| slot.0));
        self.move_away(from);
    }

    /// A node that begins at `from` is written anew, at every level at which one begins there.
    pub fn move_away(&mut self, from: &[u8]) {
        *self.places.entry(from.to_vec()).or_default() += 1;
    }

    /// Whether nothing is marked.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many nodes cannot be read.
    pub fn lost(&self) -> usize {
        self.lost.len()
    }

    fn any_in(&self, from: &[u8], to: Option<&[u8]>) -> bool {
        let next = self.places.range::<[u8], _>((
            std::ops::Bound::Included(from),
            std::ops::Bound::<&[u8]>::Unbounded,
        ));
        let next = next.map(|(place, _)| place).next();
        next.is_some_and(|place| to.is_none_or(|to| &place[..] < to))
    }

    fn is_lost(&self, pointer: &NodePointer) -> bool {
        self.lost.contains(&pointer.slots.map(|slot| slot.0))
    }
}

/// Writes the tree at `root` without what `marks` says is lost, and with what it says is to be
/// moved in other places; everything that is not on the way to these stays. Returns the new root.
///
/// # Errors
/// That of the first other node that cannot be read or written. The old tree is untouched then.
pub fn prune<S: NodeSource + NodeSink>(
    store: &mut S,
    root: Option<Root>,
    marks: &Marks,
) -> Result<Option<Root>, Error> {
    let Some(old) = root.filter(|_| !marks.is_empty()) else { return Ok(root) };
    let mut builder = Builder::new(store);
    subtree(&mut builder, &old.pointer, old.level, (&[], None), marks)?;
    builder.finish()
}

fn subtree<S: NodeSource + NodeSink>(
    builder: &mut Builder<'_, S>,
    pointer: &NodePointer,
    level: u8,
    (from, to): (&[u8], Option<&[u8]>),
    marks: &Marks,
) -> Result<(), Error> {
    if marks.is_lost(pointer) {
        return Ok(());
    }
    if !marks.any_in(from, to) {
        return builder.keep(level, from, pointer);
    }
    let node = read_node(builder.store(), pointer, level)?;
    check_bounds(pointer, &node, from, to)?;
    builder.consume(pointer, &node);
    if level == 0 {
        builder.start_leaves(from);
        return builder.copy_entries(&node, 0..node.len(), from);
    }
    let mut from = from.to_vec();
    for index in 0..node.len() {
        let mut next = Vec::new();
        let last = index + 1 == node.len();
        if !last {
            node.append_key(index + 1, &mut next);
        }
        let to = if last { to } else { Some(&next[..]) };
        let child = node.pointer(index).expect("interior nodes hold pointers");
        subtree(builder, &child, level - 1, (&from, to), marks)?;
        from = next;
    }
    Ok(())
}
