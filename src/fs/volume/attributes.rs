//! Attributes: from records, and changing them.

use super::edit::kind;
use super::{Ino, VolumeTree};
use crate::format::PAGE_BYTES;
use crate::format::record::{Inode, Timestamp};
use crate::fs::attr::TimeOrNow;
use crate::fs::{Attr, Error, Kind, SetAttr, Time, acl, acl::Acl};

/// Unit of `st_blocks` in bytes.
const BLOCK_BYTES: u64 = 512;
const PAGE_BLOCKS: u64 = PAGE_BYTES as u64 / BLOCK_BYTES;
const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const GROUP_EXECUTE: u32 = 0o010;
const SECOND_NS: u32 = 1_000_000_000;

/// What `stat(2)` reports of a record.
pub(super) fn attr(ino: Ino, inode: &Inode) -> Result<Attr, Error> {
    let kind = kind(inode).ok_or_else(|| Error::Io {
        what: format!("inode {ino} is of an unknown type, mode {:o}", inode.mode),
        source: None,
    })?;
    let blocks = match kind {
        Kind::File | Kind::Symlink if !inode.paged => inode.size.div_ceil(BLOCK_BYTES),
        _ => inode.pages.saturating_mul(PAGE_BLOCKS),
    };
    Ok(Attr {
        ino,
        kind,
        permissions: (inode.mode & 0o7777) as u16,
        links: inode.links,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        size: inode.size,
        blocks,
        atime: time(inode.atime),
        mtime: time(inode.mtime),
        ctime: time(inode.ctime),
        btime: time(inode.btime),
    })
}

/// Clears what lets a program run as its owner: always set-user-ID, and set-group-ID if the group
/// may execute (without that it once meant mandatory locking), as `chown(2)` says.
pub(super) fn kill_suid(inode: &mut Inode) {
    inode.mode &= !SET_UID;
    if inode.mode & GROUP_EXECUTE != 0 {
        inode.mode &= !SET_GID;
    }
}

impl VolumeTree {
    pub(super) fn set_attributes(&self, ino: Ino, set: &SetAttr) -> Result<Attr, Error> {
        check_times(set)?;
        if is_nothing(set) {
            return self.attr(ino, &self.inode(ino)?);
        }
        if set.kill_suid {
            self.drop_capability(ino)?;
        }
        if set.atime.is_some() {
            self.accesses.forget(ino);
        }
        if let Some(size) = set.size {
            let now = self.volume.now();
            // An ACL, which has to follow the mode, is not known there: it takes a second step.
            let has_acl = set.permissions.is_some() && self.inode(ino)?.has_xattrs;
            let first = SetAttr { permissions: set.permissions.filter(|_| !has_acl), ..*set };
            let inode = self.resize(ino, size, &|inode| {
                inode.mtime = now;
                apply(inode, &first, now);
            })?;
            if !has_acl {
                return self.attr(ino, &inode);
            }
        }
        self.set_record(ino, set)
    }

    /// Everything but the size.
    fn set_record(&self, ino: Ino, set: &SetAttr) -> Result<Attr, Error> {
        let _locks = self.volume.lock_inodes(&[ino]);
        let mut inode = self.inode(ino)?;
        let now = self.volume.now();
        apply(&mut inode, set, now);
        let list = if set.permissions.is_some() { self.access_acl(ino, &inode)? } else { None };
        let mut change =
            self.volume.change(true).map_err(self.failed("changing attributes", ino))?;
        if let Some((mut list, old_bytes)) = list {
            list.chmod(inode.mode);
            change.put_xattr(ino, acl::ACCESS, &list.encode(), Some(old_bytes));
        }
        change.put_inode(ino, &inode);
        drop(change);
        self.attr(ino, &inode)
    }

    /// What `stat(2)` reports of a record, with the blocks that `fallocate(2)` got it.
    pub(super) fn attr(&self, ino: Ino, inode: &Inode) -> Result<Attr, Error> {
        let mut attr = attr(ino, inode)?;
        if attr.kind == Kind::File {
            let promised = self.volume.promised_pages(ino).saturating_mul(PAGE_BLOCKS);
            attr.blocks = attr.blocks.saturating_add(promised);
        }
        Ok(attr)
    }

    /// The access ACL of an inode and the length of its encoding.
    fn access_acl(&self, ino: Ino, inode: &Inode) -> Result<Option<(Acl, usize)>, Error> {
        let Some(bytes) = self.xattr(ino, inode, acl::ACCESS)? else { return Ok(None) };
        let list = Acl::decode(&bytes).map_err(|error| Error::Io {
            what: format!("the access ACL of inode {ino} is malformed"),
            source: Some(Box::new(error)),
        })?;
        Ok(list.map(|list| (list, bytes.len())))
    }

