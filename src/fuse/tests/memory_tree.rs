//! A tree in memory: what the kernel's requests come to, counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fs::attr::TimeOrNow;
use crate::fs::{
    Allocate, Attr, Caller, DirEntry, Error, Ino, Kind, RenameFlags, Seek, SetAttr, SetXattr,
    StatFs, Time, Tree,
};

pub(super) const PAGE: u64 = 4096;

/// A tree in memory, as far as the tests need it; what it does not know is refused.
#[derive(Default)]
pub(in crate::fuse) struct MemoryTree {
    nodes: Mutex<HashMap<Ino, Node>>,
    next: AtomicU64,
    calls: Mutex<BTreeMap<&'static str, u64>>,
    pub(super) forgotten: Mutex<BTreeSet<Ino>>,
    /// READs that came so far, and how many must have come for one to be answered.
    reads: AtomicU64,
    pub(super) reads_wanted: AtomicU64,
}

pub(super) struct Node {
    attr: Attr,
    bytes: Vec<u8>,
    pub(super) pages: BTreeSet<u64>,
    entries: BTreeMap<Vec<u8>, Ino>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl MemoryTree {
    pub(in crate::fuse) fn new() -> Arc<Self> {
        let tree = Self { next: AtomicU64::new(2), ..Self::default() };
        tree.insert(1, libc::S_IFDIR | 0o755, Caller { uid: 0, gid: 0, umask: 0 });
        Arc::new(tree)
    }

    fn insert(&self, ino: Ino, mode: u32, caller: Caller) -> Attr {
        let kind = match mode & libc::S_IFMT {
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFLNK => Kind::Symlink,
            libc::S_IFIFO => Kind::Fifo,
            _ => Kind::File,
        };
        let time = Time { seconds: 1_000_000, nanoseconds: 5 };
        let attr = Attr {
            ino,
            kind,
            permissions: (mode & !caller.umask & 0o7777) as u16,
            links: 1,
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
        };
        let node = Node {
            attr,
            bytes: Vec::new(),
            pages: BTreeSet::new(),
            entries: BTreeMap::new(),
            xattrs: BTreeMap::new(),
        };
        self.nodes.lock().insert(ino, node);
        attr
    }

    pub(super) fn add(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<Attr, Error> {
        let ino = self.next.fetch_add(1, Ordering::Relaxed);
        let attr = self.insert(ino, mode, caller);
        self.node(parent, |node| node.entries.insert(name.to_vec(), ino))?;
        Ok(attr)
    }

    pub(super) fn node<R>(&self, ino: Ino, f: impl FnOnce(&mut Node) -> R) -> Result<R, Error> {
        self.nodes.lock().get_mut(&ino).map(f).ok_or(Error::Stale)
    }

    fn count(&self, call: &'static str) {
        *self.calls.lock().entry(call).or_insert(0) += 1;
    }

    pub(super) fn counted(&self, call: &'static str) -> u64 {
        self.calls.lock().get(call).copied().unwrap_or(0)
    }
}

impl Tree for MemoryTree {
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        self.count("lookup");
        assert_ne!(name, b"panic", "the defect that a test provokes");
        let ino = self.node(parent, |node| node.entries.get(name).copied())?;
        self.node(ino.ok_or(Error::NotFound)?, |node| node.attr)
    }

    fn forget(&self, ino: Ino) {
        self.forgotten.lock().insert(ino);
    }

    fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        self.node(ino, |node| node.attr)
    }

    fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr, Error> {
        self.node(ino, |node| {
            let attr = &mut node.attr;
            if let Some(size) = change.size {
                attr.size = size;
                node.bytes.resize(size as usize, 0);
                node.pages.retain(|page| page * PAGE < size);
            }
            attr.permissions = change.permissions.unwrap_or(attr.permissions);
            attr.uid = change.uid.unwrap_or(attr.uid);
            if change.kill_suid {
                attr.permissions &= !0o6000;
            }
            if let Some(TimeOrNow::At(time)) = change.mtime {
                attr.mtime = time;
            }
            if let Some(TimeOrNow::At(time)) = change.atime {
                attr.atime = time;
            }
            *attr
        })
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        self.count("readlink");
        self.node(ino, |node| node.bytes.clone())
    }

    fn mknod(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        _: u32,
    ) -> Result<Attr, Error> {
        self.add(caller, parent, name, mode)
    }

    fn mkdir(&self, caller: Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr, Error> {
        self.add(caller, parent, name, libc::S_IFDIR | mode)
    }

    fn symlink(&self, caller: Caller, parent: Ino, name: &[u8], to: &[u8]) -> Result<Attr, Error> {
        let attr = self.add(caller, parent, name, libc::S_IFLNK | 0o777)?;
        self.node(attr.ino, |node| {
            node.bytes = to.to_vec();
            node.attr.size = to.len() as u64;
            node.attr
        })
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        self.node(parent, |node| node.entries.insert(name.to_vec(), ino))?;
        self.node(ino, |node| {
            node.attr.links += 1;
            node.attr
        })
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), Error> {
        self.node(parent, |node| node.entries.remove(name))?.map(|_| ()).ok_or(Error::NotFound)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), Error> {
        self.unlink(parent, name)
    }

    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), Error> {
        assert!(!flags.exchange && !flags.whiteout, "not used by the tests");
        let ino = self.node(parent, |node| node.entries.get(name).copied())?;
        let ino = ino.ok_or(Error::NotFound)?;
        let taken = self.node(new_parent, |node| node.entries.contains_key(new_name))?;
        if flags.no_replace && taken {
            return Err(Error::Exists);
        }
        self.unlink(parent, name)?;
        self.node(new_parent, |node| node.entries.insert(new_name.to_vec(), ino)).map(|_| ())
    }

