//! The host's memory of a volume: that it is the same volume, and not an older one.
//!
//! MACs cannot tell a volume from another that an attacker made whole, with a key of their own
//! under the same public KEK, nor from its own past. So this host keeps, outside the volume, a
//! value that only the volume key yields, and the last sequence number that it saw.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::file::{self, FileError};
use crate::format::VolumeId;

/// Largest pin that is read, in bytes.
const PIN_BYTES_MAX: usize = 4096;

/// What this host remembers of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// `KDF(volume key, "atrest pin v1")` of the newest epoch then; says nothing about the key.
    pub pin: [u8; 32],
    /// Sequence number of the newest superblock then.
    pub sequence: u64,
    /// Generation of the configuration then.
    pub generation: u64,
}

/// What a volume is, compared with what this host remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// As new as it was, or newer.
    Fresh,
    /// This host has not seen the volume before.
    Absent,
    /// Another volume key: the volume was replaced, or rotated to new epochs elsewhere.
    Replaced,
    /// Older than it was: the volume, or its configuration, was restored.
    RolledBack {
        /// What this host had seen.
        seen: Pin,
    },
}

/// Why the pin could not be loaded or stored.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// No directory to keep pins in.
    #[error("no place for this host's memory of volumes: set ATREST_STATE or HOME")]
    NoDirectory,
    /// The file or directory.
    #[error("cannot use this host's memory of volume {volume}")]
    File {
        /// Which volume.
        volume: VolumeId,
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Not what [`PinStore::store`] writes.
    #[error("this host's memory of the volume is damaged: {}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// The directory of pins: `$ATREST_STATE/pins`, else `/var/lib/atrest/pins` for root and
/// `$XDG_STATE_HOME/atrest/pins` for others.
#[derive(Clone, Debug)]
pub struct PinStore {
    directory: PathBuf,
}

impl PinStore {
    /// The pins in `directory`, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The pins of this user on this host.
    ///
    /// # Errors
    /// [`PinError::NoDirectory`].
    pub fn of_this_user() -> Result<Self, PinError> {
        let absolute = |variable| {
            let path = std::env::var_os(variable).map(PathBuf::from);
            path.filter(|path| path.is_absolute())
        };
        if let Some(state) = std::env::var_os("ATREST_STATE") {
            return Ok(Self::new(PathBuf::from(state).join("pins")));
        }
        if nix::unistd::geteuid().is_root() {
            return Ok(Self::new("/var/lib/atrest/pins".into()));
        }
        let home = || absolute("HOME").map(|home| home.join(".local/state"));
        let state = absolute("XDG_STATE_HOME").or_else(home).ok_or(PinError::NoDirectory)?;
        Ok(Self::new(state.join("atrest/pins")))
    }

    /// What this host remembers of `volume`, if anything.
    ///
    /// # Errors
    /// [`PinError`]; a pin that is there but cannot be read is never taken for none.
    pub fn load(&self, volume: VolumeId) -> Result<Option<Pin>, PinError> {
        let failed = |error| file_problem(volume, error);
        if !file::check_directory(&self.directory).map_err(failed)? {
            return Ok(None);
        }
        let path = self.path(volume);
        let Some(bytes) = file::read(&path, PIN_BYTES_MAX).map_err(failed)? else {
            return Ok(None);
        };
        let pin = serde_json::from_slice::<Document>(&bytes).ok().and_then(Document::check);
        pin.map(Some).ok_or(PinError::Damaged { path })
    }

    /// Remembers `pin`, atomically and durably.
    ///
    /// # Errors
    /// [`PinError::File`].
    pub fn store(&self, volume: VolumeId, pin: &Pin) -> Result<(), PinError> {
        let failed = |error| file_problem(volume, error);
        file::create_directory(&self.directory).map_err(failed)?;
        let _lock = file::lock(&self.directory).map_err(failed)?;
        let mut bytes = serde_json::to_vec(&Document::new(pin)).expect("it is plain data");
        bytes.push(b'\n');
        file::replace(&self.path(volume), &bytes).map_err(failed)
    }

    fn path(&self, volume: VolumeId) -> PathBuf {
        self.directory.join(volume.to_string())
    }
}

/// Compares what this host remembers with a volume whose live epochs have `pins`
/// ([`super::VolumeKeys::pins`]), whose newest superblock has `sequence` and whose configuration
/// has `generation`.
pub fn check(seen: Option<Pin>, pins: &[[u8; 32]], sequence: u64, generation: u64) -> Freshness {
    match seen {
        None => Freshness::Absent,
        Some(seen) if !pins.contains(&seen.pin) => Freshness::Replaced,
        Some(seen) if sequence < seen.sequence || generation < seen.generation => {
            Freshness::RolledBack { seen }
        }
        Some(_) => Freshness::Fresh,
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    pin: String,
    sequence: u64,
    generation: u64,
}

impl Document {
    fn new(pin: &Pin) -> Self {
        let Pin { pin, sequence, generation } = *pin;
        let pin = pin.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { pin, sequence, generation }
    }

    fn check(self) -> Option<Pin> {
        let mut pin = [0; 32];
        if self.pin.len() != 64 || !self.pin.is_ascii() {
            return None;
        }
        for (index, byte) in pin.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&self.pin[2 * index..2 * index + 2], 16).ok()?;
        }
        Some(Pin { pin, sequence: self.sequence, generation: self.generation })
    }
}

fn file_problem(volume: VolumeId, error: FileError) -> PinError {
    PinError::File { volume, source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([1; 16]);
    const PIN: Pin = Pin { pin: [0xab; 32], sequence: 5, generation: 3 };

    /// What was stored is loaded; an absent pin is none, and a damaged one is an error.
    #[test]
    fn store_and_load() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = PinStore::new(directory.path().join("state/pins"));
        assert_eq!(store.load(VOLUME).expect("no directory, no pin"), None);
        store.store(VOLUME, &PIN).expect("writable");
        store.store(VolumeId([2; 16]), &Pin { sequence: 9, ..PIN }).expect("writable");
        assert_eq!(store.load(VOLUME).expect("readable"), Some(PIN));
        assert_eq!(store.load(VolumeId([3; 16])).expect("readable"), None);
        let newer = Pin { sequence: 6, ..PIN };
        store.store(VOLUME, &newer).expect("writable");
        assert_eq!(store.load(VOLUME).expect("readable"), Some(newer));
        for damage in ["", "{}", "{\"pin\":\"ab\",\"sequence\":1,\"generation\":1}"] {
            std::fs::write(store.path(VOLUME), damage).expect("writable");
            assert!(matches!(store.load(VOLUME), Err(PinError::Damaged { .. })), "{damage}");
        }
    }

    /// Each way that a volume can differ from what the host remembers.
    #[test]
    fn freshness() {
        let older_pin = [0xcd; 32];
        for (seen, pins, sequence, generation, expected) in [
            (None, &[PIN.pin][..], 0, 0, Freshness::Absent),
            (Some(PIN), &[PIN.pin], 5, 3, Freshness::Fresh),
            (Some(PIN), &[PIN.pin], 6, 4, Freshness::Fresh),
            (Some(PIN), &[PIN.pin, older_pin], 6, 4, Freshness::Fresh),
            (Some(PIN), &[older_pin], 6, 4, Freshness::Replaced),
            (Some(PIN), &[PIN.pin], 4, 3, Freshness::RolledBack { seen: PIN }),
            (Some(PIN), &[PIN.pin], 6, 2, Freshness::RolledBack { seen: PIN }),
        ] {
            assert_eq!(check(seen, pins, sequence, generation), expected);
        }
    }
}