    /// Puts a record with new times; for changes of a file that are not in its bytes.
    pub(super) fn touch(&self, ino: Ino, edit: &dyn Fn(&mut Inode)) -> Result<(), Error> {
        let _locks = self.volume.lock_inodes(&[ino]);
        let mut inode = self.inode(ino)?;
        edit(&mut inode);
        let mut change =
            self.volume.change(true).map_err(self.failed("changing attributes", ino))?;
        change.put_inode(ino, &inode);
        Ok(())
    }
}

/// Applies everything but the size. The change time is now unless it is given, which the kernel
/// does because with its writeback cache the times of writes are its own.
fn apply(inode: &mut Inode, set: &SetAttr, now: Timestamp) {
    if let Some(permissions) = set.permissions {
        inode.mode = inode.mode & !0o7777 | u32::from(permissions) & 0o7777;
    }
    inode.uid = set.uid.unwrap_or(inode.uid);
    inode.gid = set.gid.unwrap_or(inode.gid);
    if set.kill_suid {
        kill_suid(inode);
    }
    let resolve = |time| match time {
        TimeOrNow::At(time) => timestamp(time),
        TimeOrNow::Now => now,
    };
    inode.atime = set.atime.map_or(inode.atime, resolve);
    inode.mtime = set.mtime.map_or(inode.mtime, resolve);
    inode.ctime = set.ctime.map_or(now, timestamp);
}

fn is_nothing(set: &SetAttr) -> bool {
    let numbers = set.permissions.is_some() || set.uid.is_some() || set.gid.is_some();
    let times = set.atime.is_some() || set.mtime.is_some() || set.ctime.is_some();
    !(numbers || times || set.size.is_some() || set.kill_suid)
}

fn check_times(set: &SetAttr) -> Result<(), Error> {
    let at = |time| match time {
        Some(TimeOrNow::At(time)) => Some(time),
        _ => None,
    };
    let mut times = [at(set.atime), at(set.mtime), set.ctime].into_iter().flatten();
    if times.any(|time| time.nanoseconds >= SECOND_NS) {
        return Err(Error::Invalid("a time with a second or more of nanoseconds"));
    }
    Ok(())
}

fn time(time: Timestamp) -> Time {
    Time { seconds: time.seconds, nanoseconds: time.nanoseconds }
}

fn timestamp(time: Time) -> Timestamp {
    Timestamp { seconds: time.seconds, nanoseconds: time.nanoseconds }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::volume::namespace::test_inode;

    fn inode(mode: u32) -> Inode {
        Inode { mode, size: 513, ..test_inode() }
    }

    #[test]
    fn set_group_id_stays_where_the_group_may_not_execute() {
        for (before, after) in [(0o106755, 0o100755), (0o106745, 0o102745), (0o101777, 0o101777)] {
            let mut inode = inode(before);
            kill_suid(&mut inode);
            assert_eq!(inode.mode, after, "{before:o}");
        }
    }

    #[test]
    fn blocks_are_those_of_pages_or_of_inline_bytes() {
        let small = inode(0o100644);
        assert_eq!(attr(5, &small).unwrap().blocks, 2);
        let paged = Inode { paged: true, pages: 3, ..small };
        assert_eq!(attr(5, &paged).unwrap().blocks, 24);
        assert!(matches!(attr(5, &inode(0o644)), Err(Error::Io { .. })), "no type");
    }

    #[test]
    fn the_change_time_is_now_unless_given() {
        let now = Timestamp { seconds: 9, nanoseconds: 1 };
        let mut inode = inode(0o100644);
        let at = Time { seconds: -3, nanoseconds: 7 };
        let set = SetAttr { mtime: Some(TimeOrNow::At(at)), ..SetAttr::default() };
        apply(&mut inode, &set, now);
        assert_eq!((inode.mtime, inode.ctime), (timestamp(at), now));
        apply(&mut inode, &SetAttr { ctime: Some(at), ..SetAttr::default() }, now);
        assert_eq!(inode.ctime, timestamp(at));
        let bad = Time { seconds: 0, nanoseconds: 1_000_000_000 };
        let set = SetAttr { ctime: Some(bad), ..SetAttr::default() };
        assert!(matches!(check_times(&set), Err(Error::Invalid(_))));
    }
}
