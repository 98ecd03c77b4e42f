//! Changing the size of a file, punching holes, and finding them.

use super::data_keys::chunk_of;
use super::records::{Change, dek_key, map_key};
use super::{Error, FILE_BYTES_MAX, INLINE_BYTES_MAX, Volume};
use crate::format::map::PageMap;
use crate::format::record::Inode;
use crate::format::{PAGE_BYTES, RUN_PAGES};

const PAGE: u64 = PAGE_BYTES as u64;
/// Page maps that are removed at once; what is more is marked and removed in the background.
pub(super) const RUNS_AT_ONCE: usize = 1024;

/// Part of a file that is about to lose its pages.
struct Removal {
    /// Maps that stay, with fewer pages.
    kept: Vec<(u64, PageMap)>,
    /// Runs whose records go now.
    gone: Vec<u64>,
    /// Runs that are marked dead.
    cut: Option<(u64, u64)>,
    /// Chunks that lose all their pages, so that their keys go.
    chunks: std::ops::Range<u64>,
    /// Pages that go, as far as they were counted.
    pages: u64,
}

impl Volume {
    /// Sets the size (the new part reads as zeros) and applies `touch`; returns the new record.
    ///
    /// # Errors
    /// `TooLarge`, `NoSpace`, or what reading the new last page gives.
    pub fn truncate(
        &self,
        ino: u64,
        size: u64,
        touch: &dyn Fn(&mut Inode),
    ) -> Result<Inode, Error> {
        if size > FILE_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        let _content = self.content_lock(ino).write();
        let inode = self.require(ino)?;
        if !inode.paged && size > INLINE_BYTES_MAX {
            self.make_paged(ino)?;
        }
        let paged = inode.paged || size > INLINE_BYTES_MAX;
        if paged && size < inode.size {
            self.zero_within_page(ino, size, size.next_multiple_of(PAGE))?;
        }
        let removal = if paged && size < inode.size {
            Some(self.plan_removal(ino, size.div_ceil(PAGE), inode.size.div_ceil(PAGE))?)
        } else {
            None
        };
        let content = if paged { Vec::new() } else { self.inline(ino)? };
        let _lock = self.lock_inodes(&[ino]);
        let mut inode = self.require(ino)?;
        let mut change = self.change(size <= inode.size)?;
        if let Some(removal) = removal {
            self.remove(ino, &mut inode, removal, &mut change);
        }
        if !paged && content.len() as u64 > size {
            if size == 0 {
                change.delete_inline(ino);
            } else {
                change.put_inline(ino, &content[..size as usize]);
            }
        }
        inode.size = size;
        touch(&mut inode);
        change.put_inode(ino, &inode);
        Ok(inode)
    }

    /// Makes a range read as zeros and frees its pages; the size stays.
    ///
    /// # Errors
    /// As [`Volume::truncate`].
    pub fn punch(
        &self,
        ino: u64,
        offset: u64,
        length: u64,
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        let _content = self.content_lock(ino).write();
        let inode = self.require(ino)?;
        let end = offset.saturating_add(length).min(inode.size.next_multiple_of(PAGE));
        if offset >= end {
            return Ok(());
        }
        if !inode.paged {
            return self.punch_inline(ino, offset as usize, end as usize, touch);
        }
        let (first, last) = (offset.next_multiple_of(PAGE), end / PAGE * PAGE);
        if first > last {
            self.zero_within_page(ino, offset, end)?;
        } else {
            self.zero_within_page(ino, offset, first)?;
            self.zero_within_page(ino, last, end)?;
        }
        let removal = if first < last {
            Some(self.plan_removal(ino, first / PAGE, last / PAGE)?)
        } else {
            None
        };
        let _lock = self.lock_inodes(&[ino]);
        let mut inode = self.require(ino)?;
        let mut change = self.change(true)?;
        if let Some(removal) = removal {
            self.remove(ino, &mut inode, removal, &mut change);
        }
        touch(&mut inode);
        change.put_inode(ino, &inode);
        Ok(())
    }

