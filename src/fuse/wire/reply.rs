//! Replies to the kernel, byte for byte.

use std::time::Duration;

use super::abi::OUT_HEADER_BYTES;

/// What `stat(2)` will show, as the protocol says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Attributes {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    /// Seconds and nanoseconds, which count forwards also before 1970.
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    /// Type and permissions.
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    /// The preferred size of I/O.
    pub block_bytes: u32,
}

/// A name that was found or made. Inode 0: there is none, and the kernel may remember that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How long the name may be kept, and the attributes too.
    pub ttl: Duration,
    /// What has that name.
    pub attributes: Attributes,
}

/// Numbers for `statvfs(3)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Statfs {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_bytes: u32,
    pub name_bytes_max: u32,
}

/// `struct fuse_entry_out`.
pub const ENTRY_BYTES: usize = 128;
/// `struct fuse_attr_out`.
pub const ATTR_BYTES: usize = 104;
/// `struct fuse_open_out`.
pub const OPEN_BYTES: usize = 16;
/// What CREATE and TMPFILE are answered with.
pub const CREATED_BYTES: usize = ENTRY_BYTES + OPEN_BYTES;
/// `struct fuse_statfs_out`.
pub const STATFS_BYTES: usize = 80;
/// `struct fuse_dirent` without the name.
const DIRENT_BYTES: usize = 24;
/// Records of a listing begin at multiples of this.
const ALIGNMENT: usize = 8;

/// Fields one after the other, in the place of a struct of `N` bytes.
struct Fields<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Fields<N> {
    fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    fn put(mut self, field: &[u8]) -> Self {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
        self
    }

    fn u64(self, value: u64) -> Self {
        self.put(&value.to_ne_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.put(&value.to_ne_bytes())
    }

    /// The struct; what was not put is zero.
    fn done(self) -> [u8; N] {
        self.bytes
    }
}

/// `struct fuse_out_header`: length with itself, error (negative errno, or what is notified of),
/// and which request is answered.
pub fn header(unique: u64, error: i32, payload_bytes: usize) -> [u8; OUT_HEADER_BYTES] {
    // Nothing that is sent comes near 4 GiB.
    let length = u32::try_from(OUT_HEADER_BYTES + payload_bytes).unwrap_or(u32::MAX);
    Fields::new().u32(length).put(&error.to_ne_bytes()).u64(unique).done()
}

/// `struct fuse_entry_out`. Inode numbers are never reused, so one generation does.
pub fn entry(entry: &Entry) -> [u8; ENTRY_BYTES] {
    let (seconds, nanoseconds) = (entry.ttl.as_secs(), entry.ttl.subsec_nanos());
    let fields = Fields::new()
        .u64(entry.attributes.ino)
        .u64(0)
        .u64(seconds)
        .u64(seconds)
        .u32(nanoseconds)
        .u32(nanoseconds);
    attributes(fields, &entry.attributes).done()
}

/// `struct fuse_attr_out`.
pub fn attr(ttl: Duration, attr: &Attributes) -> [u8; ATTR_BYTES] {
    let fields = Fields::new().u64(ttl.as_secs()).u32(ttl.subsec_nanos()).u32(0);
    attributes(fields, attr).done()
}

/// `struct fuse_attr`, 88 bytes.
fn attributes<const N: usize>(fields: Fields<N>, attr: &Attributes) -> Fields<N> {
    fields
        .u64(attr.ino)
        .u64(attr.size)
        .u64(attr.blocks)
        .u64(attr.atime.0 as u64)
        .u64(attr.mtime.0 as u64)
        .u64(attr.ctime.0 as u64)
        .u32(attr.atime.1)
        .u32(attr.mtime.1)
        .u32(attr.ctime.1)
        .u32(attr.mode)
        .u32(attr.links)
        .u32(attr.uid)
        .u32(attr.gid)
        .u32(attr.rdev)
        .u32(attr.block_bytes)
        .u32(0)
}

/// `struct fuse_open_out`.
pub fn open(handle: u64, flags: u32) -> [u8; OPEN_BYTES] {
    Fields::new().u64(handle).u32(flags).done()
}

/// What CREATE and TMPFILE are answered with: an entry, and its handle.
pub fn created(made: &Entry, handle: u64, flags: u32) -> [u8; CREATED_BYTES] {
    Fields::new().put(&entry(made)).put(&open(handle, flags)).done()
}

/// `struct fuse_write_out`, and `struct fuse_getxattr_out`.
pub fn size(bytes: u32) -> [u8; 8] {
    Fields::new().u32(bytes).done()
}

/// `struct fuse_lseek_out`, and `struct fuse_copy_file_range_out`.
pub fn offset(offset: u64) -> [u8; 8] {
    Fields::new().u64(offset).done()
}

/// `struct fuse_statfs_out`.
pub fn statfs(space: &Statfs) -> [u8; STATFS_BYTES] {
    Fields::new()
        .u64(space.blocks)
        .u64(space.blocks_free)
        .u64(space.blocks_available)
        .u64(space.files)
        .u64(space.files_free)
        .u32(space.block_bytes)
        .u32(space.name_bytes_max)
        .u32(space.block_bytes)
        .done()
}

/// `struct fuse_notify_inval_inode_out`.
pub fn inval_inode(ino: u64, offset: i64, length: i64) -> [u8; 24] {
    Fields::new().u64(ino).put(&offset.to_ne_bytes()).put(&length.to_ne_bytes()).done()
}

/// `struct fuse_notify_inval_entry_out`; the name and a NUL follow.
pub fn inval_entry(parent: u64, name_bytes: u32) -> [u8; 16] {
    Fields::new().u64(parent).u32(name_bytes).done()
}

/// One name of a directory.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    /// Its inode.
    pub ino: u64,
    /// Where to go on after it.
    pub cookie: u64,
    /// Its type, as `d_type`.
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
}

/// The list that READDIR and READDIRPLUS are answered with, built in a buffer that is lent.
pub struct Listing<'a> {
    buffer: &'a mut Vec<u8>,
    bytes_max: usize,
}

impl<'a> Listing<'a> {
    /// An empty list that may get so many bytes long.
    pub fn new(buffer: &'a mut Vec<u8>, bytes_max: usize) -> Self {
        buffer.clear();
        Self { buffer, bytes_max }
    }

    /// Adds a name; whether it fitted.
    pub fn push(&mut self, name: &Name<'_>) -> bool {
        self.add(&[], name)
    }

    /// Adds a name with what is known of it; whether it fitted.
    pub fn push_with(&mut self, found: &Entry, name: &Name<'_>) -> bool {
        self.add(&entry(found), name)
    }

    fn add(&mut self, before: &[u8], name: &Name<'_>) -> bool {
        let bytes = before.len() + DIRENT_BYTES + name.name.len();
        let padded = bytes.next_multiple_of(ALIGNMENT);
        let Ok(name_bytes) = u32::try_from(name.name.len()) else { return false };
        if self.buffer.len() + padded > self.bytes_max {
            return false;
        }
        let dirent: [u8; DIRENT_BYTES] = Fields::new()
            .u64(name.ino)
            .u64(name.cookie)
            .u32(name_bytes)
            .u32(u32::from(name.kind))
            .done();
        self.buffer.extend_from_slice(before);
        self.buffer.extend_from_slice(&dirent);
        self.buffer.extend_from_slice(name.name);
        self.buffer.resize(self.buffer.len() + padded - bytes, 0);
        true
    }

    /// What was added.
    pub fn bytes(&self) -> &[u8] {
        self.buffer
    }
}
