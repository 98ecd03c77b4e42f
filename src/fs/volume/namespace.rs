//! Names that come and go: creating, linking, removing.

use super::attributes::attr;
use super::edit::{Edits, is_directory, kind, touch_directory};
use super::{Ino, ROOT, VolumeTree, failed};
use crate::format::record::{Entry, Inode};
use crate::fs::{Attr, Caller, Error, Kind, acl, acl::Acl, name};
use crate::volume::{Change, Volume};

const SET_GROUP_ID: u32 = libc::S_ISGID;

/// Creates the root directory of a new volume.
///
/// # Errors
/// [`Error::Exists`] if there is one; [`Error::NoSpace`]; [`Error::Io`].
pub fn make_root(volume: &Volume, uid: u32, gid: u32, mode: u32) -> Result<(), Error> {
    let _locks = volume.lock_inodes(&[ROOT]);
    if volume.inode(ROOT).map_err(failed(volume, "reading the attributes", ROOT))?.is_some() {
        return Err(Error::Exists);
    }
    let mut inode = blank(volume, libc::S_IFDIR | mode & 0o7777);
    inode = Inode { uid, gid, parent: ROOT, ..inode };
    let mut change =
        volume.change(false).map_err(failed(volume, "creating the root directory", ROOT))?;
    change.put_inode(ROOT, &inode);
    change.count_inodes(1);
    Ok(())
}

/// What is to be created.
struct Node<'a> {
    /// With the type.
    mode: u32,
    rdev: u32,
    /// Of a symbolic link.
    target: Option<&'a [u8]>,
}

/// A new inode, complete but for its number.
struct Born<'a> {
    inode: Inode,
    access: Option<Vec<u8>>,
    default: Option<Vec<u8>>,
    target: Option<&'a [u8]>,
}

impl Born<'_> {
    fn put(&self, change: &mut Change, ino: Ino) {
        change.put_inode(ino, &self.inode);
        if let Some(target) = self.target {
            change.put_inline(ino, target);
        }
        for (name, value) in [(acl::ACCESS, &self.access), (acl::DEFAULT, &self.default)] {
            if let Some(value) = value {
                change.put_xattr(ino, name, value, None);
            }
        }
    }
}

