//! Who has a volume mounted: a lock that the kernel releases when its holder dies.

use super::os::{open_directory, open_regular};
use crate::sys::files::{self, LockMode};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// The file in the volume's directory.
const LOCK_NAME: &str = "lock";
/// A record is a few hundred bytes; what is larger was not written by us.
const RECORD_BYTES_MAX: u64 = 16 * 1024;
/// [`VolumeLock::holder`] holds the lock for microseconds; this is how often and how long a refused
/// attempt waits before it believes that the volume is in use.
const ATTEMPTS: u32 = 5;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

/// Who holds a volume, for the eyes of others. Nothing is decided by it: the lock decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockInfo {
    /// Name of the host.
    pub host: String,
    /// Process on that host.
    pub pid: u32,
    /// Where the volume is mounted, if it is a mount that holds it.
    pub mountpoint: Option<String>,
    /// Since when, RFC 3339.
    pub since: String,
    /// What the process does: `mount`, `fsck`, …
    pub command: String,
}

impl LockInfo {
    /// Describes this process, now.
    pub fn of_this_process(command: &str, mountpoint: Option<&Path>) -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        Self {
            host: host.to_string_lossy().into_owned(),
            pid: std::process::id(),
            mountpoint: mountpoint.map(|path| path.to_string_lossy().into_owned()),
            since: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            command: command.to_owned(),
        }
    }
}

/// Control characters are escaped: the text comes from a file that anyone may have written.
impl fmt::Display for LockInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (command, host) = (self.command.escape_debug(), self.host.escape_debug());
        write!(f, "{command}, process {} on {host}", self.pid)?;
        if let Some(mountpoint) = &self.mountpoint {
            write!(f, ", at {}", mountpoint.escape_debug())?;
        }
        write!(f, ", since {}", self.since.escape_debug())
    }
}

/// Who holds a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// A process that says who it is.
    Known(LockInfo),
    /// Processes that cannot say: read-only mounts leave no record.
    Unknown,
}

/// Why a volume could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error("the volume is in use by {}", .0.as_ref().map_or(
        "another process, such as a read-only mount".to_owned(), LockInfo::to_string))]
    Held(Option<LockInfo>),
    /// The filesystem under the volume has no locks, without which two daemons would destroy it.
    #[error("the filesystem of the volume does not support flock(2)")]
    Unsupported,
    /// Opening, locking or writing the file failed.
    #[error("cannot lock the volume")]
    Io(#[source] io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS) => Self::Unsupported,
            _ => Self::Io(error),
        }
    }
}

/// A volume that this process, and the children that it forks, hold.
///
/// flock(2) on the file `lock`: it is free once the last copy of the descriptor is closed, however
/// the processes end, so there is never a stale lock to remove. Dropping only closes; it does not
/// unlock, so that a parent that forked the daemon cannot take the lock from it. On some network
/// filesystems flock is local to the host, which is why the record names it.
pub struct VolumeLock {
    /// `None`: a read-only directory without a lock file, which nobody can write to anyway.
    file: Option<File>,
}

impl VolumeLock {
    /// Takes the volume in `directory` for writing and records who has it.
    ///
    /// # Errors
    /// [`LockError::Held`] with the holder if it says who it is.
    pub fn acquire(directory: &Path, info: &LockInfo) -> Result<Self, LockError> {
        let directory = open_directory(directory)?;
        let file = open_regular(&directory, LOCK_NAME, OFlag::O_RDWR | OFlag::O_CREAT)?;
        Self::lock(&file, LockMode::Exclusive)?;
        let lock = Self { file: Some(file) };
        lock.record(info)?;
        Ok(lock)
    }

    /// Takes the volume in `directory` for reading, together with other readers. It writes
    /// nothing, and a directory that cannot be written to and has no lock file needs no lock.
    ///
    /// # Errors
    /// [`LockError::Held`] if somebody has it for writing.
    pub fn acquire_shared(directory: &Path) -> Result<Self, LockError> {
        let directory = open_directory(directory)?;
        let file = match open_regular(&directory, LOCK_NAME, OFlag::O_RDONLY) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { file: None });
            }
            Err(error) => return Err(error.into()),
        };
        Self::lock(&file, LockMode::Shared)?;
        Ok(Self { file: Some(file) })
    }

    /// Replaces the record, as after a fork or when the mount point is known. Does nothing to a
    /// shared lock.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn record(&self, info: &LockInfo) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut text = serde_json::to_vec_pretty(info)?;
        text.push(b'\n');
        // In place, so that a full disk has the block. Whoever reads in between finds no JSON and
        // says "another process".
        match file.write_all_at(&text, 0).and_then(|()| file.set_len(text.len() as u64)) {
            // The lock is what counts; who holds it can then not be told.
            Err(error) if super::is_full(&error) => file.set_len(0),
            written => written,
        }
    }

    /// Who holds the volume in `directory`. It asks the lock, not the record.
    ///
    /// # Errors
    /// Those of open(2) and flock(2), other than that there is no lock file.
    pub fn holder(directory: &Path) -> io::Result<Holder> {
        let directory = open_directory(directory)?;
        let file = match open_regular(&directory, LOCK_NAME, OFlag::O_RDONLY) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Holder::Nobody),
            Err(error) => return Err(error),
        };
        // Shared first: if that is refused, somebody writes, and the record is theirs.
        if !files::try_lock(&file, LockMode::Shared)? {
            return Ok(read_record(&file).map_or(Holder::Unknown, Holder::Known));
        }
        let alone = files::try_lock(&file, LockMode::Exclusive)?;
        Ok(if alone { Holder::Nobody } else { Holder::Unknown })
    }

    fn lock(file: &File, mode: LockMode) -> Result<(), LockError> {
        for attempt in 1.. {
            if files::try_lock(file, mode)? {
                break;
            }
            if attempt == ATTEMPTS {
                return Err(LockError::Held(Self::exclusive_holder(file)));
            }
            std::thread::sleep(ATTEMPT_PAUSE);
        }
        Ok(())
    }

    /// The record of who holds the lock, unless those who hold it share it and left none.
    fn exclusive_holder(file: &File) -> Option<LockInfo> {
        match files::try_lock(file, LockMode::Shared) {
            Ok(true) => None,
            _ => read_record(file),
        }
    }
}

