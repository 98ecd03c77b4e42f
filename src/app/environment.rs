//! What the command finds in its environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use super::download::Source;
use super::settings::Settings;
use super::wanted::is_package;

/// Azure sets each app setting under its own name and under this one.
const PREFIX: &str = "APPSETTING_";

/// The environment of the command: this process's own, the settings over it, those of the file also
/// as `APPSETTING_NAME`, and HOME. The signature of the package's URL is not in it: the command has
/// no use for it, and others can read a process's environment.
pub fn of_command(
    own: impl Iterator<Item = (OsString, OsString)>,
    home: &Path,
    resolved: &Settings,
    in_file: &Settings,
) -> Vec<(OsString, OsString)> {
    let mut all: BTreeMap<OsString, OsString> = own.collect();
    for (name, value) in resolved.iter() {
        let value = if is_package(name) { without_signature(value) } else { value.to_owned() };
        if in_file.get(name).is_some() {
            all.insert(format!("{PREFIX}{name}").into(), value.clone().into());
        }
        all.insert(name.into(), value.into());
    }
    all.insert("HOME".into(), home.into());
    // Of a service manager's conversation with this process, not with the command.
    all.remove(&OsString::from("NOTIFY_SOCKET"));
    all.into_iter().collect()
}

/// A value without the query, if it is a URL.
fn without_signature(value: &str) -> String {
    match Source::parse(value.trim()) {
        Ok(source) => source.to_string(),
        Err(_) => value.to_owned(),
    }
}
