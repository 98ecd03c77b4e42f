//! Where the volume under test lives between one opening and the next.

use std::sync::Arc;

use atrest::fs::volume::{VolumeTree, make_root, recover};
use atrest::volume::Volume;

pub struct Backing;

impl Backing {
    pub fn new() -> Self {
        let backing = Self;
        make_root(&backing.open_volume(), 0, 0, 0o755).expect("a new volume takes a root");
        backing
    }

    /// Opens the volume as a mount does.
    pub fn open(&self) -> Mounted {
        let volume = Arc::new(self.open_volume());
        recover(&volume).expect("orphans can be listed");
        Mounted { tree: VolumeTree::new(Arc::clone(&volume)), volume }
    }

    fn open_volume(&self) -> Volume {
        todo!()
    }
}

/// An open volume.
pub struct Mounted {
    pub tree: VolumeTree,
    pub volume: Arc<Volume>,
}
