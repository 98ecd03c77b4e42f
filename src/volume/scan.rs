//! Going through ranges of the durable tree past its damage.

use super::Volume;
use super::records::{after_owner, decode_cookie};
use crate::format::node::Node;
use crate::format::record::{self, Entry, Table};
use crate::tree::{self, Place, Visitor};
use std::collections::BTreeMap;

/// A range of a walk.
struct Scan<'a> {
    from: &'a [u8],
    to: &'a [u8],
    visit: &'a mut dyn FnMut(&[u8], &[u8]) -> bool,
    done: bool,
    damaged: bool,
    key: Vec<u8>,
}

impl Visitor for Scan<'_> {
    fn enter(&mut self, place: Place<'_>) -> bool {
        !self.done && place.from < self.to && place.to.is_none_or(|to| to > self.from)
    }

    fn node(&mut self, place: Place<'_>, node: &Node) {
        if place.level > 0 {
            return;
        }
        let start = node.search(self.from).unwrap_or_else(|larger| larger);
        for index in start..node.len() {
            self.key.clear();
            node.append_key(index, &mut self.key);
            if &self.key[..] >= self.to || !(self.visit)(&self.key, node.value(index)) {
                self.done = true;
                return;
            }
        }
    }

    fn damaged(&mut self, _: Place<'_>, _: &tree::Error) {
        self.damaged = true;
    }
}

impl Volume {
    /// Visits the records of `from..to` of the durable tree in key order until `visit` returns
    /// false, and leaves out what cannot be read. Returns whether nothing was left out. `visit` may
    /// read records.
    pub(super) fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> bool {
        let _pin = self.epochs.pin();
        let root = self.epochs.root();
        let (done, damaged, key) = (false, false, Vec::new());
        let mut scan = Scan { from, to, visit, done, damaged, key };
        tree::walk(self.epochs.source(), root.as_ref(), &mut scan);
        !scan.damaged
    }

    /// Names in a directory of the durable tree, each with its inode, from entries and listing
    /// together, so that a name is lost only if both are; and whether all could be read.
    pub fn names_in(&self, parent: u64) -> (BTreeMap<Vec<u8>, u64>, bool) {
        let mut names = BTreeMap::new();
        let bounds = |table| (record::key(table, parent, &[]), after_owner(table, parent));
        let (from, to) = bounds(Table::Entry);
        let entries_whole = self.scan(&from, &to, &mut |key, value| {
            if let (Some(name), Ok(entry)) = (key.get(9..), Entry::decode(value)) {
                names.insert(name.to_vec(), entry.ino);
            }
            true
        });
        let (from, to) = bounds(Table::Cookie);
        let listing_whole = self.scan(&from, &to, &mut |key, value| {
            if let Some((_, ino, _, name)) = decode_cookie(key, value) {
                names.entry(name.to_vec()).or_insert(ino);
            }
            true
        });
        (names, entries_whole || listing_whole)
    }
}
