//! Attributes and times, both ways.

use super::wire::request::SetTime;
use super::wire::{Attributes, request};
use crate::fs::attr::TimeOrNow;
use crate::fs::{Attr, Ino, Kind, SetAttr, Time};

/// The preferred size of I/O that `stat(2)` reports, in bytes.
const IO_BYTES: u32 = 4096;
/// Where the type is in a mode.
const TYPE_SHIFT: u32 = 12;

/// What `stat(2)` will show.
pub(super) fn attributes(attr: &Attr) -> Attributes {
    let time = |time: Time| (time.seconds, time.nanoseconds);
    Attributes {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        mode: mode(attr.kind) | u32::from(attr.permissions),
        links: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        block_bytes: IO_BYTES,
    }
}

/// Attributes of an inode of which only the type is known. Inode 0 stands for a name that does not
/// exist, and is how the protocol says "remember that".
pub(super) fn bare(ino: Ino, kind: Kind) -> Attributes {
    Attributes { ino, mode: mode(kind), block_bytes: IO_BYTES, ..Attributes::default() }
}

/// The type, as modes have it.
fn mode(kind: Kind) -> u32 {
    u32::from(kind.as_type()) << TYPE_SHIFT
}

/// What SETATTR changes. `kill_suid`: also take set-user-ID bits away.
pub(super) fn change(asked: &request::Setattr, kill_suid: bool) -> SetAttr {
    let at = |(seconds, nanoseconds)| Time { seconds, nanoseconds };
    let time = |set| match set {
        SetTime::Now => TimeOrNow::Now,
        SetTime::At(seconds, nanoseconds) => TimeOrNow::At(at((seconds, nanoseconds))),
    };
    SetAttr {
        permissions: asked.mode.map(|mode| (mode & 0o7777) as u16),
        uid: asked.uid,
        gid: asked.gid,
        size: asked.size,
        atime: asked.atime.map(time),
        mtime: asked.mtime.map(time),
        ctime: asked.ctime.map(at),
        kill_suid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every type maps to its own.
    #[test]
    fn types_map_one_to_one() {
        let table = [
            (Kind::File, libc::S_IFREG),
            (Kind::Directory, libc::S_IFDIR),
            (Kind::Symlink, libc::S_IFLNK),
            (Kind::Fifo, libc::S_IFIFO),
            (Kind::Socket, libc::S_IFSOCK),
            (Kind::CharDevice, libc::S_IFCHR),
            (Kind::BlockDevice, libc::S_IFBLK),
        ];
        for (kind, expected) in table {
            assert_eq!(bare(7, kind).mode, expected);
        }
    }

    /// Of a mode the permissions are taken; times are taken as they are.
    #[test]
    fn changes() {
        let asked = request::Setattr {
            mode: Some(libc::S_IFREG | 0o4755),
            atime: Some(SetTime::At(i64::MIN, 300_000_000)),
            mtime: Some(SetTime::Now),
            ctime: Some((-5, 1)),
            ..request::Setattr::default()
        };
        let change = change(&asked, true);
        let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
        assert_eq!(change.permissions, Some(0o4755));
        assert_eq!(change.atime, Some(TimeOrNow::At(time(i64::MIN, 300_000_000))));
        assert_eq!((change.mtime, change.ctime), (Some(TimeOrNow::Now), Some(time(-5, 1))));
        assert!(change.kill_suid && change.size.is_none() && change.uid.is_none());
    }
}
