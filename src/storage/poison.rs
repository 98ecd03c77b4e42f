//! A failed sync is remembered: what it left unknown is never written to again, nor believed.

use super::{Capacity, FileId, Storage};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a refused operation returns inside of an [`io::Error`] of kind `Other`.
///
/// The kernel marks pages clean when their write-back fails, so a second fsync(2) succeeds without
/// having written them (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("writing stopped when {failure}; unmount the volume, check its disk, and mount it again")]
pub struct Poison {
    /// What failed, and on what.
    pub failure: String,
}

/// A kind of file, as counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// `super.a` and `super.b`
    Super,
    /// `log`
    Log,
    /// The segments.
    Segment,
    /// The directories; only syncs are counted.
    Directory,
    /// `atrest.json`; a replacement counts as one sync.
    Config,
}

impl FileKind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::Super, Self::Log, Self::Segment, Self::Directory, Self::Config];
}

impl From<FileId> for FileKind {
    fn from(file: FileId) -> Self {
        match file {
            FileId::SuperA | FileId::SuperB => Self::Super,
            FileId::Log => Self::Log,
            FileId::Segment(_) => Self::Segment,
        }
    }
}

/// What was done to files of one kind since the storage was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Syncs that succeeded.
    pub syncs: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
}

#[derive(Default)]
struct Counter {
    syncs: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

/// Counts by kind of file. For `status` and for tests; nothing depends on them.
#[derive(Default)]
pub struct Counters([Counter; FileKind::ALL.len()]);

impl Counters {
    /// The counts of one kind.
    pub fn of(&self, kind: FileKind) -> Counts {
        let counter = &self.0[kind as usize];
        Counts {
            syncs: counter.syncs.load(Ordering::Relaxed),
            read_bytes: counter.read_bytes.load(Ordering::Relaxed),
            written_bytes: counter.written_bytes.load(Ordering::Relaxed),
        }
    }

    fn add_sync(&self, kind: FileKind) {
        self.0[kind as usize].syncs.fetch_add(1, Ordering::Relaxed);
    }

