//! A simulated disk: a [`Storage`] in memory that loses, tears and refuses what a real one may.
//!
//! For tests. Every operation is recorded; [`Replay`] walks through a recording, and at each step
//! [`SimDisk::after_crash`] or [`Replay::after_crash`] gives the disk as a power cut would leave
//! it, with a [`Fate`] for everything that was not yet synced. Copies share their blocks, so that
//! tens of thousands of them cost seconds.

mod image;
mod random;
mod state;
#[cfg(test)]
mod tests;

pub use random::Random;
pub use state::{Change, Fate, Operation, Pending};

use super::{Capacity, FileId, Storage};
use image::Image;
use parking_lot::Mutex;
use state::State;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// How much a new disk holds, in bytes.
const CAPACITY_BYTES: u64 = 1 << 40;

/// What every operation returns once the fuse of [`SimDisk::set_fuse`] has blown.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the simulated machine has crashed")]
pub struct Crashed;

/// A disk in memory. Cloning the handle is not possible; share it by reference or `Arc`, and copy
/// the disk by [`SimDisk::fork`].
pub struct SimDisk(Mutex<Disk>);

struct Disk {
    state: State,
    start: State,
    journal: Option<Vec<Operation>>,
    operations: u64,
    fuse: Option<u64>,
    capacity_bytes: u64,
    /// What is said when it is used up.
    full_errno: i32,
    faults: Vec<Fault>,
}

/// What is to go wrong.
enum Fault {
    /// The sync of a file that comes after `skip` good ones.
    Sync { file: FileId, skip: u64, fate: Fate },
    /// The write to a file that comes after `skip` good ones.
    Write { file: FileId, skip: u64 },
    /// The sync of the directories that comes after `skip` good ones.
    SyncDirectory { skip: u64 },
    /// Every read that touches the range, in bytes.
    Read { file: FileId, range: Range<u64> },
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk that records what is done to it.
    pub fn new() -> Self {
        let disk = Self::with_state(State::default());
        disk.start_recording();
        disk
    }

    fn with_state(state: State) -> Self {
        Self(Mutex::new(Disk {
            start: state.clone(),
            state,
            journal: None,
            operations: 0,
            fuse: None,
            capacity_bytes: CAPACITY_BYTES,
            full_errno: libc::ENOSPC,
            faults: Vec::new(),
        }))
    }

    /// A disk with the same content and the same things pending; faults, fuse and recording are
    /// not copied, the capacity is.
    pub fn fork(&self) -> Self {
        let disk = self.0.lock();
        let copy = Self::with_state(disk.state.clone());
        copy.0.lock().capacity_bytes = disk.capacity_bytes;
        copy
    }

    /// What waits for a sync, in the order in which [`SimDisk::after_crash`] asks for fates.
    pub fn pending(&self) -> Vec<Pending> {
        self.0.lock().state.pending()
    }

    /// The disk after a crash in which each of [`SimDisk::pending`] has the fate that `fates` gives
    /// it; those after its end are lost.
    pub fn after_crash(&self, fates: impl IntoIterator<Item = Fate>) -> Self {
        let disk = self.0.lock();
        let copy = Self::with_state(disk.state.after_crash(&mut fates.into_iter()));
        copy.0.lock().capacity_bytes = disk.capacity_bytes;
        copy
    }

    /// Forgets what was recorded and records from here on. Recorded writes stay in memory.
    pub fn start_recording(&self) {
        let mut disk = self.0.lock();
        disk.start = disk.state.clone();
        disk.journal = Some(Vec::new());
    }

    /// Records nothing from here on, for long tests that look at no crash.
    pub fn stop_recording(&self) {
        self.0.lock().journal = None;
    }

    /// What was recorded, to walk through again. Empty if nothing is being recorded.
    pub fn replay(&self) -> Replay {
        let disk = self.0.lock();
        let journal = disk.journal.clone().unwrap_or_default();
        Replay { state: disk.start.clone(), journal, next: 0, marks: Vec::new() }
    }

    /// Puts a note into the recording, such as "the fsync numbered so was acknowledged".
    pub fn mark(&self, note: u64) {
        let mut disk = self.0.lock();
        if let Some(journal) = &mut disk.journal {
            journal.push(Operation::Mark(note));
        }
    }

    /// How many operations (other than reads) were done.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Makes the operation (other than reads) numbered `operation`, counted from the disk's start,
    /// and everything after it fail with [`Crashed`].
    pub fn set_fuse(&self, operation: u64) {
        self.0.lock().fuse = Some(operation);
    }

