//! A package as a [`Tree`]: read-only, and the same for as long as it is mounted.

use std::sync::Arc;

use super::attr::{Attr, Kind, Time};
use super::{
    Allocate, Caller, DirEntry, Error, Ino, RenameFlags, Seek, SetAttr, SetXattr, StatFs, Tree,
};
use crate::package::{Content, Index, Node, NodeId, Package, ReadError};

/// Bytes that are decompressed while an event loop waits; more is for somebody else to do.
const QUICK_BYTES: u64 = 4 << 20;
/// Positions before the first entry: `.` and `..`.
const DOTS: u64 = 2;

/// Serves a [`Package`].
pub struct PackageTree {
    package: Arc<Package>,
    uid: u32,
    gid: u32,
}

impl PackageTree {
    /// All of it belongs to one user and one group; who wrote it does not count here.
    pub fn new(package: Arc<Package>, uid: u32, gid: u32) -> Self {
        Self { package, uid, gid }
    }

    fn index(&self) -> &Index {
        self.package.index()
    }

    fn node(&self, ino: Ino) -> Result<(NodeId, &Node), Error> {
        let id = ino.checked_sub(1).and_then(|id| NodeId::try_from(id).ok()).ok_or(Error::Stale)?;
        Ok((id, self.index().get(id).ok_or(Error::Stale)?))
    }

    fn directory(&self, ino: Ino) -> Result<NodeId, Error> {
        let (id, node) = self.node(ino)?;
        match node.content {
            Content::Directory { .. } => Ok(id),
            Content::File(_) | Content::Symlink(_) => Err(Error::NotDirectory),
        }
    }

    fn attr(&self, id: NodeId) -> Attr {
        let node = self.index().node(id);
        let (links, size) = match node.content {
            Content::Directory { directories, .. } => (2 + directories, 0),
            Content::File(data) | Content::Symlink(data) => (1, data.size),
        };
        let time = Time { seconds: node.mtime.seconds, nanoseconds: node.mtime.nanoseconds };
        Attr {
            ino: ino(id),
            kind: kind(node),
            permissions: node.permissions,
            links,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
        }
    }
}

fn ino(id: NodeId) -> Ino {
    Ino::from(id) + 1
}

fn kind(node: &Node) -> Kind {
    match node.content {
        Content::Directory { .. } => Kind::Directory,
        Content::File(_) => Kind::File,
        Content::Symlink(_) => Kind::Symlink,
    }
}

impl Tree for PackageTree {
    fn is_image(&self) -> bool {
        true
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        let parent = self.directory(parent)?;
        self.index().lookup(parent, name).map(|id| self.attr(id)).ok_or(Error::NotFound)
    }

    fn forget(&self, _: Ino) {}

