//! Scripts of operations: what they are, and recording one on a simulated disk together with what
//! is to be seen after each operation.

use crate::common::Volumes;
use crate::seam::Seam;
use crate::state::{Candidate, ROOT, State, look};
use crate::steps::between;
use atrest::crypto::Cipher;
use atrest::epoch::CommitOptions;
use atrest::fs::attr::TimeOrNow;
use atrest::fs::volume::VolumeTree;
use atrest::fs::{Allocate, Caller, Error, Ino, RenameFlags, SetAttr, SetXattr, Time, Tree};
use atrest::storage::Storage;
use atrest::storage::sim::{Replay, SimDisk};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

const CALLER: Caller = Caller { uid: 1000, gid: 1000, umask: 0 };

/// Size of the disks: small, so that opening a volume reserves little of them.
pub const DISK_BYTES: u64 = 128 << 20;

/// Where an operation works: a path from the root, without a leading slash.
pub type Path = String;

/// One operation. Files are written with one byte, so that reports are short.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Create(Path),
    Mkdir(Path),
    Mknod(Path),
    Symlink(Path, usize),
    Link(Path, Path),
    Unlink(Path),
    Rmdir(Path),
    Rename(Path, Path),
    Exchange(Path, Path),
    Whiteout(Path, Path),
    Write {
        path: Path,
        offset: u64,
        length: usize,
        byte: u8,
    },
    /// A write by somebody who may not keep capabilities and set-user-ID bits.
    WriteKilling {
        path: Path,
        offset: u64,
        length: usize,
        byte: u8,
    },
    Append {
        path: Path,
        length: usize,
        byte: u8,
    },
    Truncate(Path, u64),
    /// `open(2)` with `O_TRUNC`.
    OpenTruncated(Path),
    Allocate {
        path: Path,
        offset: u64,
        length: u64,
        what: Allocate,
    },
    Copy {
        from: Path,
        from_offset: u64,
        to: Path,
        to_offset: u64,
        length: u64,
    },
    Chmod(Path, u16),
    Chown(Path, u32, u32),
    Utimens(Path, i64),
    /// Size, mode and times in one call.
    SetAll(Path, u64, u16),
    SetXattr(Path, &'static str, usize, u8),
    RemoveXattr(Path, &'static str),
    /// Opens a file and remembers it by a number.
    Open(Path, u8),
    /// A file without a name, remembered by a number.
    Tmpfile(u8),
    WriteOpen {
        slot: u8,
        offset: u64,
        length: usize,
        byte: u8,
    },
    LinkOpen(u8, Path),
    Close(u8),
    Fsync(Path),
    Fdatasync(Path),
    Sync,
    /// The end of an epoch, as every five seconds.
    EpochEnd,
    /// As [`Op::EpochEnd`]; when it has done so many storage operations, others come between.
    EpochEndAround(u64, Vec<Op>),
    /// A segment is emptied, so that its space can be given back.
    Evacuate(u32),
    /// `atrest.json` is replaced by one with so many spaces more.
    ReplaceConfig(usize),
}

/// A script.
#[derive(Clone, Debug)]
pub struct Script {
    /// For reports and replay lines; no spaces.
    pub name: String,
    /// What is done, and durable, before the recording starts.
    pub setup: Vec<Op>,
    /// What is recorded.
    pub ops: Vec<Op>,
    /// Operations may fail, and then change nothing.
    pub may_fail: bool,
}

impl Script {
    /// A script whose operations all succeed.
    pub fn new(name: impl Into<String>, setup: Vec<Op>, ops: Vec<Op>) -> Self {
        Self { name: name.into(), setup, ops, may_fail: false }
    }
}

/// What an operation did.
pub struct Step {
    /// The operation.
    pub op: Op,
    /// What a crash within it may show besides what was before and what is after.
    pub between: Vec<Candidate>,
    /// What is to be seen after it.
    pub after: State,
    /// What it failed with.
    pub error: Option<String>,
}

/// A script that was run.
pub struct Recording {
    /// What it did to the disk.
    pub replay: Replay,
    /// The first is what was there at the start.
    pub steps: Vec<Step>,
    /// How to open its volume.
    pub volumes: Volumes,
    /// The times that the injected fault, if any, was met at: the number of the step under way.
    pub fault_at: Option<usize>,
}

/// Mark of a step that is done, with its number below.
const MARK_DONE: u64 = 1 << 32;
/// Mark of a sync that returned, with the number of the last step that it covers.
const MARK_SYNCED: u64 = 2 << 32;

/// How far a script had come when the machine crashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The last step that a sync which returned covers.
    pub synced: usize,
    /// The step that was under way, or the last.
    pub under_way: usize,
}

