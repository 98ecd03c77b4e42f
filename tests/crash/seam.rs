//! What stands between a volume and its simulated disk: it does what it is asked to, or one thing
//! wrongly, and can call back between two operations.

use atrest::storage::sim::{Fate, SimDisk};
use atrest::storage::{Capacity, FileId, Storage};
use parking_lot::Mutex;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The kinds of files of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Data,
    NodeA,
    NodeB,
    Superblock,
    Log,
}

impl Class {
    fn of(file: FileId) -> Self {
        match file {
            FileId::SuperA | FileId::SuperB => Self::Superblock,
            FileId::Log => Self::Log,
            FileId::Segment(number) => match number % 8 {
                0 => Self::NodeA,
                1 => Self::NodeB,
                _ => Self::Data,
            },
        }
    }
}

/// One thing that is done wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Files of that kind are not synced.
    NoSync(Class),
    /// They are synced after the next superblock.
    SyncBehindSuperblock(Class),
    /// Directories are not synced.
    NoDirectorySync,
    /// Every so manieth write to that kind of file is dropped.
    DropWrite(Class, u64),
    /// Of every so manieth write only the first half is done.
    HalfWrite(Class, u64),
    /// Writes are done after the next sync of the file, which so does not cover them.
    WriteBehindSync(Class),
    /// A sync that failed is reported as good.
    HideFailure,
    /// The configuration is replaced after the next superblock.
    ConfigBehindSuperblock,
    /// The configuration is not replaced.
    NoConfig,
}

/// A sync that fails.
#[derive(Clone, Copy, Debug)]
pub struct FailSync {
    /// After so many good ones.
    pub after: u64,
    /// What becomes of what it should have made durable.
    pub fate: Fate,
}

type Hook = Box<dyn FnOnce() + Send>;

/// See the top of this file.
pub struct Seam {
    pub disk: Arc<SimDisk>,
    wrong: Option<Wrong>,
    fail: Option<FailSync>,
    armed: AtomicBool,
    state: Mutex<State>,
    under_way: AtomicUsize,
}

#[derive(Default)]
struct State {
    hook: Option<(u64, Hook)>,
    syncs: u64,
    writes: u64,
    late_syncs: Vec<FileId>,
    late_writes: Vec<(FileId, u64, Vec<u8>)>,
    late_config: Option<Vec<u8>>,
    fault_at: Option<usize>,
}

impl Seam {
    /// Does what it is asked to.
    pub fn new(disk: Arc<SimDisk>) -> Self {
        Self {
            disk,
            wrong: None,
            fail: None,
            armed: AtomicBool::new(false),
            state: Mutex::default(),
            under_way: AtomicUsize::new(0),
        }
    }

    /// Does one thing wrongly.
    pub fn doing_wrong(disk: Arc<SimDisk>, wrong: Wrong) -> Self {
        Self { wrong: Some(wrong), ..Self::new(disk) }
    }

    /// One sync fails.
    pub fn failing(disk: Arc<SimDisk>, fail: FailSync) -> Self {
        Self { fail: Some(fail), ..Self::new(disk) }
    }

    /// One sync fails, and nobody hears of it.
    pub fn hiding(disk: Arc<SimDisk>, fail: FailSync) -> Self {
        Self { wrong: Some(Wrong::HideFailure), ..Self::failing(disk, fail) }
    }