    fn getattr(&self, ino: Ino) -> Result<Attr, Error> {
        Ok(self.attr(self.node(ino)?.0))
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error> {
        let (id, _) = self.node(ino)?;
        let target = self.index().target(id).ok_or(Error::Invalid("not a symbolic link"))?;
        Ok(target.to_vec())
    }

    fn open(&self, ino: Ino, truncate: bool, _: bool) -> Result<u64, Error> {
        let (_, node) = self.node(ino)?;
        match node.content {
            Content::Directory { .. } => Err(Error::IsDirectory),
            _ if truncate => Err(Error::ReadOnly),
            Content::File(_) | Content::Symlink(_) => Ok(0),
        }
    }

    fn release(&self, _: Ino, _: u64) {}

    fn read(
        &self,
        ino: Ino,
        offset: u64,
        length: usize,
        _: bool,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        buffer.clear();
        let (id, node) = self.node(ino)?;
        if let Content::Directory { .. } = node.content {
            return Err(Error::IsDirectory);
        }
        self.package.read(id, offset, length, buffer).map_err(|source| self.failed(id, source))
    }

    fn read_is_long(&self, ino: Ino, offset: u64) -> bool {
        self.node(ino).is_ok_and(|(id, _)| self.package.distance(id, offset) > QUICK_BYTES)
    }

    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        with_attr: bool,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<(), Error> {
        let directory = self.directory(ino)?;
        let mut show = |id: NodeId, name: &[u8], cookie: u64| {
            let kind = kind(self.index().node(id));
            let attr = with_attr.then(|| self.attr(id));
            visit(&DirEntry { ino: self::ino(id), kind, name, cookie, attr })
        };
        let parent = self.index().node(directory).parent;
        if cookie < 1 && !show(directory, b".", 1) {
            return Ok(());
        }
        if cookie < DOTS && !show(parent, b"..", DOTS) {
            return Ok(());
        }
        let skipped = usize::try_from(cookie.saturating_sub(DOTS)).unwrap_or(usize::MAX);
        let entries = self.index().entries(directory).iter().enumerate().skip(skipped);
        for (position, id) in entries {
            if !show(*id, self.index().name(*id), position as u64 + 1 + DOTS) {
                break;
            }
        }
        Ok(())
    }

    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, Error> {
        let size = self.getattr(ino)?.size;
        match what {
            _ if offset >= size => Err(Error::NoSuchOffset),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(size),
        }
    }

    fn statfs(&self) -> Result<StatFs, Error> {
        let blocks = self.index().bytes().div_ceil(4096);
        let files = self.index().len() as u64;
        Ok(StatFs { blocks, files, ..StatFs::default() })
    }

    fn getxattr(&self, _: Ino, _: &[u8]) -> Result<Vec<u8>, Error> {
        Err(Error::NoAttribute)
    }

    fn listxattr(&self, _: Ino) -> Result<Vec<u8>, Error> {
        Ok(Vec::new())
    }

    fn flush(&self, _: Ino, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn fsync(&self, _: Ino, _: u64, _: bool) -> Result<(), Error> {
        Ok(())
    }

    fn try_fsync(&self, _: Ino, _: u64, _: bool) -> Option<Result<(), Error>> {
        Some(Ok(()))
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    fn setattr(&self, _: Ino, _: &SetAttr) -> Result<Attr, Error> {
        Err(Error::ReadOnly)
    }

    fn mknod(&self, _: Caller, _: Ino, _: &[u8], _: u32, _: u32) -> Result<Attr, Error> {
        Err(Error::ReadOnly)
    }

    fn mkdir(&self, _: Caller, _: Ino, _: &[u8], _: u32) -> Result<Attr, Error> {
        Err(Error::ReadOnly)
    }

    fn symlink(&self, _: Caller, _: Ino, _: &[u8], _: &[u8]) -> Result<Attr, Error> {
        Err(Error::ReadOnly)
    }

    fn link(&self, _: Ino, _: Ino, _: &[u8]) -> Result<Attr, Error> {
        Err(Error::ReadOnly)
    }

    fn unlink(&self, _: Ino, _: &[u8]) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn rmdir(&self, _: Ino, _: &[u8]) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn rename(&self, _: Ino, _: &[u8], _: Ino, _: &[u8], _: RenameFlags) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn create(&self, _: Caller, _: Ino, _: &[u8], _: u32) -> Result<(Attr, u64), Error> {
        Err(Error::ReadOnly)
    }

    fn tmpfile(&self, _: Caller, _: Ino, _: u32) -> Result<(Attr, u64), Error> {
        Err(Error::ReadOnly)
    }

    fn write(&self, _: Ino, _: u64, _: &[u8], _: bool) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn copy_range(&self, _: Ino, _: u64, _: Ino, _: u64, _: u64) -> Result<u64, Error> {
        Err(Error::ReadOnly)
    }

    fn fallocate(&self, _: Ino, _: u64, _: u64, _: Allocate) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn setxattr(&self, _: Ino, _: &[u8], _: &[u8], _: SetXattr) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    fn removexattr(&self, _: Ino, _: &[u8]) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }
}

impl PackageTree {
    fn failed(&self, id: NodeId, source: ReadError) -> Error {
        let what = format!("{} of the package cannot be read", self.index().path(id));
        Error::Io { what, source: Some(Box::new(source)) }
    }
}
