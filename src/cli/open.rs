//! The seam to the volume: making and opening one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::exit::Exit;
use super::hint::{Failure, chain};
use super::{keys, place, status};
use crate::daemon::{self, VolumeControl, paths};
use crate::format::VolumeId;
use crate::format::config::Config;
use crate::fs::Tree;
use crate::fs::volume::{VolumeTree, recover};
use crate::key::pin::{Freshness, Pin, PinStore, check as check_pin};
use crate::key::{Opened, ProviderOptions, VolumeKeys};
use crate::storage::{LockError, LockInfo, OsStorage, Storage, VolumeLock};
use crate::volume::{OpenError, OpenOptions, Volume};

/// Bytes of a page, in which the volume counts its space.
const PAGE_BYTES: u64 = crate::format::PAGE_BYTES as u64;
/// How long a daemon may take to make a new configuration durable.
const DAEMON_PATIENCE: Duration = Duration::from_secs(60);

/// A volume that is ready to be served.
pub struct OpenVolume {
    /// Its filesystem.
    pub tree: Arc<dyn Tree>,
    /// Its control.
    pub control: Arc<Control>,
}

/// How to open a volume.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// What the lock file will say: `mount`, `key`, …
    pub command: &'static str,
    /// Where it will be mounted.
    pub mountpoint: Option<&'a Path>,
    /// Write nothing.
    pub read_only: bool,
    /// Accept a volume that is older than this host has seen it.
    pub allow_rollback: bool,
}

/// Locks the volume, unwraps its keys, compares it with what this host remembers, and opens it.
///
/// # Errors
/// Everything that keeps it from being opened.
pub fn open(path: &Path, options: &ProviderOptions, how: How) -> Result<OpenVolume, Failure> {
    let info = LockInfo::of_this_process(how.command, how.mountpoint);
    let lock = if how.read_only {
        VolumeLock::acquire_shared(path)
    } else {
        VolumeLock::acquire(path, &info)
    };
    let lock = lock.map_err(|error| Failure::lock(path, &error))?;
    open_with(path, keys::unlock(path, options)?, lock, how)
}

/// Opens a volume whose lock and keys are there.
fn open_with(
    path: &Path,
    opened: Opened,
    lock: VolumeLock,
    how: How,
) -> Result<OpenVolume, Failure> {
    let Opened { config, keys, slot, failures, .. } = opened;
    for failure in &failures {
        log::warn!("slot {}: {}", failure.slot, failure.error);
    }
    log::info!("slot {slot} opened {}", path.display());
    let storage =
        OsStorage::open(path, how.read_only).map_err(|error| without_data(path, &error))?;
    let keys = Arc::new(keys);
    let volume_id = config.data().volume_id;
    let open_options = OpenOptions { read_only: how.read_only, ..OpenOptions::default() };
    let (volume, report) = Volume::open(
        Arc::new(storage),
        keys.clone(),
        volume_id,
        keys.cipher(),
        config.bytes(),
        &open_options,
    )
    .map_err(|error| refused(path, &error))?;
    for (file, reason) in &report.refused {
        log::error!("{file:?} cannot be used: {reason}; the other superblock was opened");
    }
    if report.superblock_replayed {
        log::error!("one superblock was put back from an older copy");
    }
    let pins =
        PinStore::of_this_user().map_err(|error| Failure::new(Exit::Other, chain(&error)))?;
    let generation = config.data().generation;
    check_freshness(path, &pins, &keys, volume_id, report.sequence, generation, how)?;
    let control = Control {
        volume: volume.clone(),
        keys,
        pins,
        slot,
        config: Mutex::new(config),
        _lock: lock,
    };
    Ok(OpenVolume {
        tree: Arc::new(VolumeTree::new(volume).discard_when_forgotten()),
        control: Arc::new(control),
    })
}

#[allow(clippy::too_many_arguments)]
fn check_freshness(
    path: &Path,
    pins: &PinStore,
    keys: &VolumeKeys,
    volume_id: VolumeId,
    sequence: u64,
    generation: u64,
    how: How,
) -> Result<(), Failure> {
    let seen = pins.load(volume_id);
    let seen = seen.map_err(|error| Failure::new(Exit::Other, chain(&error)))?;
    let place = path.display();
    let message = match check_pin(seen, &keys.pins(), sequence, generation) {
        Freshness::Fresh | Freshness::Absent => return Ok(()),
        Freshness::Replaced => format!("{place} has another volume key than this host has seen"),
        Freshness::RolledBack { seen } => {
            format!("{place} is older than it was: sequence {sequence}, seen {}", seen.sequence)
        }
    };
    if how.allow_rollback {
        log::warn!("{message}; accepted");
        return Ok(());
    }
    Err(Failure::new(Exit::RolledBack, message)
        .hint("Was it restored from a backup, or changed by somebody else?")
        .hint("To accept it as it is: --allow-rollback"))
}

