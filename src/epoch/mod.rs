//! The overlay over the tree, and the one protocol that makes it durable.
