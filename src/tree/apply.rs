//! Writing: a sorted batch of changes becomes a new tree that shares what did not change.

use super::build::{Builder, Entry};
use super::{
    Error, KEY_BYTES_MAX, NodeSink, NodeSource, Root, VALUE_BYTES_MAX, check_bounds, read_node,
};
use crate::format::NodePointer;
use crate::format::node::Node;
use std::sync::Arc;

/// What a batch does to one key.
#[derive(Clone)]
pub struct Change {
    /// Which record.
    pub key: Arc<[u8]>,
    /// Its new value; `None` deletes it, if it is there.
    pub value: Option<Arc<[u8]>>,
}

/// Hears of every change, in key order: key, value in the old tree, value in the new one.
pub type Observe<'a> = dyn FnMut(&[u8], Option<&[u8]>, Option<&[u8]>) + 'a;

/// Applies `batch`, whose keys ascend strictly, to the tree at `root` and returns the new root.
///
/// Only nodes whose contents change, and the nodes above them, are written anew; these old ones are
/// freed, once each. A leaf on which nothing changes stays as it is. Children are written before
/// their parents, and no more than a few nodes per level are held in memory.
///
/// # Errors
/// [`Error::Batch`] before anything is done, if keys do not ascend or a record is too large.
/// Otherwise that of the first node that cannot be read or written. The old tree is untouched then,
/// and the caller must forget what was written and freed.
pub fn apply<S: NodeSource + NodeSink>(
    store: &mut S,
    root: Option<Root>,
    batch: &[Change],
    observe: &mut Observe<'_>,
) -> Result<Option<Root>, Error> {
    check_batch(batch)?;
    let mut apply =
        Apply { builder: Builder::new(store), path: Vec::new(), positions: Vec::new(), observe };
    let Some(old) = root else {
        apply.load(batch)?;
        return apply.builder.finish();
    };
    let top = Subtree { pointer: old.pointer, level: old.level, from: Vec::new(), to: None };
    if !apply.subtree(top, batch)? {
        return Ok(root);
    }
    apply.builder.finish()
}

fn check_batch(batch: &[Change]) -> Result<(), Error> {
    if batch.windows(2).any(|pair| pair[0].key >= pair[1].key) {
        return Err(Error::Batch("keys do not ascend"));
    }
    if batch.iter().any(|change| change.key.len() > KEY_BYTES_MAX) {
        return Err(Error::Batch("a key is too long"));
    }
    let value_bytes = |change: &Change| change.value.as_ref().map_or(0, |value| value.len());
    if batch.iter().any(|change| value_bytes(change) > VALUE_BYTES_MAX) {
        return Err(Error::Batch("a value is too long"));
    }
    Ok(())
}

/// One call of [`apply`].
struct Apply<'a, S> {
    builder: Builder<'a, S>,
    /// The interior nodes from the root to where the walk is.
    path: Vec<Step>,
    /// For each change to the current leaf: where its key is, or would be. Kept for its memory.
    positions: Vec<Result<usize, usize>>,
    observe: &'a mut Observe<'a>,
}

/// A subtree of the old tree, and the keys that belong there.
struct Subtree {
    pointer: NodePointer,
    level: u8,
    from: Vec<u8>,
    to: Option<Vec<u8>>,
}

/// An interior node that the walk is in.
struct Step {
    pointer: NodePointer,
    node: Arc<Node>,
    from: Vec<u8>,
    /// The child that the walk is in or comes to next. Those before it are done.
    next: usize,
    /// Whether something below changed, so that the node is replaced. Until then its children need
    /// no attention.
    replaced: bool,
}

impl Step {
    /// The first key that may be under child `index`.
    fn child_from(&self, index: usize) -> Vec<u8> {
        if index == 0 {
            return self.from.clone();
        }
        let mut key = Vec::new();
        self.node.append_key(index, &mut key);
        key
    }
}