/// The lock, the keys and the files of a volume, to open it in several ways.
pub struct Unlocked {
    /// Its files.
    pub storage: Arc<dyn Storage>,
    keys: Arc<VolumeKeys>,
    config: Config,
    path: PathBuf,
    /// Released when everything else is gone.
    _lock: VolumeLock,
}

/// Locks a volume and unwraps its keys; `write`: nobody else may even read it, and its files can
/// be written.
///
/// # Errors
/// Everything that keeps it from being opened.
pub fn unlock(
    path: &Path,
    options: &ProviderOptions,
    command: &'static str,
    write: bool,
) -> Result<Unlocked, Failure> {
    let lock = match write {
        true => VolumeLock::acquire(path, &LockInfo::of_this_process(command, None)),
        false => VolumeLock::acquire_shared(path),
    };
    let lock = lock.map_err(|error| Failure::lock(path, &error))?;
    let Opened { config, keys, failures, .. } = keys::unlock(path, options)?;
    for failure in &failures {
        log::warn!("slot {}: {}", failure.slot, failure.error);
    }
    let storage = OsStorage::open(path, !write).map_err(|error| without_data(path, &error))?;
    let (storage, keys) = (Arc::new(storage), Arc::new(keys));
    Ok(Unlocked { storage, keys, config, path: path.to_owned(), _lock: lock })
}

impl Unlocked {
    /// Opens the volume for reading; `repair` as in [`OpenOptions`].
    ///
    /// # Errors
    /// Everything that keeps it from being opened.
    pub fn open(&self, storage: Arc<dyn Storage>, repair: bool) -> Result<Arc<Volume>, Failure> {
        let options = OpenOptions { read_only: true, repair, ..OpenOptions::default() };
        let (keys, config) = (self.keys.clone(), &self.config);
        let id = config.data().volume_id;
        let cipher = keys.cipher();
        let opened = Volume::open(storage, keys, id, cipher, config.bytes(), &options);
        Ok(opened.map_err(|error| refused(&self.path, &error))?.0)
    }
}

fn without_data(path: &Path, error: &std::io::Error) -> Failure {
    if error.kind() != std::io::ErrorKind::NotFound {
        return Failure::io("open the volume", path, error);
    }
    let message = format!("{}: the directory data is missing", path.display());
    Failure::new(Exit::VolumeDamaged, message).hint("Restore it from a backup.")
}

/// A volume that does not open though its keys are there.
pub fn refused(path: &Path, error: &OpenError) -> Failure {
    let place = path.display();
    match error {
        OpenError::ConfigReplaced => Failure::new(Exit::ConfigForged, format!("{place}: {error}"))
            .hint("Restore the newest atrest.json."),
        OpenError::Storage { source, .. } => Failure::io("open the volume", path, source),
        OpenError::NoSuperblock { .. } | OpenError::Engine(_) | OpenError::Malformed(_) => {
            Failure::new(Exit::VolumeDamaged, format!("{place}: {}", chain(error)))
                .hint(format!("To see what can be saved: atrest fsck {place}"))
        }
    }
}

/// What the daemon asks of an open volume.
pub struct Control {
    volume: Arc<Volume>,
    keys: Arc<VolumeKeys>,
    pins: PinStore,
    /// Number of the key slot that opened the volume.
    slot: u32,
    /// The newest configuration; held while it is replaced, so that of two that are made from the
    /// same one the second is refused.
    config: Mutex<Config>,
    /// Released when everything else is gone.
    _lock: VolumeLock,
}

impl Control {
    /// Starts what runs beside requests. Threads: not before a fork.
    pub fn start(&self) {
        match recover(&self.volume) {
            Ok(0) => {}
            Ok(count) => log::info!("{count} files that were deleted while open are gone now"),
            Err(error) => log::error!("deleted files are still there: {}", chain(&error)),
        }
        self.volume.start();
    }

