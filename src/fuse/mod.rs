//! Translation between fuser and `fs`. The only module that names `fuser`.
//!
//! An adapter method is call, reply, or report. What takes longer than memory does – waiting for a
//! disk flush, copying, allocating – moves to a worker thread together with its reply, so that an
//! event loop is always there for the next request, and for the kernel's own write-back.

mod attr;
mod caches;
mod counts;
mod errno;
mod flags;
mod meter;
mod replies;
mod session;
#[cfg(test)]
mod tests;
mod workers;
mod writeback;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::fs::{Attr, Caller, DirEntry, Error, Ino, Kind, SetAttr, Tree};
use attr::{file_attr, file_type};
use counts::Counts;
use errno::report;
use replies::Replies;
use workers::Workers;
use writeback::Writeback;

pub use caches::Caches;
pub use meter::{Counts as MeterCounts, Meter, Operation, meter};
pub use session::{AllowOther, MountError, Options, Session};

/// How long the kernel may keep names, attributes and the absence of names. It is the only one that
/// changes them, so any time is right; an hour bounds what a defect could do.
const TTL: Duration = Duration::from_secs(3600);
/// The same of what nobody changes ([`crate::fs::Tree::is_image`]): a year.
const TTL_OF_IMAGE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Inode numbers are never reused, so one generation does.
const GENERATION: Generation = Generation(0);
/// Largest WRITE, READ and readahead request, in bytes.
const REQUEST_BYTES: u32 = 1 << 20;
/// Requests that the kernel may send ahead of the answers: readahead and write-back.
const BACKGROUND_MAX: u16 = 64;
/// Longest name in bytes, for `statvfs(3)`.
const NAME_BYTES_MAX: u32 = 255;
/// Block size that [`crate::fs::StatFs`] counts in.
const BLOCK_BYTES: u32 = 4096;

/// What the kernel talks to: a [`Tree`] behind the FUSE protocol.
struct Adapter {
    shared: Arc<Shared>,
    workers: Workers,
    several_loops: bool,
}

/// What worker threads need too.
struct Shared {
    tree: Arc<dyn Tree>,
    /// References that the kernel holds (LOOKUP and its kin, minus FORGET).
    lookups: Counts,
    /// Handles open for writing. Without one an inode has no dirty pages: the kernel writes them
    /// back when a file is closed and before it releases the last handle (`fuse_flush`,
    /// `fuse_release` in fs/fuse/file.c).
    writers: Counts,
    replies: Replies,
    /// Set when the mount exists, before the first request is read.
    writeback: Arc<OnceLock<Writeback>>,
    /// Whether reading sets access times: neither `noatime` nor read-only.
    access_times: bool,
    /// See [`Tree::is_image`].
    is_image: bool,
}

impl Adapter {
    fn new(tree: Arc<dyn Tree>, writeback: Arc<OnceLock<Writeback>>, options: &Options) -> Self {
        let access_times = options.atime && !options.read_only;
        let (lookups, writers) = (Counts::new(), Counts::new());
        let (replies, is_image) = (Replies::default(), tree.is_image());
        let shared = Shared { tree, lookups, writers, replies, writeback, access_times, is_image };
        // One may wait for the disk while another serves.
        let several_loops = options.threads > 1;
        Self { shared: Arc::new(shared), workers: Workers::new(), several_loops }
    }

    /// Syncs and replies. One short flush at a time is waited for here, which saves a lone caller
    /// the way to another thread; whoever else asks meanwhile waits on a worker.
    fn sync(
        &self,
        operation: Operation,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let now = || self.tree().try_fsync(ino.0, fh.0, datasync).transpose();
        let begun = meter::begin();
        if let Some(result) =
            self.several_loops.then(|| guarded(operation, ino, now).transpose()).flatten()
        {
            meter::end(begun, operation, result.is_err());
            return reply_empty(reply, result);
        }
        let sync = move |shared: &Shared| shared.tree.fsync(ino.0, fh.0, datasync);
        self.on_worker(operation, ino, sync, |result| reply_empty(reply, result));
    }

    fn tree(&self) -> &dyn Tree {
        &*self.shared.tree
    }