    fn punch_inline(
        &self,
        ino: u64,
        from: usize,
        to: usize,
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        let mut content = self.inline(ino)?;
        let (from, to) = (from.min(content.len()), to.min(content.len()));
        content[from..to].fill(0);
        let _lock = self.lock_inodes(&[ino]);
        let mut inode = self.require(ino)?;
        let mut change = self.change(true)?;
        if !content.is_empty() {
            change.put_inline(ino, &content);
        }
        touch(&mut inode);
        change.put_inode(ino, &inode);
        Ok(())
    }

    /// Zeros `from..to`, which lies within one page, if that page has content. The caller holds the
    /// content lock alone.
    fn zero_within_page(&self, ino: u64, from: u64, to: u64) -> Result<(), Error> {
        let page = from / PAGE;
        if from >= to {
            return Ok(());
        }
        let map = self.page_map(ino, page / RUN_PAGES)?;
        if map.pages[(page % RUN_PAGES) as usize].is_none() {
            return Ok(());
        }
        let mut content = vec![0; PAGE_BYTES];
        self.read_pages(ino, page * PAGE, &mut content)?;
        let start = (from % PAGE) as usize;
        content[start..start + (to - from) as usize].fill(0);
        self.put_pages(ino, page, &content, None, &|_| {})
    }

    /// Finds out what removing the pages `from..to` takes. The caller holds the content lock alone.
    fn plan_removal(&self, ino: u64, from: u64, to: u64) -> Result<Removal, Error> {
        let (first_whole, end_whole) = (from.div_ceil(RUN_PAGES), to / RUN_PAGES);
        let mut removal = Removal {
            kept: Vec::new(),
            gone: Vec::new(),
            cut: None,
            chunks: from.div_ceil(chunk_pages())..to / chunk_pages(),
            pages: 0,
        };
        let mut edges = vec![from / RUN_PAGES, to / RUN_PAGES];
        edges.dedup();
        for run in edges {
            let pages = run * RUN_PAGES..(run + 1) * RUN_PAGES;
            let mut map = self.page_map(ino, run)?;
            if (first_whole..end_whole).contains(&run) || map.is_empty() {
                continue;
            }
            for page in pages.filter(|page| (from..to).contains(page)) {
                let old = map.pages[(page % RUN_PAGES) as usize].take();
                removal.pages += u64::from(old.is_some());
            }
            removal.kept.push((run, map));
        }
        if first_whole >= end_whole {
            return Ok(removal);
        }
        let (low, high) = (map_key(ino, first_whole), map_key(ino, end_whole));
        let keys = self.keys_of(&low, &high, RUNS_AT_ONCE + 1)?;
        if keys.len() > RUNS_AT_ONCE {
            removal.cut = Some((first_whole, end_whole));
            removal.chunks = 0..0;
            return Ok(removal);
        }
        for key in keys {
            let run = u64::from_be_bytes(key[9..17].try_into().expect("a key of this table"));
            removal.pages += self.page_map(ino, run)?.count();
            removal.gone.push(run);
        }
        Ok(removal)
    }

    fn remove(&self, ino: u64, inode: &mut Inode, removal: Removal, change: &mut Change) {
        for (run, map) in &removal.kept {
            change.put_map(self.cipher, ino, *run, map);
        }
        let mut chunks: Vec<u64> = Vec::new();
        for run in removal.gone {
            self.cuts.revive(ino, run, change);
            change.put_map(self.cipher, ino, run, &PageMap::empty());
            let chunk = chunk_of(run * RUN_PAGES);
            if removal.chunks.contains(&chunk) && chunks.last() != Some(&chunk) {
                chunks.push(chunk);
            }
        }
        for chunk in chunks {
            self.data_keys.remove(ino, chunk);
            change.delete(dek_key(ino, chunk));
        }
        if let Some((from, to)) = removal.cut {
            self.cuts.add(ino, from, to, change);
        }
        inode.pages = inode.pages.saturating_sub(removal.pages);
        change.note_freed(removal.pages);
    }

