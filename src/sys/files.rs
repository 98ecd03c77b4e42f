//! System calls on open files that the standard library does not offer.

#![expect(unsafe_code, reason = "sync_file_range(2) and flock(2) have no safe wrapper that fits")]

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// How a whole file is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Together with others that share.
    Shared,
    /// Alone.
    Exclusive,
}

/// Allocates blocks for `bytes` bytes at `offset`, growing the file if the range ends behind it;
/// fallocate(2) with mode 0.
///
/// # Errors
/// `Unsupported` where the filesystem has no such operation, `StorageFull` where it has no room.
pub fn allocate(file: impl AsFd, offset: u64, bytes: u64) -> io::Result<()> {
    fallocate(file.as_fd(), FallocateFlags::empty(), offset, bytes)
}

/// Gives back the blocks of a range, which reads as zeros afterwards; the length stays.
/// fallocate(2) with `FALLOC_FL_PUNCH_HOLE`.
///
/// # Errors
/// `Unsupported` where the filesystem has no such operation.
pub fn punch(file: impl AsFd, offset: u64, bytes: u64) -> io::Result<()> {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file.as_fd(), mode, offset, bytes)
}

/// Starts write-back of a range and does not wait for it; sync_file_range(2) with
/// `SYNC_FILE_RANGE_WRITE`. It neither waits nor collects write-back errors, so that a later
/// fdatasync(2) still reports them.
///
/// # Errors
/// As the system call; nothing depends on its success.
pub fn start_writeback(file: impl AsFd, offset: u64, bytes: u64) -> io::Result<()> {
    let (offset, bytes) = (signed(offset)?, signed(bytes)?);
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: takes no pointers, and the descriptor is open for as long as `file` is borrowed.
    let result =
        unsafe { libc::sync_file_range(descriptor, offset, bytes, libc::SYNC_FILE_RANGE_WRITE) };
    Errno::result(result)?;
    Ok(())
}

/// Locks the open file without waiting; flock(2). The lock belongs to the open file description:
/// it survives fork(2), and the kernel releases it when the last descriptor is closed, however the
/// process ends.
///
/// Returns whether the lock was taken; `false` means that somebody else holds it.
///
/// # Errors
/// `ENOLCK` or `EOPNOTSUPP` where the filesystem has no locks.
pub fn try_lock(file: impl AsFd, mode: LockMode) -> io::Result<bool> {
    let operation = match mode {
        LockMode::Shared => libc::LOCK_SH,
        LockMode::Exclusive => libc::LOCK_EX,
    };
    let descriptor = file.as_fd().as_raw_fd();
    loop {
        // SAFETY: takes no pointers, and the descriptor is open for as long as `file` is borrowed.
        let result = unsafe { libc::flock(descriptor, operation | libc::LOCK_NB) };
        match Errno::result(result) {
            Ok(_) => return Ok(true),
            Err(Errno::EWOULDBLOCK) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn fallocate(file: BorrowedFd, mode: FallocateFlags, offset: u64, bytes: u64) -> io::Result<()> {
    let (offset, bytes) = (signed(offset)?, signed(bytes)?);
    loop {
        match nix::fcntl::fallocate(file, mode, offset, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            // ENOSYS is what old emulations (user-mode, some FUSE filesystems) answer.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Err(io::ErrorKind::Unsupported.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// An offset or a count as the kernel takes it.
fn signed(bytes: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}
