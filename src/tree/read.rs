//! Reading: single records, ranges, and whole trees with holes in them.

use super::{Error, NodeSource, Root, check_bounds, read_node};
use crate::format::NodePointer;
use crate::format::node::Node;
use std::ops::{ControlFlow, Deref};
use std::sync::Arc;

/// A value, in the node that holds it.
#[derive(Clone, Debug)]
pub struct ValueRef {
    node: Arc<Node>,
    index: usize,
}

impl Deref for ValueRef {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.node.value(self.index)
    }
}

/// Looks `key` up. Copies and allocates nothing.
///
/// # Errors
/// That of the first node on the way that cannot be read.
pub fn get<S: NodeSource + ?Sized>(
    source: &S,
    root: Option<&Root>,
    key: &[u8],
) -> Result<Option<ValueRef>, Error> {
    let Some(root) = root else { return Ok(None) };
    let mut node = read_node(source, &root.pointer, root.level)?;
    for level in (0..root.level).rev() {
        let child = node.pointer(node.child_of(key)).expect("interior nodes hold pointers");
        node = read_node(source, &child, level)?;
    }
    Ok(node.search(key).ok().map(|index| ValueRef { node, index }))
}

/// Is shown records: key, value. Breaking ends the range.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Shows every record with `from <= key < to_exclusive` to `visit`, in key order, until it breaks.
///
/// # Errors
/// That of the first node that cannot be read; the records before it have been visited.
pub fn range<S: NodeSource + ?Sized>(
    source: &S,
    root: Option<&Root>,
    from: &[u8],
    to_exclusive: &[u8],
    visit: &mut Visit<'_>,
) -> Result<(), Error> {
    let Some(root) = root.filter(|_| from < to_exclusive) else { return Ok(()) };
    let mut scan = Scan { source, from, to: to_exclusive, key: Vec::new(), visit };
    scan.node(&root.pointer, root.level).map(|_| ())
}

/// One call of [`range`].
struct Scan<'a, S: ?Sized> {
    source: &'a S,
    from: &'a [u8],
    to: &'a [u8],
    /// The key that is shown; grows once.
    key: Vec<u8>,
    visit: &'a mut Visit<'a>,
}

impl<S: NodeSource + ?Sized> Scan<'_, S> {
    fn node(&mut self, pointer: &NodePointer, level: u8) -> Result<ControlFlow<()>, Error> {
        let node = read_node(self.source, pointer, level)?;
        if level == 0 {
            return Ok(self.leaf(&node));
        }
        for index in node.child_of(self.from)..node.len() {
            if index > 0 && node.compare(index, self.to).is_ge() {
                break;
            }
            let child = node.pointer(index).expect("interior nodes hold pointers");
            if self.node(&child, level - 1)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn leaf(&mut self, node: &Node) -> ControlFlow<()> {
        let start = node.search(self.from).unwrap_or_else(|larger| larger);
        let end = node.search(self.to).unwrap_or_else(|larger| larger);
        self.key.clear();
        self.key.extend_from_slice(node.prefix());
        for index in start..end {
            self.key.truncate(node.prefix().len());
            self.key.extend_from_slice(node.suffix(index));
            (self.visit)(&self.key, node.value(index))?;
        }
        ControlFlow::Continue(())
    }
}

/// A node's place in the tree.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Where it is stored.
    pub pointer: &'a NodePointer,
    /// Distance from the leaves.
    pub level: u8,
    /// Every key at and below the node is at least this.
    pub from: &'a [u8],
    /// And less than this, if there is an end.
    pub to: Option<&'a [u8]>,
}

/// What [`walk`] reports to.
pub trait Visitor {
    /// Before a node is read: `false` skips it with everything below it. A caller that needs only
    /// pointers returns `place.level > 0` and reads no leaf.
    fn enter(&mut self, place: Place<'_>) -> bool {
        let _ = place;
        true
    }

    /// A node that was read, before its children.
    fn node(&mut self, place: Place<'_>, node: &Node);

    /// A node that could not be read, or whose keys are not those that its parent promises: it and
    /// everything below it is missing.
    fn damaged(&mut self, place: Place<'_>, error: &Error);
}

/// Walks the whole tree in key order and goes on after damage.
pub fn walk<S: NodeSource + ?Sized>(source: &S, root: Option<&Root>, visitor: &mut dyn Visitor) {
    if let Some(Root { pointer, level }) = root {
        walk_node(source, Place { pointer, level: *level, from: &[], to: None }, visitor);
    }
}

fn walk_node<S: NodeSource + ?Sized>(source: &S, place: Place<'_>, visitor: &mut dyn Visitor) {
    if !visitor.enter(place) {
        return;
    }
    let read = read_node(source, place.pointer, place.level).and_then(|node| {
        check_bounds(place.pointer, &node, place.from, place.to)?;
        Ok(node)
    });
    let node = match read {
        Ok(node) => node,
        Err(error) => return visitor.damaged(place, &error),
    };
    visitor.node(place, &node);
    let (mut from, mut to) = (place.from.to_vec(), Vec::new());
    for index in 0..node.len() {
        let Some(pointer) = node.pointer(index) else { return };
        let last = index + 1 == node.len();
        to.clear();
        if !last {
            node.append_key(index + 1, &mut to);
        }
        let to_child = if last { place.to } else { Some(&to[..]) };
        let level = place.level - 1;
        walk_node(source, Place { pointer: &pointer, level, from: &from, to: to_child }, visitor);
        std::mem::swap(&mut from, &mut to);
    }
}
