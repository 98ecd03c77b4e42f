//! A minimal FUSE passthrough: what any FUSE daemon over this directory costs, without encryption.
//!
//! `bench/run` measures it beside atrest as the floor: same kernel options (writeback cache, long
//! TTLs, readdirplus, parallel directory operations, 1 MiB requests), the event loop of fuser, and
//! nothing between a request and the system call that answers it: xattrs, too, which the kernel
//! asks for before it writes to a file or changes its owner (`security.capability`). It is a
//! yardstick, not a filesystem to use: default ACLs are the backing filesystem's, no times of symlinks,
//! set-id bits survive a write by root, changes made under it go unnoticed, and every inode that
//! the kernel remembers holds a descriptor: a tree must be smaller than the limit on those (as root
//! it is raised to a million where that is permitted).
//!
//! `passthrough SOURCE MOUNTPOINT [THREADS [FLUSH_US]]` serves in the foreground until it is
//! unmounted. With FLUSH_US, every fsync takes so many microseconds more: a filesystem in a loop
//! device over a file there lies on a disk whose flush takes that long.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow,
    WriteFlags,
};
use nix::fcntl::{self, AT_FDCWD, AtFlags, FallocateFlags, OFlag};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{self, FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{self, Gid, Uid, UnlinkatFlags};
use parking_lot::RwLock;
use rustix::fs::XattrFlags;

/// Longest value of an xattr, and longest list of their names (xattr(7)).
const XATTR_BYTES_MAX: usize = 64 << 10;
/// How long the kernel may keep entries and attributes: this mount owns its directory.
const TTL: Duration = Duration::from_secs(3600);
/// Largest request, in bytes, as atrest asks for.
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// The attributes of a negative entry: the kernel reads no field but the inode.
const NOTHING: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

type Result<T> = std::result::Result<T, Errno>;

fn errno(error: nix::errno::Errno) -> Errno {
    Errno::from_i32(error as i32)
}

fn xattr_errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

/// Answers with what `read` puts into a buffer of `size` bytes, or with how long that is if it has
/// none.
fn reply_xattr(
    reply: ReplyXattr,
    node: Result<Arc<Node>>,
    size: u32,
    read: impl FnOnce(&Path, &mut [u8]) -> rustix::io::Result<usize>,
) {
    let mut buffer = vec![0; (size as usize).min(XATTR_BYTES_MAX)];
    let read = |node: Arc<Node>| read(&node.reopen_path(), &mut buffer).map_err(xattr_errno);
    match node.and_then(read) {
        Ok(length) if size == 0 => reply.size(length as u32),
        Ok(length) => reply.data(&buffer[..length]),
        Err(error) => reply.error(error),
    }
}

/// An inode that the kernel knows: an `O_PATH` descriptor and how often it was looked up.
struct Node {
    path_fd: OwnedFd,
    lookup_count: AtomicU64,
}

impl Node {
    /// A path that reopens the inode, whatever it is called by now.
    fn reopen_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.path_fd.as_raw_fd()))
    }

    fn stat(&self) -> Result<FileStat> {
        stat::fstatat(&self.path_fd, "", AtFlags::AT_EMPTY_PATH).map_err(errno)
    }
}

/// What a handle number stands for.
enum Handle {
    File(File),
    /// A snapshot of the directory: name, inode and type.
    Directory(Vec<(OsString, u64, FileType)>),
}

struct Passthrough {
    root_inode: u64,
    nodes: RwLock<HashMap<u64, Arc<Node>>>,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
    handle_next: AtomicU64,
    /// How long an fsync takes besides the real one.
    flush: Duration,
}

