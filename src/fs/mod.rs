//! Filesystem semantics: what POSIX callers observe. No FUSE protocol, no bytes on disk.

pub mod acl;
pub mod attr;
pub mod error;
pub mod graft;
pub mod name;
pub mod package;
pub mod swap;
pub mod volume;

pub use attr::{Attr, Kind, SetAttr, SetXattr, Time};
pub use error::Error;

/// An inode number; never reused within a volume. The root directory is 1.
pub type Ino = u64;

/// Who asks, for ownership of what is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// `umask(2)` of the caller; applied here, because default ACLs replace it.
    pub umask: u32,
}

/// One entry that [`Tree::readdir`] reports.
pub struct DirEntry<'a> {
    /// The entry's inode.
    pub ino: Ino,
    /// Its type.
    pub kind: Kind,
    /// Its name, 1 to 255 bytes.
    pub name: &'a [u8],
    /// Pass it to the next [`Tree::readdir`] to go on after this entry. Stable while entries come
    /// and go.
    pub cookie: u64,
    /// Attributes, when they were asked for.
    pub attr: Option<Attr>,
}

/// Flags of [`Tree::rename`], as in `renameat2(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// `RENAME_NOREPLACE`
    pub no_replace: bool,
    /// `RENAME_EXCHANGE`
    pub exchange: bool,
    /// `RENAME_WHITEOUT`
    pub whiteout: bool,
}

/// What [`Tree::fallocate`] does with the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Reserve space; grow the file if `keep_size` is not set.
    Reserve {
        /// `FALLOC_FL_KEEP_SIZE`
        keep_size: bool,
    },
    /// Make it a hole (`FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`).
    Punch,
    /// Make it read as zeros (`FALLOC_FL_ZERO_RANGE`).
    Zero {
        /// `FALLOC_FL_KEEP_SIZE`
        keep_size: bool,
    },
}

/// Numbers for `statvfs(3)`; blocks are 4096 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Size of the filesystem.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks for unprivileged callers.
    pub blocks_available: u64,
    /// Inodes in use plus free.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
}

/// Where [`Tree::seek`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// `SEEK_DATA`
    Data,
    /// `SEEK_HOLE`
    Hole,
}

