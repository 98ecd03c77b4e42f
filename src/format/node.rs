//! Tree nodes.
