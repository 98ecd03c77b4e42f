//! What is written while a volume is open for reading only.

use super::{BLOCK_BYTES, Capacity, FileId, Storage};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Keeps in memory what is written, and leaves the storage below as it is: whoever opens a volume
/// for reading sees what its log says, and changes nothing.
///
/// Segments are written in whole blocks, as replaying does; everything else that would change the
/// storage is refused with `ReadOnlyFilesystem`.
pub struct ShadowStorage {
    below: Arc<dyn Storage>,
    files: RwLock<BTreeMap<FileId, Shadow>>,
}

/// What hides a part of one file.
#[derive(Default)]
struct Shadow {
    /// In bytes; the file is as long as the longer of this and what is below.
    length: u64,
    /// By number of the block in the file.
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl ShadowStorage {
    /// Over `below`, of which nothing is hidden yet.
    pub fn new(below: Arc<dyn Storage>) -> Self {
        Self { below, files: RwLock::default() }
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Storage for ShadowStorage {
    fn create(&self, file: FileId) -> io::Result<()> {
        if self.length(file)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.files.write().insert(file, Shadow::default());
        Ok(())
    }

    fn delete(&self, _: FileId) -> io::Result<()> {
        refused()
    }

    fn length(&self, file: FileId) -> io::Result<Option<u64>> {
        let below = self.below.length(file)?;
        Ok(match self.files.read().get(&file) {
            Some(shadow) => Some(shadow.length.max(below.unwrap_or(0))),
            None => below,
        })
    }

    /// Growing only.
    fn set_length(&self, file: FileId, bytes: u64) -> io::Result<()> {
        match self.length(file)? {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(now) if bytes < now => refused(),
            Some(_) => {
                self.files.write().entry(file).or_default().length = bytes;
                Ok(())
            }
        }
    }

    fn read_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let files = self.files.read();
        let Some(shadow) = files.get(&file) else {
            return self.below.read_at(file, offset, buffer);
        };
        let below = self.below.length(file)?.unwrap_or(0);
        let end = offset + buffer.len() as u64;
        if end > shadow.length.max(below) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let known = below.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if known > 0 {
            self.below.read_at(file, offset, &mut buffer[..known])?;
        }
        buffer[known..].fill(0);
        let size = BLOCK_BYTES as u64;
        for (&number, block) in shadow.blocks.range(offset / size..end.div_ceil(size)) {
            let start = number * size;
            let (from, to) = (start.max(offset), (start + size).min(end));
            buffer[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&block[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }

    /// Whole blocks only (`InvalidInput`).
    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let size = BLOCK_BYTES as u64;
        if offset % size != 0 || bytes.len() % BLOCK_BYTES != 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.length(file)?.is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut files = self.files.write();
        let shadow = files.entry(file).or_default();
        shadow.length = shadow.length.max(offset + bytes.len() as u64);
        for (number, block) in (offset / size..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            shadow.blocks.insert(number, block.into());
        }
        Ok(())
    }

    fn start_writeback(&self, _: FileId, _: u64, _: u64) {}

    fn sync(&self, _: FileId) -> io::Result<()> {
        refused()
    }

    fn sync_directory(&self) -> io::Result<()> {
        refused()
    }

    fn allocate(&self, _: FileId, _: u64, _: u64) -> io::Result<()> {
        refused()
    }

    fn punch(&self, _: FileId, _: u64, _: u64) -> io::Result<()> {
        refused()
    }

    fn allocated(&self, file: FileId) -> io::Result<Vec<Range<u64>>> {
        if self.below.length(file)?.is_none() {
            return Ok(Vec::new());
        }
        self.below.allocated(file)
    }

    fn segments(&self) -> io::Result<Vec<u32>> {
        let mut numbers = self.below.segments()?;
        numbers.extend(self.files.read().keys().filter_map(|file| match file {
            FileId::Segment(number) => Some(*number),
            _ => None,
        }));
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    fn read_config(&self) -> io::Result<Vec<u8>> {
        self.below.read_config()
    }

    fn replace_config(&self, _: &[u8]) -> io::Result<()> {
        refused()
    }

    fn capacity(&self) -> io::Result<Capacity> {
        self.below.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::super::OsStorage;
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_below_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("volume");
        let (old, new) = (FileId::Segment(0), FileId::Segment(1));
        let writable = OsStorage::create(&path).unwrap();
        writable.create(old).unwrap();
        writable.write_at(old, 0, &[1; 3 * BLOCK_BYTES]).unwrap();
        let shadow = ShadowStorage::new(Arc::new(OsStorage::open(&path, true).unwrap()));
        shadow.write_at(old, BLOCK_BYTES as u64, &[2; BLOCK_BYTES]).unwrap();
        shadow.create(new).unwrap();
        shadow.set_length(new, 1 << 20).unwrap();
        shadow.write_at(new, 4 * BLOCK_BYTES as u64, &[3; BLOCK_BYTES]).unwrap();

        let mut buffer = vec![0; 2 * BLOCK_BYTES];
        shadow.read_at(old, BLOCK_BYTES as u64 / 2, &mut buffer).unwrap();
        let half = BLOCK_BYTES / 2;
        assert!(buffer[..half].iter().all(|&byte| byte == 1));
        assert!(buffer[half..half + BLOCK_BYTES].iter().all(|&byte| byte == 2));
        assert!(buffer[half + BLOCK_BYTES..].iter().all(|&byte| byte == 1));
        shadow.read_at(new, 3 * BLOCK_BYTES as u64, &mut buffer).unwrap();
        assert!(buffer[..BLOCK_BYTES].iter().all(|&byte| byte == 0));
        assert!(buffer[BLOCK_BYTES..].iter().all(|&byte| byte == 3));
        assert_eq!(shadow.segments().unwrap(), [0, 1]);
        assert_eq!(shadow.length(new).unwrap(), Some(1 << 20));

        writable.read_at(old, 0, &mut buffer).unwrap();
        assert!(buffer.iter().all(|&byte| byte == 1));
        assert_eq!(writable.segments().unwrap(), [0]);
    }

    #[test]
    fn other_changes_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let storage = OsStorage::create(&directory.path().join("volume")).unwrap();
        let file = FileId::Segment(0);
        storage.create(file).unwrap();
        let shadow = ShadowStorage::new(Arc::new(storage));
        for result in [
            shadow.delete(file),
            shadow.punch(file, 0, 4096),
            shadow.sync(file),
            shadow.replace_config(b"{}"),
        ] {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        }
        let unaligned = shadow.write_at(file, 1, &[0; BLOCK_BYTES]).unwrap_err();
        assert_eq!(unaligned.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(shadow.create(file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let beyond = shadow.read_at(file, 0, &mut [0]).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }
}