    /// Sets the size of the disk, in bytes. What would need more fails with `StorageFull` and does
    /// nothing.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.lock().capacity_bytes = bytes;
    }

    /// Makes what does not fit fail with `EDQUOT`, as where a quota sets the capacity.
    pub fn set_quota(&self) {
        self.0.lock().full_errno = libc::EDQUOT;
    }

    /// Makes a sync of `file` fail after `skip` good ones. What it should have made durable meets
    /// `fate`, and the cache believes it clean: later syncs do not write it again.
    pub fn fail_sync(&self, file: FileId, skip: u64, fate: Fate) {
        self.0.lock().faults.push(Fault::Sync { file, skip, fate });
    }

    /// Makes a sync of the directories fail after `skip` good ones.
    pub fn fail_sync_directory(&self, skip: u64) {
        self.0.lock().faults.push(Fault::SyncDirectory { skip });
    }

    /// Makes a write to `file` fail with EIO after `skip` good ones, without effect.
    pub fn fail_write(&self, file: FileId, skip: u64) {
        self.0.lock().faults.push(Fault::Write { file, skip });
    }

    /// Makes every read that touches `range` (in bytes) of `file` fail with EIO.
    pub fn fail_reads(&self, file: FileId, range: Range<u64>) {
        self.0.lock().faults.push(Fault::Read { file, range });
    }

    /// Removes all faults and the fuse.
    pub fn clear_faults(&self) {
        let mut disk = self.0.lock();
        disk.faults.clear();
        disk.fuse = None;
    }

    /// Inverts one bit on disk, as a decaying medium does. Not recorded.
    ///
    /// # Panics
    /// If there is no such byte: a test that damages nothing is no test.
    pub fn flip_bit(&self, file: FileId, offset: u64, bit: u8) {
        let mut byte = [0];
        self.read_at(file, offset, &mut byte).expect("the damaged byte exists");
        self.overwrite(file, offset, &[byte[0] ^ (1 << bit)]);
    }

    /// Replaces bytes on disk behind everybody's back, as an attacker does. Not recorded.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn overwrite(&self, file: FileId, offset: u64, bytes: &[u8]) {
        let write = |image: &mut Image| image.write(offset, bytes);
        assert!(self.0.lock().state.damage(file, &write), "{file:?} does not exist");
    }

    /// Drops the page cache: what a failed sync lost is no longer read as if it were there.
    pub fn drop_clean_cache(&self) {
        self.0.lock().state.drop_clean_cache();
    }

    /// Bytes that all files take.
    pub fn allocated_bytes(&self) -> u64 {
        self.0.lock().state.allocated_bytes()
    }
}

impl Disk {
    /// Does one operation and records it, unless the machine has crashed.
    fn perform(&mut self, operation: Operation) -> io::Result<()> {
        if self.fuse.is_some_and(|fuse| self.operations >= fuse) {
            return Err(io::Error::other(Crashed));
        }
        self.operations += 1;
        self.state.apply(&operation);
        if let Some(journal) = &mut self.journal {
            journal.push(operation);
        }
        Ok(())
    }

    fn perform_change(&mut self, file: FileId, change: Change) -> io::Result<()> {
        self.perform(Operation::Change(Pending { file, change }))
    }

    fn check_alive(&self) -> io::Result<()> {
        match self.fuse {
            Some(fuse) if self.operations >= fuse => Err(io::Error::other(Crashed)),
            _ => Ok(()),
        }
    }

    fn content(&self, file: FileId) -> io::Result<&Image> {
        self.check_alive()?;
        self.state.content(file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Fails if a range of a file does not fit on the disk.
    fn check_room(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        let missing_bytes = self.content(file)?.missing_bytes(offset, bytes);
        if missing_bytes > 0 && self.free_bytes() < missing_bytes {
            return Err(io::Error::from_raw_os_error(self.full_errno));
        }
        Ok(())
    }

    fn free_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.state.allocated_bytes())
    }

    /// Takes the first fault that `fires` says is due.
    fn take_fault(&mut self, mut fires: impl FnMut(&mut Fault) -> bool) -> Option<Fault> {
        let index = self.faults.iter_mut().position(&mut fires)?;
        Some(self.faults.remove(index))
    }
}

/// Counts down and says whether it is the turn.
fn due(skip: &mut u64) -> bool {
    let due = *skip == 0;
    *skip = skip.saturating_sub(1);
    due
}

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