impl Reached {
    /// From the marks of a crash, for a script of so many steps, the start included.
    pub fn of(marks: &[u64], steps: usize) -> Self {
        let last = |kind: u64| {
            let of_kind = marks.iter().filter(|mark| *mark & !0xffff_ffff == kind);
            of_kind.map(|mark| (mark & 0xffff_ffff) as usize).max().unwrap_or(0)
        };
        Self { synced: last(MARK_SYNCED), under_way: (last(MARK_DONE) + 1).min(steps - 1) }
    }
}

/// A volume with a root directory, made once: every script starts on a copy of it.
struct Base {
    volumes: Volumes,
    disk: SimDisk,
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let volumes = Volumes::new(Cipher::Aes256Gcm);
        let disk = Arc::new(SimDisk::new());
        disk.stop_recording();
        disk.set_capacity(DISK_BYTES);
        let storage: Arc<dyn Storage> = disk.clone();
        volumes.create(&storage);
        Base { volumes, disk: disk.fork() }
    })
}

/// A script that is running.
pub struct Runner {
    pub tree: VolumeTree,
    volume: Arc<atrest::volume::Volume>,
    pub seam: Arc<Seam>,
    steps: Mutex<Vec<Step>>,
    open: Mutex<HashMap<u8, (Ino, u64)>>,
    config: Vec<u8>,
    may_fail: bool,
}

/// Runs a script and records it. `seam` is what stands between the volume and the disk.
///
/// # Errors
/// If an operation fails that must not, or the live tree cannot be looked at.
pub fn record(
    script: &Script,
    seam: impl FnOnce(Arc<SimDisk>) -> Seam,
) -> Result<Recording, String> {
    let base = base();
    let disk = Arc::new(base.disk.fork());
    let seam = Arc::new(seam(disk.clone()));
    let storage: Arc<dyn Storage> = seam.clone();
    let volume = base.volumes.open(&storage).map_err(|error| format!("open: {error}"))?;
    let tree = VolumeTree::new(volume.clone());
    let runner = Arc::new(Runner {
        tree,
        volume,
        seam: seam.clone(),
        steps: Mutex::default(),
        open: Mutex::default(),
        config: base.volumes.config.clone(),
        may_fail: script.may_fail,
    });
    for op in &script.setup {
        runner.perform(op).map_err(|error| format!("{}: setup {op:?}: {error}", script.name))?;
    }
    let failed = |error| format!("{}: after the setup: {error}", script.name);
    // Twice, so that the way back leads to it, too.
    for _ in 0..2 {
        runner.end_epoch().map_err(|error| failed(error.to_string()))?;
    }
    let after = look(&runner.tree, &runner.volume).map_err(failed)?;
    runner.steps.lock().push(Step { op: Op::Sync, between: Vec::new(), after, error: None });
    disk.start_recording();
    seam.arm();
    for op in &script.ops {
        runner.step(op).map_err(|error| format!("{}: {op:?}: {error}", script.name))?;
    }
    let replay = disk.replay();
    let fault_at = seam.fault_at();
    // Hooks hold the runner; they are gone by now.
    let runner = Arc::into_inner(runner).expect("nobody else holds the runner");
    let steps = runner.steps.into_inner();
    Ok(Recording { replay, steps, volumes: base.volumes.clone(), fault_at })
}