impl Passthrough {
    fn new(source: &Path, flush: Duration) -> nix::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let path_fd = fcntl::open(source, flags, Mode::empty())?;
        let root_inode = stat::fstat(&path_fd)?.st_ino;
        let root = Arc::new(Node { path_fd, lookup_count: AtomicU64::new(1) });
        Ok(Self {
            root_inode,
            nodes: RwLock::new(HashMap::from([(INodeNo::ROOT.0, root)])),
            handles: RwLock::new(HashMap::new()),
            handle_next: AtomicU64::new(1),
            flush,
        })
    }

    fn node(&self, ino: INodeNo) -> Result<Arc<Node>> {
        self.nodes.read().get(&ino.0).cloned().ok_or(Errno::ESTALE)
    }

    fn number(&self, backing_inode: u64) -> u64 {
        if backing_inode == self.root_inode { INodeNo::ROOT.0 } else { backing_inode }
    }

    fn attr(&self, st: &FileStat) -> FileAttr {
        FileAttr {
            ino: INodeNo(self.number(st.st_ino)),
            size: st.st_size as u64,
            blocks: st.st_blocks as u64,
            atime: time_from(st.st_atime, st.st_atime_nsec),
            mtime: time_from(st.st_mtime, st.st_mtime_nsec),
            ctime: time_from(st.st_ctime, st.st_ctime_nsec),
            crtime: UNIX_EPOCH,
            kind: kind_of(st.st_mode),
            perm: (st.st_mode & 0o7777) as u16,
            nlink: st.st_nlink as u32,
            uid: st.st_uid,
            gid: st.st_gid,
            rdev: st.st_rdev as u32,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Resolves a name and counts the lookup, as every reply that carries an entry must.
    fn lookup_counted(&self, parent: &Node, name: &OsStr) -> Result<FileAttr> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let path_fd = fcntl::openat(&parent.path_fd, name, flags, Mode::empty()).map_err(errno)?;
        let st = stat::fstatat(&path_fd, "", AtFlags::AT_EMPTY_PATH).map_err(errno)?;
        let attr = self.attr(&st);
        let mut nodes = self.nodes.write();
        let node = nodes
            .entry(attr.ino.0)
            .or_insert_with(|| Arc::new(Node { path_fd, lookup_count: AtomicU64::new(0) }));
        node.lookup_count.fetch_add(1, Ordering::Relaxed);
        Ok(attr)
    }

    fn forget_counted(&self, ino: u64, lookup_count: u64) {
        let mut nodes = self.nodes.write();
        let left = nodes
            .get(&ino)
            .map(|node| node.lookup_count.fetch_sub(lookup_count, Ordering::Relaxed));
        if ino != INodeNo::ROOT.0 && left.is_some_and(|before| before <= lookup_count) {
            nodes.remove(&ino);
        }
    }

    fn handle_add(&self, handle: Handle) -> FileHandle {
        let number = self.handle_next.fetch_add(1, Ordering::Relaxed);
        self.handles.write().insert(number, Arc::new(handle));
        FileHandle(number)
    }

    fn handle(&self, fh: FileHandle) -> Result<Arc<Handle>> {
        self.handles.read().get(&fh.0).cloned().ok_or(Errno::EBADF)
    }

    /// Runs `operation` on an open file; a directory handle is EBADF.
    fn with_file<T>(
        &self,
        fh: FileHandle,
        operation: impl FnOnce(&File) -> Result<T>,
    ) -> Result<T> {
        match &*self.handle(fh)? {
            Handle::File(file) => operation(file),
            Handle::Directory(_) => Err(Errno::EBADF),
        }
    }

    /// Gives a new object to the caller, unless the daemon itself is the caller.
    fn give(&self, req: &Request, parent: &Node, name: &OsStr) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(req.uid()), Gid::from_raw(req.gid()));
        if uid == Uid::effective() && gid == Gid::effective() {
            return Ok(());
        }
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        unistd::fchownat(&parent.path_fd, name, Some(uid), Some(gid), flags).map_err(errno)
    }

    /// Makes an object with `make`, then answers with its entry.
    fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        make: impl FnOnce(&Node) -> nix::Result<()>,
    ) -> Result<FileAttr> {
        let parent = self.node(parent)?;
        make(&parent).map_err(errno)?;
        self.give(req, &parent, name)?;
        self.lookup_counted(&parent, name)
    }

    /// With the writeback cache the kernel reads through write-only handles and appends itself.
    fn backing_flags(flags: i32) -> OFlag {
        let mut flags = OFlag::from_bits_truncate(flags);
        flags.remove(OFlag::O_APPEND | OFlag::O_NOFOLLOW | OFlag::O_DIRECT);
        if flags & OFlag::O_ACCMODE == OFlag::O_WRONLY {
            flags.remove(OFlag::O_WRONLY);
            flags.insert(OFlag::O_RDWR);
        }
        flags | OFlag::O_CLOEXEC
    }

    fn create_file(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Result<(FileAttr, FileHandle)> {
        let parent = self.node(parent)?;
        let flags = Self::backing_flags(flags) | OFlag::O_CREAT;
        let mode = Mode::from_bits_truncate(mode);
        let file = fcntl::openat(&parent.path_fd, name, flags, mode).map_err(errno)?;
        self.give(req, &parent, name)?;
        let attr = self.lookup_counted(&parent, name)?;
        Ok((attr, self.handle_add(Handle::File(file.into()))))
    }

    fn directory_snapshot(&self, ino: INodeNo) -> Result<Vec<(OsString, u64, FileType)>> {
        let node = self.node(ino)?;
        let mut entries = vec![
            (OsString::from("."), ino.0, FileType::Directory),
            (OsString::from(".."), ino.0, FileType::Directory),
        ];
        for entry in std::fs::read_dir(node.reopen_path())? {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
            entries.push((entry.file_name(), self.number(entry.ino()), kind));
        }
        Ok(entries)
    }

    fn change_attributes(&self, ino: INodeNo, change: &Change) -> Result<FileAttr> {
        let node = self.node(ino)?;
        if let Some(mode) = change.mode {
            let mode = Mode::from_bits_truncate(mode & 0o7777);
            let follow = FchmodatFlags::FollowSymlink;
            stat::fchmodat(AT_FDCWD, &node.reopen_path(), mode, follow).map_err(errno)?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            unistd::fchownat(&node.path_fd, "", uid, gid, AtFlags::AT_EMPTY_PATH).map_err(errno)?;
        }
        if let Some(size_bytes) = change.size_bytes {
            unistd::truncate(&node.reopen_path(), size_bytes as i64).map_err(errno)?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            self.change_times(&node, change)?;
        }
        Ok(self.attr(&node.stat()?))
    }

    fn change_times(&self, node: &Node, change: &Change) -> Result<()> {
        let (atime, mtime) = (time_to(change.atime), time_to(change.mtime));
        if kind_of(node.stat()?.st_mode) == FileType::Symlink {
            // The magic link would be followed to the symlink's own target: not supported.
            return Ok(());
        }
        let follow = UtimensatFlags::FollowSymlink;
        stat::utimensat(AT_FDCWD, &node.reopen_path(), &atime, &mtime, follow).map_err(errno)
    }
}

