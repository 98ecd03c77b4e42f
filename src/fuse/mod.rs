//! Translation between the FUSE protocol and `fs`. The only module that knows the protocol.
//!
//! A method of the adapter is call, reply, or report. What takes longer than memory does – waiting
//! for a disk flush, copying, allocating – moves to a worker thread together with its reply, so
//! that an event loop is always there for the next request, and for the kernel's own write-back.

mod attr;
mod caches;
mod counts;
mod dispatch;
mod errno;
mod files;
mod flags;
mod inodes;
mod loops;
mod meter;
mod names;
mod replies;
mod requests;
mod session;
#[cfg(test)]
mod tests;
mod watch;
mod wire;
mod workers;
mod writeback;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::fs::{Attr, Caller, Error, Ino, Tree};
use crate::sys::xattr;
use counts::Counts;
use errno::{Errno, report};
use replies::Replies;
use requests::Requests;
use watch::Watch;
use wire::request::Dialect;
use wire::{Entry, Header, Reply, reply};
use workers::Workers;
use writeback::Writeback;

pub use caches::Caches;
pub use loops::NoRings;
pub use meter::{Counts as MeterCounts, Meter, Operation, meter};
pub use session::{AllowOther, IoUring, MountError, Options, Session};

/// How long the kernel may keep names, attributes and the absence of names. It is the only one that
/// changes them, so any time is right; an hour bounds what a defect could do.
const TTL: Duration = Duration::from_secs(3600);
/// The same of what nobody changes ([`crate::fs::Tree::is_image`]): a year.
const TTL_OF_IMAGE: Duration = Duration::from_secs(365 * 24 * 3600);
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
    /// Whether an event loop may wait for the disk a moment, while another serves.
    may_wait: bool,
    /// How requests look.
    dialect: Dialect,
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
    requests: Requests,
    watch: Watch,
    /// The way to the kernel's caches.
    kernel: Writeback,
    /// Whether reading sets access times: neither `noatime` nor read-only.
    access_times: bool,
    /// See [`Tree::is_image`].
    is_image: bool,
    /// Whether SELinux is on here.
    has_selinux: bool,
}

impl Adapter {
    fn new(
        tree: Arc<dyn Tree>,
        kernel: Writeback,
        watch: Watch,
        dialect: Dialect,
        options: &Options,
        may_wait: bool,
    ) -> Self {
        let access_times = options.atime && !options.read_only;
        let (lookups, writers) = (Counts::new(), Counts::new());
        let (replies, requests) = (Replies::default(), Requests::default());
        let (is_image, has_selinux) = (tree.is_image(), xattr::has_selinux());
        let shared = Shared {
            tree,
            lookups,
            writers,
            replies,
            requests,
            watch,
            kernel,
            access_times,
            is_image,
            has_selinux,
        };
        Self { shared: Arc::new(shared), workers: Workers::new(), may_wait, dialect }
    }

    fn tree(&self) -> &dyn Tree {
        &*self.shared.tree
    }

    /// How long the kernel may keep what it is told.
    fn ttl(&self) -> Duration {
        if self.shared.is_image { TTL_OF_IMAGE } else { TTL }
    }

    /// What the kernel is told of an inode that a name leads to.
    fn entry(&self, ttl: Duration, attr: &Attr) -> Entry {
        Entry { ttl, attributes: attr::attributes(attr) }
    }

    /// Replies with an entry, which the kernel then holds a reference to. It is counted first: the
    /// FORGET may be read before this returns.
    fn reply_entry(&self, reply: Reply, ttl: Duration, result: Result<Attr, Errno>) {
        match result {
            Ok(attr) => {
                self.shared.lookups.add(attr.ino);
                reply.bytes(&reply::entry(&self.entry(ttl, &attr)));
            }
            Err(Errno(errno)) => reply.error(errno),
        }
    }

    fn forget_n(&self, ino: Ino, n: u64) {
        if self.shared.lookups.subtract(ino, n) {
            let forget = || {
                self.tree().forget(ino);
                Ok(())
            };
            let _ = attempt(Operation::Forget, ino, forget);
        }
    }

    /// Somebody reads an inode, through a handle with these flags of open(2). After READ, READDIR
    /// and READLINK the kernel asks for the access time when it is wanted
    /// (`fuse_invalidate_atime`).
    fn accessed(&self, ino: Ino, flags: i32) {
        if self.sets_access_time(flags) {
            let _ = guarded(Operation::Read, ino, || self.tree().accessed(ino, false));
        }
    }

    /// Whether reading through a handle with these flags may set the access time.
    fn sets_access_time(&self, flags: i32) -> bool {
        self.shared.access_times && flags & libc::O_NOATIME == 0
    }

    /// Runs `work` on a worker thread and hands its result to `reply`.
    fn on_worker<R, W, F>(&self, operation: Operation, ino: Ino, work: W, reply: F)
    where
        W: FnOnce(&Shared) -> Result<R, Error> + Send + 'static,
        F: FnOnce(Result<R, Errno>) + Send + 'static,
    {
        let shared = self.shared.clone();
        self.workers.run(move || reply(attempt(operation, ino, || work(&shared))));
    }

    /// Whether set-user-ID bits must go when this caller truncates. Kernels before 5.11 do not say
    /// so, and the caller's user has to do.
    fn truncation_kills_suid(&self, header: &Header, said: bool) -> bool {
        if self.dialect.kill_suidgid { said } else { header.uid != 0 }
    }
}

/// Calls the tree, as [`guarded`], and counts what comes of it.
fn attempt<R>(
    operation: Operation,
    ino: Ino,
    work: impl FnOnce() -> Result<R, Error>,
) -> Result<R, Errno> {
    meter::timed(operation, || guarded(operation, ino, work))
}

/// Calls the tree. An error is reported; a panic is too, and becomes EIO for this request only.
fn guarded<R>(
    operation: Operation,
    ino: Ino,
    work: impl FnOnce() -> Result<R, Error>,
) -> Result<R, Errno> {
    let name = operation.name();
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| report(name, ino, &error)),
        Err(_) => {
            log::error!("{name}: inode {ino}: a defect stopped this request; see above");
            Err(Errno(libc::EIO))
        }
    }
}

fn reply_empty(reply: Reply, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(Errno(errno)) => reply.error(errno),
    }
}

fn caller(header: &Header, umask: u32) -> Caller {
    Caller { uid: header.uid, gid: header.gid, umask }
}