    /// From here on things go wrong.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
    }

    /// The number of the step that is under way.
    pub fn under_way(&self, step: usize) {
        self.under_way.store(step, Ordering::Relaxed);
    }

    /// The step in which the sync failed.
    pub fn fault_at(&self) -> Option<usize> {
        self.state.lock().fault_at
    }

    /// Has `hook` called in front of a write or a sync, those of the log aside, once so many of
    /// these were done.
    pub fn call_after(&self, operations: u64, hook: impl FnOnce() + Send + 'static) {
        self.state.lock().hook = Some((operations, Box::new(hook)));
    }

    /// Calls the hook if it was not called yet.
    pub fn call_now(&self) {
        let hook = self.state.lock().hook.take();
        if let Some((_, hook)) = hook {
            hook();
        }
    }

    fn is_wrong(&self, wrong: Wrong) -> bool {
        self.armed.load(Ordering::Relaxed) && self.wrong == Some(wrong)
    }

    /// Counts an operation, and calls the hook if it is due.
    fn count(&self) {
        let hook = {
            let mut state = self.state.lock();
            match &mut state.hook {
                Some((0, _)) => state.hook.take(),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        if let Some((_, hook)) = hook {
            hook();
        }
    }

    /// As [`Seam::count`]; the log is written with locks held that the hook may need.
    fn count_of(&self, class: Class) {
        if class != Class::Log {
            self.count();
        }
    }

    /// Whether it is the turn of the sync that fails.
    fn sync_fails(&self) -> Option<Fate> {
        let fail = self.fail.filter(|_| self.armed.load(Ordering::Relaxed))?;
        let mut state = self.state.lock();
        state.syncs += 1;
        if state.syncs != fail.after + 1 {
            return None;
        }
        state.fault_at = Some(self.under_way.load(Ordering::Relaxed));
        Some(fail.fate)
    }

    fn hide(&self, result: io::Result<()>) -> io::Result<()> {
        if self.is_wrong(Wrong::HideFailure) { Ok(()) } else { result }
    }

    /// What was to come behind this sync.
    fn catch_up(&self, file: FileId) -> io::Result<()> {
        let (syncs, writes, config) = {
            let state = &mut *self.state.lock();
            let superblock = Class::of(file) == Class::Superblock;
            let syncs = if superblock { std::mem::take(&mut state.late_syncs) } else { Vec::new() };
            let all = std::mem::take(&mut state.late_writes);
            let (writes, rest) = all.into_iter().partition(|(of, ..)| *of == file);
            state.late_writes = rest;
            (syncs, writes, state.late_config.take_if(|_| superblock))
        };
        let writes: Vec<(FileId, u64, Vec<u8>)> = writes;
        for (file, offset, bytes) in writes {
            self.disk.write_at(file, offset, &bytes)?;
        }
        syncs.into_iter().try_for_each(|file| self.disk.sync(file))?;
        config.map_or(Ok(()), |bytes| self.disk.replace_config(&bytes))
    }

    /// Whether it is the turn of every so manieth write.
    fn is_turn(&self, every: u64) -> bool {
        let mut state = self.state.lock();
        state.writes += 1;
        state.writes % every == 0
    }
}

impl Storage for Seam {
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
        let class = Class::of(file);
        self.count_of(class);
        match self.wrong.filter(|_| self.armed.load(Ordering::Relaxed)) {
            Some(Wrong::DropWrite(of, every)) if of == class && self.is_turn(every) => Ok(()),
            Some(Wrong::HalfWrite(of, every)) if of == class && self.is_turn(every) => {
                self.disk.write_at(file, offset, &bytes[..bytes.len() / 2])
            }
            Some(Wrong::WriteBehindSync(of)) if of == class => {
                self.state.lock().late_writes.push((file, offset, bytes.to_vec()));
                Ok(())
            }
            _ => self.disk.write_at(file, offset, bytes),
        }
    }

    fn start_writeback(&self, _file: FileId, _offset: u64, _bytes: u64) {}

    fn sync(&self, file: FileId) -> io::Result<()> {
        let class = Class::of(file);
        self.count_of(class);
        if let Some(fate) = self.sync_fails() {
            self.disk.fail_sync(file, 0, fate);
        }
        if self.is_wrong(Wrong::NoSync(class)) {
            return Ok(());
        }
        if self.is_wrong(Wrong::SyncBehindSuperblock(class)) {
            self.state.lock().late_syncs.push(file);
            return Ok(());
        }
        self.hide(self.disk.sync(file))?;
        self.catch_up(file)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.count();
        if self.sync_fails().is_some() {
            self.disk.fail_sync_directory(0);
        }
        if self.is_wrong(Wrong::NoDirectorySync) {
            return Ok(());
        }
        self.hide(self.disk.sync_directory())
    }

    fn allocate(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        self.disk.allocate(file, offset, bytes)
    }

    fn punch(&self, file: FileId, offset: u64, bytes: u64) -> io::Result<()> {
        self.disk.punch(file, offset, bytes)
    }

    fn allocated(&self, file: FileId) -> io::Result<Vec<Range<u64>>> {
        self.disk.allocated(file)
    }

    fn segments(&self) -> io::Result<Vec<u32>> {
        self.disk.segments()
    }

    fn read_config(&self) -> io::Result<Vec<u8>> {
        self.disk.read_config()
    }

    fn replace_config(&self, bytes: &[u8]) -> io::Result<()> {
        self.count();
        if self.is_wrong(Wrong::ConfigBehindSuperblock) {
            self.state.lock().late_config = Some(bytes.to_vec());
            return Ok(());
        }
        if self.is_wrong(Wrong::NoConfig) { Ok(()) } else { self.disk.replace_config(bytes) }
    }

    fn capacity(&self) -> io::Result<Capacity> {
        self.disk.capacity()
    }
}
