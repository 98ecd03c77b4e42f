//! Requests of the kernel: any bytes become a [`Request`] or a refusal.

use super::abi::{self, IN_HEADER_BYTES, Opcode, fattr};

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// There are fewer bytes than its fields need.
    #[error("it is too short")]
    Short,
    /// A name does not end.
    #[error("a name has no end")]
    Name,
    /// A count or length says more than there is.
    #[error("it says that it is longer than it is")]
    Length,
}

/// What comes before every request.
///
/// ```text
/// offset size field
///      0    4 length, with this header
///      4    4 opcode
///      8    8 unique: names the request in its reply
///     16    8 node: the inode that it is about
///     24    4 user
///     28    4 group
///     32    4 process
///     36    2 length of extensions
///     38    2 unused
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Header {
    pub length: u32,
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
    /// The thread that asks; 0 if it is the kernel of its own.
    pub pid: u32,
}

impl Header {
    /// Takes a header apart.
    ///
    /// # Errors
    /// There are not enough bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes.get(..IN_HEADER_BYTES).ok_or(Malformed::Short)?);
        Ok(Self {
            length: fields.u32()?,
            opcode: fields.u32()?,
            unique: fields.u64()?,
            node: fields.u64()?,
            uid: fields.u32()?,
            gid: fields.u32()?,
            pid: fields.u32()?,
        })
    }
}

/// What was agreed on that changes how requests look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dialect {
    /// SETXATTR has flags of its own.
    pub setxattr_ext: bool,
    /// OPEN and SETATTR say whether set-user-ID bits must go.
    pub kill_suidgid: bool,
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request<'a> {
    /// Who asks, and about which inode.
    pub header: Header,
    /// What is asked.
    pub body: Body<'a>,
}

/// A time that SETATTR sets: seconds and nanoseconds, or now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SetTime {
    Now,
    At(i64, u32),
}

/// What SETATTR changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Setattr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub ctime: Option<(i64, u32)>,
    pub kill_suid: bool,
}

/// A file that CREATE and TMPFILE make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Create<'a> {
    pub name: &'a [u8],
    pub flags: i32,
    pub mode: u32,
    pub umask: u32,
}

/// A range that is copied; from is in the inode of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Copy {
    pub from_offset: u64,
    pub to: u64,
    pub to_offset: u64,
    pub length: u64,
}

/// What a request asks for. Names come without their NUL.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Body<'a> {
    Lookup {
        name: &'a [u8],
    },
    Forget {
        count: u64,
    },
    BatchForget {
        list: Forgets<'a>,
    },
    Getattr,
    Setattr(Setattr),
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        name: &'a [u8],
        mode: u32,
        rdev: u32,
        umask: u32,
    },
    Mkdir {
        name: &'a [u8],
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_parent: u64,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        ino: u64,
        name: &'a [u8],
    },
    Open {
        flags: i32,
        kill_suid: bool,
    },
    Read {
        offset: u64,
        size: u32,
        flags: i32,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        flags: u32,
    },
    Statfs,
    Release {
        handle: u64,
        flags: i32,
    },
    Fsync {
        handle: u64,
        data_only: bool,
    },
    Fsyncdir {
        handle: u64,
        data_only: bool,
    },
    Setxattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: i32,
        kill_sgid: bool,
    },
    Getxattr {
        name: &'a [u8],
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    Readdir {
        offset: u64,
        size: u32,
    },
    Readdirplus {
        offset: u64,
        size: u32,
    },
    Create(Create<'a>),
    Tmpfile(Create<'a>),
    Fallocate {
        offset: u64,
        length: u64,
        mode: i32,
    },
    Lseek {
        offset: u64,
        whence: i32,
    },
    CopyFileRange(Copy),
    CopyFileRange64(Copy),
    Interrupt,
    Destroy,
    /// One that nothing more needs to be known of than what it is.
    Other(Opcode),
    /// One of a version that is not spoken here.
    Unknown,
}

/// Inodes that are forgotten, and how many references of each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    /// Bytes of each.
    const ENTRY_BYTES: usize = 16;

    /// Inode and number of references.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.chunks_exact(Self::ENTRY_BYTES).filter_map(|entry| {
            let mut fields = Fields(entry);
            Some((fields.u64().ok()?, fields.u64().ok()?))
        })
    }
}