impl Runner {
    /// Does an operation, looks at what it did, and puts marks into the recording.
    fn step(self: &Arc<Self>, op: &Op) -> Result<(), String> {
        let (number, before) = {
            let steps = self.steps.lock();
            (steps.len(), steps.last().expect("the start").after.clone())
        };
        if let Op::EpochEndAround(after, ops) = op {
            return self.step_around(*after, ops);
        }
        self.seam.under_way(number);
        let done = self.perform(op);
        let after =
            look(&self.tree, &self.volume).map_err(|error| format!("looking after it: {error}"))?;
        let between = if done.is_ok() { between(op, &before, &after) } else { Vec::new() };
        let error = done.as_ref().err().map(ToString::to_string);
        if error.is_some() && !self.may_fail {
            return Err(error.unwrap_or_default());
        }
        self.steps.lock().push(Step { op: op.clone(), between, after, error });
        self.seam.disk.mark(MARK_DONE | number as u64);
        if done.is_ok() && op.is_sync() {
            self.seam.disk.mark(MARK_SYNCED | number as u64);
        }
        Ok(())
    }

    /// Ends an epoch and does `ops` when it has done `after` storage operations, or behind it.
    fn step_around(self: &Arc<Self>, after: u64, ops: &[Op]) -> Result<(), String> {
        let covered = self.steps.lock().len() - 1;
        let outcome = Arc::new(Mutex::new(None));
        let (runner, ops, result) = (self.clone(), ops.to_vec(), outcome.clone());
        self.seam.call_after(after, move || {
            let done = ops.iter().try_for_each(|op| runner.step(op));
            *result.lock() = Some(done);
        });
        let ended = self.end_epoch();
        self.seam.call_now();
        let nested = outcome.lock().take();
        nested.expect("the hook was called")?;
        if ended.is_ok() {
            self.seam.disk.mark(MARK_SYNCED | covered as u64);
        }
        ended.map_err(|error| error.to_string()).or_else(|error| match self.may_fail {
            true => Ok(()),
            false => Err(error),
        })
    }

    fn end_epoch(&self) -> Result<(), Error> {
        let options = CommitOptions { force: true, ..CommitOptions::default() };
        let ended = self.volume.epochs().commit(&options);
        ended.map_err(|error| Error::Io { what: error.to_string(), source: None })
    }

    fn find(&self, path: &str) -> Result<Ino, Error> {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.map(str::as_bytes).try_fold(ROOT, |dir, name| Ok(self.tree.lookup(dir, name)?.ino))
    }

