//! Files whose last changes are not durable, by path: what may be lost when they cannot be written.

use super::check::{join, printable};
use super::path::DEPTH_MAX;
use super::records::decode_cookie;
use super::{ROOT, Volume};
use crate::format::record::{self, Table};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Names that are looked at between two looks at the clock.
const NAMES_AT_ONCE: u32 = 4096;

/// Directory and name by inode.
type Names = BTreeMap<u64, (u64, Vec<u8>)>;

impl Volume {
    /// The inodes that were changed since what the volume would open with without its log.
    pub fn unsaved(&self) -> BTreeSet<u64> {
        let tables = [Table::Inode, Table::Inline, Table::Xattr, Table::Dek, Table::PageMap];
        let changed = tables.iter().flat_map(|table| self.epochs.changed(*table));
        changed.map(|(key, _)| record::owner(&key)).collect()
    }

    /// What to call these inodes: by a path in the volume, changes that are not durable included,
    /// or, where none is found before `deadline`, by number.
    pub fn names_of(&self, inos: &BTreeSet<u64>, deadline: Instant) -> Vec<String> {
        let mut names = Names::new();
        let mut removed = BTreeSet::new();
        for (key, value) in self.epochs.changed(Table::Cookie) {
            match value.as_deref().and_then(|value| decode_cookie(&key, value)) {
                Some((_, ino, _, name)) => {
                    names.insert(ino, (record::owner(&key), name.to_vec()));
                }
                None => _ = removed.insert(key),
            }
        }
        let mut wanted: BTreeSet<u64> =
            inos.iter().copied().filter(|ino| *ino != ROOT && !names.contains_key(ino)).collect();
        let mut seen = 0_u32;
        if !wanted.is_empty() {
            let (from, to) = ([Table::Cookie as u8], [Table::Cookie as u8 + 1]);
            self.scan(&from, &to, &mut |key, value| {
                let entry = decode_cookie(key, value).filter(|_| !removed.contains(key));
                if let Some((_, ino, _, name)) = entry.filter(|(_, ino, ..)| wanted.remove(ino)) {
                    names.insert(ino, (record::owner(key), name.to_vec()));
                }
                seen = seen.wrapping_add(1);
                let late = seen % NAMES_AT_ONCE == 0 && Instant::now() >= deadline;
                !(wanted.is_empty() || late)
            });
        }
        inos.iter().map(|ino| self.path_by(&names, *ino)).collect()
    }

    fn path_by(&self, names: &Names, ino: u64) -> String {
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = ino;
        let top = loop {
            match names.get(&at) {
                _ if at == ROOT => break Some(b"/".to_vec()),
                Some((parent, name)) if parts.len() < DEPTH_MAX => {
                    parts.push(name);
                    at = *parent;
                }
                // A directory of the durable tree knows its parent; a file would be looked for.
                None if at != ino => break self.path_of(at),
                _ => break None,
            }
        };
        let Some(top) = top else { return format!("inode {ino}") };
        printable(&parts.iter().rev().fold(top, |path, name| join(&path, name)))
    }
}
