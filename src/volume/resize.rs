//! Changing the size of a file, punching holes, and finding them.

use super::data_keys::chunk_of;
use super::records::{Change, dek_key, map_key};
use super::{Error, FILE_BYTES_MAX, INLINE_BYTES_MAX, Volume};
use crate::format::map::PageMap;
use crate::format::record::Inode;
use crate::format::{PAGE_BYTES, RUN_PAGES};
use crate::space::SlotRun;
use std::collections::BTreeMap;

const PAGE: u64 = PAGE_BYTES as u64;
/// Page maps that are removed at once; what is more is marked and removed in the background.
pub(super) const RUNS_AT_ONCE: usize = 1024;

/// Changes to the page maps of a file that become durable together.
#[derive(Default)]
struct Edit {
    /// Maps that change, by run.
    maps: BTreeMap<u64, PageMap>,
    /// Slots of pages that were sealed anew, to which the maps refer.
    runs: Vec<SlotRun>,
    /// Sums of these pages.
    sums: Vec<u64>,
    /// Whole runs whose records go now.
    gone: Vec<u64>,
    /// Whole runs that are marked dead.
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
        let content = if paged { Vec::new() } else { self.inline(ino)? };
        let shrinks = size < inode.size;
        // There are no pages behind the end, so the last chunk goes as a whole, with its key.
        let old_end = inode.size.div_ceil(PAGE).next_multiple_of(chunk_pages());
        self.edit(
            ino,
            |edit| {
                if paged && shrinks {
                    self.zero_within_page(ino, size, size.next_multiple_of(PAGE), edit)?;
                    self.plan_removal(ino, size.div_ceil(PAGE), old_end, edit)?;
                }
                Ok(shrinks)
            },
            &|inode, change| {
                if !paged && content.len() as u64 > size {
                    if size == 0 {
                        change.delete_inline(ino);
                    } else {
                        change.put_inline(ino, &content[..size as usize]);
                    }
                }
                inode.size = size;
                if size == 0 && inode.pages == 0 && !self.cuts.has(ino) {
                    inode.paged = false;
                }
                touch(inode);
            },
        )
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
        self.zero(ino, offset, length, 0, touch)
    }

    /// As [`Volume::punch`]; the size grows to `size` in the same change, if it is smaller.
    ///
    /// # Errors
    /// As [`Volume::truncate`].
    pub fn zero(
        &self,
        ino: u64,
        offset: u64,
        length: u64,
        size: u64,
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        if size > FILE_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        let _content = self.content_lock(ino).write();
        let inode = self.require(ino)?;
        let paged = inode.paged || size > INLINE_BYTES_MAX;
        if paged && !inode.paged {
            self.make_paged(ino)?;
        }
        let end = offset.saturating_add(length).min(inode.size.next_multiple_of(PAGE));
        let touch = |inode: &mut Inode| {
            inode.size = inode.size.max(size);
            touch(inode);
        };
        if !paged {
            return self.zero_inline(ino, offset as usize, end as usize, &touch);
        }
        let (first, last) = (offset.next_multiple_of(PAGE), end / PAGE * PAGE);
        self.edit(
            ino,
            |edit| {
                if offset >= end {
                    return Ok(size <= inode.size);
                }
                if first > last {
                    self.zero_within_page(ino, offset, end, edit)?;
                } else {
                    self.zero_within_page(ino, offset, first, edit)?;
                    self.zero_within_page(ino, last, end, edit)?;
                    self.plan_removal(ino, first / PAGE, last / PAGE, edit)?;
                }
                Ok(true)
            },
            &|inode, _| touch(inode),
        )?;
        Ok(())
    }

    /// Plans an edit, and makes it in one change together with what `finish` does. `plan` says
    /// whether it frees space. The caller holds the content lock alone.
    fn edit(
        &self,
        ino: u64,
        plan: impl Fn(&mut Edit) -> Result<bool, Error>,
        finish: &dyn Fn(&mut Inode, &mut Change),
    ) -> Result<Inode, Error> {
        // At most the two pages at the ends of the range are written anew.
        self.with_space(2, || {
            let mut edit = Edit::default();
            let done = plan(&mut edit).and_then(|frees| {
                let _lock = self.lock_inodes(&[ino]);
                let mut inode = self.require(ino)?;
                let mut change = self.change(frees)?;
                self.apply(ino, &mut inode, &edit, &mut change);
                finish(&mut inode, &mut change);
                change.put_inode(ino, &inode);
                Ok(inode)
            });
            if done.is_err() {
                self.epochs.space.release(&edit.runs);
            }
            done
        })
    }

    fn zero_inline(
        &self,
        ino: u64,
        from: usize,
        to: usize,
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        let mut content = self.inline(ino)?;
        let to = to.min(content.len());
        content[from.min(to)..to].fill(0);
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
    fn zero_within_page(&self, ino: u64, from: u64, to: u64, edit: &mut Edit) -> Result<(), Error> {
        let (page, run) = (from / PAGE, from / PAGE / RUN_PAGES);
        if from >= to {
            return Ok(());
        }
        let mut map = self.edited_map(ino, run, edit)?;
        let pointer = &mut map.pages[(page % RUN_PAGES) as usize];
        if pointer.is_none() {
            return Ok(());
        }
        let mut content = vec![0; PAGE_BYTES];
        self.read_pages(ino, page * PAGE, &mut content)?;
        let start = (from % PAGE) as usize;
        content[start..start + (to - from) as usize].fill(0);
        let placed = self.place(ino, page, &content)?;
        *pointer = placed.pages.first().copied();
        edit.runs.extend(placed.runs);
        edit.sums.extend(placed.sums);
        edit.maps.insert(run, map);
        Ok(())
    }

    /// The map of a run as the edit has it so far.
    fn edited_map(&self, ino: u64, run: u64, edit: &Edit) -> Result<PageMap, Error> {
        match edit.maps.get(&run) {
            Some(map) => Ok(map.clone()),
            None => self.page_map(ino, run),
        }
    }

    /// Finds out what removing the pages `from..to` takes. The caller holds the content lock alone.
    fn plan_removal(&self, ino: u64, from: u64, to: u64, edit: &mut Edit) -> Result<(), Error> {
        let whole = from.div_ceil(RUN_PAGES)..to / RUN_PAGES;
        for run in [from / RUN_PAGES, to / RUN_PAGES] {
            let mut map = self.edited_map(ino, run, edit)?;
            if whole.contains(&run) || map.is_empty() {
                continue;
            }
            let pages = run * RUN_PAGES..(run + 1) * RUN_PAGES;
            for page in pages.filter(|page| (from..to).contains(page)) {
                let old = map.pages[(page % RUN_PAGES) as usize].take();
                edit.pages += u64::from(old.is_some());
            }
            edit.maps.insert(run, map);
        }
        if whole.is_empty() {
            return Ok(());
        }
        let (low, high) = (map_key(ino, whole.start), map_key(ino, whole.end));
        let keys = self.keys_of(&low, &high, RUNS_AT_ONCE + 1)?;
        if keys.len() > RUNS_AT_ONCE {
            edit.cut = Some((whole.start, whole.end));
            return Ok(());
        }
        for key in keys {
            let run = run_of(&key);
            edit.pages += self.stored_map(ino, run)?.count();
            edit.gone.push(run);
        }
        edit.chunks = from.div_ceil(chunk_pages())..to / chunk_pages();
        Ok(())
    }

    fn apply(&self, ino: u64, inode: &mut Inode, edit: &Edit, change: &mut Change) {
        for (run, map) in &edit.maps {
            change.put_map(self.cipher, ino, *run, map);
        }
        let mut chunks: Vec<u64> = Vec::new();
        for &run in &edit.gone {
            self.cuts.revive(ino, run, change);
            change.put_map(self.cipher, ino, run, &PageMap::empty());
            let chunk = chunk_of(run * RUN_PAGES);
            if edit.chunks.contains(&chunk) && chunks.last() != Some(&chunk) {
                chunks.push(chunk);
            }
        }
        for chunk in chunks {
            self.data_keys.remove(ino, chunk);
            change.delete(dek_key(ino, chunk));
        }
        if let Some((from, to)) = edit.cut {
            self.cuts.add(ino, from, to, change);
        }
        change.refer_to(&edit.runs, &edit.sums);
        inode.pages = inode.pages.saturating_sub(edit.pages);
        change.note_freed(edit.pages);
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
            let run = run_of(&key);
            pages += self.stored_map(ino, run)?.count();
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
    pub(super) fn next_live_run(&self, ino: u64, run: u64) -> Result<Option<u64>, Error> {
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

/// The run of a page map's key.
pub(super) fn run_of(key: &[u8]) -> u64 {
    u64::from_be_bytes(key[9..17].try_into().expect("a key of this table"))
}

fn chunk_pages() -> u64 {
    crate::format::CHUNK_BYTES / PAGE
}
