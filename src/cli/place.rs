//! From a path that was typed to a volume and its mount.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::exit::Exit;
use super::hint::Failure;
use crate::daemon::{self, paths};
use crate::format::config::UnverifiedConfig;
use crate::sys::mount::{self, Mount};

/// How long a daemon may take to say how it is.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a configuration that are read: more than any that is accepted.
const CONFIG_BYTES_READ: u64 = 1 << 20;
/// The configuration's name in a volume.
const CONFIG_NAME: &str = "atrest.json";

/// The canonical path of a volume, which has a configuration.
///
/// # Errors
/// [`Exit::ConfigMissing`] if it has none.
pub fn volume(path: &Path) -> Result<PathBuf, Failure> {
    let missing = |error: &io::Error| {
        Failure::new(Exit::ConfigMissing, format!("{} is not a volume: {error}", path.display()))
            .hint(format!("To make one: atrest init {}", path.display()))
    };
    let volume = path.canonicalize().map_err(|error| missing(&error))?;
    let there = std::fs::metadata(volume.join(CONFIG_NAME));
    match there {
        Ok(_) => Ok(volume),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let none = io::Error::other(format!("it has no {CONFIG_NAME}"));
            if !volume.join("super.a").exists() {
                return Err(missing(&none));
            }
            let message = format!("{}: {CONFIG_NAME} is missing", path.display());
            Err(Failure::new(Exit::ConfigMissing, message)
                .hint("Restore it from a backup. Without it nothing can be read."))
        }
        Err(error) => Err(Failure::io("read", &volume.join(CONFIG_NAME), &error)),
    }
}

/// The bytes of a volume's configuration.
///
/// # Errors
/// Those of reading it.
pub fn config_bytes(volume: &Path) -> Result<Vec<u8>, Failure> {
    use std::io::Read as _;
    let path = volume.join(CONFIG_NAME);
    let mut bytes = Vec::new();
    std::fs::File::open(&path)
        .and_then(|file| file.take(CONFIG_BYTES_READ).read_to_end(&mut bytes))
        .map_err(|error| Failure::io("read", &path, &error))?;
    Ok(bytes)
}

/// The configuration, which nobody has vouched for yet.
///
/// # Errors
/// Those of reading it, and of [`UnverifiedConfig::decode`].
pub fn config(volume: &Path) -> Result<UnverifiedConfig, Failure> {
    let bytes = config_bytes(volume)?;
    UnverifiedConfig::decode(&bytes).map_err(|error| Failure::config(volume, &error))
}

/// Our mount at `path`, or of the volume at `path`. Asks the mount table only: a mount whose daemon
/// is dead answers no system call.
///
/// # Errors
/// Those of reading the mount table.
pub fn find_mount(path: &Path) -> Result<Option<Mount>, Failure> {
    let table = mount_table()?;
    let ours = |mount: &&Mount| mount.kind == mount::TYPE;
    let typed = lexical(path);
    if let Some(mount) = table.iter().rev().find(|mount| mount.mountpoint == typed) {
        return Ok(Some(mount).filter(ours).cloned());
    }
    let Ok(canonical) = path.canonicalize() else { return Ok(None) };
    let found = table.iter().rev().filter(ours);
    let mut found = found.filter(|m| m.mountpoint == canonical || m.source == canonical);
    Ok(found.next().cloned())
}

/// As [`find_mount`], for who needs one.
///
/// # Errors
/// Those of [`find_mount`], and [`Exit::NotMounted`].
pub fn mount_of(path: &Path) -> Result<Mount, Failure> {
    find_mount(path)?.ok_or_else(|| {
        let message = format!("{} is not a mount of atrest", path.display());
        Failure::new(Exit::NotMounted, message)
            .hint(format!("To list them: findmnt -t {}", mount::TYPE))
    })
}

/// What the daemon of a mount that is no volume's says of itself; `None` if there is none there.
pub fn service_at(mountpoint: &Path) -> Option<Map<String, Value>> {
    let socket = paths::control_socket(&paths::mount_id(mountpoint)).ok()?;
    let mut answer = daemon::ask(&socket, &json!({ "op": "status" }), PATIENCE).ok()?;
    match answer["status"].take() {
        Value::Object(status) => Some(status),
        _ => None,
    }
}

/// All mounts of atrest that this process sees.
///
/// # Errors
/// If the mount table cannot be read.
pub fn all_mounts() -> Result<Vec<Mount>, Failure> {
    let mut table = mount_table()?;
    table.retain(|mount| mount.kind == mount::TYPE);
    Ok(table)
}

fn mount_table() -> Result<Vec<Mount>, Failure> {
    mount::mounts().map_err(|error| Failure::io("read", Path::new("/proc"), &error))
}

/// The path made absolute, with its parent resolved but not itself.
fn lexical(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent().and_then(|parent| parent.canonicalize().ok()), absolute.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => absolute,
    }
}