impl<'a> Request<'a> {
    /// Takes a request apart that is in one piece, as `/dev/fuse` gives it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(bytes: &'a [u8], dialect: Dialect) -> Result<Self, Malformed> {
        let header = Header::decode(bytes)?;
        if header.length as usize != bytes.len() {
            return Err(Malformed::Length);
        }
        let rest = &bytes[IN_HEADER_BYTES..];
        let fixed = fixed_bytes(header.opcode, dialect);
        if rest.len() < fixed {
            return Err(Malformed::Short);
        }
        let (fixed, variable) = rest.split_at(fixed);
        Self::assemble(header, fixed, variable, dialect)
    }

    /// Puts a request together from its header, the fields that every one of its kind has, and
    /// what varies: names and data.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn assemble(
        header: Header,
        fixed: &'a [u8],
        variable: &'a [u8],
        dialect: Dialect,
    ) -> Result<Self, Malformed> {
        let body = match Opcode::from_number(header.opcode) {
            Some(opcode) => body(opcode, Fields(fixed), Rest(variable), dialect)?,
            None => Body::Unknown,
        };
        Ok(Self { header, body })
    }
}

/// Bytes of the fields that every request of a kind has, after its header.
pub fn fixed_bytes(opcode: u32, dialect: Dialect) -> usize {
    use Opcode as O;
    let Some(opcode) = Opcode::from_number(opcode) else { return 0 };
    match opcode {
        O::Lookup | O::Readlink | O::Symlink | O::Unlink | O::Rmdir | O::Statfs => 0,
        O::Removexattr | O::Init | O::Destroy | O::NotifyReply => 0,
        O::Forget | O::BatchForget | O::Mkdir | O::Rename | O::Link | O::Open => 8,
        O::Getxattr | O::Listxattr | O::Opendir | O::Access | O::Interrupt | O::Syncfs => 8,
        O::Setxattr if !dialect.setxattr_ext => 8,
        O::Setxattr | O::Getattr | O::Mknod | O::Rename2 | O::Create | O::Tmpfile => 16,
        O::Fsync | O::Fsyncdir | O::Bmap => 16,
        O::Release | O::Releasedir | O::Flush | O::Poll | O::Lseek | O::Statx => 24,
        O::Fallocate | O::Ioctl => 32,
        O::Read | O::Readdir | O::Readdirplus | O::Write => 40,
        O::Getlk | O::Setlk | O::Setlkw => 48,
        O::CopyFileRange | O::CopyFileRange64 => 56,
        O::Setattr => 88,
    }
}

fn body<'a>(
    opcode: Opcode,
    fixed: Fields<'a>,
    rest: Rest<'a>,
    dialect: Dialect,
) -> Result<Body<'a>, Malformed> {
    use Opcode as O;
    Ok(match opcode {
        O::Lookup | O::Symlink | O::Mknod | O::Mkdir | O::Unlink | O::Rmdir => {
            names(opcode, fixed, rest)?
        }
        O::Rename | O::Rename2 | O::Link | O::Create | O::Tmpfile => names(opcode, fixed, rest)?,
        O::Setxattr | O::Getxattr | O::Listxattr | O::Removexattr => {
            xattrs(opcode, fixed, rest, dialect)?
        }
        O::Setattr => Body::Setattr(setattr(fixed)?),
        O::Open | O::Read | O::Write | O::Release | O::Fsync | O::Fsyncdir => {
            files(opcode, fixed, rest)?
        }
        O::Readdir | O::Readdirplus | O::Fallocate | O::Lseek => files(opcode, fixed, rest)?,
        O::CopyFileRange => Body::CopyFileRange(copy(fixed)?),
        O::CopyFileRange64 => Body::CopyFileRange64(copy(fixed)?),
        O::Forget => Body::Forget { count: { fixed }.u64()? },
        O::BatchForget => {
            let bytes = ({ fixed }.u32()? as usize).checked_mul(Forgets::ENTRY_BYTES);
            let list = bytes.and_then(|bytes| rest.0.get(..bytes)).ok_or(Malformed::Length)?;
            Body::BatchForget { list: Forgets(list) }
        }
        O::Getattr => Body::Getattr,
        O::Readlink => Body::Readlink,
        O::Statfs => Body::Statfs,
        O::Interrupt => Body::Interrupt,
        O::Destroy => Body::Destroy,
        O::Init | O::Flush | O::Opendir | O::Releasedir | O::Access | O::Bmap => {
            Body::Other(opcode)
        }
        O::Getlk | O::Setlk | O::Setlkw | O::Ioctl | O::Poll => Body::Other(opcode),
        O::NotifyReply | O::Syncfs | O::Statx => Body::Other(opcode),
    })
}