    /// How long the kernel may keep what it is told.
    fn ttl(&self) -> &'static Duration {
        if self.shared.is_image { &TTL_OF_IMAGE } else { &TTL }
    }

    /// Replies with an entry, which the kernel then holds a reference to. It is counted first: the
    /// FORGET may be read before this returns.
    fn reply_entry(&self, reply: ReplyEntry, result: Result<Attr, Errno>) {
        self.reply_entry_for(*self.ttl(), reply, result);
    }

    fn reply_entry_for(&self, ttl: Duration, reply: ReplyEntry, result: Result<Attr, Errno>) {
        match result {
            Ok(attr) => {
                self.shared.lookups.add(attr.ino);
                reply.entry(&ttl, &file_attr(&attr), GENERATION);
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// How long the kernel may keep names of `parent`. Ask before looking them up: what is found
    /// after the answer has changed is then not kept.
    fn names_ttl(&self, parent: Ino) -> Duration {
        if self.tree().keeps_names(parent) { *self.ttl() } else { Duration::ZERO }
    }

    fn forget_n(&self, ino: Ino, n: u64) {
        if self.shared.lookups.subtract(ino, n) {
            let forget = || {
                self.tree().forget(ino);
                Ok(())
            };
            let _ = attempt(Operation::Forget, INodeNo(ino), forget);
        }
    }

    /// Adds an entry to a READDIRPLUS reply; returns whether the reply is full. The kernel holds a
    /// reference to what it gets this way, but for "." and ".." (`fuse_direntplus_link`). Those may
    /// come without attributes; any other entry without them is one that the kernel asks about.
    fn add_plus(&self, ttl: Duration, reply: &mut ReplyDirectoryPlus, entry: &DirEntry) -> bool {
        let name = OsStr::from_bytes(entry.name);
        let (ttl, attr) = match &entry.attr {
            Some(attr) => (ttl, file_attr(attr)),
            None => (Duration::ZERO, attr::bare_attr(entry.ino, entry.kind)),
        };
        if !is_dot(entry.name) {
            self.shared.lookups.add(entry.ino);
        }
        reply.add(INodeNo(entry.ino), entry.cookie, name, &ttl, &attr, GENERATION)
    }

    /// Somebody reads an inode, through a handle with these flags of open(2). After READ, READDIR
    /// and READLINK the kernel asks for the access time when it is wanted
    /// (`fuse_invalidate_atime`).
    fn accessed(&self, ino: INodeNo, flags: i32) {
        if self.shared.access_times && flags & libc::O_NOATIME == 0 {
            let _ = guarded(Operation::Read, ino, || self.tree().accessed(ino.0, false));
        }
    }

    /// Somebody opened an inode. What is cached is read without asking us, so that opening to read
    /// counts as reading; the kernel is told to ask for the access time again.
    fn opened(&self, ino: INodeNo, flags: i32) {
        let reads = flags & libc::O_ACCMODE != libc::O_WRONLY;
        if !self.shared.access_times || !reads || flags & libc::O_NOATIME != 0 {
            return;
        }
        let is_changing = self.shared.writers.any(ino.0);
        let is_new = guarded(Operation::Open, ino, || self.tree().accessed(ino.0, is_changing));
        if let (Ok(true), Some(kernel)) = (is_new, self.shared.writeback.get()) {
            kernel.forget_attributes(ino.0);
        }
    }

    /// Answers a READ that takes long.
    fn read_on_worker(&self, ino: INodeNo, offset: u64, size: u32, reply: ReplyData) {
        let read = move |shared: &Shared| {
            let mut buffer = Vec::new();
            shared.tree.read(ino.0, offset, size as usize, &mut buffer).map(|()| buffer)
        };
        self.on_worker(Operation::Read, ino, read, |result| match result {
            Ok(buffer) => reply.data(&buffer),
            Err(errno) => reply.error(errno),
        });
    }

    /// Runs `work` on a worker thread and hands its result to `reply`.
    fn on_worker<R, W, F>(&self, operation: Operation, ino: INodeNo, work: W, reply: F)
    where
        W: FnOnce(&Shared) -> Result<R, Error> + Send + 'static,
        F: FnOnce(Result<R, Errno>) + Send + 'static,
    {
        let shared = self.shared.clone();
        self.workers.run(move || reply(attempt(operation, ino, || work(&shared))));
    }
}

/// Calls the tree, as [`guarded`], and counts what comes of it.
fn attempt<R>(
    operation: Operation,
    ino: INodeNo,
    work: impl FnOnce() -> Result<R, Error>,
) -> Result<R, Errno> {
    meter::timed(operation, || guarded(operation, ino, work))
}

/// Calls the tree. An error is reported; a panic is too, and becomes EIO for this request only.
fn guarded<R>(
    operation: Operation,
    ino: INodeNo,
    work: impl FnOnce() -> Result<R, Error>,
) -> Result<R, Errno> {
    let name = operation.name();
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| report(name, ino.0, &error)),
        Err(_) => {
            log::error!("{name}: inode {ino}: a defect stopped this request; see above");
            Err(Errno::EIO)
        }
    }
}

fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

fn reply_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Answers a request for an extended attribute or for the list of names: `size` 0 asks how long the
/// answer is (`getxattr(2)`).
fn reply_xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>, Errno>) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

/// A list of names, each with its NUL, without those of the `trusted.` namespace.
fn without_trusted(names: &[u8]) -> Vec<u8> {
    let names = names.split_inclusive(|&byte| byte == 0);
    names.filter(|name| !name.starts_with(b"trusted.")).flatten().copied().collect()
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), umask }
}

/// Whether the kernel would want set-user-ID bits cleared when this caller truncates: it says so
/// in flags that fuser drops (`FUSE_OPEN_KILL_SUIDGID`, `FATTR_KILL_SUIDGID`), set for callers
/// without CAP_FSETID. Root without that capability keeps the bits, which is the one difference.
fn truncation_kills_suid(request: &Request) -> bool {
    request.uid() != 0
}

impl Shared {
    /// Answers SEEK_DATA and SEEK_HOLE. What is dirty in the page cache is a hole to us, so the
    /// kernel writes it back first; otherwise `cp` would make zeros of fresh data.
    fn seek(&self, ino: INodeNo, offset: i64, whence: i32) -> Result<u64, Error> {
        let what = flags::seek(whence)?;
        let offset = u64::try_from(offset).map_err(|_| Error::NoSuchOffset)?;
        if self.writers.any(ino.0) {
            if let Some(writeback) = self.writeback.get() {
                writeback.write_back(ino.0, offset)?;
            }
        }
        self.tree.seek(ino.0, offset, what)
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = flags::wanted(config.capabilities());
        if let Err(refused) = config.add_capabilities(wanted) {
            log::warn!("the kernel does not know {refused:?}");
        }
        if let Err(nearest) = config.set_max_write(REQUEST_BYTES) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(REQUEST_BYTES) {
            let _ = config.set_max_readahead(nearest);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = || match self.tree().lookup(parent.0, name.as_bytes()) {
            Err(Error::NotFound) => Ok(None),
            result => result.map(Some),
        };
        let ttl = self.names_ttl(parent.0);
        match attempt(Operation::Lookup, parent, found).transpose() {
            Some(result) => self.reply_entry_for(ttl, reply, result),
            None => reply.entry(&ttl, &attr::bare_attr(0, Kind::File), GENERATION),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        self.forget_n(ino.0, nlookup);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attempt(Operation::Getattr, ino, || self.tree().getattr(ino.0)) {
            Ok(attr) => reply.attr(self.ttl(), &file_attr(&attr)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let owned = uid.is_some() || gid.is_some();
        let change = SetAttr {
            permissions: mode.map(|mode| (mode & 0o7777) as u16),
            uid,
            gid,
            size,
            atime: atime.map(attr::time_or_now),
            mtime: mtime.map(attr::time_or_now),
            ctime: ctime.map(attr::time),
            kill_suid: owned || (size.is_some() && truncation_kills_suid(request)),
        };
        match attempt(Operation::Setattr, ino, || self.tree().setattr(ino.0, &change)) {
            Ok(attr) => reply.attr(&TTL, &file_attr(&attr)),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match attempt(Operation::Readlink, ino, || self.tree().readlink(ino.0)) {
            Ok(target) => {
                self.accessed(ino, 0);
                reply.data(&target);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (who, name) = (caller(request, umask), name.as_bytes());
        let made = attempt(Operation::Mknod, parent, || {
            self.tree().mknod(who, parent.0, name, mode, rdev)
        });
        self.reply_entry(reply, made);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let (who, name) = (caller(request, umask), name.as_bytes());
        let made =
            attempt(Operation::Mkdir, parent, || self.tree().mkdir(who, parent.0, name, mode));
        self.reply_entry(reply, made);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes();
        reply_empty(
            reply,
            attempt(Operation::Unlink, parent, || self.tree().unlink(parent.0, name)),
        );
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes();
        reply_empty(reply, attempt(Operation::Rmdir, parent, || self.tree().rmdir(parent.0, name)));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (who, name) = (caller(request, 0), link_name.as_bytes());
        let target = target.as_os_str().as_bytes();
        let made = attempt(Operation::Symlink, parent, || {
            self.tree().symlink(who, parent.0, name, target)
        });
        self.reply_entry(reply, made);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, newname) = (name.as_bytes(), newname.as_bytes());
        let rename = || {
            let flags = flags::rename(flags)?;
            self.tree().rename(parent.0, name, newparent.0, newname, flags)
        };
        reply_empty(reply, attempt(Operation::Rename, parent, rename));
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let name = newname.as_bytes();
        let made = attempt(Operation::Link, ino, || self.tree().link(ino.0, newparent.0, name));
        self.reply_entry(reply, made);
    }

    /// Refused once for an image: the kernel then opens every file without asking, and caches it.
    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.shared.is_image {
            return reply.error(Errno::ENOSYS);
        }
        // What is written goes to the page cache first, and could only be refused too late.
        if flags::writable(flags.0) && self.tree().is_read_only(ino.0) {
            return reply.error(Errno::EROFS);
        }
        let truncate = flags.0 & libc::O_TRUNC != 0;
        let kill_suid = truncate && truncation_kills_suid(request);
        match attempt(Operation::Open, ino, || self.tree().open(ino.0, truncate, kill_suid)) {
            Ok(handle) => {
                self.opened(ino, flags.0);
                if flags::writable(flags.0) {
                    self.shared.writers.add(ino.0);
                }
                reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.accessed(ino, flags.0);
        if self.tree().read_is_long(ino.0, offset) {
            return self.read_on_worker(ino, offset, size, reply);
        }
        self.shared.replies.with_own(|buffer| {
            match attempt(Operation::Read, ino, || {
                self.tree().read(ino.0, offset, size as usize, buffer)
            }) {
                Ok(()) => {
                    meter::read(buffer.len());
                    reply.data(buffer);
                }
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill_suid = flags::write_kills_suid(write_flags);
        let write = || {
            if !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
                self.tree().admit()?;
            }
            self.tree().write(ino.0, offset, data, kill_suid)
        };
        match attempt(Operation::Write, ino, write) {
            Ok(()) => {
                meter::written(data.len());
                reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX));
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Refused once, after which the kernel sends no FLUSH: it would cost a round trip per `close`.
    /// The kernel still writes dirty pages back when a file is closed and reports what WRITE said;
    /// losses found later are reported by `fsync`, as on other filesystems.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if flags::writable(flags.0) {
            self.shared.writers.subtract(ino.0, 1);
        }
        let release = || {
            self.tree().release(ino.0, fh.0);
            Ok(())
        };
        reply_empty(reply, attempt(Operation::Release, ino, release));
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.sync(Operation::Fsync, ino, fh, datasync, reply);
    }

    /// Refused once: the kernel then opens and caches every directory without asking.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.accessed(ino, 0);
        let mut filled = false;
        let fill = || {
            self.tree().readdir(ino.0, offset, false, &mut |entry| {
                let name = OsStr::from_bytes(entry.name);
                let kind = file_type(entry.kind);
                let full = reply.add(INodeNo(entry.ino), entry.cookie, kind, name);
                filled |= !full;
                !full
            })
        };
        match attempt(Operation::Readdir, ino, fill) {
            Err(errno) if !filled => reply.error(errno),
            _ => reply.ok(),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.accessed(ino, 0);
        let (mut filled, mut left_over) = (false, None);
        let ttl = self.names_ttl(ino.0);
        let fill = || {
            self.tree().readdir(ino.0, offset, true, &mut |entry| {
                let full = self.add_plus(ttl, &mut reply, entry);
                filled |= !full;
                left_over = (full && !is_dot(entry.name)).then_some(entry.ino);
                !full
            })
        };
        match attempt(Operation::Readdirplus, ino, fill) {
            Err(errno) if !filled => reply.error(errno),
            _ => reply.ok(),
        }
        if let Some(ino) = left_over {
            self.forget_n(ino, 1);
        }
    }

    fn fsyncdir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.sync(Operation::Fsyncdir, ino, fh, datasync, reply);
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match attempt(Operation::Statfs, ino, || self.tree().statfs()) {
            Ok(space) => reply.statfs(
                space.blocks,
                space.blocks_free,
                space.blocks_available,
                space.files,
                space.files_free,
                BLOCK_BYTES,
                NAME_BYTES_MAX,
                BLOCK_BYTES,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let create = flags & libc::XATTR_CREATE != 0;
        let replace = flags & libc::XATTR_REPLACE != 0;
        let name = name.as_bytes();
        let set = || self.tree().setxattr(ino.0, name, value, create, replace);
        reply_empty(reply, attempt(Operation::Setxattr, ino, set));
    }

    /// Refused once for an image: the kernel then answers for it.
    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.shared.is_image {
            return reply.error(Errno::ENOSYS);
        }
        let name = name.as_bytes();
        let value = attempt(Operation::Getxattr, ino, || self.tree().getxattr(ino.0, name));
        reply_xattr(reply, size, value);
    }

    /// Names of `trusted.` attributes are for root to see (xattr(7)). Whether the caller has
    /// CAP_SYS_ADMIN, which is the kernel's question, a request does not say.
    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if self.shared.is_image {
            return reply.error(Errno::ENOSYS);
        }
        let mut names = attempt(Operation::Listxattr, ino, || self.tree().listxattr(ino.0));
        if let (Ok(names), true) = (&mut names, request.uid() != 0) {
            *names = without_trusted(names);
        }
        reply_xattr(reply, size, names);
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes();
        reply_empty(
            reply,
            attempt(Operation::Removexattr, ino, || self.tree().removexattr(ino.0, name)),
        );
    }

    /// Never asked: `default_permissions` makes the kernel check.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (who, name) = (caller(request, umask), name.as_bytes());
        match attempt(Operation::Create, parent, || self.tree().create(who, parent.0, name, mode)) {
            Ok((attr, handle)) => {
                self.shared.lookups.add(attr.ino);
                if flags::writable(flags) {
                    self.shared.writers.add(attr.ino);
                }
                let (handle, keep) = (FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE);
                reply.created(&TTL, &file_attr(&attr), GENERATION, handle, keep);
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Refused: there is no block device below.
    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    /// Refused: no ioctl of ours, and flags of `chattr(1)` are not kept.
    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// Refused once: the kernel then says that files are always ready, as for any disk file.
    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let allocate = move |shared: &Shared| {
            shared.tree.fallocate(ino.0, offset, length, flags::allocate(mode)?)
        };
        self.on_worker(Operation::Fallocate, ino, allocate, |result| reply_empty(reply, result));
    }

    fn lseek(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = move |shared: &Shared| shared.seek(ino, offset, whence);
        self.on_worker(Operation::Lseek, ino, seek, |result| match result {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(errno) => reply.error(errno),
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        ino_in: INodeNo,
        _: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _: FileHandle,
        offset_out: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let len = len.min(u64::from(u32::MAX));
        let copy = move |shared: &Shared| {
            shared.tree.copy_range(ino_in.0, offset_in, ino_out.0, offset_out, len)
        };
        self.on_worker(Operation::CopyFileRange, ino_in, copy, |result| match result {
            Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        });
    }
}
