//! One copy-on-write B-tree over ordered byte keys. Knows nodes, keys and batches, not files.
//!
//! Nothing is changed in place: [`apply`] reads the old tree and writes a new one that shares every
//! untouched node with it. Every pointer authenticates the node it points to, so a tree is
//! authentic from its root down.

use crate::format::NodePointer;
use std::sync::Arc;

/// The largest key, in bytes.
pub const KEY_BYTES_MAX: usize = 320;
/// The largest value in a leaf, in bytes, so that at least two records fit into a node.
pub const VALUE_BYTES_MAX: usize = 1_400;

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
    /// No slot is free for a node.
    #[error("no free slot for a tree node")]
    NoSpace,
}

/// Where nodes are read from.
pub trait NodeSource {
    /// Returns the authenticated, decoded node at `pointer`, from a cache or from disk.
    fn read(
        &self,
        pointer: &NodePointer,
        level: u8,
    ) -> Result<Arc<crate::format::node::Node>, Error>;
}

/// Where [`apply`] writes nodes to.
pub trait NodeSink {
    /// Seals and writes a node (both copies) and says where it is. Durable only after the sink's
    /// owner synced.
    fn write(&mut self, level: u8, node: crate::format::node::Node) -> Result<NodePointer, Error>;
    /// Says that the new tree no longer refers to a node of the old one.
    fn free(&mut self, pointer: &NodePointer);
}
