//! What the kernel has cached of a mount: to be written back, and to be dropped.

use std::sync::Arc;
use std::time::{Duration, Instant};

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
    /// then is left to [`Caches::drop_all`]. Returns the inodes of which something could not be
    /// written; whoever has one open is told, too.
    pub fn write_back(&self, deadline: Instant) -> Vec<Ino> {
        let kernel = &self.shared.kernel;
        let writers = self.shared.writers.all().into_iter();
        let in_time = writers.take_while(|_| Instant::now() < deadline);
        in_time.filter(|ino| kernel.loses(*ino)).collect()
    }

    /// Drops all pages, attributes and the right to use names without asking, of every inode that
    /// the kernel holds; what is dirty is written back first. Then what was last read goes from
    /// memory here. Returns how many inodes there are.
    pub fn drop_all(&self) -> usize {
        let kernel = &self.shared.kernel;
        let mut known: Vec<Ino> = self.shared.lookups.all();
        // The root is held without having been looked up.
        known.push(ROOT);
        known.iter().for_each(|ino| kernel.drop_inode(*ino));
        self.shared.replies.wipe();
        known.len()
    }

    /// Has the event loops wipe what requests have brought last: data that was written. False if
    /// one was not done with its request after `patience`. By io_uring it stays until the next.
    pub fn wipe_requests(&self, patience: Duration) -> bool {
        self.shared.requests.wipe(patience)
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

    /// The inodes that somebody has open for writing.
    pub fn writers(&self) -> Vec<Ino> {
        self.shared.writers.all()
    }

    /// The inodes that the kernel holds.
    pub fn known(&self) -> Vec<Ino> {
        self.shared.lookups.all()
    }
}