/// The end of a range, in bytes.
fn end_of(offset: u64, bytes: usize) -> io::Result<u64> {
    let end = offset.checked_add(bytes as u64).filter(|end| i64::try_from(*end).is_ok());
    end.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// What fallocate(2) asks of a range.
fn check_range(offset: u64, bytes: u64) -> io::Result<()> {
    let end = offset.checked_add(bytes).filter(|end| i64::try_from(*end).is_ok());
    if bytes == 0 || end.is_none() { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
}

impl Storage for SimDisk {
    fn create(&self, file: FileId) -> io::Result<()> {
        let mut disk = self.0.lock();
        if disk.state.content(file).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        disk.perform_change(file, Change::Create)
    }

    fn delete(&self, file: FileId) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.content(file)?;
        disk.perform_change(file, Change::Delete)
    }

    fn length(&self, file: FileId) -> io::Result<Option<u64>> {
        let disk = self.0.lock();
        disk.check_alive()?;
        Ok(disk.state.content(file).map(Image::length))
    }

    fn set_length(&self, file: FileId, bytes: u64) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.content(file)?;
        disk.perform_change(file, Change::Length(bytes))
    }

    fn read_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock();
        let content = disk.content(file)?;
        let end = end_of(offset, buffer.len())?;
        let broken = disk.faults.iter().any(|fault| match fault {
            Fault::Read { file: of, range } => {
                *of == file && range.start < end && offset < range.end
            }
            _ => false,
        });
        if broken {
            return Err(io_error());
        }
        if end > content.length() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        content.read(offset, buffer);
        Ok(())
    }

    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock();
        end_of(offset, bytes.len())?;
        disk.check_room(file, offset, bytes.len() as u64)?;
        let fault = disk.take_fault(|fault| match fault {
            Fault::Write { file: of, skip } => *of == file && due(skip),
            _ => false,
        });
        if fault.is_some() {
            return Err(io_error());
        }
        disk.perform_change(file, Change::Write { offset, bytes: Arc::from(bytes) })
    }

    /// Does nothing: [`Fate::Kept`] is what write-back that was started amounts to.
    fn start_writeback(&self, _file: FileId, _offset: u64, _bytes: u64) {}

    fn sync(&self, file: FileId) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.content(file)?;
        let fault = disk.take_fault(|fault| match fault {
            Fault::Sync { file: of, skip, .. } => *of == file && due(skip),
            _ => false,
        });
        if let Some(Fault::Sync { fate, .. }) = fault {
            disk.perform(Operation::SyncFailed(file, fate))?;
            return Err(io_error());
        }
        disk.perform(Operation::Sync(file))
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.check_alive()?;
        let fault = disk.take_fault(|fault| match fault {
            Fault::SyncDirectory { skip } => due(skip),
            _ => false,
        });
        if fault.is_some() {
            return Err(io_error());
        }
        disk.perform(Operation::SyncDirectory)
    }

    fn allocate(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        let mut disk = self.0.lock();
        check_range(offset, bytes)?;
        disk.check_room(file, offset, bytes)?;
        disk.perform_change(file, Change::Allocate { offset, bytes })
    }

    fn punch(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.content(file)?;
        check_range(offset, bytes)?;
        disk.perform_change(file, Change::Punch { offset, bytes })
    }

    fn segments(&self) -> io::Result<Vec<u32>> {
        let disk = self.0.lock();
        disk.check_alive()?;
        let numbers = disk.state.names().filter_map(|file| match file {
            FileId::Segment(number) => Some(number),
            _ => None,
        });
        Ok(numbers.collect())
    }

    fn read_config(&self) -> io::Result<Vec<u8>> {
        let disk = self.0.lock();
        disk.check_alive()?;
        let config = disk.state.config.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(config.to_vec())
    }

    fn replace_config(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().perform(Operation::Config(Arc::from(bytes)))
    }

    fn capacity(&self) -> io::Result<Capacity> {
        let disk = self.0.lock();
        disk.check_alive()?;
        Ok(Capacity { total_bytes: disk.capacity_bytes, free_bytes: disk.free_bytes() })
    }
}

/// A recording that is walked through, one operation after the other.
#[derive(Clone)]
pub struct Replay {
    state: State,
    journal: Vec<Operation>,
    next: usize,
    marks: Vec<u64>,
}

impl Replay {
    /// Does the next operation of the recording again and returns it; `None` at its end.
    pub fn step(&mut self) -> Option<&Operation> {
        let operation = self.journal.get(self.next)?;
        self.next += 1;
        self.state.apply(operation);
        if let Operation::Mark(note) = operation {
            self.marks.push(*note);
        }
        Some(operation)
    }

    /// How many operations were done again, marks included.
    pub fn position(&self) -> usize {
        self.next
    }

    /// The marks so far, oldest first.
    pub fn marks(&self) -> &[u64] {
        &self.marks
    }

    /// What waits for a sync here; see [`SimDisk::pending`].
    pub fn pending(&self) -> Vec<Pending> {
        self.state.pending()
    }

    /// The disk after a crash here; see [`SimDisk::after_crash`].
    pub fn after_crash(&self, fates: impl IntoIterator<Item = Fate>) -> SimDisk {
        SimDisk::with_state(self.state.after_crash(&mut fates.into_iter()))
    }
}
