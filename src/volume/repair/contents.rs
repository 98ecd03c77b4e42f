//! Inline contents, targets of links, extended attributes and data keys.

use super::inodes::{DROPPED, INLINE, PAGED, XATTR_SEEN, XATTRS};
use super::{ActionKind, Error, Repair};
use crate::format::CHUNK_BYTES;
use crate::format::PAGE_BYTES;
use crate::format::RUN_PAGES;
use crate::format::record::{self, Table};
use crate::volume::INLINE_BYTES_MAX;
use crate::volume::check::printable;
use crate::volume::records::PART_BYTES;

/// Runs of a chunk.
const CHUNK_RUNS: u64 = CHUNK_BYTES / PAGE_BYTES as u64 / RUN_PAGES;

/// The parts of one inode's inline content, or of one attribute, that have passed so far.
#[derive(Default)]
struct Parts {
    ino: u64,
    /// Of an attribute.
    name: Vec<u8>,
    keys: Vec<Box<[u8]>>,
    /// Bytes of the parts that are where they should be.
    bytes: u64,
    /// How many these are.
    good: usize,
    /// The last of them is as long as one that is followed by another.
    full: bool,
}

impl Parts {
    fn new(ino: u64, name: &[u8]) -> Self {
        Self { ino, name: name.to_vec(), full: true, ..Self::default() }
    }

    fn push(&mut self, key: &[u8], part: u16, bytes: usize) {
        let follows = self.good == self.keys.len() && usize::from(part) == self.good && self.full;
        if follows && bytes <= PART_BYTES {
            self.good += 1;
            self.bytes += bytes as u64;
            self.full = bytes == PART_BYTES;
        }
        self.keys.push(key.into());
    }

    fn is_whole(&self) -> bool {
        self.good == self.keys.len()
    }
}

