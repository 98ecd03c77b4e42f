//! The seam to the volume: making and opening one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{CipherName, InitArgs};
use super::exit::Exit;
use super::hint::{Failure, chain};
use super::keys;
use crate::crypto::{Cipher, random};
use crate::daemon::{self, VolumeControl, paths};
use crate::format::VolumeId;
use crate::format::config::Config;
use crate::fs::Tree;
use crate::fs::volume::{VolumeTree, make_root, recover};
use crate::key::pin::{Freshness, Pin, PinStore, check as check_pin};
use crate::key::{KeyError, Opened, ProviderOptions, VolumeKeys, provider_from_uri};
use crate::storage::{LockError, LockInfo, OsStorage, Storage, VolumeLock};
use crate::volume::{OpenError, OpenOptions, Volume, log_bytes_for};

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
    let control =
        Control { volume: volume.clone(), keys, pins, generation: generation.into(), _lock: lock };
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

fn without_data(path: &Path, error: &std::io::Error) -> Failure {
    if error.kind() != std::io::ErrorKind::NotFound {
        return Failure::io("open the volume", path, error);
    }
    let message = format!("{}: the directory data is missing", path.display());
    Failure::new(Exit::VolumeDamaged, message).hint("Restore it from a backup.")
}

fn refused(path: &Path, error: &OpenError) -> Failure {
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
    generation: AtomicU64,
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
            generation: self.generation.load(Ordering::Relaxed),
        };
        self.pins.store(self.volume.volume_id(), &pin).map_err(|error| chain(&error))
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
        let generation = self.generation.load(Ordering::Relaxed);
        let newer = config.data().generation;
        if newer <= generation {
            return Err(format!("it is not newer than generation {generation}"));
        }
        self.volume.replace_config(config.bytes()).map_err(|error| chain(&error))?;
        self.generation.store(newer, Ordering::Relaxed);
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

/// Makes a volume.
///
/// # Errors
/// Everything that keeps it from being made.
pub fn create(arguments: &InitArgs) -> Result<(), Failure> {
    let path = &arguments.volume;
    let options = ProviderOptions {
        create_local_key: true,
        ..keys::provider_options_with(&arguments.keys, &[&arguments.kek])
    };
    let cipher = match arguments.cipher {
        CipherName::Gcm => Cipher::Aes256Gcm,
        CipherName::Xts => Cipher::Aes256Xts,
    };
    let mut id = [0; 16];
    random::fill(&mut id);
    let volume_id = VolumeId(id);
    let failed = |error| Failure::key(path, &error);
    let provider = provider_from_uri(&arguments.kek, &options)
        .map_err(|error| failed(KeyError::Kek(error)))?;
    let (config, keys) = VolumeKeys::create(volume_id, cipher, &*provider).map_err(failed)?;
    let made = OsStorage::create(path).and_then(|storage| {
        let log_bytes = log_bytes_for(storage.capacity()?.total_bytes);
        Volume::create(&storage, &keys, volume_id, config.bytes(), log_bytes)?;
        Ok(storage)
    });
    let storage = made.map_err(|error| match error.kind() {
        std::io::ErrorKind::DirectoryNotEmpty => {
            let message = format!("{} is not empty", path.display());
            Failure::new(Exit::VolumeNotEmpty, message)
                .hint("A volume needs a directory of its own.")
        }
        std::io::ErrorKind::ReadOnlyFilesystem => {
            let message = format!("cannot make a volume in {}: {error}", path.display());
            Failure::new(Exit::ReadOnly, message)
        }
        _ => Failure::io("make a volume in", path, &error),
    })?;
    let keys = Arc::new(keys);
    let options = OpenOptions::default();
    let opened = Volume::open(Arc::new(storage), keys, volume_id, cipher, config.bytes(), &options);
    let (volume, _) = opened.map_err(|error| refused(path, &error))?;
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    make_root(&volume, uid, gid, 0o755)
        .map_err(|error| unfinished(path, Exit::Other, &error, error.errno() == libc::ENOSPC))?;
    volume.close().map_err(|error| {
        let full = matches!(error, crate::volume::Error::NoSpace);
        unfinished(path, Exit::NotDurable, &error, full)
    })?;
    println!("made volume {volume_id} in {}", path.display());
    println!(
        "Slot 1: {}. Without a key slot that opens, nothing can be read again.",
        arguments.kek
    );
    Ok(())
}

/// A volume that could be begun only.
fn unfinished(path: &Path, exit: Exit, error: &dyn std::error::Error, full: bool) -> Failure {
    let exit = if full { Exit::NoSpace } else { exit };
    let place = path.display();
    Failure::new(exit, format!("cannot make a volume in {place}: {}", chain(error)))
        .hint(format!("What there is of it is of no use. To remove it: rm -r {place}"))
}
