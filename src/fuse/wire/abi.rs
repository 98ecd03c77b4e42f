//! Numbers of the FUSE protocol: include/uapi/linux/fuse.h, versions 7.31 (Linux 5.4) to 7.45
//! (Linux 6.18). Everything is in the byte order of the machine.

/// The protocol.
pub const MAJOR: u32 = 7;
/// The newest version that is spoken; the kernel and we use the smaller of both.
pub const MINOR: u32 = 45;
/// The oldest version that is spoken. Since then nothing that is sent both ways has changed, but
/// where a flag of INIT says so.
pub const MINOR_MIN: u32 = 31;

/// The inode number of the root.
pub const ROOT: u64 = 1;
/// Bytes before every request.
pub const IN_HEADER_BYTES: usize = 40;
/// Bytes before every reply.
pub const OUT_HEADER_BYTES: usize = 16;
/// Bytes between the header of a WRITE and what is written.
pub const WRITE_IN_BYTES: usize = 40;
/// The smallest buffer that the kernel lets requests be read into.
pub const READ_BUFFER_BYTES_MIN: usize = 8192;

macro_rules! opcodes {
    ($($name:ident = $number:literal,)+) => {
        /// What a request asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Opcode { $($name = $number,)+ }

        impl Opcode {
            /// All of them.
            #[cfg(test)]
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The operation of that number, if it is known here.
            pub fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

opcodes! {
    Lookup = 1,
    Forget = 2,
    Getattr = 3,
    Setattr = 4,
    Readlink = 5,
    Symlink = 6,
    Mknod = 8,
    Mkdir = 9,
    Unlink = 10,
    Rmdir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    Statfs = 17,
    Release = 18,
    Fsync = 20,
    Setxattr = 21,
    Getxattr = 22,
    Listxattr = 23,
    Removexattr = 24,
    Flush = 25,
    Init = 26,
    Opendir = 27,
    Readdir = 28,
    Releasedir = 29,
    Fsyncdir = 30,
    Getlk = 31,
    Setlk = 32,
    Setlkw = 33,
    Access = 34,
    Create = 35,
    Interrupt = 36,
    Bmap = 37,
    Destroy = 38,
    Ioctl = 39,
    Poll = 40,
    NotifyReply = 41,
    BatchForget = 42,
    Fallocate = 43,
    Readdirplus = 44,
    Rename2 = 45,
    Lseek = 46,
    CopyFileRange = 47,
    Syncfs = 50,
    Tmpfile = 51,
    Statx = 52,
    CopyFileRange64 = 53,
}

/// Flags of INIT, both ways; those from bit 32 on travel in a field of their own.
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    /// The upper half of the flags counts.
    pub const EXT: u64 = 1 << 30;
    /// Requests come by io_uring.
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// Which fields of SETATTR count.
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// The caller of OPEN and CREATE has no CAP_FSETID.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// In a reply to OPEN: what is cached of the file stays.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// The kernel writes back what somebody wrote before.
pub const WRITE_CACHE: u32 = 1 << 0;
/// The writer has no CAP_FSETID.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// FSYNC of the content alone.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// Who sets an ACL is not in the file's group.
pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;

/// Notifications, in the field where replies have their error.
pub mod notify {
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers lead back to what they stand for; others to nothing.
    #[test]
    fn numbers_of_operations() {
        for &opcode in Opcode::ALL {
            assert_eq!(Opcode::from_number(opcode as u32), Some(opcode));
        }
        for number in [0, 7, 19, 48, 49, 54, 4096, u32::MAX] {
            assert_eq!(Opcode::from_number(number), None, "{number}");
        }
    }
}
