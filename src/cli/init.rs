//! `atrest init`

use std::path::Path;
use std::sync::Arc;

use super::args::{CipherName, InitArgs};
use super::exit::Exit;
use super::hint::{Failure, chain};
use super::{audit, kek, keys, open};
use crate::audit::{Asker, Audit, Entry, Event};
use crate::crypto::{Cipher, random};
use crate::format::VolumeId;
use crate::format::config::Config;
use crate::fs::volume::make_root;
use crate::key::{KekProvider, KeyError, ProviderOptions, VolumeKeys, provider_from_uri};
use crate::storage::{OsStorage, Storage};
use crate::volume::{OpenOptions, Volume, log_bytes_for};

/// Makes a volume, with a slot for each key-encryption key that was typed. Nothing is made before
/// every one of them has wrapped the volume key and unwrapped it again.
///
/// # Errors
/// Everything that keeps it from being made.
pub fn run(arguments: &InitArgs) -> Result<(), Failure> {
    let volume_id = make(arguments)?;
    println!("made volume {volume_id} in {}", arguments.volume.display());
    for (slot, uri) in (1..).zip(&arguments.kek) {
        println!("Slot {slot}: {uri}.");
    }
    println!("Without a key slot that opens, nothing can be read again.");
    Ok(())
}

/// The same, and says nothing.
///
/// # Errors
/// Those of [`run`].
pub fn make(arguments: &InitArgs) -> Result<VolumeId, Failure> {
    let path = &arguments.volume;
    check_empty(path)?;
    let uris: Vec<&str> = arguments.kek.iter().map(String::as_str).collect();
    let options = ProviderOptions {
        create_local_key: true,
        ..keys::source_options(&arguments.keys, None, &uris)
    };
    let cipher = match arguments.cipher {
        CipherName::Gcm => Cipher::Aes256Gcm,
        CipherName::Xts => Cipher::Aes256Xts,
    };
    let mut id = [0; 16];
    random::fill(&mut id);
    let volume_id = VolumeId(id);
    let failed = |error| Failure::key(path, &error);
    let providers = uris.iter().map(|uri| provider_from_uri(uri, &options));
    let providers: Vec<_> =
        providers.collect::<Result<_, _>>().map_err(|error| failed(KeyError::Kek(error)))?;
    let borrowed: Vec<&dyn KekProvider> = providers.iter().map(|provider| &**provider).collect();
    let audit = audit::open(&arguments.audit, &volume_id.to_string())?;
    let created = VolumeKeys::create_with_slots(volume_id, cipher, &borrowed);
    put_on_record(&audit, &created)?;
    let (config, keys) = created.map_err(failed)?;
    providers.iter().for_each(|provider| kek::warn(&**provider));
    let made = OsStorage::create(path).and_then(|storage| {
        let log_bytes = log_bytes_for(storage.capacity()?.total_bytes);
        Volume::create(&storage, &keys, volume_id, config.bytes(), log_bytes)?;
        Ok(storage)
    });
    let storage = made.map_err(|error| not_made(path, &error))?;
    let keys = Arc::new(keys);
    let options = OpenOptions::default();
    let opened = Volume::open(Arc::new(storage), keys, volume_id, cipher, config.bytes(), &options);
    let (volume, _) = opened.map_err(|error| open::refused(path, &error))?;
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    make_root(&volume, uid, gid, 0o755)
        .map_err(|error| unfinished(path, Exit::Other, &error, error.errno() == libc::ENOSPC))?;
    anchor(&volume, &config, &audit)
        .map_err(|error| unfinished(path, Exit::NotDurable, &*error, false))?;
    volume.close().map_err(|error| {
        let full = matches!(error, crate::volume::Error::NoSpace);
        unfinished(path, Exit::NotDurable, &error, full)
    })?;
    Ok(volume_id)
}

/// That the keys of a new volume were wrapped.
fn put_on_record(
    audit: &Audit,
    created: &Result<(Config, VolumeKeys), KeyError>,
) -> Result<(), Failure> {
    let wrap = || Entry::new(Event::Wrap, "init", &Asker::of_this_process());
    match created {
        Ok((config, keys)) => {
            audit.begin(keys, None);
            let mut slots = config.data().slots.iter();
            slots.try_for_each(|slot| audit::wrapped(audit, wrap(), Ok(slot)))?;
            audit.record(&Entry::new(Event::Init, "init", &Asker::of_this_process()))?;
        }
        Err(error) => audit::wrapped(audit, wrap(), Err(error))?,
    }
    Ok(())
}

/// Makes the configuration say how far the audit log goes.
fn anchor(
    volume: &Volume,
    config: &Config,
    audit: &Audit,
) -> Result<(), Box<dyn std::error::Error>> {
    let Some(anchor) = audit.to_anchor(false) else { return Ok(()) };
    let config = volume.keys().anchor_audit(config, anchor)?;
    volume.replace_config(config.bytes())?;
    audit.anchored(anchor);
    Ok(())
}

/// Before any key is asked for or made; [`OsStorage::create`] looks again.
fn check_empty(path: &Path) -> Result<(), Failure> {
    let has_entries = path.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    if has_entries {
        return Err(not_made(path, &std::io::ErrorKind::DirectoryNotEmpty.into()));
    }
    Ok(())
}

fn not_made(path: &Path, error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::DirectoryNotEmpty => {
            let message = format!("{} is not empty", path.display());
            Failure::new(Exit::VolumeNotEmpty, message)
                .hint("A volume needs a directory of its own.")
        }
        std::io::ErrorKind::ReadOnlyFilesystem => {
            let message = format!("cannot make a volume in {}: {error}", path.display());
            Failure::new(Exit::ReadOnly, message)
        }
        _ => Failure::io("make a volume in", path, error),
    }
}

/// A volume that could be begun only.
fn unfinished(path: &Path, exit: Exit, error: &dyn std::error::Error, full: bool) -> Failure {
    let exit = if full { Exit::NoSpace } else { exit };
    let place = path.display();
    Failure::new(exit, format!("cannot make a volume in {place}: {}", chain(error)))
        .hint(format!("What there is of it is of no use. To remove it: rm -r {place}"))
}