impl Repair<'_> {
    /// Inline contents agree with the inodes afterwards; links without a target are removed.
    pub(super) fn repair_inline(&mut self) -> Result<(), Error> {
        let mut parts: Option<Parts> = None;
        self.each(Table::Inline, |this, key, value| {
            let ino = record::owner(key);
            if this.inodes.get(ino).is_none() {
                return this.delete_stray(key, "inline content");
            }
            if parts.as_ref().is_none_or(|parts| parts.ino != ino) {
                if let Some(parts) = parts.take() {
                    this.finish_inline(&parts)?;
                }
                parts = Some(Parts::new(ino, &[]));
            }
            let part = key.get(9..).and_then(|part| <[u8; 2]>::try_from(part).ok());
            match part.filter(|_| !value.is_empty()) {
                Some(part) => {
                    let parts = parts.as_mut().expect("just set");
                    parts.push(key, u16::from_be_bytes(part), value.len());
                    Ok(())
                }
                None => {
                    this.removed(ino, "a malformed part of its inline content");
                    this.delete(key)
                }
            }
        })?;
        if let Some(parts) = parts {
            self.finish_inline(&parts)?;
        }
        for index in 0..self.inodes.list.len() {
            self.finish_without_inline(index)?;
        }
        Ok(())
    }

    fn finish_inline(&mut self, parts: &Parts) -> Result<(), Error> {
        let ino = parts.ino;
        let Some(known) = self.inodes.get(ino).copied() else { return Ok(()) };
        let (regular, link) = (known.is(libc::S_IFREG), known.is(libc::S_IFLNK));
        let fits = link || regular && !known.has(PAGED);
        let mut keep = if fits { parts.good } else { 0 };
        let mut bytes = if fits { parts.bytes } else { 0 };
        if regular && keep > 1 {
            (keep, bytes) = (1, PART_BYTES as u64);
        }
        if keep < parts.keys.len() {
            let why = if fits { "parts are missing before it" } else { "it cannot have any" };
            self.removed(ino, format!("inline content: {why}"));
        }
        for key in &parts.keys[keep..] {
            self.delete(key)?;
        }
        if keep == 0 {
            return Ok(());
        }
        if link && bytes != known.size && self.lost.touches(Table::Inline, ino) {
            // A part of a path leads somewhere else.
            return Ok(());
        }
        if regular && bytes > known.size && known.size <= INLINE_BYTES_MAX {
            self.removed(ino, "inline content behind its end");
            let part = self.tree.get(&parts.keys[0])?.unwrap_or_else(|| unreachable!("it passed"));
            let kept = &part[..known.size as usize];
            let kept = Some(kept).filter(|kept| !kept.is_empty());
            self.tree.put(&parts.keys[0], kept)?;
            bytes = known.size;
        }
        let known = self.inodes.get_mut(ino).expect("looked up above");
        if bytes > 0 {
            known.flags |= INLINE;
        }
        if link || known.size > INLINE_BYTES_MAX {
            known.size = bytes;
        }
        Ok(())
    }

    /// Inodes that have no inline content and should.
    fn finish_without_inline(&mut self, index: usize) -> Result<(), Error> {
        let known = self.inodes.list[index];
        let ino = known.ino;
        if known.has(DROPPED) || known.has(INLINE) {
            return Ok(());
        }
        if known.is(libc::S_IFLNK) {
            self.removed(ino, "a symbolic link: its target is lost");
            return self.discard(ino);
        }
        if !known.is(libc::S_IFREG) || known.has(PAGED) {
            return Ok(());
        }
        if known.size > INLINE_BYTES_MAX {
            self.inodes.list[index].flags |= PAGED;
        } else if known.size > 0 && self.lost.touches(Table::Inline, ino) {
            let detail = "its content was in a lost node: it reads as zeros";
            self.drafts.add_range(ActionKind::ContentLost, ino, (0, known.size), detail);
        }
        Ok(())
    }

    /// Every extended attribute that is left is whole.
    pub(super) fn repair_xattrs(&mut self) -> Result<(), Error> {
        let mut parts: Option<Parts> = None;
        self.each(Table::Xattr, |this, key, value| {
            let ino = record::owner(key);
            if this.inodes.get(ino).is_none() {
                return this.delete_stray(key, "extended attributes");
            }
            let (name, end) = key[9..].split_at(key.len().saturating_sub(12));
            let part = match <[u8; 3]>::try_from(end) {
                Ok([0, high, low]) if !name.is_empty() && !name.contains(&0) => {
                    u16::from_be_bytes([high, low])
                }
                _ => {
                    this.removed(ino, "a malformed extended attribute");
                    return this.delete(key);
                }
            };
            if parts.as_ref().is_none_or(|parts| parts.ino != ino || parts.name != name) {
                if let Some(parts) = parts.take() {
                    this.finish_xattr(&parts)?;
                }
                parts = Some(Parts::new(ino, name));
            }
            parts.as_mut().expect("just set").push(key, part, value.len());
            Ok(())
        })?;
        if let Some(parts) = parts {
            self.finish_xattr(&parts)?;
        }
        for index in 0..self.inodes.list.len() {
            let known = self.inodes.list[index];
            let may_have = known.has(XATTRS) && !known.has(DROPPED);
            if may_have && self.lost.touches(Table::Xattr, known.ino) {
                let detail = "extended attributes of it may have been in a lost node";
                self.removed(known.ino, detail);
            }
        }
        Ok(())
    }

    fn finish_xattr(&mut self, parts: &Parts) -> Result<(), Error> {
        let next = u16::try_from(parts.keys.len()).unwrap_or(u16::MAX).to_be_bytes();
        let next = [&parts.name[..], &[0], &next].concat();
        let cut = parts.full && self.lost.covers(&record::key(Table::Xattr, parts.ino, &next));
        if parts.is_whole() && !cut {
            if let Some(known) = self.inodes.get_mut(parts.ino) {
                known.flags |= XATTR_SEEN;
            }
            return Ok(());
        }
        let name = printable(&parts.name);
        self.removed(parts.ino, format!("attribute {name}: parts of its value are lost"));
        parts.keys.iter().try_for_each(|key| self.delete(key))
    }

    /// Every data key that is left can be unwrapped, and has an inode.
    pub(super) fn repair_data_keys(&mut self) -> Result<(), Error> {
        self.each(Table::Dek, |this, key, value| {
            let ino = record::owner(key);
            let Some(known) = this.inodes.get(ino).copied() else {
                return this.delete_stray(key, "data keys");
            };
            let Some(chunk) = key.get(9..).and_then(|chunk| <[u8; 8]>::try_from(chunk).ok()) else {
                this.removed(ino, "a malformed data key");
                return this.delete(key);
            };
            let chunk = u64::from_be_bytes(chunk);
            let mut runs = (0..CHUNK_RUNS).map(|run| chunk.saturating_mul(CHUNK_RUNS) + run);
            // The pages that it opens go, or there can be none.
            let useless = !known.is(libc::S_IFREG) || runs.all(|run| this.is_dead(ino, run));
            let opens = this.volume.decode_dek(ino, chunk, value).is_ok();
            if useless || !opens { this.delete(key) } else { Ok(()) }
        })
    }
}
