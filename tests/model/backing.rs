//! Where the volume under test lives between one opening and the next: on a simulated disk, with
//! real keys and ciphers.

use std::sync::Arc;

use atrest::crypto::Cipher;
use atrest::epoch::OpenOptions;
use atrest::format::VolumeId;
use atrest::fs::volume::{VolumeTree, make_root, recover};
use atrest::key::{ProviderOptions, VolumeKeys, provider_from_uri};
use atrest::storage::sim::SimDisk;
use atrest::volume::Volume;

const LOG_BYTES: u64 = 256 << 10;
const VOLUME: VolumeId = VolumeId([7; 16]);

pub struct Backing {
    disk: Arc<SimDisk>,
    keys: Arc<VolumeKeys>,
    cipher: Cipher,
    config: Vec<u8>,
}

impl Backing {
    /// A new volume with a root directory.
    pub fn new(cipher: Cipher) -> Self {
        let directory = tempfile::tempdir().expect("temporary directories can be made");
        let options = ProviderOptions {
            key_store: Some(directory.path().join("keys")),
            create_local_key: true,
            ..ProviderOptions::default()
        };
        let provider = provider_from_uri("local:", &options).expect("a local key is allowed");
        let (config, keys) =
            VolumeKeys::create(VOLUME, cipher, &*provider).expect("the store is writable");
        let disk = SimDisk::new();
        disk.stop_recording();
        Volume::create(&disk, &keys, VOLUME, config.bytes(), LOG_BYTES).expect("the disk is empty");
        let config = config.bytes().to_vec();
        let backing = Self { disk: Arc::new(disk), keys: Arc::new(keys), cipher, config };
        let volume = backing.open_volume();
        make_root(&volume, 0, 0, 0o755).expect("a new volume takes a root");
        volume.close().expect("the root can be made durable");
        backing
    }

    /// Opens the volume as a mount does. Without a thread in the `background`, what happens depends
    /// on the operations alone.
    pub fn open(&self, background: bool) -> Mounted {
        let volume = self.open_volume();
        recover(&volume).expect("orphans can be listed");
        if background {
            volume.start();
        }
        Mounted { tree: VolumeTree::new(Arc::clone(&volume)), volume }
    }

    fn open_volume(&self) -> Arc<Volume> {
        let (disk, keys) = (Arc::clone(&self.disk), Arc::clone(&self.keys));
        let options = OpenOptions::default();
        Volume::open(disk, keys, VOLUME, self.cipher, &self.config, &options)
            .unwrap_or_else(|error| panic!("the volume does not open: {error:?}"))
            .0
    }
}

/// An open volume. Dropped without [`Mounted::close`] it is as if the daemon was killed.
pub struct Mounted {
    pub tree: VolumeTree,
    pub volume: Arc<Volume>,
}

impl Mounted {
    /// Unmounts.
    pub fn close(self) {
        self.volume.close().expect("everything can be made durable");
    }
}
