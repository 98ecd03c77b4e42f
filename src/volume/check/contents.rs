//! Contents: inline parts, extended attributes, page maps, data keys, and, on demand, every page.

use super::known::{INLINE_SEEN, MAPS_SEEN, ORPHAN, PAGED, XATTRS};
use super::report::Subject;
use super::{Checker, Kind, PROGRESS_STEP, Progress, Stage};
use crate::crypto::{Cipher, PageKey};
use crate::format::map::{PageMap, PagePointer};
use crate::format::record::Table;
use crate::format::{CHUNK_BYTES, PAGE_BYTES, RUN_PAGES};
use crate::storage::FileId;
use crate::volume::data_keys::chunk_of;
use crate::volume::records::{PART_BYTES, dek_key};
use crate::volume::{Error, INLINE_BYTES_MAX};
use std::sync::Arc;

const PAGE: u64 = PAGE_BYTES as u64;

/// Inode and chunk, and the key, if it can be had.
type ChunkKey = ((u64, u64), Option<Arc<PageKey>>);

/// Where the walk is among contents.
#[derive(Default)]
pub(super) struct State {
    /// The inode whose inline parts are passing: number, parts, bytes, length of the last part.
    inline: Option<(u64, u64, u64, usize)>,
    /// The attribute whose parts are passing: inode, name, next part, length of the last part.
    xattr: Option<(u64, Vec<u8>, u32, usize)>,
    /// The inode whose page maps are passing, and its pages so far.
    maps: Option<(u64, u64)>,
    /// The chunk whose pages are passing.
    key: Option<ChunkKey>,
    runs: u64,
    sealed: Vec<u8>,
}

impl State {
    /// Whether the walk has come to the page maps.
    pub fn started(&self) -> bool {
        self.runs > 0
    }
}

/// The part of a page range that lies within the file.
pub(in crate::volume) fn clip(range: (u64, u64), size: u64) -> (u64, u64) {
    (range.0, range.1.min(size.saturating_sub(range.0)))
}

