//! `atrest lock` and `atrest unlock`

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{LockArgs, UnlockArgs};
use super::exit::Exit;
use super::hint::Failure;
use super::place;
use crate::daemon::{self, paths};

/// How long a daemon may take to write what was acknowledged, or to open the volume again.
const PATIENCE: Duration = Duration::from_secs(120);

/// Locks a mount, and returns when no key is in memory.
///
/// # Errors
/// [`Exit::NotMounted`], [`Exit::NotDurable`], [`Exit::DaemonSilent`].
pub fn lock(arguments: &LockArgs) -> Result<(), Failure> {
    ask(&arguments.path, &json!({ "op": "lock" }), Exit::NotDurable).map_err(|failure| {
        let place = arguments.path.display();
        failure
            .hint(
                "Nobody is served. The daemon's log names the files that may have lost something.",
            )
            .hint(format!("To see whether it is locked by now: atrest status {place}"))
    })
}

/// Unlocks a mount.
///
/// # Errors
/// [`Exit::NotMounted`], [`Exit::StillLocked`], [`Exit::DaemonSilent`].
pub fn unlock(arguments: &UnlockArgs) -> Result<(), Failure> {
    let file = match &arguments.passphrase_file {
        Some(file) => {
            let absolute = std::path::absolute(file);
            Some(absolute.map_err(|error| Failure::io("find", file, &error))?)
        }
        None => None,
    };
    let request = json!({ "op": "unlock", "slot": arguments.slot, "passphrase_file": file });
    ask(&arguments.path, &request, Exit::StillLocked).map_err(|failure| {
        let place = arguments.path.display();
        failure.hint(format!("To see what its lease says: atrest status {place}"))
    })
}

fn ask(path: &Path, request: &Value, refused: Exit) -> Result<(), Failure> {
    let shown = path.display();
    let found = place::mount_of(path)?;
    let id = place::config(&found.source)?.claims().volume_id.to_string();
    let socket: PathBuf = paths::control_socket(&id)
        .map_err(|error| Failure::io("find the daemon of", &found.source, &error))?;
    match daemon::ask(&socket, request, PATIENCE) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::Other => {
            Err(Failure::new(refused, format!("{shown}: {error}")))
        }
        Err(error) => Err(Failure::new(
            Exit::DaemonSilent,
            format!("the daemon of {shown} does not answer: {error}"),
        )),
    }
}