    fn add_read(&self, kind: FileKind, bytes: usize) {
        self.0[kind as usize].read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn add_written(&self, kind: FileKind, bytes: usize) {
        self.0[kind as usize].written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// What is known of a file, or of all.
#[derive(Default)]
struct FileState {
    /// Held during a sync, so that of two that want one, the second sees the first's failure: the
    /// kernel reports a write-back error only once per open file.
    syncing: Mutex<()>,
    /// Set once, by the sync or write that failed.
    poison: Mutex<Option<Poison>>,
    poisoned: AtomicBool,
}

impl FileState {
    fn set(&self, poison: Poison) {
        self.poison.lock().get_or_insert(poison);
        self.poisoned.store(true, Ordering::Release);
    }

    fn check(&self) -> io::Result<()> {
        if self.poisoned.load(Ordering::Acquire) {
            if let Some(poison) = &*self.poison.lock() {
                return Err(io::Error::other(poison.clone()));
            }
        }
        Ok(())
    }
}

/// A storage that stops writing where a sync or a write has failed, and counts.
///
/// - A failed sync or write of a **segment** poisons that segment: it is read but neither written
///   nor synced again. What was written there since its last good sync is lost; its owners write it
///   again elsewhere. (The owner of tree nodes calls [`Poisoned::poison`] instead.)
/// - One of a **superblock**, of the **log**, of the **directories** or of the **configuration**
///   poisons everything.
/// - A full disk (`ENOSPC`, `EDQUOT`) poisons nothing on a write: the caller knows which bytes did
///   not get there. On a sync it does, because nobody knows that.
///
/// Syncs of one file never overlap, nor do those of the two superblocks.
///
/// Lock order: the sync of a file, then the poisons, each on its own.
pub struct Poisoned<S> {
    inner: S,
    /// For everything that is not a segment, and for [`Poisoned::poison`].
    all: FileState,
    /// Held during the syncs of a kind that is not a segment.
    syncing: [Mutex<()>; FileKind::ALL.len()],
    segments: Mutex<HashMap<u32, Arc<FileState>>>,
    counters: Counters,
}

impl<S: Storage> Poisoned<S> {
    /// Wraps a storage that was just opened: everything in it is as it is on disk.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            all: FileState::default(),
            syncing: Default::default(),
            segments: Mutex::default(),
            counters: Counters::default(),
        }
    }

    /// The storage underneath.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// What was done so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Refuses every later write, for a reason that the caller knows, such as "the sync of tree
    /// nodes failed".
    pub fn poison(&self, failure: &str) {
        self.all.set(Poison { failure: failure.to_owned() });
    }

    /// Why everything is refused, if it is.
    pub fn poisoned(&self) -> Option<Poison> {
        self.all.poison.lock().clone()
    }

    /// The segments that are no longer written to, ascending. Nothing new belongs there.
    pub fn poisoned_segments(&self) -> Vec<u32> {
        let segments = self.segments.lock();
        let poisoned = segments.iter().filter(|(_, state)| state.check().is_err());
        let mut numbers: Vec<u32> = poisoned.map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers
    }

    fn segment(&self, number: u32) -> Arc<FileState> {
        Arc::clone(self.segments.lock().entry(number).or_default())
    }

    fn check(&self, file: FileId) -> io::Result<()> {
        self.all.check()?;
        match file {
            FileId::Segment(number) => self.segment(number).check(),
            _ => Ok(()),
        }
    }

    fn poison_file(&self, file: FileId, operation: &str, error: &io::Error) {
        let failure = format!("the {operation} of {file:?} failed: {error}");
        log::error!("{failure}");
        match file {
            FileId::Segment(number) => self.segment(number).set(Poison { failure }),
            _ => self.all.set(Poison { failure }),
        }
    }

    /// Does a change to `file`, unless it is poisoned, and poisons it if that fails.
    fn change(
        &self,
        file: FileId,
        operation: &str,
        change: impl FnOnce(&S) -> io::Result<()>,
    ) -> io::Result<()> {
        self.check(file)?;
        change(&self.inner).inspect_err(|error| {
            if !leaves_all_known(error) {
                self.poison_file(file, operation, error);
            }
        })
    }

    /// Does something that everything depends on, and poisons everything if it fails.
    fn vital(
        &self,
        kind: FileKind,
        operation: &str,
        vital: impl FnOnce(&S) -> io::Result<()>,
    ) -> io::Result<()> {
        let _one_at_a_time = self.syncing[kind as usize].lock();
        self.all.check()?;
        match vital(&self.inner) {
            Ok(()) => self.counters.add_sync(kind),
            // A configuration that does not fit was not replaced.
            Err(error) if kind == FileKind::Config && leaves_all_known(&error) => {
                return Err(error);
            }
            Err(error) => {
                let failure = format!("the {operation} failed: {error}");
                log::error!("{failure}");
                self.all.set(Poison { failure });
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Whether a failed change had no effect that its caller does not know of.
fn leaves_all_known(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::StorageFull
            | Kind::QuotaExceeded
            | Kind::ReadOnlyFilesystem
            | Kind::NotFound
            | Kind::AlreadyExists
            | Kind::InvalidInput
    )
}

impl<S: Storage> Storage for Poisoned<S> {
    fn create(&self, file: FileId) -> io::Result<()> {
        self.all.check()?;
        self.inner.create(file)?;
        if let FileId::Segment(number) = file {
            // A new file has nothing of an old one of that number.
            self.segments.lock().remove(&number);
        }
        Ok(())
    }

    fn delete(&self, file: FileId) -> io::Result<()> {
        self.all.check()?;
        self.inner.delete(file)
    }

    fn length(&self, file: FileId) -> io::Result<Option<u64>> {
        self.inner.length(file)
    }

    fn set_length(&self, file: FileId, bytes: u64) -> io::Result<()> {
        self.change(file, "resizing", |inner| inner.set_length(file, bytes))
    }

    fn read_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(file, offset, buffer)?;
        self.counters.add_read(file.into(), buffer.len());
        Ok(())
    }

    fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(file, "writing", |inner| inner.write_at(file, offset, bytes))?;
        self.counters.add_written(file.into(), bytes.len());
        Ok(())
    }

    fn start_writeback(&self, file: FileId, offset: u64, bytes: u64) {
        if self.check(file).is_ok() {
            self.inner.start_writeback(file, offset, bytes);
        }
    }

    fn sync(&self, file: FileId) -> io::Result<()> {
        let FileId::Segment(number) = file else {
            return self.vital(file.into(), &format!("sync of {file:?}"), |inner| inner.sync(file));
        };
        let state = self.segment(number);
        let _one_at_a_time = state.syncing.lock();
        self.all.check()?;
        state.check()?;
        match self.inner.sync(file) {
            Ok(()) => self.counters.add_sync(FileKind::Segment),
            Err(error) => {
                self.poison_file(file, "sync", &error);
                return Err(error);
            }
        }
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.vital(FileKind::Directory, "sync of the directories", S::sync_directory)
    }

    fn allocate(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        self.change(file, "allocation", |inner| inner.allocate(file, offset, bytes))
    }

    fn punch(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        self.change(file, "punching", |inner| inner.punch(file, offset, bytes))
    }

    fn allocated(&self, file: FileId) -> io::Result<Vec<std::ops::Range<u64>>> {
        self.inner.allocated(file)
    }

    fn segments(&self) -> io::Result<Vec<u32>> {
        self.inner.segments()
    }

    fn read_config(&self) -> io::Result<Vec<u8>> {
        let bytes = self.inner.read_config()?;
        self.counters.add_read(FileKind::Config, bytes.len());
        Ok(bytes)
    }

    fn replace_config(&self, bytes: &[u8]) -> io::Result<()> {
        self.vital(FileKind::Config, "replacement of atrest.json", |inner| {
            inner.replace_config(bytes)
        })?;
        self.counters.add_written(FileKind::Config, bytes.len());
        Ok(())
    }

    fn capacity(&self) -> io::Result<Capacity> {
        self.inner.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sim::{Fate, SimDisk};

    const ONE: FileId = FileId::Segment(1);
    const TWO: FileId = FileId::Segment(2);

    fn storage() -> Poisoned<SimDisk> {
        let storage = Poisoned::new(SimDisk::new());
        for file in [FileId::SuperA, FileId::Log, ONE, TWO] {
            storage.create(file).unwrap();
        }
        storage.sync_directory().unwrap();
        storage
    }

    fn refused(result: io::Result<()>) -> bool {
        result.is_err_and(|error| error.get_ref().is_some_and(|inner| inner.is::<Poison>()))
    }

    #[test]
    fn failed_sync_of_a_segment_is_not_repeated_and_stops_only_that_segment() {
        let storage = storage();
        storage.inner().fail_sync(ONE, 0, Fate::Lost);
        storage.write_at(ONE, 0, b"lost").unwrap();
        assert_eq!(storage.sync(ONE).unwrap_err().raw_os_error(), Some(libc::EIO));
        let operations = storage.inner().operations();
        assert!(refused(storage.sync(ONE)));
        assert!(refused(storage.write_at(ONE, 0, b"again")));
        assert!(refused(storage.set_length(ONE, 9)));
        assert!(refused(storage.allocate(ONE, 0, 9)));
        assert!(refused(storage.punch(ONE, 0, 9)));
        assert_eq!(storage.inner().operations(), operations, "nothing reaches the disk");
        assert_eq!(storage.poisoned_segments(), [1]);
        assert_eq!(storage.poisoned(), None);
        storage.write_at(TWO, 0, b"else").unwrap();
        storage.sync(TWO).unwrap();
        // Deleted and made anew, the number is as good as any.
        storage.delete(ONE).unwrap();
        storage.create(ONE).unwrap();
        storage.write_at(ONE, 0, b"new").unwrap();
        assert!(storage.poisoned_segments().is_empty());
    }

    #[test]
    fn failed_sync_of_what_all_depends_on_stops_everything_but_reads() {
        type Fault = fn(&Poisoned<SimDisk>) -> io::Result<()>;
        let faults: [Fault; 4] = [
            |storage| {
                storage.inner().fail_sync(FileId::Log, 0, Fate::Kept);
                storage.sync(FileId::Log)
            },
            |storage| {
                storage.inner().fail_sync(FileId::SuperA, 0, Fate::Kept);
                storage.sync(FileId::SuperA)
            },
            |storage| {
                storage.inner().fail_sync_directory(0);
                storage.sync_directory()
            },
            |storage| {
                storage.inner().fail_write(FileId::Log, 0);
                storage.write_at(FileId::Log, 0, b"record")
            },
        ];
        for fault in faults {
            let storage = storage();
            storage.write_at(ONE, 0, b"here").unwrap();
            assert_eq!(fault(&storage).unwrap_err().raw_os_error(), Some(libc::EIO));
            assert!(refused(storage.write_at(ONE, 0, b"else")));
            assert!(refused(storage.sync(ONE)));
            assert!(refused(storage.sync_directory()));
            assert!(refused(storage.create(FileId::Segment(3))));
            assert!(refused(storage.delete(ONE)));
            assert!(refused(storage.replace_config(b"{}")));
            assert!(storage.poisoned().unwrap().to_string().contains("mount it again"));
            let mut bytes = [0; 4];
            storage.read_at(ONE, 0, &mut bytes).unwrap();
            assert_eq!(&bytes, b"here");
        }
    }

    #[test]
    fn full_disk_poisons_nothing() {
        let storage = storage();
        storage.inner().set_capacity(4096);
        storage.write_at(ONE, 0, &[1; 4096]).unwrap();
        let error = storage.write_at(ONE, 4096, &[1; 4096]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        storage.write_at(ONE, 0, &[2; 4096]).unwrap();
        storage.sync(ONE).unwrap();
    }

    #[test]
    fn counts_are_by_kind() {
        let storage = storage();
        storage.write_at(ONE, 0, &[1; 100]).unwrap();
        storage.write_at(TWO, 0, &[1; 10]).unwrap();
        storage.sync(ONE).unwrap();
        storage.read_at(ONE, 0, &mut [0; 7]).unwrap();
        storage.write_at(FileId::Log, 0, &[1; 3]).unwrap();
        let segments = Counts { syncs: 1, read_bytes: 7, written_bytes: 110 };
        assert_eq!(storage.counters().of(FileKind::Segment), segments);
        assert_eq!(storage.counters().of(FileKind::Log).written_bytes, 3);
        assert_eq!(storage.counters().of(FileKind::Directory).syncs, 1);
    }

    /// Counts how many syncs of a file run at once.
    struct Slow {
        disk: SimDisk,
        running: AtomicU64,
    }

    impl Slow {
        fn sync(&self, file: FileId) -> io::Result<()> {
            assert_eq!(self.running.fetch_add(1, Ordering::SeqCst), 0, "two syncs at once");
            std::thread::sleep(std::time::Duration::from_millis(5));
            self.running.fetch_sub(1, Ordering::SeqCst);
            self.disk.sync(file)
        }
    }

    impl Storage for Slow {
        fn create(&self, file: FileId) -> io::Result<()> {
            self.disk.create(file)
        }
        fn delete(&self, file: FileId) -> io::Result<()> {
            self.disk.delete(file)
        }
        fn length(&self, file: FileId) -> io::Result<Option<u64>> {
            self.disk.length(file)
        }
        fn set_length(&self, file: FileId, bytes: u64) -> io::Result<()> {
            self.disk.set_length(file, bytes)
        }
        fn read_at(&self, file: FileId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            self.disk.read_at(file, offset, buffer)
        }
        fn write_at(&self, file: FileId, offset: u64, bytes: &[u8]) -> io::Result<()> {
            self.disk.write_at(file, offset, bytes)
        }
        fn start_writeback(&self, file: FileId, offset: u64, bytes: u64) {
            self.disk.start_writeback(file, offset, bytes);
        }
        fn sync(&self, file: FileId) -> io::Result<()> {
            Slow::sync(self, file)
        }
        fn sync_directory(&self) -> io::Result<()> {
            self.disk.sync_directory()
        }
        fn allocate(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
            self.disk.allocate(file, offset, bytes)
        }
        fn punch(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
            self.disk.punch(file, offset, bytes)
        }
        fn segments(&self) -> io::Result<Vec<u32>> {
            self.disk.segments()
        }
        fn read_config(&self) -> io::Result<Vec<u8>> {
            self.disk.read_config()
        }
        fn replace_config(&self, bytes: &[u8]) -> io::Result<()> {
            self.disk.replace_config(bytes)
        }
        fn capacity(&self) -> io::Result<Capacity> {
            self.disk.capacity()
        }
    }

    #[test]
    fn of_two_syncs_at_once_none_is_told_ok_after_the_other_failed() {
        let storage = Poisoned::new(Slow { disk: SimDisk::new(), running: AtomicU64::new(0) });
        storage.create(ONE).unwrap();
        storage.write_at(ONE, 0, b"lost").unwrap();
        storage.inner().disk.fail_sync(ONE, 0, Fate::Lost);
        std::thread::scope(|scope| {
            let syncs = [0; 4].map(|_| scope.spawn(|| storage.sync(ONE)));
            for sync in syncs {
                assert!(sync.join().unwrap().is_err());
            }
        });
    }
}
