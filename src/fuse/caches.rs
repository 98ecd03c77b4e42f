//! What the kernel has cached of a mount: to be written back, and to be dropped.

use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use super::wire::abi::ROOT;
use crate::fs::Ino;

/// A way to the kernel's caches of one mount. Call it from threads that hold no lock and serve no
/// request: event loops must be free to take the WRITEs that it causes.
#[derive(Clone)]
pub struct Caches {
    pub(super) shared: Arc<Shared>,
}

impl Caches {
    /// Has the kernel write back what is dirty, in large requests, until `deadline`; what is left
    /// then is left to [`Caches::drop_all`].
    pub fn write_back(&self, deadline: Instant) {
        let kernel = &self.shared.kernel;
        for ino in self.shared.writers.all() {
            if Instant::now() >= deadline {
                return;
            }
            // One that cannot be written will say so to whoever has it open.
            let _ = kernel.write_back(ino, 0);
        }
    }

    /// Drops all pages, attributes and the right to use names without asking, of every inode that
    /// the kernel holds; what is dirty is written back first. Returns how many inodes there are.
    pub fn drop_all(&self) -> usize {
        let kernel = &self.shared.kernel;
        let mut known: Vec<Ino> = self.shared.lookups.all();
        // The root is held without having been looked up.
        known.push(ROOT);
        known.iter().for_each(|ino| kernel.drop_inode(*ino));
        known.len()
    }

    /// Drops these names of a directory, or that they are not there, and what is cached below them
    /// and not in use. Mounts below them go with them.
    pub fn forget_names(&self, parent: Ino, names: &[Vec<u8>]) {
        let kernel = &self.shared.kernel;
        names.iter().for_each(|name| kernel.forget_name(parent, name));
    }

    /// Drops the pages and attributes of one inode, and the list of a directory.
    pub fn drop_inode(&self, ino: Ino) {
        self.shared.kernel.drop_inode(ino);
    }

    /// The inodes that the kernel holds.
    pub fn known(&self) -> Vec<Ino> {
        self.shared.lookups.all()
    }
}