    /// The directory of a path and the name in it.
    fn place<'a>(&self, path: &'a str) -> Result<(Ino, &'a [u8]), Error> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(dir)?, name.as_bytes()))
    }

    fn opened(&self, slot: u8) -> Result<(Ino, u64), Error> {
        self.open.lock().get(&slot).copied().ok_or(Error::Stale)
    }

    fn rename(&self, from: &str, to: &str, flags: RenameFlags) -> Result<(), Error> {
        let ((from_dir, from), (to_dir, to)) = (self.place(from)?, self.place(to)?);
        self.tree.rename(from_dir, from, to_dir, to, flags)
    }

    fn set(&self, path: &str, change: SetAttr) -> Result<(), Error> {
        self.tree.setattr(self.find(path)?, &change).map(drop)
    }

    fn perform(&self, op: &Op) -> Result<(), Error> {
        match op {
            Op::Create(_) | Op::Mkdir(_) | Op::Mknod(_) | Op::Symlink(..) | Op::Link(..) => {
                self.perform_making(op)
            }
            Op::Unlink(path) => {
                self.place(path).and_then(|(dir, name)| self.tree.unlink(dir, name))
            }
            Op::Rmdir(path) => self.place(path).and_then(|(dir, name)| self.tree.rmdir(dir, name)),
            Op::Rename(from, to) => self.rename(from, to, RenameFlags::default()),
            Op::Exchange(from, to) => {
                self.rename(from, to, RenameFlags { exchange: true, ..RenameFlags::default() })
            }
            Op::Whiteout(from, to) => {
                self.rename(from, to, RenameFlags { whiteout: true, ..RenameFlags::default() })
            }
            Op::Chmod(..) | Op::Chown(..) | Op::Utimens(..) | Op::SetAll(..) => {
                self.perform_setting(op)
            }
            Op::SetXattr(path, name, length, byte) => {
                let value = vec![*byte; *length];
                self.tree.setxattr(self.find(path)?, name.as_bytes(), &value, SetXattr::default())
            }
            Op::RemoveXattr(path, name) => self.tree.removexattr(self.find(path)?, name.as_bytes()),
            Op::Open(..)
            | Op::Tmpfile(_)
            | Op::WriteOpen { .. }
            | Op::LinkOpen(..)
            | Op::Close(_) => self.perform_opened(op),
            Op::Fsync(path) => self.tree.fsync(self.find(path)?, 0, false),
            Op::Fdatasync(path) => self.tree.fsync(self.find(path)?, 0, true),
            Op::Sync => self.tree.sync(),
            Op::EpochEnd | Op::EpochEndAround(..) => self.end_epoch(),
            Op::Evacuate(segment) => {
                let moved = self.volume.evacuate(*segment);
                moved.map(drop).map_err(|error| Error::Io { what: error.to_string(), source: None })
            }
            Op::ReplaceConfig(spaces) => {
                let bytes = [&self.config[..], &vec![b' '; *spaces]].concat();
                let replaced = self.volume.replace_config(&bytes);
                replaced.map_err(|error| Error::Io { what: error.to_string(), source: None })
            }
            _ => self.perform_on_content(op),
        }
    }

    fn perform_making(&self, op: &Op) -> Result<(), Error> {
        match op {
            Op::Create(path) => {
                let (dir, name) = self.place(path)?;
                let (attr, handle) = self.tree.create(CALLER, dir, name, 0o644)?;
                self.tree.release(attr.ino, handle);
            }
            Op::Mkdir(path) => {
                let (dir, name) = self.place(path)?;
                self.tree.mkdir(CALLER, dir, name, 0o755)?;
            }
            Op::Mknod(path) => {
                let (dir, name) = self.place(path)?;
                self.tree.mknod(CALLER, dir, name, libc::S_IFCHR | 0o600, 0x0501)?;
            }
            Op::Symlink(path, length) => {
                let (dir, name) = self.place(path)?;
                self.tree.symlink(CALLER, dir, name, &vec![b'x'; *length])?;
            }
            Op::Link(from, to) => {
                let ino = self.find(from)?;
                let (dir, name) = self.place(to)?;
                self.tree.link(ino, dir, name)?;
            }
            _ => unreachable!("{op:?} makes no name"),
        }
        Ok(())
    }

    fn perform_setting(&self, op: &Op) -> Result<(), Error> {
        let at = |seconds| Time { seconds, nanoseconds: 123_456_789 };
        match op {
            Op::Chmod(path, mode) => {
                self.set(path, SetAttr { permissions: Some(*mode), ..SetAttr::default() })
            }
            Op::Chown(path, uid, gid) => {
                let change = SetAttr { uid: Some(*uid), gid: Some(*gid), ..SetAttr::default() };
                self.set(path, SetAttr { kill_suid: true, ..change })
            }
            Op::Utimens(path, seconds) => {
                let time = Some(TimeOrNow::At(at(*seconds)));
                self.set(path, SetAttr { atime: time, mtime: time, ..SetAttr::default() })
            }
            Op::SetAll(path, size, mode) => {
                let change = SetAttr {
                    permissions: Some(*mode),
                    size: Some(*size),
                    mtime: Some(TimeOrNow::At(at(1_000_000))),
                    ctime: Some(at(2_000_000)),
                    ..SetAttr::default()
                };
                self.set(path, change)
            }
            _ => unreachable!("{op:?} sets no attributes"),
        }
    }

    fn perform_opened(&self, op: &Op) -> Result<(), Error> {
        match op {
            Op::Open(path, slot) => {
                let ino = self.find(path)?;
                let handle = self.tree.open(ino, false, false)?;
                self.open.lock().insert(*slot, (ino, handle));
            }
            Op::Tmpfile(slot) => {
                let (attr, handle) = self.tree.tmpfile(CALLER, ROOT, 0o600)?;
                self.open.lock().insert(*slot, (attr.ino, handle));
            }
            Op::WriteOpen { slot, offset, length, byte } => {
                let (ino, _) = self.opened(*slot)?;
                self.tree.write(ino, *offset, &vec![*byte; *length], false)?;
            }
            Op::LinkOpen(slot, path) => {
                let (ino, _) = self.opened(*slot)?;
                let (dir, name) = self.place(path)?;
                self.tree.link(ino, dir, name)?;
            }
            Op::Close(slot) => {
                let (ino, handle) = self.opened(*slot)?;
                self.open.lock().remove(slot);
                self.tree.release(ino, handle);
            }
            _ => unreachable!("{op:?} is about no open file"),
        }
        Ok(())
    }

    fn perform_on_content(&self, op: &Op) -> Result<(), Error> {
        match op {
            Op::Write { path, offset, length, byte } => {
                self.tree.write(self.find(path)?, *offset, &vec![*byte; *length], false)
            }
            Op::WriteKilling { path, offset, length, byte } => {
                self.tree.write(self.find(path)?, *offset, &vec![*byte; *length], true)
            }
            Op::Append { path, length, byte } => {
                let ino = self.find(path)?;
                let size = self.tree.getattr(ino)?.size;
                self.tree.write(ino, size, &vec![*byte; *length], false)
            }
            Op::Truncate(path, size) => {
                self.set(path, SetAttr { size: Some(*size), ..SetAttr::default() })
            }
            Op::OpenTruncated(path) => {
                let ino = self.find(path)?;
                let handle = self.tree.open(ino, true, false)?;
                self.tree.release(ino, handle);
                Ok(())
            }
            Op::Allocate { path, offset, length, what } => {
                self.tree.fallocate(self.find(path)?, *offset, *length, *what)
            }
            Op::Copy { from, from_offset, to, to_offset, length } => {
                let (from, to) = (self.find(from)?, self.find(to)?);
                self.tree.copy_range(from, *from_offset, to, *to_offset, *length).map(drop)
            }
            _ => unreachable!("{op:?} changes no content"),
        }
    }
}

