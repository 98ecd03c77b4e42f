//! Large pieces pass the page cache of the disk without staying in it: what is in there is
//! ciphertext, of which the kernel keeps the plaintext once more.
//!
//! Pages that are freed as soon as they are written, or read, are the next ones to be filled, while
//! the processor still has them in its caches. `manual::performance` has what that gives.

use crate::sys::files;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// From this size on; smaller pieces are likely to have neighbours soon, with which they go to the
/// disk together.
pub(super) const UNCACHED_BYTES: usize = 128 * 1024;

/// Where they cannot, pieces of this size are on their way to the disk at once all the same.
const WRITE_BACK_BYTES: usize = 512 * 1024;

/// The first kernel (major, minor) whose `RWF_DONTCACHE` is trusted. 6.14 brought it and 6.15
/// switched it off in all filesystems, because a page that was written to again while its
/// write-back ended could be dropped; 6.16 mended that and switched it on again.
const TRUSTED: (u32, u32) = (6, 16);

/// Whether large pieces can pass the page cache.
pub(super) struct Uncached(AtomicBool);

impl Uncached {
    /// Finds out which kernel this is.
    pub(super) fn new() -> Self {
        let release = nix::sys::utsname::uname().ok();
        let release = release.as_ref().and_then(|name| name.release().to_str()).unwrap_or("");
        Self(AtomicBool::new(is_trusted(release)))
    }

    /// Reads exactly `buffer.len()` bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` behind the end, or those of preadv2(2).
    pub(super) fn read_exact_at(
        &self,
        file: &File,
        mut buffer: &mut [u8],
        mut offset: u64,
    ) -> io::Result<()> {
        while buffer.len() >= UNCACHED_BYTES && self.0.load(Ordering::Relaxed) {
            match files::read_uncached(file, buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buffer = &mut buffer[count..];
                    offset += count as u64;
                }
                Err(error) => self.failed(error)?,
            }
        }
        file.read_exact_at(buffer, offset)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// Those of pwritev2(2).
    pub(super) fn write_all_at(
        &self,
        file: &File,
        mut bytes: &[u8],
        mut offset: u64,
    ) -> io::Result<()> {
        while bytes.len() >= UNCACHED_BYTES && self.0.load(Ordering::Relaxed) {
            match files::write_uncached(file, bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    offset += count as u64;
                }
                Err(error) => self.failed(error)?,
            }
        }
        file.write_all_at(bytes, offset)?;
        if bytes.len() >= WRITE_BACK_BYTES {
            // A hint: if it fails, the sync that follows does the work and reports the error.
            let _ = files::start_writeback(file, offset, bytes.len() as u64);
        }
        Ok(())
    }

    /// What is not supported is not tried again; interrupted calls are.
    fn failed(&self, error: io::Error) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::Unsupported => self.0.store(false, Ordering::Relaxed),
            io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
        Ok(())
    }
}

/// Whether the kernel of this release is known to do it right.
fn is_trusted(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= TRUSTED,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels() {
        for (release, trusted) in [
            ("6.18.5", true),
            ("6.16.0-rc1", true),
            ("7.0", true),
            ("6.15.9-generic", false),
            ("5.10.0-32-amd64", false),
            ("6", false),
            ("", false),
            ("6.x", false),
            ("99999999999.1", false),
        ] {
            assert_eq!(is_trusted(release), trusted, "{release}");
        }
    }

    /// With the flag and without: the bytes are there, and the end of the file is where it is.
    #[test]
    fn the_bytes_are_the_same_either_way() {
        let bytes: Vec<u8> = (0..3 * UNCACHED_BYTES + 5).map(|i| (i % 251) as u8).collect();
        for works in [true, false] {
            let file = tempfile::tempfile().unwrap();
            let uncached = Uncached(AtomicBool::new(works));
            uncached.write_all_at(&file, &bytes, 7).unwrap();
            let mut read = vec![0; bytes.len()];
            uncached.read_exact_at(&file, &mut read, 7).unwrap();
            assert!(read == bytes);
            let past = uncached.read_exact_at(&file, &mut read, 8).unwrap_err();
            assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    /// A file that cannot do it is written all the same, and the flag is not tried again.
    #[test]
    fn falls_back_where_it_is_not_supported() {
        use std::os::fd::OwnedFd;
        let descriptor: OwnedFd =
            nix::sys::memfd::memfd_create(c"test", nix::sys::memfd::MFdFlags::empty()).unwrap();
        let file = File::from(descriptor);
        let uncached = Uncached(AtomicBool::new(true));
        let bytes = vec![7; 2 * UNCACHED_BYTES];
        uncached.write_all_at(&file, &bytes, 0).unwrap();
        assert!(!uncached.0.load(Ordering::Relaxed), "memory has no such operation");
        let mut read = vec![0; bytes.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes);
    }
}