fn read_record(file: &File) -> Option<LockInfo> {
    let mut text = Vec::new();
    file.take(RECORD_BYTES_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(pid: u32) -> LockInfo {
        LockInfo { pid, ..LockInfo::of_this_process("mount", Some(Path::new("/srv/clear"))) }
    }

    #[test]
    fn a_record_replaces_a_longer_one() {
        let directory = tempfile::tempdir().unwrap();
        let lock = VolumeLock::acquire(directory.path(), &info(123_456)).unwrap();
        lock.record(&info(1)).unwrap();
        let Holder::Known(found) = VolumeLock::holder(directory.path()).unwrap() else {
            panic!("the record is no JSON")
        };
        assert_eq!(found.pid, 1);
    }

    #[test]
    fn second_writer_learns_who_the_first_is() {
        let directory = tempfile::tempdir().unwrap();
        let first = VolumeLock::acquire(directory.path(), &info(1)).unwrap();
        let Err(LockError::Held(holder)) = VolumeLock::acquire(directory.path(), &info(2)) else {
            panic!("two writers");
        };
        let holder = holder.expect("the first wrote who it is");
        assert_eq!((holder.pid, holder.mountpoint.as_deref()), (1, Some("/srv/clear")));
        drop(first);
        VolumeLock::acquire(directory.path(), &info(2)).unwrap();
    }

    #[test]
    fn readers_share_and_exclude_writers() {
        let directory = tempfile::tempdir().unwrap();
        drop(VolumeLock::acquire(directory.path(), &info(1)).unwrap());
        let one = VolumeLock::acquire_shared(directory.path()).unwrap();
        let two = VolumeLock::acquire_shared(directory.path()).unwrap();
        // The record that process 1 left is not passed off as the readers'.
        let refused = VolumeLock::acquire(directory.path(), &info(2));
        assert!(matches!(refused, Err(LockError::Held(None))));
        assert_eq!(VolumeLock::holder(directory.path()).unwrap(), Holder::Unknown);
        drop((one, two));
        let _writer = VolumeLock::acquire(directory.path(), &info(2)).unwrap();
        let refused = VolumeLock::acquire_shared(directory.path());
        assert!(matches!(refused, Err(LockError::Held(Some(holder))) if holder.pid == 2));
    }

    #[test]
    fn directory_without_a_lock_file_needs_none_for_reading() {
        let directory = tempfile::tempdir().unwrap();
        VolumeLock::acquire_shared(directory.path()).unwrap();
        assert!(!directory.path().join(LOCK_NAME).exists());
        assert_eq!(VolumeLock::holder(directory.path()).unwrap(), Holder::Nobody);
    }

    #[test]
    fn holder_is_whoever_has_the_lock_and_not_what_the_file_says() {
        let directory = tempfile::tempdir().unwrap();
        let lock = VolumeLock::acquire(directory.path(), &info(1)).unwrap();
        lock.record(&info(7)).unwrap();
        let Holder::Known(holder) = VolumeLock::holder(directory.path()).unwrap() else {
            panic!("the holder wrote a record");
        };
        assert_eq!(holder.pid, 7);
        drop(lock);
        assert!(directory.path().join(LOCK_NAME).exists());
        assert_eq!(VolumeLock::holder(directory.path()).unwrap(), Holder::Nobody);
    }

    #[test]
    fn lock_lives_as_long_as_the_last_copy_of_the_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let lock = VolumeLock::acquire(directory.path(), &info(1)).unwrap();
        // What fork(2) gives a daemon: the same open file description.
        let child = lock.file.as_ref().unwrap().try_clone().unwrap();
        drop(lock);
        assert!(VolumeLock::acquire(directory.path(), &info(2)).is_err());
        drop(child);
        VolumeLock::acquire(directory.path(), &info(2)).unwrap();
    }

    #[test]
    fn record_cannot_send_control_characters_to_a_terminal() {
        let hostile = LockInfo { host: "\u{1b}[2J".to_owned(), ..info(1) };
        assert!(!hostile.to_string().contains('\u{1b}'));
    }
}
