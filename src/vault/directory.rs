//! A vault's directory: `vault.json`, `state`, `lock`, and while it is served `admin.sock`.
//!
//! `vault.json` is a volume's configuration ([`crate::format::config`]) under another name: key
//! slots that wrap a volume key, verified by its MACs. The master key of the vault's store is
//! derived from that volume key, so every kind of key provider can hold a vault, several at once.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::store::{Store, StoreError};
use crate::crypto::{Cipher, Secret, kdf, random};
use crate::format::VolumeId;
use crate::format::config::{CONFIG_BYTES_MAX, Config};
use crate::key::pin::{Freshness, Pin, PinError, PinStore, check as check_pin};
use crate::key::{KekProvider, KeyError, Opened, ProviderOptions, VolumeKeys};
use crate::storage::{LockError, LockInfo, VolumeLock};

/// Name of the configuration in the directory.
pub const CONFIG_NAME: &str = "vault.json";
const SETTINGS: &str = "vault/settings";
const GENERATION: &str = "vault/generation";

/// What is decided once, when a vault is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// For how many days what is deleted can be recovered: 7 to 90.
    pub retention_days: u32,
    /// Whether nothing can be purged before that.
    pub purge_protection: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { retention_days: 90, purge_protection: true }
    }
}

/// Why a vault cannot be made, opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// A system call failed.
    #[error("cannot {attempt} {}", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no vault.
    #[error("{} is not a vault: it has no {CONFIG_NAME}", .0.display())]
    NotAVault(PathBuf),
    /// A new vault's directory has something in it.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// Others have access to the directory.
    #[error("{path} is open to others; run: chmod go= {path}", path = .0.display())]
    OpenToOthers(PathBuf),
    /// Somebody else has it.
    #[error(transparent)]
    Lock(LockError),
    /// Its keys cannot be had.
    #[error("the vault's keys cannot be had")]
    Key(KeyError),
    /// Its state is refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This host has seen a newer state, or another vault.
    #[error("the vault is older than this host has seen it, or another one")]
    RolledBack,
    /// The host's memory of vaults.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A retention that cannot be.
    #[error("what is deleted is kept for 7 to 90 days, not {0}")]
    Retention(u32),
}

/// An open vault: locked, unwrapped, verified.
pub struct Vault {
    /// What it keeps.
    pub store: Arc<Store>,
    directory: PathBuf,
    config: Config,
    keys: VolumeKeys,
    pins: PinStore,
    /// Released when everything else is gone.
    _lock: VolumeLock,
}

impl Vault {
    /// Makes a vault in `directory`, which must be empty or missing, with one key slot that
    /// `provider` wraps.
    ///
    /// # Crash argument
    /// `vault.json` comes last: without it there is no vault, and with it everything is there.
    ///
    /// # Errors
    /// [`VaultError`]
    pub fn create(
        directory: &Path,
        provider: &dyn KekProvider,
        settings: &Settings,
        pins: PinStore,
    ) -> Result<VolumeId, VaultError> {
        if !(7..=90).contains(&settings.retention_days) {
            return Err(VaultError::Retention(settings.retention_days));
        }
        make_directory(directory)?;
        let lock = VolumeLock::acquire(directory, &LockInfo::of_this_process("vault init", None));
        let lock = lock.map_err(VaultError::Lock)?;
        let mut id = [0; 16];
        random::fill(&mut id);
        let id = VolumeId(id);
        let (config, keys) =
            VolumeKeys::create(id, Cipher::Aes256Gcm, provider).map_err(VaultError::Key)?;
        let store = Arc::new(Store::create(directory, master_key(&keys), id)?);
        store.change::<_, StoreError>(|change| {
            change.put_json(SETTINGS, settings);
            change.put_json(GENERATION, &config.data().generation);
            Ok(())
        })?;
        replace(directory, CONFIG_NAME, config.bytes())?;
        let vault =
            Self { store, directory: directory.to_owned(), config, keys, pins, _lock: lock };
        vault.remember()?;
        Ok(id)
    }

