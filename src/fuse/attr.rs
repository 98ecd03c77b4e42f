//! Attributes and times, both ways.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use crate::fs::attr::TimeOrNow;
use crate::fs::{Attr, Ino, Kind, Time};

/// The preferred size of I/O that `stat(2)` reports, in bytes.
const IO_BYTES: u32 = 4096;

/// What `stat(2)` will show.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: attr.permissions,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: IO_BYTES,
        flags: 0,
    }
}

/// Attributes of an inode of which only the type is known. Inode 0 stands for a name that does not
/// exist, and is how the protocol says "remember that".
pub(super) fn bare_attr(ino: Ino, kind: Kind) -> FileAttr {
    let epoch = Time::default();
    file_attr(&Attr {
        ino,
        kind,
        permissions: 0,
        links: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        btime: epoch,
    })
}

/// The type, in fuser's words.
pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

/// A time for a reply. Every `i64` of seconds can be represented.
fn system_time(time: Time) -> SystemTime {
    let whole = if time.seconds < 0 {
        UNIX_EPOCH.checked_sub(Duration::from_secs(time.seconds.unsigned_abs()))
    } else {
        UNIX_EPOCH.checked_add(Duration::from_secs(time.seconds.unsigned_abs()))
    };
    let nanoseconds = Duration::from_nanos(u64::from(time.nanoseconds));
    whole.and_then(|whole| whole.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
}

/// A time from a request.
///
/// fuser reads the kernel's (-5 s, +300 ms), which is -4.7 s, as -5.3 s (`fuser::time`, marked
/// there). So before the epoch the distance is taken apart as fuser put it together: whole seconds
/// are the kernel's negated, and the rest is the kernel's nanoseconds as they were.
pub(super) fn time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time {
            seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: after.subsec_nanos(),
        },
        Err(before) => {
            let distance = before.duration();
            Time {
                seconds: 0_i64.checked_sub_unsigned(distance.as_secs()).unwrap_or(i64::MIN),
                nanoseconds: distance.subsec_nanos(),
            }
        }
    }
}

/// A time to set, from a request.
pub(super) fn time_or_now(value: fuser::TimeOrNow) -> TimeOrNow {
    match value {
        fuser::TimeOrNow::SpecificTime(at) => TimeOrNow::At(time(at)),
        fuser::TimeOrNow::Now => TimeOrNow::Now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser makes of the kernel's pair (`fuser::time::system_time_from_time`).
    fn as_fuser_reads(seconds: i64, nanoseconds: u32) -> SystemTime {
        if seconds >= 0 {
            UNIX_EPOCH + Duration::new(seconds.unsigned_abs(), nanoseconds)
        } else {
            UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), nanoseconds)
        }
    }

    const TIMES: [(i64, u32); 8] = [
        (0, 0),
        (0, 1),
        (1_800_000_000, 999_999_999),
        (i64::MAX, 0),
        (-1, 0),
        (-5, 300_000_000),
        (-1, 999_999_999),
        (i64::MIN, 0),
    ];

    /// Any time that the kernel sends arrives as the same seconds and nanoseconds.
    #[test]
    fn request_times_survive_fuser() {
        for (seconds, nanoseconds) in TIMES {
            let expected = Time { seconds, nanoseconds };
            assert_eq!(time(as_fuser_reads(seconds, nanoseconds)), expected);
        }
    }

    /// Reply times are the point in time that the pair means: nanoseconds count forwards.
    #[test]
    fn reply_times_count_nanoseconds_forwards() {
        let minus_4_7 = system_time(Time { seconds: -5, nanoseconds: 300_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(minus_4_7).unwrap(), Duration::from_millis(4700));
        for (seconds, nanoseconds) in TIMES {
            let at = system_time(Time { seconds, nanoseconds });
            let whole = system_time(Time { seconds, nanoseconds: 0 });
            assert_eq!(at.duration_since(whole).unwrap().subsec_nanos(), nanoseconds);
        }
    }

    /// Every type maps to its own.
    #[test]
    fn types_map_one_to_one() {
        let table = [
            (Kind::File, FileType::RegularFile),
            (Kind::Directory, FileType::Directory),
            (Kind::Symlink, FileType::Symlink),
            (Kind::Fifo, FileType::NamedPipe),
            (Kind::Socket, FileType::Socket),
            (Kind::CharDevice, FileType::CharDevice),
            (Kind::BlockDevice, FileType::BlockDevice),
        ];
        for (kind, expected) in table {
            assert_eq!(file_type(kind), expected);
        }
    }
}
