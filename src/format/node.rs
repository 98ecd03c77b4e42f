//! Tree nodes.

/// A decoded node.
pub struct Node;