    /// Opens the vault in `directory` for `command`.
    ///
    /// # Errors
    /// [`VaultError`]; `RolledBack` unless `allow_rollback`.
    pub fn open(
        directory: &Path,
        options: &ProviderOptions,
        pins: PinStore,
        command: &str,
        allow_rollback: bool,
    ) -> Result<Self, VaultError> {
        let bytes = config_bytes(directory)?;
        check_private(directory)?;
        let lock = VolumeLock::acquire(directory, &LockInfo::of_this_process(command, None));
        let lock = lock.map_err(VaultError::Lock)?;
        let Opened { config, keys, failures, .. } =
            VolumeKeys::open(&bytes, options).map_err(VaultError::Key)?;
        for failure in &failures {
            log::warn!("slot {}: {}", failure.slot, failure.error);
        }
        let id = config.data().volume_id;
        let store = Arc::new(Store::open(directory, master_key(&keys), id)?);
        let generation = config.data().generation;
        let known: u64 = store.get_json(GENERATION)?.unwrap_or(0);
        let freshness = check_pin(pins.load(id)?, &keys.pins(), store.sequence(), generation);
        let is_older = matches!(freshness, Freshness::Replaced | Freshness::RolledBack { .. });
        if (is_older || generation < known) && !allow_rollback {
            return Err(VaultError::RolledBack);
        }
        if generation != known {
            store.change::<_, StoreError>(|change| {
                change.put_json(GENERATION, &generation);
                Ok(())
            })?;
        }
        let vault =
            Self { store, directory: directory.to_owned(), config, keys, pins, _lock: lock };
        vault.remember()?;
        Ok(vault)
    }

    /// Its settings.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn settings(&self) -> Result<Settings, StoreError> {
        settings(&self.store)
    }

    /// Its configuration: key slots.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its keys, to make a new configuration with.
    pub fn keys(&self) -> &VolumeKeys {
        &self.keys
    }

    /// Puts `config` in the place of the configuration, durably.
    ///
    /// # Errors
    /// [`VaultError`]
    pub fn replace_config(&mut self, config: Config) -> Result<(), VaultError> {
        replace(&self.directory, CONFIG_NAME, config.bytes())?;
        let generation = config.data().generation;
        self.store.change::<_, StoreError>(|change| {
            change.put_json(GENERATION, &generation);
            Ok(())
        })?;
        self.config = config;
        self.remember()
    }

    /// Has this host remember the newest change, so that an older state is refused from now on.
    ///
    /// # Errors
    /// [`VaultError::Pin`]
    pub fn remember(&self) -> Result<(), VaultError> {
        let pin = Pin {
            pin: self.keys.pin(),
            sequence: self.store.sequence(),
            generation: self.config.data().generation,
        };
        Ok(self.pins.store(self.store.vault_id(), &pin)?)
    }
}

/// The settings of the vault that `store` is of.
///
/// # Errors
/// [`StoreError`]
pub fn settings(store: &Store) -> Result<Settings, StoreError> {
    store.get_json(SETTINGS)?.ok_or_else(|| StoreError::Malformed(SETTINGS.to_owned()))
}

/// The master key of the store: the metadata key of the first epoch, which a change of key slots
/// leaves as it is.
fn master_key(keys: &VolumeKeys) -> Secret {
    let epoch = keys.epochs().next().expect("a volume has an epoch");
    let metadata_key = keys.metadata_key(epoch).expect("the epoch is live");
    kdf::derive(metadata_key, "atrest vault master v1", &keys.volume_id().0, 32)
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VaultError {
    let path = path.to_owned();
    move |source| VaultError::Io { attempt, path, source }
}

/// The bytes of the configuration.
///
/// # Errors
/// [`VaultError::NotAVault`], or the disk's.
pub fn config_bytes(directory: &Path) -> Result<Vec<u8>, VaultError> {
    let path = directory.join(CONFIG_NAME);
    let opened =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(VaultError::NotAVault(directory.to_owned()));
        }
        opened => opened.map_err(failed("open", &path))?,
    };
    let mut bytes = Vec::new();
    let limit = CONFIG_BYTES_MAX as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(failed("read", &path))?;
    Ok(bytes)
}

fn make_directory(directory: &Path) -> Result<(), VaultError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(failed("create", directory))?;
    check_private(directory)?;
    let mut entries = std::fs::read_dir(directory).map_err(failed("read", directory))?;
    match entries.next() {
        Some(_) => Err(VaultError::NotEmpty(directory.to_owned())),
        None => Ok(()),
    }
}

fn check_private(directory: &Path) -> Result<(), VaultError> {
    let metadata = std::fs::metadata(directory).map_err(failed("look at", directory))?;
    match metadata.mode() & 0o077 {
        0 => Ok(()),
        _ => Err(VaultError::OpenToOthers(directory.to_owned())),
    }
}

/// Replaces the file `name` in `directory`, durably: whole under a temporary name and synced, then
/// renamed, then the directory is synced. A crash leaves the old one or the new one.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), VaultError> {
    let (path, new) = (directory.join(name), directory.join(format!("{name}.new")));
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &new)(error));
        }
        _ => {}
    }
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    let mut file = created.map_err(failed("create", &new))?;
    file.write_all(bytes).map_err(failed("write", &new))?;
    file.sync_all().map_err(failed("sync", &new))?;
    std::fs::rename(&new, &path).map_err(failed("replace", &path))?;
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed("sync", directory))
}