    /// The volume.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    fn remember(&self) -> Result<(), String> {
        let superblock = self.volume.epochs().superblock();
        let pin = Pin {
            pin: self.keys.pin(),
            // After an unmount in order both superblocks hold the same state: if the newer one is
            // lost, the other is no older.
            sequence: superblock.sequence - u64::from(superblock.clean),
            generation: self.config.lock().data().generation,
        };
        self.pins.store(self.volume.volume_id(), &pin).map_err(|error| chain(&error))
    }
}

/// The key slot that opened the volume, as it is now: it may have been wrapped again since.
fn key_in_use(config: &Config, slot: u32) -> Value {
    match config.slot(slot) {
        Some(slot) => status::slot(slot),
        None => json!({ "slot": slot, "removed": true }),
    }
}

impl VolumeControl for Control {
    fn status_json(&self) -> Value {
        let (_, free, inodes) = self.volume.space();
        let (used, _) = self.volume.epochs().space.usage();
        let damage = self.volume.epochs().damage();
        json!({
            "state": "unlocked",
            "cipher": self.volume.cipher().name(),
            "generation": self.config.lock().data().generation,
            "key_in_use": key_in_use(&self.config.lock(), self.slot),
            "epoch": self.keys.current_epoch(),
            "sequence": self.volume.epochs().superblock().sequence,
            "used_bytes": used * PAGE_BYTES,
            "free_bytes": free * PAGE_BYTES,
            "inodes": inodes,
            "damage": {
                "nodes_healed": damage.nodes_healed.load(Ordering::Relaxed),
                "nodes_lost": damage.nodes_lost.load(Ordering::Relaxed),
                "pages_lost": damage.pages_lost.load(Ordering::Relaxed),
                "changes_lost": damage.changes_lost.load(Ordering::Relaxed),
            },
        })
    }

    fn sync(&self) -> Result<(), String> {
        self.volume.sync().map_err(|error| chain(&error))
    }

    fn replace_config(&self, bytes: &[u8]) -> Result<(), String> {
        let config = self.keys.verify_config(bytes).map_err(|error| chain(&error))?;
        let mut newest = self.config.lock();
        let generation = newest.data().generation;
        if config.data().generation <= generation {
            return Err(format!(
                "the volume's keys were changed meanwhile (generation {generation}): run it again"
            ));
        }
        self.volume.replace_config(config.bytes()).map_err(|error| chain(&error))?;
        if config.slot(self.slot).is_none() {
            log::warn!("key slot {}, which opened the volume, is removed", self.slot);
        }
        log::info!("the volume's keys were changed: generation {}", config.data().generation);
        *newest = config;
        Ok(())
    }

    fn close(&self) -> Result<(), String> {
        self.volume.close().map_err(|error| chain(&error))?;
        self.remember()
    }
}

/// Replaces the configuration of a volume: by its daemon if it is mounted, else here.
///
/// # Errors
/// Everything that keeps the volume from being opened, or its daemon from taking it over.
pub fn replace_config(path: &Path, opened: Opened, config: &Config) -> Result<(), Failure> {
    let how = How { command: "key", mountpoint: None, read_only: false, allow_rollback: false };
    match VolumeLock::acquire(path, &LockInfo::of_this_process(how.command, None)) {
        Ok(lock) => {
            if place::config_bytes(path)? != opened.config.bytes() {
                let message = format!("{}: its keys were changed meanwhile", path.display());
                return Err(Failure::new(Exit::VolumeLocked, message).hint("Run it again."));
            }
            let open = open_with(path, opened, lock, how)?;
            let replaced = open.control.replace_config(config.bytes());
            let closed = open.control.close();
            replaced.and(closed).map_err(|error| {
                Failure::new(Exit::NotDurable, format!("{}: {error}", path.display()))
            })
        }
        Err(error @ LockError::Held(_)) => replace_by_daemon(config).map_err(|reason| {
            Failure::lock(path, &error).hint(format!("Its daemon was asked: {reason}"))
        }),
        Err(error) => Err(Failure::lock(path, &error)),
    }
}

fn replace_by_daemon(config: &Config) -> std::io::Result<()> {
    let text = std::str::from_utf8(config.bytes()).map_err(std::io::Error::other)?;
    let request = json!({ "op": "replace-config", "config": text });
    let socket = paths::control_socket(&config.data().volume_id.to_string())?;
    daemon::ask(&socket, &request, DAEMON_PATIENCE).map(drop)
}
