//! Contents of files: sealing pages into free slots. `read` reads them back.

use super::data_keys::chunk_of;
use super::{Error, FILE_BYTES_MAX, INLINE_BYTES_MAX, Volume};
use crate::crypto::Cipher;
use crate::defect::{self, Defect};
use crate::format::log::page_sum;
use crate::format::map::{PageMap, PagePointer};
use crate::format::record::Inode;
use crate::format::{FORMAT_VERSION, PAGE_BYTES, RUN_PAGES, Slot};
use crate::space::{Class, Purpose, Runs, SlotRun, SpaceError, slots_of};
use crate::storage::FileId;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::io;

/// [`PAGE_BYTES`], for offsets.
pub(super) const PAGE: u64 = PAGE_BYTES as u64;
/// What is written at once when the disk is full: half of the smallest reserve.
const FULL_PART_BYTES: usize = 256 * 1024;

thread_local! {
    /// Sealed bytes on their way to or from the disk.
    pub(super) static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Pages, and what they are in terms of space.
type Part = (std::ops::Range<u64>, Purpose);

/// Pages that were sealed and written, to which no record refers yet.
pub(super) struct Placed {
    first_page: u64,
    pub(super) pages: SmallVec<[PagePointer; 1]>,
    pub(super) runs: Runs,
    /// Sums of the sealed pages, for the log.
    pub(super) sums: SmallVec<[u64; 1]>,
}

impl Volume {
    /// Writes `data`, grows the size if needed, and applies `touch` to the record in the same
    /// change (times, set-user-ID bits).
    ///
    /// # Errors
    /// `NoSpace`, `TooLarge`, or what reading the rest of a partly written page gives.
    pub fn write(
        &self,
        ino: u64,
        offset: u64,
        data: &[u8],
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= FILE_BYTES_MAX);
        let end = end.ok_or(Error::TooLarge)?;
        let whole_pages = offset % PAGE == 0 && end % PAGE == 0;
        if whole_pages {
            let _content = self.content_lock(ino).read();
            if self.require(ino)?.paged {
                return self.write_whole_pages(ino, offset, data, touch);
            }
        }
        let _content = self.content_lock(ino).write();
        let inode = self.require(ino)?;
        if !inode.paged && inode.size.max(end) <= INLINE_BYTES_MAX {
            return self.write_inline(ino, offset as usize, data, touch);
        }
        if whole_pages && (inode.paged || offset == 0 && end >= inode.size) {
            // What was inline is overwritten as a whole.
            return self.write_whole_pages(ino, offset, data, touch);
        }
        if !inode.paged {
            self.make_paged(ino)?;
        }
        self.write_unaligned(ino, offset, data, touch)
    }

    fn write_inline(
        &self,
        ino: u64,
        offset: usize,
        data: &[u8],
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        self.with_space(0, || self.write_inline_once(ino, offset, data, touch))
    }

    fn write_inline_once(
        &self,
        ino: u64,
        offset: usize,
        data: &[u8],
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        let mut content = self.inline(ino)?;
        let first_page = 0..1;
        let replaces =
            offset + data.len() <= content.len() || self.promises.count(ino, &first_page) > 0;
        content.resize(content.len().max(offset + data.len()), 0);
        content[offset..offset + data.len()].copy_from_slice(data);
        let _lock = self.lock_inodes(&[ino]);
        let mut inode = self.require(ino)?;
        let mut change = self.change(replaces)?;
        if !content.is_empty() {
            change.put_inline(ino, &content);
        }
        inode.size = inode.size.max((offset + data.len()) as u64);
        touch(&mut inode);
        change.put_inode(ino, &inode);
        Ok(())
    }

    /// Moves inline content into a page. The caller holds the content lock alone.
    pub(super) fn make_paged(&self, ino: u64) -> Result<(), Error> {
        let mut content = self.inline(ino)?;
        if content.is_empty() {
            let _lock = self.lock_inodes(&[ino]);
            let mut inode = self.require(ino)?;
            inode.paged = true;
            self.change(true)?.put_inode(ino, &inode);
            return Ok(());
        }
        content.resize(PAGE_BYTES, 0);
        self.put_pages(ino, 0, &content, None, &|_| {})
    }

    /// Makes whole pages the content of their range; `end` is where the write ended, and the size
    /// grows to it. On a full disk they go in small parts, each of which has room in the reserve.
    pub(super) fn put_pages(
        &self,
        ino: u64,
        first_page: u64,
        data: &[u8],
        end: Option<u64>,
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        let put = |first_page: u64, data: &[u8], end: Option<u64>| {
            self.with_space((data.len() / PAGE_BYTES) as u64, || {
                let placed = self.place(ino, first_page, data)?;
                self.install(ino, placed, end, touch)
            })
        };
        match put(first_page, data, end) {
            Err(Error::NoSpace) => {}
            done => return done,
        }
        let parts = self.parts(ino, first_page, (data.len() / PAGE_BYTES) as u64)?;
        let is_promised = parts.iter().any(|(_, purpose)| *purpose == Purpose::Promised);
        if parts.len() == 1 || data.len() <= FULL_PART_BYTES && !is_promised {
            return Err(Error::NoSpace);
        }
        let (mut rest, mut refused) = (data, None);
        for (pages, purpose) in parts {
            let (part, after) = rest.split_at((pages.end - pages.start) as usize * PAGE_BYTES);
            rest = after;
            // What has its space is not refused because its neighbour has none.
            if refused.is_some() && purpose == Purpose::New {
                continue;
            }
            match put(pages.start, part, end.map(|end| end.min(pages.end * PAGE))) {
                Err(Error::NoSpace) => refused = Some(Error::NoSpace),
                done => done?,
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Cuts a range of pages into parts of at most [`FULL_PART_BYTES`] that are alike.
    fn parts(&self, ino: u64, first: u64, count: u64) -> Result<Vec<Part>, Error> {
        let mut parts: Vec<Part> = Vec::new();
        for page in first..first + count {
            let purpose = self.purpose_of(ino, page, 1)?;
            match parts.last_mut() {
                Some((pages, of))
                    if *of == purpose
                        && pages.end - pages.start < FULL_PART_BYTES as u64 / PAGE =>
                {
                    pages.end += 1;
                }
                _ => parts.push((page..page + 1, purpose)),
            }
        }
        Ok(parts)
    }

    /// Writes a range whose first and last page keep some of their old content.
    fn write_unaligned(
        &self,
        ino: u64,
        offset: u64,
        data: &[u8],
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset + data.len() as u64;
        let (start, stop) = (offset / PAGE * PAGE, end.next_multiple_of(PAGE));
        let mut pages = vec![0; (stop - start) as usize];
        let (head, tail) = (offset % PAGE != 0, end % PAGE != 0);
        if head {
            self.read_pages(ino, start, &mut pages[..PAGE_BYTES])?;
        }
        let last = pages.len() - PAGE_BYTES;
        if tail && !(head && last == 0) {
            self.read_pages(ino, stop - PAGE, &mut pages[last..])?;
        }
        let at = (offset - start) as usize;
        pages[at..at + data.len()].copy_from_slice(data);
        self.put_pages(ino, start / PAGE, &pages, Some(end), touch)
    }

    fn write_whole_pages(
        &self,
        ino: u64,
        offset: u64,
        data: &[u8],
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        if data.is_empty() {
            return Ok(());
        }
        self.put_pages(ino, offset / PAGE, data, Some(offset + data.len() as u64), touch)
    }

    /// Seals whole pages and writes them into free slots.
    pub(super) fn place(&self, ino: u64, first_page: u64, data: &[u8]) -> Result<Placed, Error> {
        self.epochs.check_writable()?;
        let count = (data.len() / PAGE_BYTES) as u32;
        SEALED.with_borrow_mut(|sealed| {
            sealed.resize(sealed.len().max(data.len()), 0);
            let sealed = &mut sealed[..data.len()];
            let mut pages: SmallVec<[PagePointer; 1]> = SmallVec::with_capacity(count as usize);
            let first_nonce = self.nonces.next_run(count);
            let mut key = None;
            let halves = data.chunks_exact(PAGE_BYTES).zip(sealed.chunks_exact_mut(PAGE_BYTES));
            for (index, (plaintext, sealed)) in (0u16..).zip(halves) {
                let page = first_page + u64::from(index);
                let chunk = chunk_of(page);
                if key.as_ref().is_none_or(|(of, _)| *of != chunk) {
                    key = Some((chunk, self.dek_for_write(ino, chunk)?));
                }
                let (_, key) = key.as_ref().expect("just set");
                let nonce = first_nonce.offset(index);
                let tag = key.seal(nonce, &self.page_aad(ino, page), plaintext, sealed);
                pages.push(PagePointer { slot: Slot(0), nonce, tag });
            }
            let runs = self.write_slots(ino, first_page, sealed)?;
            let slots = slots_of(&runs);
            for (pointer, slot) in pages.iter_mut().zip(slots) {
                pointer.slot = slot;
            }
            let sums = sealed.chunks_exact(PAGE_BYTES).map(page_sum).collect();
            Ok(Placed { first_page, pages, runs, sums })
        })
    }

    /// Writes sealed pages into free slots, into the reserve if they replace others.
    pub(super) fn write_slots(
        &self,
        ino: u64,
        first_page: u64,
        sealed: &[u8],
    ) -> Result<Runs, Error> {
        let space = &self.epochs.space;
        let count = (sealed.len() / PAGE_BYTES) as u32;
        let write = |runs: Runs| match self.write_runs(&runs, sealed) {
            Ok(()) => Ok(runs),
            Err(error) => {
                space.release(&runs);
                let full = space.refuses(&error);
                Err(if full { SpaceError::NoSpace } else { SpaceError::Storage(error) })
            }
        };
        let runs = match space.allocate(Class::Data, count).and_then(write) {
            Err(SpaceError::NoSpace) => {
                let purpose = self.purpose_of(ino, first_page, u64::from(count))?;
                space.allocate_backed(Class::Data, count, purpose).and_then(write)
            }
            other => other,
        };
        match runs {
            Ok(runs) => Ok(runs),
            Err(SpaceError::NoSpace) => Err(Error::NoSpace),
            Err(SpaceError::Storage(source)) => Err(Error::Storage {
                what: format!("writing inode {ino}, bytes from {}", first_page * PAGE),
                source: Box::new(source),
            }),
        }
    }

    fn write_runs(&self, runs: &[SlotRun], sealed: &[u8]) -> io::Result<()> {
        let mut rest = sealed;
        for run in runs {
            let (part, after) = rest.split_at(run.count as usize * PAGE_BYTES);
            let file = FileId::Segment(run.first.segment());
            self.storage.write_uncached_at(file, run.first.offset(), part)?;
            self.epochs.space.mark_backed(*run);
            rest = after;
        }
        Ok(())
    }

    /// Whether all of these pages have content already, or were promised space.
    fn purpose_of(&self, ino: u64, first: u64, count: u64) -> Result<Purpose, Error> {
        let holes = count - self.pointers(ino, first, count)?.len() as u64;
        Ok(match self.promises.count(ino, &(first..first + count)) {
            _ if holes == 0 => Purpose::Overwrite,
            promised if promised == holes => Purpose::Promised,
            _ => Purpose::New,
        })
    }

    /// Makes placed pages the content of their range. `end` is where the write ended; the size
    /// grows to it.
    pub(super) fn install(
        &self,
        ino: u64,
        placed: Placed,
        end: Option<u64>,
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        let installed = self.install_records(ino, &placed, end, touch);
        if installed.is_err() {
            self.epochs.space.release(&placed.runs);
        }
        installed
    }

    fn install_records(
        &self,
        ino: u64,
        placed: &Placed,
        end: Option<u64>,
        touch: &dyn Fn(&mut Inode),
    ) -> Result<(), Error> {
        let _lock = self.lock_inodes(&[ino]);
        let mut inode = self.require(ino)?;
        let mut maps: SmallVec<[(u64, PageMap); 1]> = SmallVec::new();
        let (mut added, mut dead, mut replaced) = (0, 0, 0);
        let count = placed.pages.len() as u64;
        for (page, &pointer) in (placed.first_page..).zip(&placed.pages) {
            let run = page / RUN_PAGES;
            if maps.last().is_none_or(|(of, _)| *of != run) {
                maps.push((run, self.page_map(ino, run)?));
                if self.cuts.is_dead(ino, run) {
                    dead += self.stored_map(ino, run)?.count();
                }
            }
            let (_, map) = maps.last_mut().expect("just pushed");
            let old = map.pages[(page % RUN_PAGES) as usize].replace(pointer);
            added += u64::from(old.is_none());
            replaced += u64::from(old.is_some());
        }
        if defect::active(Defect::SizeBeforeContent) {
            let size = inode.size.max(end.unwrap_or(0));
            self.change(true)?.put_inode(ino, &Inode { size, ..inode });
        }
        let pages = placed.first_page..placed.first_page + count;
        let mut change = self.change(added == self.promises.count(ino, &pages))?;
        self.keep_promise(ino, pages);
        for (run, map) in &maps {
            self.cuts.revive(ino, *run, &mut change);
            change.put_map(self.cipher, ino, *run, map);
        }
        if !inode.paged {
            inode.paged = true;
            change.delete_inline(ino);
        }
        inode.pages = (inode.pages + added).saturating_sub(dead);
        inode.size = inode.size.max(end.unwrap_or(0));
        touch(&mut inode);
        change.put_inode(ino, &inode);
        change.refer_to(&placed.runs, &placed.sums);
        change.note_freed(replaced);
        Ok(())
    }

    /// Associated data of a page: where it belongs.
    ///
    /// ```text
    /// offset size field
    ///      0    2 format version
    ///      2   16 volume id
    ///     18    8 inode
    ///     26    8 page index
    ///     34    1 cipher: 1 aes-256-gcm, 2 aes-256-xts
    /// ```
    pub(super) fn page_aad(&self, ino: u64, page: u64) -> [u8; 35] {
        let mut aad = [0; 35];
        aad[0..2].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        aad[2..18].copy_from_slice(&self.volume_id.0);
        aad[18..26].copy_from_slice(&ino.to_le_bytes());
        aad[26..34].copy_from_slice(&page.to_le_bytes());
        aad[34] = match self.cipher {
            Cipher::Aes256Gcm => 1,
            Cipher::Aes256Xts => 2,
        };
        aad
    }
}
