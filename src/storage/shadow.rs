//! A [`Storage`] over another that keeps everything that is written in memory.
//!
//! What is done to a shadow is not done to the storage below, which is only read: so a dry run is
//! the real thing, done to a shadow. Memory: a block of 4 KiB for each that is written or punched.

use super::{BLOCK_BYTES, Capacity, FileId, Storage};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::ops::Range;
use std::sync::Arc;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What a shadow knows of one file.
#[derive(Default)]
struct Layer {
    length: u64,
    /// Bytes up to here come from below, unless a block is here.
    below: u64,
    /// Blocks that are not as below; `None` are zeros.
    blocks: BTreeMap<u64, Option<Box<[u8; BLOCK_BYTES]>>>,
}

#[derive(Default)]
struct State {
    /// Files that are not as below; `None` was deleted.
    files: BTreeMap<FileId, Option<Layer>>,
    config: Option<Vec<u8>>,
    /// Bytes for which room was asked.
    allocated_bytes: u64,
}

/// A storage whose changes are kept in memory; see the module. Syncs do nothing.
pub struct Shadow {
    below: Arc<dyn Storage>,
    state: Mutex<State>,
}

impl Shadow {
    /// A shadow of `below`, which nobody may change meanwhile.
    pub fn new(below: Arc<dyn Storage>) -> Self {
        Self { below, state: Mutex::default() }
    }

    /// Does something to a file that exists.
    fn change<T>(
        &self,
        file: FileId,
        change: impl FnOnce(&mut Layer) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.state.lock();
        let layer = match state.files.entry(file) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let length = self.below.length(file)?.ok_or(io::ErrorKind::NotFound)?;
                unknown.insert(Some(Layer { length, below: length, ..Layer::default() }))
            }
        };
        change(layer.as_mut().ok_or(io::ErrorKind::NotFound)?)
    }

    /// Whether a file is as it is below.
    fn is_below(&self, file: FileId) -> bool {
        !self.state.lock().files.contains_key(&file)
    }
}

