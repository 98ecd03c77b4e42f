//! Bit masks of the protocol, and what they mean to the tree.

use super::wire::abi::{self, init};
use crate::fs::{self, Allocate, Error, Seek};

/// What is asked of the kernel where it offers it (fs/fuse/inode.c, Linux 5.10 to 6.18):
///
/// - `WRITEBACK_CACHE`: writes land in the page cache; size, mtime and ctime are then the kernel's.
///   Not where nothing is written: with it the kernel trusts no count of blocks after a `close`,
///   not even of a file that was only read, and asks for attributes again (`fuse_flush`).
/// - `PARALLEL_DIROPS`: lookups and readdirs in one directory are not serialised.
/// - `DO_READDIRPLUS` with `READDIRPLUS_AUTO`: attributes come with the listing when a `stat` of
///   the entries follows.
/// - `CACHE_SYMLINKS`, `NO_OPENDIR_SUPPORT`: targets and listings stay in the page cache; ENOSYS to
///   OPENDIR means "cache every directory" and ends the requests.
/// - `ATOMIC_O_TRUNC`: `O_TRUNC` arrives with OPEN instead of as a SETATTR of its own.
/// - `HANDLE_KILLPRIV_V2` (5.11): we clear set-user-ID bits, so a write asks for no xattr first.
/// - `POSIX_ACL` with `DONT_MASK`: the kernel checks ACLs, the tree applies umask or default ACL.
/// - `EXPLICIT_INVAL_DATA`: cached pages go only when we say so. Only the kernel changes files.
/// - `ASYNC_DIO`: large `O_DIRECT` requests are sent in parallel.
/// - `SETXATTR_EXT` (5.14): who sets an ACL without being in the file's group is told of.
/// - `BIG_WRITES`, `ASYNC_READ`: WRITEs of more than a page, READs ahead of each other.
///
/// Not asked for: `AUTO_INVAL_DATA` (would drop pages when sizes change), `POSIX_LOCKS` and
/// `FLOCK_LOCKS` (locks are the kernel's), `NO_OPEN_SUPPORT` (handles report lost writes),
/// `EXPORT_SUPPORT` (no lookup of "..").
pub(super) fn wanted(read_only: bool) -> u64 {
    let always = init::ASYNC_READ
        | init::BIG_WRITES
        | init::PARALLEL_DIROPS
        | init::DO_READDIRPLUS
        | init::READDIRPLUS_AUTO
        | init::CACHE_SYMLINKS
        | init::NO_OPENDIR_SUPPORT
        | init::ATOMIC_O_TRUNC
        | init::HANDLE_KILLPRIV_V2
        | init::POSIX_ACL
        | init::DONT_MASK
        | init::EXPLICIT_INVAL_DATA
        | init::ASYNC_DIO
        | init::SETXATTR_EXT;
    if read_only { always } else { always | init::WRITEBACK_CACHE }
}

/// Flags of `renameat2(2)`. Unknown ones are refused with EINVAL, as the man page says.
pub(super) fn rename(flags: u32) -> Result<fs::RenameFlags, Error> {
    const KNOWN: u32 = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;
    if flags & !KNOWN != 0 {
        return Err(Error::Invalid("unknown flag of renameat2"));
    }
    Ok(fs::RenameFlags {
        no_replace: flags & libc::RENAME_NOREPLACE != 0,
        exchange: flags & libc::RENAME_EXCHANGE != 0,
        whiteout: flags & libc::RENAME_WHITEOUT != 0,
    })
}

/// Mode of `fallocate(2)`. COLLAPSE_RANGE, INSERT_RANGE and UNSHARE_RANGE are refused (the kernel
/// does not even send the first two); programs fall back on EOPNOTSUPP.
pub(super) fn allocate(mode: i32) -> Result<Allocate, Error> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    match mode {
        0 => Ok(Allocate::Reserve { keep_size: false }),
        KEEP => Ok(Allocate::Reserve { keep_size: true }),
        PUNCH => Ok(Allocate::Punch),
        ZERO => Ok(Allocate::Zero { keep_size: false }),
        ZERO_KEEP => Ok(Allocate::Zero { keep_size: true }),
        _ => Err(Error::NotSupported),
    }
}

/// `SEEK_DATA` or `SEEK_HOLE`; the kernel answers the other kinds itself.
pub(super) fn seek(whence: i32) -> Result<Seek, Error> {
    match whence {
        libc::SEEK_DATA => Ok(Seek::Data),
        libc::SEEK_HOLE => Ok(Seek::Hole),
        _ => Err(Error::Invalid("only SEEK_DATA and SEEK_HOLE reach a filesystem")),
    }
}

/// Refuses an offset or a length that no `off_t` holds. The kernel has done so before.
pub(super) fn off_t(value: u64) -> Result<(), Error> {
    match i64::try_from(value) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Invalid("an offset beyond what off_t holds")),
    }
}

/// Whether a WRITE must clear set-user-ID and set-group-ID.
pub(super) fn write_kills_suid(flags: u32) -> bool {
    flags & abi::WRITE_KILL_SUIDGID != 0
}

/// Whether the kernel writes back what somebody wrote before.
pub(super) fn writes_back(flags: u32) -> bool {
    flags & abi::WRITE_CACHE != 0
}

/// Whether open flags allow writing, so that dirty pages may exist until the handle is released.
pub(super) fn writable(open_flags: i32) -> bool {
    open_flags & libc::O_ACCMODE != libc::O_RDONLY
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each mode of fallocate, and the refusals.
    #[test]
    fn allocate_modes() {
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let punch = libc::FALLOC_FL_PUNCH_HOLE;
        let zero = libc::FALLOC_FL_ZERO_RANGE;
        let table = [
            (0, Some(Allocate::Reserve { keep_size: false })),
            (keep, Some(Allocate::Reserve { keep_size: true })),
            (punch | keep, Some(Allocate::Punch)),
            (punch, None),
            (zero, Some(Allocate::Zero { keep_size: false })),
            (zero | keep, Some(Allocate::Zero { keep_size: true })),
            (libc::FALLOC_FL_COLLAPSE_RANGE, None),
            (libc::FALLOC_FL_INSERT_RANGE, None),
            (libc::FALLOC_FL_UNSHARE_RANGE, None),
        ];
        for (mode, expected) in table {
            assert_eq!(allocate(mode).ok(), expected, "mode {mode:#x}");
        }
    }

    /// Flags of rename map one by one; an unknown one is refused.
    #[test]
    fn rename_flags() {
        let exchange = rename(libc::RENAME_EXCHANGE).unwrap();
        assert!(exchange.exchange && !exchange.no_replace && !exchange.whiteout);
        let both = rename(libc::RENAME_NOREPLACE | libc::RENAME_WHITEOUT).unwrap();
        assert!(both.no_replace && both.whiteout && !both.exchange);
        assert!(rename(8).is_err());
    }

    /// Whence and access mode.
    #[test]
    fn whence_and_access_mode() {
        assert_eq!(seek(libc::SEEK_DATA).ok(), Some(Seek::Data));
        assert_eq!(seek(libc::SEEK_HOLE).ok(), Some(Seek::Hole));
        assert!(seek(libc::SEEK_END).is_err());
        assert!(!writable(libc::O_RDONLY | libc::O_TRUNC));
        assert!(writable(libc::O_WRONLY | libc::O_APPEND) && writable(libc::O_RDWR));
    }
}
