//! `atrest umount`

use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::args::UmountArgs;
use super::exit::Exit;
use super::hint::Failure;
use super::place;
use crate::daemon::{self, paths};
use crate::storage::{Holder, VolumeLock};
use crate::sys::mount::{self, Mount};
use crate::sys::process::{ProcessHandle, users_of};

/// How long everything dirty may take to become durable, and the daemon to end.
const PATIENCE: Duration = Duration::from_secs(600);

/// Unmounts, and returns when everything is durable and the daemon has ended.
///
/// # Errors
/// [`Exit::NotMounted`], [`Exit::Busy`], [`Exit::NotDurable`], [`Exit::DaemonSilent`].
pub fn run(arguments: &UmountArgs) -> Result<(), Failure> {
    let found = place::mount_of(&arguments.path)?;
    let daemon = match place::service_at(&found.mountpoint) {
        Some(status) => service(&status)?,
        None => daemon_of(&found.source)?,
    };
    if daemon.is_some() {
        sync(&found)?;
    }
    match mount::unmount(&found.mountpoint, arguments.lazy) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            return Err(busy(&found.mountpoint));
        }
        Err(error) => return Err(Failure::io("unmount", &found.mountpoint, &error)),
    }
    match daemon {
        Some(daemon) if !arguments.lazy => wait(&daemon),
        _ => Ok(()),
    }
}

/// The process that told its own status.
fn service(status: &Map<String, Value>) -> Result<Option<ProcessHandle>, Failure> {
    let pid = status.get("pid").and_then(Value::as_u64).and_then(|pid| u32::try_from(pid).ok());
    let Some(pid) = pid else { return Ok(None) };
    ProcessHandle::open(pid)
        .map_err(|error| Failure::io("watch the daemon of", Path::new("the mount"), &error))
}

/// The process that serves the volume, opened before it ends.
fn daemon_of(volume: &Path) -> Result<Option<ProcessHandle>, Failure> {
    match VolumeLock::holder(volume) {
        Ok(Holder::Known(info)) if info.host == this_host() => ProcessHandle::open(info.pid)
            .map_err(|error| Failure::io("watch the daemon of", volume, &error)),
        _ => Ok(None),
    }
}

fn this_host() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
}

/// Asks the daemon to make everything durable while it can still say what went wrong.
fn sync(mount: &Mount) -> Result<(), Failure> {
    let id = match place::config(&mount.source) {
        Ok(config) => config.claims().volume_id.to_string(),
        Err(_) => paths::mount_id(&mount.mountpoint),
    };
    let Ok(socket) = paths::control_socket(&id) else { return Ok(()) };
    match daemon::ask(&socket, &json!({ "op": "sync" }), PATIENCE) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::Other => {
            Err(Failure::new(Exit::NotDurable, format!("not everything is durable: {error}"))
                .hint("The volume stays mounted, so that what is in it can be copied."))
        }
        // Unmounting syncs as well; a daemon without a socket only cannot report.
        Err(_) => Ok(()),
    }
}

fn busy(mountpoint: &Path) -> Failure {
    let shown = mountpoint.display();
    let mut failure = Failure::new(Exit::Busy, format!("{shown} is in use"));
    for user in users_of(mountpoint) {
        failure = failure.hint(format!("process {}: {} ({})", user.pid, user.command, user.how));
    }
    failure.hint(format!("To unmount once they are gone: atrest umount --lazy {shown}"))
}

fn wait(daemon: &ProcessHandle) -> Result<(), Failure> {
    match daemon.wait(PATIENCE) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let message = format!("the daemon still works after {} s", PATIENCE.as_secs());
            Err(Failure::new(Exit::DaemonSilent, message).hint("Its log says at what."))
        }
        Err(error) => {
            Err(Failure::new(Exit::DaemonSilent, format!("cannot wait for the daemon: {error}")))
        }
    }
}