/// The end of a range, in bytes.
fn end_of(offset: u64, bytes: u64) -> io::Result<u64> {
    let end = offset.checked_add(bytes).filter(|end| i64::try_from(*end).is_ok());
    end.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// The parts of a range that lie in one block each: block, bytes within it.
fn spans(offset: u64, end: u64) -> impl Iterator<Item = (u64, Range<usize>)> {
    let blocks = if offset < end { offset / BLOCK..end.div_ceil(BLOCK) } else { 0..0 };
    blocks.map(move |block| {
        let start = block * BLOCK;
        let (from, to) = (offset.max(start) - start, end.min(start + BLOCK) - start);
        (block, from as usize..to as usize)
    })
}

impl Layer {
    fn read(
        &self,
        below: &dyn Storage,
        file: FileId,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let end = end_of(offset, buffer.len() as u64)?;
        if end > self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let blocks = offset / BLOCK..end.div_ceil(BLOCK);
        if offset < end && end <= self.below && self.blocks.range(blocks).next().is_none() {
            return below.read_at(file, offset, buffer);
        }
        let mut rest = buffer;
        for (block, range) in spans(offset, end) {
            let (part, after) = rest.split_at_mut(range.len());
            match self.blocks.get(&block) {
                Some(Some(bytes)) => part.copy_from_slice(&bytes[range]),
                Some(None) => part.fill(0),
                None => {
                    let at = block * BLOCK + range.start as u64;
                    let there = self.below.saturating_sub(at).min(part.len() as u64) as usize;
                    part[there..].fill(0);
                    if there > 0 {
                        below.read_at(file, at, &mut part[..there])?;
                    }
                }
            }
            rest = after;
        }
        Ok(())
    }

    /// Replaces a part of a block. What else it holds must be readable.
    fn put(
        &mut self,
        below: &dyn Storage,
        file: FileId,
        block: u64,
        at: usize,
        part: &[u8],
    ) -> io::Result<()> {
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        let there = self.length.saturating_sub(block * BLOCK).min(BLOCK) as usize;
        if part.len() < BLOCK_BYTES && there > 0 {
            self.read(below, file, block * BLOCK, &mut bytes[..there])?;
        }
        bytes[at..at + part.len()].copy_from_slice(part);
        self.blocks.insert(block, Some(bytes));
        Ok(())
    }
}

impl Storage for Shadow {
    fn create(&self, file: FileId) -> io::Result<()> {
        if self.length(file)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.state.lock().files.insert(file, Some(Layer::default()));
        Ok(())
    }

    fn delete(&self, file: FileId) -> io::Result<()> {
        if self.length(file)?.is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.state.lock().files.insert(file, None);
        Ok(())
    }

    fn length(&self, file: FileId) -> io::Result<Option<u64>> {
        match self.state.lock().files.get(&file) {
            Some(layer) => Ok(layer.as_ref().map(|layer| layer.length)),
            None => self.below.length(file),
        }
    }

    fn set_length(&self, file: FileId, bytes: u64) -> io::Result<()> {
        end_of(bytes, 0)?;
        self.change(file, |layer| {
            let part = (bytes % BLOCK) as usize;
            let last = layer.blocks.get_mut(&(bytes / BLOCK)).and_then(Option::as_mut);
            if let Some(last) = last {
                last[part..].fill(0);
            }
            layer.blocks.split_off(&bytes.div_ceil(BLOCK));
            layer.below = layer.below.min(bytes);
            layer.length = bytes;
            Ok(())
        })
    }

    fn read_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self.state.lock().files.get(&file) {
            Some(Some(layer)) => return layer.read(&*self.below, file, offset, buffer),
            Some(None) => return Err(io::ErrorKind::NotFound.into()),
            None => {}
        }
        // Readers of what was never written to here do not wait for each other.
        self.below.read_at(file, offset, buffer)
    }

    fn read_uncached_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.is_below(file) {
            return self.below.read_uncached_at(file, offset, buffer);
        }
        self.read_at(file, offset, buffer)
    }

    fn read_directly_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.is_below(file) {
            return self.below.read_directly_at(file, offset, buffer);
        }
        self.read_at(file, offset, buffer)
    }

    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = end_of(offset, bytes.len() as u64)?;
        self.change(file, |layer| {
            let mut rest = bytes;
            for (block, range) in spans(offset, end) {
                let (part, after) = rest.split_at(range.len());
                layer.put(&*self.below, file, block, range.start, part)?;
                rest = after;
            }
            layer.length = layer.length.max(end);
            Ok(())
        })
    }

    fn start_writeback(&self, _file: FileId, _offset: u64, _bytes: u64) {}

    fn sync(&self, file: FileId) -> io::Result<()> {
        let length = self.length(file)?;
        length.map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    /// Fails as the disk below would, if it has no more room.
    fn allocate(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        let end = end_of(offset, bytes)?;
        if bytes == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let free_bytes = self.capacity()?.free_bytes;
        if bytes > free_bytes {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.change(file, |layer| {
            layer.length = layer.length.max(end);
            Ok(())
        })?;
        self.state.lock().allocated_bytes += bytes;
        Ok(())
    }

    fn punch(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        let end = end_of(offset, bytes)?;
        if bytes == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.change(file, |layer| {
            // What lies behind the end are zeros already.
            for (block, range) in spans(offset, end.min(layer.length)) {
                if range.len() == BLOCK_BYTES {
                    layer.blocks.insert(block, None);
                } else {
                    let zeros = [0; BLOCK_BYTES];
                    layer.put(&*self.below, file, block, range.start, &zeros[..range.len()])?;
                }
            }
            Ok(())
        })
    }

    fn allocated(&self, file: FileId) -> io::Result<Vec<Range<u64>>> {
        match self.state.lock().files.get(&file) {
            Some(None) => Err(io::ErrorKind::NotFound.into()),
            // Blocks in memory never lack room.
            Some(Some(layer)) if layer.below == 0 => Ok(Vec::new()),
            _ => self.below.allocated(file),
        }
    }

    fn segments(&self) -> io::Result<Vec<u32>> {
        let mut numbers = self.below.segments()?;
        for (file, layer) in &self.state.lock().files {
            if let FileId::Segment(number) = *file {
                numbers.retain(|other| *other != number);
                numbers.extend(layer.is_some().then_some(number));
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn read_config(&self) -> io::Result<Vec<u8>> {
        match &self.state.lock().config {
            Some(bytes) => Ok(bytes.clone()),
            None => self.below.read_config(),
        }
    }

    fn replace_config(&self, bytes: &[u8]) -> io::Result<()> {
        self.state.lock().config = Some(bytes.to_vec());
        Ok(())
    }

    fn capacity(&self) -> io::Result<Capacity> {
        let mut capacity = self.below.capacity()?;
        let taken = self.state.lock().allocated_bytes;
        capacity.free_bytes = capacity.free_bytes.saturating_sub(taken);
        Ok(capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::OsStorage;
    use crate::storage::sim::{Random, SimDisk};

    const FILES: [FileId; 3] = [FileId::Log, FileId::Segment(2), FileId::Segment(9)];

    /// Whatever is done to a file: the outcome, with what was read.
    fn step(storage: &dyn Storage, random: &mut Random) -> String {
        fn outcome<T: std::fmt::Debug>(result: io::Result<T>) -> String {
            format!("{:?}", result.map_err(|error| error.kind()))
        }
        let file = FILES[random.below(3) as usize];
        let (offset, bytes) = (random.below(20_000), 1 + random.below(9_000));
        let fill = random.next() as u8;
        match random.below(13) {
            0 => outcome(storage.create(file)),
            1 if fill < 100 => outcome(storage.delete(file)),
            2 | 3 => outcome(storage.set_length(file, offset)),
            4 => outcome(storage.allocate(file, offset, bytes)),
            5 | 6 => outcome(storage.punch(file, offset, bytes)),
            7 => outcome(storage.segments()),
            8 => outcome(storage.length(file)),
            9 => outcome(storage.sync(file)),
            10 => {
                let mut buffer = vec![0; bytes as usize];
                let read = match fill % 3 {
                    0 => storage.read_at(file, offset, &mut buffer),
                    1 => storage.read_uncached_at(file, offset, &mut buffer),
                    _ => storage.read_directly_at(file, offset, &mut buffer),
                };
                outcome(read.map(|()| buffer))
            }
            _ => outcome(storage.write_at(file, offset, &vec![fill; bytes as usize])),
        }
    }

    fn filled(seed: u64) -> Arc<SimDisk> {
        let disk = SimDisk::new();
        let mut random = Random::new(seed);
        (0..60).for_each(|_| drop(step(&disk, &mut random)));
        Arc::new(disk)
    }

    fn contents(storage: &dyn Storage) -> Vec<Option<Vec<u8>>> {
        let read = |file| {
            let length = storage.length(file).unwrap()?;
            let mut bytes = vec![0; length as usize];
            storage.read_at(file, 0, &mut bytes).unwrap();
            Some(bytes)
        };
        FILES.into_iter().map(read).collect()
    }

    /// A shadow answers as the disk below would, and that stays as it is.
    #[test]
    fn a_shadow_behaves_as_what_it_shadows_and_changes_nothing_there() {
        for seed in 0..60 {
            let disk = filled(seed);
            let (before, operations) = (contents(&*disk), disk.operations());
            let (reference, shadow) = (disk.fork(), Shadow::new(disk.clone()));
            let (one, two) = (&mut Random::new(seed + 1000), &mut Random::new(seed + 1000));
            for number in 0..300 {
                let (expected, found) = (step(&reference, one), step(&shadow, two));
                assert!(expected == found, "seed {seed}, operation {number}: {expected} {found}");
            }
            assert!(contents(&reference) == contents(&shadow), "seed {seed}");
            assert!(contents(&*disk) == before, "seed {seed}");
            assert_eq!(disk.operations(), operations);
        }
    }

    #[test]
    fn configuration_and_room_are_those_of_a_disk_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v");
        let real = OsStorage::create(&path).unwrap();
        real.replace_config(b"old").unwrap();
        // Opened so that it could not write if it wanted to.
        let shadow = Shadow::new(Arc::new(OsStorage::open(&path, true).unwrap()));
        shadow.replace_config(b"new").unwrap();
        assert_eq!(shadow.read_config().unwrap(), b"new");
        assert_eq!(real.read_config().unwrap(), b"old");

        let disk = SimDisk::new();
        disk.set_capacity(1 << 20);
        let shadow = Shadow::new(Arc::new(disk));
        shadow.create(FILES[1]).unwrap();
        shadow.allocate(FILES[1], 0, 600 << 10).unwrap();
        let full = shadow.allocate(FILES[1], 600 << 10, 600 << 10).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    }
}
