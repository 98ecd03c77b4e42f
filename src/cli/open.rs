//! The seam to the volume: making and opening one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::control::Control;
use super::exit::Exit;
use super::hint::{Failure, chain};
use super::{keys, place};
use crate::audit::{Asker, Audit, Entry, Event};
use crate::daemon::{self, Served as _, VolumeControl as _, paths};
use crate::format::VolumeId;
use crate::format::config::Config;
use crate::fs::Tree;
use crate::fs::volume::GatedTree;
use crate::key::pin::{Freshness, PinStore, check as check_pin};
use crate::key::{Opened, ProviderOptions, VolumeKeys};
use crate::storage::{LockError, LockInfo, OsStorage, Storage, VolumeLock};
use crate::volume::{OpenError, OpenOptions, Volume};

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
#[derive(Clone, Copy)]
pub struct How<'a> {
    /// What the lock file will say: `mount`, `key`, …
    pub command: &'static str,
    /// Where it will be mounted.
    pub mountpoint: Option<&'a Path>,
    /// Write nothing.
    pub read_only: bool,
    /// Accept a volume that is older than this host has seen it.
    pub allow_rollback: bool,
    /// Where it is put on record.
    pub audit: &'a Arc<Audit>,
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
    open_with(path, keys::unlock(path, options, how.audit, how.command)?, lock, how, options)
}

/// Opens a volume whose lock and keys are there.
fn open_with(
    path: &Path,
    opened: Opened,
    lock: VolumeLock,
    how: How,
    options: &ProviderOptions,
) -> Result<OpenVolume, Failure> {
    let slot = opened.slot;
    let pins =
        PinStore::of_this_user().map_err(|error| Failure::new(Exit::Other, chain(&error)))?;
    let audit = how.audit.clone();
    let place = Place { path: path.to_owned(), read_only: how.read_only, pins, audit };
    let (config, serving) = place.open(opened, how.allow_rollback)?;
    let tree = Arc::new(GatedTree::new(serving.volume.clone()));
    // A daemon leaves the working directory, and asks for the key again.
    let lasting = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let options = ProviderOptions {
        interactive: false,
        key_store: options.key_store.as_ref().map(lasting),
        passphrase_file: options.passphrase_file.as_ref().map(lasting),
        ..options.clone()
    };
    let control = Control::new(place, slot, options, config, serving, tree.clone(), lock);
    Ok(OpenVolume { tree, control: Arc::new(control) })
}

/// Where a volume is, and how it is opened there.
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) read_only: bool,
    pub(super) pins: PinStore,
    pub(super) audit: Arc<Audit>,
}

/// A volume with its keys.
pub(super) struct Serving {
    pub(super) volume: Arc<Volume>,
    pub(super) keys: Arc<VolumeKeys>,
}

impl Place {
    /// Opens the volume with the keys that were unwrapped for it.
    ///
    /// # Errors
    /// Everything that keeps it from being opened.
    pub(super) fn open(
        &self,
        opened: Opened,
        allow_rollback: bool,
    ) -> Result<(Config, Serving), Failure> {
        let Opened { config, keys, slot, failures, .. } = opened;
        let path = &self.path;
        for failure in &failures {
            log::warn!("slot {}: {}", failure.slot, failure.error);
        }
        log::info!("slot {slot} opened {}", path.display());
        let storage =
            OsStorage::open(path, self.read_only).map_err(|error| without_data(path, &error))?;
        let keys = Arc::new(keys);
        let id = config.data().volume_id;
        let options = OpenOptions { read_only: self.read_only, ..OpenOptions::default() };
        let (cipher, storage) = (keys.cipher(), Arc::new(storage));
        let (volume, report) =
            Volume::open(storage, keys.clone(), id, cipher, config.bytes(), &options)
                .map_err(|error| refused(path, &error))?;
        for (file, reason) in &report.refused {
            self.say(format!("{file:?} cannot be used: {reason}; the other superblock was opened"));
        }
        if report.superblock_replayed {
            self.say("one superblock was put back from an older copy".to_owned());
        }
        let generation = config.data().generation;
        self.check_freshness(&keys, id, report.sequence, generation, allow_rollback)?;
        Ok((config, Serving { volume, keys }))
    }

    /// Says, and puts on record, what is wrong with superblocks.
    fn say(&self, problem: String) {
        log::error!("{problem}");
        let entry = Entry::new(Event::Superblock, "open", &Asker::of_this_process());
        _ = self.audit.record(&entry.failed("damaged", problem));
    }

    fn check_freshness(
        &self,
        keys: &VolumeKeys,
        volume_id: VolumeId,
        sequence: u64,
        generation: u64,
        allow_rollback: bool,
    ) -> Result<(), Failure> {
        let seen = self.pins.load(volume_id);
        let seen = seen.map_err(|error| Failure::new(Exit::Other, chain(&error)))?;
        let place = self.path.display();
        let message = match check_pin(seen, &keys.pins(), sequence, generation) {
            Freshness::Fresh | Freshness::Absent => return Ok(()),
            Freshness::Replaced => {
                format!("{place} has another volume key than this host has seen")
            }
            Freshness::RolledBack { seen } => {
                format!("{place} is older than it was: sequence {sequence}, seen {}", seen.sequence)
            }
        };
        if allow_rollback {
            log::warn!("{message}; accepted");
            return Ok(());
        }
        Err(Failure::new(Exit::RolledBack, message)
            .hint("Was it restored from a backup, or changed by somebody else?")
            .hint("To accept it as it is: --allow-rollback"))
    }
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
    (command, audit): (&'static str, &Audit),
    write: bool,
) -> Result<Unlocked, Failure> {
    let lock = match write {
        true => VolumeLock::acquire(path, &LockInfo::of_this_process(command, None)),
        false => VolumeLock::acquire_shared(path),
    };
    let lock = lock.map_err(|error| Failure::lock(path, &error))?;
    let Opened { config, keys, failures, .. } = keys::unlock(path, options, audit, command)?;
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

/// Replaces the configuration of a volume: by its daemon if it is mounted, else here.
///
/// # Errors
/// Everything that keeps the volume from being opened, or its daemon from taking it over.
pub fn replace_config(
    path: &Path,
    opened: Opened,
    config: &Config,
    audit: &Arc<Audit>,
) -> Result<(), Failure> {
    let (read_only, allow_rollback) = (false, false);
    let how = How { command: "key", mountpoint: None, read_only, allow_rollback, audit };
    match VolumeLock::acquire(path, &LockInfo::of_this_process(how.command, None)) {
        Ok(lock) => {
            if place::config_bytes(path)? != opened.config.bytes() {
                let message = format!("{}: its keys were changed meanwhile", path.display());
                return Err(Failure::new(Exit::VolumeLocked, message).hint("Run it again."));
            }
            let open = open_with(path, opened, lock, how, &ProviderOptions::default())?;
            let replaced = open.control.replace_config(config.bytes(), &Asker::of_this_process());
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
