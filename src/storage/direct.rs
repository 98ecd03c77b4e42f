//! Reading around the page cache of the disk: no copy, and no page to be found for it. Who does
//! that waits for the disk, so it is for what is fetched before somebody waits.
//!
//! With `O_DIRECT` (open(2)), the kernel first writes back what is dirty in the range, so that it
//! reads what was written last.

use super::{BLOCK_BYTES, FileId};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Files that are open for this at a time.
const OPEN_MAX: usize = 8;

/// Memory that begins at a multiple of [`BLOCK_BYTES`], as `O_DIRECT` wants it.
#[derive(Default)]
pub struct AlignedBuffer(Vec<u8>);

impl AlignedBuffer {
    /// All that it has.
    pub fn bytes(&self) -> &[u8] {
        self.0.get(self.padding()..).unwrap_or_default()
    }

    /// The first `count` bytes, of which there may have been fewer; what they hold is old.
    pub fn first_mut(&mut self, count: usize) -> &mut [u8] {
        self.0.resize(self.0.len().max(count + BLOCK_BYTES), 0);
        let padding = self.padding();
        &mut self.0[padding..padding + count]
    }

    fn padding(&self) -> usize {
        self.0.as_ptr().align_offset(BLOCK_BYTES)
    }
}

/// Files that are open with `O_DIRECT`.
pub(super) struct Direct {
    works: AtomicBool,
    /// The one that was opened last is the last.
    open: Mutex<VecDeque<(FileId, Arc<File>)>>,
}

impl Direct {
    pub(super) fn new() -> Self {
        Self { works: AtomicBool::new(true), open: Mutex::default() }
    }

    /// Fills `buffer`, if it begins and ends where it must and everything else allows it, too;
    /// returns whether. `open` opens the file with `O_DIRECT`.
    pub(super) fn read(
        &self,
        file: FileId,
        offset: u64,
        buffer: &mut [u8],
        open: impl FnOnce() -> io::Result<File>,
    ) -> bool {
        let block = BLOCK_BYTES as u64;
        let is_aligned = buffer.as_ptr().align_offset(BLOCK_BYTES) == 0
            && offset % block == 0
            && buffer.len() as u64 % block == 0;
        if !is_aligned || !self.works.load(Ordering::Relaxed) {
            return false;
        }
        let read = self.file(file, open).and_then(|open| open.read_exact_at(buffer, offset));
        match read.as_ref().map_err(io::Error::kind) {
            Ok(()) => true,
            Err(io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                self.works.store(false, Ordering::Relaxed);
                log::debug!("no O_DIRECT from now on: {read:?}");
                false
            }
            // The usual road says what is wrong.
            Err(_) => false,
        }
    }

    fn file(&self, file: FileId, open: impl FnOnce() -> io::Result<File>) -> io::Result<Arc<File>> {
        let mut files = self.open.lock();
        if let Some((_, known)) = files.iter().find(|(known, _)| *known == file) {
            return Ok(Arc::clone(known));
        }
        let new = Arc::new(open()?);
        files.push_back((file, Arc::clone(&new)));
        if files.len() > OPEN_MAX {
            files.pop_front();
        }
        Ok(new)
    }

    /// The file was deleted just now. Whoever is opening it is waited for, so that it does not stay
    /// open.
    pub(super) fn forget(&self, file: FileId) {
        self.open.lock().retain(|(known, _)| *known != file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{OsStorage, Storage};

    const PIECE: usize = 256 * 1024;

    fn storage() -> (tempfile::TempDir, OsStorage) {
        let directory = tempfile::tempdir().unwrap();
        let storage = OsStorage::create(&directory.path().join("volume")).unwrap();
        (directory, storage)
    }

    fn read(storage: &OsStorage, buffer: &mut AlignedBuffer) -> Vec<u8> {
        let part = buffer.first_mut(PIECE);
        storage.read_directly_at(FileId::Segment(1), 0, part).unwrap();
        part.to_vec()
    }

    /// What was written last is read, and a file that was deleted is not taken for the next one of
    /// its name.
    #[test]
    fn what_was_written_last() {
        let (_directory, storage) = storage();
        let mut buffer = AlignedBuffer::default();
        for round in 0..4 {
            storage.create(FileId::Segment(1)).unwrap();
            for value in [round, round + 100] {
                storage.write_at(FileId::Segment(1), 0, &[value; PIECE]).unwrap();
                assert_eq!(read(&storage, &mut buffer), [value; PIECE]);
            }
            storage.delete(FileId::Segment(1)).unwrap();
        }
    }

    /// Whatever the buffer, the place, and the filesystem: the bytes are there, or the end is.
    #[test]
    fn falls_back() {
        let (_directory, storage) = storage();
        let bytes: Vec<u8> = (0..PIECE + 5).map(|i| (i % 251) as u8).collect();
        storage.create(FileId::Segment(1)).unwrap();
        storage.write_at(FileId::Segment(1), 0, &bytes).unwrap();
        let mut buffer = AlignedBuffer::default();
        for (offset, count) in [(0, PIECE), (1, PIECE), (4096, 4096), (4096, PIECE - 4095)] {
            for odd in [0, 1] {
                let part = &mut buffer.first_mut(count + odd)[odd..];
                storage.read_directly_at(FileId::Segment(1), offset as u64, part).unwrap();
                assert!(part == &bytes[offset..offset + count], "{offset} {count} {odd}");
            }
        }
        let past = storage.read_directly_at(FileId::Segment(1), 8192, buffer.first_mut(PIECE));
        assert_eq!(past.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    /// Few files stay open, whatever is read.
    #[test]
    fn few_stay_open() {
        let direct = Direct::new();
        let mut buffer = AlignedBuffer::default();
        for number in 0..100 {
            let open = || {
                let file = tempfile::tempfile()?;
                file.set_len(4096)?;
                Ok(file)
            };
            assert!(direct.read(FileId::Segment(number), 0, buffer.first_mut(4096), open));
        }
        assert_eq!(direct.open.lock().len(), OPEN_MAX);
        direct.forget(FileId::Segment(99));
        assert_eq!(direct.open.lock().len(), OPEN_MAX - 1);
    }

    /// A file that cannot be opened so is not tried again.
    #[test]
    fn what_fails_is_not_tried_again() {
        let direct = Direct::new();
        let mut buffer = AlignedBuffer::default();
        let refuse = || Err(io::ErrorKind::InvalidInput.into());
        assert!(!direct.read(FileId::Segment(1), 0, buffer.first_mut(4096), refuse));
        let again = || panic!("it was tried again");
        assert!(!direct.read(FileId::Segment(1), 0, buffer.first_mut(4096), again));
    }
}
