//! Reading contents back: pages are opened into the place where they are wanted.

use super::ahead::Sealed;
use super::content::{PAGE, SEALED};
use super::data_keys::chunk_of;
use super::{Error, Volume};
use crate::format::map::{PageMap, PagePointer};
use crate::format::record::Inode;
use crate::format::{PAGE_BYTES, RUN_PAGES};
use crate::storage::FileId;
use smallvec::SmallVec;
use std::io;
use std::sync::atomic::Ordering;

/// Pages that are read from the disk in one piece at most: 1 MiB.
const READ_PAGES_MAX: usize = 256;

/// Pages and where they are, ascending. Those of small reads allocate nothing.
pub(super) type Pages = SmallVec<[(u64, PagePointer); 4]>;

impl Volume {
    /// Reads up to `length` bytes at `offset` into `buffer`, whose content is replaced; short at
    /// the end of the file. Returns the record of the inode by which it was done.
    ///
    /// # Errors
    /// [`Error::Damaged`] if a page of the range does not authenticate.
    pub fn read(
        &self,
        ino: u64,
        offset: u64,
        length: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Inode, Error> {
        let _content = self.content_lock(ino).read();
        let inode = self.require(ino)?;
        let end = inode.size.min(offset.saturating_add(length as u64));
        buffer.resize(end.saturating_sub(offset) as usize, 0);
        self.read_range(ino, inode.paged, offset, buffer).map(|()| inode)
    }

    /// As [`Volume::read`], into the beginning of `buffer`; returns how many bytes that were, too.
    ///
    /// # Errors
    /// As [`Volume::read`].
    pub fn read_into(
        &self,
        ino: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(usize, Inode), Error> {
        let _content = self.content_lock(ino).read();
        let inode = self.require(ino)?;
        let end = inode.size.min(offset.saturating_add(buffer.len() as u64));
        let length = end.saturating_sub(offset) as usize;
        self.read_range(ino, inode.paged, offset, &mut buffer[..length])?;
        Ok((length, inode))
    }

    /// Fills `buffer` with content that is all within the file. The caller holds the content lock.
    fn read_range(
        &self,
        ino: u64,
        is_paged: bool,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        if buffer.is_empty() {
            return Ok(());
        }
        if is_paged {
            return self.read_pages(ino, offset, buffer);
        }
        buffer.fill(0);
        let content = self.inline(ino)?;
        let end = (offset as usize).saturating_add(buffer.len());
        let from = (offset as usize).min(content.len());
        let part = &content[from..content.len().min(end)];
        buffer[..part.len()].copy_from_slice(part);
        Ok(())
    }

    /// Fills `buffer` with the content at `offset`; holes read as zeros. The caller holds the
    /// content lock and knows that the file is paged.
    pub(super) fn read_pages(&self, ino: u64, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let _pin = self.epochs.pin();
        let first = offset / PAGE;
        let count = (offset + buffer.len() as u64 - 1) / PAGE + 1 - first;
        let pages = self.pointers(ino, first, count)?;
        self.apart.note(ino, &pages, pages.chunk_by(are_adjacent).count());
        if pages.len() as u64 != count {
            // Holes.
            buffer.fill(0);
        }
        let mut rest = &pages[..];
        for window in self.ahead.follow(ino, first, count) {
            let (part, after) =
                rest.split_at(rest.partition_point(|(page, _)| *page < window.end()));
            rest = after;
            let sealed = window.take().unwrap_or_default();
            for group in together(part) {
                self.open_or_read_group(ino, group, &sealed, offset, buffer)?;
            }
            self.ahead.recycle(sealed);
        }
        together(rest).try_for_each(|group| self.read_group(ino, group, offset, buffer))
    }

    /// Opens pages that are adjacent on disk, if they were fetched; otherwise reads them.
    fn open_or_read_group(
        &self,
        ino: u64,
        group: &[(u64, PagePointer)],
        fetched: &Sealed,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        if let Some(sealed) = fetched.of(group) {
            if self.open_group(ino, group, sealed, offset, buffer)?.is_none() {
                return Ok(());
            }
        }
        self.read_group(ino, group, offset, buffer)
    }

    /// Where pages are, ascending; holes are left out.
    pub(super) fn pointers(&self, ino: u64, first: u64, count: u64) -> Result<Pages, Error> {
        let mut pages = Pages::with_capacity(count as usize);
        let mut map: Option<(u64, PageMap)> = None;
        for page in first..first + count {
            let run = page / RUN_PAGES;
            if map.as_ref().is_none_or(|(of, _)| *of != run) {
                map = Some((run, self.page_map(ino, run)?));
            }
            let (_, map) = map.as_ref().expect("just set");
            pages.extend(map.pages[(page % RUN_PAGES) as usize].map(|pointer| (page, pointer)));
        }
        Ok(pages)
    }

    /// Reads pages that are adjacent on disk and opens each into its place in `buffer`.
    fn read_group(
        &self,
        ino: u64,
        group: &[(u64, PagePointer)],
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        SEALED.with_borrow_mut(|sealed| {
            sealed.resize(sealed.len().max(group.len() * PAGE_BYTES), 0);
            let sealed = &mut sealed[..group.len() * PAGE_BYTES];
            let slot = group[0].1.slot;
            let file = FileId::Segment(slot.segment());
            let read = self.storage.read_uncached_at(file, slot.offset(), sealed);
            if let Err(error) = read {
                return Err(self.page_lost(ino, group[0].0, Some(error)));
            }
            let broken = self.open_group(ino, group, sealed, offset, buffer)?;
            broken.map_or(Ok(()), |page| Err(self.page_lost(ino, page, None)))
        })
    }

    /// Opens sealed pages, each into its place in `buffer`, which starts at `offset`. Returns the
    /// first that does not authenticate.
    fn open_group(
        &self,
        ino: u64,
        group: &[(u64, PagePointer)],
        sealed: &[u8],
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<Option<u64>, Error> {
        let mut key = None;
        for ((page, pointer), sealed) in group.iter().zip(sealed.chunks_exact(PAGE_BYTES)) {
            let chunk = chunk_of(*page);
            if key.as_ref().is_none_or(|(of, _)| *of != chunk) {
                key = Some((chunk, self.dek(ino, chunk)?));
            }
            let (_, key) = key.as_ref().expect("just set");
            let aad = self.page_aad(ino, *page);
            let (from, to, within) = overlap(*page, offset, buffer.len());
            let opened = if to - from == PAGE_BYTES {
                let plaintext = &mut buffer[from..to];
                key.open(pointer.nonce, &aad, pointer.tag, sealed, plaintext)
            } else {
                let mut plaintext = [0; PAGE_BYTES];
                let opened = key.open(pointer.nonce, &aad, pointer.tag, sealed, &mut plaintext);
                buffer[from..to].copy_from_slice(&plaintext[within..within + to - from]);
                opened
            };
            if opened.is_err() {
                return Ok(Some(*page));
            }
        }
        Ok(None)
    }

    fn page_lost(&self, ino: u64, page: u64, cause: Option<io::Error>) -> Error {
        self.epochs.damage().pages_lost.fetch_add(1, Ordering::Relaxed);
        let (from, to) = (page * PAGE, page * PAGE + PAGE - 1);
        match &cause {
            Some(error) => self.log_damage(ino, from, to, &format!("the storage: {error}")),
            None => self.log_damage(ino, from, to, "they do not authenticate"),
        }
        match cause {
            Some(source) => Error::Storage {
                what: format!("reading inode {ino}, bytes {from} to {to}"),
                source: Box::new(source),
            },
            None => Error::Damaged { ino, what: format!("content at bytes {from} to {to}") },
        }
    }
}

fn are_adjacent(a: &(u64, PagePointer), b: &(u64, PagePointer)) -> bool {
    a.1.slot.is_before(b.1.slot)
}

/// Pages that are read from the disk in one piece each.
pub(super) fn together(
    pages: &[(u64, PagePointer)],
) -> impl Iterator<Item = &[(u64, PagePointer)]> {
    pages.chunk_by(are_adjacent).flat_map(|group| group.chunks(READ_PAGES_MAX))
}

/// Where a page meets a buffer that starts at `offset`: from and to in the buffer, from in the
/// page.
fn overlap(page: u64, offset: u64, length: usize) -> (usize, usize, usize) {
    let start = page * PAGE;
    let from = start.saturating_sub(offset) as usize;
    let within = offset.saturating_sub(start) as usize;
    let to = (from + PAGE_BYTES - within).min(length);
    (from, to, within)
}
