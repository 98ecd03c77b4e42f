//! System calls on open files that the standard library does not offer.

#![expect(
    unsafe_code,
    reason = "sync_file_range(2), flock(2), some ioctl(2) and the flags of preadv2(2) have no safe \
              wrapper that fits"
)]

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;
use std::io;
use std::ops::Range;
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

/// As pread(2), but the pages that the kernel reads for this are not kept in its page cache; those
/// that it has are used. preadv2(2) with `RWF_DONTCACHE` (Linux 6.14). Returns how many bytes.
///
/// # Errors
/// `Unsupported` where the kernel or the filesystem cannot do that.
pub fn read_uncached(file: impl AsFd, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let offset = signed(offset)?;
    let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `iov_len` bytes from `iov_base` on, which is `buffer`,
    // borrowed for the call; the descriptor is open for as long as `file` is borrowed.
    let read =
        unsafe { libc::preadv2(descriptor, &raw const part, 1, offset, libc::RWF_DONTCACHE) };
    transferred(read)
}

/// As pwrite(2), but write-back starts at once, and the pages are not kept in the kernel's page
/// cache when it is done. pwritev2(2) with `RWF_DONTCACHE` (Linux 6.14). Returns how many bytes.
/// They are as little durable as after pwrite(2), and as readable.
///
/// # Errors
/// `Unsupported` where the kernel or the filesystem cannot do that; nothing is written then.
pub fn write_uncached(file: impl AsFd, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let offset = signed(offset)?;
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: the kernel reads at most `iov_len` bytes from `iov_base` on, which is `bytes`,
    // borrowed for the call; the descriptor is open for as long as `file` is borrowed.
    let written =
        unsafe { libc::pwritev2(descriptor, &raw const part, 1, offset, libc::RWF_DONTCACHE) };
    transferred(written)
}

/// What a read or a write with a flag returned. `EOPNOTSUPP` is what kernels say that do not know
/// the flag, and filesystems that cannot do it.
fn transferred(result: libc::ssize_t) -> io::Result<usize> {
    match Errno::result(result) {
        Ok(count) => Ok(count.unsigned_abs()),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Err(io::ErrorKind::Unsupported.into()),
        Err(error) => Err(error.into()),
    }
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

/// Lets the files that will be made in a directory of a btrfs be overwritten in place
/// (`FS_NOCOW_FL`, as `chattr +C`); elsewhere does nothing.
///
/// # Errors
/// Those of the system calls.
pub fn overwrite_in_place(directory: impl AsFd) -> io::Result<()> {
    /// `FS_NOCOW_FL` of linux/fs.h.
    const NO_COPY_ON_WRITE: libc::c_int = 0x0080_0000;
    let directory = directory.as_fd();
    let filesystem = nix::sys::statfs::fstatfs(directory)?.filesystem_type();
    if filesystem != nix::sys::statfs::BTRFS_SUPER_MAGIC {
        return Ok(());
    }
    let mut flags: libc::c_int = 0;
    // SAFETY: the kernel writes one int, whatever the request's name says; ioctl_iflags(2).
    let result =
        unsafe { libc::ioctl(directory.as_raw_fd(), libc::FS_IOC_GETFLAGS as _, &raw mut flags) };
    Errno::result(result)?;
    flags |= NO_COPY_ON_WRITE;
    // SAFETY: the kernel reads one int; ioctl_iflags(2).
    let result =
        unsafe { libc::ioctl(directory.as_raw_fd(), libc::FS_IOC_SETFLAGS as _, &raw const flags) };
    Errno::result(result)?;
    Ok(())
}

/// `struct fiemap` of linux/fiemap.h with room for some extents.
#[repr(C)]
struct FileMap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FileExtent; FileMap::EXTENTS],
}

impl FileMap {
    const EXTENTS: usize = 256;
    /// `FS_IOC_FIEMAP`, `_IOWR('f', 11, struct fiemap)`; the size is that without extents.
    const REQUEST: libc::c_ulong = 0xc020_660b;
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FileExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

impl FileExtent {
    const LAST: u32 = 0x1;
    /// Extents into which writing may need new blocks: those whose place is not known or not yet
    /// chosen, encoded, within metadata, and shared.
    const NOT_IN_PLACE: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x200 | 0x400 | 0x2000;
}

/// Ranges of bytes that have blocks, written or not, into which writing needs no others; ascending.
/// ioctl_fiemap(2).
///
/// # Errors
/// `Unsupported` where the filesystem does not tell.
pub fn allocated(file: impl AsFd) -> io::Result<Vec<Range<u64>>> {
    let descriptor = file.as_fd().as_raw_fd();
    let mut ranges = Vec::new();
    let mut start = 0;
    loop {
        let mut map = FileMap {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: FileMap::EXTENTS as u32,
            reserved: 0,
            extents: [FileExtent::default(); FileMap::EXTENTS],
        };
        // SAFETY: the kernel writes within `map`, at most as many extents as `extent_count` says
        // and `extents` has; the descriptor is open for as long as `file` is borrowed.
        let result = unsafe { libc::ioctl(descriptor, FileMap::REQUEST as _, &raw mut map) };
        match Errno::result(result) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::ENOSYS) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Err(error) => return Err(error.into()),
        }
        let mut extents = map.extents.iter().take(map.mapped_extents as usize);
        for extent in extents.clone() {
            if extent.flags & FileExtent::NOT_IN_PLACE == 0 {
                ranges.push(extent.logical..extent.logical.saturating_add(extent.length));
            }
        }
        match extents.next_back() {
            Some(last) if last.flags & FileExtent::LAST == 0 && last.length > 0 => {
                start = last.logical.saturating_add(last.length);
            }
            _ => return Ok(ranges),
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