impl Op {
    /// Whether everything before it is durable when it returned.
    pub fn is_sync(&self) -> bool {
        matches!(self, Self::Fsync(_) | Self::Fdatasync(_) | Self::Sync | Self::EpochEnd)
            || matches!(self, Self::ReplaceConfig(_) | Self::Evacuate(_))
    }
}

/// Short ways to write operations down.
pub mod write_down {
    use super::{Allocate, Op};

    pub fn create(path: &str) -> Op {
        Op::Create(path.into())
    }

    pub fn mkdir(path: &str) -> Op {
        Op::Mkdir(path.into())
    }

    pub fn link(from: &str, to: &str) -> Op {
        Op::Link(from.into(), to.into())
    }

    pub fn unlink(path: &str) -> Op {
        Op::Unlink(path.into())
    }

    pub fn rmdir(path: &str) -> Op {
        Op::Rmdir(path.into())
    }

    pub fn rename(from: &str, to: &str) -> Op {
        Op::Rename(from.into(), to.into())
    }

    pub fn write(path: &str, offset: u64, length: usize, byte: u8) -> Op {
        Op::Write { path: path.into(), offset, length, byte }
    }

    pub fn append(path: &str, length: usize, byte: u8) -> Op {
        Op::Append { path: path.into(), length, byte }
    }

    pub fn truncate(path: &str, size: u64) -> Op {
        Op::Truncate(path.into(), size)
    }

    pub fn punch(path: &str, offset: u64, length: u64) -> Op {
        Op::Allocate { path: path.into(), offset, length, what: Allocate::Punch }
    }

    pub fn zero(path: &str, offset: u64, length: u64) -> Op {
        let what = Allocate::Zero { keep_size: false };
        Op::Allocate { path: path.into(), offset, length, what }
    }

    pub fn allocate(path: &str, offset: u64, length: u64, keep_size: bool) -> Op {
        Op::Allocate { path: path.into(), offset, length, what: Allocate::Reserve { keep_size } }
    }

    pub fn fsync(path: &str) -> Op {
        Op::Fsync(path.into())
    }

    pub fn fdatasync(path: &str) -> Op {
        Op::Fdatasync(path.into())
    }
}
