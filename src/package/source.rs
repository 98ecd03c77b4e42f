//! Where the bytes of an archive come from.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Random access to bytes that do not change while they are in use.
#[allow(clippy::len_without_is_empty)] // An empty archive is refused by what reads it.
pub trait Source: Send + Sync {
    /// How many there are.
    fn len(&self) -> u64;

    /// Fills `buffer` from `offset` on. Several threads may call it at once.
    ///
    /// # Errors
    /// `UnexpectedEof` if there are not as many; whatever keeps them from being read.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A file of the host.
pub struct FileSource {
    file: File,
    len: u64,
}

impl FileSource {
    /// A file that is open for reading, with the length that it has now.
    ///
    /// # Errors
    /// Those of fstat(2); `InvalidInput` if it is not a regular file.
    pub fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Self { file, len: metadata.len() })
    }
}

impl Source for FileSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}
