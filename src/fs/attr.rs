//! Attributes of an inode, as `stat(2)` reports them.

use super::Ino;

/// Seconds and nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// 0..1_000_000_000
    pub nanoseconds: u32,
}

/// Type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

impl Kind {
    /// The type that directory entries (`d_type`) and modes (`mode >> 12`) give as a number;
    /// `None` for a number that is no type.
    pub fn from_type(number: u8) -> Option<Self> {
        Some(match number {
            libc::DT_REG => Self::File,
            libc::DT_DIR => Self::Directory,
            libc::DT_LNK => Self::Symlink,
            libc::DT_FIFO => Self::Fifo,
            libc::DT_SOCK => Self::Socket,
            libc::DT_CHR => Self::CharDevice,
            libc::DT_BLK => Self::BlockDevice,
            _ => return None,
        })
    }

    /// The number that [`Kind::from_type`] takes.
    pub fn as_type(self) -> u8 {
        match self {
            Self::File => libc::DT_REG,
            Self::Directory => libc::DT_DIR,
            Self::Symlink => libc::DT_LNK,
            Self::Fifo => libc::DT_FIFO,
            Self::Socket => libc::DT_SOCK,
            Self::CharDevice => libc::DT_CHR,
            Self::BlockDevice => libc::DT_BLK,
        }
    }
}

/// What `stat(2)` reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Type.
    pub kind: Kind,
    /// Permission bits, with set-user-ID, set-group-ID and sticky: 0..=0o7777.
    pub permissions: u16,
    /// Hard links.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device, else 0.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Creation.
    pub btime: Time,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TimeOrNow {
    At(Time),
    Now,
}

/// What [`super::Tree::setattr`] changes; `None` leaves a field as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// New permission bits, 0..=0o7777.
    pub permissions: Option<u16>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size in bytes.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<TimeOrNow>,
    /// New modification time.
    pub mtime: Option<TimeOrNow>,
    /// New change time (the kernel sends it with the writeback cache).
    pub ctime: Option<Time>,
    /// Clear set-user-ID and set-group-ID as `chown(2)` and `truncate(2)` demand.
    pub kill_suid: bool,
}

/// How an extended attribute is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetXattr {
    /// `XATTR_CREATE`: it is not there yet.
    pub create: bool,
    /// `XATTR_REPLACE`: it is there.
    pub replace: bool,
    /// Clear set-group-ID with an access ACL: who sets it is not in the file's group, and has not
    /// `CAP_FSETID` (acl(5), chmod(2)).
    pub kill_sgid: bool,
}
