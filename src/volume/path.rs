//! From an inode number to a path, and telling of damage by path without flooding the log.

use super::records::decode_cookie;
use super::{ROOT, Volume};
use crate::format::record::{self, Entry, Key, Table};
use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

/// The deepest directory whose path is told; records that contradict each other could be endless.
pub(super) const DEPTH_MAX: usize = 4096;
/// Time between two log lines about the same inode.
const DAMAGE_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Inodes whose last log line is remembered.
const DAMAGE_LOG_INODES: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// When damage of which inode was last logged.
pub(super) struct DamageLog(Mutex<LruCache<u64, Instant>>);

impl DamageLog {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(DAMAGE_LOG_INODES)))
    }

    /// Whether damage of this inode is to be logged now; if so, that is remembered.
    fn is_due(&self, ino: u64, now: Instant) -> bool {
        let mut last = self.0.lock();
        let due = last.get(&ino).is_none_or(|at| now.duration_since(*at) >= DAMAGE_LOG_INTERVAL);
        if due {
            last.put(ino, now);
        }
        due
    }
}

impl Volume {
    /// A path of an inode in the durable tree: absolute within the volume, bytes as names have
    /// them. `None` if no name leads to it, or none that can be read. Goes through all names of the
    /// volume for an inode that is no directory.
    pub fn path_of(&self, ino: u64) -> Option<Vec<u8>> {
        if ino == ROOT {
            return Some(b"/".to_vec());
        }
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let is_directory = |inode: &record::Inode| inode.mode & libc::S_IFMT == libc::S_IFDIR;
            let parent = self.inode(at).ok().flatten().filter(is_directory).map(|dir| dir.parent);
            let (parent, name) = self.name_of(at, parent)?;
            names.push(name);
            at = parent;
            if names.len() > DEPTH_MAX {
                return None;
            }
        }
        let names = names.iter().rev();
        Some(names.flat_map(|name| b"/".iter().chain(name).copied()).collect())
    }

    /// The first name of an inode, in `parent` or, if that is not known, anywhere: from the
    /// listings, or, where they are damaged, from the entries.
    fn name_of(&self, ino: u64, parent: Option<u64>) -> Option<(u64, Vec<u8>)> {
        let bounds = |table: Table| match parent {
            Some(parent) => {
                let to = super::records::after_owner(table, parent);
                (record::key(table, parent, &[]), to)
            }
            None => (Key::from_slice(&[table as u8]), Key::from_slice(&[table as u8 + 1])),
        };
        let mut found = None;
        let (from, to) = bounds(Table::Cookie);
        let whole = self.scan(&from, &to, &mut |key, value| {
            let name = decode_cookie(key, value).filter(|(_, of, ..)| *of == ino);
            found = name.map(|(_, _, _, name)| (record::owner(key), name.to_vec()));
            found.is_none()
        });
        if found.is_none() && !whole {
            let (from, to) = bounds(Table::Entry);
            self.scan(&from, &to, &mut |key, value| {
                let is_it = Entry::decode(value).is_ok_and(|entry| entry.ino == ino);
                found = key.get(9..).filter(|_| is_it).map(|n| (record::owner(key), n.to_vec()));
                found.is_none()
            });
        }
        found
    }

    /// Logs that a range of a file cannot be read, by path; at most once in 10 s for each inode.
    pub(super) fn log_damage(&self, ino: u64, from: u64, to: u64, cause: &str) {
        if !self.damage_log.is_due(ino, Instant::now()) {
            return;
        }
        let path = self.path_of(ino);
        let path =
            path.map_or("a file without a name".into(), |path| super::check::printable(&path));
        log::error!(
            "{path} (inode {ino}) is damaged: bytes {from} to {to}: {cause}; \
             `atrest fsck --deep` finds all damage"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_of_an_inode_is_logged_once_in_ten_seconds() {
        let log = DamageLog::new();
        let start = Instant::now();
        assert!(log.is_due(5, start));
        assert!(!log.is_due(5, start + Duration::from_secs(9)));
        assert!(log.is_due(6, start + Duration::from_secs(9)), "another inode");
        assert!(log.is_due(5, start + Duration::from_secs(10)));
        for ino in 100..400 {
            log.is_due(ino, start);
        }
        assert!(log.is_due(5, start + Duration::from_secs(11)), "forgotten, not kept forever");
    }
}
