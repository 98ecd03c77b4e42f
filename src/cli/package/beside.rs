//! What is beside a package that is mounted: a volume for what is written below its writable
//! directories, and for seek points from mount to mount. It is named by `--state`, or it is one
//! that is thrown away at the unmount, whose key is in the memory of the daemon and nowhere else.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::{Opened, StateArgs};
use crate::app::{Files, keep_seek_points, use_seek_points};
use crate::audit::{Asker, Audit};
use crate::cli::args::{AuditArgs, CipherName, InitArgs};
use crate::cli::control::Control;
use crate::cli::exit::Exit;
use crate::cli::hint::{Failure, chain};
use crate::cli::{audit, init, keys, open, place};
use crate::crypto::{Cipher, Secret, random, wrap};
use crate::daemon::{Answer, Keyed, Lost, Numbers, Opening, Policy, Served, VolumeControl};
use crate::format::VolumeId;
use crate::format::config::{Algorithm, KekReference};
use crate::fs::Tree;
use crate::fs::volume::{GatedTree, make_root};
use crate::key::{Binding, KekError, KekErrorKind, KekProvider, VolumeKeys, Wrapped};
use crate::package::Package;
use crate::storage::{OsStorage, Storage as _};
use crate::volume::{OpenOptions, Volume, log_bytes_for};

/// The file of seek points in the volume.
const SEEK_POINTS: &str = "seek-points";
/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// Where the volume of `--state` is, before it is opened.
pub struct Place {
    /// Its canonical path.
    pub path: PathBuf,
    /// Its id, in hex.
    pub id: String,
    audit: Arc<Audit>,
}

/// See the [module](self).
pub struct Beside {
    /// Its filesystem.
    pub tree: Arc<dyn Tree>,
    kind: Kind,
}

enum Kind {
    Kept { control: Arc<Control>, place: Place },
    Thrown { volume: Arc<Volume>, directory: Mutex<Option<Scratch>> },
}

impl Place {
    /// Finds the volume, and makes it if there is nothing yet.
    ///
    /// # Errors
    /// It cannot be made; what is there is no volume.
    pub fn prepare(arguments: &StateArgs, path: &Path) -> Result<Self, Failure> {
        let is_missing = match path.read_dir() {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if is_missing {
            init::make(&InitArgs {
                volume: path.to_owned(),
                kek: vec![arguments.kek.clone()],
                cipher: CipherName::Gcm,
                keys: arguments.keys.source.clone(),
                audit: AuditArgs::default(),
            })?;
        }
        let path = place::volume(path)?;
        let id = place::config(&path)?.claims().volume_id.to_string();
        let audit = audit::open(&AuditArgs::default(), &id)?;
        Ok(Self { path, id, audit })
    }
}

impl Beside {
    /// Opens the volume at `place`.
    ///
    /// # Errors
    /// Everything that keeps it from being opened.
    pub fn kept(place: Place, arguments: &StateArgs, mountpoint: &Path) -> Result<Self, Failure> {
        let how = open::How {
            command: "mount",
            mountpoint: Some(mountpoint),
            read_only: false,
            allow_rollback: false,
            audit: &place.audit,
        };
        let opened = open::open(&place.path, &keys::provider_options(&arguments.keys), how)?;
        opened.control.start();
        Ok(Self { tree: opened.tree, kind: Kind::Kept { control: opened.control, place } })
    }

    /// Makes a volume that is thrown away, below the directory for temporary files.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn thrown_away() -> Result<Self, Failure> {
        let directory = Scratch::make()?;
        let path = directory.0.as_path();
        let failed = |error: &dyn std::error::Error| {
            let place = path.display();
            let message = format!("cannot make a volume in {place}: {}", chain(error));
            Failure::new(Exit::Other, message)
                .hint("What is written lies there until the unmount. For another place: TMPDIR")
        };
        let mut id = [0; 16];
        random::fill(&mut id);
        let (id, cipher) = (VolumeId(id), Cipher::Aes256Gcm);
        let provider = Nobody(random::secret(KEY_BYTES));
        let made = VolumeKeys::create(id, cipher, &provider).map_err(|error| failed(&error))?;
        let (config, keys) = made;
        let storage = OsStorage::create(&path.join("volume")).map_err(|error| failed(&error))?;
        let space = storage.capacity().map_err(|error| failed(&error))?;
        let log_bytes = log_bytes_for(space.total_bytes);
        Volume::create(&storage, &keys, id, config.bytes(), log_bytes)
            .map_err(|error| failed(&error))?;
        let (storage, keys) = (Arc::new(storage), Arc::new(keys));
        let options = OpenOptions::default();
        let (volume, _) = Volume::open(storage, keys, id, cipher, config.bytes(), &options)
            .map_err(|error| failed(&error))?;
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        make_root(&volume, uid, gid, 0o755).map_err(|error| failed(&error))?;
        volume.start();
        let tree = Arc::new(GatedTree::new(volume.clone()));
        Ok(Self { tree, kind: Kind::Thrown { volume, directory: Mutex::new(Some(directory)) } })
    }