    fn open(&self, ino: Ino, truncate: bool, kill_suid: bool) -> Result<u64, Error> {
        if truncate {
            let change = SetAttr { size: Some(0), kill_suid, ..SetAttr::default() };
            self.setattr(ino, &change)?;
        }
        Ok(ino + 1000)
    }

    fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<(Attr, u64), Error> {
        let attr = self.add(caller, parent, name, libc::S_IFREG | mode)?;
        Ok((attr, attr.ino + 1000))
    }

    fn tmpfile(&self, _: Caller, _: Ino, _: u32) -> Result<(Attr, u64), Error> {
        Err(Error::NotSupported)
    }

    fn release(&self, ino: Ino, handle: u64) {
        assert_eq!(handle, ino + 1000);
        self.count("release");
    }

    fn read(
        &self,
        ino: Ino,
        offset: u64,
        length: usize,
        _: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        self.count("read");
        self.reads.fetch_add(1, Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.reads.load(Ordering::Relaxed) < self.reads_wanted.load(Ordering::Relaxed) {
            if Instant::now() > deadline {
                self.count("lonely read");
                break;
            }
            std::thread::yield_now();
        }
        out.clear();
        self.node(ino, |node| {
            let rest = node.bytes.get(offset as usize..).unwrap_or(&[]);
            out.extend_from_slice(&rest[..length.min(rest.len())]);
        })
    }

    fn write(&self, ino: Ino, offset: u64, data: &[u8], kill_suid: bool) -> Result<(), Error> {
        self.node(ino, |node| {
            let end = offset as usize + data.len();
            let length = node.bytes.len().max(end);
            node.bytes.resize(length, 0);
            node.bytes[offset as usize..end].copy_from_slice(data);
            node.pages.extend(offset / PAGE..(end as u64).div_ceil(PAGE));
            node.attr.size = node.bytes.len() as u64;
            if kill_suid {
                node.attr.permissions &= !0o6000;
            }
        })
    }

    fn copy_range(&self, from: Ino, at: u64, to: Ino, to_at: u64, n: u64) -> Result<u64, Error> {
        self.count("copy_range");
        let mut bytes = Vec::new();
        self.read(from, at, n as usize, false, &mut bytes)?;
        self.write(to, to_at, &bytes, false)?;
        Ok(bytes.len() as u64)
    }

    fn flush(&self, _: Ino, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn try_fsync(&self, ino: Ino, handle: u64, data_only: bool) -> Option<Result<(), Error>> {
        // Every other one has to wait.
        (self.counted("fsync") % 2 == 0).then(|| self.fsync(ino, handle, data_only))
    }

    fn fsync(&self, _: Ino, _: u64, data_only: bool) -> Result<(), Error> {
        self.count(if data_only { "fdatasync" } else { "fsync" });
        Ok(())
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        with_attr: bool,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<(), Error> {
        self.count("readdir");
        let mut list = vec![(b".".to_vec(), ino), (b"..".to_vec(), 1)];
        list.extend(self.node(ino, |node| node.entries.clone())?);
        for (at, (name, ino)) in list.iter().enumerate().skip(cookie as usize) {
            let attr = self.getattr(*ino)?;
            let attr_shown = (with_attr && at >= 2).then_some(attr);
            let cookie = at as u64 + 1;
            if !visit(&DirEntry { ino: *ino, kind: attr.kind, name, cookie, attr: attr_shown }) {
                break;
            }
        }
        Ok(())
    }

    fn fallocate(&self, ino: Ino, offset: u64, length: u64, what: Allocate) -> Result<(), Error> {
        assert_eq!(what, Allocate::Punch, "not used by the tests");
        self.node(ino, |node| {
            node.bytes[offset as usize..(offset + length) as usize].fill(0);
            node.pages.retain(|page| !(offset..offset + length).contains(&(page * PAGE)));
        })
    }

    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, Error> {
        self.count("seek");
        self.node(ino, |node| {
            let size = node.attr.size;
            let wanted = what == Seek::Data;
            let mut pages = offset / PAGE..size.div_ceil(PAGE);
            let page = pages.find(|page| node.pages.contains(page) == wanted);
            match page {
                Some(page) => Ok((page * PAGE).max(offset)),
                None if what == Seek::Hole && offset < size => Ok(size),
                None => Err(Error::NoSuchOffset),
            }
        })?
    }

    fn statfs(&self) -> Result<StatFs, Error> {
        Ok(StatFs { blocks: 100, blocks_free: 60, blocks_available: 50, files: 9, files_free: 3 })
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Error> {
        self.node(ino, |node| node.xattrs.get(name).cloned())?.ok_or(Error::NoAttribute)
    }

    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Result<(), Error> {
        self.node(ino, |node| {
            if how.create && node.xattrs.contains_key(name) {
                return Err(Error::Exists);
            }
            node.xattrs.insert(name.to_vec(), value.to_vec());
            Ok(())
        })?
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        self.node(ino, |node| {
            node.xattrs.keys().flat_map(|n| [n.as_slice(), b"\0"].concat()).collect()
        })
    }

    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), Error> {
        self.node(ino, |node| node.xattrs.remove(name))?.map(|_| ()).ok_or(Error::NoAttribute)
    }
}
