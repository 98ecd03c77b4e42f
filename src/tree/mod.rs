//! One copy-on-write B-tree over ordered byte keys. Knows nodes, keys and batches, not files.
//!
//! Nothing is changed in place: [`apply`] reads the old tree and writes a new one that shares every
//! untouched node with it. Every pointer authenticates the node it points to, so a tree is
//! authentic from its root down.

mod apply;
mod build;
mod prune;
mod read;

pub use crate::format::node::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
pub use apply::{Change, Observe, apply};
pub use prune::{Marks, prune};
pub use read::{Place, ValueRef, Visit, Visitor, get, range, walk};

use crate::format::NodePointer;
use crate::format::node::Node;
use std::sync::Arc;

/// The highest level that a node may have. Even with the longest separators an interior node has
/// room for ten children, so that no volume needs more.
pub const LEVEL_MAX: u8 = 15;

/// The root of a tree; `None` is the empty tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// The top node.
    pub pointer: NodePointer,
    /// Its level: 0 is a leaf.
    pub level: u8,
}

/// What can go wrong when a tree is read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No copy of the node authenticates.
    #[error("tree node in slots {} and {} does not authenticate", .0.slots[0].0, .0.slots[1].0)]
    Damaged(NodePointer),
    /// The node authenticates but breaks the format: a defect of the program that wrote it.
    #[error("tree node in slot {} is malformed: {what}", .pointer.slots[0].0)]
    Malformed {
        /// Which node.
        pointer: NodePointer,
        /// Which rule.
        what: &'static str,
    },
    /// The storage failed.
    #[error("tree node: {op} failed")]
    Storage {
        /// `read` or `write`.
        op: &'static str,
        /// The cause.
        source: Arc<std::io::Error>,
    },
    /// The changes given to [`apply`] break its rules: a defect of the caller.
    #[error("batch of changes refused: {0}")]
    Batch(&'static str),
    /// No slot is free for a node.
    #[error("no free slot for a tree node")]
    NoSpace,
}

/// Where nodes are read from.
pub trait NodeSource {
    /// Returns the authenticated, decoded node at `pointer`, from a cache or from disk.
    fn read(&self, pointer: &NodePointer, level: u8) -> Result<Arc<Node>, Error>;
}

/// Where [`apply`] writes nodes to.
pub trait NodeSink {
    /// Seals and writes a node (both copies) and says where it is. Durable only after the sink's
    /// owner synced.
    fn write(&mut self, level: u8, node: Node) -> Result<NodePointer, Error>;
    /// Says that the new tree no longer refers to a node of the old one.
    fn free(&mut self, pointer: &NodePointer);
}

/// Reads the node at `pointer` and checks its level, so that no walk can go round in circles.
fn read_node<S: NodeSource + ?Sized>(
    source: &S,
    pointer: &NodePointer,
    level: u8,
) -> Result<Arc<Node>, Error> {
    let malformed = |what| Error::Malformed { pointer: *pointer, what };
    if level > LEVEL_MAX {
        return Err(malformed("level is too high"));
    }
    let node = source.read(pointer, level)?;
    if node.level() != level {
        return Err(malformed("level is not what its parent says"));
    }
    Ok(node)
}

/// Checks that the keys of a node are those that its parent promises: from `from`, below `to`.
fn check_bounds(
    pointer: &NodePointer,
    node: &Node,
    from: &[u8],
    to: Option<&[u8]>,
) -> Result<(), Error> {
    let first = usize::from(node.level() > 0);
    let below = first < node.len() && node.compare(first, from).is_lt();
    let above = to.is_some_and(|to| node.compare(node.len() - 1, to).is_ge());
    if below || above {
        let what = "keys are outside of the bounds that its parent gives";
        return Err(Error::Malformed { pointer: *pointer, what });
    }
    Ok(())
}