    /// Removes some of what cut marks cover; false if there are none.
    pub(super) fn reap_cut(&self) -> Result<bool, Error> {
        let Some((ino, (from, to))) = self.cuts.first() else { return Ok(false) };
        let _content = self.content_lock(ino).write();
        if self.cuts.first() != Some((ino, (from, to))) {
            return Ok(true);
        }
        let keys = self.keys_of(&map_key(ino, from), &map_key(ino, to), RUNS_AT_ONCE)?;
        let done = keys.len() < RUNS_AT_ONCE;
        let mut pages = 0;
        let mut runs = Vec::new();
        for key in keys {
            let run = u64::from_be_bytes(key[9..17].try_into().expect("a key of this table"));
            if let Some(value) = self.epochs.get(&key)? {
                pages += PageMap::decode(self.cipher, &value)?.count();
            }
            runs.push(run);
        }
        let upto = if done { to } else { runs.last().map_or(to, |run| run + 1) };
        let _lock = self.lock_inodes(&[ino]);
        let inode = self.inode(ino)?;
        let mut change = self.change(true)?;
        for &run in &runs {
            change.put_map(self.cipher, ino, run, &PageMap::empty());
        }
        let runs_per_chunk = chunk_pages() / RUN_PAGES;
        for chunk in from.div_ceil(runs_per_chunk)..upto / runs_per_chunk {
            if runs.binary_search_by(|run| (run / runs_per_chunk).cmp(&chunk)).is_ok() {
                self.data_keys.remove(ino, chunk);
                change.delete(dek_key(ino, chunk));
            }
        }
        self.cuts.remove(ino, from, upto, &mut change);
        change.note_freed(pages);
        if let Some(mut inode) = inode {
            inode.pages = inode.pages.saturating_sub(pages);
            change.put_inode(ino, &inode);
        }
        Ok(true)
    }

    /// Checks that a range can be written, for `fallocate(2)`.
    ///
    /// # Errors
    /// `NoSpace` if there is less space than the range's holes need.
    pub fn reserve(&self, ino: u64, offset: u64, length: u64) -> Result<(), Error> {
        let end = offset.checked_add(length).filter(|&end| end <= FILE_BYTES_MAX);
        let end = end.ok_or(Error::TooLarge)?;
        let inode = self.require(ino)?;
        let pages = end.div_ceil(PAGE) - offset / PAGE;
        let (_, free, _) = self.space();
        if pages.saturating_sub(inode.pages) > free { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// First offset at or after `offset` that is data (`true`) or a hole (`false`), 4 KiB granular;
    /// the end of the file counts as a hole. `None` past the end.
    ///
    /// # Errors
    /// If the metadata is damaged there.
    pub fn seek(&self, ino: u64, offset: u64, data: bool) -> Result<Option<u64>, Error> {
        let _content = self.content_lock(ino).read();
        let inode = self.require(ino)?;
        if offset >= inode.size {
            return Ok(None);
        }
        if !inode.paged {
            return Ok(Some(if data { offset } else { inode.size }));
        }
        let mut page = offset / PAGE;
        let end = inode.size.div_ceil(PAGE);
        while page < end {
            let run = page / RUN_PAGES;
            let map = self.page_map(ino, run)?;
            if map.is_empty() && data {
                page = match self.next_live_run(ino, run + 1)? {
                    Some(next) => next * RUN_PAGES,
                    None => return Ok(None),
                };
                continue;
            }
            let found = (page..(run + 1) * RUN_PAGES)
                .find(|page| map.pages[(page % RUN_PAGES) as usize].is_some() == data);
            match found {
                Some(found) if found < end => return Ok(Some(offset.max(found * PAGE))),
                Some(_) => break,
                None => page = (run + 1) * RUN_PAGES,
            }
        }
        Ok(if data { None } else { Some(inode.size) })
    }

    /// The first run from `run` on that has pages.
    fn next_live_run(&self, ino: u64, run: u64) -> Result<Option<u64>, Error> {
        let mut found = None;
        let to = super::records::after_owner(crate::format::record::Table::PageMap, ino);
        self.epochs.range(&map_key(ino, run), &to, &mut |key, _| {
            let run = key.get(9..17).map(|run| u64::from_be_bytes(run.try_into().expect("8")));
            found = run.filter(|&run| !self.cuts.is_dead(ino, run));
            found.is_none()
        })?;
        Ok(found)
    }
}

fn chunk_pages() -> u64 {
    crate::format::CHUNK_BYTES / PAGE
}
