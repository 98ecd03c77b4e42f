//! Private files of this host: read only if nobody else could have written or read them, and
//! replaced atomically. These are outside the volume, so not `storage`'s.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use zeroize::Zeroizing;

use crate::crypto::Secret;

/// What could not be done with which file.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    /// A system call failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Others than the owner have access.
    #[error("{0} is open to others (mode {mode:04o}); run: chmod go= {0}", path.display())]
    Permissions {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to someone else.
    #[error("{} belongs to user {owner}, not to user {expected} who runs this", path.display())]
    Owner {
        /// Which.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// This process's user.
        expected: u32,
    },
    /// Everybody can read a secret.
    #[error("everybody can read the {what} in {0}; run: chmod o= {0}", path.display())]
    Readable {
        /// Where.
        path: PathBuf,
        /// Which secret.
        what: &'static str,
    },
    /// Larger than it can be, or not a regular file.
    #[error("{} {problem}", path.display())]
    Unexpected {
        /// Which.
        path: PathBuf,
        /// What it is.
        problem: &'static str,
    },
}

impl FileError {
    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// Makes `directory` and its parents, for the owner only, and checks that it is so.
pub(super) fn create_directory(directory: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(FileError::io("create", directory))?;
    check_directory(directory).map(|_| ())
}

/// Whether `directory` exists; it must then be the owner's alone.
pub(super) fn check_directory(directory: &Path) -> Result<bool, FileError> {
    match std::fs::metadata(directory) {
        Ok(metadata) => check_private(directory, &metadata).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(FileError::io("look at", directory)(source)),
    }
}

/// Reads `path`, of at most `bytes_max` bytes, or returns `None` if there is no such file.
///
/// # Errors
/// [`FileError`], also if the file is not the owner's alone.
pub(super) fn read(path: &Path, bytes_max: usize) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
    let opened =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::io("open", path)(source)),
    };
    let metadata = file.metadata().map_err(FileError::io("look at", path))?;
    if !metadata.is_file() {
        return Err(FileError::Unexpected { path: path.into(), problem: "is not a regular file" });
    }
    check_private(path, &metadata)?;
    read_bounded(&mut file, path, bytes_max).map(Some)
}

/// Reads all of `file`, at most `bytes_max` bytes, into one buffer that is wiped.
pub(super) fn read_bounded(
    file: &mut File,
    path: &Path,
    bytes_max: usize,
) -> Result<Zeroizing<Vec<u8>>, FileError> {
    // One byte of room more than is allowed, and no growth: a buffer that moves leaves copies.
    let mut bytes = Zeroizing::new(vec![0; bytes_max + 1]);
    let mut length = 0;
    while length < bytes.len() {
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(FileError::io("read", path)(source)),
        }
    }
    if length > bytes_max {
        return Err(FileError::Unexpected { path: path.into(), problem: "is too large" });
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Reads a secret that a person or a service manager put into a file: all of it, without one
/// trailing line feed. `attempt` is for errors: "read the PIN from", of which `what` is "PIN".
///
/// # Errors
/// [`FileError`], also if everybody can read it; that its group can is only said.
pub(super) fn read_line(
    path: &Path,
    (attempt, what): (&'static str, &'static str),
    bytes_max: usize,
) -> Result<Secret, FileError> {
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY).open(path);
    let mut file = opened.map_err(FileError::io(attempt, path))?;
    let metadata = file.metadata().map_err(FileError::io(attempt, path))?;
    // A pipe (`<(command)` in a shell) has a mode too, but nobody else has a way to it.
    if metadata.is_file() && metadata.mode() & 0o004 != 0 {
        return Err(FileError::Readable { path: path.into(), what });
    }
    if metadata.is_file() && metadata.mode() & 0o040 != 0 {
        log::warn!("the group can read the {what} in {}", path.display());
    }
    let bytes = read_bounded(&mut file, path, bytes_max)?;
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    Ok(Secret::from_fn(line.len(), |target| target.copy_from_slice(line)))
}

/// Replaces `path` by `bytes`, readable by the owner only.
///
/// # Crash argument
/// 1. The new content is durable under a temporary name before it gets its own, so `path` is
///    always the old content or the new, whole.
/// 2. The directory is synced last, so the new content stays once this returned `Ok`.
///
/// A temporary file that a crash left behind is replaced by the next call.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let directory = path.parent().expect("private files are in a directory");
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(FileError::io("remove", &temporary)(error));
        }
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(FileError::io("create", &temporary))?;
    file.write_all(bytes).map_err(FileError::io("write", &temporary))?;
    file.sync_all().map_err(FileError::io("sync", &temporary))?;
    std::fs::rename(&temporary, path).map_err(FileError::io("replace", path))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(FileError::io("sync", directory))
}

/// Holds the exclusive lock of `directory` until it is dropped; a crash releases it (flock(2)).
pub(super) fn lock(directory: &Path) -> Result<Flock<File>, FileError> {
    let path = directory.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(FileError::io("open", &path))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| FileError::io("lock", &path)(errno.into()))
}

fn check_private(path: &Path, metadata: &std::fs::Metadata) -> Result<(), FileError> {
    let expected = nix::unistd::geteuid().as_raw();
    if metadata.uid() != expected {
        return Err(FileError::Owner { path: path.into(), owner: metadata.uid(), expected });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Permissions { path: path.into(), mode });
    }
    Ok(())
}
