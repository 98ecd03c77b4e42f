//! `atrest status`

use std::path::Path;

use serde_json::{Map, Value, json};

use super::args::StatusArgs;
use super::hint::Failure;
use super::place;
use crate::daemon::{self, paths};
use crate::format::config::{ConfigData, KeySlot};
use crate::storage::{Holder, VolumeLock};

/// Prints the state of a volume or mount.
///
/// # Errors
/// The path is neither, or the configuration is refused.
pub fn run(arguments: &StatusArgs) -> Result<(), Failure> {
    let Some(path) = &arguments.path else { return run_for_all(arguments.json) };
    print(&of_path(path)?, arguments.json);
    Ok(())
}

/// Prints the state of everything that is mounted.
fn run_for_all(as_json: bool) -> Result<(), Failure> {
    let mounts = place::all_mounts()?;
    let all = mounts.iter().map(|mount| {
        // Somebody else's volume is listed, and why nothing more is known of it.
        of_path(&mount.mountpoint).unwrap_or_else(|failure| {
            let mountpoint = json!(mount.mountpoint.to_string_lossy());
            let error = json!(failure.to_string());
            Map::from_iter([("mountpoint".to_owned(), mountpoint), ("error".to_owned(), error)])
        })
    });
    let all: Vec<_> = all.collect();
    if as_json {
        println!("{:#}", Value::Array(all.into_iter().map(Value::Object).collect()));
        return Ok(());
    }
    for (index, status) in all.iter().enumerate() {
        if index > 0 {
            println!();
        }
        print(status, false);
    }
    Ok(())
}

fn of_path(path: &Path) -> Result<Map<String, Value>, Failure> {
    let mounted = place::find_mount(path)?;
    if let Some(status) = mounted.as_ref().and_then(|found| place::service_at(&found.mountpoint)) {
        return Ok(status);
    }
    let volume = match &mounted {
        Some(mount) => mount.source.clone(),
        None => place::volume(path)?,
    };
    let mut status = of_config(&volume)?;
    status.insert("mounted".to_owned(), json!(mounted.is_some()));
    if let Some(mount) = &mounted {
        status.insert("mountpoint".to_owned(), json!(mount.mountpoint.to_string_lossy()));
    }
    of_holder(&volume, &mut status);
    of_daemon(&mut status);
    Ok(status)
}

fn of_config(volume: &Path) -> Result<Map<String, Value>, Failure> {
    let config = place::config(volume)?;
    let claims = config.claims();
    let mut status = Map::new();
    status.insert("volume".to_owned(), json!(volume.to_string_lossy()));
    status.insert("volume_id".to_owned(), json!(claims.volume_id.to_string()));
    status.insert("cipher".to_owned(), json!(claims.cipher));
    status.insert("epoch".to_owned(), json!(claims.epochs.last().map(|(epoch, _)| *epoch)));
    status.insert("generation".to_owned(), json!(claims.generation));
    status.insert("slots".to_owned(), slots(claims));
    Ok(status)
}

/// All key slots.
pub fn slots(claims: &ConfigData) -> Value {
    claims.slots.iter().map(slot).collect()
}

/// A key slot: number, provider, key and version.
pub fn slot(slot: &KeySlot) -> Value {
    json!({
        "slot": slot.id,
        "provider": slot.provider,
        "key": slot.kek.key_id,
        "key_version": slot.kek.key_version,
        "algorithm": slot.kek.algorithm,
    })
}

fn of_holder(volume: &Path, status: &mut Map<String, Value>) {
    if let Ok(Holder::Known(info)) = VolumeLock::holder(volume) {
        status.insert("pid".to_owned(), json!(info.pid));
        status.insert("host".to_owned(), json!(info.host));
        status.insert("since".to_owned(), json!(info.since));
        status.insert("held_by".to_owned(), json!(info.command));
    }
}

/// Adds what the daemon says, if there is one that answers.
fn of_daemon(status: &mut Map<String, Value>) {
    let id = status.get("volume_id").and_then(Value::as_str).unwrap_or_default();
    let Ok(socket) = paths::control_socket(id) else { return };
    match daemon::ask(&socket, &json!({ "op": "status" }), place::PATIENCE) {
        Ok(mut answer) => {
            if let Value::Object(fields) = answer["status"].take() {
                status.extend(fields);
            }
        }
        Err(error) if status.get("mounted") == Some(&json!(true)) => {
            status.insert("daemon".to_owned(), json!(format!("no answer: {error}")));
        }
        Err(_) => {}
    }
}

/// Prints `name: value` lines, or JSON.
pub fn print(status: &Map<String, Value>, as_json: bool) {
    if as_json {
        println!("{:#}", Value::Object(status.clone()));
        return;
    }
    for (name, value) in status {
        match value {
            Value::Array(list) => {
                println!("{name}:");
                list.iter().for_each(|item| println!("  {}", line(item)));
            }
            value => println!("{name}: {}", line(value)),
        }
    }
}

/// A value on one line; what a volume says has its control characters escaped.
fn line(value: &Value) -> String {
    match value {
        Value::String(text) => text.escape_debug().to_string(),
        Value::Null => "-".to_owned(),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{name} {}", line(value)));
            fields.collect::<Vec<_>>().join(", ")
        }
        value => value.to_string(),
    }
}