/// Requests with names.
fn names<'a>(
    opcode: Opcode,
    mut fixed: Fields<'a>,
    mut rest: Rest<'a>,
) -> Result<Body<'a>, Malformed> {
    Ok(match opcode {
        Opcode::Symlink => Body::Symlink { name: rest.name()?, target: rest.name()? },
        Opcode::Mknod => Body::Mknod {
            mode: fixed.u32()?,
            rdev: fixed.u32()?,
            umask: fixed.u32()?,
            name: rest.name()?,
        },
        Opcode::Mkdir => {
            Body::Mkdir { mode: fixed.u32()?, umask: fixed.u32()?, name: rest.name()? }
        }
        Opcode::Unlink => Body::Unlink { name: rest.name()? },
        Opcode::Rmdir => Body::Rmdir { name: rest.name()? },
        Opcode::Rename | Opcode::Rename2 => Body::Rename {
            new_parent: fixed.u64()?,
            flags: if opcode == Opcode::Rename2 { fixed.u32()? } else { 0 },
            name: rest.name()?,
            new_name: rest.name()?,
        },
        Opcode::Link => Body::Link { ino: fixed.u64()?, name: rest.name()? },
        Opcode::Create | Opcode::Tmpfile => {
            let create = Create {
                flags: fixed.i32()?,
                mode: fixed.u32()?,
                umask: fixed.u32()?,
                name: rest.name()?,
            };
            if opcode == Opcode::Create { Body::Create(create) } else { Body::Tmpfile(create) }
        }
        _ => Body::Lookup { name: rest.name()? },
    })
}

/// Requests about contents, and lists of a directory.
fn files<'a>(opcode: Opcode, mut fixed: Fields<'a>, rest: Rest<'a>) -> Result<Body<'a>, Malformed> {
    Ok(match opcode {
        Opcode::Open => Body::Open {
            flags: fixed.i32()?,
            kill_suid: fixed.u32()? & abi::OPEN_KILL_SUIDGID != 0,
        },
        Opcode::Read | Opcode::Readdir | Opcode::Readdirplus => {
            fixed.skip(8)?;
            let (offset, size) = (fixed.u64()?, fixed.u32()?);
            fixed.skip(12)?;
            let flags = fixed.i32()?;
            match opcode {
                Opcode::Read => Body::Read { offset, size, flags },
                Opcode::Readdir => Body::Readdir { offset, size },
                _ => Body::Readdirplus { offset, size },
            }
        }
        Opcode::Write => {
            fixed.skip(8)?;
            let (offset, size, flags) = (fixed.u64()?, fixed.u32()?, fixed.u32()?);
            let data = rest.0.get(..size as usize).ok_or(Malformed::Length)?;
            Body::Write { offset, data, flags }
        }
        Opcode::Release => Body::Release { handle: fixed.u64()?, flags: fixed.i32()? },
        Opcode::Fallocate => {
            fixed.skip(8)?;
            Body::Fallocate { offset: fixed.u64()?, length: fixed.u64()?, mode: fixed.i32()? }
        }
        Opcode::Lseek => {
            fixed.skip(8)?;
            Body::Lseek { offset: fixed.u64()?, whence: fixed.i32()? }
        }
        _ => {
            let (handle, flags) = (fixed.u64()?, fixed.u32()?);
            let data_only = flags & abi::FSYNC_FDATASYNC != 0;
            if opcode == Opcode::Fsync {
                Body::Fsync { handle, data_only }
            } else {
                Body::Fsyncdir { handle, data_only }
            }
        }
    })
}

