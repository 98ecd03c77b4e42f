//! Removing everything of an inode that nobody can reach any more.

use super::data_keys::chunk_of;
use super::records::{after_owner, dek_key, map_key};
use super::resize::{RUNS_AT_ONCE, run_of};
use super::{Error, Volume};
use crate::format::RUN_PAGES;
use crate::format::record::{self, Inode, Key, Table};

impl Volume {
    /// Removes everything of an inode that is no longer open: record, contents, xattrs, orphan
    /// mark. Large contents go in several changes, during which the inode must be marked as an
    /// orphan, so that a crash in between does not leave it half removed. The caller holds no
    /// locks.
    ///
    /// # Errors
    /// If the metadata is damaged there; what was removed until then stays removed.
    pub fn discard(&self, ino: u64) -> Result<(), Error> {
        let _content = self.content_lock(ino).write();
        self.forgo(ino, 0..u64::MAX);
        let Some(inode) = self.inode(ino)? else { return Ok(()) };
        if inode.pages > RUNS_AT_ONCE as u64 * RUN_PAGES {
            self.change(true)?.put_orphan(ino);
        }
        loop {
            let from = map_key(ino, 0);
            let to = after_owner(Table::PageMap, ino);
            let keys =
                if inode.paged { self.keys_of(&from, &to, RUNS_AT_ONCE)? } else { Vec::new() };
            let last = keys.len() < RUNS_AT_ONCE;
            let _lock = self.lock_inodes(&[ino]);
            let others = if last { self.keys_beside_pages(ino, &inode)? } else { Vec::new() };
            let mut change = self.change(true)?;
            let mut chunk = None;
            for key in keys {
                let of = chunk_of(run_of(&key) * RUN_PAGES);
                if chunk.replace(of) != Some(of) {
                    self.data_keys.remove(ino, of);
                    change.delete(dek_key(ino, of));
                }
                change.delete(key);
            }
            if last {
                for key in others {
                    change.delete(key);
                }
                change.delete(record::key(Table::Inode, ino, &[]));
                change.delete_orphan(ino);
                self.cuts.forget(ino, &mut change);
                change.count_inodes(-1);
                change.note_freed(inode.pages);
                return Ok(());
            }
        }
    }

    /// Keys of inline content, xattrs and data keys that have no pages any more. The record says
    /// what there can be, but for a data key whose pages were never written.
    fn keys_beside_pages(&self, ino: u64, inode: &Inode) -> Result<Vec<Key>, Error> {
        let mut keys = Vec::new();
        for (table, is_possible) in [
            (Table::Inline, !inode.paged && inode.size > 0),
            (Table::Xattr, inode.has_xattrs),
            (Table::Dek, inode.mode & libc::S_IFMT == libc::S_IFREG),
        ] {
            if is_possible {
                let from = record::key(table, ino, &[]);
                keys.extend(self.keys_of(&from, &after_owner(table, ino), usize::MAX)?);
            }
        }
        Ok(keys)
    }
}