impl<S: NodeSource + NodeSink> Apply<'_, S> {
    /// Fills an empty tree.
    fn load(&mut self, batch: &[Change]) -> Result<(), Error> {
        for Change { key, value } in batch {
            (self.observe)(key, None, value.as_deref());
            if let Some(value) = value {
                self.builder.push(0, Entry::fresh(key, value))?;
            }
        }
        Ok(())
    }

    /// Applies `batch` to a subtree; says whether that changed it. If not, the caller keeps it.
    fn subtree(&mut self, old: Subtree, batch: &[Change]) -> Result<bool, Error> {
        let node = read_node(self.builder.store(), &old.pointer, old.level)?;
        check_bounds(&old.pointer, &node, &old.from, old.to.as_deref())?;
        if old.level == 0 {
            return self.leaf(&old, &node, batch);
        }
        let Subtree { pointer, level, from, to } = old;
        self.path.push(Step { pointer, node: node.clone(), from, next: 0, replaced: false });
        let depth = self.path.len() - 1;
        let mut rest = batch;
        while let [first, ..] = rest {
            let index = node.child_of(&first.key);
            self.keep_until(depth, index)?;
            let last = index + 1 == node.len();
            let below = |change: &Change| last || node.compare(index + 1, &change.key).is_gt();
            let (here, later) = rest.split_at(rest.partition_point(below));
            rest = later;
            let step = &self.path[depth];
            let to_child = if last { to.clone() } else { Some(step.child_from(index + 1)) };
            let child = Subtree {
                pointer: node.pointer(index).expect("interior nodes hold pointers"),
                level: level - 1,
                from: step.child_from(index),
                to: to_child,
            };
            if self.subtree(child, here)? {
                self.path[depth].next = index + 1;
            } else {
                self.keep_until(depth, index + 1)?;
            }
        }
        self.keep_until(depth, node.len())?;
        let step = self.path.pop().expect("pushed above");
        Ok(step.replaced)
    }

    /// Passes over the children before `end` of a step: keeps them, if their parent is replaced.
    fn keep_until(&mut self, depth: usize, end: usize) -> Result<(), Error> {
        let step = &mut self.path[depth];
        let start = std::mem::replace(&mut step.next, end);
        if step.replaced { keep(&mut self.builder, &self.path[depth], start..end) } else { Ok(()) }
    }

    /// Something changes below the path: all its nodes will be replaced.
    fn replace_path(&mut self) -> Result<(), Error> {
        for step in &mut self.path {
            if !std::mem::replace(&mut step.replaced, true) {
                self.builder.consume(&step.pointer, &step.node);
                keep(&mut self.builder, step, 0..step.next)?;
            }
        }
        Ok(())
    }

    /// Applies `batch` to a leaf; says whether that changed it.
    fn leaf(&mut self, old: &Subtree, node: &Node, batch: &[Change]) -> Result<bool, Error> {
        self.positions.clear();
        let mut changed = false;
        for Change { key, value } in batch {
            let position = node.search(key);
            let old_value = position.ok().map(|index| node.value(index));
            (self.observe)(key, old_value, value.as_deref());
            changed |= old_value != value.as_deref();
            self.positions.push(position);
        }
        if !changed {
            return Ok(false);
        }
        self.replace_path()?;
        self.builder.consume(&old.pointer, node);
        self.builder.start_leaves(&old.from);
        let mut next = 0;
        for (Change { key, value }, position) in batch.iter().zip(&self.positions) {
            let (Ok(index) | Err(index)) = *position;
            self.builder.copy_entries(node, next..index, &old.from)?;
            next = index + usize::from(position.is_ok());
            match value {
                Some(value) if position.is_ok() => {
                    self.builder.push(0, Entry::kept(key, &[], value))?;
                }
                Some(value) => self.builder.push(0, Entry::fresh(key, value))?,
                None => {}
            }
        }
        self.builder.copy_entries(node, next..node.len(), &old.from)?;
        Ok(true)
    }
}

/// Keeps some children of a replaced node.
fn keep<S: NodeSource + NodeSink>(
    builder: &mut Builder<'_, S>,
    step: &Step,
    children: std::ops::Range<usize>,
) -> Result<(), Error> {
    for index in children {
        let pointer = step.node.pointer(index).expect("interior nodes hold pointers");
        builder.keep(step.node.level() - 1, &step.child_from(index), &pointer)?;
    }
    Ok(())
}
