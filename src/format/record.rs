//! Keys and values of the tree's records. Keys start with a table byte, then the big-endian number
//! of the inode that owns the record, so that everything of one table and inode is adjacent.

use smallvec::SmallVec;

/// A value or key that breaks the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0} record")]
pub struct RecordError(pub &'static str);

/// Tables, in key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Table {
    /// `()` -> [`Counters`]
    Counters = 0x01,
    /// `ino` -> [`Inode`]
    Inode = 0x10,
    /// `ino, part u16` -> bytes: contents of a small file, target of a symlink.
    Inline = 0x11,
    /// `parent, name` -> [`Entry`]
    Entry = 0x12,
    /// `parent, cookie` -> `ino u64, kind u8, name`
    Cookie = 0x13,
    /// `ino, name, 0x00, part u16` -> bytes
    Xattr = 0x14,
    /// `ino, chunk u64` -> `epoch u32, wrapped DEK`
    Dek = 0x15,
    /// `ino, run u64` -> [`super::map::PageMap`]
    PageMap = 0x16,
    /// `segment u64, piece u8` -> 1 KiB bitmap, one bit a slot, set when in use
    Space = 0x20,
    /// `ino` -> empty: an inode without a name; its records go once it is closed
    Orphan = 0x30,
    /// `ino, from u64` -> `to u64`: a range of runs that is dead
    Cut = 0x31,
}

/// The key of a record. To look one up allocates nothing, unless it has a name of more than 31
/// bytes.
pub type Key = SmallVec<[u8; 40]>;

/// Builds a key: table, then the owner, then `rest`.
pub fn key(table: Table, owner: u64, rest: &[u8]) -> Key {
    let mut key = Key::with_capacity(9 + rest.len());
    key.push(table as u8);
    key.extend_from_slice(&owner.to_be_bytes());
    key.extend_from_slice(rest);
    key
}

/// Number that owns the record of that key (0 for tables without an owner).
pub fn owner(key: &[u8]) -> u64 {
    key.get(1..9).map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().expect("8 bytes")))
}

/// Seconds and nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// 0..1_000_000_000
    pub nanoseconds: u32,
}

/// Attributes of an inode.
///
/// ```text
/// offset size field
///      0    4 mode: type and permission bits as in stat(2)
///      4    4 links
///      8    4 uid
///     12    4 gid
///     16    4 rdev
///     20    4 flags: bit 0 content is in pages, bit 1 the inode has xattrs
///     24    8 size in bytes (for a directory: number of entries)
///     32    8 pages: allocated pages of content
///     40   12 atime: seconds i64, nanoseconds u32
///     52   12 mtime
///     64   12 ctime
///     76   12 btime
///     88    8 parent: of a directory, else 0
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Type and permission bits as in `stat(2)`.
    pub mode: u32,
    /// Hard links; for a directory 2 plus its subdirectories.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number.
    pub rdev: u32,
    /// Whether content is in pages rather than inline.
    pub paged: bool,
    /// Whether the inode may have extended attributes.
    pub has_xattrs: bool,
    /// Size in bytes; for a directory the number of its entries.
    pub size: u64,
    /// Allocated pages of content.
    pub pages: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Parent of a directory.
    pub parent: u64,
}

impl Inode {
    /// Encoded length in bytes.
    pub const LEN: usize = 96;
    const FLAG_PAGED: u32 = 1;
    const FLAG_XATTRS: u32 = 2;

    /// Encodes as in the table above.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let flags = if self.paged { Self::FLAG_PAGED } else { 0 }
            | if self.has_xattrs { Self::FLAG_XATTRS } else { 0 };
        let words = [self.mode, self.links, self.uid, self.gid, self.rdev, flags];
        for (at, word) in words.into_iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes[24..32].copy_from_slice(&self.size.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.pages.to_le_bytes());
        for (at, time) in [self.atime, self.mtime, self.ctime, self.btime].into_iter().enumerate() {
            let at = 40 + at * 12;
            bytes[at..at + 8].copy_from_slice(&time.seconds.to_le_bytes());
            bytes[at + 8..at + 12].copy_from_slice(&time.nanoseconds.to_le_bytes());
        }
        bytes[88..96].copy_from_slice(&self.parent.to_le_bytes());
        bytes
    }

    /// Decodes.
    ///
    /// # Errors
    /// [`RecordError`] for another length, unknown flags or impossible nanoseconds.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().map_err(|_| RecordError("inode"))?;
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let time = |at: usize| Timestamp {
            seconds: i64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes")),
            nanoseconds: word(at + 8),
        };
        let flags = word(20);
        let times = [time(40), time(52), time(64), time(76)];
        if flags & !(Self::FLAG_PAGED | Self::FLAG_XATTRS) != 0
            || times.iter().any(|time| time.nanoseconds >= 1_000_000_000)
        {
            return Err(RecordError("inode"));
        }
        let [atime, mtime, ctime, btime] = times;
        Ok(Self {
            mode: word(0),
            links: word(4),
            uid: word(8),
            gid: word(12),
            rdev: word(16),
            paged: flags & Self::FLAG_PAGED != 0,
            has_xattrs: flags & Self::FLAG_XATTRS != 0,
            size: long(24),
            pages: long(32),
            atime,
            mtime,
            ctime,
            btime,
            parent: long(88),
        })
    }
}

/// What a name refers to.
///
/// ```text
/// offset size field
///      0    8 ino
///      8    8 cookie
///     16    1 kind: the type bits of the mode, shifted right by 12
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The inode.
    pub ino: u64,
    /// Position in the directory; never reused within it.
    pub cookie: u64,
    /// `mode >> 12`, as `d_type`.
    pub kind: u8,
}

impl Entry {
    /// Encoded length in bytes.
    pub const LEN: usize = 17;

    /// Encodes as in the table above.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&self.ino.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_le_bytes());
        bytes[16] = self.kind;
        bytes
    }

    /// Decodes.
    ///
    /// # Errors
    /// [`RecordError`] for another length.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().map_err(|_| RecordError("entry"))?;
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        Ok(Self { ino: long(0), cookie: long(8), kind: bytes[16] })
    }
}

/// Volume-wide counters.
///
/// ```text
/// offset size field
///      0    8 next inode number
///      8    8 next cookie
///     16    8 inodes in use
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// The next inode number to give out.
    pub next_ino: u64,
    /// The next directory cookie to give out.
    pub next_cookie: u64,
    /// Inodes in use.
    pub inodes: u64,
}

impl Counters {
    /// Encoded length in bytes.
    pub const LEN: usize = 24;

    /// Encodes as in the table above.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&self.next_ino.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.next_cookie.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.inodes.to_le_bytes());
        bytes
    }

    /// Decodes.
    ///
    /// # Errors
    /// [`RecordError`] for another length.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().map_err(|_| RecordError("counters"))?;
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        Ok(Self { next_ino: long(0), next_cookie: long(8), inodes: long(16) })
    }
}