impl Checker<'_> {
    pub(super) fn inline(&mut self, ino: u64, key: &[u8], value: &[u8]) {
        if !self.owned(Table::Inline, ino) {
            return;
        }
        let Some(part) = key.get(9..).and_then(|part| <[u8; 2]>::try_from(part).ok()) else {
            return self.malformed(key[0], ino, "key");
        };
        let part = u64::from(u16::from_be_bytes(part));
        if self.contents.inline.is_none_or(|(of, ..)| of != ino) {
            self.inline_end_of_inode();
            self.contents.inline = Some((ino, 0, 0, PART_BYTES));
        }
        let (_, parts, bytes, last) = self.contents.inline.expect("just set");
        if part != parts || last != PART_BYTES || value.is_empty() || value.len() > PART_BYTES {
            let detail = format!("part {part} of its inline content is not where it should be");
            self.drafts.add(Kind::Inline, Subject::Inode(ino), detail);
        }
        self.contents.inline = Some((ino, part + 1, bytes + value.len() as u64, value.len()));
    }

    fn inline_end_of_inode(&mut self) {
        let Some((ino, _, bytes, _)) = self.contents.inline.take() else { return };
        let Some(known) = self.inodes.get_mut(ino) else { return };
        known.flags |= INLINE_SEEN;
        let known = *known;
        let problem = if known.has(PAGED) {
            "it has inline content, and its content is in pages"
        } else if known.is(libc::S_IFREG) && bytes > known.size {
            "its inline content is longer than its size"
        } else if known.is(libc::S_IFLNK) && bytes != known.size {
            "the length of its target is not its size"
        } else if !known.is(libc::S_IFREG) && !known.is(libc::S_IFLNK) {
            "it has inline content, and is neither file nor link"
        } else {
            return;
        };
        if !self.lost.touches(Table::Inline, ino) {
            self.drafts.add(Kind::Inline, Subject::Inode(ino), problem);
        }
    }

    pub(super) fn xattr(&mut self, ino: u64, key: &[u8], value: &[u8]) {
        let table = Table::Xattr;
        if !self.owned(table, ino) {
            return;
        }
        let split = key.len().saturating_sub(3);
        let (name, end) = key.split_at(split);
        let Ok([0, high, low]) = <[u8; 3]>::try_from(end) else {
            return self.malformed(table as u8, ino, "key");
        };
        if name.is_empty() || name.contains(&0) {
            return self.malformed(table as u8, ino, "name of an extended attribute");
        }
        let part = u32::from(u16::from_be_bytes([high, low]));
        let (next, last) = match &self.contents.xattr {
            Some((of, current, next, last)) if *of == ino && current == name => (*next, *last),
            _ => (0, PART_BYTES),
        };
        if (part != next || last != PART_BYTES) && !self.lost.touches(table, ino) {
            let name = super::printable(name);
            let detail = format!("part {part} of attribute {name} is not where it should be");
            self.drafts.add(Kind::AttributeParts, Subject::Inode(ino), detail);
        }
        if part == 0 && self.inodes.get(ino).is_some_and(|known| !known.has(XATTRS)) {
            let name = super::printable(name);
            let detail = format!("it has attribute {name} and says that it has none");
            self.drafts.add(Kind::AttributeFlag, Subject::Inode(ino), detail);
        }
        self.contents.xattr = Some((ino, name.to_vec(), part + 1, value.len()));
    }

    /// A data key without pages is no problem (a hole was punched); only a stray one is. Whether it
    /// can be unwrapped is found out with the pages.
    pub(super) fn data_key(&mut self, ino: u64, key: &[u8]) {
        if key.len() != 17 {
            self.malformed(key[0], ino, "key");
        } else {
            self.owned(Table::Dek, ino);
        }
    }

    pub(super) fn page_map(&mut self, ino: u64, key: &[u8], value: &[u8]) {
        self.contents.runs += 1;
        if self.contents.runs % PROGRESS_STEP == 1 {
            let (done, total) = (self.report.pages, self.pages_total);
            (self.progress)(Progress { stage: Stage::Contents, done, total });
        }
        let Some(run) = key.get(9..).and_then(|run| <[u8; 8]>::try_from(run).ok()) else {
            return self.malformed(key[0], ino, "key");
        };
        let run = u64::from_be_bytes(run);
        let map = match PageMap::decode(self.volume.cipher(), value) {
            Ok(map) if !map.is_empty() && run < u64::MAX / RUN_PAGES / PAGE => map,
            _ => return self.malformed(key[0], ino, "page map"),
        };
        map.pages.iter().flatten().for_each(|page| self.slots.refer(page.slot));
        self.report.pages += map.count();
        if !self.owned(Table::PageMap, ino) {
            return;
        }
        if self.contents.maps.is_none_or(|(of, _)| of != ino) {
            self.contents_end_of_inode();
            self.contents.maps = Some((ino, 0));
        }
        if let Some((_, pages)) = &mut self.contents.maps {
            *pages += map.count();
        }
        let Some(known) = self.inodes.get(ino).copied() else { return };
        // What is cut off or discarded has lost its keys already, or is about to.
        if !known.has(ORPHAN) && !self.volume.cuts.is_dead(ino, run) {
            self.check_run(ino, run, &map, known.size);
        }
    }

    /// Checks the pages of a run that can be read.
    fn check_run(&mut self, ino: u64, run: u64, map: &PageMap, size: u64) {
        let pages = run * RUN_PAGES..;
        let pages: Vec<(u64, PagePointer)> =
            pages.zip(&map.pages).filter_map(|(page, at)| Some((page, (*at)?))).collect();
        for &(page, pointer) in &pages {
            if page * PAGE >= size {
                let range = (page * PAGE, PAGE);
                self.drafts.add_range(Kind::PageBeyondSize, ino, range, "pages behind its end");
            }
            if let Some(problem) = self.medium.problem(pointer.slot) {
                let range = clip((page * PAGE, PAGE), size);
                self.drafts.add_range(Kind::PageLost, ino, range, &problem);
            }
        }
        let Some((first, _)) = pages.first() else { return };
        // A run never reaches beyond its chunk.
        let Some(key) = self.chunk_key(ino, chunk_of(*first), size) else { return };
        if !self.options.deep {
            return;
        }
        let present: Vec<_> = pages
            .into_iter()
            .filter(|(_, pointer)| self.medium.problem(pointer.slot).is_none())
            .collect();
        let adjacent =
            |a: &(u64, PagePointer), b: &(u64, PagePointer)| a.1.slot.is_before(b.1.slot);
        for group in present.chunk_by(adjacent) {
            self.read_group(ino, group, &key, size);
        }
    }

    /// The key of a chunk; reports one that cannot be had, once.
    fn chunk_key(&mut self, ino: u64, chunk: u64, size: u64) -> Option<Arc<PageKey>> {
        if let Some((of, key)) = &self.contents.key {
            if *of == (ino, chunk) {
                return key.clone();
            }
        }
        let stored = if self.lost.covers(&dek_key(ino, chunk)) {
            Err("its data key is in a lost node")
        } else {
            match self.volume.stored_dek(ino, chunk) {
                Ok(Some(key)) => Ok(key),
                Ok(None) => Err("its data key is missing"),
                Err(Error::Malformed(_)) => Err("the record of its data key is malformed"),
                Err(Error::Damaged { .. }) => Err("its data key cannot be unwrapped"),
                Err(_) => Err("its data key cannot be read"),
            }
        };
        let range = clip((chunk * CHUNK_BYTES, CHUNK_BYTES), size);
        let key =
            stored.map_err(|what| self.drafts.add_range(Kind::KeyLost, ino, range, what)).ok();
        self.contents.key = Some(((ino, chunk), key.clone()));
        key
    }

    /// Reads pages that are adjacent on disk and verifies each.
    fn read_group(&mut self, ino: u64, group: &[(u64, PagePointer)], key: &PageKey, size: u64) {
        let mut sealed = std::mem::take(&mut self.contents.sealed);
        sealed.resize(group.len() * PAGE_BYTES, 0);
        let slot = group[0].1.slot;
        let storage = &self.volume.storage;
        let file = FileId::Segment(slot.segment());
        let whole = storage.read_at(file, slot.offset(), &mut sealed).is_ok();
        let mut plaintext = Box::new([0; PAGE_BYTES]);
        for ((page, pointer), sealed) in group.iter().zip(sealed.chunks_exact_mut(PAGE_BYTES)) {
            // One bad sector must not condemn its neighbours.
            let read =
                if whole { Ok(()) } else { storage.read_at(file, pointer.slot.offset(), sealed) };
            self.report.pages_read += 1;
            let aad = self.volume.page_aad(ino, *page);
            let problem = match read {
                Err(error) => format!("the storage cannot read it: {error}"),
                Ok(()) => {
                    match key.open(pointer.nonce, &aad, pointer.tag, sealed, &mut *plaintext) {
                        Ok(()) => continue,
                        Err(_) => "it does not authenticate".into(),
                    }
                }
            };
            let range = clip((page * PAGE, PAGE), size);
            self.drafts.add_range(Kind::PageLost, ino, range, &problem);
        }
        self.contents.sealed = sealed;
    }

    /// The page maps of an inode have all passed.
    pub(super) fn contents_end_of_inode(&mut self) {
        let Some((ino, pages)) = self.contents.maps.take() else { return };
        let Some(known) = self.inodes.get_mut(ino) else { return };
        known.flags |= MAPS_SEEN;
        let known = *known;
        self.check_page_count(ino, known.pages, pages);
        if !known.has(PAGED) && !known.has(ORPHAN) {
            let detail = "it has page maps, and its content is not in pages";
            self.drafts.add(Kind::Inline, Subject::Inode(ino), detail);
        }
    }

    fn check_page_count(&mut self, ino: u64, counted: u64, found: u64) {
        let orphan = self.inodes.get(ino).is_some_and(|known| known.has(ORPHAN));
        if counted == found || orphan || self.lost.touches(Table::PageMap, ino) {
            return;
        }
        let detail = format!("it counts {counted} pages, and its page maps hold {found}");
        self.drafts.add(Kind::PageCount, Subject::Inode(ino), detail);
    }

    /// Reports what lacks content.
    pub(super) fn finish_contents(&mut self) {
        self.inline_end_of_inode();
        self.contents_end_of_inode();
        if self.options.deep && self.volume.cipher() == Cipher::Aes256Xts {
            let detail = "contents carry no tags with aes-256-xts: that they can be read was \
                          checked, not that they are what was written";
            self.drafts.add(Kind::ContentUnauthenticated, Subject::Volume, detail);
        }
        for index in 0..self.inodes.list.len() {
            let known = self.inodes.list[index];
            let ino = known.ino;
            let subject = Subject::Inode(ino);
            let inline_lost = !known.has(PAGED) && self.lost.touches(Table::Inline, ino);
            if known.is(libc::S_IFLNK) && !known.has(INLINE_SEEN) && known.size > 0 {
                let (kind, detail) = if inline_lost {
                    (Kind::ContentLost, "its target is in a lost node")
                } else {
                    (Kind::Inline, "it has no target")
                };
                self.drafts.add(kind, subject, detail);
            } else if known.is(libc::S_IFREG) && inline_lost && !known.has(INLINE_SEEN) {
                if (1..=INLINE_BYTES_MAX).contains(&known.size) {
                    let range = (0, known.size);
                    let detail = "its content is in a lost node";
                    self.drafts.add_range(Kind::ContentLost, ino, range, detail);
                }
            } else if !known.has(PAGED) && known.size > INLINE_BYTES_MAX && known.is(libc::S_IFREG)
            {
                let detail = format!("{} bytes are too many to be kept inline", known.size);
                self.drafts.add(Kind::Inline, subject, detail);
            }
            if known.pages > 0 && !known.has(MAPS_SEEN) {
                self.check_page_count(ino, known.pages, 0);
            }
            self.find_lost_runs(ino, known.size, known.pages);
        }
    }

    fn find_lost_runs(&mut self, ino: u64, size: u64, pages: u64) {
        if self.lost.is_empty() || pages == 0 {
            return;
        }
        const RUN_BYTES: u64 = RUN_PAGES * PAGE;
        for (from, to) in self.lost.runs(ino) {
            let start = from.saturating_mul(RUN_BYTES);
            let end = to.saturating_mul(RUN_BYTES).min(size);
            if start < end {
                let detail = "the map of its pages is in a lost node";
                let range = (start, end - start);
                self.drafts.add_range(Kind::ContentLost, ino, range, detail);
            }
        }
    }
}