    /// Whether what is written is there at the next mount.
    pub fn is_kept(&self) -> bool {
        matches!(self.kind, Kind::Kept { .. })
    }

    /// Has a package use the seek points that an earlier mount has left.
    pub fn use_seek_points(&self, package: &Package) {
        if self.is_kept() {
            use_seek_points(&Files::new(self.tree.clone()), SEEK_POINTS, package);
        }
    }

    /// Leaves them for the next mount.
    pub fn keep_seek_points(&self, package: &Package) {
        if self.is_kept() {
            keep_seek_points(&Files::new(self.tree.clone()), SEEK_POINTS, package);
        }
    }

    /// What of it is for the daemon to keep the key of; `None` of what is thrown away.
    pub fn keyed(opened: &Arc<Opened>) -> Option<Keyed> {
        let Kind::Kept { control, place } = &opened.beside.as_ref()?.kind else { return None };
        let volume = Arc::new(WithState { opened: opened.clone(), control: control.clone() });
        let (lease, audit) = (Policy::default(), place.audit.clone());
        Some(Keyed { volume, lease, audit, metrics: None })
    }

    /// What the status says of it.
    pub fn status(&self) -> Map<String, Value> {
        match &self.kind {
            Kind::Kept { control, .. } => match control.status_json() {
                Value::Object(status) => status,
                _ => Map::new(),
            },
            Kind::Thrown { .. } => Map::new(),
        }
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// What could not be, in words.
    pub fn sync(&self) -> Result<(), String> {
        match &self.kind {
            Kind::Kept { control, .. } => control.sync(),
            Kind::Thrown { .. } => Ok(()),
        }
    }

    /// The same, and lets go of it, or throws it away.
    ///
    /// # Errors
    /// What was lost, in words.
    pub fn close(&self) -> Result<(), String> {
        match &self.kind {
            Kind::Kept { control, .. } => control.close(),
            Kind::Thrown { volume, directory } => {
                // Its threads end with it; whether it is durable matters to nobody.
                if let Err(error) = volume.close() {
                    log::debug!("what is thrown away was not closed: {error}");
                }
                drop(directory.lock().take());
                Ok(())
            }
        }
    }
}

/// A mounted package with the control of the volume beside it.
struct WithState {
    opened: Arc<Opened>,
    control: Arc<Control>,
}

impl Served for WithState {
    fn status_json(&self) -> Value {
        self.opened.status_json()
    }

    fn sync(&self) -> Result<(), String> {
        self.opened.sync()
    }

    fn close(&self) -> Result<(), String> {
        self.opened.close()
    }
}

impl VolumeControl for WithState {
    fn numbers(&self) -> Numbers {
        self.control.numbers()
    }

    fn replace_config(&self, bytes: &[u8], by: &Asker) -> Result<(), String> {
        self.control.replace_config(bytes, by)
    }

    fn anchor_audit(&self) {
        self.control.anchor_audit();
    }

    fn check(&self) -> Answer {
        self.control.check()
    }

    fn drain(&self, revoked: bool) {
        self.control.drain(revoked);
    }

    fn late_writes(&self) -> u64 {
        self.control.late_writes()
    }

    fn lock(&self, late: &[u64], deadline: Instant) -> Result<(), Lost> {
        self.control.lock(late, deadline)
    }

    fn reopen(&self, how: &Opening, by: &Asker) -> Answer {
        self.control.reopen(how, by)
    }
}

/// A directory that is removed when this value goes.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self, Failure> {
        let base = std::env::temp_dir();
        let made = nix::unistd::mkdtemp(&base.join("atrest-writable.XXXXXX"));
        made.map(Self).map_err(|errno| Failure::io("make a directory in", &base, &errno.into()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            log::warn!("{} is left: {error}; it can be removed", self.0.display());
        }
    }
}

/// Wraps with a key that nobody keeps.
struct Nobody(Secret);

impl KekProvider for Nobody {
    fn uri(&self) -> &str {
        "local:thrown-away"
    }

    fn algorithms(&self) -> &[Algorithm] {
        &[Algorithm::A256Kw]
    }

    fn wrap(&self, _: &Binding, secrets: &[&Secret]) -> Result<Wrapped, KekError> {
        let (key_id, key_version) = ("thrown-away".to_owned(), "1".to_owned());
        let algorithm = Algorithm::A256Kw;
        let blobs = secrets.iter().map(|secret| wrap::wrap(&self.0, secret)).collect();
        let kek = KekReference { key_id, key_version, algorithm, parameters: None };
        Ok(Wrapped { kek, blobs })
    }

    fn unwrap(&self, _: &Binding, _: &KekReference, wrapped: &[u8]) -> Result<Secret, KekError> {
        wrap::unwrap(&self.0, wrapped)
            .map_err(|_| KekError::new(KekErrorKind::Integrity, self.uri(), ""))
    }

    fn latest_version(&self) -> Result<Option<String>, KekError> {
        Ok(None)
    }
}