fn xattrs<'a>(
    opcode: Opcode,
    mut fixed: Fields<'a>,
    mut rest: Rest<'a>,
    dialect: Dialect,
) -> Result<Body<'a>, Malformed> {
    Ok(match opcode {
        Opcode::Setxattr => {
            let (size, flags) = (fixed.u32()?, fixed.i32()?);
            let more = if dialect.setxattr_ext { fixed.u32()? } else { 0 };
            let name = rest.name()?;
            let value = rest.0.get(..size as usize).ok_or(Malformed::Length)?;
            let kill_sgid = more & abi::SETXATTR_ACL_KILL_SGID != 0;
            Body::Setxattr { name, value, flags, kill_sgid }
        }
        Opcode::Getxattr => Body::Getxattr { size: fixed.u32()?, name: rest.name()? },
        Opcode::Listxattr => Body::Listxattr { size: fixed.u32()? },
        _ => Body::Removexattr { name: rest.name()? },
    })
}

/// ```text
/// offset size field
///      0    4 which fields count
///      8    8 handle
///     16    8 size
///     24    8 lock owner
///     32    8 atime, seconds; mtime and ctime follow
///     56    4 atime, nanoseconds; mtime and ctime follow
///     68    4 mode
///     76    4 user
///     80    4 group
/// ```
fn setattr(mut fixed: Fields) -> Result<Setattr, Malformed> {
    let valid = fixed.u32()?;
    fixed.skip(4 + 8)?;
    let size = fixed.u64()?;
    fixed.skip(8)?;
    let seconds = [fixed.i64()?, fixed.i64()?, fixed.i64()?];
    let nanoseconds = [fixed.u32()?, fixed.u32()?, fixed.u32()?];
    let mode = fixed.u32()?;
    fixed.skip(4)?;
    let (uid, gid) = (fixed.u32()?, fixed.u32()?);
    let has = |flag| valid & flag != 0;
    let time = |index: usize, at, now| {
        let given = SetTime::At(seconds[index], nanoseconds[index]);
        has(at).then_some(if has(now) { SetTime::Now } else { given })
    };
    Ok(Setattr {
        mode: has(fattr::MODE).then_some(mode),
        uid: has(fattr::UID).then_some(uid),
        gid: has(fattr::GID).then_some(gid),
        size: has(fattr::SIZE).then_some(size),
        atime: time(0, fattr::ATIME, fattr::ATIME_NOW),
        mtime: time(1, fattr::MTIME, fattr::MTIME_NOW),
        ctime: has(fattr::CTIME).then_some((seconds[2], nanoseconds[2])),
        kill_suid: has(fattr::KILL_SUIDGID),
    })
}

fn copy(mut fixed: Fields) -> Result<Copy, Malformed> {
    fixed.skip(8)?;
    let (from_offset, to) = (fixed.u64()?, fixed.u64()?);
    fixed.skip(8)?;
    Ok(Copy { from_offset, to, to_offset: fixed.u64()?, length: fixed.u64()? })
}

/// Fields of fixed size, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(*field)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_ne_bytes)
    }

    fn i32(&mut self) -> Result<i32, Malformed> {
        self.take().map(i32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_ne_bytes)
    }

    fn i64(&mut self) -> Result<i64, Malformed> {
        self.take().map(i64::from_ne_bytes)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), Malformed> {
        self.0 = self.0.get(bytes..).ok_or(Malformed::Short)?;
        Ok(())
    }
}

/// What varies: names that end with NUL, then data.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn name(&mut self) -> Result<&'a [u8], Malformed> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Malformed::Name)?;
        let name = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Ok(name)
    }
}
