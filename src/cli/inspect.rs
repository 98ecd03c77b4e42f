//! `atrest inspect`

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::args::InspectArgs;
use super::exit::Exit;
use super::hint::{Failure, chain};
use super::{audit, keys, open, place, status};
use crate::storage::OsStorage;
use crate::volume::Volume;
use crate::volume::inspect::inspect_public;

/// Prints what anybody can know who has the volume's directory; with keys, what they show of the
/// volume or of one path in it.
///
/// # Errors
/// The configuration is refused, or the volume cannot be opened.
pub fn run(arguments: &InspectArgs) -> Result<(), Failure> {
    let volume = place::volume(&arguments.volume)?;
    let mut view = public(&volume)?;
    if arguments.unlock || arguments.path.is_some() {
        let how = open::How {
            command: "inspect",
            mountpoint: None,
            read_only: true,
            allow_rollback: true,
            audit: &audit::open_for(&arguments.audit, &volume)?,
        };
        let opened = open::open(&volume, &keys::provider_options(&arguments.keys), how)?;
        let inspected = opened.control.with_volume(|volume| match &arguments.path {
            Some(path) => of_path(volume, path).map(|of_path| view = of_path),
            None => {
                view.extend(fields(&volume.inspect()));
                Ok(())
            }
        });
        inspected.expect("what was just opened is not locked")?;
    }
    status::print(&view, arguments.json);
    Ok(())
}

fn public(volume: &Path) -> Result<Map<String, Value>, Failure> {
    let storage = OsStorage::open(volume, true)
        .map_err(|error| Failure::io("open the volume", volume, &error))?;
    let view = inspect_public(&storage, &place::config_bytes(volume)?)
        .map_err(|error| Failure::config(volume, &error))?;
    let mut fields = fields(&view);
    fields.insert("volume".to_owned(), json!(volume.to_string_lossy()));
    fields.insert("bytes_on_disk".to_owned(), json!(allocated_bytes(volume)));
    Ok(fields)
}

/// What is stored about a path within the volume.
fn of_path(volume: &Volume, path: &str) -> Result<Map<String, Value>, Failure> {
    let failed = |error: &dyn std::error::Error| {
        Failure::new(Exit::VolumeDamaged, format!("{path}: {}", chain(error)))
    };
    let mut ino = crate::fs::volume::ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let entry = volume.entry(ino, name.as_bytes()).map_err(|error| failed(&error))?;
        let missing = || Failure::new(Exit::Other, format!("{path} does not exist in the volume"));
        ino = entry.ok_or_else(missing)?.ino;
    }
    Ok(fields(&volume.inspect_path(ino).map_err(|error| failed(&error))?))
}

fn fields(view: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(view) {
        Ok(Value::Object(fields)) => fields,
        other => unreachable!("views are structs of plain values: {other:?}"),
    }
}

/// Bytes that a volume's files take on the disk.
fn allocated_bytes(volume: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let list = |directory: PathBuf| std::fs::read_dir(directory).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| entry.metadata().map_or(0, |m| m.blocks() * 512);
    list(volume.to_owned()).chain(list(volume.join("data"))).map(bytes).sum()
}