impl VolumeTree {
    pub(super) fn make_node(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> Result<Attr, Error> {
        let (mode, is_device) = match mode & libc::S_IFMT {
            0 => (mode | libc::S_IFREG, false),
            libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => (mode, false),
            libc::S_IFCHR | libc::S_IFBLK => (mode, true),
            _ => return Err(Error::Invalid("mknod makes neither directories nor links")),
        };
        let node = Node { mode, rdev: if is_device { rdev } else { 0 }, target: None };
        self.make(caller, parent, name, &node, |_| ()).map(|(attr, ())| attr)
    }

    pub(super) fn make_directory(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<Attr, Error> {
        let node = Node { mode: libc::S_IFDIR | mode & 0o7777, rdev: 0, target: None };
        self.make(caller, parent, name, &node, |_| ()).map(|(attr, ())| attr)
    }

    pub(super) fn make_symlink(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr, Error> {
        name::check_target(target)?;
        let node = Node { mode: libc::S_IFLNK | 0o777, rdev: 0, target: Some(target) };
        self.make(caller, parent, name, &node, |_| ()).map(|(attr, ())| attr)
    }

    pub(super) fn make_open_file(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<(Attr, u64), Error> {
        let node = Node { mode: libc::S_IFREG | mode & 0o7777, rdev: 0, target: None };
        self.make(caller, parent, name, &node, |ino| self.handles.open(ino))
    }

    pub(super) fn make_nameless_file(
        &self,
        caller: Caller,
        parent: Ino,
        mode: u32,
    ) -> Result<(Attr, u64), Error> {
        let directory = self.directory(parent)?;
        let node = Node { mode: libc::S_IFREG | mode & 0o7777, rdev: 0, target: None };
        let mut born = self.conceive(caller, parent, &directory, &node)?;
        born.inode.links = 0;
        let ino = self.volume.new_ino();
        let mut change =
            self.volume.change(false).map_err(self.failed("creating a file", parent))?;
        born.put(&mut change, ino);
        change.put_orphan(ino);
        change.count_inodes(1);
        drop(change);
        let handle = self.handles.open(ino);
        let unopened = self.handles.nameless(ino);
        debug_assert!(!unopened, "it was opened in the line before");
        Ok((attr(ino, &born.inode)?, handle))
    }

    /// Creates an inode and its entry. `opened` is called before anybody can see it.
    fn make<T>(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        node: &Node,
        opened: impl FnOnce(Ino) -> T,
    ) -> Result<(Attr, T), Error> {
        name::check(name)?;
        let _locks = self.volume.lock_inodes(&[parent]);
        let mut edits = Edits::default();
        let directory = *edits.load_directory(self, parent)?;
        if self.entry(parent, name)?.is_some() {
            return Err(Error::Exists);
        }
        let born = self.conceive(caller, parent, &directory, node)?;
        let (ino, cookie) = (self.volume.new_ino(), self.volume.new_cookie());
        let stored = self.volume.check_new(ino, parent, cookie);
        stored.map_err(self.failed("adding an entry", parent))?;
        let kind = kind(&born.inode).ok_or(Error::Invalid("a mode without a type"))?;
        let subdirectories = i32::from(kind == Kind::Directory);
        touch_directory(edits.of(parent), self.volume.now(), 1, subdirectories)?;
        let attr = attr(ino, &born.inode)?;

        let mut change =
            self.volume.change(false).map_err(self.failed("adding an entry", parent))?;
        let result = opened(ino);
        born.put(&mut change, ino);
        change.put_entry(parent, name, &Entry { ino, cookie, kind: kind.as_type() });
        edits.put(&mut change);
        change.count_inodes(1);
        Ok((attr, result))
    }

    /// Owner, mode and ACLs of a new inode: the group is the directory's if that has set-group-ID,
    /// and either the umask or the directory's default ACL takes rights away, as `open(2)`,
    /// `inode(7)` and `acl(5)` say.
    fn conceive<'a>(
        &self,
        caller: Caller,
        parent: Ino,
        directory: &Inode,
        node: &Node<'a>,
    ) -> Result<Born<'a>, Error> {
        let mut inode = blank(&self.volume, node.mode);
        inode.rdev = node.rdev;
        inode.uid = caller.uid;
        inode.gid = caller.gid;
        let is_directory = kind(&inode) == Some(Kind::Directory);
        if is_directory {
            inode.parent = parent;
        }
        if directory.mode & SET_GROUP_ID != 0 {
            inode.gid = directory.gid;
            inode.mode |= if is_directory { SET_GROUP_ID } else { 0 };
        }
        let mut born = Born { inode, access: None, default: None, target: node.target };
        if let Some(target) = node.target {
            born.inode.size = target.len() as u64;
            return Ok(born);
        }
        let Some(default) = self.default_acl(parent, directory)? else {
            born.inode.mode &= !(caller.umask & 0o777);
            return Ok(born);
        };
        let (access, mode) = default.inherit(born.inode.mode);
        born.inode.mode = mode;
        born.access = (!access.is_minimal()).then(|| access.encode());
        born.default = is_directory.then(|| default.encode());
        born.inode.has_xattrs = born.access.is_some() || born.default.is_some();
        Ok(born)
    }

    fn default_acl(&self, ino: Ino, directory: &Inode) -> Result<Option<Acl>, Error> {
        let Some(bytes) = self.xattr(ino, directory, acl::DEFAULT)? else { return Ok(None) };
        Acl::decode(&bytes).map_err(|error| Error::Io {
            what: format!("the default ACL of inode {ino} is malformed"),
            source: Some(Box::new(error)),
        })
    }

    pub(super) fn add_link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        name::check(name)?;
        // Keeps an inode without a name from being discarded meanwhile.
        self.handles.open(ino);
        let linked = self.add_link_to_kept(ino, parent, name);
        if self.handles.close(ino) {
            self.discard(ino);
        }
        linked
    }

    fn add_link_to_kept(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, Error> {
        let _locks = self.volume.lock_inodes(&[ino, parent]);
        let mut edits = Edits::default();
        let inode = edits.load(self, ino)?;
        let kind = kind(inode).ok_or(Error::Stale)?;
        if kind == Kind::Directory {
            return Err(Error::NotPermitted);
        }
        let is_nameless = inode.links == 0;
        if is_nameless && !self.handles.is_nameless(ino) {
            return Err(Error::NotFound);
        }
        let now = self.volume.now();
        inode.links = inode.links.checked_add(1).ok_or(Error::TooManyLinks)?;
        inode.ctime = now;
        let attr = attr(ino, inode)?;
        edits.load_directory(self, parent)?;
        if self.entry(parent, name)?.is_some() {
            return Err(Error::Exists);
        }
        let cookie = self.volume.new_cookie();
        touch_directory(edits.of(parent), now, 1, 0)?;

        let mut change =
            self.volume.change(false).map_err(self.failed("adding an entry", parent))?;
        edits.put(&mut change);
        change.put_entry(parent, name, &Entry { ino, cookie, kind: kind.as_type() });
        if is_nameless {
            change.delete_orphan(ino);
        }
        drop(change);
        self.handles.named(ino);
        Ok(attr)
    }

    /// `unlink(2)`, or `rmdir(2)` if `directory`.
    pub(super) fn remove(&self, parent: Ino, name: &[u8], directory: bool) -> Result<(), Error> {
        name::check(name)?;
        let (ino, discard) = loop {
            let Some(entry) = self.entry(parent, name)? else {
                self.directory(parent)?;
                return Err(Error::NotFound);
            };
            match (directory, is_directory(entry.kind)) {
                (true, false) => return Err(Error::NotDirectory),
                (false, true) => return Err(Error::IsDirectory),
                _ => {}
            }
            let _locks = self.volume.lock_inodes(&[parent, entry.ino]);
            if self.entry(parent, name)? == Some(entry) {
                break (entry.ino, self.remove_locked(parent, name, &entry)?);
            }
        };
        if discard {
            self.discard(ino);
        }
        Ok(())
    }

    /// Returns whether the inode is to be discarded once the locks are released.
    fn remove_locked(&self, parent: Ino, name: &[u8], entry: &Entry) -> Result<bool, Error> {
        let mut edits = Edits::default();
        edits.load_directory(self, parent)?;
        let now = self.volume.now();
        let is_gone = lose_name(edits.load(self, entry.ino)?, now)?;
        let subdirectories = -i32::from(is_directory(entry.kind));
        touch_directory(edits.of(parent), now, -1, subdirectories)?;

        let mut change =
            self.volume.change(true).map_err(self.failed("removing an entry", parent))?;
        change.delete_entry(parent, name, entry.cookie);
        edits.put(&mut change);
        if is_gone {
            change.put_orphan(entry.ino);
        }
        drop(change);
        Ok(is_gone && self.handles.nameless(entry.ino))
    }
}

/// A name of the inode goes; returns whether it was the last.
///
/// # Errors
/// [`Error::NotEmpty`] for a directory with entries.
pub(super) fn lose_name(
    inode: &mut Inode,
    now: crate::format::record::Timestamp,
) -> Result<bool, Error> {
    if kind(inode) == Some(Kind::Directory) {
        if inode.size != 0 {
            return Err(Error::NotEmpty);
        }
        inode.links = 0;
    } else {
        inode.links = inode.links.saturating_sub(1);
    }
    inode.ctime = now;
    Ok(inode.links == 0)
}

/// A new inode that belongs to nobody yet.
pub(super) fn blank(volume: &Volume, mode: u32) -> Inode {
    let now = volume.now();
    Inode {
        mode,
        links: if mode & libc::S_IFMT == libc::S_IFDIR { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        paged: false,
        has_xattrs: false,
        size: 0,
        pages: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        parent: 0,
    }
}

/// An inode for tests of what looks at one record only.
#[cfg(test)]
pub(super) fn test_inode() -> Inode {
    let zero = crate::format::record::Timestamp::default();
    Inode {
        mode: libc::S_IFREG | 0o644,
        links: 1,
        uid: 1,
        gid: 2,
        rdev: 0,
        paged: false,
        has_xattrs: false,
        size: 0,
        pages: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
        btime: zero,
        parent: 0,
    }
}
