//! Where a daemon keeps its log and its control socket.

use std::env;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::crypto;

/// The log file of a volume: `/var/log/atrest/ID.log` for root, else below `$XDG_STATE_HOME`.
///
/// # Errors
/// `NotFound` if the user has no home directory.
pub fn log_file(volume_id: &str) -> io::Result<PathBuf> {
    let directory =
        if geteuid().is_root() { PathBuf::from("/var/log/atrest") } else { state_directory()? };
    Ok(directory.join(format!("{volume_id}.log")))
}

/// The control socket of a volume: `/run/atrest/ID.sock` for root, else below `$XDG_RUNTIME_DIR`.
///
/// # Errors
/// `NotFound` if the user has neither that nor a home directory.
pub fn control_socket(volume_id: &str) -> io::Result<PathBuf> {
    let directory = if geteuid().is_root() {
        PathBuf::from("/run/atrest")
    } else {
        match absolute("XDG_RUNTIME_DIR") {
            Some(directory) => directory.join("atrest"),
            None => state_directory()?,
        }
    };
    Ok(directory.join(format!("{volume_id}.sock")))
}

/// What a mount that is no volume's is called where a volume has its id: the same for every mount
/// at one place.
pub fn mount_id(mountpoint: &Path) -> String {
    let digest = crypto::kdf::digest(mountpoint.as_os_str().as_bytes());
    digest[..16].iter().fold("mount-".to_owned(), |id, byte| id + &format!("{byte:02x}"))
}

fn state_directory() -> io::Result<PathBuf> {
    if let Some(directory) = absolute("XDG_STATE_HOME") {
        return Ok(directory.join("atrest"));
    }
    let home = absolute("HOME");
    let home = home.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "HOME is not set"))?;
    Ok(home.join(".local/state/atrest"))
}

/// Relative paths in these variables are to be ignored (XDG Base Directory Specification).
fn absolute(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}
