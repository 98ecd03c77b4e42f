//! Volumes for tests: keys that need no key service, on any storage.

use atrest::crypto::{Cipher, Secret, random, wrap};
use atrest::format::VolumeId;
use atrest::format::config::{Algorithm, KekReference};
use atrest::key::{Binding, KekError, KekErrorKind, KekProvider, VolumeKeys, Wrapped};
use atrest::storage::Storage;
use atrest::volume::{OpenError, OpenOptions, OpenReport, Volume};
use std::sync::Arc;

/// Length of a volume's log: small, so that tests come to its end.
pub const LOG_BYTES: u64 = 256 << 10;

/// A KEK in memory.
pub struct TestKek(Secret);

impl KekProvider for TestKek {
    fn uri(&self) -> &str {
        "test:memory"
    }

    fn algorithms(&self) -> &[Algorithm] {
        &[Algorithm::A256Kw]
    }

    fn wrap(&self, _: &Binding, secrets: &[&Secret]) -> Result<Wrapped, KekError> {
        let blobs = secrets.iter().map(|secret| wrap::wrap(&self.0, secret)).collect();
        let kek = KekReference {
            key_id: "memory".into(),
            key_version: "1".into(),
            algorithm: Algorithm::A256Kw,
            parameters: None,
        };
        Ok(Wrapped { kek, blobs })
    }

    fn unwrap(&self, _: &Binding, _: &KekReference, wrapped: &[u8]) -> Result<Secret, KekError> {
        wrap::unwrap(&self.0, wrapped)
            .map_err(|_| KekError::new(KekErrorKind::Integrity, self.uri(), "memory"))
    }

    fn latest_version(&self) -> Result<Option<String>, KekError> {
        Ok(Some("1".into()))
    }
}

/// What a test needs to open its volume again.
#[derive(Clone)]
pub struct Volumes {
    /// The keys, shared by every opening.
    pub keys: Arc<VolumeKeys>,
    /// Bytes of `atrest.json`.
    pub config: Vec<u8>,
    /// How contents are sealed.
    pub cipher: Cipher,
    /// Identity of the volume.
    pub id: VolumeId,
}

impl Volumes {
    /// Draws keys.
    pub fn new(cipher: Cipher) -> Self {
        let mut id = [0; 16];
        random::fill(&mut id);
        let id = VolumeId(id);
        let kek = TestKek(random::secret(32));
        let (config, keys) = VolumeKeys::create(id, cipher, &kek).expect("keys can be made");
        Self { keys: Arc::new(keys), config: config.bytes().to_vec(), cipher, id }
    }

    /// Makes a volume with a root directory in an empty storage, and closes it.
    pub fn create(&self, storage: &Arc<dyn Storage>) {
        self.create_with(&**storage, LOG_BYTES);
        let volume = self.open(storage).expect("open");
        atrest::fs::volume::make_root(&volume, 0, 0, 0o755).expect("root directory");
        volume.close().expect("close");
    }

    /// Makes a volume without a root directory, with a log of so many bytes.
    pub fn create_with(&self, storage: &dyn Storage, log_bytes: u64) {
        Volume::create(storage, &self.keys, self.id, &self.config, log_bytes).expect("create");
    }

    /// Opens it, without a background thread.
    pub fn open(&self, storage: &Arc<dyn Storage>) -> Result<Arc<Volume>, OpenError> {
        self.open_reported(storage).map(|(volume, _)| volume)
    }

    /// Opens it, with what was noticed.
    pub fn open_reported(
        &self,
        storage: &Arc<dyn Storage>,
    ) -> Result<(Arc<Volume>, OpenReport), OpenError> {
        self.open_laying_out(storage, true)
    }

    /// Opens it; what is written takes the first free slots, or lies in sequence as on real disks.
    pub fn open_laying_out(
        &self,
        storage: &Arc<dyn Storage>,
        first_fit: bool,
    ) -> Result<(Arc<Volume>, OpenReport), OpenError> {
        let options =
            OpenOptions { node_cache_bytes: 1 << 20, first_fit, ..OpenOptions::default() };
        let (keys, config) = (self.keys.clone(), &self.config);
        Volume::open(storage.clone(), keys, self.id, self.cipher, config, &options)
    }
}