/// A filesystem. Every method may be called from several threads at once; errors carry their errno.
///
/// Permissions (modes, owners, ACLs, sticky bits) are the kernel's to check
/// (`default_permissions`); what a method checks itself is what the kernel cannot know.
pub trait Tree: Send + Sync {
    /// Whether callers are served. Operations look themselves; this is for a write of a caller,
    /// which [`Tree::write`] cannot tell from one of the kernel that a caller was answered before.
    fn admit(&self) -> Result<(), Error> {
        Ok(())
    }
    /// Whether the kernel may keep names of `parent`, and their absence, without asking again.
    fn keeps_names(&self, parent: Ino) -> bool {
        let _ = parent;
        true
    }
    /// Whether it never changes, and has no extended attributes: then nobody needs to be asked
    /// before a file is opened, nor again about what was answered once.
    fn is_image(&self) -> bool {
        false
    }
    /// Whether nobody can write to an inode, so that opening it to do so is refused.
    fn is_read_only(&self, ino: Ino) -> bool {
        let _ = ino;
        false
    }
    /// Whether reading from `offset` on takes long enough that others should be served meanwhile.
    fn read_is_long(&self, ino: Ino, offset: u64) -> bool {
        let _ = (ino, offset);
        false
    }
    /// The entry `name` of directory `parent`.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr, Error>;
    /// The kernel dropped its last reference to an inode.
    fn forget(&self, ino: Ino);
    /// Attributes of an inode.
    fn getattr(&self, ino: Ino) -> Result<Attr, Error>;
    /// Changes attributes, `size` included; returns the new ones.
    fn setattr(&self, ino: Ino, change: &SetAttr) -> Result<Attr, Error>;
    /// The target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>, Error>;
    /// Creates a regular file, device, FIFO or socket. `mode` includes the type; `rdev` is 0 but
    /// for devices.
    fn mknod(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        rdev: u32,
    ) -> Result<Attr, Error>;
    /// Creates a directory.
    fn mkdir(&self, caller: Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr, Error>;
    /// Creates a symbolic link.
    fn symlink(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attr, Error>;
    /// Creates a hard link to `ino`.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr, Error>;
    /// Removes a name that is not a directory's. The inode lives on while it is open.
    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), Error>;
    /// Removes an empty directory.
    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), Error>;
    /// Moves `name` of `parent` to `new_name` of `new_parent`.
    fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), Error>;
    /// Opens a file and returns a handle. `truncate` is `O_TRUNC`, `kill_suid` says that
    /// set-user-ID and set-group-ID must go if it truncates.
    fn open(&self, ino: Ino, truncate: bool, kill_suid: bool) -> Result<u64, Error>;
    /// Somebody reads `ino`, or opens it to read: its access time may have to be set
    /// (`relatime`). `is_changing`: others may write to it at the same time, so that its times here
    /// may not be the latest. Returns whether the access time is another now.
    fn accessed(&self, ino: Ino, is_changing: bool) -> Result<bool, Error> {
        let _ = (ino, is_changing);
        Ok(false)
    }
    /// Creates a regular file and opens it.
    fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<(Attr, u64), Error>;
    /// Creates an open file without a name (`O_TMPFILE`).
    fn tmpfile(&self, caller: Caller, parent: Ino, mode: u32) -> Result<(Attr, u64), Error>;
    /// Closes a handle.
    fn release(&self, ino: Ino, handle: u64);
    /// Reads up to `length` bytes into `buffer` (cleared first); short only at the end of the file.
    /// `is_access`: as if [`Tree::accessed`] were called, too.
    fn read(
        &self,
        ino: Ino,
        offset: u64,
        length: usize,
        is_access: bool,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error>;
    /// As [`Tree::read`], into the beginning of `buffer`; returns how many bytes that were.
    fn read_into(
        &self,
        ino: Ino,
        offset: u64,
        is_access: bool,
        buffer: &mut [u8],
    ) -> Result<usize, Error> {
        let mut bytes = Vec::new();
        self.read(ino, offset, buffer.len(), is_access, &mut bytes)?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        Ok(length)
    }
    /// Writes all of `data`. `kill_suid`: clear set-user-ID and set-group-ID.
    fn write(&self, ino: Ino, offset: u64, data: &[u8], kill_suid: bool) -> Result<(), Error>;
    /// Copies a range between files of this filesystem; returns the bytes copied.
    fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        length: u64,
    ) -> Result<u64, Error>;
    /// Reports, once per handle, that something written through it was lost.
    fn flush(&self, ino: Ino, handle: u64) -> Result<(), Error>;
    /// Returns when everything about `ino` is durable.
    fn fsync(&self, ino: Ino, handle: u64, data_only: bool) -> Result<(), Error>;
    /// As [`Tree::fsync`], if that takes no longer than one flush of the disk with little to write;
    /// `None`, and nothing was done, if it would have to wait for more.
    fn try_fsync(&self, ino: Ino, handle: u64, data_only: bool) -> Option<Result<(), Error>>;
    /// Returns when everything handed over so far is durable.
    fn sync(&self) -> Result<(), Error>;
    /// Reports entries after `cookie` (0: from the start, `.` and `..` included) until `visit`
    /// returns false. `with_attr` asks for attributes.
    fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        with_attr: bool,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Result<(), Error>;
    /// Allocates, punches or zeros a range.
    fn fallocate(&self, ino: Ino, offset: u64, length: u64, what: Allocate) -> Result<(), Error>;
    /// The next data or hole at or after `offset`; the caller has made the kernel write back first.
    fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<u64, Error>;
    /// Free and used space.
    fn statfs(&self) -> Result<StatFs, Error>;
    /// Value of an extended attribute.
    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, Error>;
    /// Sets an extended attribute.
    fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Result<(), Error>;
    /// Names, each followed by a NUL byte.
    fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, Error>;
    /// Removes an extended attribute.
    fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<(), Error>;
}
