//! The only road to the disk, and the seam at which tests inject faults.
//!
//! # What is assumed of the medium
//! 1. Bytes written are readable at once by this process; they are durable only after
//!    [`Storage::sync`] of that file returned `Ok`.
//! 2. Until then a crash may keep, lose or mix any part of them, at any byte (measured: pages
//!    overwritten while in write-back are torn inside a 512-byte sector).
//! 3. What was durable and is not being overwritten stays as it is.
//! 4. A file that was created is durable only after [`Storage::sync_directory`].
//! 5. [`Storage::replace_config`] is atomic: after a crash the old or the new content, never a
//!    mixture; the new one once it returned `Ok`.
//! 6. A sync that failed says nothing about what is durable, and is never repeated and believed.

mod direct;
mod lock;
mod os;
mod shadow;
pub mod sim;
mod uncached;

pub use direct::AlignedBuffer;
pub use lock::{Holder, LockError, LockInfo, VolumeLock};
pub use os::OsStorage;
pub use shadow::Shadow;
use std::io;
use std::ops::Range;

/// The grain in which filesystems allocate, in bytes.
pub const BLOCK_BYTES: usize = 4096;

/// A file of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileId {
    /// `super.a`
    SuperA,
    /// `super.b`
    SuperB,
    /// `log`
    Log,
    /// `data/NNNNNNNN`
    Segment(u32),
}

/// Space on the filesystem that holds the volume, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Capacity {
    /// Total size.
    pub total_bytes: u64,
    /// What this process may still allocate.
    pub free_bytes: u64,
}

/// A volume's directory.
pub trait Storage: Send + Sync {
    /// Creates `file`, empty. Fails with `AlreadyExists` if it is there.
    fn create(&self, file: FileId) -> io::Result<()>;
    /// Deletes `file`.
    fn delete(&self, file: FileId) -> io::Result<()>;
    /// Length in bytes, or `None` if the file does not exist.
    fn length(&self, file: FileId) -> io::Result<Option<u64>>;
    /// Sets the length; growing makes a hole.
    fn set_length(&self, file: FileId, bytes: u64) -> io::Result<()>;
    /// Reads exactly `buffer.len()` bytes; `UnexpectedEof` past the end.
    fn read_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` into the page cache.
    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// As [`Storage::read_at`], of bytes that nobody will want again soon: a large piece need not
    /// stay in the page cache.
    fn read_uncached_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_at(file, offset, buffer)
    }
    /// As [`Storage::read_uncached_at`], around the page cache if the buffer is a large one of
    /// [`AlignedBuffer`] and the filesystem can do that: for who would wait for the disk anyway.
    fn read_directly_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_uncached_at(file, offset, buffer)
    }
    /// As [`Storage::write_at`], of bytes that nobody will want again soon: a large piece is on its
    /// way to the disk at once, and need not stay in the page cache.
    fn write_uncached_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(file, offset, bytes)
    }
    /// Starts write-back of a range without waiting for it. A hint.
    fn start_writeback(&self, file: FileId, offset: u64, bytes: u64);
    /// Makes everything written to `file` so far durable (data and length).
    fn sync(&self, file: FileId) -> io::Result<()>;
    /// Makes creations and deletions of files durable.
    fn sync_directory(&self) -> io::Result<()>;
    /// Allocates blocks for a range, so that writing there later does not fail for lack of space.
    /// What is there stays; the file grows if the range ends behind it. Nobody may write to the
    /// range at the same time.
    fn allocate(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()>;
    /// Gives the blocks of a range back; it reads as zeros afterwards, or, where the filesystem
    /// cannot do that, keeps its content. The length stays.
    fn punch(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()>;
    /// Ranges of bytes of `file` that have blocks, so that writing there needs no others;
    /// ascending. Empty where that is not known.
    fn allocated(&self, file: FileId) -> io::Result<Vec<Range<u64>>> {
        let _ = file;
        Ok(Vec::new())
    }
    /// Numbers of all segments that exist, ascending.
    fn segments(&self) -> io::Result<Vec<u32>>;
    /// The bytes of `atrest.json`.
    fn read_config(&self) -> io::Result<Vec<u8>>;
    /// Replaces `atrest.json` atomically and durably.
    fn replace_config(&self, bytes: &[u8]) -> io::Result<()>;
    /// Space left underneath.
    fn capacity(&self) -> io::Result<Capacity>;
}

/// Whether an error says that the disk, or the user's quota on it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
        || matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
