//! Access times, by the rules of `relatime` (mount(8)): reading sets one if it is not later than
//! the times of the last change, or a day old.
//!
//! Reading is not to cost a write. So new access times wait in memory, as with ext4's `lazytime`;
//! everybody who asks is told the new one, and it is put with the next epoch that has other work,
//! with `fsync`, at unmounting, or when many have gathered. After a crash some are missing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{Ino, VolumeTree};
use crate::format::record::{Inode, Timestamp};
use crate::fs::Error;
use crate::volume::{self, Volume};

/// Age from which an access time is set again, whatever was changed.
const DAY_SECONDS: i64 = 24 * 60 * 60;
/// Access times that are put even if nothing else was changed.
const MANY: usize = 1024;
/// Most that wait; who comes then puts its own, like any change.
const WAITING_MAX: usize = 16_384;

/// Access times that wait to be put.
#[derive(Default)]
pub(super) struct Accesses {
    times: Mutex<HashMap<Ino, Timestamp>>,
    waiting: AtomicUsize,
}

impl Accesses {
    /// The time that waits, if any.
    pub(super) fn get(&self, ino: Ino) -> Option<Timestamp> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.times.lock().get(&ino).copied()
    }

    /// Somebody set the access time, or it was put.
    pub(super) fn forget(&self, ino: Ino) {
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.update(|times| times.remove(&ino));
        }
    }

    /// Lets a time wait; false if there are too many already.
    fn add(&self, ino: Ino, at: Timestamp) -> bool {
        self.update(|times| {
            let room = times.len() < WAITING_MAX || times.contains_key(&ino);
            if room {
                times.insert(ino, at);
            }
            room
        })
    }

    fn update<T>(&self, edit: impl FnOnce(&mut HashMap<Ino, Timestamp>) -> T) -> T {
        let mut times = self.times.lock();
        let result = edit(&mut times);
        self.waiting.store(times.len(), Ordering::Release);
        result
    }

    /// Puts what waits if an epoch is about to end anyway, or if there is much.
    pub(super) fn put(&self, volume: &Volume, epoch_ends: bool) {
        let waiting = self.waiting.load(Ordering::Acquire);
        if waiting == 0 || (!epoch_ends && waiting < MANY) {
            return;
        }
        let times: Vec<(Ino, Timestamp)> =
            self.times.lock().iter().map(|(&ino, &at)| (ino, at)).collect();
        for (ino, at) in times {
            if let Err(error) = put(volume, ino, at) {
                // Nobody waits for it, and what stops writing is said by who does.
                log::debug!("the access time of inode {ino} is not kept: {error}");
            }
            self.update(|times| {
                if times.get(&ino) == Some(&at) {
                    times.remove(&ino);
                }
            });
        }
    }
}

/// Puts an access time, unless the inode has a later one or is gone.
fn put(volume: &Volume, ino: Ino, at: Timestamp) -> Result<(), volume::Error> {
    let _locks = volume.lock_inodes(&[ino]);
    let Some(mut inode) = volume.inode(ino)? else { return Ok(()) };
    if inode.atime < at {
        inode.atime = at;
        volume.change(true)?.put_inode(ino, &inode);
    }
    Ok(())
}

impl VolumeTree {
    /// See [`Tree::accessed`](crate::fs::Tree::accessed).
    pub(super) fn note_access(&self, ino: Ino, is_changing: bool) -> Result<bool, Error> {
        self.note_access_of(ino, &self.inode(ino)?, is_changing)
    }

    /// As [`VolumeTree::note_access`], of a record with the access time that waits.
    pub(super) fn note_access_of(
        &self,
        ino: Ino,
        inode: &Inode,
        is_changing: bool,
    ) -> Result<bool, Error> {
        let now = self.volume.now();
        if !(is_due(inode, now) || is_changing && inode.atime < now) {
            return Ok(false);
        }
        if !self.accesses.add(ino, now) {
            put(&self.volume, ino, now).map_err(self.failed("setting the access time", ino))?;
        }
        Ok(true)
    }

    /// Puts the access time of one inode, if it waits.
    pub(super) fn put_access(&self, ino: Ino) -> Result<(), Error> {
        if let Some(at) = self.accesses.get(ino) {
            put(&self.volume, ino, at).map_err(self.failed("setting the access time", ino))?;
            self.accesses.forget(ino);
        }
        Ok(())
    }
}

/// Whether reading sets the access time (`relatime_need_update` in the kernel's fs/inode.c).
fn is_due(inode: &Inode, now: Timestamp) -> bool {
    let age_seconds = now.seconds.saturating_sub(inode.atime.seconds);
    inode.atime <= inode.mtime || inode.atime <= inode.ctime || age_seconds >= DAY_SECONDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::volume::namespace::test_inode;

    fn at(seconds: i64, nanoseconds: u32) -> Timestamp {
        Timestamp { seconds, nanoseconds }
    }

    /// Not after a later access of today; after every change, and after a day.
    #[test]
    fn relatime_rules() {
        let now = at(1_000_000, 0);
        let table = [
            (at(999_000, 0), at(998_000, 0), at(998_000, 0), false),
            (at(999_000, 0), at(999_000, 0), at(998_000, 0), true),
            (at(999_000, 0), at(998_000, 0), at(999_000, 1), true),
            (at(1_000_000 - DAY_SECONDS, 0), at(0, 0), at(0, 0), true),
            (at(1_000_001 - DAY_SECONDS, 0), at(0, 0), at(0, 0), false),
            (at(2_000_000, 0), at(0, 0), at(0, 0), false),
            (at(i64::MIN, 0), at(0, 0), at(0, 0), true),
        ];
        for (atime, mtime, ctime, due) in table {
            let inode = Inode { atime, mtime, ctime, ..test_inode() };
            assert_eq!(is_due(&inode, now), due, "{atime:?} {mtime:?} {ctime:?}");
        }
    }

    /// No more wait than memory is meant for.
    #[test]
    fn what_waits_is_bounded() {
        let accesses = Accesses::default();
        let all = WAITING_MAX as u64;
        assert!((0..all).all(|ino| accesses.add(ino, at(1, 0))));
        assert!(!accesses.add(all, at(1, 0)));
        assert!(accesses.add(5, at(2, 0)), "one that waits already");
        assert_eq!(accesses.get(5), Some(at(2, 0)));
        accesses.forget(5);
        assert_eq!(accesses.get(5), None);
        assert!(accesses.add(all, at(1, 0)));
    }
}