/// What SETATTR asks for.
struct Change {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size_bytes: Option<u64>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
}

fn time_from(seconds: i64, nanoseconds: i64) -> SystemTime {
    let fraction = Duration::from_nanos(nanoseconds as u64);
    let whole = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { UNIX_EPOCH - whole + fraction } else { UNIX_EPOCH + whole + fraction }
}

fn time_to(time: Option<TimeOrNow>) -> TimeSpec {
    match time {
        None => TimeSpec::UTIME_OMIT,
        Some(TimeOrNow::Now) => TimeSpec::UTIME_NOW,
        Some(TimeOrNow::SpecificTime(time)) => match time.duration_since(UNIX_EPOCH) {
            Ok(after) => TimeSpec::from_duration(after),
            Err(before) => {
                let before = before.duration();
                let up = i64::from(before.subsec_nanos() > 0);
                let fraction = (1_000_000_000 - i64::from(before.subsec_nanos())) % 1_000_000_000;
                TimeSpec::new(-(before.as_secs() as i64) - up, fraction)
            }
        },
    }
}

fn kind_of(mode: u32) -> FileType {
    match SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => FileType::Directory,
        SFlag::S_IFLNK => FileType::Symlink,
        SFlag::S_IFIFO => FileType::NamedPipe,
        SFlag::S_IFSOCK => FileType::Socket,
        SFlag::S_IFCHR => FileType::CharDevice,
        SFlag::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// Sends an entry or an error.
fn reply_entry(reply: ReplyEntry, result: Result<FileAttr>) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn reply_empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn reply_attr(reply: ReplyAttr, result: Result<FileAttr>) {
    match result {
        Ok(attr) => reply.attr(&TTL, &attr),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Passthrough {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for flag in [
            InitFlags::FUSE_WRITEBACK_CACHE,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_POSIX_ACL,
        ] {
            // A kernel that lacks one is still worth measuring.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_readahead(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.node(parent).and_then(|parent| self.lookup_counted(&parent, name));
        match found {
            Err(error) if i32::from(error) == libc::ENOENT => {
                // Inode 0 is a negative entry: the kernel remembers that there is nothing.
                reply.entry(&TTL, &NOTHING, Generation(0));
            }
            found => reply_entry(reply, found),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, lookup_count: u64) {
        self.forget_counted(ino.0, lookup_count);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let attr = self.node(ino).and_then(|node| Ok(self.attr(&node.stat()?)));
        reply_attr(reply, attr);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change { mode, uid, gid, size_bytes: size, atime, mtime };
        reply_attr(reply, self.change_attributes(ino, &change));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let target =
            self.node(ino).and_then(|node| fcntl::readlinkat(&node.path_fd, "").map_err(errno));
        match target {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits());
        let mode = Mode::from_bits_truncate(mode & 0o7777);
        let made = self.make(req, parent, name, |parent| {
            stat::mknodat(&parent.path_fd, name, kind, mode, u64::from(rdev))
        });
        reply_entry(reply, made);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let mode = Mode::from_bits_truncate(mode & 0o7777);
        let made =
            self.make(req, parent, name, |parent| stat::mkdirat(&parent.path_fd, name, mode));
        reply_entry(reply, made);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let made =
            self.make(req, parent, name, |parent| unistd::symlinkat(target, &parent.path_fd, name));
        reply_entry(reply, made);
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let linked = self.node(ino).and_then(|node| {
            let parent = self.node(newparent)?;
            let follow = AtFlags::AT_SYMLINK_FOLLOW;
            unistd::linkat(AT_FDCWD, &node.reopen_path(), &parent.path_fd, newname, follow)
                .map_err(errno)?;
            self.lookup_counted(&parent, newname)
        });
        reply_entry(reply, linked);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let flag = UnlinkatFlags::NoRemoveDir;
        let removed = self
            .node(parent)
            .and_then(|node| unistd::unlinkat(&node.path_fd, name, flag).map_err(errno));
        reply_empty(reply, removed);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let flag = UnlinkatFlags::RemoveDir;
        let removed = self
            .node(parent)
            .and_then(|node| unistd::unlinkat(&node.path_fd, name, flag).map_err(errno));
        reply_empty(reply, removed);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = fcntl::RenameFlags::from_bits_truncate(flags.bits());
        let renamed = self.node(parent).and_then(|from| {
            let to = self.node(newparent)?;
            fcntl::renameat2(&from.path_fd, name, &to.path_fd, newname, flags).map_err(errno)
        });
        reply_empty(reply, renamed);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.node(ino).and_then(|node| {
            let flags = Self::backing_flags(flags.0);
            fcntl::open(&node.reopen_path(), flags, Mode::empty()).map_err(errno)
        });
        match opened {
            Ok(file) => {
                let fh = self.handle_add(Handle::File(file.into()));
                reply.opened(fh, FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.create_file(req, parent, name, mode, flags) {
            Ok((attr, fh)) => {
                reply.created(&TTL, &attr, Generation(0), fh, FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buffer = vec![0; size as usize];
        let read = self.with_file(fh, |file| {
            let mut filled = 0;
            while filled < buffer.len() {
                match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
                    0 => break,
                    count => filled += count,
                }
            }
            Ok(filled)
        });
        match read {
            Ok(filled) => reply.data(&buffer[..filled]),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.with_file(fh, |file| Ok(file.write_all_at(data, offset)?)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // The kernel writes its cache back by itself and does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.handles.write().remove(&fh.0);
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let synced = self.with_file(fh, |file| {
            if datasync { file.sync_data() } else { file.sync_all() }.map_err(Errno::from)
        });
        std::thread::sleep(self.flush);
        reply_empty(reply, synced);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.directory_snapshot(ino) {
            Ok(entries) => {
                let fh = self.handle_add(Handle::Directory(entries));
                let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
                reply.opened(fh, flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let handle = match self.handle(fh) {
            Ok(handle) => handle,
            Err(error) => return reply.error(error),
        };
        let Handle::Directory(entries) = &*handle else { return reply.error(Errno::EBADF) };
        for (index, (name, inode, kind)) in entries.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*inode), index as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (parent, handle) = match (self.node(ino), self.handle(fh)) {
            (Ok(parent), Ok(handle)) => (parent, handle),
            (Err(error), _) | (_, Err(error)) => return reply.error(error),
        };
        let Handle::Directory(entries) = &*handle else { return reply.error(Errno::EBADF) };
        for (index, (name, _, _)) in entries.iter().enumerate().skip(offset as usize) {
            let dots = name == "." || name == "..";
            let attr = if dots {
                parent.stat().map(|st| self.attr(&st))
            } else {
                self.lookup_counted(&parent, name)
            };
            // Removed since the snapshot: not an entry any more.
            let Ok(attr) = attr else { continue };
            if reply.add(attr.ino, index as u64 + 1, name, &TTL, &attr, Generation(0)) {
                if !dots {
                    self.forget_counted(attr.ino.0, 1);
                }
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.handles.write().remove(&fh.0);
        reply.ok();
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, self.node(ino), size, |path, buffer| {
            rustix::fs::getxattr(path, name, buffer)
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, self.node(ino), size, |path, buffer| {
            rustix::fs::listxattr(path, buffer)
        });
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags::from_bits_retain(flags as u32);
        let set = |node: Arc<Node>| {
            rustix::fs::setxattr(node.reopen_path(), name, value, flags).map_err(xattr_errno)
        };
        reply_empty(reply, self.node(ino).and_then(set));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = |node: Arc<Node>| {
            rustix::fs::removexattr(node.reopen_path(), name).map_err(xattr_errno)
        };
        reply_empty(reply, self.node(ino).and_then(remove));
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let answer = self.node(ino).and_then(|node| {
            let root =
                fcntl::open(&node.reopen_path(), OFlag::O_RDONLY, Mode::empty()).map_err(errno)?;
            fstatvfs(&root).map_err(errno)
        });
        match answer {
            Ok(s) => reply.statfs(
                s.blocks(),
                s.blocks_free(),
                s.blocks_available(),
                s.files(),
                s.files_free(),
                s.block_size() as u32,
                s.name_max() as u32,
                s.fragment_size() as u32,
            ),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_truncate(mode);
        let done = self.with_file(fh, |file| {
            fcntl::fallocate(file, mode, offset as i64, length as i64).map_err(errno)
        });
        reply_empty(reply, done);
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        // The kernel may hold dirty pages that the file below lacks: everything counts as data.
        reply.error(Errno::ENOSYS);
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (Some(source), Some(mountpoint)) = (arguments.first(), arguments.get(1)) else {
        return Err("usage: passthrough SOURCE MOUNTPOINT [THREADS [FLUSH_US]]".into());
    };
    let number = |index: usize, default: u64| match arguments.get(index) {
        Some(text) => text.to_string_lossy().parse(),
        None => Ok(default),
    };
    let thread_count = usize::try_from(number(2, 2)?)?;
    let flush = Duration::from_micros(number(3, 0)?);
    stat::umask(Mode::empty());
    // One descriptor for each inode that the kernel remembers.
    let most = 1 << 20;
    if setrlimit(Resource::RLIMIT_NOFILE, most, most).is_err() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }

    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("passthrough".into()),
        MountOption::Subtype("passthrough".into()),
        MountOption::DefaultPermissions,
        MountOption::Dev,
        MountOption::Suid,
    ];
    config.n_threads = Some(thread_count);
    config.clone_fd = thread_count > 1;
    if Uid::effective().is_root() {
        config.acl = SessionACL::All;
    }
    fuser::mount(Passthrough::new(Path::new(source), flush)?, mountpoint, &config)?;
    Ok(())
}
